"""What an assembler makes of a stream is what the providers' own SDKs make of it, whole and cut anywhere."""

from __future__ import annotations

import base64
import copy
import json
import sys
from typing import Any

import anthropic
import openai
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from apportion.measure.usage import Usage
from apportion.serve import assemble
from apportion.serve.assemble import Api, assembler
from apportion.serve.http.client import TransportFailure

Json = dict[str, Any]

USAGE = Usage(input_tokens=20, output_tokens=7, cached_input_tokens=5, reasoning_tokens=2)
CHAT_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
MESSAGES_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
RESPONSES_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
quicker = settings(quick, max_examples=20)


# --- streams and clients --------------------------------------------------------------------------


def framed(event: Json | str) -> bytes:
    """One event as a server sends it."""
    if isinstance(event, str):
        return b"data: %b\n\n" % event.encode()
    name = b"event: %b\n" % event["type"].encode() if "type" in event else b""
    return name + b"data: %b\n\n" % json.dumps(event).encode()


def fed(api: Api, events: list[Any]) -> assemble.Assembler:
    made = assembler(api)
    for event in events:
        made.write(framed(event))
    return made


def answer(api: Api, events: list[Any], usage: Usage | None = None, *, cut: bool = False) -> Json:
    body: Json = json.loads(fed(api, events).body(usage, cut=cut))
    return body


class Wire:
    """The SDKs' own clients, reading a stream that a test holds."""

    def __init__(self) -> None:
        self.stream = b""
        http = self._client(openai.DefaultHttpxClient)
        self.openai = openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)
        http = self._client(anthropic.DefaultHttpxClient)
        self.anthropic = anthropic.Anthropic(
            api_key="k", base_url="http://test", http_client=http, max_retries=0
        )

    def _client(self, kind: type[Any]) -> Any:
        """A client of the HTTP library that this SDK uses (httpx, or its successor)."""
        library = sys.modules[kind.__mro__[1].__module__.partition(".")[0]]
        headers = {"content-type": "text/event-stream"}
        answer = library.MockTransport(lambda _: library.Response(200, headers=headers, content=self.stream))
        return kind(transport=answer)

    def chat(self, stream: bytes) -> tuple[list[ChatCompletionChunk], ChatCompletion]:
        self.stream = stream
        chunks = list(self.openai.chat.completions.create(model="m", messages=[], stream=True))
        state: Any = ChatCompletionStreamState()
        for chunk in chunks:
            state.handle_chunk(chunk)
        return chunks, state.current_completion_snapshot

    def completions(self, stream: bytes) -> list[Completion]:
        self.stream = stream
        return list(self.openai.completions.create(model="m", prompt="", stream=True))

    def messages(self, stream: bytes) -> Message:
        self.stream = stream
        with self.anthropic.messages.stream(model="m", max_tokens=9, messages=[]) as events:
            return events.get_final_message()

    def responses(self, stream: bytes) -> list[Any]:
        self.stream = stream
        return list(self.openai.responses.create(model="m", input="", stream=True))


wire = Wire()


def bare(value: Any) -> Any:
    """Without what an SDK adds to a stream's answer and without what is null."""
    if isinstance(value, dict):
        dropped = ("parsed", "parsed_arguments", "parsed_output")
        return {k: bare(v) for k, v in value.items() if k not in dropped and v is not None}
    return [bare(v) for v in value] if isinstance(value, list) else value


def without_call_index(chat: Json) -> Json:
    chat = copy.deepcopy(chat)
    for choice in chat["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
    return chat


# --- generated streams ----------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=6)
pieces = st.lists(texts, max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(texts, json_values, max_size=3).map(json.dumps)


@st.composite
def cuttings(draw: st.DrawFn, whole: str) -> list[str]:
    """``whole`` in pieces."""
    ends = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]


@st.composite
def chat_streams(draw: st.DrawFn) -> list[Any]:
    n = draw(st.integers(1, 2))
    base: Json = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    base["system_fingerprint"] = draw(st.sampled_from([None, "fp"]))
    lines: list[list[Json]] = []
    for index in range(n):
        deltas: list[Json] = []
        deltas += [{"reasoning_content": p} for p in draw(pieces)]
        with_logprobs = draw(st.booleans())
        for piece in draw(pieces):
            logprob = {"token": piece, "logprob": -0.5, "bytes": None, "top_logprobs": []}
            logprobs = {"content": [logprob], "refusal": None} if with_logprobs else None
            deltas.append({"content": piece, "+logprobs": logprobs})
        deltas += [{"refusal": p} for p in draw(st.sampled_from([[], ["I ", "won't"]]))]
        deltas += draw(
            st.sampled_from([[], [{"function_call": {"name": "f"}}, {"function_call": {"arguments": "{}"}}]])
        )
        for call in range(draw(st.integers(0, 2))):
            function = {"name": f"f{call}", "arguments": ""}
            begun = {"index": call, "id": f"id{call}", "type": "function", "function": function}
            deltas.append({"tool_calls": [begun]})
            for piece in draw(cuttings(draw(arguments))):
                deltas.append({"tool_calls": [{"index": call, "function": {"arguments": piece}}]})
        line = []
        for delta in [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}, *deltas]:
            logprobs = delta.pop("+logprobs", None)
            line.append({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        finish = draw(st.sampled_from(["stop", "tool_calls", "length", "content_filter"]))
        line.append({"index": index, "delta": {}, "finish_reason": finish})
        lines.append(line)
    events: list[Any] = [{**base, "choices": [line.pop(0)]} for line in lines]
    while any(lines):
        line = draw(st.sampled_from([line for line in lines if line]))
        events.append({**base, "choices": [line.pop(0)]})
    if draw(st.booleans()):
        events.append({**base, "choices": [], "usage": CHAT_USAGE})
    return [*events, "[DONE]"]


@st.composite
def completion_streams(draw: st.DrawFn) -> list[Any]:
    base: Json = {"id": "t1", "object": "text_completion", "created": 5, "model": "m"}
    events: list[Any] = []
    for index in range(draw(st.integers(1, 2))):
        for piece in draw(pieces):
            logprobs = {
                "tokens": [piece],
                "token_logprobs": [-1.0],
                "top_logprobs": [{piece: -1.0}],
                "text_offset": [0],
            }
            choice = {"index": index, "text": piece, "logprobs": logprobs, "finish_reason": None}
            events.append({**base, "choices": [choice]})
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": "stop"}
        events.append({**base, "choices": [choice]})
    return [*events, {**base, "choices": [], "usage": CHAT_USAGE}, "[DONE]"]


@st.composite
def message_streams(draw: st.DrawFn) -> list[Any]:
    message = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 3},
    }
    events: list[Any] = [{"type": "message_start", "message": message}, {"type": "ping"}]
    kinds = st.sampled_from(["text", "cited", "thinking", "redacted_thinking", "tool_use", "server_tool_use"])
    for index, kind in enumerate(draw(st.lists(kinds, max_size=4))):
        deltas: list[Json] = []
        block: Json = {"type": kind}
        if kind in ("text", "cited"):
            block = {"type": "text", "text": "", "citations": None}
            deltas = [{"type": "text_delta", "text": p} for p in draw(pieces)]
        if kind == "cited":
            cited = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": "t"}
            cited |= {"start_char_index": 0, "end_char_index": 1, "file_id": None}
            deltas += [{"type": "citations_delta", "citation": cited}] * 2
        elif kind == "thinking":
            block |= {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": p} for p in draw(pieces)]
            deltas.append({"type": "signature_delta", "signature": "c2ln"})
        elif kind == "redacted_thinking":
            block |= {"data": "opaque"}
        elif kind.endswith("tool_use"):
            name = "lookup" if kind == "tool_use" else "web_search"
            block |= {"id": f"t{index}", "name": name, "input": {}}
            given = ["", *draw(cuttings(draw(arguments)))] if draw(st.booleans()) else []
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in given]
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    stop = draw(st.sampled_from(["end_turn", "tool_use", "stop_sequence"]))
    delta = {"stop_reason": stop, "stop_sequence": "x" if stop == "stop_sequence" else None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 40}})
    return [*events, {"type": "message_stop"}]


RESPONSE: Json = {
    "id": "r1",
    "object": "response",
    "created_at": 5,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
    "instructions": "be brief",
    "metadata": {"a": "b"},
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "usage": None,
}
RESPONSES_USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 7,
}


@st.composite
def response_streams(draw: st.DrawFn) -> list[Any]:
    events: list[Any] = []

    def add(kind: str, **fields: Any) -> None:
        events.append({"type": kind, "sequence_number": len(events), **copy.deepcopy(fields)})

    add("response.created", response=RESPONSE)
    add("response.in_progress", response=RESPONSE)
    output = []
    kinds = st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call", "web_search_call"])
    for index, kind in enumerate(draw(st.lists(kinds, max_size=3))):
        item: Json = {"type": kind, "id": f"i{index}", "status": "in_progress"}
        at: Json = {"item_id": item["id"], "output_index": index}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": []}
        elif kind == "function_call":
            item |= {"call_id": "k", "name": "f", "arguments": ""}
        elif kind == "custom_tool_call":
            item |= {"call_id": "k", "name": "f", "input": ""}
        else:
            item |= {"action": {"type": "search", "query": "q", "queries": ["q"]}}
        add("response.output_item.added", output_index=index, item=item)
        parts = range(draw(st.integers(0, 2)))
        if kind == "message":
            for place in parts:
                where = {**at, "content_index": place}
                part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                add("response.content_part.added", part=part, **where)
                for piece in draw(pieces):
                    add("response.output_text.delta", delta=piece, logprobs=[], **where)
                    part["text"] += piece
                add("response.output_text.done", text=part["text"], logprobs=[], **where)
                add("response.content_part.done", part=part, **where)
                item["content"].append(part)
        elif kind == "reasoning":
            for place in parts:
                where = {**at, "summary_index": place}
                part = {"type": "summary_text", "text": ""}
                add("response.reasoning_summary_part.added", part=part, **where)
                for piece in draw(pieces):
                    add("response.reasoning_summary_text.delta", delta=piece, **where)
                    part["text"] += piece
                add("response.reasoning_summary_text.done", text=part["text"], **where)
                add("response.reasoning_summary_part.done", part=part, **where)
                item["summary"].append(part)
        elif kind == "function_call":
            item["arguments"] = draw(arguments)
            for piece in draw(cuttings(item["arguments"])):
                add("response.function_call_arguments.delta", delta=piece, **at)
            add("response.function_call_arguments.done", arguments=item["arguments"], name="f", **at)
        elif kind == "custom_tool_call":
            item["input"] = draw(texts)
            for piece in draw(cuttings(item["input"])):
                add("response.custom_tool_call_input.delta", delta=piece, **at)
            add("response.custom_tool_call_input.done", input=item["input"], **at)
        item["status"] = "completed"
        add("response.output_item.done", output_index=index, item=item)
        output.append(item)
    done = {**RESPONSE, "status": "completed", "output": output, "usage": RESPONSES_USAGE}
    add("response.completed", response=done)
    return events


# --- whole streams: the same as the SDKs ----------------------------------------------------------


@quick
@given(chat_streams())
def test_whole_chat_is_what_the_sdk_accumulates(events: list[Any]) -> None:
    body = answer("chat", events)
    ChatCompletion.model_validate(body)
    state: Any = ChatCompletionStreamState()
    for event in events[:-1]:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    want = without_call_index(state.current_completion_snapshot.to_dict())
    for choice in (c["message"] for c in want["choices"]):
        if choice.get("tool_calls") and not choice.get("content"):
            choice["content"] = None
    assert bare(body) == bare(want)


@quick
@given(completion_streams())
def test_whole_completion_is_the_sum_of_its_chunks(events: list[Any]) -> None:
    body = answer("completions", events)
    Completion.model_validate(body)
    chunks = [choice for event in events[:-1] for choice in event["choices"]]
    assert body["usage"] == CHAT_USAGE
    assert body["object"] == "text_completion"
    for choice in body["choices"]:
        mine = [c for c in chunks if c["index"] == choice["index"]]
        assert choice["text"] == "".join(c["text"] for c in mine)
        assert choice["finish_reason"] == "stop"
        tokens = [t for c in mine if c["logprobs"] for t in c["logprobs"]["tokens"]]
        assert ((choice["logprobs"] or {}).get("tokens") or []) == tokens


@quick
@given(message_streams())
def test_whole_message_is_what_the_sdk_accumulates(events: list[Any]) -> None:
    body = answer("messages", events)
    Message.model_validate(body)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in copy.deepcopy(events):
        if event["type"] != "ping":
            parsed = MESSAGES_EVENT.validate_python(event)
            snapshot = accumulate_event(event=parsed, current_snapshot=snapshot, json_bufs=buffers)
    assert bare(body) == bare(snapshot.to_dict())


@quick
@given(response_streams())
def test_whole_response_is_the_final_one_verbatim(events: list[Any]) -> None:
    body = fed("responses", events).body(USAGE, cut=False)
    assert body == json.dumps(events[-1]["response"]).encode()
    Response.model_validate_json(body)


# --- cut anywhere ---------------------------------------------------------------------------------


@quicker
@given(chat_streams(), st.booleans())
def test_cut_chat_is_valid_and_closes(events: list[Any], include_usage: bool) -> None:
    for end in range(len(events) + 1):
        made = fed("chat", events[:end])
        body = json.loads(made.body(USAGE, cut=True))
        ChatCompletion.model_validate(body)
        closing = made.closing(USAGE, include_usage=include_usage)
        assert closing == made.closing(USAGE, include_usage=include_usage)
        chunks, final = wire.chat(b"".join(map(framed, events[:end])) + closing)
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.to_dict())
        assert (b"".join(map(framed, events[:end])) + closing).count(b"[DONE]") == 1
        if closing:
            assert (chunks[-1].usage is not None) == (include_usage or body["usage"] == CHAT_USAGE)
        if end == 0:
            assert [c.finish_reason for c in final.choices] == ["length"]
            continue
        want = without_call_index(final.to_dict())
        for sdk, mine in zip(want["choices"], body["choices"], strict=True):
            said = {e["choices"][0]["index"] for e in events[:end] if e != "[DONE]" and e["choices"]}
            assert mine["index"] in said
            assert mine["finish_reason"] == sdk["finish_reason"]
            assert (mine["message"]["content"] or "") == (sdk["message"].get("content") or "")
            assert mine["message"].get("tool_calls") == bare(sdk["message"].get("tool_calls"))


@quicker
@given(completion_streams(), st.booleans())
def test_cut_completion_is_valid_and_closes(events: list[Any], include_usage: bool) -> None:
    for end in range(len(events) + 1):
        made = fed("completions", events[:end])
        body = json.loads(made.body(USAGE, cut=True))
        Completion.model_validate(body)
        chunks = wire.completions(
            b"".join(map(framed, events[:end])) + made.closing(USAGE, include_usage=include_usage)
        )
        finish = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
        assert finish == {c["index"]: c["finish_reason"] for c in body["choices"]}


@quicker
@given(message_streams())
def test_cut_message_is_valid_and_closes(events: list[Any]) -> None:
    for end in range(len(events) + 1):
        made = fed("messages", events[:end])
        body = json.loads(made.body(USAGE, cut=True))
        Message.model_validate(body)
        final = wire.messages(
            b"".join(map(framed, events[:end])) + made.closing(USAGE, include_usage=False)
        ).to_dict()
        ended = end >= len(events) - 1
        assert body["stop_reason"] == final["stop_reason"] != (None if not ended else "max_tokens")
        assert body["usage"]["output_tokens"] == final["usage"]["output_tokens"] == (40 if ended else 7)
        whole_inputs = {json.dumps(b["input"]) for b in answer("messages", events)["content"] if "input" in b}
        assert all(json.dumps(b["input"]) in whole_inputs for b in body["content"] if "input" in b)
        mine, theirs = ([b for b in m["content"] if "input" not in b] for m in (body, final))
        assert bare(mine) == bare(theirs)


@quicker
@given(response_streams())
def test_cut_response_is_valid_and_closes(events: list[Any]) -> None:
    for end in range(len(events) + 1):
        made = fed("responses", events[:end])
        body = json.loads(made.body(USAGE, cut=True))
        Response.model_validate(body)
        closing = made.closing(USAGE, include_usage=False)
        seen = wire.responses(b"".join(map(framed, events[:end])) + closing)
        for event in seen:
            RESPONSES_EVENT.validate_python(event.to_dict())
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        if end == len(events):
            assert closing == b""
            continue
        assert seen[-1].type == "response.incomplete"
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [e.type for e in seen].count("response.output_item.done") == len(body["output"])
        if end == 0:
            continue
        assert seen[-1].response.to_dict() == body
        state: Any = ResponseStreamState(input_tools=[], text_format=openai.omit)
        for event in seen:
            snapshot = state.accumulate_event(event)
            state._ResponseStreamState__current_snapshot = snapshot
        for mine, sdk in zip(body["output"], snapshot.output, strict=True):
            assert mine["id"] == sdk.id
            if mine["type"] == "message":
                assert [p["text"] for p in mine["content"]] == [p.text for p in sdk.content]
            if mine["type"] == "function_call":
                assert mine["arguments"] == sdk.arguments


# --- any pieces, any events -----------------------------------------------------------------------

STREAMS = st.one_of(
    st.tuples(st.just("chat"), chat_streams()),
    st.tuples(st.just("completions"), completion_streams()),
    st.tuples(st.just("messages"), message_streams()),
    st.tuples(st.just("responses"), response_streams()),
)


@quick
@given(STREAMS, st.data())
def test_how_the_stream_is_cut_into_writes_is_of_no_interest(
    stream: tuple[Api, list[Any]], data: st.DataObject
) -> None:
    api, events = stream
    made = assembler(api)
    rest = [b": a comment\n\n", *map(framed, events)]
    while rest:
        size = data.draw(st.integers(1, 5))
        made.write(b"".join(rest[:size]))
        del rest[:size]
        if data.draw(st.booleans()):
            made.body(None, cut=True)
            made.closing(None, include_usage=True)
    assert made.ended
    assert made.closing(USAGE, include_usage=True) == b""
    assert json.loads(made.body(None, cut=True)) == answer(api, events)


KEYS = st.sampled_from(
    """type id index model choices delta message content text name input usage role tool_calls function
    logprobs finish_reason partial_json content_block citation item part response output_index content_index
    stop_reason sequence_number arguments summary audio data annotations signature thinking error x_groq
    created
    """.split()  # noqa: SIM905
)
KINDS = st.sampled_from(
    """message_start content_block_start content_block_delta content_block_stop message_delta function
    thinking response.created response.output_item.added response.output_item.done response.output_text.delta
    tool_use response.output_text.done response.content_part.added response.reasoning_text.delta
    response.failed
    response.output_text.annotation.added response.function_call_arguments.delta
    """.split()  # noqa: SIM905
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | KINDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
ODD_EVENTS = st.dictionaries(KEYS, ODD, max_size=6).flatmap(lambda e: KINDS.map(lambda k: {"type": k, **e}))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(assemble._ASSEMBLERS)), st.lists(ODD_EVENTS | ODD, max_size=6), st.booleans())
def test_odd_events_raise_nothing(api: Api, events: list[Any], cut: bool) -> None:
    made = assembler(api)
    for event in events:
        made.write(b"data: %b\n\n" % json.dumps(event).encode())
    assert isinstance(json.loads(made.body(USAGE, cut=cut)), dict)
    made.closing(USAGE, include_usage=True)


@pytest.mark.parametrize("api", list(assemble._ASSEMBLERS))
def test_what_is_no_event_is_passed_over(api: Api) -> None:
    deep = b'{"type": "message_start", "choices": ' + b"[" * 900 + b"]" * 900 + b"}"
    made = assembler(api)
    for data in (
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'"x"',
        deep,
        b'{"choices": [{"delta": {"content": 1e999}}]}',
    ):
        made.write(b"data: %b\n\n" % data)
    made.write(b"event: ping\n\nid: 3\n\n: nothing\n\n")
    assert json.loads(made.body(None, cut=True))
    assert made.closing(None, include_usage=True)


@pytest.mark.parametrize("api", list(assemble._ASSEMBLERS))
def test_memory_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "MAX_ANSWER_BYTES", 1000)
    made = assembler(api)
    made.write(b": %b\n\n" % (b"x" * 900))
    with pytest.raises(TransportFailure) as caught:
        made.write(b": %b\n\n" % (b"x" * 100))
    assert caught.value.kind == "too_large"


# --- single cases ---------------------------------------------------------------------------------


def chat(*deltas: Json, **fields: Any) -> list[Any]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m", **fields}
    return [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]


def message_of(*deltas: Json) -> Json:
    message: Json = answer("chat", chat(*deltas), cut=True)["choices"][0]["message"]
    return message


def test_usage_is_made_only_where_the_stream_has_none() -> None:
    assert answer("chat", chat({"content": "a"}), USAGE, cut=True)["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
    }
    assert "usage" not in answer("chat", chat({"content": "a"}), cut=True)
    odd = {"prompt_tokens": 1, "completion_tokens": 2, "of_its_own": 3}
    assert answer("chat", chat({"content": "a"}, usage=odd), USAGE, cut=True)["usage"] == odd
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert answer("chat", chat({"content": "a"}, usage=zero), USAGE)["usage"]["completion_tokens"] == 7
    assert answer("chat", chat({"content": "a"}, x_groq={"usage": odd}), USAGE)["usage"] == odd


def test_usage_chunk_is_never_made_up_and_never_sent_twice() -> None:
    begun = chat({"content": "a"})
    assert b'"choices":[]' not in fed("chat", begun).closing(None, include_usage=True)
    assert b'"choices":[]' not in fed("chat", begun).closing(USAGE, include_usage=False)
    counted = [*begun, {"id": "c1", "choices": [], "usage": CHAT_USAGE}]
    assert b'"choices":[]' not in fed("chat", counted).closing(USAGE, include_usage=True)


def test_anthropic_usage_leaves_the_cached_out_of_the_input() -> None:
    usage = Usage(
        input_tokens=20, output_tokens=7, cached_input_tokens=5, cache_write_tokens=2, cache_write_1h_tokens=1
    )
    start = {"type": "message_start", "message": {"id": "m1", "model": "m"}}
    assert answer("messages", [start], usage, cut=True)["usage"] == {
        "input_tokens": 12,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 5,
        "output_tokens": 7,
    }


def test_unknown_fields_are_kept() -> None:
    events = chat(
        {"content": "a", "x": "1", "n": 1}, {"content": "b", "x": "2", "n": 2}, provider="p", citations=["u"]
    )
    events[0]["choices"][0] |= {"matched": 1, "token_ids": [1]}
    events[1]["choices"][0] |= {"matched": 2, "token_ids": [2, 3]}
    body = answer("chat", events)
    assert (body["provider"], body["citations"]) == ("p", ["u"])
    choice = body["choices"][0]
    assert (choice["matched"], choice["token_ids"]) == (2, [1, 2, 3])
    assert (choice["message"]["x"], choice["message"]["n"], choice["message"]["content"]) == ("12", 2, "ab")


def test_repeated_labels_are_not_glued() -> None:
    call = {"index": 0, "id": "k", "type": "function", "function": {"name": "f", "arguments": "{"}}
    again = {**call, "function": {"name": "f", "arguments": "}"}}
    message = message_of(
        {"role": "assistant", "tool_calls": [call]}, {"role": "assistant", "tool_calls": [again]}
    )
    assert message["role"] == "assistant"
    assert message["content"] is None
    function = {"name": "f", "arguments": "{}"}
    assert message["tool_calls"] == [{"id": "k", "type": "function", "function": function}]


def test_tool_calls_without_index_are_told_apart() -> None:
    message = message_of(
        {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"function": {"arguments": "}"}}]},
        {"tool_calls": [{"id": "b", "function": {"name": "f", "arguments": "[1]"}}]},
    )
    assert [(c["id"], c["function"]["arguments"]) for c in message["tool_calls"]] == [
        ("a", "{}"),
        ("b", "[1]"),
    ]


def test_cut_chat_tool_call_stays_as_it_is() -> None:
    call = {"index": 0, "id": "k", "type": "function", "function": {"name": "f", "arguments": '{"a": "b'}}
    body = answer("chat", chat({"tool_calls": [call]}), cut=True)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": "b'


def test_content_in_parts_and_plain_is_all_kept() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    want = [thinking, {"type": "text", "text": "a"}]
    assert message_of({"content": [thinking]}, {"content": "a"})["content"] == want
    assert message_of({"content": "a"}, {"content": "b"}, {"content": [thinking]})["content"] == [
        {"type": "text", "text": "ab"},
        thinking,
    ]


def test_audio_pieces_are_joined_as_bytes() -> None:
    pieces = [b"a", b"bc", b"def"]
    deltas = [{"audio": {"id": "x", "data": base64.b64encode(p).decode(), "transcript": "t"}} for p in pieces]
    audio = message_of(*deltas, {"audio": {"expires_at": 9}})["audio"]
    assert base64.b64decode(audio["data"], validate=True) == b"abcdef"
    assert (audio["id"], audio["transcript"], audio["expires_at"]) == ("x", "ttt", 9)


def test_a_surrogate_pair_in_two_pieces_becomes_one_character() -> None:
    made = assembler("chat")
    for half in (rb"\ud83d", rb"\ude00"):
        made.write(b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half)
    assert json.loads(made.body(None, cut=True))["choices"][0]["message"]["content"] == "\U0001f600"


def test_long_answers_are_put_together_in_order() -> None:
    words = [f"w{i} " for i in range(20_000)]
    assert message_of(*({"content": word} for word in words))["content"] == "".join(words)


def message_with(block: Json, *partial: str, stopped: bool = False) -> list[Any]:
    events: list[Any] = [{"type": "message_start", "message": {"id": "m1", "model": "m", "usage": {}}}]
    events.append({"type": "content_block_start", "index": 0, "content_block": block})
    for piece in partial:
        delta = {"type": "input_json_delta", "partial_json": piece}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    return [*events, {"type": "content_block_stop", "index": 0}] if stopped else events


@pytest.mark.parametrize("partial", [(), ("",), ('{"a"', ": 1"), ("1",)])
@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use"])
def test_half_a_tool_use_is_dropped(kind: str, partial: tuple[str, ...]) -> None:
    block = {"type": kind, "id": "t", "name": "f", "input": {}}
    body = answer("messages", message_with(block, *partial), cut=True)
    assert (body["content"], body["stop_reason"]) == ([], "max_tokens")


def test_a_whole_tool_use_is_kept_when_cut() -> None:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert answer("messages", message_with(block, stopped=True), cut=True)["content"] == [block]
    body = answer("messages", message_with(block, '{"a"', ": 1}"), cut=True)
    assert body["content"] == [{**block, "input": {"a": 1}}]


def test_invalid_tool_json_of_a_whole_message_is_said_to_be_so() -> None:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}}
    events = [*message_with(block, "{a", stopped=True), stop, {"type": "message_stop"}]
    assert answer("messages", events)["content"][0]["input"] == {"INVALID_JSON": "{a"}
    stop["delta"] = {"stop_reason": "max_tokens"}
    assert answer("messages", events)["content"] == []


def test_a_finished_answer_keeps_its_reason_when_cut() -> None:
    events = chat({"content": "a"})
    events[0]["choices"][0]["finish_reason"] = "stop"
    made = fed("chat", events)
    assert json.loads(made.body(None, cut=True))["choices"][0]["finish_reason"] == "stop"
    assert made.closing(None, include_usage=False) == b"data: [DONE]\n\n"
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
    made = fed("messages", [*message_with({"type": "text", "text": "a"}, stopped=True), stop])
    assert json.loads(made.body(USAGE, cut=True))["stop_reason"] == "end_turn"
    assert (
        made.closing(USAGE, include_usage=False) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_final_response_without_usage_is_given_one() -> None:
    done = {
        "type": "response.completed",
        "sequence_number": 0,
        "response": {**RESPONSE, "status": "completed"},
    }
    assert answer("responses", [done], USAGE)["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 27,
    }


def test_half_a_call_in_a_response_is_incomplete_and_its_arguments_never_done() -> None:
    item = {
        "type": "function_call",
        "id": "i",
        "call_id": "k",
        "name": "f",
        "arguments": "",
        "status": "in_progress",
    }
    events = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.function_call_arguments.delta", "output_index": 0, "item_id": "i", "delta": '{"a'},
    ]
    made = fed("responses", events)
    closing = made.closing(USAGE, include_usage=False)
    assert b"arguments.done" not in closing
    assert json.loads(made.body(USAGE, cut=True))["output"] == [
        {**item, "arguments": '{"a', "status": "incomplete"}
    ]


def test_response_parts_that_were_never_announced_are_made() -> None:
    at = {"output_index": 0, "item_id": "i", "content_index": 0}
    events = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.output_text.delta", "delta": "a", **at},
        {"type": "response.output_text.annotation.added", "annotation": {"type": "file_path"}, **at},
        {"type": "response.output_text.delta", "delta": "b", **at},
    ]
    item = answer("responses", events, cut=True)["output"][0]
    assert (item["type"], item["status"]) == ("message", "incomplete")
    part = {"type": "output_text", "text": "ab", "annotations": [{"type": "file_path"}]}
    assert item["content"] == [part]
