"""Tries new entries in a small queue and keeps those asked for again in a large one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint, Interval
from apportion.policy.cache._base import CAPACITY, Held


@final
class S3FIFO(Held):
    """Tries new entries in a small queue and keeps those asked for again in a large one.

    Most keys are asked for once before they are dropped, so they should not stay long. New entries enter a small
    queue; the oldest of it moves on to the main queue when it was asked for often enough, else it is
    dropped and remembered as a ghost. A ghost that is asked for again enters the main queue at once. The main
    queue gives an entry that was hit another round, up to three for three hits [1]_.

        small is over its share ? from small: hits >= promote_after -> main, else drop and remember
                                : from main:  hits > 0 -> hits - 1, to the end, else drop

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    small
        The small queue's share of the capacity; the paper's is 0.1.
    promote_after
        Hits in the small queue that take an entry to the main queue; the paper's is 2.

    Complexity
    ----------
    O(1) per hit, O(1) amortised per entry dropped; memory is that of the entries held and of ghosts whose
    sizes are together at most (1 - small) of the capacity.

    Notes
    -----
    Sizes count in both queues and among the ghosts, as in libCacheSim, the paper's simulator.

    See Also
    --------
    cache/lru : the baseline.
    cache/sieve : one queue, no ghosts.

    References
    ----------
    .. [1] J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi (2023). "FIFO queues are all you need for cache
       eviction." SOSP 23, 130-149. doi:10.1145/3600006.3613147

    Examples
    --------
    >>> cache = S3FIFO(capacity=4, small=0.5)
    >>> for key in "abcd":
    ...     _ = cache.insert(key, 1, now=0.0)
    >>> cache.hit("a", now=1.0), cache.hit("a", now=2.0)
    (None, None)
    >>> cache.insert("e", 1, now=3.0), "a" in cache
    (['b'], True)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        **CAPACITY,
        "small": Interval(float, 0.0, 1.0, closed="neither"),
        "promote_after": Interval(int, 1, 3),
    }

    def __init__(self, *, capacity: float, small: float = 0.1, promote_after: int = 2) -> None:
        self.capacity = capacity
        self.small = small
        self.promote_after = promote_after
        self.start()

    def reset(self) -> None:
        """Hold and remember nothing."""
        super().reset()
        self._tried: OrderedDict[Key, float] = OrderedDict()
        self._main: OrderedDict[Key, float] = OrderedDict()
        self._ghosts: OrderedDict[Key, float] = OrderedDict()
        self._hits: dict[Key, int] = {}
        self._tried_size = self._ghosts_size = 0.0

    def hit(self, key: Key, now: float) -> None:
        """One more hit of ``key``, of three that count."""
        hits = self._hits.get(key)
        if hits is not None and hits < 3:
            self._hits[key] = hits + 1

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        known = self._ghosts.pop(key, None)
        victims: list[Key] = []
        while self._hits and self._size + size > self.capacity:
            if self._tried and (self._tried_size >= self.small * self.capacity or not self._main):
                self._from_small(victims)
            else:
                self._from_main(victims)
        if known is not None:
            self._ghosts_size -= known
            self._main[key] = size
        else:
            self._tried[key] = size
            self._tried_size += size
        self._hits[key] = 0
        self._size += size
        return victims

    def _from_small(self, victims: list[Key]) -> None:
        key, size = self._tried.popitem(last=False)
        self._tried_size -= size
        if self._hits[key] >= self.promote_after:
            self._hits[key] = 0
            self._main[key] = size
            return
        del self._hits[key]
        self._size -= size
        victims.append(key)
        ghosts = self._ghosts
        ghosts[key] = size
        self._ghosts_size += size
        while self._ghosts_size > (1 - self.small) * self.capacity and ghosts:
            self._ghosts_size -= ghosts.popitem(last=False)[1]

    def _from_main(self, victims: list[Key]) -> None:
        key, size = self._main.popitem(last=False)
        hits = self._hits[key]
        if hits:
            self._hits[key] = hits - 1
            self._main[key] = size
            return
        del self._hits[key]
        self._size -= size
        victims.append(key)

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        if self._hits.pop(key, None) is None:
            return
        if key in self._tried:
            size = self._tried.pop(key)
            self._tried_size -= size
        else:
            size = self._main.pop(key)
        self._size -= size

    def __contains__(self, key: object) -> bool:
        return key in self._hits

    def __len__(self) -> int:
        return len(self._hits)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A larger trial, an easier one."""
        yield {"capacity": 5, "small": 0.3, "promote_after": 1}
        yield {"capacity": 20.5}
