"""The proxy itself, workers and all, killed with SIGKILL under load: its books against the upstream's own meter."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import PRESUME, RESERVE
from blackbox.dialects import CHAT, MESSAGES, Json
from blackbox.proxy import Gateway
from blackbox.shapes import Want
from blackbox.upstream import Upstream, new_marker
from blackbox.wire import Broken
from servers import free_port

from .audit import entries_of, recover
from .crew import PATIENCE_S
from .worker import Plan

USD_PER_TOKEN_IN, USD_PER_TOKEN_OUT = Decimal("0.00001"), Decimal("0.001")
PRICE = {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 1000.0}
SMALL_USD = 2
"""Of bob's budget, used up on the way; alice's is never."""
CLIENTS = 16


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream().start()
    yield server
    server.stop()


def config(upstream: Upstream, ledger: Json) -> Json:
    return {
        "listen": {"drain_s": 120},
        "ledger": ledger,
        "keys": [
            {"name": "alice", "secret": "${KEY_ALICE}", "budget": {"usd": 10_000, "window": "1d"}},
            {"name": "bob", "secret": "${KEY_BOB}"},
            {"name": "admin", "secret": "${KEY_ADMIN}", "admin": True},
        ],
        "budgets": [
            {
                "name": "small",
                "scope": "key:bob",
                "resource": "usd",
                "amount": SMALL_USD,
                "window": "forever",
            },
            {"name": "all", "resource": "usd", "amount": 10_000, "window": "forever"},
        ],
        "endpoints": {
            name: {
                "kind": "openai",
                "base_url": f"http://127.0.0.1:{upstream.port}/{name}/v1",
                "api_key": "${UPSTREAM_KEY}",
                "model": "upstream-model",
                "price": PRICE,
                "breaker": {"failures": 1_000_000, "open_s": 1e-6, "max_open_s": 1e-6},
            }
            for name in ("left", "right")
        },
        "models": {"m": {"endpoints": ["left", "right"], "retries": {"attempts": 2, "backoff_s": 0.01}}},
    }


class Clients:
    """Ask without end, each request as an end user of its own, by which the books are compared."""

    def __init__(self, gateway: Gateway, upstream: Upstream, rng: random.Random) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.rng = rng
        self.asked: list[tuple[str, str]] = []
        """Key and end user of each request."""
        self.statuses: Counter[int] = Counter()
        self.stopping = False

    async def one(self) -> None:
        while not self.stopping:
            dialect = self.rng.choice((CHAT, MESSAGES))
            key = self.rng.choice(("alice", "alice", "bob"))
            want = Want(words=self.rng.randint(4, 30))
            marker = self.upstream.script(new_marker(), want=want, head_delay_s=0.08)
            self.asked.append((key, marker))
            who = {"user": marker} if dialect is CHAT else {"metadata": {"user_id": marker}}
            body = dialect.request("m", marker, max_tokens=40, stream=self.rng.random() < 0.5, **who)
            try:
                response = await self.gateway.post(dialect, body, key=f"KEY_{key.upper()}")
                self.statuses[response.status] += 1
            except (OSError, Broken, asyncio.IncompleteReadError):
                self.statuses[0] += 1  # the proxy is dead
                await asyncio.sleep(0.02)

    async def answered(self, more: int) -> None:
        """Until so many more were answered."""
        wanted = self.statuses[200] + more
        async with asyncio.timeout(PATIENCE_S):
            while self.statuses[200] < wanted:
                await asyncio.sleep(0.02)


async def disaster(gateway: Gateway, rng: random.Random) -> None:
    """SIGKILL to one worker, whose place the supervisor fills, or to all of the proxy, which is started anew."""
    assert gateway.process is not None
    workers = [pid for pid in gateway.processes() if pid != gateway.process.pid]
    if rng.random() < 0.5:
        os.kill(rng.choice(workers), signal.SIGKILL)
        await asyncio.to_thread(gateway.wait_ready)
    else:
        await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)


async def prove(directory: Path, upstream: Upstream, ledger: Json, disasters: int, seed: int) -> None:
    rng = random.Random(seed)
    gateway = Gateway(directory, config(upstream, ledger), "--workers", "2")
    gateway.port = free_port()  # nobody takes it while the proxy is dead
    gateway.start()
    clients = Clients(gateway, upstream, rng)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(clients.one())
            for _ in range(disasters):
                await clients.answered(20)
                await asyncio.sleep(rng.uniform(0.3, 0.8))
                await disaster(gateway, rng)
            await clients.answered(20)
            clients.stopping = True
    finally:
        clients.stopping = True
        stop = gateway.stop if clients.statuses else gateway.kill
        await asyncio.to_thread(stop)
    assert clients.statuses[200] > 50, clients.statuses
    # Where the whole proxy ended before the last worker killed had a successor, the next start reads its journal.
    plan = Plan(directory, str(ledger["url"]), (), ledger.get("redis"))
    (journal,) = plan.journal.iterdir()  # that of the one database
    await asyncio.to_thread(recover, plan, journal)
    assert list(journal.iterdir()) == [], "journals were left behind"
    compare(clients, upstream, plan.url)


def compare(clients: Clients, upstream: Upstream, url: str) -> None:
    """Every request: what the upstream billed and what was booked; and bob's budget against both."""
    booked: dict[str, int] = defaultdict(int)
    presumed: set[str] = set()
    for row in entries_of(url):
        user = row.user.rpartition("/")[2]  # one key's users are told from another's
        if row.kind != RESERVE:
            booked[user] += row.usd
        if row.kind == PRESUME:
            presumed.add(user)
    billed: dict[str, int] = {}
    for _, user in clients.asked:
        seen = upstream.of(user)
        usd = sum(s.tokens_in * USD_PER_TOKEN_IN + s.tokens_out * USD_PER_TOKEN_OUT for s in seen)
        billed[user] = int(usd * 10**12)
    assert set(booked) <= set(billed)
    lost = {u: (billed[u], booked[u]) for u in billed if booked[u] < billed[u]}
    assert lost == {}
    invented = {u: (billed[u], booked[u]) for u in billed if booked[u] > billed[u] and u not in presumed}
    assert invented == {}
    assert presumed, "nobody was killed with a request under way"
    bobs = {user for key, user in clients.asked if key == "bob"}
    assert sum(booked[u] for u in bobs) <= SMALL_USD * 10**12
    assert sum(billed[u] for u in bobs) <= SMALL_USD * 10**12
    database = Database(url)
    assert database.verify() == []
    database.dispose()


async def test_killed_on_sqlite(tmp_path: Path, upstream: Upstream) -> None:
    ledger = {"url": f"sqlite:///{tmp_path / 'ledger.db'}", "journal": str(tmp_path / "journal")}
    await prove(tmp_path, upstream, ledger, disasters=3, seed=1)


@pytest.mark.slow
async def test_killed_on_redis_and_postgresql(
    tmp_path: Path, upstream: Upstream, postgres_url: str, redis_url: str
) -> None:
    ledger = {"url": postgres_url, "redis": redis_url, "journal": str(tmp_path / "journal")}
    await prove(tmp_path, upstream, ledger, disasters=10, seed=2)
