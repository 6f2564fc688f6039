"""What another policy would have brought, estimated from what one policy did: pure functions on arrays.

Of ``n`` logged decisions, row ``i`` has what came of it (``rewards[i]``), the probability with which it was chosen then
(``propensities[i]``), and for each of ``k`` actions the probability with which the other policy would choose it now
(``target[i, a]``, 0 where the action was not offered). ``chosen[i]`` is the logged action.

Every estimate is made of one number a row (``Terms``), so that all of them get the same intervals.

References
----------
D. G. Horvitz, D. J. Thompson (1952). "A Generalization of Sampling Without Replacement from a Finite Universe." JASA
47(260). doi:10.1080/01621459.1952.10483446 (inverse propensity).
A. Swaminathan, T. Joachims (2015). "The Self-Normalized Estimator for Counterfactual Learning." NeurIPS.
M. Dudik, J. Langford, L. Li (2011). "Doubly Robust Policy Evaluation and Learning." ICML. arXiv:1103.4601
V. Chernozhukov et al. (2018). "Double/Debiased Machine Learning for Treatment and Structural Parameters." The
Econometrics Journal 21(1). arXiv:1608.00060 (cross-fitting).
A. Maurer, M. Pontil (2009). "Empirical Bernstein Bounds and Sample Variance Penalization." COLT. arXiv:0907.3740
L. Kish (1965). "Survey Sampling." Wiley (effective sample size).
L. Li, W. Chu, J. Langford, X. Wang (2011). "Unbiased Offline Evaluation of Contextual-Bandit-Based News Article
Recommendation Algorithms." WSDM. arXiv:1003.5956 (replay); M. Dudik, D. Erhan, J. Langford, L. Li (2012).
"Sample-Efficient Nonstationary Policy Evaluation for Contextual Bandits." UAI. arXiv:1210.4862 (with propensities).
B. Efron, R. Tibshirani (1993). "An Introduction to the Bootstrap." Chapman and Hall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PRIOR_ROWS: Final = 10.0
_LEAST_DEVIATION: Final = 0.1
"""Of a resample's error, as a share of that of the estimate."""

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Terms(NamedTuple):
    """An estimate as the ratio of two means, row by row: ``over`` is all ones except where it normalises itself.

    ``least_error`` is what its standard error is at least, known from elsewhere than the spread of the terms.
    """

    values: Array
    over: Array
    least_error: float = 0.0

    @property
    def estimate(self) -> float:
        """The estimate; not a number where there is nothing to divide by."""
        over = float(self.over.sum())
        return float(self.values.sum()) / over if over else math.nan

    @property
    def influence(self) -> Array:
        """What each row adds to the error, to first order (the delta method); its mean is zero."""
        over = float(self.over.mean())
        centred: Array = (self.values - self.estimate * self.over) / over
        return centred

    @property
    def error(self) -> float:
        """Its standard error."""
        spread = float(self.influence.std(ddof=1)) / math.sqrt(len(self.values))
        return max(spread, self.least_error)


class Interval(NamedTuple):
    """Bounds that hold the truth with the confidence they were made for."""

    low: float
    high: float


# weights


def importance(target: Array, chosen: Indices, propensities: Array, *, most: float | None = None) -> Array:
    """How much more often than the logging policy the other one takes each logged action; ``(n,)``.

    ``most`` clips them, which bounds the variance and adds a bias towards zero.
    """
    weights: Array = target[np.arange(len(chosen)), chosen] / propensities
    return weights if most is None else np.minimum(weights, most)


def effective_sample_size(weights: Array) -> float:
    """The number of equally weighted rows with the same precision (Kish): (sum w)^2 / sum w^2."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


# estimators


def naive(rewards: Array) -> Terms:
    """What the logging policy itself brought."""
    return Terms(rewards, np.ones(len(rewards)))


def ips(rewards: Array, weights: Array) -> Terms:
    """Inverse propensity: mean of w r. Unbiased where every action that the other policy takes can have been taken."""
    return Terms(weights * rewards, np.ones(len(rewards)))


def snips(rewards: Array, weights: Array) -> Terms:
    """Inverse propensity, normalised by the weights themselves: never outside the range of the rewards, steadier than
    `ips`, with a bias that vanishes as 1/n.
    """
    return Terms(weights * rewards, weights)


def direct(target: Array, predicted: Array) -> Terms:
    """The outcome model's word, ``predicted`` being ``(n, k)``: as wrong as the model, whatever the number of rows."""
    return Terms((target * predicted).sum(axis=1), np.ones(len(target)))


def doubly_robust(rewards: Array, weights: Array, chosen: Indices, target: Array, predicted: Array) -> Terms:
    """The outcome model, corrected by weighted residuals: right if the model or the propensities are.

    ``predicted[i]`` must come from a model that has not seen row ``i`` (`cross_fit`). A reward that is not a number is
    not known; its weight does not count. It is linear in the policy: with differences of ``weights`` and ``target`` it
    is the difference of two policies.

    Where a few rows carry the weight, a rare failure among them may just not have happened; the terms then spread too
    little, and most so where the estimate is too high. So the error is at least what the residuals of all rows
    with the same action let expect, as if ten more had the variance of all rows.
    """
    known = ~np.isnan(rewards)
    residuals = np.where(known, rewards - predicted[np.arange(len(chosen)), chosen], 0.0)
    weights = np.where(known, weights, 0.0)
    modelled = (target * predicted).sum(axis=1)
    squares = residuals**2
    pooled = float(squares.sum()) / max(1, int(known.sum()))
    sums = np.bincount(chosen, weights=squares, minlength=target.shape[1])
    counts = np.bincount(chosen, weights=known, minlength=target.shape[1])
    variances = (sums + _PRIOR_ROWS * pooled) / (counts + _PRIOR_ROWS)
    n = len(rewards)
    expected = float((weights**2 * variances[chosen]).sum()) / n**2 + float(modelled.var()) / n
    return Terms(modelled + weights * residuals, np.ones(n), math.sqrt(expected))


# intervals


def normal_interval(terms: Terms, level: float = 0.95) -> Interval:
    """By the central limit theorem; too narrow where a few rows carry all the weight."""
    n = len(terms.values)
    if n < 2:
        return Interval(-math.inf, math.inf)
    half = _quantile(0.5 + level / 2) * terms.error
    return Interval(terms.estimate - half, terms.estimate + half)


def bootstrap_intervals(
    estimates: Sequence[Terms], level: float = 0.95, *, resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Studentised bootstrap: rows are drawn again, and the spread of (estimate - truth) / error is read off.

    It sees skewed terms, which the normal interval does not; a resample is a Poisson(1) count for each row, the same
    for all ``estimates``, which are of the same rows.
    """
    n = len(estimates[0].values) if estimates else 0
    if n < 2:
        return [Interval(-math.inf, math.inf)] * len(estimates)
    columns = []
    for terms in estimates:
        centred = terms.values - terms.estimate * terms.over
        columns += [terms.over, centred, centred**2, centred * terms.over, terms.over**2]
    wanted = np.column_stack(columns)
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, 2_000_000 // n))
    sums = np.concatenate(
        [
            generator.poisson(1.0, (min(block, resamples - start), n)).astype(np.float64) @ wanted
            for start in range(0, resamples, block)
        ]
    )
    return [
        _studentised(terms, sums[:, 5 * index : 5 * index + 5].T, level)
        for index, terms in enumerate(estimates)
    ]


def bootstrap_interval(
    terms: Terms, level: float = 0.95, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """`bootstrap_intervals` of one."""
    return bootstrap_intervals([terms], level, resamples=resamples, seed=seed)[0]


def _studentised(terms: Terms, sums: Array, level: float) -> Interval:
    """The interval from each resample's sums of: over, centred, centred^2, centred over, over^2."""
    estimate, error = terms.estimate, terms.error
    if not error:
        return Interval(estimate, estimate)
    over, centred, squares, crossed, overs = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = centred / over
        deviation = np.sqrt(np.maximum(squares - 2.0 * shift * crossed + shift**2 * overs, 0.0)) / over
        # A resample may happen to hold hardly any variety; its own error is then no measure of anything.
        drawn = shift / np.maximum(deviation, _LEAST_DEVIATION * error)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(-math.inf, math.inf)
    low, high = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2))
    return Interval(estimate - float(high) * error, estimate - float(low) * error)


def bernstein_interval(terms: Terms, level: float = 0.95, *, low: float, high: float) -> Interval:
    """Empirical Bernstein: holds for any number of rows, whatever their distribution, if every value lies between
    ``low`` and ``high`` (for `ips`: 0 and the largest weight times the largest reward). Wide. Not for `snips`.
    """
    n = len(terms.values)
    if n < 2:
        return Interval(low, high)
    log = math.log(4.0 / (1.0 - level))
    half = math.sqrt(2.0 * float(terms.values.var(ddof=1)) * log / n) + 7.0 * (high - low) * log / (
        3.0 * (n - 1)
    )
    mean = float(terms.values.mean())
    return Interval(max(low, mean - half), min(high, mean + half))


# the outcome model


def ridge(features: Array, rewards: Array, penalty: float) -> Array:
    """Coefficients of least squares with a penalty on all but the first column, which is the constant."""
    width = features.shape[1]
    shrink = np.full(width, penalty)
    shrink[0] = 1e-9
    solved = np.linalg.solve(features.T @ features + np.diag(shrink), features.T @ rewards)
    return np.asarray(solved, dtype=np.float64)


def fitted(features: Array, rewards: Array, chosen: Indices, asked: Array, penalty: float) -> Array:
    """Predictions ``(m, k)`` for ``asked`` ``(m, k, d)`` from rows ``(n, k, d)`` with their actions and rewards.

    One linear model common to all actions, and for each action one of its own for what that leaves over, drawn to zero
    by as much as the action has few rows.
    """
    taken = features[np.arange(len(chosen)), chosen]
    spread = taken.std(axis=0)
    varies = spread > 1e-12
    scale = np.where(varies, spread, 1.0)
    centre = np.where(varies, taken.mean(axis=0), 0.0)
    scaled, offered = (taken - centre) / scale, (asked - centre) / scale
    common = ridge(scaled, rewards, penalty)
    left = rewards - scaled @ common
    result: Array = offered @ common
    for action in range(features.shape[1]):
        rows = chosen == action
        if int(rows.sum()) > 1:
            result[:, action] += offered[:, action] @ ridge(
                scaled[rows], left[rows], penalty + taken.shape[1]
            )
    return result


def cross_fit(
    features: Array, rewards: Array, chosen: Indices, *, folds: int = 5, penalty: float = 1.0, seed: int = 0
) -> Array:
    """For every row and action the predicted reward ``(n, k)``, by models (`fitted`) that have not seen the row.

    ``features`` are ``(n, k, d)``: of each row with each action, the first a constant 1. A reward that is not a number
    is not known; such rows are predicted, too. Predictions stay between the least and the greatest reward.
    """
    known = ~np.isnan(rewards)
    predicted: Array = np.zeros(features.shape[:2])
    fold = np.random.default_rng(seed).permutation(len(rewards)) % folds
    for each in range(folds):
        held, seen = fold == each, (fold != each) & known
        if held.any() and seen.any():
            predicted[held] = fitted(features[seen], rewards[seen], chosen[seen], features[held], penalty)
    return np.clip(predicted, np.nanmin(rewards), np.nanmax(rewards))


# policies that learn


def acceptance(propensities: Array, draws: Array) -> NDArray[np.bool_]:
    """Which rows a replay may use if the policy's own choice matches: thinned so that each had the same chance.

    ``draws`` are uniform in [0, 1). A row with the least propensity is always kept, another in proportion to its
    inverse, so that what is kept is what the policy would have seen had it decided itself.
    """
    kept: NDArray[np.bool_] = draws * propensities < float(propensities.min(initial=1.0))
    return kept


def _quantile(probability: float) -> float:
    """Of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
