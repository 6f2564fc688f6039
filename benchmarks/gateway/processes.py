"""Child processes on chosen CPUs: started, watched, stopped, and never left behind."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A measurement that cannot be made; the text says why."""


@dataclass(frozen=True)
class Cpus:
    """Which CPUs run what: one for the gateway, all others for the load and the upstream."""

    gateway: int
    load: frozenset[int]

    @classmethod
    def choose(cls) -> Cpus:
        """The first CPU this process may use for the gateway, the others for everything else.

        Raises BenchError where fewer than two CPUs may be used: nothing could then be measured apart.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise BenchError("two CPUs are needed: one for the gateway, one for the load and the upstream")
        return cls(gateway=allowed[0], load=frozenset(allowed[1:]))


class Child:
    """One program with all it starts: a session of its own, so that its processes are known exactly."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cpus: frozenset[int],
        log: Path,
        env: Mapping[str, str] | None,
    ) -> None:
        def enter() -> None:
            os.sched_setaffinity(0, cpus)
            # The kernel ends the child when the harness dies, however it dies.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        self.name = name
        self.log = log
        self._stopped = False
        self.started_s = time.monotonic()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=enter,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, limit_s: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired when it does not end in time."""
        return self._process.wait(limit_s)

    def check(self) -> None:
        """Raise BenchError, with the end of the log, when the program is gone."""
        code = self._process.poll()
        if code is not None:
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise BenchError(f"{self.name} ended with status {code}; it wrote last: {last} (log: {self.log})")

    def members(self) -> list[int]:
        """Process ids of the program and of everything it started."""
        return [pid for pid, session in _sessions() if session == self.pid]

    def cpu_s(self) -> float:
        """CPU seconds, user and system, used so far by all living processes of the program."""
        ticks = 0
        for pid in self.members():
            fields = _stat(pid)
            if fields:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS_PER_S

    def resident_bytes(self) -> tuple[int, int]:
        """Resident memory of the largest process, and of all processes together."""
        sizes = [0]
        for pid in self.members():
            fields = _stat(pid)
            if fields:
                sizes.append(int(fields[21]) * _PAGE_BYTES)
        return max(sizes), sum(sizes)

    def pause(self) -> None:
        """Stop the program's clock, so that it takes nothing from its core while another is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the program: asked first, after five seconds forced. Returns when no process of it is left."""
        if self._stopped:
            return
        self._stopped = True
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        deadline_s = time.monotonic() + 5
        while self.members() and time.monotonic() < deadline_s:
            self._signal(signal.SIGKILL)
            time.sleep(0.02)
            self._process.poll()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


class Bench:
    """Where programs run: the CPUs, a directory for configurations and logs, and what was started."""

    def __init__(self, cpus: Cpus, directory: Path) -> None:
        self.cpus = cpus
        self.directory = directory
        self.keep_logs = False
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        soft_limit = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (soft_limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is started inside is stopped at the end, whatever happened."""
        outer, self._stack = self._stack, ExitStack()
        try:
            yield
        finally:
            self._stack.close()
            self._stack = outer

    def start(
        self, name: str, argv: Sequence[str], *, gateway: bool, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program on the gateway's CPU or on the others."""
        cpus = frozenset({self.cpus.gateway}) if gateway else self.cpus.load
        child = Child(name, argv, cpus=cpus, log=self.directory / f"{name}.log", env=env)
        self._stack.callback(child.stop)
        return child

    def run_load(self, argv: Sequence[str], *, limit_s: float) -> str:
        """Run a load generator to its end on the load CPUs and return what it printed.

        Raises BenchError when it fails or does not end within `limit_s` seconds.
        """
        child = self.start("load", argv, gateway=False)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{argv[0]} did not end within {limit_s:.0f} s") from None
        finally:
            child.stop()
        text = child.log.read_text(errors="replace")
        if code != 0:
            raise BenchError(f"{' '.join(argv[:4])} ended with status {code}:\n{text[-2000:]}")
        return text


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a fresh interpreter."""
    return [sys.executable, "-m", f"benchmarks.gateway.{name}", *arguments]


def free_port() -> int:
    """A TCP port on the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def busy_s(cpu: int) -> float:
    """Seconds this CPU has worked since boot, for anybody (stolen time is not counted)."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _idle, _iowait, irq, softirq = map(int, values[:7])
            return (user + nice + system + irq + softirq) / _TICKS_PER_S
    raise BenchError(f"/proc/stat has no cpu{cpu}")


def stolen_s(cpu: int) -> float:
    """Seconds the hypervisor gave this CPU to others since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            return int(values[7]) / _TICKS_PER_S
    raise BenchError(f"/proc/stat has no cpu{cpu}")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name; empty for a process that is gone or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


def _sessions() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                yield int(entry), int(fields[3])
