"""A plan carried out against an endpoint, within bounds of time, requests and money, until done or interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from apportion.simulate.calibrate.asks import Ask, CalibrationError, Client, Heard, Prompts, Round
from apportion.simulate.calibrate.plan import Clock, Plan

_FAILURES_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When to stop: whichever comes first. ``usd_of`` tells what an answer has cost; None: not known."""

    seconds: float = 120.0
    requests: int = 1000
    usd: float | None = None
    usd_of: Callable[[Heard], float] | None = None


@dataclass(slots=True)
class Log:
    """What was measured so far, and why it ended ("done", "seconds", "requests", "usd", "interrupted", "failures")."""

    rounds: list[tuple[Round, list[Heard]]] = field(default_factory=list)
    watts: list[float | None] = field(default_factory=list)
    """Mean power during each round, where there is a meter."""
    requests: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    ended: str = "done"


Progress = Callable[[float, str], None]
"""Told the share that is done (0 to 1) and what is measured now."""


async def drive(
    plan: Plan,
    clock: Clock,
    client: Client,
    bounds: Bounds,
    *,
    prompts: Prompts,
    progress: Progress | None = None,
    joules: Callable[[], float] | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Log:
    """Carry the plan out. Cancelling it ends the measuring, not the task: what was heard by then is returned."""
    log, start_s, failures = Log(), now(), 0
    clock.left_s = bounds.seconds
    try:
        each = next(plan)
        while True:
            left_s = bounds.seconds - (now() - start_s)
            clock.left_s = left_s
            if left_s <= 0:
                log.ended = "seconds"
                break
            if log.requests + len(each.asks) > bounds.requests:
                log.ended = "requests"
                break
            if bounds.usd is not None and log.usd >= bounds.usd:
                log.ended = "usd"
                break
            if progress is not None:
                progress(min(1.0, 1.0 - left_s / bounds.seconds), each.setting)
            begun_s, begun_j = now(), joules() if joules else 0.0
            heard = await _round(each, client, prompts, left_s)
            log.requests += len(heard)
            if bounds.usd_of is not None:
                log.usd += sum(bounds.usd_of(one) for one in heard if not one.failure)
            failed = [one.failure for one in heard if one.failure]
            failures = failures + 1 if failed else 0
            if failures >= _FAILURES_MAX:
                log.ended = "failures"
                if not any(r.kind != "warm" for r, _ in log.rounds):
                    raise CalibrationError(f"Nothing can be measured: {failed[0]}.", field="endpoint")
                break
            if not failed:
                log.rounds.append((each, heard))
                log.watts.append((joules() - begun_j) / max(now() - begun_s, 1e-9) if joules else None)
            each = plan.send(heard)
    except StopIteration:
        pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        log.ended = "interrupted"
    finally:
        plan.close()
    log.seconds = now() - start_s
    return log


async def _round(each: Round, client: Client, prompts: Prompts, left_s: float) -> list[Heard]:
    """All requests of a round, to their ends; those still under way when the time is up are given up as failed."""
    ready = [asyncio.Event() for _ in each.asks]
    made = [prompts.make(ask.prompt_tokens) for ask in each.asks]
    came = 0

    def counted() -> None:
        nonlocal came
        came += 1
        for event, ask in zip(ready, each.asks, strict=True):
            if came >= ask.after_tokens and not ask.again:
                event.set()

    async def one(i: int, ask: Ask) -> Heard:
        text, words = made[0 if ask.again else i]
        if ask.after_tokens or ask.again:
            await ready[i].wait()
        heard = await client.ask(text, ask.output_tokens, counted if i == 0 else _nothing)
        if i == 0:
            for event in ready:
                event.set()
        if not heard.failure:
            prompts.learn(words, heard.prompt_tokens)
            heard.prompt_tokens = heard.prompt_tokens or ask.prompt_tokens
            if not heard.token_s:
                heard.failure = "it sent no token"
        return heard

    tasks = [asyncio.create_task(one(i, ask)) for i, ask in enumerate(each.asks)]
    try:
        async with asyncio.timeout(left_s):
            return list(await asyncio.gather(*tasks))
    except TimeoutError:
        return [Heard(0.0, failure="the time was up") for _ in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _nothing() -> None:
    pass
