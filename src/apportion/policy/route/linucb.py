"""Chooses the option that could be worth most, given how little is known of it at such requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, OneOf
from apportion.core.state import State
from apportion.policy.route._learned import LearnedRouter, best


@final
class LinUCB(LearnedRouter):
    """Chooses the option that could be worth most, given how little is known of it at such requests.

    Each action is an arm with a linear model of its quality over the request's features, updated with every
    outcome that shows a quality. The upper end of the confidence interval, in dollars and less the priced
    cost, is the score [1]_: an arm that was seldom tried on requests like this one gets the benefit of the
    doubt, and loses it with data. Regret against the best linear rule grows as sqrt(d T log T) [2]_. Where an
    option comes with a predicted quality, the model learns the correction of the prediction.

        A_a = ridge I + sum x x',   theta_a = A_a^-1 sum (quality - predicted) x choose  argmax over a of
        worth (predicted + theta_a x + alpha sqrt(x' A_a^-1 x)) - sum_r price_r cost_r

    Parameters
    ----------
    alpha
        Width of the confidence interval in standard deviations of x' theta with noise 1, zero or more; 0
        never explores. A quality in [0, 1] has a noise of at most 0.5, hence the default.
    ridge
        Weight of the prior that an arm is as predicted, above 0, in observations.
    dimensions
        Length of the vector that is learned on, with the constant 1 in it. More features than that are
        projected by random signs.
    features
        What is learned on: the "lexical" counts, the embedding "vector", or "both".
    arms
        Arms that are kept, an integer of one or more; beyond it the one longest without news is forgotten.
    seed
        Start of the generator that draws the projection, an integer of zero or more.

    Complexity
    ----------
    O(n d^2) per decision for n options and d dimensions, O(d^2) per outcome (Sherman-Morrison); arms * d^2
    numbers of memory.

    Notes
    -----
    Disjoint models, Algorithm 1 of [1]_; the hybrid with shared coefficients is left out. The prediction as
    prior mean and the price of the cost are additions. A failed or timed-out attempt has quality 0, a
    cancelled or refused one says nothing. A later word on one of the last 1024 outcomes corrects it exactly,
    up to the drift of the feature scaling; an outcome without its state is not learned from. An option whose
    cost is unknown is priced by its arm's measured mean, and without one is chosen only when nothing else is
    known.

    See Also
    --------
    route/thompson : draws instead, and so states probabilities.
    route/epsilon_greedy : the baseline that it should beat.

    References
    ----------
    .. [1] L. Li, W. Chu, J. Langford, R. Schapire (2010). "A Contextual-Bandit Approach to Personalized News
       Article Recommendation." WWW. arXiv:1003.0146
    .. [2] Y. Abbasi-Yadkori, D. Pal, C. Szepesvari (2011). "Improved Algorithms for Linear Stochastic Bandits."
       NeurIPS. https://papers.nips.cc/paper/2011/hash/e1d5be1c7f2f456670de3d53c7b54f4a-Abstract.html

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option("small", 0.01, Cost(usd=0.001)), Option("large", 0.01, Cost(usd=0.005))]
    >>> policy = LinUCB()
    >>> state = State(0.0, offer, id="a", prices={"usd": 1.0})
    >>> policy.decide(state).action
    'small'
    >>> for k in range(20):
    ...     policy.learn(Outcome(f"{k}", "ok", "small", Cost(usd=0.001), quality=0.1, state=state))
    >>> policy.decide(state).action
    'large'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "alpha": Interval(float, 0.0),
        "ridge": Interval(float, 0.0, closed="neither"),
        "dimensions": Interval(int, 1, 1024),
        "features": OneOf("lexical", "vector", "both"),
        "arms": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        ridge: float = 1.0,
        dimensions: int = 32,
        features: str = "lexical",
        arms: int = 64,
        seed: int = 0,
    ) -> None:
        self.alpha = alpha
        self.ridge = ridge
        self.dimensions = dimensions
        self.features = features
        self.arms = arms
        self.seed = seed
        self.start()

    def decide(self, state: State) -> Decision:
        """Choose the option with the greatest upper confidence bound on the dollars left."""
        if not state.options:
            return self.nothing(state)
        dollars = self.dollars(state)
        quality, width = self.qualities(state, dollars)
        index = best(dollars.worth * (quality + self.alpha * width) - dollars.paid, state)
        return self.conclude(state, dollars, quality, index, 1.0, "could be worth most")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Fewer dimensions than features, and few arms."""
        yield {"alpha": 1.0, "dimensions": 4, "features": "both", "seed": 3}
        yield {"arms": 2, "ridge": 0.1, "features": "vector"}
