"""Streams between dialects: the real SDKs accumulate them to what the upstream meant."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from translate_sdk import Sdk

from apportion.measure.usage import Usage
from apportion.serve.translate import Stream, translate
from apportion.serve.wire import CONTENT, DONE, ERROR, stream_reader

USER: Any = [{"role": "user", "content": "x"}]
PAIRS = [("chat", "messages"), ("messages", "chat"), ("responses", "chat"), ("responses", "messages")]


def stream(client: str, upstream: str, usage: Usage | None = None, **asked: Any) -> Stream:
    base: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": USER, "stream": True}
    if client == "chat":
        base["stream_options"] = {"include_usage": True}
    if client == "responses":
        base = {"model": "m", "input": "x", "stream": True}
    return translate({**base, **asked}, client=client, upstream=upstream, created_s=7).stream(usage)


# --- what upstreams send --------------------------------------------------------------------------


def start(**usage: int) -> dict[str, Any]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1, **usage},
    }
    return {"type": "message_start", "message": message}


def block(index: int, body: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": body},
        *({"type": "content_block_delta", "index": index, "delta": d} for d in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def end(reason: str = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 40, **usage}},
        {"type": "message_stop"},
    ]


ANTHROPIC = [
    start(cache_read_input_tokens=100, cache_creation_input_tokens=50),
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m\u2028"},
        {"type": "signature_delta", "signature": "EqQB+/=="},
    ),
    *block(1, {"type": "redacted_thinking", "data": "xx"}),
    *block(
        2,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Hé"},
        {"type": "text_delta", "text": "llo"},
    ),
    *block(
        3,
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"a":'},
        {"type": "input_json_delta", "partial_json": '"ü"}'},
    ),
    *block(4, {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}),
    *end("tool_use", output_tokens_details={"thinking_tokens": 5}),
]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    return {**head, "choices": [choice], **more}


USAGE = {
    "prompt_tokens": 160,
    "completion_tokens": 40,
    "total_tokens": 200,
    "prompt_tokens_details": {"cached_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


def call(index: int | None, arguments: str | None = None, **head: Any) -> dict[str, Any]:
    function = {
        k: v for k, v in (("name", head.pop("name", None)), ("arguments", arguments)) if v is not None
    }
    numbered = {} if index is None else {"index": index}
    return {"tool_calls": [{**numbered, **head, "function": function}]}


OPENAI: list[Any] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "Hé"}),
    chunk({"content": "llo"}),
    chunk(call(0, "", id="call_1", type="function", name="f")),
    chunk(call(0, '{"a":')),
    chunk(call(0, '"ü"}')),
    chunk(call(1, "{}", id="call_2", type="function", name="g")),
    chunk(finish="tool_calls"),
    chunk(choices=[], usage=USAGE),
    b"[DONE]",
]
UPSTREAM = {"messages": ANTHROPIC, "chat": OPENAI}


# --- whole streams --------------------------------------------------------------------------------


def test_anthropic_events_for_a_chat_client(sdk: Sdk):
    out = sdk.run(stream("chat", "messages"), ANTHROPIC)
    done = sdk.chat(out)
    choice = done.choices[0]
    assert (done.id, done.model, done.created) == ("msg_1", "claude", 7)
    assert (choice.message.content, choice.finish_reason) == ("Héllo", "tool_calls")
    assert choice.message.reasoning_content == "hm\u2028"
    assert [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls] == [
        ("toolu_1", "f", '{"a":"ü"}'),
        ("toolu_2", "g", "{}"),
    ]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (160, 40, 200)
    assert done.usage.prompt_tokens_details.cached_tokens == 100
    assert done.usage.prompt_tokens_details.cache_write_tokens == 50
    assert done.usage.completion_tokens_details.reasoning_tokens == 5
    chunks = [json.loads(d) for _, d in sdk.events(out) if d != b"[DONE]"]
    assert sdk.events(out)[-1][1] == b"[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    signed = [b for c in chunks if c["choices"] for b in c["choices"][0]["delta"].get("thinking_blocks", [])]
    assert signed == [
        {"index": 0, "type": "thinking", "thinking": "hm\u2028", "signature": "EqQB+/=="},
        {"index": 1, "type": "redacted_thinking", "data": "xx"},
    ]
    asked = {"model": "claude-opus-5", "messages": [*USER, choice.message.to_dict()]}
    sent = translate(asked, client="chat", upstream="messages", created_s=1).body
    assert sent["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm\u2028", "signature": "EqQB+/=="},
        {"type": "redacted_thinking", "data": "xx"},
        {"type": "text", "text": "Héllo"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "ü"}},
        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
    ]
    assert [c["usage"] is None for c in chunks] == [True] * (len(chunks) - 1) + [False]


def test_usage_only_when_asked(sdk: Sdk):
    out = sdk.run(stream("chat", "messages", stream_options=None), ANTHROPIC)
    assert b'"usage"' not in out
    assert sdk.chat(out).choices[0].message.content == "Héllo"


def test_chat_chunks_for_an_anthropic_client(sdk: Sdk):
    out = sdk.run(stream("messages", "chat", Usage(150, estimated=True)), OPENAI)
    done = sdk.message(out)
    assert [b.to_dict() for b in done.content] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Héllo"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": "ü"}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
    ]
    assert (done.id, done.model, done.stop_reason) == ("chatcmpl-1", "gpt", "tool_use")
    assert done.usage.input_tokens == 60
    assert done.usage.cache_read_input_tokens == 100
    assert done.usage.output_tokens == 40
    assert done.usage.output_tokens_details.thinking_tokens == 5
    events = [json.loads(d) for _, d in sdk.events(out)]
    assert events[0]["message"]["usage"]["input_tokens"] == 150
    assert all(name == e["type"].encode() for (name, _), e in zip(sdk.events(out), events, strict=True))
    assert_blocks_are_sequential(events)


def assert_blocks_are_sequential(events: list[dict[str, Any]]) -> None:
    current, last = None, -1
    for event in events:
        if event["type"] == "content_block_start":
            assert current is None
            assert event["index"] == last + 1
            current = last = event["index"]
        elif event["type"] == "content_block_delta":
            assert event["index"] == current
        elif event["type"] == "content_block_stop":
            assert event["index"] == current
            current = None
    assert current is None


def test_chat_chunks_for_a_responses_client(sdk: Sdk):
    out = sdk.run(stream("responses", "chat"), OPENAI)
    done = sdk.response(out)
    assert [i.type for i in done.output] == ["reasoning", "message", "function_call", "function_call"]
    assert done.output_text == "Héllo"
    assert done.output[0].summary[0].text == "hm"
    assert (done.output[2].call_id, done.output[2].name, done.output[2].arguments) == (
        "call_1",
        "f",
        '{"a":"ü"}',
    )
    assert (done.status, done.usage.input_tokens, done.usage.output_tokens) == ("completed", 160, 40)
    events = [json.loads(d) for _, d in sdk.events(out)]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert [e["type"] for e in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert b"[DONE]" not in out


def test_anthropic_events_for_a_responses_client(sdk: Sdk):
    out = sdk.run(stream("responses", "messages"), ANTHROPIC)
    done = sdk.response(out)
    assert done.output_text == "Héllo"
    assert [i.type for i in done.output] == ["reasoning", "message", "function_call", "function_call"]
    assert done.usage.input_tokens == 160
    asked = {"model": "claude-opus-5", "input": [*USER, *(i.to_dict() for i in done.output)]}
    sent = translate(asked, client="responses", upstream="messages", created_s=1).body
    assert sent["messages"][1]["content"][:2] == [
        {"type": "thinking", "thinking": "hm\u2028", "signature": "EqQB+/=="},
        {"type": "redacted_thinking", "data": "xx"},
    ]


def test_every_event_fits_the_sdks_types(sdk: Sdk):
    asked: dict[str, Any] = {"model": "m", "messages": USER, "stream": True}
    chat = sdk.run(stream("chat", "messages"), ANTHROPIC)
    assert len(list(sdk.openai(chat, pieces=1).chat.completions.create(**asked))) > 5
    messages = sdk.run(stream("messages", "chat"), OPENAI)
    assert len(list(sdk.anthropic(messages).messages.create(**asked, max_tokens=9))) > 5
    for upstream, events in UPSTREAM.items():
        out = sdk.run(stream("responses", upstream), events)
        assert len(list(sdk.openai(out).responses.create(model="m", input="x", stream=True))) > 5


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_nothing_is_held_back(client: str, upstream: str):
    """Each upstream event with content at once becomes a client event with content."""
    translator, there, here = stream(client, upstream), stream_reader(upstream), stream_reader(client)
    for event in UPSTREAM[upstream]:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        name = event["type"].encode() if isinstance(event, dict) and "type" in event else None
        kind = there.event(data, name)
        out = translator.feed(name, data)
        signature = b"signature" in data or b"redacted" in data
        if kind == CONTENT and not signature:
            assert CONTENT in [here.event(d, n) for n, d in Sdk().events(out)]
        else:
            for n, d in Sdk().events(out):
                here.event(d, n)
    assert here.usage is not None
    assert there.usage is not None
    assert (here.usage.input_tokens, here.usage.output_tokens) == (160, 40)
    assert here.usage.cached_input_tokens == there.usage.cached_input_tokens
    assert here.usage_final


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_the_end_comes_once(client: str, upstream: str, sdk: Sdk):
    translator = stream(client, upstream)
    out = sdk.run(translator, UPSTREAM[upstream], done=False)
    assert translator.ended
    assert translator.finish() == b""
    assert translator.error({"error": {"message": "late"}}) == b""
    assert translator.feed(None, b'{"choices":[]}') == b""
    reader = stream_reader(client)
    kinds = [reader.event(d, n) for n, d in sdk.events(out)]
    assert kinds.count(DONE) == 1
    assert kinds[-1] == DONE


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_stream_without_an_end_mark_can_be_finished(client: str, upstream: str, sdk: Sdk):
    events = UPSTREAM[upstream][:-3]
    out = sdk.run(stream(client, upstream), events)
    final: dict[str, Callable[[bytes], Any]] = {
        "chat": sdk.chat,
        "messages": sdk.message,
        "responses": sdk.response,
    }
    assert final[client](out) is not None


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_empty_stream_can_be_finished(client: str, upstream: str, sdk: Sdk):
    out = stream(client, upstream).finish()
    final: dict[str, Callable[[bytes], Any]] = {
        "chat": sdk.chat,
        "messages": sdk.message,
        "responses": sdk.response,
    }
    assert final[client](out) is not None


# --- errors ---------------------------------------------------------------------------------------

ERRORS = {
    "messages": {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}},
    "chat": {"error": {"message": "too busy", "type": "server_error", "param": None, "code": None}},
}


@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_inside_reaches_the_client_as_its_own(client: str, upstream: str, after: int, sdk: Sdk):
    translator = stream(client, upstream)
    out = sdk.run(translator, [*UPSTREAM[upstream][:after], ERRORS[upstream]])
    assert translator.ended
    reader = stream_reader(client)
    assert [reader.event(d, n) for n, d in sdk.events(out)][-1] == ERROR
    with pytest.raises((openai.APIError, anthropic.APIError), match="too busy"):
        read(sdk, client, out)


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_of_the_proxy_ends_the_stream(client: str, upstream: str, sdk: Sdk):
    translator = stream(client, upstream)
    out = sdk.run(translator, UPSTREAM[upstream][:4], done=False) + translator.error(
        {"error": {"message": "cut"}}
    )
    with pytest.raises((openai.APIError, anthropic.APIError), match="cut"):
        read(sdk, client, out)
    assert translator.finish() == b""


def read(sdk: Sdk, client: str, out: bytes) -> None:
    if client == "chat":
        list(sdk.openai(out).chat.completions.create(model="m", messages=USER, stream=True))
    elif client == "responses":
        list(sdk.openai(out).responses.create(model="m", input="x", stream=True))
    else:
        list(sdk.anthropic(out).messages.create(model="m", max_tokens=9, messages=USER, stream=True))


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":' + b"[" * 100_000])
def test_damage_raises(client: str, upstream: str, data: bytes):
    with pytest.raises(ValueError):
        stream(client, upstream).feed(None, data)


# --- odd servers ----------------------------------------------------------------------------------


def test_calls_without_numbers_or_ids(sdk: Sdk):
    events = [
        chunk(call(None, '{"a":1}', name="f")),
        chunk({"tool_calls": [{"function": {"name": "g", "arguments": {"b": 2}}}]}),
        chunk(finish="stop"),
        b"[DONE]",
    ]
    done = sdk.message(sdk.run(stream("messages", "chat"), events))
    assert [(b.name, b.input) for b in done.content] == [("f", {"a": 1}), ("g", {"b": 2})]
    assert len({b.id for b in done.content}) == 2
    assert done.stop_reason == "tool_use"
    whole = sdk.response(sdk.run(stream("responses", "chat"), events))
    assert [(i.name, json.loads(i.arguments)) for i in whole.output] == [("f", {"a": 1}), ("g", {"b": 2})]


def test_interleaved_calls(sdk: Sdk):
    events = [
        chunk(call(0, "", id="a", name="f")),
        chunk(call(1, "", id="b", name="g")),
        chunk(call(0, "{}")),
        chunk(call(1, '{"x":1}')),
        chunk(finish="tool_calls"),
        b"[DONE]",
    ]
    done = sdk.message(sdk.run(stream("messages", "chat"), events))
    assert [(b.name, b.input) for b in done.content] == [("f", {}), ("g", {"x": 1})]
    whole = sdk.response(sdk.run(stream("responses", "chat"), events))
    assert [(i.name, i.arguments) for i in whole.output] == [("f", "{}"), ("g", '{"x":1}')]


def test_tool_input_sent_with_the_start(sdk: Sdk):
    tool = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    done = sdk.chat(sdk.run(stream("chat", "messages"), [start(), *block(0, tool), *end("tool_use")]))
    assert done.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'


def test_refusals(sdk: Sdk):
    events = [chunk({"refusal": "I "}), chunk({"refusal": "won't"}), chunk(finish="stop"), b"[DONE]"]
    done = sdk.message(sdk.run(stream("messages", "chat"), events))
    assert (done.content[0].text, done.stop_reason) == ("I won't", "refusal")
    whole = sdk.response(sdk.run(stream("responses", "chat"), events))
    assert whole.output[0].content[0].refusal == "I won't"


def test_usage_on_the_finish_chunk_and_in_x_groq(sdk: Sdk):
    for last in (chunk(finish="stop", usage=USAGE), chunk(finish="stop", x_groq={"usage": USAGE})):
        events = [chunk({"content": "a"}), last, b"[DONE]"]
        assert sdk.message(sdk.run(stream("messages", "chat"), events)).usage.output_tokens == 40
        assert sdk.response(sdk.run(stream("responses", "chat"), events)).usage.output_tokens == 40


@pytest.mark.parametrize(("finish", "stop"), [("length", "max_tokens"), ("content_filter", "refusal")])
def test_cut_answers(finish: str, stop: str, sdk: Sdk):
    events = [chunk({"content": "a"}), chunk(finish=finish), b"[DONE]"]
    assert sdk.message(sdk.run(stream("messages", "chat"), events)).stop_reason == stop
    out = sdk.run(stream("responses", "chat"), events)
    last = json.loads(sdk.events(out)[-1][1])
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_stop_sequence_named_by_the_server(sdk: Sdk):
    last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}])
    done = sdk.message(sdk.run(stream("messages", "chat"), [chunk({"content": "a"}), last, b"[DONE]"]))
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "END")


def test_custom_tool_calls(sdk: Sdk):
    first = {"index": 0, "id": "k", "type": "custom", "custom": {"name": "c", "input": "a"}}
    more = {"index": 0, "custom": {"input": "b"}}
    events = [
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [more]}),
        chunk(finish="tool_calls"),
        b"[DONE]",
    ]
    out = sdk.run(stream("responses", "chat"), events)
    item = sdk.response(out).output[0]
    assert (item.type, item.call_id, item.name, item.input) == ("custom_tool_call", "k", "c", "ab")
    assert out.count(b"custom_tool_call_input.done") == 2  # the event's name and its type


def test_logprobs_reach_a_responses_client(sdk: Sdk):
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
    piece = chunk(choices=[{"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}])
    done = sdk.response(sdk.run(stream("responses", "chat"), [piece, chunk(finish="stop"), b"[DONE]"]))
    assert done.output[0].content[0].logprobs[0].logprob == -0.1


def test_lone_surrogates_pass():
    out = stream("messages", "chat").feed(None, b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}')
    assert b"\\ud83d" in out


def test_only_the_first_choice_is_told():
    second = {"index": 1, "delta": {"content": "other"}, "finish_reason": None}
    for client in ("messages", "responses"):
        assert b"other" not in stream(client, "chat").feed(None, json.dumps(chunk(choices=[second])).encode())


# --- any way of cutting an answer into events means the same -----------------------------------------

cuts = st.lists(st.integers(0, 60), max_size=8)


def pieces(value: str, at: list[int]) -> list[str]:
    edges = sorted({0, len(value), *(a for a in at if a < len(value))})
    return [value[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=40)
@given(
    thought=st.text(max_size=30),
    words=st.text(max_size=40),
    arguments=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
    at=cuts,
)
def test_any_cut_means_the_same(thought: str, words: str, arguments: dict[str, str], at: list[int]):
    sdk = Sdk()
    written = json.dumps(arguments)
    chat: list[Any] = [chunk({"reasoning_content": p}) for p in pieces(thought, at)]
    chat += [chunk({"content": p}) for p in pieces(words, at)]
    chat += [chunk(call(0, "", id="c", name="f"))] + [chunk(call(0, p)) for p in pieces(written, at)]
    chat += [chunk(finish="tool_calls"), b"[DONE]"]
    anthropic_events = [
        start(),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            *({"type": "thinking_delta", "thinking": p} for p in pieces(thought, at)),
        ),
        *block(
            1, {"type": "text", "text": ""}, *({"type": "text_delta", "text": p} for p in pieces(words, at))
        ),
        *block(
            2,
            {"type": "tool_use", "id": "c", "name": "f", "input": {}},
            *({"type": "input_json_delta", "partial_json": p} for p in pieces(written, at)),
        ),
        *end("tool_use"),
    ]
    message = sdk.message(sdk.run(stream("messages", "chat"), chat))
    got = {b.type: b for b in message.content}
    assert (got["thinking"].thinking if thought else "") == thought
    assert (got["text"].text if words else "") == words
    assert got["tool_use"].input == arguments
    completion = sdk.chat(sdk.run(stream("chat", "messages"), anthropic_events)).choices[0].message
    assert getattr(completion, "reasoning_content", "") == thought
    assert completion.content == words
    assert json.loads(completion.tool_calls[0].function.arguments) == arguments
    for upstream, events in (("chat", chat), ("messages", anthropic_events)):
        response = sdk.response(sdk.run(stream("responses", upstream), events))
        assert response.output_text == words
        assert json.loads(response.output[-1].arguments) == arguments


# --- one wrong value anywhere -----------------------------------------------------------------------

WRONG: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], [1], ["x"], [{}], {}, {"x": 1}, {"type": []}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    out = dict(value) if isinstance(value, dict) else list(value)
    out[path[0]] = replaced(value[path[0]], path[1:], by)
    return out


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_wrong_value_in_an_event_is_survived(client: str, upstream: str, sdk: Sdk):
    """No exception, well-formed events, and one end."""
    events = [e for e in UPSTREAM[upstream] if isinstance(e, dict)]
    for number, event in enumerate(events):
        for path in places(event):
            for wrong in WRONG:
                changed = [*events[:number], replaced(event, path, wrong), *events[number + 1 :]]
                try:
                    out = sdk.run(stream(client, upstream), changed)
                except Exception as error:
                    raise AssertionError(f"{path} = {wrong!r} in {event}") from error
                last = sdk.events(out)[-1]
                assert stream_reader(client).event(last[1], last[0]) in (DONE, ERROR)
