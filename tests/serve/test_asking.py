"""What predictors read of a request, in each API."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve import asking
from apportion.serve.call import Api


def read(api: Api, body: dict[str, Any]) -> asking.Asked:
    return asking.read(api, msgspec.json.decode(json.dumps(body), type=dict[str, msgspec.Raw]))


PLAN = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Plan the refactoring."},
    {"role": "assistant", "content": "Step 1: split the parser. Step 2: prove it terminates. Shall I?"},
    {"role": "user", "content": "yes"},
]


def test_the_last_turn_and_what_it_answers() -> None:
    asked = read("chat", {"messages": PLAN, "max_tokens": 50, "max_completion_tokens": 70})
    assert asked.turn == "yes"
    assert asked.before.startswith("Plan the refactoring.\nStep 1")
    assert asked.embed.endswith("Shall I?\nyes")
    assert asked.facts["messages"] == 4
    assert asked.facts["system_chars"] == len("You are terse.")
    assert asked.facts["max_output_tokens"] == 70


def test_a_turn_that_says_enough_stands_alone() -> None:
    long = "Now tell me which of the mountains of Asia is the tallest, and by how much it is taller than the second."
    asked = read("chat", {"messages": [*PLAN[:3], {"role": "user", "content": long}]})
    assert asked.embed == asked.turn == long


def test_while_an_agent_works_the_turn_is_what_set_it_to_work() -> None:
    messages = [
        {"role": "user", "content": "Book the cheapest flight to Oslo."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "SK 120 EUR"},
    ]
    asked = read("chat", {"messages": messages, "tools": [{}, {}, {}]})
    assert asked.turn == "Book the cheapest flight to Oslo."
    assert (asked.facts["tools"], asked.facts["tool_results"]) == (3, 1)
    anthropic = [
        {"role": "user", "content": [{"type": "text", "text": "Book it."}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "book", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "done"}]},
    ]
    asked = read("messages", {"messages": anthropic, "system": "Be kind.", "max_tokens": 9})
    assert asked.turn == "Book it."
    assert asked.facts["tool_results"] == 1
    assert asked.facts["system_chars"] == len("Be kind.")
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Book it."}]},
        {"type": "function_call", "call_id": "1", "name": "book", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ]
    asked = read("responses", {"input": items, "instructions": "Be kind.", "max_output_tokens": 9})
    assert asked.turn == "Book it."
    assert asked.facts["tool_results"] == 1
    assert asked.facts["max_output_tokens"] == 9


def test_images_files_and_formats() -> None:
    content = [
        {"type": "text", "text": "What is on these?"},
        {"type": "image_url", "image_url": {"url": "data:..."}},
        {"type": "image_url", "image_url": {"url": "data:..."}},
        {"type": "file", "file": {}},
    ]
    body = {"messages": [{"role": "user", "content": content}], "response_format": {"type": "json_schema"}}
    asked = read("chat", body)
    assert asked.turn == "What is on these?"
    assert (asked.facts["images"], asked.facts["files"], asked.facts["json"]) == (2, 1, 1.0)
    assert read("responses", {"input": "x", "text": {"format": {"type": "json_object"}}}).facts["json"] == 1.0
    assert read("responses", {"input": "x", "text": {"format": {"type": "text"}}}).facts["json"] == 0.0


def test_plain_prompts() -> None:
    assert read("completions", {"prompt": "Once upon"}).turn == "Once upon"
    assert read("completions", {"prompt": ["a", "b"]}).turn == "a\nb"
    assert read("completions", {"prompt": [1, 2, 3]}).turn == ""
    assert read("responses", {"input": "Hello"}).turn == "Hello"
    assert read("responses", {"instructions": "only these"}).turn == ""
    assert read("embeddings", {"input": "Hello"}).turn == "Hello"


def test_long_ones_are_cut_and_say_how_long_they_were() -> None:
    messages = [
        {"role": "user", "content": "first " * 100_000},
        {"role": "assistant", "content": "middle " * 1000 + "the end"},
        {"role": "user", "content": "start " + "x" * 100_000 + " stop"},
    ]
    asked = read("chat", {"messages": messages})
    assert len(asked.turn) < 9_000
    assert asked.turn.startswith("start")
    assert asked.turn.endswith("stop")
    assert asked.before.endswith("the end")
    assert len(asked.before) <= 2_100
    assert asked.facts["turn_chars"] == 100_011
    assert asked.facts["before_chars"] == pytest.approx(607_007, abs=10)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "output", "format"]), inner, max_size=3
        )
    ),
    max_leaves=9,
)
FIELDS = [
    "messages",
    "input",
    "prompt",
    "system",
    "instructions",
    "tools",
    "max_tokens",
    "response_format",
    "text",
]


@given(st.sampled_from(get_args(Api)), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
@settings(max_examples=300, deadline=None)
def test_nothing_that_is_json_breaks_it(api: Api, body: dict[str, Any]) -> None:
    asked = read(api, body)
    assert isinstance(asked.turn, str)
    assert isinstance(asked.embed, str)
    assert all(value >= 0 for value in asked.facts.values())
