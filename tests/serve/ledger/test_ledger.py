"""A worker's ledger on a real database: purses, waiting, refusals, lost databases, crashes and former lives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from apportion.core.budget import Budget
from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import (
    RESERVE,
    SETTLE,
    TOKENS,
    USD,
    BankError,
    Batch,
    Entry,
    LendingError,
    Receipt,
)
from apportion.serve.ledger.journal import Journal
from apportion.serve.ledger.ledger import Ledger, Refused, Reservation, Settings, Unavailable
from apportion.serve.ledger.purse import Line, Lines, Purse
from virtual import EPOCH_S, VirtualLoop, virtual_time

TEN = Budget("ten", "usd", 10e-12)


def amounts(usd: int = 0, requests: int = 0) -> tuple[int, ...]:
    return (0, usd, 0, 0, 0, requests, 0, 0)


def lines(*purses: Purse, place: int = USD) -> Lines:
    return Lines(
        tuple(Line(p, place, place) for p in purses if p.hard),
        tuple(Line(p, place, place) for p in purses if not p.hard),
    )


def entry(ledger: Ledger, usd: int, **more: Any) -> Entry:
    given = {"team": "", "key": "k", "user": "", "session": "", "model": "m", **more}
    return Entry(
        ledger.reservation_id(),
        RESERVE,
        "dec_1",
        1,
        "default",
        given["team"],
        given["key"],
        given["user"],
        given["session"],
        given["model"],
        "e",
        "m",
        "chat",
        "",
        usd=usd,
    )


def settled(reservation: Reservation, usd: int) -> Entry:
    was = reservation.entry
    return Entry(
        was.reservation, SETTLE, was.request, was.attempt, was.organisation, was.team, was.key, was.user,
        was.session, was.model, was.endpoint, was.upstream_model, was.api, "", "ok", "measured", usd=usd,
    )  # fmt: skip


def settle(ledger: Ledger, reservation: Reservation, usd: int) -> None:
    ledger.settle(reservation, amounts(usd), settled(reservation, usd))


class Flaky:
    """A bank that can be cut off, before or after the database took the batch."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.before = self.after = self.lending_lost = False
        self.batches: list[Batch] = []

    def commit(self, batch: Batch) -> Receipt:
        if self.before:
            raise BankError("cut off")
        if any(entry.team == "poison" for entry in batch.entries):
            raise ValueError("never")
        receipt = self.database.commit(batch)
        self.batches.append(batch)
        if self.after:
            raise BankError("cut off after the commit")
        if self.lending_lost:
            raise LendingError("nobody lends", receipt)
        return receipt

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        if any(reserved.team == "poison" for reserved, _ in found):
            raise ValueError("never")
        return self.database.recover(holder, found)

    def __getattr__(self, name: str) -> Any:
        if self.before:
            raise BankError("cut off")
        return getattr(self.database, name)


@pytest.fixture
async def bank(tmp_path: Path) -> Flaky:
    return Flaky(Database(f"sqlite:///{tmp_path}/ledger.db"))


Make = Callable[..., Any]


@pytest.fixture
async def make(bank: Flaky, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Ledger] = []

    async def open_(**settings: Any) -> Ledger:
        given = Settings(tmp_path / "journal", **{"commit_s": 0.001, **settings})
        (tmp_path / "journal").mkdir(exist_ok=True)
        ledger = await Ledger.open(bank, given, rng=random.Random(1))
        made.append(ledger)
        return ledger

    yield open_
    bank.before = bank.after = bank.lending_lost = False
    for ledger in made:
        if not ledger._closing:
            await ledger.close()
    assert Database(str(bank.database.engine.url)).verify() == []


def entries(bank: Flaky) -> list[tuple[str, int, int]]:
    with bank.database.engine.connect() as connection:
        rows = connection.execute(text("select reservation, kind, usd from entries order by at_us, kind"))
        return [(r[0], r[1], r[2]) for r in rows]


def spent(bank: Flaky) -> int:
    return sum(usd for _, kind, usd in entries(bank) if kind != RESERVE)


async def test_what_fits_is_held_and_what_is_settled_gives_the_rest_back(make: Make, bank: Flaky) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    held = [await ledger.reserve(lines(purse), amounts(5), entry(ledger, 5)) for _ in range(2)]
    with pytest.raises(Refused) as refused:
        await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1))
    assert (refused.value.wanted, refused.value.left, refused.value.wait_s) == (1, 0, None)
    for reservation in held:
        settle(ledger, reservation, 2)
    third = await ledger.reserve(lines(purse), amounts(6), entry(ledger, 6))
    ledger.release(third)
    await ledger.close()
    assert spent(bank) == 4
    assert len(entries(bank)) == 6


async def test_sixty_four_at_once_never_overspend(make: Make, bank: Flaky) -> None:
    first, second = await make(), await make()

    async def one(ledger: Ledger, rng: random.Random) -> int:
        total = 0
        for _ in range(1000):  # until it is refused, however they meet
            purse = ledger.purse("hundred@all", Budget("hundred", "usd", 100e-12), "all")
            try:
                got = await ledger.reserve(lines(purse), amounts(3), entry(ledger, 3))
            except Refused:
                return total
            await asyncio.sleep(rng.random() * 0.003)
            cost = rng.randint(0, 3)
            settle(ledger, got, cost)
            total += cost
        return total

    done = await asyncio.gather(
        *(one(ledger, random.Random(i)) for i in range(32) for ledger in (first, second))
    )
    for ledger in (first, second):
        await ledger.close()
    assert spent(bank) == sum(done) <= 100
    assert sum(done) > 97, "what one of them has unused comes to the others"


async def test_all_or_nothing_over_several_accounts(make: Make) -> None:
    ledger = await make()
    wide = ledger.purse("ten@all", TEN, "all")
    narrow = ledger.purse("two@key:k", Budget("two", "usd", 2e-12), "key:k")
    with pytest.raises(Refused) as refused:
        await ledger.reserve(lines(wide, narrow), amounts(3), entry(ledger, 3))
    assert refused.value.purse is narrow
    assert wide.reserved == narrow.reserved == 0
    got = await ledger.reserve(lines(wide), amounts(10), entry(ledger, 10))
    ledger.release(got)


async def test_a_shrunk_reservation_makes_room_at_once(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    got = await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10))
    ledger.shrink(got, amounts(4))
    other = await ledger.reserve(lines(purse), amounts(6), entry(ledger, 6))
    settle(ledger, got, 4)
    settle(ledger, other, 6)


async def test_a_soft_budget_refuses_nothing_and_knows_how_it_stands(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("soft@all", Budget("soft", "usd", 3e-12, hard=False), "all")
    for _ in range(3):
        settle(ledger, await ledger.reserve(lines(purse), amounts(2), entry(ledger, 2)), 2)
    await ledger.look([purse])
    assert purse.available == -3


@pytest.mark.parametrize("after", [False, True])
async def test_a_lost_database_books_everything_once_when_it_is_back(
    make: Make, bank: Flaky, after: bool
) -> None:
    ledger = await make()
    purse = ledger.purse("big@all", Budget("big", "usd", 1000e-12), "all")
    got = [await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10)) for _ in range(20)]
    await ledger.durable()
    if after:
        bank.after = True
    else:
        bank.before = True
    for reservation in got[:10]:
        settle(ledger, reservation, 7)
    for _ in range(2000):
        await asyncio.sleep(0.005)
        if ledger.lost:
            break
    assert ledger.lost
    with pytest.raises(Unavailable):
        await ledger.reserve(lines(purse), amounts(1000), entry(ledger, 1000))
    small = ledger.take(lines(purse), amounts(1), entry(ledger, 1))
    assert small is not None, "what it has been lent it may still spend"
    settle(ledger, small, 1)
    bank.before = bank.after = False
    for reservation in got[10:]:
        settle(ledger, reservation, 7)
    await ledger.close()
    assert spent(bank) == 141
    assert len(entries(bank)) == 42


async def test_while_nobody_lends_what_is_spent_is_still_written_down(
    make: Make, bank: Flaky, tmp_path: Path
) -> None:
    ledger = await make()
    purse = ledger.purse("big@all", Budget("big", "usd", 1000e-12), "all")
    got = await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10))
    await ledger.durable()
    bank.lending_lost = True
    settle(ledger, got, 7)
    for _ in range(4000):
        await asyncio.sleep(0.005)
        if spent(bank) == 7 and not ledger.pending:
            break
    assert spent(bank) == 7
    assert ledger._home.journal is not None
    assert ledger._home.journal.open_slots == 0
    with pytest.raises(Unavailable):
        await ledger.reserve(lines(purse), amounts(1000), entry(ledger, 1000))
    bank.lending_lost = False
    for _ in range(4000):
        await asyncio.sleep(0.02)
        if not ledger.lost:
            break
    settle(ledger, await ledger.reserve(lines(purse), amounts(900), entry(ledger, 900)), 900)


async def test_where_it_is_to_refuse_nothing_is_spent_while_the_database_is_lost(
    make: Make, bank: Flaky
) -> None:
    ledger = await make(when_lost="refuse")
    purse = ledger.purse("big@all", Budget("big", "usd", 1000e-12), "all")
    got = await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10))
    bank.before = True
    settle(ledger, got, 1)
    for _ in range(2000):
        await asyncio.sleep(0.005)
        if ledger.lost:
            break
    assert ledger.take(lines(purse), amounts(1), entry(ledger, 1)) is None
    bank.before = False


async def test_nobody_waits_for_a_database_that_is_known_to_be_lost(make: Make, bank: Flaky) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    bank.before = True
    with pytest.raises(Unavailable):
        await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1))
    assert ledger.lost
    for wait in (
        ledger.durable(),
        ledger.look([purse]),
        ledger.reserve(lines(purse), amounts(1), entry(ledger, 1)),
    ):
        with pytest.raises(Unavailable) as caught:
            wait.send(None)
        assert 0 < caught.value.wait_s <= 5
    bank.before = False


async def test_a_timer_that_goes_off_early_does_not_end_the_tries(make: Make, bank: Flaky) -> None:
    """Timers of event loops are a millisecond coarse; the breaker is not."""
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    bank.before = True
    with pytest.raises(Unavailable):
        await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1))
    for _ in range(4000):
        await asyncio.sleep(0.005)
        if ledger.lost:
            break
    while ledger._flying is not None:
        await asyncio.sleep(0.001)
    bank.before = False
    ledger._fly()
    for _ in range(4000):
        await asyncio.sleep(0.02)
        if not ledger.lost:
            break
    settle(ledger, await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1)), 1)


async def test_an_overdraft_is_there_for_who_begins_while_something_is_left(make: Make) -> None:
    """It may take all of it at once; what it did not use covers what was overdrawn, and nobody else begins."""
    first, second = await make(), await make()
    over = Budget("over", "usd", 10e-12, overdraft=50e-12)
    purse, other = first.purse("over@all", over, "all"), second.purse("over@all", over, "all")
    await first.look([purse])
    assert purse.left == 60
    with pytest.raises(Refused) as refused:
        await first.reserve(lines(purse), amounts(61), entry(first, 61))
    assert refused.value.left == 60
    got = await first.reserve(lines(purse), amounts(60), entry(first, 60))
    with pytest.raises(Refused):
        await second.reserve(lines(other), amounts(1), entry(second, 1))
    settle(first, got, 30)
    assert first.take(lines(purse), amounts(1), entry(first, 1)) is None
    for ledger, own in ((first, purse), (second, other)):
        with pytest.raises(Refused) as refused:
            await ledger.reserve(lines(own), amounts(1), entry(ledger, 1))
        assert refused.value.left == 0
    await first.look([purse])
    assert purse.available == -20


def test_the_last_prices_are_saved_although_nothing_else_is_to_be_said(tmp_path: Path) -> None:
    loop, learned = VirtualLoop(), 0
    bank = Flaky(Database(f"sqlite:///{tmp_path}/ledger.db", clock=lambda: EPOCH_S + loop.time()))

    async def work() -> None:
        ledger = await Ledger.open(bank, Settings(None), rng=random.Random(1))
        ledger.saved_prices = lambda: {"all": str(learned)}
        purse = ledger.purse("soft@all", Budget("soft", "usd", 3e-12, hard=False), "all")

        async def spend() -> None:
            nonlocal learned
            learned += 1
            settle(ledger, await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1)), 1)
            await ledger.durable()

        await asyncio.sleep(1.0)
        for _ in range(3):
            await spend()
        assert bank.database.prices() == {"all": "1"}, "not with every batch"
        await asyncio.sleep(2.0)
        assert bank.database.prices() == {"all": "3"}
        batches = len(bank.batches)
        await asyncio.sleep(5.0)
        assert len(bank.batches) == batches, "and then there is nothing to be said"
        await spend()
        await spend()
        assert await ledger.close()
        assert bank.database.prices() == {"all": "5"}

    with virtual_time(loop, EPOCH_S):
        loop.run_until_complete(work())
    loop.close()
    bank.database.dispose()


async def test_a_death_is_recovered_from_the_journal(make: Make, bank: Flaky, tmp_path: Path) -> None:
    ledger = await make(commit_s=0.5)
    purse = ledger.purse("ten@all", TEN, "all")
    known = await ledger.reserve(lines(purse), amounts(3), entry(ledger, 3))
    await ledger.durable()
    settle(ledger, known, 2)  # in the journal only
    open_ = ledger.take(lines(purse), amounts(0), entry(ledger, 4))
    assert open_ is not None
    _die(ledger)
    after = await make()
    assert sorted(entries(bank)) == sorted(
        [
            (known.entry.reservation, RESERVE, 3),
            (known.entry.reservation, SETTLE, 2),
            (open_.entry.reservation, RESERVE, 4),
            (open_.entry.reservation, 3, 4),
        ]
    )
    purse = after.purse("ten@all", TEN, "all")
    await after.look([purse])
    assert purse.left == 4
    assert list((tmp_path / "journal").iterdir()) == [after._home.journal.path]


def _die(ledger: Ledger) -> None:
    """As SIGKILL would: nothing is said to anybody, and the lock is gone."""
    ledger._closing = True
    for timer in (ledger._timer, ledger._ticker):
        if timer is not None:
            timer.cancel()
    ledger._thread.shutdown(wait=True)
    journal = ledger._home.journal
    assert journal is not None
    journal.close()  # it is kept, as some of its slots are taken


async def test_one_that_was_given_up_starts_anew_and_its_settlements_are_corrections(
    make: Make, bank: Flaky
) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    got = await ledger.reserve(lines(purse), amounts(6), entry(ledger, 6))
    await ledger.durable()
    bank.database.forget(ledger._home.holder)
    other = await ledger.reserve(lines(purse), amounts(0), entry(ledger, 0))
    for _ in range(4000):
        await asyncio.sleep(0.005)
        if not ledger.lost and ledger._home is not got.home:
            break
    assert ledger._home is not got.home
    await ledger.look([purse])
    assert purse.left == 4, "what it had reserved counts as spent"
    settle(ledger, got, 1)
    settle(ledger, other, 0)
    await ledger.close()
    assert spent(bank) == 1


async def test_idle_leases_go_back(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("big@all", Budget("big", "usd", 1000e-12), "all")
    for _ in range(5):
        settle(ledger, await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10)), 1)
    for _ in range(600):
        await asyncio.sleep(0.1)
        if not purse.free:
            break
    await ledger.look([purse])
    assert purse.free == 0
    assert purse.available == 995


async def test_a_client_that_leaves_while_it_waits_holds_nothing(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    task = asyncio.create_task(ledger.reserve(lines(purse), amounts(10), entry(ledger, 10)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    got = await ledger.reserve(lines(purse), amounts(10), entry(ledger, 10))
    assert purse.reserved == 10
    ledger.release(got)


def test_amounts_have_their_places() -> None:
    held: Sequence[int] = amounts(usd=7, requests=1)
    assert held[USD] == 7


async def test_units_of_another_resource_are_nobodys(make: Make) -> None:
    """A budget that keeps its name and changes its resource begins anew."""
    ledger = await make()
    purse = ledger.purse("b@all", Budget("b", "usd", 1.0), "all")
    got = await ledger.reserve(lines(purse), amounts(10**9), entry(ledger, 10**9))
    settle(ledger, got, 5)
    running = ledger.take(lines(purse), amounts(7), entry(ledger, 7))
    assert running is not None
    other = ledger.purse("b@all", Budget("b", "tokens", 10), "all")
    assert other is not purse
    assert other.free == 0
    with pytest.raises(Refused):
        await ledger.reserve(lines(other, place=TOKENS), (11, 0, 0, 0, 0, 0, 0, 11), entry(ledger, 0))
    settle(ledger, running, 7)
    await ledger.durable()


async def test_names_that_are_too_long_for_the_journal_cost_their_tags_and_nobody_else(
    make: Make, bank: Flaky
) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    long_ = entry(ledger, 3)
    long_.tags = '"' * 1900
    got = await ledger.reserve(lines(purse), amounts(3), long_)
    settle(ledger, got, 3)
    await ledger.durable()
    assert spent(bank) == 3
    longer = entry(ledger, 1, user="u" * 3000)
    with pytest.raises(Unavailable):
        await ledger.reserve(lines(purse), amounts(1), longer)
    assert (purse.reserved, purse.left) == (0, 7)


async def test_what_the_database_will_never_take_keeps_nobody_waiting(
    make: Make, bank: Flaky, tmp_path: Path
) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    with pytest.raises(Unavailable):
        ledger.take(lines(purse), amounts(0), entry(ledger, 2**70))
    beside = await ledger.reserve(lines(purse), amounts(4), entry(ledger, 4))
    await ledger.durable()
    poison = entry(ledger, 0, team="poison")
    assert ledger.take(lines(), amounts(0), poison) is not None
    settle(ledger, beside, 2)
    for _ in range(6000):
        await asyncio.sleep(0.02)
        if not ledger.pending and not ledger.lost:
            break
    settle(ledger, await ledger.reserve(lines(purse), amounts(3), entry(ledger, 3)), 3)
    await ledger.durable()
    assert spent(bank) == 5, "what others settled at that moment is written down"
    assert purse.left == 5
    (refused,) = (tmp_path / "journal").glob("refused-*.jsonl")
    assert poison.reservation in refused.read_text()


async def test_a_worker_that_wakes_from_a_long_stop_asks_again(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("ten@all", TEN, "all")
    settle(ledger, await ledger.reserve(lines(purse), amounts(5), entry(ledger, 5)), 1)
    purse.free = 5
    ledger._valid_until_s = 0.0
    assert ledger.take(lines(purse), amounts(1), entry(ledger, 1)) is None
    ledger._mark(purse)
    purse.free = 0
    settle(ledger, await ledger.reserve(lines(purse), amounts(9), entry(ledger, 9)), 9)


async def test_a_damaged_amount_in_a_journal_stops_nobody(make: Make, bank: Flaky, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal", "dead")
    bank.database.open("dead", "here")
    ledger = await make()
    huge, good = entry(ledger, 2**63 + 5), entry(ledger, 3)
    for each in (huge, good):
        journal.take(msgspec.msgpack.encode(each))
    journal.close()
    other = await make()
    assert spent(bank) == 2**62 + 3
    await other.durable()


async def test_a_smaller_budget_takes_idle_leases_back(make: Make) -> None:
    ledger = await make()
    purse = ledger.purse("b@all", Budget("b", "usd", 100e-12), "all")
    settle(ledger, await ledger.reserve(lines(purse), amounts(30), entry(ledger, 30)), 5)
    await ledger.durable()
    smaller = ledger.purse("b@all", Budget("b", "usd", 10e-12), "all")
    assert smaller is purse
    with pytest.raises(Refused) as refused:
        await ledger.reserve(lines(purse), amounts(6), entry(ledger, 6))
    assert refused.value.left == 5


async def test_a_budget_made_too_late_is_used_up_for_its_first_window_only(make: Make) -> None:
    ledger = await make()
    for _ in range(5):
        settle(ledger, await ledger.reserve(lines(), amounts(10), entry(ledger, 10)), 10)
    await ledger.durable()
    purse = ledger.purse("late@all", Budget("late", "usd", 2e-12, window_s=3600.0), "all")
    with pytest.raises(Refused) as refused:
        await ledger.reserve(lines(purse), amounts(1), entry(ledger, 1))
    assert refused.value.wait_s is not None
    assert refused.value.wait_s <= 3600.0
