"""Budgets and prices as metrics: read from the books when somebody scrapes, the same whichever worker answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from apportion.measure.metrics import sample
from apportion.serve.ledger.balances import Balance

_BOUNDED: Final = ("all", "team", "key", "model", "endpoint")
"""Scopes with as many subjects as there are names in the configuration; users and sessions have no end."""

_FAMILIES: Final = (
    ("apportion_budget_amount", "What a budget allows in its window, in the resource's unit."),
    ("apportion_budget_spent", "What its present window has spent."),
    ("apportion_budget_held", "What requests under way may take of it at most."),
    ("apportion_budget_left", "What is neither spent nor held; below zero: a soft budget passed."),
)


def render(balances: Iterable[Balance], prices: Mapping[str, Any]) -> str:
    """The lines of both in the Prometheus text format; ``prices`` as `Books.explain_prices` gives them."""
    shown = [b for b in balances if b.subject.partition(":")[0] in _BOUNDED]
    lines: list[str] = []
    for place, (name, help_) in enumerate(_FAMILIES):
        if shown:
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
        for b in shown:
            labels = {"budget": b.budget, "scope": b.subject, "resource": b.resource}
            lines.append(sample(name, labels, float((b.amount, b.spent, b.held, b.left)[place])))
    scopes = prices["scopes"]
    if scopes:
        name = "apportion_price_usd"
        lines += [
            f"# HELP {name} Shadow price of a unit, by the scope whose budgets make it.",
            f"# TYPE {name} gauge",
        ]
    for scope, said in scopes.items():
        for resource, price in said["prices"].items():
            lines.append(sample(name, {"scope": scope, "resource": resource}, float(price)))
    return "".join(f"{line}\n" for line in lines)
