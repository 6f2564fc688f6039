"""The durable record: every entry, and what of every budget is lent to whom, in SQLite or PostgreSQL.

It is a bank on its own. Each call is one transaction; the time in it is the record's, read when all rows are locked,
so that the clocks of the callers change nothing and time never runs backwards for an account.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from sqlalchemy import Connection, Engine, insert, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from apportion.core.budget import Budget
from apportion.core.errors import AmountError, ParameterError
from apportion.serve.ledger import dying
from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.books import Books
from apportion.serve.ledger.entries import RESERVE, BankError, Batch, Entry, Move, Receipt
from apportion.serve.ledger.lending import grant, nothing, repeat
from apportion.serve.ledger.lines import lent_elsewhere
from apportion.serve.ledger.migrations import upgrade
from apportion.serve.ledger.reconcile import New, news, write
from apportion.serve.ledger.schema import holders, prices
from apportion.serve.ledger.store import READS, Store
from apportion.serve.ledger.verify import verify
from apportion.serve.ledger.windows import US

logger = logging.getLogger("apportion.ledger")

_TRIES: Final = 4
_PAUSE_S: Final = 0.005
_SWEEP_US: Final = US
_LARGEST: Final = 2**63
_SAID: Final = 100_000
"""So many definitions are remembered as said by somebody."""

_T = TypeVar("_T")


class _Open:
    """When the reservations that a holder has open were written down, as far as this object has seen them."""

    def __init__(self, unseen_us: int | None) -> None:
        self._unseen_us = unseen_us
        self._at_us: dict[str, int] = {}

    def see(self, entries: Iterable[Entry], now_us: int) -> int | None:
        """Take in what is written down now; when the oldest that is open was, None if none is. Repeating it
        changes nothing.
        """
        at_us = self._at_us
        for entry in entries:
            if entry.kind == RESERVE:
                at_us.setdefault(entry.reservation, now_us)
            else:
                at_us.pop(entry.reservation, None)
        return next(iter(at_us.values()), None) if self._unseen_us is None else self._unseen_us


class Database:
    """A `Bank` by URL: ``sqlite:///PATH``, ``postgresql://...``, or ``memory``.

    Making one brings the tables up to date. A holder that is not heard of for ``lease_s`` is taken for dead, and what
    it may have promised is kept for it for at most ``forget_s``. ``clock`` gives Unix seconds and matters for SQLite
    only. Raises `BankError` when the database does not answer, `ParameterError` for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_s: float = 30.0,
        forget_s: float = 86400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease_s = lease_s
        self.forget_s = forget_s
        self._clock = clock
        self._store = _store(url)
        self._in_memory = url == "memory"
        self._watched = False
        self._said: dict[tuple[str, str], tuple[Budget, int]] = {}
        self._open: dict[str, _Open] = {}
        self._swept_us = 0
        self.engine: Engine = self._store.engine
        """For writing: on SQLite a transaction of it keeps other writers out."""
        self.reading: Engine = self.engine.execution_options(**{READS: True})
        """The same for transactions that only read: they see one state and are in nobody's way."""
        try:
            self._transact(self._migrate)
        except BaseException:
            self.dispose()
            raise

    # the bank

    def open(self, holder: str, machine: str) -> Receipt:
        """Register a holder."""

        def work(c: Connection) -> Receipt:
            if not self._watched and lent_elsewhere(c):
                raise BankError("Redis lends to other workers: end them before the database itself lends")
            dying.leave(self._store, c, holder, self._clock_us(), [])
            now_us = self._store.now_us(c, self._clock_us())
            said = {"machine": machine, "batch": 0, "opened_us": now_us, "seen_us": now_us}
            c.execute(insert(holders).values(holder=holder, **said))
            row = self._store.holder(c, holder)
            return Receipt(now_us / US, 1 if row is None else row.alive, [])

        receipt = self._transact(work)
        self._open[holder] = _Open(None)
        return receipt

    def commit(self, batch: Batch) -> Receipt:
        """Apply a batch, durably. Raises `AmountError` for an amount that no column holds."""
        if any(not _is_storable(move.account) for move in batch.moves):
            receipt = self.commit(_mended(batch))
            named = zip(receipt.grants, batch.moves, strict=True)
            return receipt._replace(grants=[grant._replace(account=move.account) for grant, move in named])
        try:
            receipt = self._transact(lambda c: self._apply(c, batch))
        except IntegrityError:
            receipt = self._transact(lambda c: self._apply(c, batch, careful=True))
        except (DataError, OverflowError, UnicodeError):
            mended = _mended(batch)
            receipt = self._transact(lambda c: self._apply(c, mended))
        self._sweep_sometimes(int(receipt.now * US))
        return receipt

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        """Write down what a dead holder's journal knows, and close the holder."""
        recovery = self._transact(lambda c: dying.leave(self._store, c, holder, self._clock_us(), found))
        self._open.pop(holder, None)
        return recovery

    def forget(self, holder: str) -> None:
        """Presume what a holder has open, take back what it was lent."""
        self.recover(holder, [])

    def close(self, holder: str) -> None:
        """Take back what a holder was lent; it is gone."""
        self.recover(holder, [])

    def prices(self) -> dict[str, str]:
        """The pricers saved last, JSON by scope."""
        return self._read(lambda c: {row.scope: row.saved for row in c.execute(select(prices))})

    def dispose(self) -> None:
        """Close all connections; those of a database in memory with all that is in it."""
        self.engine.dispose()

    # what else is asked of the record

    def watch(self, watching: Callable[[Store], _T]) -> _T:
        """Put something in front of the store that is one itself, for somebody who lends in the database's place."""
        made = watching(self._store)
        self._store = cast(Store, made)
        self._watched = True
        return made

    def verify(self) -> list[str]:
        """Recompute every account from the entries; what does not agree: nothing, if all is right."""
        return self._read(lambda c: verify(c, self._store.now_us(c, self._clock_us())))

    def sweep(self) -> float:
        """Give up holders that are not heard of, and take back what nobody can have promised any more; the record's
        time, Unix seconds.
        """
        store = self._store

        def due(c: Connection) -> tuple[int, list[str], dict[str, list[str]]]:
            now_us = store.now_us(c, self._clock_us())
            return (
                now_us,
                dying.silent(c, now_us, self.lease_s),
                dying.over(c, now_us, self.lease_s, self.forget_s),
            )

        now_us, silent, ended = self._read(due)
        self._swept_us = now_us
        for holder in silent:
            logger.warning("worker %s is not heard of any more: what it has reserved counts as spent", holder)
            self._transact(lambda c: dying.give_up(store, c, holder, self._clock_us(), self.lease_s))  # noqa: B023
        if silent:
            ended = self._read(lambda c: dying.over(c, now_us, self.lease_s, self.forget_s))
        for holder, ids in ended.items():
            self._transact(lambda c: dying.inherit(store, c, holder, self._clock_us(), ids))  # noqa: B023
        return now_us / US

    def _sweep_sometimes(self, now_us: int) -> None:
        if abs(now_us - self._swept_us) < _SWEEP_US:
            return
        self._swept_us = now_us
        try:
            self.sweep()
        except BankError as error:  # what was asked for has been done; the next second sweeps again
            logger.warning("the ledger was not swept: %s", error)

    # batches

    def _apply(self, c: Connection, batch: Batch, *, careful: bool = False) -> Receipt:
        """Everything of a batch, in one transaction. ``careful``: some of its entries may be in the record."""
        store, holder, entries, moves = self._store, batch.holder, batch.entries, batch.moves
        row = store.holder(c, holder)
        if row is None or row.dead_us is not None:
            return dying.expired(store, c, batch, row, self._clock_us())
        if len({move.account for move in moves}) < len(moves):
            raise ValueError(f"Batch {batch.number} of holder {holder} moves an account twice.")
        if batch.number > row.batch + 1:
            raise ValueError(
                f"Batch {batch.number} of holder {holder} does not follow its batch {row.batch}."
            )
        applied = batch.number <= row.batch
        books = Books(store, c, holder, self._clock_us())
        books.lock((), {move.account: move.budget for move in moves}, row.seen_us)
        opened = self._open.setdefault(holder, _Open(row.opened_us))
        oldest_us = opened.see(entries, row.seen_us if applied else books.now_us)
        if applied:
            again = [repeat(books[move.account], move, books.now) for move in moves]
            return Receipt(books.now, row.alive, again)
        strangers = self._define(books, holder, moves)
        spent: Mapping[str, int] = {}
        if entries:
            spent = write(store, c, books, holder, news(c, entries) if careful else list(map(New, entries)))
        for move in moves:
            book = books[move.account]
            if move.account in strangers:
                book.become(book.free, book.reserved, spent.get(move.account, 0), books.now)
            else:
                book.become(move.free, move.reserved, spent.get(move.account, 0), books.now)
        grants = [
            nothing(move) if move.account in strangers else grant(c, books, holder, move) for move in moves
        ]
        books.save()
        store.seen(c, holder, batch.number, books.now_us, oldest_us)
        if batch.prices:
            _save_prices(c, batch.prices, books.now_us)
        return Receipt(books.now, row.alive, grants)

    def _define(self, books: Books, holder: str, moves: Sequence[Move]) -> set[str]:
        """Take over the definitions of budgets that the moves bring; the accounts where that cannot be.

        Of two workers with different configurations, the one that was configured last is right: what a holder has
        been saying since before an account was defined otherwise is out of date.
        """
        strangers = set()
        if len(self._said) > _SAID:
            self._said.clear()
        for move in moves:
            at = (holder, move.account)
            said = self._said.get(at)
            if said is None or (said[0] is not move.budget and said[0] != move.budget):
                said = self._said[at] = (move.budget, books.now_us)
            book = books[move.account]
            if book.account.budget == move.budget:
                continue
            if said[1] > book.row.defined_us:
                books.define(move.account, move.budget)
            elif book.account.resource != move.budget.resource:
                strangers.add(move.account)
        return strangers

    # transactions

    def _clock_us(self) -> int:
        return int(self._clock() * US)

    def _migrate(self, c: Connection) -> None:
        self._store.lock(c)
        upgrade(c)

    def _transact(self, work: Callable[[Connection], _T]) -> _T:
        """Do ``work`` in one transaction; again, where only another transaction was in its way."""
        tries = 0
        while True:
            tries += 1
            try:
                with self.engine.connect() as c:
                    try:
                        with c.begin():
                            return work(c)
                    except DBAPIError:
                        if not self._in_memory:
                            c.invalidate()
                        raise
            except (DataError, IntegrityError) as error:
                # A neighbour may have been quicker to insert the same row; the second time it is there already.
                if isinstance(error, DataError) or tries > 1:
                    raise
            except SQLAlchemyError as error:
                if tries >= _TRIES or not self._store.again(error):
                    raise _told(error) from None
            time.sleep(_PAUSE_S * tries)

    def _read(self, work: Callable[[Connection], _T]) -> _T:
        """Do ``work``, which only reads, in one state of the database, however long it takes."""
        try:
            with self.reading.connect() as c:
                if c.dialect.name == "postgresql":
                    c.execution_options(isolation_level="REPEATABLE READ")
                with c.begin():
                    return work(c)
        except SQLAlchemyError as error:
            raise _told(error) from None


def _store(url: str) -> Store:
    if url == "memory":
        from apportion.serve.ledger.sqlite import SQLite

        return SQLite(None)
    fix = "Write sqlite:///PATH, postgresql://USER:PASSWORD@HOST/DATABASE, or memory."
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise ParameterError("The ledger's URL cannot be read.", field="ledger.url", fix=fix) from None
    kind = found.get_backend_name()
    if kind == "sqlite" and found.database and found.database != ":memory:":
        from apportion.serve.ledger.sqlite import SQLite

        try:
            return SQLite(Path(found.database))
        except OSError as error:
            raise ParameterError(
                f"The ledger cannot be kept in {found.database!r}: {error.strerror}.",
                field="ledger.url",
                fix=fix,
            ) from None
    if kind in ("postgresql", "postgres"):
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise ParameterError(
                "PostgreSQL needs the package psycopg.",
                field="ledger.url",
                fix="Install it: pip install 'apportion[postgres]'.",
            ) from None
        from apportion.serve.ledger.postgres import PostgreSQL

        return PostgreSQL(found)
    raise ParameterError(f"The ledger cannot be kept in {kind!r}.", field="ledger.url", fix=fix)


def _told(error: SQLAlchemyError) -> BankError:
    """What went wrong in a line, without statements, values or addresses."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    first = str(cause).strip().partition("\n")[0]
    return BankError(f"{type(cause).__name__}: {first}")


def _save_prices(c: Connection, saved: Mapping[str, str], now_us: int) -> None:
    made = postgresql.insert(prices) if c.dialect.name == "postgresql" else sqlite.insert(prices)
    statement: Any = made.on_conflict_do_update(
        index_elements=["scope"], set_={"saved": made.excluded.saved, "at_us": made.excluded.at_us}
    )
    rows = [{"scope": scope, "saved": text, "at_us": now_us} for scope, text in sorted(saved.items())]
    c.execute(statement, rows)


def _mended(batch: Batch) -> Batch:
    """The same with text that every database takes: a client may send any name, and it must not stop the books.

    Raises `AmountError` for a number beyond 64 bits, which cannot be mended.
    """
    entries = []
    for entry in batch.entries:
        changes: dict[str, str] = {}
        for name in entry.__struct_fields__:
            value = getattr(entry, name)
            if isinstance(value, str):
                if value != (text := _storable(value)):
                    changes[name] = text
            elif value is not None and not -_LARGEST <= value < _LARGEST:
                raise AmountError(
                    f"The {name} of reservation {entry.reservation} do not fit 64 bits: {value}.", field=name
                )
        entries.append(msgspec.structs.replace(entry, **changes))
    moves = []
    for move in batch.moves:
        for name in ("free", "reserved", "want"):
            if not -_LARGEST <= getattr(move, name) < _LARGEST:
                raise AmountError(f"{name} of account {move.account} does not fit 64 bits.", field=name)
        moves.append(move._replace(account=_storable(move.account)))
    return batch._replace(entries=entries, moves=moves)


def _is_storable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or _storable(text) == text)


def _storable(text: str) -> str:
    """Without lone surrogates, which have no encoding, and without NUL, which PostgreSQL has no text for."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
