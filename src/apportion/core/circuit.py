"""Passive health of one endpoint: a circuit breaker fed by its traffic; and how requests share its time.

Closed: requests pass. Enough failures within the window open it: nothing passes until ``open_s`` is over. Then
one request may try (half open): if it succeeds the circuit closes, else it opens again for twice as long. The
breaker does not care how many endpoints a model has: with one, opening means answering 503 at once in place of
hammering a dead server. What was begun before the circuit opened tells nothing about the endpoint since: with the
time it began at (``started_s``), a result that comes late neither closes the circuit nor frees the trial's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

BreakerState = Literal["closed", "open", "half_open"]


class Breaker(Protocol):
    """When a circuit opens (so many ``failures`` within ``window_s``) and for how long (at first, at most)."""

    @property
    def failures(self) -> int:
        """Failures within the window that open the circuit."""

    @property
    def window_s(self) -> float:
        """Length of that window."""

    @property
    def open_s(self) -> float:
        """How long it stays open before one request tries again; doubles each time."""

    @property
    def max_open_s(self) -> float:
        """The longest it stays open."""


class Circuit:
    """The breaker of one endpoint; time is passed in, in seconds."""

    __slots__ = (
        "_config",
        "_failures",
        "_opened_for_s",
        "_trial_s",
        "_until_s",
        "on_change",
        "state",
    )

    def __init__(self, config: Breaker, on_change: Callable[[BreakerState], None] | None = None) -> None:
        self._config = config
        self.on_change = on_change
        """Told when it opens and when it closes again."""
        self._failures: deque[float] = deque(maxlen=config.failures)
        self._until_s = 0.0
        self._opened_for_s = 0.0
        self._trial_s: float | None = None
        self.state: BreakerState = "closed"

    def allows(self, now_s: float) -> bool:
        """Whether a request may go there now."""
        if self.state == "closed":
            return True
        if now_s < self._until_s:
            return False
        # A trial that was taken but never reported back (cancelled) must not lock the endpoint out for ever.
        return self._trial_s is None or now_s - self._trial_s > self._opened_for_s

    def begin(self, now_s: float) -> None:
        """A request goes there; after an open time it is the one trial. Its results name this time."""
        if self.state != "closed":
            self.state = "half_open"
            self._trial_s = now_s

    def succeeded(self, *, started_s: float | None = None) -> None:
        """An answer came, to the request begun at ``started_s``."""
        if self.state != "closed" and (started_s is None or started_s >= self._until_s):
            self.state = "closed"
            self._opened_for_s = 0.0
            self._trial_s = None
            self._failures.clear()
            if self.on_change is not None:
                self.on_change("closed")

    def failed(self, now_s: float, *, wait_s: float | None = None, started_s: float | None = None) -> None:
        """A failure that is the endpoint's own. ``wait_s``: how long it asked to be left alone."""
        if started_s is not None and started_s < self._until_s:
            return
        config = self._config
        failures = self._failures
        failures.append(now_s)
        full = len(failures) == config.failures and now_s - failures[0] <= config.window_s
        if self.state == "half_open" or (self.state == "closed" and full):
            self._open(now_s, wait_s)

    def cancelled(self, *, started_s: float | None = None) -> None:
        """The request ended without telling anything about the endpoint."""
        if started_s is None or started_s == self._trial_s:
            self._trial_s = None

    def retry_in_s(self, now_s: float) -> float:
        """Seconds until a request may pass again."""
        return max(0.0, self._until_s - now_s) if self.state != "closed" else 0.0

    def _open(self, now_s: float, wait_s: float | None) -> None:
        config = self._config
        self._opened_for_s = min(config.max_open_s, self._opened_for_s * 2 or config.open_s)
        self._until_s = now_s + min(config.max_open_s, max(self._opened_for_s, wait_s or 0.0))
        self._trial_s = None
        self.state = "open"
        self._failures.clear()
        if self.on_change is not None:
            self.on_change("open")


class ServerClock:
    """Server-seconds of requests that share one machine.

    While n requests run, each second of the machine is split n ways, so that what is charged adds up to the
    time the machine was busy: with V(t) the integral of dt / max(1, n(t)), a request that ran from s to e used
    V(e) - V(s) (the virtual time of fair queueing; Parekh and Gallager 1993, doi:10.1109/90.234856).
    """

    __slots__ = ("_at_s", "_virtual_s", "running")

    def __init__(self) -> None:
        self.running = 0
        self._virtual_s = 0.0
        self._at_s = 0.0

    def start(self, now_s: float) -> float:
        """A request starts; keep what is returned for ``stop``."""
        self._advance(now_s)
        self.running += 1
        return self._virtual_s

    def stop(self, started: float, now_s: float) -> float:
        """A request ends; the server-seconds it used."""
        self._advance(now_s)
        self.running -= 1
        return self._virtual_s - started

    def used(self, started: float, now_s: float) -> float:
        """The server-seconds that a running request has used until now."""
        self._advance(now_s)
        return self._virtual_s - started

    def _advance(self, now_s: float) -> None:
        if self.running:
            self._virtual_s += max(0.0, now_s - self._at_s) / self.running
        self._at_s = now_s
