"""Virtual time: what is due, in order, ties by counter."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

Timer = list[Any]
"""When, a counter, what to do, with what. A timer that was cancelled does nothing."""


class Clock:
    """Timers on one heap. ``now_s`` is set by whoever runs it."""

    __slots__ = ("_count", "due", "now_s")

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.due: list[Timer] = []
        """The heap; what was cancelled is still in it."""
        self._count = 0

    def at(self, when_s: float, do: Callable[[Any], object], what: Any = None) -> Timer:
        """Call ``do(what)`` at ``when_s`` (now, if that is past)."""
        self._count += 1
        timer: Timer = [when_s if when_s > self.now_s else self.now_s, self._count, do, what]
        heapq.heappush(self.due, timer)
        return timer

    @staticmethod
    def cancel(timer: Timer) -> None:
        """It will not be called."""
        timer[2] = timer[3] = None

    @property
    def next_s(self) -> float:
        """When the next timer is due; infinity where there is none."""
        due = self.due
        while due:
            when_s: float = due[0][0]
            if due[0][2] is not None:
                return when_s
            heapq.heappop(due)
        return math.inf

    def run(self) -> None:
        """Call the next timer, at its time."""
        when_s, _, do, what = heapq.heappop(self.due)
        if do is not None:
            self.now_s = when_s
            do(what)
