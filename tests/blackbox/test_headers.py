"""Headers in both directions: what the proxy says about an answer, and what it keeps from going through."""

from __future__ import annotations

import json
import re
import time

import pytest

from .dialects import CHAT, DIALECTS, EMBEDDINGS, MESSAGES, Dialect, own_error
from .proxy import SECRETS, Gateway, assert_no_secret
from .shapes import Want
from .upstream import Upstream, new_marker
from .wire import ask

INPUT_USD, OUTPUT_USD = 10e-6, 1000e-6
OURS = {
    "x-apportion-decision-id": "forged",
    "x-apportion-model": "forged",
    "x-apportion-endpoint": "forged",
    "x-apportion-cost-usd": "0",
    "x-apportion-cost-mark": "measured",
    "x-apportion-overhead-ms": "0",
    "x-apportion-error": "forged",
    "x-apportion-key": "forged",
}
HOST_SELECTING = {
    "x-portkey-custom-host": "http://127.0.0.1:1",
    "x-prefiller-url": "http://127.0.0.1:1",
    "x-prefiller-host-port": "127.0.0.1:1",
    "x-forwarded-host": "evil.test",
    "x-forwarded-for": "10.0.0.1",
    "forwarded": "host=evil.test",
    "x-original-url": "/admin",
    "x-rewrite-url": "/admin",
    "x-litellm-api-base": "http://127.0.0.1:1",
    "api-base": "http://127.0.0.1:1",
    "cookie": "session=client-cookie",
    "proxy-authorization": "Basic Zm9yZ2Vk",
    "te": "trailers",
    "x-from-config": "forged",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "messages", "completions", "responses", "embeddings"])
async def test_answers_say_where_they_come_from(gateway: Gateway, name: str, stream: bool) -> None:
    dialect = DIALECTS[name]
    more = {"stream": True} if stream and name != "embeddings" else {}
    begun_s = time.monotonic()
    response = await gateway.post(dialect, dialect.request("openai-one", new_marker(), **more))
    took_s = time.monotonic() - begun_s
    assert response.status == 200, response.body
    assert response.header("x-request-id")
    if dialect.sdk == "anthropic":
        assert response.header("request-id") == response.header("x-request-id")
    assert response.header("x-apportion-model") == "openai-model"
    assert response.header("x-apportion-endpoint") == "openai-a"
    overhead_ms = float(response.header("x-apportion-overhead-ms") or "nan")
    assert 0 <= overhead_ms < 1000 * took_s
    assert re.fullmatch(r"[\w-]{8,64}", response.header("x-apportion-decision-id") or "")
    assert response.header("x-apportion-error") is None
    assert len({k.lower() for k, _ in response.headers}) == len(response.headers), "a header came twice"


async def test_ids_are_unique(gateway: Gateway) -> None:
    ids = set()
    for _ in range(20):
        response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))
        ids |= {response.header("x-request-id"), response.header("x-apportion-decision-id")}
    assert len(ids) == 40 or len(ids) == 20, "two requests shared an id"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_cost_is_what_the_upstream_billed(gateway: Gateway, upstream: Upstream, kind: str) -> None:
    marker = upstream.script(new_marker(), want=Want(words=40))
    response = await gateway.post(CHAT, CHAT.request(f"{kind}-one", marker))
    seen = upstream.of(marker)[0]
    due = seen.tokens_in * INPUT_USD + seen.tokens_out * OUTPUT_USD
    assert float(response.header("x-apportion-cost-usd") or "nan") == pytest.approx(due, rel=1e-6)
    assert response.header("x-apportion-cost-mark") == "measured"


async def test_unknown_price_is_unknown_and_not_zero(gateway: Gateway) -> None:
    response = await gateway.post(CHAT, CHAT.request("openai-unpriced", new_marker()))
    assert response.status == 200
    assert response.header("x-apportion-cost-mark") == "unknown"
    assert response.header("x-apportion-cost-usd") in (None, "unknown", "")


async def test_embeddings_cost(gateway: Gateway, upstream: Upstream) -> None:
    marker = new_marker()
    response = await gateway.post(EMBEDDINGS, EMBEDDINGS.request("openai-one", marker))
    due = upstream.of(marker)[0].tokens_in * INPUT_USD
    assert float(response.header("x-apportion-cost-usd") or "nan") == pytest.approx(due, rel=1e-6)


async def test_metrics_add_up_with_the_meter(gateway: Gateway, upstream: Upstream) -> None:
    """Tokens in the metrics grow by exactly what the upstream billed, whatever the way of asking."""
    before = await gateway.metrics()
    billed_in = billed_out = 0
    for kind in ("openai", "anthropic"):
        for dialect in (CHAT, MESSAGES):
            for stream in (False, True):
                marker = upstream.script(new_marker(), want=Want(words=10))
                response = await gateway.post(dialect, dialect.request(f"{kind}-one", marker, stream=stream))
                assert response.complete
                billed_in += upstream.of(marker)[0].tokens_in
                billed_out += upstream.of(marker)[0].tokens_out
    after = await gateway.metrics()
    grown = {k: v - before.get(k, 0) for k, v in after.items() if "token" in k}
    grown_in = sum(v for k, v in grown.items() if "_total" in k and "input" in k)
    grown_out = sum(v for k, v in grown.items() if "_total" in k and "output" in k)
    assert (grown_in, grown_out) == (billed_in, billed_out), grown


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda d: d.name)
async def test_the_proxys_own_headers_are_stripped(
    gateway: Gateway, upstream: Upstream, kind: str, dialect: Dialect
) -> None:
    """Neither they, nor headers that pick a host somewhere, nor the client's key ever reach an upstream."""
    marker = new_marker()
    response = await gateway.post(
        dialect,
        dialect.request(f"{kind}-one", marker),
        {**OURS, **HOST_SELECTING, "authorization": f"Bearer {SECRETS['KEY_ALICE']}"},
    )
    assert response.status == 200, response.body
    for name in OURS:
        assert response.header(name) != "forged"
    seen = upstream.of(marker)[0]
    names = {k.lower() for k, _ in seen.headers}
    assert not [n for n in names if n.startswith("x-apportion")]
    assert not names & (set(HOST_SELECTING) - {"x-from-config"})
    assert seen.header("x-from-config") == SECRETS["UPSTREAM_HEADER"]
    assert seen.header("host") == f"127.0.0.1:{upstream.port}"
    raw = seen.head.decode("latin-1")
    assert SECRETS["KEY_ALICE"] not in raw
    assert "forged" not in raw
    if kind == "openai":
        assert seen.header("authorization") == f"Bearer {SECRETS['UPSTREAM_KEY']}"
        assert seen.header("x-api-key") is None
    else:
        assert seen.header("x-api-key") == SECRETS["UPSTREAM_KEY"]
        assert seen.header("authorization") is None
        assert seen.header("anthropic-version") == "2023-06-01"
    assert b"apportion" not in seen.body


async def test_connection_headers_stay_on_their_hop(gateway: Gateway, upstream: Upstream) -> None:
    marker = new_marker()
    response = await gateway.post(
        CHAT,
        CHAT.request("openai-one", marker),
        {"connection": "keep-alive, x-secret-hop", "x-secret-hop": "1"},
    )
    assert response.status == 200
    assert upstream.of(marker)[0].header("x-secret-hop") is None


async def test_anthropic_beta_reaches_anthropic(gateway: Gateway, upstream: Upstream) -> None:
    """A header with a meaning for the upstream is passed on to the kind that understands it."""
    marker = new_marker()
    headers = {"anthropic-beta": "token-efficient-tools-2025-02-19"}
    await gateway.post(MESSAGES, MESSAGES.request("anthropic-one", marker), headers)
    assert upstream.of(marker)[0].header("anthropic-beta") == headers["anthropic-beta"]


async def test_upstream_secrets_do_not_come_back(gateway: Gateway) -> None:
    """No header of an answer and no error names a key or where the endpoint is."""
    for model in ("openai-one", "openai-refused-one", "openai-stranger-one", "openai-dns-one"):
        response = await gateway.post(CHAT, CHAT.request(model, new_marker()))
        text = str(response.headers) + response.body.decode()
        assert_no_secret(text)


class TestDecisions:
    async def test_explained(self, gateway: Gateway) -> None:
        response = await gateway.post(CHAT, CHAT.request("openai-two", new_marker()))
        record = await gateway.decision(response)
        text = json.dumps(record)
        assert record["id"] == response.header("x-apportion-decision-id")
        assert response.header("x-apportion-endpoint") in text
        assert "openai-a" in text
        assert "openai-b" in text, "the option that was not taken is explained too"
        assert "prices" in text
        assert "why" in text
        assert "marker-" not in text, "no content in a record"

    async def test_own_key_may_read_others_may_not(self, gateway: Gateway) -> None:
        response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))
        path = f"/apportion/decisions/{response.header('x-apportion-decision-id')}"
        assert (await gateway.get(path, key="KEY_ALICE")).status == 200
        assert (await gateway.get(path, key="KEY_ADMIN")).status == 200
        assert (await gateway.get(path, key="KEY_BOB")).status in (403, 404)
        assert (await gateway.get(path, key=None)).status == 401

    @pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e%2fetc", "x" * 2000, "%00", "a/b"])
    async def test_unknown(self, gateway: Gateway, name: str) -> None:
        response = await gateway.get(f"/apportion/decisions/{name}")
        assert response.status == 404
        assert response.header("x-apportion-error") == "not_found"

    async def test_failures_have_records_too(self, gateway: Gateway) -> None:
        response = await gateway.post(CHAT, CHAT.request("openai-refused-one", new_marker()))
        assert response.status == 502
        record = await gateway.decision(response)
        assert "failed" in json.dumps(record)

    async def test_fail_over_is_told(self, gateway: Gateway, upstream: Upstream) -> None:
        marker = upstream.script(new_marker(), fault="status_500")
        response = await gateway.post(CHAT, CHAT.request("openai-two", marker))
        first, second = (s.endpoint for s in upstream.of(marker))
        assert response.header("x-apportion-endpoint") == second
        text = json.dumps(await gateway.decision(response))
        assert first in text
        assert second in text


async def test_cost_usd_is_a_plain_number(gateway: Gateway) -> None:
    response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))
    assert re.fullmatch(r"\d+(\.\d+)?", response.header("x-apportion-cost-usd") or "")


class TestKeys:
    @pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda d: d.name)
    @pytest.mark.parametrize(
        "key",
        [None, "wrong", "", SECRETS["KEY_ALICE"][:-1], SECRETS["KEY_ALICE"] + "x", "' OR '1'='1", "é" * 20],
    )
    async def test_refused(
        self, gateway: Gateway, upstream: Upstream, dialect: Dialect, key: str | None
    ) -> None:
        marker = new_marker()
        response = await gateway.post(dialect, dialect.request("openai-one", marker), key=key)
        own_error(dialect, response, 401, "invalid_api_key")
        assert upstream.of(marker) == []
        if key:
            assert key not in response.body.decode()

    @pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda d: d.name)
    @pytest.mark.parametrize("way", ["authorization", "x-api-key"])
    async def test_both_ways_for_every_api(self, gateway: Gateway, dialect: Dialect, way: str) -> None:
        secret = SECRETS["KEY_ALICE"]
        header = {way: f"Bearer {secret}" if way == "authorization" else secret}
        response = await gateway.post(dialect, dialect.request("openai-one", new_marker()), header, key=None)
        assert response.status == 200

    async def test_model_not_allowed(self, gateway: Gateway, upstream: Upstream) -> None:
        """Answered as if the model did not exist; the list holds only what the key may use."""
        marker = new_marker()
        response = await gateway.post(CHAT, CHAT.request("openai-two", marker), key="KEY_BOB")
        error = own_error(CHAT, response, 404, "model_not_found")
        assert "openai-one" in error["message"]
        assert "anthropic-one" not in error["message"]
        assert upstream.of(marker) == []
        listed = await gateway.get("/v1/models", key="KEY_BOB")
        assert [m["id"] for m in listed.json["data"]] == ["openai-one"]

    @pytest.mark.parametrize("path", ["/v1/models", "/models", "/apportion/decisions/x"])
    async def test_every_path_asks_for_a_key(self, gateway: Gateway, path: str) -> None:
        response = await gateway.get(path, key=None)
        assert response.status == 401

    @pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
    async def test_health_asks_for_none(self, gateway: Gateway, path: str) -> None:
        assert (await ask(gateway.port, "GET", path)).status == 200

    async def test_authorisation_is_on_the_path_that_is_served(self, gateway: Gateway) -> None:
        """Host, absolute targets and doubled slashes do not lead around the key (CVE-2026-49468)."""
        for target, host in [
            ("/v1/models", "health"),
            ("http://evil.test/v1/models", "evil.test"),
            ("//v1/models", "x"),
            ("/health/live/../../v1/models", "x"),
            ("/health/live/%2e%2e/%2e%2e/v1/models", "x"),
            ("/v1/models?/health/live", "/health/live"),
            ("/v1/models#/health/live", "x"),
        ]:
            response = await ask(gateway.port, "GET", target, {"host": host})
            assert response.status in (400, 401, 404), (target, response.status)
            assert b"openai-one" not in response.body
