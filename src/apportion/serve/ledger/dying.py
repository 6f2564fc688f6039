"""The end of holders: told by their journal, given up, forgotten; and those that come back after that.

Until somebody knows better, what a dead holder had reserved counts as spent, and what it was lent stays lent: it may
have promised that in its last milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, select, update

from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.books import Books
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import PRESUME, RESERVE, Batch, Entry, Grant, Receipt
from apportion.serve.ledger.line_tables import lines
from apportion.serve.ledger.reconcile import lock_all, news, open_reservations, presume, write
from apportion.serve.ledger.schema import accounts, holders, leases
from apportion.serve.ledger.store import HolderRow, Store
from apportion.serve.ledger.windows import US, over_us


def leave(
    store: Store, c: Connection, holder: str, clock_us: int, found: Sequence[tuple[Entry, Entry | None]]
) -> Recovery:
    """A holder is gone, and ``found`` is all that its journal knows: its leases come back."""
    store.patient(c)
    row = store.holder(c, holder)
    told: list[Entry] = []
    for reserved, settled in found:
        told += (reserved, presume(reserved) if settled is None else settled)
    in_journal = {reserved.reservation for reserved, _ in found}
    left = [] if row is None else open_reservations(c, holder, row)
    told += [presume(entry) for entry in left if entry.reservation not in in_journal]
    new = news(c, told)
    books = Books(store, c, holder, clock_us)
    lock_all(books, c, holder, new, {})
    spent = write(store, c, books, holder, new)
    for id in books:
        books[id].become(0, 0, spent[id], books.now)
    books.save()
    c.execute(delete(holders).where(holders.c.holder == holder))
    ends = {each.entry.reservation: each.entry.kind for each in new if each.entry.kind != RESERVE}
    ended = [ends.get(reserved.reservation) for reserved, _ in found]
    known, presumed = ended.count(None), ended.count(PRESUME)
    return Recovery(len(ended) - known - presumed, presumed, known)


def expired(store: Store, c: Connection, batch: Batch, row: HolderRow | None, clock_us: int) -> Receipt:
    """A holder comes back that was given up. What it tells is written down and charged; its leases stay as they
    are until it is closed, because it may have used them since it sent this.
    """
    ended = {entry.reservation for entry in batch.entries if entry.kind != RESERVE}
    told = [*batch.entries]
    told += [presume(e) for e in batch.entries if e.kind == RESERVE and e.reservation not in ended]
    new = news(c, told)
    books = Books(store, c, batch.holder, clock_us)
    lock_all(books, c, batch.holder, new, {move.account: move.budget for move in batch.moves})
    spent = write(store, c, books, batch.holder, new)
    for id in books:
        books[id].charge(spent[id], books.now)
    books.save()
    grants = [Grant(move.account, 0, 0, 0, None) for move in batch.moves]
    return Receipt(books.now, 1 if row is None else row.alive, grants, expired=True)


def silent(c: Connection, now_us: int, lease_s: float) -> list[str]:
    """Holders that have not been heard of for too long."""
    before_us = now_us - math.ceil(lease_s * US)
    found = select(holders.c.holder).where(holders.c.dead_us.is_(None), holders.c.seen_us < before_us)
    return list(c.execute(found.order_by(holders.c.holder)).scalars())


def give_up(store: Store, c: Connection, holder: str, clock_us: int, lease_s: float) -> None:
    """Take a silent holder for dead: what it had open is presumed to have cost all that was reserved."""
    store.patient(c)
    row = store.holder(c, holder)
    if row is None or row.dead_us is not None:
        return
    if row.seen_us >= store.now_us(c, clock_us) - math.ceil(lease_s * US):
        return
    new = news(c, [presume(entry) for entry in open_reservations(c, holder, row)])
    books = Books(store, c, holder, clock_us)
    lock_all(books, c, holder, new, {})
    spent = write(store, c, books, holder, new)
    for id in books:
        book = books[id]
        if book.account.resource == "parallel":
            book.become(0, 0, 0, books.now)  # nothing is under way at a dead worker
        else:
            book.charge(spent[id], books.now)
    books.save()
    c.execute(update(holders).where(holders.c.holder == holder).values(dead_us=books.now_us, oldest_us=None))


def over(c: Connection, now_us: int, lease_s: float, forget_s: float) -> dict[str, list[str]]:
    """Leases of dead holders that mean nothing any more, because what was spent of them no longer counts: accounts
    by holder. A holder without any is over, too, unless it has lines.
    """
    lined = exists().where(lines.c.holder == holders.c.holder)
    dead = select(holders.c.holder, holders.c.dead_us, leases.c.account, accounts.c.definition).where(
        holders.c.dead_us.is_not(None), ~lined
    )
    joined = dead.select_from(
        holders.outerjoin(leases, leases.c.holder == holders.c.holder).outerjoin(
            accounts, accounts.c.id == leases.c.account
        )
    )
    found: dict[str, list[str]] = {}
    for holder, dead_us, account, definition in c.execute(joined):
        if account is None:
            found.setdefault(holder, [])
            continue
        ends_us = over_us(decode(definition), dead_us, lease_s)
        forgotten_us = dead_us + math.ceil(forget_s * US)
        if now_us >= (forgotten_us if ends_us is None else min(ends_us, forgotten_us)):
            found.setdefault(holder, []).append(account)
    return found


def inherit(store: Store, c: Connection, holder: str, clock_us: int, ids: Sequence[str]) -> None:
    """Take these leases of a dead holder back; with the last of them it is gone itself."""
    row = store.holder(c, holder)
    if row is None or row.dead_us is None:
        return
    books = Books(store, c, holder, clock_us)
    books.lock(ids, {})
    for id in books:
        books[id].become(0, 0, 0, books.now)
    books.save()
    if c.execute(select(leases.c.account).where(leases.c.holder == holder).limit(1)).first() is None:
        c.execute(delete(holders).where(holders.c.holder == holder))
