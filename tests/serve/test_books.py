"""Who pays for a request: purses by scope, limits per minute, what is left and what is said of it, and prices."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.budget import Budget as CoreBudget
from apportion.core.cost import Cost
from apportion.serve import books, errors, identity
from apportion.serve.books import ESTIMATED, Books, Sheet
from apportion.serve.config.schema import Budget, Config, Key, KeyBudget, KeyLimits, Secret, Team
from apportion.serve.identity import Who
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import (
    GCO2,
    JOULES,
    PARALLEL,
    REQUESTS,
    RESERVE,
    RESOURCES,
    SERVER_SECONDS,
    SETTLE,
    TOKENS,
    USD,
    Entry,
)
from apportion.serve.ledger.ledger import Ledger, Refused, Reservation, Settings, Unavailable
from apportion.serve.ledger.postings import posting
from apportion.serve.ledger.purse import NO_LINES, Lines, Purse

ALICE, BOB = "team:red/alice", "key:lone/bob"
"""End users as the books name them."""


def key(name: str = "k", team: str | None = None, **limits: Any) -> Key:
    return Key(name=name, secret=Secret("s"), team=team, limits=KeyLimits(**limits))


def budget(name: str, amount: float = 1.0, **more: Any) -> Budget:
    return Budget(name=name, amount=amount, **more)


def config(*budgets: Budget, keys: Sequence[Key] = (), **more: Any) -> Config:
    return Config(keys=list(keys) or [key()], budgets=list(budgets), **more)


class Purses:
    """A ledger as far as books ask it outside of a request: the same purse for the same account."""

    def __init__(self, holders: int = 1) -> None:
        self.holders = holders
        self.found: dict[str, Purse] = {}

    def purse(self, account: str, budget: CoreBudget, subject: str) -> Purse:
        return self.found.setdefault(account, Purse(account, budget, subject))


def opened(config: Config, holders: int = 1, **more: Any) -> Books:
    ledger: Any = Purses(holders)
    return Books(config, ledger, **more)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    found = await Ledger.open(Database("memory"), Settings(None, commit_s=0.001), rng=random.Random(1))
    yield found
    await found.close()


def amounts(**given: int) -> tuple[int, ...]:
    """By place; ``estimated`` is the last."""
    return tuple(given.pop(name, 0) for name in (*RESOURCES, "estimated"))


def entry(reservation: str, kind: int = RESERVE, **more: Any) -> Entry:
    who = {"team": "", "key": "k", "user": "", "session": "", "model": "m", "endpoint": "e"}
    given = {**who, "upstream_model": "m", "api": "chat", "tags": "", **more}
    return Entry(reservation, kind, "dec_1", 1, "default", **given)


async def hold(ledger: Ledger, lines: Lines, **given: int) -> Reservation:
    return await ledger.reserve(lines, amounts(**given), entry(ledger.reservation_id()))


def settle(ledger: Ledger, held: Reservation, **spent: int) -> None:
    ledger.settle(held, amounts(**spent), entry(held.entry.reservation, SETTLE, **spent))


def accounts(lines: Lines) -> list[str]:
    return [line.purse.account for line in (*lines.hard, *lines.soft)]


# --- who pays -----------------------------------------------------------------------------------------

EVERYTHING = config(
    budget("all"),
    budget("acme", scope="organisation"),
    budget("acme too", scope="organisation:acme"),
    budget("each team", scope="team"),
    budget("red", scope="team:red"),
    budget("each key", scope="key"),
    budget("lone", scope="key:lone"),
    budget("each user", scope="user"),
    budget("alice", scope="user:alice"),
    budget("alice of red", scope="user:team:red/alice"),
    budget("each session", scope="session"),
    budget("each model", scope="model"),
    budget("m", scope="model:m"),
    budget("each endpoint", scope="endpoint"),
    budget("e", scope="endpoint:e"),
    budget("one", scope="request"),
    keys=(key("k", "red"), key("lone")),
    teams={"red": Team()},
    organisation="acme",
)


def test_every_scope_has_its_own_and_the_widest_comes_first() -> None:
    found = opened(EVERYTHING)
    red, lone = EVERYTHING.keys
    assert accounts(found.lines(red, ALICE, "team:red/s1", "m", "e")) == [
        "all@all",
        "acme@all",
        "acme too@all",
        "each team@team:red",
        "red@team:red",
        "each key@key:k",
        "each user@user:team:red/alice",
        "alice of red@user:team:red/alice",
        "alice@user:team:red/alice",
        "each session@session:team:red/s1",
        "each model@model:m",
        "m@model:m",
        "each endpoint@endpoint:e",
        "e@endpoint:e",
    ]
    assert accounts(found.lines(lone, BOB, "", "other", "f")) == [
        "all@all",
        "acme@all",
        "acme too@all",
        "each key@key:lone",
        "lone@key:lone",
        "each user@user:key:lone/bob",
        "each model@model:other",
        "each endpoint@endpoint:f",
    ]
    for purse, _, _ in found.lines(red, ALICE, "team:red/s1", "m", "e").hard:
        assert purse.account == f"{purse.budget.name}@{purse.subject}"


def test_the_alice_of_another_tenant_has_an_account_of_her_own() -> None:
    found = opened(EVERYTHING)
    lone = EVERYTHING.keys[1]
    said = accounts(found.lines(lone, identity.qualified(identity.tenant(lone), "alice"), "", "m", "e"))
    assert "alice@user:key:lone/alice" in said
    assert not any(account.startswith("alice of red@") for account in said)
    # whoever calls a user by another tenant's qualified name gets no further than an account of his own
    sly = identity.qualified(identity.tenant(lone), "team:red/alice")
    assert {a for a in accounts(found.lines(lone, sly, "", "m", "e")) if "user:" in a} == {
        "each user@user:key:lone/team:red/alice",
        "alice of red@user:key:lone/team:red/alice",
    }


names = st.sampled_from(["", "a", "b", "team:a/b", "key:a/a", "é,@"])
scopes = st.sampled_from(["all", "organisation", "team", "key", "user", "session", "model", "endpoint"])


@settings(max_examples=300, deadline=None)
@given(scopes, names, st.tuples(names, *[names.filter(bool)] * 1, names, names, *[names.filter(bool)] * 2))
def test_worker_and_record_agree_on_who_pays(kind: str, name: str, given: tuple[str, ...]) -> None:
    """The lines of a request are the accounts that its entries charge, and what `identity.subject_of` says."""
    team, who, user, session, model, endpoint = given
    scope = f"{kind}:{name}" if name and kind not in ("all", "organisation") else kind
    own = key(who, team or None)
    user = identity.qualified(identity.tenant(own), user)
    session = identity.qualified(identity.tenant(own), session)
    found = opened(config(budget("b", scope=scope), keys=(own,))).lines(own, user, session, model, endpoint)
    subject = identity.subject_of(scope, Who(team, who, user, session, model, endpoint))
    assert [line.purse.subject for line in found.hard] == ([] if subject is None else [subject])
    if subject is not None:
        settled = entry("r", SETTLE, team=team, key=who, user=user, session=session, model=model, usd=7)
        settled.endpoint = endpoint
        assert posting(settled, subject, "usd") == 7


def test_another_organisations_budget_is_nobodys() -> None:
    found = opened(config(budget("b", scope="organisation:else"), organisation="acme"))
    assert found.lines(key(), "", "", "m", "e") is NO_LINES


def test_soft_ones_look_on_and_only_hard_ones_bound_an_answer() -> None:
    given = [
        budget("usd"),
        budget("usd of m", scope="model:m"),
        budget("tokens", resource="tokens"),
        budget("seconds", resource="server_seconds"),
        budget("joules", resource="joules"),
        budget("grams", resource="gco2"),
        budget("requests", resource="requests"),
        budget("at once", resource="parallel"),
        budget("rate", resource="tokens", refill_per_s=1.0),
        budget("careful", hard=False),
    ]
    lines = opened(config(*given)).lines(key(), "", "", "m", "e")
    assert [line.purse.budget.name for line in lines.soft] == ["careful"]
    assert {line.purse.budget.name: (line.held, line.spent) for line in lines.hard} == {
        "usd": (USD, USD),
        "usd of m": (USD, USD),
        "tokens": (TOKENS, TOKENS),
        "seconds": (SERVER_SECONDS, SERVER_SECONDS),
        "joules": (JOULES, JOULES),
        "grams": (GCO2, GCO2),
        "requests": (REQUESTS, REQUESTS),
        "at once": (PARALLEL, PARALLEL),
        "rate": (ESTIMATED, TOKENS),
    }
    assert [(place, [p.budget.name for p in purses]) for place, purses in lines.caps] == [
        (TOKENS, ["tokens"]),
        (USD, ["usd", "usd of m"]),
        (SERVER_SECONDS, ["seconds"]),
        (JOULES, ["joules"]),
        (GCO2, ["grams"]),
    ]


@pytest.mark.parametrize(
    ("entry", "caps"),
    [
        (budget("b"), True),
        (budget("b", resource="tokens", scope="user"), True),
        (budget("b", scope="request"), True),
        (budget("b", hard=False), False),
        (budget("b", resource="tokens", refill_per_s=1.0), False),
        (budget("b", resource="requests"), False),
        (budget("b", resource="parallel"), False),
    ],
    ids=str,
)
def test_whether_what_an_answer_may_cost_is_bounded_at_all(entry: Budget, caps: bool) -> None:
    assert opened(config(entry)).caps is caps


def test_the_least_budget_of_one_request_holds() -> None:
    found = opened(
        config(
            budget("a", 0.5, scope="request"),
            budget("b", 0.25, scope="request"),
            budget("c", 1000, scope="request", resource="tokens"),
        )
    )
    assert found.per_request == {USD: 25 * 10**10, TOKENS: 1000}
    assert found.lines(key(), "", "", "m", "e") is NO_LINES, "it has no account"


def test_lines_are_found_once_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "_MOST", 10)
    found = opened(config(budget("each user", scope="user")))
    first = found.lines(key(), "key:k/u", "", "m", "e")
    assert found.lines(key(), "key:k/u", "", "m", "e") is first
    for number in range(100):
        found.lines(key(), f"key:k/u{number}", "", "m", "e")
        found.sheet("k", f"m{number}")
    assert len(found._lines) <= 10
    assert len(found._sheets) <= 10
    again = found.lines(key(), "key:k/u", "", "m", "e")
    assert again.hard[0].purse is first.hard[0].purse, "the purse is the ledger's"


# --- limits -------------------------------------------------------------------------------------------


def test_limits_are_budgets_that_refill() -> None:
    limited = key("k", "red", requests_per_minute=60, tokens_per_minute=6000, parallel=4)
    other = key("other", "red")
    team = Team(limits=KeyLimits(requests_per_minute=90, parallel=5), budget=KeyBudget(usd=3.0))
    found = opened(config(keys=(limited, other), teams={"red": team}))
    lines = found.lines(limited, "", "", "m", "e")
    assert [
        (x.purse.account, x.purse.budget.amount, x.purse.budget.refill_per_s, x.held, x.spent)
        for x in lines.hard
    ] == [
        ("team:red:usd@team:red", 3.0, None, USD, USD),
        ("requests_per_minute@team:red", 90, 1.5, REQUESTS, REQUESTS),
        ("parallel@team:red", 5, None, PARALLEL, PARALLEL),
        ("requests_per_minute@key:k", 60, 1.0, REQUESTS, REQUESTS),
        ("tokens_per_minute@key:k", 6000, 100.0, ESTIMATED, TOKENS),
        ("parallel@key:k", 4, None, PARALLEL, PARALLEL),
    ]
    shared = found.lines(other, "", "", "m", "e").hard
    assert [line.purse for line in shared] == [line.purse for line in lines.hard[:3]], "one for the team"
    assert [(purse.account, header) for purse, header in found.rates(limited)] == [
        ("requests_per_minute@key:k", "x-ratelimit-limit-requests: 60\r\n"),
        ("tokens_per_minute@key:k", "x-ratelimit-limit-tokens: 6000\r\n"),
    ]
    assert found.rates(limited) is found.rates(limited)
    assert found.rates(other) == ()


async def test_a_rate_holds_the_estimate_and_spends_what_was_measured(ledger: Ledger) -> None:
    limited = key(tokens_per_minute=600)
    lines = Books(config(keys=(limited,)), ledger).lines(limited, "", "", "m", "e")
    held = await hold(ledger, lines, tokens=100_000, estimated=400)
    (purse,) = [line.purse for line in lines.hard]
    assert purse.reserved == 400
    with pytest.raises(Refused):
        await hold(ledger, lines, estimated=400)
    settle(ledger, held, tokens=150)
    assert (purse.reserved, purse.spent) == (0, 150)
    await hold(ledger, lines, estimated=400)


async def test_requests_under_way_come_back_whole(ledger: Ledger) -> None:
    limited = key(parallel=2)
    lines = Books(config(keys=(limited,)), ledger).lines(limited, "", "", "m", "e")
    held = [await hold(ledger, lines, parallel=1) for _ in range(2)]
    for one in held:
        with pytest.raises(Refused):
            await hold(ledger, lines, parallel=1)
        settle(ledger, one)
        held.append(await hold(ledger, lines, parallel=1))
        if len(held) > 5:
            break


# --- what is left, and what is said of it -------------------------------------------------------------


def test_what_is_left_is_that_of_the_tightest_here_and_in_the_bank() -> None:
    found = opened(config(budget("a"), budget("b", scope="key"), budget("c", scope="model")))
    ((place, purses),) = found.lines(key(), "", "", "m", "e").caps
    assert place == USD
    for purse, (free, available) in zip(purses, [(50, 10), (0, 30), (20, 20)], strict=True):
        purse.free, purse.available = free, available
    assert books.left(purses) == 30
    assert books.left(purses[2:]) == 40
    purses[2].available = -100
    assert books.left(purses) == -80


async def test_a_soft_budget_warns_when_a_tenth_is_left(ledger: Ledger) -> None:
    given = [budget('so "soft"; é', 100e-12, hard=False), budget("hard", 1.0), budget("t", 9, hard=False)]
    lines = Books(config(*given), ledger).lines(key(), "", "", "m", "e")
    assert books.warnings(lines) == [], "nothing is known yet"
    settle(ledger, await hold(ledger, lines, usd=89), usd=89)
    await ledger.durable()
    assert books.warnings(lines) == []
    settle(ledger, await hold(ledger, lines, usd=1), usd=1)
    assert books.warnings(lines) == ['"so soft "; left=1.0E-11; resource=usd'], "also before the bank knows"
    await ledger.durable()
    assert books.warnings(lines) == ['"so soft "; left=1.0E-11; resource=usd']
    settle(ledger, await hold(ledger, lines, usd=20), usd=20)
    await ledger.durable()
    assert books.warnings(lines) == ['"so soft "; left=-1.0E-11; resource=usd'], "it refuses nothing"


async def refusal(ledger: Ledger, given: Config, **wanted: int) -> tuple[errors.GatewayError, dict[str, Any]]:
    """The error of a request that is more than is left."""
    (own,) = given.keys
    lines = Books(given, ledger).lines(own, "", "", "m", "e")
    refused: Refused | None = None
    while refused is None:
        try:
            held = await hold(ledger, lines, **wanted)
        except Refused as found:
            refused = found
        else:
            if "parallel" not in wanted:
                settle(ledger, held, **wanted)
    error = books.refused(refused)
    assert error.details is not None
    return error, dict(error.details)


async def test_a_spent_budget_is_402(ledger: Ledger) -> None:
    error, details = await refusal(ledger, config(budget("b", 100e-12, scope="key")), usd=40)
    assert isinstance(error, errors.BudgetExceededError)
    assert (error.status, error.field, error.retry_after_s) == (402, "b", None)
    assert details == {
        "budget": "b",
        "scope": "key:k",
        "resource": "usd",
        "wanted": "0.00000000004",
        "left": "0.00000000002",
        "retry_after_s": None,
    }


async def test_a_window_says_when_it_starts_again(ledger: Ledger) -> None:
    given = config(budget("hour", 10, resource="tokens", window=3600.0))
    error, details = await refusal(ledger, given, tokens=6)
    assert isinstance(error, errors.BudgetExceededError)
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 3600
    assert details["retry_after_s"] == error.retry_after_s
    assert (details["wanted"], details["left"]) == ("6", "4")


async def test_a_rate_is_429_until_it_has_refilled(ledger: Ledger) -> None:
    error, details = await refusal(ledger, config(keys=(key(requests_per_minute=3),)), requests=1)
    assert isinstance(error, errors.RateLimitedError)
    assert (error.status, error.field) == (429, "requests_per_minute")
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 20
    assert (details["scope"], details["left"]) == ("key:k", "0")


async def test_what_no_bucket_can_ever_hold_is_not_told_to_wait(ledger: Ledger) -> None:
    error, _ = await refusal(ledger, config(keys=(key(tokens_per_minute=100),)), estimated=101)
    assert isinstance(error, errors.BudgetExceededError)
    assert error.retry_after_s is None


async def test_too_many_at_once_is_429(ledger: Ledger) -> None:
    error, details = await refusal(ledger, config(keys=(key(parallel=2),)), parallel=1)
    assert isinstance(error, errors.RateLimitedError)
    assert (error.status, error.field, error.retry_after_s) == (429, "parallel", 1.0)
    assert "2 requests at once" in error.message
    assert details["resource"] == "parallel"


def test_a_ledger_that_cannot_be_asked_is_503() -> None:
    error = books.unavailable(Unavailable("The ledger's database does not answer.", 2.0))
    assert (error.status, error.code, error.retry_after_s) == (503, "ledger_unavailable", 2.0)


# --- prices -------------------------------------------------------------------------------------------


class Noting:
    """A pricer that notes what it is told."""

    def __init__(self) -> None:
        self.spent: list[tuple[Cost, float, float]] = []
        self.asked = 0

    def prices(self, now: float) -> Mapping[str, float]:
        self.asked += 1
        return {"usd": 0.5, "tokens": float(len(self.spent))}

    def spend(self, cost: Cost, now: float, value: float) -> None:
        self.spent.append((cost, now, value))


spendings = st.lists(
    st.tuples(
        st.none() | st.integers(0, 1000).map(float),
        st.integers(0, 1000),
        st.integers(0, 100).map(float),
        st.integers(0, 10).map(float),
        st.floats(0.0, 0.05),
    ),
    max_size=40,
)


@given(spendings, st.integers(1, 64))
def test_small_batches_are_the_sum_of_their_parts_for_each_holder(
    spendings: list[tuple[float | None, int, float, float, float]], holders: int
) -> None:
    """A worker sees its own requests; the others are taken to have spent as much."""
    pricers = (Noting(), Noting())
    ledger: Any = SimpleNamespace(holders=holders)
    sheet = Sheet({"usd": 1.0, "joules": 2.0}, pricers, ledger)  # type: ignore[arg-type]
    now = 0.0
    for usd, tokens, server_s, value, wait_s in spendings:
        sheet.spent(usd, tokens, server_s, value, now, joules=3.0 * server_s, gco2=0.5 * server_s)
        now += wait_s
        sheet.prices(now)
    sheet.prices(now + 1)
    server_s = holders * sum(s[2] for s in spendings)
    for pricer in pricers:
        known = [s for s in spendings if s[0] is not None]
        assert sum(c.get("usd", 0.0) for c, _, _ in pricer.spent) == holders * sum(s[0] or 0.0 for s in known)
        assert sum(c["tokens"] for c, _, _ in pricer.spent) == holders * sum(s[1] for s in spendings)
        assert sum(c["server_seconds"] for c, _, _ in pricer.spent) == server_s
        assert sum(c["joules"] for c, _, _ in pricer.spent) == 3.0 * server_s
        assert sum(c["gco2"] for c, _, _ in pricer.spent) == 0.5 * server_s
        assert sum(c["requests"] for c, _, _ in pricer.spent) == holders * len(spendings)
        assert sum(v for _, _, v in pricer.spent) == holders * sum(s[3] for s in spendings)
        times = [t for _, t, _ in pricer.spent]
        assert times == sorted(times)
        assert pricer.asked <= now / 0.02 + 2


def test_who_spends_once_and_asks_no_more_has_moved_the_price_for_all() -> None:
    """A budget of many keys, each of which asks once: its price is what it is when one key asks for all."""
    budget = Budget(name="b", amount=1.0, refill_per_s=1e-5, hard=False)
    many = opened(Config(keys=[key(f"k{i}") for i in range(50)], budgets=[budget]))
    one = opened(Config(keys=[key("k")], budgets=[budget]))
    for i in range(50):
        for found, name in ((many, f"k{i}"), (one, "k")):
            sheet = found.sheet(name, "m")
            sheet.prices(float(i))
            sheet.spent(0.01, 10, 0.1, 1.0, float(i))
    assert many.explain_prices(60.0) == one.explain_prices(60.0)
    before = many.sheet("k0", "m").prices(60.0)["usd"]
    assert before == many.sheet("k1", "m").prices(60.0)["usd"] == one.sheet("k", "m").prices(60.0)["usd"]
    assert before > 1.0
    assert many.explain_prices(60.0) == one.explain_prices(60.0)


def test_prices_add_up() -> None:
    sheet = Sheet({"usd": 1.0, "joules": 2.0}, (Noting(), Noting()))  # type: ignore[arg-type]
    assert sheet.prices(0.0) == {"usd": 2.0, "joules": 2.0, "tokens": 0.0}
    sheet.spent(1.0, 1, 1.0, 1.0, 0.001)
    assert sheet.prices(0.01) is sheet.prices(0.015), "as they were, for a moment"
    assert sheet.prices(0.03)["tokens"] == 2.0
    assert sheet.prices(-5.0)["tokens"] == 2.0, "a clock that is set back does not freeze them"


def test_without_budgets_prices_are_those_outside() -> None:
    found = opened(Config(keys=[key()], prices={"joules": 0.5}))
    sheet = found.sheet("k", "m")
    sheet.spent(1.0, 1, 1.0, 1.0, 0.0)
    assert sheet.prices(0.0) == {"usd": 1.0, "joules": 0.5}
    assert found.sheet("k", "m") is sheet
    assert found.saved_prices(101.0) == {}


KEYS = (key("k", "red"), key("lone"))
TEAMS = {"red": Team()}


def spend_ahead(sheet: Sheet, usd: float = 0.05) -> None:
    """Spend more than the pace for a hundred seconds."""
    for second in range(100):
        sheet.prices(float(second))
        sheet.spent(usd, 10, 0.1, 1.0, float(second))


def usd_price(books: Books, name: str, model: str = "m") -> float:
    return books.sheet(name, model).prices(101.0)["usd"]


@pytest.mark.parametrize(
    ("scope", "concerned"),
    [
        ("all", {"k m", "k n", "lone m", "lone n"}),
        ("organisation", {"k m", "k n", "lone m", "lone n"}),
        ("team", {"k m", "k n"}),
        ("team:red", {"k m", "k n"}),
        ("key", {"k m", "k n"}),
        ("key:lone", set()),
        ("model", {"k m", "lone m"}),
        ("model:n", set()),
        ("user", set()),
        ("session", set()),
        ("endpoint", set()),
    ],
)
def test_spending_ahead_of_the_pace_raises_the_price_of_those_concerned(
    scope: str, concerned: set[str]
) -> None:
    """Of a request with key ``k`` for model ``m``. Budgets of users, sessions and endpoints only limit."""
    found = opened(config(budget("day", 10.0, scope=scope, window=86400.0), keys=KEYS, teams=TEAMS))
    spend_ahead(found.sheet("k", "m"))
    dearer = {f"{k} {m}" for k in ("k", "lone") for m in ("m", "n") if usd_price(found, k, m) > 1.0}
    assert dearer == concerned


def test_a_restart_keeps_learned_prices_in_words() -> None:
    given = config(
        budget("day", 10.0, window=86400.0),
        budget("each team", 5.0, scope="team", window=86400.0),
        keys=KEYS,
        teams=TEAMS,
    )
    before = opened(given)
    spend_ahead(before.sheet("k", "m"))
    price = usd_price(before, "k")
    saved = before.saved_prices(101.0)
    assert set(saved) == {"all", "team:red"}
    after = opened(given, saved_prices=saved)
    assert usd_price(after, "k") == price > usd_price(after, "lone") > 1.0
    assert {scope: json.loads(text) for scope, text in after.saved_prices(101.0).items()} == {
        scope: json.loads(text) for scope, text in before.saved_prices(101.0).items()
    }


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"duals": 5}', '{"duals": {"day": {}}}', '{"duals": {"day": 5}}', "null"]
)
def test_prices_of_another_version_are_learned_anew(text: str) -> None:
    found = opened(config(budget("day", 10.0, window=86400.0)), saved_prices={"all": text})
    assert usd_price(found, "k") == 1.0


def test_a_reload_keeps_learned_prices() -> None:
    day = budget("day", 10.0, window=86400.0, scope="key:k")
    before = opened(config(day, keys=KEYS))
    sheet = before.sheet("k", "m")
    spend_ahead(sheet)
    same = opened(config(day, keys=(*KEYS, key("bob"))), previous=before, now=100.0)
    assert same.sheet("k", "m") is sheet
    price = usd_price(same, "k")
    assert price > 1.0
    more = budget("tokens", 10, scope="key:k", resource="tokens")
    wider = opened(config(day, more, keys=KEYS), previous=same, now=100.0)
    assert wider.sheet("k", "m") is not sheet
    assert usd_price(wider, "k") == pytest.approx(price)
    larger = config(budget("day", 20.0, window=86400.0, scope="key:k"), keys=KEYS)
    assert usd_price(opened(larger, previous=same, now=100.0), "k") == 1.0


def test_prices_that_nobody_asked_for_since_the_start_survive_reloads() -> None:
    given = config(budget("day", 10.0, window=86400.0, scope="key"), keys=KEYS)
    first = opened(given)
    spend_ahead(first.sheet("k", "m"))
    price = usd_price(first, "k")
    restarted = opened(given, saved_prices=first.saved_prices(101.0))
    once = opened(given, previous=restarted, now=100.0)
    twice = opened(given, previous=once, now=100.0)
    assert usd_price(twice, "k") == price


def test_what_was_spent_just_before_a_reload_is_told() -> None:
    given = config(budget("day", 10.0, window=86400.0), keys=KEYS)
    before = opened(given)
    spend_ahead(before.sheet("k", "m"))
    before.sheet("k", "m").spent(9.0, 1, 1.0, 1.0, 100.0)
    after = opened(given, previous=before, now=100.5)
    assert json.loads(after.saved_prices(101.0)["all"])["duals"]["day"]["fractions"] == pytest.approx(
        1.4, abs=0.01
    )


def test_prices_are_explained_by_scope() -> None:
    given = config(
        budget("day", 10.0, window=86400.0),
        budget("each team", 5.0, scope="team", window=86400.0),
        keys=KEYS,
        teams=TEAMS,
        prices={"joules": 0.5},
    )
    found = opened(given)
    sheet = found.sheet("k", "m")
    spend_ahead(sheet)
    said = found.explain_prices(101.0)
    assert said["outside"] == {"usd": 1.0, "joules": 0.5}
    assert {scope: about["budgets"] for scope, about in said["scopes"].items()} == {
        "all": ["day"],
        "team:red": ["each team"],
    }
    adds = sum(about["prices"]["usd"] for about in said["scopes"].values())
    assert sheet.prices(101.0)["usd"] == pytest.approx(1.0 + adds)
    assert "'each team'" in said["scopes"]["team:red"]["why"][0]


async def test_a_reload_keeps_purses_and_asks_anew_where_a_budget_changed(ledger: Ledger) -> None:
    day = budget("day", 100e-12, window=86400.0)
    before = Books(config(day), ledger)
    lines = before.lines(key(), "", "", "m", "e")
    held = await hold(ledger, lines, usd=30)
    purse = lines.hard[0].purse
    same = Books(config(day, budget("new")), ledger, previous=before)
    assert same.lines(key(), "", "", "m", "e").hard[0].purse is purse
    assert purse.known
    larger = Books(config(budget("day", 200e-12, window=86400.0)), ledger, previous=same)
    assert larger.lines(key(), "", "", "m", "e").hard[0].purse is purse
    assert not purse.known
    settle(ledger, held, usd=20)
    await ledger.look([purse])
    assert purse.left == 180
