"""Drops what was asked for the fewest times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint, Kind
from apportion.policy.cache._base import CAPACITY, Held


@final
class LFU(Held):
    """Drops what was asked for the fewest times.

    Entries lie in buckets by how often they were asked for, and the buckets in a ring by rising count, so that
    the least bucket and the next higher one are always at hand [1]_. Within a bucket the one that lies there
    the longest goes first. With ``ageing``, an entry enters with the count of the one dropped last, so that the
    favourites of yesterday do not stay for ever (LFU with dynamic ageing [2]_).

        count(x) = floor + requests of x since it entered;   drop  argmin count;   floor = its count if ageing

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    ageing
        Whether old counts lose their weight; without, it is the plain baseline.

    Complexity
    ----------
    O(1) per request and per entry dropped; memory is that of the entries held.

    Notes
    -----
    Counts of what was dropped are forgotten. Without ageing, counts of the past may hold the cache for ever.

    See Also
    --------
    cache/w_tinylfu : remembers counts of what is not held, and forgets them with time.

    References
    ----------
    .. [1] K. Shah, A. Mitra, D. Matani (2010). "An O(1) algorithm for implementing the LFU cache eviction
       scheme." arXiv:2110.11602
    .. [2] M. Arlitt, L. Cherkasova, J. Dilley, R. Friedrich, T. Jin (2000). "Evaluating Content Management
       Techniques for Web Proxy Caches." ACM SIGMETRICS Performance Evaluation Review 27(4).
       doi:10.1145/346000.346003

    Examples
    --------
    >>> cache = LFU(capacity=2)
    >>> for key in "ab":
    ...     _ = cache.insert(key, 1, now=0.0)
    >>> cache.hit("a", now=1.0)
    >>> cache.insert("c", 1, now=2.0), cache.insert("d", 1, now=3.0)
    (['b'], ['c'])
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {**CAPACITY, "ageing": Kind(bool)}

    def __init__(self, *, capacity: float, ageing: bool = False) -> None:
        self.capacity = capacity
        self.ageing = ageing
        self.start()

    def reset(self) -> None:
        """Hold nothing, know no counts."""
        super().reset()
        self._counts: dict[Key, int] = {}
        self._buckets: dict[int, OrderedDict[Key, float]] = {}
        self._above: dict[int, int] = {0: 0}
        self._below: dict[int, int] = {0: 0}
        self._floor = 0

    def hit(self, key: Key, now: float) -> None:
        """One more request of ``key``."""
        count = self._counts.get(key)
        if count is None:
            return
        bucket = self._buckets[count]
        self._put(key, bucket.pop(key), count + 1, count)
        if not bucket:
            self._unlink(count)

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        victims = []
        while self._counts and self._size + size > self.capacity:
            least = self._above[0]
            bucket = self._buckets[least]
            victim, freed = bucket.popitem(last=False)
            del self._counts[victim]
            self._size -= freed
            victims.append(victim)
            if self.ageing:
                self._floor = least
            if not bucket:
                self._unlink(least)
        floor = self._floor
        self._put(key, size, floor + 1, floor if floor in self._buckets else 0)
        self._size += size
        return victims

    def _put(self, key: Key, size: float, count: int, below: int) -> None:
        """Into the bucket ``count``, which comes next above the bucket ``below`` (0: above none)."""
        bucket = self._buckets.get(count)
        if bucket is None:
            above = self._above[below]
            self._above[below] = self._below[above] = count
            self._above[count], self._below[count] = above, below
            bucket = self._buckets[count] = OrderedDict()
        bucket[key] = size
        self._counts[key] = count

    def _unlink(self, count: int) -> None:
        """Take the empty bucket ``count`` out of the ring."""
        del self._buckets[count]
        above, below = self._above.pop(count), self._below.pop(count)
        self._above[below], self._below[above] = above, below

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        count = self._counts.pop(key, None)
        if count is not None:
            bucket = self._buckets[count]
            self._size -= bucket.pop(key)
            if not bucket:
                self._unlink(count)

    def __contains__(self, key: object) -> bool:
        return key in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """With ageing."""
        yield {"capacity": 5}
        yield {"capacity": 7.5, "ageing": True}
