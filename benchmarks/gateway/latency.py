"""Added latency: an open-loop client at half of what each gateway can do, against the upstream alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median

from benchmarks.gateway.gateways import Gateway
from benchmarks.gateway.processes import Bench, module
from benchmarks.gateway.running import Running, awake, start_all
from benchmarks.gateway.throughput import CONNECTIONS, warm_up, wrk
from benchmarks.gateway.upstreams import start_fixed

CLIENT_SHARE = 0.6
"""Of the most the client sustains against the upstream alone: above it, the client is measured."""


def measure_latency(
    bench: Bench,
    gateways: Sequence[Gateway],
    capacities_rps: dict[str, float],
    *,
    rounds: int,
    seconds: float,
    arrivals: str,
) -> dict[str, object]:
    """At half of each gateway's capacity, the upstream alone and through the gateway, in turn.

    A capacity that is not given is measured first. Returns the added p50 and p99 in milliseconds: differences
    of the percentiles within a round, median over the rounds. Rates beyond what the client sustains are cut
    to that, and the row says at which share of the capacity it was measured.
    """
    with bench.scope():
        upstream_port = start_fixed(bench)
        client_rps = CLIENT_SHARE * _client_limit(bench, upstream_port, arrivals)
        started = list(start_all(bench, gateways, upstream_port))
        rates: dict[str, float] = {}
        for running in started:
            name = running.gateway.name
            if name not in capacities_rps:
                with awake(running):
                    warm_up(bench, running.port)
                    result = wrk(bench, running.port, seconds=3)
                capacities_rps[name] = result["requests"] / (result["duration_us"] / 1e6)
            rates[name] = min(capacities_rps[name] / 2, client_rps)
        samples: dict[str, list[dict[str, dict[str, float]]]] = {}
        for number in range(rounds):
            for running in started if number % 2 == 0 else reversed(started):
                name = running.gateway.name
                # A slow gateway needs longer for a p99 that means something.
                lasting_s = max(seconds, min(10 * seconds, 1000 / rates[name]))
                pair = _pair(bench, running, upstream_port, rates[name], lasting_s, arrivals)
                samples.setdefault(name, []).append(pair)
                added = _added_ms(pair, "p50"), _added_ms(pair, "p99")
                print(
                    f"  round {number + 1}/{rounds} {name:18} {rates[name]:8.0f} /s "
                    f"added p50 {added[0]:8.3f} ms, p99 {added[1]:8.3f} ms",
                    flush=True,
                )
        rows = {running.gateway.name: _row(running, samples, rates, capacities_rps) for running in started}
        return {
            "rounds": rounds,
            "seconds": seconds,
            "arrivals": arrivals,
            "connections": CONNECTIONS,
            "client_limit_rps": client_rps / CLIENT_SHARE,
            "rows": rows,
        }


def open_loop(bench: Bench, port: int, rate_per_s: float, seconds: float, arrivals: str) -> dict[str, float]:
    """One run of the open-loop client; see `openloop.drive`."""
    text = bench.run_load(
        module(
            "openloop",
            *("--port", str(port), "--rate", str(rate_per_s), "--seconds", str(seconds)),
            *("--connections", str(CONNECTIONS), "--arrivals", arrivals),
        ),
        limit_s=seconds + 60,
    )
    result: dict[str, float] = json.loads(text)
    return result


def _client_limit(bench: Bench, upstream_port: int, arrivals: str) -> float:
    """Requests a second at which client and upstream together fill their core: asked for far too many."""
    return open_loop(bench, upstream_port, 100_000, 0.5, arrivals)["rate_per_s"]


def _pair(
    bench: Bench, running: Running, upstream_port: int, rate_per_s: float, seconds: float, arrivals: str
) -> dict[str, dict[str, float]]:
    direct = open_loop(bench, upstream_port, rate_per_s, seconds, arrivals)
    with awake(running):
        through = open_loop(bench, running.port, rate_per_s, seconds, arrivals)
    return {"direct": direct, "through": through}


def _added_ms(pair: dict[str, dict[str, float]], name: str) -> float:
    return (pair["through"][f"{name}_us"] - pair["direct"][f"{name}_us"]) / 1e3


def _row(
    running: Running,
    samples: dict[str, list[dict[str, dict[str, float]]]],
    rates: dict[str, float],
    capacities_rps: dict[str, float],
) -> dict[str, object]:
    name = running.gateway.name
    pairs = samples[name]
    row: dict[str, object] = {
        "title": running.gateway.title,
        "version": running.gateway.version(),
        "rate_rps": rates[name],
        "of_capacity": rates[name] / capacities_rps[name],
        "errors": sum(pair["through"]["errors"] for pair in pairs),
    }
    for percentile in ("p50", "p99", "p999"):
        row[f"added_{percentile}_ms"] = median(_added_ms(pair, percentile) for pair in pairs)
        row[f"direct_{percentile}_ms"] = median(pair["direct"][f"{percentile}_us"] / 1e3 for pair in pairs)
    row["rounds"] = pairs
    return row
