"""What was spent in a window that slides along with time, in constant memory and never too little."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Self

_NS = 10**9
_PARTS = 60
"""Into so many equal parts a window is divided; what is kept is a sum for each part that still counts."""


class Sliding:
    """Spendings of the last ``window_s`` seconds, summed by parts of the window.

    What is spent at t counts until the end of its part plus ``window_s``: at least ``window_s`` and at most a
    sixtieth longer. So in no interval of that length is more than ``limit`` spent, if nothing is spent that
    does not fit here. What was nevertheless spent beyond the limit is owed: it takes the first room that becomes
    free, as if it had been spent only then. Without a limit (None) nothing is owed. Amounts are whole
    units; the clock is in whole nanoseconds, and one that runs backwards stands still.
    """

    __slots__ = (
        "_last",
        "_limit",
        "_origin_ns",
        "_part_ns",
        "_parts",
        "_window_ns",
        "owed_units",
        "total_units",
    )

    def __init__(self, window_s: float, origin_s: float, limit: int | None) -> None:
        self._window_ns = round(window_s * _NS)
        self._part_ns = -(-self._window_ns // _PARTS)
        self._origin_ns = round(origin_s * _NS)
        self._limit = limit
        self._parts: deque[list[int]] = deque()
        """[number of the part, units], the oldest first; at most `_PARTS` + 1."""
        self._last: int | None = None
        self.total_units = 0
        """What counts, without what is owed."""
        self.owed_units = 0

    @property
    def end_s(self) -> float:
        """When the oldest spending ceases to count; infinite if there is none."""
        return self._end_ns(self._parts[0][0]) / _NS if self._parts else math.inf

    def spend(self, units: int, now: float) -> None:
        """Take in a spending; call `slide` before, if it is time."""
        if not units:
            return
        self._see(int(now * _NS))
        self._add(self._last or 0, units)
        if self._limit is not None and self.total_units > self._limit:
            self._owe(min(units, self.total_units - self._limit))

    def slide(self, now: float) -> int:
        """Let go of what no longer counts at ``now``; returns the units that this gives back."""
        at = int(now * _NS)
        self._see(at)
        freed = 0
        while self._parts and self._end_ns(self._parts[0][0]) <= at:
            rounds = 1 + (at - self._end_ns(self._parts[-1][0])) // (self._period * self._part_ns)
            freed += self._skip(rounds) or self._free()
        return freed

    def refund(self, units: int, now: float) -> int:
        """Take back a spending, at most all that counts: the oldest first, so that what stays stays longest."""
        if not units:
            return 0
        self._see(int(now * _NS))
        left = taken = min(units, self.total_units + self.owed_units)
        while left and self._parts:
            oldest = self._parts[0]
            part = min(left, oldest[1])
            oldest[1] -= part
            self.total_units -= part
            left -= part
            if not oldest[1]:
                self._parts.popleft()
        self.owed_units -= left
        self._pay(self._last or 0)
        return taken

    def wait_s(self, units: int, now: float) -> float | None:
        """Seconds until `slide` has given ``units`` back, if nothing is spent until then; None if it never does."""
        ahead = self.load(self.save(), self)
        freed = 0
        end = 0
        while freed < units:
            if not ahead._parts:
                return None
            skipped = ahead._skip((units - freed - 1) // max(1, ahead._limit or 1))
            if not skipped:
                end = ahead._end_ns(ahead._parts[0][0])
            freed += skipped or ahead._free()
        return max(0.0, end / _NS - now)

    def change(self, limit: int | None, now: float) -> None:
        """Go over to another limit. What was spent counts as before; what is owed takes the room there is."""
        self._limit = limit
        self._see(int(now * _NS))
        self._pay(self._last or 0)

    def move_to(self, other: Sliding, now: float) -> None:
        """Give everything to a window of another length."""
        at = int(now * _NS)
        for number, units in self._parts:
            other._see(min(at, self._origin_ns + (number + 1) * self._part_ns - 1))
            other._add(other._last or 0, units)
        other._see(at)
        other.owed_units += self.owed_units
        other._pay(other._last or 0)

    def begin(self, spent_units: int, owed_units: int, now: float) -> None:
        """Take over a spending as if it had been made now, and what is owed beyond it."""
        self._see(int(now * _NS))
        self._add(self._last or 0, spent_units)
        self.owed_units += owed_units
        self._pay(self._last or 0)

    def save(self) -> list[Any]:
        """What `load` needs, as a list that JSON can carry."""
        return [self._last, self.owed_units, [list(part) for part in self._parts]]

    @classmethod
    def load(cls, saved: list[Any], like: Sliding) -> Self:
        """One that continues from what `save` returned, with the window and limit of ``like``."""
        self = cls(0.0, 0.0, like._limit)
        self._window_ns, self._part_ns, self._origin_ns = like._window_ns, like._part_ns, like._origin_ns
        self._last, self.owed_units, parts = saved
        self._parts = deque([int(number), int(units)] for number, units in parts)
        self.total_units = sum(units for _, units in self._parts)
        return self

    @property
    def _period(self) -> int:
        """After how many parts of the window something takes the room that is freed then."""
        return 1 + self._window_ns // self._part_ns

    def _end_ns(self, number: int) -> int:
        return self._origin_ns + (number + 1) * self._part_ns + self._window_ns

    def _see(self, at_ns: int) -> None:
        number = (at_ns - self._origin_ns) // self._part_ns
        if self._last is None or number > self._last:
            self._last = number

    def _add(self, number: int, units: int) -> None:
        if not units:
            return
        self.total_units += units
        if self._parts and self._parts[-1][0] >= number:
            self._parts[-1][1] += units
        else:
            self._parts.append([number, units])

    def _owe(self, units: int) -> None:
        self.owed_units += units
        self.total_units -= units
        newest = self._parts[-1]
        newest[1] -= units
        if not newest[1]:
            self._parts.pop()

    def _pay(self, number: int) -> None:
        if self.owed_units:
            room = self.owed_units if self._limit is None else max(0, self._limit - self.total_units)
            paid = min(self.owed_units, room)
            self.owed_units -= paid
            self._add(number, paid)

    def _free(self) -> int:
        """Let go of the oldest part, and give its room to what is owed."""
        number, units = self._parts.popleft()
        self.total_units -= units
        self._pay(number + self._period)
        return units

    def _skip(self, rounds: int) -> int:
        """Up to so many times everything at once: while more is owed than the limit, all room is paid with, and
        the parts only move on.
        """
        limit = self._limit
        if not limit or self.total_units != limit or self.owed_units <= limit:
            return 0
        rounds = min(rounds, (self.owed_units - 1) // limit)
        for part in self._parts:
            part[0] += max(0, rounds) * self._period
        self.owed_units -= max(0, rounds) * limit
        return max(0, rounds) * limit
