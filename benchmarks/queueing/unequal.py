"""S137 live: two real servers, one of which works only a part of the time, and a router that is not told so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from statistics import mean, median
from typing import Any

from apportion.core import Cost, Option, Outcome, Policy, State
from apportion.serve.queue import EndpointQueue, ticket
from benchmarks.queueing.burst import CAP_TOKENS, LONG_TOKENS, Model
from benchmarks.queueing.prediction import Lengths
from benchmarks.queueing.prompts import prompts
from benchmarks.queueing.speeds import router
from benchmarks.queueing.sweep import policy

SHARE = 0.25
"""Of each tenth of a second the slow server works for this share."""
BLOCK = 8
"""Requests that one rule routes before the next has its turn, so that all see the machine as busy with other work."""
NAMES = ("fast", "slow")


@contextlib.asynccontextmanager
async def slowed(pid: int) -> AsyncIterator[None]:
    """The process is stopped for most of every tenth of a second, as a slower machine would be."""

    async def halting() -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.1 * (1.0 - SHARE))
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.1 * SHARE)
        finally:
            os.kill(pid, signal.SIGCONT)

    task = asyncio.create_task(halting())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run(
    servers: Sequence[Model],
    asked: Sequence[tuple[float, str, float]],
    choose: Policy,
    factors: tuple[float, float],
) -> list[float]:
    """Latencies of ``asked`` (when, what, predicted seconds at the fast server); ``factors`` are what the router is
    told of how many times longer each server takes.
    """
    queues = [EndpointQueue(policy("sjf"), slots=1) for _ in servers]
    begin = time.perf_counter()
    latencies: list[float] = []

    async def one(index: int) -> None:
        at, text, expected_s = asked[index]
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - begin)))
        arrived_s = time.perf_counter()
        options = [
            Option(
                name,
                0.01,
                Cost(server_seconds=expected_s * factor),
                load=float(queue.running + queue.waiting),
                facts={"pending": queue.pending(), "slots": 1},
            )
            for name, queue, factor in zip(NAMES, queues, factors, strict=True)
        ]
        state = State(arrived_s, options, str(index))
        choice = choose.decide(state).choice
        assert choice is not None
        corrected = getattr(choose, "seconds", lambda option: expected_s)(options[choice])
        job = ticket(str(index), arrived_s=arrived_s, expected_s=corrected)
        with await queues[choice].enter(job) as place:
            await servers[choice].ask(text)
            ended = time.perf_counter()
            spent = Cost(server_seconds=ended - place.started_s)
        choose.learn(Outcome(str(index), "ok", NAMES[choice], spent, state=state))
        latencies.append(ended - arrived_s)

    await asyncio.gather(*(one(index) for index in range(len(asked))))
    return latencies


async def measure(lesson: Sequence[dict[str, Any]], n: int) -> dict[str, Any]:
    """Mean and median latency of ``n`` requests, the same for every router."""
    texts, tokens = [row["text"] for row in lesson], [row["tokens"] for row in lesson]
    lengths = Lengths(texts, tokens, LONG_TOKENS, CAP_TOKENS)
    async with Model() as fast, Model() as slow:
        began = time.perf_counter()
        probe = prompts("train", 6, 0.5, seed=3)
        made = [await fast.ask(prompt.text) for prompt in probe]
        token_s = (time.perf_counter() - began) / sum(made)
        service_s = token_s * mean(tokens)
        draw, at, asked = random.Random(0), 0.0, []
        for prompt in prompts("test", n, 0.6, seed=2):
            at += draw.expovariate(0.7 * (1.0 + SHARE) / service_s)
            asked.append((at, prompt.text, lengths.predict(prompt.text).tokens * token_s))
        told, equal = (1.0, 1.0 / SHARE), (1.0, 1.0)
        rules: dict[str, tuple[Callable[[], Policy], tuple[float, float]]] = {
            "least_load (speed-blind)": (lambda: router("least_load"), equal),
            "ordered": (lambda: router("speed_oblivious", rule="ordered", fastest_first=NAMES), equal),
            "greedy, told that both are equal": (lambda: router("speed_oblivious"), equal),
            "greedy, told the speeds": (lambda: router("speed_oblivious"), told),
        }
        assert slow.engine.pid is not None
        choosers = {name: make() for name, (make, _) in rules.items()}
        latencies: dict[str, list[float]] = {name: [] for name in rules}
        async with slowed(slow.engine.pid):
            for turn, first in enumerate(range(0, n, BLOCK)):
                block = asked[first : first + BLOCK]
                since_first = [(at - block[0][0], text, expected_s) for at, text, expected_s in block]
                names = list(rules)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    latencies[name] += await run((fast, slow), since_first, choosers[name], rules[name][1])
    found: dict[str, Any] = {"requests": n, "rules": {}}
    for name, measured in latencies.items():
        found["rules"][name] = {"mean_s": mean(measured), "median_s": median(measured)}
    return found
