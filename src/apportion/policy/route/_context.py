"""A request as a short vector of numbers, whatever features it came with."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core.features import Features

Array = NDArray[np.float64]


class Context:
    """Turns features into a vector of ``dimensions`` numbers: a 1, then the features.

    ``uses`` is "lexical", "vector" or "both". Counts are put on a logarithmic scale, then centred and scaled
    by what was seen so far (`learn`). Where there are more features than places, seeded random signs project
    them (they keep inner products on average); where there are fewer, or none, the rest is 0.
    """

    def __init__(self, dimensions: int, uses: str, seed: int) -> None:
        self.dimensions, self.uses, self.seed = dimensions, uses, seed
        self.seen = 0
        self.mean: Array = np.zeros(0)
        self.square: Array = np.zeros(0)
        self._scale: Array = np.zeros(0)
        self._signs: dict[int, Array] = {}

    def of(self, features: Features | None) -> Array:
        """The vector of one request, of shape (``dimensions``,)."""
        x = np.zeros(self.dimensions)
        x[0] = 1.0
        if features is None:
            return x
        parts = []
        if self.uses != "vector" and features.lexical:
            parts.append(self._scaled(features.lexical))
        if self.uses != "lexical" and features.vector is not None:
            parts.append(np.asarray(features.vector, dtype=float))
        if not parts:
            return x
        z = parts[0] if len(parts) == 1 else np.concatenate(parts)
        places = self.dimensions - 1
        if len(z) > places:
            z = z @ self._projection(len(z))
        x[1 : 1 + len(z)] = z
        return x

    def learn(self, features: Features | None) -> None:
        """Take the counts of one request into their mean and spread."""
        if features is None or self.uses == "vector" or not features.lexical:
            return
        z = _logarithmic(features.lexical)
        if len(z) != len(self.mean):
            self.seen, self.mean, self.square = 0, np.zeros(len(z)), np.zeros(len(z))
        self.seen += 1
        away = z - self.mean
        self.mean = self.mean + away / self.seen
        self.square = self.square + away * (z - self.mean)
        self._rescale()

    def saved(self) -> dict[str, Any]:
        """What was learned, for JSON."""
        return {"seen": self.seen, "mean": self.mean.tolist(), "square": self.square.tolist()}

    def restored(self, saved: dict[str, Any]) -> Context:
        """A context like this one that has learned what was ``saved``."""
        other = Context(self.dimensions, self.uses, self.seed)
        other.seen = saved["seen"]
        other.mean, other.square = np.array(saved["mean"], float), np.array(saved["square"], float)
        other._rescale()
        return other

    def _scaled(self, lexical: tuple[float, ...]) -> Array:
        z = _logarithmic(lexical)
        if len(z) == len(self.mean) and self.seen > 1:
            z = (z - self.mean) * self._scale
        result: Array = np.minimum(np.maximum(z, -3.0), 3.0) / math.sqrt(len(z))
        return result

    def _rescale(self) -> None:
        """One over the spread of each count; 1 for one that never changed."""
        spread = np.sqrt(self.square / max(self.seen, 1))
        self._scale = 1.0 / np.where(spread > 1e-9, spread, 1.0)

    def _projection(self, n: int) -> Array:
        """Random signs of shape (n, places), scaled so that lengths are kept on average."""
        found = self._signs.get(n)
        if found is None:
            places = self.dimensions - 1
            bits = Random(self.seed).getrandbits(n * places)
            raw = np.frombuffer(bits.to_bytes((n * places + 7) // 8, "little"), dtype=np.uint8)
            signs = np.unpackbits(raw)[: n * places].astype(float) * 2.0 - 1.0
            found = signs.reshape(n, places) / math.sqrt(max(places, 1))
            if len(self._signs) >= 4:
                self._signs.clear()
            self._signs[n] = found
        return found


def _logarithmic(lexical: tuple[float, ...]) -> Array:
    z = np.array(lexical, dtype=float)
    if not math.isfinite(z.sum()):
        z = np.nan_to_num(z, posinf=1e9, neginf=-1e9)
    result: Array = np.copysign(np.log1p(np.abs(z)), z)
    return result
