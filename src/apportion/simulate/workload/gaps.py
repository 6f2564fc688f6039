"""Laws of the gaps between arrivals: mixtures of gamma distributions, of which the exponential and the gamma are the
simplest.

BurstGPT (arXiv:2401.17644) models the gaps of a window by a gamma distribution whose shape changes from window to
window: 1 is a Poisson process, below 1 comes in bursts. Where programs send volleys (gaps of a millisecond within, of
seconds between) no single gamma fits, and a mixture of a few does. How many parts are needed is decided by the
Bayesian information criterion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z: Final = np.linspace(-7.0, 7.0, 4097)
_U: Final = np.array([0.5 * math.erfc(-z / math.sqrt(2.0)) for z in _Z])


class Gaps(Struct, frozen=True):
    """Gaps of mean 1: with probability ``weights[j]`` from a gamma distribution of that mean and shape."""

    weights: tuple[float, ...] = (1.0,)
    shapes: tuple[float, ...] = (1.0,)
    means: tuple[float, ...] = (1.0,)

    @property
    def kind(self) -> str:
        """In a word."""
        if len(self.weights) > 1:
            return f"{len(self.weights)} gammas"
        return "exponential" if self.shapes == (1.0,) else "gamma"

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation: 1 for a Poisson process."""
        parts = zip(self.weights, self.shapes, self.means, strict=True)
        return sum(w * m * m * (1.0 + 1.0 / k) for w, k, m in parts) - 1.0

    def table(self) -> tuple[Floats, Floats]:
        """Logarithms of gaps and the probability of a shorter one, for interpolation."""
        low = min(math.log(m / k) - 30.0 / min(1.0, k) for k, m in zip(self.shapes, self.means, strict=True))
        high = max(
            math.log(m * (1.0 + 12.0 / math.sqrt(k) + 40.0 / k))
            for k, m in zip(self.shapes, self.means, strict=True)
        )
        x = np.linspace(max(low, -200.0), high, 8193)
        density = np.exp(_mixture_log_density(x, self.weights, self.shapes, self.means)) * np.exp(x)
        steps = np.diff(x) * (density[1:] + density[:-1]) / 2.0
        below = np.concatenate(([0.0], np.cumsum(steps)))
        return x, below / below[-1]

    def cdf(self, gaps: Floats) -> Floats:
        """The probability of a gap no longer than each."""
        x, below = self.table()
        return np.asarray(np.interp(np.log(np.maximum(gaps, 1e-300)), x, below))

    def quantiles(self) -> Floats:
        """Logarithms of the gaps at the normal scores `_Z`, for `from_normal`."""
        x, below = self.table()
        rising = np.concatenate(([True], np.diff(below) > 0))
        return np.asarray(np.interp(_U, below[rising], x[rising]))

    def normal(self, gaps: Floats) -> Floats:
        """Normal scores of gaps."""
        return np.asarray(np.interp(self.cdf(gaps), _U, _Z))


def from_normal(z: Floats, quantiles: Floats) -> Floats:
    """Gaps from normal scores: independent scores give independent gaps, correlated ones correlated gaps."""
    place = np.clip((z + 7.0) * ((len(_Z) - 1) / 14.0), 0.0, len(_Z) - 1.000001)
    left = place.astype(np.int64)
    share = place - left
    return np.exp(quantiles[left] * (1.0 - share) + quantiles[left + 1] * share)


def fit(gaps: Floats, *, most_parts: int = 5) -> Gaps:
    """The law of gaps, scaled to mean 1: exponential, gamma or a mixture, whichever the criterion prefers."""
    x = relative(gaps)
    best, least = Gaps(), _criterion(Gaps(), x, 0)
    for parts in range(1, most_parts + 1):
        if len(x) < 40 * parts or len(best.weights) < parts - 2:
            break
        for start in ("ranks", "sizes") if parts > 1 else ("ranks",):
            found = _fit_parts(x, parts, start)
            value = _criterion(found, x, 3 * parts - 2)
            if value < least:
                best, least = found, value
    return best


def relative(gaps: Floats) -> Floats:
    """Gaps divided by their mean; none shorter than half the shortest above 0, which is as finely as they were
    recorded.
    """
    x = gaps / gaps.mean()
    return np.asarray(np.maximum(x, x[x > 0].min() / 2.0))


def log_likelihood(law: Gaps, gaps: Floats) -> float:
    """Of gaps scaled to mean 1."""
    x = np.log(np.maximum(gaps, 1e-300))
    return float(np.sum(_mixture_log_density(x, law.weights, law.shapes, law.means)))


def _criterion(law: Gaps, x: Floats, parameters: int) -> float:
    return parameters * math.log(len(x)) - 2.0 * log_likelihood(law, x)


def _fit_parts(x: Floats, parts: int, start: str) -> Gaps:
    """Maximum likelihood by expectation and maximisation, begun from the gaps cut into parts of equal number, or of
    equal width of their logarithms.
    """
    log_x = np.log(x)
    if parts == 1:
        return Gaps((1.0,), (_shape(1.0, float(log_x.mean())),), (1.0,))
    if start == "ranks":
        part = np.argsort(np.argsort(x, kind="stable"), kind="stable") * parts // len(x)
    else:
        low, high = np.quantile(log_x, [0.02, 0.98])
        part = np.clip((log_x - low) / max(high - low, 1e-9) * parts, 0, parts - 1).astype(np.int64)
    belongs = (part[None, :] == np.arange(parts)[:, None]) * 0.9 + 0.1 / parts
    belongs /= belongs.sum(axis=0)
    before = -np.inf
    law = Gaps()
    for _ in range(500):
        total = belongs.sum(axis=1) + 1e-12
        weights = total / len(x)
        means = belongs @ x / total
        logs = belongs @ log_x / total
        shapes = [_shape(mean, log) for mean, log in zip(means.tolist(), logs.tolist(), strict=True)]
        law = Gaps(tuple(weights.tolist()), tuple(shapes), tuple(means.tolist()))
        each = np.array(
            [math.log(w) + _log_density(log_x, k, m) for w, k, m in zip(weights, shapes, means, strict=True)]
        )
        top = each.max(axis=0)
        whole = top + np.log(np.exp(each - top).sum(axis=0))
        belongs = np.exp(each - whole)
        likelihood = float(whole.sum())
        if likelihood - before < 1e-7 * len(x):
            break
        before = likelihood
    mean = float(np.dot(law.weights, law.means))
    return Gaps(law.weights, law.shapes, tuple(m / mean for m in law.means))


def _shape(mean: float, mean_log: float) -> float:
    """Maximum likelihood shape of a gamma distribution: log k - digamma(k) = log(mean) - mean of logs. Newton from
    Minka's start (2002).
    """
    s = max(math.log(mean) - mean_log, 1e-6)
    k = (3.0 - s + math.sqrt((s - 3.0) ** 2 + 24.0 * s)) / (12.0 * s)
    for _ in range(20):
        step = (math.log(k) - _digamma(k) - s) / (1.0 / k - _trigamma(k))
        k = k / 2.0 if k - step <= 0 else k - step
        if abs(step) < 1e-10 * k:
            break
    return min(max(k, 1e-3), 1e4)


def _digamma(x: float) -> float:
    below = 0.0
    while x < 8.0:
        below -= 1.0 / x
        x += 1.0
    y = 1.0 / (x * x)
    return below + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))


def _trigamma(x: float) -> float:
    above = 0.0
    while x < 8.0:
        above += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / (x * x)
    return above + 1.0 / x + y / 2.0 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))


def _log_density(log_x: Floats, shape: float, mean: float) -> Floats:
    scale = mean / shape
    return np.asarray(
        (shape - 1.0) * log_x - np.exp(log_x) / scale - math.lgamma(shape) - shape * math.log(scale)
    )


def _mixture_log_density(
    log_x: Floats, weights: Sequence[float], shapes: Sequence[float], means: Sequence[float]
) -> Floats:
    parts = np.array(
        [
            math.log(max(w, 1e-300)) + _log_density(log_x, k, m)
            for w, k, m in zip(weights, shapes, means, strict=True)
        ]
    )
    top = parts.max(axis=0)
    return np.asarray(top + np.log(np.exp(parts - top).sum(axis=0)))
