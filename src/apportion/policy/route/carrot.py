"""Chooses the least of predicted error and predicted cost, at a trade-off that each request may set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._learned import (
    PRIOR,
    REMEMBERED,
    LearnedRouter,
    best,
    decided,
    shown_quality,
    worth_of_right,
)
from apportion.policy.route._neighbours import Neighbours


@final
class Carrot(LearnedRouter):
    """Chooses the least of predicted error and predicted cost, at a trade-off that each request may set.

    Quality and cost of every model are estimated separately from the request, and put together only when
    deciding [1]_. So the trade-off can change from one request to the next without fitting anything again,
    and with good estimates the plug-in choice is as good as any rule can be: its excess risk falls at the
    minimax rate n^(-s / (2s + d)) for qualities of smoothness s in d dimensions. Quality is what the option
    is offered with; where it is offered without, it is estimated here from the answers to the nearest
    requests.

        choose  argmin over o of  (1 - mu) (1 - quality(o)) + mu sum_r price_r cost_r(o)

    In dollars, a right answer is then worth (1 - mu) / mu: mu = 1 / (1 + worth).

    Parameters
    ----------
    mu
        Weight of a dollar against an error, in [0, 1]; None takes what a right answer is worth from the
        options. A request may set its own as ``request["mu"]``; ``request["effort"]`` multiplies the worth
        that ``mu`` stands for.
    estimator
        How qualities that are not offered are learned: "neighbours" or "linear" (ridge regression per model).
    k
        Neighbours of each model that are averaged, an integer of one or more. For the rate, of order n^(2s /
        (2s + d)).
    memory
        Past answers, of all models together, among which neighbours are sought, an integer of one or more.
    ridge
        Weight of the prior of "linear", above 0, in observations.
    dimensions
        Length of the vector that is learned on, with the constant 1 in it. More features than that are
        projected by random signs.
    features
        What is learned on: the "lexical" counts, the embedding "vector", or "both".
    arms
        Models that "linear" keeps, an integer of one or more.
    seed
        Start of the generator that draws the projection, an integer of zero or more.

    Complexity
    ----------
    O(n) per decision when qualities are offered; else O(memory * d + n * k log k) with neighbours and O(n
    d^2) linear. O(d) and O(d^2) per outcome; memory * d or arms * d^2 numbers of memory.

    Notes
    -----
    It does not explore: a model that is never chosen is never learned, so give the unpredicted ones to
    route/linucb or route/thompson, or send a share at random. The paper fits offline on answers of all models
    to every request; here they may come one by one. The neighbours' mean takes the prior 0.5 in as one more
    neighbour. Failures, late words and unknown costs: as route/linucb.

    See Also
    --------
    route/priced : the same rule when every option has a value; mu is then 1 / (1 + worth).

    References
    ----------
    .. [1] S. Somerstep et al. (2025). "CARROT: A Cost Aware Rate Optimal Router." arXiv:2502.03261

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> small = Option("small", 0.0, Cost(usd=0.001), quality=0.7)
    >>> large = Option("large", 0.0, Cost(usd=0.020), quality=0.9)
    >>> policy = Carrot(mu=0.95)
    >>> policy.decide(State(0.0, [small, large], prices={"usd": 1.0})).action
    'small'
    >>> policy.decide(State(0.0, [small, large], request={"mu": 0.5}, prices={"usd": 1.0})).action
    'large'
    >>> policy.decide(State(0.0, [small, large], request={"effort": 3.0}, prices={"usd": 1.0})).action
    'large'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "mu": Interval(float, 0.0, 1.0) | Kind(type(None)),
        "estimator": OneOf("neighbours", "linear"),
        "k": Interval(int, 1),
        "memory": Interval(int, 1),
        "ridge": Interval(float, 0.0, closed="neither"),
        "dimensions": Interval(int, 1, 1024),
        "features": OneOf("lexical", "vector", "both"),
        "arms": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        mu: float | None = None,
        estimator: str = "neighbours",
        k: int = 20,
        memory: int = 2048,
        ridge: float = 1.0,
        dimensions: int = 32,
        features: str = "both",
        arms: int = 64,
        seed: int = 0,
    ) -> None:
        self.mu = mu
        self.estimator = estimator
        self.k = k
        self.memory = memory
        self.ridge = ridge
        self.dimensions = dimensions
        self.features = features
        self.arms = arms
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget every answer."""
        super().reset()
        self._near = Neighbours(self.dimensions, self.k, self.memory)
        self._places: dict[str, int] = {}

    def decide(self, state: State) -> Decision:
        """Choose the least weighted sum of error and cost."""
        if not state.options:
            return self.nothing(state)
        quality, paid = self._qualities(state), self.payments(state)
        mu, told = self._mu(state), state.request.get("worth_usd")
        worth = (
            [(1.0 - mu) / mu] * len(quality)
            if mu
            else [worth_of_right(option, told) for option in state.options]
        )
        if mu is None:
            scores = [w * q - p for w, q, p in zip(worth, quality, paid, strict=True)]
            why = "most quality left after paying"
        else:
            scores = [-(1.0 - mu) * (1.0 - q) - mu * p for q, p in zip(quality, paid, strict=True)]
            why = f"least error and cost at mu {mu:.3g}"
        left = [w * min(max(q, 0.0), 1.0) - p for w, q, p in zip(worth, quality, paid, strict=True)]
        return decided(state, left, best(scores, state), 1.0, why)

    def learn(self, outcome: Outcome) -> None:
        """Take in the quality of an answer; a failure or timeout is an answer of quality 0."""
        if self.estimator == "linear":
            super().learn(outcome)
            return
        state, action = outcome.state, outcome.action
        if action is None or state is None:
            return
        if not outcome.revised and outcome.status == "ok" and not outcome.censored:
            self._costs.learn(action, outcome.cost)
        quality = shown_quality(outcome)
        key = f"{outcome.decision_id}|{action}"
        before = self._told.get(key)
        if quality is None or before == quality:
            return
        if before is None:
            if len(self._told) >= REMEMBERED:
                oldest = next(iter(self._told))
                del self._told[oldest], self._places[oldest]
            self._places[key] = self._near.learn(action, self._context.of(state.features), quality)
            self._context.learn(state.features)
        else:
            self._near.correct(action, self._places[key], quality)
        self._told[key] = quality

    def _mu(self, state: State) -> float | None:
        """The trade-off of this request; None for that of the options' worth."""
        told = state.request.get("mu")
        if isinstance(told, float | int) and 0.0 <= told <= 1.0:
            return float(told)
        effort = state.request.get("effort")
        if self.mu is None or not isinstance(effort, float | int) or not 0.0 < effort < math.inf:
            return self.mu
        return self.mu / (self.mu + effort * (1.0 - self.mu)) if self.mu else 0.0

    def _qualities(self, state: State) -> list[float]:
        """Each option's quality: as offered, else as learned."""
        options = state.options
        offered = [math.nan if option.quality is None else option.quality for option in options]
        if not any(map(math.isnan, offered)):
            return offered
        x = self._context.of(state.features)
        arms = [option.action for option in options]
        if self.estimator == "linear":
            learned = PRIOR + self._arms.estimates(arms, x)[0]
        else:
            learned = self._near.estimates(arms, x, [PRIOR] * len(arms))
        return [q if q == q else known for q, known in zip(offered, learned.tolist(), strict=True)]

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Each estimator, with and without a trade-off of its own."""
        yield {"mu": 0.9, "k": 3, "memory": 50, "dimensions": 6}
        yield {"mu": 0.0, "estimator": "linear", "dimensions": 1}
        yield {"estimator": "linear", "features": "lexical", "ridge": 0.5, "arms": 2, "seed": 2}
