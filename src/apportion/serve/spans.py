"""The process beside a worker that makes OpenTelemetry spans of what the worker tells it, and exports them.

A request is a SERVER span, a child of the client's ``traceparent`` if it sent one, and every attempt at an
endpoint a CLIENT span below it. Names and attributes follow the OpenTelemetry GenAI semantic conventions
(development) and those of HTTP; what they have no word for is under ``apportion.*``. Tokens are on the attempts
only, where they were used, so that who sums over spans counts them once.

How spans are sampled, batched and sent is the SDK's own, with its standard ``OTEL_*`` variables. This process
reads only as fast as the spans leave it; the worker sees the pipe fill and counts what it must drop.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import BinaryIO, Final

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from apportion.serve.config.schema import Api, Otel
from apportion.serve.errors import StreamBrokenError
from apportion.serve.logs import configure as configure_logs
from apportion.serve.told import Begin, Told, Try, begin, messages

logger = logging.getLogger("apportion.spans")

FLUSH_S: Final = 5.0
"""How long the last spans may take to leave once the worker has closed the pipe."""
_MAX_WAITING: Final = 1536
"""Spans between here and the exporter; below the 2048 at which the SDK begins to drop."""
_OPERATIONS: Final[dict[Api, str]] = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "count_tokens": "count_tokens",
}
_INTEGERS: Final = ("seed", "top_k")

Attributes = dict[str, AttributeValue]


class Outlet(SpanExporter):
    """An exporter that knows how many spans have reached it, and says how many it could not deliver."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.taken = 0
        self.moved = threading.Event()
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        self.moved.set()
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            _say(f"lost {len(spans)}")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Spans:
    """Makes the spans of requests."""

    def __init__(self, provider: TracerProvider, *, content: bool) -> None:
        self.made = 0
        """Spans given to the exporter so far (those that are sampled)."""
        self._tracer = provider.get_tracer("apportion", version("apportion"))
        self._propagator = TraceContextTextMapPropagator()
        self._content = content

    def make(self, told: Told) -> None:
        """The spans of one request."""
        carrier = {}
        if told.traceparent is not None:
            carrier["traceparent"] = told.traceparent.decode("latin-1")
            if told.tracestate is not None:
                carrier["tracestate"] = told.tracestate.decode("latin-1")
        operation = _OPERATIONS[told.api]
        span = self._tracer.start_span(
            f"{operation} {told.model}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, "gen_ai.request.model": told.model},
            start_time=told.began_ns,
        )
        if span.is_recording():
            self._count(span)
            span.set_attributes(_request(told))
            if self._content:
                span.set_attributes(_said(told))
            error = _error(told)
            if error is not None:
                span.set_attribute("error.type", error)
                # A refusal (4xx) and a client that leaves are no errors of the server that this span is of.
                if told.http_status is not None and not 400 <= told.http_status < 500:
                    span.set_status(Status(StatusCode.ERROR))
            context = set_span_in_context(span)
            shared = _asked(told, operation)
            for number, attempt in enumerate(told.tries, 1):
                child = self._tracer.start_span(
                    f"{operation} {attempt.model}",
                    context=context,
                    kind=SpanKind.CLIENT,
                    attributes={**shared, **_attempt(attempt, number)},
                    start_time=attempt.began_ns,
                )
                self._count(child)
                if attempt.failure is not None:
                    child.set_status(Status(StatusCode.ERROR, attempt.failure))
                child.end(attempt.ended_ns)
        span.end(told.ended_ns)

    def _count(self, span: Span) -> None:
        if span.get_span_context().trace_flags.sampled:
            self.made += 1


def _error(told: Told) -> str | None:
    """What went wrong for the client, in one word; None if nothing did."""
    if told.http_status is None:
        return "cancelled"
    if told.http_status >= 400:
        return told.error or str(told.http_status)
    # A stream that broke after its beginning was answered with 200 all the same.
    return StreamBrokenError.code if told.status == "failed" else None


def _request(told: Told) -> Attributes:
    """What is said of a request as a whole."""
    found: dict[str, AttributeValue | None] = {
        "http.request.method": "POST",
        "url.path": told.path,
        "http.response.status_code": told.http_status,
        "apportion.request_id": told.request_id,
        "apportion.decision_id": told.decision_id,
        "apportion.status": told.status,
        "apportion.key": told.key,
        "apportion.tags": told.tags,
        "apportion.effort": told.effort,
        "apportion.priority": told.priority,
        "apportion.attempts": len(told.tries),
        "apportion.overhead_s": told.overhead_s,
    }
    for name, value in told.key_tags.items():
        found[f"apportion.key_tags.{name}"] = value
    if told.tries:
        last = told.tries[-1]
        used = [attempt.usage for attempt in told.tries if attempt.usage is not None]
        if used:
            found["gen_ai.response.model"] = last.model
            found["apportion.input_tokens"] = sum(usage.input_tokens for usage in used)
            found["apportion.output_tokens"] = sum(usage.output_tokens for usage in used)
        found["apportion.endpoint"] = last.endpoint
        found["apportion.cost_usd"] = _usd(told.units)
        found["apportion.cost_mark"] = told.mark
        found["apportion.server_s"] = sum(attempt.server_s for attempt in told.tries)
    return _known(found)


def _asked(told: Told, operation: str) -> Attributes:
    """What every attempt at a request has in common."""
    found: Attributes = {"gen_ai.operation.name": operation, "apportion.decision_id": told.decision_id}
    if told.stream:
        found["gen_ai.request.stream"] = True
    if told.choices != 1:
        found["gen_ai.request.choice.count"] = told.choices
    if told.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = told.max_tokens
    for name, raw in told.settings.items():
        value = msgspec.json.decode(raw)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"gen_ai.request.{name}"] = int(value) if name in _INTEGERS else float(value)
    return found


def _attempt(attempt: Try, number: int) -> Attributes:
    found: dict[str, AttributeValue | None] = {
        "gen_ai.provider.name": attempt.provider,
        "gen_ai.request.model": attempt.model,
        "gen_ai.response.time_to_first_chunk": attempt.first_chunk_s,
        "server.address": attempt.address,
        "server.port": attempt.port,
        "http.response.status_code": attempt.http_status or None,
        "apportion.endpoint": attempt.endpoint,
        "apportion.attempt": number,
        "apportion.cost_usd": _usd(attempt.units),
        "apportion.server_s": attempt.server_s,
    }
    if attempt.failure is not None:
        kind, _, rest = attempt.failure.partition(" ")
        found["error.type"] = rest if kind == "status" else kind
    if attempt.finish is not None:
        found["gen_ai.response.finish_reasons"] = (attempt.finish,)
    usage = attempt.usage
    if usage is not None:
        found["gen_ai.usage.input_tokens"] = usage.input_tokens
        found["gen_ai.usage.output_tokens"] = usage.output_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens or None
        written = usage.cache_write_tokens + usage.cache_write_1h_tokens
        found["gen_ai.usage.cache_creation.input_tokens"] = written or None
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens or None
        found["apportion.usage_mark"] = "estimated" if usage.estimated else "measured"
    return _known(found)


def _known(found: dict[str, AttributeValue | None]) -> Attributes:
    return {name: value for name, value in found.items() if value is not None}


def _said(told: Told) -> Attributes:
    """Contents, where they are traced."""
    from apportion.serve import transcript

    found: Attributes = {}
    system, asked = transcript.asked(told.api, told.asked) if told.asked is not None else ([], [])
    answered = transcript.answered(told.api, told.answered, stream=told.stream) if told.answered else []
    shortened = told.asked is None
    for name, said in (
        ("gen_ai.system_instructions", system),
        ("gen_ai.input.messages", asked),
        ("gen_ai.output.messages", answered),
    ):
        if said:
            found[name], cut = transcript.attribute(said)
            shortened |= cut
    if shortened:
        found["apportion.content_shortened"] = True
    return found


def _usd(units: int | None) -> float | None:
    return None if units is None else units / 1e12


def _say(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass  # the worker has gone


def otlp_exporter(otel: Otel) -> SpanExporter:
    """The exporter to ``otel.endpoint``, else to where the ``OTEL_EXPORTER_OTLP_*`` variables say."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = otel.endpoint
    if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/traces"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    return OTLPSpanExporter(endpoint=endpoint)


def follow(pipe: BinaryIO, first: Begin, exporter: SpanExporter) -> TracerProvider:
    """Make spans of all that comes on ``pipe``; returns at its end, with the last spans still on their way."""
    outlet = Outlet(exporter)
    resource = Resource.create(
        {
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before these.
            **({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "apportion"}),
            "service.version": version("apportion"),
            "apportion.worker": first.worker,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(outlet))
    spans = Spans(provider, content=first.otel.content)
    for told in messages(pipe):
        try:
            spans.make(told)
        except Exception:
            logger.exception("%s: fault while making spans", told.request_id)
        while spans.made - outlet.taken > _MAX_WAITING:
            outlet.moved.clear()
            outlet.moved.wait(0.1)
    return provider


def main() -> None:
    """Run until the worker closes the pipe."""
    # A terminal, or who stops the proxy, may signal every process of it; the end of the pipe is what counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    pipe = sys.stdin.buffer
    first = begin(pipe)
    if first is None:
        return
    configure_logs(first.log)
    # The SDK's own complaints (a collector that is down) belong in the same log.
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers[:] = logging.getLogger("apportion").handlers
    sdk.propagate = False
    provider = follow(pipe, first, otlp_exporter(first.otel))
    last = threading.Thread(target=provider.shutdown, daemon=True)
    last.start()
    last.join(FLUSH_S)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
