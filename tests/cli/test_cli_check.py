"""`apportion check`: what a configuration means, or everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from apportion.cli.app import app

GOOD = """\
organisation: acme
teams: {red: {budget: {usd: 100, window: month, time_zone: Europe/Berlin}, limits: {requests_per_minute: 600}}}
keys:
  - {name: web, secret: s3cret, team: red, budget: {usd: 5, window: 1d}, limits: {parallel: 8}}
  - {name: old, secret: gone, expires: 2020-02-01T12:00:00Z, models: [chat, small], endpoints: [own]}
budgets:
  - {name: burst, amount: 3, window: 10m, sliding: true, overdraft: 0.5}
  - {name: people, amount: 1, window: week, scope: user}
ledger: {url: "postgresql://ann:hunter2@db:5432/books?password=hunter2", redis: "redis://:hunter2@cache:6379/0"}
endpoints:
  hosted: {kind: openai, base_url: https://api.openai.com/v1, model: gpt-4o, api_key: sk-hidden}
  own: {kind: openai, base_url: http://10.0.0.7:8000/v1}
  rack: {kind: openai, base_url: http://10.0.0.8:8000/v1, usd_per_hour: 2.4}
  spare: {kind: openai, base_url: http://10.0.0.9:8000/v1, price: free}
models:
  chat: {endpoints: [{endpoint: hosted, quality: 0.9}, rack], policy: route/priced}
  small: own
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "apportion.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_file_is_explained(file: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(file)])
    assert done.exit_code == 0, done.output
    for words in ("route/priced", "2.5 in, 10 out per million tokens", "2.4 per hour", "unknown", "every 1d"):
        assert words in done.output
    for words in (
        "each month (Europe/Berlin)",
        "any 10m",
        "hard, overdraft 0.5",
        "each week (UTC)",
        "team:red",
        "600",
    ):
        assert words in done.output
    for words in ("postgresql://ann@db:5432/books", "redis://cache:6379/0", "when_lost"):
        assert words in done.output
    assert "The key old has expired (2020-02-01T12:00:00Z)." in done.output
    assert "The key old may use the model chat, but no endpoint that serves it." in done.output
    assert "may use the model small" not in done.output
    assert "names no end user falls under no budget" in done.output
    assert "hunter2" not in done.output
    assert "hard dollar budget refuses requests to own" in done.output
    assert "The endpoint spare serves no model." in done.output
    assert "knows no `quality` of rack" in done.output
    assert "sk-hidden" not in done.output
    assert "s3cret" not in done.output


def test_as_json(file: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    report = json.loads(done.stdout)
    assert report["valid"] is True
    chat, small = report["models"]
    assert chat["endpoints"][0]["price"]["input_usd_per_mtok"] == 2.5
    assert chat["endpoints"][0]["price_source"] == "tables"
    assert chat["endpoints"][1]["price"] == {"usd_per_hour": 2.4}
    assert small["endpoints"][0]["price"] is None
    assert (report["keys"], report["teams"], report["organisation"]) == (["web", "old"], ["red"], "acme")
    assert report["ledger"]["url"] == "postgresql://ann@db:5432/books"
    assert report["ledger"]["redis"] == "redis://cache:6379/0"
    budget = {b["name"]: b for b in report["budgets"]}
    assert (budget["key:web:usd"]["window_s"], budget["key:web:usd"]["calendar"]) == (86_400, None)
    assert (budget["team:red:usd"]["window_s"], budget["team:red:usd"]["calendar"]) == (None, "month")
    assert report["limits"][0]["requests_per_minute"] == 600
    assert "hunter2" not in done.stdout


def test_looking_makes_no_directory(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("APPORTION_LEDGER_URL", raising=False)
    file.write_text("endpoints: {a: {kind: openai, base_url: 'http://a:1/v1'}}\nmodels: {m: a}\n")
    report = json.loads(CliRunner().invoke(app, ["check", str(file), "--json"]).stdout)
    assert report["ledger"]["url"] == f"sqlite:///{tmp_path}/state/apportion/ledger.db"
    assert report["ledger"]["journal"] == f"{tmp_path}/state/apportion/journal"
    assert not (tmp_path / "state").exists()
    assert any("apportion keys create" in note for note in report["notes"])
    file.write_text(file.read_text() + "auth: {required: false}\nledger: {url: memory}\n")
    report = json.loads(CliRunner().invoke(app, ["check", str(file), "--json"]).stdout)
    assert (report["ledger"]["url"], report["ledger"]["journal"]) == ("memory", None)
    assert any("everybody on this machine" in note for note in report["notes"])
    assert any("begins all budgets anew" in note for note in report["notes"])


def test_a_bad_file_is_status_1_with_all_problems(file: Path) -> None:
    file.write_text("listen: {port: x}\nmodles: {}\n")
    done = CliRunner().invoke(app, ["check", str(file)])
    assert done.exit_code == 1
    assert "3 problems" in done.stderr
    assert f"{file}:2: modles: unknown key. Did you mean `models`?" in done.stderr
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert {problem["path"] for problem in problems} == {"listen.port", "modles", "models"}


def test_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["check"])
    assert done.exit_code == 1
    assert "apportion.yaml: cannot be read" in done.stderr


def test_a_profile_that_does_not_exist_is_a_note(file: Path) -> None:
    known = file.with_name("rack.json")
    known.write_text("{}")
    file.write_text(
        file.read_text()
        .replace("usd_per_hour: 2.4", "usd_per_hour: 2.4, profile: no-such-machine, instances: 2")
        .replace("price: free", "price: free, profile: rack.json")
    )
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert done.exit_code == 0, done.output
    notes = json.loads(done.output)["notes"]
    assert any(note.startswith("The profile of endpoint rack cannot be read") for note in notes)
    assert any("no-such-machine" in note for note in notes)
    assert any("endpoint spare" in note and "rack.json" in note for note in notes)
