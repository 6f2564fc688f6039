"""Many workers at one account at once, each with its own connection: nothing is overspent, nobody waits for ever."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select
from teller import Teller

from apportion.core.budget import Budget
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import CORRECT, PRESUME, SETTLE
from apportion.serve.ledger.schema import entries, leases

WORKERS = 8
AMOUNT = 20_000
BUDGETS = (
    Budget("ever", "tokens", AMOUNT),
    Budget("each", "tokens", AMOUNT // 4, scope="user"),
    Budget("parallel", "parallel", 5, scope="key"),
)


def work(url: str, number: int, start: threading.Barrier, dies: bool) -> tuple[Teller, dict[str, int]]:
    """Reserve and settle until nothing is left, in an order of its own; some stop in the midst of it. Also what each
    of its requests has cost.
    """
    costs: dict[str, int] = {}
    rng = random.Random(number)
    database = Database(url)
    it = Teller(database, f"worker{number}", rng.sample(BUDGETS, len(BUDGETS)))
    start.wait()
    refusals = 0
    for turn in range(60):
        if dies and turn == 30:
            break
        user = rng.choice(["ann", "ben", "cid"])
        amount = rng.randrange(1, 200)
        entry = it.reserve(user=user, tokens=amount)
        if entry is None:
            it.lease({"user": user}, amount if refusals < 20 else 1, 3 * amount)
            entry = it.reserve(user=user, tokens=amount)
        if entry is None:
            refusals += 1
            if rng.random() < 0.3:
                it.free = dict.fromkeys(it.free, 0)
            continue
        it.say()
        costs[entry.reservation] = rng.randrange(amount + 1)
        it.settle(entry, tokens=costs[entry.reservation])
        if rng.random() < 0.5:
            it.say()
    if not dies:
        it.say()
        database.close(it.holder)
    database.dispose()
    return it, costs


def test_eight_workers_on_one_account(database_url: str) -> None:
    record = Database(database_url)
    start = threading.Barrier(WORKERS)
    with ThreadPoolExecutor(WORKERS) as pool:
        done = [
            pool.submit(work, database_url, number, start, dies=number % 4 == 3) for number in range(WORKERS)
        ]
        results = [each.result(timeout=120) for each in done]
    assert record.verify() == []
    for it, _ in results[3::4]:
        it.bank = record
        it.recovered()
    assert record.verify() == []
    with record.reading.connect() as c:
        spending = entries.c.kind.in_((SETTLE, PRESUME, CORRECT))
        of_each = select(entries.c.reservation, func.sum(entries.c.tokens)).where(spending)
        booked = {row[0]: int(row[1]) for row in c.execute(of_each.group_by(entries.c.reservation))}
        of_users = select(entries.c.user, func.sum(entries.c.tokens)).where(spending)
        by_user = {row[0]: int(row[1]) for row in c.execute(of_users.group_by(entries.c.user))}
        assert c.execute(select(func.count()).select_from(leases)).scalar_one() == 0
    assert booked == {reservation: cost for _, costs in results for reservation, cost in costs.items()}
    assert sum(booked.values()) <= AMOUNT
    assert all(0 < spent <= AMOUNT // 4 for spent in by_user.values())
    record.dispose()
