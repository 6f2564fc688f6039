"""`python -m benchmarks.cluster`: measure, write the JSON and the page of the documentation."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cluster import llumnix, power
from benchmarks.cluster.report import write_page
from benchmarks.gateway.__main__ import RESULTS, origin


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description="Requests that move, and power that is oversubscribed.",
    )
    parser.add_argument("--quick", action="store_true", help="into results/quick-cluster.json, no page")
    parser.add_argument("--only", choices=("llumnix", "power"), help="measure only this")
    parser.add_argument("--days", type=float, default=7.0, help="days of the row's traffic (default: 7)")
    parser.add_argument("--requests", type=int, default=2500, help="requests of each run of instances")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path: Path = RESULTS / ("quick-cluster.json" if arguments.quick else "cluster.json")

    def keep(name: str, section: dict[str, Any]) -> None:
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {**section, **origin()}
        path.write_text(json.dumps(results, indent=1) + "\n")

    if not arguments.report:
        if arguments.only in (None, "llumnix"):
            for found in llumnix.measure(600 if arguments.quick else arguments.requests):
                keep("llumnix", found)
        if arguments.only in (None, "power"):
            data = Path(
                os.environ.get("APPORTION_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data"
            )
            if (data / "azure_llm_2023").is_dir():
                started_s = time.process_time()
                for found in power.measure(data, 1 / 24 if arguments.quick else arguments.days):
                    keep("power", {**found, "cpu_s": time.process_time() - started_s})
            else:
                print(f"power is left out: {data} is absent (set APPORTION_DATA)", file=sys.stderr)
    if not arguments.quick:
        write_page(json.loads(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
