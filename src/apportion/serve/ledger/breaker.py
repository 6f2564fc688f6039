"""A circuit breaker around a store that many processes share: who finds it dead stops asking, and asks again alone.

Closed: calls pass. ``failures`` in a row open it: nothing passes for a while, then one call may try (half open).
If it succeeds the breaker closes, else the next while is twice as long, up to ``max_open_s``. Each while is drawn at
random from its upper half, so that processes that lost the store in the same moment do not come back in the same
moment ("equal jitter"; M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog 2015).
`serve.health.Circuit` is for endpoints: it counts failures in a window and obeys ``retry-after``, and has no jitter.
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal

State = Literal["closed", "open", "half_open"]

_ROUNDING_S: Final = 1e-6
"""``now_s + wait_s(now_s)`` is late enough, whatever adding them rounds to."""


class Breaker:
    """The breaker of one store in one process. Time is passed in, in seconds of any steady clock.

    Ask ``allow`` before a call and tell ``ok`` or ``failed`` after it. A probe that never reports back gives its
    place up after ``probe_s``.
    """

    __slots__ = (
        "_failed",
        "_failures",
        "_max_open_s",
        "_open_s",
        "_opened",
        "_probe_s",
        "_probing_since_s",
        "_rng",
        "_until_s",
        "state",
    )

    def __init__(
        self,
        rng: Random,
        *,
        failures: int = 2,
        open_s: float = 0.2,
        max_open_s: float = 10.0,
        probe_s: float = 15.0,
    ) -> None:
        self._rng = rng
        self._failures = failures
        self._open_s = open_s
        self._max_open_s = max_open_s
        self._probe_s = probe_s
        self.state: State = "closed"
        self._failed = 0
        """Failures in a row while closed."""
        self._opened = 0
        """How often it has opened since it was closed last."""
        self._until_s = 0.0
        self._probing_since_s: float | None = None

    def allow(self, now_s: float) -> bool:
        """Whether the store may be asked now. Where it was open, True is said once: that call is the probe."""
        if self.state == "closed":
            return True
        if self.wait_s(now_s) > _ROUNDING_S:
            return False
        self.state = "half_open"
        self._probing_since_s = now_s
        return True

    def ok(self, now_s: float) -> None:
        """The store answered."""
        if self.state == "open" and now_s < self._until_s:
            return  # asked before it opened: that it answered then says nothing about now
        self.state = "closed"
        self._failed = self._opened = 0
        self._probing_since_s = None

    def failed(self, now_s: float) -> None:
        """The store did not answer, or not in time."""
        if self.state == "open":
            return  # one of those that were under way when it opened
        self._failed += 1
        if self.state == "half_open" or self._failed >= self._failures:
            while_s = min(self._max_open_s, self._open_s * 2.0 ** min(self._opened, 60))
            self._until_s = now_s + while_s * self._rng.uniform(0.5, 1.0)
            self._opened += 1
            self._failed = 0
            self._probing_since_s = None
            self.state = "open"

    def wait_s(self, now_s: float) -> float:
        """Seconds until the store may be asked; 0 where it may be now."""
        if self.state == "closed":
            return 0.0
        until_s = self._until_s
        if self._probing_since_s is not None:
            until_s = self._probing_since_s + self._probe_s
        return max(0.0, until_s - now_s)
