"""The online knapsack problem: thresholds on value per weight, by how full the knapsack is.

Items come one by one with a value density (value over weight) between ``lowest`` and ``highest``; one is
taken when its density is at least the threshold at the present ``utilisation`` in [0, 1]. Every rule is a
non-decreasing function of the utilisation, so what it gains is at least the integral of the threshold, which
is how the competitive ratios are proven (for items that are small beside the knapsack).

References: Y. Zhou, D. Chakrabarty, R. Lukose (2008), "Budget Constrained Bidding in Keyword Auctions and
Online Knapsack Problems" (ZCL); A. Lechowicz et al. (2024), "Time Fairness in Online Knapsack Problems",
arXiv:2305.13293 (ECT, LA-ECT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def lambert_w(x: float) -> float:
    """The w with ``w * exp(w) = x``, for x of zero or more (Halley's iteration)."""
    w = math.log1p(x) if x < math.e else math.log(x) - math.log(math.log(x))
    for _ in range(50):
        e = math.exp(w)
        f = w * e - x
        step = f / (e * (w + 1.0) - (w + 2.0) * f / (2.0 * w + 2.0))
        w -= step
        if abs(step) <= 1e-14 * (1.0 + abs(w)):
            break
    return w


def zcl(utilisation: float, lowest: float, highest: float) -> float:
    """``(U e / L)^z * L / e``: the best that is possible without a prediction, and unfair over time."""
    return math.exp(utilisation * (math.log(highest / lowest) + 1.0)) * lowest / math.e


def zcl_ratio(lowest: float, highest: float) -> float:
    """ZCL's competitive ratio, ``ln(U/L) + 1``; no deterministic or random rule has a better one."""
    return math.log(highest / lowest) + 1.0


def ect_slope(lowest: float, highest: float, alpha: float) -> float:
    """The growth rate beta of ECT after its constant part, which is also its competitive ratio.

    ``W(U (1 - alpha) / (L alpha)) / (1 - alpha)``, and ``U / L`` for alpha = 1. It solves ``Psi(alpha+) =
    beta * alpha * L``: just before the rise, the worst that can still come is worth exactly beta times what
    is held.
    """
    if alpha >= 1.0:
        return highest / lowest
    return lambert_w(highest * (1.0 - alpha) / (lowest * alpha)) / (1.0 - alpha)


def ect(utilisation: float, lowest: float, highest: float, alpha: float, slope: float | None = None) -> float:
    """``L`` up to ``alpha``, then ``U * exp(beta (z - 1))``: one price for an alpha share of the knapsack."""
    if utilisation <= alpha:
        return lowest
    beta = ect_slope(lowest, highest, alpha) if slope is None else slope
    # With an alpha below `least_alpha` the curve begins under L, which nothing that comes is worth less than.
    return max(lowest, highest * math.exp(beta * (utilisation - 1.0)))


def least_alpha(lowest: float, highest: float) -> float:
    """The smallest useful alpha, ``1 / (ln(U/L) + 1)``: there ECT is as competitive as ZCL."""
    return 1.0 / (math.log(highest / lowest) + 1.0)


def la_ect(utilisation: float, lowest: float, highest: float, gamma: float, predicted: float) -> float:
    """ZCL squeezed into a 1 - ``gamma`` share, with one price, the ``predicted`` one, for a ``gamma`` share.

    ``predicted`` is the critical density: the lowest that the best packing in hindsight takes.
    """
    if gamma >= 1.0:
        return predicted
    rise = math.log(highest / lowest) + 1.0
    start = (1.0 - gamma) * (math.log(predicted / lowest) + 1.0) / rise
    if utilisation < start:
        return math.exp(utilisation * rise / (1.0 - gamma)) * lowest / math.e
    if utilisation < start + gamma:
        return predicted
    return math.exp((utilisation - gamma) * rise / (1.0 - gamma)) * lowest / math.e


def la_ect_ratio(lowest: float, highest: float, gamma: float) -> float:
    """LA-ECT's competitive ratio however wrong the prediction is: ``(ln(U/L) + 1) / (1 - gamma)``."""
    return math.inf if gamma >= 1.0 else zcl_ratio(lowest, highest) / (1.0 - gamma)


def fractional_optimum(densities: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The best packing of capacity 1 in hindsight when items may be cut, and its critical density.

    An upper bound of the best whole packing. With room left over the critical density is the lowest one.
    """
    left = 1.0
    value = 0.0
    critical = 0.0
    for index in sorted(range(len(densities)), key=lambda i: -densities[i]):
        taken = min(left, weights[index])
        value += taken * densities[index]
        critical = densities[index]
        left -= taken
        if left <= 0.0:
            break
    return value, critical
