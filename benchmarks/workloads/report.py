"""The results as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gateway.report import table

PAGE = Path(__file__).parents[2] / "docs" / "results" / "workloads.md"


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page from what was measured."""
    fits = results["fits"]
    parts = [
        _HEAD,
        "## Fitted laws beside the traces",
        _FITS,
        _laws(fits),
        "## Held out",
        _HELD_OUT,
        _held_out(fits),
        "## Arrivals of each window",
        "Shape of the single gamma law that fits best (1 is a Poisson process), and the law that was chosen.",
        *(_windows(found) for found in fits),
        "## ServeGen's clients",
        _servegen(results["servegen"]),
        "## Speed",
        _SPEED,
        _speed(results["speed"]),
        "## Punctuality of live replay",
        _SENT,
        _sent(results["send"]),
        "## BurstGPT",
        _paper(results),
        _MISSED,
        _origin(results),
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _laws(fits: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in fits:
        for name, law in found["laws"].items():
            role = {"one Poisson process": "baseline", "ours": ""}.get(name, "the paper's")
            off = law["dispersion"]
            rows.append(
                [
                    found["trace"],
                    f"**{name}**" if name == "ours" else name,
                    role,
                    *(f"{law[key]:.3f}" for key in ("ks", "ks_prompt", "ks_output")),
                    *(f"{off[width]['off']:+.1%}" if width in off else "" for width in ("1", "10")),
                ]
            )
    head = ("trace", "law", "", "gaps", "prompts", "answers", "dispersion in 1 s", "in 10 s")
    return table(head, rows)


def _held_out(fits: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in fits:
        worst, out = found["laws"]["ours"], found["left_out"]
        least = min(row["requests"] for row in found["fitness"]["arrivals"])
        rows.append(
            [
                found["trace"],
                *(f"{worst[key]:.3f}" for key in ("held_out", "held_out_prompt", "held_out_output")),
                f"{1.36 * (2 / (least / 2)) ** 0.5:.3f}",
                *(
                    f"{out[key]['median']:.3f} ({out[key]['worst']:.3f})" if key in out else ""
                    for key in ("gaps", "prompt", "output")
                ),
            ]
        )
    head = (
        "trace",
        "halves: gaps",
        "prompts",
        "answers",
        "chance, 1 in 20",
        "left-out windows: gaps",
        "prompts",
        "answers",
    )
    return table(head, rows)


def _windows(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['start_s']:.0f} s",
            f"{row['requests']:,}",
            f"{row['shape']:.2f}",
            row["law"],
            f"{row['ks']:.3f}",
            f"{row['exponential']:.3f}" + (", fits" if row["exponential_fits"] else ""),
        ]
        for row in found["fitness"]["arrivals"]
    ]
    head = ("from", "requests", "gamma shape", "law", "distance", "exponential: distance")
    return f"### {found['trace']}\n\n{table(head, rows)}" + "".join(
        f"\n\nNote: {note}." for note in found["notes"]
    )


def _servegen(found: Mapping[str, Any]) -> str:
    return (
        f"{found['requests']:,} requests drawn from the tables of `deepseek_r1`: in the {found['windows']:,} windows "
        f"of ten minutes with 200 requests or more, a client's rate is off by {found['rate_off_median']:.1%} "
        f"(median; {found['rate_off_total']:+.1%} on the average) and the coefficient of variation of its gaps by "
        f"{found['cv_off_median']:.1%}; the tables' own rates are counts of one such window, so that chance alone "
        "moves them by as much as a draw is."
    )


def _speed(speed: Mapping[str, Any]) -> str:
    names = {
        "plain": "one gamma law, log-normal lengths",
        "azure_conv": "fitted to azure_conv",
        "mooncake_conversation": "fitted to mooncake_conversation, with conversations and prompt blocks",
        "burstgpt": "BurstGPT's size: all 213 days",
        "parquet": "reading Parquet",
    }
    rows = [
        [
            names[name],
            f"{one['rows']:,}",
            f"{one['cpu_s']:.1f}",
            f"{one['rows_per_cpu_s'] / 1e6:.2f}",
            f"{one['peak_mib']:.0f}",
        ]
        for name, one in speed.items()
    ]
    made = table(("what", "requests", "CPU s", "million a CPU second", "peak MiB"), rows)
    parquet = speed["parquet"]
    return (
        f"{made}\n\nParquet is written at {parquet['written_per_cpu_s'] / 1e6:.2f} million rows a CPU second, "
        f"{parquet['bytes_per_row']:.1f} bytes a row; the "
        "benchmark of it holds its rows in memory, reading and generating do not."
    )


def _sent(runs: Sequence[Mapping[str, Any]]) -> str:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["where"], round(run["rate_per_s"])), []).append(run)
    rows = []
    for (where, rate), found in groups.items():
        each = [run["late_ms"]["p95"] for run in found]
        rows.append(
            [
                where,
                f"{rate}",
                f"{sum(run['requests'] for run in found):,}",
                f"{sum(run['ok'] for run in found):,}",
                f"{median(run['late_ms']['p50'] for run in found):.2f}",
                f"{median(each):.2f}",
                f"{min(each):.2f} to {max(each):.2f}",
                f"{median(run['cpu_s'] for run in found):.1f}",
                f"{median(run['load'] for run in found):.1f}",
            ]
        )
    head = (
        "sent to",
        "a second",
        "requests",
        "answered",
        "p50 ms",
        "p95 ms",
        "p95, rounds",
        "sender's CPU s",
        "load",
    )
    kept = sum(run["late_ms"]["p95"] <= 5.0 for run in runs)
    return (
        f"{table(head, rows)}\n\nThe bar is kept in {kept} of {len(runs)} runs. The sender needs a tenth of a core at "
        "the highest rate: what makes it late is waiting for one, so that a run says as much of the machine as of the "
        "sender."
    )


def _paper(results: Mapping[str, Any]) -> str:
    by_name = {found["trace"]: found for found in results["fits"]}
    conv, code, kimi = (by_name[name] for name in ("azure_conv", "azure_code", "mooncake_conversation"))
    burst = results["speed"]["burstgpt"]

    def shapes(found: Mapping[str, Any]) -> str:
        values = [row["shape"] for row in found["fitness"]["arrivals"]]
        return f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"

    rows = [
        [
            "size",
            "10.31 million requests, 213 days",
            f"{burst['rows'] / 1e6:.2f} million, {burst['days']:.0f} days",
            "made from 45 days of daily counts, an hourly profile and a week of minutes; the other days are drawn "
            "from these",
        ],
        [
            "arrivals",
            "gamma gaps whose shape changes with time, service and model",
            f"shapes {shapes(conv)} (azure_conv), {shapes(code)} (azure_code), {shapes(kimi)} (Mooncake)",
            "chat is nearly Poisson in windows of minutes, at a rate that moves; code completion comes in volleys that "
            "no single gamma law describes (distance above); a mixture does",
        ],
        [
            "prompts",
            "Zipf",
            f"distance of Zipf: {conv['laws']['gamma by window, Zipf prompts']['ks_prompt']:.2f} (azure_conv), "
            f"{kimi['laws']['gamma by window, Zipf prompts']['ks_prompt']:.2f} (Mooncake)",
            "Azure's and Mooncake's prompts have templates and long contexts: few are short, which Zipf says most are",
        ],
        [
            "answers",
            "two kinds, short and long",
            f"distance of log-normal laws: {conv['laws']['gamma by window, Zipf prompts']['ks_output']:.2f} (conv), "
            f"{code['laws']['gamma by window, Zipf prompts']['ks_output']:.2f} (code)",
            "azure_conv has two kinds as well (about 90 and 400 tokens)",
        ],
        [
            "conversations",
            "turns and pauses are described for the conversation service",
            f"{kimi['talk']['mean_turns']:.2f} turns on the average, {kimi['talk']['one_turn']:.0%} have one "
            "(Mooncake, seen in shared prompt blocks of 45 minutes)"
            if kimi["talk"]
            else "",
            "the part of BurstGPT that numbers conversations is not here; 45 minutes cut conversations short",
        ],
        [
            "failures",
            "1.8% in the first two months; above 5% for some services",
            "1.8% in the generated workload; a reader and fit by model and service",
            "the aggregates do not say which requests failed",
        ],
    ]
    return table(("what", "BurstGPT (arXiv:2401.17644)", "ours", "why they differ"), rows)


def _origin(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"Measured {results['measured_at']} at commit {results['commit']} on {machine['cpus']} x {machine['cpu']}, "
        f"Python {machine['python']}, beside other work. Data: Azure LLM inference 2023 (CC BY 4.0), Mooncake and "
        "ServeGen (Apache-2.0), aggregates of BurstGPT (CC BY 4.0)."
    )


_HEAD = """
# Workloads: results

How near [fitted workloads](../guides/workloads.md) come to published traces, how fast they are generated, and how
punctually live replay sends. Everything on this page is written by `python -m benchmarks.workloads` (`--quick` for a
small run); the data sets are read from `$APPORTION_DATA`.
"""

_FITS = """
Kolmogorov-Smirnov distance of the worst window to its law (the bar is 0.1; gaps relative to the window's mean), and by
how much the index of dispersion of counts of generated workloads (mean of ten, with other seeds than the fit has seen)
differs from that of the trace (the bar is 15%). The widths of windows are chosen by five-fold cross-validation among 1
to 60 minutes and the whole trace, with 1,000 requests a window or more on the average. The paper's law has gamma gaps
by window, independent of each other, Zipf prompts and log-normal answers.
"""

_HELD_OUT = """
*Halves*: in each window a law is fitted to every other request and judged on the rest, and the reverse; the worst
window. *Chance* is the distance that two such samples of one law exceed once in twenty times, for the smallest window.
*Left-out windows*: each window is judged, whole, by the law of its neighbours; median and, in brackets, the worst.
That asks for more than a fit: that traffic goes on as it was.
"""

_SPEED = """
One process each, CPU time. Generating goes piece by piece; the peak includes the interpreter and its libraries.
"""

_SENT = """
The beginning of `azure_conv` at several speeds, 10 s each, to an endpoint that streams 20 pieces 20 ms apart, through
a live proxy and without one, three rounds; how much later than due a request was written to its socket (median of the
rounds). Sender, proxy and endpoint share the machine with each other and with whatever else runs on it: *load* is its
load average meanwhile. The sender's CPU time includes its start, about a second. The bar is 5 ms at p95.
"""

_MISSED = """
## What was missed, and why

- BurstGPT's requests are not here, only aggregates of them: its reader is tested on rows in its form, its laws on
  other traces.
- Left-out windows of `azure_conv` differ from their neighbours in lengths by more than 0.1: what is asked drifts
  within minutes, and a law of other minutes does not know it. Within a window the laws hold. Those of `azure_code`
  differ in their gaps: a few hundred seconds have few volleys.
- `azure_code` is fitted as one window: cross-validation prefers one law for 35 minutes, for silence and volleys
  recur. How often volleys follow one another is carried by the memory of the gaps, whose strength the fit sets so that
  counts vary as in the trace (in 1 s and 10 s; longer bins are too few to say).
- Mooncake's times are in steps of 3 s. What happens within a step cannot be known; arrivals are spread over it.
"""
