"""What the window of a new account has seen already: one look at the entries when its budget becomes known.

Sums are made for all subjects of a scope at once and kept. So the thousandth user of a new budget costs no scan, and
the thousandth new budget only what was written down since the one before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Insert, cast, func, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from apportion.core.budget import Budget
from apportion.serve.ledger.definitions import decode, encode, shape
from apportion.serve.ledger.postings import SPENDING, kind_of
from apportion.serve.ledger.schema import entries, known_budgets, rollup_sums, rollups
from apportion.serve.ledger.store import Store
from apportion.serve.ledger.sums import halves, whole
from apportion.serve.ledger.windows import begin_us, counts


class _Known(NamedTuple):
    since_us: int
    window_us: int


def opening(store: Store, c: Connection, budget: Budget, subject: str, now_us: int) -> int:
    """What ``subject`` has spent in the present window of a budget that it has no account of, in units."""
    if not counts(budget):
        return 0
    known = learn(store, c, budget, subject, now_us)
    if known.since_us <= begin_us(budget, now_us):
        return 0
    return max(0, _summed(c, budget, subject, known.window_us))


def seen(c: Connection, budget: Budget, subject: str, now_us: int) -> int:
    """What `opening` would find now, without writing anything down."""
    if not counts(budget):
        return 0
    since_us = begin_us(budget, now_us)
    known = _known(c, budget, kind_of(subject))
    if known is not None:
        return 0 if known.since_us <= since_us else max(0, _summed(c, budget, subject, known.window_us))
    scope, _, name = subject.partition(":")
    summed = {"scope": scope, "resource": budget.resource, "since_us": since_us}
    until = select(rollups.c.until_us).where(
        *(rollups.c[column] == value for column, value in summed.items())
    )
    until_us = c.execute(until).scalar()
    high, low = (func.sum(half) for half in halves(entries.c[budget.resource]))
    later = select(high, low).where(
        entries.c.at_us > (since_us - 1 if until_us is None else until_us),
        entries.c.kind.in_(sorted(SPENDING)),
    )
    if scope != "all":
        later = later.where(entries.c[scope] == name)
    return max(0, _summed(c, budget, subject, since_us) + whole(*c.execute(later).one()))


def _summed(c: Connection, budget: Budget, subject: str, since_us: int) -> int:
    """What the sums say that ``subject`` has spent since then, in units."""
    found = c.execute(
        select(rollup_sums.c.high, rollup_sums.c.low).where(
            rollup_sums.c.scope == kind_of(subject),
            rollup_sums.c.resource == budget.resource,
            rollup_sums.c.since_us == since_us,
            rollup_sums.c.name == subject.partition(":")[2],
        )
    ).first()
    return 0 if found is None else whole(found.high, found.low)


def _known(c: Connection, budget: Budget, scope: str) -> _Known | None:
    """Since when a budget of this shape is kept for subjects of this scope; None: nobody knows of it."""
    row = c.execute(
        select(known_budgets).where(known_budgets.c.name == budget.name, known_budgets.c.scope == scope)
    ).first()
    if row is None or shape(decode(row.definition)) != shape(budget):
        return None
    return _Known(row.since_us, row.window_us)


def learn(store: Store, c: Connection, budget: Budget, subject: str, now_us: int) -> _Known:
    """Since when a budget of this shape is kept for subjects of this scope: since now, if nobody knew of it."""
    scope = kind_of(subject)
    known = _known(c, budget, scope)
    if known is not None:
        return known
    window_us = begin_us(budget, now_us)
    sum_up(store, c, scope, budget.resource, window_us, now_us)
    said = {"definition": encode(budget), "since_us": now_us, "window_us": window_us}
    statement = _insert(c, known_budgets).values(name=budget.name, scope=scope, **said)
    c.execute(statement.on_conflict_do_update(index_elements=["name", "scope"], set_=said))
    return _Known(now_us, window_us)


def sum_up(store: Store, c: Connection, scope: str, resource: str, since_us: int, now_us: int) -> None:
    """Bring the sums of all subjects of a scope since ``since_us`` up to now."""
    at = {"scope": scope, "resource": resource, "since_us": since_us}
    here = [rollups.c[name] == value for name, value in at.items()]
    c.execute(_insert(c, rollups).values(**at, until_us=since_us - 1).on_conflict_do_nothing())
    until_us = c.execute(select(rollups.c.until_us).where(*here).with_for_update()).scalar_one()
    if until_us >= now_us:
        return
    store.patient(c)
    name = entries.c[scope] if scope != "all" else literal("")
    high, low = (cast(func.coalesce(func.sum(half), 0), BigInteger) for half in halves(entries.c[resource]))
    sums = (
        select(literal(scope), literal(resource), literal(since_us, BigInteger), name, high, low)
        .where(entries.c.at_us > until_us, entries.c.at_us <= now_us, entries.c.kind.in_(sorted(SPENDING)))
        .group_by(name)
        .having(or_(high != 0, low != 0))
    )
    statement = _insert(c, rollup_sums).from_select([column.name for column in rollup_sums.columns], sums)
    c.execute(
        statement.on_conflict_do_update(
            index_elements=["scope", "resource", "since_us", "name"],
            set_={
                "high": rollup_sums.c.high + statement.excluded.high,
                "low": rollup_sums.c.low + statement.excluded.low,
            },
        )
    )
    c.execute(rollups.update().where(*here).values(until_us=now_us))


def _insert(c: Connection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    made: Insert = postgresql.insert(table) if c.dialect.name == "postgresql" else sqlite.insert(table)
    return made
