"""Predictors of text, length and latency touch nothing outside: no clock, file, socket, global randomness."""

from __future__ import annotations

from typing import Any

import pytest

from apportion.core import Features, catalogue
from apportion.core.checks import watched

FEATURES = Features((0.5, 0.25, 1.0), (0.6, 0.8))


def use(name: str, method: Any) -> None:
    if name == "text/lexical":
        method.features("Why is the sky blue?", "before", {"tools": 3})
        return
    for n in range(40):
        if name.startswith("length/"):
            method.predict(FEATURES, "m")
            method.chance_longer(FEATURES, "m", 100)
            method.learn(FEATURES, "m", 10 + n, censored=n % 7 == 0)
        else:
            method.predict("e", 0.5, 100, 100)
            method.learn("e", 0.5, 100, 50 + n, first_token_s=0.2, total_s=1.0, censored=n % 7 == 0)
    method.load(method.save())


@pytest.mark.parametrize("name", [*catalogue.names("length"), *catalogue.names("latency"), "text/lexical"])
def test_nothing_outside_is_touched(name: str) -> None:
    use(name, catalogue.build(name))  # what is imported at first use is imported now
    method = catalogue.build(name)
    with watched() as touched:
        use(name, method)
    assert not touched
    for parameters in type(method).examples():
        use(name, catalogue.build(name, **parameters))
        assert catalogue.build(name, **parameters).clone().parameters() == dict(parameters)
