"""A worker's ledger: reserve from purses, write to the journal, tell the bank in batches.

The common reservation is arithmetic on a few integers and one write to mapped memory. Only where a purse is short
does a request wait for the bank; all that wait share one batch. One batch is under way at a time, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from apportion.core.budget import Budget
from apportion.serve.ledger.bank import Bank, Recovery
from apportion.serve.ledger.breaker import Breaker
from apportion.serve.ledger.entries import (
    NOTHING,
    PARALLEL,
    RELEASE,
    RESERVE,
    RESOURCES,
    SETTLE,
    BankError,
    Batch,
    Entry,
    LendingError,
    Move,
    Receipt,
)
from apportion.serve.ledger.journal import LONGEST, Journal, JournalError, abandoned
from apportion.serve.ledger.purse import Lines, Purse, take

logger = logging.getLogger("apportion.ledger")

_T = TypeVar("_T")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Entry).decode

_VALID: Final = 0.8
"""Leases are used for this part of the time for which the bank keeps them."""
_PATIENCE_S: Final = 5.0
"""How long a request waits for the bank."""
_SAVE_S: Final = 1.0
"""Prices are saved at most this often."""
_RECALL_S: Final = 0.05
_RECALL_EACH_S: Final = 0.002
_RECALL_FOR_S: Final = 2.0
"""How long a request asks again for what lies unused in other workers' purses (what is idle goes back within that
time), and how far apart: the more workers, the further, so that they do not all stand in line for one account."""
_AGAIN_S: Final = 0.2
_LARGEST: Final = 2**62
_MOST_OPEN_S: Final = 5.0
"""The longest pause between two tries to reach the bank."""
_MOST_CLOSING_S: Final = 1.0
"""The same for a ledger that is being closed: it has not long, and nobody waits behind it."""
_WAITING: Final = 4096
_FAULTS: Final = 3
_MARGIN_BYTES: Final = 160
"""By how much a settlement may be longer than its reservation."""
_PER_BATCH: Final = 512


class Refused(Exception):
    """A hard budget has not so much left. ``left`` and ``wanted`` are in smallest parts; ``wait_s`` is when it
    would fit if nobody else took any, None if no such time is known."""

    def __init__(self, purse: Purse, wanted: int, left: int, wait_s: float | None) -> None:
        super().__init__(purse.account)
        self.purse = purse
        self.wanted = wanted
        self.left = left
        self.wait_s = wait_s


class Unavailable(Exception):
    """The ledger cannot tell whether there is enough, or cannot keep a record: nothing is promised then."""

    def __init__(self, why: str, wait_s: float) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Settings(NamedTuple):
    """How a ledger works; see `serve.config.schema.Ledger`."""

    journal: Path | None
    lease_s: float = 30.0
    commit_s: float = 0.01
    when_lost: Literal["leases", "refuse"] = "leases"


class _Home(NamedTuple):
    """Under which name reservations are made, and where they are protected."""

    holder: str
    journal: Journal | None


_Late = tuple[_Home, int | None, Entry, Entry]


class Reservation:
    """What one attempt holds, until it is settled or released."""

    __slots__ = ("entry", "held", "home", "lines", "slot")

    def __init__(
        self, home: _Home, lines: Lines, held: Sequence[int], entry: Entry, slot: int | None
    ) -> None:
        self.home = home
        self.lines = lines
        self.held = held
        """Amounts by place; the lines say which place is theirs."""
        self.entry = entry
        self.slot = slot


class _Waiter:
    __slots__ = ("amounts", "asked", "entry", "future", "lines", "since_s")

    def __init__(
        self,
        lines: Lines,
        amounts: Sequence[int],
        entry: Entry,
        future: asyncio.Future[Reservation],
        now_s: float,
    ) -> None:
        self.lines = lines
        self.amounts = amounts
        self.entry = entry
        self.future = future
        self.since_s = now_s
        self.asked = False
        """Whether the batch under way asks for it."""


class Ledger:
    """The books of one worker. Made with ``await Ledger.open(...)``."""

    def __init__(self, bank: Bank, settings: Settings, *, rng: random.Random) -> None:
        self._bank = bank
        self._settings = settings
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._home = _Home("", None)
        self._count = 0
        self._number = 0
        self._purses: WeakValueDictionary[str, Purse] = WeakValueDictionary()
        self._leased: set[Purse] = set()
        self._dirty: list[Purse] = []
        self._entries: list[Entry] = []
        self._done: list[tuple[_Home, int]] = []
        self._late: list[_Late] = []
        self._waiters: deque[_Waiter] = deque()
        self._lookers: list[tuple[Sequence[Purse], asyncio.Future[None]]] = []
        self._to_be_durable: list[asyncio.Future[None]] = []
        self._batch: Batch | None = None
        self._batch_purses: list[Purse] = []
        self._batch_done: list[tuple[_Home, int]] = []
        self._batch_lookers: list[asyncio.Future[None]] = []
        self._batch_durable: list[asyncio.Future[None]] = []
        self._flying: asyncio.Future[Receipt] | None = None
        self._started_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._faults = 0
        """How often the batch under way has failed although the bank could be reached."""
        self._breaker = Breaker(rng, failures=1, max_open_s=_MOST_OPEN_S)
        self._valid_until_s = 0.0
        self._last_s = 0.0
        self._unsaved = False
        """Whether prices may have moved since they were saved last."""
        self._closing = False
        self._openings: set[asyncio.Task[None]] = set()
        """One each time the bank gave this worker up, until that former life is told and a new one has begun."""
        self._telling: asyncio.Future[None] | None = None
        """What settled of former lives, on its way."""
        self.holders = 1
        """Workers that hold leases of any account, as the bank said last."""
        self.saved_prices: Callable[[], dict[str, str]] = dict
        """What is to be remembered of the prices; asked once a second."""
        self.on_tick: Callable[[], None] = lambda: None
        self.committed = self.commits = 0
        """Entries and batches written since the start."""

    @classmethod
    async def open(cls, bank: Bank, settings: Settings, *, rng: random.Random) -> Ledger:
        """Recover what dead workers of this machine left behind, and register. Raises `BankError`."""
        self = cls(bank, settings, rng=rng)
        await self.run(self._recover_abandoned)
        await self._register()
        self._tick()
        return self

    # what a request does

    def purse(self, account: str, budget: Budget, subject: str) -> Purse:
        """The purse of an account, the same for everybody in this worker."""
        found = self._purses.get(account)
        if found is not None and found.resource != budget.resource:
            # Units of another resource mean nothing to this one, and the bank begins anew, too.
            found.retired = True
            self._leased.discard(found)
            found = None
        if found is None:
            found = self._purses[account] = Purse(account, budget, subject)
        elif found.budget is not budget and found.budget != budget:
            found.define(budget)
            found.known = False
            if found.free:  # lent of another budget: the bank lends anew
                found.free = 0
                self._mark(found)
        return found

    def reservation_id(self) -> str:
        """The idempotency key of the next reservation."""
        self._count += 1
        return f"{self._home.holder}-{self._count:x}"

    def take(self, lines: Lines, amounts: Sequence[int], entry: Entry) -> Reservation | None:
        """Hold ``amounts`` (by place) at once; None where a purse is short. ``entry`` is the `RESERVE`.

        Raises `Unavailable` when too much waits to be recorded.
        """
        home, slot = self._home, None
        if not home.holder:
            raise Unavailable("The ledger is being opened again.", _AGAIN_S)
        # A worker that was stopped for a while wakes with leases that may be others' by now.
        if (lines.hard and time.monotonic() >= self._valid_until_s) or take(lines, amounts) is not None:
            return None
        if home.journal is not None:
            try:
                slot = home.journal.take(_fitting(entry))
            except (JournalError, OverflowError) as error:
                for purse, held, _ in lines.hard:
                    purse.free += amounts[held]
                    purse.reserved -= amounts[held]
                raise Unavailable(f"The journal takes no more reservations ({error}).", 1.0) from None
        dirty = self._dirty
        for purse, held, _ in lines.hard:
            purse.drawn += amounts[held]
            if not purse.dirty:
                purse.dirty = True
                dirty.append(purse)
        self._entries.append(entry)
        if self._timer is None:
            self._soon()
        return Reservation(home, lines, amounts, entry, slot)

    async def reserve(self, lines: Lines, amounts: Sequence[int], entry: Entry) -> Reservation:
        """Hold ``amounts``, after asking the bank where purses are short. Raises `Refused`, `Unavailable`."""
        if not self._waiters:
            found = self.take(lines, amounts, entry)
            if found is not None:
                return found
        if self.lost:
            raise Unavailable("The ledger's database does not answer.", self._retry_s())
        if len(self._waiters) >= _WAITING:
            raise Unavailable("Too many requests wait for the ledger.", 1.0)
        waiter = _Waiter(lines, amounts, entry, self._loop.create_future(), self._loop.time())
        self._waiters.append(waiter)
        self._now()
        future = waiter.future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it came too late
            raise

    def settle(self, reservation: Reservation, spent: Sequence[int], entry: Entry) -> None:
        """Replace a reservation by what it cost; ``entry`` is the `SETTLE` (or `RELEASE`)."""
        home = reservation.home
        if home is not self._home:
            self._settle_late(reservation, entry)
            return
        held = reservation.held
        dirty = self._dirty
        hard, soft, _ = reservation.lines
        for purse, place, spends in hard:
            was = held[place]
            cost = spent[spends] if spends != PARALLEL else 0
            purse.reserved -= was
            purse.free += was - cost
            if purse.available < 0:  # it is overdrawn: what is left of it covers that, and nobody else begins
                purse.free = 0
            purse.spent += cost
            if not purse.dirty:
                purse.dirty = True
                dirty.append(purse)
        for purse, _, spends in soft:
            purse.spent += spent[spends]
            if not purse.dirty:
                purse.dirty = True
                dirty.append(purse)
        self._entries.append(entry)
        slot = reservation.slot
        if slot is not None and home.journal is not None:
            home.journal.settle(slot, _fitting(entry))
            self._done.append((home, slot))
        if self._timer is None:
            self._soon()

    def charge_also(self, lines: Lines) -> None:
        """The next batch charges these accounts, too: budgets that became known after the reservation was made."""
        for purse, _, _ in (*lines.hard, *lines.soft):
            self._mark(purse)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back: it has cost nothing."""
        entry = msgspec.structs.replace(
            reservation.entry, kind=RELEASE, **dict.fromkeys(RESOURCES[:-1], 0), mark="measured"
        )
        self.settle(reservation, NOTHING, entry)

    def shrink(self, reservation: Reservation, amounts: Sequence[int]) -> None:
        """Hold less from now on: the most it may still cost has become known better. Nothing is held more."""
        if reservation.home is not self._home:
            return
        held = reservation.held
        smaller = tuple(min(a, b) for a, b in zip(held, amounts, strict=True))
        for purse, place, _ in reservation.lines.hard:
            given = held[place] - smaller[place]
            if given:
                purse.reserved -= given
                purse.free += given
                if not purse.dirty:
                    purse.dirty = True
                    self._dirty.append(purse)
        reservation.held = smaller

    async def look(self, purses: Sequence[Purse]) -> None:
        """Ask the bank how these accounts stand; `Purse.left` is fresh then. Raises `Unavailable`."""
        if self.lost:
            raise Unavailable("The ledger's database does not answer.", self._retry_s())
        future: asyncio.Future[None] = self._loop.create_future()
        self._lookers.append((purses, future))
        self._now()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await future
        except TimeoutError:
            raise Unavailable("The ledger's database does not answer in time.", 1.0) from None

    async def durable(self) -> None:
        """Wait until everything reserved or settled so far is on disk in the database. Raises `Unavailable`."""
        if self.lost:
            raise Unavailable("The ledger's database does not answer.", self._retry_s())
        future: asyncio.Future[None] = self._loop.create_future()
        self._to_be_durable.append(future)
        self._now()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await future
        except TimeoutError:
            raise Unavailable("The ledger's database does not answer in time.", 1.0) from None

    @property
    def lost(self) -> bool:
        """Whether the bank did not answer lately."""
        return self._breaker.state != "closed" or not self._home.holder

    @property
    def pending(self) -> int:
        """Entries that are not in the database yet."""
        return len(self._entries) + (0 if self._batch is None else len(self._batch.entries))

    def purses(self) -> Iterable[Purse]:
        """All purses somebody refers to."""
        return list(self._purses.values())

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Do something slow (a query) in the ledger's own thread."""
        return self._loop.run_in_executor(self._thread, work)

    async def close(self, timeout_s: float = 10.0) -> bool:
        """Write everything, return all leases; False if the database did not answer (the journal keeps the rest)."""
        self._closing = True
        for timer in (self._ticker, self._timer):
            if timer is not None:
                timer.cancel()
        self._timer = None
        clean = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._say_all()
                await self._insist(lambda: self.run(self._tell_late))
                if self._home.holder and not any(purse.reserved for purse in self._leased):
                    await self._insist(lambda: self.run(lambda: self._bank.close(self._home.holder)))
        except TimeoutError:
            logger.warning("the ledger's database did not take everything in time; the journal keeps it")
            clean = False
        self._thread.shutdown(wait=clean, cancel_futures=True)
        if self._home.journal is not None:
            self._home.journal.close()
        if clean:
            self._bank.dispose()
        return clean

    async def _say_all(self) -> None:
        """Batch after batch until the bank knows all, the open reservations of a life it has just given up, too."""
        while self._openings or self._unsaid:
            if self._openings:
                await asyncio.gather(*self._openings)
                await asyncio.sleep(0)
            elif self._flying is None:
                await asyncio.sleep(self._breaker.wait_s(self._loop.time()))
                self._fly()
            if self._flying is not None:
                await asyncio.wait((self._flying,))
                await asyncio.sleep(0)

    @property
    def _unsaid(self) -> bool:
        """Whether there is anything that the bank does not know; prices are not worth waiting for it."""
        under_way = self._flying is not None or self._batch is not None
        alive = bool(self._home.holder)
        return (
            under_way or (alive and bool(self._dirty or self._entries)) or (self._unsaved and not self.lost)
        )

    async def _insist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat ``work`` with growing pauses while the bank or the journal fails; whoever calls limits the time."""
        wait_s = _AGAIN_S
        while True:
            try:
                return await work()
            except (BankError, JournalError) as error:
                logger.warning("the ledger is asked again: %s", error)
            await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(_MOST_CLOSING_S if self._closing else _MOST_OPEN_S, 2.0 * wait_s)

    # batches

    def _soon(self) -> None:
        """A batch within ``commit_s``."""
        if self._timer is None and not self._closing:
            self._timer = self._loop.call_later(self._settings.commit_s, self._fly)

    def _now(self) -> None:
        """A batch as soon as this turn of the loop is over: all that came with it share it."""
        if self.lost or self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(0.0, self._fly)

    def _fly(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        if self._flying is not None:
            return
        if not self._home.holder:  # a new life is about to begin
            if not self._closing:
                self._timer = self._loop.call_later(_AGAIN_S, self._fly)
            return
        if not self._breaker.allow(now_s):
            if not self._closing:  # timers may go off up to a millisecond early
                self._timer = self._loop.call_later(self._breaker.wait_s(now_s) + 0.001, self._fly)
            return
        batch = self._batch
        if batch is None:
            batch = self._batch = self._next()
        self._started_s = now_s
        self._flying = self._loop.run_in_executor(self._thread, self._bank.commit, batch)
        self._flying.add_done_callback(self._landed)

    def _next(self) -> Batch:
        """All there is to say now."""
        wants: dict[Purse, tuple[int, int]] = {}
        for index, waiter in enumerate(self._waiters):
            if index >= _PER_BATCH:
                break
            waiter.asked = True
            for purse, place, _ in waiter.lines.hard:
                if purse.retired:
                    continue
                amount = waiter.amounts[place]
                want, total = wants.get(purse, (0, 0))
                if amount:
                    total += amount
                    short = total - purse.free
                    if short > 0 and not want:
                        want = short  # of the first for whom there is not enough
                wants[purse] = (want, total)
        purses = {purse: None for purse in self._dirty if not purse.retired}
        purses.update(dict.fromkeys(wants))
        for looked, future in self._lookers:
            purses.update(dict.fromkeys(purse for purse in looked if not purse.retired))
            self._batch_lookers.append(future)
        moves: list[Move] = []
        for purse in purses:
            want, total = wants.get(purse, (0, 0))
            if want:
                like = (
                    total
                    - purse.free
                    + (0 if purse.scope == "session" else max(purse.drawn, purse.drawn_before))
                )
                moves.append(purse.move(want, like))
            else:
                moves.append(purse.move(0, 0))
        self._batch_purses = list(purses)
        self._batch_done, self._done = self._done, []
        self._batch_durable, self._to_be_durable = self._to_be_durable, []
        entries, self._entries = self._entries, []
        self._dirty = []
        self._lookers = []
        self._number += 1
        return Batch(self._home.holder, self._number, entries, moves, self._prices())

    def _prices(self) -> dict[str, str]:
        now_s = self._loop.time()
        if now_s - self._last_s < _SAVE_S and not self._closing:
            self._unsaved = True
            return {}
        self._last_s = now_s
        self._unsaved = False
        return self.saved_prices()

    def _landed(self, flight: asyncio.Future[Receipt]) -> None:
        self._flying = None
        error = None if flight.cancelled() else flight.exception()
        if isinstance(error, LendingError) and not error.receipt.expired:
            for purse in self._batch_purses:
                self._mark(purse)  # what it has is still to be told
            self._recorded(error.receipt)
            self._failed(error)
            return
        if flight.cancelled() or (error is not None and not isinstance(error, LendingError)):
            self._failed(error)
            return
        batch, purses = self._batch, self._batch_purses
        assert batch is not None  # noqa: S101 - it is the one that flew
        receipt = error.receipt if isinstance(error, LendingError) else flight.result()
        if self.lost:
            logger.info("the ledger's database answers again")
        self._breaker.ok(self._loop.time())
        self._faults = 0
        if receipt.expired:
            self._batch, self._batch_purses = None, []
            self._expired()
            return
        self._valid_until_s = self._started_s + _VALID * self._settings.lease_s
        self._recorded(receipt)
        asked: dict[Purse, int] = {}
        again = False
        for purse, move, grant in zip(purses, batch.moves, receipt.grants, strict=True):
            purse.answered(grant)
            if move.want and not grant.granted:
                asked[purse] = move.want
            if purse.recalled and purse.free and not move.want:
                purse.free = 0
                again = True
                self._mark(purse)
            if purse.idle or purse.retired:
                self._leased.discard(purse)
            else:
                self._leased.add(purse)
        for future in self._batch_lookers:
            if not future.done():
                future.set_result(None)
        self._batch_lookers = []
        self._serve_waiters(asked)
        if again:
            self._now()
        elif self._dirty or self._entries or self._to_be_durable or self._lookers:
            (self._now if self._lookers or self._to_be_durable else self._soon)()

    def _recorded(self, receipt: Receipt) -> None:
        """The batch under way is in the database: the journal need not protect it any longer."""
        batch = self._batch
        assert batch is not None  # noqa: S101 - it is the one that flew
        self._batch, self._batch_purses = None, []
        self.holders = max(1, receipt.holders)
        self.commits += 1
        self.committed += len(batch.entries)
        for home, slot in self._batch_done:
            if home.journal is not None:
                home.journal.free(slot)
        self._batch_done = []
        for future in self._batch_durable:
            if not future.done():
                future.set_result(None)
        self._batch_durable = []

    def _serve_waiters(self, refused: dict[Purse, int]) -> None:
        """Give those who wait what has come, refuse those for whom there is not enough; in their order."""
        waiting, self._waiters = self._waiters, deque()
        unasked = False
        recall = False
        for waiter in waiting:
            if waiter.future.done():  # its client went away
                continue
            if any(purse.retired for purse, _, _ in waiter.lines.hard):
                waiter.future.set_exception(Unavailable("A budget was replaced in the meantime.", _AGAIN_S))
                continue
            try:
                found = self.take(waiter.lines, waiter.amounts, waiter.entry)
            except Unavailable as error:
                waiter.future.set_exception(error)
                continue
            if found is not None:
                waiter.future.set_result(found)
                continue
            refusal, hopeful = self._refusal(waiter, refused)
            if waiter.asked and refusal is not None and not hopeful:
                waiter.future.set_exception(refusal)
                continue
            if refusal is not None:
                recall = True
            else:
                unasked = True
            waiter.asked = False
            self._waiters.append(waiter)
        if unasked:
            self._now()
        elif recall and self._timer is None:
            wait_s = max(_RECALL_S, _RECALL_EACH_S * self.holders) * self._rng.uniform(0.5, 1.5)
            self._timer = self._loop.call_later(wait_s, self._fly)

    def _refusal(self, waiter: _Waiter, refused: dict[Purse, int]) -> tuple[Refused | None, bool]:
        """Why a waiter cannot be served, if the bank has said so; and whether others may give back what it needs."""
        for purse, place, _ in waiter.lines.hard:
            amount = waiter.amounts[place]
            short = amount - purse.free
            if amount and short > 0 and short >= refused.get(purse, short + 1):
                hopeful = purse.lent > 0 and short <= purse.left - purse.free + purse.lent
                left = max(0, purse.left)
                hopeful = hopeful and self._loop.time() - waiter.since_s < _RECALL_FOR_S
                return Refused(purse, amount, left, purse.wait_s), hopeful
        return None, False

    def _failed(self, error: BaseException | None) -> None:
        if not isinstance(error, BankError):
            logger.error("the ledger's batch failed", exc_info=error)
            self._faults += 1
            if self._faults >= _FAULTS:
                self._set_aside()
        elif not self.lost:
            logger.error("the ledger's database does not answer: %s", error)
        self._breaker.failed(self._loop.time())
        wait_s = self._retry_s()
        self._unavailable("The ledger's database does not answer.", wait_s)
        if self._settings.when_lost == "refuse":
            self._drop_free()
        if not self._closing:
            self._timer = self._loop.call_later(wait_s, self._fly)

    def _set_aside(self) -> None:
        """The database will never take this batch as it is. A new life begins, and the old one's journal is told entry
        by entry, so that what does not fit keeps nobody else waiting.
        """
        batch, self._batch, self._batch_purses, self._faults = self._batch, None, [], 0
        if batch is not None:
            self._expired([*batch.entries, *self._entries])

    def _unavailable(self, why: str, wait_s: float) -> None:
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(Unavailable(why, wait_s))
        self._waiters.clear()
        lookers = [future for _, future in self._lookers]
        self._lookers = []
        for future in (*lookers, *self._batch_lookers, *self._batch_durable, *self._to_be_durable):
            if not future.done():
                future.set_exception(Unavailable(why, wait_s))
        self._batch_lookers, self._batch_durable, self._to_be_durable = [], [], []

    def _retry_s(self) -> float:
        return self._breaker.wait_s(self._loop.time()) or _AGAIN_S

    def _mark(self, purse: Purse) -> None:
        if not purse.dirty:
            purse.dirty = True
            self._dirty.append(purse)

    def _drop_free(self) -> None:
        """What is free may not be used any more; it is given back with the next batch."""
        for purse in list(self._leased):
            if purse.free > 0:
                purse.free = 0
                self._mark(purse)

    def _tick(self) -> None:
        """Once a second: leases that lie idle go back, those in use are renewed, waiting too long ends."""
        now_s = self._loop.time()
        self._ticker = self._loop.call_later(1.0, self._tick)
        for purse in list(self._leased):
            if purse.drawn:
                purse.touched_s = now_s
            if purse.tick(now_s):
                self._mark(purse)
        if now_s >= self._valid_until_s:
            self._drop_free()
        while self._waiters and now_s - self._waiters[0].since_s > _PATIENCE_S:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(Unavailable("The ledger did not answer in time.", 1.0))
        if self._late and self._telling is None and self._flying is None and not self.lost:
            self._telling = self.run(self._tell_late)
            self._telling.add_done_callback(self._told_late)
        # One that holds nothing is heard of, too: nobody is to take it for dead.
        renew = now_s - self._started_s > self._settings.lease_s / 3.0
        save = self._unsaved and now_s - self._last_s >= _SAVE_S
        if (self._dirty or self._entries or save or renew) and not self.lost:
            self._soon()
        self.on_tick()

    # births and deaths

    async def _register(self) -> None:
        holder = secrets.token_hex(8)
        directory = self._settings.journal
        journal = None if directory is None else Journal(directory, holder)
        try:
            await self.run(lambda: self._bank.open(holder, socket.gethostname()))
        except BaseException:
            if journal is not None:
                journal.close()
            raise
        self._home = _Home(holder, journal)
        self._number = 0
        self._valid_until_s = self._loop.time() + _VALID * self._settings.lease_s

    def _recover_abandoned(self) -> None:
        """What killed workers of this machine had promised and not written down; in the ledger's thread."""
        if self._settings.journal is None:
            return
        for left in abandoned(self._settings.journal):
            try:
                done = self._recover(left.holder, left.found)
            except BankError:
                left.release()
                raise
            left.remove()
            if done.settled or done.presumed:
                logger.warning(
                    "a worker had died: %d of its requests settled as measured, %d at what they had reserved",
                    done.settled,
                    done.presumed,
                )

    def _recover(self, holder: str, found: Iterable[tuple[bytes, bytes | None]]) -> Recovery:
        """Tell the bank what a journal knows; what it will never take is kept in a file for people to look at."""
        pairs = [(_bounded(_decode(r)), None if s is None else _bounded(_decode(s))) for r, s in found]
        return self._recover_pairs(holder, pairs)

    def _recover_pairs(self, holder: str, pairs: list[tuple[Entry, Entry | None]]) -> Recovery:
        try:
            return self._bank.recover(holder, pairs)
        except BankError:
            raise
        except Exception:
            logger.exception("the journal of %s as a whole was refused; it is told one by one", holder)
        settled = presumed = known = 0
        refused: list[tuple[Entry, Entry | None]] = []
        for pair in pairs:
            try:
                one = self._bank.recover(holder, [pair])
            except BankError:
                raise
            except Exception:
                refused.append(pair)
            else:
                settled, presumed, known = settled + one[0], presumed + one[1], known + one[2]
        if refused:
            logger.critical("the database refused %d reservations of %s", len(refused), holder)
            if self._settings.journal is not None:
                path = self._settings.journal / f"refused-{holder}.jsonl"
                with path.open("ab") as file:
                    file.writelines(msgspec.json.encode(pair) + b"\n" for pair in refused)
                logger.critical("they are in %s", path)
        return Recovery(settled, presumed, known)

    def _expired(self, pending: Sequence[Entry] = ()) -> None:
        """The bank had given this worker up (it was paused or cut off for too long): it starts as a new one."""
        logger.warning("the ledger's database had given this worker up; its open reservations are told anew")
        old, settled = self._home, [*self._batch_done, *self._done]
        # From now on nothing is its own: what settles meanwhile is told late.
        self._home = _Home("", None)
        self._batch_done = []
        self._done = []
        self._entries = []
        self._dirty = []
        for purse in self.purses():
            purse.void()
            purse.dirty = False
        self._leased.clear()
        self._unavailable("The ledger is being opened again.", _AGAIN_S)

        async def again() -> None:
            if not self._closing:
                await self._insist(self._register)
            await self._insist(lambda: self.run(lambda: self._tell_old(old, settled, pending)))
            self._now()

        opening = self._loop.create_task(again())
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)

    def _tell_old(self, old: _Home, settled: list[tuple[_Home, int]], pending: Sequence[Entry] = ()) -> None:
        """What the journal knows of a former life, or without one what was ``pending``; its open reservations are
        told when they settle.
        """
        if old.journal is not None:
            self._recover(old.holder, old.journal.found())
        else:
            ends = {entry.reservation: entry for entry in pending if entry.kind != RESERVE}
            begun = [entry for entry in pending if entry.kind == RESERVE]
            self._recover_pairs(old.holder, [(entry, ends.get(entry.reservation)) for entry in begun])
        for home, slot in settled:
            if home.journal is not None:
                home.journal.free(slot)
        settled.clear()
        _retire(old)

    def _settle_late(self, reservation: Reservation, entry: Entry) -> None:
        home, slot = reservation.home, reservation.slot
        if slot is not None and home.journal is not None:
            home.journal.settle(slot, _fitting(entry))
        self._late.append((home, slot, reservation.entry, entry))

    def _tell_late(self) -> None:
        """Settlements of former lives, in the ledger's thread, the only one that takes any from ``_late``."""
        late = self._late
        while late:
            home, slot, reserved, settled = late[0]
            self._recover_pairs(home.holder, [(reserved, settled)])
            if slot is not None and home.journal is not None:
                home.journal.free(slot)
                _retire(home)
            late.pop(0)

    def _told_late(self, done: asyncio.Future[None]) -> None:
        self._telling = None
        if not done.cancelled() and done.exception() is not None:
            logger.error("settlements of a former life wait on: %s", done.exception())


def _fitting(entry: Entry) -> bytes:
    """An entry for the journal; one that is too long loses its tags, here and in the database."""
    encoded = _encode(entry)
    if len(encoded) > LONGEST - (_MARGIN_BYTES if entry.kind == RESERVE else 0):
        entry.tags = ""
        encoded = _encode(entry)
    if len(encoded) > LONGEST - (_MARGIN_BYTES if entry.kind == RESERVE else 0):
        raise JournalError(f"A request whose names take {len(encoded)} bytes is too long for the journal.")
    return encoded


def _retire(old: _Home) -> None:
    """The journal of a former life ends with its last reservation."""
    if old.journal is not None and not old.journal.open_slots:
        old.journal.close()


def _bounded(entry: Entry) -> Entry:
    """An entry whose amounts a database can keep, whatever was written into a journal."""
    for name in RESOURCES[:-1]:
        amount = getattr(entry, name)
        if amount is not None and abs(amount) > _LARGEST:
            setattr(entry, name, _LARGEST if amount > 0 else -_LARGEST)
    return entry


__all__ = ["SETTLE", "Ledger", "Refused", "Reservation", "Settings", "Unavailable"]
