"""Complete answers and errors between dialects, accepted by the real SDKs."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from translate_sdk import Sdk

from apportion.measure.usage import Usage
from apportion.serve.translate import error_body, error_event, translate
from apportion.serve.translate.usage import chat_usage, messages_usage, responses_usage
from apportion.serve.wire import ErrorInfo, usage_of

USER: Any = [{"role": "user", "content": "x"}]


def back(client: str, upstream: str, answer: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """``answer`` of ``upstream`` as the client gets it."""
    base: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": USER}
    if client == "responses":
        base = {"model": "m", "input": "x"}
    out = translate({**base, **asked}, client=client, upstream=upstream, created_s=7).response(answer)
    json.dumps(out)
    return out


def message(content: list[dict[str, Any]], stop: str = "end_turn", **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 5},
    }
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_sequence": None}
    return {**head, "content": content, "stop_reason": stop, "usage": usage, **more}


def completion(body: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **body}, "finish_reason": finish}
    usage = {
        "prompt_tokens": 160,
        "completion_tokens": 40,
        "total_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt"}
    return {**head, "choices": [{**choice, **more}], "usage": usage}


THINKING = {"type": "thinking", "thinking": "hm\u2028", "signature": "EqQB+/=="}
REDACTED = {"type": "redacted_thinking", "data": "xx"}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "ü", "b": []}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":"ü","b":[]}'}}


def test_message_to_chat(sdk: Sdk):
    answer = message(
        [THINKING, REDACTED, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}, TOOL_USE],
        "tool_use",
    )
    out = back("chat", "messages", answer)
    parsed = sdk.openai(json.dumps(out).encode()).chat.completions.create(model="m", messages=USER)
    choice = parsed.choices[0]
    assert (parsed.id, parsed.created, parsed.model) == ("msg_1", 7, "claude")
    assert (choice.message.content, choice.finish_reason) == ("ab", "tool_calls")
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].to_dict() == {**CALL, "id": "toolu_1"}
    assert out["choices"][0]["message"]["thinking_blocks"] == [THINKING, REDACTED]
    assert out["choices"][0]["message"]["reasoning_content"] == "hm\u2028"
    assert out["usage"] == {
        "prompt_tokens": 160,
        "completion_tokens": 40,
        "total_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 0, "cache_write_tokens": 50},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
    }


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("model_context_window_exceeded", "length"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_stop_reasons_to_chat(stop: Any, finish: str):
    assert back("chat", "messages", message([], stop))["choices"][0]["finish_reason"] == finish


def test_a_refusal_without_text_says_why(sdk: Sdk):
    details = {"type": "refusal", "category": "bio", "explanation": "no"}
    out = back("chat", "messages", message([], "refusal", stop_details=details))
    parsed = sdk.openai(json.dumps(out).encode()).chat.completions.create(model="m", messages=USER)
    assert parsed.choices[0].message.refusal == "no"


def test_chat_to_message(sdk: Sdk):
    body = {
        "content": "ab",
        "reasoning_content": "hm",
        "tool_calls": [CALL, {"function": {"name": "g", "arguments": "x"}}],
    }
    out = back("messages", "chat", completion(body, "tool_calls"))
    parsed = sdk.anthropic(json.dumps(out).encode()).messages.create(model="m", max_tokens=9, messages=USER)
    assert [b.to_dict() for b in parsed.content] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "ab"},
        {**TOOL_USE, "id": "call_1"},
        {"type": "tool_use", "id": "toolu_chatcmpl11", "name": "g", "input": {"invalid_json": "x"}},
    ]
    assert (parsed.stop_reason, parsed.model, parsed.id) == ("tool_use", "gpt", "chatcmpl-1")
    assert out["usage"] == {
        "input_tokens": 60,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 100,
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 5},
    }


@pytest.mark.parametrize(
    ("body", "more", "stop"),
    [
        ({"content": "a"}, {"finish_reason": "stop"}, ("end_turn", None)),
        ({"content": "a"}, {"finish_reason": "length"}, ("max_tokens", None)),
        ({"content": "a"}, {"finish_reason": "content_filter"}, ("refusal", None)),
        ({"refusal": "no"}, {"finish_reason": "stop"}, ("refusal", None)),
        ({"tool_calls": [CALL]}, {"finish_reason": "stop"}, ("tool_use", None)),
        ({"content": "a"}, {"finish_reason": "stop", "stop_reason": "END"}, ("stop_sequence", "END")),
        ({"content": "a"}, {"finish_reason": "stop", "stop_reason": 128001}, ("end_turn", None)),
        ({"content": "a"}, {"finish_reason": "stop", "matched_stop": "END"}, ("stop_sequence", "END")),
        ({"content": "a"}, {"finish_reason": None}, ("end_turn", None)),
    ],
)
def test_finish_reasons_to_messages(body: dict[str, Any], more: dict[str, Any], stop: tuple[str, str | None]):
    answer = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", **body}, **more}]}
    out = back("messages", "chat", answer)
    assert (out["stop_reason"], out["stop_sequence"]) == stop


def test_signed_thinking_comes_back_exactly():
    there = back("chat", "messages", message([THINKING, REDACTED, {"type": "text", "text": "a"}]))
    assert back("messages", "chat", there)["content"][:2] == [THINKING, REDACTED]


def test_chat_to_response(sdk: Sdk):
    logprobs = {
        "content": [
            {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "e", "logprob": -1}]}
        ]
    }
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}]
    answer = completion(
        {"content": "é", "refusal": "no", "reasoning": "hm", "tool_calls": [CALL]},
        "tool_calls",
        logprobs=logprobs,
    )
    out = back(
        "responses", "chat", answer, tools=tools, instructions="i", temperature=0.5, metadata={"k": "v"}
    )
    parsed = sdk.openai(json.dumps(out).encode()).responses.create(model="m", input="x")
    assert (parsed.id, parsed.created_at, parsed.model, parsed.status) == ("resp_1", 7, "gpt", "completed")
    assert [item.type for item in parsed.output] == ["reasoning", "message", "function_call"]
    assert parsed.output_text == "é"
    assert out["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert out["output"][1]["content"][0]["logprobs"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "e", "logprob": -1, "bytes": [101]}],
        }
    ]
    assert out["output"][1]["content"][1] == {"type": "refusal", "refusal": "no"}
    assert out["output"][2]["call_id"] == "call_1"
    assert out["output"][2]["arguments"] == CALL["function"]["arguments"]
    assert (out["tools"], out["instructions"], out["temperature"], out["metadata"]) == (
        tools,
        "i",
        0.5,
        {"k": "v"},
    )
    assert out["usage"] == {
        "input_tokens": 160,
        "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 0},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 200,
    }


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_incomplete_responses(sdk: Sdk, finish: str, reason: str):
    out = back("responses", "chat", completion({"content": "a"}, finish))
    parsed = sdk.openai(json.dumps(out).encode()).responses.create(model="m", input="x")
    assert parsed.status == "incomplete"
    assert parsed.incomplete_details is not None
    assert parsed.incomplete_details.reason == reason
    assert out["output"][0]["status"] == "incomplete"


def test_signed_thinking_survives_a_responses_client():
    answer = message([THINKING, REDACTED, {"type": "text", "text": "a"}, TOOL_USE], "tool_use")
    out = back("responses", "messages", answer)
    assert [i["type"] for i in out["output"]] == ["reasoning", "message", "function_call"]
    result = {"type": "function_call_output", "call_id": "toolu_1", "output": "r"}
    asked = {"model": "claude-opus-5", "input": [{"role": "user", "content": "x"}, *out["output"], result]}
    sent = translate(asked, client="responses", upstream="messages", created_s=1).body
    assert sent["messages"][1]["content"] == [THINKING, REDACTED, {"type": "text", "text": "a"}, TOOL_USE]


@pytest.mark.parametrize(
    "answer", [{}, {"choices": None}, {"choices": [3]}, {"choices": [{"message": 3}]}, {"content": 3}]
)
@pytest.mark.parametrize(
    ("client", "upstream"),
    [("chat", "messages"), ("messages", "chat"), ("responses", "chat"), ("responses", "messages")],
)
def test_an_odd_answer_is_still_translated(client: str, upstream: str, answer: dict[str, Any]):
    back(client, upstream, answer)


def test_usage_there_and_back():
    usage = Usage(160, 40, 100, 20, 30, 5)
    assert usage_of("messages", messages_usage(usage)) == usage
    merged = Usage(160, 40, 100, 50, 0, 5)
    assert usage_of("chat", chat_usage(usage)) == merged
    assert usage_of("responses", responses_usage(usage)) == merged
    audio = Usage(160, 40, audio_input_tokens=3, audio_output_tokens=4)
    assert usage_of("chat", chat_usage(audio)) == audio


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (b'{"error":{"message":"m","type":"server_error","param":null,"code":null}}', 500, "api_error"),
        (
            b'{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}',
            429,
            "billing_error",
        ),
        (b'{"error":{"message":"m","type":"tokens","code":"rate_limit_exceeded"}}', 429, "rate_limit_error"),
        (b'{"error":{"message":"m","type":"invalid_request_error"}}', 400, "invalid_request_error"),
        (b'{"message":"m"}', 404, "not_found_error"),
        (b"<html>", 503, "overloaded_error"),
        (b"", None, "api_error"),
        ({"error": {"message": "m", "code": 400}}, 400, "invalid_request_error"),
        (ErrorInfo("m", "overloaded_error"), None, "overloaded_error"),
    ],
)
def test_error_bodies_for_anthropic_clients(error: Any, status: int | None, kind: str):
    body = error_body(error, "messages", status)
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}',
            529,
            "overloaded_error",
            "server_overloaded",
        ),
        (
            b'{"type":"error","error":{"type":"rate_limit_error","message":"m"}}',
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        ),
        (b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', 400, "t", "c"),
        (b"oops", 500, "api_error", None),
    ],
)
def test_error_bodies_for_openai_clients(error: Any, status: int, kind: str, code: str | None):
    inner = error_body(error, "chat", status)["error"]
    assert inner.keys() == {"message", "type", "param", "code"}
    assert (inner["type"], inner["code"]) == (kind, code)


def test_error_events_raise_in_every_sdk(sdk: Sdk):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}}
    with pytest.raises(openai.APIError, match="too busy"):
        list(
            sdk.openai(error_event(error, "chat")).chat.completions.create(
                model="m", messages=USER, stream=True
            )
        )
    with pytest.raises(openai.APIError, match="too busy"):
        list(
            sdk.openai(error_event(error, "responses", 3)).responses.create(model="m", input="x", stream=True)
        )
    with pytest.raises(anthropic.APIError, match="too busy"):
        list(
            sdk.anthropic(error_event(error, "messages")).messages.create(
                model="m", max_tokens=9, messages=USER, stream=True
            )
        )
