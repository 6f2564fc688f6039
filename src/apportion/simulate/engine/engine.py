"""One instance of an engine, in virtual time: submit requests, ask when something happens next, let it work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.engine import _kernel as k
from apportion.simulate.engine._compiled import cold as is_cold
from apportion.simulate.engine._store import Store
from apportion.simulate.engine.batching import Batching, EngineError
from apportion.simulate.profile import Profile


class Done(NamedTuple):
    """A request that has ended. ``first_token_s`` and ``finish_s`` are the client's view: ``after_s`` of the profile
    later than the engine's. ``longest_gap_s`` is the longest time between two tokens; ``server_s`` its share of the
    iterations it took part in, by tokens, and ``joules`` of what they drew (nan: the profile has no power);
    ``preempted`` how often it lost its memory.
    """

    request: int
    started_s: float
    first_token_s: float
    finish_s: float
    longest_gap_s: float
    preempted: int
    server_s: float
    joules: float
    tokens: int


class Progress(NamedTuple):
    """Where a request is: ``phase`` is pending (on its way), waiting, prefill, decode or held; ``tokens`` it has made;
    ``context_tokens`` it keeps in memory; ``left_tokens`` it has still to make.
    """

    phase: str
    tokens: int
    context_tokens: int
    left_tokens: int


class Plan(NamedTuple):
    """What an engine is doing: iterations that end at ``ends_s`` (shape k), each with a token for every request of
    ``decoding``; or one iteration with so many prompt tokens of the requests in ``prompts``, and those of ``decoding``
    that are in it too. ``completing`` are the prompts that are then whole: their first token comes.
    """

    begins_s: float
    ends_s: NDArray[np.float64]
    decoding: tuple[int, ...]
    prompts: dict[int, int]
    completing: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens of each of its iterations."""
        return len(self.decoding) + sum(self.prompts.values())


class Moved(NamedTuple):
    """A request between two engines. ``ready_s`` is when it has left the first; ``tokens`` it has made;
    ``context_tokens`` whose keys and values travel (0: it has to be computed anew); times and gap are the client's view
    so far, ``last_token_s`` the engine's.
    """

    request: int
    ready_s: float
    prompt_tokens: int
    output_tokens: int
    tokens: int
    context_tokens: int
    priority: int = 0
    started_s: float = float("nan")
    first_token_s: float = float("nan")
    last_token_s: float = float("nan")
    longest_gap_s: float = 0.0
    preempted: int = 0
    server_s: float = 0.0
    joules: float = 0.0


PHASES = {
    k.ON_ITS_WAY: "pending", k.IN_QUEUE: "waiting", k.LANDING: "waiting", k.IN_PROMPT: "prefill",
    k.IN_DECODE: "decode", k.FINISHED: "held",
}  # fmt: skip


class Engine:
    """An instance of ``profile`` with ``batching``, empty at ``start_s``.

    Time only moves forward: the ``now_s`` of a call must not be less than that of the one before. A request that is
    submitted at the very moment at which an iteration begins takes part in it. ``store`` and ``index`` are for
    `group`.
    """

    def __init__(
        self,
        profile: Profile,
        batching: Batching | None = None,
        *,
        start_s: float = 0.0,
        store: Store | None = None,
        index: int = 0,
    ) -> None:
        self.profile = profile
        self.batching = batching or Batching()
        self._store = store or Store([profile], [self.batching], start_s=start_s)
        self._k = index
        self._rows: dict[int, int] = {}
        self._most_tokens = self.batching.most_tokens(profile)
        self._born_s = start_s
        self._stopped_s = np.inf

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request can ever be worked on."""
        return prompt_tokens + output_tokens - 1 <= self._most_tokens

    def submit(
        self,
        now_s: float,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        priority: int = 0,
        *,
        hold: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        """Send a request; it is before the engine ``delay_s`` and the profile's ``before_s`` later.

        ``cached_tokens`` at the beginning of the prompt need no computing (at least one token is computed). Higher
        ``priority`` goes first. With ``hold`` its memory stays taken after its end until `release`.
        """
        self._check(request, prompt_tokens, output_tokens)
        store, at = self._store, self._k
        s = store.state
        args = (request, prompt_tokens, output_tokens, cached_tokens, priority, int(hold))
        if s.due.item(at) < now_s:
            store.advance(s, at, now_s, False)
        row = store.submit(s, at, now_s, delay_s, *args)
        if row < 0:
            row = store.submit(store.grow(len(s.p)), at, now_s, delay_s, *args)
        self._rows[request] = row

    def _check(self, request: int, prompt_tokens: int, output_tokens: int) -> None:
        if prompt_tokens < 1 or output_tokens < 1:
            raise EngineError(
                f"Request {request} has {prompt_tokens} prompt tokens and {output_tokens} output tokens.",
                field="prompt_tokens" if prompt_tokens < 1 else "output_tokens",
                fix="Give one or more of each.",
            )
        if request in self._rows:
            raise EngineError(
                f"Request {request} is already in the engine.",
                field="request",
                fix="Number requests uniquely.",
            )
        if prompt_tokens + output_tokens - 1 > self._most_tokens:
            raise EngineError(
                f"Request {request} needs memory for {prompt_tokens + output_tokens - 1} tokens; "
                f"'{self.profile.name}' has {self._most_tokens}.",
                field="prompt_tokens",
                fix="Ask 'fits' first, or give the profile more 'kv_tokens'.",
            )

    @property
    def next_s(self) -> float:
        """When something changes next if nothing more is submitted; inf when nothing will."""
        return self._store.state.due.item(self._k)

    def advance(self, until_s: float) -> list[Done]:
        """Work up to and including ``until_s``, or less: until the first moment at which something finishes. Call again
        for what comes after it. What ends at the same moment is in order of submission.
        """
        s, at = self._store.state, self._k
        self._store.advance(s, at, until_s, True)
        row = s.i.item(at, k.DONE)
        if row < 0:
            return []
        found: list[tuple[int, Done]] = []
        while row >= 0:
            p, q = s.p[row].tolist(), s.q[row].tolist()
            found.append((p[k.ORDER], _done(p, q)))
            if not p[k.HOLD]:
                del self._rows[p[k.REQUEST]]
                # `free_row`, for which a call of compiled code would take longer than it does itself.
                s.p[row, k.PHASE], s.p[row, k.NEXT], s.memory[0, 0] = k.FREE, s.memory[0, 0], row
            row = p[k.NEXT]
        s.i[at, k.DONE] = -1
        if len(found) > 1:
            found.sort()
        return [done for _, done in found]

    def cancel(self, now_s: float, request: int) -> Done:
        """Give a request up. What its client had by ``now_s`` comes back, and what it had used; it leaves after the
        iteration in progress, and the rest of its share of that is wasted (`waste_j`).
        """
        row = self._row(request)
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        if s.p[row, k.PHASE] == k.FINISHED:
            return self._collected(now_s, request, row)
        p, q = self._outlook(now_s, row, self._store.kernel.ended_by(s, self._k, now_s))
        self._accounted(row, q)
        self._store.kernel.going(s, self._k, row, now_s)
        del self._rows[request]
        q[k.FINISH_S] = now_s
        return _done(p, q)

    def _accounted(self, row: int, q: list[float]) -> None:
        """What a request that leaves has used is told; what its row gathers from now on is wasted."""
        rest = self._store.state.q[row]
        rest[k.SERVER_S] -= q[k.SERVER_S]
        rest[k.JOULES] -= q[k.JOULES]

    def _collected(self, now_s: float, request: int, row: int) -> Done:
        """A request that had finished before it was cancelled, taken off the list of the finished."""
        s = self._store.state
        before, other = -1, int(s.i[self._k, k.DONE])
        while other >= 0 and other != row:
            before, other = other, int(s.p[other, k.NEXT])
        if other == row:
            after = int(s.p[row, k.NEXT])
            if before < 0:
                s.i[self._k, k.DONE] = after
            else:
                s.p[before, k.NEXT] = after
            if after < 0:
                s.i[self._k, k.DONE_TAIL] = before
        done = _done(s.p[row].tolist(), s.q[row].tolist())
        if s.p[row, k.HOLD]:
            self.release(now_s, request)
        else:
            del self._rows[request]
            self._store.kernel.free_row(s, row)
        return done

    def export(self, now_s: float, request: int) -> Moved | None:
        """Take a request out to go on elsewhere; None where it ends by itself in the iteration in progress."""
        row = self._row(request)
        s, kernel = self._store.state, self._store.kernel
        kernel.advance(s, self._k, now_s, False)
        phase = int(s.p[row, k.PHASE])
        if phase == k.FINISHED:
            return None
        ended = 0
        if phase == k.IN_DECODE:
            kernel.cut(s, self._k, now_s)
            ended = int(s.i[self._k, k.COUNT])
        p, q = self._outlook(float(s.f[self._k, k.T1]), row, ended)
        if p[k.TOKENS] >= p[k.OUTPUT]:
            return None
        self._accounted(row, q)
        ready_s = kernel.going(s, self._k, row, now_s)
        del self._rows[request]
        computed = p[k.PROMPT] + p[k.TOKENS] - 1 if phase in (k.IN_DECODE, k.LANDING) else 0
        return Moved(
            request, ready_s, p[k.PROMPT], p[k.OUTPUT], p[k.TOKENS], computed, p[k.PRIORITY], q[k.STARTED_S],
            q[k.FIRST_S], q[k.LAST_S], q[k.GAP_S], p[k.PREEMPTED], q[k.SERVER_S], q[k.JOULES],
        )  # fmt: skip

    def import_(self, now_s: float, moved: Moved) -> None:
        """Go on with a request from elsewhere: with its keys and values where it brings them, as soon as there is
        memory; else with its prompt and the tokens it has made computed anew.
        """
        self._check(moved.request, moved.prompt_tokens, moved.output_tokens)
        store, kernel = self._store, self._store.kernel
        if store.state.memory[0, 0] < 0:
            store.grow(len(store.state.p))
        s = store.state
        kernel.advance(s, self._k, now_s, False)
        row = kernel.new_row(s, moved.request, moved.prompt_tokens, moved.output_tokens, 0, moved.priority)
        p, q = s.p[row], s.q[row]
        p[k.TOKENS], p[k.PREEMPTED] = moved.tokens, moved.preempted
        q[k.STARTED_S], q[k.FIRST_S], q[k.LAST_S] = moved.started_s, moved.first_token_s, moved.last_token_s
        q[k.GAP_S], q[k.SERVER_S], q[k.JOULES] = moved.longest_gap_s, moved.server_s, moved.joules
        if moved.context_tokens > 0:
            p[k.PHASE] = k.LANDING
        kernel.send(s, self._k, row, now_s)
        self._rows[moved.request] = row

    def release(self, now_s: float, request: int) -> None:
        """Give back the memory of a request that was submitted with ``hold`` and has ended."""
        row = self._row(request)
        s = self._store.state
        if s.p[row, k.PHASE] != k.FINISHED:
            raise EngineError(
                f"Request {request} has not ended.", field="request", fix="Use 'cancel' to give it up."
            )
        self._store.kernel.advance(s, self._k, now_s, False)
        s.memory[s.i[self._k, k.POOL], 0] -= self._store.kernel.blocks_of(
            s, self._k, int(s.p[row, k.COMPUTED])
        )
        self._store.kernel.free_row(s, row)
        del self._rows[request]
        self.wake(now_s)

    def reserve(self, now_s: float, tokens: int) -> bool:
        """Put memory for ``tokens`` tokens aside; False where there is not enough."""
        s, kernel = self._store.state, self._store.kernel
        kernel.advance(s, self._k, now_s, False)
        kernel.cut(s, self._k, now_s)
        blocks = kernel.blocks_of(s, self._k, tokens)
        if blocks > kernel.room(s, self._k):
            return False
        s.memory[s.i[self._k, k.POOL], 0] += blocks
        return True

    def unreserve(self, now_s: float, tokens: int) -> None:
        """Give back what `reserve` put aside."""
        s, kernel = self._store.state, self._store.kernel
        kernel.advance(s, self._k, now_s, False)
        s.memory[s.i[self._k, k.POOL], 0] -= kernel.blocks_of(s, self._k, tokens)
        self.wake(now_s)

    def wake(self, now_s: float) -> None:
        """Look at the waiting line again at the next chance: memory has come free elsewhere in a shared pool."""
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        self._store.kernel.attend(s, self._k, now_s)

    def pause_run(self, now_s: float) -> None:
        """Give back the memory that was set aside for decoding after the iteration in progress (shared pools)."""
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        self._store.kernel.cut(s, self._k, now_s)

    def stop(self, now_s: float) -> list[Done]:
        """Die: all requests are lost; what each had, and had used, by now, in order of submission. What had finished is
        in `advance` no more, and it draws nothing until `start`.
        """
        s, kernel, at = self._store.state, self._store.kernel, self._k
        kernel.advance(s, at, now_s, False)
        ended = kernel.ended_by(s, at, now_s)
        rows = sorted(self._rows.values(), key=lambda row: int(s.p[row, k.ORDER]))
        lost = []
        for row in rows:
            if s.p[row, k.PHASE] != k.FINISHED:
                p, q = self._outlook(now_s, row, ended)
                q[k.FINISH_S] = now_s
                lost.append(_done(p, q))
        decoding = s.lane[at, k.ROW, : s.i[at, k.DECODING]].tolist()
        for row in (*decoding, *s.lane[at, k.PRE, : s.i[at, k.PROMPTS]].tolist()):
            if s.p[row, k.GOING]:
                _, q = self._outlook(now_s, row, ended)
                s.f[at, k.WASTE_S] += q[k.SERVER_S]
                s.f[at, k.WASTE_J] += q[k.JOULES]
                rows.append(row)
        spent = s.f[at, k.T0]
        if s.i[at, k.KIND] > k.WAKE and now_s > spent:
            s.f[at, k.BUSY_S] += now_s - spent
            s.f[at, k.BUSY_J] += (now_s - spent) * s.f[at, k.WATTS]
        for row in rows:
            kernel.free_row(s, row)
        self._rows.clear()
        self._stopped_s = min(self._stopped_s, now_s)
        i = s.i[self._k]
        for column in (k.HEAD, k.TAIL, k.DONE, k.DONE_TAIL, k.PENDING, k.PENDING_TAIL):
            i[column] = -1
        for column in (
            k.KIND, k.COUNT, k.DECODING, k.PROMPTS, k.CONTEXT, k.GROWN, k.WAITING, k.LEAVING, k.QUEUED, k.LEFT,
            k.AWAITED,
        ):  # fmt: skip
            i[column] = 0
        s.lane[self._k, k.CROSSING] = s.lane[self._k, k.SEAT] = 0
        s.time[self._k, k.USED] = -np.inf
        s.memory[i[k.POOL], 0] = 0
        s.f[self._k, k.T0] = s.f[self._k, k.T1] = now_s
        s.due[self._k] = np.inf
        return lost

    def start(self, now_s: float) -> None:
        """It is there again after `stop`, empty."""
        self._born_s += max(0.0, now_s - self._stopped_s)
        self._stopped_s = np.inf

    def pace(
        self,
        now_s: float,
        *,
        prefill: float = 1.0,
        decode: float = 1.0,
        prefill_power: float = 1.0,
        decode_power: float = 1.0,
    ) -> None:
        """From the next iteration on, durations and watts are so many times the profile's (frequency, cap, share)."""
        if min(prefill, decode, prefill_power, decode_power) <= 0.0:
            raise EngineError(
                "A pace is zero or less.", field="pace", fix="Give factors above 0; 1 is the profile."
            )
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        args = (prefill, decode, prefill_power, decode_power)
        self._store.kernel.change_pace(s, self._k, now_s, *args)

    def slow(self, now_s: float, factor: float) -> None:
        """From the next iteration on everything takes ``factor`` times as long as the profile says."""
        self.pace(now_s, prefill=factor, decode=factor)

    def progress(self, now_s: float, request: int) -> Progress:
        """Where a request is at ``now_s``."""
        row = self._row(request)
        s, kernel = self._store.state, self._store.kernel
        kernel.advance(s, self._k, now_s, False)
        p, _ = self._outlook(now_s, row, kernel.ended_by(s, self._k, now_s))
        phase = p[k.PHASE]
        kept = 0 if phase in (k.ON_ITS_WAY, k.IN_QUEUE, k.LANDING) else p[k.COMPUTED]
        return Progress(PHASES[phase], p[k.TOKENS], kept, p[k.OUTPUT] - p[k.TOKENS])

    def planned(self) -> Plan | None:
        """What it does until `next_s`, if nothing comes between; None where it does nothing."""
        s, at = self._store.state, self._k
        i, f = s.i[at].tolist(), s.f[at].tolist()
        if i[k.KIND] <= k.WAKE:
            return None
        j = np.arange(1, i[k.COUNT] + 1)
        ends_s = f[k.T0] + j * f[k.BASE] + f[k.GROWTH] * 0.5 * j * (j - 1)
        count = i[k.DECODING] if i[k.KIND] == k.DECODE_PLAN or i[k.FUSE] else 0
        decoding = tuple(int(s.p[row, k.REQUEST]) for row in s.lane[at, k.ROW, :count])
        prompts, completing = {}, []
        if i[k.KIND] == k.PROMPT_PLAN:
            for b in range(i[k.PROMPTS]):
                row, tokens = s.lane[at, k.PRE, b], int(s.lane[at, k.TAKE, b])
                if tokens:
                    request = int(s.p[row, k.REQUEST])
                    prompts[request] = tokens
                    if s.p[row, k.COMPUTED] + tokens >= s.p[row, k.PROMPT] + s.p[row, k.TOKENS]:
                        completing.append(request)
        return Plan(f[k.T0], ends_s, decoding, prompts, tuple(completing))

    def _outlook(self, now_s: float, row: int, ended: int) -> tuple[list[int], list[float]]:
        """The row of a request as it is once ``ended`` iterations of the plan have ended, with its share until
        ``now_s``.
        """
        s, at = self._store.state, self._k
        p, q = s.p[row].tolist(), s.q[row].tolist()
        seconds = self._share_s(now_s, row)
        q[k.SERVER_S] += seconds
        if seconds:
            q[k.JOULES] += float(s.f[at, k.WATTS]) * seconds
        if p[k.PHASE] != k.IN_DECODE:
            return p, q
        place = int(np.flatnonzero(s.lane[at, k.ROW, : s.i[at, k.DECODING]] == row)[0])
        i, f = s.i[at].tolist(), s.f[at].tolist()
        q[k.GAP_S], q[k.LAST_S] = float(s.time[at, k.GAP, place]), float(s.time[at, k.LAST, place])
        q[k.SERVER_S] += f[k.SHARE_S]
        q[k.JOULES] += f[k.SHARE_J]
        step = i[k.STEP]
        if ended and (i[k.KIND] == k.DECODE_PLAN or i[k.FUSE]):
            seconds = self._store.kernel.span(s, at, ended)
            last = f[k.BASE] + f[k.GROWTH] * (ended - 1)
            q[k.GAP_S] = max(q[k.GAP_S], f[k.T0] + f[k.BASE] - q[k.LAST_S], last if ended > 1 else 0.0)
            q[k.LAST_S] = f[k.T0] + seconds
            step += ended
        p[k.COMPUTED] = p[k.ORIGIN] + step
        p[k.TOKENS] = min(p[k.COMPUTED] + 1 - p[k.PROMPT], p[k.OUTPUT])
        return p, q

    def _share_s(self, now_s: float, row: int) -> float:
        """A request's share of the plan, from its beginning to ``now_s``."""
        s, at = self._store.state, self._k
        kind, began_s = s.i[at, k.KIND], s.f[at, k.T0]
        if kind <= k.WAKE or now_s <= began_s:
            return 0.0
        tokens = 0
        if s.p[row, k.PHASE] == k.IN_DECODE:
            tokens = int(kind == k.DECODE_PLAN or s.i[at, k.FUSE])
        elif s.p[row, k.PHASE] == k.IN_PROMPT and kind == k.PROMPT_PLAN:
            place = np.flatnonzero(s.lane[at, k.PRE, : s.i[at, k.PROMPTS]] == row)[0]
            tokens = int(s.lane[at, k.TAKE, place])
        return float(tokens * (min(now_s, s.f[at, k.T1]) - began_s) / s.i[at, k.NEW])

    def _row(self, request: int) -> int:
        row = self._rows.get(request)
        if row is None:
            raise EngineError(
                f"Request {request} is not in the engine.",
                field="request",
                fix="It has ended, left or never came.",
            )
        return row

    def watts(self, now_s: float) -> float:
        """What it draws at ``now_s``; nan where the profile does not say."""
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        busy = s.i[self._k, k.KIND] > k.WAKE and s.f[self._k, k.T0] <= now_s
        return float(s.f[self._k, k.WATTS] if busy else s.f[self._k, k.IDLE_W])

    def _int(self, column: int) -> int:
        return int(self._store.state.i[self._k, column])

    @property
    def running(self) -> int:
        """Requests being worked on."""
        return self._int(k.DECODING) + self._int(k.PROMPTS)

    @property
    def waiting(self) -> int:
        """Requests that are not, or not again, being worked on."""
        return self._int(k.WAITING) + self._int(k.AWAITED)

    @property
    def requests(self) -> int:
        """Requests in it."""
        return self.running + self.waiting

    @property
    def load(self) -> float:
        """Requests in it over the places it has."""
        return self.requests / self._int(k.SLOTS)

    def kv_tokens(self, now_s: float) -> int:
        """Tokens that the taken blocks of its memory have room for."""
        s, kernel = self._store.state, self._store.kernel
        kernel.advance(s, self._k, now_s, False)
        i = s.i[self._k]
        blocks = s.memory[i[k.POOL], 0] - i[k.GROWN]
        ended = kernel.ended_by(s, self._k, now_s)
        if i[k.GROWN]:
            blocks += kernel.crossings(s, self._k, ended) if ended else 0
        return int(blocks * i[k.BLOCK])

    @property
    def kv_capacity(self) -> int:
        """Tokens that its memory has room for."""
        return self.profile.kv_tokens // self.profile.block_tokens * self.profile.block_tokens

    def free_tokens(self, now_s: float) -> int:
        """Tokens that its free blocks have room for."""
        return self.kv_capacity - self.kv_tokens(now_s)

    def freeness(self, now_s: float) -> float:
        """For how many steps its batch can go on with the memory that is left after the first that waits."""
        s, wanted = self._store.state, 0
        spare = self.free_tokens(now_s)
        for first in (s.i[self._k, k.HEAD], s.i[self._k, k.PENDING]):
            if first >= 0:
                wanted = int(s.p[first, k.PROMPT] + s.p[first, k.TOKENS])
                break
        return (spare - wanted) / max(1, self.running)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens in it that are not computed yet."""
        return self._int(k.QUEUED)

    def work_s(self, now_s: float) -> float:
        """Seconds of work in it at full batches, by the profile and the true lengths."""
        s = self._store.state
        self._store.kernel.advance(s, self._k, now_s, False)
        return float(self._store.kernel.work(s, self._k, now_s))

    @property
    def iterations(self) -> int:
        """Iterations that have ended."""
        return self._int(k.ITERATIONS)

    @property
    def preemptions(self) -> int:
        """How often a request lost its memory."""
        return self._int(k.PREEMPTIONS)

    @property
    def busy_s(self) -> float:
        """Seconds of the iterations that have ended."""
        return float(self._store.state.f[self._k, k.BUSY_S])

    @property
    def busy_j(self) -> float:
        """Joules that they drew; nan where the profile does not say."""
        return float(self._store.state.f[self._k, k.BUSY_J])

    @property
    def waste_s(self) -> float:
        """Seconds that requests had in iterations after they were given up."""
        return float(self._store.state.f[self._k, k.WASTE_S])

    @property
    def waste_j(self) -> float:
        """Joules that they drew then; nan where the profile does not say."""
        return float(self._store.state.f[self._k, k.WASTE_J])

    def idle_j(self, now_s: float) -> float:
        """Joules that it drew while it did nothing, up to ``now_s``."""
        s = self._store.state
        now_s = min(now_s, self._stopped_s)
        self._store.kernel.advance(s, self._k, now_s, False)
        busy = self.busy_s
        if s.i[self._k, k.KIND] > k.WAKE:
            busy += max(0.0, now_s - float(s.f[self._k, k.T0]))
        return float(s.f[self._k, k.IDLE_W]) * max(0.0, now_s - self._born_s - busy)

    def unused_j(self, now_s: float) -> float:
        """Joules that it drew for nobody: doing nothing, or at work for those who had been given up."""
        wasted = self.waste_j
        return self.idle_j(now_s) + (wasted if wasted == wasted else 0.0)


def group(
    profiles: Sequence[Profile],
    batchings: Sequence[Batching],
    *,
    start_s: float = 0.0,
    shared_memory: bool = False,
    kernel: Any = k,
) -> list[Engine]:
    """Engines in one set of arrays; with ``shared_memory`` they take blocks from one memory, the last profile's."""
    store = Store(profiles, batchings, start_s=start_s, shared_memory=shared_memory, kernel=kernel)
    pairs = zip(profiles, batchings, strict=True)
    return [
        Engine(profile, batching, start_s=start_s, store=store, index=index)
        for index, (profile, batching) in enumerate(pairs)
    ]


def cold() -> bool:
    """Whether the first engine is compiled when it is made, which takes about a minute, once."""
    return is_cold(k.advance)


def _done(p: list[int], q: list[float]) -> Done:
    return Done(
        p[k.REQUEST], q[k.STARTED_S], q[k.FIRST_S], q[k.FINISH_S], q[k.GAP_S], p[k.PREEMPTED], q[k.SERVER_S],
        q[k.JOULES], p[k.TOKENS],
    )  # fmt: skip
