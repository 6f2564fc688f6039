"""Marks what is asked for in a phase, and drops first what one bit says will not be asked for in the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint, Interval
from apportion.policy.cache._base import CAPACITY, Held
from apportion.policy.cache._marking import Pool
from apportion.policy.cache._reuse import NextPhase


@final
class MarkAndPredict(Held):
    """Marks what is asked for in a phase, and drops first what one bit says will not be asked for in the next.

    A phase lasts until as many different entries were asked for as fit. Entries asked for in this phase are marked
    and stay. Of the others, those with bit 1 (not asked for in this phase, said the last request before it) go
    first, drawn at random; then any of the others, drawn at random. With right bits it misses at most twice as
    often as the best possible [1]_. Wrong ones are caught: entries that were dropped for their bit and come back
    within the phase are counted, and beyond (1 + H_k) for each entry that is new in the phase, it draws as Marker does
    until the phase ends, so that it stays within O(H_k) of the best possible whatever the bits say.

        drop  random x without mark, bit(x) = 1, while regrets <= (1 + H_k) new;   else random x without mark

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(1) amortised per request and per entry dropped; memory is that of the entries held, the keys dropped in
    this phase, and what is known of the keys of two phases for the classifier.

    Notes
    -----
    The limit on regrets is ours; the paper bounds the harm by combining with Marker from outside. Bits come from
    `foresee`, else from a logistic regression that learns online from the phases gone by. The guarantees are for
    entries of equal size.

    See Also
    --------
    cache/mark0 : bits about what the best possible cache would do.
    cache/lru : the baseline.

    References
    ----------
    .. [1] A. Antoniadis, J. Boyar, M. Elias, L. Favrholdt, R. Hoeksma, K. Larsen, A. Polak, B. Simon (2023).
       "Paging with Succinct Predictions." ICML 2023. arXiv:2210.02775

    Examples
    --------
    >>> cache = MarkAndPredict(capacity=2)
    >>> for key, discard in [("again", False), ("never", True)]:
    ...     cache.foresee(discard)
    ...     _ = cache.insert(key, 1, now=0.0)
    >>> cache.insert("new", 1, now=1.0)
    ['never']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {**CAPACITY, "seed": Interval(int, 0)}

    def __init__(self, *, capacity: float, seed: int = 0) -> None:
        self.capacity = capacity
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Hold nothing, know nothing."""
        super().reset()
        self._sizes: dict[Key, float] = {}
        self._marked: dict[Key, bool] = {}
        self._discards = Pool()
        self._rest = Pool()
        self._phase = 0
        self._dropped: set[Key] = set()
        self._doubted: set[Key] = set()
        self._new = self._regrets = 0
        self._classifier = NextPhase()
        self._foreseen: bool | None = None
        self._random = Random(self.seed)

    def foresee(self, discard: bool) -> None:
        """The bit of the next request: whether its entry is safe to discard in the next phase."""
        self._foreseen = discard

    def hit(self, key: Key, now: float) -> None:
        """``key`` is marked, with the newest bit."""
        if key in self._sizes:
            self._unplace(key)
            self._mark(key)

    def _mark(self, key: Key) -> None:
        discard, self._foreseen = self._foreseen, None
        if discard is None:
            discard = self._classifier.request(key, self._phase)
        self._marked[key] = discard

    def _unplace(self, key: Key) -> None:
        if not (self._discards.discard(key) or self._rest.discard(key)):
            self._marked.pop(key, None)

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        victims: list[Key] = []
        while self._sizes and self._size + size > self.capacity:
            victims.append(self._drop())
        if key in self._doubted:
            self._regrets += 1
        if key not in self._dropped:
            self._new += 1
        self._sizes[key] = size
        self._size += size
        self._mark(key)
        return victims

    def _drop(self) -> Key:
        if not self._discards and not self._rest:
            self._discards.fill(key for key, discard in self._marked.items() if discard)
            self._rest.fill(key for key, discard in self._marked.items() if not discard)
            self._marked.clear()
            self._dropped.clear()
            self._doubted.clear()
            self._phase += 1
            self._new = self._regrets = 0
        harmonic = math.log(len(self._sizes)) + 0.58
        if self._discards and self._regrets <= (1.0 + harmonic) * max(self._new, 1):
            key = self._discards.draw(self._random)
            self._doubted.add(key)
        else:
            place = self._random.random() * (len(self._discards) + len(self._rest))
            key = (self._discards if place < len(self._discards) else self._rest).draw(self._random)
        self._dropped.add(key)
        self._size -= self._sizes.pop(key)
        return key

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        if key in self._sizes:
            self._size -= self._sizes.pop(key)
            self._unplace(key)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Another seed."""
        yield {"capacity": 5, "seed": 7}
