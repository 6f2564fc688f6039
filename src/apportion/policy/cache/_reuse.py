"""Will it be asked for again in time? Learned online, one bit per request."""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from apportion.core.eviction import Key
from apportion.policy.cache._saved import Part
from apportion.policy.cache._sketch import number

_SLOTS = 128
_KEYS = 16384
_GAPS = 24
_COUNTS = 6
_RATE = 0.02
_TAIL = 0.2
"""The share of useful returns that may come later than the reach."""


class Reuse(Part):
    """A logistic regression on hashed marks of a key: itself, its last two gaps, how often it was asked for."""

    def __init__(self) -> None:
        self._weights = array("d", bytes(8 * (_KEYS + _GAPS * _COUNTS + _GAPS * _GAPS + 1)))

    def marks(self, key: Key, gap: int, gap_before: int, count: int) -> tuple[int, int, int]:
        """The weights that speak of a request: which key, gap with count, gap with the gap before."""
        last = min(gap.bit_length(), _GAPS - 1)
        before = min(gap_before.bit_length(), _GAPS - 1)
        often = min(count.bit_length(), _COUNTS) - 1
        pairs = _KEYS + _GAPS * _COUNTS
        mixed = (number(key) * 0x9E3779B97F4A7C15 >> 32) % _KEYS
        return mixed, _KEYS + last * _COUNTS + often, pairs + last * _GAPS + before

    def score(self, marks: tuple[int, int, int]) -> float:
        """Log odds that it is of no use to keep."""
        weights = self._weights
        return weights[marks[0]] + weights[marks[1]] + weights[marks[2]] + weights[-1]

    def learn(self, marks: tuple[int, int, int], useless: bool) -> None:
        """One step of gradient descent on the logistic loss."""
        weights = self._weights
        step = _RATE * (useless - 1.0 / (1.0 + math.exp(-max(min(self.score(marks), 30.0), -30.0))))
        for mark in marks:
            weights[mark] += step
        weights[-1] += 0.1 * step


class Hindsight(Part):
    """Predicts whether the best possible cache would drop a key before its next request, and learns from the past.

    The past is judged as in Hawkeye's OPTgen [Jain, Lin 2016]: requests fall into 128 slots of time, each knows how
    much the best possible cache held during it; a key that comes again was worth keeping if there was room for it in
    every slot since. What does not come again within all slots was not. A slot is a sixteenth of as
    many requests as entries are held, so the slots cover eight times that.

    A bit holds for a while only: keys that did not come again within ``_reach`` slots, as four of five
    useful returns do, are put into ``stale`` for whoever asks, to be taken for safe to discard.
    """

    def __init__(self) -> None:
        self.reuse = Reuse()
        self._held: NDArray[np.float64] = np.zeros(2 * _SLOTS)
        self._slot = 0
        self._base = 0
        self._in_slot = 0
        self._clock = 0
        self._past: OrderedDict[Key, tuple[int, int, int, int, tuple[int, int, int]]] = OrderedDict()
        self._reach = 32.0
        self._fresh: OrderedDict[Key, int] = OrderedDict()
        self.stale: list[Key] = []

    def request(self, key: Key, size: float, capacity: float, entries: int) -> bool:
        """``key`` is asked for; whether it is safe to discard now."""
        self._clock += 1
        self._in_slot += 1
        if self._in_slot * 16 > entries:
            self._advance()
        gap = gap_before = 0
        count = 1
        known = self._past.pop(key, None)
        if known is not None:
            slot, clock, gap_before, count, marks = known
            gap = self._clock - clock
            count += 1
            during = self._held[slot - self._base : self._slot - self._base]
            fits = not len(during) or float(during.max()) + size <= capacity
            if fits:
                during += size
                self._reach += 0.1 if len(during) > self._reach else -0.1 * _TAIL
            self.reuse.learn(marks, not fits)
        marks = self.reuse.marks(key, gap, gap_before, count)
        self._past[key] = (self._slot, self._clock, gap, count, marks)
        self._fresh[key] = self._slot
        self._fresh.move_to_end(key)
        return self.reuse.score(marks) > 0.0

    def _advance(self) -> None:
        """The next slot; what was last asked for before the first one kept was not worth keeping."""
        self._slot += 1
        self._in_slot = 0
        if self._slot - self._base >= 2 * _SLOTS:
            self._base += _SLOTS
            self._held[:_SLOTS] = self._held[_SLOTS:]
            self._held[_SLOTS:] = 0.0
        first = self._slot - _SLOTS
        past = self._past
        while past and (oldest := next(iter(past.values())))[0] <= first:
            self.reuse.learn(oldest[4], True)
            past.popitem(last=False)
        fresh = self._fresh
        while fresh and next(iter(fresh.values())) <= self._slot - self._reach - 1:
            self.stale.append(fresh.popitem(last=False)[0])


class NextPhase(Part):
    """Predicts whether a key will not be asked for in the next phase, and learns from the phases before."""

    def __init__(self) -> None:
        self.reuse = Reuse()
        self._clock = 0
        self._past: OrderedDict[Key, tuple[int, int, int, int, tuple[int, int, int]]] = OrderedDict()

    def request(self, key: Key, phase: int) -> bool:
        """``key`` is asked for in ``phase``; whether it is safe to discard in the next."""
        self._clock += 1
        past = self._past
        while past and (oldest := next(iter(past.values())))[0] < phase - 1:
            self.reuse.learn(oldest[4], True)
            past.popitem(last=False)
        gap = gap_before = 0
        count = 1
        known = past.pop(key, None)
        if known is not None:
            before, clock, gap_before, count, marks = known
            gap = self._clock - clock
            count += 1
            if before < phase:
                self.reuse.learn(marks, False)
        marks = self.reuse.marks(key, gap, gap_before, count)
        past[key] = (phase, self._clock, gap, count, marks)
        return self.reuse.score(marks) > 0.0
