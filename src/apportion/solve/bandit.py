"""Indices of bandits: confidence widths, chances of being greatest, moments of censored times."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BASE = np.linspace(-5.0, 5.0, 33)
"""Where the standard normal is looked at when one variable is integrated against others."""
_NEAR = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
"""The same around the mean of each other variable, which may be much narrower."""


def normal_cdf(x: Array) -> Array:
    """The standard normal distribution function, elementwise, to 2e-7 (Abramowitz and Stegun 7.1.26)."""
    z = np.abs(x) * math.sqrt(0.5)
    t = 1.0 / (1.0 + 0.3275911 * z)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * tail * np.exp(-np.minimum(z * z, 700.0))
    return np.where(x < 0.0, half, 1.0 - half)


def chance_of_greatest(means: Array, sds: Array, index: int) -> float:
    """The probability that variable ``index`` is the greatest of independent normal ones.

    ``means`` and ``sds`` have shape (n,), every sd above 0. The integral over the value of the variable of
    the product of the others' distribution functions, by the midpoint rule in probability, with more points
    where another variable is narrow; absolute error below 0.005 in the tests.
    """
    sd = sds[index]
    shift = (means - means[index]) / sd
    ratio = sds / sd
    others = shift > -5.0 * (1.0 + ratio)  # the rest have no chance against it
    others[index] = False
    shift, ratio = shift[others], ratio[others]
    if not len(shift):
        return 1.0
    near = np.clip(shift[:, None] + ratio[:, None] * _NEAR, -5.0, 5.0).ravel()
    edges = np.sort(np.concatenate((_BASE, near)))
    weights = np.diff(normal_cdf(edges))
    middle = 0.5 * (edges[1:] + edges[:-1])
    below = normal_cdf((middle - shift[:, None]) / ratio[:, None])
    chance = float(weights @ below.prod(axis=0))
    return min(1.0, max(chance, 1e-9))


def confidence_width(pulls: float, rounds: float, exploration: float) -> float:
    """UCB1's width ``sqrt(exploration * ln(rounds) / pulls)``; infinite before the first pull."""
    return math.sqrt(exploration * math.log(max(rounds, 2.0)) / pulls) if pulls > 0 else math.inf


def above_moments(mean: float, sd: float, bound: float) -> tuple[float, float]:
    """``E[Y | Y > bound]`` and ``Var[Y | Y > bound]`` of normal Y: what stands in for a censored value.

    Far above the mean the exact expression loses its digits, and the first terms of its series are used.
    """
    z = (bound - mean) / sd
    if z > 5.0:
        hazard = z + 1.0 / z - 2.0 / z**3
    else:
        hazard = math.exp(-0.5 * z * z) / (math.sqrt(2.0 * math.pi) * 0.5 * math.erfc(z / math.sqrt(2.0)))
    variance = 1.0 / (z * z) - 6.0 / z**4 if z > 5.0 else 1.0 + z * hazard - hazard * hazard
    return mean + sd * hazard, sd * sd * max(variance, 0.0)


def expected_par(mean: Array, sd: Array, limit: Array, penalty: float) -> Array:
    """The expected penalised time of a run whose log time is normal, in the unit of ``limit``, elementwise.

    ``E[T; T <= C] + penalty * C * P(T > C)`` for limit C; a ``penalty`` of 10 is PAR10.
    """
    z = (np.log(limit) - mean) / sd
    inside = np.exp(np.minimum(mean + 0.5 * sd * sd, 700.0)) * normal_cdf(z - sd)
    return np.minimum(inside, limit) + penalty * limit * normal_cdf(-z)
