"""Streams: what is asked upstream, what reaches the client and when, and what happens when one leaves."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from .dialects import CHAT, COMPLETIONS, DIALECTS, MESSAGES, Dialect
from .proxy import Gateway
from .shapes import Want
from .upstream import Seen, Upstream, new_marker
from .wire import Wire

USAGE_PLACES = ["usual", "on_choice", "on_content", "every"]


def usages(events: list) -> list[dict]:  # type: ignore[type-arg]
    return [e.json["usage"] for e in events if e.data != "[DONE]" and e.json.get("usage")]


async def seen_of(upstream: Upstream, marker: str) -> Seen:
    """The request at the upstream, as soon as it is there."""
    for _ in range(5000):
        if found := upstream.of(marker):
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("the request never reached the upstream")


@pytest.mark.parametrize("place", USAGE_PLACES)
async def test_usage_chunk_when_asked(gateway: Gateway, upstream: Upstream, place: str) -> None:
    """Said once and rightly, on an extra chunk or where the upstream puts it; the last one said is final."""
    marker = upstream.script(new_marker(), want=Want(usage=place))
    body = CHAT.request("openai-one", marker, stream=True, stream_options={"include_usage": True})
    events = (await gateway.post(CHAT, body)).events
    seen = upstream.of(marker)[0]
    assert events[-1].data == "[DONE]"
    shown = usages(events)
    assert len(shown) == 1 or place == "every"
    assert shown[-1]["completion_tokens"] == seen.tokens_out == 8
    assert shown[-1]["prompt_tokens"] == seen.tokens_in
    assert shown[-1]["total_tokens"] == seen.tokens_in + 8
    if place == "usual":
        assert events[-2].json["choices"] == []
        assert events[-2].json["usage"]
    assert CHAT.stream_text(events) == "w0 w1 w2 w3 w4 w5 w6 w7"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS], ids=lambda d: d.name)
async def test_no_usage_chunk_when_not_asked(
    gateway: Gateway, upstream: Upstream, kind: str, dialect: Dialect
) -> None:
    """The upstream is asked all the same (or the books would be guesses), but the client sees none."""
    if (kind, dialect.name) == ("anthropic", "completions"):
        pytest.skip("Anthropic has no plain completions")
    marker = new_marker()
    response = await gateway.post(dialect, dialect.request(f"{kind}-one", marker, stream=True))
    assert usages(response.events) == []
    assert all(e.json["choices"] for e in response.events[:-1])
    sent = upstream.of(marker)[0].json
    if kind == "openai":
        assert sent["stream_options"]["include_usage"] is True
    record = await gateway.decision(response)
    assert "measured" in json.dumps(record)


async def test_usage_asked_of_an_anthropic_upstream(gateway: Gateway, upstream: Upstream) -> None:
    marker = new_marker()
    body = CHAT.request("anthropic-one", marker, stream=True, stream_options={"include_usage": True})
    events = (await gateway.post(CHAT, body)).events
    seen = upstream.of(marker)[0]
    assert "stream_options" not in seen.json
    assert len(usages(events)) == 1
    assert events[-2].json["choices"] == []
    assert usages(events)[0]["completion_tokens"] == seen.tokens_out
    assert usages(events)[0]["prompt_tokens"] == seen.tokens_in


async def test_usage_in_message_events(gateway: Gateway, upstream: Upstream) -> None:
    """Anthropic clients add up `message_start` and `message_delta`: input there, final output here."""
    for kind in ("openai", "anthropic"):
        marker = new_marker()
        events = (await gateway.post(MESSAGES, MESSAGES.request(f"{kind}-one", marker, stream=True))).events
        seen = upstream.of(marker)[0]
        delta = next(e.json for e in events if e.event == "message_delta")
        assert delta["usage"]["output_tokens"] == seen.tokens_out == 8
        start = next(e.json for e in events if e.event == "message_start")
        assert start["message"]["usage"]["input_tokens"] > 0
        said = [start["message"]["usage"]["input_tokens"], delta["usage"].get("input_tokens")]
        assert [n for n in said if n is not None][-1] == seen.tokens_in, "the last word is the measured one"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_absent_usage_is_counted_and_called_estimated(
    gateway: Gateway, upstream: Upstream, kind: str, stream: bool
) -> None:
    marker = upstream.script(new_marker(), want=Want(usage="absent"))
    body = CHAT.request(f"{kind}-one", marker, stream=stream)
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = await gateway.post(CHAT, body)
    assert response.status == 200
    if stream:
        shown = usages(response.events)
        assert len(shown) == 1
        assert shown[0]["completion_tokens"] > 0
        assert shown[0]["prompt_tokens"] > 0
    else:
        assert response.header("x-apportion-cost-mark") == "estimated"
        assert float(response.header("x-apportion-cost-usd") or 0) > 0
    assert "estimated" in json.dumps(await gateway.decision(response))


@pytest.mark.parametrize("name", ["chat", "messages"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_no_token_is_held_back(gateway: Gateway, upstream: Upstream, kind: str, name: str) -> None:
    """Each word is at the client before the upstream writes the next."""
    dialect = DIALECTS[name]
    gate = threading.Semaphore(0)
    marker = upstream.script(new_marker(), want=Want(words=20), gate=gate)
    async with await Wire.open(gateway.port) as wire:
        await wire.send(gateway.bytes_of(dialect, dialect.request(f"{kind}-slow", marker, stream=True)))
        response = await wire.head()
        words = 0
        async for event in wire.events(response):
            if dialect.stream_text([event]):
                words += 1
                if words >= 2:
                    assert upstream.of(marker)[0].tokens_out == words
                    gate.release()
    assert words == 20


@pytest.mark.parametrize("name", ["chat", "messages"])
async def test_headers_wait_for_the_first_event(gateway: Gateway, upstream: Upstream, name: str) -> None:
    """So that a failure before content can still be a status."""
    dialect = DIALECTS[name]
    marker = upstream.script(new_marker(), head_delay_s=0.5)
    async with await Wire.open(gateway.port) as wire:
        begun = time.monotonic()
        await wire.send(gateway.bytes_of(dialect, dialect.request("openai-one", marker, stream=True)))
        response = await wire.head()
        assert time.monotonic() - begun > 0.4
        assert response.status == 200


@pytest.mark.parametrize("when", ["before_head", "mid_stream", "unstreamed", "half_closed"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_client_that_leaves_cancels_the_upstream(
    gateway: Gateway, upstream: Upstream, kind: str, when: str
) -> None:
    """And what was produced is in the books."""
    stream = when in ("mid_stream", "half_closed")
    marker = upstream.script(
        new_marker(),
        fault="none" if stream else "stall_before_head",
        want=Want(words=2000),
        delay_s=0.02,
    )
    body = CHAT.request(f"{kind}-slow", marker, stream=stream or when == "before_head")
    wire = await Wire.open(gateway.port)
    await wire.send(gateway.bytes_of(CHAT, body))
    seen = await seen_of(upstream, marker)
    decision = None
    if stream:
        response = await wire.head()
        decision = response.header("x-apportion-decision-id")
        count = 0
        async for event in wire.events(response):
            count += bool(CHAT.stream_text([event]))
            if count == 10:
                break
    wire.abort() if when != "half_closed" else await wire.close()
    for _ in range(6000):
        if seen.gone_at_s is not None:
            break
        await asyncio.sleep(0.01)
    assert seen.gone_at_s is not None, "the upstream was never told"
    assert not seen.done
    if decision:
        record = None
        for _ in range(3000):
            record = (await gateway.get(f"/apportion/decisions/{decision}")).json
            if "cancelled" in json.dumps(record):
                break
            await asyncio.sleep(0.02)
        assert "cancelled" in json.dumps(record)
        spent = find(record, "output_tokens")
        assert spent is not None
        assert 10 <= spent <= seen.tokens_out + 1


def find(record: object, key: str) -> float | None:
    """The first number under ``key`` anywhere in ``record``."""
    if isinstance(record, dict):
        if isinstance(record.get(key), (int, float)):
            return float(record[key])
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            if (found := find(part, key)) is not None:
                return found
    return None


@pytest.mark.slow
async def test_slow_reader_holds_the_upstream_back(gateway: Gateway, upstream: Upstream) -> None:
    """200 MB for a client that reads nothing: the proxy waits instead of hoarding."""
    await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))
    before = gateway.rss_bytes()
    marker = upstream.script(new_marker(), want=Want(words=200, piece_bytes=2**20))
    wire = await Wire.open(gateway.port, limit=2**16)
    try:
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("openai-slow", marker, stream=True)))
        seen = await seen_of(upstream, marker)
        last, peak = -1, 0
        for _ in range(60):
            await asyncio.sleep(0.1)
            peak = max(peak, gateway.rss_bytes())
            if seen.bytes_out == last and last > 0:
                break
            last = seen.bytes_out
        assert not seen.done
        assert seen.bytes_out < 64 * 2**20, "the proxy swallowed more than a few buffers"
        assert peak - before < 64 * 2**20
        assert (await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))).status == 200
    finally:
        wire.abort()


async def test_many_streams_at_once_do_not_mix(gateway: Gateway, upstream: Upstream) -> None:
    async def one(i: int) -> None:
        kind, dialect = ("openai", "anthropic")[i % 2], (CHAT, MESSAGES)[i // 2 % 2]
        words = 20 + i
        marker = upstream.script(new_marker(), want=Want(words=words), delay_s=0.005)
        response = await gateway.post(
            dialect, dialect.request(f"{kind}-slow", marker, stream=True, max_tokens=1000)
        )
        assert dialect.stream_text(response.events) == " ".join(f"w{k}" for k in range(words))
        assert len(upstream.of(marker)) == 1

    await asyncio.gather(*(one(i) for i in range(60)))


async def test_stream_with_n(gateway: Gateway, upstream: Upstream) -> None:
    """`n` passes through, streamed or not: every choice whole, under its own index."""
    marker = new_marker()
    response = await gateway.post(CHAT, CHAT.request("openai-one", marker, stream=True, n=3))
    texts = ["", "", ""]
    for event in response.events:
        if event.data != "[DONE]":
            for choice in event.json["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["w0 w1 w2 w3 w4 w5 w6 w7"] * 3
    plain = await gateway.post(CHAT, CHAT.request("openai-one", marker, n=3))
    assert [c["message"]["content"] for c in plain.json["choices"]] == texts
    assert [s.json["n"] for s in upstream.of(marker)] == [3, 3]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_stream_headers(gateway: Gateway, kind: str) -> None:
    response = await gateway.post(CHAT, CHAT.request(f"{kind}-one", new_marker(), stream=True))
    assert response.header(
        "content-type",
    ).startswith("text/event-stream")  # type: ignore[union-attr]
    assert "no-cache" in (response.header("cache-control") or "")
    assert response.header("content-length") is None
    assert response.header("x-apportion-endpoint") == f"{kind}-a"
    assert response.header("x-apportion-decision-id")
