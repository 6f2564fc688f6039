"""`python -m benchmarks.bandits`: play, write the JSON, the figures and the pages of results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bandits import aslib, budgets, carrot, censored, knapsack, pools, regret
from benchmarks.bandits.data import folder, scenarios
from benchmarks.bandits.report import write_pages

RESULTS = Path(__file__).parents[1] / "results"

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "linear": lambda quick: regret.measure(1000 if quick else 3000, 2 if quick else 5, 1.0),
    "repriced": lambda quick: regret.measure(1000 if quick else 3000, 2 if quick else 4, 3.0),
    "censored": lambda quick: censored.measure(2000 if quick else 10_000, 3 if quick else 20),
    "aslib": lambda quick: aslib.measure(1 if quick else 10),
    "carrot": lambda quick: carrot.measure(
        [250, 1000, 4000] if quick else [500, 1000, 2000, 4000, 8000], 2 if quick else 10
    ),
    "budgets": lambda quick: budgets.measure(
        [1000, 3000, 10_000] if quick else [1000, 3000, 10_000, 30_000, 100_000],
        2 if quick else 3,
        10 if quick else 100,
    ),
    "knapsack": lambda quick: knapsack.measure(100 if quick else 3500),
    "pools": lambda quick: pools.measure(1800.0 if quick else 3600.0, 1 if quick else 2),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bandits", description="Bandit routers and admission policies."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes; results/quick-bandits.json, no pages"
    )
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this; may be repeated")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="a site-packages with mabwiser and vowpalwabbit"
    )
    parser.add_argument("--report", action="store_true", help="play nothing: write the pages from the JSON")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    path = RESULTS / ("quick-bandits.json" if arguments.quick else "bandits.json")
    for name in [] if arguments.report else arguments.only or list(PARTS):
        if name == "aslib" and not scenarios():
            print(f"aslib: no scenarios under {folder() / 'aslib_scenarios'}: left out", file=sys.stderr)
            continue
        print(name, flush=True)
        found = PARTS[name](arguments.quick)
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {**found, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
        path.write_text(json.dumps(results, indent=1) + "\n")
    if not arguments.quick:
        write_pages(json.loads(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
