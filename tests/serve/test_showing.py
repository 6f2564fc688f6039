"""Past answers of a large model shown to a small one, through the proxy."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import pytest

from apportion.core import Encoder
from apportion.serve import worker
from apportion.serve.cache.incontext import Example
from apportion.serve.config.problems import ConfigError
from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Examples
from apportion.serve.showing import Class
from apportion.serve.verdicts import Verdict
from inprocess import Json, Proxy, Upstream, auth, chat, proxy


class Words(Encoder):
    """A bag of words, hashed."""

    dimensions: ClassVar[int] = 64

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        found = []
        for text in texts:
            counts = [0.0] * self.dimensions
            for word in text.lower().split():
                counts[crc32(word.encode()) % self.dimensions] += 1.0
            length = math.sqrt(sum(c * c for c in counts)) or 1.0
            found.append(tuple(c / length for c in counts))
        return found


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    monkeypatch.setattr(worker, "_encoder", lambda text: Words() if text.encoder != "off" else None)
    return Upstream()


CONFIG = """
endpoints:
  small: {kind: openai, base_url: UPSTREAM, model: s, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
  large: {kind: openai, base_url: UPSTREAM, model: l, price: {input_usd_per_mtok: 100, output_usd_per_mtok: 200}}
text: {encoder: minilm, wait_s: 60s}
models:
  m:
    endpoints: [{endpoint: small, quality: 0.3}, {endpoint: large, quality: 0.9}]
    worth_usd: %s
    policy: route/priced
    examples: {teacher: large, student: small, k: 2}
"""


async def test_the_small_one_is_shown_what_the_large_one_said(tmp_path: Path, upstream: Upstream) -> None:
    upstream.reply = lambda body: chat(f"answer by {body['model']}", model=body["model"])
    async with proxy(tmp_path, CONFIG % "1", upstream) as p:
        group = p.worker.gateway.runtime.groups["m"]
        first = await p.ask("how do I bake white bread at home")
        assert first.headers["x-apportion-endpoint"] == "large"
        p.worker.gateway.settlements.flush()
        assert group.school is not None
        assert len(group.school.examples) == 1
        # while the large one is much better it answers; then the small one with examples is worth more
        told = await p.decision(await p.ask("how do I bake rye bread at home"))
        assert [o["endpoint"] for o in told["attempts"][0]["options"]] == ["small", "large", "small+examples"]
        for route in group.routes:
            if route.endpoint.name == "large":
                route.quality = 0.31
        shown = await p.ask("how do I bake brown bread at home")
        assert shown.headers["x-apportion-endpoint"] == "small"
        sent: list[Json] = upstream.asked[-1]["messages"]
        assert [m["role"] for m in sent][-3:] == ["user", "assistant", "user"]
        assert sent[-2]["content"] == "answer by l"
        assert sent[-1]["content"] == "how do I bake brown bread at home"
        told = await p.decision(shown)
        assert told["examples"] >= 1
        # nobody else's
        told = await p.decision(await p.ask("how do I bake brown bread at home", key="sk-other"))
        assert len(told["attempts"][0]["options"]) == 2
        # examples that do not help are shown no more
        for i in range(30):
            answer = await p.ask(f"how do I bake bread at home {i}")
            await p.client.post(
                f"{p.url}/v1/feedback",
                json={"decision_id": answer.headers["x-apportion-decision-id"], "score": 0},
                headers=auth("sk-user"),
            )
        last = await p.decision(await p.ask("how do I bake bread at home"))
        value = {o["endpoint"]: o["value_usd"] for o in last["attempts"][0]["options"]}
        assert value.get("small+examples", 0.0) <= 0.5


async def test_later_turns_neither_teach_nor_are_shown(tmp_path: Path, upstream: Upstream) -> None:
    async with proxy(tmp_path, CONFIG % "1", upstream) as p:
        turns = [
            {"role": "user", "content": "how do I bake bread"},
            {"role": "assistant", "content": "slowly"},
            {"role": "user", "content": "and how do I bake rye bread at home with salt"},
        ]
        await p.ask(messages=turns)
        p.worker.gateway.settlements.flush()
        school = p.worker.gateway.runtime.groups["m"].school
        assert school is not None
        assert len(school.examples) == 0


async def test_what_only_some_may_see_is_no_example(tmp_path: Path, upstream: Upstream) -> None:
    config = (CONFIG % "1").replace("model: l,", "model: l, tags: [eu],")
    async with proxy(tmp_path, config, upstream) as p:
        for fields in ({"apportion": {"require": ["eu"]}}, {"apportion": {"cache": "off"}}):
            answer = await p.ask("a secret of the house", **fields)
            assert answer.headers["x-apportion-endpoint"] == "large"
        p.worker.gateway.settlements.flush()
        school = p.worker.gateway.runtime.groups["m"].school
        assert school is not None
        assert len(school.examples) == 0


async def test_examples_are_bounded_with_the_question(tmp_path: Path, upstream: Upstream) -> None:
    """What is shown is paid for: a limit that the bare question fits refuses what does not."""
    upstream.reply = lambda body: chat(
        "word " * 4000, model=body["model"], tokens_in=sum(len(m["content"]) for m in body["messages"])
    )
    async with proxy(tmp_path, CONFIG % "1000", upstream) as p:
        for i in range(3):
            await p.ask(f"how do I bake white bread at home {i}")
            p.worker.gateway.settlements.flush()
        group = p.worker.gateway.runtime.groups["m"]
        for route in group.routes:
            if route.endpoint.name == "large":
                route.quality = 0.31
        answer = await p.ask("how do I bake white bread at home", max_tokens=10, apportion={"max_usd": 0.003})
        assert answer.headers["x-apportion-endpoint"] == "small"
        assert len(upstream.asked[-1]["messages"]) == 1


REPLAYING = CONFIG.replace("worth_usd: %s", "worth_usd: 100").replace(
    "small, k: 2}",
    """small, k: 2, replay: {usd: %s}}
    feedback: {checks: [{kind: pattern, pattern: "right"}], wait_s: 0}""",
)


async def _until(p: Proxy, met: Callable[[], bool]) -> None:
    """Let what runs in the background run until ``met``."""
    gateway = p.worker.gateway
    async with asyncio.timeout(120.0):
        while not met():
            gateway.settlements.flush()
            assert gateway.lessons is not None
            gateway.lessons.tick(time.time())
            gateway.replays.tick(gateway.runtime.groups.values(), time.time())
            await asyncio.sleep(0.01)


def _examples(p: Proxy) -> list[Example]:
    school = p.worker.gateway.runtime.groups["m"].school
    assert school is not None
    return list(school.examples._held.values())


async def test_a_poor_example_is_asked_for_again(tmp_path: Path, upstream: Upstream) -> None:
    """While the teacher has nothing to do, on the books of the proxy's own key, and kept because it is better."""
    said = iter(["nonsense"])
    upstream.reply = lambda body: chat(next(said, "all right"), model=body["model"])
    async with proxy(tmp_path, REPLAYING % "10", upstream) as p:
        await p.ask("how do I bake white bread at home", user="ann", seed=4)
        await _until(p, lambda: any(held.quality == 0.0 for held in _examples(p)))
        (poor,) = _examples(p)
        assert poor.answer == "nonsense"
        for kind in ("rye", "brown", "good"):
            told = await p.decision(await p.ask(f"how do I bake {kind} bread at home"))
            if kind == "rye":  # a poor answer is shown to nobody
                assert len(told["attempts"][0]["options"]) == 2
        asked = len(upstream.asked)
        await _until(p, lambda: poor.answer == "all right")
        assert poor.quality == 1.0
        (again,) = upstream.asked[asked:]
        assert again["model"] == "l"
        assert again["messages"][-1]["content"] == "how do I bake white bread at home"
        assert "user" not in again
        assert "seed" not in again
        assert len(_examples(p)) == 4  # what was asked again is not one more
        told = (await p.get(f"/apportion/decisions/{poor.decision_id}")).json()
        assert told["key"] == "replay:m"
        assert told["attempts"][0]["by"] == "replay"
        assert [attempt["endpoint"] for attempt in told["attempts"]] == ["large"]


async def test_nothing_is_asked_again_while_the_teacher_works_or_money_is_short(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.reply = lambda body: chat("nonsense", model=body["model"])
    async with proxy(tmp_path, REPLAYING % "0.000001", upstream) as p:
        gateway = p.worker.gateway
        group = gateway.runtime.groups["m"]
        large = next(route.endpoint for route in group.routes if route.endpoint.name == "large")
        failed = gateway.meters.replays.at("m", "failed")
        large.in_flight += 1
        for kind in ("white", "rye", "brown"):
            await p.ask(f"how do I bake {kind} bread at home")
            gateway.settlements.flush()  # who asks next finds it as an example, and wants it
        await _until(p, lambda: len(_examples(p)) == 3 and all(held.quality == 0.0 for held in _examples(p)))
        gateway.replays.tick([group], time.time())
        assert not gateway.replays._running
        assert failed.value == 0
        large.in_flight -= 1
        await _until(p, lambda: failed.value > 0)
        assert len(upstream.asked) == 3


def test_replays_need_somebody_who_tells_the_better_answer() -> None:
    config = REPLAYING.replace("UPSTREAM", "http://localhost:1/v1") % "10"
    head, _, _ = config.partition("    feedback:")
    loads(config, "a.yaml")
    with pytest.raises(ConfigError) as caught:
        loads(head.replace("    worth_usd: 100\n", ""), "a.yaml")
    assert [problem.path for problem in caught.value.problems] == ["models.m.examples.replay"] * 2
    assert "worth_usd" in str(caught.value)
    assert "feedback.judge" in str(caught.value)


def test_what_was_shown_is_needed_to_learn_of_it() -> None:
    """A verdict on examples that are no longer known says nothing of the small model without any."""
    school = Class(Examples(teacher="large", student="small"))
    told = Verdict("dec_1", "m", "small+examples", "small", "s", None, 1.0, 1.0, ("check",), None, None)
    before = school.examples._plain.value
    school.heard(told, None)
    assert school.examples._plain.value == before
    school.heard(told._replace(action="small"), None)
    assert school.examples._plain.value == 1.0
