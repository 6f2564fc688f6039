"""Chooses the option that is expected to be done soonest, and learns from runs that hit their limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._arms import LinearArms
from apportion.policy.route._base import Router
from apportion.policy.route._context import Context
from apportion.policy.route._learned import REMEMBERED, best, load_held, save_held
from apportion.policy.route.censored_ucb import arm_and_limit
from apportion.solve.bandit import above_moments, expected_par, normal_cdf

Array = NDArray[np.float64]

_NODES = np.linspace(-4.0, 4.0, 17)
"""Where the belief of each arm is looked at for the probability of a choice."""
_WEIGHTS = np.diff(normal_cdf(np.concatenate(([-8.0], 0.5 * (_NODES[1:] + _NODES[:-1]), [8.0]))))
_EVERYBODY = ""
"""The arm of the model that all arms share."""


@final
class CensoredLinear(Router):
    """Chooses the option that is expected to be done soonest, and learns from runs that hit their limit.

    The logarithm of each arm's run time is linear in the request's features, with normal noise. A run that
    was stopped at the limit only says "longer than that": its time enters as the mean that the model itself
    expects above the limit, as Buckley and James impute [1]_, so the state stays a matrix per arm and nothing
    is stored. The choice is by the expected penalised time, in closed form: a run that fails to finish counts
    ``penalty`` times its limit (PAR10 for 10) [2]_. Dropping stopped runs makes every arm look fast; counting
    them as done at the limit makes the bad ones look bearable.

        log T_a ~ N(m_a, s_a^2),  m_a = theta_0 x + theta_a x;   stopped at C:  log T := E[log T | log T > log
        C] PAR_a = exp(m + s^2 / 2) Phi((ln C - m - s^2) / s) + penalty C (1 - Phi((ln C - m) / s)) choose
        argmax over a of  value - price PAR_a - (other priced cost),   m drawn ("thompson") or lowered ("ucb")

    Parameters
    ----------
    explore
        "ucb" lowers m_a by ``width`` standard deviations, "thompson" draws it from its posterior and states
        the probability of the choice.
    width
        How many standard deviations of m_a are explored, zero or more; 1 is the posterior itself.
    resource
        What is limited: "seconds" is the outcome's latency, any other name that resource of its cost.
    limit
        The limit of an option that names none, above 0, in the unit of ``resource``.
    penalty
        How many limits a run counts that does not finish, one or more.
    price
        Dollars per unit of ``resource`` where the state has no price on it, above 0.
    censoring
        What a stopped run says: "impute" as above; "drop" and "limit" (done at the limit) are the simpler
        variants, for comparison.
    ridge
        Weight of the prior of each model, above 0, in observations; the default is what every scenario of the
        benchmark chooses for the others.
    dimensions
        Length of the vector that is learned on, with the constant 1 in it. More features than that are
        projected by random signs.
    features
        What is learned on: the "lexical" counts, the embedding "vector", or "both".
    arms
        Arms that are kept, an integer of one or more; beyond it the one longest without news is forgotten.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(n d^2) per decision for n options and d dimensions, and with "thompson" O(n^2) for the probability;
    O(d^2) per outcome; arms * d^2 numbers of memory, however many runs there were.

    Notes
    -----
    Departures from the paper: theta_0, a model that all arms share and whose residual the arms learn, because
    each request shows one arm only; the noise s_a^2 is learned, from the innovations, where the paper sets
    it; "ucb" lowers m and takes PAR of that. The imputed mean uses the model of that moment and is not
    revisited. A failed run counts as stopped, at its limit; a cancelled or refused one says nothing. Quality
    is taken from the option's value, not learned. An outcome is taken in once; its later words, being about
    quality, change nothing.

    See Also
    --------
    route/censored_ucb : chooses the limit as well, without features.
    route/least_load : the baseline where all options are alike.

    References
    ----------
    .. [1] J. Buckley, I. James (1979). "Linear Regression with Censored Data." Biometrika 66(3).
       doi:10.1093/biomet/66.3.429
    .. [2] A. Tornede, V. Bengs, E. Huellermeier (2022). "Machine Learning for Online Algorithm Selection
       under Censored Feedback." AAAI. arXiv:2109.06234

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option(name, 0.0, Cost()) for name in ("often-stuck", "steady")]
    >>> policy = CensoredLinear(limit=100.0, explore="ucb")
    >>> state = State(0.0, offer, prices={"seconds": 0.001})
    >>> for k in range(20):
    ...     for name, took_s in (("often-stuck", 100.0 if k % 2 else 5.0), ("steady", 30.0)):
    ...         stuck = took_s == 100.0
    ...         policy.learn(
    ...             Outcome(f"{k}", "ok", name, Cost(), latency_s=took_s, censored=stuck, state=state)
    ...         )
    >>> policy.decide(state).action
    'steady'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "explore": OneOf("thompson", "ucb"),
        "width": Interval(float, 0.0),
        "resource": Kind(str),
        "limit": Interval(float, 0.0, closed="neither"),
        "penalty": Interval(float, 1.0),
        "price": Interval(float, 0.0, closed="neither"),
        "censoring": OneOf("impute", "drop", "limit"),
        "ridge": Interval(float, 0.0, closed="neither"),
        "dimensions": Interval(int, 1, 1024),
        "features": OneOf("lexical", "vector", "both"),
        "arms": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    wants_features: ClassVar[bool] = True

    def __init__(
        self,
        *,
        explore: str = "ucb",
        width: float = 1.0,
        resource: str = "seconds",
        limit: float = 60.0,
        penalty: float = 10.0,
        price: float = 0.001,
        censoring: str = "impute",
        ridge: float = 10.0,
        dimensions: int = 32,
        features: str = "lexical",
        arms: int = 64,
        seed: int = 0,
    ) -> None:
        self.explore = explore
        self.width = width
        self.resource = resource
        self.limit = limit
        self.penalty = penalty
        self.price = price
        self.censoring = censoring
        self.ridge = ridge
        self.dimensions = dimensions
        self.features = features
        self.arms = arms
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget every arm and start the generator anew."""
        self._context = Context(self.dimensions, self.features, self.seed)
        self._arms = LinearArms(self.dimensions, self.ridge, self.arms)
        self._shared = LinearArms(self.dimensions, self.ridge, 1)
        self._spread: dict[str, list[float]] = {}
        """Arm to the weight and the sum of its squared normalised innovations; "" for all together."""
        self._told: dict[str, None] = {}
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Choose the option with the most left after paying its expected penalised time."""
        options = state.options
        if not options:
            return self.nothing(state)
        pairs = [arm_and_limit(option) for option in options]
        arms = [arm for arm, _ in pairs]
        limits = np.array([limit if 0.0 < limit < math.inf else self.limit for _, limit in pairs])
        mean, sd, noise = self._belief(state, arms)
        price = state.prices.get(self.resource) or self.price
        others = {name: each for name, each in state.prices.items() if name != self.resource}
        rest = [option.cost.at_prices(others) for option in options]
        kept = np.array(
            [
                math.nan if paid is None else option.value - paid
                for option, paid in zip(options, rest, strict=True)
            ]
        )
        left = kept - price * expected_par(mean, noise, limits, self.penalty)
        if self.explore == "ucb":
            scores = kept - price * expected_par(mean - sd, noise, limits, self.penalty)
            index, probability = best(scores, state), 1.0
            why = "could be done soonest"
        else:
            normal = self._random.gauss
            drawn = np.array([normal(0.0, 1.0) for _ in options]) * sd
            scores = kept - price * expected_par(mean + drawn, noise, limits, self.penalty)
            index = best(scores, state)
            grid = expected_par(
                (mean[:, None] + sd[:, None] * _NODES), noise[:, None], limits[:, None], self.penalty
            )
            probability = _chance(kept[:, None] - price * grid, index)
            why = "drawn as done soonest"
        worths = tuple([None if worth != worth else worth for worth in left.tolist()])
        return Decision(
            state.id, index, options[index].action, probability, state.prices, options, worths, why
        )

    def learn(self, outcome: Outcome) -> None:
        """Take in how long a run took, or that it took longer than its limit."""
        state, action = outcome.state, outcome.action
        if action is None or state is None or outcome.revised or outcome.status in ("cancelled", "refused"):
            return
        option = next((option for option in state.options if option.action == action), None)
        key = f"{outcome.decision_id}|{action}"
        if option is None or key in self._told:
            return
        arm, limit = arm_and_limit(option)
        limit = limit if 0.0 < limit < math.inf else self.limit
        used = outcome.latency_s if self.resource == "seconds" else outcome.cost.get(self.resource)
        stopped = outcome.censored or outcome.status != "ok"
        if outcome.status == "failed" or (stopped and used is None):
            used = limit
        if used is None or not 0.0 <= used < math.inf:
            return
        if len(self._told) >= REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        x = self._context.of(state.features)
        self._context.learn(state.features)
        if not stopped or self.censoring != "drop":
            self._take(arm, x, math.log(max(used, 1e-3)), stopped and self.censoring == "impute")

    def _take(self, arm: str, x: Array, log_time: float, above: bool) -> None:
        """Update the shared model and the arm's with one run; ``above``: it took longer than that."""
        common, common_variance = self._shared.estimates([_EVERYBODY], x)
        own, own_variance = self._arms.estimates([arm], x)
        mean = float(common[0] + own[0])
        noise = self._noise(arm)
        extra = 0.0
        if above:
            log_time, extra = above_moments(mean, noise, log_time)
        self._shared.learn(_EVERYBODY, x, log_time)
        residual = log_time - float(common[0])
        self._arms.learn(arm, x, residual)
        innovation = ((residual - float(own[0])) ** 2) / (
            1.0 + float(own_variance[0] + common_variance[0])
        ) + extra
        for name in (arm, _EVERYBODY):
            weight, total = self._spread.pop(name, (0.0, 0.0))
            if len(self._spread) > self.arms:
                del self._spread[next(iter(self._spread))]
            self._spread[name] = [weight + 1.0, total + innovation]

    def _noise(self, arm: str) -> float:
        """The standard deviation of an arm's log time: its own innovations, with four of everybody's."""
        weight, total = self._spread.get(_EVERYBODY, (0.0, 0.0))
        pooled = (4.0 + total) / (4.0 + weight)
        weight, total = self._spread.get(arm, (0.0, 0.0))
        return math.sqrt((4.0 * pooled + total) / (4.0 + weight))

    def _belief(self, state: State, arms: list[str]) -> tuple[Array, Array, Array]:
        """For each arm the mean of the log time, how unsure that is (times ``width``), and the noise."""
        x = self._context.of(state.features)
        own, variance = self._arms.estimates(arms, x)
        common, _ = self._shared.estimates([_EVERYBODY], x)
        noise = np.array([self._noise(arm) for arm in arms])
        return common[0] + own, self.width * noise * np.sqrt(variance), noise

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        return save_held(self)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        load_held(self, saved)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Draws; tokens; the variants that are compared with."""
        yield {"explore": "thompson", "seed": 1}
        yield {"explore": "ucb", "width": 0.5, "resource": "tokens", "limit": 500.0, "dimensions": 4}
        yield {
            "explore": "thompson",
            "censoring": "drop",
            "features": "both",
            "dimensions": 6,
            "arms": 3,
            "seed": 3,
        }
        yield {"censoring": "limit", "penalty": 2.0, "price": 0.1, "ridge": 0.3}


def _chance(scores: Array, index: int) -> float:
    """The probability that ``index`` has the greatest score; ``scores`` has each one's at `_NODES`, falling.

    NaN rows are options without a score: they never win against one that has.
    """
    if math.isnan(scores[index, 0]):
        return 1.0
    nodes = [
        np.interp(scores[index], theirs[::-1], _NODES[::-1], left=8.0, right=-8.0)
        for place, theirs in enumerate(scores)
        if place != index and theirs[0] == theirs[0]
    ]
    if not nodes:
        return 1.0
    # another's score is below mine where its noise is above the node at which the two are equal
    below = normal_cdf(-np.array(nodes)).prod(axis=0)
    return min(1.0, max(float(_WEIGHTS @ below), 1e-9))
