"""The proxy's twin: everything of one run that decides, counts and remembers, and what a request does in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from apportion.core import choosing
from apportion.core.features import Features
from apportion.core.outcome import Status
from apportion.measure.decision_log import Entry
from apportion.measure.usage import Usage
from apportion.simulate.engine import Done
from apportion.simulate.proxy.accounts import NO_LINES, Accounts, Lines, Refused
from apportion.simulate.proxy.answers import Answers
from apportion.simulate.proxy.clock import Clock
from apportion.simulate.proxy.deciding import Ended, chosen
from apportion.simulate.proxy.flow import answer
from apportion.simulate.proxy.group import Group, Route
from apportion.simulate.proxy.job import Attempt, Job, Task
from apportion.simulate.proxy.machines import Fleet
from apportion.simulate.proxy.many import think
from apportion.simulate.proxy.rows import Rows, Sink
from apportion.simulate.proxy.settlements import Settlements
from apportion.simulate.proxy.sites import Site
from apportion.simulate.result import FAILED, OK, REFUSED
from apportion.simulate.scenario import Key, Scenario

_NO_FEATURES = Features(())


class Proxy:
    """One proxy with one worker, in virtual time."""

    def __init__(
        self,
        scenario: Scenario,
        clock: Clock,
        seed: int,
        sink: Sink | None,
        log: Callable[[Entry], object] | None,
        prefix: str,
    ) -> None:
        self.scenario = scenario
        self.clock = clock
        self._epoch_s = scenario.epoch_s
        self.rng = random.Random(seed)
        self.fleet = Fleet(
            entangled=scenario.cache is not None
            or any(model.strategy is not None for model in scenario.models)
            or any(endpoint.queue is not None for endpoint in scenario.endpoints)
        )
        self.accounts = Accounts(scenario)
        outside = {"usd": 1.0, **scenario.prices}
        self.sites: dict[str, Site] = {
            endpoint.name: Site(endpoint, clock, self.fleet, outside, streamed=scenario.stream)
            for endpoint in scenario.endpoints
        }
        self.actions: dict[str, int] = {}
        for model in scenario.models:
            for route in model.routes:
                self.actions.setdefault(route.action, len(self.actions))
        self.actions.setdefault("cache", len(self.actions))
        self.groups: dict[str, Group] = {
            model.name: Group(model, code, self.sites, self.actions, scenario)
            for code, model in enumerate(scenario.models)
        }
        self.keys: dict[str, Key] = {key.name: key for key in scenario.keys}
        self.tenants: dict[str, int] = {}
        self.settlements = Settlements(self, log)
        self.answers = None if scenario.cache is None else Answers(self, scenario.cache)
        self.rows = Rows(sink)
        self.ended: Counter[str] = Counter()
        """Why requests were not answered."""
        self.running = 0
        self.in_system_s = 0.0
        """Integral over time of the number of requests in the system."""
        self._changed_s = clock.now_s
        self._prefix = prefix
        self._ids = 0
        self._numbers = 0

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self._epoch_s + self.clock.now_s

    # a request

    def job(self, index: int, key: Key, group: Group) -> Job:
        """A request that will come, or a call of a strategy."""
        job = Job(index, key, group, self.accounts.sheet(key, group.name))
        if self.scenario.api != job.api:
            job.api = self.scenario.api
        return job

    def enter(self, job: Job) -> None:
        """A request of the trace comes."""
        self.number(job)
        self._count(1)
        task = job.task = self._call(job)
        next(task, None)

    def number(self, job: Job) -> None:
        """It begins now, as the next one."""
        self._ids += 1
        job.id = f"dec_{self._prefix}{self._ids:08x}"
        job.started_s = self.clock.now_s
        job.now = self.now

    def _call(self, job: Job) -> Task:
        why = ""
        try:
            if job.key.models is not None and job.group.name not in job.key.models:
                raise Ended(REFUSED, "model")
            if job.group.plain:
                yield from answer(self, job)
            else:
                yield from self._decided(job)
        except Ended as end:
            job.status, why = end.status, end.why
        finally:
            self._count(-1)
            if why:
                self.ended[why] += 1
            self._row(job)
            self.settlements.add(job)

    def _decided(self, job: Job) -> Task:
        """Answer a call of a model for which more is decided than the endpoint."""
        group = job.group
        if group.guard is not None:
            self._inspect(job)
        if group.conversations is not None and job.session:
            job.turn = group.conversations.find(job.key.tenant, job.session, job.now)
        answers = self.answers
        turn = None
        if answers is not None and group.caches and job.key.routing:
            turn = yield from answers.look(job)
            if turn is None:
                return
        try:
            if group.strategy is not None and self.tried_out(job):
                yield from think(self, job, group.strategy)
            else:
                yield from answer(self, job)
            if turn is not None and answers is not None and job.status == OK:
                answers.keep(job, turn)
        finally:
            if turn is not None and answers is not None:
                answers.end(turn)

    def _inspect(self, job: Job) -> None:
        """Ask the guard about a request and do as it says. Raises `Ended` where it refuses."""
        guard = job.group.guard
        assert guard is not None  # noqa: S101 - the caller has looked
        verdict = job.verdict = guard.inspect(
            job.features or _NO_FEATURES, job.key.tenant, job.group.name, job.cap_tokens
        )
        job.factor = verdict.factor
        if verdict.action == "refuse":
            raise Ended(REFUSED, "guard")
        tokens = verdict.max_tokens
        if tokens is not None and (job.cap_tokens is None or job.cap_tokens > tokens):
            job.cap_tokens = tokens
        if verdict.note is not None:
            # As the proxy writes it: a system message before the others.
            job.body_bytes += len(f'{{"role":"system","content":"{verdict.note}"}},')
            job.messages += 1

    def tried_out(self, job: Job) -> bool:
        """Whether the model's policy decides, and not the baseline: the same for all of a conversation."""
        share = job.group.config.rollout
        return job.key.routing and (share >= 1.0 or choosing.drawn_in(share, job.session or job.id))

    # the books

    def hold(self, job: Job, lines: Lines, amounts: tuple[int, ...]) -> None:
        """Hold what the attempt may cost. Raises `accounts.Refused`."""
        try:
            self.accounts.hold(lines, amounts, self.now)
        except Refused:
            if not self.settlements.flush():
                raise
            self.accounts.hold(lines, amounts, self.now)
        job.lines, job.held = lines, amounts
        job.counted = True

    def hold_request(self, job: Job, place: str) -> None:
        """Hold one request and nothing else. Raises `Ended`."""
        lines = self.accounts.lines(job.key, job.session, job.group.name, place)
        try:
            self.hold(job, lines, (0, 0, 0, 0, 0, 1, 0, 0))
        except Refused as refusal:
            raise Ended(REFUSED, f"budget {refusal.account.budget.name}") from None

    def give_back(self, job: Job) -> None:
        """Release what is held, if anything (nothing was sent)."""
        held, job.held = job.held, None
        if held:
            if held[5]:
                job.counted = False
            self.accounts.release(job.lines, held, self.now)

    # an attempt

    def begin(self, job: Job, route: Route, waited_s: float) -> Attempt:
        """A try at an endpoint begins."""
        now_s, site = self.clock.now_s, route.site
        assert job.decision is not None  # noqa: S101 - an attempt follows a decision
        self._numbers += 1
        attempt = Attempt(self._numbers, job.decision, route, now_s)
        attempt.waited_s = waited_s
        attempt.state, job.state = job.state, None
        if site.circuit.state != "closed":
            site.circuit.begin(now_s)
        site.counts()
        site.in_flight += 1
        attempt.share = site.shares.start(now_s)
        return attempt

    def end_attempt(
        self,
        job: Job,
        attempt: Attempt,
        usage: Usage | None,
        done: Done | None,
        *,
        status: Status = "ok",
        finish: str | None = None,
        failure: str | None = None,
        http_status: int = 200,
        censored: bool = False,
    ) -> None:
        """It has ended: what it used, and what that costs. ``done`` is its machine's account, of a lost try too."""
        now_s, route = self.clock.now_s, attempt.route
        site = route.site
        site.counts()
        site.in_flight -= 1
        server_s = attempt.server_s = site.shares.stop(attempt.share, now_s)
        attempt.ended_s = now_s
        attempt.status, attempt.usage, attempt.finish = status, usage, finish
        attempt.failure, attempt.http_status, attempt.censored = failure, http_status, censored
        if route.machine is not None:
            attempt.units = route.machine.units(server_s)
        elif usage is not None:
            attempt.units = None if route.price is None else route.price.units(usage)
        if done is not None:
            attempt.preempted, attempt.joules = done.preempted, done.joules
        if done is not None and status == "ok":
            attempt.worked_s, attempt.gap_s = done.started_s, done.longest_gap_s
            if done.tokens:
                attempt.first_s = done.first_token_s + site.delay_s
        attempt.lines, attempt.held = (job.lines, job.held) if job.held is not None else (NO_LINES, ())
        job.held = None
        job.attempts.append(attempt)

    # what is written down

    def _row(self, job: Job) -> None:
        last = job.answered_by or (job.attempts[-1] if job.attempts else None)
        if job.status < 0:
            job.status = FAILED
        action = -1
        if job.cached in ("hit", "joined", "semantic"):
            action = self.actions["cache"]
        elif last is not None:
            action = last.route.code
            if job.status == OK or last.usage is not None:
                job.expected_quality = self.expected_quality(job, last)
        tenant = self.tenants.setdefault(job.key.tenant, len(self.tenants))
        self.rows.add(job, tenant, self.clock.now_s, action)

    def expected_quality(self, job: Job, attempt: Attempt) -> float:
        """How good its answer is expected to be: by the trace, else by the predictor or the configuration."""
        if job.piece is not None and job.piece.quality is not None:
            known = _recorded(job, attempt.route.action)
            if known == known:
                return known
        quality = chosen(attempt.decision).quality
        return float("nan") if quality is None else quality

    def _count(self, more: int) -> None:
        now_s = self.clock.now_s
        self.in_system_s += self.running * (now_s - self._changed_s)
        self._changed_s = now_s
        self.running += more

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of coded columns."""
        return {
            "model": tuple(self.groups),
            "tenant": tuple(self.tenants),
            "action": tuple(self.actions),
            "instance": tuple(machine.name for machine in self.fleet.machines),
        }


def _recorded(job: Job, action: str) -> float:
    piece: Any = job.piece
    if action not in piece.actions:
        return float("nan")
    return float(piece.quality[job.row, piece.actions.index(action)])
