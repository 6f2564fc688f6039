"""A client that measures: one streamed chat completion, with the time of every piece as the socket had it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from apportion.serve.http.client import (
    Exchange,
    Pool,
    Target,
    Timeouts,
    TransportFailure,
    Watch,
    client_tls,
)
from apportion.simulate.calibrate import CalibrationError, Heard

_LIMITS: Final[tuple[dict[str, Any], ...]] = (
    {"max_tokens": 0, "ignore_eos": True},
    {"max_tokens": 0},
    {"max_completion_tokens": 0},
)
"""Ways of saying how long an answer is; the first that the endpoint takes is kept. vLLM, SGLang and llama.cpp know
`ignore_eos`."""


class _Stream(Exchange):
    """Server-sent events, each with the time at which its last byte came."""

    __slots__ = ("_now", "_on_event", "_rest")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        on_event: Callable[[float, bytes], None],
        now: Callable[[], float],
    ) -> None:
        super().__init__(loop, timeouts)
        self._now = now
        self._on_event = on_event
        self._rest = b""

    def on_data(self, data: bytes) -> None:
        if self.status != 200:
            super().on_data(data)
            return
        now_s = self._now()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._on_event(now_s, line[5:].strip())


class StreamClient:
    """Asks one endpoint of the OpenAI kind for chat completions. Use it inside the event loop that made it."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None,
        *,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        verify: bool = True,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._now = now
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise CalibrationError(
                f"{base_url!r} is no address of an endpoint.",
                field="endpoint",
                fix="Write it up to and including the version, for example http://127.0.0.1:8000/v1.",
            )
        secure = url.scheme == "https"
        self._watch = Watch(asyncio.get_running_loop())
        target = Target(
            url.hostname,
            url.port or (443 if secure else 80),
            client_tls(ca_file, verify) if secure else None,
            url.hostname,
        )
        self._pool = Pool(target, self._watch, idle_s=4.0)
        self._timeouts = Timeouts(5.0, 600.0, 600.0, 600.0)
        self._model = model
        self._way = 0
        lines = [
            f"POST {url.path.rstrip('/')}/chat/completions HTTP/1.1",
            f"host: {url.netloc.rpartition('@')[2]}",
            "content-type: application/json",
            "accept: text/event-stream",
            *([f"authorization: Bearer {key}"] if key else []),
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        self._head = "\r\n".join(lines).encode()

    async def ask(self, prompt: str, output_tokens: int, on_token: Callable[[], None]) -> Heard:
        """Send ``prompt`` and stream the answer. What goes wrong is told in `Heard.failure`."""
        while True:
            exchange, heard = await self._send(prompt, output_tokens, on_token)
            if exchange is not None and exchange.status in (400, 422) and self._way + 1 < len(_LIMITS):
                self._way += 1
                continue
            return heard

    async def _send(
        self, prompt: str, output_tokens: int, on_token: Callable[[], None]
    ) -> tuple[Exchange | None, Heard]:
        limit = {name: value or output_tokens for name, value in _LIMITS[self._way].items()}
        body = msgspec.json.encode(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": f"{prompt} Go on with this list."}],
                "stream": True,
                "stream_options": {"include_usage": True},
                **limit,
            }
        )
        heard = Heard(0.0)

        def event(now_s: float, data: bytes) -> None:
            if _took(heard, data):
                heard.token_s.append(now_s)
                on_token()

        request = b"%b\r\ncontent-length: %d\r\n\r\n%b" % (self._head, len(body), body)
        for fresh in (False, True):
            exchange = _Stream(asyncio.get_running_loop(), self._timeouts, event, self._now)
            try:
                heard.sent_s = self._now()
                await self._pool.send(exchange, request, fresh=fresh)
                await exchange.answered()
            except TransportFailure as error:
                if not fresh and not heard.token_s and error.kind == "closed":
                    continue  # a kept connection that had died
                heard.failure = str(error)
                return exchange, heard
            break
        heard.ended_s = self._now()
        if exchange.status != 200:
            heard.failure = f"it answered {exchange.status}: {_message(exchange.body())}"
        return exchange, heard

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()
        self._watch.close()


def _took(heard: Heard, data: bytes) -> bool:
    """Read one event into ``heard``; whether it carries a token."""
    if data == b"[DONE]":
        return False
    try:
        event = msgspec.json.decode(data)
    except msgspec.DecodeError:
        heard.failure = "its stream is not JSON"
        return False
    if not isinstance(event, dict):
        return False
    if event.get("error"):
        heard.failure = str(event["error"])[:200]
    usage = event.get("usage")
    if isinstance(usage, dict):
        heard.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        heard.output_tokens = int(usage.get("completion_tokens") or 0)
        details = usage.get("prompt_tokens_details")
        heard.cached_tokens = int((details or {}).get("cached_tokens") or 0)
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            return True
    return False


def _message(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body).get("error")
        return str(error.get("message", error))[:200]
    except (msgspec.DecodeError, AttributeError):
        return body[:200].decode("utf-8", "replace")
