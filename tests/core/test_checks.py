"""The conformance checks find what they are for: one broken policy for each."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from apportion.core import ApportionError, Constraint, Decision, Interval, Outcome, Policy, State
from apportion.core.checks import watched, yield_checks
from apportion.policy.route.priced import Priced


class Broken(Policy):
    """Chooses the first option. Tests break it by replacing a method."""

    constraints: ClassVar[Mapping[str, Constraint]] = {"seed": Interval(int, 0)}

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget."""
        self.count = 0
        self.seen: dict[str, int] = {}

    def decide(self, state: State) -> Decision:
        """The first in alphabetical order."""
        if not state.options:
            return self.nothing(state)
        index = min(range(len(state.options)), key=lambda i: state.options[i].action)
        worths = (None,) * len(state.options)
        action = state.options[index].action
        return Decision(state.id, index, action, 1.0, state.prices, state.options, worths, "the first")


def run(cls: type[Policy], wanted: str) -> None:
    """Run the checks of that name."""
    found = [check for name, check in yield_checks(cls) if name.partition("[")[0] == wanted]
    assert found
    for check in found:
        check()


def broken(**members: Any) -> type[Policy]:
    changed = type("Changed", (Broken,), {"__module__": __name__, "__doc__": Broken.__doc__, **members})
    globals()["Changed"] = changed  # where pickle looks for it
    return changed


def after(change: Callable[[Any, State, Decision], Decision | None]) -> Callable[[Any, State], Decision]:
    """A `decide` that does what `Broken` does and then something wrong."""

    def decide(self: Any, state: State) -> Decision:
        decision = Broken.decide(self, state)
        return change(self, state, decision) or decision

    return decide


def grow(self: Any, state: State, decision: Decision) -> None:
    for option in state.options:
        self.seen[option.action] = 1


def first(self: Any, state: State, decision: Decision) -> Decision | None:
    return dataclasses.replace(decision, choice=0, action=state.options[0].action) if state.options else None


def impure(self: Any, state: State, decision: Decision) -> None:
    if state.options:
        state.options[0].value += 1.0


def learn_impure(self: Any, outcome: Outcome) -> None:
    outcome.quality = 1.0


def learn_strict(self: Any, outcome: Outcome) -> None:
    if outcome.action == "nobody":
        raise KeyError(outcome.decision_id)


def init_changes(self: Any, *, seed: int = 0) -> None:
    self.seed = seed + 1
    self.start()


def count(self: Any, state: State, decision: Decision) -> Decision | None:
    self.count += 1
    return None if decision.choice is None else dataclasses.replace(decision, why=f"no. {self.count}")


class Unset:
    """Not JSON-able."""


@pytest.mark.parametrize(
    ("check", "members"),
    [
        ("docstring", {"__doc__": "No sections."}),
        ("docstring", {"constraints": {}}),
        ("doctest", {"__doc__": "Says.\n\n    >>> 1 + 1\n    3\n    "}),
        ("final", {}),
        ("wrong_parameters", {"start": lambda self: self.reset()}),
        ("parameters", {"__init__": init_changes, "reset": lambda self: setattr(self, "seen", {})}),
        ("parameters", {"__repr__": lambda self: "hidden"}),
        ("offers", {"decide": after(lambda s, state, d: dataclasses.replace(d, id="other"))}),
        ("offers", {"decide": after(lambda s, state, d: dataclasses.replace(d, probability=0.0))}),
        ("offers", {"decide": after(lambda s, state, d: dataclasses.replace(d, worths=()))}),
        ("offers", {"decide": after(lambda s, state, d: dataclasses.replace(d, action="other"))}),
        ("offers", {"decide": after(lambda s, state, d: dataclasses.replace(d, why=""))}),
        ("inputs_unchanged", {"decide": after(impure)}),
        ("inputs_unchanged", {"learn": learn_impure}),
        (
            "inputs_unchanged",
            {"decide": after(lambda s, st, d: dataclasses.replace(d, options=[*st.options]))},
        ),
        (
            "reproducible",
            {"decide": after(lambda s, state, d: dataclasses.replace(d, probability=random.random()))},
        ),
        ("order", {"decide": after(first)}),
        ("isolated", {"decide": after(lambda s, state, d: time.time() and None)}),
        ("isolated", {"decide": after(lambda s, state, d: random.choice([None, None]))}),
        ("isolated", {"decide": after(lambda s, state, d: open("/dev/null").close())}),
        ("learns_anything", {"learn": learn_strict}),
        ("saved", {"reset": lambda self: setattr(self, "count", Unset())}),
        ("bounded", {"decide": after(grow)}),
        ("probabilities", {"decide": after(lambda s, state, d: dataclasses.replace(d, probability=0.5))}),
    ],
)
def test_a_broken_policy_is_found(check: str, members: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ApportionError, KeyError)):
        run(broken(**members), check)


def test_the_sound_one_passes_what_the_broken_ones_fail() -> None:
    for name, check in yield_checks(Broken):
        if name not in ("docstring", "doctest", "final"):
            check()


def test_every_example_is_checked() -> None:
    names = [name for name, _ in yield_checks(Priced)]
    assert "saved[defaults]" in names
    assert "saved[unknown='refuse']" in names
    assert len(names) == len(set(names))


def test_watching_sees_functions_imported_by_name_and_nothing_else() -> None:
    from datetime import datetime
    from random import random as draw
    from time import monotonic

    with watched() as touched:
        random.Random(1).random()
        sum(range(10))
    assert not touched
    with watched() as touched:
        draw()
        monotonic()
        datetime.now()
    assert touched == {"Random.random", "monotonic", "datetime.now"}


def test_watching_sees_numpy() -> None:
    import numpy as np

    np.random.default_rng(1).random()  # loads the rest of it
    with watched() as touched:
        np.random.default_rng(1).random()
    assert not touched
    with watched() as touched:
        np.random.rand(3)
    assert touched == {"numpy.random.rand"}
