"""Where state is kept: the XDG rules, private directories, paths of the file, and no password shown."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from apportion.serve.config import state
from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Config, Ledger
from apportion.serve.config.secret import Secret
from apportion.serve.config.state import StateDirectoryError

GOOD = """\
endpoints: {a: {kind: openai, base_url: "http://a:1/v1"}}
models: {m: a}
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_is_a_private_directory(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": "/nowhere"}
    assert state.location(environ) == tmp_path / "state" / "apportion"
    assert not (tmp_path / "state").exists()
    config = Config()
    assert config.ledger_url(environ) == f"sqlite:///{tmp_path}/state/apportion/ledger.db"
    assert config.state_directory(environ) == tmp_path / "state" / "apportion"
    assert config.journal_directory(environ) == tmp_path / "state" / "apportion" / "journal"
    assert (
        mode(tmp_path / "state" / "apportion") == mode(tmp_path / "state" / "apportion" / "journal") == 0o700
    )


def test_without_or_with_a_relative_xdg_state_home(tmp_path: Path) -> None:
    expected = tmp_path / ".local" / "state" / "apportion"
    assert state.location({"HOME": str(tmp_path)}) == expected
    assert state.location({"HOME": str(tmp_path), "XDG_STATE_HOME": "state"}) == expected


def test_looking_makes_nothing(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert state.default_url(environ, create=False) == f"sqlite:///{tmp_path}/apportion/ledger.db"
    assert not list(tmp_path.iterdir())


def test_the_environment_names_the_books_if_the_file_does_not(tmp_path: Path) -> None:
    environ = {"APPORTION_LEDGER_URL": "postgresql://h/db", "XDG_STATE_HOME": str(tmp_path)}
    assert loads(GOOD, environ=environ).ledger_url(environ) == "postgresql://h/db"
    assert loads(f"{GOOD}ledger: {{redis: 'redis://h'}}", environ=environ).ledger.redis == Secret("redis://h")
    assert loads(f"{GOOD}ledger: {{url: memory}}", environ=environ).ledger_url(environ) == "memory"
    assert Config().ledger_url(environ) == "postgresql://h/db"


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = loads(
        GOOD + "ledger: {url: 'sqlite:///books/l.db?x=1', journal: j}", environ={}, folder=tmp_path
    )
    assert config.ledger_url({}) == f"sqlite:///{tmp_path}/books/l.db?x=1"
    assert config.journal_directory({}) == tmp_path / "j"
    assert mode(tmp_path / "j") == 0o700
    absolute = loads(GOOD + "ledger: {url: 'sqlite:////var/l.db'}", environ={}, folder=tmp_path)
    assert absolute.ledger_url({}) == "sqlite:////var/l.db"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match="cannot be made") as caught:
        Config().state_directory({"XDG_STATE_HOME": str(tmp_path / "file")})
    assert caught.value.field == "XDG_STATE_HOME"
    with pytest.raises(StateDirectoryError) as caught:
        Config(ledger=Ledger(journal=str(tmp_path / "file"))).journal_directory({})
    assert caught.value.field == "ledger.journal"


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "apportion").mkdir(mode=0o500)
    with pytest.raises(StateDirectoryError, match="cannot be written to"):
        Config().state_directory({"XDG_STATE_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql://ann:s3cret@db.example:5432/books?password=x",
            "postgresql://ann@db.example:5432/books",
        ),
        ("postgresql:///books?password=x", "postgresql:///books"),
        ("postgresql://:s3cret@h/b", "postgresql://h/b"),
        ("redis://:s3cret@h:6379/0", "redis://h:6379/0"),
        ("sqlite:////var/lib/apportion/ledger.db", "sqlite:////var/lib/apportion/ledger.db"),
        ("memory", "memory"),
        ("postgresql://[s3cret", "(not an address)"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert state.shown(url) == shown
    config = loads(GOOD + "ledger: {url: 'postgresql://a:s3cret@h/b'}", environ={})
    assert "s3cret" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config
