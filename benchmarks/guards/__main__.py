"""Run everything: ``python -m benchmarks.guards [--quick] [--work DIRECTORY]``."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from pathlib import Path

from benchmarks.guards import lengths, live, requests, streams
from benchmarks.guards.page import page

HOUSE = Path(__file__).parents[2]
RESULTS = HOUSE / "benchmarks" / "results" / "guards.json"
PAGE = HOUSE / "docs" / "results" / "guards.md"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, no page")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "apportion-guards",
        help="directory of the proxy's state and of the model's answers, which are not made twice",
    )
    given = parser.parse_args()
    quick = given.quick
    results = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "streams": streams.run(200 if quick else 1000),
        "requests": [requests.run(seed, 2000 if quick else 12_000) for seed in range(1 if quick else 5)],
        "lengths": [lengths.run(seed, 2000 if quick else 4000) for seed in range(1 if quick else 2)],
        "live": live.run(given.work, quick),
    }
    if quick:
        print(json.dumps(results, indent=1))
        return
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))
    print(PAGE)


if __name__ == "__main__":
    main()
