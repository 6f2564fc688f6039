"""Traces: what became of a request is told, once it is over, to a process beside the worker that makes spans of it.

The OpenTelemetry SDK needs a few hundred microseconds of Python for the spans of one request, and while it
encodes a batch nothing else runs in its interpreter. So the worker only writes down what it knows anyway, in
one message of a few hundred bytes, and ``apportion.serve.spans`` does the rest in a process of its own. A
collector that is slow or dead is felt there: the pipe between the two fills, and what no longer fits is counted
and dropped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from apportion.core.errors import ApportionError
from apportion.serve.config.schema import Log, Otel
from apportion.serve.http.server import Application, Request, Responder
from apportion.serve.job import Job
from apportion.serve.meters import Meters
from apportion.serve.records import Attempt, cost
from apportion.serve.told import Begin, Told, Try, frame

logger = logging.getLogger("apportion.tracing")

MAX_CONTENT_BYTES: Final = 2**20
"""Most that is kept of a request's body and of its answer, each, where content is traced."""
_MAX_WAITING_BYTES: Final = 8 * 2**20
"""Most that may wait for the process beside us; what comes then is dropped."""
_RESTART_S: Final = (1.0, 5.0, 30.0)
_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_SETTINGS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
)
"""Fields of a request that are told as they are: numbers, never content."""

_HOSTS: Final = (
    ("openai.com", "openai"),
    ("openai.azure.com", "azure.ai.openai"),
    ("azure.com", "azure.ai.inference"),
    ("anthropic.com", "anthropic"),
    ("amazonaws.com", "aws.bedrock"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("googleapis.com", "gcp.vertex_ai"),
    ("cohere.com", "cohere"),
    ("cohere.ai", "cohere"),
    ("deepseek.com", "deepseek"),
    ("groq.com", "groq"),
    ("mistral.ai", "mistral_ai"),
    ("perplexity.ai", "perplexity"),
    ("x.ai", "x_ai"),
    ("ml.cloud.ibm.com", "ibm.watsonx.ai"),
)
"""Well-known values of ``gen_ai.provider.name`` by the end of the host name, the longer end first."""


class TracingError(ApportionError):
    """Traces are asked for and cannot be made."""

    code = "tracing"


def require(otel: Otel) -> None:
    """Raise ``TracingError`` if traces are asked for and the packages are not installed."""
    if not otel.enabled:
        return
    for package in _PACKAGES:
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise TracingError(
                f"'otel.enabled' is true and the package of {package!r} is not installed.",
                field="otel.enabled",
                fix="pip install 'apportion[otel]'",
            )


@lru_cache(maxsize=1024)
def provider_of(kind: str, base_url: str | None) -> str:
    """``gen_ai.provider.name`` of an endpoint: whose it is by its address, else whose format it speaks."""
    if kind in ("local", "replay"):
        return f"apportion-{kind}"
    host = (urlsplit(base_url).hostname or "") if base_url else ""
    return next((name for end, name in _HOSTS if host == end or host.endswith("." + end)), kind)


class Tracer:
    """The traces of one worker."""

    @classmethod
    def of(cls, otel: Otel, log: Log, meters: Meters, worker: int) -> Tracer | None:
        """None where traces are not asked for. Raises ``TracingError`` if they cannot be made."""
        require(otel)
        return cls(otel, log, meters, worker) if otel.enabled else None

    def __init__(self, otel: Otel, log: Log, meters: Meters, worker: int) -> None:
        self.content = otel.content
        self._begin = Begin(otel, log, worker)
        self._meters = meters
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: asyncio.WriteTransport | None = None
        self._keeper: asyncio.Task[None] | None = None

    def application(self, application: Application) -> Application:
        """``application``, listened to where content is traced."""
        if not self.content:
            return application

        async def listened(request: Request, responder: Responder) -> None:
            await application(request, Listener(responder))

        return listened

    async def start(self) -> None:
        """Start the process; what is told before it is ready waits for it."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "apportion.serve.spans",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        self._pipe = process.stdin.transport
        self._pipe.write(frame(self._begin))

    async def _keep(self) -> None:
        """Count what the process says it lost; start another when it dies."""
        failures = 0
        while True:
            process = self._process
            assert process is not None  # noqa: S101 - it was started
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            async for line in process.stdout:
                if line.startswith(b"lost "):
                    self._meters.spans_lost.at("collector").add(float(line[5:]))
                else:
                    failures = 0
            code = await process.wait()
            self._pipe = None
            wait_s = _RESTART_S[min(failures, len(_RESTART_S) - 1)]
            failures += 1
            logger.error("the process that makes spans ended with code %s; restarted in %g s", code, wait_s)
            await asyncio.sleep(wait_s)
            try:
                await self._spawn()
            except OSError as error:
                logger.error("the process that makes spans cannot be started: %s", error)

    async def close(self, timeout_s: float) -> None:
        """Send what is still waiting, for at most ``timeout_s``."""
        if self._keeper is not None:
            self._keeper.cancel()
        process, pipe = self._process, self._pipe
        self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            logger.warning("spans were lost: the collector did not take them within %g s", timeout_s)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def finished(self, job: Job) -> None:
        """Tell of a request that is over and settled. Never raises."""
        pipe = self._pipe
        if pipe is None or pipe.is_closing() or pipe.get_write_buffer_size() > _MAX_WAITING_BYTES:
            self._drop(job)
            return
        try:
            pipe.write(frame(self._told(job)))
        except Exception:
            # The request has been answered; a fault in telling of it must not reach what is settled after it.
            logger.exception("%s: fault while tracing", job.request_id)
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._meters.spans_lost.at("queue").add(1.0 + len(job.attempts))

    def _told(self, job: Job) -> Told:
        call, key, constraints = job.call, job.key, job.call.constraints
        request, fields = call.request, call.fields
        zero_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        http_status = None
        if job.done is not None:
            http_status, duration_s = job.done
            ended_s = job.started_s + duration_s
        else:
            ended_s = job.attempts[-1].ended_s if job.attempts else job.started_s
        units, mark = cost(job.attempts)
        asked = answered = None
        if self.content:
            asked = request.body if len(request.body) <= MAX_CONTENT_BYTES else None
            answered = job.responder.heard() if isinstance(job.responder, Listener) else None
        return Told(
            request.headers.get(b"traceparent"),
            request.headers.get(b"tracestate"),
            zero_ns + int(job.started_s * 1e9),
            zero_ns + int(ended_s * 1e9),
            request.path,
            call.api,
            http_status,
            job.status,
            job.error,
            job.request_id,
            job.id,
            key.name,
            key.tags,
            job.group.name,
            [_try(job, attempt, zero_ns) for attempt in job.attempts],
            call.stream,
            call.n,
            call.max_output_tokens,
            {name: bytes(fields[name]) for name in _SETTINGS if name in fields},
            constraints.effort,
            constraints.priority,
            constraints.tags,
            units,
            mark,
            job.overhead_s,
            asked,
            answered,
        )


def _try(job: Job, attempt: Attempt, zero_ns: int) -> Try:
    endpoint = job.runtime.endpoints[attempt.endpoint]
    config, pool, usage = endpoint.config, endpoint.pool, attempt.usage
    target = pool.target if pool is not None else None
    return Try(
        attempt.endpoint,
        provider_of(config.kind, config.base_url),
        target.host if target is not None else None,
        target.port if target is not None else None,
        attempt.model,
        zero_ns + int(attempt.started_s * 1e9),
        zero_ns + int(attempt.ended_s * 1e9),
        attempt.http_status,
        attempt.failure,
        attempt.finish,
        usage,
        attempt.units,
        attempt.server_s,
        attempt.first_chunk_s,
    )


class Listener(Responder):
    """A responder that remembers the beginning of what it sends. Only where content is traced."""

    __slots__ = ("_heard", "_heard_bytes", "_inner")

    def __init__(self, inner: Responder) -> None:
        self._inner = inner
        self._heard: list[bytes] = []
        self._heard_bytes = 0

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self._hear(body)
        self._inner.send(status, headers, body)

    def start(self, status: int, headers: bytes, first: bytes = b"") -> None:
        self._hear(first)
        self._inner.start(status, headers, first)

    def write(self, data: bytes) -> None:
        self._hear(data)
        self._inner.write(data)

    def finish(self, data: bytes = b"") -> None:
        self._hear(data)
        self._inner.finish(data)

    def abort(self) -> None:
        self._inner.abort()

    def _hear(self, data: bytes) -> None:
        if data and self._heard_bytes < MAX_CONTENT_BYTES:
            self._heard.append(data)
            self._heard_bytes += len(data)

    def heard(self) -> bytes:
        """What was sent, without its head, up to ``MAX_CONTENT_BYTES``."""
        return b"".join(self._heard)[:MAX_CONTENT_BYTES]

    @property
    def started(self) -> bool:
        return self._inner.started

    @started.setter
    def started(self, value: bool) -> None:
        self._inner.started = value

    @property
    def on_gone(self) -> Callable[[], None] | None:
        return self._inner.on_gone

    @on_gone.setter
    def on_gone(self, value: Callable[[], None] | None) -> None:
        self._inner.on_gone = value

    @property
    def on_pause(self) -> Callable[[], None] | None:
        return self._inner.on_pause

    @on_pause.setter
    def on_pause(self, value: Callable[[], None] | None) -> None:
        self._inner.on_pause = value

    @property
    def on_drain(self) -> Callable[[], None] | None:
        return self._inner.on_drain

    @on_drain.setter
    def on_drain(self, value: Callable[[], None] | None) -> None:
        self._inner.on_drain = value

    @property
    def gone(self) -> bool:
        return self._inner.gone

    @property
    def paused(self) -> bool:
        return self._inner.paused
