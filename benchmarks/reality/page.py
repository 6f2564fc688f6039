"""The page of the comparison with the real engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "results" / "reality.md"
QUANTITIES = ("ttft_mean", "ttft_p90", "tpot_mean", "tpot_p90", "e2e_mean", "e2e_p90")
BAR = 0.10

HEAD = """# The simulator and the real thing

The embedded llama.cpp ([calibrated](../guides/calibrate.md) as a user would) with one and with four slots behind the
proxy, under the beginnings of three recorded traces (tokens scaled down for a small model on one core, every prompt
its own), faster or slower so that they are 30%, 60% and 90% of what the engine can do. The simulator gets the profile
and the same traffic, and says how long everything takes. Nothing is fitted to the replayed traffic. Made by
`python -m benchmarks.reality`.

"""

MISSED = """What is above 10%: a mean or a p90 of 20 to 70 requests stands on a few of them, and the order in which two
requests start that come within milliseconds decides them. "Load" is of what the engine can do when all requests are
there at once; the recorded arrivals come in bursts, so that there are lines at 30% already. With four slots a prompt
that comes in makes the others wait; the profile has measured that (*prompt into an answer*), and llama.cpp's way of
filling a batch by slots is in the engine ([what is modelled](../guides/engine.md)).
"""


def error(run: Mapping[str, Any], quantity: str) -> float:
    """Simulated over real, minus one."""
    return float(run["simulated"][quantity] / run["real"][quantity] - 1.0)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"


def write_page(results: Mapping[str, Any]) -> None:
    """The page, from the results alone."""
    runs = results["runs"]
    text = HEAD
    within = [abs(error(run, q)) <= BAR for run in runs for q in QUANTITIES]
    errors = sorted(abs(error(run, q)) for run in runs for q in QUANTITIES)
    text += (
        f"**{sum(within)} of {len(within)}** figures are within 10% of the real ones; the median error is "
        f"{errors[len(errors) // 2]:.1%}, the largest {errors[-1]:.1%}.\n\n"
        "Each cell: real, simulated (error); bold where the error is above 10%.\n\n"
        "| slots | trace | load | requests | TTFT mean | TTFT p90 | TPOT mean | TPOT p90 | end to end mean | p90 |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for run in runs:
        cells = []
        for quantity in QUANTITIES:
            off = error(run, quantity)
            shown = f"{off:+.0%}" if abs(off) <= BAR else f"**{off:+.0%}**"
            cells.append(
                f"{_seconds(run['real'][quantity])}, {_seconds(run['simulated'][quantity])} ({shown})"
            )
        text += (
            f"| {run['slots']} | {run['trace']} | {run['load']:.0%} | {run['requests']} | "
            + " | ".join(cells)
            + " |\n"
        )
    text += f"\n{MISSED}\n" + notes(results)
    PAGE.write_text(text)


def notes(results: Mapping[str, Any]) -> str:
    """Where and how it was measured."""
    origin = results["origin"]
    machine = origin["machine"]
    said = f"{origin['measured_at']}, {machine['cpus']} cores of {machine['cpu']}, Python {machine['python']}"
    shared = ""
    if results.get("realtime"):
        shared = " Other programs of the machine had to wait for engine, client and proxy (`--realtime`)."
    return f"Measured {said}.{shared}\n"
