"""Booked is what is billed: every provider's words, every API, streamed or not, translated or not.

The upstream bills by its own meter and price list (``providers.Bill``); the proxy knows only what is on the wire.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from apportion.serve.records import usd

from .booked import Booked, booked, check_metrics, query
from .conftest import KEYS, PATIENT, Json, model
from .dialects import DIALECTS, Dialect, own_error
from .providers import BY_NAME, PROVIDERS, Bill, Prices, Provider
from .proxy import Gateway
from .shapes import Want
from .upstream import Seen, Upstream, new_marker
from .wire import Response

PRICES = Prices(input=3.1, output=15.3, cached=0.37, write_5m=3.75, write_1h=6.2)
"""No two amounts of one bill are equal, and no sum of two hides an error in them."""
CLIENTS = {
    "chat": ("chat", "messages", "responses"),
    "messages": ("messages", "chat", "responses"),
    "completions": ("completions",),
    "responses": ("responses",),
    "embeddings": ("embeddings",),
}
"""Which dialects of clients an endpoint that speaks one API can answer."""


@dataclass(frozen=True)
class Case:
    provider: Provider
    api: str
    client: str
    stream: bool

    def __str__(self) -> str:
        way = "stream" if self.stream else "whole"
        return f"{self.provider.name}-{self.api}-to-{self.client}-{way}"


CASES = [
    Case(provider, api, client, stream)
    for provider in PROVIDERS
    for api in provider.apis
    for client in CLIENTS[api]
    for stream in (False, True)
    if not (stream and api == "embeddings")
]


def priced_endpoint(upstream: Upstream, name: str, api: str, **more: Any) -> Json:
    """An endpoint of its own, so that its books are those of one case."""
    return {
        "kind": "anthropic" if api == "messages" else "openai",
        "base_url": f"http://127.0.0.1:{upstream.port}/{name}/v1",
        "api_key": "${UPSTREAM_KEY}",
        "model": "some-model",
        "apis": [api],
        "price": PRICES.config(),
        "timeouts": PATIENT,
        **more,
    }


def pair(provider: str, api: str, client: str, name: str) -> Any:
    """The streamed and the whole answer of one provider to one kind of client, as a parameter called ``name``."""
    both = tuple(Case(BY_NAME[provider], api, client, stream) for stream in (True, False))
    return pytest.param(both, id=name)


@dataclass
class Ran:
    response: Response
    seen: list[Seen]
    booked: Booked


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> dict[Case, Ran]:
    """Every case that was selected, through one proxy."""
    wanted = [
        getattr(getattr(item, "callspec", None), "params", {})
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    cases = list(
        dict.fromkeys(c for p in wanted for c in (*p.get("pair", ()), *([p["case"]] if "case" in p else [])))
    )
    names = {case: f"e{i}" for i, case in enumerate(CASES)}
    config = {
        "keys": KEYS[:1] + KEYS[2:],
        "endpoints": {names[c]: priced_endpoint(upstream, names[c], c.api) for c in cases},
        "models": {names[c]: model(names[c]) for c in cases},
    }
    gateway = Gateway(tmp_path_factory.mktemp("amounts"), config).start()

    async def run(case: Case, turn: asyncio.Semaphore) -> Ran:
        dialect = DIALECTS[case.client]
        marker = upstream.script(new_marker(), want=Want(provider=case.provider.name))
        more = {"stream": True} if case.stream else {}
        async with turn:
            response = await gateway.post(dialect, dialect.request(names[case], marker, **more))
            return Ran(response, upstream.of(marker), await booked(gateway, names[case], 1))

    async def run_all() -> dict[Case, Ran]:
        turn = asyncio.Semaphore(8)
        outcomes = await asyncio.gather(*(run(c, turn) for c in cases))
        await check_metrics(gateway)
        return dict(zip(cases, outcomes, strict=True))

    found = asyncio.run(run_all())
    gateway.stop()
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_booked_equals_billed(case: Case, ran: dict[Case, Ran]) -> None:
    """To the pico-dollar. As a streamed and a whole answer are both equal to the bill, they are equal."""
    response, seen, found = ran[case].response, ran[case].seen, ran[case].booked
    assert response.status == 200, response.body[:500]
    assert len(seen) == 1
    bill = case.provider.bill
    units = seen[0].units(PRICES)
    assert units == bill.units(PRICES)
    assert (found.units, found.input_tokens, found.output_tokens) == (units, bill.input, bill.output)
    assert found.marks == {"measured"}
    told = {"cost_usd": usd(units), "cost_mark": "measured"}
    if case.stream:
        dialect = DIALECTS[case.client]
        assert dialect.ended(response.events)
        said = [
            json.loads(c.removeprefix("apportion ")) for c in response.comments if c.startswith("apportion")
        ]
        assert [{k: s[k] for k in told} for s in said] == [told]
    else:
        cost = (response.header("x-apportion-cost-usd"), response.header("x-apportion-cost-mark"))
        assert cost == (told["cost_usd"], told["cost_mark"])
    check_what_the_client_reads(case, response, bill)


def check_what_the_client_reads(case: Case, response: Response, bill: Bill) -> None:
    """A translated answer says the same counts in the client's own words."""
    if case.client == case.api:
        return
    usage = client_usage(DIALECTS[case.client], case, response)
    if usage is None:
        return
    if case.client == "chat":
        said = usage["prompt_tokens"], usage["completion_tokens"]
    elif case.client == "responses":
        said = usage["input_tokens"], usage["output_tokens"]
    else:
        written = usage["cache_creation_input_tokens"]
        said = usage["input_tokens"] + usage["cache_read_input_tokens"] + written, usage["output_tokens"]
    assert said == (bill.input, bill.output)


def client_usage(dialect: Dialect, case: Case, response: Response) -> Json | None:
    if not case.stream:
        return dict(response.json["usage"])
    if dialect.name == "messages":
        return dict(next(e.json["usage"] for e in response.events if e.event == "message_delta"))
    if dialect.name == "responses":
        return dict(
            next(e.json["response"]["usage"] for e in response.events if e.event == "response.completed")
        )
    return None  # a chat client is told only if it asks


# ------------------------------------------------------------------- what other gateways get wrong (field items)


@pytest.mark.parametrize(
    "pair",
    [
        pair("anthropic", "messages", "messages", "16_streamed_answers_are_not_free"),
        pair("anthropic", "messages", "chat", "16_streamed_answers_are_not_free_translated"),
        pair("openrouter", "chat", "chat", "17_usage_in_a_last_chunk_that_has_choices"),
        pair("mistral", "chat", "chat", "17_usage_in_the_chunk_with_the_finish_reason"),
        pair("groq", "chat", "chat", "17_usage_in_a_field_of_its_own"),
        pair("anthropic-server-tools", "messages", "messages", "18_cache_writes_of_server_tools"),
        pair("anthropic-server-tools", "messages", "chat", "18_cache_writes_of_server_tools_translated"),
        pair("anthropic", "messages", "responses", "19_cached_input_is_cheap_when_streamed_translated"),
        pair("openai", "chat", "chat", "19_cached_input_is_cheap_when_streamed"),
    ],
)
def test_field(pair: tuple[Case, Case], ran: dict[Case, Ran]) -> None:
    """Streamed and whole, the same answer is booked the same amount: the bill, neither nothing nor the full price."""
    streamed, whole = (ran[case].booked for case in pair)
    bill = pair[0].provider.bill
    assert streamed == whole
    assert streamed.units == bill.units(PRICES) > 0
    undiscounted = Bill(fresh=bill.input, said=bill.output).units(PRICES)
    if bill.cached:
        assert streamed.units != undiscounted


async def test_field_21_a_model_of_ones_own_is_not_free(
    upstream: Upstream, start: Callable[..., Gateway]
) -> None:
    """Machine time is booked, to the nanosecond, and a hard budget ends it."""
    own = priced_endpoint(upstream, "own", "chat", price="unknown", usd_per_hour=3600.0)
    del own["price"]
    budget = {"name": "all", "amount": 5.9}
    keys = KEYS[:1] + KEYS[2:]
    gateway = start(
        {"keys": keys, "endpoints": {"own": own}, "models": {"own": model("own")}, "budgets": [budget]}
    )
    chat = DIALECTS["chat"]
    marker = upstream.script(new_marker(), head_delay_s=2.0)
    answered = 0
    while (await gateway.post(chat, chat.request("own", marker))).status == 200:
        answered += 1
        assert (await booked(gateway, "own", answered)).units >= 2.0e12 * answered
    assert answered == 2, "a third answer of 2 s at a dollar a second does not fit into $5.90"
    rows = query(gateway, "SELECT usd, server_seconds FROM entries WHERE endpoint = ? AND kind = 1", "own")
    assert all(units == nanoseconds * 1000 for units, nanoseconds in rows)
    refused = await gateway.post(chat, chat.request("own", marker))
    own_error(chat, refused, 402, "budget_exceeded")


async def test_field_21_an_unknown_price_is_not_zero(
    upstream: Upstream, start: Callable[..., Gateway]
) -> None:
    """What it costs is said to be unknown; and where dollars are limited, it is refused."""
    unpriced = priced_endpoint(upstream, "unpriced", "chat", price="unknown")
    config = {
        "keys": KEYS[:1] + KEYS[2:],
        "endpoints": {"unpriced": unpriced},
        "models": {"m": model("unpriced")},
    }
    chat = DIALECTS["chat"]
    free = start(config)
    response = await free.post(chat, chat.request("m", new_marker()))
    assert (response.status, response.header("x-apportion-cost-usd")) == (200, None)
    assert response.header("x-apportion-cost-mark") == "unknown"
    found = await booked(free, "unpriced", 1)
    assert found.marks == {"unknown"}
    assert found.output_tokens == 8
    limited = start({**config, "budgets": [{"name": "all", "amount": 1000.0}]})
    marker = new_marker()
    own_error(chat, await limited.post(chat, chat.request("m", marker)), 422, "price_unknown")
    assert upstream.of(marker) == []
