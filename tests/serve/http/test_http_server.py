"""The server against clients that do what clients should not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve.http import server as module
from apportion.serve.http.server import Connection, Request, Responder, Server, ServerLimits
from conftest import until

App = Callable[[Request, Responder], Awaitable[None]]
Serve = Callable[..., Awaitable[Server]]


class Client:
    """A raw connection to the server under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.002)

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        first, *lines = head.decode().split("\r\n")[:-2]
        status = int(first.split(" ")[1])
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        if status == 100 or head_only:
            return status, headers, b""
        assert "date" in headers
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return status, headers, body
        assert headers["connection"] == "close"
        return status, headers, await self.reader.read()

    async def closed(self) -> None:
        """The server ends the connection, and sends nothing before that."""
        assert await asyncio.wait_for(self.reader.read(), 30) == b""

    def reset(self) -> None:
        self.writer.transport.abort()


Connect = Callable[[Server], Awaitable[Client]]


async def echo(request: Request, responder: Responder) -> None:
    """Says in the answer what was asked."""
    content = b"%b %b?%b %b %d" % (
        request.method.encode(),
        request.path.encode(),
        request.query.encode(),
        request.version.encode(),
        len(request.body),
    )
    responder.send(200, b"", content)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    started: list[Server] = []

    async def start(app: App = echo, **limits: Any) -> Server:
        server = Server(app, ServerLimits(**limits))  # type: ignore[arg-type]
        server._timer.cancel()  # type: ignore[union-attr] # its clock stands: only `hurry` moves it
        server.address = await server.listen("127.0.0.1", 0)  # type: ignore[attr-defined]
        started.append(server)
        return server

    yield start
    for server in started:
        await server.drain(0.0)
        assert not server.connections


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    writers: list[asyncio.StreamWriter] = []

    async def open_to(server: Server) -> Client:
        reader, writer = await asyncio.open_connection(*server.address, limit=4096)  # type: ignore[attr-defined]
        writers.append(writer)
        return Client(reader, writer)

    yield open_to
    for writer in writers:
        writer.transport.abort()


def hurry(server: Server, seconds: float) -> None:
    """Let the server's clock believe that so much time has passed."""
    for connection in tuple(server.connections):
        connection.tick(server.now_s + seconds)


GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"


# --- any cut into packets -----------------------------------------------------------------------------


class FakeTransport(asyncio.Transport):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.closing, "written after close"
        self.written.append(data)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def talk(pieces: list[bytes], yields: list[bool]) -> tuple[list[Request], bytes]:
    """The requests that arrive, and all that is answered, when these packets come."""
    seen: list[Request] = []

    async def app(request: Request, responder: Responder) -> None:
        seen.append(request)
        if request.path.startswith("/s"):
            responder.start(200, b"x: y\r\n", b"first")
            await asyncio.sleep(0)
            responder.write(b"then")
            responder.finish()
        else:
            await echo(request, responder)

    server = Server(app)
    server.date = b"now"
    connection = Connection(server)
    transport = FakeTransport(connection)
    connection.connection_made(transport)
    for piece, pause in zip(pieces, yields, strict=True):
        if transport.closing:
            break
        connection.data_received(piece)
        if pause:
            await asyncio.sleep(0)
    for _ in range(60):
        await asyncio.sleep(0)
    transport.close()
    await asyncio.sleep(0)
    server._timer.cancel()  # type: ignore[union-attr]
    return seen, b"".join(transport.written)


tokens = st.text("abcdefXYZ-_0123456789", min_size=1, max_size=8).map(str.encode)
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=10).map(str.encode)


@st.composite
def requests(draw: st.DrawFn, last: bool) -> tuple[bytes, dict[str, Any]]:
    """One request on the wire, and what should be understood."""
    method = draw(st.sampled_from([b"GET", b"POST", b"DELETE", b"OPTIONS"]))
    path = b"/" + draw(st.sampled_from([b"", b"s", b"a/b", b"v1/chat", b"x" * 300]))
    query = draw(st.sampled_from([b"", b"a=b", b"a=%20&c"]))
    headers = {b"x-" + name.lower(): value for name, value in draw(st.dictionaries(tokens, values)).items()}
    body = draw(st.binary(max_size=200))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    version = draw(st.sampled_from([b"1.0", b"1.1"])) if last else b"1.1"
    if version == b"1.0" and framing == "chunked":
        framing = "length"
    target = path + (b"?" + query if query else b"")
    if draw(st.booleans()):
        target = b"http://somewhere.test" + target
    wire = b"%b %b HTTP/%b\r\nHost: h\r\n" % (method, target, version)
    for name, value in headers.items():
        wire += b"%b:%b%b\r\n" % (
            draw(st.sampled_from([name, name.upper()])),
            b" " * draw(st.integers(0, 2)),
            value,
        )
    if framing == "none":
        body = b""
        wire += b"\r\n"
    elif framing == "length":
        wire += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        wire += b"Transfer-Encoding: chunked\r\n\r\n"
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            if begin < end:
                wire += b"%x%b\r\n%b\r\n" % (
                    end - begin,
                    draw(st.sampled_from([b"", b";a=b"])),
                    body[begin:end],
                )
        wire += (
            b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: t\r\n", b"authorization: evil\r\n"])) + b"\r\n"
        )
    said = {"method": method.decode(), "path": path.decode(), "query": query.decode(), "body": body}
    return wire, {**said, "headers": headers, "version": version.decode()}


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[dict[str, Any]]]:
    count = draw(st.integers(1, 4))
    drawn = [draw(requests(last=i == count - 1)) for i in range(count)]
    return b"".join(wire for wire, _ in drawn), [said for _, said in drawn]


@settings(max_examples=150, deadline=None)
@given(conversations(), st.data())
def test_any_cut_into_packets_gives_the_same_requests_and_answers(
    conversation: tuple[bytes, list[dict[str, Any]]], data: st.DataObject
) -> None:
    wire, said = conversation
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=12)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    yields = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    seen, answers = asyncio.run(talk(pieces, yields))
    assert [r.method for r in seen] == [s["method"] for s in said]
    for request, expected in zip(seen, said, strict=True):
        headers = {k: v for k, v in request.headers.items() if k.startswith(b"x-")}
        assert headers == expected["headers"], "and no trailer among them"
        assert b"authorization" not in request.headers
        for name in ("path", "query", "body", "version"):
            assert getattr(request, name) == expected[name]
    assert answers == asyncio.run(talk([wire], [True]))[1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), conversations())
def test_any_bytes_at_all_get_an_answer_or_nothing(
    pieces: list[bytes], conversation: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """Garbage, alone or behind good requests, never raises and never spoils what came before it."""
    wire, said = conversation
    _, answers = asyncio.run(talk([*pieces], [True] * len(pieces)))
    assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
    seen, _ = asyncio.run(talk([wire, *pieces], [True] * (len(pieces) + 1)))
    assert [r.body for r in seen[:1]] == [said[0]["body"]]


# --- what is refused ----------------------------------------------------------------------------------


def post(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(h + b"\r\n" for h in headers)
    return b"POST / HTTP/1.1\r\nhost: h\r\n" + lines + b"\r\n" + body


CL, TE = b"content-length: 3", b"transfer-encoding: chunked"


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (post(b"abc", CL, b"content-length: 4"), 400),
        (post(b"abc", CL, CL), 400),
        (post(b"abc", b"content-length: 3, 3"), 400),
        (post(b"abc", b"content-length: +3"), 400),
        (post(b"abc", b"content-length: -3"), 400),
        (post(b"abc", b"content-length: 0x3"), 400),
        (post(b"abc", b"content-length:"), 400),
        (post(b"abc", b"content-length: 99999999999999999999"), 400),
        (post(b"0\r\n\r\n", CL, TE), 400),
        (post(b"0\r\n\r\n", TE, CL), 400),
        (post(b"0\r\n\r\n", b"transfer-encoding: chunked, identity"), 400),
        (post(b"0\r\n\r\n", b"transfer-encoding: gzip, chunked"), 400),
        (post(b"0\r\n\r\n", b"transfer-encoding: identity, chunked"), 400),
        (post(b"zz\r\n", TE), 400),
        (post(b"-1\r\n", TE), 400),
        (post(b"1\r\nab\r\n0\r\n\r\n", TE), 400),
        (post(b"1\na\n0\n\n", TE), 400),
        (post(b"fffffffffffffffff\r\n", TE), 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: h\n\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\nx: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\rx: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx: a\r\n b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx\0: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\n: a\r\n\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: h\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\nhost: h\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT h:80 HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"GET ftp://h/ HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx: " + b"y" * 66_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: h\r\n" + b"y" * 66_000 + b": x\r\n\r\n", 431),
        (b"GET /" + b"y" * 66_000 + b" HTTP/1.1\r\nhost: h\r\n\r\n", 431),
        (post(b"abc", b"content-length: 5000"), 413),
        (post(b"7d0\r\n" + b"x" * 2000, TE), 413),
    ],
    ids=lambda v: repr(v)[:50] if isinstance(v, bytes) else None,
)
@pytest.mark.parametrize("cut", [False, True])
async def test_refused(serve: Serve, connect: Connect, wire: bytes, status: int, cut: bool) -> None:
    """One answer that says why, then the end; nothing of it reaches the application."""
    asked: list[Request] = []

    async def app(request: Request, responder: Responder) -> None:
        asked.append(request)
        responder.send(200, b"", b"")

    server = await serve(app, body_bytes=1000)
    client = await connect(server)
    half = len(wire) // 2
    await client.send(*([wire[:half], wire[half:]] if cut else [wire]))
    got, headers, body = await client.answer()
    assert (got, headers["connection"], asked) == (status, "close", [])
    assert headers["x-apportion-error"]
    assert b'"error":{' in body
    await client.closed()
    client.writer.close()
    await until(lambda: not server.connections)


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET / HTTP/1.1\r\nhost: h\r\nx: ", b"GET / HTTP/1.1\r\nhost: h\r\n"]
)
async def test_a_head_without_end(serve: Serve, connect: Connect, start: bytes) -> None:
    server = await serve(header_bytes=20_000)
    client = await connect(server)
    await client.send(start)
    piece = b"x: y\r\n" * 400 if start.endswith(b"\n") else b"x" * 2400
    sent = 0
    while client.reader._buffer == b"":  # type: ignore[attr-defined]
        await client.send(piece)
        sent += len(piece)
        await asyncio.sleep(0.001)
        assert sent < 2**20
    status, headers, _ = await client.answer()
    assert (status, headers["x-apportion-error"]) == (431, "headers_too_large")
    await client.closed()


async def test_a_head_just_within_the_limits(serve: Serve, connect: Connect) -> None:
    server = await serve()
    client = await connect(server)
    wire = b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: %b\r\n" % (b"y" * 480) * 120 + b"\r\n"
    for _ in range(3):
        for at in range(0, len(wire), 4000):
            await client.send(wire[at : at + 4000])
        assert (await client.answer())[0] == 200


async def test_a_large_packet_that_begins_inside_a_head(serve: Serve, connect: Connect) -> None:
    """What follows the head in the same packet does not count as head."""
    client = await connect(await serve())
    body = b"x" * 2**20
    wire = post(body, b"content-length: %d" % len(body))
    for cut in (1, 30, 60):
        await client.send(wire[:cut], wire[cut:])
        assert (await client.answer())[2] == b"POST /? 1.1 1048576"


async def test_trailers_are_dropped_however_many(serve: Serve, connect: Connect) -> None:
    """They are no headers (RFC 9110 section 6.5.1), and memory does not grow with them."""
    seen: list[Request] = []

    async def app(request: Request, responder: Responder) -> None:
        seen.append(request)
        responder.send(200, b"", b"")

    server = await serve(app)
    client = await connect(server)
    await client.send(post(b"1\r\na\r\n0\r\n", TE))
    for i in range(500):
        await client.send(b"".join(b"x-%d-%d: %b\r\n" % (i, j, b"y" * 50) for j in range(20)))
    await until(lambda: len(server.connections) == 1)
    (connection,) = server.connections
    assert len(connection._headers) == 0
    await client.send(b"\r\n")
    assert (await client.answer())[0] == 200
    assert set(seen[0].headers) == {b"host", b"transfer-encoding"}
    assert seen[0].body == b"a"


async def test_413_is_seen_by_a_client_that_is_still_sending(serve: Serve, connect: Connect) -> None:
    server = await serve(body_bytes=10_000)
    for framing in (b"content-length: 50000000", TE):
        client = await connect(server)
        await client.send(post(b"", framing))
        prefix = b"4000\r\n" if framing == TE else b""
        for _ in range(200):  # 3 MB against a limit of 10 kB
            await client.send(prefix + b"x" * 16384 + (b"\r\n" if prefix else b""))
        status, headers, body = await client.answer()
        assert (status, headers["x-apportion-error"]) == (413, "body_too_large")
        assert b"10000 bytes" in body
        await client.closed()
        assert all(not c._body for c in server.connections)
        hurry(server, 3)
        await until(lambda: not server.connections)


def refusing(server: Server) -> list[Request]:
    """Have everything refused for its head; the requests that were asked about."""
    asked: list[Request] = []
    server.refuses = lambda request: asked.append(request) is None  # type: ignore[assignment]
    return asked


@pytest.mark.parametrize("framing", [b"content-length: 15000000", TE])
async def test_a_large_body_is_not_read_where_its_head_is_enough(
    serve: Serve, connect: Connect, framing: bytes
) -> None:
    seen: list[Request] = []

    async def app(request: Request, responder: Responder) -> None:
        seen.append(request)
        responder.send(401, b"www-authenticate: Bearer\r\n", b"who?")

    server = await serve(app)
    refusing(server)
    silent = await connect(server)
    await silent.send(post(b"", framing))
    status, headers, body = await silent.answer()
    assert (status, headers["connection"], body) == (401, "close", b"who?")
    client = await connect(server)
    prefix = b"4000\r\n" if framing == TE else b""
    piece = prefix + b"x" * 16384 + (b"\r\n" if prefix else b"")
    await client.send(post(piece, framing))
    for _ in range(200):
        await client.send(piece)
    assert (await client.answer())[0] == 401, "and no reset, though it was still sending"
    await client.closed()
    assert [request.body for request in seen] == [b"", b""]
    assert all(not c._body for c in server.connections)
    hurry(server, 3)
    await until(lambda: not server.connections)


async def test_a_small_body_is_read_first(serve: Serve, connect: Connect) -> None:
    server = await serve()
    asked = refusing(server)
    client = await connect(server)
    for length in (3, 65_536):
        await client.send(post(b"x" * length, b"content-length: %d" % length))
        assert (await client.answer())[2] == b"POST /? 1.1 %d" % length
    assert asked == []
    await client.send(post(b"x" * 65_537, b"content-length: 65537"))
    assert (await client.answer())[2] == b"POST /? 1.1 0"
    assert len(asked) == 1


async def test_a_large_body_behind_another_request_waits_its_turn(serve: Serve, connect: Connect) -> None:
    go = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        if request.method == "GET":
            await go.wait()
        await echo(request, responder)

    server = await serve(app)
    asked = refusing(server)
    client = await connect(server)
    await client.send(GET + post(b"x" * 70_000, b"content-length: 70000"))
    await until(lambda: any(c._queue for c in server.connections))
    go.set()
    assert (await client.answer())[2].startswith(b"GET")
    assert (await client.answer())[2] == b"POST /? 1.1 70000"
    assert asked == []


@pytest.mark.parametrize("start", [b"2\r\n{}\r\n0\r\n", b"2;"])
async def test_what_is_thrown_away_is_bounded(serve: Serve, connect: Connect, start: bytes) -> None:
    server = await serve(body_bytes=100_000)
    client = await connect(server)
    await client.send(post(start, TE))
    sent = 0
    while client.reader._buffer == b"":  # type: ignore[attr-defined]
        await client.send(b"x: y\r\n" * 2000 if start.startswith(b"2\r") else b"x" * 12_000)
        sent += 12_000
        await asyncio.sleep(0)
        assert sent < 2**21
    assert (await client.answer())[0] == 413
    await client.closed()


@pytest.mark.parametrize("length", [1000, 1001])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_limit_itself_is_allowed(
    serve: Serve, connect: Connect, length: int, chunked: bool
) -> None:
    client = await connect(await serve(body_bytes=1000))
    body = b"x" * length
    wire = (
        post(b"".join(b"1\r\n%c\r\n" % b for b in body) + b"0\r\n\r\n", TE)
        if chunked
        else post(body, b"content-length: %d" % length)
    )
    await client.send(wire)
    assert (await client.answer())[0] == (200 if length == 1000 else 413)


# --- framing of answers -------------------------------------------------------------------------------


async def test_expect_100_continue(serve: Serve, connect: Connect) -> None:
    client = await connect(await serve(body_bytes=1000))
    expect = b"Expect: 100-Continue"
    for _ in range(2):
        await client.send(post(b"", CL, expect))
        assert (await client.answer())[0] == 100
        await client.send(b"abc")
        assert (await client.answer())[2] == b"POST /? 1.1 3"
    await client.send(post(b"", b"content-length: 2000", expect))
    assert (await client.answer())[0] == 413, "without asking for a body that would be refused"
    server = await serve()
    refusing(server)
    client = await connect(server)
    await client.send(post(b"", CL, expect))
    assert (await client.answer())[2] == b"POST /? 1.1 0"


async def test_100_continue_never_stands_inside_another_answer(serve: Serve, connect: Connect) -> None:
    go = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        responder.start(200, b"", b"first")
        await go.wait()
        responder.finish(b"last")

    client = await connect(await serve(app))
    await client.send(GET + post(b"", CL, b"expect: 100-continue"))
    await until(lambda: b"first" in client.reader._buffer)  # type: ignore[attr-defined]
    go.set()
    assert (await client.answer())[2] == b"firstlast"
    assert (await client.answer())[0] == 100
    await client.send(b"abc")
    assert (await client.answer())[2] == b"firstlast"


async def test_http_1_0(serve: Serve, connect: Connect) -> None:
    server = await serve()
    client = await connect(server)
    await client.send(b"GET /a HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx")
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (200, "close", b"GET /a? 1.0 1")
    await client.closed()
    client = await connect(server)
    for _ in range(3):
        await client.send(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "keep-alive", b"GET /a? 1.0 0")


async def streaming(request: Request, responder: Responder) -> None:
    responder.start(200, b"", b"a")
    responder.write(b"")
    await asyncio.sleep(0)
    responder.write(b"b")
    responder.finish(b"c" if request.path == "/" else b"")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_streams_by_version(serve: Serve, connect: Connect, version: bytes, keep: bool) -> None:
    client = await connect(await serve(streaming))
    word = b"keep-alive" if keep else b"close"
    await client.send(b"GET / HTTP/%b\r\nhost: h\r\nconnection: %b\r\n\r\n" % (version, word))
    status, headers, body = await client.answer()
    assert (status, body) == (200, b"abc")
    assert ("transfer-encoding" in headers) == (version == b"1.1")
    if version == b"1.1" and keep:
        await client.send(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n")
        assert (await client.answer())[2] == b"ab"
    else:
        assert headers["connection"] == "close"
        await client.closed()


async def test_head_has_the_length_and_no_body(serve: Serve, connect: Connect) -> None:
    client = await connect(await serve())
    for _ in range(2):
        await client.send(b"HEAD / HTTP/1.1\r\nhost: h\r\n\r\n")
        status, headers, _ = await client.answer(head_only=True)
        assert (status, headers["content-length"]) == (200, str(len(b"HEAD /? 1.1 0")))
    await client.send(GET)
    assert (await client.answer())[2] == b"GET /? 1.1 0"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (b"/a%20b?c=%20", b"/a b?c=%20"),
        (b"http://h", b"/?"),
        (b"HTTPS://h/x?y", b"/x?y"),
        (b"http://u:p@h:1/x", b"/x?"),
        (b"/%ff", "/\ufffd?".encode()),
        (b"/%zz", b"/%zz?"),
        (b"//a/../b", b"//a/../b?"),
    ],
)
async def test_targets(serve: Serve, connect: Connect, target: bytes, said: bytes) -> None:
    client = await connect(await serve())
    await client.send(b"GET %b HTTP/1.1\r\nhost: h\r\n\r\n" % target)
    assert (await client.answer())[2] == b"GET %b 1.1 0" % said


async def test_an_upgrade_is_not_taken_up(serve: Serve, connect: Connect) -> None:
    """Java's client offers HTTP/2 with every first request; the request is answered as if it had not."""
    client = await connect(await serve())
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAA")
    for wire in (
        post(b"abc", b"content-length: 3", *offer),
        post(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", *offer, b"transfer-encoding: chunked"),
    ):
        for cut in (len(wire), len(wire) - 1, 60):
            await client.send(wire[:cut], wire[cut:])
            assert (await client.answer())[2] == b"POST /? 1.1 3"
        client.writer.write(wire * 3000)
        for _ in range(3000):
            assert (await client.answer())[2] == b"POST /? 1.1 3"
        await client.send(wire + wire + GET.replace(b"host", b"upgrade: h2c\r\nhost"))
        for said in (b"POST /? 1.1 3", b"POST /? 1.1 3", b"GET /? 1.1 0"):
            assert (await client.answer())[2] == said


@pytest.mark.parametrize("status", [200, 404, 429, 503, 520, 529, 599])
async def test_every_status_has_a_line(serve: Serve, connect: Connect, status: int) -> None:
    async def app(request: Request, responder: Responder) -> None:
        responder.send(status, b"", b"x")

    client = await connect(await serve(app))
    await client.send(GET)
    assert re.match(rb"HTTP/1\.1 %d [A-Za-z]" % status, await client.reader.readline())


# --- pipelining and slow readers ----------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(serve: Serve, connect: Connect) -> None:
    running = most = 0

    async def app(request: Request, responder: Responder) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        responder.send(200, b"", request.path.encode())

    client = await connect(await serve(app))
    for i in range(500):  # more than are read ahead
        client.writer.write(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % i)
    assert [(await client.answer())[2] for _ in range(500)] == [b"/%d" % i for i in range(500)]
    assert most == 1


async def test_what_is_read_ahead_is_bounded(serve: Serve, connect: Connect) -> None:
    go = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        await go.wait()
        responder.send(200, b"", b"")

    server = await serve(app)
    client = await connect(server)
    await client.send(GET)
    await until(lambda: any(c.task for c in server.connections))
    wire = GET + GET[:-2] + b"x: %b\r\n\r\n" % (b"y" * 4000)
    for _ in range(1000):
        client.writer.write(wire)
    (connection,) = server.connections
    await until(lambda: connection._reading_paused)
    assert len(connection._queue) < module._PIPELINE + 3000, "one packet more than the limit"
    go.set()
    for _ in range(2001):
        assert (await client.answer())[0] == 200


async def test_a_pipelining_client_that_does_not_read(serve: Serve, connect: Connect) -> None:
    """The next request waits until the last answer was read, so that memory is bounded; and not for ever."""
    started = 0
    size = 512 * 1024

    async def app(request: Request, responder: Responder) -> None:
        nonlocal started
        started += 1
        responder.send(200, b"", b"x" * size)

    server = await serve(app)
    client = await connect(server)
    client.writer.write(GET * 200)
    await until(lambda: any(c.write_paused and c.task is None for c in server.connections))
    (connection,) = server.connections
    assert started < 40
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() <= 2 * size
    for _ in range(200):
        assert len((await client.answer())[2]) == size
    assert started == 200
    client.writer.write(GET * 200)
    await until(lambda: connection.write_paused and connection.task is None)
    hurry(server, 59)
    assert server.connections
    hurry(server, 61)
    await until(lambda: not server.connections)


async def test_a_slow_reader_pauses_the_application(serve: Serve, connect: Connect) -> None:
    calls: list[str] = []
    drained = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        responder.on_pause = lambda: calls.append("pause")

        def on_drain() -> None:
            calls.append("drain")
            drained.set()

        responder.on_drain = on_drain
        responder.start(200, b"")
        while not responder.paused:
            responder.write(b"x" * 65536)
            await asyncio.sleep(0)
        await drained.wait()
        assert not responder.paused
        responder.finish(b"end")

    server = await serve(app)
    client = await connect(server)
    await client.send(GET)
    await until(lambda: calls == ["pause"])
    await asyncio.sleep(0.05)
    assert calls == ["pause"]
    body = (await client.answer())[2]
    assert body.endswith(b"end")
    assert calls[:2] == ["pause", "drain"]


async def test_a_reader_that_stops_is_cut(serve: Serve, connect: Connect) -> None:
    gone = asyncio.Event()
    cancelled = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        responder.on_gone = gone.set
        responder.start(200, b"")
        try:
            while True:
                if not responder.paused:
                    responder.write(b"x" * 65536)
                await asyncio.sleep(0.001)
        finally:
            cancelled.set()

    server = await serve(app, write_timeout_s=5.0)
    client = await connect(server)
    await client.send(GET)
    await until(lambda: any(c.write_paused for c in server.connections))
    hurry(server, 4)
    assert not gone.is_set()
    hurry(server, 6)
    await asyncio.wait_for(asyncio.gather(gone.wait(), cancelled.wait()), 30)
    assert not server.connections


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "limit_s", "status"),
    [
        (b"", 75, None),
        (b"\r\n", 75, None),
        (b"G", 15, 408),
        (b"GET / HTTP/1.1\r\nhost", 15, 408),
        (post(b"ab", CL), 60, 408),
        (post(b"1\r\n", TE), 60 + 20 * 2**20 / 65536, 408),
        (GET, 75, None),
        (GET + b"GET / HT", 75, 408),
    ],
)
async def test_waiting_for_the_client_is_limited(
    serve: Serve, connect: Connect, sent: bytes, limit_s: float, status: int | None
) -> None:
    server = await serve()
    client = await connect(server)
    await client.send(sent)
    if sent.startswith(GET):
        assert (await client.answer())[0] == 200
    await until(lambda: len(server.connections) == 1)
    (connection,) = server.connections
    if status is not None:
        await until(lambda: connection._in_head or connection._request is not None)
        await until(lambda: limit_s - 1 < connection._deadline_s - server.now_s)
    hurry(server, limit_s - 2)
    await asyncio.sleep(0.01)
    assert len(server.connections) == 1
    hurry(server, limit_s + 2)
    if status is not None:
        got, headers, _ = await client.answer()
        assert (got, headers["x-apportion-error"]) == (status, "request_timeout")
    await client.closed()
    hurry(server, 100)
    await until(lambda: not server.connections)


async def test_a_trickle_does_not_put_off_the_end(serve: Serve, connect: Connect) -> None:
    """Bytes that make no progress, or some, do not move the time by which a head must be there."""
    server = await serve(header_timeout_s=1.0)
    for piece in (b"\r\n", b"x"):
        client = await connect(server)
        await client.send(b"GET / HTTP/1.1\r\nhost: h\r\nx: " if piece == b"x" else b"")
        in_head = [piece == b"x"]
        await until(lambda wanted=in_head: [c._in_head for c in server.connections] == wanted)
        (connection,) = server.connections
        before = connection._deadline_s
        for _ in range(5):
            await client.send(piece)
            await asyncio.sleep(0.005)
        server.now_s += 10
        await client.send(piece)
        await asyncio.sleep(0.02)
        assert connection._deadline_s == before
        client.reset()
        await until(lambda: not server.connections)
        server.now_s -= 10


async def test_an_answer_may_take_its_time(serve: Serve, connect: Connect) -> None:
    go = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        await go.wait()
        responder.send(200, b"", b"late")

    server = await serve(app)
    client = await connect(server)
    await client.send(GET)
    await until(lambda: any(c.task for c in server.connections))
    hurry(server, 100_000)
    go.set()
    assert (await client.answer())[2] == b"late"


# --- clients that go away -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("stage", ["head", "body", "running", "streaming", "queued"])
async def test_a_client_that_goes_away_cancels_its_work(
    serve: Serve, connect: Connect, stage: str, how: str
) -> None:
    """At each stage; one that only half-closes counts as gone, too, as it cannot be told apart."""
    began, ended = asyncio.Event(), asyncio.Event()
    gone: list[str] = []
    asked = 0

    async def app(request: Request, responder: Responder) -> None:
        nonlocal asked
        asked += 1
        responder.on_gone = lambda: gone.append("gone")
        if stage == "streaming":
            responder.start(200, b"", b"x")
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            assert responder.gone
            responder.write(b"into the void")
            responder.finish()
            responder.send(200, b"", b"")
            responder.abort()
            ended.set()

    server = await serve(app)
    client = await connect(server)
    sent = {"head": b"GET / HT", "body": post(b"a", CL), "queued": GET + GET + GET}.get(stage, GET)
    await client.send(sent)
    if stage in ("head", "body"):
        await until(lambda: len(server.connections) == 1)
    else:
        await began.wait()
    if how == "reset":
        client.reset()
    elif how == "close":
        client.writer.close()
    else:
        client.writer.write_eof()
    await until(lambda: not server.connections)
    if stage in ("head", "body"):
        assert asked == 0
    else:
        await asyncio.wait_for(ended.wait(), 30)
        assert (asked, gone) == (1, ["gone"])


# --- applications that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "return", "cancel"])
@pytest.mark.parametrize("started", [False, True])
async def test_an_application_that_fails(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, how: str, started: bool
) -> None:
    """Before the start: 500. After it: a cut, never a proper end. Other connections see nothing of it."""

    async def app(request: Request, responder: Responder) -> None:
        if request.path == "/good":
            responder.send(200, b"", b"good")
            return
        if started:
            responder.start(200, b"", b"half")
        if how == "raise":
            raise RuntimeError("secret words")
        if how == "cancel":
            raise asyncio.CancelledError

    server = await serve(app)
    good = await connect(server)
    client = await connect(server)
    await client.send(GET)
    if started:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await client.answer()
    else:
        status, headers, body = await client.answer()
        assert (status, headers["x-apportion-error"]) == (500, "internal_error")
        assert b"secret" not in body
        await client.closed()
    await good.send(GET.replace(b"/", b"/good", 1))
    assert (await good.answer())[2] == b"good"
    await until(lambda: len(server.connections) == 1)
    assert len(caplog.records) == (how == "raise")


async def test_an_application_that_fails_after_its_answer(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(request: Request, responder: Responder) -> None:
        responder.send(200, b"", b"whole")
        raise RuntimeError

    client = await connect(await serve(app))
    for _ in range(3):
        await client.send(GET + GET)
        assert [(await client.answer())[2] for _ in range(2)] == [b"whole"] * 2
    assert len(caplog.records) == 6


# --- many connections, draining -----------------------------------------------------------------------


async def test_too_many_connections(serve: Serve, connect: Connect) -> None:
    server = await serve(max_connections=3)
    clients = [await connect(server) for _ in range(3)]
    await until(lambda: len(server.connections) == 3)
    for _ in range(20):
        refused = await connect(server)
        await until(lambda r=refused: r.reader._buffer != b"")
        await refused.send(post(b"x" * 100_000, b"content-length: 100000"))
        status, headers, _ = await refused.answer()
        assert (status, headers["x-apportion-error"], headers["retry-after"]) == (
            503,
            "gateway_overloaded",
            "1",
        )
        await refused.closed()
    clients.pop().reset()
    await until(lambda: len(server.connections) == 2)
    clients.append(await connect(server))
    for client in clients:
        await client.send(GET)
        assert (await client.answer())[0] == 200


async def test_idle_connections_slow_nobody(serve: Serve, connect: Connect) -> None:
    """2,000 of them: one look at all of them takes the clock a moment, and answers cost what they did before."""
    server = await serve()

    async def hundred() -> list[Client]:
        return await asyncio.gather(*(connect(server) for _ in range(100)))

    idle = [client for _ in range(20) for client in await hundred()]
    await until(lambda: len(server.connections) == 2000)
    client = await connect(server)
    times = []
    for _ in range(200):
        begun = time.thread_time()
        await client.send(GET)
        await client.answer()
        times.append(time.thread_time() - begun)
    looks = []
    for _ in range(5):  # a collection of garbage may fall into one
        begun = time.thread_time()
        server._tick()
        looks.append(time.thread_time() - begun)
        server._timer.cancel()  # type: ignore[union-attr]
    assert min(looks) < 0.1
    assert sorted(times)[100] < 0.05
    for other in idle[::100]:
        await other.send(GET)
        assert (await other.answer())[0] == 200


async def test_draining(serve: Serve, connect: Connect) -> None:
    go = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        if request.path == "/stream":
            responder.start(200, b"", b"a")
            await go.wait()
            responder.finish(b"b")
        else:
            await go.wait()
            await echo(request, responder)

    server = await serve(app)
    idle, whole, stream, sending, fresh = [await connect(server) for _ in range(5)]
    await until(lambda: len(server.connections) == 5)
    await idle.send(b"")
    await whole.send(GET)
    await stream.send(b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n")
    await sending.send(post(b"a", CL))
    await until(lambda: sum(c.task is not None for c in server.connections) == 2)
    await until(lambda: any(c._request for c in server.connections))
    drained = asyncio.create_task(server.drain(120.0))
    await idle.closed()
    await fresh.closed()
    with pytest.raises(OSError):
        await connect(server)
    await sending.send(b"bc")
    go.set()
    status, headers, body = await whole.answer()
    assert (status, headers["connection"], body) == (200, "close", b"GET /? 1.1 0")
    assert (await stream.answer())[2] == b"ab"
    assert (await sending.answer())[2] == b"POST /? 1.1 3", "what is being received is answered, too"
    for client in (whole, stream, sending):
        await client.closed()
    assert await drained


async def test_draining_cuts_what_does_not_end(serve: Serve, connect: Connect) -> None:
    cancelled = asyncio.Event()

    async def app(request: Request, responder: Responder) -> None:
        responder.start(200, b"", b"half")
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    server = await serve(app)
    client = await connect(server)
    await client.send(GET)
    await until(lambda: any(c.streaming for c in server.connections))
    assert not await server.drain(0.1)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
        await client.answer()
    await asyncio.wait_for(cancelled.wait(), 30)
    assert not server.connections


async def test_unix_socket(serve: Serve, tmp_path: Any) -> None:
    server = await serve()
    await server.listen_unix(str(tmp_path / "s"))
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    client = Client(reader, writer)
    await client.send(GET)
    assert (await client.answer())[2] == b"GET /? 1.1 0"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("part", ["head", "body"])
async def test_while_the_loop_stands_still_nobody_is_late(serve: Serve, connect: Connect, part: str) -> None:
    server = await serve(header_timeout_s=1.8, body_timeout_s=1.8)
    client = await connect(server)
    request = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nok"
    cut = 10 if part == "head" else len(request) - 1
    await client.send(request[:cut])
    await until(lambda: any(c._in_head or c._request is not None for c in server.connections))
    server._ticked_s -= 3600.0
    server._tick()
    server._timer.cancel()  # type: ignore[union-attr]
    await client.send(request[cut:])
    assert (await client.answer())[0] == 200


def test_time_does_not_pass_in_the_tests_of_time() -> None:
    """`hurry` stands for the server's own clock, which looks about twice a second."""

    async def look() -> float:
        server = Server(echo)
        before = server.now_s
        await asyncio.sleep(0.6)
        server._timer.cancel()  # type: ignore[union-attr]
        return server.now_s - before

    assert 0.4 < asyncio.run(look()) < 5
