"""The proxy under a virtual clock: its real worker and flow, without sockets, threads or waiting.

Requests enter by calling the application, upstreams stand in place of the endpoints' connections, and time jumps to
the next timer as soon as nothing is left to do now. So hours of traffic pass in seconds, the same way every time: it
is the first of the two worlds whose decision logs must be equal.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib
import math
import os
import pkgutil
import re
import selectors
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

import apportion.serve
from apportion.measure.decision_log import Entry, Word
from apportion.measure.usage import Usage
from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.http.client import Exchange, TransportFailure
from apportion.serve.http.server import Request, Responder
from apportion.serve.relay import Relay
from apportion.serve.upstream import Endpoint
from apportion.serve.worker import Worker

EPOCH_S: Final = 1_700_000_000.0
"""Unix time of virtual time zero."""
_NUMBER: Final = b"idempotency-key"
"""A header that goes upstream with everything that is asked for a request, also by a strategy."""
_FIND_NUMBER: Final = re.compile(rb"idempotency-key: (\d+)")
_TOKEN: Final = "abcd"


# --- time ------------------------------------------------------------------------------------------------------


class _Jump(selectors.SelectSelector):
    """In place of waiting, time passes. Files are never looked at: nothing comes from outside."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen, and somebody still waits")
        if timeout > 0.0:
            self.loop.jump()
        return []


class _Timer(asyncio.TimerHandle):
    """Timers of the same moment go off in the order in which they were set."""

    count = 0

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self.count) < (other.when(), other.count)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps from timer to timer. What others give to a thread is done at once."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._timers = 0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        self._timers += 1
        timer.count = self._timers
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer

    @property
    def _clock_resolution(self) -> float:
        """Timers of the very same moment go off together, and no others."""
        return math.ulp(self.now_s)

    @_clock_resolution.setter
    def _clock_resolution(self, value: float) -> None:
        pass

    def jump(self) -> None:
        """Go on to the next timer."""
        self.now_s = max(self.now_s, self._scheduled[0].when())  # type: ignore[attr-defined]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Time:
    """The module ``time`` as the proxy sees it."""

    def __init__(self, loop: VirtualLoop, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self.monotonic = self.perf_counter = loop.time
        self._now = loop.time

    def time(self) -> float:
        return self._epoch_s + self._now()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def virtual_time(loop: VirtualLoop, epoch_s: float) -> Iterator[None]:
    """Within, every module of the proxy reads the time of ``loop``; nothing of that is left afterwards."""
    for module in pkgutil.walk_packages(apportion.serve.__path__, "apportion.serve."):
        if "migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("apportion.serve.") and getattr(module, "time", None) is time
    ]
    clock = _Time(loop, epoch_s)
    for module in found:
        module.time = clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in found:
            module.time = time  # type: ignore[attr-defined]


# --- upstreams -------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """What an endpoint does with one call: when its first token comes and when it is done, in virtual seconds.

    Infinity as ``finish_s`` says that only the first token is known yet. A ``status`` that is not 200 is an error
    answer at ``finish_s``; ``broken`` closes the connection then, with nothing said.
    """

    first_s: float
    finish_s: float
    output_tokens: int
    cached_tokens: int = 0
    status: int = 200
    broken: bool = False
    finish: str = "stop"


class Upstream(Protocol):
    """Everything behind the proxy."""

    @property
    def next_s(self) -> float:
        """When something may happen by itself; infinity if nothing does."""

    def ask(
        self,
        now_s: float,
        call: int,
        endpoint: str,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        cap_tokens: int | None,
    ) -> Reply | None:
        """A call arrives for ``request`` of the trace. None: `advance` will tell what becomes of it."""

    def advance(self, until_s: float) -> Sequence[tuple[int, Reply]]:
        """Work until then; the calls that have begun to answer or have ended, with when."""

    def cancel(self, now_s: float, call: int) -> int:
        """Nobody wants this call's answer any more; how many tokens of it there are."""


class Steady:
    """An upstream without memory: so many seconds to the first token and for each token, of any number at once."""

    next_s = math.inf

    def __init__(self, first_s: float = 0.1, per_token_s: float = 0.01) -> None:
        self._first_s, self._per_token_s = first_s, per_token_s
        self._running: dict[int, tuple[float, int]] = {}

    def ask(
        self,
        now_s: float,
        call: int,
        endpoint: str,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        cap_tokens: int | None,
    ) -> Reply | None:
        """Known at once."""
        tokens = output_tokens if cap_tokens is None else min(output_tokens, cap_tokens)
        first_s = now_s + self._first_s
        self._running[call] = (first_s, tokens)
        return Reply(first_s, first_s + self._per_token_s * tokens, tokens)

    def advance(self, until_s: float) -> Sequence[tuple[int, Reply]]:
        """Nothing happens by itself."""
        return ()

    def cancel(self, now_s: float, call: int) -> int:
        """What has been made of it is counted."""
        first_s, tokens = self._running.pop(call, (math.inf, 0))
        if now_s < first_s:
            return 0
        return (
            tokens if not self._per_token_s else min(tokens, 1 + int((now_s - first_s) / self._per_token_s))
        )


class FourBytes:
    """How tokens are counted here where nobody reports them: in place of `measure.tokens.TokenRates`, exactly."""

    usual_output_tokens = None

    def learn(self, body: bytes, usage: Usage, events: int = 0, size: int = 0) -> None:
        """There is nothing to learn."""

    def quick_input_tokens(self, body_bytes: int) -> int:
        """Of so many bytes."""
        return body_bytes // 4

    def input_tokens(self, body: bytes) -> int:
        """Of a body."""
        return len(body) // 4

    def output_tokens(self, events: int, size: int) -> int:
        """Of so many bytes of an answer."""
        return size // 4


class _Connection:
    """What an exchange holds while it is under way."""

    _paused = False

    def __init__(self, wire: _Wire, call: int) -> None:
        self._wire, self._call = wire, call
        self.exchange: Exchange | None = None

    def pause(self) -> None:
        """Nobody's client is slow here."""

    def resume(self) -> None:
        """See `pause`."""

    def close(self) -> None:
        """The exchange was aborted."""
        self._wire.drop(self._call)


class _Under(NamedTuple):
    """A call under way."""

    exchange: Exchange
    streamed: bool
    prompt_tokens: int
    timers: list[asyncio.TimerHandle]


class _Wire:
    """In place of the connections to all endpoints: calls go to the upstream, answers come when it says."""

    def __init__(self, loop: VirtualLoop, upstream: Upstream, asked: Sequence[Asked]) -> None:
        self._loop, self._upstream, self._asked = loop, upstream, asked
        self._count = 0
        self._running: dict[int, _Under] = {}
        self._timer: asyncio.TimerHandle | None = None

    def send(self, endpoint: str, exchange: Exchange, request: bytes) -> None:
        """A request is written: headers, an empty line, JSON."""
        now_s = self._loop.time()
        self._count += 1
        call = self._count
        head, _, body = request.partition(b"\r\n\r\n")
        found = _FIND_NUMBER.search(head)
        number = -1 if found is None else int(found[1])
        asked = self._asked[number]
        fields = msgspec.json.decode(body)
        caps = [fields[name] for name in ("max_tokens", "max_completion_tokens") if fields.get(name)]
        exchange._connection = _Connection(self, call)  # type: ignore[assignment]
        exchange.sent_s = exchange._last_s = now_s
        under = _Under(exchange, bool(fields.get("stream")), asked.prompt_tokens, [])
        self._running[call] = under
        self._limit(call, under)
        self._wake()  # what was due until now comes first
        reply = self._upstream.ask(
            now_s,
            call,
            endpoint,
            number,
            asked.prompt_tokens,
            asked.output_tokens,
            max(caps, default=None),
        )
        if reply is not None:
            self._answer(call, under, reply)
        self._arm()

    def drop(self, call: int) -> int:
        """Whoever asked has gone; how many tokens had come."""
        under = self._running.pop(call, None)
        if under is None:
            return 0
        for timer in under.timers:
            timer.cancel()
        tokens = self._upstream.cancel(self._loop.time(), call)
        self._arm()
        return tokens

    def _limit(self, call: int, under: _Under) -> None:
        exchange, at = under.exchange, self._loop.call_at
        limits, sent_s = exchange.timeouts, exchange.sent_s
        under.timers.append(at(sent_s + limits.total_s, self._late, call, "total"))
        if exchange.deadline_s:
            under.timers.append(at(exchange.deadline_s, self._late, call, "deadline"))
        if isinstance(exchange, Relay):
            under.timers.append(at(sent_s + limits.first_token_s, self._late, call, "first_token"))

    def _late(self, call: int, phase: Any) -> None:
        under = self._running.get(call)
        if under is None or (phase == "first_token" and under.exchange.phase() != phase):
            return
        tokens = self.drop(call)
        failure = TransportFailure("timeout", f"too late ({phase})", phase=phase, sent=True)
        exchange = under.exchange
        if not under.streamed or not tokens:
            self._fail(under, failure)
            return
        begun = exchange.status == 200
        if not begun:
            self._first(exchange)
        exchange.on_data(_event({"content": _TOKEN * (tokens - 1)}) if tokens > 1 else b"")
        if begun:
            self._fail(under, failure)
        else:  # who waits for the beginning is to see it first
            self._loop.call_soon(self._fail, under, failure)

    def _answer(self, call: int, under: _Under, reply: Reply) -> None:
        """The answer is known; it comes when it is due."""
        now_s = self._loop.time()
        if under.streamed and reply.status == 200 and not reply.broken:
            under.timers.append(self._loop.call_at(max(now_s, reply.first_s), self._begin, call))
        if reply.finish_s < math.inf:
            under.timers.append(self._loop.call_at(max(now_s, reply.finish_s), self._end, call, reply))

    def _begin(self, call: int) -> None:
        under = self._running.get(call)
        if under is not None and under.exchange.status == 0:
            self._first(under.exchange)

    def _first(self, exchange: Exchange) -> None:
        exchange.status, exchange.first_byte_s = 200, self._loop.time()
        exchange.on_head()
        exchange.on_data(_event({"role": "assistant", "content": _TOKEN}))

    def _end(self, call: int, reply: Reply) -> None:
        under = self._running.pop(call, None)
        if under is None:
            return
        for timer in under.timers:
            timer.cancel()
        exchange = under.exchange
        exchange._connection = None
        exchange.first_byte_s = exchange.first_byte_s or self._loop.time()
        if reply.broken:
            self._fail(under, TransportFailure("closed", "closed without an answer", sent=True))
            return
        usage = {
            "prompt_tokens": under.prompt_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": under.prompt_tokens + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        }
        try:
            if under.streamed and reply.status == 200:
                if exchange.status == 0:
                    self._first(exchange)
            else:
                exchange.status = reply.status
                exchange.on_head()
            if reply.status != 200:
                exchange.on_data(b'{"error":{"message":"no","type":"server_error"}}')
            elif under.streamed:
                rest = _TOKEN * (reply.output_tokens - 1)
                exchange.on_data(_event({"content": rest}) if rest else b"")
                exchange.on_data(_event({}, finish=reply.finish))
                exchange.on_data(b"data: %b\n\n" % _encode({**_CHUNK, "choices": [], "usage": usage}))
                exchange.on_data(b"data: [DONE]\n\n")
            else:
                message = {"role": "assistant", "content": _TOKEN * reply.output_tokens}
                choice = {"index": 0, "message": message, "finish_reason": reply.finish}
                exchange.on_data(
                    _encode({**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": usage})
                )
            exchange.on_end()
        except TransportFailure as failure:  # the guard has stopped it
            exchange.on_failure(failure)

    def _fail(self, under: _Under, failure: TransportFailure) -> None:
        under.exchange._connection = None
        under.exchange.on_failure(failure)

    def _wake(self) -> None:
        """The upstream works until now."""
        for call, reply in self._upstream.advance(self._loop.time()):
            under = self._running.get(call)
            if under is not None:
                self._answer(call, under, reply)

    def _tick(self) -> None:
        self._timer = None
        self._wake()
        self._arm()

    def _arm(self) -> None:
        """Wake when something may happen next."""
        next_s = self._upstream.next_s
        if self._timer is not None:
            if self._timer.when() == next_s:
                return
            self._timer.cancel()
            self._timer = None
        if next_s < math.inf:
            self._timer = self._loop.call_at(max(next_s, self._loop.time()), self._tick)


_encode: Final = msgspec.json.Encoder().encode
_CHUNK: Final[dict[str, Any]] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % _encode({**_CHUNK, "choices": [choice]})


class _Pool:
    """The way to one endpoint, in place of `http.client.Pool`."""

    def __init__(self, wire: _Wire, endpoint: Endpoint) -> None:
        self._wire, self._name = wire, endpoint.name

    def take(self) -> None:
        """No connection lies ready."""

    async def send(self, exchange: Exchange, request: bytes, *, fresh: bool = False) -> bool:
        """Send at once, on a connection of its own."""
        self._wire.send(self._name, exchange, request)
        return False

    def close(self) -> None:
        """There is nothing to close."""


# --- requests --------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A request of a trace. ``secret`` is the key's; its body has exactly four bytes for each token of its prompt."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    model: str = "m"
    secret: str = "sk-user"
    session: str = ""
    text: str = ""
    """What it says, before the filling up."""
    stream: bool = False
    cap_tokens: int | None = None
    constraints: dict[str, Any] | None = None

    def body(self) -> bytes:
        """The body of the request."""
        made: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": self.text}]}
        if self.stream:
            made["stream"] = True
        if self.cap_tokens is not None:
            made["max_tokens"] = self.cap_tokens
        if self.constraints:
            made["apportion"] = self.constraints
        short = 4 * self.prompt_tokens - len(_encode(made))
        if short < 0:
            raise ValueError(f"a prompt of {self.prompt_tokens} tokens is too short for its body")
        made["messages"][0]["content"] += _filling(short)
        return _encode(made)


def _filling(count: int) -> str:
    return (" and so on" * (count // 10 + 1))[:count]


class Answer(Responder):
    """Where the answer to one request is written, and when: virtual seconds, nan for never."""

    __slots__ = ("_now", "body", "finish_s", "first_s", "headers", "status")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.started = False
        self.on_gone = self.on_pause = self.on_drain = None
        self.status = 0
        self.headers = b""
        self.body = b""
        self.first_s = self.finish_s = math.nan

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self.start(status, headers, body)
        self.finish()

    def start(self, status: int, headers: bytes, first: bytes = b"") -> None:
        self.started, self.status, self.headers, self.body = True, status, headers, first
        self.first_s = self._now()

    def write(self, data: bytes) -> None:
        self.body += data

    def finish(self, data: bytes = b"") -> None:
        self.body += data
        self.finish_s = self._now()

    def abort(self) -> None:
        self.finish_s = self._now()

    @property
    def gone(self) -> bool:
        return False

    @property
    def paused(self) -> bool:
        return False


class Collected:
    """The decision log, in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.lines = self.dropped = 0

    def add(self, record: Entry | Word) -> None:
        """Take one record."""
        if isinstance(record, Entry):
            self.entries.append(record)

    def find(self, id: str, within_s: float) -> None:
        """Nobody asks."""

    def close(self) -> None:
        """It is kept."""


class Served(NamedTuple):
    """What the proxy decided and answered; ``answers`` are in the order of the requests."""

    entries: list[Entry]
    answers: list[Answer]


def serve_log(
    config: str,
    asked: Sequence[Asked],
    upstream: Upstream,
    *,
    epoch_s: float = EPOCH_S,
    prefix: str = "0000000000",
) -> Served:
    """Send ``asked`` (in order of arrival, from virtual time zero) through a proxy with ``config``, every endpoint of
    which is ``upstream``. Decisions are numbered ``dec_PREFIX00000001`` and so on, in the order of entering.
    """
    loop = VirtualLoop()
    with tempfile.TemporaryDirectory() as folder, _state_in(folder), virtual_time(loop, epoch_s):
        asyncio.set_event_loop(loop)
        try:
            work = _serve(loop, config, asked, upstream, Path(folder), prefix)
            return loop.run_until_complete(work)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


@contextmanager
def _state_in(folder: str) -> Iterator[None]:
    """What is learned is kept nowhere: the next run begins anew."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_STATE_HOME"]
        else:
            os.environ["XDG_STATE_HOME"] = before


async def _serve(
    loop: VirtualLoop, config: str, asked: Sequence[Asked], upstream: Upstream, folder: Path, prefix: str
) -> Served:
    configured = loads(config, "apportion.yaml")
    worker = await Worker.open(configured, all_prices(configured), index=0, workers=1, directory=folder)
    gateway = worker.gateway
    worker._records._prefix = prefix
    gateway._rng.seed(0)
    worker._watch.close()  # the wire keeps the time of its exchanges itself, to the moment
    wire = _Wire(loop, upstream, asked)
    for endpoint in gateway.runtime.endpoints.values():
        endpoint.unplug()
        endpoint.pool = _Pool(wire, endpoint)  # type: ignore[assignment]
    for group in gateway.runtime.groups.values():
        for route in group.routes:
            route.rates = FourBytes()  # type: ignore[assignment]
    log = Collected()
    if worker._lessons.log is not None:
        worker._lessons.log.close()
    worker._lessons.log = log  # type: ignore[assignment]
    answers = [Answer(loop.time) for _ in asked]
    tasks: list[asyncio.Task[None]] = []

    def enter(index: int) -> None:
        one = asked[index]
        headers = {
            b"content-type": b"application/json",
            b"authorization": b"Bearer " + one.secret.encode(),
            _NUMBER: b"%d" % index,
        }
        if one.session:
            headers[b"x-session-id"] = one.session.encode()
        request = Request("POST", b"/v1/chat/completions", "1.1", headers, True)
        request.body = one.body()
        request.received_s = loop.time()
        tasks.append(loop.create_task(gateway(request, answers[index])))
        if index + 1 < len(asked):
            loop.call_at(asked[index + 1].arrival_s, enter, index + 1)
        else:
            last.set()

    last = asyncio.Event()
    if asked:
        loop.call_at(asked[0].arrival_s, enter, 0)
        await last.wait()
        await asyncio.gather(*tasks)
        await asyncio.sleep(1.0)  # what is settled later
    await worker.drain(1.0)
    return Served(log.entries, answers)
