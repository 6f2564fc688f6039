"""``python -m benchmarks.best_of_k``: all parts, into results/best_of_k.json and docs/results/best_of_k.md."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.best_of_k import allocation, cascading, data, report, routing, voting

RESULTS = Path(__file__).parents[1] / "results"


def run_allocation(seeds: list[int]) -> dict[str, object]:
    return {c.name: allocation.summary(allocation.evaluate(c, seeds)) for c in data.pass_counts()}


def run_voting(seeds: list[int]) -> dict[str, object]:
    return {
        "last letters, GPT-3.5": voting.evaluate(data.last_letters(), seeds),
        "MATH, Qwen2.5-Math": voting.evaluate(data.qwen_math(), seeds),
    }


def run_cascade(seeds: list[int]) -> dict[str, object]:
    return {name: cascading.evaluate(name, seeds, quick=len(seeds) == 1) for name in cascading.SETS}


def run_routing(seeds: list[int]) -> dict[str, object]:
    from benchmarks.routing.encode import embed

    return {
        table.name: routing.evaluate(table, embed(list(table.texts), table.name), seeds)
        for table in (data.gsm8k(), data.llmrouter())
    }


def run_decision(seeds: list[int]) -> dict[str, object]:
    from benchmarks.routing.encode import embed

    return {
        table.name: routing.decision_ms(table, embed(list(table.texts), table.name))
        for table in (data.gsm8k(), data.llmrouter())
    }


def run_search(seeds: list[int]) -> dict[str, object]:
    from benchmarks.routing.encode import embed

    table = data.gsm8k()
    return {table.name: routing.search(table, embed(list(table.texts), table.name), seeds)}


PARTS: dict[str, Callable[[list[int]], dict[str, object]]] = {
    "allocation": run_allocation,
    "voting": run_voting,
    "cascade": run_cascade,
    "routing": run_routing,
    "decision": run_decision,
    "search": run_search,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_of_k", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, less data, into quick-best_of_k.json, no page"
    )
    parser.add_argument(
        "--only", choices=[*PARTS, "page"], help="one part; the others stay as they are in the results"
    )
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    if not data.folder().is_dir():
        raise SystemExit(f"The shared data is not at {data.folder()}; set APPORTION_DATA to where it lies.")
    path = RESULTS / ("quick-best_of_k.json" if chosen.quick else "best_of_k.json")
    seeds = [0] if chosen.quick else list(range(chosen.seeds))
    for name in [chosen.only] if chosen.only else list(PARTS):
        if name == "page":
            continue
        print(f"{name} ...", flush=True)
        part = {"seeds": len(seeds), **_stamp(), "results": PARTS[name](seeds)}
        results = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**results, name: part}, indent=1) + "\n")
    if not chosen.quick:
        report.write(json.loads(path.read_text()))


def _stamp() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "commit": commit.stdout.strip()}


if __name__ == "__main__":
    main()
