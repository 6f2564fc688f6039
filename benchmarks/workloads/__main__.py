"""`python -m benchmarks.workloads`: measure, write the JSON and the page of the documentation."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.workloads import fitting, sending, speed
from benchmarks.workloads.report import write_page


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workloads", description="Fitted, generated and sent workloads."
    )
    parser.add_argument(
        "--quick", action="store_true", help="small; into results/quick-workloads.json, no page"
    )
    parser.add_argument(
        "--only", choices=("fit", "speed", "send"), help="measure this part again, keep the others"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path = RESULTS / ("quick-workloads.json" if arguments.quick else "workloads.json")
    if arguments.report:
        write_page(json.loads(path.read_text()))
        return 0
    try:
        folder = fitting.data()
    except fitting.DataAbsent as absent:
        print(absent, file=sys.stderr)
        return 2
    results = json.loads(path.read_text()) if arguments.only and path.is_file() else {}
    results |= origin()
    if arguments.only in (None, "fit"):
        results["fits"] = []
        for found in fitting.fits(folder):
            results["fits"].append(found)
            print(found["trace"], found["laws"]["ours"], file=sys.stderr)
        results["servegen"] = fitting.servegen(folder)
    if arguments.only in (None, "speed"):
        results["speed"] = speed.measured(quick=arguments.quick)
    if arguments.only in (None, "send"):
        results["send"] = sending.measured(folder, quick=arguments.quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    if not arguments.quick and {"fits", "speed", "send"} <= results.keys():
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
