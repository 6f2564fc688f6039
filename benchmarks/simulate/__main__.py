"""`python -m benchmarks.simulate`: measure, write the JSON and the page of the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

from apportion.simulate.profiles import load
from apportion.simulate.trace import Trace
from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.simulate import speed, splitfuse
from benchmarks.simulate.data import DataAbsent, burst
from benchmarks.simulate.report import write_page

SECTIONS = ("speed", "limit", "engine", "whole", "many", "splitfuse", "splitfuse_kernels")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description="Speed of the simulator; SplitFuse against prompts first.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes; into results/quick-simulate.json, no page"
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be repeated"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path = RESULTS / ("quick-simulate.json" if arguments.quick else "simulate.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    quick: bool = arguments.quick

    def fused(profile: str) -> dict[str, Any]:
        pieces: Trace | None
        try:
            pieces = next(islice(burst(2_000, 1.0, 0), 1))
        except DataAbsent as absent:
            print(absent, file=sys.stderr)
            pieces = None
        return splitfuse.compare(load(profile), pieces, quick=quick)

    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed.rates(2 if quick else 20),
        "limit": lambda: speed.limit(2 if quick else 20),
        "engine": lambda: speed.one_engine(2_000 if quick else 14_000),
        "whole": lambda: speed.whole(0.1 if quick else 1.0),
        "many": lambda: speed.many(400_000 if quick else 10_000_000),
        "splitfuse": lambda: fused("a100-llama2-70b-tp4"),
        "splitfuse_kernels": lambda: fused("a100-llama2-70b-tp4-kernels"),
    }
    if not arguments.report:
        for name in arguments.only or SECTIONS:
            print(name, flush=True)
            try:
                results[name] = {**sections[name](), **origin()}
            except DataAbsent as absent:
                print(f"left out: {name}: {absent}", file=sys.stderr)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    if not quick:
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
