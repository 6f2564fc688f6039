"""Do the books agree with the record? Every account is kept again from the entries, by core's own rules.

Reads the entries once for each kind of subject, grouped and sorted by the database; here only the accounts of one
subject are in memory at a time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, String, exists, func, literal, select

from apportion.core.budget import Account
from apportion.core.errors import ApportionError
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import CORRECT, KINDS, PRESUME, RELEASE, RESERVE, SETTLE
from apportion.serve.ledger.postings import AMOUNTS, SCOPES, SPENDING, token
from apportion.serve.ledger.schema import accounts, entries, holders, leases
from apportion.serve.ledger.sums import halves, whole
from apportion.serve.ledger.windows import US

_MOST: Final = 100
"""Findings of one sort that are told; the rest is counted."""
_ROWS: Final = 5000
_RESOURCES: Final = sorted(AMOUNTS)
_TWICE: Final = ((SETTLE, RELEASE), (SETTLE, PRESUME), (RELEASE, PRESUME))


class Kept(NamedTuple):
    """An account as it is saved, and as the entries make it."""

    id: str
    saved: Account
    again: Account
    base_us: int
    at_us: int
    """When the later of the two has last changed."""
    resource: str


def verify(c: Connection, now_us: int) -> list[str]:
    """What does not agree, a sentence each. ``c`` must see one state of the database throughout."""
    findings: list[str] = []
    for found in (_ends(c), _leases(c), _spendings(c, now_us)):
        findings += found
    return findings


# entries


def _ends(c: Connection) -> Iterator[str]:
    """Each reservation begins once and ends at most once."""
    other = entries.alias("other")
    same = other.c.reservation == entries.c.reservation
    begun = exists().where(same, other.c.kind == RESERVE)
    yield from _listed(
        c,
        select(entries.c.reservation, entries.c.kind).where(entries.c.kind != RESERVE, ~begun),
        lambda row: f"Reservation {row.reservation} has a {KINDS[row.kind]} but no reserve.",
    )
    for one, two in _TWICE:
        again = exists().where(same, other.c.kind == two)
        yield from _listed(
            c,
            select(entries.c.reservation).where(entries.c.kind == one, again),
            lambda row, what=f"{KINDS[one]} and {KINDS[two]}": (
                f"Reservation {row.reservation} has both {what}."
            ),
        )
    presumed = exists().where(same, other.c.kind == PRESUME)
    yield from _listed(
        c,
        select(entries.c.reservation).where(entries.c.kind == CORRECT, ~presumed),
        lambda row: f"Reservation {row.reservation} is corrected but was not presumed.",
    )
    ended = exists().where(same, other.c.kind.in_((SETTLE, RELEASE, PRESUME)))
    held = exists().where(holders.c.holder == entries.c.holder, holders.c.dead_us.is_(None))
    yield from _listed(
        c,
        select(entries.c.reservation, entries.c.holder).where(entries.c.kind == RESERVE, ~ended, ~held),
        lambda row: f"Reservation {row.reservation} is open, but worker {row.holder} is gone.",
    )


# leases


def _leases(c: Connection) -> Iterator[str]:
    """What is lent is what the accounts have lent."""
    there = exists().where(accounts.c.id == leases.c.account)
    held = exists().where(holders.c.holder == leases.c.holder)
    yield from _listed(
        c,
        select(leases.c.account, leases.c.holder).where(~there),
        lambda row: f"Worker {row.holder} has a lease of {row.account!r}, which does not exist.",
    )
    yield from _listed(
        c,
        select(leases.c.account, leases.c.holder).where(~held),
        lambda row: f"Account {row.account!r} is lent to {row.holder}, which does not exist.",
    )
    sums = [
        func.sum(half).label(name)
        for column in (leases.c.free, leases.c.reserved)
        for half, name in zip(halves(column), (f"{column.name}_high", f"{column.name}_low"), strict=True)
    ]
    lent = select(leases.c.account, *sums).group_by(leases.c.account).subquery()
    joined = select(accounts.c.id, accounts.c.definition, accounts.c.state, *(lent.c[s.name] for s in sums))
    found = _streamed(c, joined.select_from(accounts.outerjoin(lent, lent.c.account == accounts.c.id)))
    yield from _first(_unequal_leases(found))


def _unequal_leases(rows: Iterator[Row[Any]]) -> Iterator[str]:
    for row in rows:
        try:
            account = Account.load(decode(row.definition), json.loads(row.state))
        except (ApportionError, ValueError, TypeError) as error:
            yield f"Account {row.id!r} cannot be read: {error}"
            continue
        free, reserved = whole(row.free_high, row.free_low), whole(row.reserved_high, row.reserved_low)
        if account.lent_units != free:
            yield f"Account {row.id!r} has lent {account.lent_units} units, the leases have {free} free."
        if account.reserved_units != reserved:
            yield f"Account {row.id!r} holds {account.reserved_units} units, the leases have {reserved} reserved."


# spendings


def _spendings(c: Connection, now_us: int) -> Iterator[str]:
    """What each account has spent, in all and in its window, is what the entries were that it was charged with."""
    yield from _first(_unequal_spendings(c, now_us))


def _unequal_spendings(c: Connection, now_us: int) -> Iterator[str]:
    seen: set[str] = set()
    for subject, kept in replayed(c):
        seen.add(subject)
        yield from _compare(kept, now_us)
    everybody = _streamed(c, select(accounts.c.subject).distinct().order_by(accounts.c.subject))
    for subject in [row.subject for row in everybody if row.subject not in seen]:
        yield from _compare(_accounts(c, subject).values(), now_us)


def replayed(c: Connection, until_us: int | None = None) -> Iterator[tuple[str, list[Kept]]]:
    """Each subject that has spent anything before ``until_us``, with its accounts: as they are saved, and as the
    entries before ``until_us`` make them.
    """
    for scope in ("all", *SCOPES):
        name = literal("", String) if scope == "all" else entries.c[scope]
        sums = [
            func.sum(half).label(f"{resource}_{part}")
            for resource in _RESOURCES
            for part, half in zip(("high", "low"), halves(entries.c[resource]), strict=True)
        ]
        grouped = (
            select(name.label("name"), entries.c.at_us, entries.c.charged, *sums)
            .where(entries.c.kind.in_(sorted(SPENDING)), entries.c.charged != "")
            .where(*(() if until_us is None else (entries.c.at_us < until_us,)))
            .group_by(name, entries.c.at_us, entries.c.charged)
            .order_by(name, entries.c.at_us)
        )
        for found, rows in groupby(_streamed(c, grouped), key=lambda row: str(row.name)):
            subject = f"{scope}:{found}" if scope != "all" else scope
            if subject.endswith(":"):
                continue
            kept = _accounts(c, subject)
            for at_us, together in groupby(rows, key=lambda row: int(row.at_us)):
                _charge(kept, at_us, together)
            yield subject, list(kept.values())


def _accounts(c: Connection, subject: str) -> dict[str, Kept]:
    """The accounts of a subject by the name that entries call their budgets."""
    kept = {}
    for row in c.execute(select(accounts).where(accounts.c.subject == subject)):
        try:
            budget = decode(row.definition)
            saved, again = (Account.load(budget, json.loads(state)) for state in (row.state, row.base))
        except (ApportionError, ValueError, TypeError):
            continue  # told with the leases
        kept[token(row.budget)] = Kept(row.id, saved, again, row.base_us, row.at_us, budget.resource)
    return kept


def _charge(kept: dict[str, Kept], at_us: int, rows: Iterator[Row[Any]]) -> None:
    """Charge what was written down together, as the bank did: at once."""
    spent: dict[str, int] = defaultdict(int)
    for row in rows:
        for name in row.charged.strip(",").split(","):
            if name in kept and at_us > kept[name].base_us:
                resource = kept[name].resource
                spent[name] += whole(getattr(row, f"{resource}_high"), getattr(row, f"{resource}_low"))
    for name, units in spent.items():
        again = kept[name].again
        again.move(spent=max(units, -again.spent_units), now=at_us / US)
        kept[name] = kept[name]._replace(at_us=max(kept[name].at_us, at_us))


def _compare(kept: Any, now_us: int) -> Iterator[str]:
    for account in kept:
        now = max(now_us, account.at_us) / US
        for what, saved, again in (
            ("has spent", account.saved.spent_units, account.again.spent_units),
            (
                "has spent in its window",
                account.saved.window_spent_units(now),
                account.again.window_spent_units(now),
            ),
        ):
            if saved != again:
                yield f"Account {account.id!r} {what} {saved} units, its entries {again}."


# telling


def _streamed(c: Connection, statement: Select[Any]) -> Iterator[Row[Any]]:
    return iter(c.execute(statement, execution_options={"yield_per": _ROWS}))


def _listed(c: Connection, statement: Select[Any], tell: Any) -> Iterator[str]:
    yield from _first(tell(row) for row in _streamed(c, statement))


def _first(findings: Iterator[str]) -> Iterator[str]:
    more = 0
    for number, finding in enumerate(findings):
        if number < _MOST:
            yield finding
        else:
            more += 1
    if more:
        yield f"and {more} more like that."
