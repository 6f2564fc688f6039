"""Who pays for a request: the accounts it falls under, and the prices that their budgets make.

Rate limits are budgets with refill (requests or tokens per minute), so there is one mechanism. With several
workers each keeps an equal share of every hard budget, so that together they never pass it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from apportion.core.budget import Budget
from apportion.core.cost import Cost
from apportion.core.ledger import MemoryLedger, Refusal
from apportion.core.pricer import Pricer
from apportion.serve import errors
from apportion.serve.config.schema import Budget as BudgetConfig
from apportion.serve.config.schema import Config, Key
from apportion.serve.config.schema import Pricer as PricerConfig

_PER_MINUTE: Final = ("requests_per_minute", "tokens_per_minute")


class Account(NamedTuple):
    """One account a request falls under."""

    name: str
    resource: str
    hard: bool


class Books:
    """The accounts and pricers of one configuration in one worker. Lives on where a reload leaves it equal."""

    def __init__(self, config: Config, workers: int) -> None:
        self._ledger = MemoryLedger()
        self._by_scope: dict[str, list[Account]] = {}
        self._each_key: list[BudgetConfig] = []
        self._pricers: dict[str, Pricer] = {}
        self._outside: dict[str, float] = {"usd": 1.0, **config.prices}
        self._accounts: dict[tuple[str, str, str], tuple[Account, ...]] = {}
        self._pricer_sets: dict[tuple[str, str], tuple[Pricer, ...]] = {}
        scoped: dict[str, list[Budget]] = {}
        for entry in config.all_budgets():
            scopes = [f"key:{k.name}" for k in config.keys] if entry.scope == "key" else [entry.scope]
            for scope in scopes:
                budget = _budget(entry, scope, workers)
                self._open(scope, budget)
                scoped.setdefault(scope, []).append(budget)
        for key in config.keys:
            for budget in _limits(key, workers):
                self._open(f"key:{key.name}", budget)
        for scope, budgets in scoped.items():
            if not scope.startswith("endpoint:"):
                self._pricers[scope] = _pricer(budgets, config.pricer)

    def _open(self, scope: str, budget: Budget) -> None:
        name = f"{scope}/{budget.name}"
        self._ledger.open(name, budget)
        self._by_scope.setdefault(scope, []).append(Account(name, budget.resource, budget.hard))

    def accounts(self, key: str, model: str, endpoint: str) -> tuple[Account, ...]:
        """The accounts of a request, the widest scope first."""
        at = (key, model, endpoint)
        found = self._accounts.get(at)
        if found is None:
            scopes = ("all", f"key:{key}", f"model:{model}", f"endpoint:{endpoint}")
            found = tuple(account for scope in scopes for account in self._by_scope.get(scope, ()))
            self._accounts[at] = found
        return found

    def _pricers_of(self, key: str, model: str) -> tuple[Pricer, ...]:
        at = (key, model)
        found = self._pricer_sets.get(at)
        if found is None:
            scopes = ("all", f"key:{key}", f"model:{model}")
            found = tuple(self._pricers[scope] for scope in scopes if scope in self._pricers)
            self._pricer_sets[at] = found
        return found

    def prices(self, key: str, model: str, now: float) -> Mapping[str, float]:
        """Dollars per unit of each resource for this request: outside prices and the shadow prices of its budgets."""
        pricers = self._pricers_of(key, model)
        if not pricers:
            return self._outside
        total = dict(self._outside)
        for pricer in pricers:
            for resource, price in pricer.prices(now).items():
                total[resource] = total.get(resource, 0.0) + price
        return total

    def usd_left_units(self, accounts: Iterable[Account], now: float) -> int | None:
        """Pico-dollars that the hard dollar budgets among ``accounts`` still allow; None without any."""
        left: int | None = None
        for account in accounts:
            if account.hard and account.resource == "usd":
                units = self._ledger.available_units(account.name, now)
                left = units if left is None else min(left, units)
        return left

    def reserve(self, accounts: Iterable[Account], amounts: Mapping[str, int], now: float) -> str:
        """Hold the most a request may cost in all its accounts, or raise the error of the first that refuses."""
        wanted = {a.name: amounts.get(a.resource, 0) for a in accounts}
        held = self._ledger.reserve(wanted, now)
        if isinstance(held, Refusal):
            raise _refused(held)
        return held

    def settle(
        self,
        reservation: str,
        accounts: Iterable[Account],
        amounts: Mapping[str, int],
        now: float,
    ) -> None:
        """Replace a reservation by what was measured. A resource not in ``amounts`` is charged as reserved."""
        actual = {a.name: amounts[a.resource] for a in accounts if a.resource in amounts}
        self._ledger.settle(reservation, actual, now)

    def release(self, reservation: str, now: float) -> None:
        """Nothing was spent."""
        self._ledger.release(reservation, now)

    def spent(self, key: str, model: str, cost: Cost, now: float, value_usd: float | None) -> None:
        """Move the prices by a measured cost and by what it bought, where that is known."""
        for pricer in self._pricers_of(key, model):
            pricer.spend(cost, now, value_usd)

    def available_units(self, account: Account, now: float) -> int:
        """What may still be reserved in one account."""
        return self._ledger.available_units(account.name, now)


def _budget(entry: BudgetConfig, scope: str, workers: int) -> Budget:
    return Budget(
        name=entry.name,
        resource=entry.resource,
        amount=entry.amount / workers,
        window_s=entry.window if entry.refill_per_s is None else None,
        refill_per_s=None if entry.refill_per_s is None else entry.refill_per_s / workers,
        scope=scope,
        hard=entry.hard,
    )


def _limits(key: Key, workers: int) -> Iterable[Budget]:
    for field in _PER_MINUTE:
        limit = getattr(key.limits, field)
        if limit is not None:
            yield Budget(
                name=field,
                resource=field.partition("_")[0],
                amount=max(1.0, limit / workers),
                refill_per_s=limit / workers / 60.0,
                scope=f"key:{key.name}",
            )


def _pricer(budgets: list[Budget], config: PricerConfig) -> Pricer:
    chosen = {"step": config.step, "cap": config.cap}
    given = {name: value for name, value in chosen.items() if value is not None}
    return Pricer(budgets, update=config.update, outside={}, **given)


def _refused(refusal: Refusal) -> errors.GatewayError:
    budget = refusal.budget
    unit = budget.unit
    wanted, left = unit.from_units(refusal.wanted_units), unit.from_units(refusal.available_units)
    rate = budget.refill_per_s is not None
    message = (
        f"This gateway's limit {budget.name!r} ({budget.scope}) allows {left} {unit.name} now; "
        f"the request may take {wanted}."
    )
    details: dict[str, object] = {
        "budget": budget.name,
        "scope": budget.scope,
        "resource": unit.name,
        "wanted": str(wanted),
        "left": str(left),
        "retry_after_s": refusal.wait_s,
    }
    kind = errors.RateLimitedError if rate and refusal.wait_s is not None else errors.BudgetExceededError
    return kind(
        message,
        field=budget.name,
        fix="Ask for less output, or wait." if refusal.wait_s is not None else "Ask for less output.",
        retry_after_s=refusal.wait_s,
        details=details,
    )
