"""`python -m benchmarks.evaluate`: measure, write the JSON and the page of the documentation."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.evaluate.data import DataAbsent, load
from benchmarks.evaluate.measure import ROWS, measured
from benchmarks.evaluate.peer import Peer, PeerAbsent
from benchmarks.evaluate.report import write_page
from benchmarks.gateway.__main__ import RESULTS, origin


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate", description="Off-policy estimates against the truth."
    )
    parser.add_argument(
        "--quick", action="store_true", help="few logs; into results/quick-evaluate.json, no page"
    )
    parser.add_argument("--logs", type=int, default=200, help="logs drawn of every world")
    parser.add_argument("--peers", metavar="DIR", help="where obp was installed aside")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path = RESULTS / ("quick-evaluate.json" if arguments.quick else "evaluate.json")
    if arguments.report:
        write_page(json.loads(path.read_text()))
        return 0
    try:
        data = load()
    except DataAbsent as absent:
        print(absent, file=sys.stderr)
        return 2
    peer, why = None, None
    try:
        peer = Peer(arguments.peers)
    except PeerAbsent as absent:
        why = str(absent)
        print(why, file=sys.stderr)
    logs = 10 if arguments.quick else arguments.logs
    results = {"rows": ROWS, "peer_absent": why, **origin(), "worlds": []}
    for each in data:
        results["worlds"] += measured(each, peer, logs=logs, peer_logs=min(logs, 100))
        print(f"{each.name}: {len(each.quality)} queries, {len(each.models)} models", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    if not arguments.quick:
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
