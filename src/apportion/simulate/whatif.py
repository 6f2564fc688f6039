"""What if: twice the traffic, an endpoint lost, a price doubled, a budget halved. Changes to a scenario, as data.

Written as on the command line: ``rate=2``, ``lose=gpu@10m``, ``slow:gpu=1.5@10m``, ``price:gpu=2``,
``budget:team=0.5``, ``instances:gpu=4``; several at once are joined by commas.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from apportion.core.budget import Budget
from apportion.core.errors import ApportionError
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.simulate.metrics import seconds
from apportion.simulate.scenario import Event, Scenario
from apportion.simulate.trace import Trace
from apportion.simulate.workload import shape

KINDS: Final = ("rate", "lose", "slow", "price", "budget", "instances")
MOST: Final = {"rate": 1e4, "slow": 1e6, "price": 1e6, "budget": 1e6, "instances": 1024}
"""The largest number of each kind: beyond it is a slip of the pen, which would take all memory or say nothing."""
_FIX: Final = (
    "Write rate=2, lose=ENDPOINT[@10m], slow:ENDPOINT=1.5[@10m], price[:ENDPOINT]=2, budget[:NAME]=0.5 or "
    "instances:ENDPOINT=4."
)


class WhatIfError(ApportionError):
    """A what-if is not understood, or speaks of what is not there."""

    code = "what_if"


@dataclass(frozen=True, slots=True)
class Change:
    """One change. ``name`` is of an endpoint or budget ("": all of them); ``at_s`` counts from the first request."""

    kind: str
    name: str
    value: float
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Changes that are made together; ``text`` is how it is called. None at all is the present."""

    text: str
    changes: tuple[Change, ...]

    def apply(self, scenario: Scenario, trace: Trace) -> tuple[Scenario, Trace]:
        """The changed scenario and trace; raises `WhatIfError` where a name is unknown."""
        for change in self.changes:
            if change.kind == "rate":
                trace = shape.scaled(trace, change.value)
            else:
                scenario = _changed(scenario, change, float(trace.arrival_s[0]) if len(trace) else 0.0)
        return scenario, trace


AS_IS: Final = WhatIf("as is", ())


def parse(text: str) -> WhatIf:
    """From its words; raises `WhatIfError`."""
    return WhatIf(text, tuple(_parsed(part.strip()) for part in text.split(",")))


def _parsed(part: str) -> Change:
    head, is_, value = (word.strip() for word in part.partition("="))
    kind, _, name = (word.strip() for word in head.partition(":"))
    if kind not in KINDS or not is_ or not value:
        raise WhatIfError(f"{part!r} is no what-if.", field="--what-if", fix=_FIX)
    at_s = 0.0
    if kind in ("lose", "slow"):
        value, _, at = value.partition("@")
        at_s = seconds(at.strip(), "--what-if") if at else 0.0
    if kind == "lose":
        return Change(kind, value.strip(), 0.0, at_s)
    if kind in ("slow", "instances") and not name:
        raise WhatIfError(f"{part!r} does not say which endpoint.", field="--what-if", fix=_FIX)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf or (kind == "instances" and number != int(number)):
        raise WhatIfError(f"{value!r} in {part!r} is no positive number.", field="--what-if", fix=_FIX)
    if number > MOST[kind]:
        raise WhatIfError(
            f"{value} in {part!r} is too much.",
            field="--what-if",
            fix=f"A {kind} goes up to {MOST[kind]:,.0f}.",
        )
    return Change(kind, name, number, at_s)


def _changed(scenario: Scenario, change: Change, start_s: float) -> Scenario:
    if change.kind == "budget":
        budgets = tuple(
            _scaled(budget, change.value) if change.name in ("", budget.name) else budget
            for budget in scenario.budgets
        )
        _known(change.name, {budget.name for budget in scenario.budgets}, "budget")
        return replace(scenario, budgets=budgets)
    _known(change.name, {endpoint.name for endpoint in scenario.endpoints}, "endpoint")
    if change.kind == "price":
        models = tuple(
            replace(
                model,
                routes=tuple(
                    replace(route, price=dearer(route.price, change.value))
                    if change.name in ("", route.endpoint)
                    else route
                    for route in model.routes
                ),
            )
            for model in scenario.models
        )
        return replace(scenario, models=models)
    if change.kind == "instances":
        endpoints = tuple(
            replace(
                endpoint,
                instances=int(change.value),
                slots=_slots(endpoint.slots, endpoint.instances, int(change.value)),
            )
            if endpoint.name == change.name
            else endpoint
            for endpoint in scenario.endpoints
        )
        return replace(scenario, endpoints=endpoints)
    kind, at_s = ("down" if change.kind == "lose" else "slow"), start_s + change.at_s
    event = Event(at_s=at_s, endpoint=change.name, kind=kind, value=change.value)  # type: ignore[arg-type]
    return replace(scenario, events=tuple(sorted((*scenario.events, event), key=lambda each: each.at_s)))


def dearer(price: TokenPrice | MachinePrice | None, factor: float) -> TokenPrice | MachinePrice | None:
    """A price ``factor`` times as high, to the pico-dollar."""
    if price is None:
        return None
    if isinstance(price, MachinePrice):
        return MachinePrice(hour=round(price.hour * factor))
    changed = {
        name: round(getattr(price, name) * factor)
        for name in (*_RATES, "request", "web_search", "file_search")
        if getattr(price, name) is not None
    }
    return replace(
        price,
        **changed,
        tiers=tuple((above, _tokens(each, factor)) for above, each in price.tiers),
        services=tuple((name, _tokens(each, factor)) for name, each in price.services),
    )


_RATES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_1h", "reasoning", "audio_input",
                 "audio_output", "image_input", "image_output")  # fmt: skip


def _tokens(price: TokenPrice, factor: float) -> TokenPrice:
    made = dearer(price, factor)
    return made if isinstance(made, TokenPrice) else price


def _scaled(budget: Budget, factor: float) -> Budget:
    refill = None if budget.refill_per_s is None else float(budget.refill_per_s) * factor
    return replace(budget, amount=float(budget.amount) * factor, refill_per_s=refill)


def _slots(slots: int | None, before: int, after: int) -> int | None:
    return None if slots is None else max(1, slots * after // max(before, 1))


def _known(name: str, names: Collection[str], what: str) -> None:
    if not names:
        raise WhatIfError(
            f"The configuration has no {what}.", field="--what-if", fix="Leave this what-if out."
        )
    if name and name not in names:
        raise WhatIfError(
            f"There is no {what} {name!r}.",
            field="--what-if",
            fix=f"The configuration has: {', '.join(sorted(names))}.",
        )
