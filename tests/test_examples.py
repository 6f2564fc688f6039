"""The examples run against a proxy that answers from their recording, and print what is written beside them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
CONFIGURATIONS = sorted(EXAMPLES.glob("*.yaml"))
VARIABLES = {
    **dict.fromkeys(("SEARCH_KEY", "SUPPORT_KEY", "OPERATIONS_KEY", "OPENAI_API_KEY", "APPORTION_PEPPER")),
    "APPORTION_LEDGER_URL": "postgresql://apportion:s3cret@db.internal:5432/apportion",
    "APPORTION_REDIS_URL": "redis://:s3cret@cache.internal:6379/0",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a proxy that serves ``examples/apportion.yaml``."""
    runtime = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "apportion.cli", "serve", "--port", "0", "--config"]
    with subprocess.Popen(
        [*command, str(EXAMPLES / "apportion.yaml")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(runtime)},
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + (process.stderr.read() if process.poll() is not None else "")
        yield found[0]
        process.terminate()
        process.wait(timeout=600)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_prints_what_is_written_beside_it(url: str, program: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("APPORTION_")}
    run = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**environment, "APPORTION_URL": url, "NO_PROXY": "*"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == program.with_suffix(".out").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda path: path.stem)
def test_is_valid_and_shows_no_secret(file: Path) -> None:
    environ = {name: value or f"s3cret-{name}" for name, value in VARIABLES.items()}
    run = subprocess.run(
        [sys.executable, "-m", "apportion.cli", "check", str(file), "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environ},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert not [note for note in report["notes"] if "no `quality`" in note or "serves no model" in note]
    assert "s3cret" not in run.stdout
    for name in re.findall(r"\$\{([A-Z_]+)\}", file.read_text(encoding="utf-8")):
        assert name in VARIABLES


def test_there_are_examples() -> None:
    assert len(PROGRAMS) >= 3
    assert len(CONFIGURATIONS) >= 3
