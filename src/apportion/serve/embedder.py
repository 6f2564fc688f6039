"""Vectors of texts beside the event loop: one thread, batches, a cache, and a time budget for whoever waits.

A vector that comes too late for its request is kept for the next one that asks the same. Nothing here can make a
request fail: without a vector predictors go by counts and marks.

The cache is shared by all tenants and holds no text, only a keyed digest of it and a vector that the text alone
determines; no answer leaves it. What is left is time: a request whose text was seen before has its vector some
milliseconds sooner. Who must not even learn that somebody asked the same within this process's life sets
``cache_bytes`` to 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from apportion.core.predictor import Encoder

log = logging.getLogger("apportion.embedder")

_ENTRY_BYTES: Final = 200
"""What an entry takes beside its numbers: key, tuple, place in the order."""
_NUMBER_BYTES: Final = 32
"""A Python float and the reference to it."""

Vector = tuple[float, ...]


@dataclass(slots=True)
class Counters:
    """What an embedder has done since it was made."""

    hits: int = 0
    """Found in the cache."""
    misses: int = 0
    """Had to be encoded, or waited for with another request that asked the same."""
    late: int = 0
    """Went on without, for the time budget ran out."""
    full: int = 0
    """Went on without, for too many texts waited."""
    failed: int = 0
    """Went on without, for the encoder raised."""
    batches: int = 0
    texts: int = 0
    """Texts in those batches."""
    busy_s: float = 0.0
    """Time the encoder worked."""


class Embedder:
    """An encoder behind a queue, for one event loop; made inside that loop.

    Args:
        encoder: turns texts into vectors; called from one thread of its own, never from two at once.
        batch: most texts in one call.
        waiting: most texts that wait; a further one is refused at once.
        cache_bytes: about how much memory the vectors of earlier texts may take; 0 keeps none.
    """

    def __init__(
        self, encoder: Encoder, *, batch: int = 16, waiting: int = 256, cache_bytes: int = 64 << 20
    ) -> None:
        self.counters = Counters()
        self._encoder = encoder
        self._batch = batch
        self._waiting = waiting
        self._entry_bytes = _ENTRY_BYTES + _NUMBER_BYTES * encoder.dimensions
        self._most_entries = cache_bytes // self._entry_bytes
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._pending: dict[bytes, asyncio.Future[Vector | None]] = {}
        self._queue: deque[tuple[bytes, str]] = deque()
        self._more = threading.Condition()
        self._closed = False
        self._secret = os.urandom(16)  # digests that nobody can compute outside this process
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="apportion-embedder", daemon=True)
        self._thread.start()

    @property
    def cached_bytes(self) -> int:
        """About the memory that the cache takes."""
        return len(self._cache) * self._entry_bytes

    @property
    def pending(self) -> int:
        """Texts that wait or are being encoded."""
        return len(self._pending)

    def known(self, text: str) -> Vector | None:
        """The vector of ``text`` if it is in the cache; nothing is counted or started."""
        return self._cache.get(self._key(text))

    async def vector(self, text: str, budget_s: float | None = None) -> Vector | None:
        """The vector of ``text``, or None when there is none within ``budget_s`` seconds (None: however long).

        It raises nothing but its own cancellation; what was begun goes on and enters the cache.
        """
        key = self._key(text)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            self.counters.hits += 1
            return found
        future = self._pending.get(key)
        if future is None:
            if self._closed or len(self._pending) >= self._waiting:
                self.counters.full += 1
                return None
            future = self._pending[key] = self._loop.create_future()
            with self._more:
                self._queue.append((key, text))
                self._more.notify()
        self.counters.misses += 1
        if budget_s is not None and budget_s <= 0.0:
            self.counters.late += 1
            return None
        try:
            # The future is everybody's who asked the same: it is shielded from one of them leaving.
            async with asyncio.timeout(budget_s):
                return await asyncio.shield(future)
        except TimeoutError:
            self.counters.late += 1
            return None

    async def close(self) -> None:
        """Stop the thread after the batch it is at; who still waits goes on without. May be called again."""
        with self._more:
            self._closed = True
            self._queue.clear()
            self._more.notify()
        await asyncio.to_thread(self._thread.join)
        # Results that the thread has handed over are in the loop's queue, before this.
        await asyncio.sleep(0)
        for future in self._pending.values():
            if not future.done():
                future.set_result(None)
        self._pending.clear()

    def _key(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=self._secret).digest()

    # in the thread

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                taken = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            began_s = time.perf_counter()
            vectors = self._encoded([text for _, text in taken])
            took_s = time.perf_counter() - began_s
            keys = [key for key, _ in taken]
            try:
                self._loop.call_soon_threadsafe(self._done, keys, vectors, took_s)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _encoded(self, texts: list[str]) -> list[Vector] | None:
        try:
            return self._encoder.encode(texts)
        except Exception:  # whatever an encoder raises, requests go on without it
            log.exception("the encoder failed")
            return None

    # in the loop

    def _done(self, keys: list[bytes], vectors: list[Vector] | None, took_s: float) -> None:
        counters = self.counters
        counters.batches += 1
        counters.texts += len(keys)
        counters.busy_s += took_s
        for place, key in enumerate(keys):
            vector = None if vectors is None else vectors[place]
            if vector is None:
                counters.failed += 1
            else:
                self._keep(key, vector)
            future = self._pending.pop(key, None)
            if future is not None and not future.done():
                future.set_result(vector)

    def _keep(self, key: bytes, vector: Vector) -> None:
        self._cache[key] = vector
        while len(self._cache) > self._most_entries:
            self._cache.popitem(last=False)
