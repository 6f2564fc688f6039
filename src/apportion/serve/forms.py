"""What may be said of a key, a team or a budget that is to be made or changed, by the admin API or the command line.

Fields are those of the configuration, written as there (``1h``, ``day``, ``forever``), but nothing is filled from the
environment and unknown fields are refused. No address, file or secret can be set here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from apportion.core.errors import ApportionError
from apportion.serve.config import budgets, checks
from apportion.serve.config.budgets import budget_of
from apportion.serve.config.document import show_path
from apportion.serve.config.fault import Fault
from apportion.serve.config.schema import (
    Budget,
    Calendar,
    Config,
    Key,
    KeyBudget,
    KeyLimits,
    Team,
    short_budgets,
)
from apportion.serve.config.units import duration_s, moment_s

Name = Annotated[str, Meta(min_length=1, max_length=100)]
_Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=1000)]
_Tags = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=256)]],
    Meta(max_length=32),
]
_Text = Annotated[str, Meta(min_length=1, max_length=64)]
_Amount = Annotated[float, Meta(ge=0, le=1e15)]
_Whole = Annotated[int, Meta(ge=0, le=10**15)]
_Rate = Annotated[int, Meta(ge=1, le=10**12)]
_Length = Annotated[float, Meta(ge=0.001, le=1e10)]
_WINDOWS: Final[dict[str, Calendar | None]] = {
    "forever": None,
    "day": "day",
    "week": "week",
    "month": "month",
}
GRACE_S: Final = 30 * 86_400.0
"""The longest for which a rotated key's old secret may stay valid."""


class FormError(ApportionError):
    """A field of what was asked for has a value that it cannot have."""

    code = "invalid_request"


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates; null or left out: no limit."""

    requests_per_minute: _Rate | None = None
    tokens_per_minute: _Rate | None = None
    parallel: _Rate | None = None


class Spending(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key or team may spend."""

    usd: _Amount | None = None
    tokens: _Whole | None = None
    window: _Length | _Text | None = None
    time_zone: _Text = "UTC"
    hard: bool = True


class TeamChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a team; a field that is left out stays."""

    models: _Names | UnsetType | None = UNSET
    endpoints: _Names | UnsetType | None = UNSET
    require: _Names | UnsetType = UNSET
    routing: bool | UnsetType = UNSET
    limits: Limits | UnsetType | None = UNSET
    budget: Spending | UnsetType | None = UNSET


class TeamForm(TeamChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A team to be made."""

    name: Name


class KeyChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a key; a field that is left out stays."""

    team: Name | UnsetType | None = UNSET
    models: _Names | UnsetType | None = UNSET
    endpoints: _Names | UnsetType | None = UNSET
    require: _Names | UnsetType = UNSET
    routing: bool | UnsetType = UNSET
    expires: _Text | UnsetType | None = UNSET
    """A date and time with its zone, or a duration from now such as ``30d``; null: never."""
    disabled: bool | UnsetType = UNSET
    admin: bool | UnsetType = UNSET
    tags: _Tags | UnsetType = UNSET
    limits: Limits | UnsetType | None = UNSET
    budget: Spending | UnsetType | None = UNSET


class KeyForm(KeyChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made."""

    name: Name


class RotateForm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a key is rotated."""

    grace: Annotated[float, Meta(ge=0, le=GRACE_S)] | _Text = 0.0
    """For how long the old secret stays valid: seconds, or a duration such as ``1h``."""


class BudgetChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a budget; a field that is left out stays."""

    amount: _Amount | UnsetType = UNSET
    window: _Length | _Text | UnsetType | None = UNSET
    time_zone: _Text | UnsetType = UNSET
    sliding: bool | UnsetType = UNSET
    refill_per_s: Annotated[float, Meta(gt=0, le=1000000000000000.0)] | UnsetType | None = UNSET
    hard: bool | UnsetType = UNSET
    overdraft: _Amount | UnsetType = UNSET


class BudgetForm(BudgetChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget to be made."""

    name: Name
    amount: _Amount
    resource: _Text = "usd"
    scope: Annotated[str, Meta(min_length=1, max_length=250)] = "all"


# into the configuration's own words

_S = TypeVar("_S", bound=Struct)


def new_key(form: KeyForm, now: float) -> Key:
    """The key that a form describes; ``now`` in Unix seconds. Raises `FormError`."""
    return changed_key(Key(name=form.name), form, now)


def changed_key(key: Key, change: KeyChange, now: float) -> Key:
    """``key`` with a change. Raises `FormError`."""
    return _changed(key, change, expires=lambda text: _moment(text, now), limits=_limits, budget=_spending)


def changed_team(team: Team, change: TeamChange) -> Team:
    """``team`` with a change; a new one is a change of ``Team()``. Raises `FormError`."""
    return _changed(team, change, limits=_limits, budget=_spending)


def new_budget(form: BudgetForm) -> Budget:
    """The budget that a form describes. Raises `FormError`."""
    return changed_budget(Budget(name=form.name, resource=form.resource, scope=form.scope, amount=0.0), form)


def changed_budget(budget: Budget, change: BudgetChange) -> Budget:
    """``budget`` with a change. Raises `FormError`."""
    return _changed(budget, change, window=_window)


def grace_s(form: RotateForm) -> float:
    """Seconds for which the old secret stays valid. Raises `FormError`."""
    found = duration_s(form.grace) if isinstance(form.grace, str) else form.grace
    if found is None or not 0 <= found <= GRACE_S:
        raise FormError("A grace period is a duration up to 30 days.", field="grace", fix="For example `1h`.")
    return found


def _changed(before: _S, change: Struct, **conversions: Callable[[Any], Any]) -> _S:
    """``before`` with every field that the change names, as it is or converted."""
    named = {name: getattr(change, name, UNSET) for name in before.__struct_fields__}
    given = {name: value for name, value in named.items() if value is not UNSET}
    for name in conversions.keys() & given.keys():
        given[name] = conversions[name](given[name])
    return msgspec.structs.replace(before, **given)


def _moment(text: str | None, now: float) -> float | None:
    if text is None:
        return None
    found = moment_s(text)
    if found is None and (length := duration_s(text)) is not None:
        found = now + length
    if found is None or not 0 < found < 1e11:
        raise FormError(
            f"{text!r} is no moment.",
            field="expires",
            fix="Write a date and time with its zone such as `2027-01-31T12:00:00Z`, or a duration such as `30d`.",
        )
    return found


def _window(value: float | str | None, field: str = "window") -> float | Calendar | None:
    if not isinstance(value, str):
        return value
    if value in _WINDOWS:
        return _WINDOWS[value]
    found = duration_s(value)
    if found is None or not 0.001 <= found <= 1e10:
        fix = "Write `day`, `week`, `month`, `forever` or a duration such as `1h`."
        raise FormError(f"{value!r} is no window.", field=field, fix=fix)
    return found


def _limits(limits: Limits | None) -> KeyLimits:
    return KeyLimits() if limits is None else KeyLimits(**msgspec.structs.asdict(limits))


def _spending(budget: Spending | None) -> KeyBudget | None:
    if budget is None:
        return None
    return KeyBudget(**{**msgspec.structs.asdict(budget), "window": _window(budget.window, "budget.window")})


# does it fit what there is?


class Known:
    """The names that keys, teams and budgets may refer to: those of a configuration and of the database.

    Without a configuration (``None``) every name of a model or endpoint is taken as right.
    """

    def __init__(self, config: Config | None, keys: Container[str], teams: Container[str]) -> None:
        self._whole = Config(gco2_per_kwh=1.0) if config is None else config
        self._names: dict[str, Any] = {
            "keys": keys,
            "teams": teams,
            "models": _Anything() if config is None else set(config.models),
            "endpoints": _Anything() if config is None else set(config.endpoints),
        }
        self._tags = _Anything() if config is None else checks.endpoint_tags(config)

    def check_key(self, key: Key) -> None:
        """Raises `FormError` if a key names what is not there, or has an impossible budget."""
        self._check_owner(f"key:{key.name}", key)
        if key.team is not None and key.team not in self._names["teams"]:
            fix = "Make it first, with `apportion teams create` or in the configuration."
            raise FormError(f"There is no team {key.team!r}.", field="team", fix=fix)

    def check_team(self, name: str, team: Team) -> None:
        """The same for a team."""
        self._check_owner(f"team:{name}", team)

    def check_budget(self, budget: Budget) -> None:
        """The same for a budget."""
        config = msgspec.structs.replace(self._whole, keys=[], teams={}, budgets=[budget])
        self._refuse(budgets.faults(config, self._names.__getitem__), 2)
        _check_amounts(budget)

    def _check_owner(self, scope: str, owner: Key | Team) -> None:
        self._refuse(checks.owner((), owner, self._names.__getitem__), 0)
        self._refuse(checks.demands((), owner, self._tags), 0)
        config = msgspec.structs.replace(self._whole, keys=[], teams={}, budgets=[])
        if isinstance(owner, Key):
            config = msgspec.structs.replace(config, keys=[owner])
        else:
            config = msgspec.structs.replace(config, teams={scope.partition(":")[2]: owner})
        self._refuse(budgets.faults(config, self._names.__getitem__), 2)
        for entry in short_budgets(scope, owner.budget):
            _check_amounts(entry)

    def _refuse(self, faults: Iterator[Fault], skip: int) -> None:
        for fault in faults:
            field = show_path(fault.path[skip:]) or None
            raise FormError(
                f"{field}: {fault.message}" if field else f"The budget {fault.message}",
                field=field,
                fix=fault.fix,
            )


def _check_amounts(budget: Budget) -> None:
    try:
        core = budget_of(budget)
        core.unit.to_units(core.amount)
    except ApportionError as error:
        raise FormError(error.message, field=error.field, fix=error.fix) from None


class _Anything(set[str]):
    """Has every name."""

    def __contains__(self, name: object) -> bool:
        return True
