"""The answers themselves: bounded in bytes, each for its time, and removable one by one, by tag or by tenant.

What stays when it is full is decided by a method of the catalogue (`core.eviction.Eviction`), one for each category
with a quota of its own and one for all the others. Answers are nobody else's business: nothing here is logged.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from apportion.core.eviction import Eviction

_OVERHEAD_BYTES: Final = 1024
"""What an entry takes besides its content: objects, keys, places in dictionaries."""


class Entry(msgspec.Struct, kw_only=True):
    """One answer. ``body`` is the whole answer of ``api``; times are Unix seconds, ``usd_pico`` what it cost to make.
    ``text`` and ``vector`` (bytes of float16) are there where it can be found by meaning."""

    key: str
    frame: str
    tenant: str
    api: str
    model: str
    category: str
    body: bytes
    created_s: float
    expires_s: float
    decision_id: str = ""
    endpoint: str = ""
    usd_pico: int = 0
    seconds: float = 0.0
    tags: tuple[str, ...] = ()
    text: str | None = None
    vector: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, its place in an index included."""
        text = 4 * len(self.text) if self.text is not None else 0
        vector = 3 * len(self.vector) if self.vector is not None else 0
        return _OVERHEAD_BYTES + len(self.body) + text + vector


class Store:
    """Entries by key. ``make`` builds an eviction of a capacity in bytes; ``quotas`` are shares of it by category.
    ``gone`` is told of every entry that leaves, for whatever reason."""

    def __init__(
        self,
        capacity_bytes: int,
        make: Callable[[float], Eviction],
        quotas: Mapping[str, float],
        gone: Callable[[Entry], None],
    ) -> None:
        own = min(1.0, sum(quotas.values()))
        self._common = make(max(1.0, capacity_bytes * (1.0 - own)))
        self._own = {name: make(max(1.0, capacity_bytes * share)) for name, share in quotas.items()}
        self._gone = gone
        self._entries: dict[str, Entry] = {}
        self._named: dict[str, dict[str, set[str]]] = {
            kind: defaultdict(set) for kind in ("tag", "tenant", "decision")
        }
        """Keys by tag, by tenant and by decision."""
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def size_bytes(self) -> float:
        """The sizes of all entries."""
        return self._common.size + sum(eviction.size for eviction in self._own.values())

    def get(self, key: str, now: float) -> Entry | None:
        """The entry of a key whose time is not over."""
        entry = self._entries.get(key)
        if entry is not None and entry.expires_s <= now:
            self._drop(key)
            return None
        return entry

    def used(self, entry: Entry, now: float) -> None:
        """An entry was served."""
        self._eviction(entry).hit(entry.key, now)

    def put(self, entry: Entry, now: float) -> bool:
        """Keep an entry in place of one with the same key; False if there was no place for it."""
        self.sweep(now)
        self._drop(entry.key)
        if entry.expires_s <= now:
            return False
        self._entries[entry.key] = entry
        for names, name in self._names(entry):
            names[name].add(entry.key)
        heapq.heappush(self._ends, (entry.expires_s, entry.key))
        cost = max(1e-9, entry.usd_pico / 1e12)
        for victim in self._eviction(entry).insert(entry.key, entry.size_bytes, now, cost):
            self._forget(str(victim))
        return entry.key in self._entries

    def remove(
        self,
        *,
        key: str | None = None,
        decision_id: str | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        before_s: float = math.inf,
    ) -> list[str]:
        """Drop what fits all that is given and was kept until ``before_s``; the keys that went. With nothing given
        nothing goes."""
        given = {"decision": decision_id, "tag": tag, "tenant": tenant}
        found: set[str] | None = {key} & self._entries.keys() if key is not None else None
        for kind, name in given.items():
            if name is not None:
                named = self._named[kind].get(name, set())
                found = set(named) if found is None else found & named
        keys = sorted(one for one in found or () if self._entries[one].created_s <= before_s)
        for one in keys:
            self._drop(one)
        return keys

    def sweep(self, now: float) -> None:
        """Drop what is over."""
        while self._ends and self._ends[0][0] <= now:
            end_s, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry is not None and entry.expires_s <= end_s:
                self._drop(key)
        if len(self._ends) > 64 + 4 * len(self._entries):
            self._ends = [(entry.expires_s, entry.key) for entry in self]
            heapq.heapify(self._ends)

    def _eviction(self, entry: Entry) -> Eviction:
        return self._own.get(entry.category, self._common)

    def _names(self, entry: Entry) -> Iterator[tuple[dict[str, set[str]], str]]:
        yield self._named["tenant"], entry.tenant
        if entry.decision_id:
            yield self._named["decision"], entry.decision_id
        for tag in entry.tags:
            yield self._named["tag"], tag

    def _drop(self, key: str) -> None:
        """An entry goes for a reason of ours."""
        entry = self._entries.get(key)
        if entry is not None:
            self._eviction(entry).remove(key)
            self._forget(key)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for names, name in self._names(entry):
            keys = names.get(name)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del names[name]
        self._gone(entry)
