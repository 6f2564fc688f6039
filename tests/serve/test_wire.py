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
    merge_messages_usage,
    read_error,
    read_usage,
    stream_reader,
    usage_of,
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
    assert (reader.finish_reason, reader.model, reader.output_bytes, reader.output_events) == (
        "stop",
        "m",
        13,
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


NO_USAGE = [
    None,
    {},
    [],
    3,
    "x",
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": -4, "completion_tokens": 2},
    {"prompt_tokens": 4, "completion_tokens": -2, "total_tokens": 2},
    {"prompt_tokens": 4, "completion_tokens": 10**9, "total_tokens": 10**9 + 4},
    {"prompt_tokens": 10**30, "completion_tokens": 2},
    {"prompt_tokens": 1e300, "completion_tokens": 2},
    {"prompt_tokens": "many", "completion_tokens": "few"},
    {"prompt_tokens": True, "completion_tokens": False},
    {"prompt_tokens": [9], "completion_tokens": {"n": 12}},
    {"prompt_tokens": 9, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": -1}},
]


@pytest.mark.parametrize("usage", NO_USAGE)
def test_usage_that_says_nothing_is_none(usage: Any):
    reader = stream_reader("chat")
    feed(reader, chunk(choices=[], usage=USAGE_OBJECT), chunk(usage=usage))
    assert reader.usage == Usage(input_tokens=9, output_tokens=12)
    fresh = stream_reader("chat")
    assert BAD not in feed(fresh, chunk(usage=usage), chunk(choices=[], usage=usage))
    assert fresh.usage is None


@pytest.mark.parametrize("usage", NO_USAGE)
def test_a_body_whose_usage_says_nothing_is_counted(usage: Any):
    body = {"choices": [{"message": {"content": "x" * 40}, "finish_reason": "stop"}], "usage": usage}
    assert read_usage("chat", json.dumps(body).encode()) == (None, "stop", 40)


def test_continuous_usage_keeps_the_latest():
    reader = stream_reader("chat")
    for n in range(1, 5):
        feed(reader, chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": n}))
        assert reader.usage == Usage(input_tokens=3, output_tokens=n)
        assert reader.usage_final  # were the stream cut here, nothing would have to be counted


def test_usage_of_a_first_chunk_is_not_of_what_follows():
    reader = stream_reader("chat")
    feed(reader, chunk({"role": "assistant"}, usage={"prompt_tokens": 9, "completion_tokens": 0}))
    feed(reader, chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": 1}))
    assert reader.usage_final
    feed(reader, chunk({"content": "b"}), chunk({"content": "c"}))
    assert not reader.usage_final
    assert reader.usage == Usage(9, 1)
    feed(reader, chunk(finish="stop"), chunk(choices=[], usage={**USAGE_OBJECT, "completion_tokens": 3}))
    assert reader.usage_final


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
def test_no_output_reported_for_an_answer_covers_nothing(dialect: str):
    zero = {"input_tokens": 9, "output_tokens": 0}
    events = {
        "chat": [chunk({"content": "text"}), chunk(finish="stop", usage=zero), b"[DONE]"],
        "messages": [
            {"type": "message_start", "message": {"usage": zero}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "text"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": zero},
        ],
        "responses": [
            {"type": "response.output_text.delta", "delta": "text"},
            {"type": "response.completed", "response": {"usage": zero}},
        ],
    }[dialect]
    reader = stream_reader(dialect)
    feed(reader, *events)
    assert not reader.usage_final
    assert reader.usage == Usage(9, 0)
    bodies = {
        "chat": {"choices": [{"message": {"content": "text"}}]},
        "messages": {"content": [{"type": "text", "text": "text"}]},
        "responses": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "text"}]}]},
    }
    usage = read_usage(dialect, json.dumps({**bodies[dialect], "usage": zero}).encode())[0]
    assert usage == Usage(9, 1, estimated=True)


def test_llama_cpp_timings_are_final():
    reader = stream_reader("chat")
    feed(reader, *[chunk({"content": "a"})] * 3)
    feed(reader, chunk(finish="length", timings={"cache_n": 4, "prompt_n": 5, "predicted_n": 3}))
    assert (reader.usage, reader.usage_final) == (Usage(9, 3, 4), True)


@pytest.mark.parametrize(("tier", "service"), [("priority", "priority"), ("flex", "flex"), ("default", "")])
def test_the_class_of_service_is_read_whole_and_streamed(tier: str, service: str):
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE_OBJECT}
    whole = read_usage("chat", json.dumps({**body, "service_tier": tier}).encode())[0]
    assert whole == Usage(9, 12, service=service)
    reader = stream_reader("chat")
    feed(reader, chunk({"role": "assistant"}, service_tier=tier), chunk({"content": "hi"}, service_tier=tier))
    feed(reader, chunk(finish="stop"), chunk(choices=[], usage=USAGE_OBJECT))
    assert reader.usage == whole
    response = {
        "status": "completed",
        "service_tier": tier,
        "usage": {"input_tokens": 9, "output_tokens": 12},
    }
    assert read_usage("responses", json.dumps({**response, "output": []}).encode())[0] == whole
    reader = stream_reader("responses")
    feed(reader, {"type": "response.created", "response": {"service_tier": "auto"}})
    feed(reader, {"type": "response.completed", "response": response})
    assert reader.usage == whole


def test_searches_are_counted_whole_and_streamed():
    items = [
        {"type": "web_search_call", "id": "a", "status": "completed", "action": {"type": "search"}},
        {"type": "web_search_call", "id": "b", "status": "completed", "action": {"type": "open_page"}},
        {"type": "web_search_call", "id": "c", "status": "completed"},
        {"type": "file_search_call", "id": "d", "status": "completed", "queries": []},
        {"type": "message", "content": [{"type": "output_text", "text": "found"}]},
    ]
    usage = {"input_tokens": 900, "output_tokens": 12}
    expected = Usage(900, 12, web_searches=2, file_searches=1)
    body = {"status": "completed", "output": items, "usage": usage}
    assert read_usage("responses", json.dumps(body).encode())[0] == expected
    assert read_usage("responses", json.dumps({**body, "status": 7}).encode())[0] == expected
    reader = stream_reader("responses")
    for item in items:
        feed(reader, {"type": "response.output_item.added", "item": {**item, "status": "in_progress"}})
        feed(reader, {"type": "response.output_item.done", "item": item})
    feed(reader, {"type": "response.completed", "response": {"output": items, "usage": usage}})
    assert reader.usage == expected


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
        # cached input left out of the input but kept in the total, or larger than it
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 3,
                "total_tokens": 123,
                "prompt_tokens_details": {"cached_tokens": 100},
            },
            Usage(120, 3, 100),
        ),
        ({"prompt_tokens": 20, "completion_tokens": 3, "cache_read_input_tokens": 100}, Usage(120, 3, 100)),
        # reasoning and citations that Perplexity bills beside the answer
        (
            {
                "prompt_tokens": 33,
                "completion_tokens": 7163,
                "total_tokens": 7196,
                "citation_tokens": 20016,
                "num_search_queries": 18,
                "reasoning_tokens": 73995,
                "cost": {"input_tokens_cost": 0.0, "total_cost": 0.409},
            },
            Usage(33, 101174, reasoning_tokens=73995, web_searches=18, billed_units=409_000_000_000),
        ),
        # what OpenRouter charged; with a key of one's own, its fee and the provider's price
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "cost": 4.1e-05, "cost_details": {}},
            Usage(9, 1, billed_units=41_000_000),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "cost": 0.000002,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.00004},
            },
            Usage(9, 1, billed_units=42_000_000),
        ),
        # xAI's ticks of 10^-10 dollars
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "cost_in_usd_ticks": 37756000},
            Usage(9, 1, billed_units=3_775_600_000),
        ),
        (
            {
                "prompt_tokens": 900,
                "completion_tokens": 1300,
                "prompt_tokens_details": {"image_tokens": 258},
                "completion_tokens_details": {"image_tokens": 1290},
                "server_tool_use": {"web_search_requests": 2},
            },
            Usage(900, 1300, image_input_tokens=258, image_output_tokens=1290, web_searches=2),
        ),
        # parts that make no sense are left out, the whole stands
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"audio_tokens": 10, "image_tokens": -3},
                "cost": -1,
            },
            Usage(9, 4),
        ),
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
    before = reader.output_bytes
    kind = feed(reader, chunk(delta))
    assert reader.output_bytes - before == chars
    assert kind == [CONTENT]


def test_completions_and_several_choices():
    reader = stream_reader("completions")
    choices = [{"index": i, "text": "ab", "finish_reason": None} for i in range(3)]
    assert feed(reader, *[{"choices": choices}] * 2) == [CONTENT, CONTENT]
    assert reader.output_bytes == 12


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
        assert reader.output_bytes >= 0
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
    assert (reader.finish_reason, reader.model, reader.output_bytes) == ("tool_use", "claude", 13)
    assert reader.output_events == 4, "a signature is no text"


def test_messages_usage_merges_what_each_event_names():
    reader = stream_reader("messages")
    feed(reader, {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}})
    assert reader.usage is None
    feed(reader, {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 7, "output_tokens": 3}})
    assert reader.usage == Usage(7, 3)
    feed(reader, {"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 5}})
    assert reader.usage == Usage(7, 5)


MESSAGES_END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}


def messages_reader(*usages: dict[str, Any]) -> StreamReader:
    reader = stream_reader("messages")
    feed(reader, {"type": "message_start", "message": {"model": "m", "usage": usages[0]}})
    feed(reader, *({**MESSAGES_END, "usage": usage} for usage in usages[1:]))
    return reader


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        # server tools read and write more than the first event knew (field 18)
        (
            [
                {"input_tokens": 10, "cache_creation_input_tokens": 1000, "output_tokens": 1},
                {
                    "input_tokens": 12,
                    "cache_creation_input_tokens": 5000,
                    "cache_read_input_tokens": 7000,
                    "output_tokens": 40,
                    "server_tool_use": {"web_search_requests": 3},
                },
            ],
            Usage(12012, 40, 7000, 5000, web_searches=3),
        ),
        # ... and what is written later is kept as long as what the split was told of
        (
            [
                {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 1000,
                    "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 0},
                },
                {"cache_creation_input_tokens": 5000, "output_tokens": 40},
            ],
            Usage(5010, 40, 0, 0, 5000),
        ),
        # input counts that are put right at the end, or repeated as zeros
        (
            [{"input_tokens": 100}, {"input_tokens": 20, "cache_read_input_tokens": 80, "output_tokens": 5}],
            Usage(100, 5, 80),
        ),
        (
            [{"input_tokens": 20, "cache_read_input_tokens": 80}, {"input_tokens": 0, "output_tokens": 5}],
            Usage(100, 5, 80),
        ),
        # cumulative, in several events
        ([{"input_tokens": 7, "output_tokens": 1}, {"output_tokens": 3}, {"output_tokens": 9}], Usage(7, 9)),
        # compaction is billed beside the totals; an advisor is another model, so its price is a guess
        (
            [
                {
                    "input_tokens": 100,
                    "output_tokens": 10,
                    "iterations": [
                        {"type": "compaction", "input_tokens": 5000, "output_tokens": 300},
                        {"type": "message", "input_tokens": 100, "output_tokens": 10},
                    ],
                }
            ],
            Usage(5100, 310),
        ),
        (
            [
                {
                    "input_tokens": 100,
                    "output_tokens": 10,
                    "iterations": [
                        {
                            "type": "advisor_message",
                            "model": "dearer",
                            "input_tokens": 50,
                            "cache_read_input_tokens": 20,
                            "output_tokens": 7,
                        },
                        {"type": "message", "input_tokens": 100, "output_tokens": 10},
                    ],
                }
            ],
            Usage(170, 17, 20, estimated=True),
        ),
        (
            [{"input_tokens": 7, "output_tokens": 2, "service_tier": "standard", "speed": "fast"}],
            Usage(7, 2, service="fast"),
        ),
        (
            [{"input_tokens": 7, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 1}}],
            Usage(7, 2, reasoning_tokens=1),
        ),
        ([{"input_tokens": 7, "output_tokens": -2}], None),
        ([{"input_tokens": 10**12, "output_tokens": 2}], None),
        ([{"input_tokens": 7, "cache_read_input_tokens": -7, "output_tokens": 2}], None),
    ],
)
def test_messages_usage_whole_and_streamed(usages: list[dict[str, Any]], expected: Usage | None):
    assert messages_reader(*usages).usage == expected
    told: dict[str, Any] = {}
    for usage in usages:
        told = merge_messages_usage(told, usage)
    assert usage_of("messages", told) == expected
    whole = {"content": [], "stop_reason": "end_turn", "usage": told}
    assert read_usage("messages", json.dumps(whole).encode())[0] == expected


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
    assert (reader.finish_reason, reader.model, reader.output_bytes) == ("completed", "gpt", 10)
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
