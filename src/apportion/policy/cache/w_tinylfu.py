"""Lets new entries into the main cache only if they were asked for more often than what they would push out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint, Interval, Kind
from apportion.policy.cache._base import CAPACITY, Held
from apportion.policy.cache._sketch import CountMin

_PROTECTED = 0.8
"""The share of the main cache for entries that were hit in it (Caffeine's)."""
_STEP, _DECAY, _RESTART = 0.0625, 0.98, 0.05
"""The climber's first step as a share of the capacity, its decay, and the change in hits that restarts it."""
_SAMPLE = 5000
"""The fewest requests between two steps."""


@final
class WTinyLFU(Held):
    """Lets new entries into the main cache only if they were asked for more often than what they would push out.

    Every request is counted in a small sketch that forgets by halving. A new entry spends a while in a window
    (LRU); when it leaves, its count is compared with the counts of the entries that would have to go from the
    main cache, which is segmented: on trial, and protected after a hit [1]_. For entries of different
    sizes all that must go are counted together [2]_. The window's size climbs towards more hits, as in
    Caffeine [3]_: one step on in the direction that helped, else back.

        leaves the window: x enters main  iff  count(x) > sum of count(v) over the victims v that make room

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    window
        The window's share of the capacity at the start; Caffeine's is 0.01.
    adaptive
        Whether the window's share follows the hits.

    Complexity
    ----------
    O(1) per request, amortised over halvings of the sketch, and O(1) per entry dropped; memory is that of
    the entries held and 8 to 16 bytes of sketch for each of the most that were held at once.

    Notes
    -----
    Left out of Caffeine's: the bits before the sketch (doorkeeper) and the random admission against flooding by
    keys that collide. Its window takes a step after ten requests per entry, here after one (and at least 5 000):
    a large cache would else end the day with the window it began with.

    See Also
    --------
    cache/lru : the baseline.
    cache/gdsf : counts costs too.

    References
    ----------
    .. [1] G. Einziger, R. Friedman, B. Manes (2017). "TinyLFU: A Highly Efficient Cache Admission Policy." ACM
       Transactions on Storage 13(4). arXiv:1512.00727
    .. [2] G. Einziger, O. Eytan, R. Friedman, B. Manes (2021). "Lightweight Robust Size Aware Cache
       Management." arXiv:2105.08770
    .. [3] G. Einziger, O. Eytan, R. Friedman, B. Manes (2018). "Adaptive Software Cache Management."
       Middleware 18, 94-106. doi:10.1145/3274808.3274816

    Examples
    --------
    >>> cache = WTinyLFU(capacity=3)
    >>> for key in "abc":
    ...     _ = cache.insert(key, 1, now=0.0)
    ...     cache.hit(key, now=1.0)
    >>> cache.insert("once", 1, now=2.0)
    ['once']
    >>> cache.insert("once", 1, now=3.0), cache.insert("once", 1, now=4.0)
    (['once'], ['a'])
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        **CAPACITY,
        "window": Interval(float, 0.0, 1.0, closed="left"),
        "adaptive": Kind(bool),
    }

    def __init__(self, *, capacity: float, window: float = 0.01, adaptive: bool = True) -> None:
        self.capacity = capacity
        self.window = window
        self.adaptive = adaptive
        self.start()

    def reset(self) -> None:
        """Hold nothing, count nothing."""
        super().reset()
        self._window: OrderedDict[Key, float] = OrderedDict()
        self._trial: OrderedDict[Key, float] = OrderedDict()
        self._protected: OrderedDict[Key, float] = OrderedDict()
        self._window_size = self._protected_size = 0.0
        self._window_most = self.window * self.capacity
        self._sketch = CountMin()
        self._most_entries = 0
        self._hits = self._requests = 0
        self._hit_rate_before = 0.0
        self._step = _STEP * self.capacity

    def hit(self, key: Key, now: float) -> None:
        """Count the request; ``key`` is young again where it lies, or protected from now on."""
        if key in self._window:
            self._window.move_to_end(key)
        elif key in self._protected:
            self._protected.move_to_end(key)
        else:
            size = self._trial.pop(key, None)
            if size is None:
                return
            self._protected[key] = size
            self._protected_size += size
            self._narrow()
        self._sketch.add(key)
        self._hits += 1
        self._count()

    def _narrow(self) -> None:
        """Back on trial with the oldest of too many protected."""
        most = _PROTECTED * (self.capacity - self._window_most)
        while self._protected_size > most and self._protected:
            key, size = self._protected.popitem(last=False)
            self._protected_size -= size
            self._trial[key] = size

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        self._sketch.add(key)
        victims: list[Key] = []
        self._window[key] = size
        self._window_size += size
        self._size += size
        while self._window_size > self._window_most:
            candidate, weight = self._window.popitem(last=False)
            self._window_size -= weight
            self._size -= weight
            self._contest(candidate, weight, victims)
        entries = len(self._window) + len(self._trial) + len(self._protected)
        if entries > self._most_entries:
            self._most_entries = entries
            self._sketch.fit(self._most_entries)
        self._count()
        return victims

    def _contest(self, candidate: Key, weight: float, victims: list[Key]) -> None:
        """Whether ``candidate``, which has left the window, is worth more than what must make room for it."""
        most = self.capacity - self._window_most
        excess = self._size - self._window_size + weight - most
        if excess > 0.0:
            if weight > most:
                victims.append(candidate)
                return
            count = self._sketch.count(candidate)
            rivals: list[Key] = []
            for rival, size in chain(self._trial.items(), self._protected.items()):
                count -= self._sketch.count(rival)
                if count <= 0:
                    victims.append(candidate)
                    return
                rivals.append(rival)
                excess -= size
                if excess <= 0.0:
                    break
            for rival in rivals:
                self._leave(rival)
            victims += rivals
        self._trial[candidate] = weight
        self._size += weight

    def _leave(self, key: Key) -> None:
        if key in self._trial:
            size = self._trial.pop(key)
        elif key in self._protected:
            size = self._protected.pop(key)
            self._protected_size -= size
        else:
            size = self._window.pop(key)
            self._window_size -= size
        self._size -= size

    def _count(self) -> None:
        """One request more; at the end of a sample, the window takes a step."""
        self._requests += 1
        if not self.adaptive or self._requests < max(self._most_entries, _SAMPLE):
            return
        hit_rate = self._hits / self._requests
        change = hit_rate - self._hit_rate_before
        amount = self._step if change >= 0.0 else -self._step
        largest = _STEP * self.capacity
        if abs(change) >= _RESTART:
            self._step = largest if amount >= 0.0 else -largest
        else:
            self._step = _DECAY * amount
        self._hit_rate_before = hit_rate
        self._hits = self._requests = 0
        wanted = self._window_most + amount
        self._window_most = min(max(wanted, 0.0), _PROTECTED * self.capacity)
        if wanted != self._window_most:  # at an end: turn round
            self._step = -self._step
        self._resize()

    def _resize(self) -> None:
        """Move entries between window and main cache until both keep to their new shares; none is dropped."""
        most = self.capacity - self._window_most
        while self._size - self._window_size > most:
            part = self._trial or self._protected
            key, size = part.popitem(last=False)
            if part is self._protected:
                self._protected_size -= size
            self._window[key] = size
            self._window_size += size
        while self._window_size > self._window_most:
            key = next(iter(self._window))
            size = self._window[key]
            if self._size - self._window_size + size > most:
                break
            del self._window[key]
            self._window_size -= size
            self._trial[key] = size
        self._narrow()

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        if key in self:
            self._leave(key)

    def __contains__(self, key: object) -> bool:
        return key in self._window or key in self._trial or key in self._protected

    def __len__(self) -> int:
        return len(self._window) + len(self._trial) + len(self._protected)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A large window, a fixed one."""
        yield {"capacity": 5, "window": 0.4}
        yield {"capacity": 20.5, "adaptive": False}
