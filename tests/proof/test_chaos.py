"""Databases stopped, killed and restarted, Redis flushed, workers frozen, all under load. Then the audit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import Postgres, Redis

from .audit import Books, audit
from .crew import Crew
from .test_crashes import BUDGETS, SPENT
from .worker import Plan

Event = Callable[[Crew], object]


def disturbed(plan: Plan, events: list[Event], seed: int, workers: int = 2) -> Books:
    """Let each event happen under load, with some quiet between; the workers live through all of it."""
    rng = random.Random(seed)
    with Crew(plan, workers, rng) as crew:
        crew.wait_for(100)
        for event in events:
            time.sleep(rng.uniform(0.1, 0.4))
            event(crew)
        time.sleep(0.2)
        counts = crew.stop()
    assert counts["settled"] > 0
    assert counts["clean"] == len(crew.hands) or counts["clean"] == workers, (
        "a worker could not write everything"
    )
    return audit(plan)


def crash(server: Postgres | Redis) -> None:
    server.kill()
    server.start()


def kill_worker(crew: Crew) -> None:
    crew.kill_one()


def freeze_worker(crew: Crew) -> None:
    """Longer than leases hold: the record gives it up, and hears of it again. Its places under ``parallel`` go to
    others after that, though it still stands where it stood: those budgets are left out.
    """
    hand = crew.rng.choice(crew.hands)
    hand.pause()
    time.sleep(2.5 * crew.plan.lease_s)
    hand.resume()


@pytest.fixture
def plan(tmp_path: Path, postgres_url: str) -> Plan:
    return Plan(tmp_path, postgres_url, BUDGETS)


def test_postgres_restarted_and_killed(plan: Plan, postgres: Postgres) -> None:
    books = disturbed(
        plan, [lambda _: postgres.restart(), lambda _: crash(postgres), kill_worker] * 2, seed=1
    )
    assert books.requests > 0


def test_redis_flushed_restarted_and_killed(plan: Plan, redis: Redis) -> None:
    lose: list[Event] = [
        lambda _: redis.flush(),
        lambda _: redis.restart(),
        lambda _: crash(redis),
        kill_worker,
    ]
    books = disturbed(plan._replace(redis_url=redis.url), lose * 2, seed=2)
    assert books.requests > 0


def test_worker_frozen_longer_than_leases_hold(plan: Plan) -> None:
    books = disturbed(plan._replace(budgets=SPENT, lease_s=0.5), [freeze_worker, freeze_worker], seed=3)
    assert books.requests > 0


def test_worker_frozen_behind_redis(plan: Plan, redis: Redis) -> None:
    books = disturbed(
        plan._replace(budgets=SPENT, lease_s=0.5, redis_url=redis.url), [freeze_worker, freeze_worker], seed=4
    )
    assert books.requests > 0


def test_worker_frozen_on_sqlite(tmp_path: Path) -> None:
    plan = Plan(tmp_path, f"sqlite:///{tmp_path / 'ledger.db'}", SPENT, lease_s=0.5)
    books = disturbed(plan, [freeze_worker, freeze_worker], seed=5)
    assert books.requests > 0


@pytest.mark.slow
@pytest.mark.parametrize("store", ["postgresql", "redis"])
def test_everything_at_once(
    plan: Plan, postgres: Postgres, store: str, request: pytest.FixtureRequest
) -> None:
    """Disasters of every kind in a random order, workers killed and frozen among them."""

    def silent(server: Postgres | Redis) -> None:
        server.pause()
        time.sleep(0.5)
        server.resume()

    kinds: list[Event] = [
        lambda _: postgres.restart(),
        lambda _: crash(postgres),
        lambda _: silent(postgres),
        kill_worker,
        kill_worker,
        freeze_worker,
    ]
    plan = plan._replace(budgets=SPENT, lease_s=1.0)
    if store == "redis":
        redis: Redis = request.getfixturevalue("redis")
        plan = plan._replace(redis_url=redis.url)
        kinds += [
            lambda _: redis.flush(),
            lambda _: redis.restart(),
            lambda _: crash(redis),
            lambda _: silent(redis),
        ]
    events = kinds * 2
    random.Random(6).shuffle(events)
    books = disturbed(plan, events, seed=6, workers=3)
    assert books.requests > 0
