"""The line of an endpoint without a loop: who starts, who waits, who is dropped, in a time that is told."""

from __future__ import annotations

import pytest

from apportion.core import Cost, Decision, Option, Outcome, Policy, State, catalogue
from apportion.core.line import Line, Place, TurnedAway, Waiter, claim, ticket
from apportion.policy.schedule.fcfs import Fcfs


class Told(Waiter):
    """One that notes what it is told."""

    place: Place | None = None
    error: Exception | None = None

    def start(self, place: Place) -> None:
        self.place = place

    def refuse(self, error: Exception) -> None:
        self.error = error

    @property
    def wanted(self) -> bool:
        return self.place is None and self.error is None


class World:
    """A line and its clock."""

    def __init__(self, policy: str = "schedule/fcfs", **limits: float) -> None:
        self.now_s = 0.0
        made = catalogue.build(policy)
        assert isinstance(made, Policy)
        self.line = Line(made, now=lambda: self.now_s, **limits)  # type: ignore[arg-type]

    def enter(self, name: str, **facts: float) -> Place | Told:
        option = ticket(name, arrived_s=self.now_s, **facts)  # type: ignore[arg-type]
        place = self.line.try_enter(option)
        if place is not None:
            return place
        self.line.check_room(option)
        waiter = Told(option, self.now_s)
        self.line.join(waiter)
        return waiter


def place(found: Place | Told) -> Place:
    assert isinstance(found, Place)
    return found


def waits(found: Place | Told) -> Told:
    assert isinstance(found, Told)
    return found


def test_whoever_leaves_starts_the_next_by_the_policy() -> None:
    world = World("schedule/sjf", slots=1)
    first = place(world.enter("first"))
    long, short = waits(world.enter("long", expected_s=9.0)), waits(world.enter("short", expected_s=1.0))
    world.now_s = 2.5
    first.leave()
    assert short.place is not None
    assert (short.place.waited_s, short.place.started_s) == (2.5, 2.5)
    assert long.place is None
    first.leave()  # only the first time counts
    assert (world.line.running, world.line.waiting) == (1, 1)
    assert world.line.mean_service_s == 2.5


def test_limits_say_why() -> None:
    world = World(slots=1, max_waiting=2, max_wait_s=5.0)
    world.enter("a")
    b, c = waits(world.enter("b")), waits(world.enter("c", deadline_s=3.0))
    with pytest.raises(TurnedAway) as full:
        world.enter("d")
    assert (full.value.why, full.value.waiting) == ("full", 2)
    world.now_s = 3.0
    world.line.expire()
    assert isinstance(c.error, TurnedAway)
    assert (c.error.why, c.error.waited_s) == ("deadline", 3.0)
    world.now_s = b.due_s
    assert not world.line.forsake(c)
    world.line.expire()
    assert isinstance(b.error, TurnedAway)
    assert (b.error.why, b.error.waited_s) == ("too_late", 5.0)
    with pytest.raises(TurnedAway, match="deadline"):
        world.enter("e", deadline_s=1.0)
    assert (world.line.full, world.line.too_late, world.line.waiting) == (1, 3, 0)


def test_whoever_goes_leaves_nothing_behind() -> None:
    world = World(slots=1)
    running = place(world.enter("a"))
    b, c = waits(world.enter("b")), waits(world.enter("c"))
    assert world.line.forsake(b)
    running.leave()
    assert b.place is None
    assert c.place is not None
    gone = RuntimeError("gone")
    d = waits(world.enter("d"))
    assert world.line.turn_away(gone) == 1
    assert d.error is gone


def test_a_claim_says_what_a_ticket_says() -> None:
    chosen = Option("a", 1.0, Cost(server_seconds=2.0))
    facts = claim(chosen, arrived_s=1.0, deadline_s=None, priority=3, tenant="key:a")
    known = ticket("x", arrived_s=1.0, priority=3, tenant="key:a", expected_s=2.0).facts
    assert known is not None
    assert {name: known[name] for name in facts} == facts


class Broken(Fcfs):
    """One that raises whatever it is asked."""

    learns = True

    def decide(self, state: State) -> Decision:
        raise ZeroDivisionError

    def learn(self, outcome: Outcome) -> None:
        raise KeyError


def test_a_policy_that_always_fails_stops_nobody_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(slots=1)
    world.line.policy = Broken()
    inside = place(world.enter("first"))
    waiting = [waits(world.enter(str(i))) for i in range(40)]
    for waiter in waiting:
        inside.leave()
        assert waiter.place is not None, "in their order"
        inside = waiter.place
    assert world.line.faults >= 40
    told = [record for record in caplog.records if "schedule policy" in record.getMessage()]
    assert len(told) == world.line.faults.bit_length()
    assert told[0].exc_info is not None
