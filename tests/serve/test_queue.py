"""The queue before an endpoint: order, limits, honest errors, and nothing left behind whatever is cancelled when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apportion.core import Cost, Decision, Option, Outcome, Policy, State, catalogue
from apportion.serve.errors import DeadlineMissed, GatewayError, QueueFull, WaitedTooLong
from apportion.serve.queue import EndpointQueue, Place, ticket


class Clock:
    """A clock that only goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def policy(name: str = "fcfs", **parameters: Any) -> Policy:
    found = catalogue.build(f"schedule/{name}", **parameters)
    assert isinstance(found, Policy)
    return found


def queue(name: str = "fcfs", *, slots: int = 1, clock: Clock | None = None, **limits: Any) -> EndpointQueue:
    return EndpointQueue(policy(name), slots=slots, now=clock or Clock(), **limits)


def task(work: Coroutine[Any, Any, Place]) -> asyncio.Task[Place]:
    return asyncio.get_running_loop().create_task(work)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_free_slot_is_given_without_a_task_switch() -> None:
    q = queue(slots=2)
    entering = q.enter(ticket("a", arrived_s=0.0))
    with pytest.raises(StopIteration) as stopped:  # the coroutine ends without ever suspending
        entering.send(None)
    place = stopped.value.value
    assert (q.running, q.waiting, place.waited_s) == (1, 0, 0.0)
    place.leave()
    assert q.running == 0


async def test_the_policy_says_who_is_next() -> None:
    clock = Clock()
    q = queue("sjf", clock=clock)
    first = await q.enter(ticket("first", arrived_s=0.0))
    waiting = {
        name: task(q.enter(ticket(name, arrived_s=0.0, expected_s=s)))
        for name, s in [("long", 9.0), ("short", 1.0)]
    }
    await settle()
    assert (q.running, q.waiting) == (1, 2)
    clock.now_s = 3.0
    first.leave()
    await settle()
    assert waiting["short"].done()
    assert not waiting["long"].done()
    place = waiting["short"].result()
    assert place.waited_s == 3.0
    place.leave()
    await settle()
    waiting["long"].result().leave()
    assert (q.running, q.waiting) == (0, 0)


async def test_leaving_twice_counts_once() -> None:
    q = queue(slots=1)
    place = await q.enter(ticket("a", arrived_s=0.0))
    second = task(q.enter(ticket("b", arrived_s=0.0)))
    third = task(q.enter(ticket("c", arrived_s=0.0)))
    await settle()
    place.leave(1.0)
    place.leave(1.0)
    await settle()
    assert (q.running, q.waiting) == (1, 1)
    assert second.done()
    assert not third.done()
    third.cancel()
    second.result().leave()


async def test_a_full_queue_says_when_to_come_back() -> None:
    clock = Clock()
    q = queue(slots=2, clock=clock, max_waiting=3)
    for k in range(40):
        (await q.enter(ticket(f"warm-{k}", arrived_s=0.0))).leave(4.0)
    running = [await q.enter(ticket(f"run-{k}", arrived_s=0.0)) for k in range(2)]
    waiting = [task(q.enter(ticket(f"wait-{k}", arrived_s=0.0))) for k in range(3)]
    await settle()
    with pytest.raises(QueueFull) as full:
        await q.enter(ticket("one more", arrived_s=0.0))
    # Three go before it, two at a time, four seconds each.
    assert full.value.retry_after_s == pytest.approx(4 * 4.0 / 2)
    assert full.value.status == 503
    assert q.snapshot().full == 1
    for one in waiting:
        one.cancel()
    await settle()
    for place in running:
        place.leave()
    assert (q.running, q.waiting, q.gone) == (0, 0, 3)


async def test_before_anything_was_measured_the_predictions_speak() -> None:
    q = queue(max_waiting=1)
    place = await q.enter(ticket("a", arrived_s=0.0, expected_s=7.0))
    waiting = task(q.enter(ticket("b", arrived_s=0.0, expected_s=7.0)))
    await settle()
    with pytest.raises(QueueFull) as full:
        await q.enter(ticket("c", arrived_s=0.0))
    assert full.value.retry_after_s == pytest.approx(14.0)
    waiting.cancel()
    place.leave()


async def test_waiting_ends_with_the_deadline_at_once_not_at_its_turn() -> None:
    q = EndpointQueue(policy(), slots=1, now=asyncio.get_running_loop().time)
    now_s = q.now()
    await q.enter(ticket("runs on", arrived_s=now_s))
    with pytest.raises(DeadlineMissed) as missed:
        await q.enter(ticket("late", arrived_s=now_s, deadline_s=now_s + 0.01))
    assert missed.value.status == 504
    assert missed.value.field == "apportion.deadline_s"
    with pytest.raises(DeadlineMissed):
        await q.enter(ticket("later", arrived_s=now_s, deadline_s=now_s))
    assert (q.running, q.waiting, q.too_late) == (1, 0, 2)


async def test_waiting_ends_after_max_wait() -> None:
    q = EndpointQueue(policy(), slots=1, max_wait_s=0.01, now=asyncio.get_running_loop().time)
    place = await q.enter(ticket("runs", arrived_s=q.now()))
    with pytest.raises(WaitedTooLong) as late:
        await q.enter(ticket("waits", arrived_s=q.now(), deadline_s=q.now() + 60.0))
    assert late.value.status == 503
    assert late.value.retry_after_s
    place.leave()
    assert (q.running, q.waiting) == (0, 0)


async def test_one_whose_time_has_passed_is_not_started_although_its_timer_did_not_fire() -> None:
    clock = Clock()
    q = queue(clock=clock)
    place = await q.enter(ticket("runs", arrived_s=0.0))
    late = task(q.enter(ticket("late", arrived_s=0.0, deadline_s=5.0)))
    fine = task(q.enter(ticket("fine", arrived_s=1.0, deadline_s=50.0)))
    await settle()
    clock.now_s = 6.0
    place.leave()
    await settle()
    assert isinstance(late.exception(), DeadlineMissed)
    fine.result().leave()
    assert (q.running, q.waiting) == (0, 0)


async def test_a_cancelled_waiter_frees_its_place_at_once() -> None:
    q = queue(max_waiting=1)
    place = await q.enter(ticket("runs", arrived_s=0.0))
    waiting = task(q.enter(ticket("waits", arrived_s=0.0)))
    await settle()
    waiting.cancel()
    await settle()
    another = task(q.enter(ticket("another", arrived_s=0.0)))
    await settle()
    assert q.waiting == 1
    place.leave()
    await settle()
    another.result().leave()


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_cancelled_in_the_moment_of_its_turn(cancelled_first: bool) -> None:
    """The slot is given and the task cancelled before the loop turns: the slot goes to the next."""
    q = queue()
    place = await q.enter(ticket("runs", arrived_s=0.0))
    unlucky = task(q.enter(ticket("unlucky", arrived_s=0.0)))
    heir = task(q.enter(ticket("heir", arrived_s=1.0)))
    await settle()
    if cancelled_first:
        unlucky.cancel()
        place.leave()
    else:
        place.leave()
        unlucky.cancel()
    await settle()
    assert unlucky.cancelled()
    assert heir.done()
    assert (q.running, q.waiting, q.gone, q.started) == (1, 0, 1, 2)
    heir.result().leave()
    assert q.running == 0


async def test_the_same_id_cannot_wait_twice() -> None:
    q = queue()
    place = await q.enter(ticket("runs", arrived_s=0.0))
    waiting = task(q.enter(ticket("a", arrived_s=0.0)))
    await settle()
    with pytest.raises(ValueError, match="waits already"):
        await q.enter(ticket("a", arrived_s=0.0))
    assert q.waiting == 1
    waiting.cancel()
    await settle()
    place.leave()


async def test_position_is_that_of_the_policy_and_only_ones_own() -> None:
    q = queue("sjf")
    (await q.enter(ticket("warm", arrived_s=0.0))).leave(2.0)
    place = await q.enter(ticket("runs", arrived_s=0.0))
    waiting = [
        task(q.enter(ticket(name, arrived_s=0.0, expected_s=s, tenant=name)))
        for name, s in [("long", 9.0), ("short", 1.0), ("middle", 5.0)]
    ]
    await settle()
    long = q.position("long")
    assert long is not None
    assert (long.ahead, long.expected_wait_s) == (2, 6.0)
    assert msgspec.json.decode(msgspec.json.encode(long)) == {"ahead": 2, "expected_wait_s": 6.0}
    short = q.position("short")
    assert short is not None
    assert short.ahead == 0
    assert q.position("runs") is None
    assert q.positions(["short", "runs", "long", "unknown"]) == {"short": short, "long": long}
    assert q.position("unknown") is None
    shown = msgspec.json.encode(q.snapshot()).decode()
    assert not any(tenant in shown for tenant in ('"long"', '"short"', '"middle"'))
    for one in waiting:
        one.cancel()
    await settle()
    place.leave()


async def test_reload_changes_slots_policy_and_limits_under_those_who_wait() -> None:
    clock = Clock()
    q = queue("fcfs", clock=clock)
    place = await q.enter(ticket("runs", arrived_s=0.0))
    tasks = {
        name: task(q.enter(ticket(name, arrived_s=0.0, expected_s=s)))
        for name, s in [("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0)]
    }
    await settle()
    q.configure(policy("sjf"), slots=3, max_waiting=10)
    await settle()
    assert {name for name, one in tasks.items() if one.done()} == {"c", "d"}
    q.configure(policy("sjf"), slots=1, max_waiting=0)
    with pytest.raises(QueueFull):
        await q.enter(ticket("e", arrived_s=0.0))
    tasks["c"].result().leave()
    tasks["d"].result().leave()
    await settle()
    assert (q.running, q.waiting) == (1, 2), "fewer slots take effect as running ones leave"
    clock.now_s = 9.0
    q.configure(policy("sjf"), slots=1, max_wait_s=5.0)
    await settle()
    assert all(isinstance(tasks[name].exception(), WaitedTooLong) for name in "ab")
    place.leave()
    with pytest.raises(ValueError, match="slots"):
        q.configure(policy(), slots=0)


async def test_turning_away_ends_every_wait_with_the_given_error() -> None:
    q = queue()
    place = await q.enter(ticket("runs", arrived_s=0.0))
    tasks = [task(q.enter(ticket(f"{k}", arrived_s=0.0))) for k in range(3)]
    await settle()
    assert q.turn_away(GatewayError("gone")) == 3
    await settle()
    assert all(isinstance(one.exception(), GatewayError) for one in tasks)
    assert (q.running, q.waiting) == (1, 0)
    place.leave()


async def test_a_place_is_a_context_and_tells_how_it_ended() -> None:
    told: list[Outcome] = []

    class Listener(Policy):
        def reset(self) -> None: ...

        def decide(self, state: State) -> Decision:
            return self.nothing(state)

        def learn(self, outcome: Outcome) -> None:
            told.append(outcome)

    clock = Clock()
    q = EndpointQueue(Listener(), slots=1, now=clock)
    with await q.enter(ticket("fine", arrived_s=0.0)):
        clock.now_s = 2.0
    with (
        pytest.raises(KeyError),
        q.try_enter(ticket("broken", arrived_s=2.0)) or pytest.fail("a slot was free"),
    ):
        raise KeyError
    assert [(o.action, o.status, o.cost.get("server_seconds")) for o in told] == [
        ("fine", "ok", 2.0),
        ("broken", "failed", 0.0),
    ]
    assert told[0].state is not None
    assert [o.action for o in told[0].state.options] == ["fine"]


async def test_a_policy_that_fails_or_declines_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Policy):
        def reset(self) -> None: ...

        def decide(self, state: State) -> Decision:
            if state.now < 5.0:
                raise ZeroDivisionError
            return self.nothing(state)

    clock = Clock()
    q = EndpointQueue(Broken(), slots=1, now=clock)
    place = await q.enter(ticket("runs", arrived_s=0.0))
    first, second = (task(q.enter(ticket(name, arrived_s=0.0))) for name in ("first", "second"))
    await settle()
    place.leave()
    await settle()
    assert "failed" in caplog.text
    clock.now_s = 6.0
    first.result().leave()
    await settle()
    second.result().leave()
    assert (q.running, q.waiting) == (0, 0)


async def test_fair_shares_are_corrected_by_what_was_measured() -> None:
    """Tenant a says its jobs are short; they take ten times as long. Both still get the same seconds."""
    clock = Clock()
    q = queue("weighted_fair", clock=clock)
    had = {"a": 0.0, "b": 0.0}
    started: list[str] = []

    async def stream(tenant: str, service_s: float, k: int) -> None:
        place = await q.enter(ticket(f"{tenant}{k}", arrived_s=float(k), tenant=tenant, expected_s=1.0))
        started.append(tenant)
        had[tenant] += service_s
        clock.now_s += service_s
        await asyncio.sleep(0)
        place.leave(service_s)

    async with asyncio.TaskGroup() as group:
        for k in range(200):
            group.create_task(stream("a", 10.0, k))
            group.create_task(stream("b", 1.0, k))
        while len(started) < 150:
            await asyncio.sleep(0)
        seen = dict(had)
    assert abs(seen["a"] - seen["b"]) <= 21.0
    assert (q.running, q.waiting) == (0, 0)


@pytest.mark.parametrize("name", ["alise", "edf", "fcfs", "predictive_sjf", "priced", "sjf", "weighted_fair"])
@pytest.mark.parametrize("slots", [1, 3])
async def test_live_order_is_that_of_a_simulation_with_the_same_policy(name: str, slots: int) -> None:
    """One course of arrivals through the queue and through a bare event loop over the policy: equal starts."""
    draw = random.Random(5)
    now_s, works = 0.0, []
    for k in range(150):
        now_s += draw.expovariate(0.8 * slots)
        service_s = draw.lognormvariate(-0.5, 1.0)
        option = ticket(
            f"{k:03}",
            arrived_s=now_s,
            value=0.01,
            tenant=draw.choice("abc"),
            p_long=draw.random(),
            expected_s=service_s * draw.lognormvariate(0.0, 0.5),
        )
        works.append((now_s, service_s, option))

    # Simulated: departures before arrivals, as in the queue, where whoever leaves is followed at once.
    scheduler, waiting, busy, simulated = policy(name), [], [], []
    events = [(at, 1, k) for k, (at, _, _) in enumerate(works)]
    while events:
        events.sort()
        at, coming, k = events.pop(0)
        if coming:
            waiting.append(k)
        else:
            busy.remove(k)
            spent = Cost(server_seconds=works[k][1])
            scheduler.learn(Outcome(works[k][2].action, "ok", works[k][2].action, spent))
        while waiting and len(busy) < slots:
            choice = scheduler.decide(State(at, [works[j][2] for j in waiting], "")).choice
            assert choice is not None
            chosen = waiting.pop(choice)
            simulated.append((works[chosen][2].action, at))
            busy.append(chosen)
            events.append((at + works[chosen][1], 0, chosen))

    clock = Clock()
    q = queue(name, slots=slots, clock=clock)
    live: list[tuple[str, float]] = []
    due: list[tuple[float, int, int]] = [(at, 1, k) for k, (at, _, _) in enumerate(works)]
    places: dict[int, Place] = {}

    async def request(k: int) -> Place:
        place = places[k] = await q.enter(works[k][2])
        live.append((works[k][2].action, place.started_s))
        due.append((place.started_s + works[k][1], 0, k))
        return place

    while due:
        due.sort()
        clock.now_s, coming, k = due.pop(0)
        if coming:
            kept = task(request(k))
            assert kept
        else:
            places[k].leave(works[k][1])
        await settle()
    assert sorted(live, key=lambda one: (one[1], one[0])) == sorted(
        simulated, key=lambda one: (one[1], one[0])
    )
    assert len(live) == 150


async def test_pending_is_what_a_router_needs() -> None:
    q = queue()
    place = await q.enter(ticket("a", arrived_s=0.0, expected_s=2.0, weight=3.0))
    waiting = task(q.enter(ticket("b", arrived_s=0.0)))
    await settle()
    assert q.pending() == [(3.0, 2.0), (1.0, 1.0)]
    place.leave(8.0)
    await settle()
    assert q.pending() == [(1.0, 8.0)]
    waiting.result().leave()


class Comings(RuleBasedStateMachine):
    """Requests come, go, are cancelled, expire and finish in any order, and the loop turns when it likes.

    Nothing may be lost: what entered is waiting, running or over; no slot stays idle while somebody waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.queue = queue("fcfs", slots=2, clock=self.clock, max_waiting=4, max_wait_s=20.0)
        self.tasks: dict[str, asyncio.Task[Place]] = {}
        self.places: dict[str, Place] = {}
        self.random = random.Random(0)
        self.count = 0

    def teardown(self) -> None:
        for one in self.tasks.values():
            one.cancel()
        self._turn()
        for place in self.places.values():
            place.leave()
        self._turn()
        for place in self.places.values():
            place.leave()
        assert (self.queue.running, self.queue.waiting) == (0, 0)
        snapshot = self.queue.snapshot()
        assert snapshot.started + snapshot.full + snapshot.too_late + snapshot.gone == self.count
        assert not self.queue._waiting
        self.loop.close()

    def _turn(self) -> None:
        async def turn() -> None:
            await settle()

        self.loop.run_until_complete(turn())
        for name, one in list(self.tasks.items()):
            if one.done():
                del self.tasks[name]
                if not one.cancelled() and one.exception() is None:
                    self.places[name] = one.result()

    @rule(
        patience_s=st.one_of(st.none(), st.floats(0.0, 30.0)), priority=st.integers(-1, 2), turn=st.booleans()
    )
    def come(self, patience_s: float | None, priority: int, turn: bool) -> None:
        self.count += 1
        now_s = self.clock.now_s
        deadline_s = None if patience_s is None else now_s + patience_s
        name = f"r{self.count}"
        option = ticket(name, arrived_s=now_s, deadline_s=deadline_s, priority=priority)

        async def enter() -> Place:
            return await self.queue.enter(option)

        self.tasks[name] = self.loop.create_task(enter())
        self._turn()  # a task that is cancelled before its first step never comes to the queue at all
        if turn:
            self._turn()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), turn=st.booleans())
    def cancel(self, data: st.DataObject, turn: bool) -> None:
        self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))].cancel()
        if turn:
            self._turn()

    @precondition(lambda self: self.places)
    @rule(data=st.data(), turn=st.booleans(), again=st.booleans())
    def leave(self, data: st.DataObject, turn: bool, again: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.places)))
        self.places[name].leave(data.draw(st.floats(0.0, 10.0)))
        if not again:
            del self.places[name]
        if turn:
            self._turn()

    @rule(step_s=st.floats(0.0, 15.0), expire=st.booleans())
    def wait(self, step_s: float, expire: bool) -> None:
        self.clock.now_s += step_s
        if expire:
            self.queue.expire()

    @rule(slots=st.integers(1, 4), name=st.sampled_from(["fcfs", "weighted_fair", "alise", "priced"]))
    def reload(self, slots: int, name: str) -> None:
        self.queue.configure(policy(name), slots=slots, max_waiting=4, max_wait_s=20.0)

    @rule()
    def turn(self) -> None:
        self._turn()

    @invariant()
    def nobody_waits_for_a_free_slot(self) -> None:
        q = self.queue
        assert not q.waiting or q.running >= q.slots
        assert q.waiting <= 4
        assert [o.action for o in q._options] == list(q._waiting)

    @invariant()
    def positions_are_a_permutation(self) -> None:
        found = [self.queue.position(name) for name in self.queue._waiting]
        assert sorted(p.ahead for p in found if p is not None) == list(range(self.queue.waiting))


TestComings = Comings.TestCase
TestComings.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)


def test_options_carry_what_the_policies_read() -> None:
    option = ticket("a", arrived_s=1.0, deadline_s=2.0, priority=3, tenant="t", weight=4.0, p_long=0.5)
    assert isinstance(option, Option)
    assert option.facts == {
        "arrived_s": 1.0,
        "deadline_s": 2.0,
        "priority": 3,
        "tenant": "t",
        "weight": 4.0,
        "p_long": 0.5,
        "expected_s": None,
        "attained_s": 0.0,
    }
