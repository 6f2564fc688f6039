"""Reading what upstreams send: kinds of events, usage wherever it hides, damage told from surprise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.measure.usage import Usage
from apportion.serve.wire import (
    BAD,
    CONTENT,
    DONE,
    ERROR,
    META,
    USAGE,
    Kind,
    StreamReader,
    dumps,
    loads,
    read_error,
    read_usage,
    stream_reader,
)


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, "logprobs": None}
    whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps({**whole, **more}).encode()


def feed(reader: StreamReader, *events: Any, names: bool = False) -> list[Kind]:
    """Each event as bytes or as an object; with ``names`` the type is sent as the event's name too."""
    kinds = []
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        name = event["type"].encode() if names and isinstance(event, dict) else None
        kinds.append(reader.event(data, name))
    return kinds


USAGE_OBJECT = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


def test_a_plain_chat_stream():
    reader = stream_reader("chat")
    kinds = feed(
        reader,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo, wörld"}),
        chunk(finish="stop"),
        chunk(choices=[], usage=USAGE_OBJECT),
        b"[DONE]",
    )
    assert kinds == [META, CONTENT, CONTENT, META, USAGE, DONE]
    assert reader.usage == Usage(input_tokens=9, output_tokens=12)
    assert (reader.finish_reason, reader.model, reader.output_chars, reader.output_events) == (
        "stop",
        "m",
        12,
        2,
    )
    assert reader.usage_final
    assert reader.error is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (chunk(finish="stop", usage=USAGE_OBJECT), META),
        (chunk({"content": ""}, usage=USAGE_OBJECT), META),
        (chunk({"content": "x"}, usage=USAGE_OBJECT), CONTENT),
        (chunk(finish="stop", x_groq={"id": "r", "usage": USAGE_OBJECT}), META),
        (chunk(finish="stop", timings={"cache_n": 4, "prompt_n": 5, "predicted_n": 12, "x": 1.5}), META),
        (chunk(finish="stop", timings={"cache_n": 4, "prompt_n": 5, "predicted_n": 12}, usage=None), META),
        (chunk(choices=[], usage={"prompt_tokens": "9", "completion_tokens": 12.0, "x": {}}), USAGE),
        (chunk(choices=None, usage=USAGE_OBJECT), USAGE),
        (chunk({"content": 7, "role": 3}, usage={**USAGE_OBJECT, "prompt_tokens_details": 3}), CONTENT),
        (chunk(choices=[], usage={"input_tokens": 9, "output_tokens": 12}), USAGE),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_chat_usage_is_found_wherever_it_is(event: bytes, expected: Kind, before: int):
    reader = stream_reader("chat")
    feed(reader, *[chunk({"content": "a"})] * before)
    assert reader.usage is None
    assert feed(reader, event) == [expected]
    assert reader.usage is not None
    assert (reader.usage.input_tokens, reader.usage.output_tokens) == (9, 12)


@pytest.mark.parametrize("usage", [None, {}, [], 3, "x", {"prompt_tokens": 0, "completion_tokens": 0}])
def test_usage_that_says_nothing_is_none(usage: Any):
    reader = stream_reader("chat")
    feed(reader, chunk(choices=[], usage=USAGE_OBJECT), chunk(usage=usage))
    assert reader.usage == Usage(input_tokens=9, output_tokens=12)
    fresh = stream_reader("chat")
    assert BAD not in feed(fresh, chunk(usage=usage), chunk(choices=[], usage=usage))
    assert fresh.usage is None


def test_continuous_usage_keeps_the_latest():
    reader = stream_reader("chat")
    for n in range(1, 5):
        feed(reader, chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": n}))
    assert reader.usage == Usage(input_tokens=3, output_tokens=4)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 5, "cache_write_tokens": 7},
                "completion_tokens_details": {
                    "reasoning_tokens": 20,
                    "audio_tokens": 3,
                    "rejected_prediction_tokens": 9,
                },
            },
            Usage(100, 50, 60, 7, 0, 20, 5, 3),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 6}, Usage(10, 2, 6)),
        ({"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 6}, Usage(10, 2, 6)),
        # reasoning left out of the output but billed in the total
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 42,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(10, 32, reasoning_tokens=30),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 42},
            Usage(10, 32, reasoning_tokens=30),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 32,
                "total_tokens": 42,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(10, 32, reasoning_tokens=30),
        ),
        ({"prompt_tokens": -4, "completion_tokens": 2}, Usage(0, 2)),
    ],
)
def test_openai_usage_in_our_terms(raw: dict[str, Any], usage: Usage):
    assert read_usage("chat", json.dumps({"choices": [], "usage": raw}).encode())[0] == usage
    reader = stream_reader("chat")
    feed(reader, chunk(choices=[], usage=raw))
    assert reader.usage == usage


@pytest.mark.parametrize(
    ("delta", "chars"),
    [
        ({"reasoning_content": "hmm"}, 3),
        ({"reasoning": "hmm", "content": None}, 3),
        ({"refusal": "no."}, 3),
        ({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}]}, 3),
        ({"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]}, 3),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
        ({"content": "a", "reasoning_content": "bc"}, 3),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}]}, 3),
        ({"audio": {"id": "a", "data": "UklGRg==", "transcript": "hey"}}, 3),
        ({"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}, 0),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_everything_that_is_content(delta: dict[str, Any], chars: int, warm: bool):
    reader = stream_reader("chat")
    if warm:
        feed(reader, chunk({"content": "x"}))
    before = reader.output_chars
    kind = feed(reader, chunk(delta))
    assert reader.output_chars - before == chars
    assert kind == [CONTENT]


def test_completions_and_several_choices():
    reader = stream_reader("completions")
    choices = [{"index": i, "text": "ab", "finish_reason": None} for i in range(3)]
    assert feed(reader, *[{"choices": choices}] * 2) == [CONTENT, CONTENT]
    assert reader.output_chars == 12


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "boom", "type": "server_error"}},
        {"error": "boom"},
        {"object": "error", "message": "boom", "type": "BadRequestError", "code": 400},
        {"type": "error", "message": "boom"},
        {
            "id": "x",
            "choices": [{"delta": {"content": ""}, "finish_reason": "error"}],
            "error": {"message": "boom"},
        },
    ],
)
def test_errors_inside_a_chat_stream(event: dict[str, Any]):
    for before in (0, 2):
        reader = stream_reader("chat")
        feed(reader, *[chunk({"content": "a"})] * before)
        assert feed(reader, event) == [ERROR]
        assert reader.error is not None
        assert read_error(reader.error).message == "boom"


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
def test_an_event_named_error_is_one_whatever_it_holds(dialect: str):
    reader = stream_reader(dialect)
    assert reader.event(b'{"message":"boom"}', b"error") == ERROR
    assert read_error(reader.error or b"").message == "boom"


def test_a_null_error_is_none():
    assert feed(stream_reader("chat"), chunk({"content": "a"}, error=None)) == [CONTENT]


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages", "responses"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"choices":[{"delta":{"content":"a"}}]',
        b"null",
        b"[]",
        b"3",
        b"<html>",
        b'{"a":1}}',
        b'{"id":"\xff","type":"content_block_delta","delta":{"text":"a"},"choices":[{"delta":{"content":"a"}}]}',
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_damage_is_bad(dialect: str, data: bytes):
    reader = stream_reader(dialect)
    assert reader.event(data) == BAD
    feed(reader, chunk({"content": "a"}))
    assert reader.event(data) == BAD


def test_every_cut_of_a_chunk_is_bad():
    whole = chunk({"content": "héllo"}, usage=None)
    for end in range(len(whole)):
        assert stream_reader("chat").event(whole[:end]) == BAD
    assert stream_reader("chat").event(bytearray(whole)) == CONTENT


def test_what_client_parsers_accept_is_not_damage():
    reader = stream_reader("chat")
    assert reader.event(b'{"choices":[{"delta":{"content":"\\ud83d"},"logprobs":NaN}]}') == CONTENT
    assert dumps(loads(b'{"a":"\\ud83d","b":NaN}')) == b'{"a":"\\ud83d","b":NaN}'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "choices",
        "delta",
        "content",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "model",
        "tool_calls",
        "function",
        "type",
        "message",
        "content_block",
        "error",
        "response",
        "item",
        "x_groq",
        "timings",
        "prompt_tokens_details",
        "text",
        "input_tokens",
        "cache_creation",
        "output",
        "output_tokens",
    ]
)
odd_objects = st.dictionaries(
    names,
    st.recursive(
        json_values, lambda v: st.lists(v, max_size=2) | st.dictionaries(names, v, max_size=4), max_leaves=12
    ),
    max_size=6,
)
event_types = st.none() | st.sampled_from(
    [
        b"message_start",
        b"content_block_start",
        b"content_block_delta",
        b"message_delta",
        b"message_stop",
        b"response.output_text.delta",
        b"response.completed",
        b"response.failed",
        b"response.output_item.added",
    ]
)


@settings(deadline=None)
@given(
    st.sampled_from(["chat", "messages", "responses"]),
    st.lists(st.tuples(odd_objects, event_types), max_size=4),
)
def test_no_well_formed_object_is_bad_or_raises(
    dialect: str, events: list[tuple[dict[str, Any], bytes | None]]
):
    reader = stream_reader(dialect)
    for event, name in events:
        if name is not None:
            event["type"] = name.decode()
        assert reader.event(json.dumps(event).encode(), name) != BAD
        assert reader.usage is None or reader.usage.input_tokens >= 0
        assert reader.output_chars >= 0
        usage, _, chars = read_usage(dialect, json.dumps(event).encode())
        assert chars >= 0
        assert usage is None or usage.output_tokens >= 0
        assert read_error(json.dumps(event).encode()).message


# --- Anthropic ------------------------------------------------------------------------------------

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
            "output_tokens": 1,
        },
    },
}


def block_delta(**delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": delta}


@pytest.mark.parametrize("named", [True, False])
def test_a_messages_stream(named: bool):
    reader = stream_reader("messages")
    kinds = feed(
        reader,
        START,
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        block_delta(type="thinking_delta", thinking="hm"),
        block_delta(type="signature_delta", signature="AAAA"),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        block_delta(type="text_delta", text="Hé"),
        block_delta(type="text_delta", text=""),
        {
            "type": "content_block_start",
            "index": 2,
            "content_block": {"type": "tool_use", "name": "f", "input": {}},
        },
        block_delta(type="input_json_delta", partial_json=""),
        block_delta(type="input_json_delta", partial_json='{"a":1}'),
        names=named,
    )
    assert kinds == [META, META, META, CONTENT, CONTENT, META, META, CONTENT, META, CONTENT, META, CONTENT]
    assert reader.usage == Usage(160, 1, 100, 20, 30)
    assert not reader.usage_final
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 42, "output_tokens_details": {"thinking_tokens": 9}, "input_tokens": 10},
    }
    assert feed(reader, end, {"type": "message_stop"}, names=named) == [META, DONE]
    assert reader.usage == Usage(160, 42, 100, 20, 30, 9)
    assert reader.usage_final
    assert (reader.finish_reason, reader.model, reader.output_chars) == ("tool_use", "claude", 12)


def test_messages_usage_merges_what_each_event_names():
    reader = stream_reader("messages")
    feed(reader, {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}})
    assert reader.usage is None
    feed(reader, {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 7, "output_tokens": 3}})
    assert reader.usage == Usage(7, 3)
    feed(reader, {"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 5}})
    assert reader.usage == Usage(7, 5)


def test_messages_types_that_surprise():
    reader = stream_reader("messages")
    start = {
        "type": "message_start",
        "message": {"model": "m", "usage": {"input_tokens": "7", "output_tokens": []}},
    }
    assert feed(reader, start) == [META]
    assert feed(reader, {"type": "message_delta", "delta": {"stop_reason": 3}, "usage": 4}) == [META]
    assert feed(reader, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4.0}}) == [META]
    assert reader.usage == Usage(7, 4)
    assert reader.model == "m"
    assert reader.event(b'{"delta":{"type":"text_delta","text":"a"}}', b"content_block_delta") == CONTENT


def test_messages_error():
    reader = stream_reader("messages")
    event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert feed(reader, event, names=True) == [ERROR]
    error = read_error(reader.error or b"")
    assert (error.type, error.message) == ("overloaded_error", "Overloaded")


# --- responses ------------------------------------------------------------------------------------


def test_a_responses_stream():
    reader = stream_reader("responses")
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 8},
        "total_tokens": 50,
    }
    kinds = feed(
        reader,
        {"type": "response.created", "response": {"id": "r", "model": "gpt", "usage": None, "output": []}},
        {"type": "response.in_progress", "response": {"id": "r", "model": "gpt"}},
        {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", "delta": "Hello"},
        {"type": "response.output_text.done", "text": "Hello"},
        {
            "type": "response.output_item.added",
            "item": {"type": "function_call", "name": "f", "arguments": ""},
        },
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
        {"type": "response.completed", "response": {"model": "gpt", "status": "completed", "usage": usage}},
        names=True,
    )
    assert kinds == [META, META, META, META, CONTENT, META, CONTENT, CONTENT, CONTENT, DONE]
    assert reader.usage == Usage(30, 20, 10, 5, 0, 8)
    assert (reader.finish_reason, reader.model, reader.output_chars) == ("completed", "gpt", 10)
    assert reader.usage_final


def test_responses_that_end_otherwise():
    reader = stream_reader("responses")
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert feed(reader, {"type": "response.incomplete", "response": cut}) == [DONE]
    assert reader.finish_reason == "max_output_tokens"
    reader = stream_reader("responses")
    failed = {
        "status": "failed",
        "error": {"code": "rate_limit_exceeded", "message": "slow down"},
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    assert feed(reader, {"type": "response.failed", "response": failed}) == [ERROR]
    assert reader.usage == Usage(5, 1)
    error = read_error(reader.error or b"")
    assert (error.message, error.code) == ("slow down", "rate_limit_exceeded")
    reader = stream_reader("responses")
    plain = {"type": "error", "code": "server_error", "message": "boom", "param": None, "sequence_number": 3}
    assert feed(reader, plain) == [ERROR]
    assert read_error(reader.error or b"").message == "boom"


# --- whole bodies ---------------------------------------------------------------------------------


def test_whole_bodies():
    message = {
        "role": "assistant",
        "content": "hello",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    chat: dict[str, Any] = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    assert read_usage("chat", json.dumps(chat).encode()) == (None, "tool_calls", 8)
    chat["usage"] = USAGE_OBJECT
    assert read_usage("chat", json.dumps(chat).encode())[:2] == (Usage(9, 12), "tool_calls")
    text = {
        "choices": [{"text": "abc", "finish_reason": "length"}],
        "timings": {"prompt_n": 4, "predicted_n": 2},
    }
    assert read_usage("completions", json.dumps(text).encode()) == (Usage(4, 2), "length", 3)
    vectors = {"data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    assert read_usage("embeddings", json.dumps(vectors).encode()) == (Usage(8, 0), None, 0)
    odd = {
        "choices": [{"message": {"content": [{"type": "text", "text": "abc"}]}, "finish_reason": 3}],
        "usage": [],
    }
    assert read_usage("chat", json.dumps(odd).encode()) == (None, None, 3)
    anthropic = {
        **START["message"],  # type: ignore[dict-item]
        "content": [{"type": "text", "text": "hello"}, {"type": "tool_use", "name": "f", "input": {"a": 1}}],
        "stop_reason": "tool_use",
    }
    assert read_usage("messages", json.dumps(anthropic).encode())[:2] == (
        Usage(160, 1, 100, 20, 30),
        "tool_use",
    )
    response = {
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "hello"}]},
            {"type": "function_call", "name": "f", "arguments": "{}"},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    assert read_usage("responses", json.dumps(response).encode()) == (Usage(3, 4), "completed", 10)


@pytest.mark.parametrize("dialect", ["chat", "completions", "embeddings", "messages", "responses"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000])
def test_a_broken_body_raises(dialect: str, body: bytes):
    with pytest.raises(ValueError):
        read_usage(dialect, body)


@pytest.mark.parametrize(
    ("body", "message", "kind", "code"),
    [
        (b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}', "m", "t", "c"),
        (b'{"type":"error","error":{"type":"t","message":"m"},"request_id":"r"}', "m", "t", None),
        (b'{"error":"m"}', "m", None, None),
        (b'{"message":"m","type":"t","code":429}', "m", "t", "429"),
        (b'{"detail":"m"}', "m", None, None),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]', None, None),
        (b"<h1>502</h1>", "<h1>502</h1>", None, None),
        (b"", "empty error body", None, None),
        (b'"m"', "m", None, None),
        (b"{}", "{}", None, None),
        (
            b'{"error":{"code":"context_length_exceeded"}}',
            "context_length_exceeded",
            None,
            "context_length_exceeded",
        ),
    ],
)
def test_read_error(body: bytes, message: str, kind: str | None, code: str | None):
    error = read_error(body)
    assert (error.message, error.type, error.code) == (message, kind, code)
