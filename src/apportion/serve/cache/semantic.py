"""Questions near each other in meaning: vectors in memory, apart for every frame and category.

A frame is a digest of all that must be equal, the tenant first (`identity`), so a search cannot see what another
tenant, model or system prompt has: it is in another index. Small ones are compared one by one, large ones by HNSW
(`usearch`). Only vectors are here; the answers are in the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, np.dtype[np.float32]]

SMALL: Final = 512
"""Vectors that are compared one by one: some 50 microseconds."""
_CONNECTIVITY: Final = 16
_EXPANSION_ADD: Final = 96
_EXPANSION_SEARCH: Final = 48

Place = tuple[str, str]
"""Frame and category."""


def packed(vector: Sequence[float]) -> bytes:
    """A vector of unit length as float16; empty if it has none."""
    import numpy as np

    values = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(values))
    if not 0.0 < length < float("inf"):
        return b""
    return (values / length).astype(np.float16).tobytes()


class Near:
    """All indices of one worker."""

    def __init__(self) -> None:
        self._indices: dict[Place, _Few | _Many] = {}

    def __len__(self) -> int:
        return sum(map(len, self._indices.values()))

    def add(self, place: Place, key: str, vector: bytes) -> None:
        """Put a vector of `packed` under ``key``; one of another length than the others there is left out."""
        index = self._indices.get(place)
        if index is None:
            index = self._indices[place] = _Few(len(vector) // 2)
        if len(vector) != 2 * index.dimensions or not vector:
            return
        index.remove(key)
        if isinstance(index, _Few) and len(index) >= SMALL and _usearch() is not None:
            index = self._indices[place] = _Many(index)
        index.add(key, _unpacked(vector))

    def remove(self, place: Place, key: str) -> None:
        """Forget a key; unknown ones are ignored."""
        index = self._indices.get(place)
        if index is not None:
            index.remove(key)
            if not len(index):
                del self._indices[place]

    def search(self, place: Place, vector: bytes, threshold: float, most: int = 4) -> list[tuple[float, str]]:
        """The nearest keys with their cosine similarity, at least ``threshold``, nearest first."""
        index = self._indices.get(place)
        if index is None or len(vector) != 2 * index.dimensions:
            return []
        return [found for found in index.search(_unpacked(vector), most) if found[0] >= threshold]


def _unpacked(vector: bytes) -> Vectors:
    import numpy as np

    return np.frombuffer(vector, dtype=np.float16).astype(np.float32)


def _usearch() -> Any:
    # Loaded after usearch, onnxruntime crashes the process (seen with 1.31 and 2.26); before it, all is well.
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401
    try:
        from usearch import index
    except ImportError:
        return None
    return index


class _Few:
    """Compared one by one."""

    def __init__(self, dimensions: int) -> None:
        import numpy as np

        self.dimensions = dimensions
        self.keys: list[str] = []
        self._rows: dict[str, int] = {}
        self.vectors: Vectors = np.zeros((8, dimensions), np.float32)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, vector: Vectors) -> None:
        import numpy as np

        row = len(self.keys)
        if row == len(self.vectors):
            self.vectors = np.concatenate((self.vectors, np.zeros_like(self.vectors)))
        self.vectors[row] = vector
        self._rows[key] = row
        self.keys.append(key)

    def remove(self, key: str) -> None:
        row = self._rows.pop(key, None)
        if row is None:
            return
        last = self.keys.pop()
        if last != key:
            self.keys[row] = last
            self._rows[last] = row
            self.vectors[row] = self.vectors[len(self.keys)]

    def search(self, vector: Vectors, most: int) -> list[tuple[float, str]]:
        near = self.vectors[: len(self.keys)] @ vector
        order = near.argsort()[::-1][:most]
        return [(float(near[row]), self.keys[row]) for row in order]


class _Many:
    """A graph of near neighbours (HNSW)."""

    def __init__(self, few: _Few) -> None:
        self.dimensions = few.dimensions
        self._index = _usearch().Index(
            ndim=few.dimensions,
            metric="cos",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
            expansion_search=_EXPANSION_SEARCH,
        )
        self._keys: dict[int, str] = {}
        self._labels: dict[str, int] = {}
        self._next = 0
        for row, key in enumerate(few.keys):
            self.add(key, few.vectors[row])

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, vector: Vectors) -> None:
        label, self._next = self._next, self._next + 1
        self._index.add(label, vector, threads=1)
        self._keys[label] = key
        self._labels[key] = label

    def remove(self, key: str) -> None:
        label = self._labels.pop(key, None)
        if label is not None:
            self._index.remove(label)
            del self._keys[label]

    def search(self, vector: Vectors, most: int) -> list[tuple[float, str]]:
        found = self._index.search(vector, most, threads=1)
        pairs = zip(found.distances.tolist(), found.keys.tolist(), strict=True)
        return [(1.0 - distance, self._keys[label]) for distance, label in pairs if label in self._keys]
