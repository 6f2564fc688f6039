"""Whether two policies differ on the same work: paired runs, intervals, and a test behind the word "significant".

Both policies see the same requests and, run by run, the same seed and the same draw of the endpoints' profiles. What is
compared is the difference, and it is uncertain for three reasons, which are added up:

- other traffic of this kind would have been a little different: the blocks of the trace are resampled (block bootstrap;
  where the differences of neighbouring blocks are correlated, blocks are put together);
- chance inside a run: the spread between seeds, of whose mean it is the error;
- the profiles are fitted, not known: the spread between draws of the fit. It is that of one draw, not of their mean:
  more draws tell it better and make it no smaller.

The test asks whether the policies could be exchanged: in every block they are swapped by the toss of a coin (sign-flip
permutation), and counted is how often the difference becomes as large as it is. A queue remembers: under load
neighbouring blocks go together even so, and a sum of such blocks varies more than coins let it. Taken for an
autoregressive series of first order, its variance is (1 + r) / (1 - r) times as large; by the root of that the
difference counts less, and its interval is wider. r is the correlation of neighbours that the metric's own blocks show,
corrected for that of few blocks it shows too little (Marriott and Pope, Kendall). Over several policies and metrics the
p-values are corrected (Holm). A difference is called significant where the corrected p-value says so and the
interval, which knows of the fit, leaves out zero.

References
----------
E. S. Edgington, P. Onghena (2007). "Randomization Tests." Chapman and Hall.
H. R. Künsch (1989). "The Jackknife and the Bootstrap for General Stationary Observations." Annals of Statistics 17(3).
F. H. C. Marriott, J. A. Pope (1954). "Bias in the Estimation of Autocorrelations." Biometrika 41(3/4).
M. G. Kendall (1954). "Note on Bias in the Estimation of Autocorrelation." Biometrika 41(3/4).
S. Holm (1979). "A Simple Sequentially Rejective Multiple Test Procedure." Scandinavian Journal of Statistics 6(2).
F. E. Satterthwaite (1946). "An Approximate Distribution of Estimates of Variance Components." Biometrics 2(6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError
from apportion.simulate.metrics import METRICS, Digest, Tally, figures

Array = NDArray[np.float64]

COMPARED: Final = (
    "ttft_mean_s", "ttft_p90_s", "ttft_p99_s", "tpot_mean_s", "tpot_p90_s", "e2e_mean_s", "e2e_p90_s", "e2e_p99_s",
    "answered_share", "goodput_per_s", "usd_per_1k", "usd_per_good", "joules", "quality",
)  # fmt: skip
"""The metrics that are tested."""
_RESAMPLES: Final = 500
_SWAPS: Final = 1999
_FEWEST: Final = 20
"""Blocks that are left at least when neighbours are put together: of fewer their correlation is hardly known."""
_CORRELATED: Final = 0.3
_MOST_CORRELATED: Final = 0.95
_MOST_LOG: Final = 50.0
"""Of the logarithm of a number nothing is known beyond this, and its exponential is still a number."""


class PairingError(ApportionError):
    """Runs that are to be compared are not of the same work."""

    code = "pairing"


class Run(NamedTuple):
    """One run: which seed, which draw of the profiles (0: as they were fitted), and what came of it."""

    seed: int
    draw: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Why a number is uncertain, as standard errors: other ``traffic``, chance between ``seeds``, the ``fit``.

    ``df`` are the degrees of freedom of their sum; nan where a part cannot be told (a single seed, a single draw) and
    is therefore left out.
    """

    traffic: float
    seeds: float
    fit: float
    df: float

    @property
    def error(self) -> float:
        """All together."""
        return math.sqrt(
            sum(part * part for part in (self.traffic, self.seeds, self.fit) if not math.isnan(part))
        )

    def half(self, level: float) -> float:
        """Half the width of the interval."""
        return student_t(level, self.df) * self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float
    spread: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of a policy less that of the baseline. ``p`` is of the test alone, ``p_corrected`` after Holm."""

    metric: str
    baseline: float
    value: float
    difference: float
    low: float
    high: float
    spread: Spread
    p: float
    p_corrected: float = math.nan
    significant: bool = False


def estimates(
    runs: Sequence[Run], metrics: Sequence[str] = COMPARED, *, level: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """The metrics of one policy over its runs, each with an interval (within what can be). The number is the mean
    over the seeds with the profiles as they were fitted (draw 0).
    """
    fitted = _fitted(runs)
    pooled = _merged(_pooled(fitted), None)[0]
    span = float(np.mean([run.digest.span_s for run in fitted]))
    wanted = frozenset(metrics)
    boot = figures(pooled, span, _resampled(len(pooled.sums), seed), wanted)
    found = {}
    for metric in metrics:
        values = np.array([run.digest.total[metric] for run in runs])
        scale = len(fitted) if metric in _SUMMED else 1
        spread = _spread(runs, values, boot[metric] / scale, len(pooled.sums))
        value, half = _mean(runs, values), spread.half(level)
        low, high = _interval(value, half, share=METRICS[metric].unit == "share")
        found[metric] = Estimate(value=value, low=low, high=high, spread=spread)
    return found


def _interval(value: float, half: float, *, share: bool) -> tuple[float, float]:
    """From the error of a number, by first order, that of its logarithm (of a ``share`` the log odds): what cannot be
    below 0 is more likely to be much larger than much smaller. Plainly where there is no logarithm.
    """
    if share and 0.0 < value < 1.0:
        odds, error = value / (1.0 - value), min(half / (value * (1.0 - value)), _MOST_LOG)
        low, high = odds * math.exp(-error), odds * math.exp(error)
        return low / (1.0 + low), high / (1.0 + high)
    if value > 0.0 and not share:
        error = min(half / value, _MOST_LOG)
        return value * math.exp(-error), value * math.exp(error)
    return max(value - half, 0.0), min(value + half, 1.0 if share else math.inf)


def differences(
    baseline: Sequence[Run],
    policy: Sequence[Run],
    metrics: Sequence[str] = COMPARED,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """The metrics of ``policy`` less those of ``baseline``, run by run; raises `PairingError` where the runs are not
    of the same seeds and draws. Significance is said by `corrected`.
    """
    if not baseline or [run[:2] for run in baseline] != [run[:2] for run in policy]:
        raise PairingError("The runs to compare are not of the same seeds and draws.", field="seeds")
    before_runs, after_runs = _fitted(baseline), _fitted(policy)
    one, other = _merged(_pooled(before_runs), _pooled(after_runs))
    n = len(one.sums)
    span = float(np.mean([run.digest.span_s for run in before_runs]))
    stretch = float(np.mean([run.digest.span_s for run in after_runs]))
    wanted = frozenset(metrics)
    weights = _resampled(n, seed)
    before, after = figures(one, span, weights, wanted), figures(other, stretch, weights, wanted)
    each = np.eye(n)
    one_by_one = figures(one, span, each, wanted), figures(other, stretch, each, wanted)
    both = Tally(np.concatenate([one.sums, other.sums]), np.concatenate([one.counts, other.counts]))
    kept = _coins(n, seed)
    as_one = figures(both, span, np.hstack([kept, 1.0 - kept]), wanted)
    as_other = figures(both, stretch, np.hstack([1.0 - kept, kept]), wanted)
    found = []
    for metric in metrics:
        was = np.array([run.digest.total[metric] for run in baseline])
        values = np.array([run.digest.total[metric] for run in policy])
        if not np.isfinite(was).all() or not np.isfinite(values).all():
            continue
        scale = len(before_runs) if metric in _SUMMED else 1
        swell = _swell(one_by_one[1][metric] - one_by_one[0][metric])
        spread = _spread(baseline, values - was, swell * (after[metric] - before[metric]) / scale, n)
        difference, half = _mean(baseline, values - was), spread.half(level)
        found.append(
            Difference(
                metric=metric,
                baseline=_mean(baseline, was),
                value=_mean(policy, values),
                difference=difference,
                low=difference - half,
                high=difference + half,
                spread=spread,
                p=_as_extreme(as_other[metric] - as_one[metric], swell),
            )
        )
    return found


def least_p(baseline: Sequence[Run], policy: Sequence[Run]) -> float:
    """The smallest p-value that the test can give: there are only so many ways to swap few independent blocks."""
    one, _ = _merged(_pooled(_fitted(baseline)), _pooled(_fitted(policy)))
    ways = 2 ** len(one.sums)
    return 2.0 / ways if ways <= _SWAPS + 1 else 1.0 / (_SWAPS + 1)


def corrected(tests: Sequence[Difference], *, level: float = 0.95) -> list[Difference]:
    """All the differences of one comparison, corrected for their number, and which of them are significant."""
    found = []
    for test, p in zip(tests, holm([test.p for test in tests]), strict=True):
        away = test.low > 0.0 or test.high < 0.0
        found.append(replace(test, p_corrected=p, significant=bool(p < 1.0 - level and away)))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the smallest times n, the next times n - 1, and none below one before it."""
    order = np.argsort(p_values, kind="stable")
    found = [math.nan] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = highest
    return found


def student_t(level: float, df: float) -> float:
    """How many standard errors an interval of confidence ``level`` reaches to each side; ``df`` may be broken."""
    low, high = 0.0, 2.0
    if math.isnan(df):
        return math.nan
    while _between(high, df) < level:
        low, high = high, 2.0 * high
        if high > 1e9:
            return math.inf
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, df) < level else (low, middle)
    return (low + high) / 2


def _between(t: float, df: float) -> float:
    """The chance that Student's t is between -t and t."""
    if math.isinf(df):
        return math.erf(t / math.sqrt(2))
    return 1.0 - _beta(df / 2, 0.5, df / (df + t * t))


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz; DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    fraction = d
    for m in range(1, 500):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * fraction / a


_SUMMED: Final = frozenset(
    ("usd", "joules", "gco2", "rate_per_s", "output_tokens_per_s", "goodput_per_s",
     "requests", "refused", "failed", "timeout", "cut", "retries", "preempted")
)  # fmt: skip
"""Metrics that grow with the number of runs that are pooled."""


def _pooled(runs: Sequence[Run]) -> Tally:
    """All runs of a policy in one, block by block."""
    sums = runs[0].digest.blocks.sums.copy()
    counts = runs[0].digest.blocks.counts.copy()
    for run in runs[1:]:
        sums += run.digest.blocks.sums
        counts += run.digest.blocks.counts
    return Tally(sums, counts)


def _merged(one: Tally, other: Tally | None) -> tuple[Tally, Tally]:
    """Blocks put together two by two while neighbours are alike: their mean times (or, of two policies, the
    differences of these) correlate.
    """
    other = other or Tally(one.sums * 0.0, one.counts)
    while len(one.sums) // 2 >= _FEWEST and _correlation(one, other) > _CORRELATED:
        one, other = (
            Tally(
                each.sums.reshape(-1, 2, each.sums.shape[1]).sum(axis=1),
                each.counts.reshape(-1, 2, *each.counts.shape[1:]).sum(axis=1, dtype=np.int32),
            )
            for each in (one, other)
        )
    return one, other


def _correlation(one: Tally, other: Tally) -> float:
    """Between neighbouring blocks, of the difference of the sums of the times in the system."""
    weights = np.eye(len(one.sums))
    name = frozenset({"e2e_mean_s"})
    values = figures(one, 1.0, weights, name)["e2e_mean_s"]
    values = np.nan_to_num(values) - np.nan_to_num(figures(other, 1.0, weights, name)["e2e_mean_s"])
    return _of_neighbours(values)


def _of_neighbours(values: Array) -> float:
    """The correlation of each value with the next."""
    centred = values - values.mean()
    total = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / total if total > 0.0 else 0.0


def _swell(values: Array) -> float:
    """How many times as far as if they were independent the sum of these values varies (see the module); at least 1."""
    n = len(values)
    if n <= 4:
        return 1.0
    found = (_of_neighbours(np.nan_to_num(values)) + 1.0 / n) / (1.0 - 4.0 / n)
    r = min(max(found, 0.0), _MOST_CORRELATED)
    return math.sqrt((1.0 + r) / (1.0 - r))


def _resampled(blocks: int, seed: int) -> Array:
    """How often each block is drawn: (resamples x blocks)."""
    generator = np.random.default_rng((seed, 1))
    return generator.multinomial(blocks, np.full(blocks, 1.0 / blocks), _RESAMPLES).astype(np.float64)


def _coins(blocks: int, seed: int) -> Array:
    """Whether each block is kept as it is (1) or swapped (0): (1 + swaps x blocks), first as it was; all the ways
    there are where these are few.
    """
    if 2**blocks <= _SWAPS + 1:
        ways = (np.arange(2**blocks)[:, None] >> np.arange(blocks)) & 1
        return np.asarray(1.0 - ways)
    tossed = np.random.default_rng((seed, 2)).integers(0, 2, (_SWAPS, blocks)).astype(np.float64)
    return np.concatenate([np.ones((1, blocks)), tossed])


def _as_extreme(differences: Array, swell: float) -> float:
    """The share of all swaps, the first of them none, whose difference is as large, if all vary ``swell`` times as
    far.
    """
    sizes = np.abs(np.nan_to_num(differences))
    return float((swell * sizes >= sizes[0] * (1.0 - 1e-9)).mean())


def _fitted(runs: Sequence[Run]) -> Sequence[Run]:
    """Those with the profiles as they were fitted."""
    return [run for run in runs if run.draw == 0] or runs


def _mean(runs: Sequence[Run], values: Array) -> float:
    """Over the seeds, with the profiles as they were fitted."""
    fitted = values[[run.draw == 0 for run in runs]]
    return float(fitted.mean() if len(fitted) else values.mean())


def _spread(runs: Sequence[Run], values: Array, boot: Array, blocks: int) -> Spread:
    """The parts of the uncertainty of the mean of ``values`` (one for each run): between seeds as fitted, between
    draws with the first seed.
    """
    known = boot[np.isfinite(boot)]
    traffic = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    by_seed = values[[run.draw == 0 for run in runs]]
    by_draw = values[[run.seed == runs[0].seed for run in runs]]
    seeds = float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else math.nan
    fit = float(by_draw.std(ddof=1)) if len(by_draw) > 1 else math.nan
    parts = [(traffic, blocks - 1), (seeds, len(by_seed) - 1), (fit, len(by_draw) - 1)]
    squares = [(part**2, df) for part, df in parts if part == part]
    below = sum(square**2 / df for square, df in squares if df > 0)
    df = sum(square for square, _ in squares) ** 2 / below if below > 0.0 else math.inf
    return Spread(traffic=traffic, seeds=seeds, fit=fit, df=df)
