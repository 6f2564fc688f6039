"""Servers that tests may use: started once, when first asked for; what was skipped without them is said at the end."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from servers import Postgres, Redis, Server, create_database, drop_database

REQUIRED = os.environ.get("CI") == "true" or os.environ.get("APPORTION_REQUIRE_SERVERS") == "1"
"""Continuous integration must not skip in silence."""
POSTGRES_URL = os.environ.get("APPORTION_TEST_POSTGRES_URL")
"""A server of yours in place of one that is started here; databases are made in it and dropped."""

_missing: Counter[str] = Counter()

settings.load_profile("ci")
"""Hypothesis asks the same of every run and sets no deadline: as it does where it sees that it runs in CI, which it may
not see. ``--hypothesis-profile default`` searches anew.
"""

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="apportion-tests-")
"""No test writes into the books of whoever runs it."""
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


def _need(server: type[Server]) -> None:
    reason = server.missing()
    if reason is None:
        return
    if REQUIRED:
        pytest.fail(reason, pytrace=False)
    _missing[reason] += 1
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in sorted(_missing.items()):
        terminalreporter.write_line(f"skipped for want of a server: {count}. {reason}", yellow=True)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def _redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.remove()


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The tests' own PostgreSQL, running, to be stopped, killed and started at will."""
    _need(Postgres)
    server: Postgres = request.getfixturevalue("_postgres")
    server.start()
    return server


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Redis:
    """The tests' own Redis, running and empty, to be flushed, killed and started at will."""
    _need(Redis)
    server: Redis = request.getfixturevalue("_redis")
    server.start()
    server.flush()
    return server


@pytest.fixture
def redis_url(redis: Redis) -> str:
    return redis.url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A new, empty database; dropped at the end."""
    url = create_database(POSTGRES_URL or request.getfixturevalue("postgres").url())
    yield url
    if POSTGRES_URL is None:
        request.getfixturevalue("postgres").start()  # the test may have left it dead
    drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind: the same tests run on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
