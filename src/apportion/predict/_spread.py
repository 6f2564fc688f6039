"""The distribution of what a prediction leaves open, some of it known from below only.

What a limit ended (an answer at its cap, a wait at its deadline) is at least so long. The product-limit estimator of
Kaplan and Meier uses that for what it is worth: leaving it out, or taking it at its word, would both say too little.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_LOG = 16.0
"""A logarithm beyond which nothing is told apart: nine million tokens, or seconds."""

Floats = NDArray[np.float64]


def product_limit(values: ArrayLike, censored: ArrayLike) -> tuple[Floats, Floats]:
    """Values in rising order and the probability of being above each, by Kaplan and Meier.

    A censored value counts among those at risk up to where it lies. If the largest is censored it is taken as
    reached (Efron), so that the last probability is 0.
    """
    given, cut = np.asarray(values, float), np.asarray(censored, bool)
    order = np.lexsort((cut, given))
    told = ~cut[order]
    told[-1] = True
    above = np.cumprod(1.0 - told / np.arange(len(order), 0, -1))
    return given[order][told], above[told]


class Spread:
    """The distribution of errors, some of which are known from below only."""

    __slots__ = ("_above", "_chances", "_falling", "_values", "mean_exp", "p50", "p90")

    def __init__(self, errors: ArrayLike, censored: ArrayLike) -> None:
        values, above = product_limit(errors, censored)
        self._values: list[float] = values.tolist()
        self._above: list[float] = above.tolist()
        self._falling: list[float] = (-above).tolist()
        # What was largest so far will be passed now and then.
        self._chances: list[float] = [
            *self._above[:-1],
            0.5 * (self._above[-2] if len(self._above) > 1 else 1.0),
        ]
        weight = np.concatenate(([1.0], above[:-1])) - above
        self.mean_exp = float(np.exp(np.minimum(values, MOST_LOG)) @ weight)
        """The mean of the exponentials: what turns a middle into a mean (Duan's smearing)."""
        self.p50 = self.quantile(0.5)
        self.p90 = self.quantile(0.9)

    def quantile(self, share: float) -> float:
        """The least value that at most ``1 - share`` of the errors are above."""
        place = bisect_left(self._falling, share - 1.0 - 1e-12)
        return self._values[min(place, len(self._values) - 1)]

    def chance_above(self, value: float) -> float:
        """The probability of an error above ``value``: linear between those seen, with tails that never quite end."""
        values, chances = self._values, self._chances
        place = bisect_right(values, value)
        if place == 0:
            return 1.0 - (1.0 - chances[0]) * math.exp(max(value - values[0], -50.0))
        upper = chances[place - 1]
        if place == len(values):
            return upper * math.exp(max(values[-1] - value, -50.0))
        share = (value - values[place - 1]) / (values[place] - values[place - 1])
        return upper + share * (chances[place] - upper)

    def mean_above(self, value: float) -> float:
        """The mean of the errors that are above ``value`` (Buckley and James); ``value`` itself if none is."""
        place = bisect_right(self._values, value)
        rest = self._above[place - 1] if place else 1.0
        if place == len(self._values) or rest <= 0.0:
            return value
        total, before = 0.0, rest
        for later in range(place, len(self._values)):
            total += self._values[later] * (before - self._above[later])
            before = self._above[later]
        return max(total / rest, value)
