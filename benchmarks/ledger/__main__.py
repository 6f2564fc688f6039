"""`python -m benchmarks.ledger`: measure, print the tables, write the JSON and the README."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.gateway.__main__ import README, RESULTS, interrupt, origin
from benchmarks.gateway.processes import Bench, BenchError, Cpus
from benchmarks.ledger.durable import measure_durable
from benchmarks.ledger.hot import measure_hot
from benchmarks.ledger.proxy import measure_proxy
from benchmarks.ledger.report import Results, markdown, write_readme
from benchmarks.ledger.stores import STORES, Store

SECTIONS = ("hot", "durable", "proxy")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger", description="Exact books against bare updates of the same stores."
    )
    parser.add_argument(
        "--quick", action="store_true", help="half a minute; into results/quick-ledger.json, not the README"
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be repeated"
    )
    parser.add_argument("--stores", nargs="+", choices=[s.name for s in STORES], help="measure only these")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="seconds of each round (4; quick: 1)")
    parser.add_argument("--before", metavar="COMMIT", help="compare the proxy with that of this commit")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there (results/ledger.json)"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write the README from the JSON"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    path: Path = arguments.json or RESULTS / ("quick-ledger.json" if arguments.quick else "ledger.json")
    official = path == RESULTS / "ledger.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    if arguments.report:
        write_readme(README, results)
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    directory = Path(tempfile.mkdtemp(prefix="apportion-bench-"))
    try:
        with closing(measured(arguments, directory)) as sections:
            for name, section in sections:
                results[name] = section
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
    except BenchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing is left running", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"\n{markdown(results)}")
    if official:
        write_readme(README, results)
    return int(any(row["errors"] for row in results.get("proxy", {}).get("rows", {}).values()))


def measured(arguments: argparse.Namespace, directory: Path) -> Generator[tuple[str, Results], None, None]:
    """Measure one section after the other."""
    rounds: int = arguments.rounds or (1 if arguments.quick else 5)
    seconds: float = arguments.seconds or (1.0 if arguments.quick else 4.0)

    def proxy() -> Results:
        cpus = Cpus.choose()
        os.sched_setaffinity(0, cpus.load)
        with ExitStack() as stack:
            bench = stack.enter_context(Bench(cpus, directory))
            return measure_proxy(
                bench, available(arguments.stores), before=arguments.before, rounds=rounds, seconds=seconds
            )

    sections: dict[str, Callable[[], Results]] = {
        "hot": lambda: measure_hot(available(arguments.stores), directory, rounds=rounds, seconds=seconds),
        "durable": lambda: measure_durable(
            available(arguments.stores), directory, rounds=rounds, seconds=seconds
        ),
        "proxy": proxy,
    }
    for name in SECTIONS:
        if not arguments.only or name in arguments.only:
            print(f"\n{name}", flush=True)
            yield name, {**sections[name](), **origin()}


def available(names: Sequence[str] | None) -> list[Store]:
    """The stores asked for whose servers are installed; says which are left out and why."""
    found = []
    for kind in STORES:
        if names and kind.name not in names:
            continue
        store = kind()
        if reason := store.missing():
            print(f"left out: {kind.title}: {reason}", flush=True)
        else:
            found.append(store)
    return found


if __name__ == "__main__":
    sys.exit(main())
