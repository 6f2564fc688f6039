"""There and back: what both dialects can say comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from translate_sdk import Sdk

from apportion.serve.errors import GatewayError
from apportion.serve.translate import Traits, translate
from apportion.serve.wire import dumps

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
names = st.text("abcXYZ_-09", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(words, values, max_size=3)
text_parts = words.map(lambda t: {"type": "text", "text": t})
image_parts = st.sampled_from(["data:image/png;base64,AAAA", "https://x/y.jpg"]).map(
    lambda u: {"type": "image_url", "image_url": {"url": u}}
)
file_parts = words.map(
    lambda t: {"type": "file", "file": {"filename": t, "file_data": "data:application/pdf;base64,AAAA"}}
)
contents = words | st.lists(text_parts | image_parts | file_parts, min_size=2, max_size=4)
thinking = st.fixed_dictionaries(
    {"type": st.just("thinking"), "thinking": words, "signature": words}
) | words.map(lambda d: {"type": "redacted_thinking", "data": d})


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if draw(st.booleans()):
        out.append({"role": "system", "content": draw(words)})
    calls = 0
    for _ in range(draw(st.integers(0, 3))):
        out.append({"role": "user", "content": draw(contents)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(words)}
        blocks = draw(st.lists(thinking, max_size=2))
        if blocks:
            thoughts = "".join(b.get("thinking", "") for b in blocks)
            answer |= {"reasoning_content": thoughts} if thoughts else {}
            answer["thinking_blocks"] = blocks
        used = draw(st.lists(st.tuples(names, arguments, words), max_size=2))
        if used:
            if draw(st.booleans()):
                answer["content"] = None
            answer["tool_calls"] = [
                {
                    "id": f"call_{calls + i}",
                    "type": "function",
                    "function": {"name": name, "arguments": dumps(given).decode()},
                }
                for i, (name, given, _) in enumerate(used)
            ]
        out.append(answer)
        for _, _, result in used:
            out.append({"role": "tool", "tool_call_id": f"call_{calls}", "content": result})
            calls += 1
        if used and draw(st.booleans()):
            out.append({"role": "assistant", "content": draw(words)})
    return [*out, {"role": "user", "content": draw(contents)}]


tools = st.lists(
    st.tuples(names, words, st.booleans()).map(
        lambda t: {
            "type": "function",
            "function": {
                "name": t[0],
                "description": t[1],
                "parameters": {"type": "object", "properties": {}},
                **({"strict": True} if t[2] else {}),
            },
        }
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda t: t["function"]["name"],
)
choices = st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])
requests = st.fixed_dictionaries(
    {"model": st.just("claude-haiku-4-5"), "messages": conversations(), "max_tokens": st.integers(1, 9999)},
    optional={
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0, 0.99),
        "stop": st.lists(words, min_size=1, max_size=3),
        "user": words,
        "extra_field": values,
    },
)


@settings(deadline=None, max_examples=150)
@given(requests, tools, choices)
def test_chat_to_messages_and_back(body: dict[str, Any], given_tools: list[dict[str, Any]], choice: Any):
    body = {**body, "tools": given_tools, "tool_choice": choice}
    if choice != "none":
        body["parallel_tool_calls"] = False
    there = translate(body, client="chat", upstream="messages", created_s=1)
    assert there.dropped == ()
    Sdk().check_request("messages", there.body)
    back = translate(there.body, client="messages", upstream="chat", created_s=1)
    assert back.dropped == ()
    assert back.body == body


@settings(deadline=None, max_examples=100)
@given(requests)
def test_messages_to_chat_and_back(body: dict[str, Any]):
    """Anthropic's form of a request, from the first translation, is a fixed point of the two."""
    anthropic = translate(body, client="chat", upstream="messages", created_s=1).body
    chat = translate(anthropic, client="messages", upstream="chat", created_s=1).body
    Sdk().check_request("chat", chat)
    assert translate(chat, client="chat", upstream="messages", created_s=1).body == anthropic


marks = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(words, marks), min_size=2, max_size=3))
def test_cache_marks_there_and_back(texts: list[tuple[str, Any]]):
    parts = [{"type": "text", "text": t, "cache_control": m} for t, m in texts]
    messages = [{"role": "system", "content": parts}, {"role": "user", "content": parts}]
    body = {"model": "m", "messages": messages, "max_tokens": 5}
    there = translate(body, client="chat", upstream="messages", created_s=1).body
    traits = Traits(cache_control=True)
    back = translate(there, client="messages", upstream="chat", created_s=1, traits=traits)
    assert back.body == body


# --- one wrong value anywhere -----------------------------------------------------------------------

TEXT = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/b"}]}},
    "required": ["a"],
    "$defs": {"b": {"type": "array", "items": {"type": "object"}}},
}
FULL: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "claude-haiku-4-5",
        "messages": [
            {"role": "system", "content": [TEXT], "name": "n"},
            {
                "role": "user",
                "content": [
                    {**TEXT, "prompt_cache_breakpoint": {"mode": "explicit"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                    {"type": "file", "file": {"file_data": "data:text/plain;base64,QUE=", "filename": "n"}},
                    {"type": "file", "file": {"file_id": "f"}},
                ],
            },
            {
                "role": "assistant",
                "content": "a",
                "refusal": "r",
                "reasoning_content": "r",
                "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}],
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": [TEXT], "is_error": True},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [{"function": {}}]},
        },
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "reasoning_effort": "low",
        "max_tokens": 5000,
        "max_completion_tokens": 5000,
        "stop": ["a"],
        "temperature": 0.5,
        "top_p": 0.5,
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "modalities": ["text"],
        "metadata": {},
        "user": "u",
        "safety_identifier": "s",
        "service_tier": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
        "output_config": {"effort": "low"},
        "thinking": None,
    },
    "messages": {
        "model": "m",
        "system": [TEXT],
        "messages": [
            {
                "role": "user",
                "content": [
                    TEXT,
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                    {"type": "image", "source": {"type": "url", "url": "https://x"}},
                    {"type": "document", "title": "t", "source": {"type": "text", "data": "d"}},
                    {"type": "document", "source": {"type": "content", "content": [TEXT]}},
                    {"type": "search_result", "title": "t", "source": "s", "content": [TEXT]},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    TEXT,
                    {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": [TEXT], "is_error": True}],
            },
        ],
        "max_tokens": 9,
        "tools": [{"type": "custom", "name": "n", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "n", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "stop_sequences": ["a"],
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "stream": True,
    },
    "responses": {
        "model": "m",
        "instructions": "i",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_image", "image_url": "https://x", "detail": "low"},
                    {"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "n"},
                ],
            },
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}]},
            {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "apportion:W10="},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_image", "image_url": "https://x"},
                ],
            },
        ],
        "tools": [
            {"type": "function", "name": "n", "description": "d", "parameters": SCHEMA, "strict": True}
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "n"}],
        },
        "parallel_tool_calls": True,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 0,
        "max_output_tokens": 5,
        "truncation": "disabled",
        "metadata": {},
        "store": False,
        "stream": True,
    },
}
WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    [],
    [1],
    ["x"],
    [[]],
    [{}],
    {},
    {"x": 1},
    {"type": "x"},
    {"type": []},
]
"""Values of every JSON type, for every place."""


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


PAIRS = [("chat", "messages"), ("messages", "chat"), ("responses", "chat"), ("responses", "messages")]


@pytest.mark.parametrize(
    "traits", [Traits(), Traits(cache_control=True, reasoning=False, thinking="adaptive")]
)
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_wrong_value_anywhere_is_translated_or_refused_by_name(client: str, upstream: str, traits: Traits):
    """Never any other exception, and what is translated can be written as JSON."""
    full = FULL[client]
    if (client, upstream) == ("responses", "messages"):
        full = {k: v for k, v in full.items() if k != "include"}
    dumps(translate(full, client=client, upstream=upstream, created_s=1, traits=traits).body)
    refusals = 0
    for path in places(full):
        for wrong in WRONG:
            body = replaced(full, path, wrong)
            try:
                translation = translate(body, client=client, upstream=upstream, created_s=1, traits=traits)
            except GatewayError as error:
                refusal = error
            except Exception as error:
                raise AssertionError(f"{path} = {wrong!r}") from error
            else:
                dumps(translation.body)
                continue
            refusals += 1
            assert refusal.field
            assert refusal.fix
    assert refusals > 50
