"""The main process: engines, workers, signals, reloads. With one worker it is the worker, too.

SIGTERM and Ctrl-C drain and stop; a second one stops at once. SIGHUP reloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from apportion.core.errors import ApportionError
from apportion.serve.config.pricing import Prices, all_prices
from apportion.serve.config.reader import load, override
from apportion.serve.config.schema import Config
from apportion.serve.control import make_local_key, run_directory
from apportion.serve.engines import Engines
from apportion.serve.http.server import Request, Responder, Server
from apportion.serve.ledger.opening import make_first_key
from apportion.serve.logs import configure as configure_logs
from apportion.serve.tracing import require
from apportion.serve.worker import Address, Worker, frame, tell_all_started

logger = logging.getLogger("apportion.supervisor")

_RESTART_S = (0.1, 0.5, 2.0, 5.0, 10.0)


class ListenError(ApportionError):
    """The address to listen on cannot be had."""

    code = "listen"


class ReloadError(ApportionError):
    """The configuration is right, but a running proxy cannot go over to it."""

    code = "reload"


class Ready(NamedTuple):
    """What is told when the proxy answers."""

    host: str
    port: int
    config: Config
    first_key: str | None = None
    """An admin key that was made because there was none; to be shown now, as it is known nowhere afterwards."""

    @property
    def url(self) -> str:
        """Base address without a path."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class _Process:
    """A worker in a process of its own, restarted when it dies."""

    def __init__(self, supervisor: Supervisor, index: int, port: int) -> None:
        self._supervisor = supervisor
        self._index = index
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._stopping = False

    async def start(self) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(ready))
        await ready

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        failures = 0
        while not self._stopping:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "apportion.serve.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=False,
            )
            supervisor = self._supervisor
            config = supervisor.config
            self.tell(
                "start",
                (
                    config,
                    supervisor.prices,
                    self._index,
                    supervisor.workers,
                    str(supervisor.directory),
                    config.listen.host,
                    self._port,
                    supervisor.engines.addresses,
                ),
            )
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            async for line in process.stdout:
                message = msgspec.json.decode(line, type=dict[str, Any])
                if message["event"] == "ready":
                    failures = 0
                    if not ready.done():
                        ready.set_result(None)
                else:
                    self._answers.put_nowait(message)
            code = await process.wait()
            if self._stopping:
                break
            if not ready.done():
                ready.set_exception(ListenError(f"Worker {self._index} did not start (exit code {code})."))
                return
            wait_s = _RESTART_S[min(failures, len(_RESTART_S) - 1)]
            failures += 1
            logger.error("worker %d ended with code %s; restarted in %g s", self._index, code, wait_s)
            self._answers.put_nowait({"event": "reloaded", "error": None})
            await asyncio.sleep(wait_s)

    def tell(self, kind: str, content: Any) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(frame((kind, content)))

    async def reload(self, config: Config, prices: Prices, addresses: dict[str, Address]) -> str | None:
        while not self._answers.empty():
            self._answers.get_nowait()
        self.tell("reload", (config, prices, addresses))
        try:
            async with asyncio.timeout(30):
                answer = await self._answers.get()
        except TimeoutError:
            return "a worker did not answer within 30 s"
        error = answer.get("error")
        return None if error is None else str(error)

    async def stop(self, timeout_s: float) -> None:
        self._stopping = True
        self.tell("stop", None)
        process = self._process
        if process is None or self._task is None:
            return
        try:
            async with asyncio.timeout(timeout_s + 3.0):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Supervisor:
    """One proxy: its configuration, its engines and its workers."""

    def __init__(self, config: Config, config_path: Path | None) -> None:
        self.config = config
        self.prices: Prices = {}
        self.workers = config.listen.workers
        self.directory = Path(tempfile.mkdtemp(prefix="apportion-"))
        self._local_key = make_local_key(self.directory)
        self.engines = Engines(self._moved)
        self._config_path = config_path
        self._worker: Worker | None = None
        self._processes: list[_Process] = []
        self._control: Server | None = None
        self._control_path: Path | None = None
        self._control_inode = 0
        self._placeholder: socket.socket | None = None
        self._reloading = asyncio.Lock()
        self._later: set[asyncio.Task[None]] = set()

    async def start(self) -> Ready:
        """Start everything; returns where it listens."""
        listen = self.config.listen
        require(self.config.otel)
        self._check_address(listen.host, listen.port)
        self.prices = await asyncio.to_thread(all_prices, self.config)
        await self.engines.follow(self.config)
        if self.workers == 1:
            self._worker = await Worker.open(
                self.config,
                self.prices,
                index=0,
                workers=1,
                directory=self.directory,
            )
            first_key = await self._worker.first_key()
            for name, address in self.engines.addresses.items():
                self._worker.point(name, address)
            host, port = await self._worker.start(listen.host, listen.port, reuse_port=False)
        else:
            host, port = self._reserve(listen.host, listen.port)
            first_key = await make_first_key(self.config)
            self._processes = [_Process(self, index, port) for index in range(self.workers)]
            await asyncio.gather(*(process.start() for process in self._processes))
            tell_all_started(self.directory)
        self._control = Server(self._answer_control)
        self._control_path = run_directory(port) / "control.sock"
        self._control_path.unlink(missing_ok=True)
        await self._control.listen_unix(str(self._control_path))
        self._control_inode = self._control_path.stat().st_ino
        return Ready(host, port, self.config, first_key)

    def _check_address(self, host: str, port: int) -> None:
        """Another process on the port is found before anything is started, even one that would share it."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise ListenError(
                f"Cannot listen on {host}:{port}: {error.strerror or error}.",
                field="listen.port",
                fix="Stop what is there, or choose another port with --port or APPORTION_PORT.",
            ) from None

    def _reserve(self, host: str, port: int) -> tuple[str, int]:
        """Hold the port (without listening) while workers that share it come and go."""
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._placeholder = socket.socket(family, kind, protocol)
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._placeholder.bind(address)
        bound = self._placeholder.getsockname()
        return str(bound[0]), int(bound[1])

    def _moved(self, name: str, address: Address) -> None:
        if self._worker is not None:
            self._worker.point(name, address)
        for process in self._processes:
            process.tell("point", (name, address))

    async def reload(self) -> dict[str, Any]:
        """Go over to the configuration file as it is now. An invalid one changes nothing."""
        async with self._reloading:
            if self._config_path is None:
                return {
                    "ok": False,
                    "problems": ["The embedded default is running; there is no file to read."],
                }
            try:
                before = self.config
                config, prices = await asyncio.to_thread(_read, self._config_path, before)
                dropped = await self.engines.follow(config)
            except ApportionError as error:
                problems = [str(p) for p in getattr(error, "problems", ())] or [str(error)]
                for problem in problems:
                    logger.error("configuration not reloaded: %s", problem)
                return {"ok": False, "problems": problems}
            except OSError as error:
                logger.error("configuration not reloaded: %s", error)
                return {"ok": False, "problems": [str(error)]}
            failed: list[str] = []
            if self._worker is not None:
                try:
                    self._worker.reload(config, prices, self.engines.addresses)
                except Exception as error:
                    logger.exception("configuration not reloaded")
                    failed.append(f"{type(error).__name__}: {error}")
            answers = await asyncio.gather(
                *(process.reload(config, prices, self.engines.addresses) for process in self._processes)
            )
            failed += [answer for answer in answers if answer is not None]
            if failed:
                return {"ok": False, "problems": failed}
            self.config, self.prices = config, prices
            configure_logs(config.log)
            for engine in dropped:
                self._after(config.listen.drain_s, engine.stop)
            changes = _changes(before, config)
            logger.info("configuration reloaded: %s", "; ".join(changes) or "nothing changed")
            return {"ok": True, "changes": changes}

    def _after(self, delay_s: float, act: Callable[[], Awaitable[None]]) -> None:
        async def later() -> None:
            await asyncio.sleep(delay_s)
            await act()

        task = asyncio.create_task(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _answer_control(self, request: Request, responder: Responder) -> None:
        if request.path == "/reload":
            answer = await self.reload()
        elif request.path == "/status":
            answer = {
                "ok": True,
                "pid": os.getpid(),
                "workers": self.workers,
                "models": list(self.config.models),
            }
        elif request.path == "/key":
            answer = {"ok": True, "key": self._local_key}
        else:
            answer = {"ok": False, "problems": [f"unknown request {request.path}"]}
        responder.send(200, b"content-type: application/json\r\n", msgspec.json.encode(answer))

    async def stop(self, drain_s: float) -> bool:
        """Drain, stop everything, leave nothing behind; True if nothing had to be cut."""
        clean = True
        for task in self._later:
            task.cancel()
        if self._worker is not None:
            clean = await self._worker.drain(drain_s)
        await asyncio.gather(*(process.stop(drain_s) for process in self._processes))
        await self.engines.stop()
        if self._control is not None:
            await self._control.drain(0.1)
        if self._control_path is not None:
            _remove(self._control_path, self._control_inode)
        if self._placeholder is not None:
            self._placeholder.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        return clean


def _read(path: Path, before: Config) -> tuple[Config, Prices]:
    """The configuration of a reload. It keeps the address and the workers of the start, whatever the file says,
    and must therefore fit that address (keys, where it is reachable from outside)."""
    config = load(path)
    old, new = before.listen, config.listen
    if (old.host, old.port, old.workers) != (new.host, new.port, new.workers):
        logger.warning("listen.host, listen.port and listen.workers take effect at the next start only")
    config = override(config, host=old.host, port=old.port, workers=old.workers)
    if config.auth.required != before.auth.required:
        logger.warning("auth.required takes effect at the next start only")
        config = msgspec.structs.replace(
            config, auth=msgspec.structs.replace(config.auth, required=before.auth.required)
        )
    _same_resources(before, config)
    for name in ("records", "otel", "ledger"):
        if getattr(config, name) != getattr(before, name):
            logger.warning("%s takes effect at the next start only", name)
            config = msgspec.structs.replace(config, **{name: getattr(before, name)})
    return config, all_prices(config)


def _same_resources(before: Config, after: Config) -> None:
    """A budget that keeps its name keeps its resource: what is spent and held of one means nothing to the other."""
    known = {budget.name: budget.resource for budget in before.all_budgets()}
    for budget in after.all_budgets():
        was = known.get(budget.name, budget.resource)
        if was != budget.resource:
            raise ReloadError(
                f"The budget {budget.name!r} was in {was} and cannot become one in {budget.resource} while it runs.",
                field="budgets",
                fix="Give it another name.",
            )


def _changes(before: Config, after: Config) -> list[str]:
    """What a reload changed, in a few words each."""
    found = []
    for word, old, new in (
        ("endpoint", before.endpoints, after.endpoints),
        ("model", before.models, after.models),
        ("key", {k.name: k for k in before.keys}, {k.name: k for k in after.keys}),
    ):
        for name in sorted({*old, *new}):
            if name not in old:
                found.append(f"{word} {name} added")
            elif name not in new:
                found.append(f"{word} {name} removed")
            elif old[name] != new[name]:
                found.append(f"{word} {name} changed")
    rest = ("http", "auth", "teams", "prices", "budgets", "pricer", "unknown_price", "log")
    found += [f"{name} changed" for name in rest if getattr(before, name) != getattr(after, name)]
    return found


def _remove(socket_path: Path, inode: int) -> None:
    """Remove a control socket and its directory, unless a successor on the same port has put its own there."""
    with contextlib.suppress(OSError):
        if socket_path.stat().st_ino == inode:
            socket_path.unlink()
            socket_path.parent.rmdir()


async def _run(config: Config, config_path: Path | None, on_ready: Callable[[Ready], None]) -> int:
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(config, config_path)
    stop = asyncio.Event()
    signals = 0

    def stopping() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            hurry.set()

    hurry = asyncio.Event()
    reloads: set[asyncio.Task[dict[str, Any]]] = set()

    def reload() -> None:
        task = loop.create_task(supervisor.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping)
    loop.add_signal_handler(signal.SIGHUP, reload)
    starting = loop.create_task(supervisor.start())
    stopped = loop.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_ready(starting.result())
            await stopped
        else:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await starting
    finally:
        stopped.cancel()
        drain = loop.create_task(supervisor.stop(supervisor.config.listen.drain_s))
        hurried = loop.create_task(hurry.wait())
        await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
        if not drain.done():
            drain.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drain
            await supervisor.stop(0.0)
        hurried.cancel()
    return 0


def run(config: Config, *, config_path: Path | None, on_ready: Callable[[Ready], None]) -> int:
    """Run a proxy until it is told to stop; its exit code. ``on_ready`` is called once it answers.

    Raises ``ApportionError`` if it cannot start.
    """
    import uvloop

    configure_logs(config.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, config_path, on_ready))
