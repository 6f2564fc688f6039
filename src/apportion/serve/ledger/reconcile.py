"""What is written down when a worker has died, or comes back after it was given up: each entry once, whoever tells
it, and each reservation ends once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, exists, select

from apportion.core.budget import Budget
from apportion.serve.ledger.books import Books
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import CORRECT, PRESUME, RELEASE, RESERVE, SETTLE, Entry
from apportion.serve.ledger.postings import kind_of, subjects
from apportion.serve.ledger.schema import accounts, entries, known_budgets, leases
from apportion.serve.ledger.store import COLUMNS, HolderRow, Store

_AT_ONCE: Final = 500
_ENDS: Final = frozenset((SETTLE, RELEASE, PRESUME))
_AMOUNTS: Final = (
    "tokens",
    "usd",
    "server_seconds",
    "joules",
    "gco2",
    "requests",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "duration_us",
)
_UNKNOWN: Final = frozenset(("usd", "joules", "gco2"))
"""Amounts that may be unknown."""


class New(NamedTuple):
    """An entry that is not in the record yet. A correction comes with the presumption that it corrects."""

    entry: Entry
    charged: str = ""
    presumed_us: int = 0


def news(c: Connection, told: Sequence[Entry]) -> list[New]:
    """What of ``told`` is to be written down, in its order.

    What the record has is left out. The settlement of a reservation that was presumed becomes the correction of
    that; one that has ended otherwise does not end again.
    """
    kinds: dict[str, set[int]] = {}
    presumed: dict[str, New] = {}
    for reservations in _chunks(sorted({entry.reservation for entry in told})):
        found = c.execute(select(entries).where(entries.c.reservation.in_(reservations)))
        for row in found.mappings():
            kinds.setdefault(row["reservation"], set()).add(row["kind"])
            if row["kind"] == PRESUME:
                presumed[row["reservation"]] = New(_entry(row), row["charged"], row["at_us"])
    made: list[New] = []
    for entry in told:
        had = kinds.setdefault(entry.reservation, set())
        if entry.kind in had:
            continue
        new = New(entry)
        if entry.kind in _ENDS and had & _ENDS:
            if entry.kind == PRESUME or PRESUME not in had or CORRECT in had:
                continue
            before = presumed[entry.reservation]
            new = New(_correction(before.entry, entry), before.charged, before.presumed_us)
        elif entry.kind == PRESUME:
            presumed[entry.reservation] = new
        had.add(new.entry.kind)
        made.append(new)
    return made


def presume(reserved: Entry) -> Entry:
    """That a reservation cost all that was reserved, because nobody can tell."""
    return msgspec.structs.replace(reserved, kind=PRESUME, status="crashed", mark="presumed")


def open_reservations(c: Connection, holder: str, row: HolderRow) -> list[Entry]:
    """What a holder has reserved and neither settled nor released, as far as the record knows."""
    if row.oldest_us is None:
        return []
    later = entries.alias("later")
    ended = exists().where(later.c.reservation == entries.c.reservation, later.c.kind.in_(sorted(_ENDS)))
    found = c.execute(
        select(entries)
        .where(
            entries.c.at_us >= row.oldest_us, entries.c.holder == holder, entries.c.kind == RESERVE, ~ended
        )
        .order_by(entries.c.at_us, entries.c.reservation)
    )
    return [_entry(row) for row in found.mappings()]


def lock_all(books: Books, c: Connection, holder: str, new: Sequence[New], opened: dict[str, Budget]) -> None:
    """Lock the accounts that ``new`` falls under, those that ``holder`` has leases of, and ``opened``."""
    names = {subject for each in new for subject in subjects(each.entry)}
    ids = set(c.execute(select(leases.c.account).where(leases.c.holder == holder)).scalars())
    budgets = dict(opened)
    for some in _chunks(sorted(names)):
        ids.update(c.execute(select(accounts.c.id).where(accounts.c.subject.in_(some))).scalars())
    if names:
        # Who spends something under a known budget must have an account of it: those who have none are taken
        # to have spent nothing since it became known.
        known = [(row.scope, decode(row.definition)) for row in c.execute(select(known_budgets))]
        for subject in names:
            for scope, budget in known:
                if scope == kind_of(subject) and (scope == "all" or budget.scope in (scope, subject)):
                    budgets.setdefault(f"{budget.name}@{subject}", budget)
    books.lock(ids, budgets)


def write(store: Store, c: Connection, books: Books, holder: str, new: Sequence[New]) -> dict[str, int]:
    """Write entries down; what that charges to each account, in units. Not yet charged."""
    postings = books.postings()
    rows: list[tuple[Any, ...]] = []
    for entry, charged, presumed_us in new:
        only = books.charged(charged, presumed_us) if entry.kind == CORRECT and presumed_us else None
        rows.append((*msgspec.structs.astuple(entry), books.now_us, holder, postings.charge(entry, only)))
    if rows:
        store.insert_entries(c, rows)
    return postings.spent


def _correction(presumed: Entry, told: Entry) -> Entry:
    """The difference between what was presumed and what ``told`` says, as an entry."""
    differences: dict[str, int | None] = {}
    for name in _AMOUNTS:
        before, after = getattr(presumed, name), getattr(told, name)
        unknown = name in _UNKNOWN and before is None and after is None
        differences[name] = None if unknown else (after or 0) - (before or 0)
    return msgspec.structs.replace(told, kind=CORRECT, **differences)


def _entry(row: Any) -> Entry:
    return Entry(*(row[name] for name in COLUMNS[:-3]))


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _AT_ONCE):
        yield names[first : first + _AT_ONCE]
