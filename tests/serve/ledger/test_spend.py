"""Reports of spending: sums of any size, every grouping, days of any zone, the same on both databases."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from apportion.core.errors import ParameterError
from apportion.serve.ledger.entries import CORRECT, PRESUME, RELEASE, RESERVE
from apportion.serve.ledger.reading import reading
from apportion.serve.ledger.spend import Question, Row, Spent, exact, grouping, instant, rows, told, total
from spending import DAY_US, SATURDAY_US, added_up, line, made_up, tables, write

BERLIN, NEW_YORK, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("UTC")
SINCE_US = SATURDAY_US - 40 * DAY_US
"""2026-10-12: before the clocks are put back on both sides of the Atlantic."""


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with tables(url) as made:
        yield made


def ask(engine: sa.Engine, by: str = "", **question: Any) -> list[Row]:
    with reading(engine) as connection:
        return list(rows(connection, Question(by=grouping(by), **question)))


def local(place: ZoneInfo, form: Callable[[datetime], str]) -> Callable[[dict[str, Any]], tuple[str, ...]]:
    """The label of a line's time on the clocks of ``place``, computed by Python's calendar."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return lambda row: (form((epoch + timedelta(microseconds=row["at_us"])).astimezone(place)),)


def week(moment: datetime) -> str:
    year, number, _ = moment.isocalendar()
    return f"{year}-W{number:02d}"


PERIODS: dict[str, Callable[[datetime], str]] = {
    "hour": lambda moment: moment.strftime("%Y-%m-%dT%H:00") + moment.isoformat()[-6:].replace("+00:00", "Z"),
    "day": lambda moment: moment.strftime("%Y-%m-%d"),
    "week": week,
    "month": lambda moment: moment.strftime("%Y-%m"),
}


@pytest.mark.parametrize("seed", range(3))
def test_every_grouping_adds_up_to_what_python_adds_up(engine: sa.Engine, seed: int) -> None:
    lines = made_up(random.Random(seed), 400, SINCE_US, SATURDAY_US)
    write(engine, lines)
    for by in ("", "model", "team,key", "user,endpoint,api", "status,mark", "mark", "organisation,session"):
        names = grouping(by)
        expected = added_up(lines, lambda row, names=names: tuple(row[name] for name in names))
        found = ask(engine, by)
        assert {row.group: row.spent for row in found} == expected
        assert len(found) == len(expected)
        dollars = [row.spent.usd for row in found]
        assert dollars == sorted(dollars, reverse=True)


@pytest.mark.parametrize(
    "place", [UTC_ZONE, BERLIN, NEW_YORK, ZoneInfo("Asia/Kolkata"), ZoneInfo("Australia/Lord_Howe")]
)
@pytest.mark.parametrize("period", PERIODS)
def test_periods_are_those_of_the_zone(engine: sa.Engine, place: ZoneInfo, period: str) -> None:
    lines = made_up(random.Random(7), 300, SINCE_US, SATURDAY_US + 200 * DAY_US)
    write(engine, lines)
    found = {row.group: row.spent for row in ask(engine, period, place=place)}
    assert found == added_up(lines, local(place, PERIODS[period]))
    whole = ask(engine)[0].spent
    summed = Spent()
    for spent in found.values():
        summed = summed.plus(spent)
    assert summed == whole


def test_the_day_on_which_clocks_go_back_has_25_hours(engine: sa.Engine) -> None:
    midnight = int(datetime(2026, 10, 25, tzinfo=BERLIN).timestamp()) * 10**6
    every_hour = [line(midnight + hour * DAY_US // 24, usd=1) for hour in range(-1, 27)]
    write(engine, every_hour)
    by_day = {row.group[0]: row.spent.attempts for row in ask(engine, "day", place=BERLIN)}
    assert by_day == {"2026-10-24": 1, "2026-10-25": 25, "2026-10-26": 2}
    hours = [row.group[0] for row in ask(engine, "hour", place=BERLIN, sort="by")]
    assert len(hours) == 28
    assert hours[3:5] == ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]


def test_the_day_on_which_clocks_go_forward_has_23_hours(engine: sa.Engine) -> None:
    midnight = int(datetime(2027, 3, 14, tzinfo=NEW_YORK).timestamp()) * 10**6
    write(engine, [line(midnight + hour * DAY_US // 24) for hour in range(24)])
    by_day = {row.group[0]: row.spent.attempts for row in ask(engine, "day", place=NEW_YORK)}
    assert by_day == {"2027-03-14": 23, "2027-03-15": 1}


def test_sums_beyond_64_bits_are_exact(engine: sa.Engine) -> None:
    most = 2**63 - 1
    many = {"usd": most, "server_seconds": most, "joules": most, "gco2": most, "mark": "estimated"}
    lines = [line(SATURDAY_US + n, **many) for n in range(5)]
    lines.append(line(SATURDAY_US + 9, usd=-(2**63), mark="estimated"))
    write(engine, lines)
    (row,) = ask(engine, "model")
    assert row.spent.usd == row.spent.usd_estimated == 5 * most - 2**63
    assert row.spent.server_seconds == row.spent.joules == row.spent.gco2 == 5 * most
    assert told(row.spent)["usd"] == "36893488.147419103227"


def test_money_decides_the_order_beyond_64_bits(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US + n, usd=2**62, key="rich") for n in range(8)])
    write(engine, [line(SATURDAY_US + 20 + n, usd=2**62, key="poor") for n in range(7)])
    assert [row.group[0] for row in ask(engine, "key")] == ["rich", "poor"]


def test_only_what_something_cost_is_counted(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US, RESERVE, usd=5), line(SATURDAY_US + 1, RELEASE, usd=5)])
    assert ask(engine, "model") == []
    assert ask(engine) == [Row((), Spent())]


def test_a_correction_makes_its_presumption_what_it_was(engine: sa.Engine) -> None:
    presumed = line(SATURDAY_US, PRESUME, reservation="a", usd=100, status="crashed", mark="presumed")
    corrected = line(SATURDAY_US + DAY_US, CORRECT, reservation="a", usd=-40, requests=0)
    other = line(SATURDAY_US + 5, PRESUME, reservation="b", usd=7, status="crashed", mark="presumed")
    write(engine, [presumed, corrected, other])
    found = {row.group: row.spent for row in ask(engine, "status,mark")}
    assert {group: (spent.usd, spent.attempts, spent.requests) for group, spent in found.items()} == {
        ("ok", "measured"): (60, 1, 1),
        ("crashed", "presumed"): (7, 1, 1),
    }
    assert found["crashed", "presumed"].usd_presumed == 7
    assert found["ok", "measured"].usd_presumed == 0
    # A report of the first day does not change on the second.
    before = {row.group: row.spent.usd for row in ask(engine, "mark", until_us=SATURDAY_US + DAY_US)}
    assert before == {("presumed",): 107}
    assert [row.spent.usd for row in ask(engine, "day", sort="by")] == [107, -40]


def test_what_has_no_price_is_counted_apart(engine: sa.Engine) -> None:
    write(
        engine,
        [line(SATURDAY_US, usd=None, tokens=12, mark="unknown"), line(SATURDAY_US + 1, usd=3, tokens=5)],
    )
    (row,) = ask(engine)
    assert (row.spent.usd, row.spent.unpriced, row.spent.unpriced_tokens, row.spent.tokens) == (3, 1, 12, 17)


def test_what_nobody_measured_is_not_zero(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US, key="a"), line(SATURDAY_US + 1, key="b", joules=0)])
    assert {row.group[0]: row.spent.joules for row in ask(engine, "key")} == {"a": None, "b": 0}


def test_tags_group_and_filter(engine: sa.Engine) -> None:
    tagged = ('{"env":"prod","n.m":"1"}', '{"env":"it\'s \\"x\\""}', '{"n":"\\u0000"}', "", '{"env":7}')
    write(engine, [line(SATURDAY_US + n, tags=tags, usd=10**n) for n, tags in enumerate(tagged)])
    found = {row.group[0]: row.spent.usd for row in ask(engine, "tag:env")}
    assert found == {"prod": 1, 'it\'s "x"': 10, "": 1100, "7": 10000}
    assert [row.group for row in ask(engine, "tag:n.m", only={"tag:env": ["prod"]})] == [("1",)]
    assert {row.group[0] for row in ask(engine, 'tag:"; DROP TABLE entries')} == {""}


def test_filters_are_values_and_never_sql(engine: sa.Engine) -> None:
    hostile = "x' OR '1'='1"
    write(engine, [line(SATURDAY_US, key=hostile, usd=1), line(SATURDAY_US + 1, key="other", usd=2)])
    assert [row.spent.usd for row in ask(engine, "key", only={"key": [hostile]})] == [1]
    assert ask(engine, "key", only={"key": ["nobody' --"]}) == []
    assert [row.spent.usd for row in ask(engine, "", only={"key": [hostile, "other"], "team": [""]})] == [3]


def test_from_when_to_when(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US + n, usd=10**n) for n in range(4)])
    within = {"since_us": SATURDAY_US + 1, "until_us": SATURDAY_US + 3}
    assert ask(engine, **within)[0].spent.usd == 110
    assert ask(engine, "month", **within)[0].spent.usd == 110
    assert ask(engine, "month", since_us=SATURDAY_US + DAY_US) == []


def test_a_limit_takes_the_most_expensive(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US + n, key=f"k{n}", usd=n) for n in range(9)])
    with reading(engine) as connection:
        found = list(rows(connection, Question(by=("key",)), 2))
    assert [row.group[0] for row in found] == ["k8", "k7"]


def test_a_report_sees_one_moment_and_stops_nobody(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US, usd=1)])
    with reading(engine) as connection:
        write(engine, [line(SATURDAY_US + 1, usd=1)])
        assert total(connection, Question()).usd == 1
    assert ask(engine)[0].spent.usd == 2


def test_a_reader_cannot_write_on_postgresql(postgres_url: str) -> None:
    with (
        tables(postgres_url) as engine,
        reading(engine) as connection,
        pytest.raises(sa.exc.DBAPIError, match="read-only"),
    ):
        connection.execute(sa.text("DELETE FROM entries"))


def test_no_database_at_all(engine: sa.Engine) -> None:
    assert ask(engine, "model,day") == []


def test_grouping_names_what_there_is() -> None:
    assert grouping(" model, team ,day,tag:env") == ("model", "team", "day", "tag:env")
    assert grouping("") == ()
    with pytest.raises(ParameterError, match=r"Did you mean 'model'\?"):
        grouping("modle")
    with pytest.raises(ParameterError, match="Name each once"):
        grouping("model,model")
    for bad in ("tag:", "tokens", "usd; DROP TABLE entries"):
        with pytest.raises(ParameterError):
            grouping(bad)


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("1d", SATURDAY_US - DAY_US),
        ("36h", SATURDAY_US - 3 * DAY_US // 2),
        ("0s", SATURDAY_US),
        ("9999999d", 0),
        ("2026-11-20", SATURDAY_US - DAY_US - DAY_US // 24),
        ("2026-11-20T01:00", SATURDAY_US - DAY_US),
        ("2026-11-20 00:00:00Z", SATURDAY_US - DAY_US),
    ],
)
def test_instants(text: str, at_us: int) -> None:
    assert instant(text, SATURDAY_US / 1e6, BERLIN, "since") == at_us


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "20261101", "1e99d", "2026-11-01T25:00", "-1d"]
)
def test_what_is_no_instant(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        instant(text, time.time(), UTC_ZONE, "until")
    assert caught.value.field == "until"


def test_exact_amounts() -> None:
    assert exact("usd", 1_500_000_000_000) == "1.5"
    assert exact("usd", -1) == "-0.000000000001"
    assert exact("usd", 0) == "0"
    assert exact("server_seconds", 10**10) == "10"
    assert exact("joules", 10**30) == "1" + "0" * 24
