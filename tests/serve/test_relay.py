"""Every way a stream can end: nothing before content, one ending, and never a clean one after a break."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.measure.usage import Usage
from apportion.serve import errors, translation
from apportion.serve.http import sse
from apportion.serve.http.client import ClientConnection, Timeouts, TransportFailure
from apportion.serve.relay import Relay
from apportion.serve.wire import stream_reader

Dialect = Literal["chat", "messages", "responses"]
COST = {"decision_id": "dec_1", "cost_usd": 0.5, "cost_mark": "measured"}


def event(value: object, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


def chat(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
            **more,
        }
    )


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
STREAMS: dict[Dialect, dict[str, bytes]] = {
    "chat": {
        "opening": chat({"role": "assistant", "content": ""}),
        "content": chat({"content": "hello"}),
        "finish": chat({}, "stop"),
        "usage": event(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [],
                "usage": USAGE,
            }
        ),
        "mark": b"data: [DONE]\n\n",
        "error": event({"error": {"message": "the engine died", "type": "server_error"}}),
    },
    "messages": {
        "opening": event(
            {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 3}}},
            "message_start",
        ),
        "content": event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
            "content_block_delta",
        ),
        "finish": event(
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            "message_delta",
        ),
        "usage": b"",
        "mark": event({"type": "message_stop"}, "message_stop"),
        "error": event(
            {"type": "error", "error": {"type": "overloaded_error", "message": "the engine died"}}, "error"
        ),
    },
    "responses": {
        "opening": event({"type": "response.created", "response": {"model": "m"}}, "response.created"),
        "content": event(
            {"type": "response.output_text.delta", "delta": "hello"}, "response.output_text.delta"
        ),
        "finish": b"",
        "usage": b"",
        "mark": event(
            {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 2}}},
            "response.completed",
        ),
        "error": event({"type": "error", "message": "the engine died"}, "error"),
    },
}
WHOLE_MARK = {"chat": b"data: [DONE]\n\n", "messages": STREAMS["messages"]["mark"], "responses": b""}


class Sink:
    """What the client has been sent."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        assert data, "an empty chunk would end a chunked answer"
        self.pieces.append(data)

    @property
    def all(self) -> bytes:
        return b"".join(self.pieces)


class Tagging:
    """A translator that can be recognised, and can fail."""

    def __init__(self, fails_at: int = 1000) -> None:
        self.fed = 0
        self.fails_at = fails_at
        self.finished = 0

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        self.fed += 1
        if self.fed >= self.fails_at:
            raise ValueError("not for me")
        return b"data: translated %d\n\n" % self.fed

    def finish(self) -> bytes:
        self.finished += 1
        return b"data: the end\n\n" if self.finished == 1 else b""


class Upstream:
    """A relay on a connection whose bytes the test writes."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        translator: Tagging | None = None,
        keep_usage: bool = False,
        head: bytes = b"content-type: text/event-stream\r\n",
        chunked: bool = True,
        status: int = 200,
    ) -> None:
        self.relay = Relay(
            asyncio.get_running_loop(),
            Timeouts(),
            stream_reader(dialect),
            keep_usage=keep_usage,
            translator=translator,
            cost_json=lambda: json.dumps(COST).encode(),
            usage_chunk=None,
            error_event=lambda error: translation.error_event(error, dialect, "req_1"),
            whole_mark=WHOLE_MARK[dialect],
        )
        self.kept = self.closed = False
        pool = SimpleNamespace(
            watch=SimpleNamespace(running=set()),
            give_back=lambda connection: setattr(self, "kept", True),
            forget=lambda connection: None,
        )
        self.reading = True
        transport = SimpleNamespace(
            write=lambda data: None,
            is_closing=lambda: self.closed,
            abort=lambda: setattr(self, "closed", True),
            get_write_buffer_size=lambda: 0,
            pause_reading=lambda: setattr(self, "reading", False),
            resume_reading=lambda: setattr(self, "reading", True),
        )
        self.connection = ClientConnection(pool)  # type: ignore[arg-type]
        self.connection.connection_made(transport)  # type: ignore[arg-type]
        self.connection.run(self.relay, b"")
        self.chunked = chunked
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        self.connection.data_received(b"HTTP/1.1 %d X\r\n%b%b\r\n" % (status, head, framing))

    def say(self, data: bytes) -> None:
        if data and not self.closed:
            self.connection.data_received(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def end(self) -> None:
        """The body ends properly."""
        if self.closed:
            return
        if self.chunked:
            self.connection.data_received(b"0\r\n\r\n")
        else:
            self.cut()

    def cut(self, error: Exception | None = None) -> None:
        self.closed = True
        self.connection.connection_lost(error)


@pytest.fixture(params=["chat", "messages", "responses"])
def dialect(request: pytest.FixtureRequest) -> Iterator[Dialect]:
    return request.param


def comments(out: bytes) -> list[Any]:
    return [json.loads(x[12:]) for x in out.split(b"\n\n") if x.startswith(b": apportion ")]


def errors_in(out: bytes) -> int:
    """In-band error events."""
    return sum(1 for x in out.split(b"\n\n") if b'"error"' in x and x.startswith((b"data:", b"event: error")))


ENDINGS = ("mark", "finish", "nothing", "cut", "half", "not json", "error", "gap", "deadline")


def finish_with(upstream: Upstream, parts: dict[str, bytes], ending: str) -> None:
    match ending:
        case "mark":
            upstream.say(parts["finish"] + parts["usage"] + parts["mark"])
            upstream.end()
        case "finish":
            upstream.say(parts["finish"])
            upstream.end()
        case "nothing":
            upstream.end()
        case "cut":
            upstream.cut()
        case "half":
            upstream.say(parts["content"][:-9])
            upstream.end()
        case "not json":
            upstream.say(b"data: {oops\n\n")
        case "error":
            upstream.say(parts["error"])
        case "gap" | "deadline":
            upstream.connection.time_out(ending, 1.0)  # type: ignore[arg-type]


def is_whole(dialect: Dialect, ending: str) -> bool:
    return ending == "mark" or (ending == "finish" and dialect != "responses")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("translated", [False, True])
async def test_after_content(dialect: Dialect, ending: str, translated: bool) -> None:
    parts, sink = STREAMS[dialect], Sink()
    translator = Tagging() if translated else None
    upstream = Upstream(dialect, translator=translator)
    relay = upstream.relay
    upstream.say(parts["opening"])
    first = asyncio.ensure_future(relay.first())
    await asyncio.sleep(0)
    assert not first.done(), "an opening is no content"
    upstream.say(parts["content"])
    await first
    assert relay.phase() == "first_token"
    held = relay.go_live(sink)
    assert relay.phase() == "gap"
    expected = (
        b"data: translated 1\n\ndata: translated 2\n\n" if translated else parts["opening"] + parts["content"]
    )
    assert held == expected
    assert sink.pieces == []
    upstream.say(parts["content"])
    assert len(sink.pieces) == 1, "written at once"
    finish_with(upstream, parts, ending)
    if is_whole(dialect, ending):
        await asyncio.wait_for(relay.answered(), 30)
        assert relay.broken is None
        assert errors_in(sink.all) == 0
        assert comments(sink.all) == [COST]
        end = b"data: the end\n\n" if translated else parts["mark"]
        assert sink.all.endswith(end)
        assert sink.all.count(end) == 1
    else:
        with pytest.raises(TransportFailure):
            await asyncio.wait_for(relay.answered(), 30)
        assert comments(sink.all) == []
        assert parts["mark"] not in sink.all
        assert b"the end" not in sink.all
        # The deadline has an ending of its own, which is not made here.
        assert errors_in(sink.all) == (ending != "deadline")
        assert (relay.broken is not None) == (ending != "deadline")
        if ending == "error":
            assert b"the engine died" in sink.all
    before = sink.all
    upstream.connection.data_received(b"")
    upstream.cut(ConnectionResetError())
    assert sink.all == before, "nothing follows the ending"
    assert relay.stage == "ended"


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        *((e, c) for e in ENDINGS[2:] for c in ("never", "before the task runs")),
        ("error", "same packet"),
        ("not json", "same packet"),
    ],
)
async def test_before_the_client_was_sent_anything(dialect: Dialect, ending: str, content: str) -> None:
    """A failure then is one that can be answered with a status or by another endpoint."""
    parts = STREAMS[dialect]
    upstream = Upstream(dialect)
    first = asyncio.ensure_future(upstream.relay.first())
    await asyncio.sleep(0)
    upstream.say(parts["opening"])
    if content == "before the task runs":
        upstream.say(parts["content"])
    elif content == "same packet":
        parts = {**parts, "error": parts["content"] + parts["error"]}
        if ending == "not json":
            upstream.say(parts["content"] + b"data: {oops\n\n")
    finish_with(upstream, parts, ending)
    with pytest.raises(TransportFailure) as caught:
        await asyncio.wait_for(first, 30)
    assert caught.value.sent
    assert upstream.relay.broken is None
    assert upstream.closed or ending in ("nothing", "half")
    if ending == "error":
        assert "the engine died" in str(caught.value)


@pytest.mark.parametrize("packets", ["one", "each", "bytes"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_whole_stream_however_it_comes(dialect: Dialect, packets: str, chunked: bool) -> None:
    parts, sink = STREAMS[dialect], Sink()
    upstream = Upstream(dialect, chunked=chunked)
    names = ("opening", "content", "content", "finish", "usage", "mark")
    stream = b"".join(parts[n] for n in names)
    pieces = {
        "one": [stream],
        "each": [parts[n] for n in names],
        "bytes": [stream[i : i + 1] for i in range(len(stream))],
    }[packets]
    for piece in pieces:
        upstream.say(piece)
    upstream.end()
    await asyncio.wait_for(upstream.relay.first(), 30)
    out = upstream.relay.go_live(sink) + sink.all
    await asyncio.wait_for(upstream.relay.answered(), 30)
    usage_dropped = stream.replace(parts["usage"], b"") if parts["usage"] else stream
    comment = b": apportion %b\n\n" % json.dumps(COST).encode()
    assert out == usage_dropped.replace(parts["mark"], comment + parts["mark"])
    assert upstream.kept == chunked


async def test_a_stream_that_is_whole_but_empty(dialect: Dialect) -> None:
    upstream = Upstream(dialect)
    upstream.say(STREAMS[dialect]["opening"] + STREAMS[dialect]["mark"])
    await asyncio.wait_for(upstream.relay.first(), 30)
    sink = Sink()
    assert upstream.relay.go_live(sink).endswith(STREAMS[dialect]["mark"])
    await asyncio.wait_for(upstream.relay.answered(), 30)


async def test_the_last_event_may_lack_its_blank_line(dialect: Dialect) -> None:
    parts, sink = STREAMS[dialect], Sink()
    upstream = Upstream(dialect)
    upstream.say(parts["content"])
    await upstream.relay.first()
    upstream.relay.go_live(sink)
    upstream.say(parts["finish"] + parts["mark"][:-2])
    upstream.end()
    await asyncio.wait_for(upstream.relay.answered(), 30)
    assert sink.all.endswith(parts["mark"])


async def test_a_translator_that_fails_ends_the_stream_badly(caplog: pytest.LogCaptureFixture) -> None:
    parts, sink = STREAMS["chat"], Sink()
    early = Upstream("chat", translator=Tagging(fails_at=1))
    early.say(parts["content"])
    with pytest.raises(TransportFailure):
        await asyncio.wait_for(early.relay.first(), 30)
    for ending in ("event", "rest"):
        live = Upstream("chat", translator=Tagging(fails_at=2))
        live.say(parts["content"])
        await live.relay.first()
        live.relay.go_live(sink)
        live.say(parts["content"] if ending == "event" else parts["content"][:-2])
        live.end()
        with pytest.raises(TransportFailure):
            await asyncio.wait_for(live.relay.answered(), 30)
        assert errors_in(sink.all) == 1
        sink.pieces.clear()
    assert len(caplog.records) == 3


async def test_a_sink_that_fails_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sink):
        def write(self, data: bytes) -> None:
            raise RuntimeError

    upstream = Upstream("chat")
    upstream.say(STREAMS["chat"]["content"])
    await upstream.relay.first()
    upstream.relay.go_live(Broken())
    with pytest.raises(RuntimeError):
        upstream.say(STREAMS["chat"]["content"])
    with pytest.raises(TransportFailure):
        await asyncio.wait_for(upstream.relay.answered(), 30)
    assert upstream.closed


# --- usage and cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", ["plain", "spaced", "several lines"])
async def test_the_usage_chunk(keep: bool, shape: str) -> None:
    parts, sink = STREAMS["chat"], Sink()
    usage = parts["usage"]
    if shape == "spaced":
        usage = usage.replace(b"data: ", b"data:   ").replace(b"}\n\n", b"}  \n\n")
    elif shape == "several lines":
        usage = usage.replace(b', "', b',\ndata: "')
    upstream = Upstream("chat", keep_usage=keep)
    upstream.say(parts["content"])
    await upstream.relay.first()
    upstream.relay.go_live(sink)
    upstream.say(parts["finish"] + usage + parts["mark"])
    await upstream.relay.answered()
    said = [sse.parse(e)[1] for e in sse.Splitter().feed(sink.all)]
    chunks = [json.loads(d) for d in said if d is not None and d != b"[DONE]"]
    with_usage = [c for c in chunks if c.get("usage")]
    assert len(with_usage) == keep
    if keep:
        assert with_usage[0]["usage"] == USAGE
        assert with_usage[0]["apportion"] == COST
    assert comments(sink.all) == [COST]


def sdk_reads(stream: bytes) -> Iterator[Any]:
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    http = httpx.Client(transport=httpx.MockTransport(lambda request: answer))
    with openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=http) as client:
        yield from client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )


@pytest.mark.parametrize("ending", ["mark", "finish", "cut", "error", "not json"])
async def test_the_openai_sdk_reads_it(ending: str) -> None:
    parts, sink = STREAMS["chat"], Sink()
    upstream = Upstream("chat", keep_usage=True)
    upstream.say(parts["opening"] + parts["content"])
    await upstream.relay.first()
    sink.write(upstream.relay.go_live(sink))
    finish_with(upstream, parts, ending)
    read: list[Any] = []
    if is_whole("chat", ending):
        read = list(sdk_reads(sink.all))
        assert read[-1].model_extra.get("apportion") == (COST if ending == "mark" else None)
    else:
        with pytest.raises(openai.APIError) as caught:
            read.extend(sdk_reads(sink.all))
        assert caught.value.message
    assert "".join(c.choices[0].delta.content or "" for c in read if c.choices) == "hello"


# --- other answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 400, 404, 429, 500, 529])
async def test_another_status_is_a_whole_answer(status: int) -> None:
    upstream = Upstream("chat", status=status, head=b"content-type: application/json\r\n")
    first = asyncio.ensure_future(upstream.relay.first())
    upstream.say(b'{"error":')
    await asyncio.sleep(0)
    assert not first.done()
    upstream.say(b"{}}")
    upstream.end()
    await asyncio.wait_for(first, 30)
    assert (upstream.relay.status, upstream.relay.body()) == (status, b'{"error":{}}')


async def test_an_error_body_without_end_is_bounded() -> None:
    upstream = Upstream("chat", status=500)
    for _ in range(40):
        upstream.say(b"x" * 65536)
    assert len(upstream.relay.body()) <= 2**20


@pytest.mark.parametrize("kind", [b"application/json", b"text/html", b"text/plain; charset=utf-8"])
async def test_no_event_stream_at_all(kind: bytes) -> None:
    upstream = Upstream("chat", head=b"content-type: %b\r\n" % kind)
    with pytest.raises(TransportFailure) as caught:
        await asyncio.wait_for(upstream.relay.first(), 30)
    assert caught.value.kind == "malformed"
    assert kind.decode() in str(caught.value)


async def test_events_without_content_are_bounded() -> None:
    upstream = Upstream("chat")
    first = asyncio.ensure_future(upstream.relay.first())
    for _ in range(100):
        upstream.say(b": " + b"x" * 65536 + b"\n\n")
    with pytest.raises(TransportFailure):
        await asyncio.wait_for(first, 30)
    assert upstream.relay._held_bytes < 5 * 2**20


async def test_a_large_first_content_is_content() -> None:
    """An image may be the first thing there is."""
    upstream = Upstream("chat")
    sink = Sink()
    image = chat({"content": "x" * 6 * 2**20})
    for at in range(0, len(image), 65536):
        upstream.say(image[at : at + 65536])
    await asyncio.wait_for(upstream.relay.first(), 30)
    assert upstream.relay.go_live(sink) == image


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_stream(coding: str) -> None:
    parts, sink = STREAMS["chat"], Sink()
    stream = parts["opening"] + parts["content"] + parts["finish"] + parts["mark"]
    packed = gzip.compress(stream) if coding == "gzip" else zlib.compress(stream)
    upstream = Upstream("chat", head=b"content-encoding: %b\r\n" % coding.encode())
    for i in range(len(packed)):
        upstream.say(packed[i : i + 1])
    await asyncio.wait_for(upstream.relay.first(), 30)
    assert upstream.relay.go_live(sink).endswith(parts["mark"])


@pytest.mark.parametrize(
    "data", [b"not gzip at all", gzip.compress(b"\n" * 2**26), gzip.compress(b"x" * 2**26)]
)
async def test_a_broken_or_exploding_compression(data: bytes) -> None:
    upstream = Upstream("chat", head=b"content-encoding: gzip\r\n")
    upstream.say(data)
    with pytest.raises(TransportFailure) as caught:
        await asyncio.wait_for(upstream.relay.first(), 30)
    assert caught.value.kind == "malformed"


async def test_a_paused_client_does_not_hold_an_ended_upstream() -> None:
    """All was written; what the upstream still sends (the end of the body) is read whatever the client does."""
    parts = STREAMS["chat"]

    class Slow(Sink):
        def write(self, data: bytes) -> None:
            super().write(data)
            upstream.relay.pause()

    upstream = Upstream("chat")
    upstream.say(parts["content"])
    await upstream.relay.first()
    upstream.relay.go_live(Slow())
    upstream.say(parts["content"])
    assert not upstream.reading
    upstream.relay.resume()
    assert upstream.reading
    upstream.say(parts["finish"] + parts["mark"])
    await asyncio.wait_for(upstream.relay.answered(), 30)
    assert upstream.reading
    upstream.relay.pause()
    assert upstream.reading
    assert upstream.relay.phase() == "gap"
    upstream.end()
    assert upstream.kept


async def cancelled(waiting: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def live(*parts: bytes) -> tuple[Upstream, Sink]:
    """An upstream in the middle of an answer that is passed on."""
    upstream, sink = Upstream("chat"), Sink()
    upstream.say(b"".join(parts))
    sink.write(upstream.relay.go_live(sink))
    return upstream, sink


async def test_cancelled_while_waiting_for_content() -> None:
    upstream = Upstream("chat")
    await cancelled(upstream.relay.first())
    assert upstream.closed


async def test_cancelled_while_waiting_for_the_end() -> None:
    """The exchange goes on, for what its end may say; whoever waited ends it."""
    upstream, _ = live(STREAMS["chat"]["content"])
    await cancelled(upstream.relay.answered())
    assert not upstream.closed
    await upstream.relay.last_words(60.0)  # the answer has not finished: nothing is to be expected soon
    upstream.relay.abort()
    assert upstream.closed


async def test_the_last_words_of_a_finished_answer_are_waited_for() -> None:
    parts = STREAMS["chat"]
    upstream, _ = live(parts["content"] + parts["finish"])
    await cancelled(upstream.relay.answered())
    upstream.relay.pause()  # the client had been slow before it left
    waiting = asyncio.ensure_future(upstream.relay.last_words(60.0))
    await asyncio.sleep(0)
    assert upstream.reading
    assert not waiting.done()
    upstream.say(parts["usage"] + parts["mark"])
    await waiting
    assert upstream.relay.reader.usage == Usage(3, 2)
    assert upstream.relay.reader.usage_final


@pytest.mark.parametrize("end", ["silence", "cut"])
async def test_last_words_that_do_not_come(end: str) -> None:
    parts = STREAMS["chat"]
    upstream, _ = live(parts["content"] + parts["finish"])
    await cancelled(upstream.relay.answered())
    if end == "cut":
        upstream.cut()
    await upstream.relay.last_words(0.01)
    upstream.relay.abort()
    assert upstream.closed
    assert upstream.relay.reader.usage is None


# --- any stream at all --------------------------------------------------------------------------------

parts_of_chat = st.sampled_from(
    [*STREAMS["chat"].values(), b": ping\n\n", b"data: {oops\n\n", b"\n\n", b"data:\n\n", b"event: x\n\n"]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(parts_of_chat, parts_of_chat, st.binary(max_size=20)), max_size=8),
    st.sampled_from(["end", "cut"]),
    st.integers(0, 8),
    st.integers(1, 200),
)
def test_one_ending_and_never_a_clean_one_after_a_break(
    events: list[bytes], ending: str, live_after: int, size: int
) -> None:
    async def run() -> None:
        upstream, sink = Upstream("chat"), Sink()
        relay, live = upstream.relay, False
        stream = b"".join(events)
        for number, at in enumerate([*range(0, len(stream), size), None]):
            if at is not None:
                upstream.say(stream[at : at + size])
            elif ending == "end":
                upstream.end()
            else:
                upstream.cut()
            if not live and number >= live_after and relay._first.done() and relay.failure is None:
                sink.pieces.append(relay.go_live(sink))
                live = True
        try:
            await asyncio.wait_for(relay.first(), 30)
        except TransportFailure:
            assert not live or relay.failure is not None
        if not live:
            assert sink.pieces == []
            return
        try:
            await asyncio.wait_for(relay.answered(), 30)
        except TransportFailure:
            assert relay.broken is not None
            assert comments(sink.all) == []
            said = [sse.parse(e)[1] for e in sse.Splitter().feed(sink.all)]
            assert b"[DONE]" not in said
            assert errors_in(sink.all) == 1
        else:
            assert relay.broken is None
            assert comments(sink.all) == [COST]
            assert sink.all.endswith(b"data: [DONE]\n\n")
            assert errors_in(sink.all) == 0
            assert b"[DONE]" in stream or b'"stop"' in stream

    asyncio.run(run())


def test_an_error_event_is_well_formed_in_every_dialect() -> None:
    for api in ("chat", "completions", "messages", "responses"):
        raw = translation.error_event(errors.StreamBrokenError("cut\n\nshort"), api, "req_1")
        (one,) = sse.Splitter().feed(raw)
        data = sse.parse(one)[1]
        assert data is not None
        assert "cut" in json.dumps(json.loads(data))
