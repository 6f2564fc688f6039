"""A workload sent to a live endpoint at the times it has: an open loop, whoever answers slowly is not waited for.

Nothing here knows HTTP: a `Transport` sends one request and says what came of it. Times are those of the clock that is
passed in.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from apportion.simulate import result
from apportion.simulate.result import FAILED, OK, Result
from apportion.simulate.trace import Trace, TraceError
from apportion.simulate.workload.prompts import Prompts

AHEAD: Final = 64
"""Requests that are made ready before they are due, while there is time."""
_SOON_S: Final = 0.002
"""Nothing is made ready when the next request is due as soon as this."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as the transport is to send it. ``model`` and ``tenant`` are "" where the trace has none."""

    row: int
    model: str
    tenant: str
    prompt: str
    output_tokens: int
    priority: int | None = None
    deadline_s: float | None = None


@dataclass(slots=True)
class Reply:
    """What came of a request, in seconds of the clock; nan where it never happened. Tokens are as counted by the
    endpoint, else the pieces that came; ``status`` is one of `result`'s.
    """

    status: int = FAILED
    sent_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    longest_gap_s: float = math.nan
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    action: str = ""
    usd: float = math.nan
    why: str = ""
    """What went wrong, in words."""


class Transport(Protocol):
    """Sends requests."""

    def ready(self, ask: Ask) -> Callable[[], Awaitable[Reply]]:
        """Make a request ready now; calling what is returned sends it at once. What goes wrong is told in the reply,
        not raised.
        """


@dataclass(slots=True)
class Progress:
    """How far a run is, for whoever watches it."""

    total: int
    sent: int = 0
    done: int = 0
    failed: int = 0
    late_s: float = 0.0
    """How late the latest request was."""


class Stop:
    """Ends a run early: no request is sent any more; ``now`` gives up on those under way, too."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()


async def send(
    trace: Trace,
    transport: Transport,
    prompts: Prompts,
    *,
    clock: Callable[[], float],
    speed: float = 1.0,
    most_in_flight: int = 1024,
    when_full: Literal["wait", "drop"] = "wait",
    grace_s: float = 600.0,
    watch: Callable[[Progress], None] = lambda progress: None,
    stop: Stop | None = None,
) -> Result:
    """Send every request of ``trace`` when it is due, ``speed`` times as fast as recorded, the first one at once.

    With ``most_in_flight`` requests under way the next one waits until one ends (``when_full="wait"``; its times count
    from when it was due, so that the wait is in them) or is left out (``"drop"``). After the last is sent, those under
    way have ``grace_s`` to end. ``stop`` ends the run early, with what there is by then.

    The result has a row for every request that was sent and came to an end, in the order in which they did. Its
    ``arrival_s`` is when the request was due, in seconds from the start of the run; ``facts["lateness_s"]`` says how
    much later it was written.

    Raises:
        TraceError: a number is not above 0.
    """
    if not (speed > 0 and most_in_flight > 0):
        raise TraceError("'speed' and 'most_in_flight' have to be above 0.", field="speed")
    stop = stop or Stop()
    due_s = (trace.arrival_s - (trace.arrival_s[0] if len(trace) else 0.0)) / speed
    run = _Run(trace, transport, prompts, clock, Progress(len(trace)), watch)
    run.prepare(AHEAD)
    begin_s = clock() + 0.05
    dropped = waited = 0
    for row, due in enumerate(due_s.tolist()):
        if not await run.sleep_until(begin_s + due, stop):
            break
        if len(run.under_way) >= most_in_flight:
            if when_full == "drop":
                dropped += 1
                run.skip()
                continue
            waited += 1
            if not await run.room(most_in_flight, stop):
                break
        run.launch(row, begin_s + due)
    await run.end(grace_s, stop)
    return run.result(begin_s, dropped, waited, speed)


class _Run:
    """Requests under way, and what has become of the others."""

    def __init__(
        self,
        trace: Trace,
        transport: Transport,
        prompts: Prompts,
        clock: Callable[[], float],
        progress: Progress,
        watch: Callable[[Progress], None],
    ) -> None:
        self._trace, self._transport, self._prompts = trace, transport, prompts
        self._clock, self._progress, self._watch = clock, progress, watch
        self._made: deque[Callable[[], Awaitable[Reply]]] = deque()
        self._next = 0
        self.under_way: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._replies: list[tuple[int, float, Reply]] = []
        """Row, when it was due, and what came of it; in the order in which they ended."""

    # --- making ready -------------------------------------------------------------------------------

    def prepare(self, most: int) -> bool:
        """Make the next request ready, unless ``most`` are; whether one was made."""
        if len(self._made) >= most or self._next >= len(self._trace):
            return False
        self._made.append(self._transport.ready(self._ask(self._next)))
        self._next += 1
        return True

    def skip(self) -> None:
        """The next request is not sent."""
        if self._made:
            self._made.popleft()
        else:
            self._next += 1

    def _ask(self, row: int) -> Ask:
        trace = self._trace
        deadline = math.nan if trace.deadline_s is None else float(trace.deadline_s[row])
        return Ask(
            row,
            trace.model.at(row) if trace.model is not None else "",
            trace.tenant.at(row) if trace.tenant is not None else "",
            self._prompts.of(row),
            max(1, int(trace.output_tokens[row])),
            None if trace.priority is None else int(trace.priority[row]),
            None if math.isnan(deadline) else deadline,
        )

    async def sleep_until(self, at_s: float, stop: Stop) -> bool:
        """Wait, making requests ready meanwhile; false if the run is to stop."""
        while (left := at_s - self._clock()) > 0:
            if stop.asked.is_set():
                return False
            if left > _SOON_S and self.prepare(AHEAD):
                await asyncio.sleep(0)  # answers come in between
            elif left > 0.25:
                await _either(stop.asked, asyncio.sleep(left - 0.1))
            else:
                await asyncio.sleep(left)
        return not stop.asked.is_set()

    # --- under way ----------------------------------------------------------------------------------

    def launch(self, row: int, due_s: float) -> None:
        """Send the next request."""
        if not self._made:
            self.prepare(1)
        task = asyncio.get_running_loop().create_task(self._one(row, due_s, self._made.popleft()))
        self.under_way.add(task)
        task.add_done_callback(self._over)
        self._progress.sent += 1
        self._progress.late_s = self._clock() - due_s

    async def _one(self, row: int, due_s: float, go: Callable[[], Awaitable[Reply]]) -> None:
        reply = await go()
        self._replies.append((row, due_s, reply))
        self._progress.done += 1
        self._progress.failed += reply.status != OK
        self._watch(self._progress)

    def _over(self, task: asyncio.Task[None]) -> None:
        self.under_way.discard(task)
        self._ended.set()
        if not task.cancelled():
            task.result()  # a fault of the transport is not swallowed

    async def room(self, most: int, stop: Stop) -> bool:
        """Wait until fewer than ``most`` are under way; false if the run is to stop."""
        while len(self.under_way) >= most and not stop.asked.is_set():
            self._ended.clear()
            await _either(stop.asked, self._ended.wait())
        return not stop.asked.is_set()

    async def end(self, grace_s: float, stop: Stop) -> None:
        """Wait for what is under way, then give it up."""
        until_s = self._clock() + grace_s
        while self.under_way and (left := until_s - self._clock()) > 0 and not stop.now.is_set():
            self._ended.clear()
            await _either(stop.now, asyncio.wait_for(_quiet(self._ended.wait()), left))
        for task in tuple(self.under_way):
            task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    # --- what came of it ----------------------------------------------------------------------------

    def result(self, begin_s: float, dropped: int, waited: int, speed: float) -> Result:
        """The run as columns."""
        trace, replies = self._trace, self._replies
        rows = np.array([row for row, _, _ in replies], np.int64)
        columns: dict[str, NDArray[Any]] = result.empty(len(replies))
        due = np.array([due for _, due, _ in replies])
        columns["request"] = rows
        columns["arrival_s"] = due - begin_s
        names: dict[str, tuple[str, ...]] = {}
        for name in ("model", "tenant"):
            labels = getattr(trace, name)
            if labels is not None:
                columns[name] = labels.codes[rows]
                names[name] = labels.names
        if trace.priority is not None:
            columns["priority"] = trace.priority[rows]
        actions: dict[str, int] = {}
        for name in ("status", "prompt_tokens", "cached_tokens", "output_tokens", "longest_gap_s", "usd"):
            columns[name][:] = [getattr(reply, name) for _, _, reply in replies]
        for name in ("first_token_s", "finish_s"):
            columns[name][:] = [getattr(reply, name) - begin_s for _, _, reply in replies]
        columns["action"][:] = [
            actions.setdefault(reply.action, len(actions)) if reply.action else -1 for _, _, reply in replies
        ]
        columns["tries"][:] = 1
        names["action"] = tuple(actions)
        late = np.array([reply.sent_s - due for _, due, reply in replies])
        late = late[~np.isnan(late)]
        answered = columns["status"] == OK
        wanted = trace.output_tokens[rows][answered].astype(float)
        asked = trace.prompt_tokens[rows][answered].astype(float)
        facts = {
            "seed": None,
            "horizon_s": float(np.nanmax(columns["finish_s"])) if len(replies) else 0.0,
            "speed": speed,
            "requests": len(trace),
            "sent": self._progress.sent,
            "dropped": dropped,
            "waited_for_room": waited,
            "given_up": self._progress.sent - len(replies),
            "lateness_s": _quantiles(late),
            "output_tokens_of_wanted": _share(columns["output_tokens"][answered], wanted),
            "prompt_tokens_of_wanted": _share(columns["prompt_tokens"][answered], asked),
            "why": _counted([reply.why for _, _, reply in replies if reply.why]),
        }
        return Result(columns, names, facts, trace.name)


def _share(counted: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(counted.sum() / wanted.sum()) if wanted.sum() else math.nan


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": float(values.max())}


def _counted(words: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1])[:20])


async def _quiet(waited_for: Awaitable[object]) -> None:
    await waited_for


async def _either(event: asyncio.Event, other: Awaitable[object]) -> None:
    """Wait until the event is set or the other is over (or its time is)."""
    tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(_quiet(other))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measured(transport: Transport, trace: Trace, *, seed: int = 0) -> tuple[float, float]:
    """Tokens for each word of a prompt, and tokens that come with every request, from two questions to the endpoint.

    Raises:
        TraceError: it does not answer, or does not count tokens.
    """
    found = []
    for words in (64, 448):
        probe = trace.take(slice(0, 1))
        probe = Trace(
            probe.arrival_s,
            np.array([words], np.int32),
            np.ones(1, np.int32),
            model=probe.model,
            tenant=probe.tenant,
        )
        ask = Ask(0, *_names(probe), Prompts(probe, seed=seed + words).of(0), 1)
        reply = await transport.ready(ask)()
        if reply.status != OK:
            why = reply.why.rstrip(".")
            raise TraceError(f"The endpoint did not answer a first question: {why}.", field="URL")
        if not reply.prompt_tokens:
            raise TraceError(
                "The endpoint does not say how many tokens a prompt has.",
                field="URL",
                fix="Leave prompts as they are with --no-measure: a word is then taken for a token.",
            )
        found.append((words, reply.prompt_tokens))
    (few, less), (many, more) = found
    per_word = max(0.25, (more - less) / (many - few))
    return per_word, max(0.0, less - few * per_word)


def _names(trace: Trace) -> tuple[str, str]:
    return (
        trace.model.at(0) if trace.model is not None else "",
        trace.tenant.at(0) if trace.tenant is not None else "",
    )
