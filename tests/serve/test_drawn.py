"""Log probabilities in streams: what is read of them, who asks for them, who sees them, what they end."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Drawn
from apportion.serve.drawn import DrawnReader, drawn_at_least
from apportion.serve.http.server import Request, Responder
from inprocess import Json, Proxy, Upstream, chat, events, proxy

MARK: Json = {"token": "", "bytes": [], "logprob": -0.15}
"""How llama.cpp writes the end of the text among what might have come."""
CONFIG = """
endpoints:
  one: {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
models:
  watched: {endpoints: [one], guard: {name: guard/overflow, action: pass, logprobs: true}}
  unasked: {endpoints: [one], guard: {name: guard/overflow, action: pass}}
"""


def read(*tokens: Json) -> list[Drawn]:
    reader = DrawnReader()
    reader.read(msgspec.json.encode({"content": list(tokens)}))
    return reader.found


def token(text: str, logprob: float, *tops: Json) -> Json:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": list(tops)}


def test_an_end_that_was_likeliest_and_not_taken_is_seen() -> None:
    assert read(token(" I", -4.2, MARK)) == [Drawn(-4.2, -0.15)]
    assert read({"token": " I", "logprob": -4.2}) == [Drawn(-4.2)]
    for temperature, wanted in ((0.0, 0.0), (None, None)):
        reader = DrawnReader(temperature)
        reader.read(msgspec.json.encode({"content": [token(" I", -4.2, MARK)]}))
        assert reader.found == [Drawn(-4.2, wanted)]


@pytest.mark.parametrize("mark", ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"])
def test_marks_that_are_written_out_are_known(mark: str) -> None:
    assert read(token("x", -3.0, token(mark, -0.5))) == [Drawn(-3.0, -0.5)]


def test_an_end_that_was_not_likeliest_says_nothing() -> None:
    other, less = token("x", -0.2), {**MARK, "logprob": -2.0}
    assert read(token("x", -0.2, other, less)) == [Drawn(-0.2)]
    assert read(token("x", -0.2, less)) == [Drawn(-0.2)], "what was taken was likelier, though not listed"


def test_half_a_character_is_no_end() -> None:
    half = {"token": "", "bytes": [0xE5, 0x93], "logprob": -0.1}
    assert read(token("x", -3.0, half)) == [Drawn(-3.0)]


def test_a_mark_after_which_the_answer_goes_on_is_no_end_from_then_on() -> None:
    assert read(token("x", -3.0, MARK), {**MARK, "top_logprobs": [MARK]}, token("y", -3.0, MARK)) == [
        Drawn(-3.0, -0.15),
        Drawn(-0.15),
        Drawn(-3.0),
    ]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12), temperature=st.floats(0.05, 1.0))
def test_the_likeliest_is_drawn_at_least_so_often(weights: list[float], temperature: float) -> None:
    shares = sorted((one / sum(weights) for one in weights), reverse=True)
    warmed = [(share / shares[0]) ** (1.0 / temperature) for share in shares]
    least = drawn_at_least(shares[0], temperature)
    assert 0.0 < least <= 1.0 / sum(warmed) + 1e-9
    assert least <= 1.0 / sum(warmed[:-1] or [1.0]) + 1e-9, "where the unlikely are cut off"
    even = [1.0 / len(weights)] * len(weights)
    assert drawn_at_least(even[0], temperature) == pytest.approx(even[0], rel=1e-6), "and no less"
    assert drawn_at_least(shares[0], 1.0) == pytest.approx(shares[0])
    assert drawn_at_least(shares[0], 0.0) == 1.0


def test_what_cannot_be_is_not_believed() -> None:
    assert read(token("x", 0.5, {**MARK, "logprob": 0.7})) == [Drawn(0.0, 0.0)]
    assert read({"token": "x"}) == []
    assert read(token("x", -9000.0, {**MARK, "logprob": -8000.0})) == [Drawn(-9000.0)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "token", "logprob", "top_logprobs", "bytes"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(value=_JSON, junk=st.binary(max_size=8))
def test_anything_may_come(value: Any, junk: bytes) -> None:
    reader = DrawnReader()
    reader.read(json.dumps({"content": value}).encode())
    reader.read(json.dumps(value).encode())
    reader.read(junk)
    assert all(math.isfinite(one.logprob) and one.logprob <= 0.0 for one in reader.found)


class Speaker(Upstream):
    """Says with each word how likely it was, if asked, and after 20 that it would rather have ended."""

    async def _answer(self, request: Request, responder: Responder) -> None:
        body: Json = msgspec.json.decode(request.body)
        self.asked.append(body)
        responder.start(200, b"content-type: text/event-stream\r\n")
        for place, event in enumerate(events(chat(" ".join(f"word{n * 7919}" for n in range(300))))):
            chunk = json.loads(event[6:]) if b"[DONE]" not in event else {}
            delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
            if body.get("logprobs") and delta.get("content"):
                likely = [MARK][: body.get("top_logprobs", 0)] if place > 20 else []
                content = [token(delta["content"], -4.0, *likely)]
                chunk["choices"][0]["logprobs"] = {"content": content}
                event = b"data: %b\n\n" % msgspec.json.encode(chunk)
            responder.write(event)
            await asyncio.sleep(0)
        responder.finish()


async def ask(p: Proxy, model: str, **fields: Any) -> tuple[list[Json], str]:
    """The chunks of a stream, and all that came."""
    answer = await p.ask("hello", model=model, stream=True, **fields)
    assert answer.status_code == 200
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]], answer.text


def words(chunks: list[Json]) -> int:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]).count(
        "word"
    )


def given_logprobs(chunks: list[Json]) -> list[Json]:
    return [c["choices"][0]["logprobs"] for c in chunks if c["choices"] and c["choices"][0].get("logprobs")]


async def test_an_answer_that_is_not_let_end_is_ended(tmp_path: Path) -> None:
    upstream = Speaker()
    async with proxy(tmp_path, CONFIG, upstream) as p:
        chunks, text = await ask(p, "watched")
        assert upstream.asked[0]["logprobs"] is True
        assert upstream.asked[0]["top_logprobs"] == 1
        assert not given_logprobs(chunks), "the client did not ask for them"
        assert 20 <= words(chunks) <= 30
        assert '"guard":"exceeded"' in text
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "length"
        whole = await p.ask("hello", model="watched", stream=False)
        assert whole.headers["x-apportion-guard"] == "exceeded"
        assert not whole.json()["choices"][0].get("logprobs")


async def test_who_asks_for_log_probabilities_gets_them(tmp_path: Path) -> None:
    upstream = Speaker()
    async with proxy(tmp_path, CONFIG, upstream) as p:
        for model in ("watched", "unasked"):
            chunks, _ = await ask(p, model, logprobs=True, top_logprobs=5)
            assert upstream.asked[-1]["top_logprobs"] == 5
            assert len(given_logprobs(chunks)) == words(chunks) <= 30


async def test_nobody_is_asked_for_what_the_guard_does_not_want(tmp_path: Path) -> None:
    upstream = Speaker()
    async with proxy(tmp_path, CONFIG, upstream) as p:
        chunks, _ = await ask(p, "unasked")
        assert "logprobs" not in upstream.asked[-1]
        assert words(chunks) == 300


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.5},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 10}},
        {"grammar": 'root ::= "a"*'},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    ],
)
async def test_where_the_end_may_be_forbidden_its_wish_does_not_count(tmp_path: Path, fields: Json) -> None:
    upstream = Speaker()
    async with proxy(tmp_path, CONFIG, upstream) as p:
        chunks, _ = await ask(p, "watched", **fields)
        assert words(chunks) == 300
        chunks, _ = await ask(p, "watched", temperature=1.0, response_format={"type": "text"}, tools=[])
        assert words(chunks) <= 30
