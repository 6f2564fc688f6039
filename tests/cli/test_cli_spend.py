"""`apportion spend`: one command that says where the money went."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from apportion.cli import show
from apportion.cli.app import app
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import PRESUME
from apportion.serve.ledger.focus import COLUMNS
from spending import DAY_US, SATURDAY_US, line, write

LINES = [
    line(
        SATURDAY_US, key="k1", team="red", model="chat", usd=15 * 10**11, input_tokens=1200, output_tokens=300
    ),
    line(
        SATURDAY_US + 1, key="k2", team="red", model="code", usd=5 * 10**11, mark="estimated", input_tokens=7
    ),
    line(
        SATURDAY_US + DAY_US,
        key="k2",
        model="code",
        usd=None,
        tokens=90,
        mark="unknown",
        server_seconds=25 * 10**8,
    ),
    line(
        SATURDAY_US + DAY_US + 1,
        PRESUME,
        reservation="p",
        usd=1,
        status="crashed",
        mark="presumed",
        joules=3 * 10**6,
    ),
]


@pytest.fixture(autouse=True)
def books(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Books in the place where the command looks for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("APPORTION_LEDGER_URL", raising=False)
    path = tmp_path / "state" / "apportion" / "ledger.db"
    database = Database(f"sqlite:///{path}")
    write(database.engine, LINES)
    database.dispose()
    return path


def spend(*arguments: str) -> Result:
    done = CliRunner().invoke(app, ["spend", *arguments])
    assert done.exit_code == 0, done.output
    return done


def test_the_table_says_what_and_how_sure() -> None:
    text = spend("--by", "model,team").stdout
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[0] == ["Spent,", "all", "time"]
    assert lines[1] == ["model", "team", "requests", "input", "output", "USD", "share", "server-s", "J"]
    assert lines[3][:6] == ["chat", "red", "1", "1,200", "300", "1.500000"]
    assert lines[4][:6] == ["code", "red", "1", "7", "0", "~0.500000"]
    assert lines[5][:6] == ["chat", "-", "1", "0", "0", "~<0.000001"]
    assert lines[6][:6] == ["code", "-", "1", "0", "0", "unknown?"]
    assert lines[7][:5] == ["total", "4", "1,207", "300", "~2.000000?"]
    assert "~ 0.500000 USD (25.0%) estimated: the provider reported no usage, tokens were counted." in text
    assert "~ <0.000001 USD (<0.1%) presumed" in text
    assert "? 1 attempts with 90 tokens have no known price and are in no dollar amount." in text
    assert "Dollars are rounded here; --json and --csv are exact." in text


@pytest.mark.parametrize(
    ("width", "left_out"), [(120, ""), (100, "J"), (80, "J, server-s, share"), (40, "input, requests")]
)
def test_a_narrow_terminal_sees_what_matters_most(
    monkeypatch: pytest.MonkeyPatch, width: int, left_out: str
) -> None:
    from rich.console import Console

    console = Console(width=width, record=True, highlight=False, markup=False, file=io.StringIO())
    monkeypatch.setattr(show, "console", lambda *, stderr=False: console)
    spend("--by", "organisation,team,key,model,day")
    text = console.export_text()
    table = text.partition("~ ")[0]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= max(width, 62)
    for word in ("USD", "2026-11-21", "~0.500000", "total"):
        assert word in table
    said = [line for line in text.splitlines() if line.startswith("Too wide for here")]
    assert bool(said) == bool(left_out)
    assert left_out in "".join(said)


def test_days_are_those_of_the_zone() -> None:
    found = json.loads(spend("--by", "day", "--json", "--time-zone", "America/New_York").stdout)
    assert {row["day"]: row["requests"] for row in found["rows"]} == {"2026-11-20": 2, "2026-11-21": 2}
    assert found["time_zone"] == "America/New_York"


def test_json_is_exact() -> None:
    found = json.loads(spend("--by", "key", "--json").stdout)
    assert found["total"]["usd"] == "2.000000000001"
    assert found["total"]["usd_presumed"] == "0.000000000001"
    assert sum(float(row["usd"]) for row in found["rows"]) == pytest.approx(2.0)


def test_csv_is_exact_and_harmless(books: Path) -> None:
    database = Database(f"sqlite:///{books}")
    write(database.engine, [line(SATURDAY_US + 9, user="=1+1", usd=7)])
    database.dispose()
    found = list(csv.DictReader(io.StringIO(spend("--by", "user", "--csv").stdout)))
    assert [row["user"] for row in found] == ["", "'=1+1"]
    assert [row["usd"] for row in found] == ["2.000000000001", "0.000000000007"]


def test_focus() -> None:
    found = list(csv.DictReader(io.StringIO(spend("--focus").stdout)))
    assert tuple(found[0]) == COLUMNS
    assert {row["ChargePeriodStart"] for row in found} == {"2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"}
    assert sorted(row["BilledCost"] for row in found) == ["0", "0.000000000001", "0.5", "1.5"]


def test_a_limit_shows_the_rest_as_one() -> None:
    text = spend("--by", "key,model", "--limit", "1").stdout
    assert "2 others" in text
    assert "total" in text
    rows = list(csv.DictReader(io.StringIO(spend("--by", "key,model", "--limit", "1", "--csv").stdout)))
    assert [row["key"] for row in rows] == ["k1", "(others)"]
    assert [row["requests"] for row in rows] == ["1", "3"]


def test_filters() -> None:
    def usd(*arguments: str) -> str:
        return str(json.loads(spend("--by", "model", "--json", *arguments).stdout)["total"]["usd"])

    assert usd("--team", "red") == "2"
    assert usd("--team", "red", "--key", "k1") == "1.5"
    assert usd("--key", "k1", "--key", "k2", "--model", "code") == "0.5"
    assert usd("--status", "crashed") == "0.000000000001"
    assert usd("--since", "2026-11-22") == "0.000000000001"
    assert usd("--until", "2026-11-22", "--mark", "estimated") == "0.5"
    assert usd("--tag", "env=prod") == "0"
    assert usd("--since", "99999d", "--until", "2026-11-21") == "0"


def test_nothing_was_booked() -> None:
    assert spend("--since", "2027-01-01").stdout == "Nothing was booked.\n"
    assert json.loads(spend("--since", "2027-01-01", "--json").stdout)["rows"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "modle"), "Did you mean 'model'?"),
        (("--since", "soon"), "'soon' is no time."),
        (("--time-zone", "Mars"), "There is no time zone 'Mars'."),
        (("--ledger", "sqlite:////nowhere/ledger.db"), "There are no books at sqlite:////nowhere/ledger.db."),
        (("--ledger", "memory"), "in the memory of the proxy"),
        (("--ledger", "mysql://root:secret@h/d"), "cannot be kept in 'mysql'"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["spend", *arguments])
    assert done.exit_code == 1
    assert message in done.stderr
    assert "secret" not in done.output


def test_a_database_that_does_not_answer_keeps_its_password() -> None:
    url = "postgresql://joe:hunter2@127.0.0.1:1/books"
    done = CliRunner().invoke(app, ["spend", "--ledger", url])
    assert done.exit_code == 1
    assert "The books at postgresql://joe@127.0.0.1:1/books cannot be read" in done.stderr
    assert "hunter2" not in done.output


def test_the_books_are_where_the_configuration_says(tmp_path: Path, books: Path) -> None:
    other = tmp_path / "other.db"
    books.rename(other)
    (tmp_path / "apportion.yaml").write_text(
        "endpoints: {a: {kind: openai, base_url: 'http://127.0.0.1:1/v1'}}\n"
        f"models: {{chat: a}}\nledger: {{url: 'sqlite:///{other}'}}\n"
    )
    assert json.loads(spend("--json").stdout)["total"]["requests"] == 4


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("not a database at all" * 100)
    done = CliRunner().invoke(app, ["spend", "--ledger", f"sqlite:///{tmp_path}/not.db"])
    assert done.exit_code == 1
    assert "file is not a database" in done.stderr
    assert "Traceback" not in done.output
