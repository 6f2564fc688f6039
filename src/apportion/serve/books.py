"""Who pays for a request: the accounts it falls under, and the prices that their budgets make.

Rate limits are budgets with refill (requests or tokens per minute), so there is one mechanism. With several
workers each keeps its share of every budget; the shares together are the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from apportion.core.budget import Account, Budget
from apportion.core.cost import Cost
from apportion.core.pricer import Pricer
from apportion.core.resource import resource
from apportion.serve import errors
from apportion.serve.config.schema import Budget as BudgetConfig
from apportion.serve.config.schema import Config, Key
from apportion.serve.config.schema import Pricer as PricerConfig

_PLACES: Final = {"tokens": 0, "usd": 1, "server_seconds": 2}
_ELSE: Final = 3
"""Amounts of one request are tuples: tokens, pico-dollars, server-seconds, anything else (nothing yet)."""

_PER_MINUTE: Final = ("requests_per_minute", "tokens_per_minute")


_FRESH_S: Final = 0.02
"""Prices move at most this often; what is spent in between moves them together (a mini-batch of the dual step)."""


class Share(NamedTuple):
    """Which part of every limit is this worker's."""

    worker: int
    workers: int

    def of(self, units: int) -> int:
        """Its part of ``units``: those of all workers add up to the whole."""
        return units * (self.worker + 1) // self.workers - units * self.worker // self.workers


class Accounts(NamedTuple):
    """The hard accounts of one kind of request: of requests, and of amounts (each with its place in a tuple)."""

    counted: tuple[Account, ...]
    metered: tuple[tuple[Account, int], ...]
    usd: tuple[Account, ...]
    """Those of ``metered`` that are in dollars."""


Amounts = tuple[int, ...]
NO_ACCOUNTS: Final = Accounts((), (), ())


class Sheet:
    """What one kind of request (a key asking for a model) pays and reports: prices in, spendings out."""

    __slots__ = ("_at", "_count", "_outside", "_pricers", "_prices", "_server_s", "_tokens", "_usd", "_value")

    def __init__(self, outside: Mapping[str, float], pricers: tuple[Pricer, ...]) -> None:
        self._outside = outside
        self._pricers = pricers
        self._prices: Mapping[str, float] = outside
        self._at = -1e15
        self._count = 0
        self._usd = self._tokens = self._server_s = self._value = 0.0

    def prices(self, now: float) -> Mapping[str, float]:
        """Dollars per unit of each resource: outside prices and the shadow prices of the budgets that apply."""
        if not self._pricers or 0.0 <= now - self._at < _FRESH_S:
            return self._prices
        self._at = now
        self.flush(now)
        total = dict(self._outside)
        for pricer in self._pricers:
            for name, price in pricer.prices(now).items():
                total[name] = total.get(name, 0.0) + price
        self._prices = total
        return total

    def flush(self, now: float) -> None:
        """Tell the pricers what was spent since they were told last."""
        if self._count:
            cost = Cost(
                usd=self._usd, tokens=self._tokens, server_seconds=self._server_s, requests=float(self._count)
            )
            for pricer in self._pricers:
                pricer.spend(cost, now, self._value)
            self._count = 0
            self._usd = self._tokens = self._server_s = self._value = 0.0

    def pays(self, outside: Mapping[str, float], pricers: tuple[Pricer, ...]) -> bool:
        """Whether these are the prices it is made of."""
        return self._outside == outside and self._pricers == pricers

    def spent(self, usd: float | None, tokens: int, server_s: float, value_usd: float, now: float) -> None:
        """Take in what an answer cost and what it bought. Dollars that are unknown move no price."""
        if not self._pricers:
            return
        if usd is None:
            cost = Cost(tokens=float(tokens), server_seconds=server_s, requests=1.0)
            for pricer in self._pricers:
                pricer.spend(cost, now, value_usd)
            return
        self._count += 1
        self._usd += usd
        self._tokens += tokens
        self._server_s += server_s
        self._value += value_usd


class Books:
    """The accounts and pricers of one configuration in one worker.

    Those of ``previous`` live on, as the same objects, so that what is under way settles where it reserved:
    accounts by scope, name and resource, changed to their new budget; pricers and sheets where nothing about
    them changed. Learned prices of budgets that stay are kept in any case.
    """

    def __init__(
        self, config: Config, workers: int, previous: Books | None = None, *, worker: int = 0
    ) -> None:
        now = time.time()
        share = Share(worker, workers)
        self._outside: dict[str, float] = {"usd": 1.0, **config.prices}
        self._accounts: dict[tuple[str, str, str], Accounts] = {}
        scoped: dict[str, list[Budget]] = {}
        for entry in config.all_budgets():
            scopes = [f"key:{k.name}" for k in config.keys] if entry.scope == "key" else [entry.scope]
            for scope in scopes:
                scoped.setdefault(scope, []).append(_budget(entry, scope, share))
        self._pricers: dict[str, Pricer] = {
            scope: _pricer(budgets, config.pricer, previous._pricers.get(scope) if previous else None)
            for scope, budgets in scoped.items()
            if not scope.startswith("endpoint:")
        }
        for key in config.keys:
            scoped.setdefault(f"key:{key.name}", []).extend(_limits(key, share))
        open_: dict[tuple[str, str, str], Account] = {}
        if previous is not None:
            open_ = {_identity(a.budget): a for found in previous._by_scope.values() for a in found}
        self._by_scope: dict[str, list[Account]] = {
            scope: [_account(budget, open_.pop(_identity(budget), None), now) for budget in budgets]
            for scope, budgets in scoped.items()
        }
        self._sheets: dict[tuple[str, str], Sheet] = {}
        if previous is not None:
            for at, sheet in previous._sheets.items():
                sheet.flush(now)
                if sheet.pays(self._outside, self._pricers_of(*at)):
                    self._sheets[at] = sheet

        self.caps_usd = any(
            a.resource == "usd" and a.budget.hard for found in self._by_scope.values() for a in found
        )
        """Whether any hard dollar budget exists at all."""

    def accounts(self, key: str, model: str, endpoint: str) -> Accounts:
        """The accounts of a request, the widest scope first: those that count it, and those that meter it.

        Soft budgets are not among them: they refuse nothing, and their pricers see what is spent.
        """
        at = (key, model, endpoint)
        found = self._accounts.get(at)
        if found is None:
            scopes = ("all", f"key:{key}", f"model:{model}", f"endpoint:{endpoint}")
            hard = [a for scope in scopes for a in self._by_scope.get(scope, ()) if a.budget.hard]
            found = self._accounts[at] = Accounts(
                tuple(a for a in hard if a.resource == "requests"),
                tuple((a, _PLACES.get(a.resource, _ELSE)) for a in hard if a.resource != "requests"),
                tuple(a for a in hard if a.resource == "usd"),
            )
        return found

    def sheet(self, key: str, model: str) -> Sheet:
        """The prices that a key pays for a model."""
        at = (key, model)
        found = self._sheets.get(at)
        if found is None:
            found = self._sheets[at] = Sheet(self._outside, self._pricers_of(key, model))
        return found

    def _pricers_of(self, key: str, model: str) -> tuple[Pricer, ...]:
        scopes = ("all", f"key:{key}", f"model:{model}")
        return tuple(self._pricers[scope] for scope in scopes if scope in self._pricers)

    def rates(self, key: Key) -> tuple[tuple[Account, str], ...]:
        """The accounts of a key's limits per minute, each with the header line that states the limit."""
        return tuple(
            (a, f"x-ratelimit-limit-{a.resource}: {getattr(key.limits, a.budget.name)}\r\n")
            for a in self._by_scope.get(f"key:{key.name}", ())
            if a.budget.name in _PER_MINUTE
        )


def usd_left_units(accounts: Accounts, now: float) -> int | None:
    """Pico-dollars that the dollar budgets among ``accounts`` still allow; None without any."""
    left: int | None = None
    for account in accounts.usd:
        units = account.available_units(now)
        left = units if left is None or units < left else left
    return left


def count(accounts: Accounts, now: float) -> None:
    """Count one request in all its accounts.

    Raises the error of the first that refuses it, counting it in none.
    """
    counted = accounts.counted
    for index, account in enumerate(counted):
        if not account.spend(1, now):
            for other in counted[:index]:
                other.refund(1, now)
            raise _refused(account, 1, now)


def reserve(accounts: Accounts, amounts: Amounts, now: float) -> None:
    """Hold the most a request may cost in all its accounts.

    Raises the error of the first that refuses, holding nothing.
    """
    metered = accounts.metered
    for index, (account, place) in enumerate(metered):
        if not account.reserve(amounts[place], now):
            for other, other_place in metered[:index]:
                other.release(amounts[other_place], now)
            raise _refused(account, amounts[place], now)


def release(accounts: Accounts, held: Amounts, now: float) -> None:
    """Give a reservation back: nothing was spent."""
    for account, place in accounts.metered:
        account.release(held[place], now)


def _identity(budget: Budget) -> tuple[str, str, str]:
    return (budget.scope, budget.name, budget.resource)


def _account(budget: Budget, open_: Account | None, now: float) -> Account:
    if open_ is None:
        return Account(budget)
    if open_.budget != budget:
        open_.change(budget, now)
    return open_


def _budget(entry: BudgetConfig, scope: str, share: Share) -> Budget:
    unit = resource(entry.resource)
    return Budget(
        name=entry.name,
        resource=entry.resource,
        amount=unit.from_units(share.of(unit.to_units(entry.amount))),
        window_s=entry.window if entry.refill_per_s is None else None,
        refill_per_s=None if entry.refill_per_s is None else entry.refill_per_s / share.workers,
        scope=scope,
        hard=entry.hard,
    )


def _limits(key: Key, share: Share) -> Iterable[Budget]:
    for field in _PER_MINUTE:
        limit = getattr(key.limits, field)
        if limit is not None:
            yield Budget(
                name=field,
                resource=field.partition("_")[0],
                amount=share.of(limit),
                refill_per_s=limit / share.workers / 60.0,
                scope=f"key:{key.name}",
            )


def _pricer(budgets: list[Budget], config: PricerConfig, previous: Pricer | None) -> Pricer:
    given: dict[str, Any] = {"step": config.step, "cap": config.cap}
    given = {name: value for name, value in given.items() if value is not None}
    made = Pricer(budgets, update=config.update, outside={}, **given)
    if previous is None:
        return made
    if all(getattr(previous, name) == getattr(made, name) for name in ("budgets", *Pricer.constraints)):
        return previous
    kept = {budget.name for budget in made.budgets if budget in previous.budgets}
    saved = previous.save()
    made.load({**saved, "duals": {name: dual for name, dual in saved["duals"].items() if name in kept}})
    return made


def _refused(account: Account, wanted_units: int, now: float) -> errors.GatewayError:
    budget = account.budget
    unit = budget.unit
    wait_s = account.wait_s(wanted_units, now)
    wanted, left = unit.from_units(wanted_units), unit.from_units(account.available_units(now))
    details: dict[str, object] = {
        "budget": budget.name,
        "scope": budget.scope,
        "resource": unit.name,
        "wanted": str(wanted),
        "left": str(left),
        "retry_after_s": wait_s,
    }
    kind = (
        errors.RateLimitedError
        if budget.refill_per_s is not None and wait_s is not None
        else errors.BudgetExceededError
    )
    return kind(
        f"This gateway's limit {budget.name!r} ({budget.scope}) allows {left} {unit.name} now; "
        f"the request may take {wanted}.",
        field=budget.name,
        fix="Ask for less output, or wait." if wait_s is not None else "Ask for less output.",
        retry_after_s=wait_s,
        details=details,
    )
