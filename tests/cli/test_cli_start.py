"""`apportion up` and `serve`: which configuration, which address, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.cli.up import greeting
from apportion.serve import store, supervisor
from apportion.serve.config.default import default_config
from apportion.serve.config.reader import loads

FILE = """\
listen: {port: 9123}
endpoints: {a: {kind: openai, base_url: "http://127.0.0.1:1/v1"}}
models: {chat: a}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the supervisor was started with; it says that it is ready and ends with status 3."""
    calls: list[dict[str, Any]] = []

    def run(config: Any, *, config_path: Any, on_ready: Any) -> int:
        calls.append({"config": config, "path": config_path})
        on_ready(supervisor.Ready(config.listen.host, config.listen.port, config))
        return 3

    def fetch(ref: str, **options: Any) -> Path:
        calls.append({"fetched": ref})
        options["progress"](1, 2, ref)
        return tmp_path

    monkeypatch.setattr(supervisor, "run", run)
    monkeypatch.setattr(store, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    for name in ("APPORTION_HOST", "APPORTION_PORT", "APPORTION_API_KEY", "APPORTION_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_up_without_a_file_runs_the_small_model(started: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["up"])
    assert done.exit_code == 3, done.output
    assert started[0] == {"fetched": "smollm2-135m-instruct"}
    assert started[1]["path"] is None
    assert "curl http://127.0.0.1:8080/v1/chat/completions" in done.stdout
    assert 'Anthropic(base_url="http://127.0.0.1:8080"' in done.stdout


def test_up_takes_the_file_that_is_there(started: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "apportion.yaml").write_text(FILE)
    done = CliRunner().invoke(app, ["up", "--workers", "2"])
    assert done.exit_code == 3, done.output
    assert started[0]["path"] == tmp_path / "apportion.yaml"
    assert started[0]["config"].listen.workers == 2
    assert "APPORTION_PORT=9123 apportion ask" in done.stdout


def test_options_stand_above_the_environment_above_the_file(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apportion.yaml").write_text(FILE)
    monkeypatch.setenv("APPORTION_PORT", "9200")
    CliRunner().invoke(app, ["serve"])
    assert started[-1]["config"].listen.port == 9200
    CliRunner().invoke(app, ["serve", "--port", "9300", "--host", "localhost"])
    assert started[-1]["config"].listen.port == 9300
    assert started[-1]["config"].listen.host == "localhost"


def test_an_open_proxy_for_others_is_refused(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["up", "--host", "0.0.0.0", "--no-auth"])
    assert done.exit_code == 1
    assert "listen on 127.0.0.1" in done.stderr
    assert started == []
    done = CliRunner().invoke(app, ["up", "--host", "0.0.0.0"])
    assert done.exit_code == 3, done.output
    assert started[-1]["config"].auth.required
    monkeypatch.setenv("APPORTION_API_KEY", "k")
    done = CliRunner().invoke(app, ["up", "--host", "0.0.0.0"])
    assert done.exit_code == 3, done.output
    assert "http://127.0.0.1:8080" in done.stdout
    assert "$APPORTION_API_KEY" in done.stdout


def test_without_keys_only_on_this_machine(started: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["up", "--no-auth"])
    assert done.exit_code == 3, done.output
    assert not started[-1]["config"].auth.required
    assert "APPORTION_API_KEY" not in done.stdout
    assert 'OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="any")' in done.stdout


def test_the_first_key_is_shown_once(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Any, *, config_path: Any, on_ready: Any) -> int:
        on_ready(supervisor.Ready("127.0.0.1", 8080, config, "sk-ap-first"))
        return 3

    monkeypatch.setattr(supervisor, "run", run)
    done = CliRunner().invoke(app, ["up"])
    assert done.stdout.count("sk-ap-first") == 1
    (tmp_path / "apportion.yaml").write_text(FILE)
    done = CliRunner().invoke(app, ["serve"])
    assert done.stdout == "sk-ap-first\n", "alone, so that it can be captured"
    assert "shown this once" in done.stderr


def test_serve_needs_a_file_and_says_little(started: list[dict[str, Any]], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve"])
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
    (tmp_path / "mine.yaml").write_text(FILE)
    done = CliRunner().invoke(app, ["serve", "--config", "mine.yaml"])
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr == "apportion listens on http://127.0.0.1:9123\n"


def test_the_greeting_names_a_model_that_exists() -> None:
    text = greeting(loads(FILE), "http://[::1]:8080")
    assert '"model": "chat"' in text
    assert "http://[::1]:8080/v1" in text
    assert '"model": "default"' in greeting(default_config({}), "http://127.0.0.1:8080")
