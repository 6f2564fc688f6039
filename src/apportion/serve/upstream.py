"""An endpoint: where requests go, how they are written, how loaded and how healthy it is.

An endpoint kind is a way of writing a request, nothing more: "openai" and "anthropic" differ in paths and
authentication headers, "local" and "replay" are "openai" servers that the proxy starts itself.
"""

from __future__ import annotations

import email.utils
import logging
import random
import time
from typing import Final
from urllib.parse import urlsplit

from apportion.core import catalogue
from apportion.core.policy import Policy
from apportion.serve.call import Api
from apportion.serve.config.schema import Endpoint as EndpointConfig
from apportion.serve.config.schema import Queue as QueueConfig
from apportion.serve.health import Circuit, ServerClock
from apportion.serve.http.client import (
    Exchange,
    Pool,
    Target,
    Timeouts,
    TransportFailure,
    Watch,
    client_tls,
)
from apportion.serve.queue import EndpointQueue

logger = logging.getLogger("apportion.upstream")

PATHS: Final[dict[Api, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
    "messages": "/messages",
    "count_tokens": "/messages/count_tokens",
}

_SPOKEN: Final[dict[str, tuple[Api, ...]]] = {
    "openai": ("chat", "completions", "embeddings", "responses"),
    "anthropic": ("messages", "count_tokens"),
    "local": ("chat", "completions", "responses", "messages", "count_tokens"),
    "replay": ("chat", "completions", "embeddings", "responses", "messages", "count_tokens"),
}
_EMBEDDER: Final[tuple[Api, ...]] = ("embeddings",)

_ANTHROPIC_URL: Final = "https://api.anthropic.com/v1"
_ANTHROPIC_VERSION: Final = b"2023-06-01"

FORWARDED: Final = (b"anthropic-beta", b"openai-beta", b"idempotency-key", b"traceparent", b"tracestate")
"""Client headers that go upstream. All others stay here, above all the client's own key and host names."""

_FORWARDED: Final = frozenset(FORWARDED)

SPOKEN_FOR: Final[dict[Api, tuple[Api, ...]]] = {
    "chat": ("chat", "messages"),
    "messages": ("messages", "chat"),
    "responses": ("responses", "chat", "messages"),
    "completions": ("completions",),
    "embeddings": ("embeddings",),
    "count_tokens": ("count_tokens",),
}
"""For each API the dialects that can answer it, the best first: its own, then those with a translation."""


class Endpoint:
    """One endpoint of the configuration, alive: its pool, breaker, load and clock. Lives across reloads."""

    def __init__(self, name: str, config: EndpointConfig, watch: Watch, workers: int = 1) -> None:
        self.name = name
        self.config = config
        self.apis: tuple[Api, ...] = (
            tuple(config.apis)
            if config.apis
            else _EMBEDDER
            if config.kind == "local" and config.embeddings
            else _SPOKEN[config.kind]
        )
        self.circuit = Circuit(config.breaker, self._circuit_changed)
        self.clock = ServerClock()
        self.in_flight = 0
        self.reported_load: float | None = None
        """Work in flight over capacity as the server itself says (its metrics), if it does."""
        self.rests_until_s = 0.0
        """It asked (429 with retry-after) to be left alone until then, in ``perf_counter`` time."""
        self.healthy = True
        """What the active probe last said; True where there is none."""
        t = config.timeouts
        self.timeouts = Timeouts(t.connect_s, t.first_token_s, t.gap_s, t.total_s)
        self.slots = config.slots or (4 if config.kind == "local" else None)
        self.tags = frozenset(config.tags)
        self.continues = config.kind == "local" if config.continues is None else config.continues
        """Whether it goes on with an answer that somebody else has begun."""
        self.draining = False
        """Whether it is to have no new requests, because an operator takes it out."""
        self.queue = None if config.queue is None else _queue(config.queue, (self.slots or 1) // workers)
        """Where requests wait while it works on as many as it can, if they do."""
        self._retired = False
        self._watch = watch
        self.pool: Pool | None = None
        self._heads: dict[Api, bytes] = {}
        self._host = b""
        self._prefix = ""
        self._local_key: str | None = None
        if config.kind in ("openai", "anthropic"):
            self.point_at(config.base_url or _ANTHROPIC_URL)

    def point_at(self, base_url: str, api_key: str | None = None) -> None:
        """Send to ``base_url`` from now on (a local engine restarts on a new port)."""
        url = urlsplit(base_url)
        secure = url.scheme == "https"
        host = url.hostname or ""
        port = url.port or (443 if secure else 80)
        tls = client_tls(self.config.tls.ca_file, self.config.tls.verify) if secure else None
        if self.pool is not None:
            self.pool.close()
        limits = self.config.pool
        local = self.config.kind == "local"
        self.pool = Pool(
            Target(host, port, tls, host),
            self._watch,
            # llama.cpp keeps a thread for every open connection and closes idle ones after five seconds.
            max_connections=min(limits.max_connections, 240) if local else limits.max_connections,
            idle_s=min(limits.idle_s, 4.0) if local else limits.idle_s,
        )
        shown = f"[{host}]" if ":" in host else host
        default_port = port == (443 if secure else 80)
        self._host = (shown if default_port else f"{shown}:{port}").encode(
            "idna" if not shown.isascii() else "ascii"
        )
        self._prefix = url.path.rstrip("/") or "/v1"
        self._local_key = api_key
        self._heads = {api: self._head(api) for api in PATHS}

    def unplug(self) -> None:
        """It is down until ``point_at`` says where it is."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def _head(self, api: Api) -> bytes:
        config = self.config
        lines = [
            f"POST {self._prefix}{PATHS[api]} HTTP/1.1".encode(),
            b"host: " + self._host,
            b"content-type: application/json",
            b"accept-encoding: identity",
            b"user-agent: apportion",
        ]
        secret = self._local_key or (config.api_key.reveal() if config.api_key else None)
        names = {name.lower() for name in config.headers}
        if config.kind == "anthropic":
            if secret is not None and "x-api-key" not in names:
                lines.append(b"x-api-key: " + secret.encode())
            if "anthropic-version" not in names:
                lines.append(b"anthropic-version: " + _ANTHROPIC_VERSION)
        elif secret is not None and "authorization" not in names:
            lines.append(b"authorization: Bearer " + secret.encode())
        lines += [f"{name}: ".encode() + value.reveal().encode() for name, value in config.headers.items()]
        return b"\r\n".join(lines) + b"\r\ncontent-length: "

    def request(self, api: Api, body: bytes, headers: dict[bytes, bytes]) -> bytes:
        """The bytes of a request for ``api``; of the client's ``headers`` only ``FORWARDED`` go along."""
        extra = b""
        if not _FORWARDED.isdisjoint(headers):
            for name in FORWARDED:
                if name in headers:
                    extra += b"\r\n%b: %b" % (name, headers[name])
        return b"%b%d%b\r\n\r\n%b" % (self._heads[api], len(body), extra, body)

    def get(self, path: str) -> bytes:
        """The bytes of a GET for a path outside the API (health, metrics)."""
        secret = self._local_key or (self.config.api_key.reveal() if self.config.api_key else None)
        auth = f"authorization: Bearer {secret}\r\n".encode() if secret else b""
        return b"GET %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (path.encode(), self._host, auth)

    def spoken_for(self, api: Api) -> Api | None:
        """The dialect in which it answers ``api``; None if it cannot."""
        return next((spoken for spoken in SPOKEN_FOR[api] if spoken in self.apis), None)

    @property
    def load(self) -> float | None:
        """Work in flight over capacity, by its own report or by ours; None if the capacity is unknown."""
        waiting = 0 if self.queue is None else self.queue.waiting
        own = (self.in_flight + waiting) / self.slots if self.slots else None
        if self.reported_load is None:
            return own
        return max(self.reported_load, own or 0.0)

    def _circuit_changed(self, state: str) -> None:
        logger.warning("endpoint %s: circuit %s", self.name, state)
        if state == "open" and self.queue is not None:
            self.queue.turn_away(
                TransportFailure("busy", "The endpoint failed while requests waited for it.")
            )

    def available(self, now_s: float) -> bool:
        """Whether a request may go there now."""
        circuit = self.circuit
        return (
            self.pool is not None
            and self.healthy
            and not self.draining
            and (circuit.state == "closed" or circuit.allows(now_s))
            and now_s >= self.rests_until_s
        )

    def retry_in_s(self, now_s: float) -> float:
        """Seconds until it may be tried again, as far as is known."""
        return max(self.circuit.retry_in_s(now_s), self.rests_until_s - now_s, 0.0)

    def close(self) -> None:
        """Out of the configuration: what is under way or waits in its queue finishes."""
        self._retired = True
        self.served()

    def served(self) -> None:
        """A request has left the queue: one that is out of the configuration closes behind the last."""
        queue = self.queue
        if (
            self._retired
            and self.pool is not None
            and (queue is None or not (queue.waiting or queue.running))
        ):
            self.pool.close()


def _queue(config: QueueConfig, slots: int) -> EndpointQueue:
    policy = catalogue.build(config.policy.name, **config.policy.parameters)
    if not isinstance(policy, Policy):
        raise TypeError(f"{config.policy.name} is not a policy")
    return EndpointQueue(
        policy,
        slots=max(1, slots),
        max_waiting=config.max_waiting,
        max_wait_s=config.max_wait_s,
        now=time.perf_counter,
    )


def retry_after_s(exchange: Exchange) -> float | None:
    """What an answer's ``retry-after-ms`` or ``retry-after`` (seconds or a date) asks for."""
    value = exchange.header(b"retry-after-ms")
    try:
        if value is not None:
            return max(0.0, float(value) / 1000)
        value = exchange.header(b"retry-after")
        if value is None:
            return None
        text = value.decode("latin-1").strip()
        try:
            return max(0.0, float(text))
        except ValueError:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def backoff_s(attempt: int, first_s: float, longest_s: float, rng: random.Random) -> float:
    """Full jitter: uniform in [0, min(longest, first * 2^attempt)] (Brooker, AWS Architecture Blog, 2015)."""
    return rng.uniform(0.0, min(longest_s, first_s * 2.0**attempt))
