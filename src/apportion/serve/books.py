"""Who pays for a request: the accounts it falls under, and the prices that their budgets make.

Rate limits are budgets with refill, and requests under way are a budget whose reservations come back whole, so
there is one mechanism. What a worker may spend of an account lies in its purse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final

from apportion.core.budget import Budget
from apportion.core.errors import ApportionError
from apportion.core.pricer import Pricer
from apportion.core.sheet import Sheet, payers, tell_all
from apportion.serve import errors
from apportion.serve.config.budgets import budget_of, limits_of
from apportion.serve.config.schema import Budget as BudgetConfig
from apportion.serve.config.schema import Config, Key
from apportion.serve.config.schema import Pricer as PricerConfig
from apportion.serve.identity import plain
from apportion.serve.ledger.entries import GCO2, JOULES, RESOURCES, SERVER_SECONDS, TOKENS, USD
from apportion.serve.ledger.ledger import Ledger, Refused, Unavailable
from apportion.serve.ledger.purse import NO_LINES, Line, Lines, Purse

ESTIMATED: Final = len(RESOURCES)
"""Place of the estimated tokens, after those of the resources: what limits per minute hold."""

_PLACES: Final = {name: place for place, name in enumerate(RESOURCES)}
_CAPPING: Final = (TOKENS, USD, SERVER_SECONDS, JOULES, GCO2)
_MOST: Final = 8192
"""Kinds of requests remembered; more are worked out anew."""
_WARN: Final = 0.1
"""A soft budget warns when less than this part of it is left."""


class Books:
    """The budgets and pricers of one configuration in one worker, and whose request falls under which. Budgets of the
    organisation, teams, keys and models make prices; those of single users, sessions and endpoints only limit.

    Purses are the ledger's and outlive every configuration. Pricers of ``previous`` live on where nothing about
    them changed; learned prices of budgets that stay are kept in any case.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        saved_prices: Mapping[str, str] | None = None,
        previous: Books | None = None,
        now: float = 0.0,
    ) -> None:
        self._ledger = ledger
        self._organisation = config.organisation
        self._outside: dict[str, float] = {"usd": 1.0, **config.prices}
        self._config = config.pricer
        self._teams = config.teams
        self._team_of = {key.name: key.team or "" for key in config.keys}
        self._rates: dict[str, tuple[tuple[Purse, str], ...]] = {}
        self._budgets: dict[str, dict[str, list[Budget]]] = {}
        """By kind of scope and the name they are for ("" for each)."""
        self.per_request: dict[int, int] = {}
        """The most of a resource, by place, that one request may take, in smallest parts."""
        for entry in config.all_budgets():
            self._add(entry)
        self._saved: dict[str, str] = dict(saved_prices or {})
        self._lines: dict[tuple[str, str, str, str, str], Lines] = {}
        self._pricers: dict[str, Pricer | None] = {}
        self._sheets: dict[tuple[str, str], Sheet] = {}
        self._pending: list[Sheet] = []
        """Those whose spending no pricer has been told of."""
        self._previous = previous._pricers if previous is not None else {}
        if previous is not None:
            self._pending = previous._pending  # sheets that stay go on adding to it
            tell_all(self._pending, now)
            # Also those that nobody has asked for since the start.
            self._saved = previous._saved | previous.saved_prices(now) | self._saved
            for at, sheet in previous._sheets.items():
                if sheet.pays(self._outside, self._pricers_of(*at)):
                    self._sheets[at] = sheet
        all_ = [b for names in self._budgets.values() for found in names.values() for b in found]
        self.caps = bool(self.per_request) or any(
            b.hard and b.refill_per_s is None and b.resource not in ("requests", "parallel") for b in all_
        )
        """Whether what an answer may cost depends on any budget at all."""

    def _add(self, entry: BudgetConfig) -> None:
        kind, _, name = entry.scope.partition(":")
        budget = budget_of(entry)
        if kind == "request":
            place, most = _PLACES[budget.resource], budget.unit.to_units(budget.amount)
            self.per_request[place] = min(most, self.per_request.get(place, most))
            return
        if kind == "organisation":
            kind = "all"
            if name and name != self._organisation:
                return
            name = ""
        self._budgets.setdefault(kind, {}).setdefault(name, []).append(budget)

    def _of(self, kind: str, name: str) -> list[Budget]:
        names = self._budgets.get(kind)
        if names is None:
            return []
        return [*names.get("", ()), *(names.get(name, ()) if name else ())]

    def lines(self, key: Key, user: str, session: str, model: str, endpoint: str) -> Lines:
        """The purses of a request, the widest scope first; hard ones, and soft ones that only look on.

        ``user`` and ``session`` are qualified by their tenant (`identity`), "" where there is none.
        """
        at = (key.name, user, session, model, endpoint)
        found = self._lines.get(at)
        if found is None:
            if len(self._lines) >= _MOST:
                self._lines.clear()
            found = self._lines[at] = self._find(key, user, session, model, endpoint)
        return found

    def _find(self, key: Key, user: str, session: str, model: str, endpoint: str) -> Lines:
        names = {
            "all": "",
            "team": key.team or "",
            "key": key.name,
            "user": user,
            "session": session,
            "model": model,
            "endpoint": endpoint,
        }
        lines: list[Line] = []
        for kind, name in names.items():
            if not name and kind != "all":
                continue
            subject = f"{kind}:{name}" if name else kind
            budgets = self._of(kind, name)
            if kind in ("user", "session"):
                budgets += self._budgets.get(kind, {}).get(plain(name), ())
            if kind == "key":
                budgets += limits_of(subject, key.limits)
            elif kind == "team" and name in self._teams:
                budgets += limits_of(subject, self._teams[name].limits)
            for budget in budgets:
                purse = self._ledger.purse(f"{budget.name}@{subject}", budget, subject)
                place = _PLACES[budget.resource]
                estimated = place == TOKENS and budget.refill_per_s is not None
                lines.append(Line(purse, ESTIMATED if estimated else place, place))
        if not lines:
            return NO_LINES
        hard = tuple(line for line in lines if line.purse.hard)
        caps = [(place, tuple(x.purse for x in hard if x.held == place)) for place in _CAPPING]
        soft = tuple(line for line in lines if not line.purse.hard)
        return Lines(hard, soft, tuple((place, purses) for place, purses in caps if purses))

    def sheet(self, key: str, model: str) -> Sheet:
        """The prices that a key pays for a model."""
        at = (key, model)
        found = self._sheets.get(at)
        if found is None:
            if len(self._sheets) >= _MOST:
                self._sheets.clear()
            pricers = self._pricers_of(key, model)
            found = self._sheets[at] = Sheet(self._outside, pricers, self._ledger, self._pending)
        return found

    def _pricers_of(self, key: str, model: str) -> tuple[Pricer, ...]:
        who = payers(self._team_of.get(key, ""), key, model)
        found = [self._pricer(subject, kind, name) for subject, kind, name in who]
        return tuple(pricer for pricer in found if pricer is not None)

    def _pricer(self, subject: str, kind: str, name: str) -> Pricer | None:
        if subject not in self._pricers:
            budgets = self._of(kind, name)
            self._pricers[subject] = (
                _pricer(budgets, self._config, self._previous.get(subject), self._saved.get(subject))
                if budgets
                else None
            )
        return self._pricers[subject]

    def saved_prices(self, now: float) -> dict[str, str]:
        """What is to be remembered of the prices, by scope."""
        with self._told(now) as pricers:
            return {scope: json.dumps(pricer.save()) for scope, pricer in pricers.items()}

    @contextmanager
    def _told(self, now: float) -> Iterator[dict[str, Pricer]]:
        """The pricers as if they had been told everything. Afterwards they are as before: who looks moves no price."""
        pricers = {scope: pricer for scope, pricer in self._pricers.items() if pricer is not None}
        concerned = {id(pricer): pricer for sheet in self._pending for pricer in sheet.pricers}
        before = [(pricer, pricer.save()) for pricer in concerned.values()]
        for sheet in self._pending:
            sheet.tell(now)
        try:
            yield pricers
        finally:
            for pricer, state in before:
                pricer.load(state)

    def explain_prices(self, now: float) -> dict[str, Any]:
        """All prices as they stand: outside, and by scope with the reasons."""
        scopes = {}
        with self._told(now) as pricers:
            for scope, pricer in pricers.items():
                scopes[scope] = {
                    "prices": dict(pricer.prices(now)),
                    "why": pricer.explain(now).splitlines(),
                    "budgets": [budget.name for budget in pricer.budgets],
                }
        return {"object": "apportion.prices", "now": now, "outside": self._outside, "scopes": scopes}

    def rates(self, key: Key) -> tuple[tuple[Purse, str], ...]:
        """The purses of a key's limits per minute, each with the header line that states the limit."""
        known = self._rates.get(key.name)
        if known is not None:
            return known
        lines = self.lines(key, "", "", "", "")
        subject = f"key:{key.name}"
        if len(self._rates) >= _MOST:
            self._rates.clear()
        found = self._rates[key.name] = tuple(
            (purse, f"x-ratelimit-limit-{purse.resource}: {purse.budget.amount}\r\n")
            for purse, _, _ in lines.hard
            if purse.budget.refill_per_s is not None
            and purse.subject == subject
            and purse.resource in ("requests", "tokens")
        )
        return found


def left(purses: tuple[Purse, ...]) -> int:
    """The least of what these purses and the bank behind them still allow, in smallest parts, as far as is known
    here.
    """
    least = purses[0].left
    for purse in purses[1:]:
        units = purse.left
        if units < least:
            least = units
    return least


def warnings(lines: Lines) -> list[str]:
    """Soft budgets that are nearly or wholly spent, in a few words each."""
    found = []
    for purse, _, _ in lines.soft:
        if purse.known:
            unit = purse.budget.unit
            left = purse.available - purse.spent
            if left <= unit.to_units(purse.budget.amount) * _WARN:
                name = "".join(
                    c for c in purse.budget.name if c.isprintable() and c.isascii() and c not in '";'
                )
                found.append(f'"{name}"; left={unit.from_units(left)}; resource={unit.name}')
    return found


def refused(refusal: Refused) -> errors.GatewayError:
    """The error that a client gets for a budget which has not so much left."""
    purse = refusal.purse
    budget = purse.budget
    unit = budget.unit
    wait_s = refusal.wait_s
    wanted, left = (plain_number(unit.from_units(units)) for units in (refusal.wanted, refusal.left))
    rate = budget.refill_per_s is not None or budget.resource == "parallel"
    details: dict[str, object] = {
        "budget": budget.name,
        "scope": purse.subject,
        "resource": unit.name,
        "wanted": wanted,
        "left": left,
        "retry_after_s": wait_s,
    }
    if budget.resource == "parallel":
        return errors.RateLimitedError(
            f"This gateway's limit {budget.name!r} ({purse.subject}) allows {budget.amount:g} requests at once.",
            field=budget.name,
            fix="Wait for an answer.",
            retry_after_s=1.0,
            details=details,
        )
    kind = errors.RateLimitedError if rate and wait_s is not None else errors.BudgetExceededError
    return kind(
        f"This gateway's limit {budget.name!r} ({purse.subject}) allows {left} {unit.name} now; "
        f"the request may take {wanted}.",
        field=budget.name,
        fix=_fix(budget.resource, wait_s),
        retry_after_s=wait_s,
        details=details,
    )


def plain_number(amount: Decimal) -> str:
    """An exact amount without the zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _fix(resource: str, wait_s: float | None) -> str:
    if resource == "requests":
        return "Ask the operator for more." if wait_s is None else "Wait."
    return "Ask for less output." if wait_s is None else "Ask for less output, or wait."


def refill_s(purse: Purse, wanted: int, now: float) -> float | None:
    """When a budget that has less than ``wanted`` may have it again: its window's end, or its refill; None: unknown."""
    budget = purse.budget
    if wanted > budget.unit.to_units(budget.amount) + purse.overdraft:
        return None
    if budget.refill_per_s is not None:
        missing = float(budget.unit.from_units(wanted - purse.left))
        rate = float(budget.refill_per_s)
        return missing / rate if rate else None
    if not budget.turns:
        return purse.wait_s
    return max(0.0, budget.window(now)[1] - now)


def unavailable(error: Unavailable) -> errors.GatewayError:
    """The error that a client gets while the ledger can promise nothing."""
    return errors.LedgerUnavailableError(f"{error}", retry_after_s=error.wait_s)


def _pricer(
    budgets: list[Budget], config: PricerConfig, previous: Pricer | None, saved: str | None
) -> Pricer:
    given: dict[str, Any] = {"step": config.step, "cap": config.cap}
    given = {name: value for name, value in given.items() if value is not None}
    made = Pricer(budgets, update=config.update, outside={}, **given)
    if previous is not None:
        if all(getattr(previous, name) == getattr(made, name) for name in ("budgets", *Pricer.constraints)):
            return previous
        kept = {budget.name for budget in made.budgets if budget in previous.budgets}
        state = previous.save()
        made.load({**state, "duals": {name: dual for name, dual in state["duals"].items() if name in kept}})
    elif saved is not None:
        try:
            made.load(json.loads(saved))
        except (ValueError, ApportionError):  # another version's: prices are learned anew
            return Pricer(budgets, update=config.update, outside={}, **given)
    return made
