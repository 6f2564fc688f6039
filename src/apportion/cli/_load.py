"""The transport of a load test: chat completions of the OpenAI kind, streamed, over the project's own HTTP client."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

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
from apportion.simulate.result import FAILED, OK, REFUSED, TIMEOUT
from apportion.simulate.trace import TraceError
from apportion.simulate.workload.replay import Ask, Reply

_REFUSED: Final = (402, 429)
_TIMEOUT: Final = (408, 504)
_CONTENT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning)" ?: ?"[^"]')
_LONGEST_WHY: Final = 120


class _Stream(Exchange):
    """An answer as it comes: when its pieces came, how many there were, and its last counts."""

    __slots__ = ("_rest", "broken", "first_s", "last_s", "longest_s", "pieces", "usage")

    def __init__(self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts) -> None:
        super().__init__(loop, timeouts)
        self._rest = b""
        self.first_s = self.last_s = math.nan
        self.longest_s = 0.0
        self.pieces = 0
        self.usage: Mapping[str, Any] = {}
        self.broken = ""

    def phase(self) -> Phase:
        return "gap" if self.pieces else "first_token"

    def on_data(self, data: bytes) -> None:
        if self.status != 200:
            super().on_data(data)
            return
        now_s = time.perf_counter()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if _CONTENT.search(
                line
            ):  # most events are nothing else, and decoding each would make the next one late
                self._piece(now_s)
            if b'"usage"' in line or b'"error"' in line:
                self._facts(line[5:])

    def _piece(self, now_s: float) -> None:
        self.pieces += 1
        if self.pieces == 1:
            self.first_s = now_s
        else:
            self.longest_s = max(self.longest_s, now_s - self.last_s)
        self.last_s = now_s

    def _facts(self, data: bytes) -> None:
        try:
            event = msgspec.json.decode(data)
        except msgspec.DecodeError:
            self.broken = "a piece of the stream is not JSON"
            return
        if isinstance(event, dict):
            if isinstance(event.get("usage"), dict):
                self.usage = event["usage"]
            if event.get("error"):
                self.broken = _said(event["error"])


class OpenAI:
    """Sends requests to ``url`` (up to and including the version, ``http://127.0.0.1:8080/v1``). Made inside the event
    loop that uses it.

    ``model`` is asked for where the trace names none, or where ``models`` maps its name to another. With
    ``ignore_eos`` the endpoint is asked to go on until so many tokens are there as the trace says (vLLM, SGLang and
    llama.cpp do; others refuse the request or stop earlier). ``constraints`` passes priorities and deadlines on to a
    proxy of ours.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        keys: Mapping[str, str] | None = None,
        model: str = "",
        models: Mapping[str, str] | None = None,
        ignore_eos: bool = True,
        constraints: bool = False,
        most_connections: int = 1024,
        timeout_s: float = 600.0,
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TraceError(
                f"{url!r} is no address of an endpoint.",
                field="URL",
                fix="Write it up to and including the version, for example http://127.0.0.1:8080/v1.",
            )
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self._loop)
        tls = client_tls(ca_file, True) if parts.scheme == "https" else None
        target = Target(parts.hostname, parts.port or (443 if tls else 80), tls, parts.hostname)
        self._pool = Pool(target, self._watch, max_connections=most_connections)
        self._timeouts = Timeouts(10.0, timeout_s, timeout_s, timeout_s)
        self._start = (
            f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1\r\n"
            f"host: {parts.netloc.rpartition('@')[2]}\r\ncontent-type: application/json\r\n"
            "accept: text/event-stream\r\n"
        )
        self._key, self._keys = key, keys or {}
        self._model, self._models = model, models or {}
        self._ignore_eos, self._constraints = ignore_eos, constraints

    def ready(self, ask: Ask) -> Callable[[], Awaitable[Reply]]:
        """The request as bytes; calling what is returned sends them."""
        model = self._models.get(ask.model) or (self._model or ask.model)
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": ask.prompt}],
            "max_tokens": ask.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:
            body["ignore_eos"] = True
        if self._constraints:
            said = {"priority": ask.priority, "deadline_s": ask.deadline_s}
            body["apportion"] = {name: value for name, value in said.items() if value is not None}
        encoded = msgspec.json.encode(body)
        key = self._keys.get(ask.tenant, self._key)
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        head = f"{self._start}{authorization}content-length: {len(encoded)}\r\n\r\n"
        request = head.encode() + encoded

        async def go() -> Reply:
            return await self._send(request)

        return go

    async def _send(self, request: bytes) -> Reply:
        reply = Reply()
        for fresh in (False, True):
            exchange = _Stream(self._loop, self._timeouts)
            reused = False
            try:
                reused = await self._pool.send(exchange, request, fresh=fresh)
                reply.sent_s = exchange.sent_s if math.isnan(reply.sent_s) else reply.sent_s
                await exchange.answered()
            except TransportFailure as error:
                if not fresh and stale(exchange, reused):
                    continue  # a kept connection that had died while it was idle
                reply.status = TIMEOUT if error.kind == "timeout" else FAILED
                reply.why = f"{error.kind}: {error}"[:_LONGEST_WHY]
            break
        reply.finish_s = time.perf_counter()
        _fill(reply, exchange)
        return reply

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()
        self._watch.close()


def _fill(reply: Reply, exchange: _Stream) -> None:
    """What the exchange says."""
    action = exchange.header(b"x-apportion-endpoint")
    reply.action = action.decode("latin-1") if action else ""
    cost = exchange.header(b"x-apportion-cost-usd")
    if cost:
        reply.usd = float(cost)
    if reply.why:
        return
    if exchange.status != 200:
        status = exchange.status
        reply.status = REFUSED if status in _REFUSED else TIMEOUT if status in _TIMEOUT else FAILED
        reply.why = f"{status}: {_said_by(exchange.body())}"[:_LONGEST_WHY]
        return
    if exchange.broken or not exchange.pieces:
        reply.why = (exchange.broken or "the answer has no content")[:_LONGEST_WHY]
        return
    usage = exchange.usage
    reply.status = OK
    reply.first_token_s, reply.finish_s = exchange.first_s, exchange.last_s
    reply.longest_gap_s = exchange.longest_s if exchange.pieces > 1 else math.nan
    reply.output_tokens = _count(usage.get("completion_tokens")) or exchange.pieces
    reply.prompt_tokens = _count(usage.get("prompt_tokens"))
    details = usage.get("prompt_tokens_details")
    reply.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _said_by(body: bytes) -> str:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:_LONGEST_WHY].decode("utf-8", "replace")
    return _said(found.get("error", found) if isinstance(found, dict) else found)


def _said(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
