"""Past requests and the answers to them as vectors, with how good each model's answer was."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Vector = Sequence[float] | Array


class Bank:
    """A ring of ``capacity`` past requests; the oldest is overwritten. Vectors have unit length."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._next = 0
        self.models: list[str] = []
        self.queries: Array = np.zeros((0, 0), np.float32)
        self.quality: Array = np.full((0, 0), np.nan, np.float32)
        """(requests, models); NaN where a model was not asked or nobody judged."""
        self.replies: dict[str, Array] = {}
        """For each model (requests, dimensions); zeros where its answer has no vector."""

    def add(self, query: Vector, quality: Mapping[str, float], replies: Mapping[str, Vector]) -> None:
        """Take in one judged request; a vector of another dimension than the first is passed over."""
        vector = unit(query)
        if not self.queries.size:
            self.queries = np.zeros((16, vector.size), np.float32)
            self.quality = np.full((16, len(self.models)), np.nan, np.float32)
        if vector.size != self.queries.shape[1]:
            return
        for model in quality:
            if model not in self.models:
                self.models.append(model)
                self.quality = np.pad(self.quality, ((0, 0), (0, 1)), constant_values=np.nan)
        if self._next >= len(self.queries):
            self._grow()
        row = self._next
        self.queries[row] = vector
        self.quality[row] = np.nan
        for model, value in quality.items():
            self.quality[row, self.models.index(model)] = value
        for kept in self.replies.values():
            kept[row] = 0.0
        for model, reply in replies.items():
            if len(reply) == vector.size:
                self._replies_of(model)[row] = unit(reply)
        self._next = (row + 1) % self.capacity
        self.size = max(self.size, row + 1)

    def _grow(self) -> None:
        more = min(self.capacity, 2 * len(self.queries)) - len(self.queries)
        self.queries = np.pad(self.queries, ((0, more), (0, 0)))
        self.quality = np.pad(self.quality, ((0, more), (0, 0)), constant_values=np.nan)
        self.replies = {model: np.pad(kept, ((0, more), (0, 0))) for model, kept in self.replies.items()}

    def _replies_of(self, model: str) -> Array:
        if model not in self.replies:
            self.replies[model] = np.zeros(self.queries.shape, np.float16)
        return self.replies[model]

    def similar(self, query: Vector) -> Array:
        """The cosine of each past request with ``query``; empty when nothing can be compared."""
        vector = unit(query)
        if not self.size or vector.size != self.queries.shape[1]:
            return np.zeros(0, np.float32)
        return self.queries[: self.size] @ vector

    def similar_replies(self, model: str, reply: Vector) -> Array | None:
        """The cosine of each past answer of ``model`` with ``reply``, NaN where there is none; None without any."""
        kept = self.replies.get(model)
        vector = unit(reply)
        if kept is None or vector.size != kept.shape[1]:
            return None
        rows = kept[: self.size].astype(np.float32)
        there = rows.any(axis=1)
        return np.where(there, rows @ vector, np.nan) if there.any() else None

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        n = self.size
        return {
            "next": self._next,
            "models": list(self.models),
            "shape": [n, int(self.queries.shape[1])],
            "queries": pack(self.queries[:n]),
            "quality": pack(self.quality[:n]),
            "replies": {model: pack(kept[:n]) for model, kept in self.replies.items()},
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        n, dimensions = saved["shape"]
        self.models = list(saved["models"])
        self.size, self._next = n, saved["next"]
        self.queries = unpack(saved["queries"], np.float32).reshape(n, dimensions)
        self.quality = unpack(saved["quality"], np.float32).reshape(n, len(self.models))
        self.replies = {
            model: unpack(kept, np.float16).reshape(n, dimensions) for model, kept in saved["replies"].items()
        }


def unit(vector: Vector) -> Array:
    """``vector`` at length one (zeros stay zeros)."""
    found = np.asarray(vector, np.float32)
    length = float(np.sqrt(found @ found))
    return found / length if length > 0.0 else found


def pack(array: Array) -> str:
    """The bytes of ``array`` as text."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def unpack(text: str, kind: Any) -> Array:
    """What `pack` wrote, flat."""
    return np.frombuffer(base64.b64decode(text), kind).copy()
