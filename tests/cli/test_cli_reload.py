"""`apportion reload`: what the running proxy says, for people and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.serve import control


def answer(monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any]) -> list[tuple[str, int]]:
    asked = []

    def request(path: str, payload: object = None, *, port: int, timeout_s: float = 1.0) -> dict[str, Any]:
        asked.append((path, port))
        return reply

    monkeypatch.setattr(control, "request", request)
    return asked


def test_what_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, {"ok": True, "changes": ["model a added"]})
    done = CliRunner().invoke(app, ["reload", "--port", "9000"])
    assert (done.exit_code, done.stdout) == (0, "Reloaded.\n  model a added\n")
    assert asked == [("/reload", 9000)]


def test_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"ok": True, "changes": []})
    assert CliRunner().invoke(app, ["reload"]).stdout == "Reloaded; nothing has changed.\n"


def test_problems_are_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = {"ok": False, "problems": ["a.yaml:1: listen.port: wrong."]}
    answer(monkeypatch, reply)
    done = CliRunner().invoke(app, ["reload"])
    assert done.exit_code == 1
    assert "error: a.yaml:1: listen.port: wrong." in done.stderr
    assert "goes on with the configuration it has" in done.stderr
    done = CliRunner().invoke(app, ["reload", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == reply


def test_nothing_is_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = CliRunner().invoke(app, ["reload", "--port", "9"])
    assert done.exit_code == 1
    assert "apportion up" in done.stderr
