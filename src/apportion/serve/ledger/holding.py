"""Who has what of the budgets: the worker processes that the record knows, with their leases."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final, Literal, NamedTuple

import sqlalchemy as sa

from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import PRESUME, RELEASE, RESERVE, SETTLE
from apportion.serve.ledger.line_tables import lines
from apportion.serve.ledger.schema import accounts, entries, holders, leases
from apportion.serve.ledger.sums import halves, whole
from apportion.serve.ledger.windows import US

_ENDS: Final = (SETTLE, RELEASE, PRESUME)


class Lent(NamedTuple):
    """What a holder has of one resource, in its unit: promised to nobody yet, and promised to requests. Where Redis
    lends, only Redis knows that; the record knows that it is no more than ``most``.
    """

    resource: str
    leases: int = 0
    free: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    most: Decimal = Decimal(0)


class Holder(NamedTuple):
    """A worker process. Times are Unix seconds by the record's clock.

    ``state``: ``alive``; ``silent`` for longer than it may be; ``dead``, given up, and its leases kept until its
    journal is found or nothing that it may have spent counts any more.
    """

    holder: str
    machine: str
    state: Literal["alive", "silent", "dead"]
    opened_s: float
    seen_s: float
    dead_s: float | None
    open: int
    """Reservations that have not ended."""
    lent: tuple[Lent, ...]
    by_redis: bool
    """Redis lends to it, not the database."""


def known(connection: sa.Connection, now_s: float, lease_s: float) -> Iterator[Holder]:
    """All holders, the ones heard of last first. ``now_s`` is this machine's clock: PostgreSQL has its own."""
    if connection.dialect.name == "postgresql":
        now_s = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one().timestamp()
    for row in connection.execute(
        sa.select(holders).order_by(holders.c.seen_us.desc(), holders.c.holder)
    ).all():
        silent = row.seen_us / US < now_s - lease_s
        yield Holder(
            row.holder,
            row.machine,
            "dead" if row.dead_us is not None else "silent" if silent else "alive",
            row.opened_us / US,
            row.seen_us / US,
            None if row.dead_us is None else row.dead_us / US,
            _open(connection, row.holder, row.oldest_us),
            tuple(_lent(connection, row.holder)),
            connection.scalar(sa.select(sa.exists().where(lines.c.holder == row.holder))) or False,
        )


def _open(connection: sa.Connection, holder: str, oldest_us: int | None) -> int:
    if oldest_us is None:
        return 0
    later = entries.alias("later")
    ended = sa.exists().where(later.c.reservation == entries.c.reservation, later.c.kind.in_(_ENDS))
    open_ = (entries.c.at_us >= oldest_us, entries.c.holder == holder, entries.c.kind == RESERVE, ~ended)
    return connection.execute(sa.select(sa.func.count()).select_from(entries).where(*open_)).scalar_one()


def _lent(connection: sa.Connection, holder: str) -> Iterator[Lent]:
    """By resource. Accounts of one budget are one row of the database: there may be one for each end user."""
    by_resource: dict[str, Lent] = {}
    for table, columns in ((leases, ("free", "reserved")), (lines, ("units",))):
        sums = [sa.func.sum(half) for name in columns for half in halves(table.c[name])]
        found = connection.execute(
            sa.select(accounts.c.definition, sa.func.count(), *sums)
            .join_from(table, accounts, accounts.c.id == table.c.account)
            .where(table.c.holder == holder)
            .group_by(accounts.c.definition)
        )
        for definition, count, *parts in found:
            unit = decode(definition).unit
            lent = by_resource.get(unit.name) or Lent(unit.name)
            amounts = [unit.from_units(whole(*parts[place : place + 2])) for place in range(0, len(parts), 2)]
            lent = lent._replace(leases=lent.leases + count)
            if table is lines:
                lent = lent._replace(most=lent.most + amounts[0])
            else:
                lent = lent._replace(free=lent.free + amounts[0], reserved=lent.reserved + amounts[1])
            by_resource[unit.name] = lent
    yield from (by_resource[name] for name in sorted(by_resource))
