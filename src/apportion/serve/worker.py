"""One worker: an event loop with the server, the gateway and its endpoints; a process of its own among several."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import random
import signal
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from apportion.core import catalogue
from apportion.core.eviction import Eviction
from apportion.core.predictor import Encoder
from apportion.measure.metrics import Registry
from apportion.serve.cache.answers import AnswerCache
from apportion.serve.cache.shared import RedisShared
from apportion.serve.config.pricing import Prices
from apportion.serve.config.schema import Config, Text
from apportion.serve.config.schema import DecisionLog as LogConfig
from apportion.serve.control import local_sha256
from apportion.serve.decision_log import DecisionLog
from apportion.serve.embedder import Embedder
from apportion.serve.gateway import Gateway
from apportion.serve.http.client import Exchange, Pool, Target, Timeouts, TransportFailure, Watch
from apportion.serve.http.server import Request, Responder, Server, ServerLimits
from apportion.serve.keyring import Snapshot
from apportion.serve.learned import Learned
from apportion.serve.ledger.opening import FIRST_KEY, Opened, open_ledger
from apportion.serve.lessons import LessonMeters, Lessons, ModelLessons
from apportion.serve.logs import configure as configure_logs
from apportion.serve.meters import Meters
from apportion.serve.probes import Probes
from apportion.serve.reading import Reader
from apportion.serve.records import Records
from apportion.serve.runtime import Runtime
from apportion.serve.store.encoder import ensure_encoder
from apportion.serve.tracing import Tracer

logger = logging.getLogger("apportion.worker")

_SWITCH_S: Final = 0.0005
_SAVE_S: Final = 300.0
"""Time between two savings of what was learned."""
_FLUSH_S: Final = 2.0
"""How long a stopping worker waits at least for its last spans to be sent: longer, while draining may still last."""
_SIBLING_TIMEOUTS: Final = Timeouts(1.0, 2.0, 2.0, 5.0)
_STARTED: Final = "started"
"""A file in the workers' directory: all of them have listened once."""


class Address(NamedTuple):
    """Where an endpoint that the proxy runs itself listens now; None while it is down."""

    base_url: str | None
    api_key: str | None


class Worker:
    """Everything of one worker. ``index`` counts from 0; ``directory`` is shared by all workers of a proxy."""

    def __init__(
        self,
        config: Config,
        prices: Prices,
        opened: Opened,
        people: Snapshot,
        *,
        index: int,
        workers: int,
        directory: Path,
        encoder: Encoder | None = None,
    ) -> None:
        self.index = index
        self._taken_up: set[int] = set()
        self._saved_s = time.monotonic()
        self._saving: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._opened = opened
        self._refreshing: asyncio.Future[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._told_entries = 0
        self.workers = workers
        self._all_started = workers == 1
        self._directory = directory
        self._watch = Watch(asyncio.get_running_loop())
        self._meters = Meters(Registry(directory / "metrics", index))
        self._records = Records(config.records.decisions, index)
        opened.ledger.saved_prices = lambda: self.gateway.runtime.books.saved_prices(time.time())
        opened.ledger.on_tick = self._refresh
        runtime = Runtime(
            config,
            prices,
            watch=self._watch,
            meters=self._meters,
            ledger=opened.ledger,
            saved_prices=opened.prices,
            people=people,
            pepper=opened.people.pepper,
            local_sha256=local_sha256(directory),
        )
        self._embedder = None if encoder is None else Embedder(encoder, cache_bytes=config.text.cache_bytes)
        reader = Reader(self._embedder, config.text.wait_s)
        self.gateway = Gateway(runtime, self._meters, self._records, rng=random.Random(), reader=reader)
        self._learned = Learned(config.state_directory() / "learned", index)
        self._take_up(runtime)
        self._lessons = self._new_lessons(config)
        self.gateway.teach_with(self._lessons)
        self.gateway.cache = self._new_cache(config, None)
        self.gateway.admin.people = opened.people
        self.gateway.spending.engine = opened.database.reading
        self.gateway.ready = self._not_ready
        self.gateway.sibling = self._ask_sibling
        self._tracer = Tracer.of(config.otel, config.log, self._meters, index)
        if self._tracer is not None:
            self.gateway.settlements.on_settled = self._tracer.finished
        self._addresses: dict[str, Address] = {}
        self._server: Server | None = None
        self._control: Server | None = None
        self._siblings: dict[int, Pool] = {}
        self._probes = Probes(self._watch)
        self._probes.follow(runtime.endpoints.values())

    @classmethod
    async def open(
        cls,
        config: Config,
        prices: Prices,
        *,
        index: int,
        workers: int,
        directory: Path,
    ) -> Worker:
        """A worker whose ledger is open and whose keys are read. Raises ``LedgerError``."""
        encoder = await asyncio.to_thread(_encoder, config.text)
        opened = await open_ledger(config, random.Random())
        people = await opened.ledger.run(opened.people.snapshot)
        return cls(
            config,
            prices,
            opened,
            people,
            index=index,
            workers=workers,
            directory=directory,
            encoder=encoder,
        )

    async def first_key(self) -> str | None:
        """The admin key that is made where a key is needed and there is none; None if there is one."""
        runtime = self.gateway.runtime
        if not runtime.config.auth.required or runtime.configured.keys:
            return None
        people = self._opened.people
        made = await self._opened.ledger.run(lambda: people.create_first_key(FIRST_KEY, "first start"))
        if made is not None:
            runtime.adopt(await self._opened.ledger.run(people.snapshot))
        return made

    def _refresh(self) -> None:
        """Once a second: have keys, teams or budgets changed in the database?"""
        ledger, meters = self._opened.ledger, self._meters
        meters.ledger_pending.set(float(ledger.pending))
        meters.ledger_entries.add(float(ledger.committed - self._told_entries))
        self._told_entries = ledger.committed
        meters.ledger_lost.set(float(ledger.lost))
        self._lessons.tick(time.time())
        if not self.gateway.draining:
            self.gateway.replays.tick(self.gateway.runtime.groups.values(), time.time())
        if time.monotonic() - self._saved_s >= _SAVE_S and self._saving is None:
            self._saved_s = time.monotonic()
            self._saving = asyncio.create_task(self._save())
            self._saving.add_done_callback(self._save_ended)
        if self._refreshing is None and not ledger.lost:
            self._refreshing = asyncio.ensure_future(self.gateway.admin.refresh())
            self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, done: asyncio.Future[None]) -> None:
        self._refreshing = None
        if not done.cancelled() and done.exception() is not None:
            logger.warning("the keys of the database could not be read: %s", done.exception())

    async def start(self, host: str, port: int, *, reuse_port: bool) -> tuple[str, int]:
        """Listen; returns the bound address."""
        config = self.gateway.runtime.config
        if self._tracer is not None:
            await self._tracer.start()
        self._server = Server(
            self.gateway if self._tracer is None else self._tracer.application(self.gateway),
            _limits(config),
        )
        await _prepare(self.gateway.runtime)
        self._server.dialect_of = lambda target: "anthropic" if b"/messages" in target else "openai"
        self._server.refuses = self.gateway.refuses
        bound = await self._server.listen(host, port, reuse_port=reuse_port)
        if self.workers > 1:
            self._control = Server(self._answer_sibling)
            path = self._directory / f"worker-{self.index}.sock"
            path.unlink(missing_ok=True)
            await self._control.listen_unix(str(path))
        # A thread that computes (checks, encoder, books) gives way to the loop after half a millisecond, not five.
        sys.setswitchinterval(_SWITCH_S)
        # What lives as long as the worker need not be looked at by every collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        return bound

    def reload(self, config: Config, prices: Prices, addresses: Mapping[str, Address]) -> None:
        """Go over to another configuration; requests under way keep theirs. The limits on what clients send
        hold for open connections, too."""
        runtime = Runtime(
            config,
            prices,
            watch=self._watch,
            meters=self._meters,
            ledger=self._opened.ledger,
            previous=self.gateway.runtime,
        )
        self._take_up(runtime)
        self._preparing = asyncio.create_task(_prepare(runtime))
        self.gateway.runtime = runtime
        self.gateway.mover.leave(lambda name: name not in runtime.endpoints)
        self._lessons.configure(_lessons_of(config))
        self.gateway.cache = self._new_cache(config, self.gateway.cache)
        if self._server is not None:
            self._server.limits = _limits(config)
        for name, address in addresses.items():
            if self._addresses.get(name) != address or runtime.endpoints[name].pool is None:
                self.point(name, address)
        self._probes.follow(runtime.endpoints.values())
        self._meters.reloads.at("ok").add()

    def point(self, name: str, address: Address) -> None:
        """An endpoint that the proxy runs itself has moved, come up or gone down."""
        self._addresses[name] = address
        endpoint = self.gateway.runtime.endpoints.get(name)
        if endpoint is None:
            return
        if address.base_url is None:
            endpoint.unplug()
        else:
            endpoint.point_at(address.base_url, address.api_key)

    async def drain(self, timeout_s: float) -> bool:
        """Stop accepting, finish what is under way, close; True if nothing had to be cut."""
        self.gateway.draining = True
        until_s = time.monotonic() + timeout_s
        clean = await self._server.drain(timeout_s) if self._server is not None else True
        self.gateway.settlements.flush()
        await self.gateway.replays.close()
        await self.gateway.mover.close()
        await self._lessons.close()
        if self._saving is not None:
            self._saving.cancel()
        await self._save()
        if self._embedder is not None:
            await self._embedder.close()
        if self.gateway.cache is not None:
            await self.gateway.cache.close()
        if not await self._opened.ledger.close():
            clean = False
        if self._tracer is not None:
            await self._tracer.close(max(_FLUSH_S, until_s - time.monotonic()))
        if self._control is not None:
            await self._control.drain(0.1)
        self._probes.close()
        for endpoint in self.gateway.runtime.endpoints.values():
            endpoint.close()
        for pool in self._siblings.values():
            pool.close()
        self._watch.close()
        return clean

    # what is learned

    def _take_up(self, runtime: Runtime) -> None:
        """Give methods that are new what was learned before the last stop."""
        for name, (kind, method) in runtime.learners().items():
            if id(method) not in self._taken_up:
                self._taken_up.add(id(method))
                self._learned.load(name, kind, method)

    async def _save(self) -> None:
        await self._learned.save(self.gateway.runtime.newest().learners())

    def _save_ended(self, done: asyncio.Task[None]) -> None:
        self._saving = None
        if not done.cancelled() and done.exception() is not None:
            logger.warning("what was learned could not be saved: %s", done.exception())

    def _new_lessons(self, config: Config) -> Lessons:
        log = config.records.log
        alone = self.workers == 1
        lessons = Lessons(
            self.index,
            teach=self.gateway.teach,
            remember=config.records.feedback,
            comments=config.records.comments,
            log=None if log is None else _decision_log(log, config, self.index),
            log_features=log is not None and log.features,
            ask=self.gateway.ask,
            sibling=None if alone else self._ask_sibling,
            meters=LessonMeters(self._meters.registry),
        )
        lessons.siblings = None if alone else self._qualities
        lessons.before = self.gateway.settlements.flush
        lessons.configure(_lessons_of(config))
        return lessons

    async def _qualities(self) -> list[bytes]:
        """What every other worker has seen of the answers' quality."""
        others = [index for index in range(self.workers) if index != self.index]
        found = await asyncio.gather(*(self._ask_sibling(index, "/quality") for index in others))
        return [body for body in found if body is not None]

    def _new_cache(self, config: Config, before: AnswerCache | None) -> AnswerCache | None:
        settings = config.cache
        if before is not None and before.settings == settings:
            return before
        if before is not None:
            self._closing = asyncio.create_task(before.close())
        if not settings.enabled:
            return None

        def make(capacity: float) -> Eviction:
            made = catalogue.build(settings.eviction, capacity=capacity)
            if not isinstance(made, Eviction):
                raise TypeError(f"{settings.eviction} is not of the family cache")
            return made

        shared = None
        if settings.redis is not None:
            shared = RedisShared(
                settings.redis.reveal(),
                sync_s=settings.sync_s,
                told=lambda kept, gone: cache.sync(kept, gone, time.time()),
            )
        vector = self.gateway.reader.vector if settings.semantic and self._embedder is not None else None
        cache = AnswerCache(settings, make, vector=vector, shared=shared)
        if shared is not None:
            shared.start()
        return cache

    def _not_ready(self) -> str | None:
        """Ready means that all workers have started and that every model has an endpoint that is up. A worker that
        dies later and is started again does not make the others unready."""
        if not self._all_started:
            self._all_started = all_started(self._directory)
            if not self._all_started:
                return "not every worker has started"
        for group in self.gateway.runtime.groups.values():
            if all(route.endpoint.pool is None for route in group.routes):
                return f"no endpoint of model {group.name!r} is running"
        return None

    # workers among themselves

    async def _answer_sibling(self, request: Request, responder: Responder) -> None:
        found = await self.gateway.for_sibling(request)
        if found is None:
            responder.send(404, b"", b"")
        else:
            responder.send(200, b"content-type: application/json\r\n", found)

    async def _ask_sibling(self, worker: int, path: str, body: bytes | None = None) -> bytes | None:
        if not 0 <= worker < self.workers:
            return None
        pool = self._siblings.get(worker)
        if pool is None:
            target = Target("localhost", 0, unix_path=str(self._directory / f"worker-{worker}.sock"))
            pool = self._siblings[worker] = Pool(target, self._watch, max_connections=8)
        exchange = Exchange(asyncio.get_running_loop(), _SIBLING_TIMEOUTS)
        try:
            await pool.send(exchange, _sibling_request(path, body), fresh=True)
            await exchange.answered()
        except TransportFailure:
            return None
        return exchange.body() if exchange.status == 200 else None


def tell_all_started(directory: Path) -> None:
    """From now on the workers that share ``directory`` say that they are ready."""
    (directory / _STARTED).touch()


def all_started(directory: Path) -> bool:
    """Whether all workers that share ``directory`` have listened once."""
    return (directory / _STARTED).exists()


def _sibling_request(path: str, body: bytes | None) -> bytes:
    if body is None:
        return b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode()
    return (
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (
            path.encode(),
            len(body),
            body,
        )
    )


def _encoder(text: Text) -> Encoder | None:
    """The sentence encoder of a configuration, its weights fetched if need be."""
    if text.encoder == "off":
        return None
    files = ensure_encoder()
    made = catalogue.build(
        "text/minilm",
        model_file=str(files.model_file),
        tokenizer_file=str(files.tokenizer_file),
        threads=text.threads,
    )
    if not isinstance(made, Encoder):
        raise TypeError("text/minilm is not an encoder")
    made.encode(
        [""]
    )  # loads its weights: what is missing or broken is said at the start, not at each request
    return made


def _lessons_of(config: Config) -> dict[str, ModelLessons]:
    return {name: ModelLessons.of(name, model.feedback) for name, model in config.models.items()}


def _decision_log(log: LogConfig, config: Config, worker: int) -> DecisionLog:
    directory = Path(log.directory) if log.directory else config.state_directory() / "decisions"
    return DecisionLog(
        directory, worker, file_bytes=log.file_bytes, total_bytes=log.total_bytes, keep_s=log.keep_s
    )


async def _prepare(runtime: Runtime) -> None:
    """Let the predictors do what takes seconds; until then they predict more slowly."""
    for group in runtime.groups.values():
        predictor = group.methods.quality
        if predictor is not None:
            await asyncio.to_thread(predictor.prepare)


def _limits(config: Config) -> ServerLimits:
    http = config.http
    return ServerLimits(
        body_bytes=http.body_bytes,
        header_bytes=http.header_bytes,
        header_count=http.header_count,
        header_timeout_s=http.header_timeout_s,
        body_timeout_s=http.body_timeout_s,
        idle_timeout_s=http.idle_timeout_s,
        write_timeout_s=http.write_timeout_s,
        max_connections=config.listen.max_connections,
    )


# --- a worker as a process: frames from the supervisor on stdin, lines of JSON to it on stdout ---------------


def frame(message: tuple[str, Any]) -> bytes:
    """One message of the supervisor to a worker process."""
    content = pickle.dumps(message)
    return struct.pack(">I", len(content)) + content


async def _frames(reader: asyncio.StreamReader) -> Any:
    while True:
        try:
            (size,) = struct.unpack(">I", await reader.readexactly(4))
            yield pickle.loads(await reader.readexactly(size))
        except asyncio.IncompleteReadError:
            return


async def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor decides
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    # The pipe is moved aside, so that nothing that reads or prints by accident disturbs it.
    stdin, stdout = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(stdin, "rb"))

    stop = asyncio.Event()

    def say(**message: object) -> None:
        try:
            os.write(stdout, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:  # the supervisor is dead
            stop.set()

    worker: Worker | None = None
    drain_s = 0.0
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    async def listen_to_supervisor() -> None:
        nonlocal worker, drain_s
        async for kind, content in _frames(reader):
            if kind == "start":
                config, prices, index, workers, directory, host, port, addresses = content
                configure_logs(config.log)
                worker = await Worker.open(
                    config,
                    prices,
                    index=index,
                    workers=workers,
                    directory=Path(directory),
                )
                drain_s = config.listen.drain_s
                for name, address in addresses.items():
                    worker.point(name, address)
                await worker.start(host, port, reuse_port=True)
                say(event="ready")
            elif kind == "reload" and worker is not None:
                config, prices, addresses = content
                try:
                    worker.reload(config, prices, addresses)
                    configure_logs(config.log)
                    drain_s = config.listen.drain_s
                    say(event="reloaded", error=None)
                except Exception as error:
                    logger.exception("reload failed")
                    say(event="reloaded", error=f"{type(error).__name__}: {error}")
            elif kind == "point" and worker is not None:
                worker.point(*content)
            elif kind == "stop":
                break
        stop.set()

    listener = loop.create_task(listen_to_supervisor())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((listener, stopping), return_when=asyncio.FIRST_COMPLETED)
    if listener.done() and listener.exception() is not None:
        logger.error("worker failed", exc_info=listener.exception())
        return 1
    if worker is not None:
        await worker.drain(drain_s)
    return 0


def main() -> int:
    """Run a worker process until the supervisor says stop or is gone."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main())


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
