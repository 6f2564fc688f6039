"""Processes spend one budget in real time, while Redis is flushed and killed and one of them dies."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread

import pytest
from sqlalchemy import Integer, func, select
from teller import Teller

from apportion.core.budget import Budget
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import CORRECT, PRESUME, SETTLE, BankError, LendingError
from apportion.serve.ledger.redis_bank import RedisBank
from apportion.serve.ledger.schema import entries
from servers import Redis

AMOUNT = 30_000
ALL = Budget("all", "tokens", AMOUNT)
ACCOUNT = "all@all"


def spend(database_url: str, redis_url: str, holder: str, told: Connection) -> None:
    """Spend as long as there is something left; then tell how much it was."""
    rng = random.Random(holder)
    bank = RedisBank(Database(database_url), redis_url, rng=rng, timeout_s=0.3)
    it = Teller(bank, holder, [ALL])
    spent, refused = 0, 0
    while refused < 20:
        entry = it.reserve(tokens=rng.randrange(1, 80))
        wants = {}
        if entry is not None:
            cost = rng.randrange(entry.tokens + 1)
            spent += cost
            it.settle(entry, tokens=cost)
        else:
            refused += 1
            wants = {ACCOUNT: (80, 400)}
        before = it.free.get(ACCOUNT, 0)
        while True:
            try:
                it.say(wants)
                break
            except LendingError as error:
                if rng.random() < 0.5:
                    it.heard(error.receipt)
                    refused -= bool(wants)
                    break
                time.sleep(0.01)
            except BankError:
                time.sleep(0.01)
        if it.free[ACCOUNT] > before:
            refused = 0
        elif wants:
            it.free[ACCOUNT] = 0  # others may need it
            time.sleep(0.02)
    it.free[ACCOUNT] = 0
    while it.batch is not None or it.unsaid[ACCOUNT] or it.entries:
        try:
            it.say()
        except BankError:
            time.sleep(0.01)
    bank.close(holder)
    told.send(spent)
    bank.dispose()


def run(database_url: str, redis: Redis, processes: int, *, chaos: bool) -> tuple[int, list[int], int]:
    """What was booked, what each process says it has spent, and the signal that ended the first."""
    Database(database_url).dispose()
    context = get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [
        context.Process(target=spend, args=(database_url, redis.url, f"p{k}", pipe[1]), daemon=True)
        for k, pipe in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    ended = Thread(target=lambda: [worker.join(120) for worker in workers])
    ended.start()
    rng = random.Random(1)
    bank = RedisBank(Database(database_url), redis.url)
    while ended.is_alive():
        time.sleep(0.05)
        if chaos and rng.random() < 0.2:
            redis.flush()
        if chaos and rng.random() < 0.03:
            redis.kill()
            time.sleep(0.05)
            redis.start()
        pid = workers[0].pid
        if chaos and pid is not None and workers[0].is_alive() and booked(bank) > AMOUNT // 5:
            os.kill(pid, signal.SIGKILL)
            workers[0].join()
            bank.forget("p0")
    bank.sweep()
    if chaos:
        bank._begin()
    assert bank._database.verify() == []
    assert bank.check() == []
    total = booked(bank)
    bank.dispose()
    return total, [pipe[0].recv() for pipe in pipes if pipe[0].poll()], workers[0].exitcode or 0


def booked(bank: RedisBank) -> int:
    spending = entries.c.kind.in_((SETTLE, PRESUME, CORRECT))
    with bank._database.reading.connect() as c:
        return c.execute(
            select(func.coalesce(func.sum(entries.c.tokens), 0).cast(Integer)).where(spending)
        ).scalar_one()


@pytest.mark.slow
def test_two_processes(postgres_url: str, redis: Redis) -> None:
    total, said, _ = run(postgres_url, redis, 2, chaos=False)
    assert total == sum(said)
    assert AMOUNT - 80 <= total <= AMOUNT


@pytest.mark.slow
def test_redis_is_flushed_and_killed_under_load(database_url: str, redis: Redis) -> None:
    total, said, ended = run(database_url, redis, 4, chaos=True)
    assert total <= AMOUNT, "overspent"
    assert len(said) == 3
    assert sum(said) <= total
    assert ended == -signal.SIGKILL
