"""What one worker may spend of an account without asking: three integers, moved by plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from apportion.core.budget import Budget
from apportion.serve.ledger.entries import Grant, Move

_KEEP_S: Final = 1.0
"""A lease that nobody has drawn on for so long goes back."""


class Purse:
    """A worker's part of one account. ``free`` and ``reserved`` are lent to it, ``spent`` is not reported yet.

    A soft account lends nothing and refuses nothing: only ``spent`` is kept.
    """

    __slots__ = (
        "__weakref__",
        "account",
        "available",
        "budget",
        "dirty",
        "drawn",
        "drawn_before",
        "free",
        "hard",
        "known",
        "lent",
        "overdraft",
        "recalled",
        "reserved",
        "resource",
        "retired",
        "scope",
        "spent",
        "subject",
        "touched_s",
        "wait_s",
    )

    def __init__(self, account: str, budget: Budget, subject: str) -> None:
        self.account = account
        self.subject = subject
        self.scope = subject.partition(":")[0]
        self.free = 0
        self.reserved = 0
        self.spent = 0
        self.available = 0
        """What the bank could lend when it last answered, the overdraft included; below zero: overdrawn, or a soft
        budget passed."""
        self.lent = 0
        """What others had of it unused then."""
        self.wait_s: float | None = None
        self.known = False
        """Whether the bank has ever answered about it."""
        self.recalled = False
        self.dirty = False
        self.retired = False
        """Another budget has taken its name: what it still settles is said to nobody."""
        self.drawn = self.drawn_before = 0
        """Reserved in the present and the last second: what the next one is likely to need."""
        self.touched_s = 0.0
        self.define(budget)

    def define(self, budget: Budget) -> None:
        """Go over to another definition of the same budget."""
        self.budget = budget
        self.resource = budget.resource
        self.hard = budget.hard
        self.overdraft = budget.unit.to_units(budget.overdraft) if budget.hard else 0

    @property
    def left(self) -> int:
        """What a new request could take, as far as is known here: free, and what the bank could lend."""
        return self.free + self.available

    def move(self, want: int, like: int) -> Move:
        """What has happened since the last one, said to the bank. ``spent`` starts anew."""
        if self.free < 0:  # more was spent than had been held: the account pays, not the lease
            self.free = 0
        spent, self.spent = self.spent, 0
        self.dirty = False
        return Move(self.account, self.budget, self.free, self.reserved, spent, want, max(want, like))

    def answered(self, grant: Grant) -> None:
        """Take in what the bank said."""
        self.free += grant.granted
        available = grant.available
        self.available = available + self.overdraft if available > 0 else available
        self.lent = grant.lent
        self.wait_s = grant.wait_s
        self.recalled = grant.recall
        self.known = True

    def void(self) -> None:
        """The bank has given this worker up: nothing of it is lent any more."""
        self.free = self.reserved = self.spent = 0
        self.recalled = False

    def tick(self, now_s: float) -> bool:
        """A second has passed; True if something free is to go back."""
        self.drawn_before, self.drawn = self.drawn, 0
        if not self.free:
            return False
        if self.recalled or now_s - self.touched_s >= _KEEP_S:
            self.free = 0
            return True
        likely = 2 * self.drawn_before
        if self.free > 2 * likely:
            self.free = likely
            return True
        return False

    @property
    def idle(self) -> bool:
        """Nothing of it is lent or unsaid."""
        return not (self.free or self.reserved or self.spent)

    def __repr__(self) -> str:
        return f"Purse({self.account!r}, free={self.free}, reserved={self.reserved}, spent={self.spent})"


class Line(NamedTuple):
    """A purse, where it finds what is held for it in a request's amounts, and where what was spent."""

    purse: Purse
    held: int
    spent: int


class Lines(NamedTuple):
    """Everything a request falls under, the widest scope first."""

    hard: tuple[Line, ...]
    soft: tuple[Line, ...]
    caps: tuple[tuple[int, tuple[Purse, ...]], ...] = ()
    """The hard purses that bound what an answer may cost, by place."""


NO_LINES: Final = Lines((), ())


def take(lines: Lines, amounts: Sequence[int]) -> Purse | None:
    """Hold ``amounts`` in all hard purses; the first that is short, holding nothing then."""
    hard = lines.hard
    for index, (purse, held, _) in enumerate(hard):
        amount = amounts[held]
        if amount > purse.free and amount:
            for other, place, _ in hard[:index]:
                other.free += amounts[place]
                other.reserved -= amounts[place]
            return purse
        purse.free -= amount
        purse.reserved += amount
    return None


def short(lines: Lines, amounts: Sequence[int]) -> bool:
    """Whether an account itself has less than ``amounts``, as far as is known here, and not only what is lent of it:
    what has ended and is not settled yet may be what is missing.
    """
    return any(amounts[held] > purse.left for purse, held, _ in lines.hard)
