"""Prices and weights that are learned online: the two players of a primal-dual method."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dual_step(price: float, spent: float, allowed: float, rate: float, most: float) -> float:
    """One step of projected gradient descent on the price of one resource.

    It rises with what was ``spent`` above what is ``allowed`` a round, falls below, and stays in [0,
    ``most``].
    """
    return min(most, max(0.0, price + rate * (spent - allowed)))


def hedge(gains: Sequence[float], rate: float) -> list[float]:
    """The exponential weights of cumulated ``gains``, as probabilities."""
    top = max(gains)
    weights = [math.exp(rate * (gain - top)) for gain in gains]
    total = sum(weights)
    return [weight / total for weight in weights]


def mixed(probabilities: Sequence[float], share: float) -> list[float]:
    """``probabilities`` with a ``share`` of them spread evenly: what EXP3 draws from."""
    even = share / len(probabilities)
    return [(1.0 - share) * p + even for p in probabilities]
