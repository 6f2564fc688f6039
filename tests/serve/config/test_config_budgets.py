"""Budgets of a configuration as the budgets of `core` that they mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from apportion.core.budget import Account
from apportion.core.budget import Budget as CoreBudget
from apportion.serve.config import budgets, units
from apportion.serve.config.budgets import budget_of, limits_of
from apportion.serve.config.problems import ConfigError
from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Budget, Config, KeyLimits

GOOD = """\
endpoints: {a: {kind: openai, base_url: "http://a:1/v1", watts: 80}}
models: {m: a}
gco2_per_kwh: 360
"""


def config(text: str) -> Config:
    return loads(GOOD + text, environ={})


def one(text: str) -> CoreBudget:
    return budget_of(config(f"budgets: [{{name: b, amount: 5, {text}}}]").budgets[0])


def test_windows() -> None:
    assert one("window: 1h") == CoreBudget("b", "usd", 5, 3600.0)
    assert one("window: 1d").window_s == 86_400
    assert one("window: forever") == one("scope: all") == CoreBudget("b", "usd", 5)
    month = one("window: month, time_zone: Europe/Berlin")
    assert (month.window_s, month.calendar, month.time_zone) == (None, "month", "Europe/Berlin")
    sliding = one("window: 90s, sliding: true, overdraft: 1.5")
    assert (sliding.window_s, sliding.sliding, sliding.overdraft) == (90, True, 1.5)
    bucket = one("refill_per_s: 0.5, resource: joules, scope: team, hard: false")
    assert bucket == CoreBudget("b", "joules", 5, refill_per_s=0.5, scope="team", hard=False)


def test_a_window_may_come_from_the_environment() -> None:
    text = GOOD + 'budgets: [{name: b, amount: 5, window: "${W}"}]'
    for given, window in (("day", "day"), ("forever", None), ("30m", 1800), ("60", 60)):
        assert loads(text, environ={"W": given}).budgets[0].window == window


def test_every_metered_resource_makes_an_account() -> None:
    for name in budgets.METERED:
        account = Account(one(f"resource: {name}"))
        assert account.reserve(account.budget.unit.to_units(5), 0.0)
        assert not account.reserve(1, 0.0)


def test_the_short_forms_of_teams_and_keys() -> None:
    found = config(
        """\
teams:
  red: {budget: {usd: 100, window: month, time_zone: Asia/Tokyo}}
  blue: {}
keys:
  - {name: a, secret: x, team: red, budget: {usd: 1, tokens: 5, window: 1h, hard: no}}
budgets: [{name: all, amount: 1000, window: 1d}]
"""
    ).all_budgets()
    shown = [(b.name, b.scope, b.amount, b.window, b.time_zone, b.hard) for b in found]
    assert shown == [
        ("all", "all", 1000, 86_400, "UTC", True),
        ("team:red:usd", "team:red", 100, "month", "Asia/Tokyo", True),
        ("key:a:usd", "key:a", 1, 3600, "UTC", False),
        ("key:a:tokens", "key:a", 5, 3600, "UTC", False),
    ]


def test_rates_are_budgets_too() -> None:
    assert limits_of("key:a", KeyLimits()) == []
    found = limits_of("team:red", KeyLimits(requests_per_minute=30, tokens_per_minute=6000, parallel=4))
    assert found == [
        CoreBudget("requests_per_minute", "requests", 30, refill_per_s=0.5, scope="team:red"),
        CoreBudget("tokens_per_minute", "tokens", 6000, refill_per_s=100.0, scope="team:red"),
        CoreBudget("parallel", "parallel", 4, scope="team:red"),
    ]
    requests = Account(found[0])
    assert sum(requests.reserve(1, 0.0) for _ in range(40)) == 30
    assert not requests.reserve(1, 1.9)
    assert requests.reserve(1, 2.0)


def test_an_end_user_and_a_session_need_not_be_known() -> None:
    assert one("scope: 'user:alice'").scope == "user:alice"
    assert one("scope: session").scope == "session"
    assert one("scope: key").scope == "key"
    assert one("scope: 'organisation:default'").scope == "organisation:default"


def test_without_a_database_of_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoneinfo.available_timezones", lambda: set[str]())
    monkeypatch.setattr("apportion.core.calendar.zone", lambda _: None)
    with pytest.raises(ConfigError, match="install the package `tzdata`"):
        config("budgets: [{name: b, amount: 5, window: day, time_zone: Asia/Tokyo}]")


def test_energy_needs_the_power_of_what_it_meets_only() -> None:
    text = """\
endpoints:
  a: {kind: openai, base_url: "http://a:1/v1", watts: 80}
  b: {kind: openai, base_url: "http://b:1/v1"}
models: {m: a, n: [a, b]}
budgets:
  - {name: of-m, amount: 1, resource: joules, scope: "model:m"}
  - {name: of-a, amount: 1, resource: joules, scope: "endpoint:a"}
  - {name: soft, amount: 1, resource: joules, hard: false}
"""
    read = loads(text, environ={})
    assert len(read.budgets) == 3
    wide = [Budget(name=resource, amount=1, resource=resource) for resource in ("joules", "gco2")]
    changed = Config(endpoints=read.endpoints, models=read.models, budgets=wide)
    faults = list(budgets.faults(changed, lambda _: set()))
    assert [(f.path, f.fix) for f in faults] == [
        (("budgets", 0, "resource"), "Give `endpoints.b.watts`."),
        (("budgets", 1, "resource"), "Give `gco2_per_kwh`."),
        (("budgets", 1, "resource"), "Give `endpoints.b.watts`."),
    ]


@pytest.mark.parametrize(
    "text",
    ["2027-01-31T12:00:00Z", '"2027-01-31T13:00:00+01:00"', "2027-01-31 12:00:00+00:00", "20270131T120000Z"],
)
def test_a_key_expires_at_a_moment(text: str) -> None:
    key = config(f"keys: [{{name: a, secret: x, expires: {text}, disabled: true}}]").keys[0]
    assert key.expires == datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp()
    assert units.show_moment(key.expires) == "2027-01-31T12:00:00Z"
    assert key.disabled
