"""What the database keeps for somebody else who lends: bounds of what each holder has, and which accounts that
somebody must look at again.

A *line* is the most that a holder may have of an account. It is drawn here, durably, before more is lent elsewhere, in
steps so wide that this is rare. When whoever lends loses its memory, what is lent is taken to be all lines together,
until each holder has said what it really has. So nothing is lent twice, at no moment.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Insert, and_, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from apportion.core.budget import Account
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import PARALLEL, RESOURCES, BankError
from apportion.serve.ledger.line_tables import lines, stale
from apportion.serve.ledger.people_tables import settings
from apportion.serve.ledger.schema import accounts, holders
from apportion.serve.ledger.shared import Line, Recorded
from apportion.serve.ledger.store import AccountRow, HolderRow, Store
from apportion.serve.ledger.windows import US, over_us

if TYPE_CHECKING:
    from apportion.serve.ledger.database import Database

_EPOCH: Final = "redis"
_NAMESPACE: Final = "redis_namespace"
_EVERYTHING: Final = ""
"""In place of an account: a line that every holder has to whom somebody else lends, of nothing."""
_AT_ONCE: Final = 500


class Snapshot(NamedTuple):
    """Accounts as of one moment. ``counted``: the number of the last batch of each living holder that is in them."""

    counted: Mapping[str, int]
    accounts: Mapping[str, Recorded]


class Ride(NamedTuple):
    """What is to be done in the transaction of a holder's batch: lines to draw and lines to strike, those among them
    that Redis must learn about; and whether to ``ask`` for the epoch in force.
    """

    holder: str
    number: int
    draw: Mapping[str, int]
    strike: Sequence[str]
    doubtful: Sequence[str]
    ask: bool


def entering(holder: str) -> Ride:
    """What goes along when a holder is registered that is going to be lent to elsewhere: nobody may see it without
    its line of nothing, and take it for one that the database lends to.
    """
    return Ride(holder, 1, {_EVERYTHING: 0}, (), (), ask=False)


class Heard(threading.local):
    """What the last transaction of this thread has done. ``defined``: how the accounts were defined when it came to
    them. ``charged``: units spent by account. ``repeated``: the batch had been applied before, and what it charged
    then is not known. ``epoch``: the one in force, None unless it was asked for.
    """

    def __init__(self) -> None:
        self.ride: Ride | None = None
        self.holder = ""
        self.live = False
        self.repeated = False
        self.before: dict[str, str] = {}
        self.defined: dict[str, str] = {}
        self.charged: dict[str, int] = {}
        self.epoch: str | None = None


class ListeningStore:
    """A store that carries a `Ride` along in the transaction of a holder's batch, hears what that charges, and
    remembers as stale what is charged in any other transaction.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard = Heard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def along(self, ride: Ride) -> Iterator[Heard]:
        """Carry ``ride`` along in what this thread does in the meantime."""
        heard = self._heard
        heard.ride, heard.charged, heard.repeated, heard.epoch = ride, {}, False, None
        try:
            yield heard
        finally:
            heard.ride = None

    def holder(self, c: Connection, holder: str) -> HolderRow | None:
        heard = self._heard
        row = self._store.holder(c, holder)
        ride = heard.ride
        heard.holder, heard.before, heard.defined, heard.live = holder, {}, {}, False
        if ride is not None and ride.holder == holder and row is not None and row.dead_us is None:
            heard.live, heard.charged, heard.repeated = True, {}, row.batch >= ride.number
            heard.epoch = _along(c, ride)
        return row

    def accounts(self, c: Connection, holder: str, ids: Sequence[str]) -> list[AccountRow]:
        rows = self._store.accounts(c, holder, ids)
        self._heard.before = {row.id: row.state for row in rows}
        self._heard.defined = {row.id: row.definition for row in rows}
        return rows

    def save(self, c: Connection, now_us: int, rows: Sequence[tuple[str, int, str]]) -> None:
        self._store.save(c, now_us, rows)
        heard = self._heard
        charged = {id: _spent(state) - _spent(heard.before[id]) for state, _, id in rows}
        if heard.live:
            heard.charged = charged
            return
        for id, units in charged.items():
            mine = (lines.c.account == id, lines.c.holder == heard.holder)
            c.execute(update(lines).where(*mine).values(presumed=lines.c.presumed + units))
        _mark(c, sorted(charged))


def _spent(state: str) -> int:
    return int(json.loads(state)["spent_units"])


def _along(c: Connection, ride: Ride) -> str | None:
    """Draw and strike lines; the epoch in force. While lines are drawn no other epoch can begin: what it would take
    as lent would not have them.
    """
    found: str | None = None
    if ride.draw or ride.ask:
        epoch = select(settings.c.value).where(settings.c.name == _EPOCH)
        found = c.execute(epoch.with_for_update(read=True) if ride.draw else epoch).scalar() or ""
    if ride.draw:
        rows = [
            {"account": id, "holder": ride.holder, "units": units, "presumed": 0, "dead": False}
            for id, units in sorted(ride.draw.items())
        ]
        drawn = _insert(c, lines)
        on = drawn.on_conflict_do_update(
            index_elements=["account", "holder"], set_={"units": drawn.excluded.units}
        )
        c.execute(on, rows)
    if ride.strike:
        c.execute(delete(lines).where(lines.c.holder == ride.holder, lines.c.account.in_(ride.strike)))
        _mark(c, ride.doubtful)
    return found


def _mark(c: Connection, ids: Sequence[str]) -> None:
    for some in _chunks(sorted({*ids} - {_EVERYTHING})):
        marked = _insert(c, stale)
        on = marked.on_conflict_do_update(
            index_elements=["account"], set_={"version": marked.excluded.version}
        )
        c.execute(on, [{"account": id, "version": secrets.randbits(62)} for id in some])


def _insert(c: Connection, table: Any) -> Any:
    made: Insert = postgresql.insert(table) if c.dialect.name == "postgresql" else sqlite.insert(table)
    return made


def lent_elsewhere(c: Connection) -> bool:
    """Whether somebody else lends to workers that are alive: then the database must not."""
    c.execute(select(settings.c.value).where(settings.c.name == _EPOCH).with_for_update())
    alive = lines.join(holders, holders.c.holder == lines.c.holder)
    there = select(lines.c.holder).select_from(alive)
    return c.execute(there.where(holders.c.dead_us.is_(None)).limit(1)).first() is not None


class Lines:
    """The database's side of lending elsewhere. Every call is a transaction and raises `BankError` when it fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with self._writing() as c:
            _settle(c, _EPOCH, "")  # there before anybody looks at it, so that it can be locked
            _settle(c, _NAMESPACE, secrets.token_hex(6))
            self.namespace = _setting(c, _NAMESPACE)
            """A name for this database that no other has."""

    # who lends: one memory at a time

    def epoch(self) -> str:
        """The epoch in force; "" before the first."""
        with self._reading() as c:
            return _setting(c, _EPOCH)

    def rebuild(self, begin: Callable[[str], str]) -> str:
        """Have ``begin`` make a new epoch, given the one in force, while nobody else does and no line is drawn. It may
        find that there is nothing to be done and return the same.
        """
        with self._writing() as c:
            mine = settings.c.name == _EPOCH
            before = c.execute(select(settings.c.value).where(mine).with_for_update()).scalar_one() or ""
            epoch = begin(before)
            if epoch != before:
                c.execute(update(settings).where(mine).values(value=epoch))
            return epoch

    # what was spent, and by whom

    def snapshot(self, ids: Sequence[str]) -> Snapshot:
        """Those of the accounts that exist, with the lines of everybody who is alive or remembered."""
        books: dict[str, Account] = {}
        drawn: dict[str, dict[str, Line]] = {}
        with self._reading() as c:
            for some in _chunks(ids):
                wanted = select(accounts.c.id, accounts.c.definition, accounts.c.state)
                for id, definition, state in c.execute(wanted.where(accounts.c.id.in_(some))):
                    books[id] = Account.load(decode(definition), json.loads(state))
                lined = select(lines, holders.c.dead_us).join(holders, holders.c.holder == lines.c.holder)
                for row in c.execute(lined.where(lines.c.account.in_(some))):
                    line = Line(row.units, row.dead_us is not None, max(0, row.presumed))
                    drawn.setdefault(row.account, {})[row.holder] = line
            alive = select(holders.c.holder, holders.c.batch).where(holders.c.dead_us.is_(None))
            counted = {row.holder: row.batch for row in c.execute(alive)}
        return Snapshot(counted, {id: Recorded(book, drawn.get(id, {})) for id, book in books.items()})

    def counted(self, holder: str) -> int | None:
        """The number of the last batch that the database has of a holder; None of one that is not alive."""
        with self._reading() as c:
            mine = (holders.c.holder == holder, holders.c.dead_us.is_(None))
            return c.execute(select(holders.c.batch).where(*mine)).scalar()

    def lined(self, ids: Sequence[str]) -> set[str]:
        """Those of the accounts that anybody has a line of."""
        with self._reading() as c:
            found: set[str] = set()
            for some in _chunks(ids):
                found.update(c.execute(select(lines.c.account).where(lines.c.account.in_(some))).scalars())
            return found

    # the life of holders

    def enter(self, holder: str) -> None:
        """A holder is going to be lent to elsewhere. Raises `BankError` while others are lent to by the database:
        neither would know what the other lends.
        """
        elsewhere = exists().where(lines.c.account == _EVERYTHING, lines.c.holder == holders.c.holder)
        here = select(holders.c.holder).where(
            holders.c.dead_us.is_(None), holders.c.holder != holder, ~elsewhere
        )
        with self._writing() as c:
            # Not while the database registers one of its own; others who enter are in nobody's way.
            c.execute(select(settings.c.value).where(settings.c.name == _EPOCH).with_for_update(read=True))
            if c.execute(here.limit(1)).first() is not None:
                raise BankError(
                    "the database itself still lends to other workers: end them before Redis lends"
                )
            row = {"account": _EVERYTHING, "holder": holder, "units": 0, "presumed": 0, "dead": False}
            c.execute(_insert(c, lines).values(row).on_conflict_do_nothing())

    def leave(self, holder: str) -> None:
        """Let go of all lines of a holder that is closed."""
        with self._writing() as c:
            _let_go(c, lines.c.holder == holder)

    def bury(self) -> None:
        """Notice who has died since."""
        dead = select(holders.c.holder).where(holders.c.dead_us.is_not(None))
        fresh = and_(lines.c.holder.in_(dead), ~lines.c.dead)
        with self._reading() as c:
            if c.execute(select(lines.c.account).where(fresh).limit(1)).first() is None:
                return
        with self._writing() as c:
            died = update(lines).where(fresh).values(dead=True).returning(lines.c.account)
            _mark(c, list(c.execute(died).scalars()))

    def inherit(self, now_us: int) -> None:
        """Let go of lines of the dead that nobody can be spending on any more."""
        with self._reading() as c:
            over = self._over(c, now_us)
        if over:
            with self._writing() as c:
                for id, holder in over:
                    _let_go(c, and_(lines.c.account == id, lines.c.holder == holder))

    def orphans(self) -> None:
        """Let go of lines of holders that are gone, where whoever closed them did not come to it."""
        known = select(holders.c.holder)
        with self._reading() as c:
            gone = list(
                c.execute(select(lines.c.holder).distinct().where(~lines.c.holder.in_(known))).scalars()
            )
        for holder in gone:
            self.leave(holder)

    def _over(self, c: Connection, now_us: int) -> list[tuple[str, str]]:
        """Lines of dead holders that have served their time, some at once."""
        lease_s, forget_us = self._database.lease_s, math.ceil(self._database.forget_s * US)
        dead = (
            select(lines.c.account, lines.c.holder, holders.c.dead_us, accounts.c.definition)
            .join(holders, holders.c.holder == lines.c.holder)
            .outerjoin(accounts, accounts.c.id == lines.c.account)
            .where(holders.c.dead_us.is_not(None), lines.c.dead)
        )
        found = []
        for id, holder, dead_us, definition in c.execute(dead):
            budget = None if definition is None else decode(definition)
            until_us = dead_us if budget is None else over_us(budget, dead_us, lease_s)
            if budget is not None and budget.resource == RESOURCES[PARALLEL]:
                until_us = dead_us
            if now_us >= min(dead_us + forget_us, dead_us + forget_us if until_us is None else until_us):
                found.append((id, holder))
                if len(found) == _AT_ONCE:
                    break
        return found

    # what Redis must learn

    def stale(self, most: int) -> list[tuple[str, int]]:
        """Some accounts that were changed by something else than the batches of living holders, each with a number
        that is another after each change. In no order, so that two who ask at once seldom get the same.
        """
        with self._reading() as c:
            found = select(stale.c.account, stale.c.version).order_by(func.random()).limit(most)
            return [(row.account, row.version) for row in c.execute(found)]

    def refreshed(self, told: Sequence[tuple[str, int]]) -> None:
        """Redis has learned about these, as they were when `stale` told of them."""
        with self._writing() as c:
            for id, version in sorted(told):  # as others lock them
                c.execute(delete(stale).where(stale.c.account == id, stale.c.version == version))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _told(), self._database.engine.begin() as c:
            yield c

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _told(), self._database.reading.connect() as c:
            if c.dialect.name == "postgresql":
                c.execution_options(isolation_level="REPEATABLE READ")
            with c.begin():
                yield c


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise BankError(f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}") from None


def _let_go(c: Connection, which: ColumnElement[bool]) -> None:
    _mark(c, list(c.execute(delete(lines).where(which).returning(lines.c.account)).scalars()))


def _settle(c: Connection, name: str, value: str) -> None:
    c.execute(_insert(c, settings).values(name=name, value=value).on_conflict_do_nothing())


def _setting(c: Connection, name: str) -> str:
    found: str | None = c.execute(select(settings.c.value).where(settings.c.name == name)).scalar()
    return found or ""


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), _AT_ONCE):
        yield ids[first : first + _AT_ONCE]
