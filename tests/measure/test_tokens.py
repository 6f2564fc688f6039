"""Token estimates against true counts, and a bound that real requests never pass."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.measure.tokens import (
    BOUND_IMAGE_TOKENS,
    BOUND_MESSAGE_TOKENS,
    BOUND_REQUEST_TOKENS,
    FILE_TOKENS,
    IMAGE_TOKENS,
    TokenRates,
    Vocabulary,
    estimate_output_tokens,
    estimate_request_tokens,
    estimate_tokens,
    most_input_tokens,
    vocabulary_of,
)
from apportion.measure.usage import Usage

DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
SAMPLES = {
    "english": (
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
        "once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations "
        "in it, “and what is the use of a book,” thought Alice “without pictures or conversations?”\n\n"
        "So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and "
        "stupid), whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking "
        "the daisies, when suddenly a White Rabbit with pink eyes ran close by her."
    ),
    "python": (
        "def moving_average(values: list[float], window: int = 3) -> list[float]:\n"
        '    """Mean of each `window` neighbouring values."""\n'
        "    if window < 1:\n"
        '        raise ValueError(f"window must be positive, got {window}")\n'
        "    total = sum(values[:window])\n"
        "    out = [total / window]\n"
        "    for old, new in zip(values, values[window:]):\n"
        "        total += new - old\n"
        "        out.append(total / window)\n"
        "    return out\n\n\n"
        "class RingBuffer:\n"
        "    def __init__(self, capacity: int) -> None:\n"
        "        self._items: list[object | None] = [None] * capacity\n"
        "        self._head = 0\n"
    ),
    "json": (
        '{"id": "ord_20931", "customer": {"name": "Jane Doe", "email": "jane@example.com", "vip": true}, '
        '"items": [{"sku": "A-1001", "qty": 2, "unit_price": 19.99}, {"sku": "B-2002", "qty": 1, "unit_price": 5.5}], '
        '"created_at": "2025-03-14T09:26:53Z", "notes": null, "tags": ["gift", "express"]}'
    ),
    "german": (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
        "und sollen einander im Geiste der Brüderlichkeit begegnen. Jeder hat Anspruch auf alle in dieser Erklärung "
        "verkündeten Rechte und Freiheiten, ohne irgendeinen Unterschied."
    ),
    "russian": (
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
        "должны поступать в отношении друг друга в духе братства. Каждый человек должен обладать всеми правами."
    ),
    "japanese": (
        "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを"
        "授けられており、互いに同胞の精神をもって行動しなければならない。"
    ),
    "chinese": (
        "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。人人有资格享有本宣言所载"
        "的一切权利和自由,不分种族、肤色、性别、语言、宗教、政治或其他见解。"
    ),
}
COUNTS = {
    "english": (131, 130, 134, 134),
    "python": (143, 146, 147, 151),
    "json": (117, 118, 116, 149),
    "german": (74, 61, 85, 104),
    "russian": (92, 50, 111, 150),
    "japanese": (93, 72, 87, 151),
    "chinese": (102, 76, 98, 152),
}
"""Counted by tiktoken's cl100k_base and o200k_base, Anthropic's published tokenizer, and SmolLM2's in llama.cpp.
None of these texts was used in the fit."""
VOCABULARIES: list[Vocabulary] = ["cl100k", "o200k", "claude", "small"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("sample", SAMPLES)
def test_estimates_are_near_the_true_count(sample: str, vocabulary: Vocabulary):
    true = COUNTS[sample][VOCABULARIES.index(vocabulary)]
    assert estimate_tokens(SAMPLES[sample], vocabulary) == pytest.approx(true, rel=0.16)


@given(st.text(), st.sampled_from(VOCABULARIES))
@settings(deadline=None)
def test_any_text_has_an_estimate(text: str, vocabulary: Vocabulary):
    count = estimate_tokens(text, vocabulary)
    assert (count == 0) == (text == "")
    assert count <= 5 * len(text) + 1


def test_repeated_text_costs_its_multiple():
    once = estimate_tokens("Some words, some marks; 1234 numbers.\n")
    assert estimate_tokens("Some words, some marks; 1234 numbers.\n" * 1000) == pytest.approx(
        1000 * once, rel=0.05
    )


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o-mini", "o200k"),
        ("openai/gpt-5.1", "o200k"),
        ("o3-mini", "o200k"),
        ("gpt-4-turbo", "cl100k"),
        ("claude-haiku-4-5", "claude"),
        ("anthropic/claude-3-opus", "claude"),
        ("SmolLM2-135M-Instruct", "small"),
        ("qwen2.5-7b", "cl100k"),
        ("", "cl100k"),
    ],
)
def test_vocabulary_of(model: str, vocabulary: Vocabulary):
    assert vocabulary_of(model) == vocabulary


def test_output_estimate():
    assert estimate_output_tokens(0) == 0
    assert estimate_output_tokens(1) == estimate_output_tokens(4) == 1
    assert estimate_output_tokens(425) == 100
    assert estimate_output_tokens(425, 90) == 90
    assert estimate_output_tokens(600, 100) == 100  # long words are still a token each
    assert estimate_output_tokens(425, 2) == 100  # large pieces: not a token each
    assert estimate_output_tokens(300, 100) == 100  # one Chinese character is three bytes


def stream(tokens: int, per_event: int = 1, size: int = 4) -> tuple[int, int]:
    """Events and bytes of an answer that is sent ``per_event`` tokens at a time."""
    return -(-tokens // per_event), tokens * size


@pytest.mark.parametrize("per_event", [1, 2, 5])
@pytest.mark.parametrize("size", [2, 4, 7])
def test_streams_are_counted_as_their_upstream_has_reported(per_event: int, size: int):
    """Whatever it packs into an event: learned from answers that ended, right for those that did not."""
    rates = TokenRates("m")
    for tokens in (50, 120, 75, 200, 90):
        events, answer = stream(tokens, per_event, size)
        rates.learn(b"", Usage(9, tokens + 1), events, answer)
    for tokens in (10, 100, 500):
        assert rates.output_tokens(*stream(tokens, per_event, size)) == pytest.approx(tokens, rel=0.02)
    if per_event == 1:
        assert rates.output_tokens(*stream(37, 1, size)) == 37, "the end mark is not in what was cut"


def test_events_of_uneven_size_are_counted_by_their_bytes():
    rates = TokenRates("m")
    for tokens, events in ((100, 10), (200, 90), (150, 30), (80, 40), (120, 7)):
        rates.learn(b"", Usage(9, tokens), events, tokens * 3)
    assert rates.output_tokens(5, 900) == 300
    assert rates.output_tokens(100, 900) == 300


def test_whole_answers_teach_streams():
    rates = TokenRates("m")
    for tokens in (50, 120, 75, 200, 90):
        rates.learn(b"", Usage(9, tokens), 0, tokens * 3)
    assert rates.output_tokens(20, 900) == 300


def test_reasoning_that_is_billed_but_not_sent():
    rates = TokenRates("o3-mini")
    for tokens in (60, 120, 80, 200, 90):
        rates.learn(b"", Usage(9, tokens + 400, reasoning_tokens=400), *stream(tokens))
    assert rates.output_tokens(*stream(100)) == 500
    sent = TokenRates("r1")
    for tokens in (60, 120, 80, 200, 90):
        sent.learn(b"", Usage(9, tokens, reasoning_tokens=40), *stream(tokens))
    assert sent.output_tokens(*stream(100)) == 100


def test_the_usual_length_of_an_answer():
    rates = TokenRates("m")
    for tokens in (100, 200, 300):
        assert rates.usual_output_tokens is None
        rates.learn(b"", Usage(9, tokens))
    rates.learn(b"", Usage(9, 200), *stream(200))
    assert rates.usual_output_tokens == pytest.approx(200, abs=2)
    for _ in range(200):
        rates.learn(b"", Usage(9, 50), *stream(50))
    assert rates.usual_output_tokens == pytest.approx(50, abs=4), "of late"


def test_what_was_counted_here_teaches_nothing():
    rates, fresh = TokenRates("m"), TokenRates("m")
    body = json.dumps({"messages": [{"role": "user", "content": SAMPLES["english"]}]}).encode()
    for _ in range(10):
        rates.learn(body, Usage(9999, 9999, estimated=True), 5, 20)
    assert rates.input_tokens(body) == fresh.input_tokens(body)
    assert rates.output_tokens(50, 200) == fresh.output_tokens(50, 200) == 50
    assert rates.output_tokens(0, 0) == 0
    assert rates.quick_input_tokens(4250) == 1000


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.6])
def test_inputs_are_scaled_to_the_model(scale: float):
    """A vocabulary and a template of its own: learned from texts of one kind, right for others."""
    rates = TokenRates("m")

    def request(sample: str) -> tuple[bytes, int]:
        body = json.dumps({"messages": [{"role": "user", "content": SAMPLES[sample]}]}).encode()
        return body, round(COUNTS[sample][0] * scale) + 8

    for _ in range(10):
        for sample in ("english", "python", "json"):
            body, true = request(sample)
            rates.learn(body, Usage(true, 1))
    for sample in ("german", "english", "python"):
        body, true = request(sample)
        assert rates.input_tokens(body) == pytest.approx(true, rel=0.16)
    english, true = request("english")
    assert rates.quick_input_tokens(len(english)) == pytest.approx(true, rel=0.35)


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[1, 2]", b"[" * 100_000, b"{}", b'{"messages": 7}'])
def test_no_body_breaks_a_count(body: bytes):
    rates = TokenRates("m")
    rates.learn(body, Usage(10, 10), 3, 30)
    assert rates.input_tokens(body) >= 1


def test_of_a_long_request_only_a_part_is_looked_at():
    text = " ".join(SAMPLES[s] for s in ("english", "python", "json", "german")) * 200
    body = {"messages": [{"role": "user", "content": text}]}
    whole = estimate_request_tokens(body)
    assert estimate_request_tokens(body, most_chars=8192) == pytest.approx(whole, rel=0.1)
    assert estimate_request_tokens(body, most_chars=len(text) + 1) == whole


@pytest.mark.parametrize("model", ["claude-3-haiku-20240307", "gemini-2.0-flash-001"])
def test_inputs_of_real_reports(model: str):
    """Question lengths and reported tokens of RouterArena, 76 kinds of tasks: the errors that are claimed."""
    file = DATA / "routerarena_2_models" / "outcomes.csv.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name}: set APPORTION_DATA to the data folder")
    with gzip.open(file, "rt") as lines:
        rows = [r for r in csv.DictReader(lines) if r["model"] == model and int(r["input_tokens"]) > 2]
    random.Random(0).shuffle(rows)
    rates = TokenRates(model)
    errors, fixed = [], []
    total = estimated = 0
    for row in rows:
        size, true = int(row["question_chars"]), int(row["input_tokens"])
        guess = rates.quick_input_tokens(size)
        errors.append(abs(guess / true - 1))
        fixed.append(abs(size / 4 / true - 1))
        total, estimated = total + true, estimated + guess
        rates.learn(b" " * size, Usage(true, 1))
    assert sum(errors) / len(errors) < (0.16 if "claude" in model else 0.085)
    assert abs(estimated / total - 1) < 0.04
    if "gemini" in model:
        assert sum(errors) < sum(fixed) / 2


# --- requests -------------------------------------------------------------------------------------

PNG = "data:image/png;base64,iVBORw0KGgo="


def test_request_estimate_counts_what_the_model_reads():
    base = {"model": "gpt-4", "messages": [{"role": "user", "content": SAMPLES["english"]}]}
    count = estimate_request_tokens(base)
    assert count == estimate_tokens(SAMPLES["english"]) + 7
    parts = [{"type": "text", "text": SAMPLES["english"]}, {"type": "image_url", "image_url": {"url": PNG}}]
    assert (
        estimate_request_tokens({**base, "messages": [{"role": "user", "content": parts}]})
        == count + IMAGE_TOKENS
    )
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert estimate_request_tokens({**base, "tools": tools}) > count + 10
    assert estimate_request_tokens({**base, "metadata": {"a": "b " * 500}}) == count


def test_request_estimate_of_every_dialect():
    english = estimate_tokens(SAMPLES["english"], "claude")
    message = {
        "model": "claude-opus-5",
        "system": [{"type": "text", "text": SAMPLES["english"]}],
        "messages": [
            {"role": "user", "content": SAMPLES["english"]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "A" * 5000},
                    {"type": "tool_use", "id": "t" * 500, "name": "f", "input": {"a": "b"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t" * 500, "content": SAMPLES["english"]},
                    {"type": "document", "source": {"type": "text", "data": SAMPLES["english"]}},
                ],
            },
        ],
    }
    assert 4 * english <= estimate_request_tokens(message) <= 4 * english + 40
    pdf = {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 9999},
    }
    asked = {"messages": [{"role": "user", "content": [pdf]}]}
    assert estimate_request_tokens(asked) == FILE_TOKENS + 7
    responses = {
        "instructions": SAMPLES["english"],
        "input": [{"role": "user", "content": SAMPLES["english"]}],
    }
    assert estimate_request_tokens(responses) == pytest.approx(
        2 * estimate_tokens(SAMPLES["english"]), abs=10
    )
    assert estimate_request_tokens({"prompt": [1, 2, 3]}) == 6
    assert estimate_request_tokens({"messages": 3, "tools": 4, "input": None, "model": 5}) > 0


# --- the bound ------------------------------------------------------------------------------------


def bound(body: dict[str, Any]) -> int | None:
    return most_input_tokens(json.dumps(body).encode())


def user(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_bound_is_never_passed(sample: str):
    """Even with ASCII escapes or without, for every tokenizer."""
    for ascii_only in (True, False):
        body = json.dumps(
            {"messages": [{"role": "user", "content": SAMPLES[sample]}]}, ensure_ascii=ascii_only
        )
        assert (most_input_tokens(body.encode()) or 0) > max(COUNTS[sample])


def test_a_bound_is_the_bytes_and_the_template():
    for body in (
        {"messages": [{"role": "user", "content": "hi"}]},
        user({"type": "text", "text": "hi"}),
        {"messages": [], "system": "x", "stream": True, "unknown": {"a": 1}},
    ):
        raw = json.dumps(body).encode()
        turns = len(body["messages"])  # type: ignore[arg-type]
        assert most_input_tokens(raw) == len(raw) + BOUND_REQUEST_TOKENS + BOUND_MESSAGE_TOKENS * turns


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "body",
    [
        user({"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}),
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "c", **FUNCTION}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]}
            ]
        },
        {"messages": [{"role": "user", "content": "x"}], "tools": [FUNCTION]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f", "input_schema": {}}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "custom", "name": "f"}]},
        user({"type": "document", "source": {"type": "text", "data": "d"}}),
        user({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}),
        user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        {"prompt": "once upon"},
        {"prompt": [[1, 2], [3]]},
        {"input": "text to embed"},
        {"input": ["a", "b"]},
        {"input": [{"role": "user", "content": "x"}, {"type": "function_call", "call_id": "c", "name": "f"}]},
        {"messages": [{"role": "user", "content": 'quotes "image_url" and \\u0041'}]},
    ],
)
def test_bounded_requests(body: dict[str, Any]):
    raw = json.dumps(body).encode()
    found = most_input_tokens(raw)
    assert found is not None
    assert len(raw) < found <= 2 * len(raw) + BOUND_REQUEST_TOKENS + 3 * BOUND_MESSAGE_TOKENS


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": PNG},
        {"type": "input_image", "image_url": PNG},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "image", "source": {"type": "base64"}}],
        },
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "image", "source": {"type": "base64"}}]},
        },
    ],
)
def test_an_inline_image_costs_the_most_an_image_can(part: dict[str, Any]):
    found = bound(user(part))
    assert found is not None
    assert BOUND_IMAGE_TOKENS < found < BOUND_IMAGE_TOKENS + 2000


@pytest.mark.parametrize(
    "body",
    [
        user({"type": "image_url", "image_url": {"url": "https://x/y.png"}}),
        user({"type": "image_url"}),
        user({"type": "input_image", "file_id": "f"}),
        user({"type": "image", "source": {"type": "url", "url": "https://x"}}),
        user({"type": "image", "source": {"type": "file", "file_id": "f"}}),
        user(
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}}
        ),
        user({"type": "document", "source": {"type": "url", "url": "https://x"}}),
        user({"type": "file", "file": {"file_id": "f"}}),
        user({"type": "input_file", "file_data": "data:application/pdf;base64,AA"}),
        user({"type": "video_url", "video_url": {"url": "https://x"}}),
        user({"type": "audio_url", "audio_url": {"url": "https://x"}}),
        user({"type": "container_upload", "file_id": "f"}),
        user({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}),
        {"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"messages": [], "tools": [{"type": "web_search"}]},
        {"messages": [], "tools": [{"type": "mcp", "server_label": "s"}]},
        {"messages": [], "web_search_options": {}},
        {"messages": [], "mcp_servers": [{}]},
        {"messages": [], "container": "c"},
        {"messages": [], "plugins": [{"id": "web"}]},
        {"messages": [], "chat_template": "{{ 'x' * 9999999 }}"},
        {"input": "x", "previous_response_id": "r"},
        {"input": "x", "conversation": "c"},
        {"prompt": {"id": "p"}},
        {"input": [{"type": "item_reference", "id": "i"}]},
        {"input": [{"id": "i"}]},
    ],
)
def test_unbounded_requests(body: dict[str, Any]):
    assert bound(body) is None


def test_escapes_hide_nothing():
    hidden = json.dumps(user({"type": "image_url", "image_url": {"url": "https://x"}})).replace(
        "image", "\\u0069mage"
    )
    assert most_input_tokens(hidden.encode()) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":' + b"[" * 100_000, b"3"])
def test_what_is_no_request_has_no_bound(body: bytes):
    assert most_input_tokens(body) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["messages", "input", "system", "prompt", "tools", "content", "type", "source", "image_url"]
)


@settings(deadline=None)
@given(st.dictionaries(fields, json_values | st.lists(st.dictionaries(fields, json_values)), max_size=5))
def test_no_request_breaks_counting(body: dict[str, Any]):
    assert estimate_request_tokens(body) >= 3
    found = bound(body)
    assert found is None or found >= len(json.dumps(body))
