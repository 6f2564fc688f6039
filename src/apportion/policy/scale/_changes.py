"""Choosing among changes of a fleet: the option that comes nearest to what is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from apportion.core.decision import Decision
from apportion.core.state import State


def changes(state: State) -> list[float]:
    """By how many instances each option changes the fleet: its fact ``change``, 0 where it says none."""
    return [_number(option.facts, "change") for option in state.options]


def nearest(state: State, offered: Sequence[float], wanted: float) -> int:
    """The option whose change is nearest to the wanted one; ties go to the first name."""
    options = state.options
    return min(range(len(options)), key=lambda i: (abs(offered[i] - wanted), options[i].action))


def decided(state: State, choice: int, why: str) -> Decision:
    """The decision for an option, with what it is worth."""
    option = state.options[choice]
    paid = option.cost.at_prices(state.prices)
    worths: list[float | None] = [None] * len(state.options)
    worths[choice] = None if paid is None else option.value - paid
    return Decision(state.id, choice, option.action, 1.0, state.prices, state.options, tuple(worths), why)


def _number(facts: Mapping[str, object] | None, name: str) -> float:
    found = facts.get(name) if facts is not None else None
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) else 0.0
