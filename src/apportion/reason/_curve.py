"""How likely one of k samples is right, when the rate of success of a sample is itself uncertain.

The rate has a discrete distribution over `GRID`: it may have a spike at zero (no number of samples helps) and
one at one, which a Beta distribution fits badly and which decide how many samples are worth drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

GRID: tuple[float, ...] = (
    0.0, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995, 1.0,
)  # fmt: skip
"""Rates of success; denser near both ends, where a few samples more or less matter."""

Array = NDArray[np.float64]
_POWERS: Array = np.array([[rate**k for rate in GRID] for k in (1, 2, 3, 4)])

Weights = Sequence[float]
"""A probability for each rate of `GRID`."""

UNKNOWN: tuple[float, ...] = tuple(1.0 / len(GRID) for _ in GRID)
"""What is believed before anything was seen."""


def mean(weights: Weights) -> float:
    """The probability that one sample is right."""
    return math.fsum(w * rate for w, rate in zip(weights, GRID, strict=True))


def posterior(weights: Weights, successes: float, failures: float) -> tuple[float, ...]:
    """The distribution after so many right and wrong samples (fractions count in part)."""
    seen = [
        w * (rate**successes if successes else 1.0) * ((1.0 - rate) ** failures if failures else 1.0)
        for w, rate in zip(weights, GRID, strict=True)
    ]
    total = sum(seen)
    return tuple(w / total for w in seen) if total > 0.0 else tuple(weights)


def success(weights: Weights, k: float) -> float:
    """q(k) = E[1 - (1 - rate)^k]: the probability that at least one of ``k`` more samples is right; concave."""
    return 1.0 - math.fsum(w * (1.0 - rate) ** k for w, rate in zip(weights, GRID, strict=True))


def curve(weights: Weights, most: int) -> list[float]:
    """q(0), ..., q(most)."""
    left = list(weights)
    found = [0.0]
    for _ in range(most):
        left = [w * (1.0 - rate) for w, rate in zip(left, GRID, strict=True)]
        found.append(1.0 - sum(left))
    return found


def tilted(weights: Weights, wanted: float, sd: float | None = None) -> tuple[float, ...]:
    """The distribution closest to ``weights`` (in relative entropy) whose mean is ``wanted``, and whose standard
    deviation is ``sd`` unless that is None.

    It is ``w_i exp(a rate_i + b rate_i^2)``: found by Newton's method on its convex dual, with shortened steps.
    """
    wanted = min(max(wanted, 0.001), 0.999)
    most = wanted * (1.0 - wanted)
    second = None if sd is None else wanted**2 + min(max(sd * sd, 0.02 * most), 0.98 * most)
    start = np.array(weights)
    a = b = 0.0
    found, height = _raised(start, a, b, wanted, second)
    for _ in range(50):
        m1, m2, m3, m4 = (_POWERS @ found).tolist()
        off1, off2 = wanted - m1, 0.0 if second is None else second - m2
        if abs(off1) < 1e-4 and abs(off2) < 1e-4:
            break
        c11, c12, c22 = m2 - m1 * m1 + 1e-9, m3 - m1 * m2, m4 - m2 * m2 + 1e-9
        if second is None:
            da, db = off1 / c11, 0.0
        else:
            shape = max(c11 * c22 - c12 * c12, 1e-14)
            da, db = (c22 * off1 - c12 * off2) / shape, (c11 * off2 - c12 * off1) / shape
        step = min(1.0, 30.0 / (abs(da) + abs(db)))
        while step > 1e-6:
            tried, level = _raised(start, a + step * da, b + step * db, wanted, second)
            if level < height:
                break
            step *= 0.5
        else:
            break
        a, b, found, height = a + step * da, b + step * db, tried, level
    return tuple(found.tolist())


def _raised(start: Array, a: float, b: float, wanted: float, second: float | None) -> tuple[Array, float]:
    """``start`` times ``exp(a rate + b rate^2)``, and the dual that is least where the moments are right."""
    powers = a * _POWERS[0] + b * _POWERS[1]
    top = float(powers.max())
    raised = start * np.exp(powers - top)
    total = float(raised.sum())
    if total <= 0.0:
        return start, math.inf
    return raised / total, math.log(total) + top - a * wanted - b * (second or 0.0)


def fitted(
    counts: Iterable[tuple[float, float, float]], start: Weights = UNKNOWN, rounds: int = 60
) -> tuple[float, ...]:
    """The most likely distribution behind ``counts`` of (right, wrong, weight), by expectation-maximisation."""
    same: dict[tuple[float, float], float] = {}
    for right, wrong, weight in counts:
        same[right, wrong] = same.get((right, wrong), 0.0) + weight
    rows = [(weight, *count) for count, weight in same.items() if weight > 0.0]
    if not rows:
        return tuple(start)
    times = np.array([row[0] for row in rows])
    likelihood = np.array([[_likelihood(rate, right, wrong) for rate in GRID] for _, right, wrong in rows])
    found = np.array(start)
    for _ in range(rounds):
        found = found * ((times / np.maximum(likelihood @ found, 1e-300)) @ likelihood)
        total = float(found.sum())
        if total <= 0.0:
            return tuple(start)
        found = found / total
    return tuple(found.tolist())


def _likelihood(rate: float, right: float, wrong: float) -> float:
    """Of these counts, up to a factor that is the same for all rates: divided by its greatest value, so that
    large counts do not vanish.
    """
    if (right and rate == 0.0) or (wrong and rate == 1.0):
        return 0.0
    n = right + wrong
    best = (right * math.log(right / n) if right else 0.0) + (wrong * math.log(wrong / n) if wrong else 0.0)
    here = (right * math.log(rate) if right else 0.0) + (wrong * math.log1p(-rate) if wrong else 0.0)
    return math.exp(here - best)
