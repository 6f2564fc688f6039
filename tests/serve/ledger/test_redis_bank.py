"""Lending through Redis: as with the database alone, and whatever becomes of Redis, nothing is lent twice and nothing
that was spent is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select
from teller import Teller

from apportion.core.budget import Account, Budget
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.entries import BankError, Batch, LendingError, Move
from apportion.serve.ledger.line_tables import lines, stale
from apportion.serve.ledger.redis_bank import RedisBank
from apportion.serve.ledger.redis_hash import Change
from apportion.serve.ledger.schema import accounts, holders
from apportion.serve.ledger.shared import SharedAccount
from servers import Redis

TOKENS = Budget("tokens", "tokens", 1000)
START = 1_800_000_000.0


class Replicas:
    """Replicas of one deployment: each its own connections; all one clock, which tests set."""

    def __init__(self, database_url: str, redis: Redis, **more: Any) -> None:
        self.now = START
        self.database_url = database_url
        self.redis = redis
        self.more = more
        self.all: list[RedisBank] = []

    def clock(self) -> float:
        return self.now

    def database(self) -> Database:
        database = Database(self.database_url, clock=self.clock, **self.more)
        store: Any = database._store
        if database.engine.dialect.name == "postgresql":  # whose own clock cannot be set
            store.now_us = lambda c, clock_us: clock_us
        return database

    def bank(self) -> RedisBank:
        self.all.append(
            RedisBank(
                self.database(), self.redis.url, monotonic=self.clock, sleep=lambda s: None, timeout_s=5.0
            )
        )
        return self.all[-1]

    def teller(self, holder: str, *budgets: Budget) -> Teller:
        return Teller(self.bank(), holder, budgets or [TOKENS])

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def book(self, id: str) -> Account:
        """As the database has it."""
        with self.all[0]._database.reading.connect() as c:
            row = c.execute(select(accounts).where(accounts.c.id == id)).one()
        return Account.load(decode(row.definition), json.loads(row.state))

    def shared(self, id: str) -> SharedAccount | None:
        """As Redis has it."""
        bank = self.all[0]
        (cell,) = bank._hash.read(bank._lines.epoch(), [f"a:{id}"])
        return SharedAccount.decode(cell.value) if cell.value else None

    def lent(self, id: str = "tokens@all") -> dict[str, int]:
        book = self.shared(id)
        return {} if book is None else {holder: lease.units for holder, lease in book.leases.items()}

    def rows(self, *columns: Any) -> list[tuple[Any, ...]]:
        with self.all[0]._database.reading.connect() as c:
            return sorted(tuple(row) for row in c.execute(select(*columns)))

    def right(self) -> None:
        assert self.all[0]._database.verify() == []
        assert self.all[0].check() == []


@pytest.fixture
def make(database_url: str, redis: Redis) -> Iterator[Callable[..., Replicas]]:
    made: list[Replicas] = []

    def make(**more: Any) -> Replicas:
        made.append(Replicas(database_url, redis, **more))
        return made[-1]

    yield make
    redis.start()
    for replicas in made:
        for bank in replicas.all:
            bank.dispose()


@pytest.fixture
def replicas(make: Callable[..., Replicas]) -> Replicas:
    return make()


# lending


def test_a_lease_is_reserved_and_settled(replicas: Replicas) -> None:
    it = replicas.teller("one")
    (grant,) = it.lease({}, 100, 300)
    assert (grant.granted, grant.available, grant.wait_s, grant.recall) == (300, 700, 0.0, False)
    entry = it.reserve(tokens=80)
    assert entry is not None
    it.say()
    shared = replicas.shared("tokens@all")
    assert shared is not None
    assert (shared.account.lent_units, shared.account.reserved_units, shared.account.spent_units) == (
        220,
        80,
        0,
    )
    it.settle(entry, tokens=30)
    it.say()
    shared = replicas.shared("tokens@all")
    assert shared is not None
    assert (shared.account.lent_units, shared.account.reserved_units, shared.account.spent_units) == (
        270,
        0,
        30,
    )
    book = replicas.book("tokens@all")
    assert (book.lent_units, book.reserved_units, book.spent_units) == (0, 0, 30)
    replicas.right()


def test_replicas_share_one_budget(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    assert one.lease({}, 600)[0].granted == 600
    (grant,) = two.lease({}, 600)
    assert (grant.granted, grant.available, grant.lent, grant.wait_s) == (0, 400, 600, None)
    assert one.say().grants[0].recall, "what lies idle here is wanted there"
    one.free["tokens@all"] = 0
    one.say()
    assert two.lease({}, 600)[0].granted == 600
    replicas.right()


def test_what_is_liked_is_lent_only_as_far_as_it_is_fair(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    assert one.lease({}, 100, 1000)[0].granted == 100 + 900 // 2
    assert two.lease({}, 100, 1000)[0].granted == 100 + 350 // 4


def test_a_mere_wish_does_not_touch_the_database(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    it = replicas.teller("one")
    it.lease({}, 100)
    assert replicas.rows(lines.c.account, lines.c.units) == [("", 0), ("tokens@all", 200)]

    def refuse(batch: Batch) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(it.bank._database, "commit", refuse)  # type: ignore[attr-defined]
    assert it.lease({}, 100)[0].granted == 100
    monkeypatch.undo()
    assert it.lease({}, 50)[0].granted == 50
    assert replicas.rows(lines.c.account, lines.c.units) == [("", 0), ("tokens@all", 500)], (
        "drawn before it was lent"
    )
    replicas.right()


def test_a_soft_budget_is_told_and_lends_nothing(replicas: Replicas) -> None:
    soft = Budget("soft", "usd", 1, hard=False)
    it = replicas.teller("one", TOKENS, soft)
    it.lease({}, 100)
    entry = it.reserve(tokens=10, usd=3 * 10**12)
    assert entry is not None
    it.settle(entry, tokens=10, usd=2 * 10**12)
    grants = {grant.account: grant for grant in it.say().grants}
    assert grants["soft@all"].available == -(10**12)
    replicas.right()


def test_amounts_beyond_what_a_double_or_64_bits_hold_are_exact(replicas: Replicas) -> None:
    large = Budget("large", "usd", 30_000_000)
    it = replicas.teller("one", large)
    (grant,) = it.lease({}, 2**53 + 1)
    assert (grant.granted, grant.available) == (2**53 + 1, 30_000_000 * 10**12 - 2**53 - 1)
    for _ in range(3):
        assert it.lease({}, 3 * 10**18)[0].granted == 3 * 10**18 or it.free["large@all"] > 2**62
    shared = replicas.shared("large@all")
    assert shared is not None
    assert shared.account.lent_units == it.free["large@all"]
    replicas.right()


def test_windows_turn(replicas: Replicas) -> None:
    hourly = Budget("hourly", "tokens", 100, window_s=3600)
    it = replicas.teller("one", hourly)
    it.lease({}, 100)
    entry = it.reserve(tokens=100)
    assert entry is not None
    it.settle(entry, tokens=100)
    it.say()
    (grant,) = it.lease({}, 10)
    assert grant.granted == 0
    assert grant.wait_s == pytest.approx(3600 - START % 3600)
    replicas.wait(3600)
    assert it.lease({}, 10)[0].granted == 10
    replicas.right()


def test_a_bucket_lends_no_larger_bursts_than_it_holds(replicas: Replicas) -> None:
    bucket = Budget("bucket", "requests", 10, refill_per_s=1)
    one, two = replicas.teller("one", bucket), replicas.teller("two", bucket)
    assert one.lease({}, 8)[0].granted == 8
    replicas.wait(1000)
    assert two.lease({}, 3)[0].granted == 0
    assert two.lease({}, 2)[0].granted == 2
    replicas.right()


def test_a_budget_is_changed_by_whoever_was_configured_last(replicas: Replicas) -> None:
    one = replicas.teller("one")
    one.lease({}, 100)
    replicas.wait(1)
    two = replicas.teller("two", Budget("tokens", "tokens", 300))
    assert two.lease({}, 100)[0].available == 100
    replicas.wait(1)
    assert one.say().grants[0].available == 100, "the older definition does not come back"
    one.budgets = [Budget("tokens", "tokens", 500)]
    one.of["tokens@all"] = one.budgets[0]
    replicas.wait(1)
    assert one.say().grants[0].available == 300
    replicas.right()


def test_what_the_database_defines_as_ever_is_not_learned_from_it(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes to an account reads and swaps: what it read would be out of date if it asked in between."""
    replicas.teller("one").lease({}, 100)
    two = replicas.teller("two")
    asked: list[str] = []
    bank: Any = two.bank
    for of, name in ((bank._lines, "snapshot"), (bank._hash, "read"), (bank._hash, "swap")):
        call = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *a, call=call, name=name: (asked.append(name), call(*a))[1])
    assert two.lease({}, 100)[0].granted == 100
    assert asked[:2] == ["read", "swap"], "what comes after is housekeeping"
    replicas.right()


@pytest.mark.parametrize("who", ["itself", "another", "nobody"])
def test_redis_learns_of_a_definition_that_it_was_not_told(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """The database has it; then it is told by who brought it, by who says the same, or when that one is dead."""
    one = replicas.teller("one")
    one.lease({}, 100)
    replicas.wait(1)
    less = Budget("tokens", "tokens", 300)
    two = replicas.teller("two", less)

    def lost(*_: Any) -> None:
        raise BankError("Redis: TimeoutError")

    monkeypatch.setattr(two.bank._hash, "swap", lost)  # type: ignore[attr-defined]
    with pytest.raises(LendingError):
        two.lease({}, 50)
    monkeypatch.undo()
    if who == "itself":
        two.say()
    elif who == "another":
        assert replicas.teller("three", less).lease({}, 50)[0].available == 150
    else:
        for _ in range(2):
            replicas.wait(20)
            one.say()
    shared = replicas.shared("tokens@all")
    assert shared is not None
    assert shared.account.budget == less
    replicas.right()


def test_a_bank_that_goes_on_for_another_learns_what_that_left_untold(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 100)
    two.lease({}, 10)
    entry = one.reserve(tokens=80)
    assert entry is not None
    one.settle(entry, tokens=30)

    def lost(*_: Any) -> None:
        raise BankError("Redis: TimeoutError")

    monkeypatch.setattr(one.bank._hash, "swap", lost)  # type: ignore[attr-defined]
    with pytest.raises(LendingError) as caught:
        one.say()
    one.heard(caught.value.receipt)
    one.bank = replicas.bank()
    one.say()
    assert replicas.lent() == {"one": 70, "two": 10}
    replicas.right()


def test_a_budget_of_another_resource_begins_anew(replicas: Replicas) -> None:
    one = replicas.teller("one")
    one.lease({}, 100)
    replicas.wait(1)
    two = replicas.teller("two", Budget("tokens", "usd", 5))
    assert two.lease({}, 10**12)[0].granted == 10**12
    replicas.wait(1)
    assert one.say().grants[0] == ("tokens@all", 0, 0, 0, None, False)
    replicas.right()


# again


def test_a_batch_whose_answer_was_lost_is_booked_once(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = replicas.teller("one")
    it.lease({}, 100)
    entry = it.reserve(tokens=80)
    assert entry is not None
    it.settle(entry, tokens=30)
    hash_ = it.bank._hash  # type: ignore[attr-defined]
    swap = hash_.swap

    def unheard(epoch: str, changes: list[Change]) -> bool:
        swap(epoch, changes)
        raise BankError("Redis: TimeoutError")

    monkeypatch.setattr(hash_, "swap", unheard)
    with pytest.raises(LendingError) as caught:
        it.say({"tokens@all": (50, 50)})
    assert [grant.granted for grant in caught.value.receipt.grants] == [0]
    monkeypatch.undo()
    assert it.say().grants[0].granted == 50
    assert replicas.book("tokens@all").spent_units == 30
    assert replicas.lent() == {"one": 120}
    replicas.right()


def test_a_batch_is_written_down_without_redis_and_told_later(replicas: Replicas) -> None:
    it = replicas.teller("one")
    it.lease({}, 100)
    replicas.redis.stop()
    entry = it.reserve(tokens=80)
    assert entry is not None
    it.settle(entry, tokens=30)
    for _ in range(2):
        with pytest.raises(LendingError):
            it.say()
    assert replicas.book("tokens@all").spent_units == 30
    replicas.redis.start()
    it.say()
    assert replicas.lent() == {"one": 70}
    replicas.right()


def test_whoever_trusts_the_receipt_goes_on_with_the_next_batch(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = Budget("soft", "usd", 1, hard=False)
    it, other = replicas.teller("one", TOKENS, soft), replicas.teller("two", TOKENS, soft)
    it.lease({}, 100)
    other.lease({}, 100)
    hash_ = it.bank._hash  # type: ignore[attr-defined]

    def lost(epoch: str, changes: list[Change]) -> bool:
        raise BankError("Redis: TimeoutError")

    monkeypatch.setattr(hash_, "swap", lost)
    for spent in (10, 20):
        entry = it.reserve(tokens=25)
        assert entry is not None
        it.settle(entry, tokens=spent, usd=spent)
        with pytest.raises(LendingError) as caught:
            it.say()
        it.heard(caught.value.receipt)
    monkeypatch.undo()
    assert replicas.lent() == {"one": 100, "two": 100}
    other.say()
    it.say()
    assert replicas.lent() == {"one": 70, "two": 100}
    assert replicas.book("tokens@all").spent_units == 30
    replicas.right()


def test_what_another_has_not_told_redis_yet_is_not_counted_twice(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has told the database and not yet Redis, when Redis begins anew and another installs the account."""
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 100)
    two.lease({}, 10)
    entry = one.reserve(tokens=80)
    assert entry is not None
    one.settle(entry, tokens=30)
    hash_ = one.bank._hash  # type: ignore[attr-defined]
    read = hash_.read

    def meanwhile(epoch: str, fields: list[str]) -> Any:
        monkeypatch.undo()
        replicas.redis.flush()
        two.say()
        return read(epoch, fields)

    monkeypatch.setattr(hash_, "read", meanwhile)
    one.say()
    two.say()
    assert replicas.lent() == {"one": 70, "two": 10}
    replicas.right()


# losing Redis


@pytest.mark.parametrize("how", ["flush", "restart", "kill", "evict"])
def test_after_redis_has_lost_everything_lines_are_lent(replicas: Replicas, how: str) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 300)
    two.lease({}, 100)
    entry = one.reserve(tokens=50)
    assert entry is not None
    one.settle(entry, tokens=50)
    one.say()
    if how == "flush":
        replicas.redis.flush()
    elif how == "restart":
        replicas.redis.restart()
    elif how == "kill":
        replicas.redis.kill()
        replicas.redis.start()
    else:
        assert replicas.redis.ask(f"DEL {one.bank._hash.key}") == b":1"  # type: ignore[attr-defined]
    (grant,) = two.lease({}, 400)
    assert (grant.granted, grant.available) == (0, 250), (
        "1000, less 50 spent, 600 of one's line, 100 of its own"
    )
    assert replicas.lent() == {"one": 600, "two": 100}
    one.say()
    assert replicas.lent() == {"one": 250, "two": 100}
    assert two.lease({}, 400)[0].granted == 400
    replicas.right()


def test_one_of_all_makes_the_new_epoch(replicas: Replicas) -> None:
    tellers = [replicas.teller(f"t{k}") for k in range(4)]
    for it in tellers:
        it.lease({}, 10)
    begun = []
    for it in tellers:
        hash_: Any = it.bank._hash  # type: ignore[attr-defined]
        begin = hash_.begin
        hash_.begin = lambda epoch, begin=begin: (begun.append(epoch), begin(epoch))
    replicas.redis.flush()
    for it in tellers:
        it.say()
    assert len(begun) == 1
    assert sum(replicas.lent().values()) == 40
    replicas.right()


def test_the_old_master_is_not_believed(make: Callable[..., Replicas]) -> None:
    """Some still talk to a Redis that another has replaced: what they may lend there is in their lines."""
    replicas = make()
    other = Redis()
    other.start()
    try:
        one = replicas.teller("one")
        one.lease({}, 200)
        replicas.redis, old = other, replicas.redis
        two = replicas.teller("two")
        (grant,) = two.lease({}, 700)
        assert (grant.granted, grant.available) == (0, 600)
        assert two.lease({}, 600)[0].granted == 600
        # All that one can still get from the old one, without the database, is within its line.
        assert one.lease({}, 200)[0].granted == 200
        assert sum(it.free["tokens@all"] for it in (one, two)) <= 1000
        replicas.redis = old
    finally:
        for bank in replicas.all:
            bank._hash.dispose()
        other.remove()


def test_an_old_snapshot_is_not_believed(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 100)
    assert replicas.redis.ask("SAVE") == b"+OK"
    one.lease({}, 700)
    replicas.redis.kill()
    replicas.redis.start()
    (replicas.redis.directory / "dump.rdb").unlink()
    assert two.lease({}, 500)[0].granted == 0
    one.say()
    assert replicas.lent()["one"] == 800
    replicas.right()


# death


def test_what_a_dead_holder_reserved_is_presumed_and_the_rest_kept(make: Callable[..., Replicas]) -> None:
    replicas = make(lease_s=300.0, forget_s=3000.0)
    one = replicas.teller("one")
    one.lease({}, 300)
    assert one.reserve(tokens=80) is not None
    one.say()
    replicas.wait(301)
    two = replicas.teller("two")
    two.say()
    assert replicas.book("tokens@all").spent_units == 80
    assert replicas.lent() == {"one": 220}
    replicas.right()
    replicas.redis.flush()
    (grant,) = two.lease({}, 401)
    assert (grant.granted, grant.available) == (0, 400), "of a line of 600, 80 are spent"
    assert replicas.lent() == {"one": 520}
    for _ in range(16):
        replicas.wait(200)
        two.say()
    assert replicas.lent() == {}, "it is forgotten"
    assert two.lease({}, 920)[0].granted == 920
    assert replicas.rows(stale.c.account) == []
    assert replicas.rows(holders.c.holder) == [("two",)]
    replicas.right()


def test_the_window_in_which_it_died_ends(make: Callable[..., Replicas]) -> None:
    replicas = make(lease_s=300.0)
    hourly, parallel = Budget("hourly", "tokens", 1000, window_s=3600), Budget("parallel", "parallel", 10)
    one = replicas.teller("one", hourly, parallel)
    one.lease({}, 5)
    one.say({"hourly@all": (295, 295)})
    assert one.reserve(tokens=80) is not None
    one.say()
    replicas.wait(301)
    two = replicas.teller("two", hourly, parallel)
    two.lease({}, 1)
    replicas.wait(11)
    two.say()
    assert replicas.lent("hourly@all") == {"one": 220, "two": 1}
    assert replicas.lent("parallel@all") == {"two": 1}, "nothing is under way at a dead worker"
    for _ in range(18):
        replicas.wait(200)
        two.say()
    assert replicas.lent("hourly@all") == {"two": 1}
    assert two.lease({}, 1)[0].available == 998
    replicas.right()


def test_its_journal_sets_everything_right(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 300)
    first, second = one.reserve(tokens=80), one.reserve(tokens=60)
    assert first is not None
    assert second is not None
    one.say()
    one.settle(first, tokens=20)
    assert one.reserve(tokens=40) is not None
    one.bank, one.free = two.bank, {}
    recovery = one.recovered()
    assert (recovery.settled, recovery.presumed, recovery.known) == (1, 2, 0)
    assert replicas.book("tokens@all").spent_units == 20 + 60 + 40
    assert replicas.lent() == {}
    two.say()
    replicas.right()
    assert one.recovered().known == 3
    assert replicas.lent() == {}
    replicas.right()


def test_a_journal_is_read_while_redis_is_away(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 300)
    assert one.reserve(tokens=80) is not None
    replicas.redis.pause()
    try:
        one.bank = two.bank
        one.recovered()
    finally:
        replicas.redis.resume()
    assert replicas.book("tokens@all").spent_units == 80
    replicas.wait(10)
    two.say()
    assert replicas.lent() == {}
    replicas.right()


def test_it_died_between_the_database_and_redis(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = Budget("soft", "tokens", 10, hard=False)
    one, two = replicas.teller("one", TOKENS, soft), replicas.teller("two", TOKENS, soft)
    one.lease({}, 300)
    two.lease({}, 10)
    entry = one.reserve(tokens=80)
    assert entry is not None
    one.settle(entry, tokens=30)

    def lost(*_: Any) -> None:
        raise BankError("killed")

    monkeypatch.setattr(one.bank._hash, "read", lost)  # type: ignore[attr-defined]
    with pytest.raises(LendingError):
        one.say()
    monkeypatch.undo()
    one.bank = two.bank
    one.recovered()
    assert replicas.lent() == {"two": 10}
    two.say()
    replicas.right()


def test_who_comes_back_from_the_dead_is_told(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 300)
    entry = one.reserve(tokens=80)
    assert entry is not None
    one.say()
    replicas.wait(31)
    three = replicas.teller("three")
    three.say()
    assert replicas.book("tokens@all").spent_units == 80
    one.settle(entry, tokens=30)
    assert one.say().expired
    assert two.say().expired
    assert replicas.book("tokens@all").spent_units == 30
    one.bank = three.bank
    one.recovered()
    replicas.wait(2)
    three.lease({}, 10)
    assert replicas.lent() == {"three": 10}
    replicas.right()


def test_what_a_paused_holder_was_about_to_do_is_not_done(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops between reading and swapping for so long that it is taken for dead."""
    one = replicas.teller("one")
    one.lease({}, 100)
    hash_ = one.bank._hash  # type: ignore[attr-defined]
    swap = hash_.swap

    def paused(epoch: str, changes: list[Change]) -> bool:
        monkeypatch.undo()
        replicas.wait(31)
        three = replicas.teller("three")
        for _ in range(2):
            three.say()
            replicas.wait(2)
        return bool(swap(epoch, changes))

    monkeypatch.setattr(hash_, "swap", paused)
    assert one.say({"tokens@all": (50, 50)}).expired
    assert replicas.lent()["one"] == 100


def test_who_closes_gives_everything_back(replicas: Replicas) -> None:
    one, two = replicas.teller("one"), replicas.teller("two")
    one.lease({}, 300)
    two.lease({}, 10)
    one.bank.close("one")
    assert replicas.lent() == {"two": 10}
    assert replicas.rows(lines.c.holder) == [("two",), ("two",)]
    replicas.right()


def test_what_another_has_told_meanwhile_is_not_told_again(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many close at once: those who were not the quickest find nothing left to tell."""
    one, two, three = (replicas.teller(name) for name in ("one", "two", "three"))
    for it in (one, two, three):
        it.lease({}, 100)
    bank: Any = one.bank
    swap, snapshot, learned = bank._hash.swap, bank._lines.snapshot, []

    def overtaken(epoch: str, changes: list[Change]) -> bool:
        monkeypatch.setattr(bank._hash, "swap", swap)
        two.bank.close("two")
        return bool(swap(epoch, changes))

    monkeypatch.setattr(bank._hash, "swap", overtaken)
    monkeypatch.setattr(bank._lines, "snapshot", lambda ids: (learned.append(ids), snapshot(ids))[1])
    bank.close("one")
    assert learned == [["tokens@all"]]
    assert replicas.lent() == {"three": 100}
    assert replicas.rows(stale.c.account) == []
    replicas.right()


# housekeeping


def test_lines_that_lie_idle_are_struck(replicas: Replicas) -> None:
    budget = Budget("user", "tokens", 100, scope="user")
    one, two = replicas.teller("one", budget), replicas.teller("two", budget)
    one.lease({"user": "ann"}, 10)
    one.free = {"user@user:ann": 0}
    one.say()
    replicas.redis.flush()  # so that Redis takes a line for lent of which one has nothing
    two.lease({"user": "ann"}, 10)
    assert replicas.lent("user@user:ann") == {"one": 20, "two": 10}
    one.of = {}
    for user in ("bob", "carol", "dave"):
        replicas.wait(20)
        one.lease({"user": user}, 10)
        two.say()
    assert replicas.lent("user@user:ann") == {"two": 10}
    assert ("user@user:ann", "one") not in replicas.rows(lines.c.account, lines.c.holder)
    assert replicas.rows(stale.c.account) == []
    replicas.right()


def test_redis_forgets_what_lies_idle(replicas: Replicas) -> None:
    one = replicas.teller("one", Budget("user", "tokens", 100, scope="user"))
    one.lease({"user": "ann"}, 10)
    entry = one.reserve(user="ann", tokens=7)
    assert entry is not None
    one.settle(entry, tokens=7)
    one.say()
    one.bank.close("one")
    replicas.wait(3700)
    two = replicas.teller("two", *one.budgets)
    two.lease({"user": "bob"}, 1)
    assert replicas.shared("user@user:ann") is None
    hash_ = replicas.all[0]._hash
    assert hash_.scan(0, 100)[1].keys() == {"h:one", "h:two", "a:user@user:bob"}
    for _ in range(9):
        replicas.wait(10_000)
        two = replicas.teller(f"two{replicas.now}", *one.budgets)
        two.say()
    assert "h:one" not in hash_.scan(0, 100)[1]
    two.of = {}
    assert two.lease({"user": "ann"}, 1)[0].available == 92
    replicas.right()


def test_one_database_does_not_lend_beside_redis(make: Callable[..., Replicas]) -> None:
    replicas = make()
    redis = replicas.teller("one")
    redis.lease({}, 10)
    plain = replicas.database()
    with pytest.raises(BankError, match="Redis lends"):
        plain.open("two", "here")
    redis.bank.close("one")
    plain.open("two", "here")
    with pytest.raises(BankError, match="database itself still lends"):
        redis.bank.open("three", "here")
    plain.close("two")
    redis.bank.open("three", "here")
    plain.dispose()


def test_batches_of_accounts_that_nobody_moves(replicas: Replicas) -> None:
    bank = replicas.bank()
    bank.open("one", "here")
    assert bank.commit(Batch("one", 1, [], [])).grants == []
    assert (
        bank.commit(Batch("one", 2, [], [Move("t@all", Budget("t", "tokens", 5), 0, 0, 0)]))
        .grants[0]
        .available
        == 5
    )
    assert bank.prices() == {}
    bank.commit(Batch("one", 3, [], [], {"all": "{}"}))
    assert bank.prices() == {"all": "{}"}
