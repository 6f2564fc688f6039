"""The accounts that one transaction has locked: read, changed by core's own rules, and written back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select, update

from apportion.core.budget import Account, Budget
from apportion.serve.ledger.definitions import decode, encode, shape
from apportion.serve.ledger.openings import learn, opening
from apportion.serve.ledger.postings import Postings, subject_of, token
from apportion.serve.ledger.schema import accounts, entries, leases
from apportion.serve.ledger.store import AccountRow, Store
from apportion.serve.ledger.windows import US, counts

_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


class Book:
    """One account, and what one holder has of it."""

    __slots__ = ("account", "free", "held", "holders", "recall_us", "reserved", "row")

    def __init__(self, row: AccountRow) -> None:
        self.row = row
        self.account = Account.load(decode(row.definition), json.loads(row.state))
        self.held = row.free is not None
        """Whether there is a row of a lease."""
        self.free = row.free or 0
        self.reserved = row.reserved or 0
        self.recall_us = row.recall_us
        self.holders = row.holders

    def become(self, free: int, reserved: int, spent: int, now: float) -> None:
        """The holder now has ``free`` and ``reserved`` of it, and ``spent`` was spent."""
        free_more, reserved_more = free - self.free, reserved - self.reserved
        if free_more or reserved_more or spent:
            self.account.move(lent=free_more, reserved=reserved_more, spent=spent, now=now)
            self.free, self.reserved = free, reserved

    def charge(self, spent: int, now: float) -> None:
        """Something was spent that the holder had promised, or had at least been lent."""
        reserved = min(self.reserved, max(0, spent))
        free = min(self.free, max(0, spent - reserved))
        self.become(self.free - free, self.reserved - reserved, spent, now)

    @property
    def state(self) -> str:
        return _dumps(self.account.save())


class Books:
    """All accounts of one transaction, as they concern one holder. ``now_us`` is the record's time in it."""

    def __init__(self, store: Store, c: Connection, holder: str, clock_us: int) -> None:
        self._store = store
        self._c = c
        self._holder = holder
        self._clock_us = clock_us
        self._by_id: dict[str, Book] = {}
        self.now_us = 0
        self.now = 0.0

    def __getitem__(self, id: str) -> Book:
        return self._by_id[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def charged(self, charged: str, at_us: int) -> set[str]:
        """Those of these accounts that were charged with an entry of ``at_us``, whose column this is."""
        return {
            id
            for id, book in self._by_id.items()
            if f",{token(book.row.budget)}," in charged and book.row.opened_us < at_us
        }

    def lock(self, ids: Iterable[str], new: Mapping[str, Budget], since_us: int = 0) -> None:
        """Lock accounts, opening those of ``new`` that do not exist. Time is read when all are locked; it is later
        than anything that was written in them, and than ``since_us``.
        """
        wanted = sorted({*ids, *new})
        rows = self._store.accounts(self._c, self._holder, wanted) if wanted else []
        if len(rows) < len(wanted) and new:
            there = {row.id for row in rows}
            missing = {id: budget for id, budget in sorted(new.items()) if id not in there}
            if missing:
                self._open(missing)
                rows = self._store.accounts(self._c, self._holder, wanted)
        self._by_id = {row.id: Book(row) for row in rows}
        now_us = self._store.now_us(self._c, self._clock_us)
        self.now_us = max(now_us, 1 + max((row.at_us for row in rows), default=0), 1 + since_us)
        self.now = self.now_us / US

    def _open(self, missing: Mapping[str, Budget]) -> None:
        last_us = self._c.execute(select(func.max(entries.c.at_us))).scalar() or 0
        now_us = max(self._store.now_us(self._c, self._clock_us), last_us + 1)
        rows = []
        for id, budget in missing.items():
            subject = subject_of(id, budget.name)
            spent = opening(self._store, self._c, budget, subject, now_us)
            rows.append(
                {"id": id, "budget": budget.name, "subject": subject, **_opened(budget, spent, now_us)}
            )
        self._store.insert_accounts(self._c, rows)

    def define(self, id: str, budget: Budget) -> None:
        """An account goes over to another definition of its budget."""
        book = self._by_id[id]
        account = book.account
        if budget.resource != account.resource:
            self._begin_anew(book, budget)
            return
        reshaped = shape(budget) != shape(account.budget)
        account.change(budget, self.now)
        if reshaped and counts(budget):
            learn(self._store, self._c, budget, book.row.subject, self.now_us)
        values: dict[str, Any] = {"definition": encode(budget), "defined_us": self.now_us}
        based = {"base_us": self.now_us - 1, "base": book.state}
        self._c.execute(update(accounts).where(accounts.c.id == id).values(values | based))
        book.row = book.row._replace(**values)

    def _begin_anew(self, book: Book, budget: Budget) -> None:
        """A budget of this name is now one of another resource: nothing of the old book means anything."""
        row = book.row
        spent = opening(self._store, self._c, budget, row.subject, self.now_us)
        values = _opened(budget, spent, self.now_us - 1)
        self._c.execute(update(accounts).where(accounts.c.id == row.id).values(values))
        self._c.execute(delete(leases).where(leases.c.account == row.id))
        fresh = {
            name: values[name]
            for name in ("definition", "defined_us", "state", "at_us", "opened_us", "recall_us")
        }
        self._by_id[row.id] = Book(row._replace(free=None, reserved=None, holders=0, **fresh))

    def postings(self) -> Postings:
        """What entries charge to these accounts."""
        return Postings(
            (id, book.row.budget, book.row.subject, book.account.resource) for id, book in self._by_id.items()
        )

    def save(self) -> None:
        """Write back what has changed."""
        changed: list[tuple[str, int, str]] = []
        lent: list[tuple[str, int, int]] = []
        over: list[str] = []
        for id, book in self._by_id.items():
            row = book.row
            state = book.state
            if state != row.state or book.recall_us != row.recall_us:
                changed.append((state, book.recall_us, id))
            if book.free or book.reserved:
                if not book.held or (book.free, book.reserved) != (row.free, row.reserved):
                    lent.append((id, book.free, book.reserved))
            elif book.held:
                over.append(id)
        if changed:
            self._store.save(self._c, self.now_us, changed)
        if lent:
            self._store.lend(self._c, self._holder, lent)
        if over:
            self._store.unlend(self._c, self._holder, over)


def opened(budget: Budget, spent: int, now: float) -> Account:
    """An account that is opened at ``now`` (Unix seconds), after ``spent`` units in its window."""
    account = Account(budget)
    if spent > budget.unit.to_units(budget.amount) and budget.turns:
        # More had been spent before anybody limited it: used up until the window ends, and no longer.
        account = Account(replace(budget, amount=budget.unit.from_units(spent)))
        account.move(spent=spent, now=now)
        account.change(budget, now)
    elif spent:
        account.move(spent=spent, now=now)
    return account


def _opened(budget: Budget, spent: int, now_us: int) -> dict[str, Any]:
    """The columns of an account that is opened now, after ``spent`` in its window."""
    state = _dumps(opened(budget, spent, now_us / US).save())
    return {
        "definition": encode(budget),
        "defined_us": now_us,
        "state": state,
        "at_us": now_us,
        "opened_us": now_us,
        "base_us": now_us,
        "base": state,
        "recall_us": 0,
    }
