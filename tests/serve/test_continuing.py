"""The rest of an answer joined to its beginning: any text, any seam, any packets; and how the rest is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve import continuing, inside
from apportion.serve.assemble import assembler
from apportion.serve.call import Call, parse
from apportion.serve.continuing import Begun, Seam
from apportion.serve.http import sse

PIECES = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=12)


def call(**fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True, **fields}
    return parse(inside.request("/v1/chat/completions", json.dumps(body).encode()), "chat")


def text_call(**fields: Any) -> Call:
    body = {"model": "m", "prompt": "Once", "stream": True, **fields}
    return parse(inside.request("/v1/completions", json.dumps(body).encode()), "completions")


def stream(name: str, pieces: list[str], prompt_tokens: int) -> list[bytes]:
    """The events of a stream that says ``pieces``, with all that a server puts around them."""
    head = {"id": name, "created": len(name), "model": f"at {name}"}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        *({"content": one} for one in pieces),
    ]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": len(pieces)}
    usage = {**counts, "prompt_tokens_details": {"cached_tokens": prompt_tokens}}
    usage["total_tokens"] = prompt_tokens + len(pieces)
    chunks.append({**head, "choices": [], "usage": usage})
    events = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    return [
        *events,
        b': apportion {"decision_id":"x","cost_usd":"0.5","cost_mark":"measured"}\n\n',
        b"data: [DONE]\n\n",
    ]


class Sink:
    """Collects what a client would get."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@given(PIECES, st.data())
def test_any_seam_is_invisible(pieces: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(pieces) - 1))
    first = stream("first", pieces, 7)[: cut + 1]
    sink, held = Sink(), assembler("chat")
    for event in first:
        sink.write(event)
        held.write(event)
    begun = continuing.begun(call(), held.body(None, cut=False))
    assert begun is not None
    assert begun.text == "".join(pieces[:cut])
    seam = Seam(inside.Inside(), sink, begun, cut, "dec_1", [])
    rest = b"".join(stream("second", pieces[cut:], 7 + cut))
    places = sorted(data.draw(st.lists(st.integers(0, len(rest)), max_size=6)))
    seam.start(200, b"", b"")
    for begin, end in zip([0, *places], [*places, len(rest)], strict=True):
        seam.write(rest[begin:end])
    seam.finish()
    events = [sse.parse(event) for event in sse.Splitter().feed(sink.data)]
    payloads = [payload for _, payload in events if payload is not None]
    assert payloads[-1] == b"[DONE]"
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "".join(pieces)
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {("first", 5, "at first")}
    assert sum("role" in choice["delta"] for choice in choices) == 1
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, len(pieces))
    assert usage["total_tokens"] == 7 + len(pieces)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 7
    assert sink.data.count(b": apportion ") == 1
    assert b'"decision_id":"dec_1"' in sink.data


@given(st.text(min_size=1), st.integers(1, 50), st.integers(0, 60))
def test_the_rest_is_asked_for_with_what_is_left(text: str, cap: int, made: int) -> None:
    for asked in (call(max_tokens=cap), text_call(max_tokens=cap)):
        rest = continuing.rest(asked, text, made)
        if made >= cap:
            assert rest is None
            continue
        assert rest is not None
        body = msgspec.json.decode(rest.request.body)
        assert body["max_tokens"] == rest.max_output_tokens == cap - made
        if asked.api == "chat":
            assert body["messages"] == [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": text},
            ]
            assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        else:
            assert body["prompt"] == "Once" + text
        again = continuing.rest(rest, "!", 0)
        assert again is not None
        longer = msgspec.json.decode(again.request.body)
        said = (
            longer["messages"][-1]["content"]
            if asked.api == "chat"
            else longer["prompt"].removeprefix("Once")
        )
        assert said == text + "!", "a second move goes on with the same message"
        assert msgspec.json.decode(asked.request.body).get("continue_final_message") is None, "not changed"


def test_reading_ahead_asks_for_one_token_and_no_stream() -> None:
    found = continuing.reading(call(max_completion_tokens=90, stream_options={"include_usage": True}), "So")
    body = msgspec.json.decode(found.request.body)
    assert body["max_tokens"] == 1
    assert not {"stream", "stream_options", "max_completion_tokens"} & body.keys()
    assert (found.stream, found.max_output_tokens) == (False, 1)


def test_only_plain_unfinished_text_is_handed_over() -> None:
    def read(message: dict[str, Any], finish: str | None = None) -> Begun | None:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return continuing.begun(call(), json.dumps({"id": "i", "choices": [choice]}).encode())

    assert read({"role": "assistant", "content": "So", "refusal": None}) is not None
    assert read({"role": "assistant", "content": ""}) is None
    assert read({"role": "assistant", "content": "So", "reasoning_content": "Hm"}) is None
    assert read({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}) is None
    assert continuing.begun(call(), b"{") is None
    assert continuing.begun(call(), b'{"choices":[]}') is None


def test_an_error_in_the_rest_is_passed_on_as_it_is() -> None:
    sink = Sink()
    seam = Seam(inside.Inside(), sink, Begun("So", {"id": "first"}, None), 1, "dec_1", [])
    error = b'data: {"error":{"message":"no","code":"stream_broken"}}\n\n'
    seam.write(error)
    assert sink.data == error
