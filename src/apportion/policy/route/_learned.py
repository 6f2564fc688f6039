"""What routers share that learn quality: the dollars of each option, and learning each outcome once."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.method import Method
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._arms import LinearArms
from apportion.policy.route._base import Router
from apportion.policy.route._context import Context

Array = NDArray[np.float64]

PRIOR = 0.5
"""The quality of an option of which nobody says anything."""
REMEMBERED = 1024
"""Outcomes that are remembered, so that a later word on them corrects and does not count twice."""


class Held(Protocol):
    """Learned state in an object of its own, which JSON carries as ``saved()``."""

    def saved(self) -> dict[str, Any]: ...
    def restored(self, saved: dict[str, Any]) -> Self: ...


class Dollars(NamedTuple):
    """Of each option: worth of a right answer, payment (NaN: unknown), quality before learning."""

    worth: Array
    paid: Array
    prior: Array


class MeasuredCosts:
    """The mean measured cost of each arm by resource, for offers whose cost is not known. Bounded."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.means: dict[str, list[Any]] = {}

    def learn(self, arm: str, cost: Cost) -> None:
        """Take in one measured cost; what it does not know stays as it was."""
        if not cost:
            return
        count, means = self.means.pop(arm, None) or [0, {}]
        if len(self.means) >= self.most:
            del self.means[next(iter(self.means))]
        count = min(count + 1, 100)
        for name, amount in cost.items():
            if math.isfinite(amount):
                before = means.get(name, amount)
                means[name] = before + (amount - before) / count
        self.means[arm] = [count, means]

    def at_prices(self, arm: str, prices: Mapping[str, float]) -> float | None:
        """What ``arm`` cost on average; None if a priced resource was never measured."""
        found = self.means.get(arm)
        return None if found is None else Cost.of(found[1]).at_prices(prices)

    def saved(self) -> dict[str, Any]:
        """What was learned, for JSON."""
        return {"means": self.means}

    def restored(self, saved: dict[str, Any]) -> MeasuredCosts:
        """The same with what was ``saved``."""
        other = MeasuredCosts(self.most)
        other.means = {arm: [count, dict(means)] for arm, (count, means) in saved["means"].items()}
        return other


def worth_of_right(option: Option, told: object) -> float:
    """The dollars of a right answer: told with the request, or the option's value over its quality."""
    if isinstance(told, float | int) and told >= 0.0:
        return float(told)
    value, quality = option.value, option.quality
    if not 0.0 < value < math.inf:
        return 0.0
    return value if quality is None else value / max(quality, 0.01)


class LearnedRouter(Router):
    """Learns the quality of each option's action from outcomes, as a correction of what is predicted.

    A subclass has the parameters ``dimensions``, ``features``, ``ridge``, ``arms`` and ``seed``, and decides.
    """

    wants_features: ClassVar[bool] = True

    dimensions: int
    features: str
    ridge: float
    arms: int
    seed: int

    def reset(self) -> None:
        """Forget every arm."""
        self._context = Context(self.dimensions, self.features, self.seed)
        self._arms = LinearArms(self.dimensions, self.ridge, self.arms)
        self._costs = MeasuredCosts(self.arms)
        self._told: dict[str, float] = {}

    def dollars(self, state: State) -> Dollars:
        """Worth, payment and prior quality of every option."""
        told = state.request.get("worth_usd")
        worth = [worth_of_right(option, told) for option in state.options]
        prior = [PRIOR if option.quality is None else option.quality for option in state.options]
        return Dollars(np.array(worth), np.array(self.payments(state)), np.array(prior))

    def payments(self, state: State) -> list[float]:
        """What every option takes, in dollars; NaN where that is not known."""
        prices = state.prices
        paid = []
        for option in state.options:
            cost = option.cost.at_prices(prices)
            if cost is None:
                cost = self._costs.at_prices(option.action, prices)
            paid.append(math.nan if cost is None else cost - min(option.value, 0.0))
        return paid

    def qualities(self, state: State, dollars: Dollars) -> tuple[Array, Array]:
        """For each option the quality at this request and its standard deviation in units of the noise."""
        x = self._context.of(state.features)
        mean, variance = self._arms.estimates([option.action for option in state.options], x)
        return dollars.prior + mean, np.sqrt(variance)

    def conclude(
        self, state: State, dollars: Dollars, quality: Array, index: int, probability: float | None, why: str
    ) -> Decision:
        """The decision for option ``index``, with what each is worth by the learned quality."""
        left = (dollars.worth * np.clip(quality, 0.0, 1.0) - dollars.paid).tolist()
        return decided(state, left, index, probability, why)

    def learn(self, outcome: Outcome) -> None:
        """Take in the quality of an answer; a failure or timeout is an answer of quality 0."""
        state, action = outcome.state, outcome.action
        if action is None or state is None:
            return
        if not outcome.revised and outcome.status == "ok" and not outcome.censored:
            self._costs.learn(action, outcome.cost)
        quality = shown_quality(outcome)
        option = next((option for option in state.options if option.action == action), None)
        if quality is None or option is None:
            return
        key = f"{outcome.decision_id}|{action}"
        before = self._told.get(key)
        if before == quality:
            return
        x = self._context.of(state.features)
        if before is None:
            prior = PRIOR if option.quality is None else option.quality
            self._arms.learn(action, x, quality - prior)
            self._context.learn(state.features)
            if len(self._told) >= REMEMBERED:
                del self._told[next(iter(self._told))]
        else:
            self._arms.correct(action, x, quality - before)
        self._told[key] = quality

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        return save_held(self)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        load_held(self, saved)


def shown_quality(outcome: Outcome) -> float | None:
    """The quality an outcome shows: 0 for a failure or timeout without one, None when it shows nothing."""
    quality = outcome.quality
    if quality is None:
        return 0.0 if outcome.status in ("failed", "timeout") and not outcome.revised else None
    return min(1.0, max(0.0, quality)) if quality == quality else None


def decided(state: State, left: Sequence[float], index: int, probability: float | None, why: str) -> Decision:
    """The decision for option ``index``; ``left`` is what each is worth after paying, NaN where not known."""
    worths = tuple([None if worth != worth else worth for worth in left])
    action = state.options[index].action
    return Decision(state.id, index, action, probability, state.prices, state.options, worths, why)


def best(scores: Iterable[float], state: State) -> int:
    """The option with the greatest score that is a number; ties go to the lesser load, then to the first.

    With no score known: the most value promised.
    """
    options = state.options
    known = [(score, k) for k, score in enumerate(scores) if score == score]
    if not known:
        known = [
            (option.value if option.value == option.value else -math.inf, k)
            for k, option in enumerate(options)
        ]
    top = max(known)[0]
    tied = [k for score, k in known if score == top]
    if len(tied) == 1:
        return tied[0]
    loads = [options[k].load for k in tied]
    return min(
        zip(tied, loads, strict=True), key=lambda pair: (math.inf if pair[1] is None else pair[1], pair[0])
    )[0]


def save_held(method: Method) -> dict[str, Any]:
    """`Method.save` with `Held` objects written as what they hold."""
    twin = copy.copy(method)
    for name, value in vars(method).items():
        if hasattr(value, "saved"):
            setattr(twin, name, value.saved())
    return Method.save(twin)


def load_held(method: Method, saved: Mapping[str, Any]) -> None:
    """`Method.load` for what `save_held` wrote."""
    held = {name: value for name, value in vars(method).items() if hasattr(value, "restored")}
    Method.load(method, saved)
    for name, value in held.items():
        setattr(method, name, value.restored(getattr(method, name)))
