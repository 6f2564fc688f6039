"""An amount of a resource that may be spent, and the exact book that is kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self

from apportion.core import calendar as dates
from apportion.core.errors import AmountError, BudgetError, SavedStateError
from apportion.core.resource import Resource, resource
from apportion.core.sliding import Sliding

_NS = 10**9


@dataclass(frozen=True, slots=True)
class Budget:
    """``amount`` of ``resource`` (in its unit) that ``scope`` may spend.

    Five kinds:

    - no ``window_s``, ``calendar`` or ``refill_per_s``: the amount is for ever;
    - ``window_s``: the amount is anew in each window ``[origin_s + k * window_s, origin_s + (k+1) *
      window_s)``; with the default origin and Unix time, 86400 means days of UTC;
    - ``window_s`` and ``sliding``: in no interval of that length is more than the amount spent; what is spent
      gives its room back after ``window_s`` and at most a sixtieth more;
    - ``calendar``: the amount is anew with each day, week (from Monday) or month of ``time_zone``, a name of
      the IANA database; times are Unix times;
    - ``refill_per_s``: a bucket that holds at most ``amount``, starts full and gains so much a second.

    A hard budget is never overspent: what could break it is refused. As long as anything is left, up to
    ``overdraft`` (in the unit) more than that may be taken; the next window pays for it, or the refill.
    A soft budget only moves prices. ``scope`` says who shares it ("all", "team", "key", ...); what a scope
    means is the business of whoever keeps the ledger.
    """

    name: str
    resource: str
    amount: float | Decimal
    window_s: float | None = None
    refill_per_s: float | Decimal | None = None
    scope: str = "all"
    hard: bool = True
    origin_s: float = 0.0
    calendar: dates.Calendar | None = None
    time_zone: str = "UTC"
    sliding: bool = False
    overdraft: float | Decimal = 0

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
        self._check_window()
        if not _finite(self.overdraft):
            raise self._wrong("overdraft", "a finite number of zero or more")

    def _check_window(self) -> None:
        if self.calendar is not None:
            if self.calendar not in dates.CALENDARS:
                raise self._wrong("calendar", "'day', 'week', 'month' or None")
            for other in ("window_s", "refill_per_s"):
                if getattr(self, other) is not None:
                    raise BudgetError(
                        f"Budget {self.name!r} has both calendar and {other}.", field=other, fix="Keep one."
                    )
        if dates.zone(self.time_zone) is None:
            raise self._wrong("time_zone", "a time zone that this machine knows, such as 'Europe/Berlin'")
        if self.sliding and self.window_s is None:
            raise BudgetError(
                f"Budget {self.name!r} is sliding, but has no length.", field="sliding", fix="Give window_s."
            )

    def _wrong(self, field: str, allowed: str) -> BudgetError:
        return BudgetError(
            f"The {field!r} of budget {self.name!r} must be {allowed}, got {getattr(self, field)!r}.",
            field=field,
        )

    @property
    def unit(self) -> Resource:
        """The resource itself, with its unit."""
        return resource(self.resource)

    @property
    def length_s(self) -> float | None:
        """Length of the window in seconds, of a ``calendar`` the mean one; None without a window."""
        return dates.CALENDARS[self.calendar] if self.calendar is not None else self.window_s

    def window(self, now: float) -> tuple[float, float]:
        """Start and end, in seconds, of the window that ``now`` falls in; endless without one. A ``sliding``
        one ends now.
        """
        if self.calendar is None and self.window_s is None:
            return (-math.inf, math.inf)
        if self.sliding and self.window_s is not None:
            return (now - self.window_s, now)
        number = self.number(now)
        return (self.start_s(number), self.start_s(number + 1))

    def number(self, now: float) -> int:
        """Which window, counted without gaps, ``now`` falls in; for a budget with windows that do not slide."""
        if self.calendar is not None:
            return dates.index(self.calendar, dates.zone(self.time_zone) or UTC, now)
        return math.floor((now - self.origin_s) / (self.window_s or math.inf))

    def start_s(self, number: int) -> float:
        """When window ``number`` starts, and the one before it ends."""
        if self.calendar is not None:
            return dates.start_s(self.calendar, dates.zone(self.time_zone) or UTC, number)
        return self.origin_s + number * (self.window_s or math.inf)

    @property
    def turns(self) -> bool:
        """Whether the amount is anew at the ends of windows: neither for ever, nor sliding, nor refilled."""
        return self.calendar is not None or (self.window_s is not None and not self.sliding)


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

    ``lend`` gives units to somebody who reserves and spends them elsewhere and says so later, with ``move``.
    What is lent counts as if reserved. A bucket holds at most its amount together with what is lent of it, so
    that lending allows no larger bursts.
    """

    __slots__ = (
        "_amount",
        "_at",
        "_before",
        "_end",
        "_forgiven",
        "_hard",
        "_level",
        "_overdraft",
        "_part",
        "_per",
        "_rate",
        "_sliding",
        "_windows",
        "budget",
        "lent_units",
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
        self._overdraft = unit.to_units(budget.overdraft)
        self._level = self._amount
        """What may still be reserved; below zero only by an overrun or overdraft, or in a soft budget."""
        self.reserved_units = 0
        self.lent_units = 0
        self.spent_units = 0
        """Settled since the account was opened."""
        self._before = 0
        """Of that, what was spent before the present window."""
        self._forgiven = 0
        """Of the overrun, what the next window does not pay for: a smaller budget made it, no spending."""
        self._windows: int | None = None
        self._end = -math.inf if budget.turns else math.inf
        """When the account next needs a look: the window ends, or a part of a sliding one."""
        self._at: int | None = None
        self._part = 0
        self._rate, self._per = _rate(budget)
        self._sliding = _sliding(budget, self._amount)

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
        level = self._level
        if (
            amount_units > level
            and amount_units
            and self._hard
            and (level <= 0 or amount_units > level + self._overdraft)
        ):
            return False
        self._level = level - amount_units
        self.reserved_units += amount_units
        return True

    def lend(self, amount_units: int, now: float) -> bool:
        """Like `reserve`, for somebody else to spend; `move` takes it back."""
        if not self.reserve(amount_units, now):
            return False
        self.reserved_units -= amount_units
        self.lent_units += amount_units
        return True

    def spend(self, amount_units: int, now: float) -> bool:
        """Spend ``amount_units`` without a reservation; False, and nothing spent, if a hard budget has less."""
        if not self.reserve(amount_units, now):
            return False
        self.reserved_units -= amount_units
        self.spent_units += amount_units
        if self._sliding is not None:
            self._slide_in(amount_units, now)
        return True

    def refund(self, amount_units: int, now: float) -> None:
        """Take a `spend` of ``amount_units`` back. What an earlier window spent gives nothing to this one."""
        if not 0 <= amount_units <= self.spent_units:
            _whole(amount_units)
            raise self._short(amount_units, self.spent_units, "has spent", "amount_units")
        self._advance(now)
        self._refund(amount_units, now)

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
        level = self._level + reserved_units - actual_units
        if self._rate and level > self._amount - self.lent_units:
            level = self._amount - self.lent_units
        self._level = level
        self.spent_units += actual_units
        if self._sliding is not None:
            self._slide_in(actual_units, now)

    def release(self, reserved_units: int, now: float) -> None:
        """Give a reservation back unspent."""
        self.settle(reserved_units, 0, now)

    def move(self, *, lent: int = 0, reserved: int = 0, spent: int = 0, now: float) -> None:
        """Change what is lent, reserved and spent by so many units each, all at once; never refused.

        For what somebody else has done with units that he was lent: ``lent=-5, reserved=5`` is his
        reservation, ``reserved=-5, spent=3`` its settlement. What the three take together is taken from what is
        available, even if there is less, as in `settle`; what they give is given back. ``spent`` below zero is
        a `refund`. Raises `AmountError`, and changes nothing, if less than none would be left of one of them.
        """
        for delta, have, verb, field in (
            (lent, self.lent_units, "has lent", "lent"),
            (reserved, self.reserved_units, "holds", "reserved"),
            (spent, self.spent_units, "has spent", "spent"),
        ):
            if have + delta < 0:
                raise self._short(-delta, have, verb, field)
        self._advance(now)
        self.lent_units += lent
        self.reserved_units += reserved
        self._level -= lent + reserved
        if spent < 0:
            self._refund(-spent, now)
        else:
            self._level -= spent
            self.spent_units += spent
            if self._sliding is not None:
                self._slide_in(spent, now)
        if self._rate:
            self._level = min(self._level, self._amount - self.lent_units)

    @property
    def level_units(self) -> int:
        """What was left when the account last changed, without any overdraft; cheaper than `available_units`,
        and older.
        """
        return self._level

    def available_units(self, now: float) -> int:
        """What may be reserved now, with the overdraft. Never below zero for a hard budget; a soft one shows
        its excess as negative.
        """
        self._advance(now)
        if not self._hard:
            return self._level
        return self._level + self._overdraft if self._level > 0 else 0

    def balance_units(self, now: float) -> int:
        """What has not been spent: left, reserved or lent. Never below zero for a hard budget."""
        self._advance(now)
        balance = self._level + self._held
        return max(0, balance) if self._hard else balance

    def overrun_units(self, now: float) -> int:
        """By how much measured costs have passed what there was, not yet made up for."""
        self._advance(now)
        return max(0, -(self._level + self._held))

    def window_spent_units(self, now: float) -> int:
        """What was spent in the window that ``now`` falls in; without one, since the account was opened.

        A refund takes from the present window what that has spent, and the rest from those before.
        """
        self._advance(now)
        if self._sliding is not None:
            return self._sliding.total_units + self._sliding.owed_units
        return self.spent_units - self._before

    def wait_s(self, amount_units: int, now: float) -> float | None:
        """Seconds until ``amount_units`` fit, if nobody else takes any and open reservations and loans stay.

        None when no such time is known: more than the budget ever holds, or a budget without window and
        refill.
        """
        _whole(amount_units)
        self._advance(now)
        needed = max(1, amount_units - self._overdraft) if amount_units else 0
        missing = needed - self._level
        if missing <= 0 or not amount_units or not self._hard:
            return 0.0
        if self.budget.refill_per_s is not None:
            if needed > self._amount - self.lent_units or not self._rate:
                return None
            return -((self._part - missing * self._per) // self._rate) / _NS
        room = self._amount - self._held - needed
        if room < 0 or not self._amount:
            return None
        if self._sliding is not None:
            return self._sliding.wait_s(missing, now)
        if self._windows is None:
            return None
        owed = max(0, -(self._level + self._held + self._forgiven))
        windows = 1 + -(-max(0, owed - room) // self._amount)
        return max(0.0, self.budget.start_s(self._windows + windows) - now)

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
        before, amount, held = self._amount, budget.unit.to_units(budget.amount), self._held
        owed = max(0, -(self._level + held + self._forgiven))
        if self._sliding is not None:
            owed = self._sliding.owed_units
            self._before = self.spent_units - self._sliding.total_units - owed
        rate, per = _rate(budget)
        self._forgiven = 0
        if rate or self._rate:
            level = self._level
            if level > 0:
                level = level * amount // before
            self._level = min(level, amount - (self.lent_units if rate else held))
            owed = max(0, -(self._level + held))
            self._at, self._part = (self._at or int(now * _NS), 0) if rate else (None, 0)
            self._before = 0 if rate else self.spent_units
        else:
            self._level += amount - before
            if budget.turns:
                self._forgiven = max(0, -owed - self._level - held)
        same = _window(budget) == _window(self.budget)
        self.budget, self._hard = budget, budget.hard
        self._amount, self._rate, self._per = amount, rate, per
        self._overdraft = budget.unit.to_units(budget.overdraft)
        if not same:
            self._windows = budget.number(now) if budget.turns else None
            self._end = math.inf if self._windows is None else budget.start_s(self._windows + 1)
        self._change_sliding(owed, same, now)

    def _change_sliding(self, owed: int, same: bool, now: float) -> None:
        before = self._sliding
        if not self.budget.sliding:
            self._sliding = None
            return
        after = before if same else None
        if after is None:
            after = self._sliding = _sliding(self.budget, self._amount)
        if after is None:
            return
        if same:
            after.change(self._amount if self._hard else None, now)
        elif before is not None:
            before.move_to(after, now)
            self._level += after.slide(now)
        else:
            after.begin(self._amount - self._level - self._held - owed, owed, now)
        self._end = after.end_s

    def save(self) -> dict[str, Any]:
        """The book as an object that JSON can carry: whole numbers, None and lists of them."""
        saved: dict[str, Any] = {name: getattr(self, name) for name in _SAVED}
        saved["_sliding"] = None if self._sliding is None else self._sliding.save()
        return saved

    @classmethod
    def load(cls, budget: Budget, saved: dict[str, Any]) -> Self:
        """An account that continues from what `save` returned, with the same budget; an older release's too."""
        self = cls(budget)
        missing = (set(_SAVED) | {"_sliding"}) - saved.keys()
        sliding = saved.get("_sliding")
        if (
            (missing and missing != set(_LATER))
            or saved.keys() - set(_SAVED) - {"_sliding", "_end"}
            or (sliding is None) is not (self._sliding is None)
        ):
            raise SavedStateError(
                f"The saved account of {budget.name!r} has the wrong fields.", field=budget.name
            )
        for name in _SAVED:
            if name not in missing:
                setattr(self, name, saved[name])
        if missing and not self._rate:
            self._before = max(0, self.spent_units - (self._amount - self._level - self._held))
        if self._sliding is not None and sliding is not None:
            self._sliding = Sliding.load(sliding, self._sliding)
            self._end = self._sliding.end_s
        elif self._windows is not None:
            self._end = budget.start_s(self._windows + 1)
        return self

    def __repr__(self) -> str:
        return f"Account({self.budget.name!r}, level={self._level}, reserved={self.reserved_units})"

    @property
    def _held(self) -> int:
        return self.reserved_units + self.lent_units

    def _short(self, wanted: int, have: int, verb: str, field: str) -> AmountError:
        return AmountError(f"Account {self.budget.name!r} {verb} {have} units, not {wanted}.", field=field)

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
            most = self._amount - self.lent_units
            if self._level >= most:
                self._level, self._part = most, 0

    def _refund(self, amount_units: int, now: float) -> None:
        self.spent_units -= amount_units
        self._before = min(self._before, self.spent_units)
        if self._sliding is not None:
            self._level += self._sliding.refund(amount_units, now)
            self._end = self._sliding.end_s
        else:
            room = self._amount - (self.lent_units if self._rate else self._held)
            self._level = min(self._level + amount_units, room)

    def _slide_in(self, spent_units: int, now: float) -> None:
        sliding = self._sliding
        if sliding is not None:
            sliding.spend(spent_units, now)
            self._end = sliding.end_s

    def _turn(self, now: float) -> None:
        if self._sliding is not None:
            self._level += self._sliding.slide(now)
            self._end = self._sliding.end_s
            return
        count = self.budget.number(now)
        turned = 1
        if self._windows is not None:
            count = max(count, self._windows + 1)  # rounding must not give one window out twice
            turned = count - self._windows
        self._windows = count
        self._end = self.budget.start_s(count + 1)
        self._before = self.spent_units
        unspent = self._level + self._held + self._forgiven
        self._forgiven = 0
        fresh = (
            min(self._amount, unspent + turned * self._amount) if unspent < 0 and self._hard else self._amount
        )
        self._level = fresh - self._held


_SAVED = (
    "_at",
    "_before",
    "_forgiven",
    "_level",
    "_part",
    "_windows",
    "lent_units",
    "reserved_units",
    "spent_units",
)
_LATER = ("_before", "_sliding", "lent_units")
"""What accounts did not have before they could be lent from."""


def _window(budget: Budget) -> tuple[object, ...]:
    """What makes the windows of two budgets the same."""
    return (budget.window_s, budget.origin_s, budget.calendar, budget.time_zone, budget.sliding)


def _sliding(budget: Budget, amount_units: int) -> Sliding | None:
    if not budget.sliding or budget.window_s is None:
        return None
    return Sliding(budget.window_s, budget.origin_s, amount_units if budget.hard else None)


@lru_cache(maxsize=1024, typed=True)
def _units_per_ns(refill_per_s: float | Decimal, decimals: int) -> tuple[int, int]:
    rate = Fraction(str(refill_per_s)) * 10**decimals / _NS
    return (rate.numerator, rate.denominator)


def _rate(budget: Budget) -> tuple[int, int]:
    """Units that a bucket gains in a nanosecond, as a fraction; 0 without refill."""
    if budget.refill_per_s is None:
        return (0, 1)
    return _units_per_ns(budget.refill_per_s, budget.unit.decimals)


def _whole(units: int) -> None:
    if units < 0:
        raise AmountError(f"A number of units must be zero or more, got {units!r}.", field="units")
