"""Answers that are kept, feedback that is learned from, and what survives a restart: as a client sees them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import anthropic
import openai
import pytest

from apportion.serve import decision_log
from inprocess import Json, Proxy, Upstream, auth, chat, proxy

CACHED = """
endpoints: {one: {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}
models: {m: one, bare: {endpoints: [one], cached: false}}
cache: {enabled: true, bytes: 1MiB}
"""


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    monkeypatch.setattr(decision_log, "_PATIENCE_S", 120.0)
    return Upstream()


async def test_the_same_question_is_answered_once(tmp_path: Path, upstream: Upstream) -> None:
    async with proxy(tmp_path, CACHED, upstream) as p:
        first = await p.ask("what is two and two?", temperature=0)
        again = await p.ask("what is two and two?", temperature=0)
        assert first.json() == again.json()
        assert len(upstream.asked) == 1
        assert again.headers["x-apportion-cache"] == "hit"
        assert again.headers["x-apportion-cost-usd"] == "0"
        told = await p.decision(again)
        assert told["cache"]["made_by"] == first.headers["x-apportion-decision-id"]
        assert told["explanation"].startswith("Answered from the cache")
        # identity: anything that changes the answer
        for other in (
            {"temperature": 0.5},
            {"temperature": 0, "max_tokens": 5},
            {"temperature": 0, "tools": [{"type": "function", "function": {"name": "f"}}]},
            {"temperature": 0, "key": "sk-other"},
            {"temperature": 0, "model": "bare"},
            {"temperature": 0, "apportion": {"cache": "off"}},
        ):
            answer = await p.ask("what is two and two?", **other)  # type: ignore[arg-type]
            assert answer.headers.get("x-apportion-cache") in (None, "miss"), other
        assert len(upstream.asked) == 7
        spent: dict[str, int] = {}
        async with asyncio.timeout(30):
            while sum(spent.values()) < 8:  # what has been booked is written together, a little later
                await asyncio.sleep(0.01)
                spend = await p.get("/apportion/spend?by=endpoint")
                if spend.status_code == 200:  # and not a machine that was too busy for a report
                    spent = {row["endpoint"]: row["requests"] for row in spend.json()["rows"]}
        assert spent == {"one": 7, "cache": 1}


async def test_a_kept_answer_replays_as_a_stream(tmp_path: Path, upstream: Upstream) -> None:
    async with proxy(tmp_path, CACHED, upstream) as p:
        client = openai.AsyncOpenAI(base_url=f"{p.url}/v1", api_key="sk-user", max_retries=0)
        texts = []
        for _ in range(2):
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            texts.append("".join([c.choices[0].delta.content or "" async for c in stream if c.choices]))
        whole = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert texts == ["by m", "by m"]
        assert whole.choices[0].message.content == "by m"
        assert len(upstream.asked) == 1
        await client.close()
        other = anthropic.AsyncAnthropic(base_url=p.url, api_key="sk-user", max_retries=0)
        for _ in range(2):
            said = await other.messages.create(
                model="m", max_tokens=10, messages=[{"role": "user", "content": "hi"}]
            )
            assert said.content[0].type == "text"
        assert len(upstream.asked) == 2
        await other.close()


async def test_equal_questions_at_once_are_asked_once(tmp_path: Path, upstream: Upstream) -> None:
    async def reply(body: Json) -> Json:
        async with asyncio.timeout(30):
            while len(p.worker.gateway.running) < 5:
                await asyncio.sleep(0.01)
        return chat("slow")

    upstream.reply = reply
    async with proxy(tmp_path, CACHED, upstream) as p:
        answers = await asyncio.gather(*(p.ask("x") for _ in range(5)))
        assert [a.status_code for a in answers] == [200] * 5
        assert len(upstream.asked) == 1
        assert sorted(a.headers.get("x-apportion-cache", "") for a in answers) == [*["joined"] * 4, "miss"]


async def test_errors_and_cut_answers_are_not_kept(tmp_path: Path, upstream: Upstream) -> None:
    answers: list[Json | str] = ['{"error": {}}', chat("half", finish="length"), chat("whole")]
    upstream.reply = lambda body: answers[min(len(upstream.asked), len(answers)) - 1]
    config = CACHED.replace("m: one,", "m: {endpoints: [one], retries: {attempts: 1}},")
    async with proxy(tmp_path, config, upstream) as p:
        for _ in range(4):
            last = await p.ask("x")
        assert len(upstream.asked) == 3
        assert last.json()["choices"][0]["message"]["content"] == "whole"


async def test_answers_can_be_removed(tmp_path: Path, upstream: Upstream) -> None:
    async with proxy(tmp_path, CACHED, upstream) as p:
        first = await p.ask("a", apportion={"tags": ["t"]})
        await p.ask("b")
        id = first.headers["x-apportion-decision-id"]
        refused = await p.client.delete(f"{p.url}/apportion/cache/{id}", headers=auth("sk-user"))
        assert refused.status_code == 403
        gone = await p.client.delete(f"{p.url}/apportion/cache/{id}", headers=auth("sk-boss"))
        assert gone.json() == {"removed": 1}
        assert (await p.client.delete(f"{p.url}/apportion/cache", headers=auth("sk-boss"))).status_code == 400
        rest = await p.client.delete(f"{p.url}/apportion/cache?tenant=key:user", headers=auth("sk-boss"))
        assert rest.json() == {"removed": 1}
        state = (await p.get("/apportion/cache")).json()
        assert state["entries"] == 0


async def test_requests_from_the_cache_count_against_rates(tmp_path: Path, upstream: Upstream) -> None:
    config = CACHED + "budgets: [{name: r, resource: requests, amount: 3, window: day, scope: key}]\n"
    async with proxy(tmp_path, config, upstream) as p:
        found = [(await p.ask("x")).status_code for _ in range(5)]
        assert found == [200, 200, 200, 402, 402]
        assert len(upstream.asked) == 1


LEARNING = """
endpoints:
  cheap: {kind: openai, base_url: UPSTREAM, price: free, model: small}
  dear: {kind: openai, base_url: UPSTREAM, price: free, model: large}
models:
  m:
    endpoints: [cheap, dear]
    worth_usd: 1
    policy: {name: route/linucb, alpha: 0.5}
    feedback: {checks: [{kind: pattern, pattern: "large"}], wait_s: 0}
records: {log: {}}
"""


def checked(p: Proxy) -> float:
    """How many answers have been checked."""
    lines = p.worker._meters.registry.render().splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith("apportion_checks_total{"))


async def test_checks_teach_the_policy_and_the_log_tells_it(tmp_path: Path, upstream: Upstream) -> None:
    config = LEARNING.replace("records: {log: {}}", f"records: {{log: {{directory: {tmp_path / 'log'}}}}}")
    async with proxy(tmp_path, config, upstream) as p:
        for i in range(60):
            await p.ask(f"question {i}")
            p.worker.gateway.settlements.flush()
            lessons = p.worker.gateway.lessons
            assert lessons is not None
            async with asyncio.timeout(60):  # answers are checked in a thread
                while checked(p) <= i:
                    await asyncio.sleep(0.005)
            lessons.tick(1e12)
        assert upstream.models[-20:].count("large") >= 15
        quality = (await p.get("/apportion/quality")).json()
        assert quality
    lines = [json.loads(line) for line in (tmp_path / "log" / "worker-00.jsonl").read_text().splitlines()]
    assert len(lines) >= 100
    assert "question" not in (tmp_path / "log" / "worker-00.jsonl").read_text()


async def test_feedback_is_for_ones_own_decisions(tmp_path: Path, upstream: Upstream) -> None:
    async with proxy(tmp_path, LEARNING, upstream) as p:
        answer = await p.ask("x")
        id = answer.headers["x-apportion-decision-id"]
        url = f"{p.url}/v1/feedback"
        for key, status in (("sk-other", 404), ("sk-user", 200), ("sk-boss", 200)):
            said = await p.client.post(url, json={"decision_id": id, "score": 1}, headers=auth(key))
            assert said.status_code == status, said.text
        wrong = await p.client.post(url, json={"decision_id": id, "score": 7}, headers=auth("sk-user"))
        assert wrong.status_code == 400
        assert "score" in wrong.json()["error"]["message"]
        metrics = (await p.get("/metrics")).text
        assert "apportion_feedback_total" in metrics


async def test_what_was_learned_survives_a_restart(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for round_ in range(2):
        async with proxy(tmp_path, LEARNING, upstream) as p:
            if round_ == 0:
                for i in range(40):
                    answer = await p.ask(f"{i}")
                    good = "large" in answer.text
                    await p.client.post(
                        f"{p.url}/v1/feedback",
                        json={"request_id": answer.headers["x-request-id"], "score": float(good)},
                        headers=auth("sk-user"),
                    )
            else:
                upstream.asked.clear()
                for i in range(10):
                    await p.ask(f"again {i}")
                assert upstream.models.count("large") >= 8
