"""PostgreSQL and Redis as tests and benchmarks want them: their own, on free ports, killable, gone at the end.

Nothing here needs pytest; the fixtures are in ``conftest.py``. Each server runs in a directory of its own in /tmp,
listens on 127.0.0.1 only, and is ended by a guard process when the program that started it ends in any way,
SIGKILL included.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

START_S = 120.0
STOP_S = 60.0
POLL_S = 0.02
PORTS = range(20_000, 32_000)
"""Below those that outgoing connections are given: nobody takes the port of a server that is down for a moment."""

GUARD = """
import os, shutil, signal, sys
groups, directories = set(), set()
for line in sys.stdin:
    what, _, value = line.rstrip("\\n").partition(" ")
    if what == "group": groups.add(int(value))
    elif what == "ended": groups.discard(int(value))
    elif what == "directory": directories.add(value)
for group in groups:
    try: os.killpg(group, signal.SIGKILL)
    except ProcessLookupError: pass
for directory in directories:
    shutil.rmtree(directory, ignore_errors=True)
"""
"""Reads what is running and where; when its input ends, so do they. In a session of its own: Ctrl-C passes it by."""


class ServerError(RuntimeError):
    """A server did not start or stop in time; says what it wrote last."""


class Guard:
    """The process that outlives us by a moment."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", GUARD], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.end)

    def say(self, what: str, value: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {value}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End what still runs, remove all directories."""
        if os.getpid() == self.pid and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(STOP_S)


_guards: dict[int, Guard] = {}


def _guard() -> Guard:
    if os.getpid() not in _guards:
        _guards[os.getpid()] = Guard()
    return _guards[os.getpid()]


def free_port() -> int:
    """A port that was free a moment ago and that no outgoing connection is given."""
    for _ in range(1000):
        port = random.choice(PORTS)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise ServerError("no free port on 127.0.0.1")


def find(*names: str) -> str | None:
    """The first of these programs that is installed: in PATH, else where Debian keeps PostgreSQL's."""
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name, reverse=True)
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *map(str, kept)])
    return next((found for name in names if (found := shutil.which(name, path=places))), None)


def account() -> str | None:
    """Whom a server that refuses root runs as; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """One server process. ``kill`` is SIGKILL to all of it at once; ``start`` after that is a recovery."""

    name = ""
    install = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.user = account()
        self.directory = Path(tempfile.mkdtemp(prefix="apportion-test-", dir="/tmp" if self.user else None))
        _guard().say("directory", self.directory)
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """What to install before it can run; None when it can."""
        if all(find(*names) for names in cls.programs()):
            return None
        return f"{cls.name} is not installed: {cls.install}"

    @classmethod
    def programs(cls) -> list[tuple[str, ...]]:
        """Programs needed, each under one of several names."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves; not whether it runs."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing where it runs."""
        until = time.monotonic() + START_S
        while not (self.running and self.answers()):
            if time.monotonic() > until:
                raise ServerError(f"{self.name} did not start within {START_S:.0f} s: {self.tail()}")
            if not self.running:
                # what is left of one that was killed may still be going (PostgreSQL refuses until then)
                self._launch()
            time.sleep(POLL_S)

    def _launch(self) -> None:
        self._reap()
        with self.log.open("ab") as log:
            self.process = self._popen(self.command(), log)
        _guard().say("group", self.process.pid)

    def _popen(self, command: list[str], log: object) -> subprocess.Popen[bytes]:
        who = {} if self.user is None else {"user": self.user, "group": _group(self.user), "extra_groups": []}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,  # type: ignore[arg-type]
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
            **who,  # type: ignore[arg-type]
        )

    def _reap(self) -> None:
        if self.process is not None:
            self.process.wait(STOP_S)
            _guard().say("ended", self.process.pid)
            self.process = None

    stop_signal = signal.SIGTERM

    def stop(self) -> None:
        """End it in good order; connections are cut. Does nothing where it does not run."""
        if self.process is not None:
            if self.running:
                self.process.send_signal(self.stop_signal)
            try:
                self._reap()
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerError(f"{self.name} did not stop within {STOP_S:.0f} s: {self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL to the process and its children, as a crash of all of it."""
        if self.process is not None:
            for pid in [self.process.pid, *_children(self.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP to all of it: it is there and does not answer."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        assert self.process is not None
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def remove(self) -> None:
        """End it at once and remove what it kept."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def tail(self) -> str:
        """The last it wrote."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


class Postgres(Server):
    """PostgreSQL as `initdb` makes it: durable as in production (fsync on), user ``postgres`` without password."""

    name = "PostgreSQL"
    install = "apt-get install postgresql"
    stop_signal = signal.SIGINT  # a fast shutdown: sessions are ended, not waited for

    @classmethod
    def programs(cls) -> list[tuple[str, ...]]:
        return [("initdb",), ("postgres",)]

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
        }
        program = find("postgres")
        assert program is not None
        return [program, "-D", str(self.directory / "data"), *(f"--{k}={v}" for k, v in settings.items())]

    def start(self) -> None:
        if not (self.directory / "data").exists():
            self._initialise()
        super().start()

    def _initialise(self) -> None:
        program = find("initdb")
        assert program is not None
        command = [program, "-D", str(self.directory / "data"), "--auth=trust", "--username=postgres"]
        with self.log.open("ab") as log:
            made = self._popen([*command, "--encoding=UTF8", "--locale=C", "--no-sync"], log)
        if made.wait(START_S):
            raise ServerError(f"initdb failed: {self.tail()}")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self) -> str:
        """The URL of a new, empty database."""
        return create_database(self.url())


class Redis(Server):
    """Redis or Valkey, without persistence: a restart is a flush, the worst that can happen to it."""

    name = "Redis"
    install = "apt-get install redis-server"

    @classmethod
    def programs(cls) -> list[tuple[str, ...]]:
        return [("redis-server", "valkey-server")]

    def command(self) -> list[str]:
        program = find("redis-server", "valkey-server")
        assert program is not None
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        words = [word for k, v in options.items() for word in (f"--{k}", v)]
        return [program, *words, "--dir", str(self.directory)]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG"
        except OSError:
            return False

    def flush(self) -> None:
        """Everything in it is lost; connections stay."""
        assert self.ask("FLUSHALL") == b"+OK"

    def ask(self, command: str, within_s: float = 30.0) -> bytes:
        """The first line of the answer to an inline command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=within_s) as s:
            s.sendall(command.encode() + b"\r\n")
            with s.makefile("rb") as lines:
                return lines.readline().rstrip(b"\r\n")


def create_database(url: str) -> str:
    """The URL of a new, empty database on the server of ``url``."""
    import psycopg
    from psycopg import sql

    name = f"apportion_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    base, question, options = url.partition("?")
    return f"{base.rpartition('/')[0]}/{name}{question}{options}"


def drop_database(url: str) -> None:
    """Remove what `create_database` made, whoever is still connected to it."""
    import psycopg
    from psycopg import sql

    base, question, options = url.partition("?")
    server, _, name = base.rpartition("/")
    with psycopg.connect(f"{server}/postgres{question}{options}", autocommit=True) as connection:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        connection.execute(statement.format(sql.Identifier(name)))


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
