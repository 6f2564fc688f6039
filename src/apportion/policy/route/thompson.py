"""Draws a quality for each option from what is believed of it, and chooses as if the draw were true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

import numpy as np

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, OneOf
from apportion.core.state import State
from apportion.policy.route._learned import LearnedRouter, best
from apportion.solve.bandit import chance_of_greatest


@final
class Thompson(LearnedRouter):
    """Draws a quality for each option from what is believed of it, and chooses as if the draw were true.

    The belief is the posterior of a linear model per action over the request's features [1]_. An option is
    chosen as often as it is believed to be the best, so exploring fades by itself, and because the choice is
    random, other policies can be judged on its logs: the probability of each choice is computed, not guessed.
    Drawing the models of disjoint arms and comparing them at one request is the same as drawing each arm's
    quality at that request from its normal law, which needs no matrix root.

        q_a ~ N(predicted + theta_a x,  v^2 x' A_a^-1 x)
        choose  argmax over a of  worth q_a - sum_r price_r cost_r

    Parameters
    ----------
    noise
        v: the standard deviation of an outcome's quality around its mean, above 0. At most 0.5 for a quality
        in [0, 1]; smaller explores less.
    ridge
        Weight of the prior that an arm is as predicted, above 0, in observations.
    dimensions
        Length of the vector that is learned on, with the constant 1 in it. More features than that are
        projected by random signs; with 1, requests are not told apart.
    features
        What is learned on: the "lexical" counts, the embedding "vector", or "both".
    arms
        Arms that are kept, an integer of one or more; beyond it the one longest without news is forgotten.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(n d^2) per decision for n options and d dimensions, and O(n^2) for the probability; O(d^2) per outcome;
    arms * d^2 numbers of memory.

    Notes
    -----
    The paper's v grows with sqrt(d log T) for the proof; in practice a constant explores enough. Draws are
    not cut to [0, 1]. The probability is an integral by a fixed rule, within 0.005 of the truth. Of failures,
    late words and unknown costs: as route/linucb.

    See Also
    --------
    route/linucb : the same models with confidence bounds.
    route/epsilon_greedy : the baseline that it should beat.

    References
    ----------
    .. [1] S. Agrawal, N. Goyal (2013). "Thompson Sampling for Contextual Bandits with Linear Payoffs." ICML.
       arXiv:1209.3352

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option("small", 0.01, Cost(usd=0.001)), Option("large", 0.01, Cost(usd=0.005))]
    >>> policy = Thompson(seed=1)
    >>> state = State(0.0, offer, prices={"usd": 1.0})
    >>> decision = policy.decide(state)
    >>> decision.action, round(decision.probability, 2)
    ('small', 0.71)
    >>> for k in range(50):
    ...     policy.learn(Outcome(f"s{k}", "ok", "small", Cost(usd=0.001), quality=0.1, state=state))
    ...     policy.learn(Outcome(f"l{k}", "ok", "large", Cost(usd=0.005), quality=0.9, state=state))
    >>> decision = policy.decide(state)
    >>> decision.action, round(decision.probability, 2)
    ('large', 1.0)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "noise": Interval(float, 0.0, closed="neither"),
        "ridge": Interval(float, 0.0, closed="neither"),
        "dimensions": Interval(int, 1, 1024),
        "features": OneOf("lexical", "vector", "both"),
        "arms": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        noise: float = 0.5,
        ridge: float = 1.0,
        dimensions: int = 32,
        features: str = "lexical",
        arms: int = 64,
        seed: int = 0,
    ) -> None:
        self.noise = noise
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
        """Draw what each option would leave, choose the greatest."""
        if not state.options:
            return self.nothing(state)
        dollars = self.dollars(state)
        quality, width = self.qualities(state, dollars)
        means = dollars.worth * quality - dollars.paid
        known = np.flatnonzero(means == means)
        if not len(known):
            index = best(means, state)
            return self.conclude(state, dollars, quality, index, 1.0, "no cost is known, most value promised")
        sds = self.noise * width * dollars.worth
        means, sds = means[known], np.maximum(sds[known], 1e-12 + 1e-9 * np.abs(means[known]))
        normal = self._random.gauss
        drawn = [normal(mean, sd) for mean, sd in zip(means.tolist(), sds.tolist(), strict=True)]
        place = max(range(len(drawn)), key=drawn.__getitem__)
        chance = chance_of_greatest(means, sds, place)
        return self.conclude(state, dollars, quality, int(known[place]), chance, "drawn as the best")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Without features; with a projected embedding."""
        yield {"dimensions": 1, "noise": 0.3, "seed": 5}
        yield {"features": "both", "dimensions": 6, "arms": 3, "ridge": 0.5}
