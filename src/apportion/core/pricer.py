"""Prices of resources: what they cost outside, plus a shadow price that the budgets on them add.

A budget's shadow price is its Lagrange multiplier, learned online by mirror descent on the dual [1]_
[2]_: it rises when spending runs ahead of the budget's pace, falls when it runs behind, and is never
below zero.

For a budget, write x for an amount as a fraction of the budget, a for the fraction that its pace allowed
since the last time, and mu for the multiplier (dollars for the whole budget; mu / amount is dollars per
unit). Then

    additive:        mu <- max(0, mu + eta * D * (x - a) / x_rms)      Euclidean: gradient descent
    multiplicative:  mu <- max(floor, mu * exp(eta * (x - a) / x_rms))  entropic: exponential weights

    eta = step / sqrt(N0 + n),    D = (sum of values bought) / (sum of x)

with no single rise above D (or e-fold), and the floor a tenth of D, subtracted again from the price shown.
Only these quotients enter, so that no unit of value, cost or time has to be tuned: n, D and the root
mean square x_rms of single spendings are measured as traffic comes, forgotten over one window
(scale-free steps as in [3]_); n counts no more spendings than one budget pays for. With eta of order
1 / sqrt(n), the loss against the best fixed prices grows like sqrt(n) [1]_. The cap, a multiple of D, keeps
a price from winding up while a soft budget is far overspent. It never binds at the optimum, because
everything that is bought there has a value a unit of at least the price, so that D is no less than the price.

The pace. A window's is what is left of the budget over what is left of the window (re-planned all the
time, which pays back what was over- or underspent), or, with ``pace="even"``, the amount over the window.
A refilled budget's is its refill (bandits with replenishable knapsacks [4]_), corrected so that the
bucket tends to be half full: an empty bucket hides demand, because what is refused is not spent. A sliding
window is such a bucket, gaining its amount in its length. A budget without window and refill has no pace and
adds nothing to prices; it only limits.

.. [1] S. Balseiro, H. Lu, V. Mirrokni (2023). "The Best of Many Worlds: Dual Mirror Descent for Online
   Allocation Problems." Operations Research 71(1). arXiv:2011.10124
.. [2] S. Agrawal, N. Devanur (2014). "Fast Algorithms for Online Stochastic Convex Programming."
   arXiv:1410.7596
.. [3] F. Orabona, D. Pal (2018). "Scale-Free Online Learning." Theoretical Computer Science 716.
   arXiv:1601.01974
.. [4] M. Bernasconi, M. Castiglioni, A. Celli, F. Fusco (2023). "Bandits with Replenishable Knapsacks:
   the Best of both Worlds." arXiv:2306.08470
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from apportion.core.budget import Budget
from apportion.core.cost import Cost
from apportion.core.errors import AmountError, BudgetError, SavedStateError
from apportion.core.method import Constraint, Interval, MappingOf, OneOf, check_parameters

LIMIT = 1e9
"""No shadow price is ever higher, in dollars per unit; that of a budget of zero is always this."""

_N0 = 10.0
"""As if so many spendings had been seen before the first: keeps the first steps from being wild."""

_FLOOR = 0.1
"""Where the multiplicative update starts from, as a share of D; the price it shows is what is above."""

_CATCH_UP = 10.0
"""A window's pace is at most so many times the even one, however much is left at its end."""

_DEBT = 9.0
"""An overrun counts for at most so many budgets, so that one monstrous bill is got over."""

_NOTHING = 1e-100
"""A smaller fraction of a budget cannot move its price (and its square would not be a number)."""

Update = Literal["additive", "multiplicative"]
Pace = Literal["adaptive", "even"]


class Pricer:
    """The prices of resources in dollars per unit, moved by spending.

    ``budgets`` are those that this traffic shares. ``outside`` is what a unit costs anyway. ``step``
    scales how fast shadow prices move. A shadow price never exceeds ``cap`` times D (the mean value that
    a unit of the resource has bought), nor `LIMIT`. ``worth_usd`` stands for the value of a spending when
    `spend` is not told it.

    Times are seconds on one clock, the one that the windows' origins are on; a time that runs backwards
    counts as standing still. Spendings may be given in batches, as their sum: a hundred batches in a window
    are enough for the additive update to come within a few per cent of the best, a thousand for the other.
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "update": OneOf("additive", "multiplicative"),
        "pace": OneOf("adaptive", "even"),
        "outside": MappingOf(Interval(float, 0.0, LIMIT)),
        "step": Interval(float, 0.0, 100.0, closed="right"),
        "cap": Interval(float, 0.0, 1e6, closed="right"),
        "worth_usd": Interval(float, 0.0, 1e9, closed="right"),
    }

    def __init__(
        self,
        budgets: Iterable[Budget] = (),
        *,
        update: Update = "additive",
        pace: Pace = "adaptive",
        outside: Mapping[str, float] | None = None,
        step: float = 0.5,
        cap: float = 4.0,
        worth_usd: float = 1.0,
    ) -> None:
        self.budgets = tuple(budgets)
        self.update = update
        self.pace = pace
        self.outside = {"usd": 1.0} if outside is None else dict(outside)
        self.step = step
        self.cap = cap
        self.worth_usd = worth_usd
        check_parameters("Pricer", self.constraints, {name: getattr(self, name) for name in self.constraints})
        if len({budget.name for budget in self.budgets}) < len(self.budgets):
            raise BudgetError(
                "Two budgets of one Pricer have the same name.", field="name", fix="Rename one."
            )
        self.unknown_spendings = 0
        """Spendings whose cost in a budgeted resource was unknown, and which moved no price."""
        self._duals = [
            _Dual(budget, update == "multiplicative", pace == "adaptive", step, cap)
            for budget in self.budgets
        ]
        self._cached: dict[str, float] | None = None
        self._cached_at = -math.inf
        self._fresh_s = min((dual.fresh_s for dual in self._duals), default=math.inf)

    def prices(self, now: float) -> Mapping[str, float]:
        """Price per unit of each resource that has an outside price or a budget. Reading changes nothing.

        The same dict is returned until a spending, or until a thousandth of the shortest window has
        passed; it is never changed after it was returned.
        """
        cached = self._cached
        if cached is not None and 0.0 <= now - self._cached_at < self._fresh_s:
            return cached
        _time(now)
        cached = dict(self.outside)
        for dual in self._duals:
            name = dual.budget.resource
            cached[name] = cached.get(name, 0.0) + dual.price(now)
        self._cached = cached
        self._cached_at = now
        return cached

    def spend(self, cost: Cost, now: float, value: float | None = None) -> None:
        """Take in a measured ``cost`` and, where known, the ``value`` in dollars that it bought.

        The value that the decision promised will do, and is better than a measured zero after a failure: it
        sets the scale of prices, and worthless spending must not make them fall. A budgeted resource that is
        unknown in ``cost`` moves no price. Raises `AmountError`, and changes nothing, when an amount, the
        value or the time is not a finite number (amounts: of zero or more).
        """
        cost.check()
        _time(now)
        worth = self.worth_usd if value is None else min(max(0.0, _finite("value", value)), 1e12)
        for dual in self._duals:
            amount = cost.get(dual.budget.resource)
            if amount is None:
                self.unknown_spendings += 1
            else:
                dual.spend(amount, worth, now)
        self._cached = None

    @property
    def shadow(self) -> Mapping[str, float]:
        """The shadow price of each budgeted resource when something was last spent, in dollars per unit."""
        found: dict[str, float] = {}
        for dual in self._duals:
            name = dual.budget.resource
            found[name] = found.get(name, 0.0) + dual.price(dual.at)
        return found

    def explain(self, now: float) -> str:
        """Every price in a sentence: its outside part and what each budget adds, and why."""
        lines = []
        for name, price in self.prices(now).items():
            outside = self.outside.get(name, 0.0)
            adds = [dual.explain(now) for dual in self._duals if dual.budget.resource == name]
            lines.append(
                f"{name}: {price:.4g} dollars a unit = " + " + ".join([f"{outside:.4g} outside", *adds])
            )
        return "\n".join(lines) or "Nothing has a price."

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        return {
            "unknown_spendings": self.unknown_spendings,
            "duals": {dual.budget.name: dual.save() for dual in self._duals},
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; budgets that it does not know start anew."""
        duals = saved.get("duals") if isinstance(saved, Mapping) else None
        if not isinstance(duals, Mapping):
            raise SavedStateError("The saved state is not a Pricer's.", field="duals")
        self.unknown_spendings = int(saved.get("unknown_spendings", 0))
        for dual in self._duals:
            if dual.budget.name in duals:
                dual.load(duals[dual.budget.name])
        self._cached = None


class _Dual:
    """The multiplier of one budget. Amounts are fractions of the budget, multipliers dollars for all of
    it.
    """

    __slots__ = (
        "adaptive",
        "amount",
        "at",
        "budget",
        "cap",
        "count",
        "end",
        "fractions",
        "fresh_s",
        "gain",
        "horizon_s",
        "left",
        "length_s",
        "mu",
        "multiplicative",
        "scale",
        "squares",
        "step",
        "values",
    )

    def __init__(self, budget: Budget, multiplicative: bool, adaptive: bool, step: float, cap: float) -> None:
        self.budget = budget
        self.multiplicative = multiplicative
        self.adaptive = adaptive
        self.step = step
        self.cap = cap
        self.amount = float(budget.amount)
        refill = float(budget.refill_per_s or 0.0)
        self.length_s = None if budget.sliding else budget.length_s
        """Of windows that end. A sliding one prices like a bucket: it gains its amount in its length."""
        if budget.length_s is not None:
            self.horizon_s = budget.length_s
        else:
            self.horizon_s = self.amount / refill if refill else math.inf
        self.horizon_s = max(self.horizon_s, 1e-6)
        self.fresh_s = self.horizon_s / 1000.0
        self.at = -math.inf
        self.end = math.inf
        self.left = 1.0
        self.mu = 0.0
        self.count = self.values = self.fractions = self.squares = 0.0
        self.scale = self.gain = 0.0

    def price(self, now: float) -> float:
        """Dollars per unit at ``now``."""
        if not self.amount:
            return LIMIT
        if not self.count:
            return 0.0
        mu = self._moved(0.0, self._allowed(max(now, self.at))[0])
        if self.multiplicative:
            mu -= min(_FLOOR, self.cap) * self.scale
        return min(max(0.0, mu / self.amount), LIMIT)

    def spend(self, amount: float, value: float, now: float) -> None:
        """Move the multiplier by a spending of ``amount`` units that was worth ``value`` dollars."""
        if not self.amount or math.isinf(self.horizon_s):
            return
        now = max(now, self.at)
        fraction = min(amount / self.amount, 1.0)
        allowed, self.left, self.end = self._allowed(now)
        if fraction > _NOTHING:
            keep = math.exp(-(now - self.at) / self.horizon_s)
            self.count = self.count * keep + 1.0
            self.values = self.values * keep + value
            self.fractions = self.fractions * keep + fraction
            self.squares = self.squares * keep + fraction * fraction
            self._measure()
        self.at = now
        if self.count:
            self.mu = self._moved(fraction, allowed)
        self.left = max(self.left - amount / self.amount, -_DEBT)

    def explain(self, now: float) -> str:
        """What this budget adds, and how its spending stands."""
        name, budget = f"{self.price(now):.4g} for budget {self.budget.name!r}", self.budget
        if not self.amount:
            return f"{name} (its amount is zero)"
        if math.isinf(self.horizon_s):
            return f"{name} (it has no window and no refill, so it only limits)"
        now = max(now, self.at)
        _, left, end = self._allowed(now)
        if budget.sliding:
            return f"{name} ({max(0.0, left):.0%} of its sliding window is left)"
        if self.length_s is None:
            return f"{name} (its bucket is {max(0.0, left):.0%} full)"
        length_s = self.length_s if budget.calendar is None else end - budget.window(now)[0]
        gone = 1.0 - min(1.0, (end - now) / length_s)
        return f"{name} ({1.0 - left:.0%} spent with {gone:.0%} of its window gone)"

    def save(self) -> dict[str, float | None]:
        """The learned part; times before the first spending are None."""
        return {name: _or_none(getattr(self, name)) for name in _SAVED}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from `save`."""
        if not isinstance(saved, Mapping) or saved.keys() != set(_SAVED):
            raise SavedStateError(
                f"The saved price of budget {self.budget.name!r} is {saved!r}, without {sorted(_SAVED)}.",
                field=self.budget.name,
            )
        for name, value in saved.items():
            setattr(self, name, _ENDLESS.get(name, 0.0) if value is None else _finite(name, value))
        self._measure()

    def _measure(self) -> None:
        """From what has been seen: D, and by how much a fraction of the budget moves the multiplier."""
        if self.count:
            self.scale = self.values / self.fractions
            eta = self.step / math.sqrt(_N0 + self.count / max(1.0, self.fractions))
            self.gain = eta / math.sqrt(self.squares / self.count)

    def _moved(self, fraction: float, allowed: float) -> float:
        """The multiplier after ``fraction`` was spent while ``allowed`` was: one step of mirror descent."""
        scale = self.scale
        drift = min(self.gain * (fraction - allowed), 1.0)
        if not self.multiplicative:
            return min(max(0.0, self.mu + scale * drift), self.cap * scale)
        floor = min(_FLOOR, self.cap) * scale
        risen = max(self.mu, floor) * math.exp(max(drift, -700.0))
        return min(max(risen, floor), self.cap * scale)

    def _allowed(self, now: float) -> tuple[float, float, float]:
        """From the last time until ``now``: the fraction the pace allowed; what is left; the window's end."""
        window_s = self.length_s
        if window_s is None:
            return self._allowed_by_refill(now)
        if self.at == -math.inf:
            return (0.0, 1.0, self.budget.window(now)[1])
        until = min(now, self.end)
        rate = 1.0 / window_s
        if self.adaptive:
            rate = min(max(0.0, self.left) / max(self.end - self.at, 1e-9 * window_s), _CATCH_UP / window_s)
        allowed = rate * (until - self.at)
        if now < self.end:
            return (allowed, self.left, self.end)
        return (allowed + (now - self.end) / window_s, 1.0, self.budget.window(now)[1])

    def _allowed_by_refill(self, now: float) -> tuple[float, float, float]:
        if self.at == -math.inf:
            return (0.0, 1.0, math.inf)
        gained = (now - self.at) / self.horizon_s
        left = min(1.0, self.left + gained)
        if not self.adaptive:
            return (gained, left, math.inf)
        return (gained * max(0.0, 0.5 + (max(0.0, self.left) + left) / 2.0), left, math.inf)


_ENDLESS = {"at": -math.inf, "end": math.inf}
"""What a time that JSON cannot carry stands for: never yet, and no end."""

_SAVED = ("at", "count", "end", "fractions", "left", "mu", "squares", "values")


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _finite(name: str, number: float, limit: float = sys.float_info.max) -> float:
    if not isinstance(number, int | float) or not -limit <= number <= limit:
        raise AmountError(f"The {name!r} must be a finite number, got {number!r}.", field=name)
    return number


def _time(now: float) -> None:
    if not -1e15 <= now <= 1e15:
        raise AmountError(f"The time 'now' must be seconds between -1e15 and 1e15, got {now!r}.", field="now")
