"""A whole answer made into a stream is the same answer again: for the project's assembler and for the SDKs."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response
from test_assemble import (
    MESSAGES_EVENT,
    RESPONSES_EVENT,
    Json,
    answer,
    arguments,
    bare,
    chat_streams,
    completion_streams,
    json_values,
    message_streams,
    quick,
    response_streams,
    texts,
    wire,
    without_call_index,
)

from apportion.serve.assemble import Api, assembler
from apportion.serve.cache import restream
from apportion.serve.http import sse
from apportion.serve.wire import stream_reader


def streamed(api: Api, body: Json | bytes, **how: Any) -> bytes:
    return b"".join(restream.events(api, body, **how))


def again(api: Api, body: Json | bytes, **how: Any) -> Json:
    """``body`` as a stream, and that as a body."""
    made = assembler(api)
    for event in restream.events(api, body, **how):
        made.write(event)
    assert made.ended
    whole: Json = json.loads(made.body(None, cut=False))
    return whole


def without_null_heads(body: Json) -> Json:
    """A chunk says nothing of a field that is null at the top."""
    return {key: value for key, value in body.items() if value is not None}


# --- generated bodies -----------------------------------------------------------------------------

long_texts = texts | st.integers(restream.PIECE_CHARS - 1, 3 * restream.PIECE_CHARS).map("é𝄞 ".__mul__)


@st.composite
def chat_bodies(draw: st.DrawFn) -> Json:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        message: Json = {"role": "assistant", "content": draw(st.none() | long_texts), "refusal": None}
        if draw(st.booleans()):
            message[draw(st.sampled_from(["reasoning_content", "reasoning"]))] = draw(long_texts)
        if draw(st.booleans()):
            message["annotations"] = draw(st.sampled_from([[], [{"type": "url_citation", "url": "u"}]]))
        calls: list[Json] = []
        for number in range(draw(st.integers(0, 2))):
            function = {"name": f"f{number}", "arguments": draw(arguments)}
            calls.append({"id": f"c{number}", "type": "function", "function": function})
        if calls:
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        logprob = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
        logprobs = draw(st.sampled_from([None, {"content": [logprob, logprob], "refusal": None}]))
        finish = "tool_calls" if calls else "stop"
        choices.append({"index": index, "logprobs": logprobs, "message": message, "finish_reason": finish})
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    body = {"id": "i", "object": "chat.completion", "created": 5, "model": "m", "choices": choices}
    head = draw(st.sampled_from([{}, {"system_fingerprint": "f"}, {"provider": "p", "service_tier": None}]))
    return {**body, **head, "usage": usage}


@st.composite
def message_bodies(draw: st.DrawFn) -> Json:
    inputs = st.dictionaries(texts, json_values, max_size=3)
    block = st.one_of(
        st.builds(lambda t: {"type": "text", "text": t, "citations": None}, long_texts),
        st.builds(lambda t: {"type": "thinking", "thinking": t, "signature": "c2ln"}, long_texts),
        st.builds(lambda i: {"type": "tool_use", "id": "t", "name": "n", "input": i}, inputs),
        st.just({"type": "redacted_thinking", "data": "opaque"}),
    )
    usage = {"input_tokens": 9, "output_tokens": draw(st.integers(0, 40)), "cache_read_input_tokens": 3}
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": draw(st.lists(block, max_size=4)),
        "stop_reason": draw(st.sampled_from(["end_turn", "tool_use"])),
        "stop_sequence": None,
        "usage": usage,
    }


# --- the same for the assembler -------------------------------------------------------------------


@quick
@given(chat_bodies())
def test_chat_bodies_come_back(body: Json) -> None:
    assert again("chat", body) == without_null_heads(body)
    without = {key: value for key, value in body.items() if key != "usage"}
    assert again("chat", body, include_usage=False) == without_null_heads(without)


@quick
@given(chat_streams())
def test_chat_from_streams_comes_back(events: list[Any]) -> None:
    body = answer("chat", events)
    assert again("chat", body) == without_null_heads(body)


@quick
@given(completion_streams())
def test_completions_come_back(events: list[Any]) -> None:
    body = answer("completions", events)
    assert again("completions", body) == body


@quick
@given(message_bodies())
def test_message_bodies_come_back(body: Json) -> None:
    assert again("messages", body) == body


@quick
@given(message_streams())
def test_messages_from_streams_come_back(events: list[Any]) -> None:
    body = answer("messages", events)
    assert again("messages", body) == body


@quick
@given(response_streams())
def test_responses_come_back_verbatim_and_from_their_parts(events: list[Any]) -> None:
    body = answer("responses", events)
    assert again("responses", body) == body
    # Without the last event, which holds it all, the parts alone make the same output.
    made = assembler("responses")
    for event in list(restream.events("responses", body))[:-1]:
        made.write(event)
    assert bare(json.loads(made.body(None, cut=False))["output"]) == bare(body["output"])


# --- the same for the SDKs ------------------------------------------------------------------------


@quick
@given(chat_bodies(), st.booleans())
def test_chat_through_the_sdk(body: Json, include_usage: bool) -> None:
    chunks, final = wire.chat(streamed("chat", body, include_usage=include_usage))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict())
    want = bare(body)
    if not include_usage:
        del want["usage"]
    got = bare(without_call_index(final.to_dict()))
    for mine, sdk in zip(want["choices"], got["choices"], strict=True):
        mine["message"].setdefault("content", "") if "content" in sdk["message"] else None
    assert got == want


@quick
@given(completion_streams())
def test_completions_through_the_sdk(events: list[Any]) -> None:
    body = answer("completions", events)
    chunks = wire.completions(streamed("completions", body))
    for choice in body["choices"]:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice["index"]]
        assert "".join(c.text for c in mine) == choice["text"]
        assert mine[-1].finish_reason == choice["finish_reason"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.to_dict() == body["usage"]


@quick
@given(message_bodies())
def test_messages_through_the_sdk(body: Json) -> None:
    for event in restream.events("messages", body):
        MESSAGES_EVENT.validate_json(sse.parse(event)[1] or b"")
    assert bare(wire.messages(streamed("messages", body)).to_dict()) == bare(body)


@quick
@given(response_streams())
def test_responses_through_the_sdk(events: list[Any]) -> None:
    body = answer("responses", events)
    seen = wire.responses(streamed("responses", body))
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    state: Any = ResponseStreamState(input_tools=[], text_format=openai.omit)
    for event in seen:
        RESPONSES_EVENT.validate_python(event.to_dict())
        state.handle_event(event)
    assert bare(seen[-1].response.to_dict()) == bare(Response.model_validate(body).to_dict())


# --- on the wire ----------------------------------------------------------------------------------


def test_no_line_is_longer_than_clients_read() -> None:
    text = '\x01𝄞"' * 20_000
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    chat = {"id": "i", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    block = {"type": "text", "text": text}
    messages = {"id": "i", "type": "message", "role": "assistant", "model": "m", "content": [block]}
    for api, body in (("chat", chat), ("messages", {**messages, "stop_reason": "end_turn"})):
        assert max(map(len, streamed(api, body).split(b"\n"))) < 2**16  # type: ignore[arg-type]


def test_a_note_stands_before_the_end() -> None:
    message = {"role": "assistant", "content": "hi", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {"id": "i", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    note = b": apportion {}\n\n"
    assert streamed("chat", body, note=note).endswith(note + b"data: [DONE]\n\n")
    assert again("chat", json.dumps(body).encode(), note=note) == body


def test_a_stream_reader_sees_a_complete_answer() -> None:
    message = {"role": "assistant", "content": "hi", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    body = {"id": "i", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    reader = stream_reader("chat")
    for event in restream.events("chat", {**body, "usage": usage}):
        reader.event(sse.parse(event)[1] or b"")
    assert reader.finish_reason == "stop"
    assert reader.usage is not None
    assert reader.usage.output_tokens == 4


@pytest.mark.parametrize("body", [b"[]", b"3", b"no json"])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        list(restream.events("chat", body))
