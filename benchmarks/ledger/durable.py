"""Pairs that are on disk, a second: the ledger's group commit against bare updates of one row."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from apportion.serve.ledger.bank import Bank
from apportion.serve.ledger.ledger import Ledger, Settings
from benchmarks.ledger.requests import HELD, SPENT, lines, reserve_of, settle_of
from benchmarks.ledger.stores import Store

CONCURRENT = 512
"""Requests under way at once; each waits until its settlement is durable before the next begins."""


def measure_durable(
    stores: Sequence[Store], directory: Path, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """For each store, in each round: pairs a second through the ledger; single-row updates a second, each its own
    transaction; and the same in transactions as large as the ledger's were in that round.
    """
    samples: dict[str, list[dict[str, float]]] = {store.name: [] for store in stores}
    with ExitStack() as stack:
        for store in stores:
            store.start(stack, directory)
        for number in range(rounds):
            for store in stores if number % 2 == 0 else reversed(stores):
                with store.opened() as (bank, bare):
                    sample = asyncio.run(_pairs(bank, directory / "journal", seconds))
                    group = max(1, round(sample["pairs_per_transaction"]))
                    sample["bare_per_s"] = _rate(bare.one, 1, seconds / 2)
                    sample["grouped_per_s"] = _rate(
                        lambda bare=bare, n=group: bare.many(n), group, seconds / 2
                    )  # type: ignore[misc]
                samples[store.name].append(sample)
                print(
                    f"  round {number + 1}/{rounds} {store.name:12} {sample['pairs_per_s']:8,.0f} pairs/s"
                    f" {sample['bare_per_s']:8,.0f} bare/s {sample['grouped_per_s']:8,.0f} grouped/s",
                    flush=True,
                )
    rows = {store.name: {"title": store.title, **_row(samples[store.name])} for store in stores}
    return {"rounds": rounds, "seconds": seconds, "concurrent": CONCURRENT, "rows": rows}


def _row(samples: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {key: median(s[key] for s in samples) for key in samples[0]}
    for other in ("bare", "grouped"):
        ratios = [s["pairs_per_s"] / s[f"{other}_per_s"] for s in samples]
        row[f"of_{other}"] = median(ratios)
        row[f"of_{other}_rounds"] = ratios
    return row


def _rate(take: Callable[[], None], count: int, seconds: float) -> float:
    """How many a second, ``count`` with each call."""
    take()
    done, begin_s = 0, time.perf_counter()
    while time.perf_counter() - begin_s < seconds:
        take()
        done += count
    return done / (time.perf_counter() - begin_s)


async def _pairs(bank: Bank, journal: Path, seconds: float) -> dict[str, float]:
    ledger = await Ledger.open(bank, Settings(journal), rng=random.Random(0))
    under = lines(ledger)
    took_s: list[float] = []
    clock = time.perf_counter
    begin_s = end_s = 0.0

    async def request() -> None:
        while clock() < end_s:
            started_s = clock()
            reservation = ledger.reservation_id()
            entry = reserve_of(reservation)
            held = ledger.take(under, HELD, entry) or await ledger.reserve(under, HELD, entry)
            ledger.settle(held, SPENT, settle_of(reservation))
            await ledger.durable()
            took_s.append(clock() - started_s)

    async def load(for_s: float) -> None:
        nonlocal begin_s, end_s
        begin_s = clock()
        end_s = begin_s + for_s
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(request())

    await load(min(1.0, seconds / 4))
    took_s.clear()
    entries, commits, cpu_s = ledger.committed, ledger.commits, time.process_time()
    await load(seconds)
    wall_s = clock() - begin_s
    cpu_s = time.process_time() - cpu_s
    pairs, transactions = (ledger.committed - entries) / 2, ledger.commits - commits
    assert abs(pairs - len(took_s)) < 1, "an acknowledged pair was not written"
    assert await ledger.close()
    took_s.sort()
    return {
        "pairs_per_s": len(took_s) / wall_s,
        "p50_ms": took_s[len(took_s) // 2] * 1e3,
        "p99_ms": took_s[int(len(took_s) * 0.99)] * 1e3,
        "pairs_per_transaction": pairs / transactions,
        "cpu_us_per_pair": cpu_s * 1e6 / len(took_s),
    }
