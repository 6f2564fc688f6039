"""Who runs, who waits and who is next at an endpoint: the queue itself, without a clock or a loop of its own.

The proxy puts futures and timers around it (`serve.queue`), the simulator events.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.policy import Policy
from apportion.core.state import State

logger = logging.getLogger("apportion.queue")

_NO_PRICES: Final[Mapping[str, float]] = {}
_RECENT: Final = 0.1
"""The weight of the newest service in the running mean: about the last twenty count."""
_ASSUMED_S: Final = 1.0
"""The mean service while none was measured and none is predicted."""
_LEAST_RETRY_S: Final = 1.0


@runtime_checkable
class Ordering(Protocol):
    """A policy that can say in which order all would start, not only who is next."""

    def order(self, state: State) -> Sequence[int]:
        """The places of all options, the next one first."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where one request stands: how many go ``ahead`` of it, and how long that takes at the measured pace."""

    ahead: int
    expected_wait_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A queue in numbers, nobody's in particular."""

    slots: int
    running: int
    waiting: int
    max_waiting: int
    max_wait_s: float | None
    longest_wait_s: float
    """Of those that wait now."""
    mean_service_s: float | None
    started: int
    full: int
    """Turned away because too many waited."""
    too_late: int
    """Dropped because their deadline or `max_wait_s` passed."""
    gone: int
    """Those whose client left while they waited."""


class TurnedAway(Exception):
    """Not served: the line was ``full``, the wait was ``too_late``, or the request's own ``deadline`` passed.

    ``waited_s`` is how long it stood there, ``waiting`` how many stand there now, ``retry_after_s`` when it may be
    served if it came again (0 where that does not help).
    """

    def __init__(
        self,
        why: Literal["full", "too_late", "deadline"],
        waited_s: float,
        waiting: int,
        retry_after_s: float,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.waited_s = waited_s
        self.waiting = waiting
        self.retry_after_s = retry_after_s


def ticket(
    id: str,
    *,
    arrived_s: float,
    value: float = 0.0,
    cost: Cost | None = None,
    deadline_s: float | None = None,
    priority: int = 0,
    tenant: str = "",
    weight: float = 1.0,
    p_long: float | None = None,
    expected_s: float | None = None,
    attained_s: float = 0.0,
) -> Option:
    """A request as the schedule policies see it. Times are in the queue's clock, ``deadline_s`` is absolute.

    ``expected_s`` is the predicted service; where it is not given, ``cost`` may have ``server_seconds``.
    """
    facts: dict[str, object] = {
        "arrived_s": arrived_s,
        "deadline_s": deadline_s,
        "priority": priority,
        "tenant": tenant,
        "weight": weight,
        "p_long": p_long,
        "expected_s": expected_s,
        "attained_s": attained_s,
    }
    return Option(id, value, cost if cost is not None else Cost(), facts=facts)


def claim(
    chosen: Option, *, arrived_s: float, deadline_s: float | None, priority: int, tenant: str
) -> dict[str, object]:
    """The facts of a ticket for a request that has ``chosen`` where to go."""
    return {
        "arrived_s": arrived_s,
        "deadline_s": deadline_s,
        "priority": priority,
        "tenant": tenant,
        "expected_s": chosen.cost.get("server_seconds"),
    }


class Place:
    """The right to run, until `leave`. Use it in a ``with`` block or call `leave` in a ``finally``."""

    __slots__ = ("_decision_id", "_line", "_open", "option", "started_s", "waited_s")

    def __init__(
        self, line: Line, option: Option, started_s: float, waited_s: float, decision_id: str
    ) -> None:
        self._line = line
        self._decision_id = decision_id
        self._open = True
        self.option = option
        self.started_s = started_s
        self.waited_s = waited_s
        """Seconds between entering the queue and starting."""

    def leave(self, service_s: float | None = None, status: Status = "ok") -> None:
        """Give the slot back and start the next. Only the first call counts.

        ``service_s`` is what the endpoint worked on it; left out, the time since it started.
        """
        if self._open:
            self._open = False
            line = self._line
            if service_s is None:
                service_s = max(0.0, line.now() - self.started_s)
            line._left(self, service_s, status)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open:
            # Cancellation is no `Exception`, and no fault.
            cancelled = kind is not None and not issubclass(kind, Exception)
            self.leave(None, "cancelled" if cancelled else "failed" if kind is not None else "ok")


class Waiter(ABC):
    """One that waits, and the time at which it no longer does."""

    __slots__ = ("by_deadline", "due_s", "entered_s", "option")

    def __init__(self, option: Option, entered_s: float) -> None:
        self.option = option
        self.entered_s = entered_s
        self.due_s = float("inf")
        self.by_deadline = False

    @abstractmethod
    def start(self, place: Place) -> None:
        """Its turn has come."""

    @abstractmethod
    def refuse(self, error: Exception) -> None:
        """It waits no longer, and in vain."""

    @property
    @abstractmethod
    def wanted(self) -> bool:
        """Whether anybody still waits for its turn."""

    def set_due(self) -> None:  # noqa: B027 - who looks at the line anyway needs no timer
        """``due_s`` has been set: the line's `expire` must be called then."""

    def forget(self) -> None:  # noqa: B027
        """It has left the line: no timer is needed any more."""


class Line:
    """At most ``slots`` requests run, at most ``max_waiting`` wait, none longer than ``max_wait_s`` (None: no
    limit); ``policy`` chooses who is next.

    ``now`` is the clock of every time here and in the options' facts; ``prices`` are what the policy pays with,
    and may be set anew at any time.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        slots: int,
        max_waiting: int = 1000,
        max_wait_s: float | None = None,
        now: Callable[[], float],
        prices: Mapping[str, float] = _NO_PRICES,
    ) -> None:
        self.now = now
        self.prices = prices
        self.started = self.full = self.too_late = self.gone = 0
        self.mean_service_s: float | None = None
        """Recent mean of the measured service, None before the first."""
        self._options: list[Option] = []  # in the order of arrival; what the policy is offered
        self._waiting: dict[str, Waiter] = {}  # the same, by id
        self._running: dict[Place, Option] = {}
        self._decisions = 0
        self.faults = 0
        """How often the policy has raised."""
        self._configure(policy, slots, max_waiting, max_wait_s)

    def refusal(self, why: TurnedAway) -> Exception:
        """What is raised, and told those who wait, for ``why``."""
        return why

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._options)

    def pending(self) -> list[tuple[float, float]]:
        """The (weight, expected seconds) of all that run or wait: what a router needs to know of the endpoint."""
        mean_s = self._mean_s()
        found = []
        for option in (*self._running.values(), *self._options):
            weight = option.facts.get("weight") if option.facts else None
            expected_s = _expected(option)
            found.append(
                (
                    float(weight) if isinstance(weight, (int, float)) else 1.0,
                    mean_s if expected_s is None else expected_s,
                )
            )
        return found

    def try_enter(self, option: Option) -> Place | None:
        """Start now if a slot is free; None if there is none. Raises the `refusal` of a deadline that has passed."""
        now_s = self.now()
        deadline_s = _deadline(option)
        if deadline_s is not None and deadline_s <= now_s:
            self.too_late += 1
            raise self.refusal(TurnedAway("deadline", 0.0, len(self._options), 0.0))
        if len(self._running) >= self.slots:
            return None
        decision_id = ""
        if self.policy.learns:  # it keeps account of who was served, also of those nobody competed with
            decision_id = self._decide(now_s, [option])[1]
        return self._start(option, now_s, 0.0, decision_id)

    def check_room(self, option: Option) -> None:
        """Raises the `refusal` of a line that is full; ``ValueError`` if one of the same id waits already."""
        if option.action in self._waiting:
            raise ValueError(f"A request {option.action!r} waits already.")
        waiting = len(self._options)
        if waiting >= self.max_waiting:
            self.full += 1
            retry_s = max(_LEAST_RETRY_S, self._until_free_s(waiting + 1))
            raise self.refusal(TurnedAway("full", 0.0, waiting, retry_s))

    def join(self, waiter: Waiter) -> None:
        """Stand in line, after `check_room`."""
        option = waiter.option
        self._waiting[option.action] = waiter
        self._options.append(option)
        self._set_due(waiter)

    def forsake(self, waiter: Waiter) -> bool:
        """Whoever waited has gone: True if it stood in line and does no longer."""
        if self._waiting.get(waiter.option.action) is not waiter:
            return False
        self.gone += 1
        self._remove(waiter)
        return True

    def position(self, id: str) -> Position | None:
        """Where the request ``id`` stands; None if it does not wait. Those who come later may still pass it."""
        return self.positions((id,)).get(id)

    def positions(self, ids: Iterable[str]) -> dict[str, Position]:
        """Where those of ``ids`` stand that wait; the line is put in order once for all of them."""
        wanted = [id for id in ids if id in self._waiting]
        if not wanted:
            return {}
        options = self._options
        order: Sequence[int] = range(len(options))
        if isinstance(self.policy, Ordering):
            order = self.policy.order(self._state(self.now(), options))
        ahead = {options[index].action: place for place, index in enumerate(order)}
        return {id: Position(ahead[id], self._until_free_s(ahead[id] + 1)) for id in wanted}

    def snapshot(self) -> Snapshot:
        """The queue in numbers."""
        now_s = self.now()
        first = next(iter(self._waiting.values()), None)
        return Snapshot(
            slots=self.slots,
            running=self.running,
            waiting=self.waiting,
            max_waiting=self.max_waiting,
            max_wait_s=self.max_wait_s,
            longest_wait_s=now_s - first.entered_s if first is not None else 0.0,
            mean_service_s=self.mean_service_s,
            started=self.started,
            full=self.full,
            too_late=self.too_late,
            gone=self.gone,
        )

    def configure(
        self, policy: Policy, *, slots: int, max_waiting: int = 1000, max_wait_s: float | None = None
    ) -> None:
        """Change everything that a reload may change. Those who wait stay; those who run finish.

        Fewer slots take effect as running ones leave; more start the next at once.
        """
        self._configure(policy, slots, max_waiting, max_wait_s)
        for waiter in list(self._waiting.values()):
            self._set_due(waiter)
        self.expire()
        self._start_next()

    def expire(self) -> None:
        """Drop all whose time has passed."""
        now_s = self.now()
        for waiter in [waiter for waiter in self._waiting.values() if waiter.due_s <= now_s]:
            self._drop(waiter, now_s)

    def drop_if_due(self, waiter: Waiter) -> bool:
        """Drop ``waiter`` if its time has passed; whether it does no longer stand in line."""
        if self._waiting.get(waiter.option.action) is not waiter:
            return True
        now_s = self.now()
        if now_s < waiter.due_s:
            return False
        self._drop(waiter, now_s)
        return True

    def turn_away(self, error: Exception) -> int:
        """End every wait with ``error`` (the endpoint is gone, the gateway is closing); how many there were."""
        waiting = list(self._waiting.values())
        for waiter in waiting:
            self._remove(waiter)
            if waiter.wanted:
                waiter.refuse(error)
        return len(waiting)

    # inside

    def _configure(self, policy: Policy, slots: int, max_waiting: int, max_wait_s: float | None) -> None:
        if slots < 1 or max_waiting < 0:
            raise ValueError(
                f"slots must be 1 or more and max_waiting 0 or more, got {slots}, {max_waiting}."
            )
        self.policy = policy
        self.slots = slots
        self.max_waiting = max_waiting
        self.max_wait_s = max_wait_s

    def _set_due(self, waiter: Waiter) -> None:
        """Until when it waits."""
        deadline_s = _deadline(waiter.option)
        due_s = float("inf") if self.max_wait_s is None else waiter.entered_s + self.max_wait_s
        waiter.by_deadline = deadline_s is not None and deadline_s <= due_s
        waiter.due_s = deadline_s if deadline_s is not None and waiter.by_deadline else due_s
        waiter.set_due()

    def _drop(self, waiter: Waiter, now_s: float) -> None:
        """Its time has passed."""
        waited_s = now_s - waiter.entered_s
        self._remove(waiter)
        self.too_late += 1
        if not waiter.wanted:
            return
        waiting = len(self._options)
        if waiter.by_deadline:
            why = TurnedAway("deadline", waited_s, waiting, 0.0)
        else:
            retry_s = max(_LEAST_RETRY_S, self._until_free_s(waiting + 1))
            why = TurnedAway("too_late", waited_s, waiting, retry_s)
        waiter.refuse(self.refusal(why))

    def _remove(self, waiter: Waiter) -> None:
        """Out of the line."""
        del self._waiting[waiter.option.action]
        del self._options[_place_of(self._options, waiter.option)]
        waiter.forget()

    def _start(self, option: Option, now_s: float, waited_s: float, decision_id: str) -> Place:
        self.started += 1
        place = Place(self, option, now_s, waited_s, decision_id)
        self._running[place] = option
        return place

    def _start_next(self) -> None:
        """Fill the free slots by the policy's choice."""
        while self._options and len(self._running) < self.slots:
            now_s = self.now()
            index, decision_id = self._decide(now_s, self._options)
            option = self._options[index]
            waiter = self._waiting[option.action]
            if waiter.due_s > now_s and waiter.wanted:
                self._remove(waiter)
                waiter.start(self._start(option, now_s, now_s - waiter.entered_s, decision_id))
                continue
            if waiter.due_s <= now_s:
                self._drop(waiter, now_s)
            else:  # cancelled, and not yet told so
                self._remove(waiter)
                self.gone += 1
            self._learn(option, decision_id, now_s, 0.0, 0.0, "cancelled")

    def _left(self, place: Place, service_s: float, status: Status) -> None:
        """A slot is free again."""
        del self._running[place]
        if service_s > 0.0:
            mean_s = self.mean_service_s
            self.mean_service_s = service_s if mean_s is None else mean_s + _RECENT * (service_s - mean_s)
        self._learn(place.option, place._decision_id, place.started_s, place.waited_s, service_s, status)
        self._start_next()

    def _learn(
        self, option: Option, id: str, started_s: float, waited_s: float, service_s: float, status: Status
    ) -> None:
        """Tell the policy what became of its choice. Its faults are not those of the request that leaves."""
        if not self.policy.learns:
            return
        state = State(started_s, (option,), id, prices=self.prices)
        cost, latency_s = Cost(server_seconds=service_s), waited_s + service_s
        try:
            self.policy.learn(Outcome(id, status, option.action, cost, latency_s=latency_s, state=state))
        except Exception:
            self._fault("The schedule policy %r failed to learn (fault %d).")

    def _state(self, now_s: float, options: Sequence[Option], id: str = "") -> State:
        return State(now_s, options, id, {"running": self.running, "slots": self.slots}, self.prices)

    def _decide(self, now_s: float, options: Sequence[Option]) -> tuple[int, str]:
        """Who is next, and the decision's id. A policy that fails or declines must not stop the endpoint, and
        would do so for requests that have nothing to do with it: the first in line goes then.
        """
        self._decisions += 1
        id = str(self._decisions)
        try:
            choice = self.policy.decide(self._state(now_s, options, id)).choice
        except Exception:
            self._fault("The schedule policy %r failed; the first in line goes next (fault %d).")
            choice = None
        return (choice if choice is not None and 0 <= choice < len(options) else 0), id

    def _fault(self, says: str) -> None:
        """A policy is anybody's and may raise anything. Of those that fail at every request the first is told, the
        second, the fourth, the eighth and so on.
        """
        self.faults += 1
        if self.faults.bit_count() == 1:
            logger.exception(says, self.policy, self.faults)

    def _until_free_s(self, position: int) -> float:
        """How long the endpoint takes, at its measured pace, to start ``position`` more requests."""
        return position * self._mean_s() / self.slots

    def _mean_s(self) -> float:
        """The mean service: measured, else predicted for those that wait."""
        if self.mean_service_s is not None:
            return self.mean_service_s
        known = [s for option in self._options if (s := _expected(option)) is not None]
        return sum(known) / len(known) if known else _ASSUMED_S


def _deadline(option: Option) -> float | None:
    deadline_s = option.facts.get("deadline_s") if option.facts else None
    return deadline_s if isinstance(deadline_s, (int, float)) else None


def _expected(option: Option) -> float | None:
    expected_s = option.facts.get("expected_s") if option.facts else None
    return expected_s if isinstance(expected_s, (int, float)) else option.cost.get("server_seconds")


def _place_of(options: list[Option], wanted: Option) -> int:
    """The index of ``wanted`` itself, not of an equal one."""
    return next(index for index, option in enumerate(options) if option is wanted)
