"""A raw HTTP/1.1 client for tests: sends any bytes, reads strictly, notes when each byte came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

PATIENCE_S = 60.0
"""The longest any read waits: a hang is a failure, not a stuck suite."""


@dataclass
class SSE:
    """One event of a stream, and when it arrived (monotonic seconds)."""

    event: str | None
    data: str
    at_s: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass
class Response:
    """One response. ``complete`` is false when the connection ended before the body did."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = True
    framing: str = "none"
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(when, bytes of body so far)."""

    def header(self, name: str) -> str | None:
        found = [v for k, v in self.headers if k.lower() == name.lower()]
        assert len(found) < 2, f"{name} was sent {len(found)} times: {found}"
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[SSE]:
        """The body as server-sent events; comments are left out."""
        return parse_events(self.body)

    @property
    def comments(self) -> list[str]:
        return [line[1:].strip() for line in self.body.decode().splitlines() if line.startswith(":")]


def parse_events(body: bytes) -> list[SSE]:
    """Strict: every event must be ended by a blank line, every line be a field or a comment."""
    text = body.decode()
    assert text == "" or text.endswith("\n\n"), f"the stream ends in the middle of an event: {text[-200:]!r}"
    events = []
    for block in text.split("\n\n"):
        name, data = None, []
        for line in block.split("\n"):
            if line == "" or line.startswith(":"):
                continue
            key, colon, value = line.partition(":")
            assert key in ("event", "data", "id", "retry"), f"not a line of an event stream: {line!r}"
            assert colon, f"a field without a value: {line!r}"
            if key == "event":
                name = value.strip()
            elif key == "data":
                data.append(value.removeprefix(" "))
        if data or name:
            events.append(SSE(name, "\n".join(data)))
    return events


class Broken(Exception):
    """The connection ended or the bytes are not HTTP."""


class Wire:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1", limit: int = 2**20) -> Wire:
        async with asyncio.timeout(PATIENCE_S):
            return cls(*await asyncio.open_connection(host, port, limit=limit))

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def abort(self) -> None:
        """Go away at once, without a word."""
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()

    async def closed_by_peer(self, within_s: float = PATIENCE_S) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.read(65536) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    async def _line(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise Broken(f"connection ended in a header: {line!r}")
        if not line.endswith(b"\r\n"):
            raise Broken(f"bare line feed: {line!r}")
        return line[:-2]

    async def head(self) -> Response:
        """Status line and headers of the next response that is not informational."""
        status_line = (await self._line()).decode("latin-1")
        version, _, rest = status_line.partition(" ")
        code, _, reason = rest.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not code.isdigit():
            raise Broken(f"not a status line: {status_line!r}")
        headers = []
        while line := await self._line():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or name != name.strip():
                raise Broken(f"not a header: {line!r}")
            headers.append((name, value.strip()))
        if 100 <= int(code) < 200:
            return await self.head()
        response = Response(int(code), reason, headers)
        if (response.header("transfer-encoding") or "").lower() == "chunked":
            if response.header("content-length") is not None:
                raise Broken("both transfer-encoding and content-length")
            response.framing = "chunked"
        elif response.header("content-length") is not None:
            response.framing = "length"
        elif int(code) not in (204, 304):
            response.framing = "close"
        return response

    async def pieces(self, response: Response) -> AsyncIterator[bytes]:
        """The body as it arrives; sets ``response.complete`` at the end."""
        response.complete = False
        try:
            if response.framing == "chunked":
                while size := int((await self._line()).split(b";")[0], 16):
                    async with asyncio.timeout(PATIENCE_S):
                        data = await self.reader.readexactly(size)
                    if await self._line() != b"":
                        raise Broken("no line end after a chunk")
                    response.arrivals.append((time.monotonic(), len(data)))
                    yield data
                while await self._line():
                    pass
            elif response.framing == "length":
                left = int(response.header("content-length") or 0)
                while left:
                    async with asyncio.timeout(PATIENCE_S):
                        data = await self.reader.read(min(left, 65536))
                    if not data:
                        return
                    left -= len(data)
                    yield data
            elif response.framing == "close":
                while True:
                    async with asyncio.timeout(PATIENCE_S):
                        data = await self.reader.read(65536)
                    if not data:
                        break
                    yield data
        except (asyncio.IncompleteReadError, Broken, ValueError, ConnectionError):
            return
        response.complete = True

    async def read(self, *, head_only: bool = False) -> Response:
        """The next whole response."""
        response = await self.head()
        if not head_only:
            async for piece in self.pieces(response):
                response.body += piece
        return response

    async def events(self, response: Response) -> AsyncIterator[SSE]:
        """The events of a streamed response, each as soon as it is whole."""
        left = b""
        async for piece in self.pieces(response):
            response.body += piece
            left += piece
            while (at := left.find(b"\n\n")) >= 0:
                block, left = left[: at + 2], left[at + 2 :]
                for event in parse_events(block):
                    event.at_s = time.monotonic()
                    yield event


Headers = Mapping[str, str] | Sequence[tuple[str, str]]


def request_bytes(method: str, target: str, headers: Headers = (), body: bytes = b"") -> bytes:
    """One request; ``host`` and ``content-length`` are added unless given."""
    items = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    names = {k.lower() for k, _ in items}
    if "host" not in names:
        items.insert(0, ("host", "gateway.test"))
    if body and not names & {"content-length", "transfer-encoding"}:
        items.append(("content-length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in items), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def ask(port: int, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Response:
    """One request on a connection of its own."""
    async with await Wire.open(port) as wire:
        await wire.send(request_bytes(method, target, headers, body))
        return await wire.read(head_only=method == "HEAD")
