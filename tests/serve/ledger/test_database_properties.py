"""Whatever workers do, however they die and come back: never more is lent than there is, every entry is written once,
every reservation ends once, and the books agree with the entries. Compared with what the workers really hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from record import Record
from teller import Teller, an_entry

from apportion.core.budget import Budget
from apportion.serve.ledger.entries import PRESUME, RESERVE, SETTLE, Entry
from apportion.serve.ledger.schema import entries, leases

AMOUNT = 1000
EVER = Budget("ever", "tokens", AMOUNT)
EACH = Budget("each", "tokens", 400, scope="user")
OVERDRAWN = Budget("overdrawn", "tokens", AMOUNT, overdraft=200, scope="team")
OTHERS = (
    Budget("hour", "tokens", 600, window_s=3600.0),
    Budget("day", "tokens", 2000, calendar="day", time_zone="Europe/Berlin"),
    Budget("slide", "tokens", 600, window_s=60.0, sliding=True),
    Budget("rate", "requests", 20, refill_per_s=0.5, scope="key"),
    Budget("parallel", "parallel", 8, scope="key"),
    Budget("soft", "tokens", 50, window_s=60.0, hard=False, scope="user"),
)
"""Of these only the books are checked: what a worker holds may be from an earlier window."""
LIMITS = {"ever@all": AMOUNT, "each@user:ann": 400, "each@user:ben": 400, "overdrawn@team:red": AMOUNT + 200}

users = st.sampled_from(["ann", "ben"])
tokens = st.integers(0, 120)
lag_s = st.sampled_from([0.0, 0.5, 3.0, 12.0, 40.0, 400.0, 4000.0])
which = st.integers(0, 9)
wants = st.integers(1, 400)
outcomes = st.sampled_from("hhhhl")
"""Whether an answer is heard or lost."""


class Holders(RuleBasedStateMachine):
    """Up to four living workers, and those that died."""

    record: Record
    names: Iterator[str]

    def __init__(self) -> None:
        super().__init__()
        self.record.clock.now = 1_800_000_000.0
        self.bank = self.record.database
        self.record.empty()
        self.living: list[Teller] = []
        self.paused: list[Teller] = []
        """They are not heard of, and do not know it."""
        self.killed: list[Teller] = []
        """Only their journals are left."""
        self.late: list[tuple[str, Entry]] = []
        """Under way when their worker was given up; they will be settled under its old name."""
        self.budgets = [EVER, EACH, OVERDRAWN, *OTHERS]
        self.known_cost: dict[str, int] = {}
        """What reservations did cost, of those whose settlement somebody could tell."""
        self.booked: dict[str, int] = {}
        """How reservations have ended, by the record: the last kind."""

    @initialize()
    def begin(self) -> None:
        for user in ("ann", "ben", "ann"):
            self.open()
            self.ask(self.living[-1], user, 200, 300, "h")

    @precondition(lambda self: len(self.living) < 4)
    @rule()
    def open(self) -> None:
        self.living.append(Teller(self.bank, next(self.names), self.budgets))

    def some(self, among: list[Teller], index: int) -> Teller:
        return among[index % len(among)]

    @precondition(lambda self: self.living)
    @rule(index=which, user=users, want=wants, like=wants, outcome=outcomes)
    def lease(self, index: int, user: str, want: int, like: int, outcome: str) -> None:
        self.ask(self.some(self.living, index), user, want, like, outcome)

    @precondition(lambda self: self.living)
    @rule(index=which, user=users)
    def lease_the_rest(self, index: int, user: str) -> None:
        """Whatever can be had; were anything lent twice, it would show now."""
        it = self.some(self.living, index)
        for want in (256, 64, 16, 4, 1):
            if it in self.living:
                self.ask(it, user, want, want, "h")

    def ask(self, it: Teller, user: str, want: int, like: int, outcome: str) -> None:
        it.know(an_entry("", user=user))
        wanted: dict[str, tuple[int, int]] = {}
        for id, budget in it.accounts(an_entry("", user=user)):
            if budget.hard:
                scaled = want if budget.resource == "tokens" else max(1, want // 100)
                wanted[id] = (scaled, max(scaled, like))
        self.tell(it, wanted, outcome)

    @precondition(lambda self: self.living)
    @rule(index=which, outcome=outcomes)
    def say(self, index: int, outcome: str) -> None:
        self.tell(self.some(self.living, index), {}, outcome)

    def tell(self, it: Teller, wants: dict[str, tuple[int, int]], outcome: str) -> None:
        again = it.batch is not None
        receipt = it.say_unheard(wants)
        if receipt.expired:
            self.come_back(it)
        elif outcome == "h":
            it.heard(receipt)
        else:
            assert not again or it.batch is not None  # the answer is lost; the next is the same batch again

    @precondition(lambda self: self.living)
    @rule(
        index=which,
        user=users,
        amount=tokens,
        requests=st.integers(0, 1),
        said=st.sampled_from("hhl-"),
        ends=st.sampled_from([None, None, 0.0, 0.3, 1.0]),
    )
    def work(self, index: int, user: str, amount: int, requests: int, said: str, ends: float | None) -> None:
        """A request: something is reserved, told or not, and settled or not yet."""
        it = self.some(self.living, index)
        entry = it.reserve(user=user, tokens=amount, requests=requests)
        if entry is None:
            self.ask(it, user, max(1, amount), 2 * amount, "h")
            entry = it.reserve(user=user, tokens=amount, requests=requests) if it in self.living else None
        if entry is None:
            return
        if said != "-":
            self.tell(it, {}, said)
        if ends is not None and it in self.living:
            self.end(it, entry, ends)

    def end(self, it: Teller, entry: Entry, part: float) -> None:
        cost = int(entry.tokens * part)
        self.known_cost[entry.reservation] = cost
        it.settle(entry, **({"tokens": cost, "requests": entry.requests} if part else {}))

    @precondition(lambda self: any(it.open for it in self.living + self.paused))
    @rule(index=which, place=which, part=st.sampled_from([0.0, 0.5, 1.0]))
    def settle(self, index: int, place: int, part: float) -> None:
        it = self.some([it for it in self.living + self.paused if it.open], index)
        self.end(it, list(it.open.values())[place % len(it.open)], part)

    @precondition(lambda self: self.living)
    @rule(index=which)
    def give_back(self, index: int) -> None:
        it = self.some(self.living, index)
        if it.batch is None:
            it.free = dict.fromkeys(it.free, 0)

    @precondition(lambda self: len(self.living) > 1)
    @rule(index=which)
    def pause(self, index: int) -> None:
        it = self.some(self.living, index)
        self.living.remove(it)
        self.paused.append(it)

    @precondition(lambda self: len(self.living) > 1)
    @rule(index=which, promises=tokens, killed=st.booleans())
    def give_one_up(self, index: int, promises: int, killed: bool) -> None:
        """One is not heard of for a minute, goes on meanwhile with what it has, and may come back later."""
        it = self.some(self.living, index)
        self.living.remove(it)
        (self.killed if killed else self.paused).append(it)
        self.record.clock.now += 40.0
        self.bank.sweep()
        it.reserve(user="ann", tokens=promises)

    @precondition(lambda self: self.paused)
    @rule(index=which)
    def resume(self, index: int) -> None:
        it = self.some(self.paused, index)
        self.paused.remove(it)
        self.living.append(it)
        self.tell(it, {}, "h")

    @precondition(lambda self: self.paused)
    @rule(index=which, user=users, amount=tokens)
    def promise_while_paused(self, index: int, user: str, amount: int) -> None:
        """It is cut off, not stopped: it goes on with what it was lent."""
        self.some(self.paused, index).reserve(user=user, tokens=amount)

    @precondition(lambda self: len(self.living) + len(self.paused) > 1)
    @rule(index=which)
    def kill(self, index: int) -> None:
        it = self.some(self.living + self.paused, index)
        (self.living if it in self.living else self.paused).remove(it)
        self.killed.append(it)

    @precondition(lambda self: self.killed)
    @rule(index=which, twice=st.booleans())
    def recover(self, index: int, twice: bool) -> None:
        it = self.some(self.killed, index)
        recovery = it.recovered()
        assert recovery.settled + recovery.presumed + recovery.known == len(it.journal)
        if twice:
            again = it.recovered()
            assert (again.settled, again.presumed) == (0, 0)
        for entry in it.open.values():
            assert PRESUME in self.record.kinds(entry.reservation)
        self.killed.remove(it)

    @precondition(lambda self: self.killed)
    @rule(index=which)
    def forget(self, index: int) -> None:
        """Its journal is gone, too: nobody can tell what it had not said."""
        it = self.some(self.killed, index)
        self.bank.forget(it.holder)
        for reservation in it.journal:
            self.known_cost.pop(reservation, None)
        self.killed.remove(it)

    def come_back(self, it: Teller) -> None:
        """A worker learns that it was given up: it tells its journal and begins anew."""
        self.living.remove(it)
        self.bank.recover(it.holder, list(it.journal.values()))
        self.late += [(it.holder, entry) for entry in it.open.values()]
        self.open()

    @precondition(lambda self: self.late)
    @rule(index=which, part=st.floats(0, 1))
    def settle_late(self, index: int, part: float) -> None:
        holder, entry = self.late.pop(index % len(self.late))
        cost = int(entry.tokens * part)
        self.known_cost[entry.reservation] = cost
        end = an_entry(entry.reservation, SETTLE, user=entry.user, tokens=cost, requests=entry.requests)
        for _ in range(2):
            self.bank.recover(holder, [(entry, end)])

    @precondition(lambda self: len(self.living) > 1)
    @rule(index=which)
    def close(self, index: int) -> None:
        it = self.some(self.living, index)
        if it.open or it.batch is not None:
            return
        receipt = it.say_unheard()
        if receipt.expired:
            self.come_back(it)
            return
        it.heard(receipt)
        self.bank.close(it.holder)
        self.living.remove(it)

    @rule(seconds=lag_s)
    def wait(self, seconds: float) -> None:
        self.record.clock.now += seconds

    @rule(seconds=st.sampled_from([-3600.0, -1.0]))
    def clock_is_put_back(self, seconds: float) -> None:
        self.record.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        self.bank.sweep()

    @rule(amount=st.sampled_from([300, 600, 5000]), index=st.integers(0, len(OTHERS) - 1))
    def change_a_budget(self, amount: int, index: int) -> None:
        old = OTHERS[index]
        if old.resource != "tokens":
            return
        place = next(at for at, budget in enumerate(self.budgets) if budget.name == old.name)
        new = Budget(old.name, "tokens", amount, calendar="week", scope=old.scope, hard=old.hard)
        self.budgets = [*self.budgets[:place], new, *self.budgets[place + 1 :]]
        self.record.clock.now += 1e-3
        for it in self.living:
            if it.batch is None:
                it.budgets = self.budgets
                it.of = {id: (new if b.name == new.name else b) for id, b in it.of.items()}

    def check_limits(self) -> None:
        """Never is more booked, promised or free in anybody's hands than there is."""
        booked = {"each@user:ann": 0, "each@user:ben": 0}
        self.booked = {}
        columns = (entries.c.reservation, entries.c.kind, entries.c.user, entries.c.tokens)
        for reservation, kind, user, units in self.record.rows(*columns):
            if kind != RESERVE:
                self.booked[reservation] = max(kind, self.booked.get(reservation, kind))
                booked[f"each@user:{user}"] += units
        booked["ever@all"] = booked["overdrawn@team:red"] = sum(booked.values())
        lent = dict.fromkeys(LIMITS, 0)
        for account, free, reserved in self.record.rows(leases.c.account, leases.c.free, leases.c.reserved):
            if account in lent:
                lent[account] += free + reserved
        for account, limit in LIMITS.items():
            assert booked[account] + lent[account] <= limit, account
            hands = sum(self.in_hand(it, account) for it in (*self.living, *self.paused, *self.killed))
            assert booked[account] + hands <= limit, (account, booked, hands)

    def in_hand(self, it: Teller, account: str) -> int:
        """What a worker may still have spent of an account that is not booked."""
        if account not in it.free:
            return 0
        promised = it.free[account]
        for reservation, (entry, end) in it.journal.items():
            if account not in {id for id, _ in it.accounts(entry)}:
                continue
            most = entry.tokens if end is None else end.tokens
            if reservation not in self.booked:
                promised += most
            elif self.booked[reservation] == PRESUME:
                promised -= entry.tokens - most  # it will be corrected with the first that it says
        return promised

    def teardown(self) -> None:
        self.check_limits()
        self.record.right()
        for it in [*self.living, *self.paused, *self.killed]:
            it.recovered()
            for entry in it.open.values():
                self.late.append((it.holder, entry))
        self.record.right()
        for holder, entry in self.late:
            end = an_entry(entry.reservation, SETTLE, user=entry.user, tokens=entry.tokens, requests=1)
            self.bank.recover(holder, [(entry, end)])
            self.known_cost[entry.reservation] = entry.tokens
        self.record.right()
        self.check_limits()
        booked: dict[str, int] = {}
        for reservation, kind, units in self.record.rows(
            entries.c.reservation, entries.c.kind, entries.c.tokens
        ):
            booked.setdefault(reservation, 0)
            if kind != RESERVE:
                booked[reservation] += units
        for reservation, cost in self.known_cost.items():
            assert booked[reservation] == cost, reservation
        assert self.record.rows(leases.c.account) == []
        self.record.empty()


class Checked(Holders):
    """Looks on after each step, too."""

    @invariant()
    def nothing_is_overspent(self) -> None:
        self.check_limits()

    @rule()
    def books_are_right(self) -> None:
        self.record.right()


def run(record: Record, examples: int, steps: int) -> None:
    Checked.record = record
    Checked.names = (f"h{number}" for number in count())
    often: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Checked, settings=settings(max_examples=examples, stateful_step_count=steps, **often)
    )


@pytest.fixture
def memory() -> Iterator[Record]:
    record = Record("memory")
    yield record
    record.dispose()


def test_holders_in_memory(memory: Record) -> None:
    run(memory, 40, 40)


@pytest.mark.slow
def test_holders_in_memory_at_length(memory: Record) -> None:
    run(memory, 400, 80)


@pytest.mark.slow
def test_holders(books: Record) -> None:
    run(books, 15, 40)
