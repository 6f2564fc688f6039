"""What a look that finds nothing costs, with many entries."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.core import catalogue
from apportion.core.eviction import Eviction
from apportion.serve.cache.answers import AnswerCache, Hit, Turn
from apportion.serve.cache.semantic import packed
from apportion.serve.cache.settings import Cache, Category
from apportion.serve.cache.store import Entry

DIMENSIONS = 384
_TEXT = "How can a customer of the bank change what was agreed about account {}"


def measured(entries: int, looks: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Milliseconds of a miss and of an entry that is kept, all entries in one frame and category.

    Vectors are random directions around 2000 centres, as sentences of one trade are. The encoder's time is not in it.
    Times are those of the thread on its processor, so that what else the machine does is not in them, either.
    """
    return asyncio.run(_measured(entries, looks, seed))


async def _measured(entries: int, looks: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2000, DIMENSIONS))

    def near(n: int) -> Any:
        values = centres[rng.integers(2000, size=n)] + 0.7 * rng.normal(size=(n, DIMENSIONS))
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    known = dict(enumerate(near(entries).astype(np.float32)))
    asked = dict(enumerate(near(looks).astype(np.float32), start=entries))

    async def vector(text: str) -> Sequence[float] | None:
        row = int(text.rpartition(" ")[2])
        return known[row] if row < entries else asked[row]  # type: ignore[no-any-return]

    def make(capacity: float) -> Eviction:
        return catalogue.build("cache/lru", capacity=capacity)  # type: ignore[return-value]

    rule = Category(match=["."], threshold=0.5, relaxes=False)
    settings = Cache(enabled=True, semantic=True, bytes=2**34, categories={"all": rule}, second_usd=0.0)
    cache = AnswerCache(settings, make, vector=vector)
    body = json.dumps({"choices": [{"message": {"content": "x" * 500}, "finish_reason": "stop"}]}).encode()

    async def look(row: int) -> Hit | Turn:
        text = _TEXT.format(row)
        fields = {"messages": json.dumps([{"role": "user", "content": text}]).encode()}
        question = cache.question("chat", fields, tenant="t", key="k", user="", model="m")
        assert question is not None
        return await cache.look(question, 0.0)

    question = (await look(0)).question  # type: ignore[union-attr]
    entries_made = (
        Entry(
            key=f"{row:064x}",
            frame=question.frame,
            tenant="t",
            api="chat",
            model="m",
            category="all",
            body=body,
            created_s=0.0,
            expires_s=1e9,
            text=_TEXT.format(row),
            vector=packed(known[row]),
        )
        for row in range(entries)
    )
    kept: list[float] = []
    for entry in entries_made:
        started_s = time.thread_time()
        cache.sync([entry], [], 0.0)
        kept.append(time.thread_time() - started_s)
    missed: list[float] = []
    for row in asked:
        started_s = time.thread_time()
        found = await look(row)
        missed.append(time.thread_time() - started_s)
        assert isinstance(found, Turn)
        found.end()
    shown = {}
    for name, times in (("miss", missed), ("keep", kept[-looks:])):
        cuts = statistics.quantiles(times, n=100)
        shown[name] = {"p50_ms": cuts[49] * 1e3, "p95_ms": cuts[94] * 1e3, "p99_ms": cuts[98] * 1e3}
    return {"entries": entries, "vectors": cache.stats()["vectors"], **shown}
