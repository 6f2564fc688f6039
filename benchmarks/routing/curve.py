"""From predictions to what routing by them costs.

The rule is always the same: for an exchange rate between quality and money, choose the model with the most
quality left after paying; the rate is swept. A point of the curve is a share of the best single model's cost
and a share of its quality. Always taking the best single model is a point of every curve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.routing.data import Array

RATES = np.concatenate(([0.0], np.logspace(-3.0, 4.0, 300)))
LEVELS = (0.95, 0.99, 1.0)


class Sweep(NamedTuple):
    """For each rate and request the quality and the cost share of what was chosen (rates, n), and the best single
    model's quality and cost share by request (n).
    """

    quality: Array
    cost: Array
    best_quality: Array
    best_cost: Array


def sweep(predicted: Array, expected_cost: Array, quality: Array, cost: Array, best: int) -> Sweep:
    """Choose by ``predicted`` and ``expected_cost``, count ``quality`` and ``cost``; all (n, m)."""
    unit = cost[:, best].mean()
    rows = np.arange(len(quality))
    chosen_quality = np.empty((len(RATES), len(quality)))
    chosen_cost = np.empty_like(chosen_quality)
    for number, rate in enumerate(RATES):
        choice = (rate * predicted - expected_cost / unit).argmax(1)
        chosen_quality[number] = quality[rows, choice]
        chosen_cost[number] = cost[rows, choice]
    return Sweep(chosen_quality, chosen_cost / unit, quality[:, best], cost[:, best] / unit)


def points(found: Sweep, weight: Array | None = None) -> tuple[Array, Array, float]:
    """Mean cost and mean quality at each rate, the best single model last, and its quality; requests may be
    weighted, for a bootstrap.
    """
    n = len(found.best_quality)
    share = np.full(n, 1.0 / n) if weight is None else weight / weight.sum()
    unit = float(found.best_cost @ share)
    cost = np.append(found.cost @ share / unit, 1.0)
    top = float(found.best_quality @ share)
    return cost, np.append(found.quality @ share, top), top


def cost_at(cost: Array, quality: Array, wanted: float) -> float:
    """The least cost of a point that reaches the quality ``wanted``."""
    return float(cost[quality >= wanted - 1e-12].min())


def costs(found: Sweep, weight: Array | None = None) -> list[float]:
    """Cost at each of `LEVELS` of the best single model's quality, as a share of its cost."""
    cost, quality, top = points(found, weight)
    return [cost_at(cost, quality, level * top) for level in LEVELS]


def area(cost: Array, quality: Array, top: float) -> float:
    """Area under quality / ``top`` over budgets between 0 and the best single model's cost: at each budget the
    best that it affords, mixing two points where that is better, nothing below the cheapest.
    """
    order = np.argsort(cost)
    x, y = hull(cost[order], quality[order] / top)
    inside = x <= 1.0
    if not inside.any():
        return 0.0
    end = float(np.interp(1.0, x, y))
    x, y = np.append(x[inside], 1.0), np.append(y[inside], end)
    return float(((y[1:] + y[:-1]) / 2.0 * np.diff(x)).sum())


def hull(x: Array, y: Array) -> tuple[Array, Array]:
    """The upper concave envelope of points sorted by ``x``, up to the highest."""
    kept: list[tuple[float, float]] = []
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        if kept and py <= kept[-1][1]:
            continue
        while len(kept) > 1:
            (ax, ay), (bx, by) = kept[-2], kept[-1]
            if (by - ay) * (px - ax) > (py - ay) * (bx - ax):
                break
            kept.pop()
        if kept and px <= kept[-1][0]:
            kept.pop()
        kept.append((px, py))
    return np.array([p[0] for p in kept]), np.array([p[1] for p in kept])


def bootstrap(
    ours: list[Sweep], theirs: list[Sweep], seed: int = 0, draws: int = 200
) -> list[dict[str, float]]:
    """At each level the difference of costs (ours less theirs, averaged over the repetitions) with a 95% interval
    and the share of resamples in which ours is not below; questions are drawn with replacement, the same for both.
    """
    random = np.random.default_rng(seed)
    n = len(ours[0].best_quality)
    differences = np.empty((draws, len(LEVELS)))
    for draw in range(draws):
        weight = np.bincount(random.integers(0, n, n), minlength=n).astype(float)
        mine = np.mean([costs(one, weight) for one in ours], 0)
        other = np.mean([costs(one, weight) for one in theirs], 0)
        differences[draw] = mine - other
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    return [
        {
            "mean": float(mean),
            "low": float(low[k]),
            "high": float(high[k]),
            "p": float((differences[:, k] >= 0).mean()),
        }
        for k, mean in enumerate(differences.mean(0))
    ]


def folds(n: int, seed: int, count: int = 5) -> npt.NDArray[np.intp]:
    """A fold for each of ``n`` requests."""
    return np.random.default_rng(seed).permutation(n) % count
