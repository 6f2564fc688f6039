"""`python -m benchmarks.queueing`: measure, write the JSON, the page of the documentation and its figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.queueing import burst, speeds, sweep, traces, unequal
from benchmarks.queueing.cost import decisions
from benchmarks.queueing.report import write_page

SECTIONS = ("burst", "sweep", "traces", "speeds", "unequal", "cost")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.queueing",
        description="Orders of a queue against FCFS and the best possible.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="minutes; into results/quick-queueing.json, no page"
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be repeated"
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        choices=burst.ORDERS,
        default=burst.ORDERS,
        help="bursts to run (all; minutes each)",
    )
    parser.add_argument("--fresh", action="store_true", help="run bursts again that the JSON has already")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    path: Path = RESULTS / ("quick-queueing.json" if arguments.quick else "queueing.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, section: dict[str, Any]) -> None:
        """Write one section, leaving the others as they are by now: two runs may share the file."""
        results.update(json.loads(path.read_text()) if path.exists() else {})
        results[name] = section
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")

    quick: bool = arguments.quick

    def live() -> dict[str, Any]:
        section: dict[str, Any] = {} if arguments.fresh else results.get("burst", {})
        kept = partial(keep, "burst", section)
        asyncio.run(burst.measure(section, quick=quick, keep=kept, only=arguments.orders))
        return section

    def swept() -> dict[str, Any]:
        rows = results.get("burst", {}).get("runs", {}).get("fcfs")
        if not rows:
            raise traces.DataAbsent("the sweep needs the service times of the burst: run that first")
        n, seeds = (400, 1) if quick else (3000, 5)
        return {
            "by_load": sweep.by_load(rows, n, seeds),
            "by_tenant": sweep.by_tenant(rows, n, seeds),
            "by_value": sweep.by_value(rows, n, seeds),
            "by_error": sweep.by_error(rows, n, seeds),
        }

    def live_speeds() -> dict[str, Any]:
        lesson = results.get("burst", {}).get("lesson")
        if not lesson:
            raise traces.DataAbsent("the predictor needs the lesson of the burst: run that first")
        return asyncio.run(unequal.measure(lesson, 8 if quick else 24))

    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "burst": live,
        "sweep": swept,
        "traces": lambda: {mix: traces.by_rate(mix, 600 if quick else 3000) for mix in ("all", "azure_conv")},
        "speeds": lambda: speeds.compare(30 if quick else 150, 1 if quick else 5),
        "unequal": live_speeds,
        "cost": lambda: decisions(200 if quick else 2000),
    }
    if not arguments.report:
        for name in arguments.only or SECTIONS:
            print(name, flush=True)
            try:
                keep(name, {**sections[name](), **origin()})
            except traces.DataAbsent as absent:
                print(f"left out: {name}: {absent}", flush=True)
    if not quick:
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
