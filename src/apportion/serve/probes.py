"""Active checks of endpoints: is it there, and how loaded does it say it is.

The load is read from the Prometheus text that engines offer: vLLM (present and former metric names),
SGLang and llama.cpp.
"""

from __future__ import annotations

import asyncio
import logging
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
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
    running, waiting, cache = (_first(sums, names) for names in (_RUNNING, _WAITING, _CACHE))
    if slots and (running is not None or waiting is not None):
        return ((running or 0.0) + (waiting or 0.0)) / slots
    if cache is not None or waiting is not None:
        return (cache or 0.0) + (waiting or 0.0)
    return None


def _first(sums: dict[str, float], names: Iterable[str]) -> float | None:
    return next((sums[name] for name in names if name in sums), None)


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
