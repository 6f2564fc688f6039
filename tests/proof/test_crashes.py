"""Workers killed with SIGKILL at random moments: nothing is overspent, nothing that was billed is lost."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from apportion.core.budget import Budget
from apportion.serve.ledger.entries import RESERVE

from .audit import Books, audit, entries_of
from .crew import PATIENCE_S, Crew
from .worker import USD_UNITS_PER_TOKEN, Plan

TOTAL_USD = 10_000_000 * USD_UNITS_PER_TOKEN / 1e12
BUDGETS = (
    Budget("total", "usd", TOTAL_USD, scope="all"),
    Budget("team", "tokens", 10_000_000, scope="team"),
    Budget("small", "tokens", 3_000, scope="key:k0"),
    Budget("middle", "tokens", 20_000, scope="key:k1"),
    Budget("rate", "requests", 1_000, refill_per_s=1_000, scope="team"),
    Budget("parallel", "parallel", 12, scope="key"),
    Budget("watched", "tokens", 1_000, scope="key", hard=False),
)
"""Some are used up on the way and refuse, most are there to the end."""
SPENT = tuple(budget for budget in BUDGETS if budget.resource != "parallel")
SERVICE_S = 0.02
"""So long that some requests are under way whenever a worker is killed."""


def killed(plan: Plan, kills: int, seed: int, workers: int = 2) -> Books:
    """Kill one of the workers every 0 to 0.1 s, each time start another; then let all finish, and audit."""
    rng = random.Random(seed)
    with Crew(plan, workers, rng) as crew:
        crew.wait_for(100)
        for _ in range(kills):
            time.sleep(rng.uniform(0.0, 0.1))
            crew.kill_one()
        counts = crew.stop()
    assert counts["settled"] > 0
    return audit(plan)


def still_open(plan: Plan) -> set[str]:
    """Reservations that have not ended in the books."""
    written = entries_of(plan.url)
    return {row.reservation for row in written} - {row.reservation for row in written if row.kind != RESERVE}


@pytest.fixture
def sqlite(tmp_path: Path) -> Plan:
    return Plan(tmp_path, f"sqlite:///{tmp_path / 'ledger.db'}", BUDGETS, service_s=SERVICE_S)


@pytest.fixture
def postgresql(tmp_path: Path, postgres_url: str) -> Plan:
    return Plan(tmp_path, postgres_url, BUDGETS, service_s=SERVICE_S)


@pytest.fixture
def redis(postgresql: Plan, redis_url: str) -> Plan:
    return postgresql._replace(redis_url=redis_url)


STORES = ["sqlite", "postgresql", "redis"]


@pytest.mark.parametrize("store", STORES)
def test_killed_a_few_times(store: str, request: pytest.FixtureRequest) -> None:
    books = killed(request.getfixturevalue(store), kills=8, seed=8)
    assert books.presumed > 0, "nobody was killed with a request under way"


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_killed_a_hundred_times(store: str, request: pytest.FixtureRequest) -> None:
    books = killed(request.getfixturevalue(store), kills=100, seed=100)
    assert books.presumed >= 50


@pytest.mark.parametrize("store", STORES)
def test_all_killed_at_once(store: str, request: pytest.FixtureRequest) -> None:
    """As when the container dies. The next start finds everything in the journals."""
    plan: Plan = request.getfixturevalue(store)
    with Crew(plan, 3, random.Random(1)) as crew:
        crew.wait_for(100)
        for hand in crew.hands:
            hand.kill()
        crew.hands.clear()
    assert audit(plan).requests >= 100


@pytest.mark.parametrize("store", STORES)
def test_killed_while_recovering(store: str, request: pytest.FixtureRequest) -> None:
    """Whoever reads the journals of the dead may die over it; the next reads them again."""
    plan: Plan = request.getfixturevalue(store)
    rng = random.Random(5)
    with Crew(plan, 3, rng) as crew:
        crew.wait_for(100)
        for hand in crew.hands:
            hand.kill()
        crew.hands.clear()
        for _ in range(10):
            hand = crew.hire()
            time.sleep(rng.uniform(0.0, 0.06))
            crew.hands.remove(hand)
            hand.kill()
    audit(plan)


@pytest.mark.parametrize("store", STORES)
def test_machine_and_journal_lost(store: str, request: pytest.FixtureRequest) -> None:
    """With ``durability: machine`` what was promised is in the database; the sweep presumes it after ``lease_s``.

    The places under ``parallel`` of a worker that the machine holds up for so long go to others, though it still stands
    where it stood: those budgets are left out.
    """
    plan: Plan = request.getfixturevalue(store)._replace(durable=True, lease_s=1.0, budgets=SPENT)
    with Crew(plan, 2, random.Random(2)) as crew:
        crew.wait_for(100)
        for hand in crew.hands:
            hand.kill()
        crew.hands.clear()
        for journal in plan.journal.iterdir():
            journal.unlink()
        lost = still_open(plan)
        assert lost, "nobody was killed with a request under way"
        crew.hire().wait_ready()
        until = time.monotonic() + PATIENCE_S
        while lost & still_open(plan):
            assert time.monotonic() < until, "what the dead had open is not presumed"
            time.sleep(0.1)
        crew.stop()
    assert audit(plan).presumed > 0
