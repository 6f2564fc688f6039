"""Retention: entries of long ago are deleted, and everything that is counted from them goes on to be right.

Three steps, each safe to be stopped in and begun anew, while workers go on writing. What the entries had spent is
first put into the sums from which budgets begin that are made later, and into the *base* of every account, from which
`verify` starts. Then reservations that ended before are deleted whole, some at a time. Kept are those that have not
ended, and those presumed and not corrected: a journal that turns up late must find them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import sqlalchemy as sa

from apportion.core.errors import ParameterError
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import CORRECT, RELEASE, SETTLE
from apportion.serve.ledger.openings import sum_up
from apportion.serve.ledger.postings import AMOUNTS, SCOPES
from apportion.serve.ledger.reading import reading
from apportion.serve.ledger.schema import accounts, entries, rollups
from apportion.serve.ledger.store import Store
from apportion.serve.ledger.verify import replayed
from apportion.serve.ledger.windows import US

LEAST_US: Final = 7 * 86_400 * US
"""How old an entry must be at least: until then a worker's journal may turn up that knows it."""

_ENDS: Final = (SETTLE, RELEASE, CORRECT)
_FOREVER: Final = tuple(scope for scope in ("all", *SCOPES) if scope != "session")
"""For whom sums since ever are kept, so that a budget made later begins with what was spent. Sessions are too many."""
_ACCOUNTS: Final = 200
_ENTRIES: Final = 2000


class Pruned(NamedTuple):
    """What was done: ``entries`` deleted, ``accounts`` given a later base."""

    entries: int
    accounts: int


class _Base(NamedTuple):
    """The book of an account as its entries make it. ``before_us`` is the base that this was counted from."""

    id: str
    before_us: int
    state: str


def prune(database: Database, before_us: int, now_us: int) -> Pruned:
    """Delete what was booked before ``before_us``. ``now_us`` is this machine's clock, Unix microseconds.

    Raises `ParameterError` for a time that is too near.
    """
    if before_us > now_us - LEAST_US:
        raise ParameterError(
            "Entries of the last seven days are kept: a journal may turn up that knows them.",
            field="before",
            fix="Name an earlier time.",
        )
    store = database.watch(lambda store: store)
    _sum_up(store, before_us)
    rebased = _rebase(store, before_us)
    return Pruned(sum(_delete(store, before_us)), rebased)


def countable(connection: sa.Connection, before_us: int) -> int:
    """How many entries there are from before, those that `prune` would keep included."""
    old = sa.select(sa.func.count()).select_from(entries).where(entries.c.at_us < before_us)
    return int(connection.execute(old).scalar_one())


def _sum_up(store: Store, before_us: int) -> None:
    """Bring the sums up to now that a budget made later begins with."""
    wanted = {(scope, resource, 0) for scope in _FOREVER for resource in AMOUNTS}
    with reading(store.engine) as c:
        wanted.update(
            (row.scope, row.resource, row.since_us)
            for row in c.execute(sa.select(rollups).where(rollups.c.until_us < before_us))
        )
    for scope, resource, since_us in sorted(wanted):
        with store.engine.begin() as c:
            store.patient(c)
            sum_up(store, c, scope, resource, since_us, before_us - 1)


def _rebase(store: Store, before_us: int) -> int:
    """Move the base of every account that has spent anything to ``before_us``; how many."""
    moved = 0
    with reading(store.engine) as c:
        found = _bases(c, before_us)
        while some := list(islice(found, _ACCOUNTS)):
            with store.engine.begin() as writing:
                moved += _write(writing, some, before_us)
    return moved


def _bases(c: sa.Connection, before_us: int) -> Iterator[_Base]:
    for _, kept in replayed(c, before_us):
        for account in kept:
            if account.base_us < before_us - 1:
                state = json.dumps(account.again.save(), separators=(",", ":"))
                yield _Base(account.id, account.base_us, state)


def _write(c: sa.Connection, bases: Iterable[_Base], before_us: int) -> int:
    """An account that was redefined meanwhile has a later base of its own, and keeps it."""
    moved = 0
    for base in bases:
        mine = (accounts.c.id == base.id, accounts.c.base_us == base.before_us)
        changed = c.execute(accounts.update().where(*mine).values(base=base.state, base_us=before_us - 1))
        moved += changed.rowcount
    return moved


def _delete(store: Store, before_us: int) -> Iterator[int]:
    """Delete reservations that ended before, some at a time, the oldest first; how many entries each time."""
    at_us = entries.c.at_us
    since_us = 0
    while since_us < before_us:
        with reading(store.engine) as c:
            old = sa.select(at_us).where(at_us >= since_us, at_us < before_us).order_by(at_us)
            last_us = c.execute(old.offset(_ENTRIES).limit(1)).scalar()
        until_us = before_us if last_us is None else int(last_us) + 1
        within = (at_us >= since_us, at_us < until_us)
        ended = sa.select(entries.c.reservation).where(*within, entries.c.kind.in_(_ENDS))
        with store.engine.begin() as c:
            store.patient(c)
            yield c.execute(entries.delete().where(entries.c.reservation.in_(ended))).rowcount
        since_us = until_us
