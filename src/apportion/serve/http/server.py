"""The front: a strict HTTP/1.1 server on ``asyncio.Protocol`` and httptools, without layers.

One object per connection, one task per request, one ``transport.write`` per buffered answer. Everything
that a client may send is bounded in size and in time (``ServerLimits``); a client that goes away cancels
the task that works for it.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import msgspec

from apportion.serve import errors

logger = logging.getLogger("apportion.http")

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES: Final = {
    code: f"HTTP/1.1 {code} {_PHRASES.get(code, 'Unknown')}\r\n".encode() for code in range(200, 600)
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_BODY_RATE_BYTES_PER_S: Final = 65536
"""Slowest upload that is still waited for, beyond ``body_timeout_s``."""
_TICK_S: Final = 0.5
_SMALL_BYTES: Final = 64 * 1024
"""A body up to here is read before anything is decided; of a larger one the head may be enough to refuse it."""
_LINGER_S: Final = 2.0
"""How long a refused upload is read and thrown away, so that the client sees the answer and no reset."""
_PIPELINE: Final = 64
_SPLIT: Final[dict[bytes, tuple[str, str]]] = {}
_HIGH_WATER_BYTES: Final = 256 * 1024


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what one client connection may use; times in seconds, sizes in bytes."""

    body_bytes: int = 20 * 2**20
    header_bytes: int = 64 * 2**10
    header_count: int = 128
    header_timeout_s: float = 15.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 60.0
    max_connections: int = 10_000


class Request:
    """One request as it was received. Header names are lower case; repeated headers are joined by a comma."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query", "received_s", "version")

    def __init__(
        self, method: str, target: bytes, version: str, headers: dict[bytes, bytes], keep_alive: bool
    ) -> None:
        self.method = method
        split = _SPLIT.get(target)
        self.path, self.query = split if split is not None else _split(target)
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.body = b""
        self.received_s = 0.0


class Responder:
    """Where the application writes the answer to one request. Valid until the answer is complete."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_keep_alive",
        "on_drain",
        "on_gone",
        "on_pause",
        "started",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._chunked = request.version != "1.0"
        self._head = request.method == "HEAD"
        self._keep_alive = request.keep_alive
        self.started = False
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        """Answer completely. ``headers`` are encoded lines, each ended by CRLF."""
        connection = self._connection
        if connection.transport is None:
            return
        self.started = True
        if self._head:
            content, length = b"", len(body)
        else:
            content, length = body, len(body)
        connection.transport.write(
            b"%b%bdate: %b\r\ncontent-length: %d\r\n%b%b"
            % (
                _STATUS_LINES[status],
                headers,
                connection.server.date,
                length,
                self._connection_line(),
                content,
            )
        )
        connection.answered(self._keep_alive)

    def start(self, status: int, headers: bytes, first: bytes = b"") -> None:
        """Begin an answer of unknown length; ``first`` goes out in the same write."""
        connection = self._connection
        if connection.transport is None:
            return
        self.started = True
        connection.streaming = True
        if self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
            if first:
                first = b"%x\r\n%b\r\n" % (len(first), first)
        else:
            framing, self._keep_alive = b"", False
        connection.transport.write(
            b"%b%bdate: %b\r\n%b%b%b"
            % (
                _STATUS_LINES[status],
                headers,
                connection.server.date,
                framing,
                self._connection_line(),
                first,
            )
        )

    def write(self, data: bytes) -> None:
        """Send a piece of a started answer now."""
        transport = self._connection.transport
        if transport is not None and data:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self, data: bytes = b"") -> None:
        """End a started answer, with ``data`` as its last piece."""
        connection = self._connection
        if connection.transport is None:
            return
        if self._chunked:
            connection.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else _LAST_CHUNK)
        elif data:
            connection.transport.write(data)
        connection.answered(self._keep_alive)

    def abort(self) -> None:
        """Cut the connection: the answer cannot be completed and must not look complete."""
        transport = self._connection.transport
        if transport is not None:
            transport.abort()

    @property
    def gone(self) -> bool:
        """Whether the client has gone away."""
        return self._connection.transport is None

    @property
    def paused(self) -> bool:
        """Whether the client reads slower than the answer is written."""
        return self._connection.write_paused

    def _connection_line(self) -> bytes:
        if self._keep_alive and not self._connection.server.draining:
            return b"\r\n" if self._chunked else b"connection: keep-alive\r\n\r\n"
        self._keep_alive = False
        return b"connection: close\r\n\r\n"


class _Nowhere(dict[bytes, bytes]):
    """Takes trailers and keeps none: they must not pass for headers (RFC 9110 section 6.5.1)."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        pass


_NO_TRAILERS: Final = _Nowhere()
_UPGRADE_HEADERS: Final = frozenset((b"upgrade", b"connection", b"http2-settings"))

Application = Callable[[Request, Responder], Coroutine[Any, Any, None]]


class Connection(asyncio.Protocol):
    """One client connection: parses, queues pipelined requests, runs one request at a time."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_deadline_s",
        "_discarding",
        "_head_bytes",
        "_header_count",
        "_headers",
        "_in_head",
        "_offered",
        "_packet_bytes",
        "_parser",
        "_queue",
        "_raw_bytes",
        "_reading_paused",
        "_request",
        "_target",
        "responder",
        "server",
        "streaming",
        "task",
        "transport",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        self.responder: Responder | None = None
        self.streaming = False
        self.write_paused = False
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._discarding = False
        self._reading_paused = False
        self._in_head = False
        self._head_bytes = 0
        self._packet_bytes = 0
        self._raw_bytes = 0
        self._header_count = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._offered: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._request: Request | None = None
        self._deadline_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, received or waiting."""
        receiving = self._in_head or self._request is not None
        return self.task is None and not receiving and not self._queue

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        accepted = self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        server = self.server
        if len(server.connections) >= server.limits.max_connections:
            error = errors.OverloadedError("The gateway has too many open connections.", retry_after_s=1.0)
            accepted.write(_plain_error(error, server.date))
            accepted.close()
            return
        accepted.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        server.connections.add(self)
        self._deadline_s = server.now_s + server.limits.idle_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.transport = None
        responder, self.responder = self.responder, None
        if responder is not None and responder.on_gone is not None:
            responder.on_gone()
        if self.task is not None and not self.task.done():
            self.task.cancel()
        self._queue.clear()
        self._body.clear()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._deadline_s = self.server.now_s + self.server.limits.write_timeout_s
        if self.responder is not None and self.responder.on_pause is not None:
            self.responder.on_pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._deadline_s = (
            0.0 if self.task is not None else self.server.now_s + self.server.limits.idle_timeout_s
        )
        if self.responder is not None and self.responder.on_drain is not None:
            self.responder.on_drain()
        if self.task is None and self._queue:
            self._begin(self._queue.popleft())

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        size = self._packet_bytes = len(data)
        if self._in_head:
            # Of its first and its last packet not all need be head, so that these are not counted here.
            if self._head_bytes > self.server.limits.header_bytes:
                self._refuse(self._head_too_large())
                return
            self._head_bytes += size
        elif self._request is not None:
            # Chunk extensions and trailers are thrown away, but not without end.
            self._raw_bytes += size
            limit = self.server.limits.body_bytes
            if self._raw_bytes > limit + limit // 2 + _HIGH_WATER_BYTES:
                self._refuse(self._too_large(self._raw_bytes))
                return
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._declined(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserCallbackError as error:
                cause = error.__context__
                if isinstance(cause, errors.GatewayError):
                    self._refuse(cause)
                else:
                    logger.exception("fault while reading a request", exc_info=cause or error)
                    self._refuse(errors.InternalError("The gateway failed to read the request."))
            except httptools.HttpParserError as error:
                self._refuse(errors.InvalidRequestError(f"The request is not valid HTTP/1.1: {error}."))
            break
        if len(self._queue) >= _PIPELINE and not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def _declined(self, rest: bytes) -> bytes:
        """The request whose head offered an upgrade, to be read again as if it had not; ``rest`` follows it."""
        parser, headers = self._parser, self._offered
        lines = b"".join(
            b"%b: %b\r\n" % header for header in headers.items() if header[0] not in _UPGRADE_HEADERS
        )
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (parser.get_method(), self._target, lines)
        self._parser = httptools.HttpRequestParser(self)
        return head + rest

    # parser callbacks

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._header_count = 0
        self._target = b""
        self._headers = {}
        if self.task is None and not self.write_paused:
            self._deadline_s = self.server.now_s + self.server.limits.header_timeout_s

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        # Not at the end of the head: names that come again are joined, which a flood of them would make slow.
        if self._header_count > self.server.limits.header_count and self._in_head:
            limit = self.server.limits.header_count
            raise errors.HeadersTooLargeError(
                f"The request has more than {limit} headers.", fix=f"Send at most {limit}."
            )
        name = name.lower()
        headers = self._headers
        if name in headers:
            if name == b"host":
                raise errors.InvalidRequestError(
                    "There are several Host headers.", field="host", fix="Send exactly one."
                )
            headers[name] = headers[name] + b", " + value
        else:
            headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        limits = self.server.limits
        headers = self._headers
        self._headers = _NO_TRAILERS
        if self._head_bytes or self._packet_bytes > limits.header_bytes:
            size = len(self._target) + sum(map(len, headers)) + sum(map(len, headers.values()))
            if size > limits.header_bytes:
                raise self._head_too_large()
        parser = self._parser
        version = parser.get_http_version()
        if version == "1.1":
            if b"host" not in headers:
                raise errors.InvalidRequestError(
                    "The Host header is missing.", field="host", fix="Send exactly one."
                )
        elif version != "1.0" or b"transfer-encoding" in headers:
            raise errors.InvalidRequestError(f"HTTP/{version} is not spoken so.", fix="Use HTTP/1.1.")
        target = self._target
        if not target.startswith(b"/") and target != b"*":
            target = _origin_form(target)
        keep_alive = parser.should_keep_alive()
        request = Request(parser.get_method().decode("latin-1"), target, version, headers, keep_alive)
        if b"upgrade" in headers and parser.should_upgrade():
            self._offered = headers
            return  # the parser stops behind this head; see _declined
        self._request = request
        length = headers.get(b"content-length")
        if length is not None and int(length) > limits.body_bytes:
            raise self._too_large(int(length))
        if length is not None or b"transfer-encoding" in headers:
            if length is None and headers[b"transfer-encoding"].lower() != b"chunked":
                raise errors.InvalidRequestError(
                    "The transfer encoding is not read.", field="transfer-encoding", fix="Send chunked."
                )
            self._body_bytes = self._raw_bytes = 0
            expected = int(length) if length is not None else limits.body_bytes
            if self.task is None and not self.write_paused:
                self._deadline_s = (
                    self.server.now_s + limits.body_timeout_s + expected / _BODY_RATE_BYTES_PER_S
                )
            if expected > _SMALL_BYTES or b"expect" in headers:
                self._expect(request)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self.server.limits.body_bytes:
            raise self._too_large(self._body_bytes)
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        if request is None:
            return
        self._request = None
        self._head_bytes = 0
        if self._body:
            request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
        self._body_bytes = 0
        request.received_s = time.perf_counter()
        if self.task is None and not self.write_paused:
            self._begin(request)
        else:
            self._queue.append(request)

    def _expect(self, request: Request) -> None:
        """A body that is large, or waits to be asked for, comes next: answer now what is refused without it."""
        if self.task is not None or self._queue:
            return
        if self.write_paused or not self.server.refuses(request):
            self._continue(request)
            return
        self._request = None
        self._discarding = True
        request.keep_alive = False
        request.received_s = time.perf_counter()
        self._begin(request)

    def _continue(self, request: Request) -> None:
        """Ask for the body of a request that waits to be asked; never in the middle of another's answer."""
        waits = request.headers.get(b"expect", b"").lower() == b"100-continue"
        if waits and request.version == "1.1" and self.transport is not None:
            self.transport.write(_CONTINUE)

    # one request at a time

    def _begin(self, request: Request) -> None:
        self._deadline_s = 0.0
        responder = self.responder = Responder(self, request)
        self.task = self.server.loop.create_task(self._run(request, responder))

    async def _run(self, request: Request, responder: Responder) -> None:
        try:
            await self.server.application(request, responder)
        except Exception:
            logger.exception("fault while answering a request")
        finally:
            if responder is self.responder and self.transport is not None:
                # It ended without an answer, which leaves nothing to wait for.
                if responder.started:
                    responder.abort()
                else:
                    fault = errors.InternalError("The gateway failed while answering.")
                    self.transport.write(_plain_error(fault, self.server.date))
                    self.transport.close()

    def answered(self, keep_alive: bool) -> None:
        """The answer to the current request is complete: go on to the next, or close."""
        self.task = None
        self.responder = None
        self.streaming = False
        transport = self.transport
        if transport is None:
            return
        if not keep_alive or self.server.draining:
            self._queue.clear()
            if self._discarding:
                self._linger(transport)
            else:
                transport.close()
            return
        if self.write_paused:
            pass  # the next waits until this one's answer has been read
        elif self._queue:
            self._begin(self._queue.popleft())
        else:
            self._deadline_s = self.server.now_s + self.server.limits.idle_timeout_s
            if self._request is not None:
                self._continue(self._request)
        if self._reading_paused and len(self._queue) < _PIPELINE // 2:
            self._reading_paused = False
            transport.resume_reading()

    # refusals and time

    def tick(self, now_s: float) -> None:
        """Close what has waited too long; called about twice a second."""
        if not self._deadline_s or now_s < self._deadline_s or self.transport is None:
            return
        if self.write_paused or self._discarding:
            self.transport.abort()
        elif self._in_head or self._request is not None:
            part = "headers" if self._in_head else "body"
            self._refuse(errors.RequestTimeoutError(f"The request's {part} did not arrive in time."))
        else:
            self.transport.close()

    def _too_large(self, size: int) -> errors.GatewayError:
        limit = self.server.limits.body_bytes
        return errors.BodyTooLargeError(
            f"The body has {size} bytes or more.", fix=f"Send at most {limit} bytes (http.body_bytes)."
        )

    def _head_too_large(self) -> errors.GatewayError:
        limit = self.server.limits.header_bytes
        return errors.HeadersTooLargeError(
            "The request's headers are too large.", fix=f"Send at most {limit} bytes (http.header_bytes)."
        )

    def _refuse(self, error: errors.GatewayError) -> None:
        """Answer a request that cannot be read, throw away what still comes, close."""
        self._discarding = True
        self._body.clear()
        transport = self.transport
        if transport is None:
            return
        if self.task is not None or self._queue:
            # An earlier request of the same connection is being answered; its answer must stay whole.
            self._queue.clear()
            if self.responder is not None:
                self.responder._keep_alive = False
            else:
                transport.close()
            return
        dialect = self.server.dialect_of(self._target)
        transport.write(_plain_error(error, self.server.date, dialect))
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Say no more; throw away what still comes, so that the client sees the answer and no reset."""
        self._body.clear()
        if transport.can_write_eof():
            transport.write_eof()
        self._deadline_s = self.server.now_s + _LINGER_S


class Server:
    """Connections of one worker, their limits and their clock. ``listen`` may be called for several sockets."""

    def __init__(self, application: Application, limits: ServerLimits | None = None) -> None:
        self.application = application
        self.limits = limits or ServerLimits()
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.draining = False
        self.now_s = self._ticked_s = time.monotonic()
        """The clock of all limits on what clients do. It does not count times in which the loop stood still."""
        self.date = b""
        self.dialect_of: Callable[[bytes], str] = lambda target: "openai"
        """In which dialect requests for a target are refused when they cannot even be read."""
        self.refuses: Callable[[Request], bool] = lambda request: False
        """Whether the application will refuse a request for its head, whatever its body."""
        self._servers: list[asyncio.AbstractServer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    async def listen(
        self, host: str, port: int, *, reuse_port: bool = False, backlog: int = 4096
    ) -> tuple[str, int]:
        """Listen on a TCP address; returns the bound address (port 0 picks a free one)."""
        server = await self.loop.create_server(
            lambda: Connection(self), host, port, reuse_port=reuse_port or None, backlog=backlog
        )
        self._servers.append(server)
        address = server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket."""
        self._servers.append(await self.loop.create_unix_server(lambda: Connection(self), path))

    def stop_listening(self) -> None:
        """Accept nothing more; answers under way go on, idle connections are closed."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            if connection.idle and connection.transport is not None:
                connection.transport.close()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every answer under way is complete; after ``timeout_s`` cut the rest. True if none was cut."""
        self.stop_listening()
        deadline_s = time.monotonic() + timeout_s
        while self.connections and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        clean = not self.connections
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for _ in range(200):
            if not self.connections:
                break
            await asyncio.sleep(0.005)
        if self._timer is not None:
            self._timer.cancel()
        return clean

    def _tick(self) -> None:
        # While the loop stands still nothing can be read: what clients sent meanwhile is not late.
        ticked_s, self._ticked_s = self._ticked_s, time.monotonic()
        self.now_s += min(self._ticked_s - ticked_s, 2 * _TICK_S)
        self.date = email.utils.formatdate(usegmt=True).encode()
        for connection in tuple(self.connections):
            connection.tick(self.now_s)
        self._timer = self.loop.call_later(_TICK_S, self._tick)


def _split(target: bytes) -> tuple[str, str]:
    """Path, decoded, and query of a target; those seen first are remembered, as most targets are a few."""
    raw_path, _, raw_query = target.partition(b"?")
    path = raw_path.decode("latin-1")
    split = (unquote(path, errors="replace") if "%" in path else path, raw_query.decode("latin-1"))
    if len(_SPLIT) < 256 and len(target) < 128:
        _SPLIT[target] = split
    return split


def _origin_form(target: bytes) -> bytes:
    """``http://host/path`` (absolute form, RFC 9112 section 3.2.2) as ``/path``."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise errors.InvalidRequestError("The request target is not a path.")
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"


def _plain_error(error: errors.GatewayError, date: bytes, dialect: str = "openai") -> bytes:
    """An error before any route is known; the connection is closed after it."""
    content = errors.render(error, dialect, "")
    extra = b"retry-after: %d\r\n" % max(1, round(error.retry_after_s)) if error.retry_after_s else b""
    return (
        b"%bcontent-type: application/json\r\nx-apportion-error: %b\r\ndate: %b\r\n%bcontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
        % (_STATUS_LINES[error.status], error.code.encode(), date, extra, len(content), content)
    )
