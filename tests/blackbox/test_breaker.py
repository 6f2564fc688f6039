"""A failing endpoint is left alone for a while, also when it is the only one, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from .conftest import QUICK, Json, endpoint, model
from .dialects import CHAT, MESSAGES, own_error
from .proxy import Gateway
from .upstream import Upstream, new_marker

BREAKER = {"failures": 3, "window_s": 600, "open_s": 300, "max_open_s": 300}
"""It stays open until the end of the test, however slow the machine."""
OPEN_S = 1.0


@pytest.fixture
def config(upstream: Upstream, closed_port: int) -> Json:
    plain = f"http://127.0.0.1:{upstream.port}"
    endpoints = {name: endpoint("openai", plain, name, breaker=BREAKER) for name in ("lone", "left", "right")}
    refused = {"base_url": f"http://127.0.0.1:{closed_port}/v1", "breaker": BREAKER}
    endpoints["refused"] = endpoint("openai", plain, "x", **refused)
    # the time-out must not be what makes the answer quick
    endpoints["silent"] = endpoint(
        "openai", plain, "silent", breaker=BREAKER, timeouts={**QUICK, "first_token_s": 0.3, "total_s": 0.3}
    )
    models = {
        "lone": model("lone"),
        "pair": model("left", "right", retries={"attempts": 2, "backoff_s": 0.01}),
        "half": model("refused", "right", retries={"attempts": 2, "backoff_s": 0.01}),
        "refused": model("refused"),
        "silent": model("silent"),
    }
    return {"auth": {"required": False}, "endpoints": endpoints, "models": models}


async def test_group_of_one(start: Callable[..., Gateway], config: Json, upstream: Upstream) -> None:
    """After `failures` failures it is said at once that no endpoint is there and when to come back; after
    `open_s` one request tries, and success closes the circuit."""
    config["endpoints"]["lone"]["breaker"] = {**BREAKER, "open_s": OPEN_S, "max_open_s": 2.0}
    gateway = start(config)
    marker = upstream.script(new_marker(), fault="status_500", on="all")
    for _ in range(3):
        response = await gateway.post(CHAT, CHAT.request("lone", marker))
        assert response.status in (500, 502)
    until = time.monotonic() + 60
    while len(upstream.of(marker)) < 5:
        for dialect in (CHAT, MESSAGES):
            response = await gateway.post(dialect, dialect.request("lone", marker))
            if response.status in (500, 502):
                continue
            own_error(dialect, response, 503, "no_endpoint_available")
            retry_after = response.header("retry-after")
            assert retry_after is not None
            assert 0 < float(retry_after) <= 3
        assert time.monotonic() < until, "the circuit never let anything through again"
        await asyncio.sleep(0.05)
    tried_s = [seen.at_s for seen in upstream.of(marker)][2:]
    for before_s, after_s in pairwise(tried_s):
        assert after_s - before_s >= OPEN_S, "an open circuit lets nothing through, and opens again at once"
    # and well again
    upstream.script(marker, fault="none")
    until = time.monotonic() + 60
    while (response := await gateway.post(CHAT, CHAT.request("lone", marker))).status != 200:
        assert response.status == 503
        assert time.monotonic() < until, "the circuit never closed"
        await asyncio.sleep(0.1)
    for _ in range(5):
        assert (await gateway.post(CHAT, CHAT.request("lone", marker))).status == 200


@pytest.mark.parametrize("name", ["refused", "silent"])
async def test_group_of_one_whatever_the_failure(
    start: Callable[..., Gateway], config: Json, upstream: Upstream, name: str
) -> None:
    gateway = start(config)
    marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
    statuses = [(await gateway.post(CHAT, CHAT.request(name, marker))).status for _ in range(4)]
    assert statuses == [502 if name == "refused" else 504] * 3 + [503]


async def test_failures_in_streams_count(
    start: Callable[..., Gateway], config: Json, upstream: Upstream
) -> None:
    """A stream that breaks after content is a failure of the endpoint although the status was 200."""
    gateway = start(config)
    marker = upstream.script(new_marker(), fault="reset_mid", on="all")
    for _ in range(3):
        response = await gateway.post(CHAT, CHAT.request("lone", marker, stream=True))
        assert response.status == 200
    refused = await gateway.post(CHAT, CHAT.request("lone", marker, stream=True))
    own_error(CHAT, refused, 503, "no_endpoint_available")


async def test_client_errors_do_not_count(
    start: Callable[..., Gateway], config: Json, upstream: Upstream
) -> None:
    """One client's bad requests must not take the endpoint away from the others."""
    gateway = start(config)
    marker = upstream.script(new_marker(), fault="status_400", on="all")
    for _ in range(8):
        assert (await gateway.post(CHAT, CHAT.request("lone", marker))).status == 400
    assert (await gateway.post(CHAT, CHAT.request("lone", new_marker()))).status == 200


async def test_clients_that_leave_do_not_count(
    start: Callable[..., Gateway], config: Json, upstream: Upstream
) -> None:
    from .wire import Wire

    gateway = start(config)
    for _ in range(5):
        marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
        wire = await Wire.open(gateway.port)
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("lone", marker)))
        for _ in range(2000):
            if upstream.of(marker):
                break
            await asyncio.sleep(0.01)
        wire.abort()
    assert (await gateway.post(CHAT, CHAT.request("lone", new_marker()))).status == 200


async def test_the_other_takes_over_and_the_first_is_left_alone(
    start: Callable[..., Gateway], config: Json, upstream: Upstream
) -> None:
    gateway = start(config)
    marker = new_marker()
    upstream.down.add("left")
    try:
        for _ in range(20):
            assert (await gateway.post(CHAT, CHAT.request("pair", marker))).status == 200
    finally:
        upstream.down.discard("left")
    assert len([s for s in upstream.of(marker) if s.endpoint == "left"]) <= 4
    for _ in range(10):
        response = await gateway.post(CHAT, CHAT.request("half", marker))
        assert response.status == 200
        assert response.header("x-apportion-endpoint") == "right"


async def test_state_is_shown(start: Callable[..., Gateway], config: Json, upstream: Upstream) -> None:
    """`/health/ready` stays ready for the other models; the metrics name the endpoint that is out."""
    gateway = start(config)
    for _ in range(4):
        await gateway.post(CHAT, CHAT.request("refused", new_marker()))
    ready = await gateway.get("/health/ready")
    assert ready.status == 200
    shown = [k for k, v in (await gateway.metrics()).items() if 'endpoint="refused"' in k and v]
    assert shown, "nothing in the metrics says that the endpoint fails"
