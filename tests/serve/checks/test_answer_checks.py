"""Checks of answers: right ones pass, wrong ones fail, others are passed over; no schema or pattern does harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve.checks.check import Check, made, number, option, plain
from apportion.serve.checks.examiner import Exam, Examiner, Result, examine
from apportion.serve.checks.exchange import Exchange, read
from apportion.serve.checks.schemas import CheckError
from apportion.serve.config.schema import Api

ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def check(kind: str, **more: Any) -> Check:
    return made(
        SimpleNamespace(
            **({"schema": None, "pattern": None, "compare": "text", "phrases": None} | {"kind": kind} | more)
        )
    )


def chat(
    text: str | None = None, *, calls: Sequence[tuple[str, str]] = (), finish: str = "stop", **request: Any
) -> Exchange:
    expect = request.pop("expect", None)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **request}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ]
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    return read("chat", json.dumps(body).encode(), json.dumps(answer).encode(), stream=False, expect=expect)


TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": ADD}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.mark.parametrize(
    ("calls", "score"),
    [
        ([("add", '{"a": 1}')], 1.0),
        ([("add", '{"a": 1}'), ("now", "{}")], 1.0),
        ([("now", "")], 1.0),
        ([("add", '{"a": "1"}')], 0.0),
        ([("add", '{"a": 1, "b": 2}')], 0.0),
        ([("add", "{}")], 0.0),
        ([("add", "")], 0.0),
        ([("add", '{"a": 1')], 0.0),
        ([("add", "[1]")], 0.0),
        ([("subtract", '{"a": 1}')], 0.0),
        ([("add", '{"a": 1}'), ("subtract", "{}")], 0.0),
        ([], None),
    ],
)
def test_tool_calls(calls: list[tuple[str, str]], score: float | None) -> None:
    assert check("tool_call").of(chat("hi", calls=calls, tools=TOOLS)) == score


@pytest.mark.parametrize(
    ("api", "request_tools", "answer"),
    [
        (
            "messages",
            [{"name": "add", "input_schema": ADD}],
            {"content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"a": "x"}}]},
        ),
        (
            "responses",
            [{"type": "function", "name": "add", "parameters": ADD}],
            {"output": [{"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": "x"}'}]},
        ),
    ],
)
def test_tool_calls_of_other_dialects(api: Api, request_tools: object, answer: object) -> None:
    for each, score in (
        (answer, 0.0),
        (json.loads(json.dumps(answer).replace('"x"', "3").replace('\\"x\\"', "3")), 1.0),
    ):
        body = json.dumps({"tools": request_tools, "messages": [], "input": "x"}).encode()
        exchange = read(api, body, json.dumps(each).encode(), stream=False)
        assert check("tool_call").of(exchange) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ann"}', 1.0),
        ('{"name": 3}', 0.0),
        ("Ann", 0.0),
        ("", 0.0),
        ('```json\n{"name": "Ann"}\n```', 0.0),
    ],
)
def test_json_as_configured_or_as_asked(text: str, score: float) -> None:
    assert check("json_schema", schema=PERSON).of(chat(text)) == score
    asked = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    assert check("json_schema").of(chat(text, response_format=asked)) == score
    assert check("json_schema").of(chat(text)) is None


def test_any_json_object() -> None:
    for text, score in (("{}", 1.0), ("[]", 0.0), ("no", 0.0)):
        assert check("json_schema").of(chat(text, response_format={"type": "json_object"})) == score


def test_a_stream_is_read_as_its_answer() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": part}}]}
        for part in ('{"name"', ': "Ann"}')
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    stream = (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )
    exchange = read("chat", b'{"messages":[]}', stream, stream=True)
    assert check("json_schema", schema=PERSON).of(exchange) == 1.0
    assert check("finish").of(exchange) == 1.0


@pytest.mark.parametrize(
    ("kind", "exchange", "score"),
    [
        ("pattern", chat("order 12345"), 1.0),
        ("pattern", chat("order 12"), 0.0),
        ("finish", chat("a"), 1.0),
        ("finish", chat("a", finish="length"), 0.0),
        ("finish", chat("a", finish="content_filter"), 0.0),
        ("finish", chat("a", finish=""), None),
        ("not_empty", chat("a"), 1.0),
        ("not_empty", chat(" \n"), 0.0),
        ("not_empty", chat(None, calls=[("now", "{}")]), 1.0),
        ("refusal", chat("I\u2019m sorry, but I can\u2019t help with that."), 0.0),
        ("refusal", chat("Sure. Here it is."), 1.0),
        ("refusal", chat("x" * 1000 + " i can't help with that"), 1.0),
        ("refusal", chat(""), None),
        ("exact", chat("42"), None),
        ("exact", chat(" Forty-Two. ", expect="forty-two"), 1.0),
        ("exact", chat("forty-three", expect="forty-two"), 0.0),
    ],
)
def test_the_others(kind: str, exchange: Exchange, score: float | None) -> None:
    assert check(kind, pattern=r"order \d{5}" if kind == "pattern" else None).of(exchange) == score


def test_own_phrases() -> None:
    assert check("refusal", phrases=["Kann ich nicht"]).of(chat("Das kann ich nicht.")) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so it is 1,234.50", "1234.5"),
        ("3 + 4 = 7.", "7"),
        ("#### -12", "-12"),
        ("$18", "18"),
        ("1e3", "1000"),
        ("\\boxed{72}", "72"),
        ("none", None),
    ],
)
def test_numbers(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))
    if value is not None:
        assert check("exact", compare="number").of(chat(text, expect=value)) == 1.0
        assert check("exact", compare="number").of(chat(text, expect="99")) == 0.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("Answer: **C**", "C"),
        ("\\boxed{D}", "D"),
        ("A is wrong, so I think B", "B"),
        ("A", "A"),
        ("(c)", None),
        ("I do not know", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert option(text) == letter


@given(st.text(max_size=50))
def test_plain_is_settled(text: str) -> None:
    assert plain(plain(text)) == plain(text)
    assert plain(f'  "{text}". ') == plain(text)


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1"])
def test_a_pattern_that_may_take_forever_is_refused(pattern: str) -> None:
    with pytest.raises(CheckError, match="pattern"):
        check("pattern", pattern=pattern)


@pytest.mark.parametrize(
    "schema", [{"type": "nope"}, {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/hostname"}]
)
def test_a_schema_that_is_none_or_elsewhere_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(CheckError, match="schema"):
        check("json_schema", schema=schema)
    # A client's own says nothing.
    asked = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    assert check("json_schema").of(chat("{}", response_format=asked)) is None


def test_a_clients_evil_pattern_takes_no_time() -> None:
    """With backtracking this would not end."""
    tools = [
        {
            "type": "function",
            "function": {"name": "add", "parameters": {"properties": {"a": {"pattern": "^(a+)+$"}}}},
        }
    ]
    assert (
        check("tool_call").of(chat(calls=[("add", json.dumps({"a": "a" * 5000 + "!"}))], tools=tools)) == 0.0
    )


def test_deep_nesting_does_no_harm() -> None:
    deep: Any = {"a": 1}
    for _ in range(900):
        deep = {"a": deep}
    schema = {"properties": {"a": {"$ref": "#"}}}
    assert check("json_schema", schema=schema).of(chat(json.dumps(deep))) in (0.0, 1.0)
    assert check("json_schema", schema=schema).of(chat("[" * 5000 + "]" * 5000)) == 0.0


def exam(id: str = "dec_1", text: str = "hi", *, judged: bool = False) -> Exam:
    answer = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    checks = [check("not_empty"), check("exact"), check("finish")]
    return Exam(
        id,
        "chat",
        b'{"messages":[{"role":"user","content":"q"}]}',
        json.dumps(answer).encode(),
        False,
        None,
        checks,
        judged,
    )


def test_an_exam() -> None:
    result = examine(exam())
    assert [(c.name, score) for c, score in result.scores] == [("not_empty", 1.0), ("finish", 1.0)]
    assert result.exchange is None
    assert examine(exam(judged=True)).exchange is not None


def test_what_cannot_be_read_says_nothing() -> None:
    for answer in (b"", b"\xff", b"[]", b'{"choices":[{"message":7}]}', b'{"choices":7}'):
        result = examine(exam()._replace(answer=answer, body=b"nonsense", judged=True))
        assert result.id == "dec_1"


async def test_exams_are_made_in_a_thread_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Result] = []
    examiner = Examiner(results.append)
    for number_ in range(50):
        assert examiner.submit(exam(f"dec_{number_}"))
    await examiner.close()
    assert [result.id for result in results] == [f"dec_{n}" for n in range(50)]
    assert examiner._bytes == 0
    monkeypatch.setattr("apportion.serve.checks.examiner._MOST_BYTES", 10)
    assert not examiner.submit(exam())
    assert examiner.dropped == 1


async def test_a_check_that_breaks_spoils_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Check):
        name = "broken"

        def score(self, choice: object, exchange: object) -> float | None:
            raise RuntimeError("broken")

    result = examine(exam()._replace(checks=[Broken(), check("not_empty")]))
    assert [c.name for c, _ in result.scores] == ["not_empty"]
    assert "broken" in caplog.text
    await asyncio.sleep(0)
