"""Requests between dialects: what must survive, what is dropped and said so, what is refused by name."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from translate_sdk import Sdk

from apportion.serve.errors import GatewayError, InvalidRequestError, UnsupportedError
from apportion.serve.translate import Traits, Translation, can_translate, translate

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
USER = {"role": "user", "content": "hi"}


def chat(traits: Traits | None = None, **body: Any) -> Translation:
    """A chat request to an Anthropic upstream."""
    whole = {"model": "claude-haiku-4-5", "messages": [USER], **body}
    before = copy.deepcopy(whole)
    out = translate(whole, client="chat", upstream="messages", created_s=1, traits=traits or Traits())
    assert whole == before, "the client's request was changed"
    Sdk().check_request("messages", out.body)
    return out


def messages(traits: Traits | None = None, **body: Any) -> Translation:
    """An Anthropic request to a chat upstream."""
    whole = {"model": "m", "max_tokens": 100, "messages": [USER], **body}
    before = copy.deepcopy(whole)
    out = translate(whole, client="messages", upstream="chat", created_s=1, traits=traits or Traits())
    assert whole == before, "the client's request was changed"
    Sdk().check_request("chat", out.body)
    return out


def responses(upstream: str = "chat", **body: Any) -> Translation:
    """A responses request to a chat (or Anthropic) upstream."""
    whole = {"model": "m", "input": "hi", **body}
    before = copy.deepcopy(whole)
    out = translate(whole, client="responses", upstream=upstream, created_s=1)
    assert whole == before, "the client's request was changed"
    Sdk().check_request(upstream, out.body)
    return out


def test_pairs():
    assert can_translate("chat", "messages")
    assert not can_translate("chat", "responses")
    with pytest.raises(UnsupportedError, match="from chat to responses"):
        translate({}, client="chat", upstream="responses", created_s=1)


def test_model_is_replaced():
    body = {"model": "fast", "messages": [USER]}
    out = translate(body, client="chat", upstream="messages", created_s=1, model="claude-sonnet-4-5")
    assert out.body["model"] == "claude-sonnet-4-5"
    assert body["model"] == "fast"


# --- chat on messages -----------------------------------------------------------------------------


def test_system_messages_are_hoisted():
    out = chat(
        messages=[{"role": "system", "content": "a"}, USER, {"role": "developer", "content": [text("b")]}]
    ).body
    assert out["system"] == [text("a"), text("b")]
    assert out["messages"] == [USER]
    assert chat(messages=[{"role": "system", "content": "a"}, USER]).body["system"] == "a"


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def test_content_parts():
    mark = {"type": "ephemeral", "ttl": "1h"}
    note = base64.b64encode("grüße".encode()).decode()
    out = chat(
        messages=[
            {
                "role": "user",
                "content": [
                    text("a", cache_control=mark),
                    text("b", prompt_cache_breakpoint={"mode": "explicit"}),
                    text(""),
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                    {
                        "type": "file",
                        "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
                    },
                    {"type": "file", "file": {"file_data": f"data:text/plain;base64,{note}"}},
                    {"type": "file", "file": {"file_id": "file_1"}},
                ],
            }
        ]
    ).body
    assert out["messages"][0]["content"] == [
        text("a", cache_control=mark),
        text("b", cache_control={"type": "ephemeral"}),
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "grüße"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ]


CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}},
    {"id": "c2", "type": "function", "function": {"name": "f", "arguments": ""}},
    {"id": "c3", "type": "function", "function": {"name": "f", "arguments": '{"a'}},
]


def test_tool_calls_and_results():
    thinking = [
        {"type": "thinking", "thinking": "hm\u2028", "signature": "EqQB+/=="},
        {"type": "redacted_thinking", "data": "x"},
    ]
    out = chat(
        tools=[TOOL],
        messages=[
            USER,
            {
                "role": "assistant",
                "content": "so",
                "reasoning_content": "hm",
                "thinking_blocks": thinking,
                "tool_calls": CALLS,
            },
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "tool", "tool_call_id": "c2", "content": [text("2")]},
            {"role": "tool", "tool_call_id": "c3", "content": "", "is_error": True},
            {"role": "user", "content": "go on"},
        ],
    ).body["messages"]
    assert [m["role"] for m in out] == ["user", "assistant", "user"]
    assert out[1]["content"] == [
        *thinking,
        text("so"),
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "ü"}},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
        {"type": "tool_use", "id": "c3", "name": "f", "input": {"invalid_json": '{"a'}},
    ]
    assert out[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "1"},
        {"type": "tool_result", "tool_use_id": "c2", "content": "2"},
        {"type": "tool_result", "tool_use_id": "c3", "is_error": True},
        text("go on"),
    ]


def test_tool_results_open_their_turn():
    out = chat(
        tools=[TOOL],
        messages=[
            {"role": "assistant", "tool_calls": CALLS[:1]},
            {"role": "user", "content": "hurry"},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ],
    ).body["messages"]
    assert [b["type"] for b in out[-1]["content"]] == ["tool_result", "text"]


def test_tools_are_made_up_for_a_history_that_used_some():
    out = chat(messages=[USER, {"role": "assistant", "tool_calls": CALLS[:1]}]).body
    assert out["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]
    assert out["tool_choice"] == {"type": "none"}


def test_a_prefill_loses_its_trailing_white_space():
    assert (
        chat(messages=[USER, {"role": "assistant", "content": "So, "}]).body["messages"][-1]["content"]
        == "So,"
    )


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", True, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "f"}}, None, {"type": "tool", "name": "f"}),
    ],
)
def test_tool_choice(choice: Any, parallel: Any, expected: Any):
    out = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel).body
    assert out.get("tool_choice") == expected
    assert "parallel_tool_calls" not in out


def test_allowed_tools_leave_only_these():
    other = {"type": "function", "function": {"name": "g", "strict": True}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    out = chat(tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).body
    assert out["tools"] == [
        {"name": "g", "input_schema": {"type": "object", "properties": {}}, "strict": True}
    ]
    assert out["tool_choice"] == {"type": "any"}


def test_anthropics_own_tools_and_blocks_pass():
    tool = {"type": "web_search_20250305", "name": "web_search"}
    assert chat(tools=[tool]).body["tools"] == [tool]


def test_limits_and_sampling():
    assert chat().body["max_tokens"] == 8192
    assert chat(Traits(default_max_tokens=99)).body["max_tokens"] == 99
    assert chat(max_tokens=5).body["max_tokens"] == 5
    assert chat(max_tokens=5, max_completion_tokens=6).body["max_tokens"] == 6
    out = chat(temperature=1.5, top_p=1, stop="x")
    assert (out.body["temperature"], out.body["stop_sequences"], out.dropped) == (1, ["x"], ("temperature",))
    assert "top_p" not in out.body
    out = chat(stop=["a", " ", ""], temperature=0.3, top_p=0.5)
    assert (out.body["stop_sequences"], out.body["top_p"], out.dropped) == (["a"], 0.5, ("stop",))
    new = chat(model="claude-opus-5", temperature=0.3, top_p=0.5)
    assert new.dropped == ("temperature", "top_p")
    assert new.body.keys() == {"messages", "max_tokens", "model"}
    assert chat(Traits(sampling=True), model="claude-opus-5", temperature=0.3).body["temperature"] == 0.3
    assert chat(model="kimi-k2", temperature=0.3).body["temperature"] == 0.3


@pytest.mark.parametrize(
    ("model", "effort", "limit", "thinking", "config", "max_tokens"),
    [
        ("claude-haiku-4-5", "low", None, {"type": "enabled", "budget_tokens": 2048}, None, 10240),
        (
            "claude-haiku-4-5-20251001",
            "medium",
            20000,
            {"type": "enabled", "budget_tokens": 8192},
            None,
            20000,
        ),
        ("claude-sonnet-4-20250514", "high", 4096, {"type": "enabled", "budget_tokens": 3072}, None, 4096),
        ("claude-3-7-sonnet", "high", 2047, None, None, 2047),
        ("claude-haiku-4-5", "none", None, {"type": "disabled"}, None, 8192),
        ("claude-opus-4-6", "minimal", None, {"type": "adaptive"}, {"effort": "low"}, 8192),
        ("claude-sonnet-5", "max", 100, {"type": "adaptive"}, {"effort": "max"}, 100),
        ("anthropic/claude-opus-4-7", "high", 100, {"type": "adaptive"}, {"effort": "high"}, 100),
        ("kimi-k2", "low", 9000, {"type": "enabled", "budget_tokens": 2048}, None, 9000),
    ],
)
def test_reasoning_effort(model: str, effort: str, limit: Any, thinking: Any, config: Any, max_tokens: int):
    out = chat(model=model, reasoning_effort=effort, max_completion_tokens=limit)
    assert out.body.get("thinking") == thinking
    assert out.body.get("output_config") == config
    assert out.body["max_tokens"] == max_tokens
    assert out.dropped == (() if thinking else ("reasoning_effort",))


def test_reasoning_gives_way_where_anthropic_refuses_it():
    assert "thinking" not in chat(tools=[TOOL], tool_choice="required", reasoning_effort="low").body
    mid_turn = [
        USER,
        {"role": "assistant", "tool_calls": CALLS[:1]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    assert "thinking" not in chat(tools=[TOOL], messages=mid_turn, reasoning_effort="low").body
    given = {"type": "enabled", "budget_tokens": 1024}
    assert chat(thinking=given, reasoning_effort="high").body["thinking"] == given
    assert chat(reasoning_effort="low", temperature=0.2).dropped == ("temperature",)
    assert chat(Traits(thinking="off"), reasoning_effort="low").dropped == ("reasoning_effort",)


def test_structured_output():
    inner = {"type": "object", "properties": {"b": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {"a": inner, "l": {"type": "array", "items": {"$ref": "#/$defs/i"}}},
        "$defs": {"i": inner},
    }
    closed = {**inner, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    out = chat(response_format=form)
    assert out.body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {"a": closed, "l": {"type": "array", "items": {"$ref": "#/$defs/i"}}},
            "$defs": {"i": closed},
            "additionalProperties": False,
        },
    }
    assert out.dropped == ()
    loose = chat(response_format={"type": "json_object"}, messages=[{"role": "system", "content": "s"}, USER])
    assert loose.dropped == ("response_format",)
    assert loose.body["system"][0] == text("s")
    assert "JSON" in loose.body["system"][1]["text"]
    assert "output_config" not in chat(response_format={"type": "text"}).body


def test_what_is_dropped_is_said_and_what_is_unknown_passes():
    out = chat(
        frequency_penalty=0.5,
        presence_penalty=0,
        seed=3,
        store=True,
        metadata={"a": "b"},
        n=1,
        logprobs=False,
        user="u",
        safety_identifier="s",
        service_tier="default",
        top_k=7,
        something={"new": [1, None]},
        stream=True,
    )
    assert out.dropped == ("frequency_penalty", "seed", "store", "metadata")
    assert out.body["metadata"] == {"user_id": "u"}
    assert out.body["service_tier"] == "standard_only"
    assert out.body["top_k"] == 7
    assert out.body["something"] == {"new": [1, None]}
    assert out.body["stream"] is True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": None}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": 3}, "stop"),
        ({"tools": {}, "messages": [USER]}, None),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_refusals_name_the_field_and_the_fix(body: dict[str, Any], field: str | None):
    if field is None:
        chat(**body)
        return
    with pytest.raises(GatewayError) as caught:
        chat(**body)
    assert caught.value.field == field
    assert caught.value.fix
    assert caught.value.status == 400


# --- messages on chat -----------------------------------------------------------------------------


def test_messages_request():
    mark = {"type": "ephemeral"}
    out = messages(
        system=[text("a", cache_control=mark), text("b")],
        messages=[
            {"role": "user", "content": [text("look"), png()]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s=="},
                    text("so"),
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ü"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [text("r"), png()],
                        "is_error": True,
                    },
                    text("go on"),
                ],
            },
        ],
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": mark}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["x"],
        metadata={"user_id": "u"},
        temperature=0.5,
        top_k=4,
        stream=True,
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert out.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "a\n\nb"},
            {"role": "user", "content": [text("look"), image]},
            {
                "role": "assistant",
                "content": "so",
                "reasoning_content": "hm",
                "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s=="}],
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":"ü"}'}}
                ],
            },
            {
                "role": "tool",
                "tool_call_id": "t1",
                "content": "Error: r\n(continued in the next user message)",
            },
            {"role": "user", "content": [text("Result of tool call t1, continued:"), image, text("go on")]},
        ],
        "max_tokens": 100,
        "stop": ["x"],
        "user": "u",
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_k": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert out.dropped == ("cache_control",)


def png() -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def test_cache_marks_stay_where_the_upstream_takes_them():
    mark = {"type": "ephemeral"}
    out = messages(Traits(cache_control=True), system=[text("a", cache_control=mark)])
    assert out.body["messages"][0]["content"] == [text("a", cache_control=mark)]
    assert out.dropped == ()


def test_past_thinking_is_left_out_where_the_upstream_refuses_it():
    content = [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("so")]
    out = messages(
        Traits(reasoning=False),
        messages=[USER, {"role": "assistant", "content": content}, USER],
        thinking={"type": "enabled", "budget_tokens": 2000},
    )
    assert out.body["messages"][1] == {"role": "assistant", "content": "so"}
    assert "reasoning_effort" not in out.body
    assert out.dropped == ("thinking blocks", "thinking")


@pytest.mark.parametrize(
    ("thinking", "config", "effort"),
    [
        (None, None, None),
        ({"type": "disabled"}, {"effort": "high"}, None),
        ({"type": "enabled", "budget_tokens": 1024}, None, "low"),
        ({"type": "enabled", "budget_tokens": 10000}, None, "medium"),
        ({"type": "enabled", "budget_tokens": 32000}, None, "high"),
        ({"type": "adaptive"}, None, None),
        ({"type": "adaptive"}, {"effort": "xhigh"}, "xhigh"),
        (None, {"effort": "low"}, "low"),
    ],
)
def test_thinking_to_effort(thinking: Any, config: Any, effort: Any):
    given = {k: v for k, v in (("thinking", thinking), ("output_config", config)) if v is not None}
    assert messages(**given).body.get("reasoning_effort") == effort


@pytest.mark.parametrize("strict", [True, False])
def test_output_format(strict: bool):
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "additionalProperties": False,
    }
    if strict:
        schema["required"] = ["a"]
    form = messages(output_config={"format": {"type": "json_schema", "schema": schema}}).body[
        "response_format"
    ]
    assert form["json_schema"]["schema"] == schema
    assert form["json_schema"].get("strict", False) is strict


def test_documents():
    parts = messages(
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "title": "T",
                        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
                    },
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
                    },
                    {"type": "document", "source": {"type": "content", "content": "C"}},
                    {"type": "search_result", "title": "T", "source": "s", "content": [text("R")]},
                ],
            }
        ]
    ).body["messages"][0]["content"]
    assert parts == [
        text("T"),
        text("D"),
        {
            "type": "file",
            "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,AAAA"},
        },
        text("C"),
        text("T (s)\nR"),
    ]


@pytest.mark.parametrize(
    ("model", "traits", "field"),
    [
        ("llama-3", Traits(), "max_tokens"),
        ("gpt-4o", Traits(), "max_tokens"),
        ("gpt-5-mini", Traits(), "max_completion_tokens"),
        ("openai/o4-mini", Traits(), "max_completion_tokens"),
        ("llama-3", Traits(max_tokens_field="max_completion_tokens"), "max_completion_tokens"),
    ],
)
def test_the_limit_has_the_name_the_upstream_obeys(model: str, traits: Traits, field: str):
    assert messages(traits, model=model).body[field] == 100


@pytest.mark.parametrize(
    ("body", "field", "error"),
    [
        ({"container": "c"}, "container", UnsupportedError),
        ({"mcp_servers": [{}]}, "mcp_servers", UnsupportedError),
        ({"inference_geo": "eu"}, "inference_geo", UnsupportedError),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", UnsupportedError),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema", InvalidRequestError),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type", InvalidRequestError),
        ({"max_tokens": 0}, "max_tokens", InvalidRequestError),
        ({"messages": {}}, "messages", InvalidRequestError),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", InvalidRequestError),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", InvalidRequestError),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            },
            "messages[0].content[0].source.type",
            UnsupportedError,
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "u"}}]}
                ]
            },
            "messages[0].content[0].source.type",
            UnsupportedError,
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "n"}]}
                ]
            },
            "messages[0].content[0].type",
            UnsupportedError,
        ),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", InvalidRequestError),
    ],
)
def test_messages_refusals(body: dict[str, Any], field: str, error: type[GatewayError]):
    with pytest.raises(error) as caught:
        messages(**body)
    assert caught.value.field == field
    assert caught.value.fix


# --- responses on chat ----------------------------------------------------------------------------


def test_responses_request():
    out = responses(
        instructions="be brief",
        input=[
            {"role": "developer", "content": "d"},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                    {
                        "type": "input_file",
                        "file_data": "data:application/pdf;base64,AA",
                        "filename": "a.pdf",
                    },
                ],
            },
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "m",
                "status": "completed",
                "content": [output("so")],
            },
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"a":1}'},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [
                    {"type": "input_text", "text": "r1"},
                    {"type": "input_image", "image_url": "https://x/z.png"},
                ],
            },
            {"type": "function_call_output", "call_id": "c2", "output": "r2"},
            {"role": "user", "content": "go on"},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        text={
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
            "verbosity": "low",
        },
        reasoning={"effort": "low", "summary": "auto"},
        max_output_tokens=50,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=3,
        temperature=0.5,
        store=False,
        stream=True,
        unknown=1,
    )
    assert out.dropped == ()
    assert out.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "system", "content": "d"},
            {
                "role": "user",
                "content": [
                    text("look"),
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                    {
                        "type": "file",
                        "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": "so",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "c2", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "r1"},
            {"role": "tool", "tool_call_id": "c2", "content": "r2"},
            {
                "role": "user",
                "content": [
                    text("Result of tool call c1, continued:"),
                    {"type": "image_url", "image_url": {"url": "https://x/z.png"}},
                ],
            },
            {"role": "user", "content": "go on"},
        ],
        "max_tokens": 50,
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
        "verbosity": "low",
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "unknown": 1,
    }


def output(value: str) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": []}


def test_custom_tools():
    out = responses(
        tools=[
            {
                "type": "custom",
                "name": "c",
                "format": {"type": "grammar", "syntax": "regex", "definition": "a"},
            }
        ],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "c"}]},
        input=[
            {"role": "user", "content": "x"},
            {"type": "custom_tool_call", "call_id": "k", "name": "c", "input": "aaa"},
            {"type": "custom_tool_call_output", "call_id": "k", "output": "b"},
        ],
    ).body
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a"}}
    assert out["tools"] == [{"type": "custom", "custom": {"name": "c", "format": grammar}}]
    assert out["messages"][1]["tool_calls"] == [
        {"id": "k", "type": "custom", "custom": {"name": "c", "input": "aaa"}}
    ]
    allowed = {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "c"}}]}
    assert out["tool_choice"] == {"type": "allowed_tools", "allowed_tools": allowed}


def test_responses_on_messages():
    out = responses(
        "messages",
        model="claude-sonnet-5",
        instructions="i",
        reasoning={"effort": "high"},
        max_output_tokens=7,
        seed=1,
    )
    assert out.body == {
        "model": "claude-sonnet-5",
        "system": "i",
        "messages": [USER],
        "max_tokens": 7,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
    }
    assert out.dropped == ("seed",)


@pytest.mark.parametrize(
    ("body", "field", "error"),
    [
        ({"previous_response_id": "r"}, "previous_response_id", UnsupportedError),
        ({"conversation": "c"}, "conversation", UnsupportedError),
        ({"background": True}, "background", UnsupportedError),
        ({"prompt": {"id": "p"}}, "prompt", UnsupportedError),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", UnsupportedError),
        ({"tools": [{"type": "mcp", "server_label": "s"}]}, "tools[0].type", UnsupportedError),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", UnsupportedError),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type", UnsupportedError),
        ({"input": [{"type": "web_search_call", "id": "i"}]}, "input[0].type", UnsupportedError),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            UnsupportedError,
        ),
        ({"input": None}, "input", InvalidRequestError),
        ({"input": [3]}, "input[0]", InvalidRequestError),
        ({"input": [{}]}, "input[0].type", UnsupportedError),
        ({"input": [{"role": "x", "content": "y"}]}, "input[0].role", InvalidRequestError),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", InvalidRequestError),
        (
            {"input": [{"type": "function_call_output", "output": "f"}]},
            "input[0].call_id",
            InvalidRequestError,
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", InvalidRequestError),
        ({"instructions": 3}, "instructions", InvalidRequestError),
    ],
)
def test_responses_refusals(body: dict[str, Any], field: str, error: type[GatewayError]):
    with pytest.raises(error) as caught:
        responses(**body)
    assert caught.value.field == field
    assert caught.value.fix
