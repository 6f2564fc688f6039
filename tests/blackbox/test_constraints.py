"""What a client may demand of one request: it is obeyed, or refused with the best that was possible."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from .dialects import CHAT, DIALECTS, MESSAGES, Dialect, own_error
from .proxy import Gateway
from .shapes import Want
from .upstream import Upstream, new_marker

OUTPUT_USD = 1000e-6
CAP_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
BOTH = pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda d: d.name)
KINDS = pytest.mark.parametrize("kind", ["openai", "anthropic"])
WAYS = pytest.mark.parametrize("way", ["body", "header"])


def constrained(body: dict[str, Any], way: str, **limits: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The request and headers that put ``limits`` on it."""
    if way == "body":
        return {**body, "apportion": limits}, {}
    return body, {f"x-apportion-{k.replace('_', '-')}": str(v) for k, v in limits.items()}


@KINDS
@BOTH
@WAYS
async def test_max_usd_caps_the_output(
    gateway: Gateway, upstream: Upstream, dialect: Dialect, kind: str, way: str
) -> None:
    """A dime buys at most a hundred output tokens here: the upstream is told, and it costs no more."""
    marker = upstream.script(new_marker(), want=Want(words=300))
    request = dialect.request(f"{kind}-one", marker, max_tokens=1000)
    body, headers = constrained(request, way, max_usd=0.1)
    response = await gateway.post(dialect, body, headers)
    assert response.status == 200, response.body
    seen = upstream.of(marker)[0]
    caps = [seen.json[f] for f in CAP_FIELDS if seen.json.get(f)]
    assert caps
    assert all(0 < cap <= 100 for cap in caps), caps
    assert min(caps) >= 60, "far less than the money buys"
    assert float(response.header("x-apportion-cost-usd") or "nan") <= 0.1
    assert dialect.finish(response.json) == dialect.stops[1]


@KINDS
async def test_max_usd_keeps_a_smaller_cap_of_the_client(
    gateway: Gateway, upstream: Upstream, kind: str
) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        marker = new_marker()
        body = CHAT.request(f"{kind}-one", marker, apportion={"max_usd": 1}, **{field: 5})
        response = await gateway.post(CHAT, body)
        assert response.status == 200
        seen = upstream.of(marker)[0]
        assert min(seen.json[f] for f in CAP_FIELDS if seen.json.get(f)) == 5


async def test_max_usd_counts_every_choice(gateway: Gateway, upstream: Upstream) -> None:
    marker = upstream.script(new_marker(), want=Want(words=300))
    body = CHAT.request("openai-one", marker, n=4, apportion={"max_usd": 0.1})
    response = await gateway.post(CHAT, body)
    assert response.status == 200
    assert 40 <= upstream.of(marker)[0].tokens_out <= 100


@BOTH
@WAYS
async def test_max_usd_too_small(gateway: Gateway, upstream: Upstream, dialect: Dialect, way: str) -> None:
    """Not enough for the input and one token: refused before anything is spent, the least price named."""
    marker = new_marker()
    body, headers = constrained(dialect.request("openai-one", marker), way, max_usd=0.0000001)
    response = await gateway.post(dialect, body, headers)
    error = own_error(dialect, response, 422, "constraint_unmet")
    assert "max_usd" in json.dumps(error)
    assert any(c.isdigit() for c in error["message"]), "the best that was possible is named"
    assert upstream.of(marker) == []
    assert response.header("x-should-retry") == "false"


async def test_max_usd_on_an_unknown_price(gateway: Gateway, upstream: Upstream) -> None:
    marker = new_marker()
    body = CHAT.request("openai-unpriced", marker, apportion={"max_usd": 10})
    response = await gateway.post(CHAT, body)
    assert response.status == 422
    assert response.header("x-apportion-error") in ("price_unknown", "constraint_unmet")
    assert upstream.of(marker) == []


@KINDS
@BOTH
@WAYS
@pytest.mark.parametrize("stream", [False, True])
async def test_deadline_gives_what_there_is(
    gateway: Gateway, upstream: Upstream, dialect: Dialect, kind: str, stream: bool, way: str
) -> None:
    """A slow answer is cut at the deadline: a right, shorter answer that says so, and no error."""
    deadline_s, delay_s = 0.5, 0.05
    while True:
        marker = upstream.script(new_marker(), want=Want(words=2000), delay_s=delay_s)
        request = dialect.request(
            f"{kind}-slow", marker, max_tokens=4000, **({"stream": True} if stream else {})
        )
        body, headers = constrained(request, way, deadline_s=deadline_s)
        begun = time.monotonic()
        response = await gateway.post(dialect, body, headers)
        took_s = time.monotonic() - begun
        if response.status != 504:
            break
        # The machine was so slow that there was nothing yet.
        own_error(dialect, response, 504, "deadline_exceeded")
        deadline_s *= 2
        assert deadline_s < 20
    assert response.status == 200, response.body
    assert response.complete
    if stream:
        events = response.events
        text, finish = dialect.stream_text(events), dialect.stream_finish(events)
        assert dialect.ended(events), "a deadline is a limit that was asked for, not a failure"
        assert dialect.error(events) is None
        assert any("deadline" in c for c in response.comments), "the stream says why it is short"
    else:
        text, finish = dialect.text(response.json), dialect.finish(response.json)
        assert response.header("x-apportion-deadline") == "exceeded"
        overhead_ms = response.header("x-apportion-overhead-ms")
        assert overhead_ms is not None
        written_s = (len(text.split()) - 3) * delay_s
        assert float(overhead_ms) / 1000 < took_s - written_s, "what the upstream took is not the proxy's"
        assert response.json["usage"]
    words = text.split()
    assert words == [f"w{i}" for i in range(len(words))]
    assert 1 <= len(words) < 1000
    assert finish == dialect.stops[1]
    seen = upstream.of(marker)[0]
    for _ in range(6000):
        if seen.gone_at_s is not None:
            break
        time.sleep(0.01)
    assert seen.gone_at_s is not None, "the upstream goes on producing what nobody reads"


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_deadline_with_nothing_to_show(
    gateway: Gateway, upstream: Upstream, dialect: Dialect, stream: bool
) -> None:
    marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
    body = dialect.request("openai-slow", marker, apportion={"deadline_s": 0.3}, stream=stream)
    response = await gateway.post(dialect, body)
    own_error(dialect, response, 504, "deadline_exceeded")
    assert response.header("x-should-retry") == "false"


@BOTH
async def test_deadline_that_is_met_changes_nothing(
    gateway: Gateway, upstream: Upstream, dialect: Dialect
) -> None:
    for kind in ("openai", "anthropic"):
        marker = new_marker()
        tools = [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ]
        plain = await gateway.post(dialect, dialect.request(f"{kind}-one", marker))
        bound = await gateway.post(
            dialect, dialect.request(f"{kind}-one", marker, apportion={"deadline_s": 20})
        )
        assert bound.status == 200
        assert bound.header("x-apportion-deadline") is None
        assert without_ids(bound.json) == without_ids(plain.json)
        if dialect is CHAT:
            called = await gateway.post(
                CHAT, CHAT.request(f"{kind}-one", marker, tools=tools, apportion={"deadline_s": 20})
            )
            call = called.json["choices"][0]["message"]["tool_calls"][0]
            assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
            assert called.json["choices"][0]["finish_reason"] == "tool_calls"


def without_ids(body: dict[str, Any]) -> Any:
    """An answer without what may differ: ids, times, and keys that say nothing."""
    if isinstance(body, dict):
        dropped = ("id", "created", "request_id", "system_fingerprint", "service_tier", "apportion")
        return {k: without_ids(v) for k, v in body.items() if k not in dropped and v not in (None, [], {})}
    if isinstance(body, list):
        return [without_ids(v) for v in body]
    return body


async def test_deadline_bounds_all_attempts(gateway: Gateway, upstream: Upstream) -> None:
    """Fail-over does not start the clock again."""
    marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
    response = await gateway.post(CHAT, CHAT.request("openai-two", marker, apportion={"deadline_s": 0.5}))
    assert response.status == 504
    assert len(upstream.of(marker)) <= 1, "the deadline is for the request, not for each attempt"


async def test_max_joules_where_energy_is_unknown(gateway: Gateway, upstream: Upstream) -> None:
    marker = new_marker()
    for way in ("body", "header"):
        body, headers = constrained(CHAT.request("openai-one", marker), way, max_joules=5)
        response = await gateway.post(CHAT, body, headers)
        error = own_error(CHAT, response, 422, "constraint_unmet")
        assert "max_joules" in json.dumps(error)
    assert upstream.of(marker) == []


@WAYS
async def test_effort_priority_and_tags_are_recorded(gateway: Gateway, upstream: Upstream, way: str) -> None:
    marker = new_marker()
    tags: Any = ["blue", "sky"] if way == "body" else "blue, sky"
    body, headers = constrained(CHAT.request("openai-one", marker), way, effort=0.5, priority=2, tags=tags)
    response = await gateway.post(CHAT, body, headers)
    assert response.status == 200, response.body
    assert "apportion" not in upstream.of(marker)[0].json
    text = json.dumps(await gateway.decision(response))
    assert "blue" in text
    assert "red" in text, "the key's own tag"


INVALID: list[tuple[str, Any]] = [
    ("max_usd", 0),
    ("max_usd", -1),
    ("max_usd", "much"),
    ("max_usd", True),
    ("max_usd", [1]),
    ("deadline_s", 0),
    ("deadline_s", -0.5),
    ("deadline_s", "soon"),
    ("max_joules", -1),
    ("max_joules", 0),
    ("effort", 0),
    ("effort", 1.01),
    ("effort", -1),
    ("effort", "high"),
    ("priority", "first"),
    ("tags", 5),
    ("tags", {"a": "b"}),
    ("tags", [1]),
    ("priority", 1.5),
    ("priority", 101),
    ("max_euros", 5),
]


@BOTH
@pytest.mark.parametrize(("name", "value"), INVALID, ids=str)
async def test_invalid_in_the_body(
    gateway: Gateway, upstream: Upstream, dialect: Dialect, name: str, value: Any
) -> None:
    """Zero, negative, of the wrong type, unknown: an error that names the field; nothing is guessed."""
    marker = new_marker()
    response = await gateway.post(dialect, dialect.request("openai-one", marker, apportion={name: value}))
    assert response.status == 400, response.body
    assert name in json.dumps(response.json)
    assert upstream.of(marker) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, v in INVALID if n not in ("max_euros", "tags") and not isinstance(v, (bool, list))]
    + [("max-usd", "nan"), ("max-usd", "inf"), ("deadline-s", "1e999"), ("max-usd", "")],
    ids=str,
)
async def test_invalid_in_a_header(gateway: Gateway, upstream: Upstream, name: str, value: Any) -> None:
    marker = new_marker()
    header = f"x-apportion-{name.replace('_', '-')}"
    response = await gateway.post(CHAT, CHAT.request("openai-one", marker), {header: str(value)})
    assert response.status == 400, response.body
    text = json.dumps(response.json)
    assert header in text or name.replace("-", "_") in text
    assert upstream.of(marker) == []


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e308", "NaN", "Infinity", "1" * 400])
async def test_numbers_at_the_edge(gateway: Gateway, upstream: Upstream, number: str) -> None:
    """Too large is refused or a very generous limit; never a fault."""
    marker = new_marker()
    for name in ("max_usd", "deadline_s", "max_joules", "effort"):
        raw = json.dumps(CHAT.request("openai-one", marker))[:-1] + f', "apportion": {{"{name}": {number}}}}}'
        response = await gateway.post(CHAT, raw.encode())
        assert response.status in (200, 400, 422), response.body


@pytest.mark.parametrize("value", [5, "x", [], True])
async def test_apportion_must_be_an_object(gateway: Gateway, value: Any) -> None:
    response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker(), apportion=value))
    error = own_error(CHAT, response, 400, "invalid_request")
    assert "apportion" in error["message"] + str(error["param"])


async def test_null_is_as_if_left_out(gateway: Gateway) -> None:
    for value in (None, {}, {"max_usd": None, "deadline_s": None, "tags": None}):
        response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker(), apportion=value))
        assert response.status == 200, (value, response.body)


@pytest.mark.parametrize("name", ["chat", "messages", "completions", "responses"])
async def test_the_field_never_reaches_the_upstream(gateway: Gateway, upstream: Upstream, name: str) -> None:
    dialect, marker = DIALECTS[name], new_marker()
    response = await gateway.post(dialect, dialect.request("openai-one", marker, apportion={"priority": 1}))
    assert response.status == 200, response.body
    assert b"apportion" not in upstream.of(marker)[0].body
