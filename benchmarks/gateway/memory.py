"""Resident memory over many requests, start-up time and memory at rest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression

from benchmarks.gateway.gateways import Gateway
from benchmarks.gateway.processes import Bench, BenchError
from benchmarks.gateway.running import Running, awake, start_all
from benchmarks.gateway.throughput import wrk
from benchmarks.gateway.upstreams import start_fixed

_STEP_S = 2.0


def measure_memory(bench: Bench, gateways: Sequence[Gateway], *, requests: int) -> dict[str, object]:
    """Send so many requests through each gateway and note its memory every two seconds.

    Returns the curve as pairs (requests so far, resident bytes of the largest process: the worker), and the
    growth per million requests over the second half by least squares.
    """
    with bench.scope():
        upstream_port = start_fixed(bench)
        rows: dict[str, object] = {}
        for gateway in gateways:
            with bench.scope():
                for running in start_all(bench, [gateway], upstream_port):
                    rows[gateway.name] = _curve(bench, running, requests)
        return {"requests": requests, "rows": rows}


def _curve(bench: Bench, running: Running, requests: int) -> dict[str, object]:
    name = running.gateway.name
    curve = [(0, running.idle_bytes[0])]
    errors = 0.0
    with awake(running):
        while curve[-1][0] < requests:
            result = wrk(bench, running.port, seconds=_STEP_S)
            if not result["requests"]:
                raise BenchError(f"{name} answers no more")
            errors += result["errors"]
            done = curve[-1][0] + int(result["requests"])
            curve.append((done, running.child.resident_bytes()[0]))
            print(f"\r  {name:18} {done:9} requests, {curve[-1][1] / 2**20:6.1f} MiB", end="", flush=True)
    print(flush=True)
    return {
        "title": running.gateway.title,
        "version": running.gateway.version(),
        "start_s": running.start_s,
        "idle_bytes": running.idle_bytes[0],
        "peak_bytes": max(size for _, size in curve),
        "end_bytes": curve[-1][1],
        "growth_bytes_per_million": _growth(curve),
        "requests": curve[-1][0],
        "errors": errors,
        "curve": curve,
    }


def _growth(curve: Sequence[tuple[int, int]]) -> float | None:
    """Bytes per million requests over the second half of the curve; None below three points."""
    half = [(done, size) for done, size in curve if done >= curve[-1][0] / 2]
    if len(half) < 3:
        return None
    return 1e6 * linear_regression(*zip(*half, strict=True)).slope
