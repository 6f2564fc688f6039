"""The ledger of a running proxy: what is written down, whom it stops, and what outlives it."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import KINDS, PRESUME, RESERVE, SETTLE
from apportion.serve.records import usd
from servers import Postgres

from .conftest import PATIENT, PRICE, Json, endpoint, model
from .dialects import CHAT, MESSAGES, RESPONSES, Dialect, own_error
from .proxy import Gateway
from .shapes import Want
from .upstream import Seen, Upstream, new_marker
from .wire import Response, Wire

PATIENCE_S = 60.0
TEAMS: Json = {"red": {}}
RED = [
    {"name": "alice", "secret": "${KEY_ALICE}", "team": "red", "tags": {"cost-centre": "7"}},
    {"name": "bob", "secret": "${KEY_BOB}", "team": "red"},
    {"name": "admin", "secret": "${KEY_ADMIN}", "admin": True},
]


@pytest.fixture
def config(upstream: Upstream) -> Callable[..., Json]:
    def build(**more: Any) -> Json:
        plain = f"http://127.0.0.1:{upstream.port}"
        endpoints = {name: endpoint("openai", plain, name) for name in ("left", "right", "slow")}
        endpoints["slow"]["timeouts"] = {**PATIENT, "first_token_s": 50.0}
        return {
            "organisation": "acme",
            "teams": TEAMS,
            "keys": RED,
            "endpoints": endpoints,
            "models": {
                "m": model("left", "right", retries={"attempts": 2, "backoff_s": 0.01}),
                "slow": model("slow"),
            },
            **more,
        }

    return build


def file_of(gateway: Gateway) -> Path:
    return gateway.directory / ".local" / "state" / "apportion" / "ledger.db"


def rows(file: Path, table: str) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        order = " ORDER BY at_us, kind" if table == "entries" else ""
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}{order}")]


def entries_of(gateway: Gateway) -> list[dict[str, Any]]:
    return rows(file_of(gateway), "entries")


def kinds(gateway: Gateway) -> Counter[str]:
    return Counter(KINDS[row["kind"]] for row in entries_of(gateway))


async def until(true: Callable[[], Any], what: str) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end_s, f"in vain: {what}"
        await asyncio.sleep(0.01)
    return found


async def settled(gateway: Gateway, attempts: int) -> list[dict[str, Any]]:
    """All entries, once so many attempts have ended in the database."""

    def ended() -> bool:
        found = kinds(gateway)
        return found["reserve"] == found.total() - found["reserve"] == attempts

    await until(ended, f"{attempts} attempts are in the books; they have {kinds(gateway)}")
    return entries_of(gateway)


def verify(url: Path | str) -> None:
    """The books agree with themselves."""
    database = Database(f"sqlite:///{url}" if isinstance(url, Path) else url)
    try:
        assert database.verify() == []
    finally:
        database.dispose()


def stop(gateway: Gateway) -> None:
    """In good order: nothing is under way or lent afterwards."""
    gateway.stop()
    found = kinds(gateway)
    assert found["reserve"] == found["settle"] + found["release"] + found["presume"]
    assert rows(file_of(gateway), "leases") == []
    verify(file_of(gateway))


def billed_units(seen: list[Seen]) -> int:
    """By the upstream's own meter, in pico-dollars."""
    each_in, each_out = (
        round(PRICE[f"{direction}_usd_per_mtok"] * 10**6) for direction in ("input", "output")
    )
    return sum(s.tokens_in * each_in + s.tokens_out * each_out for s in seen)


# --- what is written down -----------------------------------------------------------------------------

ASKED = [(CHAT, False), (CHAT, True), (MESSAGES, False), (MESSAGES, True), (RESPONSES, False)]


@pytest.mark.parametrize(("dialect", "stream"), ASKED, ids=lambda x: getattr(x, "name", str(x)))
async def test_an_attempt_is_one_reservation_and_one_settlement(
    start: Callable[..., Gateway],
    config: Callable[..., Json],
    upstream: Upstream,
    dialect: Dialect,
    stream: bool,
) -> None:
    """Both with all that is known of it; amounts are the upstream's, the header's and the decision's."""
    gateway = start(config())
    marker = upstream.script(new_marker(), want=Want(words=30))
    body = dialect.request("m", marker, stream=stream, apportion={"tags": ["night"]})
    who = {"x-end-user-id": "jo", "x-session-id": "s1"}
    response = await gateway.post(dialect, body, who)
    assert response.status == 200, response.body
    reserved, ended = await settled(gateway, 1)
    decision = await gateway.decision(response)
    for row in (reserved, ended):
        tags = json.loads(row["tags"])
        assert tags == {"night": "", "cost-centre": "7"}
        assert {name: row[name] for name in ("organisation", "team", "key", "user", "session")} == {
            "organisation": "acme",
            "team": "red",
            "key": "alice",
            "user": "team:red/jo",
            "session": "team:red/s1",
        }
        assert (row["model"], row["endpoint"], row["upstream_model"]) == ("m", "left", "openai-model")
        assert (row["api"], row["attempt"], row["requests"]) == (dialect.name, 1, 1)
        assert row["request"] == decision["id"]
    assert (reserved["kind"], ended["kind"]) == (RESERVE, SETTLE)
    assert reserved["reservation"] == ended["reservation"]
    (seen,) = upstream.of(marker)
    assert (ended["input_tokens"], ended["output_tokens"]) == (seen.tokens_in, seen.tokens_out)
    assert ended["tokens"] == seen.tokens_in + seen.tokens_out
    assert ended["usd"] == billed_units([seen])
    assert (ended["status"], ended["mark"]) == ("ok", "measured")
    assert decision["outcome"]["cost_usd"] == usd(ended["usd"])
    if not stream:
        assert response.header("x-apportion-cost-usd") == usd(ended["usd"])
    assert ended["server_seconds"] == round(decision["outcome"]["server_seconds"] * 10**9)
    for resource in ("tokens", "usd", "server_seconds"):
        assert 0 < ended[resource] <= reserved[resource], f"more {resource} was spent than reserved"
    assert 0 < ended["duration_us"] < 60_000_000
    stop(gateway)


async def test_every_attempt_is_written_down_and_the_request_counted_once(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    gateway = start(config(budgets=[{"name": "b", "resource": "requests", "amount": 100}]))
    marker = upstream.script(new_marker(), fault="reset_before_head")
    response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=20))
    assert response.status == 200, response.body
    found = await settled(gateway, 2)
    assert len({row["reservation"] for row in found}) == 2
    assert {row["request"] for row in found} == {response.header("x-apportion-decision-id")}
    ends = [row for row in found if row["kind"] != RESERVE]
    assert [(row["attempt"], row["endpoint"], row["status"], row["requests"]) for row in ends] == [
        (1, "left", "failed", 1),
        (2, "right", "ok", 0),
    ]
    decision = await gateway.decision(response)
    total = usd(sum(row["usd"] for row in ends))
    assert response.header("x-apportion-cost-usd") == decision["outcome"]["cost_usd"] == total
    (account,) = rows(file_of(gateway), "accounts")
    assert account["id"] == "b@all"
    stop(gateway)


async def test_what_is_refused_leaves_no_entry(
    start: Callable[..., Gateway], config: Callable[..., Json]
) -> None:
    gateway = start(config(budgets=[{"name": "b", "amount": 0.00001}]))
    assert (await gateway.post(CHAT, CHAT.request("m", "x"))).status == 402
    assert (await gateway.post(CHAT, CHAT.request("nothing", "x"))).status == 404
    assert (await gateway.post(CHAT, CHAT.request("m", "x"), key="sk-wrong")).status == 401
    stop(gateway)
    assert entries_of(gateway) == []


# --- whom it stops ------------------------------------------------------------------------------------

USER = "x-end-user-id"
SESSION = "x-session-id"


@pytest.mark.parametrize(
    ("scope", "own", "others", "account"),
    [
        ("team", [("KEY_ALICE", {}), ("KEY_BOB", {})], [("KEY_ADMIN", {})], "team:red"),
        (
            "user",
            [("KEY_ALICE", {USER: "jo"}), ("KEY_BOB", {USER: "jo", SESSION: "s"})],
            [("KEY_ADMIN", {USER: "jo"}), ("KEY_ALICE", {USER: "mo"}), ("KEY_ALICE", {})],
            "user:team:red/jo",
        ),
        (
            "user:jo",
            [("KEY_ALICE", {USER: "jo"}), ("KEY_BOB", {USER: "jo"})],
            [("KEY_ADMIN", {USER: "jo"}), ("KEY_ALICE", {USER: "mo"}), ("KEY_BOB", {})],
            "user:team:red/jo",
        ),
        (
            "session",
            [("KEY_ALICE", {SESSION: "s1"}), ("KEY_BOB", {SESSION: "s1", USER: "mo"})],
            [("KEY_ADMIN", {SESSION: "s1"}), ("KEY_ALICE", {SESSION: "s2"}), ("KEY_ALICE", {})],
            "session:team:red/s1",
        ),
        ("organisation", [("KEY_ALICE", {}), ("KEY_ADMIN", {USER: "jo"})], [], "all"),
        ("model:m", [("KEY_ALICE", {}), ("KEY_ADMIN", {})], [], "model:m"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
async def test_a_hard_budget_stops_those_whom_it_is_for(
    start: Callable[..., Gateway],
    config: Callable[..., Json],
    upstream: Upstream,
    scope: str,
    own: list[tuple[str, Json]],
    others: list[tuple[str, Json]],
    account: str,
) -> None:
    """Dollars, by the upstream's meter; whoever shares it shares the refusal, and nobody else is refused."""
    amount = 0.05
    gateway = start(config(budgets=[{"name": "b", "amount": amount, "scope": scope, "window": "forever"}]))
    marker = upstream.script(new_marker(), want=Want(words=12))
    body = CHAT.request("m", marker, max_tokens=20)
    statuses = []
    for i in range(24):
        key, who = own[i % len(own)]
        statuses.append((await gateway.post(CHAT, body, who, key)).status)
    assert set(statuses) == {200, 402}
    assert statuses == sorted(statuses), "once it is spent it is spent for all"
    spent = billed_units(upstream.of(marker))
    assert 0.7 * amount < spent * 1e-12 <= amount
    for key, who in own:
        error = own_error(CHAT, await gateway.post(CHAT, body, who, key), 402, "budget_exceeded")
        assert (error["details"]["budget"], error["details"]["scope"]) == ("b", account)
    for key, who in others:
        assert (await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=20), who, key)).status == 200
    found = [row["id"] for row in rows(file_of(gateway), "accounts")]
    assert f"b@{account}" in found
    stop(gateway)
    booked = [row for row in entries_of(gateway) if row["kind"] == SETTLE and "b" in row["charged"]]
    assert sum(row["usd"] for row in booked) >= spent


async def test_a_refusal_says_whose_budget_it_was(
    start: Callable[..., Gateway], config: Callable[..., Json]
) -> None:
    given = {"name": "b", "resource": "requests", "amount": 2, "scope": "user", "window": "forever"}
    gateway = start(config(budgets=[given]))
    answers = [await gateway.post(CHAT, CHAT.request("m", "x"), {USER: "jo"}) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 402]
    error = own_error(CHAT, answers[-1], 402, "budget_exceeded")
    assert error["param"] == "b"
    assert error["details"] == {
        "budget": "b",
        "scope": "user:team:red/jo",
        "resource": "requests",
        "wanted": "1",
        "left": "0",
        "retry_after_s": None,
    }
    assert answers[-1].header("retry-after") is None


async def test_the_most_that_one_request_may_take(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """The output is capped to fit; what does not fit at all is refused; nothing adds up over requests."""
    gateway = start(config(budgets=[{"name": "each", "amount": 0.05, "scope": "request"}]))
    marker = upstream.script(new_marker(), want=Want(words=90))
    for _ in range(5):
        response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=90))
        assert response.status == 200, response.body
    for seen in upstream.of(marker):
        assert 20 <= seen.json["max_tokens"] <= 49
        assert billed_units([seen]) <= 0.05 * 10**12
    large = await gateway.post(CHAT, CHAT.request("m", "word " * 3000, max_tokens=90))
    own_error(CHAT, large, 402, "budget_exceeded")
    assert rows(file_of(gateway), "accounts") == []
    stop(gateway)


async def test_a_window_says_when_it_begins_again_and_then_does(
    start: Callable[..., Gateway], config: Callable[..., Json]
) -> None:
    budgets = [
        {"name": "day", "resource": "requests", "amount": 1, "window": "day", "scope": "key:alice"},
        {"name": "short", "resource": "requests", "amount": 2, "window": "4s", "scope": "key:bob"},
    ]
    gateway = start(config(budgets=budgets))

    async def ask(key: str) -> Response:
        return await gateway.post(CHAT, CHAT.request("m", "x"), key=key)

    assert (await ask("KEY_ALICE")).status == 200
    refused = await ask("KEY_ALICE")
    if refused.status == 200:  # it was midnight
        refused = await ask("KEY_ALICE")
    own_error(CHAT, refused, 402, "budget_exceeded")
    assert 0 < float(refused.header("retry-after") or 0) <= 86_400
    for _ in range(2):
        answers: list[Response] = []
        while not answers or answers[-1].status == 200:
            answers.append(await ask("KEY_BOB"))
            assert len(answers) <= 5
        wait_s = float(answers[-1].header("retry-after") or 0)
        assert 0 < wait_s <= 4
        await asyncio.sleep(wait_s)
        assert (await ask("KEY_BOB")).status == 200
    stop(gateway)


async def test_an_overdraft_finishes_what_was_begun(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """The answer may take more than is left; after it nothing is left, and nobody else begins."""
    budget = {"name": "b", "amount": 0.02, "overdraft": 0.5, "window": "forever"}
    gateway = start(config(budgets=[budget]))
    marker = upstream.script(new_marker(), want=Want(words=60))
    first = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=90))
    assert first.status == 200, first.body
    (seen,) = upstream.of(marker)
    assert seen.json["max_tokens"] == 90, "it is not cut to what is left"
    assert 0.02 < billed_units([seen]) * 1e-12 <= 0.52
    for _ in range(3):
        own_error(
            CHAT, await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=1)), 402, "budget_exceeded"
        )
    stop(gateway)


async def test_a_soft_budget_only_warns(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    budget = {"name": "careful", "amount": 0.1, "hard": False, "window": "forever", "scope": "team"}
    gateway = start(config(budgets=[budget]))
    marker = upstream.script(new_marker(), want=Want(words=30))
    said = []
    for _ in range(12):
        response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=90))
        assert response.status == 200
        said.append(response.header("x-apportion-budget-warning"))
        await asyncio.sleep(0.05)
    assert said[0] is None
    last = said[-1]
    assert last is not None
    assert last.startswith('"careful"; left=-')
    assert last.endswith("; resource=usd")
    other = await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=2), key="KEY_ADMIN")
    assert other.header("x-apportion-budget-warning") is None
    stop(gateway)


async def test_requests_at_once_of_a_team(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Counted over all workers: exactly so many are under way, and an end makes room for one."""
    budget = {"name": "at once", "resource": "parallel", "amount": 3, "scope": "team"}
    gateway = start(config(budgets=[budget]), "--workers", "2")
    marker = upstream.script(new_marker(), fault="stall_before_head", on="all")
    held: list[Wire] = []
    statuses: list[int] = []
    for i in range(12):
        wire = await Wire.open(gateway.port)
        key = ("KEY_ALICE", "KEY_BOB")[i % 2]
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("slow", marker), key=key))
        reading = asyncio.ensure_future(wire.read())
        while not reading.done() and len(upstream.of(marker)) <= len(held):
            await asyncio.sleep(0.005)
        if reading.done():
            own_error(CHAT, reading.result(), 429, "gateway_rate_limited")
            statuses.append(reading.result().status)
            await wire.close()
        else:
            reading.cancel()
            held.append(wire)
    assert (len(held), statuses) == (3, [429] * 9)
    other = await gateway.post(CHAT, CHAT.request("slow", "x"), key="KEY_ADMIN")
    assert other.status == 200
    held[0].abort()

    async def again() -> int:
        return (await gateway.post(CHAT, CHAT.request("slow", "x"))).status

    end_s = time.monotonic() + PATIENCE_S
    while await again() != 200:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)
    for wire in held[1:]:
        wire.abort()
    await asyncio.sleep(0.05)  # what stops the proxy stops this loop, too
    stop(gateway)


async def test_workers_share_one_budget_exactly(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Not a slice each: any of them may spend all that is left, together they spend no more and no less."""
    budget = {"name": "b", "resource": "requests", "amount": 25, "window": "forever", "scope": "team:red"}
    gateway = start(config(budgets=[budget]), "--workers", "2")
    marker = new_marker()
    statuses: Counter[int] = Counter()

    async def ask(wire: Wire) -> None:
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("m", marker)))
        statuses[(await wire.read()).status] += 1

    async def ask_anyone() -> None:
        async with await Wire.open(gateway.port) as wire:
            await ask(wire)

    workers = await wire_to_each_worker(gateway, 2)
    for wire in (*workers, *workers):
        await ask(wire)
    assert statuses == {200: 4}, "both take part"
    await asyncio.gather(*(ask_anyone() for _ in range(60)))
    # What lies unused with one of them is refused to the other for as long as it does not give it back.
    end_s = time.monotonic() + PATIENCE_S
    while statuses[200] < 25:
        assert time.monotonic() < end_s, statuses
        await ask(workers[0])
    before = statuses.copy()
    for wire in (*workers, *workers):
        await ask(wire)
    assert statuses - before == {402: 4}
    assert set(statuses) == {200, 402}
    assert (statuses[200], len(upstream.of(marker))) == (25, 25)
    for wire in workers:
        await wire.close()
    stop(gateway)
    holders = Counter(row["holder"] for row in entries_of(gateway) if row["team"] == "red")
    assert holders.total() == 2 * 25
    assert len(holders) == 2, holders


async def wire_to_each_worker(gateway: Gateway, workers: int) -> list[Wire]:
    """A connection to each of them, found by asking with a key without a budget: whose decision it was is in its
    name. (Which worker a new connection comes to is the system's choice, and may long be the same.)"""
    found: dict[str, Wire] = {}
    end_s = time.monotonic() + PATIENCE_S
    while len(found) < workers:
        assert time.monotonic() < end_s, f"workers met: {sorted(found)}"
        wire = await Wire.open(gateway.port)
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("m", "x"), key="KEY_ADMIN"))
        response = await wire.read()
        assert response.status == 200, response.body
        index = (response.header("x-apportion-decision-id") or "")[: len("dec_00")]
        if index in found:
            await wire.close()
        else:
            found[index] = wire
    return [found[index] for index in sorted(found)]


# --- prices -------------------------------------------------------------------------------------------


async def prices(gateway: Gateway, key: str = "KEY_ADMIN") -> Json:
    response = await gateway.get("/apportion/prices", key=key)
    assert response.status == 200, response.body
    return dict(response.json)


async def test_prices_are_shown_and_outlive_the_proxy(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """Spending ahead of what is refilled makes dollars dearer; a restart does not make them cheap again."""
    budgets = [
        {"name": "slowly", "amount": 100, "refill_per_s": 0.001, "hard": False, "scope": "team:red"},
        {"name": "bobs", "amount": 100, "refill_per_s": 0.001, "hard": False, "scope": "key:bob"},
    ]
    gateway = start(config(budgets=budgets, prices={"joules": 0.25}))
    marker = upstream.script(new_marker(), want=Want(words=80))
    body = CHAT.request("m", marker, max_tokens=90)
    spent_usd = 0.0
    for key in ("KEY_BOB", "KEY_ALICE", "KEY_ALICE"):
        response = await gateway.post(CHAT, body, key=key)
        spent_usd += float(response.header("x-apportion-cost-usd") or 0)
    found = await prices(gateway)
    assert found["object"] == "apportion.prices"
    assert found["outside"] == {"usd": 1.0, "joules": 0.25}
    assert {scope: about["budgets"] for scope, about in found["scopes"].items()} == {
        "team:red": ["slowly"],
        "key:bob": ["bobs"],
    }
    dearer = found["scopes"]["team:red"]["prices"]["usd"]
    assert dearer > found["scopes"]["key:bob"]["prices"]["usd"] > 0
    assert "'slowly'" in found["scopes"]["team:red"]["why"][0]
    assert set((await prices(gateway, "KEY_ALICE"))["scopes"]) == {"team:red"}
    assert (await gateway.get("/apportion/prices", key=None)).status == 401

    async def decides_by_it() -> bool:
        """Prices fall with time and rise with what is spent: it must lie between those before and after."""
        nonlocal spent_usd
        before = (await prices(gateway))["scopes"]["team:red"]["prices"]["usd"]
        response = await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=1))
        spent_usd += float(response.header("x-apportion-cost-usd") or 0)
        found = (await gateway.decision(response))["attempts"][0]["prices"]["usd"]
        after = (await prices(gateway))["scopes"]["team:red"]["prices"]["usd"]
        return bool(0.99 * min(before, after) <= found - 1.0 <= 1.01 * max(before, after))

    end_s = time.monotonic() + PATIENCE_S
    while not await decides_by_it():  # prices are worked out anew every 20 ms
        assert time.monotonic() < end_s

    def saved() -> bool:
        found = {row["scope"]: json.loads(row["saved"]) for row in rows(file_of(gateway), "prices")}
        fraction = found["team:red"]["duals"]["slowly"]["fractions"] if "team:red" in found else 0.0
        return bool(fraction == pytest.approx(spent_usd / 100, rel=0.001))

    await until(saved, "everything that was spent is in the saved prices")
    dearer = (await prices(gateway))["scopes"]["team:red"]["prices"]["usd"]
    gateway.kill()
    gateway.start()
    response = await gateway.post(CHAT, CHAT.request("m", "x", max_tokens=1))
    spent_usd += float(response.header("x-apportion-cost-usd") or 0)
    found_usd = (await gateway.decision(response))["attempts"][0]["prices"]["usd"]
    assert 1.0 + dearer / 2 < found_usd < 1.02 * (1.0 + dearer), "it falls slowly, with time"
    await until(saved, "what was spent before the restart is in the saved prices still")
    stop(gateway)


# --- what outlives it ---------------------------------------------------------------------------------


async def test_spending_outlives_a_restart(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    budget = {"name": "b", "amount": 0.1, "window": "month", "scope": "team"}
    gateway = start(config(budgets=[budget]))
    marker = upstream.script(new_marker(), want=Want(words=20))
    body = CHAT.request("m", marker, max_tokens=30)
    statuses = []
    while len(statuses) < 40 and (not statuses or statuses[-1] == 200):
        statuses.append((await gateway.post(CHAT, body)).status)
        if len(statuses) == 2:
            stop(gateway)
            gateway.start()
    assert statuses == [200] * (len(statuses) - 1) + [402]
    assert 0.06 < billed_units(upstream.of(marker)) * 1e-12 <= 0.1
    stop(gateway)
    gateway.start()
    assert (await gateway.post(CHAT, body)).status == 402
    stop(gateway)


@pytest.mark.parametrize("workers", [1, 2])
async def test_spending_outlives_sigkill(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream, workers: int
) -> None:
    """What was answered costs what it cost, what was under way what it had reserved, from the next start on."""
    budget = {"name": "b", "resource": "requests", "amount": 6, "window": "forever"}
    gateway = start(config(budgets=[budget]), "--workers", str(workers))
    marker = new_marker()
    stalled = upstream.script(new_marker(), fault="stall_before_head", on="all")
    held = []
    for i in range(2):
        wire = await Wire.open(gateway.port)
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("slow", stalled, max_tokens=50)))
        held.append(wire)
        await until(lambda i=i: len(upstream.of(stalled)) > i, "it is under way")
    costs = []
    for _ in range(3):
        response = await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=20))
        assert response.status == 200, response.body
        costs.append(response.header("x-apportion-cost-usd"))
    # Answers are settled some milliseconds after they have been sent.
    await until(lambda: kinds(gateway)["settle"] == 3, "what was answered is settled")
    gateway.kill()
    for wire in held:
        wire.abort()
    gateway.start()
    found = await settled(gateway, 5)
    presumed = [row for row in found if row["kind"] == PRESUME]
    reserved = {row["reservation"]: row for row in found if row["kind"] == RESERVE}
    assert [row["usd"] for row in presumed] == [reserved[row["reservation"]]["usd"] for row in presumed]
    assert {(row["status"], row["mark"], row["endpoint"]) for row in presumed} == {
        ("crashed", "presumed", "slow")
    }
    measured = [row for row in found if row["kind"] == SETTLE]
    assert sorted(usd(row["usd"]) for row in measured) == sorted(str(cost) for cost in costs)
    assert (len(presumed), len(measured)) == (2, 3)
    verify(file_of(gateway))
    answers = [await gateway.post(CHAT, CHAT.request("m", marker, max_tokens=20)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 402, 402]
    stop(gateway)


async def test_a_worker_that_is_killed_leaves_its_lease_to_the_next(
    start: Callable[..., Gateway], config: Callable[..., Json]
) -> None:
    """Nothing that one of two had been lent is lost for long: its successor reads the journal."""
    import os

    budget = {"name": "b", "resource": "requests", "amount": 40, "window": "forever"}
    gateway = start(config(budgets=[budget]), "--workers", "2")
    assert gateway.process is not None
    for _ in range(10):
        assert (await gateway.post(CHAT, CHAT.request("m", "x"))).status == 200
    before = [pid for pid in gateway.processes() if pid != gateway.process.pid]
    os.kill(before[0], signal.SIGKILL)
    statuses: Counter[int] = Counter()
    end_s = time.monotonic() + PATIENCE_S

    async def ask() -> None:
        try:
            statuses[(await gateway.post(CHAT, CHAT.request("m", "x"))).status] += 1
        except (OSError, Exception):
            await asyncio.sleep(0.02)

    while statuses[402] < 5 or len(gateway.processes()) < len(before) + 1:
        assert time.monotonic() < end_s, statuses
        await ask()
    while kinds(gateway)["reserve"] < 40:
        assert time.monotonic() < end_s, (statuses, kinds(gateway))
        await ask()
    stop(gateway)
    assert kinds(gateway)["settle"] + kinds(gateway)["presume"] == 40


async def test_durable_on_the_machine_is_written_before_the_upstream_is_asked(
    start: Callable[..., Gateway], config: Callable[..., Json], upstream: Upstream
) -> None:
    """With a second between commits, so that it cannot be there by chance."""
    gateway = start(config(ledger={"durability": "machine", "commit_s": 1.0}))
    for _ in range(3):
        marker = upstream.script(new_marker(), head_delay_s=0.3)
        asked = asyncio.ensure_future(gateway.post(CHAT, CHAT.request("m", marker)))
        await until(lambda marker=marker: upstream.of(marker), "the upstream is asked")
        there = {row["request"] for row in entries_of(gateway) if row["kind"] == RESERVE}
        response = await asked
        assert response.status == 200
        assert response.header("x-apportion-decision-id") in there
    stop(gateway)


@pytest.mark.parametrize(
    ("settings", "unbudgeted"),
    [
        ({"when_lost": "leases"}, 200),
        ({"when_lost": "refuse"}, 200),
        ({"when_lost": "leases", "durability": "machine"}, 503),
    ],
    ids=["leases", "refuse", "machine"],
)
async def test_a_lost_database_lets_nothing_through_that_no_budget_covers(
    start: Callable[..., Gateway],
    config: Callable[..., Json],
    upstream: Upstream,
    postgres: Postgres,
    settings: Json,
    unbudgeted: int,
) -> None:
    """PostgreSQL is stopped and started again. Budgets refuse meanwhile, what falls under none goes on, and all of
    it is in the books afterwards.
    """
    url = postgres.create()
    budget = {"name": "b", "resource": "requests", "amount": 30, "scope": "team", "window": "forever"}
    gateway = start(config(ledger={"url": url, **settings}, budgets=[budget]))
    marker = new_marker()
    statuses: Counter[tuple[str, int]] = Counter()

    async def ask(key: str) -> Response:
        response = await gateway.post(CHAT, CHAT.request("m", marker), key=key)
        statuses[key, response.status] += 1
        return response

    async def asked_until(key: str, status: int) -> Response:
        end_s = time.monotonic() + PATIENCE_S
        while (response := await ask(key)).status != status:
            assert time.monotonic() < end_s, statuses
            await asyncio.sleep(0.05)
        return response

    for _ in range(5):
        assert (await ask("KEY_ALICE")).status == 200
    postgres.stop()
    try:
        refused = await asked_until("KEY_ALICE", 503)
        own_error(CHAT, refused, 503, "ledger_unavailable")
        assert float(refused.header("retry-after") or 0) > 0
        for _ in range(5):
            assert (await ask("KEY_ALICE")).status == 503, "what has been lent is used up or given up"
        await asked_until("KEY_ADMIN", unbudgeted)
        for _ in range(5):
            assert (await ask("KEY_ADMIN")).status == unbudgeted
    finally:
        postgres.start()
    await asked_until("KEY_ALICE", 200)
    await asked_until("KEY_ALICE", 402)
    assert statuses["KEY_ALICE", 200] == 30
    await asked_until("KEY_ADMIN", 200)
    gateway.stop()
    verify(url)
    served = statuses["KEY_ALICE", 200] + statuses["KEY_ADMIN", 200]
    assert len(upstream.of(marker)) == served
    database = Database(url)
    with database.reading.connect() as connection:
        found = connection.exec_driver_sql("SELECT kind, count(*) FROM entries GROUP BY kind")
        counts = {row[0]: row[1] for row in found}
    database.dispose()
    assert counts[SETTLE] == served
    assert sum(counts.values()) == 2 * counts[RESERVE]
