"""The program itself: light, helpful, and errors on purpose are messages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from apportion.cli.app import COMMANDS, app

HEAVY = (
    "apportion.serve",
    "apportion.policy",
    "apportion.measure",
    "genai_prices",
    "yaml",
    "rich",
    "msgspec",
    "asyncio",
)


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\n"
        "from apportion.cli import main\n"
        "sys.argv = ['apportion', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "import json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    loaded = json.loads(modules)
    assert all(name in text for name in COMMANDS)
    assert [name for name in loaded if name.startswith(HEAVY)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output


def test_an_unknown_command_gets_the_nearest() -> None:
    done = CliRunner().invoke(app, ["chek"])
    assert done.exit_code == 2
    assert "Did you mean 'check'?" in done.output


def test_version() -> None:
    import apportion

    done = CliRunner().invoke(app, ["--version"])
    assert apportion.__version__ in done.output


def test_errors_are_messages_without_colour_when_piped() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "apportion.cli", "check", "no-such.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 1
    assert "no-such.yaml: cannot be read: no such file" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
