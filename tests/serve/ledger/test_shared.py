"""The book of an account in Redis against the one in the database: whatever happens in whatever order, it never has
more than is there, and when all is told both have the same.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.budget import Account, Budget
from apportion.serve.ledger.entries import Move
from apportion.serve.ledger.shared import Lease, Line, Recorded, SharedAccount

BUDGET = Budget("tokens", "tokens", 1000)
NOW_US = 1_800_000_000_000_000
WIDE = 10**6


def move(free: int = 0, reserved: int = 0, spent: int = 0, want: int = 0, like: int = 0) -> Move:
    return Move("tokens@all", BUDGET, free, reserved, spent, want, like)


def recorded(spent: int = 0, lines: dict[str, Line] | None = None, budget: Budget = BUDGET) -> Recorded:
    account = Account(budget)
    account.move(spent=spent, now=NOW_US / 1e6)
    return Recorded(account, lines or {})


def copy(book: SharedAccount) -> SharedAccount:
    return SharedAccount.decode(book.encode())


def same(one: SharedAccount, two: SharedAccount) -> bool:
    return one.encode() == two.encode()


def test_lines_are_lent_until_somebody_tells() -> None:
    lines = {"one": Line(300), "dead": Line(200, dead=True, presumed=50)}
    book = SharedAccount.install(recorded(100, lines), {}, NOW_US)
    assert book.account.level_units == 1000 - 100 - 300 - 150
    assert book.leases == {"one": Lease(300, 0), "dead": Lease(150, 0, kept=True)}
    book.tell("one", move(free=10, reserved=20), 0, NOW_US)
    assert book.account.level_units == 1000 - 100 - 30 - 150
    assert book.check("tokens@all", recorded(100, lines), NOW_US) == []


def test_what_is_kept_for_the_dead_is_worked_out_once() -> None:
    alive = {"one": Line(300)}
    book = SharedAccount.install(recorded(0, alive), {}, NOW_US)
    book.tell("one", move(free=60, reserved=40), 1, NOW_US)
    after = recorded(40, {"one": Line(300, dead=True, presumed=40)})
    for _ in range(2):
        book.refresh(Recorded(recorded(40).account, after.lines), {}, NOW_US)
        assert book.leases == {"one": Lease(60, 0, kept=True)}
        assert book.account.level_units == 1000 - 40 - 60
    book.refresh(recorded(40), {}, NOW_US)
    assert book.leases == {}
    assert book.account.level_units == 960


def test_what_the_book_is_ahead_of_is_not_spent_again() -> None:
    book = SharedAccount.install(recorded(70, {"one": Line(500)}), {"one": 7}, NOW_US)
    book.tell("one", move(free=30, spent=70), 7, NOW_US)
    assert book.account.spent_units == 70
    book.tell("one", move(free=10, spent=20), 8, NOW_US)
    assert book.account.spent_units == 90


def test_a_bucket_is_not_refilled_by_being_read_anew() -> None:
    bucket = Budget("tokens", "tokens", 1000, refill_per_s=1)
    book = SharedAccount.install(recorded(0, {"one": Line(WIDE)}, bucket), {}, NOW_US)
    book.tell("one", move(free=0), 0, NOW_US)
    assert book.grant("one", move(want=900), WIDE, NOW_US).granted == 900
    book.refresh(recorded(0, {"one": Line(WIDE)}, bucket), {}, NOW_US)
    assert book.account.level_units == 100


def test_recall_ends_when_nothing_is_idle_or_time_is_over() -> None:
    book = SharedAccount(Account(BUDGET), NOW_US)
    assert book.grant("one", move(want=900), WIDE, NOW_US).granted == 900
    refused = book.grant("two", move(want=200), WIDE, NOW_US)
    assert (refused.granted, refused.lent, refused.wait_s, refused.recall) == (0, 900, None, False)
    assert copy(book).grant("one", move(), WIDE, NOW_US + 1).recall
    assert not copy(book).grant("one", move(), WIDE, NOW_US + 2_000_000).recall
    book.tell("one", move(reserved=900), 0, NOW_US)
    assert not book.grant("one", move(), WIDE, NOW_US).recall
    assert book.recall_us == 0


def test_no_more_is_lent_than_the_line_allows() -> None:
    book = SharedAccount(Account(BUDGET), NOW_US)
    assert book.grant("one", move(want=50, like=500), 80, NOW_US).granted == 80
    assert book.grant("one", move(want=50), 49, NOW_US).granted == 0


def test_time_does_not_run_backwards() -> None:
    hourly = Budget("tokens", "tokens", 100, window_s=3600)
    book = SharedAccount(Account(hourly), 0)
    assert book.grant("one", move(want=100), WIDE, NOW_US + 3_600_000_000).granted == 100
    book.tell("one", move(spent=100), 1, NOW_US + 3_600_000_000)
    assert book.grant("one", move(want=1), WIDE, NOW_US).granted == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["lease", "reserve", "settle", "record", "tell", "refresh", "flush"]),
        st.sampled_from(["one", "two"]),
        st.integers(0, 400),
    ),
    max_size=40,
)


class Holder:
    """What a holder has, and what of its spending the database and Redis know."""

    def __init__(self) -> None:
        self.free = self.reserved = 0
        self.spent = 0
        self.number = self.told = 0
        self.unrecorded = self.untold = 0


@settings(deadline=None)
@given(steps)
def test_any_order(course: list[tuple[str, str, int]]) -> None:
    holders = {"one": Holder(), "two": Holder()}
    lines = {name: Line(2000) for name in holders}
    book = SharedAccount.install(recorded(0), {}, NOW_US)
    booked = 0

    def ahead() -> dict[str, int]:
        return {name: it.number for name, it in holders.items() if it.number > it.told}

    for what, name, units in course:
        it = holders[name]
        if what == "reserve":
            units = min(units, it.free)
            it.free, it.reserved = it.free - units, it.reserved + units
        elif what == "settle":
            cost = min(units, it.reserved)
            it.free, it.reserved = it.free + it.reserved - cost, 0
            it.unrecorded += cost
        elif what == "record" and it.told == it.number:
            booked += it.unrecorded
            it.untold, it.unrecorded = it.unrecorded, 0
            it.number += 1
        elif what == "tell" and it.told < it.number:
            book.tell(name, move(it.free, it.reserved + it.unrecorded, it.untold), it.number, NOW_US)
            it.told, it.untold = it.number, 0
        elif what == "lease" and it.told == it.number and not it.unrecorded:
            book.tell(name, move(it.free, it.reserved), it.number, NOW_US)
            it.free += book.grant(name, move(it.free, it.reserved, want=units), 2000, NOW_US).granted
        elif what == "refresh":
            book.refresh(recorded(booked, lines), ahead(), NOW_US)
        elif what == "flush":
            book = SharedAccount.install(recorded(booked, lines), ahead(), NOW_US)
        book = copy(book)
        assert book.account.lent_units == sum(lease.free for lease in book.leases.values())
        assert book.account.reserved_units == sum(lease.reserved for lease in book.leases.values())
        held = sum(each.free + each.reserved + each.unrecorded for each in holders.values())
        assert booked + held <= 1000
        assert book.account.level_units <= 1000 - booked - held
    for name, it in holders.items():
        if it.told < it.number:
            book.tell(name, move(it.free, it.reserved + it.unrecorded, it.untold), it.number, NOW_US)
        it.told, it.untold = it.number, 0
        booked += it.unrecorded
        it.number += 1
        book.tell(name, move(it.free, it.reserved, it.unrecorded), it.number, NOW_US)
        it.unrecorded = 0
    assert book.account.spent_units == booked
    held = sum(each.free + each.reserved for each in holders.values())
    assert book.account.level_units == 1000 - booked - held
    assert book.check("tokens@all", recorded(booked, lines), NOW_US) == []
    assert same(copy(book), book)
