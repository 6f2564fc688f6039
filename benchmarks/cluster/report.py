"""The results as a page of the documentation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.llumnix import GOAL_S
from benchmarks.gateway.report import table

DOCS = Path(__file__).parents[2] / "docs" / "results"
Results = Mapping[str, Any]

_HEAD = """
# Many machines: results

What is gained by [letting requests move and power be oversubscribed](../guides/cluster.md), in virtual time. Everything
on this page is written by `python -m benchmarks.cluster` (`--quick`, `--only llumnix`, `--only power`, `--days 0.5`).
The instances are a roofline of data sheets, the row's machines a shipped profile; its traffic is read from
`$APPORTION_DATA`.
"""


def write_page(results: Results) -> None:
    """Write the page from what was measured."""
    parts = [_HEAD]
    if "llumnix" in results:
        parts += [_llumnix(results["llumnix"]), _origin(results["llumnix"])]
    if "power" in results:
        parts += [_power(results["power"]), _origin(results["power"])]
    else:
        parts.append("## POLCA\n\nNot measured: the traces were absent (`$APPORTION_DATA`).")
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "cluster.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _origin(section: Results) -> str:
    machine = section["machine"]
    took = f"; {section['cpu_s']:.0f} s of processor time" if "cpu_s" in section else ""
    return (
        f"*{section['measured_at']}, commit {section['commit']}, {machine['cpu']}, {machine['cpus']} CPUs (shared with "
        f"other work), Python {machine['python']}{took}.*"
    )


def _met(value: bool) -> str:
    return "met" if value else "**missed**"


def _seconds(value: float | None) -> str:
    return (
        "-"
        if value is None
        else f"{value:.3f}"
        if value < 0.1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.0f}"
    )


# Llumnix


def _llumnix(section: Results) -> str:
    text = [
        f"""
## Llumnix: requests that move

Sixteen instances of LLaMA-7B on A10s ({"13,616"} tokens of memory each, prompts before answers), power-law lengths of
4 to 6,144 tokens with the means that are named, 64 Gbit/s and 5 ms between instances. {section["requests"]} requests
with each seed ({section["requests"] * 2} short ones), those of all seeds together, and in brackets the least and
the most of single seeds. {_seeds(section["seeds"])}
*INFaaS-like* dispatches to the least memory used and asked for. The rates are where
round robin runs out of memory; at *long* everybody does, at the others whoever looks at memory hardly waits. Prefill
latency is the time to the first token.
""".strip(),
        _headlines(section),
        "### Latency, seconds",
        _tails(section["tails"]),
    ]
    if "priorities" in section:
        text += ["### A tenth of the requests is of high priority", _priorities(section["priorities"])]
    if "fewer" in section:
        text += ["### As fast with fewer", _fewer(section["fewer"])]
    if "scaling" in section:
        text += ["### Instances that come and go", _scaling(section["scaling"])]
    if "recomputing" in section:
        text += ["### What a move costs", _recomputing(section["recomputing"])]
    return "\n\n".join([*text, _LLUMNIX_WHY.strip()])


def _seeds(seeds: Mapping[str, Sequence[int]]) -> str:
    names = {
        "tails": "latency",
        "fewer": "fewer",
        "priorities": "priority",
        "scaling": "instances that come and go",
    }
    count = [f"{len(seeds[name])} ({told})" for name, told in names.items() if name in seeds]
    return f"Seeds: {', '.join(count)}."


def _headlines(section: Results) -> str:
    def of(name: str, method: str, what: str = "prefill_p99_s") -> float:
        return float(section["tails"][name]["methods"][method][what])

    tails = section["tails"]
    robin = {name: of(name, "round robin") / of(name, "Llumnix") for name in tails}
    infaas = {name: of(name, "INFaaS-like") / of(name, "Llumnix") for name in tails}
    rows = [
        [
            "P99 prefill against round robin",
            "an order of magnitude",
            f"{min(robin.values()):.1f}x to {max(robin.values()):.0f}x less",
            "3x",
            _met(min(robin.values()) >= 3.0),
        ],
        [
            "P99 prefill against INFaaS",
            "less (by how much depends on the trace)",
            f"{min(infaas.values()):.1f}x to {max(infaas.values()):.1f}x less",
            "-",
            "",
        ],
    ]
    if "priorities" in section:
        for what, paper, bar in (
            ("e2e_mean_s", "up to 1.5x faster", 1.3),
            ("prefill_mean_s", "-", None),
            ("decode_mean_s", "-", None),
        ):
            found = [_gain(row, "high", what) for row in section["priorities"].values()]
            name = {"e2e": "request", "prefill": "prefill", "decode": "token"}[what.split("_")[0]]
            rows.append(
                [
                    f"high priority, mean {name}",
                    paper,
                    f"{min(found):.2f}x to {max(found):.2f}x",
                    f"{bar}x" if bar else "-",
                    _reached(found, bar) if bar else "",
                ]
            )
    if "priorities" in section:
        best = [
            row["without"]["high"]["e2e_mean_s"] / row["alone"]["high"]["e2e_mean_s"]
            for row in section["priorities"].values()
        ]
        shown = f"{min(best):.2f}x to {max(best):.2f}x"
        rows.append(["high priority alone on all instances (best possible)", "-", shown, "-", ""])
    if "fewer" in section:
        least = {name: 1 - row["instances"] / 16 for name, row in section["fewer"].items()}
        rows.append(
            [
                "instances at the P99 prefill of 16",
                "-",
                ", ".join(f"{share:.0%} ({name})" for name, share in least.items()) + " fewer",
                "20%",
                _met(max(least.values()) >= 0.2),
            ]
        )
    if "scaling" in section:
        savings = _savings(section["scaling"])
        at = {goal_s: 1.0 - ours / theirs for goal_s, theirs, ours in savings}
        shown = ", ".join(f"{share:.0%} at {goal_s:g} s" for goal_s, share in at.items())
        rows.append(
            [
                "instance hours at an equal P99 prefill, scaled",
                "36% less cost",
                f"less by {shown}",
                f"20% at {GOAL_S:g} s",
                _met(at.get(GOAL_S, 0.0) >= 0.2),
            ]
        )
    return table(["", "paper", "ours", "bar", ""], rows)


def _reached(found: list[float], bar: float) -> str:
    """In how many of the settings the bar is met."""
    count = sum(value >= bar for value in found)
    return _met(count == len(found)) if count in (0, len(found)) else f"met in {count} of {len(found)}"


def _savings(scaling: Results) -> list[tuple[float, float, float]]:
    """Mean instances of INFaaS-like and of Llumnix at the same P99 prefill, on the lines between their thresholds."""
    found = []
    for goal_s in (2.0, GOAL_S, 10.0, 20.0, 60.0):
        theirs, ours = (_instances_at(scaling[name], goal_s) for name in ("INFaaS-like", "Llumnix"))
        if theirs is not None and ours is not None:
            found.append((goal_s, theirs, ours))
    return found


def _instances_at(rows: Sequence[Results], goal_s: float) -> float | None:
    """The fewest mean instances with that P99: a threshold's own, or on the line to the next, by the log of P99."""
    best = [row["instances"] for row in rows if row["prefill_p99_s"] <= goal_s]
    for one, other in itertools.pairwise(rows):
        fast, slow = sorted((one, other), key=lambda row: float(row["prefill_p99_s"]))
        if slow["prefill_p99_s"] > goal_s >= fast["prefill_p99_s"]:
            share = math.log(slow["prefill_p99_s"] / goal_s) / math.log(
                slow["prefill_p99_s"] / fast["prefill_p99_s"]
            )
            best.append(slow["instances"] + share * (fast["instances"] - slow["instances"]))
    return min(best, default=None)


def _gain(row: Results, who: str, what: str) -> float:
    return float(row["without"][who][what] / row["with"][who][what])


def _tails(tails: Results) -> str:
    rows = []
    for name, found in tails.items():
        rows.append(
            [
                f"**{name}**, {found['rate_per_s']:g}/s; alone on an idle instance (best possible)",
                "",
                _seconds(found["alone_p99_s"]),
                *[""] * 5,
            ]
        )
        for method, row in found["methods"].items():
            rows.append(
                [
                    method,
                    _seconds(row["prefill_mean_s"]),
                    _spread(row["prefill_p99_s"], row["prefill_p99s_s"]),
                    _seconds(row["e2e_mean_s"]),
                    _seconds(row["e2e_p99_s"]),
                    str(row["preemptions"]),
                    str(row["moves"].get("moved", 0)) if row["moves"] else "-",
                    _seconds(row["downtime_max_s"]),
                ]
            )
    head = [
        "", "prefill mean", "prefill P99", "request mean", "request P99", "lost memory", "moves",
        "longest stop of a move",
    ]  # fmt: skip
    return table(head, rows)


def _spread(value: float, each: Sequence[float]) -> str:
    if len(each) == 1:
        return _seconds(value)
    return f"{_seconds(value)} ({_seconds(min(each))} to {_seconds(max(each))})"


def _priorities(found: Results) -> str:
    rows = []
    for name, row in found.items():
        for who in ("high", "low"):
            cells = [
                f"{row['without'][who][what]:.2f} to {row['with'][who][what]:.2f} ({_gain(row, who, what):.2f}x)"
                for what in ("prefill_mean_s", "prefill_p99_s", "e2e_mean_s")
            ]
            before, after = (row[how][who]["e2e_means_s"] for how in ("without", "with"))
            each = ", ".join(f"{one / other:.2f}x" for one, other in zip(before, after, strict=True))
            token = f"{row['without'][who]['decode_mean_s']:.4f} to {row['with'][who]['decode_mean_s']:.4f}"
            best = (
                f"{row['without'][who]['e2e_mean_s'] / row['alone'][who]['e2e_mean_s']:.2f}x"
                if who == "high"
                else ""
            )
            rows.append([f"{name}: {who}", *cells, each, best, token])
    head = [
        "", "prefill mean, without to with", "prefill P99", "request mean", "each seed", "best possible", "each token",
    ]  # fmt: skip
    return (
        "Short lengths, as in the paper; the rate as a share of the one whose keys and values take all memory of 16 "
        "instances. *Best possible*: the requests of high priority are alone on all instances. *Slower when full* is a "
        "question, no machine: what if an iteration of a full instance took 2.6 times as long as of an empty one, as "
        "of an engine whose attention is slow? On the roofline it takes 1.4 times as long.\n\n"
        + table(head, rows)
    )


def _fewer(found: Results) -> str:
    rows = [
        [
            name,
            _seconds(row["goal_s"]),
            str(row["instances"]) if min(row["seen"].values()) <= row["goal_s"] else "more than 16",
            ", ".join(
                f"{count}: {_seconds(p99)}"
                for count, p99 in sorted(row["seen"].items(), key=lambda x: int(x[0]))
            ),
        ]
        for name, row in found.items()
    ]
    return table(
        ["", "P99 prefill of 16 INFaaS-like", "Llumnix needs", "P99 prefill by instances tried"], rows
    )


def _scaling(found: Results) -> str:
    rows = [
        [
            f"{method}, more below {row['low']:g}",
            f"{row['instances']:.2f} ({min(row['each_instances']):.1f} to {max(row['each_instances']):.1f})",
            _spread(row["prefill_p99_s"], row["prefill_p99s_s"]),
            _seconds(row["e2e_mean_s"]),
            _seconds(row["e2e_p99_s"]),
        ]
        for method, each in found.items()
        for row in each
    ]
    return (
        "`scale/freeness` between 1 and 16 instances, medium lengths, 6 requests a second in bursts (gaps vary by 4); "
        "a cold start loads the weights for 6.7 s. Fewer again above three times the threshold. At 5 s they are "
        "compared because that was written down before it was measured.\n\n"
        + table(["", "instances, mean", "prefill P99", "request mean", "request P99"], rows)
        + "\n\nAt the same P99, on the lines between neighbouring thresholds:\n\n"
        + table(
            ["P99 prefill, s", "INFaaS-like", "Llumnix", "less"],
            [
                [f"{goal_s:g}", f"{theirs:.2f}", f"{ours:.2f}", f"{1.0 - ours / theirs:.0%}"]
                for goal_s, theirs, ours in _savings(found)
            ],
        )
    )


def _recomputing(rows: list[Results]) -> str:
    return (
        "How long a request stands still, by the tokens it holds: moved as here, computed anew elsewhere, or stopped "
        "while all is copied.\n\n"
        + table(
            [
                "tokens",
                "stages",
                "copying, seconds",
                "stopped, moved",
                "stopped, computed anew",
                "stopped, all copied",
            ],
            [
                [
                    str(row["tokens"]),
                    str(row["stages"]),
                    _seconds(row["copy_s"]),
                    _seconds(row["downtime_s"]),
                    f"{row['recompute_s']:.2f} ({row['recompute_s'] / row['downtime_s']:.0f}x)",
                    f"{row['copy_stopped_s']:.2f} ({row['copy_stopped_s'] / row['downtime_s']:.0f}x)",
                ]
                for row in rows
            ],
        )
    )


_LLUMNIX_WHY = """
**Why it differs from the paper.** These instances compute prompts before everything else and lose no time between
iterations, so that what makes a request wait is memory alone: a line behind one long request is stuck until that ends,
and round robin goes on sending requests to it. What moving gains over INFaaS is in a band of rates: a little below it
nobody waits, above it all instances are full at once and nothing can move (most moves are given up for want of memory).
New requests go to the freest instance, where only the first of those that wait is counted, as in the paper; where all
instances have lines this is a worse guess than INFaaS makes (*nothing moves*), and moving has to make up for it.
High priority gains what the others cost it. An empty instance of the roofline decodes a token in 31 ms and a full one
in 43 ms, so that even all machines for itself (*best possible*) would not make a request 1.3x faster at these loads;
more than half of what there is to gain is gained. An engine that slows down more has more to give. The line is skipped
as it should be: prefill gains most where requests come in bursts. Low priority pays for it with its tail.
Keeping the headroom whatever it costs, as the paper's rule says, brought all instances into debt: nothing moved, and
high priority waited longer than without priorities. It is kept where others find a place beside it.
Scaled, moving saves most where some waiting is allowed: Llumnix comes down to the memory that the requests take, while
without moves a few instances are full and the others hold answers that keep them from going. Where nobody may wait
both need the same spare instances.
The stop of a move is the latency that was assumed and at most a
block more.
"""


# POLCA


def _power(section: Results) -> str:
    runs, tuned = section["runs"], section["tuned"]
    ours = runs["POLCA, tuned"]
    brakes, high, low = ours["brakes"], ours["high_p99"], ours["low_p99"]
    rows = [
        [
            name,
            str(row["brakes"]),
            f"{row['braked_s']:.0f}",
            f"{row['peak']:.1%}",
            f"{row['mean']:.1%}",
            *(f"{row[f'{who}_p{q}']:+.1%}" for who in ("low", "high") for q in (50, 99)),
        ]
        for name, row in runs.items()
    ]
    head = [
        "", "brakes", "braked, s", "peak power", "mean power", "low p50", "low p99", "high p50", "high p99",
    ]  # fmt: skip
    days = section["days"]
    span = (
        "a week"
        if days == 7
        else f"the {days * 24:g} hours around the busiest one (`--days 7` runs the week)"
    )
    first, second_low, second_high = tuned["mhz"]
    return "\n\n".join(
        [
            f"""
## POLCA: a row with 30% more servers

A row provisioned for 40 machines (eight A100s, BLOOM-176B, measured profile), with 52 in it; half of the requests are
of high priority and have machines of their own. Traffic: Azure's conversations, at the hours of BurstGPT, for
{span}:
{section["requests"]:,} requests. Every other recorded request is history: it sets the provisioned power, of
which a row of 40 takes 79% at its peak as in the paper's production, and the plans are rehearsed on it; the others are
what is reported. Telemetry every 2 s, a command acts after 40 s, the brake after 5 s. Latency (end to end) is against
a row without a limit. *Tuned* is {tuned["t1"]:.0%} and {tuned["t2"]:.0%}, low priority at {first} MHz above the first,
low at {second_low} and high at {second_high} MHz above the second.
""".strip(),
            table(head, rows),
            table(
                ["POLCA, tuned", "paper", "ours", "bar", ""],
                [
                    ["more servers", "30%", "30%", "30%", "met"],
                    [
                        "brakes",
                        "0",
                        str(brakes),
                        "0, over a week",
                        _met(brakes == 0) if days == 7 or brakes else "met, in less than a week",
                    ],
                    ["high priority, p99", "minimal loss", f"{high:+.1%}", "+1% to +5%", _met(high <= 0.05)],
                    ["low priority, p99", "minimal loss", f"{low:+.1%}", "+10%", _met(low <= 0.10)],
                ],
            ),
            _passes(runs["no limit (best possible)"]["peak"], section["history_peak"]),
            "### What the tuner saw",
            _rehearsed(section["rehearsed"]),
            _POWER_WHY.strip() + (_BRAKED if any(row["brakes"] for row in runs.values()) else ""),
        ]
    )


def _passes(peak: float, of_history: float) -> str:
    told = f"Without a limit the row would draw {peak:.1%} at its peak, in the history {of_history:.1%}."
    if peak < 1.0:
        told += " Where it never passes its limit, that nothing braked says little."
    return told


def _rehearsed(plans: Sequence[Results]) -> str:
    rows = [
        [
            f"{row['t1']:.0%}, {row['t2']:.0%}",
            ", ".join(str(mhz) for mhz in row["mhz"]),
            str(row["brakes"]),
            f"{row['peak']:.1%}",
            f"{row['low_p99']:+.1%}",
            f"{row['high_p99']:+.1%}",
        ]
        for row in plans
    ]
    return (
        "Plans in the three busiest hours of the history. Chosen is, of those without a brake, with a peak of at most "
        "99% and at most +5% for high priority, the one that costs low priority least; where there is none, the one "
        "with the fewest brakes and the lowest peak.\n\n"
        + table(
            ["thresholds", "MHz: low first; low, high", "brakes", "peak power", "low p99", "high p99"], rows
        )
    )


_POWER_WHY = """
**Why it differs.** The row is busy: in its busiest hours it draws most of what it may, so that frequencies are locked
for much of the time, and what they cost is seen in the median as well as in the tail. A machine of this profile draws
most of its power as soon as it decodes for anybody, and the more requests share it the more prompts come between their
tokens: locked, prompts take longer in proportion, tokens hardly. Alone on a machine a conversation loses some 2% at
1110 MHz. The paper's 1110 MHz take more power off than this row's peak needs, and its thresholds lock it for longer;
the tuner finds in the history how little is enough. Best possible is the row without a limit, which no breaker would
allow.
"""

_BRAKED = """
A row that has been braked builds up lines that keep its draw up, so that the brake hardly comes off again.
"""
