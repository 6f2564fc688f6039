"""What is the same request, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from cache_doubles import chat, fields
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve.cache.identity import IGNORED, Question, question


def asked(body: dict[str, Any], **how: Any) -> Question:
    found = question(**{"api": "chat", "fields": body, "tenant": "team:a", "model": "m", **how})
    assert found is not None
    return found


def test_the_same_is_the_same_whatever_the_order_and_the_fields_that_do_not_matter() -> None:
    one = asked(chat("hello", temperature=0.5, seed=3))
    other = fields(
        seed=3,
        messages=[{"content": "hello", "role": "user"}],
        temperature=0.5,
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        metadata={"a": 1},
        model="an-alias",
        top_p=None,
    )
    assert asked(other) == one


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.1},
        {"seed": 1},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"max_tokens": 5},
        {"n": 2},
        {"stop": "x"},
        {"logprobs": True},
        {"reasoning_effort": "high"},
        {"an_extension": 1},
    ],
)
def test_what_changes_the_answer_changes_key_and_frame(change: dict[str, Any]) -> None:
    one, other = asked(chat("hello")), asked(chat("hello", **change))
    assert one.key != other.key
    assert one.frame != other.frame


@pytest.mark.parametrize("how", [{"tenant": "team:b"}, {"api": "messages"}, {"model": "n"}, {"variant": "v"}])
def test_whose_and_what_model_changes_key_and_frame(how: dict[str, Any]) -> None:
    one, other = asked(chat("hello")), asked(chat("hello"), **how)
    assert one.key != other.key
    assert one.frame != other.frame


texts = st.text(max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.tuples(texts, texts, texts, texts), st.tuples(texts, texts, texts, texts))
def test_no_two_heads_are_alike(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    body = chat("hello")

    def named(names: tuple[str, ...]) -> Question:
        return asked(body, tenant=names[0], api="chat" + names[1], model=names[2], variant=names[3])

    if "\0" not in "".join(one + other):
        assert (named(one).frame == named(other).frame) == (one == other)


def test_only_the_last_question_is_compared_by_meaning() -> None:
    before = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    one = asked(chat(messages=[*before, {"role": "user", "content": "a"}]))
    two = asked(chat(messages=[*before, {"role": "user", "content": "b"}]))
    assert (one.frame, one.text, two.text) == (two.frame, "a", "b")
    assert one.key != two.key
    other = asked(
        chat(messages=[{"role": "system", "content": "t"}, *before[1:], {"role": "user", "content": "a"}])
    )
    assert other.frame != one.frame


def test_texts_of_every_api() -> None:
    part = [{"type": "text", "text": "q"}]
    assert asked(chat(messages=[{"role": "user", "content": part}])).text == "q"
    assert asked(fields(messages=[{"role": "user", "content": part}]), api="messages").text == "q"
    assert asked(fields(input="q"), api="responses").text == "q"
    turn = {"role": "user", "content": [{"type": "input_text", "text": "q"}]}
    assert asked(fields(input=[turn]), api="responses").text == "q"
    assert asked(fields(prompt="q"), api="completions").text is None
    assert asked(fields(input="q"), api="embeddings").text is None


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "u"}}],
        [{"type": "image_url", "image_url": {"url": "u"}}],
        "   ",
        "x" * 5000,
    ],
)
def test_what_is_not_one_short_text_is_compared_exactly(content: Any) -> None:
    assert asked(chat(messages=[{"role": "user", "content": content}])).text is None


def test_a_text_that_looks_like_the_hole_is_a_text() -> None:
    hole = "\0the question\0"
    one, other = asked(chat(hole)), asked(chat("q"))
    assert one.frame == other.frame
    assert one.key != other.key
    spoken = asked(chat(messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": hole}]))
    assert spoken.text is None


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("responses", {"input": "q", "previous_response_id": "r"}),
        ("responses", {"input": "q", "conversation": {"id": "c"}}),
        ("responses", {"input": "q", "background": True}),
        ("responses", {"input": "q", "tools": [{"type": "web_search"}]}),
        ("messages", {"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("chat", {"messages": [], "web_search_options": {}}),
    ],
)
def test_what_depends_on_the_world_is_not_reused(api: str, body: dict[str, Any]) -> None:
    assert question(api, fields(**body), tenant="t", model="m") is None


def test_off_and_too_warm_are_not_reused() -> None:
    assert question("chat", chat(), tenant="t", model="m", mode="off") is None
    assert question("chat", chat(), tenant="t", model="m", max_temperature=0.5) is None
    assert question("chat", chat(temperature=0), tenant="t", model="m", max_temperature=0.5) is not None


def test_what_does_not_matter_is_known_to_the_api() -> None:
    assert {"stream", "stream_options", "user", "metadata", "apportion"} <= IGNORED
