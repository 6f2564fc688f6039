"""Keys, teams, budgets and what is left of them as JSON: one shape for the admin API and the command line.

Nothing secret is in it, nor anything a secret could be made from.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from apportion.serve.config.schema import Budget, Key, KeyBudget, Team, Window
from apportion.serve.config.units import show_duration, show_moment
from apportion.serve.ledger.balances import Balance
from apportion.serve.ledger.people import StoredKey


def shown_key(key: Key, now: float, stored: StoredKey | None = None) -> dict[str, Any]:
    """A key; one of the configuration has no ``stored``. ``now`` in Unix seconds."""
    state = "active"
    if key.disabled:
        state = "disabled"
    elif key.expires is not None and now >= key.expires:
        state = "expired"
    elif stored is not None and not stored.usable:
        state = "unusable"
    previous_until_s = None if stored is None else stored.previous_until_s
    if previous_until_s is not None and now >= previous_until_s:
        previous_until_s = None
    return {
        "id": None if stored is None else stored.id,
        "object": "apportion.key",
        "name": key.name,
        "source": "configuration" if stored is None else "database",
        "state": state,
        "admin": key.admin,
        "team": key.team,
        "models": key.models,
        "endpoints": key.endpoints,
        "require": key.require,
        "routing": key.routing,
        "expires": _moment(key.expires),
        "tags": key.tags,
        "limits": msgspec.structs.asdict(key.limits),
        "budget": _spending(key.budget),
        "previous_until": _moment(previous_until_s),
        "created": None if stored is None else _moment(stored.created_s),
        "changed": None if stored is None else _moment(stored.changed_s),
    }


def shown_team(name: str, team: Team, *, stored: bool = True) -> dict[str, Any]:
    """A team of the database (``stored``) or of the configuration."""
    return {
        "object": "apportion.team",
        "name": name,
        "source": "database" if stored else "configuration",
        "models": team.models,
        "endpoints": team.endpoints,
        "require": team.require,
        "routing": team.routing,
        "limits": msgspec.structs.asdict(team.limits),
        "budget": _spending(team.budget),
    }


def shown_budget(budget: Budget, *, stored: bool = True) -> dict[str, Any]:
    """A budget of the database (``stored``) or of the configuration."""
    return {
        "object": "apportion.budget",
        "name": budget.name,
        "source": "database" if stored else "configuration",
        "resource": budget.resource,
        "amount": budget.amount,
        "window": None if budget.refill_per_s is not None else shown_window(budget.window),
        "time_zone": budget.time_zone,
        "sliding": budget.sliding,
        "refill_per_s": budget.refill_per_s,
        "scope": budget.scope,
        "hard": budget.hard,
        "overdraft": budget.overdraft,
    }


def shown_balance(balance: Balance) -> dict[str, Any]:
    """The book of one budget for one subject; amounts are exact decimals in the resource's unit."""
    return {
        "budget": balance.budget,
        "subject": balance.subject,
        "resource": balance.resource,
        "amount": _decimal(balance.amount),
        "spent": _decimal(balance.spent),
        "held": _decimal(balance.held),
        "left": _decimal(balance.left),
        "hard": balance.hard,
        "begins_again": _moment(balance.begins_again_s),
    }


def shown_window(window: Window) -> str:
    """A window as the configuration writes it."""
    if window is None:
        return "forever"
    return window if isinstance(window, str) else show_duration(window)


def _spending(budget: KeyBudget | None) -> dict[str, Any] | None:
    if budget is None:
        return None
    return {**msgspec.structs.asdict(budget), "window": shown_window(budget.window)}


def _decimal(amount: Decimal) -> str:
    """Exact, without zeros at the end."""
    return f"{amount.normalize():f}"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else show_moment(seconds)
