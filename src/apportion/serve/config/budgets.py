"""Budgets and rates of a configuration: what must hold of them, and the budgets of `core` that they mean."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Iterator
from typing import Final

from apportion.core import budget as core
from apportion.core import calendar
from apportion.core.errors import ApportionError
from apportion.core.resource import resource, resources
from apportion.serve.config.convert import nearest
from apportion.serve.config.document import Path
from apportion.serve.config.fault import Fault
from apportion.serve.config.schema import Budget, Config, KeyBudget, KeyLimits, short_budgets

METERED: Final = ("usd", "tokens", "requests", "server_seconds", "joules", "gco2", "parallel")
"""Resources whose spending the proxy measures; a budget in any other would never move."""

SCOPES: Final = (
    *("all", "organisation", "team", "key", "user", "session", "model", "endpoint"),
    "request",
)
_RATES: Final = ("requests_per_minute", "tokens_per_minute", "parallel")
"""Names of the budgets that `limits` mean."""
_ALONE: Final = ("all", "request")
"""Scopes that are one thing, and take no name."""
_CLIENTS: Final = ("user", "session")
"""Scopes whose names are the clients' to choose."""


def budget_of(entry: Budget) -> core.Budget:
    """The budget that an entry means."""
    unit = entry.window if isinstance(entry.window, str) else None
    length_s = None if isinstance(entry.window, str) else entry.window
    return core.Budget(
        name=entry.name,
        resource=entry.resource,
        amount=entry.amount,
        window_s=length_s,
        refill_per_s=entry.refill_per_s,
        scope=entry.scope,
        hard=entry.hard,
        calendar=unit,
        time_zone=entry.time_zone,
        sliding=entry.sliding,
        overdraft=entry.overdraft,
    )


def limits_of(scope: str, limits: KeyLimits) -> list[core.Budget]:
    """The budgets that the rates of a key or team mean: ``scope`` is ``key:NAME`` or ``team:NAME``."""
    found = []
    for name in _RATES[:2]:
        limit = getattr(limits, name)
        if limit is not None:
            unit = name.partition("_")[0]
            found.append(core.Budget(name, unit, limit, refill_per_s=limit / 60.0, scope=scope))
    if limits.parallel is not None:
        found.append(core.Budget(_RATES[2], "parallel", limits.parallel, scope=scope))
    return found


def budgets_for(config: Config, subject: str) -> list[core.Budget]:
    """The budgets of which a key or team (``key:NAME``, ``team:NAME``) has an account of its own."""
    kind, _, name = subject.partition(":")
    found = [budget_of(entry) for entry in config.all_budgets() if entry.scope in (kind, subject)]
    teams = config.teams.items() if kind == "team" else ()
    keys = [(key.name, key) for key in config.keys] if kind == "key" else ()
    for owner_name, owner in (*teams, *keys):
        if owner_name == name:
            found += limits_of(subject, owner.limits)
    return found


def faults(config: Config, names: Callable[[str], set[str]]) -> Iterator[Fault]:
    """Everything wrong with the budgets of ``config``; ``names`` as for `checks.faults`."""
    seen: set[str] = set()
    for name, team in config.teams.items():
        yield from _short(("teams", name, "budget"), f"team:{name}", team.budget)
    for index, key in enumerate(config.keys):
        yield from _short(("keys", index, "budget"), f"key:{key.name}", key.budget)
    for index, budget in enumerate(config.budgets):
        path = ("budgets", index)
        yield from _resource(path, budget)
        yield from _window(path, budget)
        yield from _scope(path, budget, config, names)
        yield from _energy(path, budget, config)
        if budget.name in seen:
            yield Fault((*path, "name"), f"another budget is called {budget.name!r}.", "Rename one.")
        elif "@" in budget.name or budget.name.startswith(("key:", "team:")) or budget.name in _RATES:
            fix = "Names with `@`, those that begin with `key:` or `team:`, and those of `limits` are the proxy's own."
            yield Fault((*path, "name"), f"{budget.name!r} may not be a budget's name.", fix)
        seen.add(budget.name)


def _short(path: Path, scope: str, budget: KeyBudget | None) -> Iterator[Fault]:
    for entry in [*short_budgets(scope, budget)][:1]:
        yield from _window(path, entry)


def _resource(path: Path, budget: Budget) -> Iterator[Fault]:
    known = [each.name for each in resources()]
    if budget.resource not in known:
        message = f"there is no resource {budget.resource!r}."
        yield Fault((*path, "resource"), message, nearest(budget.resource, known))
    elif budget.resource not in METERED:
        yield Fault(
            (*path, "resource"),
            f"the proxy does not measure {budget.resource!r}, so that nothing would ever be spent.",
            f"Use {', '.join(f'`{name}`' for name in METERED[:-1])} or `{METERED[-1]}`.",
        )
    else:
        for name in ("amount", "overdraft"):
            try:
                resource(budget.resource).to_units(getattr(budget, name))
            except ApportionError as error:
                yield Fault((*path, name), error.message, error.fix)
    if budget.resource == "parallel":
        if budget.window is not None or budget.refill_per_s is not None:
            fix = "Remove `window` and `refill_per_s`."
            yield Fault(path, "what is under way at once has no window.", fix)
        if not budget.hard:
            yield Fault((*path, "hard"), "a limit of parallel requests is always hard.", "Remove it.")


def _window(path: Path, budget: Budget) -> Iterator[Fault]:
    if budget.window is not None and budget.refill_per_s is not None:
        yield Fault(path, "has both `window` and `refill_per_s`.", "Keep one of them.")
    dated = isinstance(budget.window, str)
    if budget.sliding and (dated or budget.window is None):
        fix = "Give a length, for example `window: 1h`."
        yield Fault((*path, "sliding"), "only a window with a length can slide.", fix)
    if budget.time_zone != "UTC":
        if calendar.zone(budget.time_zone) is None:
            message = f"this machine knows no time zone {budget.time_zone!r}."
            yield Fault((*path, "time_zone"), message, _zone_fix(budget.time_zone))
        elif not dated:
            fix = "Use `window: day`, `week` or `month`, or remove it."
            yield Fault((*path, "time_zone"), "only a window of the calendar has a time zone.", fix)
    if budget.overdraft and not budget.hard:
        fix = "Remove it: a soft budget refuses nothing."
        yield Fault((*path, "overdraft"), "only a hard budget has an overdraft.", fix)


def _zone_fix(wrong: str) -> str:
    known = zoneinfo.available_timezones()
    if not known:
        return "It has no database of them: install the package `tzdata`."
    near = nearest(wrong, sorted(known))
    return near if near.startswith("Did") else "Use a name such as `Europe/Berlin`."


def _scope(path: Path, budget: Budget, config: Config, names: Callable[[str], set[str]]) -> Iterator[Fault]:
    kind, colon, name = budget.scope.partition(":")
    if kind not in SCOPES or (colon and (not name or kind in _ALONE)):
        fix = (
            "Write `all`, `request`, or one of `organisation`, `team`, `key`, `user`, `session`, `model` and "
        )
        fix += "`endpoint`, alone or as `key:NAME`."
        yield Fault((*path, "scope"), f"unknown scope {budget.scope!r}.", fix)
    elif kind == "organisation" and colon and name != config.organisation:
        fix = f"This one is `{config.organisation}` (`organisation`)."
        yield Fault((*path, "scope"), f"there is no organisation {name!r}.", fix)
    elif colon and kind not in (*_CLIENTS, "organisation") and name not in names(f"{kind}s"):
        fix = nearest(name, sorted(names(f"{kind}s")))
        yield Fault((*path, "scope"), f"there is no {kind} {name!r}.", fix)
    if kind != "request":
        return
    if budget.resource in ("requests", "parallel"):
        yield Fault((*path, "resource"), "a request is always one request.", "Use another scope.")
    if budget.window is not None or budget.refill_per_s is not None or budget.overdraft:
        fix = "Remove `window`, `refill_per_s` and `overdraft`."
        yield Fault(path, "what one request may take has no window and no overdraft.", fix)
    if not budget.hard:
        yield Fault((*path, "hard"), "what one request may take is always a hard limit.", "Remove it.")


def _energy(path: Path, budget: Budget, config: Config) -> Iterator[Fault]:
    """A hard budget of energy needs to know the power of every endpoint that it could meet, a soft one of any."""
    if budget.resource not in ("joules", "gco2"):
        return
    if budget.resource == "gco2" and config.gco2_per_kwh is None:
        yield Fault((*path, "resource"), "nothing says how much a joule emits.", "Give `gco2_per_kwh`.")
    kind, _, name = budget.scope.partition(":")
    models = [name] if kind == "model" and name else list(config.models)
    met = {t.endpoint for m in models if m in config.models for t in config.models[m].endpoints}
    if kind == "endpoint" and name:
        met &= {name}
    unknown = sorted(n for n in met & config.endpoints.keys() if config.endpoints[n].watts is None)
    if budget.hard:
        for name in unknown:
            message = f"the power of the endpoint {name!r} is unknown, so this budget would refuse it."
            yield Fault((*path, "resource"), message, f"Give `endpoints.{name}.watts`.")
    elif unknown and len(unknown) == len(met):
        message = "no endpoint says what power it draws, so that nothing would ever be spent."
        yield Fault((*path, "resource"), message, "Give `watts` to the endpoints where it is known.")
