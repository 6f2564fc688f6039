"""`apportion models`: the store from the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.serve import store


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "store"
    monkeypatch.setenv("APPORTION_MODELS", str(empty))
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_the_list_knows_the_catalogue() -> None:
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0, done.output
    assert "smollm2-135m-instruct" in done.stdout
    assert "absent" in done.stdout


def test_the_list_shows_what_the_configuration_uses(tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(b"x")
    (tmp_path / "apportion.yaml").write_text(
        "endpoints:\n"
        "  small: {kind: local, weights: smollm2-135m-instruct}\n"
        "  own: {kind: local, weights: own.gguf}\n"
        "models: {a: small, b: own}\n"
    )
    found = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)
    by_ref = {entry["ref"]: entry["endpoints"] for entry in found}
    assert by_ref[f"file:{tmp_path / 'own.gguf'}"] == ["own"]
    assert ["small"] in by_ref.values()


def test_fetch_checks_the_hash(tmp_path: Path) -> None:
    weights = tmp_path / "own.gguf"
    weights.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    done = CliRunner().invoke(app, ["models", "fetch", str(weights), "--sha256", right])
    assert (done.exit_code, done.stdout) == (0, f"{weights}\n"), done.output
    done = CliRunner().invoke(app, ["models", "fetch", str(weights), "--sha256", "0" * 64])
    assert done.exit_code == 1
    assert "SHA-256" in done.stderr


def test_an_unknown_model() -> None:
    done = CliRunner().invoke(app, ["models", "fetch", "smolm2-135m-instruct"])
    assert done.exit_code == 1
    assert "Did you mean 'smollm2-135m-instruct'?" in done.stderr


def test_verify_is_status_1_for_a_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["models", "verify"]).stdout == "Nothing is stored.\n"
    verdicts = [
        store.Verdict("good", tmp_path / "a", True, "1", "1"),
        store.Verdict("bad", tmp_path / "b", False, "1", "2"),
    ]
    monkeypatch.setattr(store, "verify", lambda model, progress: verdicts)
    done = CliRunner().invoke(app, ["models", "verify"])
    assert done.exit_code == 1
    assert "CHANGED  bad" in done.stdout
    done = CliRunner().invoke(app, ["models", "verify", "--json"])
    assert [v["ok"] for v in json.loads(done.stdout)] == [True, False]


def test_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "remove", lambda model, forget: 98_000_000)
    done = CliRunner().invoke(app, ["models", "remove", "smollm2-135m-instruct"])
    assert done.stdout == "Removed smollm2-135m-instruct: 98.0 MB freed.\n"
