"""The upstream client against servers that do what servers should not."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from apportion.serve.http import client
from apportion.serve.http.client import (
    Exchange,
    Phase,
    Pool,
    Target,
    Timeouts,
    TransportFailure,
    Watch,
    client_tls,
    stale,
)
from conftest import PATIENCE_S, Upstream, Wire, until

Start = Callable[..., Awaitable[Upstream]]
PoolTo = Callable[..., Pool]

GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
QUICK = Timeouts(0.1, 0.1, 0.1, 0.4)
PATIENT = Timeouts(60.0, 60.0, 60.0, 60.0)


class Stream(Exchange):
    """Notes pieces; waits for its first byte of body as a stream does."""

    def __init__(self, timeouts: Timeouts) -> None:
        super().__init__(asyncio.get_running_loop(), timeouts)
        self.ended = 0

    def phase(self) -> Phase:
        return "gap" if self.chunks else "first_token"

    def on_end(self) -> None:
        self.ended += 1
        super().on_end()

    def on_failure(self, failure: TransportFailure) -> None:
        self.ended += 1
        super().on_failure(failure)


def whole(timeouts: Timeouts = PATIENT) -> Exchange:
    return Exchange(asyncio.get_running_loop(), timeouts)


async def ask(pool: Pool, request: bytes = GET, timeouts: Timeouts = PATIENT) -> Exchange:
    exchange = whole(timeouts)
    await pool.send(exchange, request)
    await exchange.answered()
    return exchange


async def failure_of(pool: Pool, exchange: Exchange, request: bytes = GET) -> TransportFailure:
    with pytest.raises(TransportFailure) as caught:
        await asyncio.wait_for(_all(pool, exchange, request), PATIENCE_S)
    assert caught.value.__cause__ is None
    return caught.value


async def _all(pool: Pool, exchange: Exchange, request: bytes) -> None:
    await pool.send(exchange, request)
    await exchange.answered()


def saying(*pieces: bytes, then: str = "keep") -> Callable[[Wire, int], Awaitable[None]]:
    """Answers every request with these pieces; then keeps, closes or resets the connection."""

    async def play(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            await wire.say(*pieces)
            if then == "close":
                return
            if then == "reset":
                wire.reset()
                return
            if then == "hang":
                await wire.gone()
                return

    return play


# --- answers and reuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "body", "kept"),
    [
        ((OK,), 200, b"ok", True),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",), 200, b"", True),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b"", True),
        ((b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",), 304, b"", True),
        ((b"HTTP/1.1 404 \r\ncontent-length: 1\r\n\r\nx",), 404, b"x", True),
        ((b"HTTP/1.1 529\r\ncontent-length: 1\r\n\r\nx",), 529, b"x", True),
        ((b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",), 200, b"ok", False),
        ((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",), 200, b"ok", True),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n",
                b"etag: x\r\n\r\n",
            ),
            200,
            b"ok",
            True,
        ),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), 200, b"ok", True),
        ((b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hi\r\nlink: x\r\n\r\n" + OK,), 200, b"ok", True),
        ((b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",), 200, b"ok", False),
        ((b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",), 200, b"ok", True),
        (tuple(bytes([b]) for b in OK), 200, b"ok", True),
    ],
    ids=lambda v: repr(v)[:60] if isinstance(v, tuple) else None,
)
async def test_answers(
    upstream: Start, pool_to: PoolTo, answer: tuple[bytes, ...], status: int, body: bytes, kept: bool
) -> None:
    server = await upstream(saying(*answer))
    pool = pool_to(server.target)
    for _ in range(3):
        exchange = await ask(pool)
        assert (exchange.status, exchange.body()) == (status, body)
        assert exchange.header(b"link") is None, "headers of an interim answer are not the answer's"
        assert exchange.header(b"etag") is None, "trailers are no headers"
        await until(lambda: pool.open == (1 if kept else 0))
    assert server.connections == (1 if kept else 3)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_without_length_ends_with_its_connection(
    upstream: Start, pool_to: PoolTo, version: bytes
) -> None:
    server = await upstream(saying(b"HTTP/%b 200 OK\r\n\r\n" % version, b"some ", b"body", then="close"))
    pool = pool_to(server.target)
    exchange = await ask(pool)
    assert exchange.body() == b"some body"
    await until(lambda: pool.open == 0)


@pytest.mark.parametrize(
    ("answer", "then", "kind"),
    [
        (b"", "close", "closed"),
        (b"HTTP/1.1 200", "close", "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "close", "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "reset", "reset"),
        (b"HTTP/1.1 200 OK\r\n\r\nok", "reset", "reset"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", "close", "reset"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", "close", "reset"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nok\r\n", "close", "malformed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n", "hang", "malformed"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\nok",
            "hang",
            "malformed",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nok", "hang", "malformed"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "hang",
            "malformed",
        ),
        (b"\x16\x03\x01\x02\x00\x01", "hang", "malformed"),
        (b"HTTP/3.7 200 OK\r\n\r\n", "hang", "malformed"),
        (b"<html>502 Bad Gateway</html>", "hang", "malformed"),
        (b"HTTP/1.1 99 Low\r\n\r\n", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok", "hang", "malformed"),
        (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok", "hang", "malformed"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(300)) + b"\r\n",
            "hang",
            "malformed",
        ),
    ],
    ids=range(24),
)
async def test_broken_answers(upstream: Start, pool_to: PoolTo, answer: bytes, then: str, kind: str) -> None:
    server = await upstream(saying(answer, then=then))
    pool = pool_to(server.target)
    failure = await failure_of(pool, whole())
    assert (failure.kind, failure.sent) == (kind, True)
    await until(lambda: pool.open == 0 and server.ended == 1)


@pytest.mark.parametrize("start", [b"x", b"x: ", b"HTTP/1.1 103 Hi\r\n\r\n"])
async def test_a_head_without_end_is_bounded(upstream: Start, pool_to: PoolTo, start: bytes) -> None:
    """The parser passes a header on when it is complete, so that one without end has to be seen by its bytes."""
    sent = 0

    async def play(wire: Wire, number: int) -> None:
        nonlocal sent
        await wire.request()
        await wire.say(b"HTTP/1.1 200 OK\r\n" if start.startswith(b"x") else b"", start)
        while sent < 64 * 2**20:
            await wire.say(start * (65536 // len(start)))
            sent += 65536

    pool = pool_to((await upstream(play)).target)
    failure = await failure_of(pool, whole())
    assert failure.kind == "malformed"
    assert sent < 32 * 2**20


@pytest.mark.parametrize("split", [0, 1, 5, 20, 40, None])
async def test_two_answers_to_one_request(upstream: Start, pool_to: PoolTo, split: int | None) -> None:
    """The second may be somebody else's: nobody is given it, however it is cut into packets."""
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"

    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        if number:
            await wire.say(OK)
            await wire.gone()
        elif split is None:
            await wire.say(OK + evil)
            await wire.gone()
        else:
            await wire.say(OK + evil[:split])
            await wire.head()
            await wire.say(evil[split:])

    server = await upstream(play)
    pool = pool_to(server.target)
    first = whole()
    await pool.send(first, GET)
    await first.answered()
    assert first.body() == b"ok"
    second = whole()
    reused = await pool.send(second, GET)
    await asyncio.wait({asyncio.ensure_future(second.answered())})
    if second.failure is not None:
        assert second.failure.kind in ("closed", "malformed")
    else:
        # With nothing of it in the first packet, it cannot be told from an answer to the second request.
        assert second.body() == (b"evil" if split == 0 else b"ok")
        assert reused == (split == 0)


async def test_an_answer_that_nobody_asked_for_closes_the_idle_connection(
    upstream: Start, pool_to: PoolTo
) -> None:
    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(OK)
        if number == 0:
            await asyncio.sleep(0.02)
            await wire.say(OK)
        await wire.gone()

    server = await upstream(play)
    pool = pool_to(server.target)
    await ask(pool)
    await until(lambda: pool.open == 0)
    assert (await ask(pool)).body() == b"ok"


async def test_an_answer_before_the_request_was_read(upstream: Start, pool_to: PoolTo) -> None:
    """The answer counts; the connection, whose way is blocked by the rest of the request, is given up."""

    async def play(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await asyncio.sleep(600)

    server = await upstream(play, limit=1024)
    pool = pool_to(server.target)
    body = bytes(16 * 2**20)
    exchange = await ask(
        pool, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert (exchange.status, exchange.body()) == (413, b"big")
    await until(lambda: pool.open == 0)
    assert not pool._idle


async def test_a_large_request_to_a_slow_reader_blocks_nobody(upstream: Start, pool_to: PoolTo) -> None:
    """It is kept in memory once, until it is written or its time is over; the loop goes on meanwhile."""
    got = 0

    async def play(wire: Wire, number: int) -> None:
        nonlocal got
        if number:
            await wire.request()
            await wire.say(OK)
            return
        await wire.head()
        for _ in range(50):
            got += len(await wire.reader.read(4096))
            await asyncio.sleep(0.01)

    server = await upstream(play, limit=1024)
    pool = pool_to(server.target)
    body = bytes(8 * 2**20)
    slow = whole(Timeouts(60.0, 0.3, 0.3, 0.3))
    await pool.send(slow, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert (await ask(pool)).body() == b"ok"
    with pytest.raises(TransportFailure) as caught:
        await slow.answered()
    assert (caught.value.kind, caught.value.phase) == ("timeout", "total")
    await until(lambda: server.ended == 2)
    assert got < len(body)


async def test_a_huge_answer_is_bounded(
    upstream: Start, pool_to: PoolTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 100_000)

    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await wire.say(b"1000\r\n%b\r\n" % bytes(4096))

    pool = pool_to((await upstream(play)).target)
    exchange = whole()
    failure = await failure_of(pool, exchange)
    assert failure.kind == "too_large"
    assert sum(map(len, exchange.chunks)) <= 100_000
    await until(lambda: pool.open == 0)


async def test_a_fault_of_the_taker_ends_the_exchange(
    upstream: Start, pool_to: PoolTo, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Exchange):
        def on_data(self, data: bytes) -> None:
            raise KeyError("oh")

    class FaultyAtEnd(Exchange):
        def on_end(self) -> None:
            raise KeyError("oh")

    server = await upstream(saying(OK))
    closing = await upstream(saying(b"HTTP/1.1 200 OK\r\n\r\nok", then="close"))
    for target, cls in ((server.target, Faulty), (server.target, FaultyAtEnd), (closing.target, FaultyAtEnd)):
        pool = pool_to(target)
        failure = await failure_of(pool, cls(asyncio.get_running_loop(), PATIENT))
        assert "KeyError" in str(failure)
        await until(lambda pool=pool: pool.open == 0)
        assert caplog.records.pop().exc_info[0] is KeyError


# --- stale connections ------------------------------------------------------------------------------


async def test_a_connection_closed_while_idle_is_not_used_again(upstream: Start, pool_to: PoolTo) -> None:
    server = await upstream(saying(OK, then="close"))
    pool = pool_to(server.target)
    for _ in range(5):
        assert (await ask(pool)).body() == b"ok"
        await until(lambda: pool.open == 0)
    assert server.connections == 5


async def test_closed_exactly_as_the_request_is_written(upstream: Start, pool_to: PoolTo) -> None:
    """The race every kept-alive connection can lose: it is told apart from a failure, and one more try wins."""

    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(OK)
        if number == 0:
            await wire.head()

    server = await upstream(play)
    pool = pool_to(server.target)
    await ask(pool)
    exchange = whole()
    reused = await pool.send(exchange, GET)
    with pytest.raises(TransportFailure) as caught:
        await exchange.answered()
    assert reused
    assert stale(exchange, reused)
    assert caught.value.kind == "closed"
    again = whole()
    assert not await pool.send(again, GET, fresh=True)
    await again.answered()
    assert again.body() == b"ok"


async def test_fresh_means_new_even_with_idle_connections(upstream: Start, pool_to: PoolTo) -> None:
    server = await upstream(saying(OK))
    pool = pool_to(server.target, max_connections=3)
    await asyncio.gather(*(ask(pool) for _ in range(3)))
    assert pool.open == 3
    exchange = whole()
    assert not await pool.send(exchange, GET, fresh=True)
    await exchange.answered()
    await until(lambda: pool.open == 1)
    assert server.connections == 4


async def test_a_broken_answer_on_a_kept_connection_is_not_stale(upstream: Start, pool_to: PoolTo) -> None:
    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(OK)
        await wire.request()
        await wire.say(b"HTTP/1.1 2")

    pool = pool_to((await upstream(play)).target)
    await ask(pool)
    exchange = whole()
    reused = await pool.send(exchange, GET)
    with pytest.raises(TransportFailure):
        await exchange.answered()
    assert reused
    assert not stale(exchange, reused)


async def test_closing_after_n_requests(upstream: Start, pool_to: PoolTo) -> None:
    """Servers that close without saying so, after some requests, cost one more try and nothing else."""

    async def play(wire: Wire, number: int) -> None:
        for _ in range(3):
            await wire.request()
            await wire.say(OK)

    server = await upstream(play)
    pool = pool_to(server.target, max_connections=4)
    again = 0

    async def one() -> None:
        nonlocal again
        exchange = whole()
        reused = await pool.send(exchange, GET)
        try:
            await exchange.answered()
        except TransportFailure:
            assert stale(exchange, reused)
            again += 1
            exchange = whole()
            for _ in range(20):  # a connection that others gave back may die just as well
                await pool.send(exchange, GET, fresh=True)
                try:
                    await exchange.answered()
                    break
                except TransportFailure:
                    exchange = whole()
        assert exchange.body() == b"ok"

    for _ in range(10):
        await asyncio.gather(*(one() for _ in range(6)))
    assert pool.open <= 4


# --- time --------------------------------------------------------------------------------------------


@pytest.fixture
def deaf() -> Iterator[Target]:
    """A port whose queue is full: connecting to it never ends."""
    with ExitStack() as stack:
        s = stack.enter_context(socket.socket())
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.3)
            try:
                filler.connect(s.getsockname())
            except TimeoutError:
                break
        else:
            pytest.fail("the queue is never full")
        yield Target("127.0.0.1", s.getsockname()[1])


class Clock:
    """The time of the client, moved by hand: it passes for nobody while the machine is busy elsewhere."""

    def __init__(self, watch: Watch) -> None:
        self.now_s = time.perf_counter()
        self._watch = watch

    def perf_counter(self) -> float:
        return self.now_s

    async def looked(self) -> None:
        """Until the watch has looked once more at what is running."""
        timer = self._watch._timer
        await until(lambda: self._watch._timer is not timer)

    async def go(self, seconds: float) -> None:
        """Let time pass, in steps so short that the loop does not seem to stand still."""
        for _ in range(round(seconds / 0.1)):
            self.now_s += 0.1
            await self.looked()


@pytest.fixture
def clock(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(watch)
    monkeypatch.setattr(client, "time", made)
    return made


async def test_connecting_takes_too_long(pool_to: PoolTo, deaf: Target) -> None:
    failure = await failure_of(pool := pool_to(deaf), whole(QUICK))
    assert (failure.kind, failure.phase, failure.sent) == ("timeout", "connect", False)
    assert "within 0.1 s" in str(failure)
    assert pool.open == 0


async def test_waiting_for_the_only_connection_takes_too_long(pool_to: PoolTo, deaf: Target) -> None:
    """The limits are unequal, so that their order does not depend on who is scheduled when."""
    pool = pool_to(deaf, max_connections=1)
    connecting = asyncio.create_task(pool.send(whole(PATIENT._replace(connect_s=60.0)), GET))
    await until(lambda: pool.open == 1)
    for failure in await asyncio.gather(*(failure_of(pool, whole(QUICK)) for _ in range(3))):
        assert (failure.kind, failure.phase, failure.sent) == ("busy", "connect", False)
    assert pool.open == 1
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert pool.open == 0


async def test_the_time_to_connect_includes_the_time_waited(
    pool_to: PoolTo, deaf: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for the right to connect and got it at the last moment has no second time to do it."""
    pool = pool_to(deaf, max_connections=1)
    clock = SimpleNamespace(perf_counter=lambda: clock.now_s, now_s=1000.0)
    monkeypatch.setattr(client, "time", clock)
    connecting = asyncio.create_task(pool.send(whole(PATIENT._replace(connect_s=60.0)), GET))
    await until(lambda: pool.open == 1)
    waiting = asyncio.create_task(failure_of(pool, whole(PATIENT._replace(connect_s=60.0))))
    await until(lambda: len(pool._waiting) == 1)
    clock.now_s += 59.9
    connecting.cancel()
    failure = await waiting
    assert (failure.kind, failure.phase, failure.sent) == ("timeout", "connect", False)
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert pool.open == 0


async def test_refused_and_unknown_names(pool_to: PoolTo) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        refused = await failure_of(pool_to(Target("127.0.0.1", s.getsockname()[1])), whole())
    assert (refused.kind, refused.sent) == ("refused", False)
    unknown = await failure_of(pool_to(Target("no-such-host.invalid", 80)), whole())
    assert (unknown.kind, unknown.sent) == ("dns", False)
    no_path = await failure_of(pool_to(Target("localhost", 0, unix_path="/nowhere/at/all")), whole())
    assert no_path.kind == "refused"


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "timeouts", "phase"),
    [
        ((b"",), PATIENT._replace(first_token_s=0.1), "first_token"),
        ((HEAD,), PATIENT._replace(first_token_s=0.1), "first_token"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), PATIENT._replace(first_token_s=0.1), "first_token"),
        ((HEAD, b"1\r\nx\r\n"), PATIENT._replace(gap_s=0.1), "gap"),
        ((HEAD, b"1\r\nx\r\n"), PATIENT._replace(total_s=0.1), "total"),
        ((b"",), PATIENT._replace(total_s=0.1), "total"),
    ],
)
async def test_phases_of_a_stream(
    upstream: Start, pool_to: PoolTo, pieces: tuple[bytes, ...], timeouts: Timeouts, phase: str
) -> None:
    server = await upstream(saying(*pieces, then="hang"))
    pool = pool_to(server.target)
    exchange = Stream(timeouts)
    failure = await failure_of(pool, exchange)
    assert (failure.kind, failure.phase, failure.sent) == ("timeout", phase, True)
    assert "0.1 s" in str(failure)
    assert exchange.ended == 1
    await until(lambda: pool.open == 0 and server.ended == 1)


async def test_the_deadline_comes_before_all_other_times(upstream: Start, pool_to: PoolTo) -> None:
    server = await upstream(saying(HEAD, then="hang"))
    pool = pool_to(server.target)
    exchange = Stream(PATIENT)
    exchange.deadline_s = time.perf_counter() + 0.1
    failure = await failure_of(pool, exchange)
    assert failure.phase == "deadline"
    await until(lambda: server.ended == 1)


async def test_pieces_that_keep_coming_are_no_gap(upstream: Start, pool_to: PoolTo, clock: Clock) -> None:
    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(HEAD)
        for count in range(1, 13):
            await wire.say(b"1\r\nx\r\n")
            await until(lambda: exchange.body_bytes == count)  # noqa: B023 - awaited at once
            await clock.go(0.6)
        await wire.say(b"0\r\n\r\n")

    pool = pool_to((await upstream(play)).target)
    exchange = Stream(PATIENT._replace(gap_s=0.8))
    await pool.send(exchange, GET)
    await exchange.answered()
    assert exchange.body() == b"x" * 12


async def test_a_dripping_answer_ends_at_the_total(upstream: Start, pool_to: PoolTo) -> None:
    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(HEAD)
        while True:
            await wire.say(b"1\r\nx\r\n")
            await asyncio.sleep(0.02)

    server = await upstream(play)
    pool = pool_to(server.target)
    failure = await failure_of(pool, Stream(PATIENT._replace(total_s=0.4)))
    assert failure.phase == "total"
    await until(lambda: server.ended == 1)


async def test_time_stands_still_while_the_reader_is_paused(
    upstream: Start, pool_to: PoolTo, clock: Clock
) -> None:
    server = await upstream(saying(HEAD, b"1\r\nx\r\n", then="hang"))
    pool = pool_to(server.target)
    exchange = Stream(PATIENT._replace(gap_s=0.5))
    await pool.send(exchange, GET)
    await until(lambda: bool(exchange.chunks))
    exchange.pause()
    await clock.go(2.0)
    assert exchange.failure is None
    exchange.resume()
    await clock.go(1.0)
    with pytest.raises(TransportFailure) as caught:
        await exchange.answered()
    assert caught.value.phase == "gap"


@pytest.mark.parametrize(
    "limits",
    [
        PATIENT._replace(first_token_s=0.3, gap_s=5.0),
        PATIENT._replace(gap_s=0.3),
        PATIENT._replace(gap_s=0.3, total_s=0.8),
    ],
    ids=["first", "gap", "total"],
)
async def test_while_the_loop_stands_still_nobody_is_silent(
    upstream: Start, pool_to: PoolTo, clock: Clock, limits: Timeouts
) -> None:
    """Who stood still with it, or was not read, can speak now; then time counts again."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def play(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.say(HEAD if limits.first_token_s < 1.0 else HEAD + b"1\r\nx\r\n")
        asked.set()
        await go.wait()
        await wire.say(b"1\r\ny\r\n")
        await wire.gone()

    pool = pool_to((await upstream(play)).target)
    exchange = Stream(limits._replace(gap_s=0.3))
    await pool.send(exchange, GET)
    await asked.wait()
    await until(lambda: exchange.status != 0 and not exchange.touched)
    clock.now_s += 1.0
    await clock.looked()
    go.set()
    await until(lambda: exchange.failure is not None or exchange.body()[-1:] == b"y")
    await clock.go(0.6)
    with pytest.raises(TransportFailure) as caught:
        await asyncio.wait_for(exchange.answered(), PATIENCE_S)
    assert exchange.body()[-1:] == b"y"
    assert caught.value.phase == "gap"


async def test_idle_connections_are_closed_oldest_first(
    upstream: Start, pool_to: PoolTo, watch: Watch
) -> None:
    server = await upstream(saying(OK))
    pool = pool_to(server.target, idle_s=60.0)
    await asyncio.gather(*(ask(pool) for _ in range(3)))
    pool._idle[0].idle_since_s -= 61
    await until(lambda: pool.open == 2)
    assert len(pool._idle) == 2
    assert server.connections == 3


# --- pausing ----------------------------------------------------------------------------------------


async def test_pausing_stops_the_upstream(upstream: Start, pool_to: PoolTo) -> None:
    """A paused exchange reads no more, so that the sender is held up; nothing is lost when it goes on."""
    size, piece = 32 * 2**20, bytes(65536)
    sent = 0

    async def play(wire: Wire, number: int) -> None:
        nonlocal sent
        await wire.request()
        await wire.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await wire.say(piece)
            sent += len(piece)
        await wire.request()
        await wire.say(OK)

    pool = pool_to((await upstream(play)).target)
    exchange = whole()
    await pool.send(exchange, GET)
    await until(lambda: exchange.body_bytes > 0)
    exchange.pause()
    exchange.pause()
    before = exchange.body_bytes
    held = turns = 0
    while turns < 200:  # of the loop; where there were room in the buffers, each would send something
        await asyncio.sleep(0)
        held, turns = sent, turns + 1 if sent == held else 0
    assert held < size
    assert exchange.body_bytes == before
    exchange.resume()
    exchange.resume()
    await exchange.answered()
    assert exchange.body_bytes == size
    assert (await ask(pool)).body() == b"ok", "a connection that was paused can be used again"


async def test_a_connection_paused_at_the_end_reads_again(upstream: Start, pool_to: PoolTo) -> None:
    class Pausing(Exchange):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            self.pause()

    server = await upstream(saying(OK))
    pool = pool_to(server.target)
    for _ in range(3):
        exchange = Pausing(asyncio.get_running_loop(), PATIENT)
        await pool.send(exchange, GET)
        await asyncio.wait_for(exchange.answered(), 30)
    assert server.connections == 1


# --- cancelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["connect", "wait", "head", "body", "end"])
async def test_cancelled_at_each_stage(
    upstream: Start, pool_to: PoolTo, deaf: Target, watch: Watch, stage: str
) -> None:
    """Nothing stays: no connection, no task, no count; and the upstream sees it at once."""
    pieces = {"head": (b"",), "body": (HEAD, b"1\r\nx\r\n")}.get(stage, (HEAD,))
    server = await upstream(saying(*pieces, then="hang"))
    target = deaf if stage == "connect" else server.target
    pool = pool_to(target, max_connections=1)
    if stage == "wait":
        holder = whole()
        await pool.send(holder, GET)
    exchange = Stream(PATIENT)
    task = asyncio.create_task(_all(pool, exchange, GET))
    if stage == "body":
        await until(lambda: bool(exchange.chunks))
    elif stage == "head":
        await until(lambda: exchange.sent_s > 0)
    elif stage == "end":
        await until(lambda: exchange.status > 0)
    elif stage == "wait":
        await until(lambda: len(pool._waiting) == 1)
    else:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: exchange not in watch.running)
    if stage == "wait":
        assert pool.open == 1
        holder.abort()
    await until(lambda: pool.open == 0)
    if stage != "connect":
        await until(lambda: server.ended == server.connections)
    assert exchange.ended == 0


async def test_cancelled_in_the_tls_handshake(upstream: Start, pool_to: PoolTo) -> None:
    async def play(wire: Wire, number: int) -> None:
        while await wire.reader.read(4096):
            pass

    server = await upstream(play)
    context = client_tls(None, verify=False)
    pool = pool_to(server.target._replace(tls=context, server_name="h"))
    task = asyncio.create_task(pool.send(whole(), GET))
    await until(lambda: server.connections == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.ended == 1)
    assert pool.open == 0
    failure = await failure_of(pool, whole(QUICK))
    assert (failure.kind, failure.phase) == ("timeout", "connect")
    await until(lambda: server.ended == 2)


async def test_abort_is_final_and_may_be_repeated(upstream: Start, pool_to: PoolTo) -> None:
    server = await upstream(saying(HEAD, b"1\r\nx\r\n", then="hang"))
    pool = pool_to(server.target)
    exchange = Stream(PATIENT)
    exchange.abort()
    await pool.send(exchange, GET)
    await until(lambda: bool(exchange.chunks))
    exchange.abort()
    exchange.abort()
    exchange.pause()
    exchange.resume()
    await until(lambda: pool.open == 0 and server.ended == 1)
    assert exchange.ended == 0


# --- limits and waiting -----------------------------------------------------------------------------


class Gate:
    """An upstream that answers when it is told to, one request at a time."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._go = asyncio.Semaphore(0)

    async def play(self, wire: Wire, number: int) -> None:
        while True:
            head, _ = await wire.request()
            self.asked.append(head.split(b" ")[1])
            await self._go.acquire()
            await wire.say(OK)

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()


def get(path: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % path


async def queued(pool: Pool, count: int, first: int = 0) -> list[asyncio.Task[Exchange]]:
    """Requests in a known order."""
    tasks = []
    for i in range(first, first + count):
        tasks.append(asyncio.create_task(ask(pool, get(i))))
        await asyncio.sleep(0)
    return tasks


async def test_first_come_first_served(upstream: Start, pool_to: PoolTo) -> None:
    gate = Gate()
    server = await upstream(gate.play)
    pool = pool_to(server.target, max_connections=1)
    tasks = await queued(pool, 5)
    await until(lambda: len(gate.asked) == 1)
    for done in range(1, 5):
        gate.answer()
        await asyncio.wait({tasks[done - 1]})
        # Whoever comes now does not pass those who wait.
        tasks += await queued(pool, 1, first=4 + done)
        await until(lambda done=done: len(gate.asked) == done + 1)
    gate.answer(10)
    await asyncio.gather(*tasks)
    assert gate.asked == [b"/%d" % i for i in range(9)]
    assert server.connections == 1


async def test_the_number_of_connections_is_never_passed(upstream: Start, pool_to: PoolTo) -> None:
    at_once = most = 0

    async def play(wire: Wire, number: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            for turn in range(3):
                await wire.request()
                await wire.say(OK if turn < 2 else OK.replace(b"content", b"connection: close\r\ncontent", 1))
        finally:
            at_once -= 1

    server = await upstream(play)
    pool = pool_to(server.target, max_connections=4)
    exchanges = await asyncio.gather(*(ask(pool) for _ in range(100)))
    assert all(e.body() == b"ok" for e in exchanges)
    assert server.connections >= 33
    assert most <= 5, "one that is being closed may overlap with its successor"


async def test_a_waiter_that_is_cancelled_is_passed_over(upstream: Start, pool_to: PoolTo) -> None:
    gate = Gate()
    pool = pool_to((await upstream(gate.play)).target, max_connections=1)
    tasks = await queued(pool, 4)
    await until(lambda: len(gate.asked) == 1)
    tasks[1].cancel()
    gate.answer(3)
    await asyncio.wait(tasks)
    assert tasks[1].cancelled()
    assert gate.asked == [b"/0", b"/2", b"/3"]


@pytest.mark.parametrize("how", ["connection", "right to open one"])
async def test_a_waiter_cancelled_just_as_it_is_served(upstream: Start, pool_to: PoolTo, how: str) -> None:
    """What it was handed goes to the next, and is not lost."""
    gate = Gate()
    pool = pool_to((await upstream(gate.play)).target, max_connections=1)
    tasks = await queued(pool, 3)
    await until(lambda: len(gate.asked) == 1 and len(pool._waiting) == 2)
    give_back, release = pool.give_back, pool._release

    def hand_over_and_cancel(act: Callable[..., None], *args: Any) -> None:
        act(*args)
        tasks[1].cancel()

    if how == "connection":
        pool.give_back = lambda c: hand_over_and_cancel(give_back, c)  # type: ignore[method-assign]
        gate.answer()
    else:
        pool._release = lambda: hand_over_and_cancel(release)  # type: ignore[method-assign]
        tasks[0].cancel()
    await until(lambda: tasks[1].done())
    pool.give_back, pool._release = give_back, release  # type: ignore[method-assign]
    gate.answer(2)
    await asyncio.wait(tasks, timeout=60)
    assert tasks[1].cancelled()
    assert tasks[2].done()
    assert tasks[2].result().body() == b"ok"


async def test_a_waiter_is_woken_when_a_connection_dies(upstream: Start, pool_to: PoolTo) -> None:
    async def play(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            if number == 0:
                await asyncio.sleep(0.05)
                wire.reset()
            await wire.say(OK)

    pool = pool_to((await upstream(play)).target, max_connections=1)
    first, second, third = await queued(pool, 3)
    with pytest.raises(TransportFailure):
        await first
    assert (await second).body() == (await third).body() == b"ok"


async def test_a_waiter_is_woken_when_connecting_fails(pool_to: PoolTo) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        pool = pool_to(Target("127.0.0.1", s.getsockname()[1]), max_connections=1)
        failures = await asyncio.gather(*(failure_of(pool, whole()) for _ in range(20)))
    assert {f.kind for f in failures} == {"refused"}
    assert pool.open == 0


async def test_waiting_is_bounded_in_number_and_in_time(upstream: Start, pool_to: PoolTo) -> None:
    gate = Gate()
    pool = pool_to((await upstream(gate.play)).target, max_connections=1, max_waiting=2)
    (running,) = await queued(pool, 1)
    await until(lambda: len(gate.asked) == 1)
    for _ in range(3):
        # Those who gave up are not counted as waiting.
        failures = await asyncio.gather(*(failure_of(pool, whole(QUICK)) for _ in range(3)))
        assert [f.kind for f in failures] == ["busy"] * 3
        assert sorted(str(f.phase) for f in failures) == ["None", "connect", "connect"]
        assert not any(f.sent for f in failures)
    gate.answer()
    await running


async def test_a_closed_pool_lets_go_of_everybody(upstream: Start, pool_to: PoolTo, watch: Watch) -> None:
    gate = Gate()
    server = await upstream(gate.play)
    pool = pool_to(server.target, max_connections=2)
    running = await queued(pool, 2)
    await until(lambda: len(gate.asked) == 2)
    waiting = await queued(pool, 3)
    pool.close()
    for task in waiting:
        with pytest.raises(TransportFailure) as caught:
            await task
        assert (caught.value.kind, caught.value.sent) == ("closed", False)
    with pytest.raises(TransportFailure) as caught:
        await pool.send(whole(), GET)
    assert caught.value.kind == "closed"
    gate.answer(2)
    assert [(await task).body() for task in running] == [b"ok"] * 2, "what is under way finishes"
    await until(lambda: pool.open == 0 and pool not in watch.pools)


async def test_a_pool_closed_while_connecting(upstream: Start, pool_to: PoolTo) -> None:
    server = await upstream(saying(OK))
    pool = pool_to(server.target)
    task = asyncio.create_task(ask(pool))
    await asyncio.sleep(0)
    pool.close()
    assert (await task).body() == b"ok"
    await until(lambda: pool.open == 0)


async def test_many_exchanges_leave_nothing(upstream: Start, pool_to: PoolTo, watch: Watch) -> None:
    """Answered, cut, timed out and cancelled at random places: the counts come back to where they were."""

    async def play(wire: Wire, number: int) -> None:
        for turn in range(number % 5 + 1):
            await wire.request()
            match (number + turn) % 4:
                case 0 | 1:
                    await wire.say(OK)
                case 2:
                    await wire.say(OK[:-1])
                    return
                case 3:
                    await asyncio.sleep(0.2)
                    return

    server = await upstream(play)
    pool = pool_to(server.target, max_connections=8)

    async def one(index: int) -> str:
        exchange = whole(Timeouts(5.0, 5.0, 0.1, 0.1))
        try:
            async with asyncio.timeout(0.005 * (index % 60) if index % 3 == 0 else None):
                await pool.send(exchange, GET)
                await exchange.answered()
        except TransportFailure as failure:
            return failure.kind
        except TimeoutError:
            return "cancelled"
        return "ok"

    ends = await asyncio.gather(*(one(i) for i in range(200)))
    assert {"ok", "reset", "cancelled"} <= set(ends)
    await until(lambda: not watch.running and pool.open == len(pool._idle) == len(pool._all))
    pool.close()
    await until(lambda: server.ended == server.connections and pool.open == 0)


# --- TLS and unix sockets ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_tls(upstream: Start, pool_to: PoolTo, authority: trustme.CA, ca_file: str) -> None:
    server = await upstream(saying(OK), ssl=serving(authority, "gate.test"))
    target = server.target._replace(tls=client_tls(ca_file, verify=True), server_name="gate.test")
    pool = pool_to(target)
    for _ in range(3):
        assert (await ask(pool)).body() == b"ok"
    assert server.connections == 1


@pytest.mark.parametrize("wrong", ["authority", "name", "plain", "old"])
async def test_tls_that_cannot_be_trusted(
    upstream: Start, pool_to: PoolTo, authority: trustme.CA, ca_file: str, wrong: str
) -> None:
    issuer = trustme.CA() if wrong == "authority" else authority
    context = serving(issuer, "elsewhere.test" if wrong == "name" else "gate.test")
    if wrong == "old":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    async def plain(wire: Wire, number: int) -> None:
        await wire.reader.read(100)
        await wire.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = await (upstream(plain) if wrong == "plain" else upstream(saying(OK), ssl=context))
    target = server.target._replace(tls=client_tls(ca_file, verify=True), server_name="gate.test")
    pool = pool_to(target)
    failure = await failure_of(pool, whole())
    # One that cannot agree on a version may just hang up.
    assert failure.kind == "tls" or (wrong, failure.kind) == ("old", "refused"), failure
    assert not failure.sent
    assert pool.open == 0
    if wrong in ("authority", "name"):
        trusting = target._replace(tls=client_tls(ca_file, verify=False))
        assert (await ask(pool_to(trusting))).body() == b"ok"


async def test_tls_answer_without_length_cut_short(
    upstream: Start, pool_to: PoolTo, authority: trustme.CA, ca_file: str
) -> None:
    server = await upstream(
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", then="reset"), ssl=serving(authority, "h")
    )
    pool = pool_to(server.target._replace(tls=client_tls(ca_file, verify=True), server_name="h"))
    failure = await failure_of(pool, whole())
    assert failure.kind == "reset"


async def test_unix_socket(upstream: Start, pool_to: PoolTo, tmp_path: Path) -> None:
    server = await upstream(saying(OK), path=str(tmp_path / "s"))
    pool = pool_to(server.target)
    for _ in range(2):
        assert (await ask(pool)).body() == b"ok"
    assert server.connections == 1


async def test_no_exchange_is_kept_by_the_client(upstream: Start, pool_to: PoolTo) -> None:
    """An answer's memory goes with its last reader, at once, not at the next collection."""
    pool = pool_to((await upstream(saying(OK))).target)
    await ask(pool)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(o, Exchange) for o in gc.get_objects())
        for _ in range(20):
            await ask(pool)
        assert sum(isinstance(o, Exchange) for o in gc.get_objects()) <= before + 1
    finally:
        gc.enable()
