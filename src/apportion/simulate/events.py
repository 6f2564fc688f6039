"""The event core: what happens next, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

Event = list[Any]
"""What `Clock.at` gives, for `Clock.cancel` only: [time, priority, number, call, arguments]."""


class Clock:
    """Calls functions at virtual times: by time, then priority (lower first), then in the order in which they were
    asked for. Nothing else breaks ties, so that the same calls give the same run.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self.now = start_s
        self._heap: list[Event] = []
        self._asked = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, time_s: float, call: Callable[..., object], *args: Any, priority: int = 0) -> Event:
        """Call ``call(*args)`` at ``time_s``, which must not be past."""
        if not time_s >= self.now:
            raise ValueError(f"{time_s} s is past: it is {self.now} s.")
        self._asked = number = self._asked + 1
        event = [time_s, priority, number, call, args]
        heappush(self._heap, event)
        return event

    def after(self, delay_s: float, call: Callable[..., object], *args: Any, priority: int = 0) -> Event:
        """Call ``call(*args)`` in ``delay_s`` seconds."""
        if not delay_s >= 0.0:
            raise ValueError(f"{delay_s} s from now is past.")
        self._asked = number = self._asked + 1
        event = [self.now + delay_s, priority, number, call, args]
        heappush(self._heap, event)
        return event

    def cancel(self, event: Event) -> None:
        """Let an event not happen; one that has happened, or was cancelled before, is left alone."""
        if event[3] is None:
            return
        event[3], event[4] = None, ()
        self._cancelled += 1
        if self._cancelled > 64 and 2 * self._cancelled > len(self._heap):
            self._heap[:] = [kept for kept in self._heap if kept[3] is not None]
            heapify(self._heap)
            self._cancelled = 0

    @property
    def next_s(self) -> float:
        """The time of the next event; inf without one."""
        while self._heap and self._heap[0][3] is None:
            heappop(self._heap)
            self._cancelled -= 1
        return float(self._heap[0][0]) if self._heap else inf

    def step(self) -> bool:
        """Let the next event happen; False without one."""
        while self._heap:
            event = heappop(self._heap)
            call = event[3]
            if call is None:
                self._cancelled -= 1
                continue
            self.now, args = event[0], event[4]
            event[3] = None
            call(*args)
            return True
        return False

    def run(self, until_s: float = inf) -> None:
        """Let everything happen up to and including ``until_s``; then it is ``until_s``, unless that is inf."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            event = heappop(heap)
            time_s, _, _, call, args = event
            if call is None:
                self._cancelled -= 1
                continue
            self.now = time_s
            event[3] = None
            call(*args)
        if until_s < inf:
            self.now = max(self.now, until_s)
