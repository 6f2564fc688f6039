"""Requests a second at saturation: wrk over 64 kept connections, the gateways in turn, several rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from statistics import median

from benchmarks.gateway.gateways import Gateway
from benchmarks.gateway.payload import API_KEY, request_body
from benchmarks.gateway.processes import Bench, BenchError
from benchmarks.gateway.running import Running, awake, start_all, watched
from benchmarks.gateway.upstreams import start_fixed

CONNECTIONS = 64
_DONE = """
done = function(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "errors": %d, "p50_us": %d, "p99_us": %d}\\n',
    summary.requests, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.status + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


def measure_throughput(
    bench: Bench, gateways: Sequence[Gateway], *, rounds: int, seconds: float
) -> dict[str, object]:
    """Run all gateways, and the upstream directly, `rounds` times in turn.

    Returns for each the requests per second of every round, the median, the share of nginx (median of the
    ratios within a round), CPU microseconds per request, memory and errors.
    """
    with bench.scope():
        upstream_port = start_fixed(bench)
        started = list(start_all(bench, gateways, upstream_port))
        subjects: list[Running | None] = [None, *started]
        samples: dict[str, list[dict[str, float]]] = {}
        for running in subjects:
            with awake(running):
                warm_up(bench, running.port if running else upstream_port)
        for number in range(rounds):
            # Every second round in the opposite order: a drift of the machine then favours nobody.
            for running in subjects if number % 2 == 0 else reversed(subjects):
                sample = _sample(bench, running, upstream_port, seconds)
                name = running.gateway.name if running else "direct"
                samples.setdefault(name, []).append(sample)
                print(f"  round {number + 1}/{rounds} {name:18} {sample['rps']:9.0f} /s", flush=True)
        rows = {running.gateway.name: _row(running, samples) for running in started}
        direct = [sample["rps"] for sample in samples["direct"]]
        return {
            "rounds": rounds,
            "seconds": seconds,
            "connections": CONNECTIONS,
            "direct": {"rps": median(direct), "rps_rounds": direct},
            "rows": rows,
        }


def warm_up(bench: Bench, port: int) -> None:
    """A second of load; for the slow, whose first requests are the slowest, three more."""
    if wrk(bench, port, seconds=1)["requests"] < 1000:
        wrk(bench, port, seconds=3)


def wrk(bench: Bench, port: int, *, seconds: float) -> dict[str, float]:
    """One run of wrk: requests, duration_us, errors, p50_us, p99_us."""
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is needed to make the load (Debian: apt install wrk)")
    script = bench.directory / "post.lua"
    body = request_body().decode()
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = [==[{body}]==]\n"
        f"wrk.headers['Authorization'] = 'Bearer {API_KEY}'\n"
        f"wrk.headers['Content-Type'] = 'application/json'\n{_DONE}"
    )
    text = bench.run_load(
        [
            program,
            *("-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"),
            *("-s", str(script), f"http://127.0.0.1:{port}/v1/chat/completions"),
        ],
        limit_s=seconds + 60,
    )
    for line in text.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return result
    raise BenchError(f"wrk printed no result:\n{text[-2000:]}")


def _sample(bench: Bench, running: Running | None, upstream_port: int, seconds: float) -> dict[str, float]:
    with awake(running), watched(bench, running) as usage:
        result = wrk(bench, running.port if running else upstream_port, seconds=seconds)
    requests = max(1.0, result["requests"])
    return {
        "rps": result["requests"] / (result["duration_us"] / 1e6),
        "errors": result["errors"],
        "cpu_us_per_request": usage.gateway_s * 1e6 / requests,
        "core_share": usage.gateway_s / usage.wall_s,
        "others_share": usage.others_s / usage.wall_s,
        "load_busy_share": usage.load_busy_share,
        "resident_bytes": running.child.resident_bytes()[1] if running else 0,
    }


def _row(running: Running, samples: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    own = samples[running.gateway.name]
    nginx = samples.get("nginx")
    cpu_us = median(sample["cpu_us_per_request"] for sample in own)
    nginx_us = median(sample["cpu_us_per_request"] for sample in nginx) if nginx else None
    ratios = [mine["rps"] / its["rps"] for mine, its in zip(own, nginx, strict=True)] if nginx else []
    return {
        "title": running.gateway.title,
        "version": running.gateway.version(),
        "rps": median(sample["rps"] for sample in own),
        "rps_rounds": [sample["rps"] for sample in own],
        "of_nginx": median(ratios) if ratios else None,
        "of_nginx_rounds": ratios,
        "errors": sum(sample["errors"] for sample in own),
        "cpu_us_per_request": cpu_us,
        "of_nginx_by_cpu": nginx_us / cpu_us if nginx_us and cpu_us else None,
        "core_share": median(sample["core_share"] for sample in own),
        "others_share": median(sample["others_share"] for sample in own),
        "load_busy_share": median(sample["load_busy_share"] for sample in own),
        "start_s": running.start_s,
        "idle_bytes": running.idle_bytes[1],
        "resident_bytes": max(sample["resident_bytes"] for sample in own),
    }
