"""A ledger that is closed while its bank fails: it asks again as long as it has time, and nothing is settled twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from apportion.core.budget import Budget
from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import RESERVE, SETTLE, USD, BankError, Batch, Entry, Receipt
from apportion.serve.ledger.ledger import Ledger, Reservation, Settings, Unavailable
from apportion.serve.ledger.purse import Line, Lines
from virtual import EPOCH_S, VirtualLoop, virtual_time

HUNDRED = Budget("hundred", "usd", 100e-12)
COSTS = (3, 5, 7)
AT_MOST = 10


class Failing:
    """A bank of which one kind of call fails ``times`` times, before or after the database has carried it out."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.call, self.times, self.carried_out = "", 0, False
        self.asked = 0

    def fail(self, call: str, times: int, *, carried_out: bool) -> None:
        self.call, self.times, self.carried_out = call, times, carried_out

    def _try(self, call: str, work: Callable[[], Any]) -> Any:
        if call != self.call:
            return work()
        self.asked += 1
        fails = self.asked <= self.times
        if fails and not self.carried_out:
            raise BankError("cut off")
        done = work()
        if fails:
            raise BankError("cut off after it was done")
        return done

    def commit(self, batch: Batch) -> Receipt:
        return self._try("commit", lambda: self.database.commit(batch))

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        return self._try("recover", lambda: self.database.recover(holder, found))

    def close(self, holder: str) -> None:
        self._try("close", lambda: self.database.close(holder))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)


def entry(reservation: str, kind: int, usd: int) -> Entry:
    return Entry(
        reservation, kind, "dec_1", 1, "default", "", "k", "", "", "m", "e", "m", "chat", "",
        "ok" if kind == SETTLE else "", "measured" if kind == SETTLE else "", usd=usd,
    )  # fmt: skip


def amounts(usd: int) -> tuple[int, ...]:
    return (0, usd, 0, 0, 0, 0, 0)


class World:
    """One ledger under a virtual clock, its journal and its database."""

    def __init__(self, tmp_path: Path) -> None:
        self.loop = VirtualLoop()
        (tmp_path / "journal").mkdir()
        self.settings = Settings(tmp_path / "journal")
        self.url = f"sqlite:///{tmp_path}/ledger.db"

    def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with virtual_time(self.loop, EPOCH_S):
            self.loop.run_until_complete(work())

    def bank(self) -> Failing:
        return Failing(Database(self.url, clock=lambda: EPOCH_S + self.loop.time()))

    async def opened(self, bank: Failing) -> Ledger:
        return await Ledger.open(bank, self.settings, rng=random.Random(1))

    async def three(self, ledger: Ledger) -> list[Reservation]:
        """Reservations that will cost `COSTS`."""
        purse = ledger.purse("hundred@all", HUNDRED, "all")
        lines = Lines((Line(purse, USD, USD),), ())
        made = []
        for _ in COSTS:
            wanted = entry(ledger.reservation_id(), RESERVE, AT_MOST)
            made.append(await ledger.reserve(lines, amounts(AT_MOST), wanted))
        await ledger.durable()
        return made

    def settle(self, ledger: Ledger, held: list[Reservation]) -> None:
        for reservation, usd in zip(held, COSTS, strict=True):
            ledger.settle(reservation, amounts(usd), entry(reservation.entry.reservation, SETTLE, usd))

    def audit(self) -> None:
        """Everything is written, once, and the accounts agree with it."""
        database = Database(self.url, clock=lambda: EPOCH_S + self.loop.time())
        with database.engine.connect() as connection:
            rows = connection.execute(text("select reservation, kind, usd from entries")).all()
        assert len({row[:2] for row in rows}) == len(rows)
        assert sum(usd for _, kind, usd in rows if kind != RESERVE) == sum(COSTS)
        assert sum(kind == RESERVE for _, kind, _ in rows) == len(COSTS)
        assert database.verify() == []
        database.dispose()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.loop.close()


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("call", ["commit", "close"])
def test_it_asks_again_while_there_is_time(world: World, call: str, times: int, carried_out: bool) -> None:
    async def work() -> None:
        bank = world.bank()
        ledger = await world.opened(bank)
        world.settle(ledger, await world.three(ledger))
        bank.fail(call, times, carried_out=carried_out)
        began_s = world.loop.time()
        assert await ledger.close(10.0)
        assert bank.asked == times + 1
        assert world.loop.time() - began_s <= 10.0

    world.run(work)
    world.audit()


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["found out while closing", "known before"])
def test_one_that_was_given_up_tells_its_former_life(world: World, known: bool, carried_out: bool) -> None:
    """What it held then is told by `recover`, which fails a few times, too; so do its late settlements."""

    async def work() -> None:
        bank = world.bank()
        ledger = await world.opened(bank)
        held = await world.three(ledger)
        bank.database.forget(ledger._home.holder)
        bank.fail("recover", 3, carried_out=carried_out)
        if known:
            with pytest.raises(Unavailable):
                await ledger.look([held[0].lines.hard[0].purse])
        world.settle(ledger, held)
        assert await ledger.close(10.0)
        assert bank.asked > 3

    world.run(work)
    world.audit()


@pytest.mark.parametrize("call", ["commit", "recover", "close"])
def test_it_gives_up_at_its_deadline_and_the_journal_keeps_the_rest(world: World, call: str) -> None:
    async def work() -> None:
        bank = world.bank()
        ledger = await world.opened(bank)
        held = await world.three(ledger)
        if call == "recover":
            bank.database.forget(ledger._home.holder)
        world.settle(ledger, held)
        bank.fail(call, 10**9, carried_out=False)
        began_s = world.loop.time()
        assert not await ledger.close(10.0)
        assert world.loop.time() - began_s == pytest.approx(10.0)
        assert 5 <= bank.asked <= 20, "growing pauses: neither once nor all the time"
        for home in {reservation.home for reservation in held}:  # the process ends, its lock is gone
            assert home.journal is not None
            home.journal.close()
        assert await (await world.opened(world.bank())).close(10.0)

    world.run(work)
    world.audit()
