"""Chooses what looks best, and now and then anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, OneOf
from apportion.core.state import State
from apportion.policy.route._learned import LearnedRouter, best


@final
class EpsilonGreedy(LearnedRouter):
    """Chooses what looks best, and now and then anything.

    The baseline of learning by trying: a linear model of each action's quality over the request's features,
    the greedy choice after paying most of the time, and with probability epsilon any option with equal
    chances. It never stops exploring, so its regret grows linearly, by epsilon times what a random choice
    loses; in return every option has a known probability of at least epsilon / n, which is what judging other
    policies on the logs needs.

        P(a) = epsilon / n + (1 - epsilon) [a = argmax of worth (predicted + theta_a x) - sum_r price_r
        cost_r]

    Parameters
    ----------
    epsilon
        Share of decisions that are drawn from all options, in [0, 1].
    ridge
        Weight of the prior that an arm is as predicted, above 0, in observations.
    dimensions
        Length of the vector that is learned on, with the constant 1 in it; with 1, requests are not told
        apart.
    features
        What is learned on: the "lexical" counts, the embedding "vector", or "both".
    arms
        Arms that are kept, an integer of one or more; beyond it the one longest without news is forgotten.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(n d^2) per decision for n options and d dimensions, O(d^2) per outcome; arms * d^2 numbers of memory.

    Notes
    -----
    Failures, late words and unknown costs: as route/linucb.

    See Also
    --------
    route/linucb : explores where little is known instead of everywhere.

    References: none, baseline

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option("small", 0.01, Cost(usd=0.001)), Option("large", 0.01, Cost(usd=0.005))]
    >>> policy = EpsilonGreedy(epsilon=0.1, seed=2)
    >>> decision = policy.decide(State(0.0, offer, prices={"usd": 1.0}))
    >>> decision.action, round(decision.probability, 2)
    ('small', 0.95)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "epsilon": Interval(float, 0.0, 1.0),
        "ridge": Interval(float, 0.0, closed="neither"),
        "dimensions": Interval(int, 1, 1024),
        "features": OneOf("lexical", "vector", "both"),
        "arms": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        epsilon: float = 0.05,
        ridge: float = 1.0,
        dimensions: int = 32,
        features: str = "lexical",
        arms: int = 64,
        seed: int = 0,
    ) -> None:
        self.epsilon = epsilon
        self.ridge = ridge
        self.dimensions = dimensions
        self.features = features
        self.arms = arms
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget every arm and start the generator anew."""
        super().reset()
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Toss, then choose the best or any."""
        n = len(state.options)
        if not n:
            return self.nothing(state)
        dollars = self.dollars(state)
        quality, _ = self.qualities(state, dollars)
        greedy = best(dollars.worth * quality - dollars.paid, state)
        draw = self._random.random()
        index = min(int(draw / self.epsilon * n), n - 1) if draw < self.epsilon else greedy
        probability = self.epsilon / n + (1.0 - self.epsilon) * (index == greedy)
        why = "most value left by what was learned" if draw >= self.epsilon else "drawn from all, to learn"
        return self.conclude(state, dollars, quality, index, probability, why)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Always exploring, and never."""
        yield {"epsilon": 1.0, "dimensions": 1, "seed": 4}
        yield {"epsilon": 0.0, "features": "both", "dimensions": 5, "arms": 3}
