"""How many streams of 50 tokens a second fit one core before the p99 of the added lag passes 10 ms."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gateway.gateways import Gateway
from benchmarks.gateway.payload import CHUNK_BYTES, TOKENS_PER_S
from benchmarks.gateway.processes import Bench, module
from benchmarks.gateway.running import Running, awake, start_all, watched
from benchmarks.gateway.upstreams import open_streams, start_streams

LIMIT_MS = 10.0
DELIVERED = 0.98
BUSY = 0.95
_SMALLEST = 5

Step = dict[str, float]


def measure_streams(
    bench: Bench, gateways: Sequence[Gateway], *, counts: Sequence[int], window_s: float
) -> dict[str, object]:
    """Ramp the number of streams through each gateway, the upstream alone measured before each step.

    A step holds when the p99 of the lag through the gateway is at most 10 ms above the p99 of the upstream
    alone at the same count, 98% of the chunks arrive in the window and no stream fails; two of three tries
    decide where the first fails. Returns the largest count that held, by gateway, with every step. Where the
    upstream alone already passes 10 ms, the ramp ends: from there on client and upstream are the limit.
    """
    with bench.scope():
        upstream_port = start_streams(bench)
        rows: dict[str, object] = {}
        for gateway in gateways:
            with bench.scope():
                for running in start_all(bench, [gateway], upstream_port, streams=True):
                    with awake(running):
                        _client(bench, running.port, upstream_port, _SMALLEST, 1.0)
                        _wait_closed(upstream_port, limit_s=10)
                    rows[gateway.name] = _ramp(bench, running, upstream_port, counts, window_s)
        return {
            "window_s": window_s,
            "tokens_per_s": TOKENS_PER_S,
            "chunk_bytes": CHUNK_BYTES,
            "limit_ms": LIMIT_MS,
            "counts": list(counts),
            "rows": rows,
        }


def _ramp(
    bench: Bench, running: Running, upstream_port: int, counts: Sequence[int], window_s: float
) -> dict[str, object]:
    steps: list[Step] = []

    def verdict(streams: int) -> str:
        tries: list[bool] = []
        while not (tries[:1] == [True] or tries.count(True) == 2 or tries.count(False) == 2):
            step = _step(bench, running, upstream_port, streams, window_s)
            steps.append(step)
            if step["direct_p99_ms"] > LIMIT_MS:
                return "the load's core"
            tries.append(bool(step["holds"]))
        return "holds" if tries[-1] else _culprit(steps[-1])

    largest, ended_by = 0, "the last step"
    for streams in counts:
        found = verdict(streams)
        if found != "holds":
            ended_by = found
            break
        largest = streams
    streams = counts[0] // 2
    while largest == 0 and streams >= _SMALLEST:
        if verdict(streams) == "holds":
            largest = streams
        streams //= 2
    return {
        "title": running.gateway.title,
        "version": running.gateway.version(),
        "largest": largest,
        "ended_by": ended_by,
        "resident_bytes": max(int(step["resident_bytes"]) for step in steps),
        "steps": steps,
    }


def _culprit(step: Step) -> str:
    """What a step that does not hold is to be blamed on."""
    if step["load_busy_share"] > BUSY:
        return "the load's core"
    if step["others_share"] > 1 - BUSY and step["core_share"] < BUSY:
        return "other work on the core"
    return "the gateway"


def _step(bench: Bench, running: Running, upstream_port: int, streams: int, window_s: float) -> Step:
    direct = _client(bench, upstream_port, upstream_port, streams, window_s)
    with awake(running):
        with watched(bench, running) as usage:
            through = _client(bench, running.port, upstream_port, streams, window_s)
        resident_bytes = running.child.resident_bytes()[1]
        # Time to notice that its clients are gone; what it does not cancel ends by itself.
        cancelled = _wait_closed(upstream_port, limit_s=window_s + 10)
    added_ms = through["lag_p99_ms"] - direct["lag_p99_ms"]
    holds = added_ms <= LIMIT_MS and through["delivered_share"] >= DELIVERED and not through["failed"]
    if through["first_failure"]:
        print(f"  first failure: {through['first_failure']}", flush=True)
    print(
        f"  {running.gateway.name:18} {streams:5} streams: added p50 "
        f"{through['lag_p50_ms'] - direct['lag_p50_ms']:7.2f} ms, p99 {added_ms:7.2f} ms "
        f"(direct p99 {direct['lag_p99_ms']:6.2f}), core {usage.gateway_s / usage.wall_s:4.0%}, "
        f"delivered {through['delivered_share']:6.1%}, failed {through['failed']:.0f}",
        flush=True,
    )
    return {
        "streams": streams,
        "holds": float(holds),
        "added_p50_ms": through["lag_p50_ms"] - direct["lag_p50_ms"],
        "added_p99_ms": added_ms,
        "direct_p99_ms": direct["lag_p99_ms"],
        "through_p99_ms": through["lag_p99_ms"],
        "delivered_share": through["delivered_share"],
        "failed": through["failed"],
        "core_share": usage.gateway_s / usage.wall_s,
        "others_share": usage.others_s / usage.wall_s,
        "load_busy_share": usage.load_busy_share,
        "resident_bytes": float(resident_bytes),
        "cancelled_after_s": cancelled,
    }


def _client(bench: Bench, port: int, upstream_port: int, streams: int, window_s: float) -> dict[str, Any]:
    ramp_s = max(0.5, streams / 500)
    text = bench.run_load(
        module(
            "stream_client",
            *("--port", str(port), "--streams", str(streams)),
            *("--ramp", str(ramp_s), "--window", str(window_s)),
        ),
        limit_s=ramp_s + window_s + 60,
    )
    if port == upstream_port:
        _wait_closed(upstream_port, limit_s=10)
    result: dict[str, Any] = json.loads(text)
    return result


def _wait_closed(upstream_port: int, *, limit_s: float) -> float:
    """Wait until the upstream has no open stream; seconds that took (at most `limit_s`)."""
    begin_s = time.monotonic()
    while open_streams(upstream_port) and time.monotonic() - begin_s < limit_s:
        time.sleep(0.05)
    return time.monotonic() - begin_s
