"""Traces: spans by the conventions, made beside the worker, delivered to a collector or counted as lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("opentelemetry.sdk", reason="needs the extra 'otel'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, http_attributes, url_attributes
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode

from apportion.measure.usage import Usage
from apportion.serve import told as messages
from apportion.serve import tracing, transcript
from apportion.serve.config.schema import Log, Otel
from apportion.serve.spans import Spans
from apportion.serve.told import Begin, Told, Try
from servers import free_port

Json = dict[str, Any]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
CONVENTIONS = {
    value
    for module in (
        gen_ai_attributes,
        http_attributes,
        url_attributes,
        error_attributes,
        server_attributes,
    )
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}
DEPRECATED = {"gen_ai.system", "gen_ai.prompt", "gen_ai.completion", "gen_ai.usage.prompt_tokens"}
SECRETS = {"KEY_ALICE": "sk-alice-SECRET-0f9a", "UPSTREAM_KEY": "up-key-SECRET-77c1"}
SAID = "The-content-of-the-question"
ANSWERED = "The-content-of-the-answer"


# --- spans of what is told ------------------------------------------------------------------------


def attempt(**fields: Any) -> Try:
    values: Json = {
        "endpoint": "east",
        "provider": "openai",
        "address": "api.openai.com",
        "port": 443,
        "model": "gpt-4o",
        "began_ns": 1_200,
        "ended_ns": 1_800,
        "http_status": 200,
        "failure": None,
        "finish": "stop",
        "usage": Usage(input_tokens=12, output_tokens=34),
        "units": 5_000_000_000,
        "server_s": 0.5,
        "first_chunk_s": None,
        **fields,
    }
    return Try(**values)


def request(*tries: Try, **fields: Any) -> Told:
    values: Json = {
        "traceparent": None,
        "tracestate": None,
        "began_ns": 1_000,
        "ended_ns": 2_000,
        "path": "/v1/chat/completions",
        "api": "chat",
        "http_status": 200,
        "status": "ok",
        "error": None,
        "request_id": "req_1",
        "decision_id": "dec_1",
        "key": "alice",
        "key_tags": {"team": "red"},
        "model": "smart",
        "tries": list(tries),
        "stream": False,
        "choices": 1,
        "max_tokens": None,
        "settings": {},
        "effort": None,
        "priority": None,
        "tags": None,
        "units": 5_000_000_000,
        "mark": "measured",
        "overhead_s": 0.0002,
        **fields,
    }
    return Told(**values)


def spans_of(told: Told, *, content: bool = False) -> list[ReadableSpan]:
    """The request's span, then those of the attempts."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider, content=content)
    spans.make(told)
    found = list(exporter.get_finished_spans())
    assert spans.made == len(found)
    for span in found:
        foreign = {name for name in span.attributes or {} if not name.startswith("apportion.")}
        assert foreign <= CONVENTIONS - DEPRECATED
    return [found[-1], *found[:-1]]


def at(span: ReadableSpan, name: str) -> Any:
    assert span.attributes is not None
    return span.attributes.get(name)


def test_a_request_and_its_attempt() -> None:
    server, client = spans_of(
        request(attempt(), max_tokens=100, tags=["a", "b"], settings={"temperature": b"0.5", "seed": b"7"})
    )
    assert (server.name, server.kind) == ("chat smart", SpanKind.SERVER)
    assert (client.name, client.kind) == ("chat gpt-4o", SpanKind.CLIENT)
    assert server.parent is None
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    assert (server.start_time, server.end_time) == (1_000, 2_000)
    assert (client.start_time, client.end_time) == (1_200, 1_800)
    assert dict(client.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34,
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "apportion.attempt": 1,
        "apportion.decision_id": "dec_1",
        "apportion.endpoint": "east",
        "apportion.cost_usd": 0.005,
        "apportion.server_s": 0.5,
        "apportion.usage_mark": "measured",
    }
    assert dict(server.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "smart",
        "gen_ai.response.model": "gpt-4o",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "apportion.request_id": "req_1",
        "apportion.decision_id": "dec_1",
        "apportion.status": "ok",
        "apportion.key": "alice",
        "apportion.key_tags.team": "red",
        "apportion.tags": ("a", "b"),
        "apportion.attempts": 1,
        "apportion.endpoint": "east",
        "apportion.input_tokens": 12,
        "apportion.output_tokens": 34,
        "apportion.cost_usd": 0.005,
        "apportion.cost_mark": "measured",
        "apportion.overhead_s": 0.0002,
        "apportion.server_s": 0.5,
    }


def test_tokens_are_counted_once() -> None:
    server, client = spans_of(request(attempt()))
    assert not [name for name in server.attributes or {} if name.startswith("gen_ai.usage")]
    assert at(client, "gen_ai.usage.output_tokens") == 34


def test_parts_of_the_usage_and_the_first_chunk() -> None:
    usage = Usage(
        input_tokens=100,
        output_tokens=50,
        cached_input_tokens=40,
        cache_write_tokens=5,
        cache_write_1h_tokens=6,
        reasoning_tokens=30,
        estimated=True,
    )
    _, client = spans_of(request(attempt(usage=usage, first_chunk_s=0.25), stream=True))
    assert at(client, "gen_ai.usage.cache_read.input_tokens") == 40
    assert at(client, "gen_ai.usage.cache_creation.input_tokens") == 11
    assert at(client, "gen_ai.usage.reasoning.output_tokens") == 30
    assert at(client, "gen_ai.response.time_to_first_chunk") == 0.25
    assert at(client, "gen_ai.request.stream") is True
    assert at(client, "apportion.usage_mark") == "estimated"


@pytest.mark.parametrize(
    ("api", "operation"),
    [
        ("chat", "chat"),
        ("messages", "chat"),
        ("responses", "chat"),
        ("completions", "text_completion"),
        ("embeddings", "embeddings"),
    ],
)
def test_operations(api: str, operation: str) -> None:
    server, client = spans_of(request(attempt(), api=api))
    assert (server.name, client.name) == (f"{operation} smart", f"{operation} gpt-4o")
    assert at(server, "gen_ai.operation.name") == at(client, "gen_ai.operation.name") == operation
    known = {value.value for value in gen_ai_attributes.GenAiOperationNameValues}
    assert operation in known


def test_the_clients_trace_goes_on() -> None:
    server, client = spans_of(
        request(attempt(), traceparent=TRACEPARENT.encode(), tracestate=b"vendor=value")
    )
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == PARENT_ID
    assert f"{server.context.trace_id:032x}" == f"{client.context.trace_id:032x}" == TRACE_ID
    assert server.context.trace_state.get("vendor") == "value"


@pytest.mark.parametrize(
    "parent", [b"", b"00-0-0-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"]
)
def test_a_bad_traceparent_begins_a_new_trace(parent: bytes) -> None:
    server, _ = spans_of(request(attempt(), traceparent=parent))
    assert server.parent is None
    assert server.context.trace_id


def test_what_the_client_does_not_sample_is_not_made() -> None:
    parent = f"00-{TRACE_ID}-{PARENT_ID}-00".encode()
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider, content=True)
    spans.make(request(attempt(), traceparent=parent))
    assert (spans.made, exporter.get_finished_spans()) == (0, ())
    none = Spans(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False), content=True)
    none.make(request(attempt()))
    assert none.made == 0


def test_retries_are_spans_of_their_own() -> None:
    failed = attempt(endpoint="west", failure="status 503", http_status=503, usage=None, finish=None, units=0)
    late = attempt(endpoint="north", failure="timeout first_token", http_status=0, usage=None, finish=None)
    server, first, second, third = spans_of(request(failed, late, attempt()))
    assert [at(s, "apportion.attempt") for s in (first, second, third)] == [1, 2, 3]
    assert [at(s, "apportion.endpoint") for s in (first, second, third)] == ["west", "north", "east"]
    assert [at(s, "error.type") for s in (first, second, third)] == ["503", "timeout", None]
    assert [s.status.status_code for s in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert first.status.description == "status 503"
    assert at(first, "gen_ai.usage.input_tokens") is None
    assert at(second, "http.response.status_code") is None
    assert at(server, "apportion.attempts") == 3
    assert at(server, "error.type") is None
    assert server.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("fields", "error", "status"),
    [
        ({"http_status": 402, "status": "refused", "error": "budget_exceeded"}, "budget_exceeded", "UNSET"),
        ({"http_status": 504, "status": "failed", "error": "upstream_timeout"}, "upstream_timeout", "ERROR"),
        ({"http_status": 429, "status": "failed"}, "429", "UNSET"),
        ({"http_status": 200, "status": "failed"}, "stream_broken", "ERROR"),
        ({"http_status": None, "status": "cancelled"}, "cancelled", "UNSET"),
    ],
)
def test_errors(fields: Json, error: str, status: str) -> None:
    (server,) = spans_of(request(**fields))
    assert at(server, "error.type") == error
    assert server.status.status_code.name == status


def test_messages_survive_the_pipe(tmp_path: Path) -> None:
    begin = Begin(Otel(enabled=True, endpoint="http://x", content=True), Log(), 3)
    told = request(attempt(), attempt(usage=None), settings={"seed": b"1"}, asked=b"{}", answered=b"\xff")
    path = tmp_path / "pipe"
    path.write_bytes(messages.frame(begin) + messages.frame(told) + messages.frame(told)[:-1])
    with path.open("rb") as pipe:
        assert messages.begin(pipe) == begin
        assert list(messages.messages(pipe)) == [told]  # what was cut in the middle is not read


# --- contents -------------------------------------------------------------------------------------


def text(content: str) -> Json:
    return {"type": "text", "content": content}


def test_contents_only_where_they_are_asked_for() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": SAID}]}).encode()
    answer = {"choices": [{"message": {"role": "assistant", "content": ANSWERED}, "finish_reason": "stop"}]}
    told = request(attempt(), asked=body, answered=json.dumps(answer).encode())
    for span in spans_of(told):
        assert SAID not in str(span.attributes)
    server, client = spans_of(told, content=True)
    assert json.loads(at(server, "gen_ai.input.messages")) == [{"role": "user", "parts": [text(SAID)]}]
    assert json.loads(at(server, "gen_ai.output.messages")) == [
        {"role": "assistant", "parts": [text(ANSWERED)], "finish_reason": "stop"}
    ]
    assert SAID not in str(client.attributes)


def test_transcript_of_chat() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]
    }
    called = {"type": "tool_call", "id": "c1", "name": "f", "arguments": {"x": 1}}
    assert transcript.asked("chat", json.dumps(body).encode()) == (
        [],
        [
            {"role": "system", "parts": [text("Be brief.")]},
            {"role": "user", "parts": [text("See"), {"type": "image_url"}]},
            {"role": "assistant", "parts": [called]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "2"}]},
        ],
    )
    answer = {
        "choices": [{"message": {"content": "Hi", "tool_calls": [call]}, "finish_reason": "tool_calls"}]
    }
    assert transcript.answered("chat", json.dumps(answer).encode(), stream=False) == [
        {"role": "assistant", "parts": [text("Hi"), called], "finish_reason": "tool_calls"}
    ]


def test_transcript_of_messages() -> None:
    body = {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "2"}]}
                ],
            },
        ],
    }
    system, asked = transcript.asked("messages", json.dumps(body).encode())
    assert system == [text("Be brief.")]
    assert [m["parts"][0]["type"] for m in asked] == ["text", "tool_call", "tool_call_response"]
    assert asked[2]["parts"][0]["response"] == "2"
    answer = {
        "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
    }
    assert transcript.answered("messages", json.dumps(answer).encode(), stream=False) == [
        {
            "role": "assistant",
            "parts": [{"type": "reasoning", "content": "Hm"}, text("Hi")],
            "finish_reason": "end_turn",
        }
    ]


def test_transcript_of_responses() -> None:
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
        ],
    }
    system, asked = transcript.asked("responses", json.dumps(body).encode())
    assert system == [text("Be brief.")]
    assert [m["role"] for m in asked] == ["user", "assistant", "tool"]
    assert transcript.asked("responses", b'{"input":"Hello"}')[1] == [
        {"role": "user", "parts": [text("Hello")]}
    ]
    answer = {
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        ],
    }
    (said,) = transcript.answered("responses", json.dumps(answer).encode(), stream=False)
    assert [part["content"] for part in said["parts"]] == ["Hm", "Hi"]
    assert said["finish_reason"] == "completed"


def test_transcript_of_completions_and_of_embeddings() -> None:
    assert transcript.asked("completions", b'{"prompt":["a","b"]}')[1] == [
        {"role": "user", "parts": [text("a"), text("b")]}
    ]
    assert transcript.answered(
        "completions", b'{"choices":[{"text":"c","finish_reason":"length"}]}', stream=False
    ) == [{"role": "assistant", "parts": [text("c")], "finish_reason": "length"}]
    assert transcript.asked("embeddings", b'{"input":"a"}') == ([], [])
    assert transcript.answered("embeddings", b'{"data":[]}', stream=False) == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b'{"messages":3}', b'{"messages":[3,null,{}]}', b"null"]
)
@pytest.mark.parametrize(
    "api", ["chat", "messages", "responses", "completions", "embeddings", "count_tokens"]
)
def test_a_transcript_survives_anything(api: Any, body: bytes) -> None:
    system, asked = transcript.asked(api, body)
    transcript.attribute(system)
    transcript.attribute(asked)
    for stream in (False, True):
        transcript.attribute(transcript.answered(api, body, stream=stream))


def test_contents_are_bounded() -> None:
    many = [{"role": "user", "parts": [text(f"{n} " + "é" * 50_000)]} for n in range(100)]
    kept, cut = transcript.attribute(many)
    assert cut
    assert len(kept.encode()) <= transcript.MAX_BYTES
    texts = [message["parts"][0]["content"] for message in json.loads(kept)]
    assert texts[-1].startswith("99 ")  # the oldest went
    assert texts[-1].endswith("…")
    big = [
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": ["x" * 100_000]}]}
    ]
    kept, cut = transcript.attribute(big)
    assert cut
    assert len(kept) < 10_000
    assert transcript.attribute([text("short")]) == ('[{"type":"text","content":"short"}]', False)


def test_a_body_that_is_too_long_is_left_out_and_that_is_said() -> None:
    server, _ = spans_of(request(attempt(), asked=None, answered=None), content=True)
    assert at(server, "apportion.content_shortened") is True


# --- the worker's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "base_url", "provider"),
    [
        ("openai", "https://api.openai.com/v1", "openai"),
        ("openai", "http://10.0.0.7:8000/v1", "openai"),
        ("openai", "https://mine.openai.azure.com/v1", "azure.ai.openai"),
        ("openai", "https://mine.services.ai.azure.com/v1", "azure.ai.inference"),
        ("openai", "https://api.groq.com/openai/v1", "groq"),
        ("openai", "https://api.x.ai/v1", "x_ai"),
        ("openai", "https://notx.ai/v1", "openai"),
        ("openai", "https://generativelanguage.googleapis.com/v1beta/openai", "gcp.gemini"),
        ("openai", "https://us-central1-aiplatform.googleapis.com/v1", "gcp.vertex_ai"),
        ("anthropic", None, "anthropic"),
        ("anthropic", "http://proxy.local/v1", "anthropic"),
        ("local", None, "apportion-local"),
        ("replay", None, "apportion-replay"),
    ],
)
def test_providers(kind: str, base_url: str | None, provider: str) -> None:
    assert tracing.provider_of(kind, base_url) == provider
    if not provider.startswith("apportion"):
        assert provider in {value.value for value in gen_ai_attributes.GenAiProviderNameValues}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)
    tracing.require(Otel())
    with pytest.raises(tracing.TracingError, match=r"pip install 'apportion\[otel\]'") as raised:
        tracing.require(Otel(enabled=True))
    assert raised.value.field == "otel.enabled"


def test_the_worker_never_imports_opentelemetry() -> None:
    code = (
        "import sys, apportion.serve.worker, apportion.serve.supervisor, apportion.cli.app\n"
        "from apportion.serve import tracing\n"
        "from apportion.serve.config.schema import Otel\n"
        "tracing.require(Otel())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'google', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a proxy, an upstream and a collector ---------------------------------------------------------


class Http:
    """A small HTTP server in a thread; ``answer(handler, body)`` answers a POST."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                answer(self, self.rfile.read(int(self.headers["content-length"])))

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(v) for v in value.array_value.values]
    return getattr(value, kind) if kind else None


class Collector(Http):
    """What an OTLP/HTTP collector is, kept in memory."""

    def __init__(self) -> None:
        self.raw = b""
        self.paths: set[str] = set()
        self.spans: list[tuple[Json, trace_pb2.Span]] = []
        self.arrived = threading.Condition()
        super().__init__(self._answer)

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        batch = ExportTraceServiceRequest.FromString(body)
        with self.arrived:
            self.raw += body
            self.paths.add(handler.path)
            for group in batch.resource_spans:
                resource = {a.key: plain(a.value) for a in group.resource.attributes}
                self.spans += [(resource, span) for scope in group.scope_spans for span in scope.spans]
            self.arrived.notify_all()
        content = ExportTraceServiceResponse().SerializeToString()
        handler.send_response(200)
        handler.send_header("content-type", "application/x-protobuf")
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def of(self, request_id: str, within_s: float = 120.0) -> list[tuple[Json, trace_pb2.Span]]:
        """The spans of one request, its own first, the attempts in order; waits for them."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: self._of(request_id), within_s):
                raise AssertionError(f"no spans of {request_id}; there are {len(self.spans)}")
            return self._of(request_id)

    def _of(self, request_id: str) -> list[tuple[Json, trace_pb2.Span]]:
        server = next(
            (s for _, s in self.spans if attributes(s).get("apportion.request_id") == request_id), None
        )
        if server is None:
            return []
        children = [(r, s) for r, s in self.spans if s.parent_span_id == server.span_id]
        found = [(r, s) for r, s in self.spans if s is server]
        if len(children) < attributes(server)["apportion.attempts"]:
            return []
        return found + sorted(children, key=lambda pair: attributes(pair[1])["apportion.attempt"])


def attributes(span: trace_pb2.Span) -> Json:
    return {a.key: plain(a.value) for a in span.attributes}


USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def upstream_answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """``/NAME/v1/...``: "down" answers 503, "cut" breaks its stream off, "hang" never goes on, others answer."""
    name = handler.path.split("/")[1]
    asked = json.loads(body)
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": asked["model"]}
    if name == "down":
        content = b'{"error":{"message":"down","type":"server_error"}}'
        handler.send_response(503)
    elif asked.get("stream"):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.close_connection = True
        deltas = [{"content": part} for part in (ANSWERED[:5], ANSWERED[5:])]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
            handler.wfile.write(b"data: %b\n\n" % json.dumps(chunk).encode())
            handler.wfile.flush()
        if name == "cut":
            return
        if name == "hang":
            handler.rfile.read(1)
            return
        last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        handler.wfile.write(b"data: %b\n\n" % json.dumps(last).encode())
        handler.wfile.write(b"data: %b\n\n" % json.dumps({**head, "choices": [], "usage": USAGE}).encode())
        handler.wfile.write(b"data: [DONE]\n\n")
        return
    else:
        message = {"role": "assistant", "content": ANSWERED}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        content = json.dumps({**head, "choices": [choice], "usage": USAGE}).encode()
        handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


class Proxy:
    """The proxy as a process, with traces on."""

    def __init__(self, directory: Path, upstream: str, otel: Json, *, workers: int = 1, **env: str) -> None:
        def endpoint(name: str) -> Json:
            return {
                "kind": "openai",
                "base_url": f"{upstream}/{name}/v1",
                "api_key": "${UPSTREAM_KEY}",
                "model": f"{name}-model",
                "price": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0},
                "breaker": {"failures": 1_000_000},
            }

        names = ("good", "down", "cut", "hang")
        models: Json = {name: {"endpoints": [name], "retries": {"attempts": 1}} for name in names}
        models["both"] = {
            "endpoints": [{"endpoint": "down", "weight": 1}, {"endpoint": "good", "weight": 0}],
            "policy": "route/round_robin",
            "retries": {"attempts": 2, "backoff_s": 0.01},
        }
        config = {
            "listen": {"port": 0, "workers": workers, "drain_s": 60},
            "keys": [{"name": "alice", "secret": "${KEY_ALICE}", "tags": {"team": "red"}}],
            "endpoints": {name: endpoint(name) for name in names},
            "models": models,
            "otel": {"enabled": True, **otel},
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "apportion.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / "log"
        command = [
            sys.executable,
            "-m",
            "apportion.cli",
            "serve",
            "--config",
            str(directory / "apportion.yaml"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith(("OTEL", "APPORTION"))},
                    **SECRETS,
                    "HOME": str(directory),
                    "OTEL_BSP_SCHEDULE_DELAY": "100",
                    **env,
                },
            )
        until_s = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=120):
                    return
            except OSError:
                if time.monotonic() > until_s or self.process.poll() is not None:
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError(self.log.read_text()) from None
                time.sleep(0.05)

    def ask(self, model: str, *, stream: bool = False, **headers: str) -> tuple[int, str, bytes]:
        """Status, request id and body of one chat completion."""
        body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": SAID}]}
        asked = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps({**body, "stream": stream}).encode(),
            {
                "content-type": "application/json",
                "authorization": f"Bearer {SECRETS['KEY_ALICE']}",
                **headers,
            },
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, answer.headers["x-request-id"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["x-request-id"], error.read()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def stop(self, within_s: float = 120.0) -> None:
        """SIGTERM; it ends well, and nothing may be left."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(within_s) == 0, self.log.read_text()
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        log = self.log.read_text()
        assert "Traceback" not in log, log
        for secret in SECRETS.values():
            assert secret not in log


@pytest.fixture(scope="module")
def upstream() -> Iterator[Http]:
    server = Http(upstream_answer)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy(upstream: Http, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = Proxy(
        tmp_path_factory.mktemp("proxy"), upstream.url, {"endpoint": collector.url}, OTEL_SERVICE_NAME="here"
    )
    yield running
    running.stop()
    for secret in (*SECRETS.values(), SAID, ANSWERED, "Bearer"):
        assert secret.encode() not in collector.raw


def test_a_request_reaches_the_collector(proxy: Proxy, collector: Collector, upstream: Http) -> None:
    before_ns = time.time_ns()
    status, id, _ = proxy.ask("good", traceparent=TRACEPARENT, tracestate="v=1")
    after_ns = time.time_ns()
    assert status == 200
    (resource, server), (_, client) = collector.of(id)
    assert resource["service.name"] == "here"
    assert (resource["apportion.worker"], server.kind, client.kind) == (0, server.SPAN_KIND_SERVER, 3)
    assert server.trace_id.hex() == client.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == PARENT_ID
    assert (server.name, client.name) == ("chat good", "chat good-model")
    slack_ns = 50_000_000
    assert before_ns - slack_ns <= server.start_time_unix_nano <= client.start_time_unix_nano
    assert client.start_time_unix_nano < client.end_time_unix_nano <= server.end_time_unix_nano
    assert server.end_time_unix_nano <= after_ns + slack_ns
    said = attributes(client)
    assert said["gen_ai.usage.input_tokens"] == 11
    assert said["gen_ai.usage.output_tokens"] == 7
    assert said["gen_ai.usage.cache_read.input_tokens"] == 3
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert said["gen_ai.request.max_tokens"] == 50
    assert said["gen_ai.provider.name"] == "openai"
    assert said["server.address"] == "127.0.0.1"
    assert said["server.port"] == int(upstream.url.rpartition(":")[2])
    whole = attributes(server)
    assert whole["apportion.key"] == "alice"
    assert whole["apportion.key_tags.team"] == "red"
    assert whole["apportion.cost_usd"] == pytest.approx(11e-6 + 14e-6)
    assert whole["apportion.cost_mark"] == "measured"
    assert whole["apportion.decision_id"] == id.replace("req_", "dec_")
    assert collector.paths == {"/v1/traces"}


def test_a_stream_tells_its_first_chunk(proxy: Proxy, collector: Collector) -> None:
    begun_s = time.monotonic()
    _, id, _ = proxy.ask("good", stream=True)
    took_s = time.monotonic() - begun_s
    (_, _), (_, client) = collector.of(id)
    said = attributes(client)
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < took_s
    assert said["gen_ai.request.stream"] is True
    assert said["gen_ai.usage.output_tokens"] == 7


def test_a_fail_over_is_two_attempts(proxy: Proxy, collector: Collector) -> None:
    both = [collector.of(proxy.ask("both")[1]) for _ in range(2)]
    (_, server), (_, first), (_, second) = next(spans for spans in both if len(spans) == 3)
    assert attributes(first)["error.type"] == "503"
    assert first.status.code == first.status.STATUS_CODE_ERROR
    assert attributes(first)["apportion.endpoint"] == "down"
    assert attributes(second)["apportion.endpoint"] == "good"
    assert first.end_time_unix_nano <= second.start_time_unix_nano
    assert server.status.code == server.status.STATUS_CODE_UNSET


def test_failures(proxy: Proxy, collector: Collector) -> None:
    status, id, _ = proxy.ask("down")
    (_, server), (_, client) = collector.of(id)
    assert status == attributes(server)["http.response.status_code"] == 503
    assert attributes(server)["error.type"] == attributes(client)["error.type"] == "503"
    assert server.status.code == server.status.STATUS_CODE_ERROR
    status, id, body = proxy.ask("cut", stream=True)
    assert b"error" in body
    (_, server), (_, client) = collector.of(id)
    assert attributes(server)["error.type"] == "stream_broken"
    assert attributes(client)["gen_ai.usage.output_tokens"] > 0
    assert attributes(client)["apportion.usage_mark"] == "estimated"
    status, id, _ = proxy.ask("good", **{"x-apportion-max-usd": "0.000000001"})
    ((_, server),) = collector.of(id)
    assert (status, attributes(server)["error.type"]) == (422, "constraint_unmet")
    assert server.status.code == server.status.STATUS_CODE_UNSET


def test_a_client_that_goes_away(proxy: Proxy, collector: Collector) -> None:
    body = json.dumps({"model": "hang", "stream": True, "messages": [{"role": "user", "content": SAID}]})
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {SECRETS['KEY_ALICE']}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        raw.sendall((head + body).encode())
        received = b""
        while ANSWERED[5:].encode() not in received:
            more = raw.recv(65536)
            assert more, received
            received += more
    id = received.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    (_, server), (_, client) = collector.of(id)
    assert attributes(server)["error.type"] == attributes(client)["error.type"] == "cancelled"
    assert "http.response.status_code" not in attributes(server)
    assert server.status.code == server.status.STATUS_CODE_UNSET


def test_contents_workers_and_the_last_spans(upstream: Http, tmp_path: Path) -> None:
    """With content, in two workers, and with spans that only the end of the proxy sends."""
    collector = Collector()
    otel = {"endpoint": f"{collector.url}/v1/traces", "content": True}
    proxy = Proxy(tmp_path / "proxy", upstream.url, otel, workers=2, OTEL_BSP_SCHEDULE_DELAY="60000")
    try:
        ids = [proxy.ask("good", stream=stream)[1] for stream in (False, True) for _ in range(4)]
        streamed = ids[4:]
    finally:
        proxy.stop()
        collector.stop()
    for id in ids:
        (_, server), (_, client) = collector.of(id)
        said = attributes(server)
        assert json.loads(said["gen_ai.input.messages"]) == [{"role": "user", "parts": [text(SAID)]}]
        assert json.loads(said["gen_ai.output.messages"]) == [
            {"role": "assistant", "parts": [text(ANSWERED)], "finish_reason": "stop"}
        ]
        assert "gen_ai.input.messages" not in attributes(client)
        assert (attributes(client).get("gen_ai.request.stream") is True) == (id in streamed)
    for secret in SECRETS.values():
        assert secret.encode() not in collector.raw


@pytest.mark.parametrize("death", ["refused", "deaf", "error"])
def test_a_dead_collector_harms_nobody(upstream: Http, tmp_path: Path, death: str) -> None:
    def fail(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(500)
        handler.send_header("content-length", "0")
        handler.end_headers()

    failing = Http(fail)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if death == "deaf":
            bound.listen(16)
        url = failing.url if death == "error" else f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            proxy = Proxy(tmp_path / "proxy", upstream.url, {"endpoint": url})
            try:
                assert [proxy.ask("good")[0] for _ in range(20)] == [200] * 20
                if death == "error":
                    until_s = time.monotonic() + 120
                    while proxy.metric("apportion_spans_lost_total") < 40 and time.monotonic() < until_s:
                        time.sleep(0.05)
                    assert proxy.metric('apportion_spans_lost_total{where="collector"}') == 40
            finally:
                proxy.stop()
        finally:
            failing.stop()


def test_the_process_that_makes_spans_may_die(upstream: Http, collector: Collector, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "proxy", upstream.url, {"endpoint": collector.url})
    try:
        collector.of(proxy.ask("good")[1])
        os.kill(child_of(proxy.process.pid), signal.SIGKILL)
        until_s = time.monotonic() + 120
        while time.monotonic() < until_s:
            status, id, _ = proxy.ask("good")
            assert status == 200
            try:
                collector.of(id, 0.5)
                break
            except AssertionError:
                continue
        else:
            raise AssertionError("no spans after the restart")
    finally:
        proxy.stop()


def child_of(pid: int) -> int:
    """The process that makes spans, of a proxy with one worker."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(pid) and b"apportion.serve.spans" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    raise AssertionError("there is none")
