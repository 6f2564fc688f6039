"""Drops what was not asked for the longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint
from apportion.policy.cache._base import CAPACITY, Held


@final
class LRU(Held):
    """Drops what was not asked for the longest.

    The usual baseline: it assumes that what was wanted lately is wanted again soon. With k entries it makes
    at most k times the misses of the best possible, and no rule without randomness or foresight makes fewer
    in the worst case [1]_.

        drop  argmin over held x of  last request of x

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.

    Complexity
    ----------
    O(1) per request and per entry dropped; memory is that of the entries held.

    Notes
    -----
    One pass over more keys than fit empties it (a scan), and a loop over one key too many never hits.

    See Also
    --------
    cache/s3_fifo : keeps what is asked for once from pushing out the rest.

    References
    ----------
    .. [1] D. Sleator, R. Tarjan (1985). "Amortized efficiency of list update and paging rules."
       Communications of the ACM 28(2), 202-208. doi:10.1145/2786.2793

    Examples
    --------
    >>> cache = LRU(capacity=2)
    >>> cache.insert("a", 1, now=0.0), cache.insert("b", 1, now=1.0)
    ([], [])
    >>> cache.hit("a", now=2.0)
    >>> cache.insert("c", 1, now=3.0)
    ['b']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = CAPACITY

    def __init__(self, *, capacity: float) -> None:
        self.capacity = capacity
        self.start()

    def reset(self) -> None:
        """Hold nothing."""
        super().reset()
        self._sizes: OrderedDict[Key, float] = OrderedDict()

    def hit(self, key: Key, now: float) -> None:
        """``key`` is the youngest now."""
        if key in self._sizes:
            self._sizes.move_to_end(key)

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        sizes, victims = self._sizes, []
        while sizes and self._size + size > self.capacity:
            victim, freed = sizes.popitem(last=False)
            self._size -= freed
            victims.append(victim)
        sizes[key] = size
        self._size += size
        return victims

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        self._size -= self._sizes.pop(key, 0.0)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A small one."""
        yield {"capacity": 5}
