"""The embedder: batches, budgets, cancellation, bounds, a clean end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from apportion.core.predictor import Encoder
from apportion.serve.embedder import Embedder, Vector


class Gate(Encoder):
    """An encoder that works only while its gate is open, and remembers what it was asked."""

    dimensions: ClassVar[int] = 2

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.broken = False

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(texts))
        self.began.set()
        assert self.gate.wait(120)
        if self.broken:
            raise ValueError("broken")
        return [(float(len(text)), 1.0) for text in texts]


@asynccontextmanager
async def embedder(encoder: Encoder, **settings: Any) -> AsyncIterator[Embedder]:
    made = Embedder(encoder, **settings)
    try:
        yield made
    finally:
        if isinstance(encoder, Gate):
            encoder.gate.set()
        await made.close()


async def until(encoder: Gate) -> None:
    """Until the thread is at work."""
    assert await asyncio.to_thread(encoder.began.wait, 120)


async def test_a_text_is_encoded_once_and_found_again() -> None:
    encoder = Gate()
    async with embedder(encoder) as made:
        assert made.known("abc") is None
        assert await made.vector("abc") == (3.0, 1.0)
        assert await made.vector("abc", 0.0) == (3.0, 1.0) == made.known("abc")
        assert encoder.batches == [["abc"]]
        assert encoder.threads == {"apportion-embedder"}
        assert (made.counters.hits, made.counters.misses, made.counters.late) == (1, 1, 0)


async def test_what_waits_goes_together_in_order() -> None:
    encoder = Gate()
    encoder.gate.clear()
    async with embedder(encoder, batch=3) as made:
        first = asyncio.create_task(made.vector("a"))
        await until(encoder)
        rest = [asyncio.create_task(made.vector("x" * n)) for n in range(2, 8)]
        await asyncio.sleep(0)
        encoder.gate.set()
        assert await asyncio.gather(first, *rest) == [(float(n), 1.0) for n in range(1, 8)]
        assert [len(batch) for batch in encoder.batches] == [1, 3, 3]
        assert (made.counters.batches, made.counters.texts, made.pending) == (3, 7, 0)


async def test_the_same_text_is_waited_for_together() -> None:
    encoder = Gate()
    encoder.gate.clear()
    async with embedder(encoder) as made:
        tasks = [asyncio.create_task(made.vector("same")) for _ in range(5)]
        await until(encoder)
        tasks[0].cancel()
        await asyncio.sleep(0)
        encoder.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [(4.0, 1.0)] * 4
        assert tasks[0].cancelled()
        assert encoder.batches == [["same"]]


async def test_a_late_vector_is_kept_for_the_next() -> None:
    encoder = Gate()
    encoder.gate.clear()
    async with embedder(encoder) as made:
        assert await made.vector("late", 0.01) is None
        assert await made.vector("not even begun", 0.0) is None
        assert made.counters.late == 2
        encoder.gate.set()
        assert await made.vector("not even begun") == (14.0, 1.0)
        assert made.known("late") == (4.0, 1.0)


async def test_everybody_may_leave() -> None:
    encoder = Gate()
    encoder.gate.clear()
    async with embedder(encoder) as made:
        tasks = [asyncio.create_task(made.vector(f"text {n}")) for n in range(20)]
        await until(encoder)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        encoder.gate.set()
        assert await made.vector("text 19") == (7.0, 1.0)
        assert made.pending == 0


async def test_the_queue_is_bounded() -> None:
    encoder = Gate()
    encoder.gate.clear()
    async with embedder(encoder, waiting=2) as made:
        tasks = [asyncio.create_task(made.vector(text)) for text in ("a", "b", "a")]
        await until(encoder)
        assert await made.vector("c") is None
        assert made.counters.full == 1
        encoder.gate.set()
        assert await asyncio.gather(*tasks) == [(1.0, 1.0)] * 3
        assert await made.vector("c") == (1.0, 1.0)


async def test_the_cache_is_bounded_in_bytes_and_forgets_the_oldest() -> None:
    encoder = Gate()
    async with embedder(encoder, cache_bytes=10 * (200 + 32 * 2)) as made:
        for n in range(10):
            await made.vector("x" * n)
        await made.vector("")  # used again: the oldest is now "x"
        await made.vector("new one")
        assert made.known("") is not None
        assert made.known("x") is None
        assert made.cached_bytes == 10 * (200 + 32 * 2)
    async with embedder(encoder, cache_bytes=0) as made:
        assert await made.vector("abc") == (3.0, 1.0)
        assert made.known("abc") is None
        assert made.cached_bytes == 0


async def test_a_broken_encoder_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Gate()
    encoder.broken = True
    async with embedder(encoder) as made:
        assert await made.vector("abc") is None
        assert "the encoder failed" in caplog.text
        assert made.counters.failed == 1
        encoder.broken = False
        assert await made.vector("abc") == (3.0, 1.0)


async def test_who_waits_at_the_end_goes_on_without() -> None:
    encoder = Gate()
    encoder.gate.clear()
    made = Embedder(encoder, batch=1)
    tasks = [asyncio.create_task(made.vector(text)) for text in ("first", "second", "third")]
    await until(encoder)
    closing = asyncio.create_task(made.close())
    await asyncio.sleep(0.01)
    encoder.gate.set()
    await closing
    assert await asyncio.gather(*tasks) == [(5.0, 1.0), None, None]
    assert await made.vector("fourth") is None
    await made.close()
    assert encoder.batches == [["first"]]
    assert not any(thread.name == "apportion-embedder" for thread in threading.enumerate())


def test_a_loop_that_ends_without_closing_it_does_not_hang() -> None:
    encoder = Gate()
    encoder.gate.clear()

    async def run() -> None:
        made = Embedder(encoder)
        assert await made.vector("abc", 0.01) is None

    asyncio.run(run())
    encoder.gate.set()
    for thread in threading.enumerate():
        if thread.name == "apportion-embedder":
            thread.join(120)
            assert not thread.is_alive()
