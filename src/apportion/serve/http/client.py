"""The upstream side: a pooled, strict HTTP/1.1 client on ``asyncio.Protocol`` and httptools.

An ``Exchange`` is one request and its answer. Its methods are called by the connection as bytes arrive, so
that a streamed piece goes from socket to socket without a queue, a task switch or a copy. Connections belong
to a ``Pool``, one a target; a pool lives until it is closed, never shorter than an exchange on it.

Time is kept by one ``Watch`` per event loop: it looks at all running exchanges every 20 ms instead of arming
a timer for each, and tells connect, first token, gap and total apart. While the loop itself stood still (the machine
was busy or asleep) nothing could be read, so that this time is not the upstream's; only a deadline knows no excuse.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

import httptools

logger = logging.getLogger("apportion.http")

Phase = Literal["connect", "first_token", "gap", "total", "deadline", "guard", "move"]

_TICK_S: Final = 0.02
_STILL_S: Final = 0.25
"""A tick that comes so late says that the loop stood still."""
_MAX_HEADERS: Final = 256
_NO_HEADERS: Final[Mapping[bytes, bytes]] = {}
_MAX_HEAD_BYTES: Final = 128 * 1024
"""Most that may arrive before the end of the headers, give or take a packet."""
MAX_ANSWER_BYTES: Final = 256 * 2**20
"""Largest buffered answer; a longer one fails instead of filling memory."""


class TransportFailure(Exception):
    """The upstream could not be reached or broke the exchange. ``kind`` is stable and names what happened."""

    def __init__(
        self,
        kind: Literal[
            "refused", "dns", "tls", "reset", "timeout", "malformed", "busy", "closed", "too_large", "error"
        ],
        message: str,
        *,
        phase: Phase | None = None,
        sent: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.phase = phase
        self.sent = sent
        """Whether the request had been written when it failed (the upstream may have worked on it)."""


class Target(NamedTuple):
    """Where a pool connects to. ``tls`` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    unix_path: str | None = None


class Timeouts(NamedTuple):
    """Separate limits in seconds: opening, first content, silence between pieces, the whole exchange."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    gap_s: float = 60.0
    total_s: float = 600.0


class Exchange:
    """One request and its answer; the base collects the whole body. ``await answered()`` for the end."""

    __slots__ = (
        "_connection",
        "_last_s",
        "_still_s",
        "body_bytes",
        "chunks",
        "deadline_s",
        "done",
        "failure",
        "first_byte_s",
        "headers",
        "sent_s",
        "status",
        "timeouts",
        "touched",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts) -> None:
        self.status = 0
        self.headers: Mapping[bytes, bytes] = _NO_HEADERS
        """By name, in the case the upstream wrote it; of a repeated header the last."""
        self.chunks: list[bytes] = []
        self.body_bytes = 0
        self.sent_s = 0.0
        self.first_byte_s = 0.0
        self.timeouts = timeouts
        self.deadline_s = 0.0
        """Set by the caller to a ``perf_counter`` time after which the exchange fails with phase "deadline"."""
        self.touched = False
        self.failure: TransportFailure | None = None
        self._last_s = 0.0
        self._still_s = 0.0
        self._connection: ClientConnection | None = None
        self.done: asyncio.Future[None] = loop.create_future()
        """Done when the answer is complete, or broken (``failure``)."""

    # called by the connection

    def on_head(self) -> None:
        """Status and headers are there."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body."""
        self.body_bytes += len(data)
        if self.body_bytes > MAX_ANSWER_BYTES:
            raise TransportFailure(
                "too_large", f"The answer is longer than {MAX_ANSWER_BYTES} bytes.", sent=True
            )
        self.chunks.append(data)

    def on_end(self) -> None:
        """The answer is complete."""
        if not self.done.done():
            self.done.set_result(None)

    def on_failure(self, failure: TransportFailure) -> None:
        """The exchange broke; nothing follows."""
        self.failure = failure
        if not self.done.done():
            self.done.set_result(None)

    # called by the user of the exchange

    async def answered(self) -> None:
        """Wait for the end of the answer. Raises ``TransportFailure``; cancelling it aborts the exchange."""
        try:
            await self.done
        except asyncio.CancelledError:
            self.abort()
            raise
        if self.failure is not None:
            raise self.failure

    def body(self) -> bytes:
        """The body collected so far."""
        chunks = self.chunks
        if len(chunks) == 1:
            return chunks[0]
        return b"".join(chunks)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; ``name`` in lower case."""
        for key, value in self.headers.items():
            if len(key) == len(name) and key.lower() == name:
                return value
        return None

    def abort(self) -> None:
        """Stop now: the connection is closed, so that the upstream stops working."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.exchange = None
            connection.close()

    def pause(self) -> None:
        """Read nothing more from the upstream for now (the client is slow)."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self.touched = True
            self._connection.resume()

    def phase(self) -> Phase:
        """What is waited for now. A whole answer may begin only when it is complete, so that until its head is
        there only the total counts."""
        return "gap" if self.status else "total"


class ClientConnection(asyncio.Protocol):
    """A connection to the upstream; serves one exchange at a time and then goes back to its pool."""

    __slots__ = (
        "_head_bytes",
        "_headers",
        "_parser",
        "_paused",
        "_pool",
        "_transport",
        "exchange",
        "idle_since_s",
        "on_header",
        "reused",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._headers: dict[bytes, bytes] = {}
        # The parser stores headers without a call of Python. What comes after the head are trailers, and is
        # dropped when the next answer begins.
        self.on_header = self._headers.__setitem__
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._paused = False
        self.exchange: Exchange | None = None
        self.reused = False
        self.idle_since_s = 0.0

    @property
    def open(self) -> bool:
        """Whether the connection can carry another exchange."""
        return self._transport is not None and not self._transport.is_closing()

    def run(self, exchange: Exchange, request: bytes) -> None:
        """Write the request; the exchange hears of the answer."""
        transport = self._transport
        self.exchange = exchange
        exchange._connection = self
        now_s = time.perf_counter()
        exchange.sent_s = exchange._last_s = now_s
        exchange._still_s = 0.0
        self._pool.watch.running.add(exchange)
        if transport is None or transport.is_closing():
            self._fail("closed", "The connection was closed before the request was sent.", sent=False)
        else:
            transport.write(request)

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # An answer nobody asked for: the connection cannot be trusted.
            self.close()
            return
        if not exchange.status:
            if not exchange.first_byte_s:
                exchange.first_byte_s = time.perf_counter()
                self._head_bytes = 0
            elif self._head_bytes > _MAX_HEAD_BYTES:
                self._fail("malformed", "The upstream's headers are too large.", sent=True)
                return
            self._head_bytes += len(data)
        exchange.touched = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, TransportFailure):
                self._fail(cause.kind, str(cause), sent=True, phase=cause.phase)
            elif isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
                self._fault(exchange, cause)
            else:
                self._fail("malformed", f"The upstream's answer is not valid HTTP/1.1: {error}.", sent=True)
        except httptools.HttpParserUpgrade:
            self._fail("malformed", "The upstream switched protocols.", sent=True)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            self._pool.forget(self)
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.status and self._ends_with_connection(exchange) and exc is None:
            try:
                self._complete(exchange)
            except Exception as error:
                self._fault(exchange, error)
            return
        detail = f": {exc}" if exc else ""
        if exchange.first_byte_s:
            self._fail(
                "reset", f"The upstream closed the connection in the middle of its answer{detail}.", sent=True
            )
        else:
            self._fail("closed", f"The upstream closed the connection without an answer{detail}.", sent=True)

    # parser callbacks

    def on_message_begin(self) -> None:
        if self.exchange is None:
            # A second answer right behind the first; the next exchange must not take it for its own.
            raise TransportFailure("malformed", "The upstream sent an answer that nobody asked for.")
        self._headers.clear()

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        status = self._parser.get_status_code()
        headers = self._headers.copy()
        if status < 200:
            return
        if len(headers) > _MAX_HEADERS:
            raise TransportFailure("malformed", "The upstream's headers are too many.", sent=True)
        exchange.headers = headers
        exchange.status = status
        exchange.on_head()

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.on_data(body)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.status:
            self._complete(exchange)

    # ends

    def _complete(self, exchange: Exchange) -> None:
        self._detach()
        transport = self._transport
        if transport is not None:
            # An answer before the whole request was taken: the rest must not stand in the next one's way.
            unsent = transport.get_write_buffer_size()
            if self._parser.should_keep_alive() and not unsent and not transport.is_closing():
                self.resume()
                self._pool.give_back(self)
            else:
                self.close()
        exchange.on_end()

    def _fault(self, exchange: Exchange, error: BaseException) -> None:
        """Whoever takes the answer failed at it: a fault of ours. It is logged, and the exchange ends."""
        logger.error("fault while reading an answer", exc_info=error)
        self._detach()
        self.close()
        message = f"The upstream's answer could not be read ({type(error).__name__})."
        exchange.on_failure(TransportFailure("malformed", message, sent=True))

    def _fail(
        self,
        kind: Literal[
            "reset", "timeout", "malformed", "closed", "too_large", "refused", "dns", "tls", "busy", "error"
        ],
        message: str,
        *,
        sent: bool,
        phase: Phase | None = None,
    ) -> None:
        exchange = self._detach()
        self.close()
        if exchange is not None:
            exchange.on_failure(TransportFailure(kind, message, phase=phase, sent=sent))

    def time_out(self, phase: Phase, seconds: float) -> None:
        """Fail the running exchange because ``phase`` took longer than ``seconds``."""
        words = {
            "first_token": "sent no content",
            "gap": "fell silent in the middle of its answer",
            "total": "did not finish its answer",
        }
        said = words.get(phase, "did not answer")
        self._fail("timeout", f"The upstream {said} within {seconds:g} s.", sent=True, phase=phase)

    def _detach(self) -> Exchange | None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange._connection = None
            self._pool.watch.running.discard(exchange)
        return exchange

    @staticmethod
    def _ends_with_connection(exchange: Exchange) -> bool:
        """No length and no chunking: the answer ends where the connection ends (RFC 9112 section 6.3)."""
        return exchange.header(b"content-length") is None and exchange.header(b"transfer-encoding") is None


class Watch:
    """The clock of all running exchanges of one event loop."""

    __slots__ = ("_due_s", "_loop", "_timer", "pools", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.running: set[Exchange] = set()
        self.pools: set[Pool] = set()
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = time.perf_counter()
        self._tick()

    def close(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        now_s = time.perf_counter()
        still_s = now_s - self._due_s
        if still_s < _STILL_S:
            still_s = 0.0
        self._due_s = now_s + _TICK_S
        for exchange in tuple(self.running):
            connection = exchange._connection
            if connection is None:
                self.running.discard(exchange)
                continue
            limits = exchange.timeouts
            if exchange.touched or connection._paused:
                exchange.touched = False
                exchange._last_s = now_s
            elif still_s:
                exchange._last_s += still_s
            exchange._still_s += still_s
            if exchange.deadline_s and now_s >= exchange.deadline_s:
                connection.time_out("deadline", exchange.deadline_s - exchange.sent_s)
            elif now_s - exchange.sent_s - exchange._still_s > limits.total_s:
                connection.time_out("total", limits.total_s)
            else:
                phase = exchange.phase()
                if phase == "gap":
                    if now_s - exchange._last_s > limits.gap_s:
                        connection.time_out(phase, limits.gap_s)
                elif phase == "first_token" and (
                    now_s - exchange.sent_s - exchange._still_s > limits.first_token_s
                ):
                    connection.time_out(phase, limits.first_token_s)
        for pool in tuple(self.pools):
            pool.tick(now_s)
        self._timer = self._loop.call_later(_TICK_S, self._tick)


class Pool:
    """Kept-alive connections to one target: last used first, bounded, with a bounded queue for a free one."""

    def __init__(
        self,
        target: Target,
        watch: Watch,
        *,
        max_connections: int = 1024,
        max_waiting: int = 4096,
        idle_s: float = 60.0,
    ) -> None:
        self.target = target
        self.watch = watch
        self.max_connections = max_connections
        self.max_waiting = max_waiting
        self.idle_s = idle_s
        self.open = 0
        self._idle: list[ClientConnection] = []
        self._waiting: deque[asyncio.Future[ClientConnection | None]] = deque()
        """Futures of those who wait: they are handed a free connection, or (None) the right to open one."""
        self._all: set[ClientConnection] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        watch.pools.add(self)

    async def send(self, exchange: Exchange, request: bytes, *, fresh: bool = False) -> bool:
        """Write ``request`` on a free or new connection; True if the connection had carried others before.

        A kept-alive connection may turn out dead before one byte of an answer, because the upstream closed it
        while it was idle. That race is no failure of the upstream: who sees ``stale`` sends once more, ``fresh``.
        Raises ``TransportFailure`` if no connection is to be had.
        """
        if fresh:
            self._drop_idle()
        connection = self.take()
        if connection is None:
            connection = await self._open(exchange.timeouts.connect_s)
        connection.run(exchange, request)
        return connection.reused

    def _drop_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def take(self) -> ClientConnection | None:
        """A free connection, the last used first; None if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.open:
                connection.reused = True
                return connection
        return None

    async def _open(self, connect_s: float) -> ClientConnection:
        target = self.target
        deadline_s = time.perf_counter() + connect_s
        if self._closed:
            raise _removed()
        if self.open < self.max_connections:
            self.open += 1
        else:
            handed = await self._wait(connect_s)
            if handed is not None:
                handed.reused = True
                return handed
        if self._closed:
            self._release()
            raise _removed()
        connection = ClientConnection(self)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.perf_counter())):
                if target.unix_path is not None:
                    await self._loop.create_unix_connection(lambda: connection, target.unix_path)
                else:
                    await self._loop.create_connection(
                        lambda: connection,
                        target.host,
                        target.port,
                        ssl=target.tls,
                        server_hostname=target.server_name if target.tls else None,
                    )
        except BaseException as error:
            self._release()
            if isinstance(error, TimeoutError) and not isinstance(error, ConnectionError):
                raise TransportFailure(
                    "timeout",
                    f"The upstream did not accept a connection within {connect_s:g} s.",
                    phase="connect",
                ) from None
            if isinstance(error, ssl.SSLError | ssl.CertificateError):
                raise TransportFailure("tls", f"TLS with the upstream failed: {error}.") from None
            if isinstance(error, OSError):
                kind: Literal["dns", "refused"] = "dns" if _is_dns(error) else "refused"
                said = "'s name cannot be resolved" if kind == "dns" else " cannot be reached"
                raise TransportFailure(kind, f"The upstream{said}: {error}.") from None
            raise
        if connection.open:
            self._all.add(connection)
        else:
            self._release()  # lost again before it could be used
        return connection

    async def _wait(self, connect_s: float) -> ClientConnection | None:
        """Wait, first come first served, for a free connection or (None) for the right to open one."""
        if len(self._waiting) >= self.max_waiting:
            raise TransportFailure("busy", "Too many requests wait for a connection to the upstream.")
        future: asyncio.Future[ClientConnection | None] = self._loop.create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(connect_s):
                return await future
        except BaseException as error:
            if future in self._waiting:
                self._waiting.remove(future)
            elif not future.cancelled():
                # Handed over just now, and not wanted any more: it goes to the next.
                handed = future.result()
                if handed is None:
                    self._release()
                else:
                    self.give_back(handed)
            if not isinstance(error, TimeoutError):
                raise
        raise TransportFailure(
            "busy", f"No connection to the upstream became free within {connect_s:g} s.", phase="connect"
        )

    def give_back(self, connection: ClientConnection) -> None:
        """A finished connection is free again."""
        if self._closed or not connection.open:
            connection.close()
            return
        waiting = self._waiting
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        connection.idle_since_s = time.perf_counter()
        self._idle.append(connection)

    def forget(self, connection: ClientConnection) -> None:
        """A connection has ended."""
        if connection in self._all:
            self._all.discard(connection)
            self._release()
        try:
            self._idle.remove(connection)
        except ValueError:
            pass

    def tick(self, now_s: float) -> None:
        """Close connections that were idle for too long (they are oldest first)."""
        idle = self._idle
        while idle and now_s - idle[0].idle_since_s > self.idle_s:
            idle.pop(0).close()
        if self._closed and not self._all:
            self.watch.pools.discard(self)

    def close(self) -> None:
        """No new exchange; those under way finish on their connections."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        while self._waiting:
            self.open += 1
            self._release()

    def _release(self) -> None:
        """The right to one connection is free again; who waits longest gets it."""
        waiting = self._waiting
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.open -= 1


def stale(exchange: Exchange, reused: bool) -> bool:
    """Whether a failed exchange only met a kept-alive connection that had died while it was idle."""
    failure = exchange.failure
    return reused and failure is not None and failure.kind == "closed" and not exchange.first_byte_s


def _removed() -> TransportFailure:
    return TransportFailure("closed", "The endpoint was removed from the configuration.")


def _is_dns(error: OSError) -> bool:
    return isinstance(error, socket.gaierror)


def client_tls(ca_file: str | None, verify: bool) -> ssl.SSLContext:
    """A client TLS context: the system's authorities or ``ca_file``; TLS 1.2 or newer; HTTP/1.1 only."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
