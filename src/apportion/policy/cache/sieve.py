"""Passes a hand over a queue and drops the first entry that was not asked for since the hand last came by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint
from apportion.policy.cache._base import CAPACITY, Held


@final
class Sieve(Held):
    """Passes a hand over a queue and drops the first entry that was not asked for since the hand last came by.

    Entries stay in the order of their arrival; a hit only sets a mark. The hand moves from the oldest to the
    youngest: a marked entry loses its mark and stays where it is, an unmarked one is dropped, and the hand
    waits there. So new entries are judged quickly while proven ones are left alone, which sifts out what is
    asked for once [1]_.

        at the hand:  marked -> unmark, next;   unmarked -> drop;   past the youngest -> back to the oldest

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.

    Complexity
    ----------
    O(1) per hit; O(1) amortised per entry dropped (every step over a marked entry uses up a hit); memory is
    that of the entries held, no ghosts.

    Notes
    -----
    The queue is held in two halves, what the hand has passed and what it has not; entries that stay move from
    one to the other, which is the paper's algorithm without a list of links. It is not proof against scans
    longer than the cache.

    See Also
    --------
    cache/lru : the baseline.
    cache/s3_fifo : also resists scans.

    References
    ----------
    .. [1] Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi (2024). "SIEVE is Simpler than LRU: an
       Efficient Turn-Key Eviction Algorithm for Web Caches." NSDI 24.
       https://www.usenix.org/conference/nsdi24/presentation/zhang-yazhuo

    Examples
    --------
    >>> cache = Sieve(capacity=3)
    >>> for key in "abc":
    ...     _ = cache.insert(key, 1, now=0.0)
    >>> cache.hit("a", now=1.0)
    >>> cache.insert("d", 1, now=2.0), cache.insert("e", 1, now=3.0), "a" in cache
    (['b'], ['c'], True)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = CAPACITY

    def __init__(self, *, capacity: float) -> None:
        self.capacity = capacity
        self.start()

    def reset(self) -> None:
        """Hold nothing."""
        super().reset()
        self._ahead: OrderedDict[Key, float] = OrderedDict()
        self._passed: OrderedDict[Key, float] = OrderedDict()
        self._marked: set[Key] = set()

    def hit(self, key: Key, now: float) -> None:
        """``key`` may stay when the hand comes by."""
        if key in self._ahead or key in self._passed:
            self._marked.add(key)

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        victims = []
        while self._size + size > self.capacity and len(self):
            victims.append(self._drop())
        self._ahead[key] = size
        self._size += size
        return victims

    def _drop(self) -> Key:
        """Move the hand to the next entry that goes."""
        marked = self._marked
        while True:
            key, size = self._ahead.popitem(last=False)
            stays = key in marked
            if stays:
                marked.remove(key)
                self._passed[key] = size
            if not self._ahead:
                self._ahead, self._passed = self._passed, self._ahead
            if not stays:
                self._size -= size
                return key

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        half = self._ahead if key in self._ahead else self._passed
        self._size -= half.pop(key, 0.0)
        self._marked.discard(key)
        if not self._ahead:
            self._ahead, self._passed = self._passed, self._ahead

    def __contains__(self, key: object) -> bool:
        return key in self._ahead or key in self._passed

    def __len__(self) -> int:
        return len(self._ahead) + len(self._passed)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A small one."""
        yield {"capacity": 5}
