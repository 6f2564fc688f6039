"""The proxy as processes: workers that die, files that are wrong, signals, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apportion.serve import control
from servers import free_port

PATIENCE_S = 120.0


def until(true: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Wait until something holds; what it returned."""
    end = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


class Silent:
    """An upstream that takes requests and never answers."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.taken.append(self.socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)  # ends the accepting; what comes after is in nobody's list
        self._thread.join(60)
        self.socket.close()
        for taken in self.taken:
            taken.close()


class Proxy:
    """One running proxy whose sockets and directories all lie in ``home``."""

    def __init__(self, home: Path, config: dict[str, Any], port: int | None = None) -> None:
        self.home = home
        self.run = home / "run"
        self.temporary = home / "temporary"
        for path in (self.run, self.temporary):
            path.mkdir(exist_ok=True, parents=True)
        self.file = home / "apportion.yaml"
        self.write(config)
        self.port = port or free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("APPORTION")}
        environment |= {
            "XDG_RUNTIME_DIR": str(self.run),
            "XDG_STATE_HOME": str(home / "state"),
            "TMPDIR": str(self.temporary),
        }
        self.output = (home / "output").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "apportion.cli",
                "serve",
                "--config",
                str(self.file),
                "--port",
                str(self.port),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )

    def write(self, config: dict[str, Any] | str) -> None:
        # YAML is a superset of JSON.
        self.file.write_text(config if isinstance(config, str) else json.dumps(config))

    def ready(self) -> Proxy:
        def answers() -> bool:
            assert self.process.poll() is None, self.said
            try:
                return self.get("/health/ready")[0] == 200 and any(self.run.rglob("control.sock"))
            except OSError:
                return False

        until(answers)
        return self

    @property
    def said(self) -> str:
        return (self.home / "output").read_text()

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def models(self) -> set[str]:
        """What is offered, asked often enough to have met every worker."""
        found = set()
        for _ in range(12):
            found.add(tuple(sorted(m["id"] for m in self.get("/v1/models")[1]["data"])))
        assert len(found) == 1, f"workers disagree: {found}"
        return set(found.pop())

    def ask(self, path: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(self.run))
        return control.request(path, port=self.port, timeout_s=PATIENCE_S)

    def processes(self) -> dict[int, str]:
        """Live processes of its session."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found[int(entry.name)] = b" ".join(words).decode()
        return found

    def workers(self) -> list[int]:
        return [pid for pid, words in self.processes().items() if "apportion.serve.worker" in words]

    def left(self) -> list[str]:
        """Files, sockets and directories that are still there."""
        inside = [*self.run.rglob("*"), *self.temporary.rglob("*")]
        return [str(p.relative_to(self.home)) for p in inside if p.name != f"apportion-{os.getuid()}"]

    def stopped(self, within_s: float = PATIENCE_S) -> int:
        """Exit status; nothing may be left."""
        status = self.process.wait(within_s)
        until(lambda: not self.processes())
        assert self.left() == []
        return status

    def end(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(PATIENCE_S)
        self.output.close()


def configuration(workers: int, *models: str, upstream_port: int = 9, drain: float = 20.0) -> dict[str, Any]:
    return {
        "listen": {"workers": workers, "drain_s": drain},
        "auth": {"required": False},
        "endpoints": {"one": {"kind": "openai", "base_url": f"http://127.0.0.1:{upstream_port}/v1"}},
        "models": dict.fromkeys(models or ("m",), "one"),
    }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    running: list[Proxy] = []

    def run(config: dict[str, Any], **options: Any) -> Proxy:
        running.append(Proxy(tmp_path / str(len(running)), config, **options))
        return running[-1]

    yield run
    for proxy in running:
        proxy.end()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def test_a_worker_that_dies_is_replaced(start: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start(configuration(2, "a")).ready()
    before = proxy.workers()
    assert len(before) == 2
    assert proxy.ask("/status", monkeypatch)["workers"] == 2
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(proxy.workers()) == 2 and before[0] not in proxy.workers())
    until(lambda: "restarted" in proxy.said)
    # The new one has the configuration of now, not that of the start.
    proxy.write(configuration(2, "b"))
    until(lambda: proxy.ask("/reload", monkeypatch)["ok"])
    proxy.ready()
    assert proxy.models() == {"b"}
    (survivor,) = set(before) & set(proxy.workers())
    os.kill(survivor, signal.SIGKILL)
    until(lambda: len(proxy.workers()) == 2 and survivor not in proxy.workers())
    proxy.ready()
    assert proxy.models() == {"b"}
    proxy.process.terminate()
    assert proxy.stopped() == 0
    assert "Traceback" not in proxy.said


GATE = """
import os, sys, time
if "apportion.serve.worker" in sys.orig_argv:
    try:
        os.close(os.open(os.path.join({home!r}, "first"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        while not os.path.exists(os.path.join({home!r}, "open")):
            time.sleep(0.01)
"""
"""Run by every process of a proxy before anything else: its first worker passes, others wait until it is open."""


def test_ready_means_that_every_worker_has_started(
    start: Callable[..., Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is started again later takes the readiness from nobody."""
    gate = tmp_path / "gate"
    gate.mkdir()
    (gate / "sitecustomize.py").write_text(GATE.format(home=str(gate)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(gate), os.environ.get("PYTHONPATH", ""))))
    proxy = start(configuration(2))

    def says() -> tuple[int, Any] | None:
        try:
            return proxy.get("/health/ready")
        except (OSError, http.client.HTTPException):
            return None

    unready = (503, {"status": "not ready", "why": "not every worker has started"})
    assert until(says) == unready
    assert proxy.get("/health/live")[0] == 200
    assert "listens on" not in proxy.said
    (gate / "open").touch()
    ready = (200, {"status": "ok"})
    until(lambda: says() == ready)
    assert [says() for _ in range(20)] == [ready] * 20
    until(lambda: "listens on" in proxy.said)
    (gate / "open").unlink()
    killed = proxy.workers()[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(proxy.workers()) == 2 and killed not in proxy.workers())
    assert [says() for _ in range(20)] == [ready] * 20
    (gate / "open").touch()
    proxy.process.terminate()
    assert proxy.stopped() == 0
    assert "Traceback" not in proxy.said


@pytest.mark.parametrize("workers", [1, 2])
def test_reloading(start: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    proxy = start(configuration(workers, "a")).ready()
    assert proxy.models() == {"a"}
    proxy.write(configuration(workers, "a", "b"))
    answer = proxy.ask("/reload", monkeypatch)
    assert answer == {"ok": True, "changes": ["model b added"]}
    assert proxy.models() == {"a", "b"}

    for wrong, word in (("models: {a: nowhere}", "nowhere"), ("modelz: {}", "modelz"), ("{", ""), ("\0", "")):
        proxy.write(wrong)
        answer = proxy.ask("/reload", monkeypatch)
        assert not answer["ok"]
        assert word in " ".join(answer["problems"])
        assert proxy.models() == {"a", "b"}, "an invalid file never replaces a valid one"
    proxy.file.unlink()
    assert not proxy.ask("/reload", monkeypatch)["ok"]

    proxy.write({**configuration(workers + 1, "c")})
    proxy.process.send_signal(signal.SIGHUP)
    until(lambda: "configuration reloaded" in proxy.said.rpartition("not reloaded")[2])
    assert proxy.models() == {"c"}
    assert len(proxy.workers()) == (workers if workers > 1 else 0), "their number is that of the start"

    assert not proxy.ask("/nothing", monkeypatch)["ok"]
    status = proxy.ask("/status", monkeypatch)
    assert (status["pid"], status["models"]) == (proxy.process.pid, ["c"])
    proxy.process.send_signal(signal.SIGINT)
    assert proxy.stopped() == 0
    assert "Traceback" not in proxy.said
    with pytest.raises(control.ControlError):
        proxy.ask("/status", monkeypatch)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_keeps_what_is_spent_and_applies_limits(
    start: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def key(name: str) -> dict[str, Any]:
        return {"name": name, "secret": f"secret of {name}"}

    def file(*keys: str, **more: Any) -> dict[str, Any]:
        return {
            **configuration(workers),
            "models": {"m": {"endpoints": ["one"], "retries": {"attempts": 1}}},
            "keys": [key(name) for name in keys],
            "budgets": [{"name": "all", "resource": "requests", "amount": workers}],
            **more,
        }

    def ask(name: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_S)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 2000}]})
        headers = {"content-type": "application/json", "authorization": f"Bearer secret of {name}"}
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    proxy = start(file("alice")).ready()
    answers = [ask("alice")]
    until(lambda: answers.append(ask("alice")) or answers[-24:] == [402] * 24)  # every worker has been met
    assert len([status for status in answers if status != 402]) == workers, answers
    proxy.write(file("alice", "bob"))
    assert proxy.ask("/reload", monkeypatch) == {"ok": True, "changes": ["key bob added"]}
    assert {ask(name) for name in ("alice", "bob") for _ in range(6)} == {402}
    small = {"http": {"body_bytes": 1000}, "log": {"format": "json"}, "records": {"decisions": 7}}
    proxy.write(file("alice", "bob", **small))
    changes = proxy.ask("/reload", monkeypatch)["changes"]
    assert changes == ["http changed", "log changed"]
    assert "records takes effect at the next start only" in proxy.said
    assert {ask("bob") for _ in range(12)} == {413}
    proxy.process.terminate()
    assert proxy.stopped() == 0
    assert "Traceback" not in proxy.said


def test_requests_under_way_survive_a_reload_and_the_end(
    start: Callable[..., Proxy], silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = start(configuration(1, "a", upstream_port=silent.port, drain=300.0)).ready()
    answers = asking(proxy, 1)
    until(lambda: silent.taken)
    silent.taken[0].settimeout(PATIENCE_S)
    assert silent.taken[0].recv(1)
    proxy.write(configuration(1, "b"))
    assert proxy.ask("/reload", monkeypatch)["ok"]
    proxy.process.terminate()
    until(lambda: refuses(proxy))
    body = b'{"choices":[{"message":{"role":"assistant","content":"late"}}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    silent.taken[0].sendall(head + body)
    assert proxy.stopped() == 0
    (status, said) = until(lambda: answers)[0]
    assert (status, b"late" in said) == (200, True)


def refuses(proxy: Proxy) -> bool:
    """Whether new connections are turned away."""
    try:
        socket.create_connection(("127.0.0.1", proxy.port), 5).close()
    except OSError:
        return True
    return False


def asking(proxy: Proxy, count: int) -> list[tuple[int, bytes]]:
    """Requests in threads; their answers, as they come (status 0: cut)."""
    answers: list[tuple[int, bytes]] = []

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=600)
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "x"}]})
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answers.append((answer.status, answer.read()))
        except (OSError, http.client.HTTPException):
            answers.append((0, b""))
        finally:
            connection.close()

    for _ in range(count):
        threading.Thread(target=one, daemon=True).start()
    return answers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_hurries(start: Callable[..., Proxy], silent: Silent, workers: int) -> None:
    proxy = start(configuration(workers, "a", upstream_port=silent.port, drain=300.0)).ready()
    answers = asking(proxy, 4)
    until(lambda: len(silent.taken) == 4)
    proxy.process.terminate()
    until(lambda: refuses(proxy))
    time.sleep(0.3)
    assert proxy.process.poll() is None, "it waits for what is under way"
    assert answers == []
    proxy.process.terminate()
    assert proxy.stopped() == 0
    until(lambda: len(answers) == 4)
    assert {status for status, _ in answers} == {0}
    assert "Traceback" not in proxy.said


def test_what_does_not_end_in_time_is_cut(start: Callable[..., Proxy], silent: Silent) -> None:
    proxy = start(configuration(2, "a", upstream_port=silent.port, drain=0.5)).ready()
    answers = asking(proxy, 3)
    until(lambda: len(silent.taken) == 3)
    proxy.process.terminate()
    assert proxy.stopped() == 0
    until(lambda: len(answers) == 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use(start: Callable[..., Proxy], workers: int) -> None:
    """Said at once and by name; even another apportion, which could share the port, is not joined."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = start(configuration(workers), port=port)
        assert proxy.stopped() != 0
        assert f"127.0.0.1:{port}" in proxy.said
        assert "--port" in proxy.said
        assert "Traceback" not in proxy.said


def test_two_proxies_do_not_share_a_port(start: Callable[..., Proxy]) -> None:
    first = start(configuration(2, "first")).ready()
    second = start(configuration(2, "second"), port=first.port)
    assert second.stopped() != 0
    assert first.models() == {"first"}


def test_a_killed_supervisor_takes_its_workers_along(start: Callable[..., Proxy]) -> None:
    """And what it could not remove stands in nobody's way."""
    proxy = start(configuration(2)).ready()
    proxy.process.kill()
    proxy.process.wait(PATIENCE_S)
    until(lambda: not proxy.processes())
    again = start(configuration(2), port=proxy.port).ready()
    again.process.terminate()
    assert again.stopped() == 0


def test_stopped_while_it_starts(start: Callable[..., Proxy]) -> None:
    """With its workers on their way, it ends without a trace."""
    proxy = start(configuration(2))
    until(lambda: proxy.workers())
    proxy.process.terminate()
    assert proxy.stopped() == 0
    assert "Traceback" not in proxy.said, proxy.said


def test_the_control_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = control.run_directory(80)
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(control.ControlError, match="private"):
        control.run_directory(80)
    path.parent.chmod(0o700)
    elsewhere = tmp_path / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)
    with pytest.raises(control.ControlError, match="private"):
        control.run_directory(80)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not there"))
    with pytest.raises(control.ControlError, match="answers"):
        control.request("/status", port=80)
    assert not (tmp_path / "not there").exists(), "asking makes nothing"
