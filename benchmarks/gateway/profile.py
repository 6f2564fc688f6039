"""Where the time of one request goes: the worker under cProfile while wrk drives it.

Run as `python -m benchmarks.gateway.profile [apportion|apportion-minimal] [--sort cumulative]`. Profiling slows
every call down, small ones most: read the order, not the microseconds.
"""

from __future__ import annotations

import argparse
import os
import pstats
import sys
import tempfile
from pathlib import Path

from benchmarks.gateway.gateways import ApportionFull, ApportionMinimal
from benchmarks.gateway.processes import Bench, BenchError, Cpus, free_port
from benchmarks.gateway.throughput import wrk
from benchmarks.gateway.upstreams import start_fixed, wait_for_answer

_GATEWAYS = {gateway.name: gateway for gateway in (ApportionFull(), ApportionMinimal())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gateway", nargs="?", choices=sorted(_GATEWAYS), default=ApportionFull.name)
    parser.add_argument("--sort", choices=("tottime", "cumulative"), default="tottime")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--lines", type=int, default=45)
    arguments = parser.parse_args()
    cpus = Cpus.choose()
    os.sched_setaffinity(0, cpus.load)
    with tempfile.TemporaryDirectory(prefix="apportion-bench-") as name, Bench(cpus, Path(name)) as bench:
        upstream_port, port = start_fixed(bench), free_port()
        statistics = Path(name) / "profile"
        _, *serve = _GATEWAYS[arguments.gateway].command(bench.directory, port, upstream_port)
        child = bench.start(
            "profiled",
            [sys.executable, "-m", "cProfile", "-o", str(statistics), "-m", "apportion.cli", *serve],
            gateway=True,
        )
        wait_for_answer(child, port, limit_s=60)
        result = wrk(bench, port, seconds=arguments.seconds)
        child.stop()
        if not statistics.exists():
            raise BenchError(f"no profile was written: {child.log.read_text(errors='replace')[-500:]}")
        print(f"{result['requests']:.0f} requests, {result['errors']:.0f} errors")
        pstats.Stats(str(statistics)).sort_stats(arguments.sort).print_stats(arguments.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
