"""The public conformance checks over every policy in the catalogue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apportion.core import Policy, catalogue
from apportion.core.checks import Check, yield_checks

EXCUSED: dict[tuple[str, str], str] = {}
"""(method, check) to the reason why it may fail. A check that passes again must leave the table."""


def cases() -> Iterator[object]:
    for name in catalogue.names():
        found = catalogue.find(name)
        if not issubclass(found, Policy):
            continue
        for check_name, check in yield_checks(found, name):
            reason = EXCUSED.get((name, check_name.partition("[")[0]))
            marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
            yield pytest.param(check, id=f"{name}-{check_name}", marks=marks)


@pytest.mark.parametrize("check", list(cases()))
def test_conformance(check: Check) -> None:
    check()


def test_every_excuse_is_of_a_method() -> None:
    assert {name for name, _ in EXCUSED} <= set(catalogue.names())
