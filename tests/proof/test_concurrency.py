"""Sixty-four workers on one budget: it is used up, and not passed by a token."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from apportion.core.budget import Budget
from apportion.serve.ledger.ledger import Ledger, Settings

from .audit import audit
from .crew import Crew
from .worker import MOST_TOKENS, USD_UNITS_PER_TOKEN, Plan, Worker

TOKENS = 15_000
ONE = Budget("one", "tokens", TOKENS, scope="all")
STORES = ["sqlite", "postgresql", "redis"]


@pytest.fixture(params=STORES)
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    """A plan for each store; Redis is in front of PostgreSQL."""
    redis_url = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
        if request.param == "redis":
            redis_url = request.getfixturevalue("redis_url")
    return Plan(tmp_path, url, (ONE,), redis_url, stop_refused=True, service_s=0.0005)


def test_64_workers_in_one_process(plan: Plan) -> None:
    """Each with its own ledger, its own leases and its own connection, as 64 processes would have."""
    _used_up(plan, asyncio.run(_ledgers(plan._replace(tasks=1), 64)), refusals=64)


async def _ledgers(plan: Plan, count: int) -> Counter[str]:
    settings, rng = Settings(plan.journal), random.Random(64)
    ledgers = await asyncio.gather(*(Ledger.open(plan.bank(), settings, rng=rng) for _ in range(count)))
    workers = [Worker(plan, ledger, random.Random(i)) for i, ledger in enumerate(ledgers)]
    counts = await asyncio.gather(*(worker.run() for worker in workers))
    assert all(await asyncio.gather(*(ledger.close(240.0) for ledger in ledgers)))
    return sum(counts, Counter())


def test_64_workers_in_eight_processes(plan: Plan) -> None:
    """Many keys and teams below the one budget, and another in dollars beside it."""
    dollars = Budget("dollars", "usd", 2 * TOKENS * USD_UNITS_PER_TOKEN / 1e12, scope="team")
    plan = plan._replace(budgets=(ONE, dollars), tasks=8)
    with Crew(plan, 8, random.Random(64)) as crew:
        counts = sum((hand.wait() for hand in crew.hands), Counter[str]())
        crew.hands.clear()
    _used_up(plan, counts, refusals=64)


def test_requests_under_way_stay_within_parallel(plan: Plan) -> None:
    """The limit on parallel requests holds over all processes, though most leases of it lie elsewhere."""
    three = Budget("three", "parallel", 3, scope="key")
    plan = plan._replace(budgets=(ONE, three), tasks=8, stop_after=10, stop_refused=False, keys=2)
    with Crew(plan, 4, random.Random(3)) as crew:
        counts = sum((hand.wait() for hand in crew.hands), Counter[str]())
        crew.hands.clear()
    assert counts["settled"] > 0
    audit(plan)


def _used_up(plan: Plan, counts: Counter[str], refusals: int) -> None:
    """Every worker was refused in the end; then no more was left than what the last had reserved and not used."""
    books = audit(plan)
    assert counts["refused"] == refusals
    assert books.booked == books.billed
    assert TOKENS - books.booked < refusals * MOST_TOKENS
    assert books.presumed == 0
