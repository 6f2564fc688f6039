"""Active checks of endpoints: is it there, and how loaded does it say it is.

The load is read from the Prometheus text that engines offer: vLLM (present and former metric names),
SGLang and llama.cpp.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Iterable
from typing import Final

from apportion.serve.http.client import Exchange, Timeouts, TransportFailure, Watch, stale
from apportion.serve.upstream import Endpoint

logger = logging.getLogger("apportion.probes")

_RUNNING: Final = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING: Final = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_CACHE: Final = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "llamacpp:kv_cache_usage_ratio",
    "sglang:token_usage",
)
_LINE: Final = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


def reported_load(text: str, slots: int | None) -> float | None:
    """Work in flight over capacity, from a Prometheus text; None if it says nothing of load.

    With known ``slots``: (running + waiting) / slots. Else the share of the key-value cache in use, plus one for
    every request that waits (waiting means that it is full).
    """
    found: dict[str, list[float]] = {}
    for name, text_value in _LINE.findall(text):
        try:
            value = float(text_value)
        except ValueError:
            continue
        if 0.0 <= value < math.inf:
            found.setdefault(name, []).append(value)
    running, waiting, cache = (_first(found, names) for names in (_RUNNING, _WAITING, _CACHE))
    if slots and (running or waiting):
        return (sum(running) + sum(waiting)) / slots
    if cache or waiting:
        # Several engines behind one address each report their own share.
        return (sum(cache) / len(cache) if cache else 0.0) + sum(waiting)
    return None


def _first(found: dict[str, list[float]], names: Iterable[str]) -> list[float]:
    return next((found[name] for name in names if name in found), [])


class Probes:
    """The checks of one worker: a task for each endpoint that wants one."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Check these endpoints from now on, and no others."""
        wanted = {e for e in endpoints if e.config.health.probe or e.config.health.load_metrics}
        for endpoint in set(self._tasks) - wanted:
            self._tasks.pop(endpoint).cancel()
        for endpoint in wanted - set(self._tasks):
            self._tasks[endpoint] = asyncio.get_running_loop().create_task(self._check(endpoint))

    def close(self) -> None:
        """Stop all checks."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _check(self, endpoint: Endpoint) -> None:
        health = endpoint.config.health
        while True:
            if health.probe:
                found = await self._get(endpoint, health.probe)
                healthy = found is not None
                if healthy != endpoint.healthy:
                    logger.warning(
                        "endpoint %s is %s", endpoint.name, "healthy" if healthy else "not healthy"
                    )
                endpoint.healthy = healthy
            if health.load_metrics:
                text = await self._get(endpoint, "/metrics")
                endpoint.reported_load = None if text is None else reported_load(text, endpoint.slots)
            await asyncio.sleep(health.interval_s)

    async def _get(self, endpoint: Endpoint, path: str) -> str | None:
        """The body of a 2xx answer, None for everything else."""
        timeout_s = min(endpoint.config.health.interval_s, 5.0)
        for fresh in (False, True):
            pool = endpoint.pool
            if pool is None:
                return None
            exchange = Exchange(
                asyncio.get_running_loop(),
                Timeouts(endpoint.timeouts.connect_s, timeout_s, timeout_s, timeout_s),
            )
            try:
                reused = await pool.send(exchange, endpoint.get(path), fresh=fresh)
                await exchange.answered()
            except TransportFailure:
                if not fresh and exchange.sent_s and stale(exchange, reused):
                    continue
                return None
            return exchange.body().decode("utf-8", "replace") if 200 <= exchange.status < 300 else None
        return None
