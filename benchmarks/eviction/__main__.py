"""Run everything: ``python -m benchmarks.eviction [--quick]``; ``--page`` only writes the page anew."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

from benchmarks.eviction import report, running, traces
from benchmarks.eviction.traces import Trace

RESULTS = Path(__file__).parents[1] / "results" / "eviction.json"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eviction", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the first 20 000 requests of three traces, no page"
    )
    parser.add_argument("--requests", type=int, default=500_000, help="at most so many of each trace")
    parser.add_argument("--page", action="store_true", help="only the page, from the stored results")
    asked = parser.parse_args()
    if asked.page:
        print(report.write(json.loads(RESULTS.read_text())))
        return
    every = traces.load(asked.requests)
    if asked.quick:
        every = [Trace(trace.name, trace.keys[:20_000], trace.sizes[:20_000]) for trace in every[:3]]
    plain = [trace for trace in every if not trace.sized]
    compared = [row for trace in every for row in running.compare(trace)]
    results = {
        "command": f"python -m benchmarks.eviction --requests {asked.requests}",
        "requests": asked.requests,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"one core, Python {platform.python_version()}, {os.cpu_count()} CPUs shared with other work",
        "peers": sorted({name for row in compared for name in row["peers"]}),
        "compare": compared,
        "paging": [row for trace in plain if len(set(trace.keys)) <= 20_000 for row in running.paging(trace)],
        "cold_rl": running.cold_rl([trace for trace in every if trace.sized], asked.quick),
    }
    place = RESULTS.with_name("quick-eviction.json") if asked.quick else RESULTS
    place.write_text(json.dumps(results, indent=1) + "\n")
    print(place if asked.quick else report.write(results))


if __name__ == "__main__":
    main()
