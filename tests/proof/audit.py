"""What must hold afterwards, computed from the rows and the upstream's meter, without the code that is on trial."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import create_engine, text

from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import CORRECT, PRESUME, RELEASE, RESERVE, RESOURCES, SETTLE
from apportion.serve.ledger.ledger import Ledger, Settings

from .meter import Meter
from .worker import Plan, subject_of


class Row(NamedTuple):
    reservation: str
    kind: int
    key: str
    team: str
    user: str
    mark: str
    tokens: int
    usd: int
    requests: int
    at_us: int


class Books(NamedTuple):
    """What was found. Amounts in tokens."""

    requests: int
    billed: int
    booked: int
    presumed: int
    """Reservations that were settled at what they had reserved, because a process had died."""


def recover(plan: Plan, journal: Path | None = None) -> None:
    """What the next start of the proxy does: read the journals of the dead, in ``plan.journal`` or ``journal``."""

    async def open_and_close() -> None:
        settings = Settings(journal or plan.journal, lease_s=plan.lease_s)
        ledger = await Ledger.open(plan.bank(), settings, rng=random.Random(0))
        assert await ledger.close(240.0)

    asyncio.run(open_and_close())


def entries_of(url: str) -> list[Row]:
    """All entries in the order in which they were written."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        columns = 'reservation, kind, key, team, "user", mark, tokens, usd, requests, at_us'
        query = f"SELECT {columns} FROM entries ORDER BY at_us, kind"
        found = connection.execute(text(query)).all()
    engine.dispose()
    return [Row(*row) for row in found]


def audit(plan: Plan, *, journals_lost: bool = False) -> Books:
    """Overspend 0, lost spending 0, entries sum to balances. To be called when all workers are gone."""
    if not journals_lost:
        recover(plan)
        assert not plan.journal.exists() or list(plan.journal.iterdir()) == [], "journals were left behind"
    written = entries_of(plan.url)
    billed = Meter(plan.meter).billed()
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in written:
        kinds[row.reservation].append(row)
    lost = 0
    presumed = 0
    for reservation, of_it in kinds.items():
        seen = [row.kind for row in of_it]
        assert len(set(seen)) == len(seen), (reservation, of_it)
        assert seen[0] == RESERVE, (reservation, of_it)
        ends = [row for row in of_it if row.kind in (SETTLE, RELEASE, PRESUME)]
        assert len(ends) == 1, (reservation, of_it)
        booked = sum(row.tokens for row in of_it if row.kind != RESERVE)
        if ends[0].kind == PRESUME and CORRECT not in seen:
            presumed += 1
            assert ends[0].mark == "presumed"
            assert ends[0].tokens == of_it[0].tokens
            lost += max(0, billed.get(reservation, 0) - booked)
        else:
            lost += abs(billed.get(reservation, 0) - booked)
        if ends[0].kind == RELEASE:
            assert reservation not in billed
    never = {reservation for reservation in billed if reservation not in kinds}
    lost += sum(billed[reservation] for reservation in never)
    overspent = _overspent(plan, written)
    assert overspent == {}
    assert lost == 0, never
    assert not (plan.directory / "too-many").exists(), "more requests were under way than may be"
    database = Database(plan.url, lease_s=plan.lease_s)
    assert database.verify() == []
    database.dispose()
    total = sum(row.tokens for row in written if row.kind != RESERVE)
    return Books(len(kinds), sum(billed.values()), total, presumed)


def _overspent(plan: Plan, written: list[Row]) -> dict[str, int]:
    """The hard budgets for ever that were passed at any moment, by how much at most, in their smallest parts."""
    passed: dict[str, int] = {}
    for budget in plan.budgets:
        if not budget.hard or budget.window_s or budget.refill_per_s or budget.resource == "parallel":
            continue
        at = Row._fields.index(budget.resource)
        limit = budget.unit.to_units(budget.amount)
        spent: dict[str, int] = defaultdict(int)
        for _, together in groupby(written, key=lambda row: row.at_us):  # one transaction or more
            for row in together:
                subject = subject_of(budget.scope, row.key, row.team)
                if row.kind != RESERVE and subject is not None:
                    spent[subject] += int(row[at])
            for subject, units in spent.items():
                if units > limit:
                    account = f"{budget.name}@{subject}"
                    passed[account] = max(passed.get(account, 0), units - limit)
    return passed


assert RESOURCES[0] == "tokens"
