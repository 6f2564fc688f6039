"""`python -m benchmarks.gateway`: measure, print the tables, write the JSON and the README."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gateway.gateways import ALL, Gateway, install_rivals
from benchmarks.gateway.latency import measure_latency
from benchmarks.gateway.memory import measure_memory
from benchmarks.gateway.processes import REPOSITORY, Bench, BenchError, Cpus
from benchmarks.gateway.report import Results, markdown, write_curve, write_readme
from benchmarks.gateway.streaming import measure_streams
from benchmarks.gateway.throughput import measure_throughput

SECTIONS = ("requests", "latency", "streams", "memory")
RESULTS = REPOSITORY / "benchmarks" / "results"
README = REPOSITORY / "benchmarks" / "README.md"


def parse() -> argparse.Namespace:
    names = [gateway.name for gateway in ALL]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway", description="The proxy against other gateways, one core each."
    )
    parser.add_argument(
        "--quick", action="store_true", help="about a minute; into results/quick.json, not the README"
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be repeated"
    )
    parser.add_argument("--gateways", nargs="+", choices=names, help="measure only these (and nginx)")
    parser.add_argument("--rounds", type=int, help="rounds of requests and latency (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="seconds of each round (5; quick: 1)")
    parser.add_argument(
        "--arrivals", choices=("even", "poisson"), default="even", help="of the latency client"
    )
    parser.add_argument(
        "--streams", type=int, nargs="+", metavar="COUNT", help="the steps of the stream ramp"
    )
    parser.add_argument("--memory-requests", type=int, help="requests of the memory curve (1,000,000)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there (results/gateway.json)"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write the README from the JSON"
    )
    parser.add_argument(
        "--install-rivals",
        action="store_true",
        help="install vllm-router and LiteLLM from PyPI, each into its own environment",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.install_rivals:
        install_rivals()
        return 0
    path: Path = arguments.json or RESULTS / ("quick.json" if arguments.quick else "gateway.json")
    official = path == RESULTS / "gateway.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    if arguments.report:
        write_readme(README, results)
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with closing(measured(arguments, results)) as sections:
            for name, section in sections:
                results[name] = section
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
                if name == "memory":
                    write_curve(path.parent, "memory" if official else f"{path.stem}-memory", section)
    except BenchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing is left running", file=sys.stderr)
        return 130
    print(f"\n{markdown(results)}")
    if official:
        write_readme(README, results)
    return report_errors(results)


def interrupt(*_: object) -> None:
    """Leave by way of every `finally`; a second signal does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def measured(arguments: argparse.Namespace, results: Results) -> Generator[tuple[str, Results], None, None]:
    """Measure one section after the other. The logs are removed at the end unless something went wrong."""
    cpus = Cpus.choose()
    print(f"the gateway on CPU {cpus.gateway}, load and upstream on CPU {sorted(cpus.load)}", flush=True)
    os.sched_setaffinity(0, cpus.load)
    directory = Path(tempfile.mkdtemp(prefix="apportion-bench-"))
    with Bench(cpus, directory) as bench:
        try:
            for name, measure in plan(arguments, bench, results).items():
                print(f"\n{name}", flush=True)
                yield name, {**measure(), **origin()}
        except BaseException:
            bench.keep_logs = True
            raise
    if not bench.keep_logs:
        shutil.rmtree(directory)


def plan(arguments: argparse.Namespace, bench: Bench, results: Results) -> dict[str, Callable[[], Results]]:
    """The measurements asked for, each ready to run."""
    quick: bool = arguments.quick
    gateways = available(arguments.gateways, quick)
    rounds: int = arguments.rounds or (1 if quick else 5)
    seconds: float = arguments.seconds or (1.0 if quick else 5.0)
    few = (
        [gateway for gateway in gateways if gateway.name in ("nginx", "apportion")]
        if quick and not arguments.gateways
        else gateways
    )
    ours = [gateway for gateway in gateways if gateway.name.startswith("apportion")]
    counts = arguments.streams or ([300, 700] if quick else [*range(100, 600, 100), *range(600, 1250, 50)])
    requests: int = arguments.memory_requests or (50_000 if quick else 1_000_000)

    def latency() -> Results:
        rows = results.get("requests", {}).get("rows", {})
        fresh = arguments.only is None or "requests" in arguments.only
        capacities = {name: row["rps"] for name, row in rows.items()} if fresh else {}
        return measure_latency(
            bench, few, capacities, rounds=rounds, seconds=seconds, arrivals=arguments.arrivals
        )

    measures: dict[str, Callable[[], Results]] = {
        "requests": lambda: measure_throughput(bench, gateways, rounds=rounds, seconds=seconds),
        "latency": latency,
        "streams": lambda: measure_streams(
            bench,
            [gateway for gateway in few if gateway.name != "apportion-minimal"],
            counts=counts,
            window_s=1.5 if quick else 4.0,
        ),
        "memory": lambda: measure_memory(bench, ours[:1] if quick else ours, requests=requests),
    }
    return {name: measures[name] for name in SECTIONS if not arguments.only or name in arguments.only}


def available(names: list[str] | None, quick: bool) -> list[Gateway]:
    """The gateways that are asked for (nginx always) and installed; says which are left out and why."""
    found = []
    for gateway in ALL:
        if names and gateway.name not in names and gateway.name != "nginx":
            continue
        reason = gateway.missing()
        if quick and gateway.name == "litellm" and not names:
            reason = "too slow to start for --quick (ask with --gateways litellm)"
        if reason:
            print(f"left out: {gateway.title}: {reason}", flush=True)
        else:
            found.append(gateway)
    return found


def origin() -> Results:
    """When, on what and of which commit a section was measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src"], check=False)
    return {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip() + (" with changes" if changed.returncode else ""),
        "machine": {
            "cpu": cpu,
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
    }


def report_errors(results: Results) -> int:
    """1 when an answer to any gateway's requests was not a 200, else 0."""
    status = 0
    for name in ("requests", "latency", "memory"):
        for row in results.get(name, {}).get("rows", {}).values():
            if row["errors"]:
                print(f"FAILED: {name}, {row['title']}: {row['errors']:.0f} errors", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
