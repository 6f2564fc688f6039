"""A scriptable upstream: raw bytes on a socket, every fault a provider can have, and its own meter.

The first segment of the path names the endpoint of the configuration that was meant
(``http://127.0.0.1:PORT/a/v1`` is endpoint ``a``). A request carries a marker in its text; the script set
for that marker says what happens to it. What was billed is told by ``Upstream.of``.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import providers, shapes

SENT_ON_S = 0.5
"""Between content that the proxy has read and a fault after it, so that the content has surely left the proxy."""
STALL_S = 60.0
"""How long a stalled exchange waits for the proxy to give up before the upstream does."""
MARKER = re.compile(rb"marker-[0-9a-f]{12}")


def new_marker() -> str:
    """A word for the request's text by which the upstream finds its script and the test what was seen."""
    return f"marker-{uuid.uuid4().hex[:12]}"


@dataclass
class Script:
    """What happens to the requests of one marker."""

    fault: str = "none"
    on: str = "first_endpoint"
    """all: every attempt; first_endpoint: those at the endpoint tried first; first_attempt: only that one."""
    want: shapes.Want = field(default_factory=shapes.Want)
    delay_s: float = 0.0
    """Before every event after the first content event."""
    head_delay_s: float = 0.0
    gate: threading.Semaphore | None = None
    """Must be passed before every piece of content after the second, so that a test says when each is written; where
    the usage is late, before it."""


@dataclass
class Seen:
    """One request as the upstream saw it, and what the upstream billed for it."""

    endpoint: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    head: bytes
    over_tls: bool
    attempt: int = 0
    at_s: float = field(default_factory=time.monotonic)
    json: Any = None
    tokens_in: int = 0
    tokens_out: int = 0
    bytes_out: int = 0
    bill: providers.Bill | None = None
    """What the provider charges for the whole answer, where its words were asked for."""
    done: bool = False
    holds: bool = False
    """It has sent what it was to send, and waits for the proxy to go away."""
    gone_at_s: float | None = None
    """When the proxy closed the connection before the answer was complete (monotonic seconds)."""

    def units(self, prices: providers.Prices) -> int:
        """The invoice in pico-dollars: the whole answer, or what was produced until it broke."""
        if self.done and self.bill is not None:
            return self.bill.units(prices)
        return providers.Bill(fresh=self.tokens_in, said=self.tokens_out).units(prices)

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)


class Gone(Exception):
    """The other side closed."""


def _unread(local: tuple[str, int], remote: tuple[str, int]) -> bool:
    """Whether bytes have come to the socket of another process at ``local`` that it has not read (where there is
    /proc)."""
    try:
        table = Path("/proc/net/tcp").read_text()
    except OSError:
        return False
    ends = [
        f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
        for host, port in (local, remote)
    ]
    for line in table.splitlines():
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[4].partition(":")[2], 16) > 0
    return False


class Connection(asyncio.Protocol):
    """One connection, byte by byte."""

    def __init__(self, upstream: Upstream, *, tls: bool) -> None:
        self.upstream, self.tls = upstream, tls
        self.buffer = bytearray()
        self.more = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = asyncio.Event()
        self.gone_at_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upstream.connections.add(self)
        self.upstream.opened += 1
        task = asyncio.ensure_future(self.serve())
        self.upstream.tasks.add(task)
        task.add_done_callback(self.upstream.tasks.discard)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.more.set()

    def eof_received(self) -> bool:
        self._left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        self.upstream.connections.discard(self)

    def _left(self) -> None:
        if self.gone_at_s is None:
            self.gone_at_s = time.monotonic()
        self.gone.set()
        self.more.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def serve(self) -> None:
        try:
            while True:
                seen = await self.read_request()
                await self.upstream.answer(Exchange(self, seen))
        except Gone:
            pass
        finally:
            self.transport.close()

    async def until(self, ready: Callable[[], int]) -> int:
        while (at := ready()) < 0:
            if self.gone.is_set():
                raise Gone
            self.more.clear()
            await self.more.wait()
        return at

    async def take(self, n: int) -> bytes:
        await self.until(lambda: n if len(self.buffer) >= n else -1)
        data = bytes(self.buffer[:n])
        del self.buffer[:n]
        return data

    async def take_line(self) -> bytes:
        return (await self.take(await self.until(lambda: self.buffer.find(b"\r\n")) + 2))[:-2]

    async def read_request(self) -> Seen:
        head = await self.take(await self.until(lambda: self.buffer.find(b"\r\n\r\n")) + 4)
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines[1:] if line)]
        names = Counter(k.lower() for k, _ in headers)
        lower = {k.lower(): v for k, v in headers}
        for name in ("content-length", "transfer-encoding", "host", "authorization", "x-api-key"):
            if names[name] > 1:
                self.upstream.complaints.append(f"{name} sent {names[name]} times")
        if "transfer-encoding" in lower and "content-length" in lower:
            self.upstream.complaints.append("both content-length and transfer-encoding")
        if "host" not in lower:
            self.upstream.complaints.append("no host header")
        body = b""
        if "chunked" in lower.get("transfer-encoding", ""):
            while size := int((await self.take_line()).split(b";")[0], 16):
                body += await self.take(size)
                await self.take(2)
            while await self.take_line():
                pass
        elif "content-length" in lower:
            body = await self.take(int(lower["content-length"]))
        endpoint = path.split("/")[1] if path.count("/") > 1 else ""
        seen = Seen(endpoint, method, path, headers, body, head, self.tls)
        try:
            seen.json = json.loads(body) if body else None
        except ValueError:
            self.upstream.complaints.append(f"body is not JSON: {body[:80]!r}")
        return seen


class Exchange:
    """One request and the answer being given; what the faults are written with."""

    def __init__(self, connection: Connection, seen: Seen) -> None:
        self.connection, self.seen = connection, seen
        self.script = Script()
        request = seen.json if isinstance(seen.json, dict) else {}
        self.stream = bool(request.get("stream"))
        self.anthropic = seen.path.split("?")[0].endswith("/messages")
        self.reply: shapes.Reply | None = None

    # -- bytes

    async def send(self, data: bytes) -> None:
        if self.connection.gone.is_set():
            raise Gone
        self.connection.transport.write(data)
        self.seen.bytes_out += len(data)
        await self.connection.writable.wait()
        if self.connection.gone.is_set():
            raise Gone

    async def head(self, status: int = 200, *headers: tuple[str, str], chunked: bool | None = None) -> None:
        """The status line and headers; ``chunked`` None means: neither chunked nor a length is said."""
        lines = [f"HTTP/1.1 {status} Whatever", "date: Sat, 21 Nov 2026 00:00:00 GMT"]
        if not any(k == "content-type" for k, _ in headers):
            lines.append("content-type: " + ("text/event-stream" if self.stream else "application/json"))
        lines += [f"{k}: {v}" for k, v in headers]
        lines.append("x-request-id: upstream-request-id")
        if chunked:
            lines.append("transfer-encoding: chunked")
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.send(b"0\r\n\r\n")
        self.seen.done = True

    async def whole(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        await self.head(status, *headers, ("content-length", str(len(body))))
        await self.send(body)
        self.seen.done = True

    def reset(self) -> None:
        """RST, not FIN."""
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()
        raise Gone

    async def close(self) -> None:
        """FIN, after what was written has left."""
        self.connection.transport.close()
        raise Gone

    async def stall(self) -> None:
        """Say nothing until the proxy goes away."""
        self.seen.holds = True
        try:
            await asyncio.wait_for(self.connection.gone.wait(), STALL_S)
        finally:
            self.seen.gone_at_s = self.connection.gone_at_s
        raise Gone

    # -- answers

    def error_body(self, status: int) -> dict[str, Any]:
        kinds = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}
        kind = kinds.get(status, "api_error")
        if self.anthropic:
            inner = {"type": kind, "message": f"upstream says {status}"}
            return {"type": "error", "error": inner, "request_id": "req_upstream"}
        inner = {"message": f"upstream says {status}", "type": kind, "param": None, "code": f"up_{status}"}
        return {"error": inner}

    def error_event(self) -> bytes:
        """The error as an event of a stream."""
        if self.seen.path.endswith("/responses"):
            fields = {"code": "server_error", "message": "upstream says 500", "param": None}
            return shapes.encode(("error", json.dumps({"type": "error", **fields, "sequence_number": 9})))
        event = shapes.encode(("error" if self.anthropic else None, json.dumps(self.error_body(500))))
        return event if self.anthropic else event + b"data: [DONE]\n\n"

    def parts(self, *, eol: str = "\n") -> list[bytes]:
        """The body in the pieces it is sent in: one an event, or three of the JSON."""
        assert self.reply is not None
        if self.stream:
            return [shapes.encode(e, eol) for e in self.reply.events]
        body = json.dumps(self.reply.body).encode()
        third = max(1, len(body) // 3)
        return [body[:third], body[third : 2 * third], body[2 * third :]]

    def cut(self) -> int:
        """How many parts go out before a fault that comes after content: through the second with content."""
        assert self.reply is not None
        return sorted(self.reply.content)[1] + 1 if self.stream else 2

    def bill(self, i: int) -> None:
        """Part ``i`` was produced: a content event is one output token; everything unstreamed at once."""
        assert self.reply is not None
        if not self.stream:
            self.seen.tokens_out = self.reply.answer.tokens_out
        elif i in self.reply.content:
            self.seen.tokens_out += 1

    async def begin(self) -> None:
        """The head of a good, chunked answer, and its parts up to the cut; then time to pass them on."""
        await self.head(200, chunked=True)
        for i, part in enumerate(self.parts()[: self.cut()]):
            self.bill(i)
            await self.chunk(part)
        await self.sent_on()

    async def sent_on(self) -> None:
        """Wait until the proxy has read what was sent, and then a moment."""
        transport = self.connection.transport
        while not self.connection.gone.is_set() and _unread(
            transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        ):
            await asyncio.sleep(0.05)
        await asyncio.sleep(SENT_ON_S)

    async def pass_gate(self, gate: threading.Semaphore) -> None:
        while not gate.acquire(blocking=False) and not self.connection.gone.is_set():
            await asyncio.sleep(0.002)

    async def healthy(self, parts: list[bytes] | None = None) -> None:
        assert self.reply is not None
        await self.head(200, chunked=True)
        for i, part in enumerate(self.parts() if parts is None else parts):
            if self.script.delay_s and i > self.cut():
                await asyncio.sleep(self.script.delay_s)
            if self.script.gate and i in self.reply.content and i >= self.cut():
                await self.pass_gate(self.script.gate)
            if self.connection.gone.is_set():  # a good server stops here, before the next token
                raise Gone
            self.bill(i)
            await self.chunk(part)
        await self.finish()


# ------------------------------------------------------------------------------------------------- faults

Behaviour = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One thing an upstream does, and what a caller must get for it.

    ``stream`` and ``plain`` are the stated answers for streamed and unstreamed requests:
    ``ok``: the answer, whole and right; ``before``: nothing was sent yet, so another endpoint answers,
    or one of ``status`` does; ``after``: an in-band error and no clean end; ``skip``: means nothing here.
    """

    name: str
    act: Behaviour
    stream: str
    plain: str
    status: tuple[int, ...] = (502,)


FAULTS: dict[str, Fault] = {}


def fault(stream: str, plain: str, *status: int) -> Callable[[Behaviour], Behaviour]:
    def register(act: Behaviour) -> Behaviour:
        name = act.__name__
        FAULTS[name] = Fault(name, act, stream, plain, status or (502,))
        return act

    return register


@fault("ok", "ok")
async def none(x: Exchange) -> None:
    await x.healthy()


# -- before the first byte of the body


@fault("before", "before")
async def reset_before_head(x: Exchange) -> None:
    x.reset()


@fault("before", "before")
async def close_before_head(x: Exchange) -> None:
    await x.close()


@fault("before", "before")
async def half_head(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
    await x.close()


@fault("before", "before")
async def garbage_head(x: Exchange) -> None:
    await x.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await x.close()


@fault("before", "before", 504)
async def stall_before_head(x: Exchange) -> None:
    await x.stall()


@fault("before", "before", 504)
async def drip_head(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\nx-slow: ")
    for _ in range(int(STALL_S / 0.05)):
        await asyncio.sleep(0.05)
        await x.send(b"z")


@fault("before", "before", 504)
async def stall_after_head(x: Exchange) -> None:
    await x.head(200, chunked=True)
    await x.stall()


@fault("before", "before", 504)
async def only_comments(x: Exchange) -> None:
    """Keep-alives are not an answer: the time to the first token still runs."""
    await x.head(200, chunked=True)
    for _ in range(int(STALL_S / 0.05)):
        await asyncio.sleep(0.05)
        await x.chunk(b": still here\n\n" if x.stream else b" ")


@fault("before", "before")
async def reset_after_head(x: Exchange) -> None:
    await x.head(200, chunked=True)
    await asyncio.sleep(0.02)
    x.reset()


@fault("before", "before")
async def close_after_head(x: Exchange) -> None:
    await x.head(200, chunked=True)
    await x.close()


@fault("before", "before")
async def empty_body(x: Exchange) -> None:
    await x.whole(200, b"")


@fault("before", "before")
async def empty_chunked_body(x: Exchange) -> None:
    await x.head(200, chunked=True)
    await x.finish()


@fault("before", "before")
async def half_json(x: Exchange) -> None:
    body = json.dumps(x.reply.body if x.reply else {}).encode()
    await x.whole(200, body[: len(body) // 2], ("content-type", "application/json"))


@fault("before", "before")
async def json_array(x: Exchange) -> None:
    await x.whole(200, b"[1, 2, 3]", ("content-type", "application/json"))


@fault("before", "before")
async def html_page(x: Exchange) -> None:
    await x.whole(200, b"<html><body>Welcome to the proxy login</body></html>", ("content-type", "text/html"))


@fault("before", "before")
async def plain_text(x: Exchange) -> None:
    await x.whole(200, b"hello", ("content-type", "text/plain"))


@fault("before", "before")
async def bad_sse_line_first(x: Exchange) -> None:
    await x.head(200, chunked=True)
    await x.chunk(b'data: {"id": "chatcm\n\n')
    for part in x.parts()[1:]:
        await x.chunk(part)
    await x.finish()


@fault("before", "before", 502)
async def error_in_200(x: Exchange) -> None:
    """An error event first in a 200 stream (vLLM, SGLang), or an error object in a 200 body."""
    if not x.stream:
        await x.whole(200, json.dumps(x.error_body(500)).encode())
        return
    await x.head(200, chunked=True)
    await x.chunk(x.error_event())
    await x.finish()


@fault("before", "before", 500)
async def status_500(x: Exchange) -> None:
    await x.whole(500, json.dumps(x.error_body(500)).encode(), ("content-type", "application/json"))


@fault("before", "before", 502)
async def status_502_html(x: Exchange) -> None:
    await x.whole(502, b"<html>Bad gateway</html>", ("content-type", "text/html"))


@fault("before", "before", 503)
async def status_503(x: Exchange) -> None:
    await x.whole(503, json.dumps(x.error_body(503)).encode(), ("content-type", "application/json"))


@fault("before", "before", 529)
async def status_529(x: Exchange) -> None:
    await x.whole(529, json.dumps(x.error_body(529)).encode(), ("content-type", "application/json"))


@fault("before", "before", 429)
async def status_429(x: Exchange) -> None:
    await x.whole(429, json.dumps(x.error_body(429)).encode(), ("content-type", "application/json"))


@fault("before", "before", 429)
async def status_429_retry_after(x: Exchange) -> None:
    body = json.dumps(x.error_body(429)).encode()
    await x.whole(429, body, ("content-type", "application/json"), ("retry-after", "7"))


@fault("before", "before", 429)
async def status_429_retry_after_ms(x: Exchange) -> None:
    body = json.dumps(x.error_body(429)).encode()
    await x.whole(429, body, ("content-type", "application/json"), ("retry-after-ms", "7000"))


@fault("before", "before", 502)
async def redirect(x: Exchange) -> None:
    """Endpoints come only from configuration: a redirect is never followed."""
    port = x.connection.upstream.port
    await x.whole(307, b"", ("location", f"http://127.0.0.1:{port}/redirected{x.seen.path}"))


@fault("before", "before")
async def status_204(x: Exchange) -> None:
    await x.head(204)
    x.seen.done = True


# -- after content (streams); before anything was sent on (everything else)


@fault("after", "before")
async def reset_mid(x: Exchange) -> None:
    await x.begin()
    x.reset()


@fault("after", "before")
async def close_mid(x: Exchange) -> None:
    await x.begin()
    await x.close()


@fault("after", "before")
async def close_mid_undelimited(x: Exchange) -> None:
    """Neither chunked nor a length: the end of the connection looks like the end of the answer."""
    await x.head(200, ("connection", "close"))
    for i, part in enumerate(x.parts()[: x.cut()]):
        x.bill(i)
        await x.send(part)
    await x.sent_on()
    await x.close()


@fault("after", "before")
async def close_mid_chunk(x: Exchange) -> None:
    await x.begin()
    await x.send(b"1f4\r\ndata: {")
    await x.close()


@fault("after", "before")
async def bad_chunk_size(x: Exchange) -> None:
    await x.begin()
    await x.send(b"zz\r\nnothing\r\n")
    await asyncio.sleep(0.2)
    await x.close()


@fault("after", "before")
async def length_too_long(x: Exchange) -> None:
    parts = x.parts()
    await x.head(200, ("content-length", str(sum(map(len, parts)) + 100)))
    for i, part in enumerate(parts[: x.cut()]):
        x.bill(i)
        await x.send(part)
    await x.sent_on()
    await x.close()


@fault("after", "before", 504)
async def stall_mid(x: Exchange) -> None:
    await x.begin()
    await x.stall()


@fault("after", "before", 504)
async def comments_mid(x: Exchange) -> None:
    """Keep-alives between tokens are not tokens: the gap still runs."""
    await x.begin()
    for _ in range(int(STALL_S / 0.05)):
        await asyncio.sleep(0.05)
        await x.chunk(b": still here\n\n" if x.stream else b" ")


async def _stall_after(x: Exchange, parts: int) -> None:
    await x.head(200, chunked=True)
    for i, part in enumerate(x.parts()[:parts]):
        x.bill(i)
        await x.chunk(part)
    await x.sent_on()
    await x.stall()


@fault("skip", "skip")
async def stall_after_role(x: Exchange) -> None:
    """What comes before the first content, and no more."""
    await _stall_after(x, min(x.reply.content) if x.reply else 0)


@fault("skip", "skip")
async def stall_after_last_token(x: Exchange) -> None:
    """All of the answer, but not yet that it is finished, nor what it used."""
    await _stall_after(x, max(x.reply.content) + 1 if x.reply else 0)


@fault("skip", "skip")
async def stall_after_finish(x: Exchange) -> None:
    """All of the answer and its finish reason; the usage, where it has an event of its own, not yet."""
    await _stall_after(x, x.reply.end + 1 if x.reply else 0)


@fault("skip", "skip")
async def stall_before_end_mark(x: Exchange) -> None:
    """Everything but the very last event."""
    await _stall_after(x, len(x.reply.events) - 1 if x.reply else 0)


@fault("skip", "skip")
async def usage_late(x: Exchange) -> None:
    """A moment between the finish reason and the usage, as long as a client takes to close."""
    assert x.reply is not None
    await x.head(200, chunked=True)
    for i, part in enumerate(x.parts()):
        if i == x.reply.end + 1:
            await x.sent_on()
            x.seen.holds = True
            if x.script.gate:
                await x.pass_gate(x.script.gate)
        x.bill(i)
        await x.chunk(part)
    await x.finish()


@fault("skip", "skip")
async def cut_after_role(x: Exchange) -> None:
    """The first event carries no content; what may be done then has a test of its own."""
    await x.head(200, chunked=True)
    await x.chunk(x.parts()[0])
    await asyncio.sleep(0.05)
    x.reset()


@fault("after", "skip")
async def error_mid(x: Exchange) -> None:
    await x.begin()
    await x.chunk(x.error_event())
    await x.finish()


@fault("after", "before")
async def bad_sse_line(x: Exchange) -> None:
    await x.begin()
    await x.chunk(b'data: {"id": "chatcm\n\n')
    for part in x.parts()[x.cut() :]:
        await x.chunk(part)
    await x.finish()


@fault("after", "before")
async def clean_end_without_finish(x: Exchange) -> None:
    """The body ends as HTTP says it should, but nothing said that the answer is finished."""
    await x.begin()
    await x.finish()


# -- strange but right: must be served


@fault("ok", "skip")
async def missing_done(x: Exchange) -> None:
    """The answer said how it finished; only the end marker is missing."""
    await x.healthy(x.parts()[:-1])


@fault("ok", "skip")
async def no_last_blank_line(x: Exchange) -> None:
    parts = x.parts()
    await x.healthy([*parts[:-1], parts[-1].rstrip(b"\n")])


@fault("ok", "skip")
async def no_last_blank_line_nor_done(x: Exchange) -> None:
    parts = x.parts()
    if not x.anthropic:
        parts = parts[:-1]
    await x.healthy([*parts[:-1], parts[-1].rstrip(b"\n")])


@fault("ok", "skip")
async def crlf_lines(x: Exchange) -> None:
    await x.healthy(x.parts(eol="\r\n"))


@fault("ok", "skip")
async def cr_lines(x: Exchange) -> None:
    await x.healthy(x.parts(eol="\r"))


@fault("ok", "skip")
async def byte_order_mark(x: Exchange) -> None:
    parts = x.parts()
    await x.healthy([b"\xef\xbb\xbf" + parts[0], *parts[1:]])


@fault("ok", "skip")
async def no_space_after_colon(x: Exchange) -> None:
    await x.healthy([p.replace(b"data: ", b"data:", 1).replace(b"event: ", b"event:", 1) for p in x.parts()])


@fault("ok", "skip")
async def multi_line_data(x: Exchange) -> None:
    await x.healthy([p.replace(b"data: {", b"data: {\ndata: ", 1) for p in x.parts()])


@fault("ok", "skip")
async def comments_and_ids(x: Exchange) -> None:
    await x.healthy([b": OPENROUTER PROCESSING\n\n" + b"id: 7\nretry: 10\n: note\n" + p for p in x.parts()])


@fault("ok", "ok")
async def every_byte_alone(x: Exchange) -> None:
    """Every byte of the first events in a chunk of its own, the rest in odd pieces."""
    await x.head(200, chunked=True)
    body = b"".join(x.parts())
    single, step = 1200, 7
    for at in [*range(min(single, len(body))), *range(single, len(body), step)]:
        await x.chunk(body[at : at + (1 if at < single else step)])
        if at % 64 == 0:
            await asyncio.sleep(0)
    await x.finish()
    x.seen.tokens_out = x.reply.answer.tokens_out if x.reply else 0


@fault("ok", "ok")
async def one_packet(x: Exchange) -> None:
    body = b"".join(x.parts())
    await x.whole(200, body)


@fault("ok", "ok")
async def until_close(x: Exchange) -> None:
    """HTTP/1.0 manners: the body ends with the connection."""
    body = b"".join(x.parts())
    kind = b"text/event-stream" if x.stream else b"application/json"
    await x.send(b"HTTP/1.0 200 OK\r\ncontent-type: %s; charset=utf-8\r\n\r\n%s" % (kind, body))
    x.seen.done = True
    await x.close()


@fault("ok", "ok")
async def early_hints(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
    await x.healthy()


@fault("ok", "ok")
async def chunk_extensions_and_trailers(x: Exchange) -> None:
    await x.head(200, chunked=True)
    for part in x.parts():
        await x.send(b"%X;ext=1\r\n%s\r\n" % (len(part), part))
    await x.send(b"0\r\nx-trailer: 1\r\n\r\n")
    x.seen.done = True


@fault("either", "either")
async def gzip_unasked(x: Exchange) -> None:
    body = gzip.compress(b"".join(x.parts()))
    await x.whole(200, body, ("content-encoding", "gzip"))


# -- the request itself was wrong


@fault("skip", "skip")
async def status_400(x: Exchange) -> None:
    await x.whole(400, json.dumps(x.error_body(400)).encode(), ("content-type", "application/json"))


def is_timed(name: str) -> bool:
    """Whether only the proxy's own time-outs end what this fault does to a request."""
    return name.startswith(("stall", "drip")) or name in ("only_comments", "comments_mid")


class Upstream:
    """The server: its own thread, its own event loop, a plain port and TLS ports."""

    def __init__(self, contexts: dict[str, ssl.SSLContext] | None = None) -> None:
        self.contexts = contexts or {}
        self.scripts: dict[str, Script] = {}
        self._seen: dict[str, list[Seen]] = {}
        self.complaints: list[str] = []
        """What a strict server would hold against the proxy's requests."""
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.opened = 0
        self.port = 0
        self.tls_ports: dict[str, int] = {}
        self.down: set[str] = set()
        """Endpoints at which every request answers 500, whatever the script says."""
        self.extra_metrics: dict[str, str] = {}
        self._first: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)

    def start(self) -> Upstream:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> None:
        host = "127.0.0.1"
        loop = self._loop
        self._servers = [await loop.create_server(lambda: Connection(self, tls=False), host, 0, backlog=1024)]
        self.port = self._servers[0].sockets[0].getsockname()[1]
        for name, context in self.contexts.items():
            server = await loop.create_server(lambda: Connection(self, tls=True), host, 0, ssl=context)
            self._servers.append(server)
            self.tls_ports[name] = server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        while self.connections or self.tasks:  # none is left to the garbage collector
            for connection in list(self.connections):
                connection.transport.abort()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.sleep(0.01)

    def script(self, marker: str, **fields: Any) -> str:
        self.scripts[marker] = Script(**fields)
        return marker

    def of(self, marker: str) -> list[Seen]:
        """Every attempt that carried ``marker``."""
        return list(self._seen.get(marker, ()))

    async def answer(self, x: Exchange) -> None:
        """Play the script of this request."""
        seen = x.seen
        path = seen.path.split("?")[0]
        if seen.method == "GET":
            await self._get(x, path)
            return
        markers = [m.decode() for m in MARKER.findall(seen.body)]
        marker = markers[0] if markers else ""
        self._attempts[marker] += 1
        seen.attempt = self._attempts[marker]
        first = self._first.setdefault(marker, seen.endpoint)
        for one in set(markers):
            self._seen.setdefault(one, []).append(seen)
        x.script = self.scripts.get(marker, Script())
        if path.endswith("/count_tokens"):
            await x.whole(200, json.dumps({"input_tokens": shapes.count_tokens(seen.json)}).encode())
            return
        shape = next((s for p, s in shapes.BY_PATH.items() if path.endswith(p)), None)
        if shape is None or not isinstance(seen.json, dict):
            await x.whole(404, json.dumps(x.error_body(404)).encode(), ("content-type", "application/json"))
            return
        want = x.script.want
        x.reply = shape(seen.json, want)
        if want.provider:
            provider = providers.BY_NAME[want.provider]
            api = path.rpartition("/v1/")[2].replace("/", "_").removesuffix("_completions")
            x.reply = providers.told(shape(seen.json, replace(want, usage="absent")), api, provider)
            seen.bill = provider.bill
        if want.say is not None:
            x.reply = shapes.saying(x.reply, want.say)
        seen.tokens_in = x.reply.answer.tokens_in
        hit = {
            "all": True,
            "first_endpoint": seen.endpoint == first,
            "first_attempt": seen.attempt == 1,
        }[x.script.on]
        act = FAULTS[x.script.fault].act if hit else none
        if seen.endpoint in self.down:
            act = status_500
        if x.script.head_delay_s:
            await asyncio.sleep(x.script.head_delay_s)
        try:
            await act(x)
        except Gone:
            if not seen.done and seen.gone_at_s is None:
                seen.gone_at_s = x.connection.gone_at_s
            raise

    async def _get(self, x: Exchange, path: str) -> None:
        if path.endswith("/models"):
            data = [{"id": "any", "object": "model", "created": shapes.CREATED, "owned_by": "test"}]
            await x.whole(200, json.dumps({"object": "list", "data": data}).encode())
        elif path.endswith("/metrics") and x.seen.endpoint in self.extra_metrics:
            await x.whole(200, self.extra_metrics[x.seen.endpoint].encode(), ("content-type", "text/plain"))
        elif path.endswith("/health"):
            await x.whole(500 if x.seen.endpoint in self.down else 200, b"{}")
        else:
            await x.whole(404, b"{}")
