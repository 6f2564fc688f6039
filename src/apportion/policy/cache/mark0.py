"""Drops what one predicted bit says is safe to discard, and falls back on marking when the bits do harm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.eviction import Key
from apportion.core.method import Constraint, Interval
from apportion.policy.cache._base import CAPACITY, Held
from apportion.policy.cache._marking import Discarding, Paging
from apportion.policy.cache._reuse import Hindsight


@final
class Mark0(Held):
    """Drops what one predicted bit says is safe to discard, and falls back on marking when the bits do harm.

    With every request comes a bit: may this entry be dropped before its next request, as the best possible cache
    would? Entries with bit 1 go first; those with bit 0 are marked and, when nothing else is left, treated as in
    Marker: one without a mark is drawn, and when all have one, all lose it. With right bits this misses no more
    than the best possible (Belady's); a wrong 1 costs one miss, a wrong 0 about 2 H_k [1]_. To bound the harm
    of many wrong bits, Marker itself [2]_ runs beside it on keys alone, and the cache follows whichever has missed
    less, changing over when the other is ahead by a factor and a cache full of misses.

        drop  oldest x with bit(x) = 1;  else a random x without mark;   follow  argmin misses(bits, Marker)

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    slack
        How many times the other's misses the followed rule may make before the cache changes over.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(1) amortised per request and per entry dropped (one pass over the entries at a change-over); memory is that
    of the entries held, twice their keys for the two rules, and what is known of the last eight times as many
    requests for the classifier.

    Notes
    -----
    Bits come from `foresee`, else from a logistic regression that learns online from what the best possible
    cache would have done (Hawkeye's OPTgen [3]_); it takes back a 0 when an entry was not asked for in longer
    than useful returns take, since a wrong 0 would else stay as long as there is anything to discard. The
    guarantees are for entries of equal size; with sizes the same rules hold but no bound is known. "Follows"
    means: entries that the followed rule would not hold go first.

    See Also
    --------
    cache/mark_and_predict : bits about the next phase instead.
    cache/lru : the baseline.

    References
    ----------
    .. [1] A. Antoniadis, J. Boyar, M. Elias, L. Favrholdt, R. Hoeksma, K. Larsen, A. Polak, B. Simon (2023).
       "Paging with Succinct Predictions." ICML 2023. arXiv:2210.02775
    .. [2] A. Fiat, R. Karp, M. Luby, L. McGeoch, D. Sleator, N. Young (1991). "Competitive Paging Algorithms."
       Journal of Algorithms 12(4). arXiv:cs/0205038
    .. [3] A. Jain, C. Lin (2016). "Back to the Future: Leveraging Belady's Algorithm for Improved Cache
       Replacement." ISCA 2016. doi:10.1109/ISCA.2016.17

    Examples
    --------
    >>> cache = Mark0(capacity=2)
    >>> cache.foresee(discard=False)
    >>> _ = cache.insert("kept", 1, now=0.0)
    >>> cache.foresee(discard=True)
    >>> _ = cache.insert("passing", 1, now=1.0)
    >>> cache.insert("new", 1, now=2.0)
    ['passing']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        **CAPACITY,
        "slack": Interval(float, 1.0),
        "seed": Interval(int, 0),
    }

    def __init__(self, *, capacity: float, slack: float = 1.1, seed: int = 0) -> None:
        self.capacity = capacity
        self.slack = slack
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Hold nothing, know nothing."""
        super().reset()
        self._sizes: OrderedDict[Key, float] = OrderedDict()
        self._strays: OrderedDict[Key, None] = OrderedDict()
        self._by_bits = Discarding(self.capacity)
        self._by_marks = Paging(self.capacity)
        self._trusting = True
        self._classifier = Hindsight()
        self._foreseen: bool | None = None
        self._random = Random(self.seed)

    def foresee(self, discard: bool) -> None:
        """The bit of the next request: whether its entry is safe to discard before it is asked for again."""
        self._foreseen = discard

    @property
    def trusting(self) -> bool:
        """Whether the bits are followed, not Marker."""
        return self._trusting

    def hit(self, key: Key, now: float) -> None:
        """Both rules see the request."""
        size = self._sizes.get(key)
        if size is not None:
            self._request(key, size)

    def _request(self, key: Key, size: float) -> None:
        discard, self._foreseen = self._foreseen, None
        if discard is None:
            discard = self._classifier.request(key, size, self.capacity, len(self._sizes))
            for stale in self._classifier.stale:
                self._by_bits.doubt(stale)
            self._classifier.stale.clear()
        bits, marks = self._by_bits, self._by_marks
        dropped = bits.request(key, size, discard, self._random)
        dropped_too = marks.request(key, size, discard, self._random)
        followed, other = (bits, marks) if self._trusting else (marks, bits)
        if followed.misses > self.slack * other.misses + len(other.sizes):
            self._trusting = not self._trusting
            self._strays = OrderedDict((key, None) for key in self._sizes if key not in other.sizes)
            return
        self._strays.pop(key, None)
        for victim in dropped if self._trusting else dropped_too:
            if victim in self._sizes:
                self._strays[victim] = None

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        self._request(key, size)
        victims = []
        while self._sizes and self._size + size > self.capacity:
            victim = self._strays.popitem(last=False)[0] if self._strays else next(iter(self._sizes))
            self._size -= self._sizes.pop(victim)
            victims.append(victim)
        self._sizes[key] = size
        self._size += size
        return victims

    def remove(self, key: Key) -> None:
        """``key`` is gone, for both rules too."""
        if key in self._sizes:
            self._size -= self._sizes.pop(key)
            self._strays.pop(key, None)
            self._by_bits.forget(key)
            self._by_marks.forget(key)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Less patient, another seed."""
        yield {"capacity": 5, "slack": 1.0, "seed": 7}
