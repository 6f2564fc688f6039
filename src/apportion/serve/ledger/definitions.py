"""Budgets as JSON text, exact: decimal amounts are strings, floats numbers."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from apportion.core.budget import Budget

_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in dataclasses.fields(Budget)}
_NUMBERS: Final = frozenset(("amount", "refill_per_s", "overdraft"))


@lru_cache(maxsize=4096)
def encode(budget: Budget) -> str:
    """``budget`` as a JSON object; what is as by default is left out."""
    said = {}
    for name, default in _DEFAULTS.items():
        value = getattr(budget, name)
        if value != default:
            said[name] = str(value) if isinstance(value, Decimal) else value
    return json.dumps(said, separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=4096)
def decode(text: str) -> Budget:
    """The budget that `encode` wrote down; what a newer version has added is passed over."""
    said = {name: value for name, value in json.loads(text).items() if name in _DEFAULTS}
    for name in _NUMBERS & said.keys():
        if isinstance(said[name], str):
            said[name] = Decimal(said[name])
    return Budget(**said)


def shape(budget: Budget) -> tuple[object, ...]:
    """What decides which entries fall into its present window: two budgets of one shape count the same."""
    return (
        budget.resource,
        budget.window_s,
        budget.origin_s if budget.window_s is not None else 0.0,
        budget.calendar,
        budget.time_zone if budget.calendar is not None else "",
        budget.sliding,
        budget.refill_per_s is None,
    )
