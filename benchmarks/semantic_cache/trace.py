"""A day of mixed questions through the real cache, on a virtual clock: one rule for all against rules by category.

Made of the data sets: word problems (many near-duplicates with other answers), programming tasks, bank customers, and
an assistant's questions whose answers change (weather, traffic, exchange rates, ...). Questions of each kind recur with
Zipf frequencies. What is served is false if it answers something else, or what changes when it is over ten minutes old.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from apportion.core import catalogue
from apportion.core.eviction import Eviction
from apportion.serve.cache.answers import AnswerCache, Hit
from apportion.serve.cache.settings import Cache, Category
from benchmarks.semantic_cache import data
from benchmarks.semantic_cache.data import Embed

DAY_S = 86_400.0
FRESH_S = 600.0
"""For so long an answer that changes is still right."""
BUSY_S = 1800.0
"""A model is busy and idle in turn for so long, where it is."""
CALLS = 8_000
_VOLATILE = frozenset(
    ("weather", "traffic", "exchange_rate", "time", "current_location", "bill_balance", "balance", "flight_status",
     "gas", "credit_score", "uber", "distance", "order_status", "pto_balance", "rewards_balance")
)  # fmt: skip


class Asked(NamedTuple):
    """One request of the trace."""

    at_s: float
    kind: str
    text: str
    answer: str
    changes: bool


class Result(NamedTuple):
    """What a cache did with the trace."""

    calls: int
    hits: int
    false: int
    late: int
    """Hits older than the time to live of their kind, as it was set at that moment."""
    busy: int
    """Calls while the model was busy."""
    by_kind: dict[str, list[int]]


def made(seed: int, calls: int = CALLS) -> list[Asked]:
    """The trace; empty without data."""
    rng = np.random.default_rng(seed)
    pools: dict[str, list[tuple[str, str, bool]]] = {"problem": [], "code": [], "bank": [], "volatile": []}
    for row in data.rows("gsm_plus_variants", "testmini"):
        pools["problem"] += [(row["seed_question"], f"{row['seed_question']}={row['seed_answer']}", False)]
        same = row["seed_answer"] == row["answer"]
        owner = row["seed_question"] if same else row["question"]
        pools["problem"] += [(row["question"], f"{owner}={row['answer']}", False)]
    for row in data.rows("humaneval_prompts", "prompts"):
        task = row["prompt"]
        for said in ("{}", "Complete this function:\n{}", "Please complete this function:\n\n{}"):
            pools["code"].append((said.format(task), task, False))
    pools["bank"] = [
        (r["text"], r.get("intent") or r["category"], False) for r in data.rows("banking77", "queries")
    ]
    clinc = data.rows("clinc150", "queries")
    chosen = [(r["text"], r["intent"]) for r in clinc if r["intent"] in _VOLATILE]
    special = data.particular([t for t, _ in chosen], [i for _, i in chosen])
    pools["volatile"] = [(t, f"{i}{sorted(s)}", True) for (t, i), s in zip(chosen, special, strict=True)]
    if not all(pools.values()):
        return []
    mix = {"problem": 0.3, "code": 0.15, "bank": 0.3, "volatile": 0.25}
    kinds = rng.choice(list(mix), size=calls, p=list(mix.values()))
    times = np.sort(rng.uniform(0, DAY_S, calls))
    order = {kind: rng.permutation(len(pool)) for kind, pool in pools.items()}
    weight = {kind: 1.0 / np.arange(1, len(pool) + 1) ** 0.8 for kind, pool in pools.items()}
    drawn = {
        kind: order[kind][rng.choice(len(pool), size=calls, p=weight[kind] / weight[kind].sum())]
        for kind, pool in pools.items()
    }
    return [
        Asked(float(t), kind, *pools[kind][drawn[kind][n]])
        for n, (t, kind) in enumerate(zip(times, kinds, strict=True))
    ]


def vectors(trace: list[Asked], embed: Embed) -> dict[str, Any]:
    """The vector of every text."""
    texts = sorted({asked.text for asked in trace})
    return dict(zip(texts, np.asarray(embed(texts, "semantic_cache_trace")), strict=True))


def uniform(threshold: float, ttl_s: float) -> Cache:
    """One threshold and one time to live for all."""
    rule = Category(match=["(?s)."], threshold=threshold, ttl_s=ttl_s, relaxes=False)
    return Cache(enabled=True, semantic=True, bytes=2**30, categories={"all": rule}, ttl_s=7 * DAY_S)


LIVE = Category(tags=["live"], threshold=0.85, ttl_s=FRESH_S, relaxes=False)
"""What an operator would say of requests that are tagged as about what changes."""
BUILT_IN = Cache(enabled=True, semantic=True, bytes=2**30, ttl_s=7 * DAY_S)


def by_category(relax_ttl: float = 3.0) -> Cache:
    """The built-in categories and one more."""
    return msgspec.structs.replace(BUILT_IN, categories={"live": LIVE}, relax_ttl=relax_ttl)


def run(
    trace: list[Asked],
    settings: Cache,
    known: dict[str, Any],
    *,
    checked: bool = True,
    relaxed: bool = True,
    load: float = 0.0,
) -> Result:
    """The trace through the cache; ``load`` is that of the model in every second half hour."""
    return asyncio.run(_run(trace, settings, known, checked, relaxed, load))


async def _run(
    trace: list[Asked], settings: Cache, known: dict[str, Any], checked: bool, relaxed: bool, load: float
) -> Result:
    async def vector(text: str) -> Sequence[float] | None:
        return known[text]  # type: ignore[no-any-return]

    def make(capacity: float) -> Eviction:
        return catalogue.build("cache/lru", capacity=capacity)  # type: ignore[return-value]

    from apportion.serve.cache import answers

    held, cache = answers.same, AnswerCache(settings, make, vector=vector)
    if not checked:
        answers.same = lambda one, other, limits: True  # type: ignore[assignment]
    hits = false = late = called = 0
    by_kind: dict[str, list[int]] = {}
    try:
        for asked in trace:
            now = asked.at_s
            busy = load if int(now // BUSY_S) % 2 else 0.0
            fields = {"messages": json.dumps([{"role": "user", "content": asked.text}]).encode()}
            question = cache.question(
                "chat",
                fields,
                tenant="t",
                key="k",
                user="",
                model="m",
                tags=("live",) if asked.changes else (),
            )
            assert question is not None
            found = await cache.look(question, now, load=busy if relaxed else 0.0)
            counts = by_kind.setdefault(str(asked.kind), [0, 0, 0])
            counts[0] += 1
            if isinstance(found, Hit):
                said = json.loads(found.body)["choices"][0]["message"]["content"]
                hits += 1
                counts[1] += 1
                if said != asked.answer or (asked.changes and found.age_s > FRESH_S):
                    false += 1
                    counts[2] += 1
                rules = cache.categories[found.category]
                late += found.age_s >= cache._ttl_s(rules, busy if relaxed else 0.0)
                continue
            called += int(now // BUSY_S) % 2
            choice = {"message": {"content": asked.answer}, "finish_reason": "stop"}
            found.keep(json.dumps({"choices": [choice]}).encode(), now=now, usd_pico=10**9)
            found.end()
    finally:
        answers.same = held
    return Result(len(trace) - hits, hits, false, late, called, by_kind)


def best_possible(trace: list[Asked]) -> Result:
    """Whoever knows all answers asks each once, and again when it has changed."""
    made_s: dict[str, float] = {}
    hits = 0
    for asked in trace:
        before_s = made_s.get(asked.answer)
        if before_s is not None and not (asked.changes and asked.at_s - before_s > FRESH_S):
            hits += 1
        else:
            made_s[asked.answer] = asked.at_s
    return Result(len(trace) - hits, hits, 0, 0, 0, {})
