"""Only whole answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cache_doubles import answered

from apportion.serve.cache.complete import complete


@pytest.mark.parametrize("finish", ["length", "content_filter", None, "error"])
def test_cut_and_filtered_chats_are_not_whole(finish: Any) -> None:
    assert complete("chat", answered())
    assert not complete("chat", answered(finish=finish))


def test_all_choices_must_be_there_and_whole() -> None:
    assert complete("chat", answered(n=2), n=2)
    assert not complete("chat", answered(n=1), n=2)
    body = json.loads(answered(n=2))
    body["choices"][1]["finish_reason"] = "length"
    assert not complete("chat", json.dumps(body).encode(), n=2)


@pytest.mark.parametrize(
    ("api", "body", "whole"),
    [
        ("chat", {"error": {"message": "m"}}, False),
        ("chat", {"choices": []}, False),
        ("completions", {"choices": [{"text": "t", "finish_reason": "stop"}]}, True),
        ("completions", {"choices": [{"text": "", "finish_reason": "stop"}]}, False),
        ("messages", {"content": [{"type": "text", "text": "t"}], "stop_reason": "end_turn"}, True),
        ("messages", {"content": [{"type": "text", "text": "t"}], "stop_reason": "max_tokens"}, False),
        ("messages", {"content": [{"type": "text", "text": "t"}], "stop_reason": "refusal"}, False),
        ("messages", {"content": [], "stop_reason": "end_turn"}, False),
        (
            "responses",
            {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text"}]}]},
            True,
        ),
        ("responses", {"status": "incomplete", "output": [{"type": "message", "content": [{}]}]}, False),
        (
            "responses",
            {"status": "completed", "output": [{"type": "message", "content": [{"type": "refusal"}]}]},
            False,
        ),
        ("responses", {"status": "completed", "output": []}, False),
        ("embeddings", {"data": [{"embedding": [0.1]}]}, True),
        ("embeddings", {"data": []}, False),
        ("count_tokens", {"input_tokens": 3}, False),
    ],
)
def test_every_api(api: str, body: dict[str, Any], whole: bool) -> None:
    assert complete(api, json.dumps(body).encode()) is whole


@pytest.mark.parametrize("body", [b"", b"nothing", b"[]", b"null"])
def test_what_is_no_answer_is_not_whole(body: bytes) -> None:
    assert not complete("chat", body)


def test_a_refusal_is_not_kept() -> None:
    body = json.loads(answered())
    body["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "no"}
    assert not complete("chat", json.dumps(body).encode())
