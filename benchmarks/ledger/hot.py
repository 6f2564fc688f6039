"""The part of a request that needs no store: arithmetic on purses, two writes to the mapped journal."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from apportion.serve.ledger.bank import Bank, Recovery
from apportion.serve.ledger.entries import Batch, Entry, Grant, Receipt
from apportion.serve.ledger.ledger import Ledger, Settings
from apportion.serve.ledger.purse import Lines
from benchmarks.ledger.requests import HELD, SPENT, lines, reserve_of, settle_of
from benchmarks.ledger.stores import Store

PAIRS_PER_TURN = 64
"""Pairs between two turns of the event loop, so that batches are taken away as in a worker."""
PACED_PER_S = 2_000.0


class Generous:
    """A bank that lends without end and forgets: what is left is the worker's own part."""

    def open(self, holder: str, machine: str) -> Receipt:
        return Receipt(0.0, 1, [])

    def commit(self, batch: Batch) -> Receipt:
        grants = [Grant(m.account, 10**18 if m.want else 0, 10**18, 0, 0.0) for m in batch.moves]
        return Receipt(0.0, 1, grants)

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        return Recovery(0, 0, 0)

    def forget(self, holder: str) -> None: ...

    def close(self, holder: str) -> None: ...

    def prices(self) -> dict[str, str]:
        return {}

    def dispose(self) -> None: ...


def measure_hot(stores: Sequence[Store], directory: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Pairs a second as fast as they go with a bank that costs nothing; and the latency of single pairs at a steady
    rate while batches are written to each store in the worker's other thread, which shares the interpreter.
    """
    rows: dict[str, Any] = {}
    samples: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        for store in stores:
            store.start(stack, directory)
        for number in range(rounds):
            journal = directory / f"journal-{number}"
            fastest = asyncio.run(_fastest(Generous(), journal, seconds))
            samples.setdefault("none", []).append(fastest)
            print(
                f"  round {number + 1}/{rounds} {'hot path':12} {fastest['pairs_per_s']:9,.0f} /s", flush=True
            )
            for store in stores:
                with store.opened() as (bank, _):
                    paced = asyncio.run(_paced(bank, journal, seconds))
                samples.setdefault(store.name, []).append(paced)
                print(
                    f"  round {number + 1}/{rounds} {store.name:12} p99 {paced['p99_us']:7.0f} us", flush=True
                )
    titles = {"none": "as fast as it goes, no store"} | {s.name: f"beside {s.title}" for s in stores}
    for name, of_it in samples.items():
        rows[name] = {"title": titles[name]} | {key: median(s[key] for s in of_it) for key in of_it[0]}
    return {"rounds": rounds, "seconds": seconds, "paced_per_s": PACED_PER_S, "rows": rows}


def _pair(ledger: Ledger, under: Lines) -> None:
    reservation = ledger.reservation_id()
    held = ledger.take(under, HELD, reserve_of(reservation))
    assert held is not None, "the purse was short"
    ledger.settle(held, SPENT, settle_of(reservation))


async def _ready(bank: Bank, journal: Path) -> tuple[Ledger, Lines]:
    ledger = await Ledger.open(bank, Settings(journal), rng=random.Random(0))
    under = lines(ledger)
    # a lease for the whole measurement, as a busy worker has one
    plenty = [amount * 1_000_000 for amount in HELD]
    reservation = ledger.reservation_id()
    first = await ledger.reserve(under, plenty, reserve_of(reservation))
    ledger.settle(first, [0] * len(HELD), settle_of(reservation))
    return ledger, under


async def _fastest(bank: Bank, journal: Path, seconds: float) -> dict[str, float]:
    ledger, under = await _ready(bank, journal)
    took_ns: list[int] = []
    clock = time.perf_counter_ns
    end_ns = clock() + int(seconds * 1e9)
    busy_ns = 0
    while clock() < end_ns:
        turn_ns = clock()
        for _ in range(PAIRS_PER_TURN):
            begin_ns = clock()
            _pair(ledger, under)
            took_ns.append(clock() - begin_ns)
        busy_ns += clock() - turn_ns
        while ledger.pending > 8 * PAIRS_PER_TURN:  # else only a queue would be measured
            await asyncio.sleep(0.0005)
        await asyncio.sleep(0)
    assert await ledger.close()
    return {"pairs_per_s": len(took_ns) / (busy_ns / 1e9), **_percentiles(took_ns)}


async def _paced(bank: Bank, journal: Path, seconds: float) -> dict[str, float]:
    ledger, under = await _ready(bank, journal)
    rng = random.Random(1)
    took_ns: list[int] = []
    loop = asyncio.get_running_loop()
    clock = time.perf_counter_ns
    due_s, end_s = loop.time(), loop.time() + seconds
    begin_s = due_s
    gc.collect()
    while due_s < end_s:
        due_s += rng.expovariate(PACED_PER_S)
        if due_s > loop.time():
            await asyncio.sleep(due_s - loop.time())
        begin_ns = clock()
        _pair(ledger, under)
        took_ns.append(clock() - begin_ns)
    await ledger.durable()
    rate = len(took_ns) / (loop.time() - begin_s)
    assert await ledger.close()
    return {"pairs_per_s": rate, **_percentiles(took_ns)}


def _percentiles(took_ns: list[int]) -> dict[str, float]:
    took_ns.sort()
    return {f"p{p}_us": took_ns[int(len(took_ns) * p / 100)] / 1e3 for p in (50, 99)}
