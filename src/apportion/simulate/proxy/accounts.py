"""Who pays: the accounts a request falls under, held before it is sent and settled with what it cost.

The proxy's books without leases, journal and database: exact, never overspent, under the same rules. Amounts are whole
numbers of the resources' smallest parts, by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from apportion.core.budget import Account, Budget
from apportion.core.pricer import Pricer
from apportion.core.sheet import Sheet, payers, tell_all
from apportion.simulate.scenario import Key, Pricing, Scenario

RESOURCES: Final = ("tokens", "usd", "server_seconds", "joules", "gco2", "requests", "parallel")
TOKENS, USD, SERVER, JOULES, GCO2, REQUESTS, PARALLEL = range(7)
ESTIMATED: Final = 7
"""Place of the estimated tokens, after those of the resources: what limits per minute hold."""
_PLACES: Final = {name: place for place, name in enumerate(RESOURCES)}
_CAPPING: Final = (TOKENS, USD, SERVER, JOULES, GCO2)
_MOST: Final = 65_536
"""Kinds of requests remembered; more are worked out anew."""


class Line(NamedTuple):
    """An account, and where it finds what is held for it, and what was spent, in a request's amounts."""

    account: Account
    held: int
    spent: int


class Lines(NamedTuple):
    """Everything a request falls under, the widest scope first; ``caps`` are the hard accounts that bound what an
    answer may cost, by place."""

    hard: tuple[Line, ...]
    soft: tuple[Line, ...]
    caps: tuple[tuple[int, tuple[Account, ...]], ...] = ()


NO_LINES: Final = Lines((), ())


class Refused(Exception):
    """A hard budget has not so much left."""

    def __init__(self, account: Account, wanted: int) -> None:
        super().__init__(account.budget.name)
        self.account = account
        self.wanted = wanted


class Accounts:
    """The budgets and prices of one run. Times are Unix seconds."""

    def __init__(self, scenario: Scenario) -> None:
        self._outside: dict[str, float] = {"usd": 1.0, **scenario.prices}
        self._pricing = scenario.pricing
        self._organisation = scenario.organisation
        self._budgets: dict[str, dict[str, list[Budget]]] = {}
        """By kind of scope and the name they are for ("" for each)."""
        self.per_request: dict[int, int] = {}
        """The most of a resource, by place, that one request may take."""
        for budget in scenario.budgets:
            self._add(budget)
        every = [b for names in self._budgets.values() for found in names.values() for b in found]
        self.caps = bool(self.per_request) or any(
            b.hard and b.refill_per_s is None and b.resource not in ("requests", "parallel") for b in every
        )
        """Whether what an answer may cost depends on any budget at all."""
        self._limits = scenario.limits
        self.any = bool(self._budgets or self._limits)
        """Whether requests fall under any account."""
        self.accounts: dict[str, Account] = {}
        self._lines: dict[tuple[str, str, str, str], Lines] = {}
        self._pricers: dict[str, Pricer | None] = {}
        self._sheets: dict[tuple[str, str], Sheet] = {}
        self._pending: list[Sheet] = []

    def _add(self, budget: Budget) -> None:
        kind, _, name = budget.scope.partition(":")
        if kind == "request":
            place, most = _PLACES[budget.resource], budget.unit.to_units(budget.amount)
            self.per_request[place] = min(most, self.per_request.get(place, most))
            return
        if kind == "organisation":
            if name and name != self._organisation:
                return
            kind, name = "all", ""
        self._budgets.setdefault(kind, {}).setdefault(name, []).append(budget)

    def _of(self, kind: str, name: str) -> list[Budget]:
        names = self._budgets.get(kind)
        if names is None:
            return []
        return [*names.get("", ()), *(names.get(name, ()) if name else ())]

    def lines(self, key: Key, session: str, model: str, endpoint: str) -> Lines:
        """The accounts of a request; ``session`` is "" where there is none."""
        if not self.any:
            return NO_LINES
        at = (key.name, session if "session" in self._budgets else "", model, endpoint)
        found = self._lines.get(at)
        if found is None:
            if len(self._lines) >= _MOST:
                self._lines.clear()
            found = self._lines[at] = self._find(key, *at[1:])
        return found

    def _find(self, key: Key, session: str, model: str, endpoint: str) -> Lines:
        names = {
            "all": "",
            "team": key.team or "",
            "key": key.name,
            "session": session,
            "model": model,
            "endpoint": endpoint,
        }
        lines: list[Line] = []
        for kind, name in names.items():
            if not name and kind != "all":
                continue
            subject = f"{kind}:{name}" if name else kind
            limits = [budget for budget in self._limits if budget.scope == subject]
            for budget in (*self._of(kind, name), *limits):
                account = self.accounts.setdefault(f"{budget.name}@{subject}", Account(budget))
                place = _PLACES[budget.resource]
                estimated = place == TOKENS and budget.refill_per_s is not None
                lines.append(Line(account, ESTIMATED if estimated else place, place))
        if not lines:
            return NO_LINES
        hard = tuple(line for line in lines if line.account.budget.hard)
        caps = [(place, tuple(x.account for x in hard if x.held == place)) for place in _CAPPING]
        soft = tuple(line for line in lines if not line.account.budget.hard)
        return Lines(hard, soft, tuple((place, accounts) for place, accounts in caps if accounts))

    def sheet(self, key: Key, model: str) -> Sheet:
        """The prices that a key pays for a model."""
        at = (key.name, model)
        found = self._sheets.get(at)
        if found is None:
            subjects = payers(key.team or "", key.name, model)
            pricers = [self._pricer(subject, kind, name) for subject, kind, name in subjects]
            known = tuple(pricer for pricer in pricers if pricer is not None)
            found = self._sheets[at] = Sheet(self._outside, known, pending=self._pending)
        return found

    def _pricer(self, subject: str, kind: str, name: str) -> Pricer | None:
        if subject not in self._pricers:
            budgets = self._of(kind, name)
            self._pricers[subject] = _pricer(budgets, self._pricing) if budgets else None
        return self._pricers[subject]

    # holding and settling

    def hold(self, lines: Lines, amounts: Sequence[int], now: float) -> None:
        """Hold ``amounts`` in all hard accounts. Raises `Refused`, holding nothing then."""
        for index, (account, held, _) in enumerate(lines.hard):
            if not account.reserve(amounts[held], now):
                for other, place, _ in lines.hard[:index]:
                    other.release(amounts[place], now)
                raise Refused(account, amounts[held])

    def settle(self, lines: Lines, held: Sequence[int], spent: Sequence[int], now: float) -> None:
        """Replace what is held by what it cost."""
        for account, place, spends in lines.hard:
            account.settle(held[place], spent[spends] if spends != PARALLEL else 0, now)
        for account, _, spends in lines.soft:
            account.settle(0, spent[spends], now)

    def release(self, lines: Lines, held: Sequence[int], now: float) -> None:
        """Give back what is held: it has cost nothing."""
        for account, place, _ in lines.hard:
            account.release(held[place], now)

    # what is told of them

    def summary(self, now: float) -> dict[str, dict[str, Any]]:
        """What every account has spent and by how much it was overrun, in its resource's unit."""
        found = {}
        for name, account in sorted(self.accounts.items()):
            unit = account.budget.unit
            found[name] = {
                "limit": float(account.budget.amount),
                "unit": account.resource,
                "hard": account.budget.hard,
                "spent": float(unit.from_units(account.spent_units)),
                "overrun": float(unit.from_units(account.overrun_units(now))),
                "reserved": float(unit.from_units(account.reserved_units)),
            }
        return found

    def shadow_prices(self, now: float) -> dict[str, dict[str, float]]:
        """What the budgets add to the prices, by scope."""
        tell_all(self._pending, now)
        return {scope: dict(p.shadow) for scope, p in self._pricers.items() if p is not None}


def left(accounts: tuple[Account, ...], now: float) -> int:
    """The least of what these accounts still allow."""
    return min(account.available_units(now) for account in accounts)


def _pricer(budgets: list[Budget], pricing: Pricing) -> Pricer:
    given: dict[str, Any] = {"step": pricing.step, "cap": pricing.cap}
    return Pricer(
        budgets,
        update=pricing.update,
        outside={},
        **{name: value for name, value in given.items() if value is not None},
    )
