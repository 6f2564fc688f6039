"""`python -m benchmarks.phases`: measure, write the JSON, the page of the documentation and its figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.phases import distserve, semi_pd, splitwise
from benchmarks.phases.data import DataAbsent
from benchmarks.phases.report import write_page

SECTIONS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "splitwise": splitwise.measure,
    "splitwise_context": splitwise.context,
    "distserve": distserve.measure,
    "semi_pd": semi_pd.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phases", description="Phases apart against phases together."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minute; into results/quick-phases.json, no page"
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be repeated"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path: Path = RESULTS / ("quick-phases.json" if arguments.quick else "phases.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not arguments.report:
        for name in arguments.only or SECTIONS:
            try:
                section = SECTIONS[name](arguments.quick)
            except DataAbsent as absent:
                print(f"{name} is left out: {absent}", file=sys.stderr)
                continue
            results = json.loads(path.read_text()) if path.exists() else {}
            results[name] = {**section, **origin()}
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name}: {section['cpu_s']:.0f} s of processor time", flush=True)
    if not arguments.quick:
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
