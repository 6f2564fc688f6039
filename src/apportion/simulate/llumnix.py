"""Instances between which requests move while they are being answered: dispatch, live migration, draining, scaling.

Where a request goes, which instance gives one away, which takes it and how many instances there are is for policies to
say (Llumnix, OSDI 2024: `place/llumnix`, `scale/freeness`). A request moves in stages: what its keys and values are is
copied while decoding goes on, then what was made meanwhile, until at most a block is left; only then it stops, the rest
follows, and it goes on elsewhere. Memory is put aside over there before each stage. A move is given up when the request
ends or loses its memory, or when there is no memory or no future over there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.core.cost import Cost
from apportion.core.errors import ApportionError
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.simulate.engine import Batching, Done, Moved, group
from apportion.simulate.engine import _kernel as k
from apportion.simulate.events import Clock
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result, empty
from apportion.simulate.trace import Trace

_FREE: Final = Cost()
_ABSENT, _COLD, _READY, _DRAINING = range(4)


class MigrationError(ApportionError):
    """Instances that cannot be, or between which nothing can move."""

    code = "migration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """``count`` instances of ``profile`` at the beginning; at least ``least``, at most ``most`` where they are scaled.

    The link between two instances carries ``bytes_per_s`` for each move; every stage of a move begins with
    ``latency_s``. Those with too little freedom are paired with those that have some every ``interval_s``; whether
    there should be more or fewer is asked every ``scale_s``. A new one is there after the profile's ``load_s``.
    """

    profile: Profile
    count: int = 16
    batching: Batching | None = None
    bytes_per_s: float = 8e9
    """64 Gbit/s: the network of the paper's machines."""
    latency_s: float = 0.005
    interval_s: float = 0.1
    scale_s: float = 1.0
    least: int = 1
    most: int | None = None
    """None: ``count``."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.count <= self.limit:
            raise MigrationError(
                f"There are {self.count} instances where {self.least} to {self.limit} may be.",
                field="count",
                fix="least <= count <= most, all of them 1 or more.",
            )
        for name in ("bytes_per_s", "interval_s", "scale_s"):
            if not getattr(self, name) > 0:
                raise MigrationError(f"'{name}' is {getattr(self, name)!r}.", field=name, fix="Above 0.")
        if not 0 <= self.latency_s < math.inf:
            raise MigrationError(
                f"'latency_s' is {self.latency_s!r}.", field="latency_s", fix="Zero or more."
            )
        if self.profile.kv_bytes_per_token <= 0:
            raise MigrationError(
                f"The profile {self.profile.name!r} does not say what a token takes in memory.",
                field="kv_bytes_per_token",
                fix="Give the bytes of a token's keys and values.",
            )

    @property
    def limit(self) -> int:
        """The most instances there may be."""
        return self.count if self.most is None else self.most


class Move(NamedTuple):
    """A move, and what came of it: ``how`` is "moved", or why it was given up: "ended", "preempted", "no memory",
    "no future". ``stages`` are the tokens that each copied; ``stopped_s`` is when the request stopped (nan: it never
    did), ``end_s`` when it was over there, or given up.
    """

    request: int
    source: int
    target: int
    begin_s: float
    stopped_s: float
    end_s: float
    stages: tuple[int, ...]
    how: str

    @property
    def downtime_s(self) -> float:
        """From the last token over here to where it may go on over there."""
        return self.end_s - self.stopped_s


def run(
    trace: Trace,
    instances: Instances,
    dispatch: Policy,
    move: Policy | None = None,
    scale: Policy | None = None,
    *,
    seed: int = 0,
) -> Result:
    """Serve a trace. ``dispatch`` chooses the instance of every request that arrives; ``move`` the pairs between which
    requests move (None: none does); ``scale`` how many instances there are (None: always the same). One policy may
    do the first two.

    Requests of priority above 0 are of high priority, before others in queues and the last to lose memory. One that
    fits into no instance has failed. The facts of the result: ``moves`` (`Move`), ``instance_s`` (seconds of all
    instances, cold ones included), ``counts`` (time and number of instances, at each change).
    """
    return _Run(trace, instances, dispatch, move, scale, seed).result()


class _Run:
    """The instances at work."""

    def __init__(
        self,
        trace: Trace,
        instances: Instances,
        dispatch: Policy,
        move: Policy | None,
        scale: Policy | None,
        seed: int,
    ) -> None:
        for policy in {id(p): p for p in (dispatch, move, scale) if p is not None}.values():
            policy.reset()
        self.trace, self.of, self.seed = trace, instances, seed
        self.dispatch, self.move, self.scale = dispatch, move, scale
        n = instances.limit
        self.engines = group([instances.profile] * n, [instances.batching or Batching()] * n)
        self.store = self.engines[0]._store
        self.names = [f"{instances.profile.name}-{index}" for index in range(n)]
        self.index = {name: place for place, name in enumerate(self.names)}
        self.status = [_READY if place < instances.count else _ABSENT for place in range(n)]
        self.place: dict[int, int] = {}
        self.high: list[set[int]] = [set() for _ in range(n)]
        self.under_way = [0] * n
        """Requests of each instance, with those that are on their way to it."""
        self.moving: dict[int, tuple[int, int]] = {}
        """Source and target by request."""
        self.busy: set[int] = set()
        """Instances from or to which something moves."""
        self.moves: list[Move] = []
        self.counts = [(0.0, instances.count)]
        self.columns = empty(len(trace))
        self.columns["request"][:] = np.arange(len(trace))
        self.columns["arrival_s"][:] = trace.arrival_s
        self.columns["prompt_tokens"][:] = trace.prompt_tokens
        self.columns["instance"][:] = -1
        if trace.priority is not None:
            self.columns["priority"][:] = trace.priority
        self.left = len(trace)
        self.clock = Clock()

    def result(self) -> Result:
        """Let everything happen."""
        clock, arrivals = self.clock, self._arrivals()
        clock.at(max(0.0, float(self.trace.arrival_s[0])) if self.left else 0.0, self._arrive, arrivals)
        if self.move is not None:
            clock.after(self.of.interval_s, self._pair, priority=1)
        if self.scale is not None:
            clock.after(self.of.scale_s, self._scale, priority=2)
        while self.left:
            if len(clock):
                clock.step()
            else:
                self._advance(math.inf)
        end_s = max(clock.now, float(np.nanmax(self.columns["finish_s"], initial=0.0)))
        at_s, counts = (np.array(column, np.float64) for column in zip(*self.counts, strict=True))
        rows = np.lexsort((self.columns["request"], self.columns["finish_s"]))
        facts: dict[str, Any] = {
            "seed": self.seed,
            "horizon_s": end_s,
            "moves": self.moves,
            "instance_s": float(np.sum(counts * np.diff(at_s, append=end_s))),
            "counts": self.counts,
            "busy_s": [engine.busy_s for engine in self.engines],
            "preemptions": sum(engine.preemptions for engine in self.engines),
        }
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Result(columns, {"instance": tuple(self.names)}, facts)

    # Requests

    def _arrivals(self) -> Iterator[tuple[int, int, int, int]]:
        priority = self.trace.priority
        high = np.zeros(len(self.trace), np.int8) if priority is None else (priority > 0).astype(np.int8)
        prompts = np.maximum(self.trace.prompt_tokens, 1).tolist()
        outputs = np.maximum(self.trace.output_tokens, 1).tolist()
        yield from zip(range(len(self.trace)), prompts, outputs, high.tolist(), strict=True)

    def _arrive(self, arrivals: Iterator[tuple[int, int, int, int]]) -> None:
        now_s = self.clock.now
        request, prompt, output, high = next(arrivals)
        if request + 1 < len(self.trace):
            self.clock.at(max(now_s, float(self.trace.arrival_s[request + 1])), self._arrive, arrivals)
        if not self.engines[0].fits(prompt, output):
            self.columns["status"][request] = FAILED
            self.columns["finish_s"][request] = now_s
            self.left -= 1
            return
        self._advance(now_s)
        place = self._chosen(self.dispatch, "dispatch", self._shown(self._ready()), request, high=bool(high))
        self.engines[place].submit(now_s, request, prompt, output, priority=high)
        self._enters(request, place, bool(high))

    def _ready(self) -> list[int]:
        return [place for place, status in enumerate(self.status) if status == _READY]

    def _enters(self, request: int, place: int, high: bool) -> None:
        self.place[request] = place
        self.under_way[place] += 1
        if high:
            self.high[place].add(request)

    def _leaves(self, request: int, place: int) -> None:
        self.under_way[place] -= 1
        self.high[place].discard(request)

    def _advance(self, now_s: float) -> None:
        """Everything that ends by now."""
        for place in np.flatnonzero(self.store.state.due <= now_s).tolist():
            while done := self.engines[place].advance(now_s):
                for one in done:
                    self._finished(place, one)

    def _finished(self, place: int, done: Done) -> None:
        row, columns = done.request, self.columns
        columns["status"][row] = OK
        columns["instance"][row] = place
        columns["output_tokens"][row] = done.tokens
        columns["queued_s"][row] = done.started_s - columns["arrival_s"][row]
        columns["tries"][row] = 1
        for name in ("first_token_s", "finish_s", "longest_gap_s", "preempted", "server_s", "joules"):
            columns[name][row] = getattr(done, name)
        self._leaves(done.request, place)
        del self.place[done.request]
        self.left -= 1

    # What policies are shown

    def _shown(self, places: list[int]) -> dict[int, Option]:
        """What a policy sees of instances now."""
        return {place: self._option(place, self.clock.now) for place in places}

    def _chosen(
        self, policy: Policy, task: str, shown: dict[int, Option], request: int = -1, *, high: bool = False
    ) -> int:
        """The instance that a policy chooses, -1 for none; a request has to go somewhere."""
        asked: dict[str, Any] = {"task": task}
        if request >= 0:
            asked |= {"request": request, "high": high}
        action = policy.decide(State(self.clock.now, list(shown.values()), request=asked)).action
        if action is not None:
            return self.index[action]
        return next(iter(shown)) if task == "dispatch" else -1

    def _option(self, place: int, now_s: float) -> Option:
        engine, s = self.engines[place], self.store.state
        head, waiting = self._asked(place)
        used = engine.kv_tokens(now_s)
        high = sum(1 for request in self.high[place] if self._runs(request, place))
        facts = {
            "kv_tokens": engine.kv_capacity,
            "used_tokens": used,
            "head_tokens": head,
            "running": int(s.i[place, k.DECODING] + s.i[place, k.PROMPTS]),
            "high": high,
            "draining": self.status[place] == _DRAINING,
        }
        return Option(self.names[place], 0.0, _FREE, load=(used + waiting) / engine.kv_capacity, facts=facts)

    def _asked(self, place: int) -> tuple[int, int]:
        """Tokens of memory that the first of the waiting requests asks for, and that all of them do."""
        s, asked = self.store.state, []
        for first in (k.HEAD, k.PENDING):
            row = int(s.i[place, first])
            while row >= 0:
                asked.append(int(s.p[row, k.PROMPT] + s.p[row, k.TOKENS]))
                row = int(s.p[row, k.NEXT])
        return (asked[0], sum(asked)) if asked else (0, 0)

    def _runs(self, request: int, place: int) -> bool:
        row = self.engines[place]._rows.get(request)
        return row is not None and int(self.store.state.p[row, k.PHASE]) in (k.IN_PROMPT, k.IN_DECODE)

    # Moving

    def _pair(self) -> None:
        """Give the least free instances a partner each, and let a request set out."""
        policy, now_s = self.move, self.clock.now
        if policy is None or not self.left:
            return
        self.clock.after(self.of.interval_s, self._pair, priority=1)
        self._advance(now_s)
        for place, status in enumerate(self.status):
            if status == _DRAINING:
                self._empty(place)
        there = (p for p, s in enumerate(self.status) if s in (_READY, _DRAINING) and p not in self.busy)
        free = self._shown(list(there))
        while len(free) > 1:
            source = self._chosen(policy, "leave", free)
            if source < 0:
                return
            del free[source]
            target = self._chosen(policy, "join", {p: o for p, o in free.items() if self.status[p] == _READY})
            if target < 0:
                return
            request = self._who(source)
            if request < 0:
                continue
            del free[target]
            self.moving[request] = (source, target)
            self.busy |= {source, target}
            self._stage(request, now_s, 0, 0, (), self._preempted(request, source))

    def _who(self, source: int) -> int:
        """The decoding request that leaves: of low priority first, then the shortest; -1 where none decodes."""
        s = self.store.state
        rows = s.lane[source, k.ROW, : s.i[source, k.DECODING]]
        rows = rows[s.p[rows, k.GOING] == 0]
        if not len(rows):
            return -1
        order = np.lexsort((s.p[rows, k.REQUEST], s.p[rows, k.ORIGIN], s.p[rows, k.PRIORITY]))
        return int(s.p[rows[order[0]], k.REQUEST])

    def _preempted(self, request: int, place: int) -> int:
        return int(self.store.state.p[self.engines[place]._rows[request], k.PREEMPTED])

    def _stage(
        self, request: int, begin_s: float, copied: int, held: int, stages: tuple[int, ...], preempted: int
    ) -> None:
        """Copy what is not copied yet, or stop the request and copy the rest. ``held`` tokens are put aside for it."""
        now_s = self.clock.now
        self._advance(now_s)
        source, target = self.moving[request]
        engine, other = self.engines[source], self.engines[target]

        def given_up(how: str) -> None:
            if held:
                other.unreserve(now_s, held)
            self._moved(Move(request, source, target, begin_s, math.nan, now_s, stages, how))

        if self.place.get(request) != source:
            return given_up("ended")
        if self._preempted(request, source) != preempted or not self._runs(request, source):
            return given_up("preempted")
        if self.status[target] != _READY:
            return given_up("no future")
        context = engine.progress(now_s, request).context_tokens
        block = self.of.profile.block_tokens
        # The iteration in progress makes one more token.
        wanted = -(-(context + 1) // block) * block
        if wanted > held:
            if not other.reserve(now_s, wanted - held):
                return given_up("no memory")
            held = wanted
        new = context - copied
        if copied and new <= block:
            moved = engine.export(now_s, request)
            if moved is None:
                return given_up("ended")
            self._leaves(request, source)
            self._enters(request, target, moved.priority > 0)
            rest = moved.context_tokens - copied
            end_s = moved.ready_s + self.of.latency_s + self._copy_s(rest)
            self.clock.at(end_s, self._land, moved, begin_s, held, (*stages, rest))
            return None
        end_s = now_s + self.of.latency_s + self._copy_s(new)
        self.clock.at(end_s, self._stage, request, begin_s, context, held, (*stages, new), preempted)
        return None

    def _copy_s(self, tokens: int) -> float:
        return tokens * self.of.profile.kv_bytes_per_token / self.of.bytes_per_s

    def _land(self, moved: Moved, begin_s: float, held: int, stages: tuple[int, ...]) -> None:
        now_s = self.clock.now
        self._advance(now_s)
        source, target = self.moving[moved.request]
        self.engines[target].unreserve(now_s, held)
        self.engines[target].import_(now_s, moved)
        self._moved(Move(moved.request, source, target, begin_s, moved.ready_s, now_s, stages, "moved"))

    def _moved(self, move: Move) -> None:
        self.moves.append(move)
        self.busy -= {move.source, move.target}
        del self.moving[move.request]

    # How many there are

    def _empty(self, place: int) -> None:
        """Those that wait on an instance that is to go wait elsewhere; it goes when nobody is left."""
        now_s = self.clock.now
        ready = self._ready()
        for request in [r for r, at in self.place.items() if at == place and r not in self.moving]:
            engine = self.engines[place]
            if ready and engine.progress(now_s, request).phase in ("pending", "waiting"):
                moved = engine.export(now_s, request)
                if moved is None:
                    continue
                high = moved.priority > 0
                target = self._chosen(self.dispatch, "dispatch", self._shown(ready), request, high=high)
                self.engines[target].import_(now_s, moved)
                self._leaves(request, place)
                self._enters(request, target, high)

    def _scale(self) -> None:
        policy, now_s = self.scale, self.clock.now
        if policy is None or not self.left:
            return
        self.clock.after(self.of.scale_s, self._scale, priority=2)
        self._advance(now_s)
        for place, status in enumerate(self.status):
            if status == _DRAINING and not self.under_way[place] and place not in self.busy:
                self._becomes(place, _ABSENT)
        ready = self._ready()
        cold = [place for place, status in enumerate(self.status) if status == _COLD]
        absent = [place for place, status in enumerate(self.status) if status == _ABSENT]
        changes = [0]
        if absent and not cold:
            changes.append(1)
        if len(ready) > self.of.least and not cold:
            changes.append(-1)
        names = {1: "out", 0: "stay", -1: "in"}
        options = [Option(names[change], 0.0, _FREE, facts={"change": change}) for change in changes]
        freeness = float(np.mean([self._freeness(place, now_s) for place in ready]))
        action = policy.decide(State(now_s, options, request={"freeness": freeness})).action
        if action == "out":
            self._becomes(absent[0], _COLD)
            self.clock.after(self.of.profile.load_s, self._becomes, absent[0], _READY)
        elif action == "in":
            self._becomes(min(ready, key=lambda place: (self.under_way[place], -place)), _DRAINING)

    def _freeness(self, place: int, now_s: float) -> float:
        """For how many steps the memory of an instance will do, whatever the priorities."""
        engine = self.engines[place]
        spare = engine.free_tokens(now_s) - self._asked(place)[0]
        return spare / max(1, engine.running)

    def _becomes(self, place: int, status: int) -> None:
        self.status[place] = status
        count = sum(status != _ABSENT for status in self.status)
        if count != self.counts[-1][1]:
            self.counts.append((self.clock.now, count))


def downtimes_s(result: Result) -> NDArray[np.float64]:
    """Seconds for which each request that moved stood still."""
    return np.array([move.downtime_s for move in result.facts["moves"] if move.how == "moved"])
