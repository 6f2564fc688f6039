"""What is decided for a request besides its price: who decides, who may answer, where it waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apportion.core import Features, catalogue
from apportion.predict.text.lexical import Lexical
from apportion.serve.artefact import write
from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.http.server import Server
from inprocess import KEYS, Json, Proxy, Upstream, chat, proxy

TWO = """
endpoints:
  cheap:
    {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}, tags: [eu], model: small}
  dear: {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 10, output_usd_per_mtok: 20}, model: large}
"""


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


async def waiting(p: Proxy, count: int, key: str = "sk-user") -> list[Json]:
    """The requests of ``key`` that wait, as soon as there are so many."""
    async with asyncio.timeout(30):
        while len(found := (await p.get("/apportion/queues", key=key)).json()["waiting"]) != count:
            await asyncio.sleep(0.005)
    return list(found)


async def test_the_baseline_decides_outside_the_rollout_and_the_shadow_only_watches(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = (
        TWO
        + """
models:
  m:
    endpoints: [{endpoint: cheap, quality: 0.5}, {endpoint: dear, quality: 0.9}]
    worth_usd: 1
    policy: route/priced
    baseline: {name: route/weighted}
    rollout: 0
    shadow: route/priced
  live:
    endpoints: [{endpoint: cheap, quality: 0.5}, {endpoint: dear, quality: 0.9}]
    worth_usd: 1
    policy: route/priced
"""
    )
    async with proxy(tmp_path, config, upstream) as p:
        chosen = set()
        for i in range(20):
            answer = await p.ask(f"{i}")
            chosen.add(answer.headers["x-apportion-endpoint"])
            told = await p.decision(answer)
            assert told["attempts"][0]["by"] == "route/weighted"
            assert told["attempts"][0]["shadow"]["endpoint"] == "dear"
            assert "On trial: Chose dear" in told["explanation"]
        assert chosen == {"cheap", "dear"}
        live = await p.ask("x", model="live")
        assert live.headers["x-apportion-endpoint"] == "dear"
        told = await p.decision(live)
        assert told["attempts"][0]["by"] == "route/priced"
        assert [o["quality"] for o in told["attempts"][0]["options"]] == [0.5, 0.9]


async def test_a_rollout_keeps_a_conversation_on_one_side(tmp_path: Path, upstream: Upstream) -> None:
    config = (
        TWO
        + """
models:
  m:
    endpoints: [{endpoint: cheap, quality: 0.5}, {endpoint: dear, quality: 0.9}]
    worth_usd: 1
    policy: route/priced
    baseline: {name: route/round_robin}
    rollout: 0.5
"""
    )
    async with proxy(tmp_path, config, upstream) as p:
        sides: dict[str, set[str]] = {}
        for i in range(60):
            session = f"s{i % 12}"
            answer = await p.ask("x", metadata={"session_id": session})
            sides.setdefault(session, set()).add((await p.decision(answer))["attempts"][0]["by"])
        assert all(len(side) == 1 for side in sides.values())
        # who decides was drawn, so what was chosen had a chance: half, or all where both would have chosen it
        told = await p.decision(answer)
        assert told["attempts"][0]["probability"] in (0.5, 1.0)
        assert {by for side in sides.values() for by in side} == {"route/priced", "route/round_robin"}


async def test_who_is_left_out_of_what_is_tried_gets_the_baseline(tmp_path: Path, upstream: Upstream) -> None:
    config = (
        TWO.replace("\nendpoints:", "\nteams: {quiet: {routing: false}}\nendpoints:")
        + """
models: {m: {endpoints: [cheap, dear], policy: route/round_robin, baseline: route/least_load}}
"""
    )
    config = config.replace("{name: other, secret: sk-other}", "")
    async with proxy(tmp_path, config + "x-note: 1\n", upstream) as p:
        key = next(key for key in p.worker.gateway.runtime.config.keys if key.name == "user")
        assert key.routing
        told = await p.decision(await p.ask())
        assert told["attempts"][0]["by"] == "route/round_robin"


@pytest.mark.parametrize("where", ["body", "header"])
async def test_a_request_may_demand_where_it_is_answered(
    tmp_path: Path, upstream: Upstream, where: str
) -> None:
    config = TWO + "models: {m: {endpoints: [dear, cheap], policy: route/round_robin}}\n"
    async with proxy(tmp_path, config, upstream) as p:
        for _ in range(4):
            if where == "body":
                answer = await p.ask(apportion={"require": ["eu"]})
            else:
                answer = await p.client.post(
                    f"{p.url}/v1/chat/completions",
                    json={"model": "m", "messages": [{"role": "user", "content": "x"}]},
                    headers={"authorization": "Bearer sk-user", "x-apportion-require": "eu"},
                )
            assert answer.headers["x-apportion-endpoint"] == "cheap"
        refused = await p.ask(apportion={"require": ["eu", "moon"]})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "unsupported_by_endpoint"
        assert "it has no tag 'moon'" in error["message"]


async def test_what_an_endpoint_lacks_goes_elsewhere(tmp_path: Path, upstream: Upstream) -> None:
    config = TWO.replace(
        "tags: [eu],", "tags: [eu], lacks: [tools, images, json_schema], context_tokens: 1000,"
    )
    config += "models: {m: {endpoints: [cheap, dear], policy: {name: route/weighted, seed: 3}}}\n"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    needs: list[dict[str, Any]] = [
        {"tools": [tool]},
        {"messages": [{"role": "user", "content": image}]},
        {"response_format": schema},
        {"content": "word " * 4000},
    ]
    async with proxy(tmp_path, config, upstream) as p:
        for need in needs:
            found = {(await p.ask(**need)).headers["x-apportion-endpoint"] for _ in range(6)}
            assert found == {"dear"}, need
        assert {(await p.ask()).headers["x-apportion-endpoint"] for _ in range(12)} == {"cheap", "dear"}


async def test_a_conversation_stays_where_its_beginning_is_cached(tmp_path: Path, upstream: Upstream) -> None:
    """Two equal endpoints, one with a discount on what is cached: the next turn is cheaper there."""
    config = """
endpoints:
  a:
    kind: openai
    base_url: UPSTREAM
    price: {input_usd_per_mtok: 10, output_usd_per_mtok: 10, cached_input_usd_per_mtok: 1}
  b:
    kind: openai
    base_url: UPSTREAM
    price: {input_usd_per_mtok: 9, output_usd_per_mtok: 10, cached_input_usd_per_mtok: 1}
models:
  m: {endpoints: [a, b], policy: route/priced}
"""

    def reply(body: Json) -> Json:
        long = sum(len(str(m["content"])) for m in body["messages"]) // 4
        cached = {"prompt_tokens_details": {"cached_tokens": long - 10 if len(body["messages"]) > 1 else 0}}
        return chat("yes", model=body["model"], tokens_in=long, **cached)

    upstream.reply = reply
    async with proxy(tmp_path, config, upstream) as p:
        first: list[Json] = [{"role": "user", "content": "tell me " * 2000}]
        assert (await p.ask(messages=first)).headers["x-apportion-endpoint"] == "b"
        # b gets dearer for a moment; a new conversation goes to a, the one under way stays with b
        group = p.worker.gateway.runtime.groups["m"]
        route = next(r for r in group.routes if r.endpoint.name == "b")
        route.usd_in *= 1.3
        p.worker.gateway.settlements.flush()
        turn = [*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
        assert (await p.ask("something else")).headers["x-apportion-endpoint"] == "a"
        assert (await p.ask(messages=turn)).headers["x-apportion-endpoint"] == "b"
        # nobody else's conversation is known by it
        assert (await p.ask(messages=turn, key="sk-other")).headers["x-apportion-endpoint"] == "a"


async def test_always_sticky_follows_the_session(tmp_path: Path, upstream: Upstream) -> None:
    config = TWO + "models: {m: {endpoints: [cheap, dear], policy: route/round_robin, sticky: always}}\n"
    async with proxy(tmp_path, config, upstream) as p:
        for session in ("one", "two"):
            found = set()
            for i in range(5):
                answer = await p.ask(f"{i}", metadata={"session_id": session})
                found.add(answer.headers["x-apportion-endpoint"])
                p.worker.gateway.settlements.flush()
            assert len(found) == 1
        told = await p.decision(answer)
        assert told["attempts"][0]["by"] == "conversation"


async def test_requests_wait_for_a_slot_and_their_place_is_shown(tmp_path: Path, upstream: Upstream) -> None:
    config = """
endpoints:
  one: {kind: openai, base_url: UPSTREAM, price: free, slots: 1, queue: {policy: schedule/fcfs, max_waiting: 3}}
models: {m: {endpoints: [one], retries: {attempts: 1}}}
"""
    release = asyncio.Event()

    async def reply(body: Json) -> Json:
        await release.wait()
        return chat("done")

    upstream.reply = reply
    async with proxy(tmp_path, config, upstream) as p:
        asked = []
        for i in range(4):
            asked.append(asyncio.create_task(p.ask(f"{i}")))
            await until(lambda: len(upstream.asked) == 1)
            await waiting(p, i)
        other = asyncio.create_task(p.ask("mine", key="sk-other"))
        refused = await other
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        own = (await p.get("/apportion/queues", key="sk-user")).json()
        assert [place["ahead"] for place in own["waiting"]] == [0, 1, 2]
        assert own["endpoints"] == {}
        assert (await p.get("/apportion/queues", key="sk-other")).json()["waiting"] == []
        boss = (await p.get("/apportion/queues")).json()
        assert boss["endpoints"]["one"][0]["waiting"] == 3
        # whoever leaves frees its place at once
        asked[2].cancel()
        assert [place["ahead"] for place in await waiting(p, 2)] == [0, 1]
        await asyncio.sleep(0.06)
        release.set()
        answers = [await asked[i] for i in (0, 1, 3)]
        assert [a.status_code for a in answers] == [200, 200, 200]
        assert upstream.most_at_work == 1
        assert len(upstream.asked) == 3
        told = await p.decision(answers[2])
        assert told["attempts"][0]["waited_ms"] > 50
        assert float(answers[2].headers["x-apportion-queued-ms"]) > 50


async def test_a_full_queue_is_passed_by(tmp_path: Path, upstream: Upstream) -> None:
    config = """
endpoints:
  one: {kind: openai, base_url: UPSTREAM, model: one, price: free, slots: 1, queue: {max_waiting: 0}}
  two: {kind: openai, base_url: UPSTREAM, model: two, price: free}
models:
  m: {worth_usd: 1, endpoints: [{endpoint: one, quality: 0.9}, {endpoint: two, quality: 0.5}], policy: route/priced}
"""
    release = asyncio.Event()

    async def reply(body: Json) -> Json:
        if body["model"] == "one":
            await release.wait()
        return chat("done", model=body["model"])

    upstream.reply = reply
    async with proxy(tmp_path, config, upstream) as p:
        first = asyncio.create_task(p.ask("a"))
        await until(lambda: len(upstream.asked) == 1)
        assert (await p.ask("b")).headers["x-apportion-endpoint"] == "two"
        release.set()
        assert (await first).headers["x-apportion-endpoint"] == "one"


async def test_a_deadline_that_passes_in_the_queue_is_said_at_once(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = """
endpoints: {one: {kind: openai, base_url: UPSTREAM, price: free, slots: 1, queue: schedule/edf}}
models: {m: one}
"""
    release = asyncio.Event()

    async def reply(body: Json) -> Json:
        await release.wait()
        return chat("done")

    upstream.reply = reply
    async with proxy(tmp_path, config, upstream) as p:
        first = asyncio.create_task(p.ask("a"))
        await until(lambda: len(upstream.asked) == 1)
        late = await p.ask("b", apportion={"deadline_s": 0.2})
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        release.set()
        assert (await first).status_code == 200


async def test_who_waits_is_served_through_a_reload(tmp_path: Path, upstream: Upstream) -> None:
    config = """
endpoints: {one: {kind: openai, base_url: UPSTREAM, price: free, slots: 1, queue: {max_waiting: 5}}}
models: {m: {endpoints: [one], retries: {attempts: 1}}}
"""
    release = asyncio.Event()

    async def reply(body: Json) -> Json:
        await release.wait()
        return chat("done")

    upstream.reply = reply
    async with proxy(tmp_path, config, upstream) as p:
        asked = [asyncio.create_task(p.ask(f"{i}")) for i in range(3)]
        await waiting(p, 2)
        changed = KEYS + config.replace("max_waiting: 5", "max_waiting: 6")
        new = loads(changed.replace("UPSTREAM", f"http://127.0.0.1:{upstream.port}/v1"), "apportion.yaml")
        p.worker.reload(new, all_prices(new), {})
        places = (await p.get("/apportion/queues", key="sk-user")).json()["waiting"]
        assert [place["ahead"] for place in places] == [0, 1]
        release.set()
        assert [(await one).status_code for one in asked] == [200] * 3
        assert upstream.most_at_work == 1


async def test_a_fault_of_the_shadow_is_not_the_requests(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (
        TWO + "models: {m: {endpoints: [cheap, dear], policy: route/round_robin, shadow: route/priced}}\n"
    )
    async with proxy(tmp_path, config, upstream) as p:
        shadow = p.worker.gateway.runtime.groups["m"].methods.shadow
        monkeypatch.setattr(type(shadow), "decide", lambda self, state: 1 / 0)
        assert (await p.ask()).status_code == 200


async def test_only_answers_teach_how_long_answers_are(tmp_path: Path, upstream: Upstream) -> None:
    config = TWO + "models: {m: [cheap]}\n"
    async with proxy(tmp_path, config, upstream) as p:
        await p.ask()
        p.worker.gateway.settlements.flush()
        route = p.worker.gateway.runtime.groups["m"].routes[0]
        before = route.mean_output_tokens
        upstream.reply = lambda body: {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
            "model": "m",
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        }
        url = f"{p.url}/v1/embeddings"
        done = await p.client.post(
            url, json={"model": "m", "input": "x"}, headers={"authorization": "Bearer sk-user"}
        )
        assert done.status_code == 200
        p.worker.gateway.settlements.flush()
        assert route.mean_output_tokens == before


async def test_a_refusal_names_only_endpoints_that_the_key_may_use(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = TWO + "models: {m: {endpoints: [cheap, dear]}}\n"
    async with proxy(tmp_path, config, upstream) as p:
        runtime = p.worker.gateway.runtime
        key = next(key for key in runtime.config.keys if key.name == "other")
        only = runtime.access(key)._replace(endpoints=frozenset({"cheap"}))
        runtime._access[key.name] = (key, only)
        refused = await p.ask(key="sk-other", apportion={"require": ["moon"]})
        assert refused.status_code == 400
        assert "cheap" in refused.text
        assert "dear" not in refused.text


async def test_a_predictor_is_prepared_before_anybody_can_ask_and_again_after_a_reload(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = catalogue.build("quality/linear")
    for place in range(20):
        made.learn(Features((place / 20.0,) * len(Lexical.names)), "cheap", float(place < 10))
    file = tmp_path / "quality.json"
    document = {
        "apportion": "quality",
        "version": 1,
        "method": "quality/linear",
        "parameters": made.parameters(),
        "encoder": None,
    }
    write(file, {**document, "saved": made.save()})
    happened: list[object] = []
    listen = Server.listen
    monkeypatch.setattr(type(made), "prepare", lambda self: happened.append(self))

    async def listens(server: Server, *given: Any, **named: Any) -> Any:
        happened.append("listens")
        return await listen(server, *given, **named)

    monkeypatch.setattr(Server, "listen", listens)
    config = (
        TWO + f"models: {{m: {{endpoints: [cheap, dear], worth_usd: 1, predict: {{quality: {file}}}}}}}\n"
    )
    async with proxy(tmp_path, config, upstream) as p:
        first = p.worker.gateway.runtime.groups["m"].methods.quality
        assert happened == ["listens", first, "listens"]  # the upstream, then the proxy
        answer = await p.ask()
        assert answer.status_code == 200
        options = (await p.decision(answer))["attempts"][0]["options"]
        assert [option["quality"] is None for option in options] == [False, True]
        made.learn(Features((1.0,) * len(Lexical.names)), "cheap", 0.0)
        write(file, {**document, "saved": made.save()})
        os.utime(file, (1, 1))
        runtime = p.worker.gateway.runtime
        p.worker.reload(runtime.config, all_prices(runtime.config), {})
        second = p.worker.gateway.runtime.groups["m"].methods.quality
        assert second is not first
        await until(lambda: happened[3:] == [second])
