"""`GET /apportion/spend`: an admin sees everything, a key only itself, nobody can make it work without end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from apportion.serve import errors
from apportion.serve.config.schema import Key
from apportion.serve.http.server import Request
from apportion.serve.routes import Visit
from apportion.serve.spend_api import SpendApi, read
from spending import DAY_US, SATURDAY_US, line, tables, write

ADMIN, RED = Key(name="boss", admin=True), Key(name="red-key")
NOW_S = SATURDAY_US / 1e6 + 10


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with tables(url) as made:
        write(made, [line(SATURDAY_US + n, key=("red-key", "blue-key")[n % 2], usd=10**n) for n in range(6)])
        yield made


class Answer:
    """Takes the place of a responder."""

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, json.loads(body)


async def get(api: SpendApi, query: str, key: Key = ADMIN) -> dict[str, Any]:
    answer = Answer()
    request = Request("GET", f"/apportion/spend?{query}".encode(), "1.1", {}, True)
    await api.spend(Visit(request, answer, "req_1", key, {}))  # type: ignore[arg-type]
    assert answer.status == 200
    assert b"application/json" in answer.headers
    body: dict[str, Any] = answer.body
    return body


def over(engine: sa.Engine, patience_s: float = 120.0) -> SpendApi:
    api = SpendApi(patience_s=patience_s)
    api.engine = engine
    return api


async def test_an_admin_sees_all(engine: sa.Engine) -> None:
    found = await get(over(engine), "by=key&since=2026-11-21&time_zone=UTC")
    assert [(row["key"], row["usd"]) for row in found["rows"]] == [
        ("blue-key", "0.00000010101"),
        ("red-key", "0.000000010101"),
    ]
    assert found["total"]["usd"] == "0.000000111111"
    assert found["since"] == "2026-11-21T00:00:00Z"


async def test_a_key_sees_itself(engine: sa.Engine) -> None:
    found = await get(over(engine), "by=key", RED)
    assert [row["key"] for row in found["rows"]] == ["red-key"]
    assert found["total"]["usd"] == "0.000000010101"
    assert (await get(over(engine), "by=day&key=red-key", RED))["total"] == found["total"]
    assert (await get(over(engine), "team=nobody", RED))["total"]["requests"] == 0
    for query in ("key=blue-key", "by=key&key=red-key&key=blue-key", "key=", "key=red-key%27+OR+1%3D1"):
        with pytest.raises(errors.PermissionDeniedError):
            await get(over(engine), query, RED)


async def test_a_limit_keeps_the_total(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US + DAY_US + n, key=f"k{n}", usd=1) for n in range(20)])
    found = await get(over(engine), "by=key&limit=1")
    assert len(found["rows"]) == 1
    assert found["others"]["usd"] == "0.000000010121"
    assert found["total"]["usd"] == "0.000000111131"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=modle", "by"),
        ("by=model&by=team", "by"),
        ("since=yesterday", "since"),
        ("time_zone=Mars", "time_zone"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=9999999999", "limit"),
        ("limit=%D9%A3", "limit"),
        ("sort=random", "sort"),
        ("colour=red", "colour"),
        ("&".join(["model=x"] * 101), "query"),
    ],
)
def test_what_is_asked_wrongly_is_named(query: str, field: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        read(query, ADMIN, NOW_S)
    assert caught.value.field == field


def test_filters_and_times() -> None:
    query = "by=model,day&since=1d&until=2026-11-21T12:00&model=a&model=b&tag:env=prod&time_zone=Europe/Berlin&limit=7"
    question, limit = read(query, ADMIN, NOW_S)
    assert question.by == ("model", "day")
    assert question.only == {"model": ["a", "b"], "tag:env": ["prod"]}
    assert question.since_us == SATURDAY_US + 10_000_000 - DAY_US
    assert question.until_us == SATURDAY_US + 11 * DAY_US // 24
    assert limit == 7


async def test_a_few_at_a_time(engine: sa.Engine) -> None:
    api = over(engine)
    found = await asyncio.gather(*(get(api, "by=key") for _ in range(6)), return_exceptions=True)
    refused = [each for each in found if isinstance(each, errors.OverloadedError)]
    assert len(refused) == 4
    assert all(each.retry_after_s for each in refused)
    assert len((await get(api, "by=key"))["rows"]) == 2


async def test_a_report_that_takes_too_long_is_given_up(engine: sa.Engine) -> None:
    many = [line(SATURDAY_US + DAY_US + n, user=f"u{n}") for n in range(20_000)]
    write(engine, many)
    with pytest.raises(errors.OverloadedError, match="takes longer than"):
        await get(over(engine, patience_s=0.001), "by=user,session,hour")
    # The connection is as it was before.
    assert (await get(over(engine), ""))["total"]["attempts"] == 20_006


async def test_books_that_are_not_open_or_gone() -> None:
    with pytest.raises(errors.LedgerUnavailableError, match="not open"):
        await get(SpendApi(), "by=key")
    with pytest.raises(errors.LedgerUnavailableError, match="cannot be read now"):
        await get(over(sa.create_engine("sqlite:////nowhere/at/all.db")), "by=key")
