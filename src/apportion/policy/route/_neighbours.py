"""The nearest past requests of each arm, in a ring of bounded length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.policy.route._arms import packed, unpacked

Array = NDArray[np.float64]


class Neighbours:
    """Remembers the last ``memory`` observations (arm, vector, number) of all arms together."""

    def __init__(self, dimensions: int, k: int, memory: int) -> None:
        self.dimensions, self.k, self.memory = dimensions, k, memory
        self.points: Array = np.zeros((0, dimensions))
        self.half: Array = np.zeros(0)
        """Half the squared length of each point, so that a distance is one product."""
        self.values: Array = np.zeros(0)
        self.owners = np.zeros(0, dtype=np.int64)
        self.codes: dict[str, int] = {}
        """Arm to its number in ``owners``; an arm leaves with its last observation."""
        self.counts: dict[str, int] = {}
        self.next = 0
        self.fresh = 0

    def estimates(self, arms: Sequence[str], x: Array, prior: Sequence[float]) -> Array:
        """For each arm the mean of the ``k`` observations nearest to ``x``, with the prior as one more.

        They are sought among the nearest of all arms, some times ``k``: an arm with fewer there has fewer.
        """
        found = np.array(prior, dtype=float)
        if not len(self.values):
            return found
        away = self.half - self.points @ x
        near = min(len(away), max(64, self.k * max(8, 2 * len(arms))))
        order = np.argpartition(away, near - 1)[:near] if near < len(away) else np.arange(near)
        order = order[np.argsort(away[order], kind="stable")]
        owners, values = self.owners[order], self.values[order]
        for place, arm in enumerate(arms):
            code = self.codes.get(arm)
            if code is not None:
                mine = values[owners == code][: self.k]
                found[place] = (found[place] + mine.sum()) / (1 + len(mine))
        return found

    def learn(self, arm: str, x: Array, value: float) -> int:
        """Remember one observation, for the oldest one when there is no room; its place."""
        if self.next >= len(self.values):
            self._grow()
        place = self.next
        if self.owners[place] >= 0:
            self._leave(int(self.owners[place]))
        code = self.codes.get(arm)
        if code is None:
            code = self.codes[arm] = self.fresh
            self.fresh += 1
        self.counts[arm] = self.counts.get(arm, 0) + 1
        self.points[place], self.half[place] = x, 0.5 * float(x @ x)
        self.values[place], self.owners[place] = value, code
        self.next = (place + 1) % self.memory
        return place

    def correct(self, arm: str, place: int, value: float) -> None:
        """Put another number into the observation at ``place``, if it is still that arm's."""
        if place < len(self.owners) and self.owners[place] == self.codes.get(arm):
            self.values[place] = value

    def saved(self) -> dict[str, Any]:
        """What was learned, for JSON."""
        return {
            "points": packed(self.points),
            "values": packed(self.values),
            "owners": self.owners.tolist(),
            "codes": self.codes,
            "counts": self.counts,
            "next": self.next,
            "fresh": self.fresh,
        }

    def restored(self, saved: dict[str, Any]) -> Neighbours:
        """The same with what was ``saved``."""
        other = Neighbours(self.dimensions, self.k, self.memory)
        other.points = unpacked(saved["points"]).reshape(-1, self.dimensions)
        other.values = unpacked(saved["values"])
        other.owners = np.array(saved["owners"], dtype=np.int64)
        filled = other.owners >= 0
        other.half = np.where(filled, [0.5 * float(x @ x) for x in other.points] or 0.0, np.inf)
        other.codes, other.counts = dict(saved["codes"]), dict(saved["counts"])
        other.next, other.fresh = saved["next"], saved["fresh"]
        return other

    def _leave(self, code: int) -> None:
        arm = next(arm for arm, one in self.codes.items() if one == code)
        self.counts[arm] -= 1
        if not self.counts[arm]:
            del self.counts[arm], self.codes[arm]

    def _grow(self) -> None:
        """Room for more; places that are not filled are infinitely far and nobody's."""
        more = min(max(64, len(self.values)), self.memory - len(self.values))
        self.points = np.concatenate((self.points, np.zeros((more, self.dimensions))))
        self.half = np.concatenate((self.half, np.full(more, np.inf)))
        self.values = np.concatenate((self.values, np.zeros(more)))
        self.owners = np.concatenate((self.owners, np.full(more, -1)))
