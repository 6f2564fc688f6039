"""`apportion keys`, `teams` and `budgets`, on a real database of each kind."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from apportion.cli import budgets, keys, teams
from apportion.cli.app import app
from apportion.core.budget import Budget
from apportion.serve import forms
from apportion.serve.config.schema import Config
from apportion.serve.keyring import Keyring, merged
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import RESERVE, SETTLE, Batch, Entry, Move
from apportion.serve.ledger.people import People

CONFIG = """\
ledger: {url: "%s"}
auth: {pepper: "a pepper of the tests"}
keys: [{name: boss, secret: sk-boss, admin: true}]
teams: {blue: {budget: {usd: 3}}}
budgets: [{name: whole, amount: 100, window: 1d}]
endpoints: {a: {kind: openai, base_url: "http://127.0.0.1:9/v1", price: free, tags: [eu]}}
models: {m: a}
"""
RATES = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute"}
SAID_ELSEWHERE = {"limits", "budget", "disabled"}
"""Fields whose parts are options, and the one with commands of its own."""


@pytest.mark.parametrize("verb", ["create", "set"])
@pytest.mark.parametrize(
    ("group", "form"),
    [(keys, forms.KeyChange), (teams, forms.TeamChange), (budgets, forms.BudgetChange)],
    ids=["keys", "teams", "budgets"],
)
def test_every_field_of_the_admin_api_is_an_option(group: Any, form: type[msgspec.Struct], verb: str) -> None:
    fields = set(form.__struct_fields__)
    for part, type_ in (("limits", forms.Limits), ("budget", forms.Spending)):
        if part in fields:
            fields |= set(type_.__struct_fields__)
    options = {p.name for p in group.command.commands[verb].params if isinstance(p, click.Option)}
    said = {RATES.get(name, name) for name in options} | ({"tags"} if "tag" in options else set())
    assert fields - said <= SAID_ELSEWHERE


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("APPORTION_LEDGER_URL", database_url)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return database_url


@pytest.fixture
def file(url: str) -> Path:
    """A configuration in the current directory, for the same database."""
    path = Path("apportion.yaml")
    path.write_text(CONFIG % url)
    return path


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture
def people(url: str) -> Iterator[People]:
    database = Database(url)
    yield People.of(database, None)
    database.dispose()


def who(people: People, secret: str) -> str:
    snapshot = people.snapshot()
    ring = Keyring(merged(Config(), snapshot), snapshot.credentials, people.pepper)
    return ring.authenticate({b"x-api-key": secret.encode()}).name


class TestKeys:
    def test_the_key_alone_is_on_standard_output(self, url: str, people: People) -> None:
        done = run("keys", "create", "alice")
        (secret,) = done.stdout.splitlines()
        assert who(people, secret) == "alice"
        assert secret not in done.stderr
        assert "shown this once" in done.stderr

    def test_everything_that_can_be_said(self, url: str) -> None:
        run("teams", "create", "red", "--model", "m", "--usd", "10", "--window", "month", "--rpm", "100")
        options = "--team red --model m --model n --endpoint a --usd 5.5 --tokens 1000 --window day"
        options += " --time-zone Asia/Tokyo --soft --rpm 60 --tpm 5000 --parallel 4"
        options += " --expires 2099-01-31T12:00:00Z --admin --require eu --require own --no-routing"
        made = as_json("keys", "create", "alice", *options.split(), "--tag", "cost=7", "--tag", "a=b=c")
        secret = made.pop("key")
        shown = as_json("keys", "show", "alice")
        left = shown.pop("budgets")
        assert shown == made
        assert secret[-43:] not in json.dumps(shown)
        told = {
            name: shown[name]
            for name in (
                *("team", "models", "endpoints", "require", "routing"),
                *("admin", "expires", "tags", "state"),
            )
        }
        assert told == {
            "require": ["eu", "own"],
            "routing": False,
            "team": "red",
            "models": ["m", "n"],
            "endpoints": ["a"],
            "admin": True,
            "expires": "2099-01-31T12:00:00Z",
            "tags": {"cost": "7", "a": "b=c"},
            "state": "active",
        }
        assert shown["limits"] == {"requests_per_minute": 60, "tokens_per_minute": 5000, "parallel": 4}
        assert shown["budget"] == {
            "usd": 5.5,
            "tokens": 1000,
            "window": "day",
            "time_zone": "Asia/Tokyo",
            "hard": False,
        }
        assert as_json("keys", "list") == [made]
        assert [(each["budget"], each["subject"], each["spent"], each["left"]) for each in left] == [
            ("key:alice:usd", "key:alice", "0", "5.5"),
            ("key:alice:tokens", "key:alice", "0", "1000"),
            ("requests_per_minute", "key:alice", "0", "60"),
            ("tokens_per_minute", "key:alice", "0", "5000"),
            ("parallel", "key:alice", "0", "4"),
            ("team:red:usd", "team:red", "0", "10"),
            ("requests_per_minute", "team:red", "0", "100"),
        ], "nothing was spent of them yet"

    def test_rotate_disable_enable_delete(self, url: str, people: People) -> None:
        first = run("keys", "create", "alice").stdout.strip()
        second = run("keys", "rotate", "alice", "--grace", "1h").stdout.strip()
        assert who(people, first) == who(people, second) == "alice"
        third = run("keys", "rotate", as_json("keys", "show", "alice")["id"]).stdout.strip()
        states = []
        for command in ("disable", "enable"):
            run("keys", command, "alice")
            states.append(as_json("keys", "list")[0]["state"])
        assert states == ["disabled", "active"]
        assert who(people, third) == "alice"
        assert "deleted" in run("keys", "delete", "alice").stdout
        assert as_json("keys", "list") == []
        assert "There are no keys" in run("keys", "list").stdout

    def test_tables_for_people(self, url: str) -> None:
        run(
            "keys", "create", "alice", "--usd", "5", "--window", "1h", "--rpm", "60", "--no-models", "--admin"
        )
        line = next(line for line in run("keys", "list").stdout.splitlines() if "alice" in line)
        for word in ("active", "admin", "none", "60 rpm", "$5 per 1h"):
            assert word in line
        assert run("keys").stdout == run("keys", "list").stdout
        shown = run("keys", "show", "alice").stdout
        assert "$5 per 1h" in shown

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--team", "nobody"], "There is no team 'nobody'"),
            (["--window", "day"], "Give --usd or --tokens"),
            (["--usd", "1", "--window", "soon"], "is no window"),
            (["--usd", "inf"], "budget.usd"),
            (["--usd", "nan"], "budget.usd"),
            (["--expires", "tomorrow"], "is no moment"),
            (["--tag", "novalue"], "--tag NAME=VALUE"),
            (["--model", "m", "--no-models"], "exclude each other"),
            (["--usd", "1", "--window", "day", "--time-zone", "Mars/Base"], "no time zone"),
        ],
    )
    def test_wrong_options_are_named(self, url: str, options: Sequence[str], said: str) -> None:
        done = run("keys", "create", "x", *options, status=1)
        assert said in done.stderr
        assert done.stdout == ""
        assert as_json("keys", "list") == []

    def test_what_is_not_there_or_is_there_already(self, url: str) -> None:
        for command in ("show", "rotate", "disable", "enable", "delete"):
            assert "There is no key 'x'" in run("keys", command, "x", status=1).stderr
        run("keys", "create", "x")
        assert "There is a key called 'x'" in run("keys", "create", "x", status=1).stderr
        assert "30 days" in run("keys", "rotate", "x", "--grace", "1 year", status=1).stderr
        for name in ("self", "a/b", ""):
            run("keys", "create", name, status=1)

    def test_the_audit_says_who(self, url: str, people: People) -> None:
        run("keys", "create", "x")
        assert people.audit()[0].actor.startswith("cli:")


class TestSet:
    """Changes: what is not named stays, what ``--clear`` names is taken away first."""

    def changed(self, *options: str) -> dict[str, Any]:
        """What of alice is otherwise than before."""
        before = as_json("keys", "show", "alice")
        after = as_json("keys", "set", "alice", *options)
        return {name: value for name, value in after.items() if value != before[name] and name != "changed"}

    def test_one_thing_after_the_other(self, url: str) -> None:
        run("teams", "create", "red")
        options = "--usd 5 --window day --rpm 60 --tag a=b --model m --model n"
        run("keys", "create", "alice", *options.split())
        budget = {"usd": 5.0, "tokens": None, "window": "day", "time_zone": "UTC", "hard": True}
        limits = {"requests_per_minute": 60, "tokens_per_minute": None, "parallel": None}
        for options, after in (
            ("--team red", {"team": "red"}),
            ("--clear team", {"team": None}),
            ("--model o", {"models": ["o"]}),
            ("--clear models", {"models": None}),
            ("--no-models", {"models": []}),
            ("--endpoint a --require eu", {"endpoints": ["a"], "require": ["eu"]}),
            ("--clear endpoints --clear require", {"endpoints": None, "require": []}),
            ("--no-routing --admin", {"routing": False, "admin": True}),
            ("--routing --no-admin", {"routing": True, "admin": False}),
            ("--expires 2099-01-31T12:00:00Z", {"expires": "2099-01-31T12:00:00Z"}),
            ("--clear expires", {"expires": None}),
            ("--tag c=d", {"tags": {"a": "b", "c": "d"}}),
            ("--clear tags --tag c=e", {"tags": {"c": "e"}}),
            ("--parallel 3", {"limits": {**limits, "parallel": 3}}),
            ("--clear rpm", {"limits": {**limits, "requests_per_minute": None, "parallel": 3}}),
            ("--clear limits --tpm 7", {"limits": {**dict.fromkeys(limits), "tokens_per_minute": 7}}),
            ("--usd 6 --soft", {"budget": {**budget, "usd": 6.0, "hard": False}}),
            ("--tokens 9 --clear usd", {"budget": {**budget, "usd": None, "tokens": 9, "hard": False}}),
            ("--clear budget --usd 1", {"budget": {**budget, "usd": 1.0, "window": "forever"}}),
            ("--clear budget", {"budget": None}),
        ):
            assert self.changed(*options.split()) == after, options
        assert "is changed" in run("keys", "set", "alice", "--rpm", "5").stdout
        assert as_json("keys", "show", as_json("keys", "list")[0]["id"])["limits"]["requests_per_minute"] == 5

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("", "Give at least one option"),
            ("--clear usd", "Give --usd or --tokens"),
            ("--window 1h --clear budget", "Give --usd or --tokens"),
            ("--team nobody", "There is no team 'nobody'"),
            ("--usd nan", "budget.usd"),
            ("--expires tomorrow", "is no moment"),
            ("--model m --no-models", "exclude each other"),
        ],
    )
    def test_a_wrong_change_changes_nothing(self, url: str, options: str, said: str) -> None:
        run("keys", "create", "alice", "--usd", "5")
        before = as_json("keys", "show", "alice")
        done = run("keys", "set", "alice", *options.split(), status=1)
        assert said in done.stderr
        assert as_json("keys", "show", "alice") == before

    def test_teams_and_budgets(self, url: str) -> None:
        run("teams", "create", "red", "--usd", "5", "--require", "eu")
        changed = as_json("teams", "set", "red", "--rpm", "9", "--clear", "require", "--window", "day")
        assert (changed["limits"]["requests_per_minute"], changed["require"]) == (9, [])
        assert (changed["budget"]["usd"], changed["budget"]["window"]) == (5.0, "day")
        assert changed == {k: v for k, v in as_json("teams", "list")[0].items() if k != "keys"}
        run("budgets", "create", "b", "--amount", "5", "--window", "1h", "--sliding")
        assert as_json("budgets", "set", "b", "--amount", "6")["window"] == "1h"
        wrong = run("budgets", "set", "b", "--refill-per-s", "2", status=1)
        assert "The budget has both `window` and `refill_per_s`" in wrong.stderr
        options = ["--clear", "window", "--fixed", "--refill-per-s", "2", "--soft"]
        changed = as_json("budgets", "set", "b", *options)
        assert (changed["amount"], changed["refill_per_s"], changed["sliding"]) == (6.0, 2.0, False)
        assert not changed["hard"]
        assert as_json("budgets", "set", "b", *["--clear", "refill-per-s", "--window", "day", "--hard"])[
            "hard"
        ]
        for group in ("teams", "budgets"):
            name = as_json(group, "list")[0]["name"]
            assert "Give at least one option" in run(group, "set", name, status=1).stderr
            option = "--rpm" if group == "teams" else "--amount"
            assert f"apportion {group} list" in run(group, "set", "nobody", option, "1", status=1).stderr

    def test_a_configuration_is_looked_at_and_not_changed(self, file: Path) -> None:
        run("keys", "create", "x")
        assert (
            "no endpoint has the tag 'mars'" in run("keys", "set", "x", "--require", "mars", status=1).stderr
        )
        assert as_json("keys", "set", "x", "--require", "eu")["require"] == ["eu"]
        assert "apportion reload" in run("keys", "set", "boss", "--rpm", "1", status=1).stderr
        assert "apportion reload" in run("teams", "set", "blue", "--rpm", "1", status=1).stderr
        assert "apportion reload" in run("budgets", "set", "whole", "--amount", "1", status=1).stderr


class TestWithAConfiguration:
    def test_its_names_are_looked_at(self, file: Path) -> None:
        assert "no model 'z'" in run("keys", "create", "x", "--model", "z", status=1).stderr
        run("keys", "create", "x", "--model", "m", "--team", "blue")
        assert "no endpoint 'z'" in run("teams", "create", "x", "--endpoint", "z", status=1).stderr
        wrong = run("budgets", "create", "x", "--amount", "1", "--scope", "key:z", status=1)
        assert "no key 'z'" in wrong.stderr
        run("budgets", "create", "x", "--amount", "1", "--scope", "key:x")

    def test_what_is_in_it_is_shown_and_not_changed(self, file: Path) -> None:
        run("keys", "create", "x")
        assert [(key["name"], key["source"]) for key in as_json("keys", "list")] == [
            ("boss", "configuration"),
            ("x", "database"),
        ]
        assert as_json("keys", "show", "boss")["id"] is None
        for command in ("rotate", "disable", "delete"):
            assert "apportion reload" in run("keys", command, "boss", status=1).stderr
        assert "apportion reload" in run("keys", "create", "boss", status=1).stderr
        assert "apportion reload" in run("teams", "delete", "blue", status=1).stderr
        assert "apportion reload" in run("budgets", "delete", "whole", status=1).stderr
        assert "sk-boss" not in run("keys", "list", "--json").stdout

    def test_its_pepper_is_used(self, file: Path, url: str) -> None:
        run("keys", "create", "x")
        assert as_json("keys", "show", "x")["state"] == "active"
        file.unlink()
        assert as_json("keys", "show", "x")["state"] == "unusable", "made with another pepper"

    def test_books_in_memory_are_not_here(self, file: Path) -> None:
        file.write_text(CONFIG % "memory")
        assert "POST /apportion/keys" in run("keys", "create", "x", status=1).stderr


class TestTeamsAndBudgets:
    def test_teams(self, file: Path) -> None:
        run("teams", "create", "red", "--usd", "10", "--window", "month")
        run("keys", "create", "x", "--team", "red")
        found = {team["name"]: team for team in as_json("teams", "list")}
        assert (found["red"]["source"], found["red"]["keys"]) == ("database", ["x"])
        assert (found["blue"]["source"], found["blue"]["keys"]) == ("configuration", [])
        line = next(line for line in run("teams").stdout.splitlines() if "red" in line)
        assert "$10 per month" in line
        assert "'x'" in run("teams", "delete", "red", status=1).stderr
        run("keys", "delete", "x")
        run("teams", "delete", "red")
        assert [team["name"] for team in as_json("teams", "list")] == ["blue"]

    def test_budgets_of_everybody_and_what_is_left(self, file: Path, url: str) -> None:
        run("keys", "create", "x", "--usd", "5")
        run("budgets", "create", "daily", "--amount", "7", "--window", "day", "--scope", "key")
        _book(
            url,
            Budget("daily", "usd", 7.0, calendar="day", scope="key"),
            "key:x",
            spent=2_500_000_000_000,
        )
        found = {budget["name"]: budget for budget in as_json("budgets", "list")}
        assert list(found) == ["whole", "daily", "team:blue:usd", "key:x:usd"]
        (account,) = found["daily"]["accounts"]
        assert (account["subject"], account["spent"], account["left"]) == ("key:x", "2.5", "4.5")
        assert account["begins_again"].endswith("T00:00:00Z")
        assert found["whole"]["accounts"] == []
        line = next(line for line in run("budgets").stdout.splitlines() if "daily" in line)
        assert "$2.5" in line
        assert "$4.5" in line
        left = {each["budget"]: each["left"] for each in as_json("keys", "show", "x")["budgets"]}
        assert left == {"daily": "4.5", "key:x:usd": "2.5"}, "what was spent before its first request counts"
        run("budgets", "set", "daily", "--amount", "9")
        left = {each["budget"]: each["left"] for each in as_json("keys", "show", "x")["budgets"]}
        assert left == {"daily": "6.5", "key:x:usd": "2.5"}
        run("budgets", "set", "daily", "--amount", "7")
        assert "$4.5" in run("keys", "show", "x").stdout
        shown = run("budgets", "show", "daily").stdout
        assert "key:x" in shown
        run("budgets", "delete", "daily")
        assert "There is no budget 'daily'" in run("budgets", "show", "daily", status=1).stderr

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ([], "--amount"),
            (["--amount", "1", "--resource", "joulez"], "joules"),
            (["--amount", "1", "--scope", "everybody"], "unknown scope"),
            (["--amount", "1", "--window", "day", "--refill-per-s", "1"], "Keep one of them"),
            (["--amount", "1", "--soft", "--overdraft", "1"], "overdraft"),
        ],
    )
    def test_wrong_budgets(self, url: str, options: Sequence[str], said: str) -> None:
        done = CliRunner().invoke(app, ["budgets", "create", "x", *options])
        assert done.exit_code in (1, 2)
        assert said in done.stderr
        assert as_json("budgets", "list") == []


def _book(url: str, budget: Budget, subject: str, spent: int) -> None:
    """Have ``spent`` pico-dollars booked on an account, as a worker does."""
    key = subject.partition(":")[2]
    entry = Entry("r1", RESERVE, "dec_1", 1, "default", "", key, "", "", "m", "a", "m", "chat", "", usd=spent)
    settled = msgspec.structs.replace(entry, kind=SETTLE, status="ok", mark="measured")
    move = Move(f"{budget.name}@{subject}", budget, 0, 0, spent)
    database = Database(url)
    database.open("0123456789abcdef", "here")
    database.commit(Batch("0123456789abcdef", 1, [entry, settled], [move]))
    database.close("0123456789abcdef")
    database.dispose()


def test_a_database_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPORTION_LEDGER_URL", "postgresql://me:hidden-word@127.0.0.1:1/none")
    done = run("keys", "list", status=1)
    assert "does not answer" in done.stderr
    assert "hidden-word" not in done.output
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    monkeypatch.setenv("APPORTION_LEDGER_URL", f"sqlite:///{tmp_path}/text.db")
    run("keys", "list", status=1)


def test_the_default_is_made_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APPORTION_LEDGER_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run("keys", "create", "x")
    folder = tmp_path / "state" / "apportion"
    assert (folder / "pepper").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(folder / "ledger.db") as connection:
        assert connection.execute("SELECT name FROM keys").fetchall() == [("x",)]
    connection.close()
