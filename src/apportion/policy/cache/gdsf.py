"""Drops what saves the least per byte: requests times cost over size, with old merits fading."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint
from apportion.policy.cache._base import CAPACITY, Held


@final
class GDSF(Held):
    """Drops what saves the least per byte: requests times cost over size, with old merits fading.

    A byte of cache is a resource with a price. Every entry is worth what its requests would have cost again, per
    byte it takes; the merit of the last one dropped is the price of a byte now, and an entry starts (and
    restarts at every hit) from that price. So the cache keeps what is worth more per byte than the going
    price, and what is no longer asked for is overtaken by it. It is greedy dual size [1]_ with frequency [2]_.

        merit(x) = price + requests(x) * cost(x) / size(x);   drop  argmin merit;   price = its merit

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.

    Complexity
    ----------
    O(1) per hit; O(log n) amortised per entry that enters or is dropped, n entries held; memory is that of the
    entries held and a heap of at most 2 n + 64 items.

    Notes
    -----
    ``cost`` 1 for all maximises the share of requests that hit, ``cost`` equal to size the share of bytes,
    ``cost`` in dollars the dollars saved. A cost that is not a number above zero counts as zero.
    A hit only updates the entry; the heap learns of it when it comes up.

    See Also
    --------
    cache/lru : what it is when sizes and costs are equal and every entry is asked for once.

    References
    ----------
    .. [1] P. Cao, S. Irani (1997). "Cost-Aware WWW Proxy Caching Algorithms." USENIX Symposium on Internet
       Technologies and Systems.
       https://www.usenix.org/conference/usits-97/cost-aware-www-proxy-caching-algorithms
    .. [2] L. Cherkasova (1998). "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
       Policy." HP Laboratories HPL-98-69. https://www.hpl.hp.com/techreports/98/HPL-98-69R1.html

    Examples
    --------
    >>> cache = GDSF(capacity=10)
    >>> cache.insert("large", 8, now=0.0, cost=0.04), cache.insert("small", 2, now=1.0, cost=0.03)
    ([], [])
    >>> cache.insert("new", 4, now=2.0, cost=0.04), round(cache.price, 6)
    (['large'], 0.005)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = CAPACITY

    def __init__(self, *, capacity: float) -> None:
        self.capacity = capacity
        self.start()

    def reset(self) -> None:
        """Hold nothing; a byte is free."""
        super().reset()
        self._entries: dict[Key, list[float]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._turn = 0
        self._price = 0.0

    @property
    def price(self) -> float:
        """The merit per byte of what was dropped last: what a byte of this cache is worth now."""
        return self._price

    def hit(self, key: Key, now: float) -> None:
        """``key`` has merited its place once more."""
        entry = self._entries.get(key)
        if entry is not None:
            entry[3] += 1.0
            entry[0] = self._price + entry[3] * entry[2]

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        victims: list[Key] = []
        while self._entries and self._size + size > self.capacity:
            victims.append(self._drop())
        density = cost / size if 0.0 < cost < float("inf") else 0.0
        self._turn += 1
        self._entries[key] = [self._price + density, size, density, 1.0, self._turn]
        self._size += size
        heapq.heappush(self._heap, (self._price + density, self._turn, key))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(entry[0], int(entry[4]), key) for key, entry in self._entries.items()]
            heapq.heapify(self._heap)
        return victims

    def _drop(self) -> Key:
        """The entry of least merit; merits in the heap are old ones, at most the true ones."""
        heap, entries = self._heap, self._entries
        while True:
            merit, turn, key = heap[0]
            entry = entries.get(key)
            if entry is None or entry[4] != turn:
                heapq.heappop(heap)
            elif entry[0] > merit:
                heapq.heapreplace(heap, (entry[0], turn, key))
            else:
                heapq.heappop(heap)
                del entries[key]
                self._size -= entry[1]
                self._price = merit
                return key

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry[1]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A small one."""
        yield {"capacity": 5}
