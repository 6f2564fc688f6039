"""Many calls for one answer, admission and guards, as a client of the proxy sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, final

import openai
import pytest

from apportion.core import Drawn, Features, Guard, StreamWatch, Verdict, catalogue
from apportion.core.method import Constraint
from inprocess import Json, Upstream, chat, proxy

ONE = """
endpoints:
  cheap: {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}, model: small}
  dear: {kind: openai, base_url: UPSTREAM, price: {input_usd_per_mtok: 10, output_usd_per_mtok: 20}, model: large}
"""
BEST = (
    ONE
    + """
models:
  m:
    endpoints: [{endpoint: cheap, quality: 0.5}]
    worth_usd: 1
    strategy: {name: reason/best_of_k, accept: json, max_samples: 6}
"""
)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def third_is_right(upstream: Upstream) -> None:
    upstream.reply = lambda body: chat('{"a": 1}' if len(upstream.asked) >= 3 else "no", model=body["model"])


async def test_samples_are_drawn_until_one_is_right_and_all_are_paid(
    tmp_path: Path, upstream: Upstream
) -> None:
    third_is_right(upstream)
    async with proxy(tmp_path, BEST, upstream) as p:
        answer = await p.ask("give me json")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == '{"a": 1}'
        assert len(upstream.asked) == 3
        assert answer.headers["x-apportion-calls"] == "3"
        told = await p.decision(answer)
        assert told["strategy"]["calls"] == 3
        assert told["strategy"]["strategy"] == "reason/best_of_k"
        assert len(told["attempts"]) == 3
        each = [Decimal(10) / 10**6 + Decimal(2) * n / 10**6 for n in (1, 1, 2)]
        assert Decimal(answer.headers["x-apportion-cost-usd"]) == sum(each)
        assert "made 3 calls" in told["explanation"]
        assert all("stream" not in body and body["temperature"] > 0 for body in upstream.asked)
        metrics = (await p.get("/metrics")).text
        assert 'apportion_requests_total{api="chat",model="m",status="200"} 1' in metrics


async def test_a_streaming_client_sees_one_stream(tmp_path: Path, upstream: Upstream) -> None:
    third_is_right(upstream)
    async with proxy(tmp_path, BEST, upstream) as p:
        client = openai.AsyncOpenAI(base_url=f"{p.url}/v1", api_key="sk-user", max_retries=0)
        stream = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "json"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for chunk in stream:
            usage = chunk.usage or usage
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        assert text == '{"a": 1}'
        assert usage is not None
        assert usage.prompt_tokens == 10
        await client.close()


async def test_a_strategy_whose_calls_all_fail_ends_with_the_upstreams_error(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.reply = lambda body: '{"error": {"message": "broken"}}'
    async with proxy(
        tmp_path, BEST.replace("worth_usd: 1", "worth_usd: 1\n    retries: {attempts: 1}"), upstream
    ) as p:
        answer = await p.ask("x")
        assert answer.status_code in (500, 503)
        assert not p.worker.gateway.running


async def test_a_hard_budget_bounds_all_calls_together(tmp_path: Path, upstream: Upstream) -> None:
    upstream.reply = lambda body: chat("no " * 50, model=body["model"])
    config = BEST + "budgets: [{name: b, amount: 0.004, window: day}]\n"
    async with proxy(tmp_path, config, upstream) as p:
        for _ in range(20):
            await p.ask("x", max_tokens=100)
        cost = sum(10 * 1 + 50 * 2 for _ in upstream.asked) / 1e6
        assert cost <= 0.004
        assert len(upstream.asked) >= 5
        refused = await p.ask("x", max_tokens=100)
        assert refused.status_code in (402, 429)


async def test_max_usd_bounds_all_calls_of_one_request(tmp_path: Path, upstream: Upstream) -> None:
    upstream.reply = lambda body: chat("no " * 50, model=body["model"])
    async with proxy(tmp_path, BEST, upstream) as p:
        answer = await p.ask("x", max_tokens=100, apportion={"max_usd": 0.0016})
        assert Decimal(answer.headers["x-apportion-cost-usd"]) <= Decimal("0.0016")
        assert 1 <= len(upstream.asked) < 6


async def test_keys_without_routing_get_one_call(tmp_path: Path, upstream: Upstream) -> None:
    config = BEST.replace("\nendpoints:", "\nteams: {plain: {routing: false}}\nendpoints:")
    config += "x-note: 1\n"
    upstream.reply = lambda body: chat("no")
    async with proxy(tmp_path, config, upstream) as p:
        runtime = p.worker.gateway.runtime
        key = next(key for key in runtime.config.keys if key.name == "other")
        runtime._access[key.name] = (key, runtime.access(key)._replace(routing=False))
        answer = await p.ask("x", key="sk-other")
        assert answer.json()["choices"][0]["message"]["content"] == "no"
        assert len(upstream.asked) == 1


async def test_the_operators_checks_are_what_is_looked_for(tmp_path: Path, upstream: Upstream) -> None:
    third_is_right(upstream)
    config = BEST.replace("accept: json, ", "").replace(
        "worth_usd: 1", "worth_usd: 1\n    feedback: {checks: [{kind: json_schema, schema: {type: object}}]}"
    )
    async with proxy(tmp_path, config, upstream) as p:
        answer = await p.ask("give me json")
        assert answer.json()["choices"][0]["message"]["content"] == '{"a": 1}'
        assert len(upstream.asked) == 3


async def test_a_cascade_asks_the_small_one_first(tmp_path: Path, upstream: Upstream) -> None:
    def reply(body: Json) -> Json:
        answer = chat("sure" if body["model"] == "large" else "maybe", model=body["model"])
        sure = -0.001 if "easy" in body["messages"][0]["content"] else -4.0
        if body.get("logprobs"):
            top = [{"token": t, "logprob": sure - i, "bytes": None} for i, t in enumerate("ab")]
            token = {"token": "a", "logprob": sure, "bytes": None, "top_logprobs": top}
            answer["choices"][0]["logprobs"] = {"content": [token]}
        return answer

    upstream.reply = reply
    config = (
        ONE
        + """
models:
  m:
    endpoints: [{endpoint: cheap, quality: 0.7}, {endpoint: dear, quality: 0.95}]
    worth_usd: 0.01
    strategy: {name: reason/cascade, threshold: 1.0}
"""
    )
    async with proxy(tmp_path, config, upstream) as p:
        easy = await p.ask("easy")
        hard = await p.ask("hard")
        assert easy.status_code == hard.status_code == 200
        assert upstream.models[0] == "small"
        assert upstream.asked[0].get("logprobs") is True
        assert {easy.json()["model"], hard.json()["model"]} <= {"small", "large"}
        told = await p.decision(hard)
        assert told["strategy"]["why"]


async def test_who_is_not_worth_it_is_not_let_in(tmp_path: Path, upstream: Upstream) -> None:
    config = (
        ONE
        + """
models:
  m:
    endpoints: [{endpoint: dear, quality: 1.0}]
    worth_usd: 0.001
    admit: {name: admit/time_fair, rule: static, lowest: 10, highest: 100, resource: usd}
"""
    )
    async with proxy(tmp_path, config, upstream) as p:
        refused = await p.ask("x", max_tokens=50)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "gateway_overloaded"
        assert "retry-after" in refused.headers
        assert upstream.asked == []


@final
class LoopGuard(Guard):
    """Caps requests that ask for essays, ends answers that say "loop".

    Complexity
    ----------
    O(1).

    References: none, baseline
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {}
    learned: ClassVar[list[tuple[str, float, bool]]] = []

    def __init__(self) -> None:
        self.start()

    def reset(self) -> None:
        """Nothing."""

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """None."""
        return ()

    def inspect(self, features: Features, tenant: str, model: str, max_tokens: int | None) -> Verdict:
        return Verdict("cap", 0.9, 40, "Be brief.", 1.0, "it asks for everything")

    def watch(
        self, tenant: str, model: str, expected_tokens: float | None, features: Features | None = None
    ) -> StreamWatch:
        return Looper()

    def learn(
        self, features: Features, tenant: str, model: str, output_tokens: float, *, censored: bool = False
    ) -> None:
        self.learned.append((tenant, output_tokens, censored))


class Looper:
    def __init__(self) -> None:
        self.seen = ""

    def feed(self, text: str, n_tokens: int = 1, drawn: Sequence[Drawn] = ()) -> str | None:
        self.seen += text
        return "it repeats itself" if self.seen.count("loop") >= 3 else None

    def ended(self) -> None:
        """Nothing is learned."""


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> str:
    places = {**catalogue._places(), "guard/loop": f"{__name__}:LoopGuard"}
    monkeypatch.setattr(catalogue, "_places", lambda: places)
    LoopGuard.learned.clear()
    return ONE + "models: {m: {endpoints: [cheap], guard: guard/loop}}\n"


async def test_a_guard_caps_and_asks_to_be_brief(tmp_path: Path, upstream: Upstream, guarded: str) -> None:
    async with proxy(tmp_path, guarded, upstream) as p:
        answer = await p.ask("write everything", max_tokens=5000)
        assert answer.status_code == 200
        sent = upstream.asked[0]
        assert sent["max_tokens"] == 40
        assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
        await p.ask("x", messages=[{"role": "system", "content": "Sys."}, {"role": "user", "content": "x"}])
        assert upstream.asked[1]["messages"][0]["content"] == "Sys.\n\nBe brief."
        assert 40 in (upstream.asked[1].get("max_tokens"), upstream.asked[1].get("max_completion_tokens"))
        p.worker.gateway.settlements.flush()
        assert [(tenant, censored) for tenant, _, censored in LoopGuard.learned] == [("key:user", False)] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_runaway_answer_is_ended(
    tmp_path: Path, upstream: Upstream, guarded: str, stream: bool
) -> None:
    upstream.reply = lambda body: chat("fine so far " + "loop " * 500, model=body["model"])
    async with proxy(tmp_path, guarded, upstream) as p:
        answer = await p.ask("x", stream=stream)
        assert answer.status_code == 200
        if stream:
            events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            assert events[-1] == "[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
            assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "length"
            assert '"guard":"exceeded"' in answer.text
        else:
            text = answer.json()["choices"][0]["message"]["content"]
            assert answer.json()["choices"][0]["finish_reason"] == "length"
            assert answer.headers["x-apportion-guard"] == "exceeded"
        assert text.startswith("fine so far")
        assert text.count("loop") <= 3
        p.worker.gateway.settlements.flush()
        assert LoopGuard.learned[-1][2]


async def test_limits_of_a_request_hold_for_all_calls_of_its_strategy(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.reply = lambda body: chat("no " * 50, model=body["model"])
    config = BEST + "budgets: [{name: r, amount: 0.0016, scope: request}]\n"
    async with proxy(tmp_path, config, upstream) as p:
        answer = await p.ask("x", max_tokens=100)
        assert Decimal(answer.headers["x-apportion-cost-usd"]) <= Decimal("0.0016")


@pytest.mark.parametrize("at_once", [1, 3])
async def test_a_request_with_a_strategy_counts_once(
    tmp_path: Path, upstream: Upstream, at_once: int
) -> None:
    third_is_right(upstream)
    config = BEST.replace("max_samples: 6", f"max_samples: 6, at_once: {at_once}")
    config += "budgets: [{name: n, resource: requests, amount: 2, window: day, scope: key}]\n"
    async with proxy(tmp_path, config, upstream) as p:
        found = [(await p.ask(f"{i}")).status_code for i in range(4)]
        assert found == [200, 200, 402, 402]


async def test_an_answer_is_put_down_to_who_made_it(tmp_path: Path, upstream: Upstream) -> None:
    """The large model fails after the small one has answered: the answer is the small one's."""

    def reply(body: Json) -> Json | str:
        if body["model"] == "large":
            return '{"error": {"message": "broken"}}'
        answer = chat("maybe", model="small")
        token = {"token": "a", "logprob": -4.0, "bytes": None, "top_logprobs": []}
        answer["choices"][0]["logprobs"] = {"content": [token]}
        return answer

    upstream.reply = reply
    config = (
        ONE
        + """
models:
  m:
    endpoints: [{endpoint: cheap, quality: 0.3}, {endpoint: dear, quality: 0.95}]
    worth_usd: 1
    retries: {attempts: 1}
    strategy: {name: reason/cascade, threshold: 100.0}
"""
    )
    async with proxy(tmp_path, config, upstream) as p:
        answer = await p.ask("hard")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-apportion-endpoint"] == "cheap"
        told = await p.decision(answer)
        assert told["chosen"] == "cheap"
        assert answer.json()["choices"][0].get("logprobs") is None
        said = await p.client.post(
            f"{p.url}/v1/feedback",
            json={"decision_id": told["id"], "score": 1},
            headers={"authorization": "Bearer sk-user"},
        )
        assert said.status_code == 200


async def test_several_choices_are_left_to_the_endpoint(tmp_path: Path, upstream: Upstream) -> None:
    third_is_right(upstream)
    async with proxy(tmp_path, BEST, upstream) as p:
        await p.ask("x", n=3)
        assert [body["n"] for body in upstream.asked] == [3]


async def test_the_guards_cap_holds_for_every_call_of_a_strategy(
    tmp_path: Path, upstream: Upstream, guarded: str
) -> None:
    third_is_right(upstream)
    strategy = "strategy: {name: reason/best_of_k, accept: json, max_samples: 6}"
    config = guarded.replace(
        "m: {endpoints: [cheap], guard", f"m: {{worth_usd: 1, endpoints: [cheap], {strategy}, guard"
    )
    async with proxy(tmp_path, config, upstream) as p:
        await p.ask("x", max_tokens=5000)
        await p.ask("x")
        assert len(upstream.asked) >= 4
        for body in upstream.asked:
            assert 40 in (body.get("max_tokens"), body.get("max_completion_tokens")), body
