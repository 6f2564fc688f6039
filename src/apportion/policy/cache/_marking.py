"""Marking: the paging rules that lean on one predicted bit per request, and the one that needs none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from random import Random

from apportion.core.eviction import Key
from apportion.policy.cache._saved import Part


class Pool(Part):
    """A set from which a member can be drawn at random, in O(1)."""

    def __init__(self) -> None:
        self._members: list[Key] = []
        self._places: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """One more member (it must be new)."""
        self._places[key] = len(self._members)
        self._members.append(key)

    def fill(self, keys: Iterable[Key]) -> None:
        """Only these from now on."""
        self._members = list(keys)
        self._places = {key: place for place, key in enumerate(self._members)}

    def discard(self, key: Key) -> bool:
        """Take ``key`` out; whether it was in."""
        place = self._places.pop(key, None)
        if place is None:
            return False
        last = self._members.pop()
        if place < len(self._members):
            self._members[place] = last
            self._places[last] = place
        return True

    def draw(self, random: Random) -> Key:
        """Take out a member with equal chances."""
        key = self._members[int(random.random() * len(self._members))]
        self.discard(key)
        return key

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: object) -> bool:
        return key in self._places


class Paging(Part):
    """The keys a rule would hold: requests in, keys dropped out. `Marker` [FKLMSY 1991] as it stands.

    A requested key is marked. One that must go is drawn from those without a mark; when all have one, all lose it
    and a new phase begins. Its expected misses are at most 2 H_k times the fewest possible.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.sizes: dict[Key, float] = {}
        self.total = 0.0
        self.marked: OrderedDict[Key, None] = OrderedDict()
        self.unmarked = Pool()
        self.misses = 0

    def request(self, key: Key, size: float, discard: bool, random: Random) -> list[Key]:
        """``key`` is asked for, and predicted to be safe to ``discard`` or not; what is dropped for it."""
        victims: list[Key] = []
        if key in self.sizes:
            self.unplace(key)
        else:
            self.misses += 1
            while self.sizes and self.total + size > self.capacity:
                victim = self.victim(random)
                self.total -= self.sizes.pop(victim)
                victims.append(victim)
            self.sizes[key] = size
            self.total += size
        self.place(key, discard)
        return victims

    def forget(self, key: Key) -> None:
        """``key`` is gone."""
        if key in self.sizes:
            self.total -= self.sizes.pop(key)
            self.unplace(key)
            if not self.sizes:
                self.total = 0.0

    def place(self, key: Key, discard: bool) -> None:
        """Where a key belongs that was just asked for."""
        self.marked[key] = None

    def unplace(self, key: Key) -> None:
        """Take ``key`` from where it was placed."""
        if not self.unmarked.discard(key):
            self.marked.pop(key, None)

    def victim(self, random: Random) -> Key:
        """Take out the key that goes."""
        if not self.unmarked:
            self.unmarked.fill(self.marked)
            self.marked.clear()
        return self.unmarked.draw(random)


class Discarding(Paging):
    """Drops what is said to be safe to discard, oldest first; keys said to be kept are marked, as in `Paging`."""

    def __init__(self, capacity: float) -> None:
        super().__init__(capacity)
        self.discards: OrderedDict[Key, None] = OrderedDict()

    def place(self, key: Key, discard: bool) -> None:
        """A mark only for what is to be kept."""
        (self.discards if discard else self.marked)[key] = None

    def unplace(self, key: Key) -> None:
        """Take ``key`` from where it was placed."""
        if key in self.discards:
            del self.discards[key]
        else:
            super().unplace(key)

    def victim(self, random: Random) -> Key:
        """Take out the key that goes."""
        if self.discards:
            return self.discards.popitem(last=False)[0]
        return super().victim(random)

    def doubt(self, key: Key) -> None:
        """``key`` was to be kept but may go after all."""
        if key in self.sizes and key not in self.discards:
            self.unplace(key)
            self.discards[key] = None
