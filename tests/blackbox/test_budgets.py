"""Budgets and rates against the upstream's own meter: what may be spent is never overspent, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import PRICE, Json, endpoint, model
from .dialects import CHAT, MESSAGES, own_error
from .proxy import Gateway
from .shapes import Want
from .upstream import Seen, Upstream, new_marker
from .wire import Wire

ALICE = {"name": "alice", "secret": "${KEY_ALICE}"}
BOB = {"name": "bob", "secret": "${KEY_BOB}"}


@pytest.fixture
def config(upstream: Upstream) -> Callable[..., Json]:
    def build(**more: Any) -> Json:
        plain = f"http://127.0.0.1:{upstream.port}"
        endpoints = {name: endpoint("openai", plain, name) for name in ("left", "right")}
        endpoints["unpriced"] = endpoint("openai", plain, "unpriced", price="unknown")
        return {
            "keys": [ALICE, BOB],
            "endpoints": endpoints,
            "models": {
                "m": model("left", "right", retries={"attempts": 2, "backoff_s": 0.01}),
                "unpriced": model("unpriced"),
            },
            **more,
        }

    return build


def billed_usd(seen: list[Seen]) -> float:
    million = 1_000_000
    return sum(
        s.tokens_in * PRICE["input_usd_per_mtok"] / million
        + s.tokens_out * PRICE["output_usd_per_mtok"] / million
        for s in seen
    )


async def test_hard_budget_under_concurrency(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Sixty requests at once for a budget of about ten: streams, faults and clients that leave included.

    The bill of the upstream stays within the budget, those refused are told 402, and nearly all of the
    budget can be used (reservations are given back).
    """
    budget = 1.0
    gateway = start(config(budgets=[{"name": "all", "amount": budget}]))
    marker = new_marker()

    async def one(i: int) -> int:
        own = f"{upstream.script(new_marker(), want=Want(words=90), fault=FAULTS[i % 4])} {marker}"
        dialect = (CHAT, MESSAGES)[i % 2]
        body = dialect.request("m", own, max_tokens=90, stream=bool(i // 2 % 2))
        if i % 10 == 9:
            async with await Wire.open(gateway.port) as wire:
                await wire.send(gateway.bytes_of(dialect, body))
                await asyncio.sleep(0.02)
                wire.abort()
            return 0
        response = await gateway.post(dialect, body)
        if response.status == 402:
            own_error(dialect, response, 402, "budget_exceeded")
            assert response.header("x-should-retry") == "false"
        return response.status

    statuses = await asyncio.gather(*(one(i) for i in range(60)))
    assert 402 in statuses
    assert 200 in statuses
    spent = billed_usd(upstream.of(marker))
    # What was reserved for those who left is given back in a while.
    while (statuses[-3:] != [402] * 3 or spent <= 0.8 * budget) and len(statuses) < 1000:
        await asyncio.sleep(0.01)
        statuses.append((await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=20))).status)
        spent = billed_usd(upstream.of(marker))
    assert spent <= budget + 1e-9
    assert spent > 0.8 * budget, "the budget leaks: much less can be spent than is allowed"
    # 500 is the upstream's own, where nothing was left for another try.
    assert set(statuses) <= {0, 200, 402, 500, 502}


FAULTS = ["none", "none", "status_500", "reset_mid"]


async def test_no_false_refusal(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """One after the other without a pause: what an answer did not use is there for the next at once.

    Each costs less than a cent; three dimes hold the most that two could cost, so none of twenty is refused or
    cut short.
    """
    gateway = start(config(budgets=[{"name": "all", "amount": 0.3}]))
    marker = upstream.script(new_marker(), want=Want(words=8))
    for _ in range(20):
        response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=100))
        assert response.status == 200, response.body
    assert {s.json["max_tokens"] for s in upstream.of(marker)} == {100}


async def test_budget_of_one_key_is_its_own(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    keys = [{**ALICE, "budget": {"usd": 0.05, "window": "1h"}}, BOB]
    gateway = start(config(keys=keys))
    marker = new_marker()
    statuses = []
    for _ in range(12):
        response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=8))
        statuses.append(response.status)
    assert statuses[0] == 200
    assert statuses[-1] == 402
    assert billed_usd(upstream.of(marker)) <= 0.05
    other = await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=8), key="KEY_BOB")
    assert other.status == 200


async def test_unknown_price_is_refused_by_a_hard_budget(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Not free: refused, unless the configuration says what to assume."""
    budgets = [{"name": "all", "amount": 100}]
    gateway = start(config(budgets=budgets))
    marker = new_marker()
    own_error(CHAT, await gateway.post(CHAT, CHAT.request("unpriced", marker)), 422, "price_unknown")
    assert upstream.of(marker) == []
    assumed = start(config(budgets=budgets, unknown_price=PRICE))
    response = await assumed.post(CHAT, CHAT.request("unpriced", marker))
    assert response.status == 200
    assert float(response.header("x-apportion-cost-usd") or 0) > 0


async def test_requests_per_minute(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """The fifth is told 429 by the gateway itself (not the upstream), and when to come back."""
    gateway = start(config(keys=[{**ALICE, "limits": {"requests_per_minute": 4}}, BOB]))
    marker = new_marker()
    answers = await asyncio.gather(*(gateway.post(CHAT, CHAT.request("m", marker)) for _ in range(10)))
    assert sorted(a.status for a in answers) == [200] * 4 + [429] * 6
    assert len(upstream.of(marker)) == 4
    refused = next(a for a in answers if a.status == 429)
    own_error(CHAT, refused, 429, "gateway_rate_limited")
    assert 0 < float(refused.header("retry-after") or 0) <= 60
    served = next(a for a in answers if a.status == 200)
    assert served.header("x-ratelimit-limit-requests") == "4"
    other = await gateway.post(CHAT, CHAT.request("m", "x"), key="KEY_BOB")
    assert other.status == 200


async def test_tokens_per_minute(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    gateway = start(config(keys=[{**ALICE, "limits": {"tokens_per_minute": 2000}}]))
    marker = upstream.script(new_marker(), want=Want(words=100))
    body = CHAT.request("m", marker, max_tokens=100)
    statuses = [(await gateway.post(CHAT, body)).status for _ in range(30)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert sum(s.tokens_in + s.tokens_out for s in upstream.of(marker)) <= 2000


async def test_parallel(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Two at once; more are told so; and there is room again when one ends, however it ends."""
    gateway = start(config(keys=[{**ALICE, "limits": {"parallel": 2}}]))
    marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
    held = []
    for i in range(2):
        wire = await Wire.open(gateway.port)
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("m", marker, stream=True)))
        held.append(wire)
        for _ in range(2000):
            if len(upstream.of(marker)) > i:
                break
            await asyncio.sleep(0.01)
    refused = await gateway.post(CHAT, CHAT.request("m", "x"))
    own_error(CHAT, refused, 429, "gateway_rate_limited")
    assert refused.header("retry-after")
    held[0].abort()
    for _ in range(1000):
        response = await gateway.post(CHAT, CHAT.request("m", "x"))
        if response.status == 200:
            break
        await asyncio.sleep(0.02)
    assert response.status == 200
    held[1].abort()


async def test_a_probe_takes_an_endpoint_out_and_brings_it_back(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Health is looked at without traffic: a sick endpoint is not asked, and asked again when it is well."""
    settings = config()
    health = {"probe": "/health", "interval_s": 0.5}
    settings["endpoints"]["left"]["health"] = health
    settings["endpoints"]["left"]["breaker"] = {"failures": 2, "open_s": 0.2, "max_open_s": 0.4}
    gateway = start(settings)

    async def asked(name: str) -> int:
        marker = new_marker()
        for _ in range(6):
            assert (await gateway.post(CHAT, CHAT.request("m", marker))).status == 200
        return len([s for s in upstream.of(marker) if s.endpoint == name])

    async def until(wanted: Callable[[int], bool]) -> None:
        for _ in range(1000):
            if wanted(await asked("left")):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the probe changed nothing")

    await until(lambda n: n == 3)
    upstream.down.add("left")
    try:
        await until(lambda n: n == 0)
    finally:
        upstream.down.discard("left")
    await until(lambda n: n == 3)
