"""Which leaf of every tree a row falls into, all trees at once and without walking down them.

The leaves of a tree are numbered from left to right. A node whose test sends the row to the right rules out the
leaves to its left; of those that no node rules out, the first is the row's [1]_. So all tests are made in one
comparison, what they rule out is put together with "or", and the first zero bit is the leaf.

.. [1] C. Lucchese et al. (2015). "QuickScorer: A Fast Algorithm to Rank Documents with Additive Ensembles of
   Regression Trees." SIGIR. doi:10.1145/2766462.2767733
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apportion.predict.quality._arrays import Floats, Integers

_BITS = 64


class _Test(NamedTuple):
    """An inner node: it sends to the right what is above ``cut``, which leaves ``first`` to ``end`` - 1 are not."""

    mark: int
    cut: float
    first: int
    end: int


class Leaves:
    """Trees as `BoostedHead` has them. ``nodes`` are their leaves in order, one tree after the other: what `of` says
    are places in it.
    """

    def __init__(self, roots: Integers, mark: Integers, cut: Floats, child: Integers) -> None:
        marks, cuts, children = mark.tolist(), cut.tolist(), child.tolist()
        trees = [_tree(root, marks, cuts, children) for root in roots.tolist()]
        self.nodes = np.array([node for _, leaves in trees for node in leaves], np.intp)
        counts = [len(leaves) for _, leaves in trees]
        self._first = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.intp) if trees else self.nodes
        depth = max((len(tests) for tests, _ in trees), default=0)
        bits = max(counts, default=1)
        kind = next((k for k in (np.uint8, np.uint16, np.uint32) if bits <= np.iinfo(k).bits), np.uint64)
        self._marks = np.zeros((depth, len(trees)), np.intp)
        self._cuts = np.full((depth, len(trees)), np.inf, np.float32)
        self._left: npt.NDArray[Any] = np.zeros((-(-bits // _BITS), depth, len(trees)), kind)
        for tree, (tests, _) in enumerate(trees):
            for place, test in enumerate(tests):
                self._marks[place, tree] = test.mark
                self._cuts[place, tree] = test.cut
                left = (1 << test.end) - (1 << test.first)
                for word in range(len(self._left)):
                    self._left[word, place, tree] = left >> (_BITS * word) & (1 << _BITS) - 1

    def of(self, x: Floats) -> Integers:
        """For each tree the place in ``nodes`` of the leaf that row ``x`` falls into."""
        right = x.astype(np.float32).take(self._marks) > self._cuts
        found: Integers = self._first
        for word, left in enumerate(self._left):
            ruled_out = np.bitwise_or.reduce(np.where(right, left, 0))
            ones = np.bitwise_count(ruled_out & ~(ruled_out + 1))  # at the end, before the first zero
            found = (
                found + ones
                if not word
                else np.where(found == self._first + _BITS * word, found + ones, found)
            )
        return found


def _tree(
    root: int, mark: list[int], cut: list[float], child: list[list[int]]
) -> tuple[list[_Test], list[int]]:
    """The tests of a tree and its leaves from left to right; raises ``ValueError`` if it is none."""
    tests: list[_Test] = []
    leaves: list[int] = []
    open_: list[tuple[int, int | None]] = [(root, None)]
    """Nodes to visit; with a number: the left side of this one is done, its leaves began there."""
    seen = 0
    while open_:
        node, first = open_.pop()
        left, right = child[node]
        if first is not None:
            tests.append(_Test(mark[node], cut[node], first, len(leaves)))
        elif left == right == node:
            leaves.append(node)
        else:
            seen += 1
            if seen > len(child):
                raise ValueError("the saved trees go in a circle")
            open_ += [(right, None), (node, len(leaves)), (left, None)]
    return tests, leaves
