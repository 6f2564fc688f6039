"""Both event loops, a scripted upstream, and an account of what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from apportion.serve.http.client import Pool, Target, Watch

Play = Callable[["Wire", int], Awaitable[None]]

PATIENCE_S = 120.0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Wire:
    """One accepted connection of the scripted upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The next request's head."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> tuple[bytes, bytes]:
        """The next request: head and body."""
        head = await self.head()
        lines = head.lower().split(b"\r\n")
        length = next((int(x[15:]) for x in lines if x.startswith(b"content-length:")), 0)
        return head, await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        """Write pieces, each in a packet of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.002)

    def reset(self) -> None:
        """Close with a reset in place of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the other side has closed; nothing more may come."""
        try:
            assert await self.reader.read(1) == b""
        except ConnectionError:
            pass


class Upstream:
    """A server on loopback that plays ``play(wire, number)`` on each connection, counted from 0."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.connections = 0
        self.ended = 0
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.target = Target("127.0.0.1", 0)

    async def start(self, **options: Any) -> Upstream:
        if "path" in options:
            self._server = await asyncio.start_unix_server(self._accept, **options)
            self.target = Target("localhost", 0, unix_path=str(options["path"]))
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, **options)
            self.target = Target("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        try:
            await self.play(Wire(reader, writer), number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except AssertionError as error:
            self.failures.append(error)
        finally:
            self.ended += 1
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert not self.failures, self.failures


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    """Starts a scripted upstream; all are stopped at the end."""
    started: list[Upstream] = []

    async def start(play: Play, **options: Any) -> Upstream:
        started.append(await Upstream(play).start(**options))
        return started[-1]

    yield start
    for server in started:
        await server.stop()


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    clock = Watch(asyncio.get_running_loop())
    yield clock
    await until(lambda: not clock.running)
    clock.close()


@pytest.fixture
async def pool_to(watch: Watch) -> AsyncIterator[Callable[..., Pool]]:
    """Makes pools; at the end each is closed and must hold nothing: no connection, no waiter, no count."""
    made: list[Pool] = []

    def make(target: Target, **limits: Any) -> Pool:
        made.append(Pool(target, watch, **limits))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
        for connection in list(pool._all):
            connection.close()
    await until(lambda: all(pool.open == 0 for pool in made))
    for pool in made:
        assert not pool._all
        assert not pool._idle
        assert not pool._waiting


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    with contextlib.suppress(TimeoutError):
        await until(lambda: not left(before))
    assert not left(before)


def left(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - before - {asyncio.current_task()}  # type: ignore[arg-type]


async def until(true: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait until something holds; a hang is a failure."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.002)
