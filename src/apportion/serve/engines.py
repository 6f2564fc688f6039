"""The servers that the proxy runs itself for endpoints of kind ``local`` and ``replay``."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path

from apportion.serve.config.schema import Config, Endpoint
from apportion.serve.local import LocalEngine
from apportion.serve.replay import Replay, ReplayServer, load
from apportion.serve.worker import Address

logger = logging.getLogger("apportion.engines")

DOWN = Address(None, None)
OnMove = Callable[[str, Address], None]


class Engines:
    """All engines of a configuration, by endpoint name. ``on_move`` hears of every change of an address."""

    def __init__(self, on_move: OnMove) -> None:
        self._on_move = on_move
        self._running: dict[str, tuple[Endpoint, LocalEngine | ReplayServer]] = {}
        self.addresses: dict[str, Address] = {}

    async def follow(self, config: Config) -> list[LocalEngine | ReplayServer]:
        """Start what ``config`` names and does not run yet; returns those it no longer names, still running.

        If one does not start, nothing has changed and its error is raised.
        """
        wanted = {n: e for n, e in config.endpoints.items() if e.kind in ("local", "replay")}
        kept = {n: r for n, r in self._running.items() if wanted.get(n) == r[0]}
        started: dict[str, tuple[Endpoint, LocalEngine | ReplayServer]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(self._start(name, entry))
                    for name, entry in wanted.items()
                    if name not in kept
                }
        except BaseExceptionGroup as failures:
            for name, task in tasks.items():
                if task.done() and not task.cancelled() and task.exception() is None:
                    await task.result().stop()
                self.addresses.pop(name, None)
            for name, (_, engine) in self._running.items():
                self.addresses[name] = _address(engine)
            raise failures.exceptions[0] from None
        for name, task in tasks.items():
            started[name] = (wanted[name], task.result())
            self.addresses[name] = _address(task.result())
        dropped = [r[1] for n, r in self._running.items() if n not in kept]
        self._running = {**kept, **started}
        self.addresses = {n: a for n, a in self.addresses.items() if n in self._running}
        return dropped

    async def _start(self, name: str, entry: Endpoint) -> LocalEngine | ReplayServer:
        if entry.kind == "replay":
            speed = math.inf if entry.speed is None else entry.speed
            server = ReplayServer(Replay(load(Path(entry.file or "")), speed=speed))
            await server.start()
            return server
        engine: LocalEngine | None = None

        def moved(address: str | None) -> None:
            current = self._running.get(name)
            if engine is not None and current is not None and current[1] is engine:
                where = DOWN if address is None else Address(f"{address}/v1", engine.api_key)
                self.addresses[name] = where
                self._on_move(name, where)

        engine = LocalEngine(
            entry.weights or "smollm2-135m-instruct",
            sha256=entry.sha256,
            slots=entry.slots or 4,
            context_tokens=entry.context_tokens or 4096,
            threads=entry.threads,
            embeddings=entry.embeddings,
            alias=entry.model,
            on_change=moved,
        )
        await engine.start()
        return engine

    async def stop(self) -> None:
        """Stop them all; nothing is left running."""
        running, self._running = self._running, {}
        await asyncio.gather(*(engine.stop() for _, engine in running.values()), return_exceptions=True)


def _address(engine: LocalEngine | ReplayServer) -> Address:
    if isinstance(engine, ReplayServer):
        return Address(f"{engine.address}/v1", None)
    return DOWN if engine.address is None else Address(f"{engine.address}/v1", engine.api_key)
