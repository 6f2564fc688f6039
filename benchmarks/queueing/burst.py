"""A burst of a hundred requests at a real model with one slot: llama.cpp behind the proxy's queue, order by order."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from apportion.core import Policy, catalogue
from apportion.serve.local import LocalEngine
from apportion.serve.queue import EndpointQueue, ticket
from benchmarks.queueing.events import Served, Work, concordance, figures, serve, shortest_remaining
from benchmarks.queueing.prediction import METHOD, Lengths, Prediction
from benchmarks.queueing.prompts import Prompt, prompts

MODEL = "smollm2-135m-instruct"
CAP_TOKENS = 96
"""The most that one answer may have, the same for all, so that nothing but the text tells short from long."""
LONG_TOKENS = 48

ORDERS = ("fcfs", "predictive_sjf", "litellm", "alise", "priced")
Rows = list[dict[str, Any]]
Turn = Callable[[int, Prediction, float], Awaitable[Callable[[], None]]]
"""Waits for the turn of a request; what it returns gives the turn back."""


class Model:
    """The engine with one slot, and a client."""

    async def __aenter__(self) -> Model:
        import httpx

        self.engine = LocalEngine(MODEL, alias="model", slots=1, context_tokens=512, threads=1)
        await self.engine.start()
        self.client = httpx.AsyncClient(
            base_url=str(self.engine.address),
            headers={"Authorization": f"Bearer {self.engine.api_key}"},
            timeout=3600.0,
            limits=httpx.Limits(max_connections=200),
        )
        await self.ask("Hello")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.engine.stop()

    async def ask(self, text: str) -> int:
        """Output tokens of the answer to ``text``, greedy."""
        body = {"model": "model", "messages": [{"role": "user", "content": text}]}
        body |= {"max_tokens": CAP_TOKENS, "temperature": 0}
        response = await self.client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        return int(response.json()["usage"]["completion_tokens"])


async def lesson(model: Model, n: int) -> Rows:
    """Answers to training prompts, one after the other."""
    rows: Rows = []
    for prompt in prompts("train", n, 0.5, seed=0):
        began = time.perf_counter()
        tokens = await model.ask(prompt.text)
        rows.append({**prompt._asdict(), "tokens": tokens, "service_s": time.perf_counter() - began})
    return rows


async def burst(
    model: Model, asked: Sequence[Prompt], predicted: Sequence[Prediction], turn: Turn, token_s: float
) -> Rows:
    """All of ``asked`` at once; for each when it started, when it ended, how many tokens it got."""
    begin = time.perf_counter()
    rows: Rows = [{} for _ in asked]

    async def one(index: int) -> None:
        prompt = asked[index]
        leave = await turn(index, predicted[index], time.perf_counter())
        started = time.perf_counter()
        try:
            tokens = await model.ask(prompt.text)
        finally:
            leave()
        ended = time.perf_counter()
        rows[index] = {
            **prompt._asdict(),
            "tokens": tokens,
            "wait_s": started - begin,
            "latency_s": ended - begin,
            "service_s": ended - started,
            "expected_s": predicted[index].tokens * token_s,
            "p_long": predicted[index].p_long,
        }

    await asyncio.gather(*(one(index) for index in range(len(asked))))
    return rows


def ours(policy: Policy, token_s: float) -> Turn:
    """The proxy's queue with ``policy``."""
    queue = EndpointQueue(policy, slots=1)

    async def turn(index: int, predicted: Prediction, now_s: float) -> Callable[[], None]:
        job = ticket(
            str(index),
            arrived_s=now_s,
            value=0.01,
            p_long=predicted.p_long,
            expected_s=predicted.tokens * token_s,
        )
        return (await queue.enter(job)).leave

    return turn


def litellm_scheduler() -> Turn | None:
    """LiteLLM's priority scheduler, told our predictions as priorities and that its deployment is busy."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    try:
        from litellm.scheduler import FlowItem, Scheduler
    except ImportError:
        return None
    scheduler = Scheduler()
    running: set[int] = set()

    async def healthy() -> list[str]:
        return [] if running else ["model"]

    async def turn(index: int, predicted: Prediction, now_s: float) -> Callable[[], None]:
        item = FlowItem(priority=round(255 * predicted.p_long), request_id=f"{index:03}", model_name="model")
        await scheduler.wait_for_turn(item, 3600.0, healthy)
        running.add(index)
        return lambda: running.discard(index)

    return turn


async def litellm_order(predicted: Sequence[Prediction]) -> list[int] | None:
    """The order in which LiteLLM's scheduler lets a burst through at its best: told from beginning to end that its
    deployment is busy, so that it passes one request at a time, by priority.
    """
    try:
        from litellm.scheduler import FlowItem, Scheduler
    except ImportError:
        return None
    scheduler = Scheduler()
    order: list[int] = []

    async def healthy() -> list[str]:
        return []

    async def one(index: int) -> None:
        priority = round(255 * predicted[index].p_long)
        item = FlowItem(priority=priority, request_id=f"{index:03}", model_name="model")
        await scheduler.wait_for_turn(item, 3600.0, healthy)
        order.append(index)

    await asyncio.gather(*(one(index) for index in range(len(predicted))))
    return order


async def measure(
    results: dict[str, Any], *, quick: bool, keep: Callable[[], None], only: Sequence[str] = ORDERS
) -> None:
    """Fill ``results`` with the lesson and one burst for each order of ``only``; ``keep`` saves after each."""
    n, taught = (16, 24) if quick else (100, 160)
    async with Model() as model:
        if len(results.get("lesson", ())) < taught:
            results["lesson"] = await lesson(model, taught)
            keep()
        taught_rows = results["lesson"]
        lengths = Lengths(
            [row["text"] for row in taught_rows],
            [row["tokens"] for row in taught_rows],
            LONG_TOKENS,
            CAP_TOKENS,
        )
        token_s = sum(row["service_s"] for row in taught_rows) / sum(row["tokens"] for row in taught_rows)
        # Patience is set in services, as an operator who knows the model would: a burst of n takes n of them.
        patience_s = n * sum(row["service_s"] for row in taught_rows) / len(taught_rows)
        asked = prompts("test", n, 0.5, seed=1)
        predicted = [lengths.predict(prompt.text) for prompt in asked]
        results["predictor"] = METHOD
        results["predict_ms"] = 1000.0 * lengths.seconds_each([prompt.text for prompt in asked])
        results["token_s"], results["patience_s"] = token_s, patience_s
        orders: dict[str, Turn | None] = {
            "fcfs": ours(_policy("fcfs"), token_s),
            "predictive_sjf": ours(_policy("predictive_sjf", starvation_s=patience_s), token_s),
            "litellm": litellm_scheduler(),
            "alise": ours(_policy("alise", ageing_s=patience_s / 5.0), token_s),
            "priced": ours(_policy("priced"), token_s),
        }
        results["litellm_order"] = await litellm_order(predicted)
        runs = results.setdefault("runs", {})
        for row, guess in zip(runs.get("fcfs", ()), predicted, strict=False):
            row["expected_s"] = guess.tokens * token_s  # FCFS did not use it; what is replayed may
        for name, turn in orders.items():
            if name not in only:
                continue
            if turn is None:
                print(f"left out: {name} is not installed", flush=True)
            elif name not in runs:
                runs[name] = await burst(model, asked, predicted, turn, token_s)
                print(f"burst {name}: {summary(runs[name])}", flush=True)
                keep()


def summary(rows: Rows) -> dict[str, float]:
    """The numbers of one burst."""
    return figures(
        [Served(_work(row, index), row["wait_s"], row["latency_s"]) for index, row in enumerate(rows)]
    )


def bounds(rows: Rows, patience_s: float) -> dict[str, dict[str, float]]:
    """What the same requests, with the service times that were measured under FCFS, take in other orders: FCFS itself
    (the harness's own check), the predicted orders, the best order (true lengths) and the best possible.
    """
    works = [_work(row, index) for index, row in enumerate(rows)]
    true = [work._replace(expected_s=work.service_s) for work in works]
    return {
        "fcfs": figures(serve(works, _policy("fcfs"))),
        "predictive_sjf": figures(serve(works, _policy("predictive_sjf", starvation_s=patience_s))),
        "alise": figures(serve(works, _policy("alise", ageing_s=patience_s / 5.0))),
        "priced": figures(serve(works, _policy("priced"))),
        "spt": figures(serve(true, _policy("sjf"))),
        "srpt": figures(shortest_remaining(works)),
    }


def in_order(rows: Rows, order: Sequence[int]) -> dict[str, float]:
    """The same requests in a given order."""
    works = [_work(rows[index], place)._replace(arrived_s=1e-9 * place) for place, index in enumerate(order)]
    return figures(serve(works, _policy("fcfs")))


def ranking(rows: Rows) -> float:
    """The share of pairs of requests that the predictions order as their true lengths do."""
    return concordance([row["tokens"] for row in rows], [row["p_long"] for row in rows])


def _work(row: dict[str, Any], index: int) -> Work:
    return Work(
        f"{index:04}",
        0.0,
        row["service_s"],
        expected_s=row.get("expected_s"),
        p_long=row["p_long"],
        kind=row["kind"],
        tokens=row["tokens"],
    )


def _policy(name: str, **parameters: Any) -> Policy:
    found = catalogue.build(f"schedule/{name}", **parameters)
    assert isinstance(found, Policy)
    return found
