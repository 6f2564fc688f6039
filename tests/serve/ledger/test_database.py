"""The durable record as a bank: batches once and whole, leases, death and return, budgets that change; on SQLite and
on PostgreSQL.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from record import Record
from sqlalchemy import func, select, text
from teller import Teller, an_entry

from apportion.core.budget import Budget
from apportion.core.errors import AmountError, ParameterError
from apportion.serve.ledger.bank import Recovery
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import (
    CORRECT,
    PRESUME,
    RESERVE,
    SETTLE,
    BankError,
    Batch,
    Entry,
    Move,
)
from apportion.serve.ledger.schema import accounts, entries, holders, leases

TOKENS = Budget("tokens", "tokens", 1000)


def teller(books: Record, holder: str = "one", *budgets: Budget) -> Teller:
    return Teller(books.database, holder, budgets or [TOKENS])


# batches


def test_a_lease_is_reserved_and_settled(books: Record) -> None:
    it = teller(books)
    (grant,) = it.lease({}, 100, 300)
    assert (grant.granted, grant.available, grant.wait_s) == (300, 700, 0.0)
    entry = it.reserve(tokens=80)
    assert entry is not None
    it.say()
    book = books.account("tokens@all")
    assert (book.lent_units, book.reserved_units, book.spent_units) == (220, 80, 0)
    it.settle(entry, tokens=30)
    it.say()
    book = books.account("tokens@all")
    assert (book.lent_units, book.reserved_units, book.spent_units, book.level_units) == (270, 0, 30, 700)
    assert books.kinds(entry.reservation) == [RESERVE, SETTLE]
    books.right()


def test_a_batch_is_applied_once_and_answered_the_same_again(books: Record) -> None:
    it = teller(books)
    it.lease({}, 100, 300)
    it.reserve(tokens=50)
    first = it.say_unheard({"tokens@all": (200, 200)})
    again = it.say()
    assert again.grants == first.grants
    assert again.grants[0].granted == 200
    assert it.free["tokens@all"] == 450
    assert books.account("tokens@all").lent_units == 450
    assert len(books.rows(entries.c.reservation)) == 1
    books.right()


def test_a_batch_must_follow_the_last(books: Record) -> None:
    it = teller(books)
    with pytest.raises(ValueError, match="does not follow"):
        books.database.commit(Batch(it.holder, 2, [], []))


def test_an_account_moves_once_in_a_batch(books: Record) -> None:
    it = teller(books)
    move = Move("tokens@all", TOKENS, 0, 0, 0)
    with pytest.raises(ValueError, match="twice"):
        books.database.commit(Batch(it.holder, 1, [], [move, move]))


def test_a_failed_batch_leaves_nothing(books: Record) -> None:
    it = teller(books)
    with pytest.raises(AmountError, match="tokens"):
        books.database.commit(Batch(it.holder, 1, [an_entry("r", tokens=2**63)], []))
    with pytest.raises(AmountError, match="free"):
        books.database.commit(Batch(it.holder, 1, [], [Move("tokens@all", TOKENS, 2**63, 0, 0)]))
    assert books.rows(entries.c.reservation) == []
    assert books.rows(accounts.c.id) == []
    assert not books.database.commit(Batch(it.holder, 1, [an_entry("r", tokens=2**63 - 1)], [])).expired


def test_an_entry_that_is_told_in_two_batches_is_charged_once(books: Record) -> None:
    it = teller(books)
    it.lease({}, 100)
    end = an_entry("r", SETTLE, tokens=40)
    move = Move("tokens@all", TOKENS, 60, 0, 40)
    books.database.commit(Batch(it.holder, 2, [an_entry("r", tokens=40), end], [move]))
    books.database.commit(Batch(it.holder, 3, [end, an_entry("s", tokens=1)], [move]))
    assert books.account("tokens@all").spent_units == 40
    assert books.kinds("s") == [RESERVE]
    books.right()


@pytest.mark.parametrize("name", ["nul\0l", "lone \udc80", "ünïcödé 🙂", "a,b%2C'\"@:\n\t\\"])
def test_any_name_a_client_sends_is_written_down(books: Record, name: str) -> None:
    budget = Budget("b,1%", "tokens", 100, scope="user")
    it = teller(books, "one", budget)
    it.lease({"user": name}, 50)
    entry = it.reserve(user=name, tokens=20)
    assert entry is not None
    it.settle(entry, tokens=20)
    it.say()
    ((id, spent),) = books.rows(accounts.c.id, accounts.c.state)
    assert id.startswith("b,1%@user:")
    assert json.loads(spent)["spent_units"] == 20
    books.right()


def test_prices_are_remembered(books: Record) -> None:
    it = teller(books)
    books.database.commit(Batch(it.holder, 1, [], [], {"all": "1", "key:x": "2"}))
    books.database.commit(Batch(it.holder, 2, [], [], {"all": "3"}))
    assert books.another().prices() == {"all": "3", "key:x": "2"}


def test_amounts_beyond_64_bits_in_all(books: Record) -> None:
    """Single entries fit, their sum does not: a hundred million dollars in pico-dollars."""
    budget = Budget("usd", "usd", 10**9)
    it = teller(books, "one", budget)
    units = 2**63 - 1
    batch = [
        entry
        for number in range(20)
        for entry in (an_entry(f"r{number}", usd=units), an_entry(f"r{number}", SETTLE, usd=units))
    ]
    books.database.commit(Batch(it.holder, 1, batch, [Move("usd@all", budget, 0, 0, 20 * units)]))
    assert books.account("usd@all").spent_units == 20 * units
    books.right()
    later = Budget("late", "usd", 10**9, scope="team")
    books.database.commit(Batch(it.holder, 2, [], [Move("late@team:red", later, 0, 0, 0)]))
    assert books.account("late@team:red").spent_units == 20 * units


# lending


def test_what_is_lent_is_not_lent_again(books: Record) -> None:
    one, two = teller(books, "one"), teller(books, "two")
    assert one.lease({}, 700, 700)[0].granted == 700
    (grant,) = two.lease({}, 301)
    assert (grant.granted, grant.available, grant.lent, grant.wait_s) == (0, 300, 700, None)
    assert two.lease({}, 300)[0].granted == 300


def test_liking_more_gets_a_fair_part(books: Record) -> None:
    one, two = teller(books, "one"), teller(books, "two")
    assert one.lease({}, 10, 10_000)[0].granted == 10 + 990 // 2
    assert two.lease({}, 10, 10_000)[0].granted == 10 + (495 - 10) // 4


def test_who_was_refused_has_the_others_asked_to_give_back(books: Record) -> None:
    one, two = teller(books, "one"), teller(books, "two")
    one.lease({}, 900, 900)
    assert not two.lease({}, 500)[0].granted
    (grant,) = one.say().grants
    assert grant.recall
    one.free["tokens@all"] = 0
    assert not one.say().grants[0].recall
    assert two.lease({}, 500)[0].granted == 500
    assert not two.say().grants[0].recall


def test_a_recall_is_over_after_two_seconds(books: Record) -> None:
    one, two = teller(books, "one"), teller(books, "two")
    one.lease({}, 900, 900)
    two.lease({}, 500)
    books.clock.now += 2.1
    assert not one.say().grants[0].recall


def test_a_soft_budget_lends_nothing_and_tells_how_far_it_is_passed(books: Record) -> None:
    soft = Budget("soft", "tokens", 100, hard=False)
    it = teller(books, "one", soft)
    entry = it.reserve(tokens=130)
    assert entry is not None
    it.settle(entry, tokens=130)
    (grant,) = it.say().grants
    assert (grant.available, grant.lent) == (-30, 0)
    books.right()


def test_a_refused_wish_says_when_it_fits(books: Record) -> None:
    bucket = Budget("rate", "tokens", 100, refill_per_s=10)
    it = teller(books, "one", bucket)
    entry_free = it.lease({}, 100)
    assert entry_free[0].granted == 100
    entry = it.reserve(tokens=100)
    assert entry is not None
    it.settle(entry, tokens=100)
    it.say()
    (grant,) = it.lease({}, 50)
    assert grant.granted == 0
    assert grant.wait_s == pytest.approx(5.0, abs=0.01)
    books.clock.now += 5.01
    assert it.lease({}, 50)[0].granted == 50
    books.right()


def test_more_than_was_reserved_is_paid_by_the_account(books: Record) -> None:
    it = teller(books)
    it.lease({}, 100)
    entry = it.reserve(tokens=100)
    assert entry is not None
    it.settle(entry, tokens=150)
    it.say()
    book = books.account("tokens@all")
    assert (book.spent_units, book.level_units, book.lent_units) == (150, 850, 0)
    books.right()


def test_an_unknown_price_charges_no_dollars(books: Record) -> None:
    usd = Budget("usd", "usd", 1)
    it = teller(books, "one", usd, TOKENS)
    batch = [an_entry("r", usd=None, tokens=5), an_entry("r", SETTLE, usd=None, tokens=5)]
    moves = [Move("usd@all", usd, 0, 0, 0), Move("tokens@all", TOKENS, 0, 0, 5)]
    books.database.commit(Batch(it.holder, 1, batch, moves))
    assert books.account("usd@all").spent_units == 0
    assert books.account("tokens@all").spent_units == 5
    books.right()


def test_a_window_turns_with_what_is_lent(books: Record) -> None:
    hourly = Budget("hourly", "tokens", 100, window_s=3600.0)
    one, two = teller(books, "one", hourly), teller(books, "two", hourly)
    one.lease({}, 60)
    entry = two.lease({}, 40) and two.reserve(tokens=40)
    assert entry
    two.settle(entry, tokens=40)
    two.say()
    books.clock.now += 3600.0
    two.say()
    one.say()
    assert books.account("hourly@all").level_units == 40
    books.right()


# time


def test_time_never_runs_backwards(books: Record) -> None:
    it = teller(books)
    first = it.say()
    it.reserve()
    for jump_s in (-3600.0, 0.0, 7200.0, -1.0):
        books.clock.now += jump_s
        it.entries.append(an_entry(f"r{jump_s}"))
        later = it.say()
        assert later.now > first.now
        first = later
    times = [at_us for (at_us,) in books.rows(entries.c.at_us)]
    if books.database.engine.dialect.name == "sqlite":
        assert times == sorted(times)
        assert len(set(times)) == len(times) - 1  # a batch of two entries among them
    books.right()


# death


def dead(books: Record, **more: Any) -> tuple[Teller, Entry]:
    """A holder with 100 reserved and 200 free, which is then not heard of for a minute."""
    it = teller(books, "one", *more.get("budgets", ()))
    it.lease({}, 300)
    entry = it.reserve(tokens=100)
    assert entry is not None
    it.say()
    books.clock.now += 60.0
    books.database.sweep()
    return it, entry


def test_what_a_dead_holder_had_reserved_counts_as_spent(books: Record) -> None:
    it, entry = dead(books)
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME]
    book = books.account("tokens@all")
    assert (book.spent_units, book.reserved_units, book.lent_units) == (100, 0, 200)
    ((status, mark),) = [
        (status, mark)
        for kind, status, mark in books.rows(entries.c.kind, entries.c.status, entries.c.mark)
        if kind == PRESUME
    ]
    assert (status, mark) == ("crashed", "presumed")
    assert it.bank is books.database
    books.right()


def test_requests_under_way_at_a_dead_holder_end(books: Record) -> None:
    parallel = Budget("parallel", "parallel", 4, scope="key")
    it = teller(books, "one", parallel)
    it.lease({}, 2)
    assert it.reserve() is not None
    it.say()
    assert books.account("parallel@key:alice").level_units == 2
    books.clock.now += 60.0
    books.database.sweep()
    assert books.account("parallel@key:alice").level_units == 4
    books.right()


def test_somebody_elses_batch_notices_a_death(books: Record) -> None:
    teller(books, "one")
    two = teller(books, "two")
    assert two.say().holders == 2
    books.clock.now += 20.0
    assert two.say().holders == 2
    books.clock.now += 20.0
    two.say()
    assert two.say().holders == 1


@pytest.mark.parametrize("settled", [True, False])
def test_a_journal_tells_what_a_dead_holder_had_done(books: Record, settled: bool) -> None:
    it = teller(books)
    it.lease({}, 300)
    told = it.reserve(tokens=100)
    assert told is not None
    it.say()
    untold = it.reserve(tokens=50)
    assert untold is not None
    it.settle(untold, tokens=20)
    it.settle(told, tokens=70)
    recovery = it.recovered(settled=settled)
    assert recovery == (Recovery(2, 0, 0) if settled else Recovery(0, 2, 0))
    book = books.account("tokens@all")
    assert (book.spent_units, book.lent_units, book.reserved_units) == (90 if settled else 150, 0, 0)
    assert books.rows(leases.c.account) == []
    assert books.rows(holders.c.holder) == []
    assert it.recovered(settled=settled) == Recovery(0, 0, 2)
    books.right()


def test_a_journal_corrects_what_was_presumed(books: Record) -> None:
    it, entry = dead(books)
    it.settle(entry, tokens=70)
    assert it.recovered() == Recovery(1, 0, 0)
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME, CORRECT]
    book = books.account("tokens@all")
    assert (book.spent_units, book.level_units) == (70, 930)
    assert it.recovered() == Recovery(0, 0, 1)
    assert books.account("tokens@all").spent_units == 70
    books.right()


def test_what_a_journal_does_not_know_is_presumed_on_recovery(books: Record) -> None:
    it = teller(books)
    it.lease({}, 300)
    entry = it.reserve(tokens=100)
    assert entry is not None
    it.say()
    it.journal.clear()
    assert it.recovered() == Recovery(0, 0, 0)
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME]
    assert books.account("tokens@all").level_units == 900
    books.right()


def test_a_journal_of_one_who_is_long_forgotten(books: Record) -> None:
    """Its leases are gone, but what it spent is charged to whoever it falls under."""
    it, entry = dead(books)
    books.database.forget("one")
    assert books.account("tokens@all").level_units == 900
    it.settle(entry, tokens=130)
    untold = it.reserve(tokens=10)
    assert untold is not None
    it.settle(untold, tokens=10)
    assert it.recovered() == Recovery(2, 0, 0)
    assert books.account("tokens@all").spent_units == 140
    books.right()


def test_recovery_charges_accounts_that_only_a_known_budget_says_exist(books: Record) -> None:
    soft = Budget("soft", "tokens", 1000, scope="user", hard=False)
    one = teller(books, "one", TOKENS, soft)
    one.lease({"user": "ann"}, 100)
    two = teller(books, "two", TOKENS, soft)
    two.lease({"user": ""}, 100)
    entry = two.reserve(user="new", tokens=60)
    assert entry is not None
    two.settle(entry, tokens=60)
    two.recovered()
    assert books.account("soft@user:new").spent_units == 60
    books.right()


def test_who_comes_back_is_told_that_it_had_been_given_up(books: Record) -> None:
    it, entry = dead(books)
    later = it.reserve(tokens=30)
    assert later is not None
    it.settle(entry, tokens=70)
    unfinished = it.reserve(tokens=40)
    assert unfinished is not None
    it.settle(later, tokens=30)
    receipt = it.say_unheard({"tokens@all": (500, 500)})
    assert receipt.expired
    assert it.say_unheard().expired
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME, CORRECT]
    assert books.kinds(later.reservation) == [RESERVE, SETTLE]
    assert books.kinds(unfinished.reservation) == [RESERVE, PRESUME]
    book = books.account("tokens@all")
    assert book.spent_units == 70 + 30 + 40
    # What it may have promised since it said this is still kept for it.
    assert book.lent_units >= 200 - 30 - 40
    books.right()
    it.journal = {unfinished.reservation: (unfinished, None)}
    books.database.recover("one", list(it.journal.values()))
    assert books.account("tokens@all").level_units == 860
    it.settle(unfinished, tokens=5)
    assert it.recovered() == Recovery(1, 0, 0)
    assert books.account("tokens@all").spent_units == 105
    books.right()


def test_a_release_takes_a_presumption_back(books: Record) -> None:
    it, entry = dead(books)
    it.settle(entry)
    assert it.say_unheard().expired
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME, CORRECT]
    assert books.account("tokens@all").spent_units == 0
    books.right()


def test_an_unknown_holder_is_answered_as_one_given_up(books: Record) -> None:
    moves = [Move("tokens@all", TOKENS, 10, 0, 7, 5, 5)]
    batch = Batch("nobody", 9, [an_entry("r", tokens=7), an_entry("r", SETTLE, tokens=7)], moves)
    for _ in range(2):
        assert books.database.commit(batch).expired
    assert books.account("tokens@all").spent_units == 7
    assert books.account("tokens@all").lent_units == 0
    books.right()


def test_forgetting_takes_everything_back(books: Record) -> None:
    it = teller(books)
    it.lease({}, 300)
    entry = it.reserve(tokens=100)
    it.say()
    books.database.forget("one")
    assert entry is not None
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME]
    book = books.account("tokens@all")
    assert (book.spent_units, book.lent_units, book.level_units) == (100, 0, 900)
    books.right()


def test_closing_gives_everything_back(books: Record) -> None:
    it = teller(books)
    it.lease({}, 300)
    books.database.close("one")
    books.database.close("one")
    assert books.account("tokens@all").level_units == 1000
    assert books.rows(leases.c.account) == books.rows(holders.c.holder) == []
    assert it.say_unheard().expired
    books.right()


@pytest.mark.parametrize(
    ("budget", "kept_s", "back_s"),
    [
        (Budget("b", "tokens", 1000), 86_000.0, 87_000.0),
        (Budget("b", "tokens", 1000, window_s=3600.0), 3000.0, 3700.0),
        (Budget("b", "tokens", 1000, calendar="month"), 86_000.0, 87_000.0),
        (Budget("b", "tokens", 1000, window_s=3600.0, sliding=True), 3500.0, 3800.0),
        (Budget("b", "tokens", 1000, refill_per_s=1), 55.0, 65.0),
    ],
    ids=["for ever", "hour", "month", "sliding", "bucket"],
)
def test_what_a_dead_holder_had_free_comes_back_when_it_cannot_count_any_more(
    books: Record, budget: Budget, kept_s: float, back_s: float
) -> None:
    it = teller(books, "one", budget)
    it.lease({}, 300)
    books.clock.now += 31.0
    books.database.sweep()
    died = books.clock.now
    books.clock.now = died + kept_s
    books.database.sweep()
    assert books.account("b@all").lent_units == 300
    books.clock.now = died + back_s
    books.database.sweep()
    assert books.account("b@all").lent_units == 0
    assert books.rows(holders.c.holder) == []
    books.right()


def test_a_reservation_older_than_everything_else_is_found(books: Record) -> None:
    it = teller(books)
    it.lease({}, 900, 900)
    old = it.reserve(tokens=10)
    it.say()
    for _ in range(5):
        books.clock.now += 5.0
        entry = it.reserve(tokens=20)
        assert entry is not None
        it.say()
        it.settle(entry, tokens=20)
        it.say()
    books.clock.now += 60.0
    books.another().sweep()
    assert old is not None
    assert books.kinds(old.reservation) == [RESERVE, PRESUME]
    assert books.account("tokens@all").spent_units == 110
    books.right()


def test_another_process_that_goes_on_for_a_holder_loses_no_reservation(books: Record) -> None:
    it = teller(books)
    it.lease({}, 300)
    old = it.reserve(tokens=10)
    it.say()
    it.bank = books.another()
    it.say()
    books.clock.now += 60.0
    books.database.sweep()
    assert old is not None
    assert books.kinds(old.reservation) == [RESERVE, PRESUME]


# openings and definitions


def spend(it: Teller, tokens: int, **columns: Any) -> None:
    it.lease(columns, tokens)
    entry = it.reserve(tokens=tokens, **columns)
    assert entry is not None
    it.settle(entry, tokens=tokens)
    it.say()


def test_a_new_budget_counts_what_its_window_has_seen(books: Record) -> None:
    it = teller(books)
    spend(it, 30, user="ann")
    books.clock.now += 86400.0
    spend(it, 50, user="ann")
    spend(it, 60, user="ben")
    daily = Budget("daily", "tokens", 200, calendar="day", scope="user")
    ever = Budget("ever", "tokens", 200, scope="user")
    rate = Budget("rate", "tokens", 200, refill_per_s=1.0, scope="user")
    after = teller(books, "two", TOKENS, daily, ever, rate)
    spend(after, 1, user="ann")
    spend(after, 2, user="ben")
    spend(after, 3, user="new")
    spent = {id: books.account(id).spent_units for (id,) in books.rows(accounts.c.id) if "user" in id}
    assert spent == {
        "daily@user:ann": 51,
        "daily@user:ben": 62,
        "daily@user:new": 3,
        "ever@user:ann": 81,
        "ever@user:ben": 62,
        "ever@user:new": 3,
        "rate@user:ann": 1,
        "rate@user:ben": 2,
        "rate@user:new": 3,
    }
    books.right()


def test_a_budget_that_became_known_in_the_window_still_counts_for_those_who_come_later(
    books: Record,
) -> None:
    it = teller(books)
    spend(it, 30, user="ann")
    daily = Budget("daily", "tokens", 200, calendar="day", scope="user")
    after = teller(books, "two", TOKENS, daily)
    spend(after, 1, user="ben")
    books.clock.now += 60.0
    spend(after, 1, user="ann")
    assert books.account("daily@user:ann").spent_units == 31
    weekly = Budget("other", "tokens", 200, calendar="day", scope="user")
    third = teller(books, "three", TOKENS, daily, weekly)
    spend(third, 1, user="ann")
    assert books.account("other@user:ann").spent_units == 32
    books.clock.now += 86400.0
    spend(third, 1, user="ben")
    assert books.account("other@user:ben").spent_units == 1
    books.right()


def test_a_changed_budget_takes_its_spending_along(books: Record) -> None:
    it = teller(books)
    spend(it, 300)
    smaller = Budget("tokens", "tokens", 400)
    it = teller(books, "two", smaller)
    (grant,) = it.lease({}, 101)
    assert (grant.granted, grant.available) == (0, 100 - it_lent(books))
    books.right()


def it_lent(books: Record) -> int:
    return sum(free for (free,) in books.rows(leases.c.free))


def test_the_definition_that_was_said_last_holds(books: Record) -> None:
    """A worker with the old configuration does not change it back with each of its batches."""
    old, new = TOKENS, Budget("tokens", "tokens", 500)
    one, two = teller(books, "one", old), teller(books, "two", new)
    one.lease({}, 10)
    books.clock.now += 1.0
    two.lease({}, 10)
    books.clock.now += 1.0
    one.say()
    assert books.account("tokens@all").budget.amount == 500
    third = teller(books, "three", old)
    third.lease({}, 10)
    assert books.account("tokens@all").budget.amount == 1000
    two.say()
    assert books.account("tokens@all").budget.amount == 1000
    books.right()


def test_a_changed_window_is_verified_from_there(books: Record) -> None:
    daily = Budget("b", "tokens", 1000, calendar="day")
    it = teller(books, "one", daily)
    spend(it, 100)
    for window in ("month", "week"):
        it.budgets = [Budget("b", "tokens", 1000, calendar=window)]
        books.clock.now += 1.0
        spend(it, 10)
        books.right()
    it.budgets = [Budget("b", "tokens", 500, window_s=60.0, sliding=True)]
    for _ in range(10):
        books.clock.now += 15.0
        spend(it, 7)
        books.right()


def test_a_budget_of_another_resource_begins_anew(books: Record) -> None:
    it = teller(books, "one", Budget("b", "tokens", 1000))
    it.lease({}, 500)
    entry = it.reserve(tokens=100, requests=1)
    assert entry is not None
    it.say()
    books.clock.now += 1.0
    requests = Budget("b", "requests", 10)
    other = teller(books, "two", requests)
    assert other.lease({}, 2)[0].granted == 2
    books.clock.now += 1.0
    it.settle(entry, tokens=70, requests=1)
    (grant,) = it.say().grants
    assert (grant.granted, grant.available) == (0, 0)
    book = books.account("b@all")
    assert (book.resource, book.spent_units, book.lent_units) == ("requests", 1, 2)
    books.right()


# what goes wrong


def test_urls_that_are_none() -> None:
    for url in ("mysql://h/d", "sqlite://", "sqlite:///:memory:", "nonsense", "://"):
        with pytest.raises(ParameterError) as raised:
            Database(url)
        assert raised.value.field == "ledger.url"


def test_a_directory_that_cannot_be_made(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="cannot be kept"):
        Database(f"sqlite:///{tmp_path}/file/ledger.db")


def test_no_secret_in_an_error(free_port: int) -> None:
    with pytest.raises(BankError) as raised:
        Database(f"postgresql://somebody:very-secret@127.0.0.1:{free_port}/db?options=hush")
    assert "secret" not in str(raised.value)


@pytest.fixture
def free_port() -> int:
    import servers

    return servers.free_port()


def test_statements_and_values_are_in_no_error(books: Record) -> None:
    it = teller(books)
    with books.database.engine.begin() as c:
        c.execute(text("ALTER TABLE entries RENAME TO elsewhere"))
    with pytest.raises(BankError) as raised:
        books.database.commit(Batch(it.holder, 1, [an_entry("secret-reservation", tokens=1)], []))
    assert "secret-reservation" not in str(raised.value)
    assert "\n" not in str(raised.value)
    with books.database.engine.begin() as c:
        c.execute(text("ALTER TABLE elsewhere RENAME TO entries"))
    assert not books.database.commit(Batch(it.holder, 1, [an_entry("r", tokens=1)], [])).expired


def test_a_memory_ledger_is_private() -> None:
    one, two = Database("memory"), Database("memory")
    one.open("a", "here")
    with two.reading.connect() as c:
        assert c.execute(select(func.count()).select_from(holders)).scalar_one() == 0
    one.commit(Batch("a", 1, [an_entry("r")], []))
    with pytest.raises(ValueError, match="does not follow"):
        one.commit(Batch("a", 3, [], []))
    with one.reading.connect() as c:
        assert c.execute(select(func.count()).select_from(entries)).scalar_one() == 1
    assert one.verify() == []
    one.dispose()
    two.dispose()
