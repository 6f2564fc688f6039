"""An amount of a resource that may be spent, and the exact book that is kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Self

from apportion.core.errors import AmountError, BudgetError, SavedStateError
from apportion.core.resource import Resource, resource

_NS = 10**9


@dataclass(frozen=True, slots=True)
class Budget:
    """``amount`` of ``resource`` (in its unit) that ``scope`` may spend.

    Three kinds:

    - ``window_s`` and ``refill_per_s`` None: the amount is for ever;
    - ``window_s`` set: the amount is anew in each window ``[origin_s + k * window_s, origin_s + (k+1) *
      window_s)``; with the default origin and Unix time, 86400 means days of UTC;
    - ``refill_per_s`` set: a bucket that holds at most ``amount``, starts full and gains so much a second.

    A hard budget is never overspent: what could break it is refused. A soft one only moves prices.
    ``scope`` says who shares it ("all", "team", "key", ...); what a scope means is the business of
    whoever keeps the ledger.
    """

    name: str
    resource: str
    amount: float | Decimal
    window_s: float | None = None
    refill_per_s: float | Decimal | None = None
    scope: str = "all"
    hard: bool = True
    origin_s: float = 0.0

    def __post_init__(self) -> None:
        resource(self.resource)
        if not _finite(self.amount):
            raise self._wrong("amount", "a finite number of zero or more")
        if self.window_s is not None and not (_finite(self.window_s) and self.window_s >= 1e-3):
            raise self._wrong("window_s", "at least 0.001 seconds, or None for ever")
        if self.refill_per_s is not None and not _finite(self.refill_per_s):
            raise self._wrong("refill_per_s", "a finite number of zero or more, or None")
        if self.window_s is not None and self.refill_per_s is not None:
            raise BudgetError(
                f"Budget {self.name!r} has both window_s and refill_per_s.",
                field="refill_per_s",
                fix="Keep one.",
            )
        if not -1e15 <= self.origin_s <= 1e15:
            raise self._wrong("origin_s", "a time in seconds")

    def _wrong(self, field: str, allowed: str) -> BudgetError:
        return BudgetError(
            f"The {field!r} of budget {self.name!r} must be {allowed}, got {getattr(self, field)!r}.",
            field=field,
        )

    @property
    def unit(self) -> Resource:
        """The resource itself, with its unit."""
        return resource(self.resource)

    def window(self, now: float) -> tuple[float, float]:
        """Start and end, in seconds, of the window that ``now`` falls in; endless without ``window_s``."""
        if self.window_s is None:
            return (-math.inf, math.inf)
        k = math.floor((now - self.origin_s) / self.window_s)
        return (self.origin_s + k * self.window_s, self.origin_s + (k + 1) * self.window_s)


def _finite(number: float | Decimal) -> bool:
    return (
        not isinstance(number, bool) and isinstance(number, int | float | Decimal) and 0 <= number < math.inf
    )


class Account:
    """The in-memory book of one budget, in whole numbers of the resource's smallest part. Constant memory.

    ``reserve`` the most a thing may cost, then ``settle`` with what it did cost or ``release``. What is
    settled counts in the window in which it is settled; a reservation that is still open when a window
    ends keeps its room in the next. Should something cost more than was reserved, and more than is left
    of a hard budget, the balance stays at zero and the excess (`overrun_units`) is paid first out of what
    comes next. Time that runs backwards counts as standing still.
    """

    __slots__ = (
        "_amount",
        "_at",
        "_end",
        "_forgiven",
        "_hard",
        "_level",
        "_part",
        "_per",
        "_rate",
        "_windows",
        "budget",
        "reserved_units",
        "resource",
        "spent_units",
    )

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.resource = budget.resource
        unit = budget.unit
        self._hard = budget.hard
        self._amount = unit.to_units(budget.amount)
        self._level = self._amount
        """What may still be reserved; below zero only by an overrun, or in a soft budget."""
        self.reserved_units = 0
        self.spent_units = 0
        """Settled since the account was opened."""
        self._forgiven = 0
        """Of the overrun, what the next window does not pay for: a smaller budget made it, no spending."""
        self._windows: int | None = None
        self._end = -math.inf if budget.window_s is not None else math.inf
        self._at: int | None = None
        self._part = 0
        self._rate, self._per = _rate(budget)

    def reserve(self, amount_units: int, now: float) -> bool:
        """Hold ``amount_units``; False, and nothing held, if a hard budget has not so much available.

        Nothing (0) always fits, even into an overrun budget: what is free needs no budget.
        """
        if amount_units < 0:
            _whole(amount_units)
        if self._rate:
            self._refill(now)
        elif now >= self._end:
            self._turn(now)
        if amount_units > self._level and amount_units and self._hard:
            return False
        self._level -= amount_units
        self.reserved_units += amount_units
        return True

    def spend(self, amount_units: int, now: float) -> bool:
        """Spend ``amount_units`` without a reservation; False, and nothing spent, if a hard budget has less."""
        if not self.reserve(amount_units, now):
            return False
        self.reserved_units -= amount_units
        self.spent_units += amount_units
        return True

    def refund(self, amount_units: int, now: float) -> None:
        """Take a `spend` of ``amount_units`` back. What an earlier window spent gives nothing to this one."""
        if not 0 <= amount_units <= self.spent_units:
            _whole(amount_units)
            raise AmountError(
                f"Account {self.budget.name!r} has spent {self.spent_units} units, not {amount_units}.",
                field="amount_units",
            )
        self._advance(now)
        self.spent_units -= amount_units
        room = self._amount if self._rate else self._amount - self.reserved_units
        self._level = min(self._level + amount_units, room)

    def settle(self, reserved_units: int, actual_units: int, now: float) -> None:
        """Turn a reservation of ``reserved_units`` into a cost of ``actual_units``."""
        if actual_units < 0 or reserved_units < 0 or reserved_units > self.reserved_units:
            _whole(actual_units)
            self._refuse(reserved_units)
        if now >= self._end:
            self._turn(now)
        # A bucket is not refilled here: what it gained since counts at the next look, as if the reservation
        # had been spent when it was made.
        self.reserved_units -= reserved_units
        level = self._level + reserved_units
        if self._rate and level > self._amount:
            level = self._amount
        self._level = level - actual_units
        self.spent_units += actual_units

    def release(self, reserved_units: int, now: float) -> None:
        """Give a reservation back unspent."""
        self.settle(reserved_units, 0, now)

    @property
    def level_units(self) -> int:
        """What was available when the account last changed; cheaper than `available_units`, and older."""
        return self._level

    def available_units(self, now: float) -> int:
        """What may be reserved now. Never below zero for a hard budget; a soft one shows its excess as
        negative.
        """
        self._advance(now)
        return max(0, self._level) if self.budget.hard else self._level

    def balance_units(self, now: float) -> int:
        """What has not been spent: available or reserved. Never below zero for a hard budget."""
        self._advance(now)
        balance = self._level + self.reserved_units
        return max(0, balance) if self.budget.hard else balance

    def overrun_units(self, now: float) -> int:
        """By how much measured costs have passed what there was, not yet made up for."""
        self._advance(now)
        return max(0, -(self._level + self.reserved_units))

    def wait_s(self, amount_units: int, now: float) -> float | None:
        """Seconds until ``amount_units`` fit, if nobody else takes any and open reservations stay open.

        None when no such time is known: more than the budget ever holds, or a budget without window and
        refill.
        """
        _whole(amount_units)
        self._advance(now)
        missing = amount_units - self._level
        if missing <= 0 or not amount_units or not self.budget.hard:
            return 0.0
        if self.budget.refill_per_s is not None:
            if amount_units > self._amount or not self._rate:
                return None
            return -((self._part - missing * self._per) // self._rate) / _NS
        if self.budget.window_s is None:
            return None
        room = self._amount - self.reserved_units - amount_units
        if room < 0 or not self._amount:
            return None
        owed = max(0, -(self._level + self.reserved_units + self._forgiven))
        windows = 1 + -(-max(0, owed - room) // self._amount)
        return max(0.0, self._end - now) + (windows - 1) * self.budget.window_s

    def change(self, budget: Budget, now: float) -> None:
        """Go over to another budget of the same resource; reservations stay, and may be settled as ever.

        What is spent stays spent: in the window that ``now`` falls in, or for ever. A budget that is smaller
        than that is used up until its window ends, and no longer. From or to a bucket, the same share of the
        amount is left as before.
        """
        if budget.resource != self.resource:
            raise BudgetError(
                f"Account {self.budget.name!r} is in {self.resource}, budget {budget.name!r} is not.",
                field="resource",
            )
        self._advance(now)
        before, amount = self._amount, budget.unit.to_units(budget.amount)
        owed = min(0, self._level + self.reserved_units + self._forgiven)
        rate, per = _rate(budget)
        self._forgiven = 0
        if rate or self._rate:
            level = self._level
            if level > 0:
                level = level * amount // before
            self._level = level if rate else min(level, amount - self.reserved_units)
            self._at, self._part = (self._at or int(now * _NS), 0) if rate else (None, 0)
        else:
            self._level += amount - before
            if budget.window_s is not None:
                self._forgiven = max(0, owed - self._level - self.reserved_units)
        if budget.window_s is None:
            self._windows, self._end = None, math.inf
        elif (budget.window_s, budget.origin_s) != (self.budget.window_s, self.budget.origin_s):
            self._windows = math.floor((now - budget.origin_s) / budget.window_s)
            self._end = budget.origin_s + (self._windows + 1) * budget.window_s
        self.budget, self._hard = budget, budget.hard
        self._amount, self._rate, self._per = amount, rate, per

    def save(self) -> dict[str, Any]:
        """The book as an object that JSON can carry."""
        return {name: getattr(self, name) for name in _SAVED}

    @classmethod
    def load(cls, budget: Budget, saved: dict[str, Any]) -> Self:
        """An account that continues from what `save` returned."""
        self = cls(budget)
        if saved.keys() != set(_SAVED):
            raise SavedStateError(
                f"The saved account of {budget.name!r} has the wrong fields.", field=budget.name
            )
        for name, value in saved.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"Account({self.budget.name!r}, level={self._level}, reserved={self.reserved_units})"

    def _refuse(self, reserved_units: int) -> None:
        _whole(reserved_units)
        if reserved_units > self.reserved_units:
            raise AmountError(
                f"Account {self.budget.name!r} holds {self.reserved_units} units, not {reserved_units}:"
                " a reservation was settled or released twice.",
                field="reserved_units",
            )

    def _advance(self, now: float) -> None:
        if self._rate:
            self._refill(now)
        elif now >= self._end:
            self._turn(now)

    def _refill(self, now: float) -> None:
        at = int(now * _NS)
        before = self._at
        if before is None:
            self._at = at
        elif at > before:
            self._at = at
            gained, self._part = divmod((at - before) * self._rate + self._part, self._per)
            self._level += gained
            if self._level >= self._amount:
                self._level, self._part = self._amount, 0

    def _turn(self, now: float) -> None:
        window_s = self.budget.window_s
        if window_s is None:
            return
        count = math.floor((now - self.budget.origin_s) / window_s)
        turned = 1
        if self._windows is not None:
            count = max(count, self._windows + 1)  # rounding must not give one window out twice
            turned = count - self._windows
        self._windows = count
        self._end = self.budget.origin_s + (count + 1) * window_s
        unspent = self._level + self.reserved_units + self._forgiven
        self._forgiven = 0
        fresh = (
            min(self._amount, unspent + turned * self._amount)
            if unspent < 0 and self.budget.hard
            else self._amount
        )
        self._level = fresh - self.reserved_units


_SAVED = ("_at", "_end", "_forgiven", "_level", "_part", "_windows", "reserved_units", "spent_units")


def _rate(budget: Budget) -> tuple[int, int]:
    """Units that a bucket gains in a nanosecond, as a fraction; 0 without refill."""
    if budget.refill_per_s is None:
        return (0, 1)
    rate = Fraction(str(budget.refill_per_s)) * 10**budget.unit.decimals / _NS
    return (rate.numerator, rate.denominator)


def _whole(units: int) -> None:
    if units < 0:
        raise AmountError(f"A number of units must be zero or more, got {units!r}.", field="units")
