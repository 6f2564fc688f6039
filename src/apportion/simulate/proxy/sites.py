"""Endpoints: what the proxy knows of each, and the machines behind it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

from apportion.core.circuit import Circuit, ServerClock
from apportion.core.cost import Cost
from apportion.core.line import Line, Place, Waiter
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.policy import Policy
from apportion.core.prospect import Prospect
from apportion.core.state import State
from apportion.simulate.engine import Batching, Done, Engine
from apportion.simulate.proxy.clock import Clock
from apportion.simulate.proxy.hosted import Hosted
from apportion.simulate.proxy.job import Attempt, Job
from apportion.simulate.proxy.machines import ABSENT, COLD, DOWN, DRAINING, LEAVING, READY, Fleet, Machine
from apportion.simulate.proxy.prefixes import Prefixes
from apportion.simulate.proxy.scaling import Scaler
from apportion.simulate.scenario import Endpoint, build

_FREE: Final = Cost()
_LOOKED_THROUGH: Final = 256
"""Requests that are kept in mind, with twice those under way, before it is looked who of them was answered."""


class Failure(Exception):
    """An endpoint that gave no answer: ``kind`` as the proxy names it ("refused", "reset", "busy", "timeout", "full",
    "status"), ``sent`` whether it had been asked, ``status`` the HTTP status of an answer that is an error, ``done``
    what its machine had made of the answer, and drawn for it, by then (None: it never worked on it).
    """

    def __init__(
        self, kind: str, *, sent: bool = False, status: int = 0, phase: str = "", done: Done | None = None
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.sent = sent
        self.status = status
        self.phase = phase
        self.done = done

    @property
    def tokens(self) -> int:
        """What had been made of the answer."""
        return 0 if self.done is None else self.done.tokens


class Waits(Waiter):
    """A request in the line of an endpoint."""

    __slots__ = ("_job", "_site", "_timer")

    def __init__(self, site: Site, job: Job, option: Option, entered_s: float) -> None:
        super().__init__(option, entered_s)
        self._site = site
        self._job = job
        self._timer: list[Any] | None = None

    def start(self, place: Place) -> None:
        """Its turn has come."""
        self._site.clock.at(self._site.clock.now_s, self._job.resume, place)

    def refuse(self, error: Exception) -> None:
        """In vain."""
        self._site.clock.at(self._site.clock.now_s, self._job.resume, error)

    @property
    def wanted(self) -> bool:
        """Nobody's client leaves here."""
        return True

    def set_due(self) -> None:
        """When it is dropped."""
        self.forget()
        if self.due_s < math.inf:
            self._timer = self._site.clock.at(self.due_s, self._site.expire, self)

    def forget(self) -> None:
        """It waits no longer."""
        if self._timer is not None:
            Clock.cancel(self._timer)
            self._timer = None


class Limit:
    """Answers that take longer than an endpoint may: all of them (``total``), or those without a ``first_token``."""

    __slots__ = ("_after_s", "_most", "_phase", "_site", "_under_way", "_watching")

    def __init__(self, site: Site, after_s: float, phase: str) -> None:
        self._site = site
        self._after_s = after_s
        self._phase = phase
        self._under_way: deque[tuple[float, Machine, int]] = deque()
        self._most = _LOOKED_THROUGH
        self._watching = False

    def add(self, machine: Machine, number: int) -> None:
        """A request has been sent. Now and then those that have been answered are forgotten."""
        under_way, clock = self._under_way, self._site.clock
        under_way.append((clock.now_s + self._after_s, machine, number))
        if not self._watching:
            self._watching = True
            clock.at(under_way[0][0], self._due)
        elif len(under_way) > self._most:
            self._under_way = deque(sent for sent in under_way if sent[2] in sent[1].jobs)
            self._most = 2 * len(self._under_way) + _LOOKED_THROUGH

    def _due(self, _: object) -> None:
        clock, phase = self._site.clock, self._phase
        while self._under_way:
            due_s, machine, number = self._under_way[0]
            job = machine.jobs.get(number)
            if job is not None and due_s > clock.now_s:
                clock.at(due_s, self._due)
                return
            self._under_way.popleft()
            if job is not None and (phase == "total" or not machine.made(clock.now_s, number)):
                done = self._site.take_back(machine, number)
                job.resume(Failure("timeout", sent=True, phase=phase, done=done))
        self._watching = False


class Site:
    """One endpoint in the twin: breaker, clock, queue and load as in the proxy, and machines that do the work."""

    def __init__(
        self,
        config: Endpoint,
        clock: Clock,
        fleet: Fleet,
        prices: dict[str, float],
        *,
        streamed: bool,
    ) -> None:
        self.name = config.name
        self.config = config
        self.clock = clock
        self.fleet = fleet
        self.circuit = Circuit(config.breaker, self._circuit_changed)
        self.shares = ServerClock()
        self.in_flight = 0
        self.slots = config.slots
        self.error = 0
        """The HTTP status that it answers everything with; 0 for none."""
        self.delay_s = config.delay_s
        self.shared_tokens = 0 if config.profile is None else config.profile.shared_tokens
        self.line: Line | None = None
        queue = config.queue
        if queue is not None:
            self.line = Line(
                build(queue.policy, Policy, f"endpoints.{config.name}.queue"),
                slots=max(1, config.slots or 1),
                max_waiting=queue.max_waiting,
                max_wait_s=queue.max_wait_s,
                now=lambda: clock.now_s,
                prices=prices,
            )
        self.machines: list[Machine] = []
        self._spread = build(config.spread, Policy, f"endpoints.{config.name}.spread")
        self._limits = [Limit(self, config.total_s, "total")]
        if streamed:
            self._limits.append(Limit(self, config.first_token_s, "first_token"))
        self.prospects: list[Prospect] = []
        """Its roles, as policies are told of them."""
        for _ in range(config.instances):
            self.add()
        self.scaler = None if config.scaling is None else Scaler(self, config.scaling)

    def add(self, state: int = READY) -> Machine:
        """One more machine, which is there from now on."""
        config, profile = self.config, self.config.profile
        assert profile is not None  # noqa: S101 - a scenario without it is refused
        engine: Engine | Hosted
        if profile.kind == "hosted":
            engine = Hosted(profile)
        else:
            batching = config.batching or Batching(kind=profile.batching)
            engine = Engine(profile, batching, start_s=self.clock.now_s)
        prefixes = Prefixes(config) if config.prefix_tokens else None
        name = f"{config.name}#{len(self.machines)}"
        machine = Machine(self, name, len(self.fleet.machines), engine, prefixes)
        machine.state = state
        self.machines.append(machine)
        self.fleet.add(machine)
        return machine

    def start(self, machine: Machine | None, load_s: float) -> None:
        """A machine that was gone (None: one more) loads, and is ready after so long."""
        now_s = self.clock.now_s
        if machine is None:
            machine = self.add(COLD)
        else:
            machine.comes(now_s, COLD)
        if load_s > 0.0:
            self.clock.at(now_s + load_s, self._loaded, (machine, machine.starts))
        else:
            self._loaded((machine, machine.starts))

    def _loaded(self, what: tuple[Machine, int]) -> None:
        """A machine is ready, unless it has gone meanwhile."""
        machine, starts = what
        if machine.state == COLD and machine.starts == starts:
            machine.state = READY
            self.resized()

    @property
    def ready(self) -> list[Machine]:
        """The machines that take requests."""
        return [machine for machine in self.machines if machine.state == READY]

    def resized(self) -> None:
        """Machines have come or gone: with them their share of the slots, where their number is meant to change."""
        scaler = self.scaler
        if scaler is None:
            return
        scaler.note()
        scaler.changed()
        ready = max(1, len(self.ready))
        if self.config.slots:
            self.slots = slots = max(1, round(scaler.each * ready))
            for prospect in self.prospects:
                prospect.facts = {"capacity": float(slots)}
            line, queue = self.line, self.config.queue
            if line is not None and queue is not None and line.slots != slots:
                line.configure(
                    line.policy, slots=slots, max_waiting=queue.max_waiting, max_wait_s=queue.max_wait_s
                )

    # what the proxy knows

    @property
    def load(self) -> float | None:
        """Work in flight over capacity; None if the capacity is unknown."""
        slots = self.slots
        if not slots:
            return None
        line = self.line
        return (self.in_flight + (0 if line is None else line.waiting)) / slots

    def counts(self) -> None:
        """The requests here are about to become more, or fewer."""
        if self.scaler is not None:
            self.scaler.note()

    def available(self, now_s: float) -> bool:
        """Whether a request may go there now."""
        circuit = self.circuit
        return circuit.state == "closed" or circuit.allows(now_s)

    def _circuit_changed(self, state: str) -> None:
        if state == "open" and self.line is not None:
            self.counts()
            self.line.turn_away(Failure("busy"))

    def expire(self, waiter: Waits) -> None:
        """The time of one in the line has passed."""
        if self.line is not None:
            self.counts()
            self.line.drop_if_due(waiter)

    # work

    def send(self, job: Job, attempt: Attempt, output_tokens: int) -> Machine:
        """Give a request to a machine. Raises `Failure`; else the job is resumed with a `Done` or a `Failure`."""
        if self.error:
            raise Failure("status", sent=True, status=self.error)
        machine = self.machines[0]
        if len(self.machines) > 1 or machine.state != READY:
            machine = self._choose(job)
        engine, now_s, number = machine.engine, self.clock.now_s, attempt.number
        cached = 0
        if machine.prefixes is not None and job.piece is not None:
            cached = machine.prefixes.found(job, now_s)
        shared = self.shared_tokens
        if cached < shared:
            cached = min(shared, job.prompt_tokens - 1)
        attempt.cached_tokens = cached
        if isinstance(engine, Hosted):
            at_s = now_s + self.delay_s
            done = engine.submit(at_s, number, job.prompt_tokens, output_tokens, cached, job.draws)
            machine.jobs[number] = job
            self.clock.at(done.finish_s + self.delay_s, self._arrived, (machine, done))
        else:
            engine.submit(
                now_s, number, job.prompt_tokens, output_tokens, cached, job.priority, delay_s=self.delay_s
            )
            machine.takes(job, number, now_s, output_tokens)
            self.fleet.touched(machine)
        for limit in self._limits:
            limit.add(machine, number)
        return machine

    def _choose(self, job: Job) -> Machine:
        """The instance that gets a request."""
        up = self.ready
        if not up:
            raise Failure("refused")
        if len(self.machines) == 1:
            return up[0]
        options = [Option(machine.name, 0.0, _FREE, load=float(len(machine.jobs))) for machine in up]
        decision = self._spread.decide(State(self.clock.now_s, options, f"{job.id}.{job.tries}"))
        return up[decision.choice or 0]

    def take_back(self, machine: Machine, number: int) -> Done | None:
        """A request is not wanted any more: what was produced of it."""
        done = machine.give_up(self.clock.now_s, number)
        self.fleet.touched(machine)
        if machine.state == DRAINING:
            self._drained(machine)
        return done

    def ended(self, machine: Machine, done: Done) -> None:
        """A machine has finished a request: the client's end of the wire hears of it when it comes."""
        machine.on_wire[done.request] = done
        self.clock.at(done.finish_s + self.delay_s, self._arrived, (machine, done))

    def _arrived(self, what: tuple[Machine, Done]) -> None:
        machine, done = what
        job = machine.jobs.pop(done.request, None)
        if isinstance(machine.engine, Hosted):
            machine.engine.left(done)
        else:
            machine.on_wire.pop(done.request, None)
        if job is not None:
            if self._spread.learns:
                self._spread.learn(_outcome(job, machine, done))
            if machine.state == DRAINING:
                self._drained(machine)
            job.resume(done)

    def _drained(self, machine: Machine) -> None:
        """A machine that is not needed is gone as soon as it works on nothing."""
        if not machine.jobs:
            machine.goes(self.clock.now_s, ABSENT)
            self.fleet.touched(machine)
            self.resized()

    # faults

    def down(self, instance: int | None) -> int:
        """The machine (None: all of them) is gone, with what ran on it; how many requests that were."""
        lost, now_s = 0, self.clock.now_s
        for machine in self._those(instance):
            if not machine.there:
                continue
            for done in machine.goes(now_s, DOWN):
                job = machine.jobs.pop(done.request, None)
                if job is not None:
                    lost += 1
                    self.clock.at(now_s, job.resume, Failure("reset", sent=True, done=done))
            self.fleet.touched(machine)
        self.resized()
        return lost

    def up(self, instance: int | None, load_s: float = 0.0) -> None:
        """It is there again, empty, and ready after so long."""
        for machine in self._those(instance):
            if machine.state == DOWN:
                self.start(machine, load_s)
            elif machine.state == LEAVING:
                machine.state = READY
        self.resized()

    def notice(self, instance: int | None) -> None:
        """It will be gone soon: it finishes what it can, and gets no more."""
        for machine in self._those(instance):
            if machine.state == READY:
                machine.state = LEAVING
        self.resized()

    def slow(self, factor: float, instance: int | None) -> None:
        """Its iterations take ``factor`` times as long from now on."""
        for machine in self._those(instance):
            machine.slow(self.clock.now_s, factor)
            self.fleet.touched(machine)

    def _those(self, instance: int | None) -> list[Machine]:
        return list(self.machines) if instance is None else self.machines[instance : instance + 1]


def _outcome(job: Job, machine: Machine, done: Done) -> Outcome:
    status: Status = "ok"
    seconds = done.finish_s - done.started_s
    return Outcome(f"{job.id}.{job.tries}", status, machine.name, Cost(seconds=seconds), latency_s=seconds)
