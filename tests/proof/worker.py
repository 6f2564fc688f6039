"""A worker as the proxy's are, less the HTTP: many requests at once, each reserved, billed upstream, settled."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec

from apportion.core.budget import Budget
from apportion.serve.ledger.bank import Bank
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import NOTHING, PARALLEL, RESERVE, RESOURCES, SETTLE, Amounts, Entry
from apportion.serve.ledger.ledger import (
    Ledger,
    Refused,
    Reservation,
    Settings,
    Unavailable,
)
from apportion.serve.ledger.purse import Line, Lines

from .meter import Meter

logger = logging.getLogger(__name__)

USD_UNITS_PER_TOKEN = 3_000_000
"""Three dollars a million."""
MOST_TOKENS = 100


def reserve_entry(entry: Entry, amounts: Amounts) -> Entry:
    """A `RESERVE` with these amounts."""
    tokens, usd, server_seconds, joules, gco2, requests, _ = amounts
    return msgspec.structs.replace(
        entry,
        kind=RESERVE,
        tokens=tokens,
        usd=usd,
        server_seconds=server_seconds,
        joules=joules,
        gco2=gco2,
        requests=requests,
    )


class Plan(NamedTuple):
    """What a worker is told. Everything that workers share is in ``directory`` or behind the URLs."""

    directory: Path
    url: str
    budgets: tuple[Budget, ...]
    redis_url: str | None = None
    keys: int = 4
    tasks: int = 16
    """Requests under way at once."""
    lease_s: float = 30.0
    durable: bool = False
    """Wait for the database before the upstream is asked: nothing is lost even with the machine's journal."""
    service_s: float = 0.002
    """Mean of the time that a request takes upstream."""
    stop_after: int | None = None
    """End after so many requests; None: when told to."""
    stop_refused: bool = False
    """End a task at its first refusal: the budget is used up."""

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    @property
    def meter(self) -> Path:
        return self.directory / "billed"

    def bank(self) -> Bank:
        database = Database(self.url, lease_s=self.lease_s)
        if self.redis_url is None:
            return database
        from apportion.serve.ledger.redis_bank import RedisBank

        return RedisBank(database, self.redis_url)


def amounts_of(tokens: int) -> Amounts:
    """By place: tokens, usd, server_seconds, joules, gco2, requests, parallel."""
    return (tokens, tokens * USD_UNITS_PER_TOKEN, 0, 0, 0, 1, 1)


def subject_of(scope: str, key: str, team: str) -> str | None:
    """Of a request under ``key``: what a budget of this scope counts it under; None if it counts none of its."""
    found = {"all": "all", "key": f"key:{key}", "team": f"team:{team}"}[scope.partition(":")[0]]
    return found if scope in ("all", "key", "team", found) else None


def blank(reservation: str, key: str, team: str) -> Entry:
    """An entry of a request under ``key``, without amounts."""
    return Entry(
        reservation=reservation, kind=SETTLE, request=f"dec_{reservation}", attempt=0, organisation="default",
        team=team, key=key, user="", session="", model="m", endpoint="e", upstream_model="u", api="chat",
        tags="", status="ok", mark="measured",
    )  # fmt: skip


class Worker:
    """Asks until told to stop. What became of the requests is in ``counts``."""

    def __init__(self, plan: Plan, ledger: Ledger, rng: random.Random) -> None:
        self.plan = plan
        self.ledger = ledger
        self.rng = rng
        self.meter = Meter(plan.meter)
        self.counts: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self._lines: dict[str, Lines] = {}

    def lines(self, key: str, team: str) -> Lines:
        """What the key's requests fall under; purses live as long as somebody holds them."""
        found = self._lines.get(key)
        if found is None:
            hard, soft = [], []
            for budget in self.plan.budgets:
                subject = subject_of(budget.scope, key, team)
                if subject is None:
                    continue
                purse = self.ledger.purse(f"{budget.name}@{subject}", budget, subject)
                place = RESOURCES.index(budget.resource)
                (hard if budget.hard else soft).append(Line(purse, place, place))
            found = self._lines[key] = Lines(tuple(hard), tuple(soft))
        return found

    async def run(self) -> Counter[str]:
        await asyncio.gather(*(self._task() for _ in range(self.plan.tasks)))
        self.meter.close()
        return self.counts

    async def _task(self) -> None:
        asked = 0
        while not self.stopping.is_set() and (self.plan.stop_after is None or asked < self.plan.stop_after):
            asked += 1
            key = f"k{self.rng.randrange(self.plan.keys)}"
            team = "even" if int(key[1:]) % 2 == 0 else "odd"
            most = amounts_of(self.rng.randint(1, MOST_TOKENS))
            entry = reserve_entry(blank(self.ledger.reservation_id(), key, team), most)
            try:
                held = await self._reserve(self.lines(key, team), most, entry)
            except Refused:
                self.counts["refused"] += 1
                if self.plan.stop_refused:
                    return
                await asyncio.sleep(0.01)
            except Unavailable as error:
                self.counts["unavailable"] += 1
                logger.info("%s", error)
                await asyncio.sleep(0.02)
            else:
                await self._serve(held, blank(entry.reservation, key, team), most[0])

    async def _reserve(self, lines: Lines, most: Amounts, entry: Entry) -> Reservation:
        held = self.ledger.take(lines, most, entry) or await self.ledger.reserve(lines, most, entry)
        if self.plan.durable:
            try:
                await self.ledger.durable()
            except Unavailable:
                self.ledger.release(held)
                raise
        return held

    async def _serve(self, held: Reservation, entry: Entry, most: int) -> None:
        with self._parallel(entry.key):
            await asyncio.sleep(self.rng.expovariate(1.0 / self.plan.service_s))
            if self.rng.random() < 0.1:
                self.ledger.release(held)  # the upstream failed and bills nothing
                self.counts["released"] += 1
                return
            tokens = self.rng.randint(0, most)
            self.meter.bill(entry.reservation, tokens)
            if self.rng.random() < 0.5:
                await asyncio.sleep(0)  # the bill and the end of the answer may be apart
            spent = amounts_of(tokens)
            names = zip(RESOURCES[:PARALLEL], spent, strict=False)
            self.ledger.settle(held, spent, msgspec.structs.replace(entry, **dict(names)))
            self.counts["settled"] += 1

    @contextmanager
    def _parallel(self, key: str) -> Iterator[None]:
        """One of the places that a budget of ``parallel`` leaves, over all processes; one too many is written down."""
        limits = [int(b.amount) for b in self.plan.budgets if b.resource == "parallel" and b.scope == "key"]
        if not limits:
            yield
            return
        for place in range(limits[0]):
            file = os.open(self.plan.directory / f"{key}.{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            try:
                yield
            finally:
                os.close(file)
            return
        (self.plan.directory / "too-many").touch()
        yield


async def work(plan: Plan, seed: int, boss: Connection) -> None:
    """One worker's life, told over ``boss``: says "ready", works until something comes, answers with its counts."""
    rng = random.Random(seed)
    settings = Settings(plan.journal, lease_s=plan.lease_s)
    ledger = await Ledger.open(plan.bank(), settings, rng=random.Random(seed))
    worker = Worker(plan, ledger, rng)
    boss.send("ready")
    asyncio.get_running_loop().add_reader(boss.fileno(), worker.stopping.set)
    counts = await worker.run()
    counts["clean"] = int(await ledger.close(240.0))
    boss.send(counts)


def main(plan: Plan, seed: int, boss: Connection) -> None:
    """The process's entry."""
    try:
        asyncio.run(work(plan, seed, boss))
    except BaseException as error:
        boss.send(f"{type(error).__name__}: {error}")
        raise


assert NOTHING[PARALLEL] == 0
