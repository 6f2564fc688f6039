"""Samples where they are worth most: one budget over many queries, or one query at a price.

On concave curves the two are the same: the budget's dual price buys the greedy allocation.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def greedy(curves: Sequence[Sequence[float]], budget: int, least: int = 0) -> list[int]:
    """Units for each of ``curves`` (value by number of units, from 0 up) so that the sum of values is greatest.

    Takes the largest next gain ``budget`` times in all, ``least`` units each beforehand; exact when every curve is
    concave. Units that gain nothing are not bought. O(budget log n).
    """
    taken = [min(least, len(values) - 1) for values in curves]
    left = budget - sum(taken)
    heap = [
        (values[k] - values[k + 1], i)
        for i, (values, k) in enumerate(zip(curves, taken, strict=True))
        if k + 1 < len(values)
    ]
    heapq.heapify(heap)
    while left > 0 and heap:
        loss, i = heap[0]
        if loss >= 0.0:
            break
        taken[i] += 1
        left -= 1
        k, values = taken[i], curves[i]
        if k + 1 < len(values):
            heapq.heapreplace(heap, (values[k] - values[k + 1], i))
        else:
            heapq.heappop(heap)
    return taken


def at_price(values: Sequence[float], price: float) -> int:
    """The fewest units of a concave curve ``values`` with the most left after paying ``price`` each."""
    k = 0
    while k + 1 < len(values) and values[k + 1] - values[k] > price:
        k += 1
    return k
