"""The contract of what stays in a cache of bounded size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence

from apportion.core.method import Method

Key = Hashable
"""Strings or integers: what JSON can carry."""


class Eviction(Method):
    """Decides which entries a cache of ``capacity`` (in bytes, or in entries of size 1) keeps.

    The cache calls `hit` for a key it holds, `insert` for one that it has just made (after a miss), and
    `remove` for one that it drops for its own reasons (expired, deleted). Times are passed in; memory, ghosts and
    sketches included, is bounded by a stated multiple of the number of entries that fit.
    """

    capacity: float

    @abstractmethod
    def hit(self, key: Key, now: float) -> None:
        """``key``, which is held, was asked for. An unknown key is ignored."""

    @abstractmethod
    def insert(self, key: Key, size: float, now: float, cost: float = 1.0) -> Sequence[Key]:
        """Offer an entry that is not held: the keys to drop, ``key`` itself if it is not admitted.

        ``cost`` is what it costs to make again, in any unit. An entry larger than the capacity is not
        admitted. A key that is already held has its size and cost replaced.
        """

    @abstractmethod
    def remove(self, key: Key) -> None:
        """``key`` is gone. An unknown key is ignored."""

    @abstractmethod
    def __contains__(self, key: object) -> bool:
        """Whether ``key`` is held."""

    @abstractmethod
    def __len__(self) -> int:
        """Entries held."""

    @property
    @abstractmethod
    def size(self) -> float:
        """The sizes of all that is held together."""
