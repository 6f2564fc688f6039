"""The queue before an endpoint: so many requests at once, the others wait, a policy says who goes next.

One for each endpoint and worker, on one event loop. A request enters, starts at once or waits, and leaves exactly
once; whatever is cancelled when, its place goes to the next. Who is next is decided in `core.line`; here are the
futures that those who wait hold, and the timers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from apportion.core.line import Line, Place, TurnedAway, Waiter, ticket
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.serve.errors import DeadlineMissed, QueueFull, WaitedTooLong

__all__ = ["EndpointQueue", "Place", "ticket"]

_NO_PRICES: Final[Mapping[str, float]] = {}


class _Waiter(Waiter):
    """One that waits for a future, with a timer for when it no longer does."""

    __slots__ = ("_line", "future", "timer")

    def __init__(self, option: Option, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(option, line.now())
        self._line = line
        self.future: asyncio.Future[Place] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        return not self.future.done()

    def start(self, place: Place) -> None:
        self.future.set_result(place)

    def refuse(self, error: Exception) -> None:
        self.future.set_exception(error)

    def set_due(self) -> None:
        self.forget()
        if self.due_s < float("inf"):
            wait_s = max(0.0, self.due_s - self._line.now())
            self.timer = self.future.get_loop().call_later(wait_s, self._due)

    def forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _due(self) -> None:
        """The timer's call; timers may be a little early, and then are set again."""
        self.timer = None
        if not self._line.drop_if_due(self):
            again_s = max(0.001, self.due_s - self._line.now())
            self.timer = self.future.get_loop().call_later(again_s, self._due)


class EndpointQueue(Line):
    """The line of one endpoint, to be waited in."""

    def __init__(
        self,
        policy: Policy,
        *,
        slots: int,
        max_waiting: int = 1000,
        max_wait_s: float | None = None,
        now: Callable[[], float] = time.perf_counter,
        prices: Mapping[str, float] = _NO_PRICES,
    ) -> None:
        super().__init__(
            policy, slots=slots, max_waiting=max_waiting, max_wait_s=max_wait_s, now=now, prices=prices
        )

    async def enter(self, option: Option) -> Place:
        """Start now, or wait for the turn. Whoever gets a place must `leave` it.

        Raises ``QueueFull``, ``WaitedTooLong`` or ``DeadlineMissed`` as soon as it is true; ``ValueError`` if one
        of the same id waits already. Cancelling gives up the place, or the slot if it was just given.
        """
        place = self.try_enter(option)
        if place is not None:
            return place
        self.check_room(option)
        waiter = _Waiter(option, self, asyncio.get_running_loop())
        self.join(waiter)
        try:
            return await waiter.future
        except BaseException:
            self._forsaken(waiter)
            raise

    def refusal(self, why: TurnedAway) -> Exception:
        """The error that a client gets."""
        if why.why == "deadline":
            return DeadlineMissed(
                f"The request's deadline passed after it had waited {why.waited_s:.3g} s for its turn at the "
                "endpoint.",
                field="apportion.deadline_s",
            )
        if why.why == "full":
            return QueueFull(
                f"{why.waiting} requests wait for the endpoint already, which is as many as may.",
                fix="Retry later.",
                retry_after_s=why.retry_after_s,
            )
        return WaitedTooLong(
            f"The request waited {why.waited_s:.3g} s for its turn at the endpoint, the most allowed.",
            fix="Retry later, or raise 'max_wait_s' of the endpoint's queue.",
            retry_after_s=why.retry_after_s,
        )

    def _forsaken(self, waiter: _Waiter) -> None:
        """Whoever waited has gone: nothing stays behind, neither a place in the line nor a slot."""
        future = waiter.future
        if self.forsake(waiter):
            return
        if future.done() and not future.cancelled() and future.exception() is None:
            self.gone += 1
            self.started -= 1
            future.result().leave(0.0, "cancelled")
