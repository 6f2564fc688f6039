"""Asks a small network, trained on past requests, which of the oldest entries is least worth its bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, ClassVar, final

from apportion.core.errors import ParameterError
from apportion.core.eviction import Key
from apportion.core.method import Constraint, Interval, Kind
from apportion.policy.cache._base import CAPACITY, Held
from apportion.policy.cache._dueling import Array, arrays, describe, values

_PASSES = 3
"""Passes of the network for one entry that enters; beyond them the oldest go."""
_SHARE = 8
"""One of so many that were looked at goes before others are looked at."""


@final
class ColdRL(Held):
    """Asks a small network, trained on past requests, which of the oldest entries is least worth its bytes.

    When something must go, the ``k`` entries that were asked for the longest ago are described by six numbers
    (age, size, hits, last gap, time left to live, cost to make again) and a duelling network says what keeping
    each is worth: the hits still to come, later ones counting less. The eighth that is worth least per byte goes, now
    or for the next entries that need room, unless it is asked for meanwhile; the others are put behind the
    youngest, so that others are looked at next. Without a network, or when time is up, the oldest goes, as in LRU [1]_.

        drop  argmin over the k oldest x of  (Q(x, keep) - Q(x, drop)) / size(x)

    Parameters
    ----------
    capacity
        What the sizes of all entries may be together: bytes, or a number of entries of size 1.
    network
        The weights, as `train` of ``_cold_rl_training`` returns them (arrays by name, as lists); None: plain LRU.
    k
        How many of the oldest are looked at; the paper's is 16 to 64.
    ttl_s
        How long entries live, in the unit of the times passed in; infinite by default.

    Complexity
    ----------
    One pass of a network of 1 400 weights over k rows per k / 8 entries dropped, at most three per entry that
    enters, else O(1); memory is that of the entries held, with six numbers each.

    Notes
    -----
    The paper's limit of 500 microseconds is kept by a bounded amount of work (about 80 microseconds a pass of 32
    rows, however many entries are held). A method reads no clock: whoever has one sets ``out_of_time`` to a
    callable, which is asked before the features, before and after the network, and if it says True the oldest
    goes. Training is by the returns that the log shows for every entry, kept or not, instead of by bootstrapped
    ones: a log, unlike a game, does not change with what is done. Values are per byte, so that mixed sizes are
    weighed; entries that are spared go behind the youngest, since the oldest k would else soon be the spared ones.

    See Also
    --------
    cache/lru : what it falls back on.
    cache/gdsf : weighs hits, cost and size by a formula.

    References
    ----------
    .. [1] A. Gupta, A. Bhayani (2025). "Cold-RL: Learning Cache Eviction with Offline Reinforcement Learning for
       NGINX." arXiv:2508.12485

    Examples
    --------
    >>> cache = ColdRL(capacity=2)
    >>> for key in "ab":
    ...     _ = cache.insert(key, 1, now=0.0)
    >>> cache.hit("a", now=1.0)
    >>> cache.insert("c", 1, now=2.0)  # no network: the oldest goes
    ['b']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        **CAPACITY,
        "network": Kind(dict, type(None)),
        "k": Interval(int, 1, 256),
        "ttl_s": Interval(float, 0.0, closed="right"),
    }

    outside: ClassVar[frozenset[str]] = frozenset({"out_of_time"})

    def __init__(
        self,
        *,
        capacity: float,
        network: dict[str, Any] | None = None,
        k: int = 32,
        ttl_s: float = math.inf,
    ) -> None:
        self.capacity = capacity
        self.network = network
        self.k = k
        self.ttl_s = ttl_s
        self.out_of_time: Callable[[], bool] | None = None
        self.start()

    def reset(self) -> None:
        """Hold nothing; the network stays as it was given."""
        super().reset()
        self._entries: OrderedDict[Key, list[float]] = OrderedDict()
        self._doomed: OrderedDict[Key, None] = OrderedDict()
        self._usual_age = 0.0
        self._usual_cost = 0.0
        self._fallbacks = 0
        try:
            self._weights = arrays(self.network) if self.network is not None else None
        except (ValueError, TypeError) as error:
            raise ParameterError(f"The 'network' parameter of ColdRL: {error}.", field="network") from None

    @property
    def fallbacks(self) -> int:
        """How often time was up and the oldest went."""
        return self._fallbacks

    def hit(self, key: Key, now: float) -> None:
        """``key`` is the youngest now, and spared if it was to go."""
        entry = self._entries.get(key)
        if entry is not None:
            entry[4] = max(now - entry[1], 0.0)
            entry[1] = now
            entry[3] += 1.0
            self._entries.move_to_end(key)
            self._doomed.pop(key, None)

    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        victims: list[Key] = []
        passes = 0
        while self._entries and self._size + size > self.capacity:
            passes += not self._doomed
            victim = self._next(now, passes)
            entry = self._entries.pop(victim)
            self._size -= entry[0]
            age = max(now - entry[1], 0.0)
            self._usual_age += 0.01 * (age - self._usual_age) if self._usual_age else age
            victims.append(victim)
        paid = cost if 0.0 < cost < math.inf else 0.0
        self._usual_cost += 0.01 * (paid - self._usual_cost) if self._usual_cost else paid
        self._entries[key] = [size, now, now, 0.0, 0.0, paid]
        self._size += size
        return victims

    def _next(self, now: float, passes: int) -> Key:
        """The next entry to go."""
        if self._doomed:
            return self._doomed.popitem(last=False)[0]
        order = self._ranked(now, self._weights) if self._weights is not None and passes <= _PASSES else None
        if order is None:
            return next(iter(self._entries))
        go = max(self.k // _SHARE, 1)
        self._doomed.update(dict.fromkeys(order[1:go]))
        for key in order[go:]:
            self._entries.move_to_end(key)
        return order[0]

    def _ranked(self, now: float, weights: Mapping[str, Array]) -> list[Key] | None:
        """The ``k`` oldest, least worth per byte first; None when time is up."""
        late = self.out_of_time
        rows = list(islice(self._entries.items(), self.k))
        if late is not None and late():
            self._fallbacks += 1
            return None
        features = describe(
            [row for _, row in rows],
            now,
            self._usual_age or 1.0,
            self._size / len(self._entries),
            self._usual_cost or 1.0,
            self.ttl_s,
        )
        if late is not None and late():
            self._fallbacks += 1
            return None
        q = values(weights, features)
        if late is not None and late():
            self._fallbacks += 1
            return None
        worth = (q[:, 0] - q[:, 1]).clip(min=1e-4).tolist()
        order = sorted(range(len(rows)), key=lambda i: (worth[i] / rows[i][1][0], i))
        return [rows[i][0] for i in order]

    def remove(self, key: Key) -> None:
        """``key`` is gone."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry[0]
            self._doomed.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A random network, a life that ends."""
        from apportion.policy.cache._cold_rl_training import fresh

        yield {"capacity": 20, "network": fresh(seed=3), "k": 5, "ttl_s": 100.0}
