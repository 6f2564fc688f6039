"""`apportion check`: what a configuration means, or everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from apportion.cli.app import app

GOOD = """\
keys: [{name: team, secret: s3cret, budget: {usd: 5, window: 1d}}]
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
    assert report["keys"] == ["team"]


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
