"""Budgets lent by Redis (or Valkey) to many replicas, with the database as the record behind it.

What was spent is written in the database first, with its entries; then Redis is told. Who has what is only in Redis,
and bounded by the lines that the database knows (`lines`). So everything in Redis can be lost at any moment, or fall
back to an older state, and nothing is lent twice: a new epoch begins with all lines taken for lent, and each holder
gets the rest of its own back with the first thing it says about an account.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Self

from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.definitions import encode
from apportion.serve.ledger.entries import BankError, Batch, Entry, Grant, LendingError, Move, Receipt
from apportion.serve.ledger.lending import nothing
from apportion.serve.ledger.lines import Lines, ListeningStore, Ride, Snapshot, entering
from apportion.serve.ledger.postings import SPENDING
from apportion.serve.ledger.redis_hash import Cell, Change, EpochLostError, RedisHash
from apportion.serve.ledger.shared import SharedAccount
from apportion.serve.ledger.windows import US

logger = logging.getLogger("apportion.ledger")

_PATIENCE_S: Final = 2.0
_TRIES: Final = 20
"""For so long, and at least so often, a batch tries to get in between those of others."""
_PAUSE_S: Final = (0.0005, 0.02)
"""Between two tries, at most: at first, in the end."""
_WIDE: Final = 2
"""A line is drawn so many times as wide as what is wanted, so that more can be lent before it is drawn again."""
_WIDEST: Final = 2**63 - 1
_STRIKES: Final = 256
"""Lines that are struck with one batch, at most."""
_ASK_S: Final = 1.0
"""How often the database is asked whether another Redis lends now; whenever a line is drawn in any case."""
_LOST: Final = 3
"""So many times in a row a batch may find that Redis has lost everything."""
_ASK_AGAIN_S: Final = 1.0
_SWEEP_S: Final = 1.0
_STALE: Final = 50
_ROUNDS: Final = 5
"""Accounts that are told to Redis at once, and how often in one sweep."""
_LOOK_S: Final = 10.0
_SCAN: Final = 500
"""How often somebody looks for what is over, and at how many fields of the hash."""
_IDLE_US: Final = 3600 * US
"""Accounts of which nothing is lent stay in Redis for so long."""
_TOMB_US: Final = 86400 * US
"""And holders that are gone for so long."""


class ConflictError(BankError):
    """Others changed the same accounts at the same moment, again and again."""

    def __init__(self) -> None:
        super().__init__("Redis: too many others change the same accounts")


class Presence(NamedTuple):
    """A holder in Redis: the last of its batches that the database had counted when it last changed anything there.
    ``dead_us``: since when it may not change anything any more.
    """

    counted: int
    dead_us: int | None = None

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(self, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, cell: Cell) -> Self | None:
        """What `encode` wrote; None for an empty cell."""
        return cls(*json.loads(cell.value)) if cell.value else None


class _Seat:
    """What this process remembers of a holder, its own."""

    __slots__ = (
        "batch", "behind", "charged", "counted", "empty", "first", "lines", "resumed", "said", "seen_s"
    )  # fmt: skip

    def __init__(self, counted: int, *, resumed: bool) -> None:
        self.resumed = resumed
        """Whether it may have told the database something that is not remembered here."""
        self.counted = counted
        """Its last batch in the database, by the database's count: batches that spend nothing are not counted."""
        self.batch = 0
        """Its last batch that was written down."""
        self.charged: Mapping[str, int] = {}
        """What that one has spent."""
        self.seen_s = float("-inf")
        self.lines: dict[str, int] = {}
        self.empty: dict[str, tuple[float, str]] = {}
        """Accounts with a line of which it had nothing when it spoke of them last: when and in which epoch."""
        self.said: dict[str, object] = {}
        """How the database was told that the budgets of the accounts are defined."""
        self.first: set[str] = set()
        """Accounts of which it speaks for the first time: Redis may define them otherwise than the database."""
        self.behind: dict[str, Move] = {}
        """What Redis was not told, though the database was."""


class RedisBank:
    """A `Bank` in which Redis lends. ``url`` is Redis's, ``lease_s`` is the database's unless it is given.
    ``monotonic`` measures time between two readings of the database's clock; ``sleep`` and ``rng`` are for getting
    out of each other's way.

    Raises `BankError` when the database does not answer, `LendingError` when only Redis does not.
    """

    def __init__(
        self,
        database: Database,
        url: str,
        *,
        lease_s: float | None = None,
        timeout_s: float = 1.0,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._lease_s = database.lease_s if lease_s is None else lease_s
        self._rng = rng or random.Random()
        self._monotonic = monotonic
        self._sleep = sleep
        self._heard = database.watch(ListeningStore)
        self._lines = Lines(database)
        self._hash = RedisHash(url, f"apportion:{{{self._lines.namespace}}}", timeout_s=timeout_s)
        self._epoch = ""
        self._seats: dict[str, _Seat] = {}
        self._at = (0, monotonic())
        """A reading of the database's clock in microseconds, and of ours."""
        self._holders = 1
        self._asked_s = self._swept_s = self._looked_s = float("-inf")
        self._cursor = 0

    # the bank

    def open(self, holder: str, machine: str) -> Receipt:
        """Register a holder. Needs the database only."""
        with self._heard.along(entering(holder)):
            receipt = self._database.open(holder, machine)
        try:
            self._lines.enter(holder)
        except BankError:
            self._database.close(holder)
            raise
        self._seats[holder] = _Seat(0, resumed=False)
        self._told(self._seats[holder], receipt)
        return receipt

    def commit(self, batch: Batch) -> Receipt:
        """Write a batch down, then move and lend. Raises `LendingError` where only the second failed."""
        seat = self._seat(batch.holder)
        receipt = self._record(seat, batch)
        if receipt is not None and receipt.expired:
            return self._given_up(batch, receipt)
        try:
            grants = self._lend(seat, batch)
        except BaseException as error:
            seat.behind.update((move.account, move) for move in batch.moves)
            if not isinstance(error, BankError):
                raise
            written = Receipt(self._now_us() / US, self._holders, [_refused(move) for move in batch.moves])
            raise LendingError(str(error), written) from None
        if grants is None:
            return self._given_up(batch, None)
        self._tidy()
        return Receipt(self._now_us() / US, self._holders, grants)

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        """Write down what a dead holder's journal knows, and close the holder. Needs the database only."""
        recovery = self._database.recover(holder, found)
        self._gone(holder)
        return recovery

    def forget(self, holder: str) -> None:
        """Presume what a holder has open, take back what it was lent."""
        self._database.forget(holder)
        self._gone(holder)

    def close(self, holder: str) -> None:
        """Take back what a holder was lent; it is gone."""
        self._database.close(holder)
        self._gone(holder)

    def prices(self) -> dict[str, str]:
        """The pricers saved last, JSON by scope."""
        return self._database.prices()

    def dispose(self) -> None:
        """Close all connections, those of the database, too."""
        self._hash.dispose()
        self._database.dispose()

    # the record

    def _seat(self, holder: str) -> _Seat:
        seat = self._seats.get(holder)
        if seat is None:
            seat = self._seats[holder] = _Seat(self._lines.counted(holder) or 0, resumed=True)
        return seat

    def _record(self, seat: _Seat, batch: Batch) -> Receipt | None:
        """Write down what is to be remembered; None where there is nothing, or it was done before."""
        if seat.batch == batch.number:
            return None
        draw = {move.account: line for move in batch.moves if (line := _line(seat, move)) is not None}
        spends = any(entry.kind in SPENDING for entry in batch.entries)
        undefined = {move.account: move for move in batch.moves if seat.said.get(move.account) != move.budget}
        renew = self._monotonic() - seat.seen_s >= self._lease_s / 3.0
        if not (
            draw
            or undefined
            or renew
            or batch.entries
            or batch.prices
            or any(move.spent for move in batch.moves)
        ):
            seat.charged = {}
            return None
        strike = self._strikes(seat, batch)
        # Where an account was empty in another epoch, Redis may have taken its line for lent since.
        doubtful = [account for account in strike if seat.empty[account][1] != self._epoch]
        moves = batch.moves if spends else [m for m in batch.moves if m.spent or m.account in undefined]
        bare = [move._replace(free=0, reserved=0, want=0, like=0) for move in moves]
        number = seat.counted + 1
        ask = self._monotonic() - self._asked_s >= _ASK_S
        ride = Ride(batch.holder, number, draw, strike, doubtful, ask)
        with self._heard.along(ride) as heard:
            receipt = self._database.commit(Batch(batch.holder, number, batch.entries, bare, batch.prices))
        self._told(seat, receipt)
        if receipt.expired:
            return receipt
        seat.counted, seat.batch, seat.charged = number, batch.number, heard.charged
        seat.lines.update(draw)
        for account in strike:
            del seat.lines[account], seat.empty[account], seat.said[account]
        if heard.epoch is not None:
            self._asked_s = self._monotonic()
            self._epoch = self._epoch if self._epoch == heard.epoch else ""
        seat.said.update((account, move.budget) for account, move in undefined.items())
        seat.first.update(undefined)
        # What was charged before, and what became of a definition that was not the database's, only the database knows.
        seat.behind.update(
            (id, move)
            for id, move in ((move.account, move) for move in batch.moves)
            if heard.repeated
            or (id in undefined and (seat.resumed or heard.defined.get(id) != encode(move.budget)))
        )
        return receipt

    def _strikes(self, seat: _Seat, batch: Batch) -> list[str]:
        """Lines that have been idle for so long that they are not worth keeping."""
        before_s = self._monotonic() - self._lease_s
        present = {move.account for move in batch.moves}
        found: list[str] = []
        for account, (since_s, _) in seat.empty.items():
            if since_s > before_s or len(found) == _STRIKES:
                break
            if account not in present and account not in seat.behind:
                found.append(account)
        return found

    def _told(self, seat: _Seat, receipt: Receipt) -> None:
        now_s = self._monotonic()
        seat.seen_s = now_s
        self._holders = max(1, receipt.holders)
        self._at = (round(receipt.now * US), now_s)

    def _now_us(self) -> int:
        """The database's clock, as far as is known here."""
        at_us, at_s = self._at
        return at_us + max(0, round((self._monotonic() - at_s) * US))

    # lending

    def _lend(self, seat: _Seat, batch: Batch) -> list[Grant] | None:
        """Carry a batch out in Redis; None if its holder is taken for dead."""
        until_s = self._monotonic() + _PATIENCE_S
        tries = lost = 0
        while True:
            try:
                return self._try(seat, batch)
            except EpochLostError:
                self._epoch = ""
                lost += 1
                if lost > _LOST:
                    raise
            except ConflictError:
                if tries >= _TRIES and self._monotonic() > until_s:
                    raise
                self._pause(tries)
                tries += 1

    def _try(self, seat: _Seat, batch: Batch) -> list[Grant] | None:
        """Once. Raises `ConflictError` if somebody else was quicker."""
        epoch = self._epoch = self._epoch or self._begin()
        moves = seat.behind | {move.account: move for move in batch.moves}
        name = _presence(batch.holder)
        mine, *cells = self._hash.read(epoch, [name, *map(_account, moves)])
        presence = Presence.decode(mine)
        if presence is None and self._lines.counted(batch.holder) is None:
            return None
        if presence is not None and presence.dead_us is not None:
            return None
        now_us = self._now_us()
        at = dict(zip(moves, cells, strict=True))
        books = {id: SharedAccount.decode(cell.value) for id, cell in at.items() if cell.value}
        learned = [id for id, move in moves.items() if _unknown(seat, books.get(id), move)]
        self._learn(epoch, books, learned, now_us)
        for id, move in moves.items():
            if books[id].account.resource == move.budget.resource:
                # What was spent of an account that has just been learned about is in it.
                spent = 0 if id in seat.behind else seat.charged.get(id, 0)
                books[id].tell(batch.holder, move._replace(spent=spent), seat.counted, now_us)
        grants = [self._grant(seat, batch.holder, books[move.account], move, now_us) for move in batch.moves]
        changes = [
            Change(_account(id), at[id].tag, book.encode()) for id, book in books.items() if book.changed
        ]
        if changes or presence is None:
            changes.append(Change(name, mine.tag, Presence(seat.counted).encode()))
            if not self._hash.swap(epoch, changes):
                raise ConflictError
        seat.behind.clear()
        seat.first.clear()
        self._note(seat, batch.moves, grants)
        return grants

    def _grant(self, seat: _Seat, holder: str, book: SharedAccount, move: Move, now_us: int) -> Grant:
        if book.account.resource != move.budget.resource:
            return nothing(move)
        most = seat.lines[move.account] - move.free - move.reserved
        return book.grant(holder, move, most, now_us)

    def _learn(
        self, epoch: str, books: dict[str, SharedAccount], ids: Sequence[str], now_us: int
    ) -> Snapshot | None:
        """Bring accounts to what the database has counted. ``books`` must have been read before."""
        if not ids:
            return None
        snapshot = self._lines.snapshot(ids)
        # Who has carried out here what the database has counted is in every book; of the others it is ahead.
        cells = self._hash.read(epoch, [_presence(holder) for holder in snapshot.counted])
        ahead = {}
        for (holder, counted), cell in zip(snapshot.counted.items(), cells, strict=True):
            presence = Presence.decode(cell)
            if counted > (0 if presence is None else presence.counted):
                ahead[holder] = counted
        for id in ids:
            recorded = snapshot.accounts.get(id)
            if recorded is None:
                raise BankError(f"the ledger's database has no account {id!r} any more")
            if id in books:
                books[id].refresh(recorded, ahead, now_us)
            else:
                books[id] = SharedAccount.install(recorded, ahead, now_us)
        return snapshot

    def _note(self, seat: _Seat, moves: Iterable[Move], grants: Iterable[Grant]) -> None:
        now_s = self._monotonic()
        for move, grant in zip(moves, grants, strict=True):
            seat.empty.pop(move.account, None)
            if not (move.free or move.reserved or grant.granted):
                seat.empty[move.account] = (now_s, self._epoch)

    def _given_up(self, batch: Batch, receipt: Receipt | None) -> Receipt:
        """The answer to a holder that was taken for dead; what it had to tell is written down."""
        self._seats.pop(batch.holder, None)
        if receipt is not None:
            return receipt
        return Receipt(
            self._now_us() / US, self._holders, [nothing(move) for move in batch.moves], expired=True
        )

    def _pause(self, tries: int) -> None:
        first_s, last_s = _PAUSE_S
        self._sleep(self._rng.uniform(0.0, min(last_s, first_s * 2.0 ** min(tries, 30))))

    # epochs

    def _begin(self) -> str:
        """The epoch in force, if Redis has it whole; a new one else, made by one of all who want it."""

        def begin(before: str) -> str:
            there, process = self._hash.state()
            if _whole(before, there, process):
                return before
            epoch = f"{secrets.token_hex(8)}:{process}"
            self._hash.begin(epoch)
            if before:
                logger.warning(
                    "Redis has lost what it knew of lent budgets: it is told anew from the database"
                )
            return epoch

        epoch = self._lines.epoch()
        return epoch if _whole(epoch, *self._hash.state()) else self._lines.rebuild(begin)

    # what is not a batch

    def _gone(self, holder: str) -> None:
        """A holder is closed. If Redis cannot be told now, somebody tells it later."""
        self._seats.pop(holder, None)
        self._lines.leave(holder)
        self._swept_s = float("-inf")
        self._tidy()

    def _tidy(self) -> None:
        """`sweep`, if it is time."""
        now_s = self._monotonic()
        if now_s - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now_s
        try:
            self.sweep()
        except BankError as error:  # what was asked for has been done; the next second tries again
            logger.warning("the ledger was not swept: %s", error)

    def sweep(self) -> None:
        """What else happens once a second: see who has died, and tell Redis what has changed in the database besides
        batches.
        """
        self._at = (round(self._database.sweep() * US), self._monotonic())
        now_us = self._now_us()
        self._lines.bury()
        look = self._monotonic() - self._looked_s >= _LOOK_S
        if look:
            self._lines.orphans()
            self._lines.inherit(now_us)
        self._tell_stale()
        if look:
            self._looked_s = self._monotonic()
            try:
                self._forget_idle(now_us)
            except EpochLostError:  # which has forgotten it all
                self._epoch = ""

    def _tell_stale(self) -> None:
        """Tell Redis how stale accounts stand in the database, and who is dead."""
        rounds = tries = 0
        while rounds < _ROUNDS:
            stale = self._lines.stale(_STALE)
            if not stale:
                return
            try:
                told = self._refreshed([id for id, _ in stale])
            except EpochLostError:
                self._epoch, told = "", False
            if told:
                self._lines.refreshed(stale)
                rounds += 1
                continue
            if tries == _TRIES:
                raise ConflictError
            # Whoever was quicker may have told the same, so what is stale is asked for anew.
            self._pause(tries)
            tries += 1

    def _refreshed(self, ids: Sequence[str]) -> bool:
        """Whether nobody else was quicker."""
        epoch = self._epoch = self._epoch or self._begin()
        at = dict(zip(ids, self._hash.read(epoch, [_account(id) for id in ids]), strict=True))
        books = {id: SharedAccount.decode(cell.value) for id, cell in at.items() if cell.value}
        had = {holder for book in books.values() for holder in book.leases}  # before the dead are let go
        snapshot = self._learn(epoch, books, list(books), self._now_us())
        if snapshot is None:
            return True
        changes = [Change(_account(id), at[id].tag, book.encode()) for id, book in books.items()]
        changes += self._tombs(epoch, sorted(had - snapshot.counted.keys()))
        return self._hash.swap(epoch, changes)

    def _tombs(self, epoch: str, dead: Sequence[str]) -> list[Change]:
        """Whoever is dead may have been paused on the way to a change: that must not be made any more."""
        changes = []
        for holder, cell in zip(dead, self._hash.read(epoch, [_presence(h) for h in dead]), strict=True):
            presence = Presence.decode(cell)
            if presence is None or presence.dead_us is None:
                tomb = Presence(0 if presence is None else presence.counted, self._now_us())
                changes.append(Change(_presence(holder), cell.tag, tomb.encode()))
        return changes

    def _forget_idle(self, now_us: int) -> None:
        """Let Redis forget accounts that it does not know better than the database, and holders long gone."""
        epoch = self._epoch = self._epoch or self._begin()
        self._cursor, found = self._hash.scan(self._cursor, _SCAN)
        idle: dict[str, Change] = {}
        present: dict[str, Change] = {}
        changes: list[Change] = []
        for field, cell in found.items():
            kind, _, name = field.partition(":")
            presence = Presence.decode(cell) if kind == "h" else None
            if presence is None:
                book = SharedAccount.decode(cell.value)
                if not book.leases and book.at_us < now_us - _IDLE_US:
                    idle[name] = Change(field, cell.tag, b"")
            elif presence.dead_us is None:
                present[name] = Change(field, cell.tag, presence._replace(dead_us=now_us).encode())
            elif presence.dead_us < now_us - _TOMB_US:
                changes.append(Change(field, cell.tag, b""))
        alive = self._lines.snapshot([]).counted if present else {}
        lined = self._lines.lined(list(idle)) if idle else set()
        changes += [change for name, change in present.items() if name not in alive]
        changes += [change for name, change in idle.items() if name not in lined]
        for change in changes:
            self._hash.swap(epoch, [change])

    def check(self) -> list[str]:
        """What Redis has and the database does not agree with; nothing, if all is right. In a moment of quiet: what is
        under way between the two disagrees.
        """
        epoch = self._lines.epoch()
        there, process = self._hash.state()
        if not _whole(epoch, there, process):
            return ["Redis has lost its state; the next batch rebuilds it."]
        findings: list[str] = []
        cursor = 0
        while True:
            cursor, found = self._hash.scan(cursor, _SCAN)
            cells = {field[2:]: cell for field, cell in found.items() if field.startswith("a:")}
            snapshot = self._lines.snapshot(list(cells))
            for id, cell in cells.items():
                book = SharedAccount.decode(cell.value)
                findings += book.check(id, snapshot.accounts.get(id), self._now_us())
            if not cursor:
                return findings


def _account(id: str) -> str:
    return f"a:{id}"


def _presence(holder: str) -> str:
    return f"h:{holder}"


def _whole(epoch: str, there: str, process: str) -> bool:
    return bool(epoch) and epoch == there and epoch.endswith(f":{process}")


def _unknown(seat: _Seat, book: SharedAccount | None, move: Move) -> bool:
    """Whether only the database can say how the account stands. To ask it takes long, and whoever swaps in the
    meantime is quicker: not without need.
    """
    id = move.account
    return book is None or id in seat.behind or (id in seat.first and book.account.budget != move.budget)


def _line(seat: _Seat, move: Move) -> int | None:
    """How wide the line must be drawn before ``move`` is answered; None if it is wide enough."""
    held = move.free + move.reserved
    # A line for what is wanted would grant no more than that, and soon somebody would wait again.
    liked = held + (max(move.want, move.like) if move.want else 0)
    line = seat.lines.get(move.account)
    if line is not None and liked <= line:
        return None
    return min(_WIDE * max(liked, held + move.like), _WIDEST)


def _refused(move: Move) -> Grant:
    return Grant(move.account, 0, 0, 0, _ASK_AGAIN_S if move.want else 0.0)
