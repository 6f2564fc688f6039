"""Recorded upstream answers: a JSON Lines file that stands in for a provider, in tests and in examples.

Each line is one exchange:

    {"request": {"method": "POST", "path": "/v1/chat/completions", "model": "m", "body": {...}},
     "after_s": 0.2, "status": 200, "headers": {"content-type": "application/json"}, "body": {...}}

    {"request": {"model": "m"}, "status": 200,
     "events": [{"after_s": 0.2, "data": {...}}, {"after_s": 0.05, "data": "[DONE]"}], "end": "clean"}

A request is answered by the first of these groups that has a line for it; inside a group the lines take
turns in the order of the file and start over when all were used:

1. lines whose recorded body (or its ``sha256``) is the same request: method, path and body, compared without
   the fields of ``VOLATILE`` and without regard to the order of keys;
2. lines without a body that name its model and no other method, path or ``stream``; those that name more of
   these go first;
3. lines recorded with a body that name its model, path and ``stream``: another question to the same model;
4. lines that name neither a model nor a body, as in 2.

`/v1/chat/completions` and `/chat/completions` are the same path. ``Replay`` is the pure object,
``ReplayServer`` puts it on a loopback port, ``Recorder`` writes the file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import httptools
import msgspec

from apportion.core.errors import ApportionError, ParameterError

VOLATILE = frozenset(
    {
        "apportion",
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)
"""Fields of a request's body that do not change what is asked."""

FILE_BYTES_MAX = 64 << 20
BODY_BYTES_MAX = 32 << 20
_HEADER_BYTES_MAX = 64 << 10
_RECORDED_HEADERS = frozenset(
    {
        "content-type",
        "openai-processing-ms",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
    }
)

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Sleep = Callable[[float], Awaitable[object]]


class ReplayError(ApportionError):
    """A recording cannot be read; the line at fault is named."""

    code = "replay_file"


class CutError(Exception):
    """The recorded upstream dropped the connection here."""


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a recorded exchange answers. ``sha256`` is ``request_hash`` where the body itself is not kept."""

    method: str | None = None
    path: str | None = None
    model: str | None = None
    stream: bool | None = None
    body: dict[str, Any] | None = None
    sha256: str | None = None


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A piece of a streamed body, ``after_s`` seconds after the one before.

    Either one server-sent event (``data``, a string as it is or anything else as compact JSON, and
    optionally its ``event`` name) or exact text (``raw``) or exact bytes (``raw_base64``).
    """

    after_s: Seconds = 0.0
    event: str | None = None
    data: Any = msgspec.UNSET
    raw: str | None = None
    raw_base64: str | None = None

    def render(self) -> bytes:
        """The bytes on the wire."""
        if self.raw is not None:
            return self.raw.encode()
        if self.raw_base64 is not None:
            return base64.b64decode(self.raw_base64)
        text = self.data if isinstance(self.data, str) else msgspec.json.encode(self.data).decode()
        name = "" if self.event is None else f"event: {self.event}\n"
        return f"{name}data: {text}\n\n".encode()


class Exchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One line of a recording: a request and its answer.

    The body is ``body`` (a string as it is, anything else as compact JSON), ``body_base64``, or streamed
    ``events``. ``end`` "cut" drops the connection after what is there instead of ending the body.
    """

    request: Match
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = 200
    headers: dict[str, str] = {}
    after_s: Seconds = 0.0
    body: Any = msgspec.UNSET
    body_base64: str | None = None
    events: list[Event] | None = None
    end: Literal["clean", "cut"] = "clean"

    def render_body(self) -> bytes:
        """The whole body when it is not streamed."""
        if self.body_base64 is not None:
            return base64.b64decode(self.body_base64)
        if self.body is msgspec.UNSET:
            return b""
        return self.body.encode() if isinstance(self.body, str) else msgspec.json.encode(self.body)


class Reply(msgspec.Struct, frozen=True):
    """An answer: ``body`` is complete, or comes in pieces, which ``CutError`` may end badly."""

    status: int
    headers: dict[str, str]
    body: bytes | AsyncGenerator[bytes, None]


def request_hash(
    method: str, path: str, body: Mapping[str, object], volatile: frozenset[str] = VOLATILE
) -> str:
    """The identity of a request: SHA-256 of method, path and canonical JSON of the body less ``volatile``."""
    kept = {key: value for key, value in body.items() if key not in volatile}
    canonical = msgspec.json.encode([method.upper(), _plain(path), kept], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()


def load(path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> list[Exchange]:
    """The exchanges of a recording; empty lines are skipped.

    Raises:
        ReplayError: naming the line that is not a valid exchange, or when the file is larger than allowed.
    """
    try:
        if path.stat().st_size > bytes_max:
            raise ReplayError(
                f"{path} is larger than {bytes_max >> 20} MiB.", field="path", fix="Split the recording."
            )
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}.", field="path") from error
    return [_exchange(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


class Replay:
    """Answers requests from recorded exchanges.

    ``speed`` divides every recorded wait: 2 is twice as fast, ``math.inf`` does not wait. ``sleep`` waits and
    is a parameter so that a simulated clock can stand in.
    """

    def __init__(
        self,
        exchanges: Iterable[Exchange],
        *,
        speed: float = 1.0,
        sleep: Sleep = asyncio.sleep,
        volatile: frozenset[str] = VOLATILE,
    ) -> None:
        if not speed > 0:
            raise ParameterError(
                f"speed is {speed}.", field="speed", fix="It must be above 0; inf never waits."
            )
        self._speed = speed
        self._sleep = sleep
        self._volatile = volatile
        self._same: dict[str, _Turns] = {}
        self._model: dict[str, list[_Turns]] = {}
        self._question: dict[tuple[str, str, str, bool], _Turns] = {}
        self._any: list[_Turns] = []
        for exchange in exchanges:
            self._file(exchange)

    @property
    def models(self) -> list[str]:
        """The models that recorded requests name, sorted."""
        return sorted(set(self._model) | {model for _, _, model, _ in self._question})

    async def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The recorded answer to a request, after the recorded wait.

        A request that nothing was recorded for gets 404 and the list of models; `GET /health` and `GET
        /v1/models` are answered from the recording as a whole unless they were recorded themselves.
        """
        plain = _plain(path.partition("?")[0])
        content = _json_object(body)
        turns = self._find(method.upper(), plain, content)
        if turns is None:
            return self._unrecorded(method.upper(), plain, content)
        exchange = turns.next()
        await self._wait(exchange.after_s)
        if exchange.events is None and exchange.end == "clean":
            kind = "text/plain" if isinstance(exchange.body, str) else "application/json"
            return Reply(
                exchange.status, {"content-type": kind} | _lower(exchange.headers), exchange.render_body()
            )
        kind = "application/json" if exchange.events is None else "text/event-stream"
        return Reply(
            exchange.status, {"content-type": kind} | _lower(exchange.headers), self._stream(exchange)
        )

    async def _stream(self, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        if exchange.events is None:
            yield exchange.render_body()
        for event in exchange.events or ():
            await self._wait(event.after_s)
            yield event.render()
        if exchange.end == "cut":
            raise CutError

    async def _wait(self, after_s: float) -> None:
        if after_s and self._speed != math.inf:
            await self._sleep(after_s / self._speed)

    def _file(self, exchange: Exchange) -> None:
        request = exchange.request
        method, path, body = request.method or "POST", _plain(request.path or ""), request.body
        digest = request.sha256
        model = request.model
        stream = request.stream
        if body is not None:
            digest = request_hash(method, path, body, self._volatile)
            model = model or _model(body)
            stream = bool(body.get("stream"))
        if digest is not None:
            self._same.setdefault(digest, _Turns()).add(exchange)
            if model:
                key = (method.upper(), path, model, bool(stream))
                self._question.setdefault(key, _Turns()).add(exchange)
            return
        groups = self._any if model is None else self._model.setdefault(model, [])
        terms = (request.method and request.method.upper(), path or None, stream)
        for turns in groups:
            if turns.terms == terms:
                turns.add(exchange)
                return
        turns = _Turns(terms)
        turns.add(exchange)
        groups.append(turns)
        groups.sort(key=lambda turns: turns.terms.count(None))

    def _find(self, method: str, path: str, body: dict[str, Any]) -> _Turns | None:
        same = self._same.get(request_hash(method, path, body, self._volatile)) if self._same else None
        if same:
            return same
        model, stream = _model(body), bool(body.get("stream"))
        for turns in self._model.get(model or "", ()):
            if turns.allows(method, path, stream):
                return turns
        if model and (question := self._question.get((method, path, model, stream))):
            return question
        return next((turns for turns in self._any if turns.allows(method, path, stream)), None)

    def _unrecorded(self, method: str, path: str, body: dict[str, Any]) -> Reply:
        headers = {"content-type": "application/json"}
        if method == "GET" and path == "/health":
            return Reply(200, headers, b'{"status":"ok"}')
        if method == "GET" and path == "/models":
            data = [
                {"id": model, "object": "model", "created": 0, "owned_by": "replay"} for model in self.models
            ]
            return Reply(200, headers, msgspec.json.encode({"object": "list", "data": data}))
        message = (
            f"Nothing was recorded for {method} {path} with model {_model(body)!r}. "
            f"Recorded models: {', '.join(self.models) or 'none'}."
        )
        error = {
            "message": message,
            "type": "invalid_request_error",
            "param": "model",
            "code": "replay_no_match",
        }
        return Reply(404, headers, msgspec.json.encode({"error": error}))


class _Turns:
    """Lines that answer the same requests, taken in turn."""

    def __init__(self, terms: tuple[str | None, str | None, bool | None] = (None, None, None)) -> None:
        self.terms = terms
        self._exchanges: list[Exchange] = []
        self._next = 0

    def add(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)

    def next(self) -> Exchange:
        exchange = self._exchanges[self._next]
        self._next = (self._next + 1) % len(self._exchanges)
        return exchange

    def allows(self, method: str, path: str, stream: bool) -> bool:
        asked = (method, path, stream)
        return all(term is None or term == value for term, value in zip(self.terms, asked, strict=True))


class Recorder:
    """Appends exchanges to a recording, byte for byte, in the most readable form that gives the same bytes.

    Of the response's headers only harmless ones are kept, of the request's none. An exchange larger than
    ``exchange_bytes_max``, and any that would make the file larger than ``file_bytes_max``, is left out
    and counted in ``left_out``.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_bodies: bool = True,
        exchange_bytes_max: int = 4 << 20,
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        self._file: BinaryIO = path.open("ab")
        self._keep_bodies = keep_bodies
        self._exchange_bytes_max = exchange_bytes_max
        self._file_bytes_max = file_bytes_max
        self.left_out = 0

    def record(
        self,
        method: str,
        path: str,
        request_body: bytes,
        status: int,
        headers: Mapping[str, str],
        chunks: Sequence[tuple[float, bytes]],
        *,
        after_s: float = 0.0,
        cut: bool = False,
    ) -> bool:
        """Write one exchange; False when it was too large.

        Args:
            chunks: the response's body as it came, each piece with the seconds since the one before.
            after_s: from the request to the response's headers.
            cut: whether the upstream dropped the connection after the last piece.
        """
        if len(request_body) + sum(len(data) for _, data in chunks) > self._exchange_bytes_max:
            self.left_out += 1
            return False
        kept = {name: value for name, value in _lower(headers).items() if name in _RECORDED_HEADERS}
        exchange = Exchange(
            request=self._match(method, path, _json_object(request_body)),
            status=status,
            headers=kept,
            after_s=after_s,
            end="cut" if cut else "clean",
            **(
                {"events": _events(chunks)}
                if kept.get("content-type", "").startswith("text/event-stream")
                else _body(b"".join(data for _, data in chunks))
            ),
        )
        line = msgspec.json.encode(exchange) + b"\n"
        if self._file.tell() + len(line) > self._file_bytes_max:
            self.left_out += 1
            return False
        self._file.write(line)
        self._file.flush()
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _match(self, method: str, path: str, body: dict[str, Any]) -> Match:
        if self._keep_bodies:
            return Match(method=method, path=path, model=_model(body), body=body)
        digest = request_hash(method, path, body)
        return Match(
            method=method, path=path, model=_model(body), stream=bool(body.get("stream")), sha256=digest
        )


class ReplayServer:
    """A ``Replay`` behind HTTP/1.1 on a loopback port: keep-alive, chunked streams, cuts that are cuts."""

    def __init__(self, replay: Replay, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._replay = replay
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """`http://HOST:PORT` once started."""
        if self._server is None:
            raise RuntimeError("The replay server is not started.")
        return f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)

    async def stop(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> ReplayServer:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A connection is handled outside a task.")
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, CutError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inbox = _Inbox()
        while True:
            while not inbox.requests:
                data = await reader.read(1 << 16)
                if not data:
                    return
                try:
                    inbox.feed(data)
                except (httptools.HttpParserError, _TooLarge):
                    error = b'{"error":{"message":"This is not an HTTP/1.1 request that the replay reads."}}'
                    await _send(writer, Reply(400, {"content-type": "application/json"}, error), keep=False)
                    return
            request = inbox.requests.popleft()
            reply = await self._replay.respond(
                request.method, request.path, request.headers, bytes(request.body)
            )
            await _send(writer, reply, keep=request.keep)
            if not request.keep:
                return


class _TooLarge(Exception):
    """A request is larger than the replay server reads."""


class _Request:
    """One request as it is being parsed."""

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.keep = True


class _Inbox:
    """httptools callbacks that gather complete requests."""

    def __init__(self) -> None:
        self.requests: deque[_Request] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._request = _Request()
        self._head_bytes = 0
        self._in_head = True

    def feed(self, data: bytes) -> None:
        """Parse what came. A head that never ends is refused here, for the parser would keep all of it."""
        if self._in_head:
            self._head_bytes += len(data)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        if self._in_head and self._head_bytes > _HEADER_BYTES_MAX:
            raise _TooLarge

    def on_message_begin(self) -> None:
        self._request = _Request()

    def on_url(self, url: bytes) -> None:
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._request.body += body
        if len(self._request.body) > BODY_BYTES_MAX:
            raise _TooLarge

    def on_message_complete(self) -> None:
        self._request.method = self._parser.get_method().decode("latin-1")
        self._request.keep = self._parser.should_keep_alive()
        self.requests.append(self._request)
        self._head_bytes, self._in_head = 0, True


async def _send(writer: asyncio.StreamWriter, reply: Reply, *, keep: bool) -> None:
    framing = (
        {"content-length": str(len(reply.body))}
        if isinstance(reply.body, bytes)
        else {"transfer-encoding": "chunked"}
    )
    own = ("content-length", "transfer-encoding", "connection")
    headers = {name: value for name, value in reply.headers.items() if name not in own}
    headers |= framing | {"connection": "keep-alive" if keep else "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} Replayed\r\n{head}\r\n".encode("latin-1"))
    if isinstance(reply.body, bytes):
        writer.write(reply.body)
    else:
        await writer.drain()
        async with contextlib.aclosing(reply.body) as pieces:
            async for piece in pieces:
                if writer.is_closing():
                    raise ConnectionResetError("the client went away")
                if piece:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _exchange(line: bytes, place: str) -> Exchange:
    try:
        exchange = msgspec.json.decode(line, type=Exchange)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReplayError(f"{place}: {error}.", fix="Mend or delete the line.") from error
    bodies = (
        exchange.body is not msgspec.UNSET,
        exchange.body_base64 is not None,
        exchange.events is not None,
    )
    if sum(bodies) > 1:
        raise ReplayError(f"{place}: more than one of body, body_base64 and events.", field="body")
    _check_base64(exchange.body_base64, f"{place}: body_base64")
    for number, event in enumerate(exchange.events or ()):
        forms = (event.data is not msgspec.UNSET, event.raw is not None, event.raw_base64 is not None)
        if sum(forms) != 1:
            raise ReplayError(
                f"{place}: events[{number}] has not exactly one of data, raw and raw_base64.", field="events"
            )
        _check_base64(event.raw_base64, f"{place}: events[{number}].raw_base64")
    for name, value in exchange.headers.items():
        if not (name + value).isascii() or not (name + value).isprintable():
            raise ReplayError(
                f"{place}: header {name!r} has characters that no header may have.", field="headers"
            )
    return exchange


def _check_base64(text: str | None, place: str) -> None:
    try:
        base64.b64decode(text or "", validate=True)
    except binascii.Error as error:
        raise ReplayError(f"{place} is not base64: {error}.") from error


def _plain(path: str) -> str:
    return path.removeprefix("/v1") or "/" if path == "/v1" or path.startswith("/v1/") else path


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _model(body: Mapping[str, Any]) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _body(data: bytes) -> dict[str, Any]:
    """The field of an ``Exchange`` that renders to ``data``, as readable as can be."""
    if not data:
        return {}
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        value = msgspec.json.decode(data)
        if not isinstance(value, str) and msgspec.json.encode(value) == data:
            return {"body": value}
    with contextlib.suppress(UnicodeDecodeError):
        return {"body": data.decode()}
    return {"body_base64": base64.b64encode(data).decode()}


def _events(chunks: Sequence[tuple[float, bytes]]) -> list[Event]:
    """Chunks cut at the ends of server-sent events; each piece keeps the time at which its last byte came."""
    events: list[Event] = []
    rest, waited_s = b"", 0.0
    for after_s, data in chunks:
        waited_s += after_s
        *whole, rest = (rest + data).split(b"\n\n")
        for piece in whole:
            events.append(_event(piece + b"\n\n", waited_s))
            waited_s = 0.0
    if rest:
        events.append(_event(rest, waited_s))
    return events


def _event(data: bytes, after_s: float) -> Event:
    """The most readable event that renders to exactly ``data``."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Event(after_s, raw_base64=base64.b64encode(data).decode())
    head, found, payload = text.removesuffix("\n\n").partition("data: ")
    name = head.removeprefix("event: ").removesuffix("\n") if head else None
    forms = [Event(after_s, event=name, data=payload)] if found else []
    with contextlib.suppress(msgspec.MsgspecError):
        value = msgspec.json.decode(payload)
        if not isinstance(value, str):
            forms.insert(0, Event(after_s, event=name, data=value))
    return next((form for form in forms if form.render() == data), Event(after_s, raw=text))
