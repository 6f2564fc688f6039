"""The servers of the tests are what the proofs take them for: durable ones keep what they said, killed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from servers import Postgres, Redis, Server

from .crew import PATIENCE_S

TESTS = Path(__file__).parent.parent


def test_postgres_keeps_what_it_acknowledged_through_kill_and_restart(
    postgres: Postgres, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
        postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("INSERT INTO kept VALUES (2)")
    assert not postgres.answers()
    postgres.start()
    postgres.restart()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]


def test_redis_forgets_when_flushed_and_when_killed(redis: Redis) -> None:
    for lose in (redis.flush, redis.kill):
        assert redis.ask("SET a 1") == b"+OK"
        lose()
        redis.start()
        assert redis.ask("EXISTS a") == b":0"


def test_a_paused_server_is_there_and_does_not_answer(redis: Redis) -> None:
    redis.pause()
    try:
        with pytest.raises(TimeoutError):
            redis.ask("PING", within_s=0.2)
    finally:
        redis.resume()
    assert redis.answers()


@pytest.mark.parametrize("kind", [Postgres, Redis])
def test_nothing_is_left_of_servers_whose_owner_was_killed(kind: type[Server]) -> None:
    if (reason := kind.missing()) is not None:
        pytest.skip(reason)
    program = (
        f"import time, servers\nserver = servers.{kind.__name__}()\nserver.start()\n"
        "print(server.process.pid, server.directory, flush=True)\ntime.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=TESTS)
    assert owner.stdout is not None
    pid, directory = owner.stdout.readline().split()
    assert Path(directory).is_dir()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + PATIENCE_S
    while (Path(directory).exists() or _runs(int(pid))) and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(directory).exists()
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
