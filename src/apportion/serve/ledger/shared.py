"""One account as Redis keeps it: the book, who has what of it, and how that changes. Pure; times are passed in.

The book comes from the database, which counts what was spent and knows of nothing lent but *lines*: the most that a
holder may have. What is lent is only here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from apportion.core.budget import Account
from apportion.serve.ledger import definitions
from apportion.serve.ledger.entries import Grant, Move

RECALL_US: Final = 2_000_000
"""For so long others are asked to give back what lies unused, after somebody was refused for it."""


class Lease(NamedTuple):
    """What a holder has of an account: ``free`` to promise, ``reserved`` promised. ``kept``: it is dead, and this
    much is not lent to anybody else until its journal was read or its time is over.
    """

    free: int
    reserved: int
    kept: bool = False

    @property
    def units(self) -> int:
        return self.free + self.reserved


NONE: Final = Lease(0, 0)


class Line(NamedTuple):
    """The most that a holder has of an account, as the database knows it. If ``dead``, ``presumed`` of that has
    been charged to the account since.
    """

    units: int
    dead: bool = False
    presumed: int = 0


class Recorded(NamedTuple):
    """One account as the database knows it: its book, with nothing lent, and the lines of all holders."""

    account: Account
    lines: Mapping[str, Line]


class SharedAccount:
    """The book of one account with its leases.

    ``ahead``: holders with a batch that the database has counted and that they have not carried out here yet, with
    its number. What it spent is in the book already.
    """

    __slots__ = ("account", "ahead", "at_us", "changed", "leases", "recall_us")

    def __init__(self, account: Account, at_us: int = 0) -> None:
        self.account = account
        self.changed = False
        """Whether anything but time has moved on since it was read."""
        self.leases: dict[str, Lease] = {}
        self.ahead: dict[str, int] = {}
        self.at_us = at_us
        self.recall_us = 0

    @classmethod
    def install(cls, recorded: Recorded, ahead: Mapping[str, int], now_us: int) -> Self:
        """Begin with what the database knows. Until a holder says what it has, that is its whole line."""
        self = cls(recorded.account, now_us)
        self.changed = True
        self.ahead = dict(ahead)
        for holder, line in recorded.lines.items():
            self._set(holder, _rest(line, line.units))
        return self

    def refresh(self, recorded: Recorded, ahead: Mapping[str, int], now_us: int) -> None:
        """Take over what the database has counted, and what became of dead holders. Leases of others stay.

        ``recorded`` must have been read after this account.
        """
        now = self._now(now_us)
        self.changed = True
        other = recorded.account.resource != self.account.resource
        leases = {} if other else dict(self.leases)  # a new budget by an old name: who had units had others
        if other or recorded.account.budget.refill_per_s is None:
            self.leases = {}
            self.account = recorded.account
            for holder, lease in leases.items():
                self._set(holder, lease)
        else:  # how full a bucket is depends on when things were lent, which only this book knows
            missing = recorded.account.spent_units - self.account.spent_units
            if self.account.budget != recorded.account.budget:
                self.account.change(recorded.account.budget, now)
            self.account.move(spent=missing, now=now)
        self.ahead = dict(ahead)
        for holder in leases.keys() - recorded.lines.keys():
            self._set(holder, NONE)
        for holder, line in recorded.lines.items():
            if line.dead:
                self._set(holder, _kept(line, leases[holder]) if holder in leases else NONE)

    def tell(self, holder: str, move: Move, number: int, now_us: int) -> None:
        """Carry out a move of ``holder``. ``number`` is that of its last batch that the database has counted; what
        ``move`` has spent was spent in that one. How the budget is defined is left to the database.
        """
        self._now(now_us)
        spent = move.spent if number > self.ahead.pop(holder, 0) else 0
        self._set(holder, Lease(move.free, move.reserved), spent)

    def grant(self, holder: str, move: Move, most: int, now_us: int) -> Grant:
        """Lend what ``move`` wants, if there is enough, and no more than ``most``; say how the account stands."""
        now = self._now(now_us)
        account = self.account
        account.available_units(now)
        others = sum(lease.free for who, lease in self.leases.items() if who != holder and not lease.kept)
        granted = 0
        wait_s: float | None = 0.0
        if move.want:
            if move.want <= most and account.lend(move.want, now):
                granted = move.want + self._more(holder, move, most)
                account.lend(granted - move.want, now)
                free, reserved, _ = self.leases.get(holder, NONE)
                self.leases[holder] = Lease(free + granted, reserved)
                self.changed = True
            else:
                wait_s = account.wait_s(move.want, now)
                if others:
                    self.recall_us = self.at_us + RECALL_US
                    self.changed = True
        mine = self.leases.get(holder, NONE).free
        if self.recall_us and (self.at_us >= self.recall_us or not others + mine):
            self.recall_us = 0
        recall = bool(self.recall_us and mine and not move.want)
        return Grant(move.account, granted, account.level_units, others, wait_s, recall)

    def _more(self, holder: str, move: Move, most: int) -> int:
        """What is lent on top of what is wanted: what would be liked, but leave as much to every other holder."""
        holders = len(self.leases.keys() | {holder})
        more = min(move.like, most) - move.want
        return max(0, min(more, self.account.level_units // (2 * holders)))

    @property
    def idle(self) -> bool:
        """Whether the database knows as much: nothing of it is lent."""
        return not self.leases

    def check(self, id: str, recorded: Recorded | None, now_us: int) -> list[str]:
        """What does not agree with the database, or in itself, a sentence each."""
        if recorded is None:
            return [f"Redis has account {id!r}, the database does not."]
        ours, theirs, now = self.account, recorded.account, max(self.at_us, now_us) / 1e6
        ours.available_units(now)
        theirs.available_units(now)
        held = ours.level_units + ours.lent_units + ours.reserved_units
        found = []
        for what, units, right in (
            ("has lent", ours.lent_units, sum(lease.free for lease in self.leases.values())),
            ("holds", ours.reserved_units, sum(lease.reserved for lease in self.leases.values())),
            ("has spent", ours.spent_units, theirs.spent_units),
        ):
            if units != right:
                found.append(f"Account {id!r} {what} {units} units in Redis, not {right}.")
        # A bucket fills between a reservation and its settlement: the two are not equally full.
        if held > theirs.level_units and ours.budget.refill_per_s is None:
            found.append(
                f"Account {id!r} has {held} units left or lent in Redis, {theirs.level_units} are left."
            )
        for holder, lease in self.leases.items():
            line = recorded.lines.get(holder)
            if line is None or lease.units > line.units:
                found.append(
                    f"Worker {holder} has {lease.units} units of {id!r}, its line is {line and line.units}."
                )
        return found

    def encode(self) -> bytes:
        """Everything as JSON, with integers of any size."""
        said = {
            "budget": definitions.encode(self.account.budget),
            "book": self.account.save(),
            "leases": self.leases,
            "ahead": self.ahead,
            "at_us": self.at_us,
            "recall_us": self.recall_us,
        }
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """What `encode` wrote."""
        said = json.loads(text)
        self = cls(Account.load(definitions.decode(said["budget"]), said["book"]), said["at_us"])
        self.leases = {holder: Lease(*lease) for holder, lease in said["leases"].items()}
        self.ahead = said["ahead"]
        self.recall_us = said["recall_us"]
        return self

    def _now(self, now_us: int) -> float:
        """Time never runs backwards in one account, whoever says what time it is."""
        self.at_us = max(self.at_us, now_us)
        return self.at_us / 1e6

    def _set(self, holder: str, lease: Lease, spent: int = 0) -> None:
        before = self.leases.pop(holder, NONE)
        free, reserved = lease.free - before.free, lease.reserved - before.reserved
        if free or reserved or spent:
            self.account.move(lent=free, reserved=reserved, spent=spent, now=self.at_us / 1e6)
            self.changed = True
        if lease.units:
            self.leases[holder] = lease


def _rest(line: Line, units: int) -> Lease:
    if not line.dead:
        return Lease(units, 0)
    return Lease(max(0, units - line.presumed), 0, kept=True)


def _kept(line: Line, lease: Lease) -> Lease:
    """What a dead holder keeps of its lease. Done twice it is done once."""
    if lease.kept:
        return Lease(min(lease.free, max(0, line.units - line.presumed)), 0, kept=True)
    return _rest(line, min(line.units, lease.units))
