"""The results as two pages of the documentation, with figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "results"

Results = dict[str, Any]


def write_pages(results: Results) -> None:
    """Write docs/results/bandits.md and knapsacks.md and their figures from what was played."""
    DOCS.mkdir(parents=True, exist_ok=True)
    figures(results)
    parts = {
        "linear": _linear,
        "repriced": _repriced,
        "censored": _censored,
        "aslib": _aslib,
        "carrot": _carrot,
        "pools": _pools,
    }
    _write("bandits", _BANDITS, [parts[name](results[name]) for name in parts if name in results])
    parts = {"budgets": _budgets, "knapsack": _knapsack}
    _write("knapsacks", _KNAPSACKS, [parts[name](results[name]) for name in parts if name in results])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _write(name: str, head: str, parts: list[str]) -> None:
    (DOCS / f"{name}.md").write_text(head + "\n\n" + "\n\n".join(parts) + "\n")


_BANDITS = """# Learning by trying: bandit routers

Written by `python -m benchmarks.bandits` from `benchmarks/results/bandits.json`, never by hand. Which router
is for what: [guide](../guides/bandits.md). Seeds are fixed; nothing is tuned on what is measured, except that
settings of the
algorithm-selection part are chosen by leaving out the scenario that is measured."""

_KNAPSACKS = """# Admission: budgets that refill, knapsacks that fill

Written by `python -m benchmarks.bandits` from `benchmarks/results/bandits.json`, never by hand."""


def _linear(part: Results) -> str:
    rows = [
        [name, f"{row['final']:.2f} ± {row['error']:.2f}", f"{row['slope']:.2f}", str(row["seeds"])]
        for name, row in part["rows"].items()
    ]
    rows.append(["best possible (the chances known)", "0", "", ""])
    return f"""## Linear contextual bandits

Eight models whose chance of a right answer is linear in ten features, better ones dearer; a right answer is
worth 1 cent. Regret in dollars over {part["rounds"]:,} requests (± standard error of the mean), and the slope
of its logarithm over that of the requests in the last nine tenths: 1 learns nothing, 0.5 is the square-root
law.

{table(["router", "regret, dollars", "slope", "seeds"], rows)}

![regret of linear bandits](bandits-linear.svg)

LinUCB here and in MABWiser are the same algorithm and lose the same, as they should; what differs is what a
changed price does to them
(next). {part["date"]}"""


def _repriced(part: Results) -> str:
    rows = [
        [name, f"{row['final']:.2f} ± {row['error']:.2f}", str(row["seeds"])]
        for name, row in part["rows"].items()
    ]
    return f"""## When a budget binds: a dollar costs {part["later_price"]:g} from the middle on

The same, over {part["rounds"]:,} requests; in the second half every dollar of cost counts
{part["later_price"]:g} times, as when the shadow price of a budget rises. The routers learn quality and read
prices, so they bend at once; libraries learn the reward, price included, and have to unlearn it.

{table(["router", "regret, dollars", "seeds"], rows)}

{part["date"]}"""


def _censored(part: Results) -> str:
    rows = [
        [name, f"{row['final']:.2f} ± {row['error']:.2f}", f"{row['slope']:.2f}"]
        for name, row in part["rows"].items()
    ]
    rows.append(["best possible (the best pair known)", "0", ""])
    return f"""## Arms with limits (censored consumption)

Five models, ten output limits each; an answer that does not fit its limit is cut off and worth nothing, and
costs what it used. {part["rounds"]:,} requests, {part["seeds"]} seeds; both learners have the same confidence
width. One run updates every lower limit of its arm.

{table(["router", "regret, dollars", "slope"], rows)}

Ratio of `route/censored_ucb` to UCB1 over flattened pairs: **{part["ratio"]:.2f}** (bar: 0.7).

![regret with limits](bandits-censored.svg)

{part["date"]}"""


def _aslib(part: Results) -> str:
    found = part["scenarios"]
    names = list(found)
    methods = list(next(iter(found.values()))["rows"])
    rows = []
    means = {}
    for method in methods:
        each = [found[name]["rows"][method]["mean"] for name in names]
        means[method] = sum(each) / len(each)
        rows.append([method, *[f"{value:.2f}" for value in each], f"{means[method]:.2f}"])
    rows.append(["the best single solver in hindsight", *["1"] * len(names), "1"])
    rows.append(["best possible (the best solver for each instance)", *["0"] * len(names), "0"])
    said = []
    for explore in ("ucb", "thompson"):
        own = f"{explore}, imputed"
        if own not in means:
            continue
        rivals = (f"{explore}, stopped dropped", f"{explore}, stopped at cutoff", "epsilon-greedy regression")
        said += [
            f"- {own} against {rival}: {100.0 * (means[own] / means[rival] - 1.0):+.0f}%, "
            f"better in {_wins(found, own, rival)}. "
            f"Bar (10% below): {'met' if means[own] <= 0.9 * means[rival] else 'missed'}."
            for rival in rivals
        ]
    sizes = ", ".join(str(v["instances"]) for v in found.values())
    shapes = "; ".join(
        f"{n}: {v['instances']} instances, {v['solvers']} solvers, {v['stopped']:.0%} of runs stopped"
        for n, v in found.items()
    )
    return f"""## Run times that hit their limit (algorithm selection)

Five ASlib scenarios ({shapes}), instances in {part["orders"]} random orders, one solver tried for each,
nothing known at the start. Mean PAR10 over the whole pass, learning included, so that 0 is the best solver
for each instance and 1 the best single one. Ridge, width and epsilon are each method's best on the other
scenarios, of ridge 1 and 10 for the censored methods and of 0.1, 1 and 10 for epsilon-greedy. These grids were
drawn up after looking at all five scenarios, so only the choice inside them is held out.

{table(["method", *names, "mean"], rows)}

{chr(10).join(said)}

Where the bar is missed: the scenarios are short ({sizes} instances), each instance shows one solver, and
trying every solver a few times is most of what is lost; how stopped runs are counted matters after that. The
means weigh scenarios by how far a wrong choice is from the best single solver; where they and the counts of
orders disagree, the counts say which method is better in most scenarios.

{part["date"]}"""


def _wins(found: Results, own: str, rival: str) -> str:
    """In how many orders of all scenarios ``own`` is below ``rival``, with the p of a sign test."""
    pairs = [
        (a, b)
        for v in found.values()
        for a, b in zip(v["rows"][own]["each"], v["rows"][rival]["each"], strict=True)
    ]
    wins, n = sum(a < b for a, b in pairs), sum(a != b for a, b in pairs)
    tail = sum(math.comb(n, k) for k in range(max(wins, n - wins), n + 1)) / 2.0**n
    return f"{wins} of {n} orders (sign test p = {min(1.0, 2.0 * tail):.2g})"


def _carrot(part: Results) -> str:
    rows = []
    for d, v in part["dimensions"].items():
        rows.append(
            [f"{d} dimension{'s' if d != '1' else ''}", *[f"{p['excess']:.4f}" for p in v["points"]],
             f"{v['slope']:.2f}", f"{v['minimax']:.2f}"]
        )  # fmt: skip
    sizes = [f"n = {p['labels']:,}" for p in next(iter(part["dimensions"].values()))["points"]]
    return f"""## CARROT's rate

The quality that the choices of `route/carrot` lose (its own neighbours, k of order n^(2/(2+d))) on the
hardest qualities with slope 1: n labelled requests and about n^(d/(2+d)) bumps, the construction of the lower
bound. Both models cost the same. {part["seeds"]} seeds.

{table(["", *sizes, "slope", "minimax"], rows)}

{part["date"]}"""


def _pools(part: Results) -> str:
    rows = []
    base = next(row for name, row in part["rows"].items() if "least_load" in name)
    for name, row in part["rows"].items():
        p95 = "endless" if row["p95_s"] is None else f"{row['p95_s']:.2f}"
        rows.append(
            [name, f"{row['usd_per_1000']:.2f}", f"{100 * (row['usd_per_1000'] / base['usd_per_1000'] - 1):+.0f}%",
             f"{row['windows_in_target']:.1%}", p95, f"{row['failed']:.0f}", f"{row['mode_changes']:.0f}"]
        )  # fmt: skip
    rows.append(["least cost (fluid load, every slot filled)", f"{part['least_usd_per_1000']:.2f}",
                 f"{100 * (part['least_usd_per_1000'] / base['usd_per_1000'] - 1):+.0f}%", "", "", "", ""])  # fmt: skip
    shortest = next(row for name, row in part["rows"].items() if "cost_capacity" in name)["shortest_mode_s"]
    head = ["policy", "dollars / 1000", "to capacity", "windows in target", "p95 s", "failed", "mode changes"]
    return f"""## Four pools of accelerators (cost mode and capacity mode)

Emulated: {part["horizon_s"] / 60:g} minutes of waves and a burst, on the way slots are lost and come back, a
price rises fourfold, two pools die with their work in flight (tried again elsewhere; health checks notice
after 5 s). Target: p95 of 3 s in windows of a minute. {part["seeds"]} seeds.

{table(head, rows)}

The shortest time between two changes of mode was {shortest or 0:.0f} s. {part["date"]}"""


def _budgets(part: Results) -> str:
    rows = []
    for primal, v in part["stochastic"].items():
        rows.append([primal, *[f"{p['regret']:.0f}" for p in v["points"]], f"{v['slope']:.3f}"])
    best = [f"{p['optimum']:.0f}" for p in part["stochastic"]["exp3"]["points"]]
    rows.append(["best fixed mixture (linear program)", *best, "1"])
    per_round = [f"{p['optimum']:.0f}" for p in part["stochastic"]["offered"]["points"]]
    rows.append(["best with every round known (linear program)", *per_round, "1"])
    worst = [
        [kind, *[f"{v[p]['mean']:.2f} (least {v[p]['least']:.2f})" for p in ("exp3", "hedge", "offered")]]
        for kind, v in part["adversarial"].items()
    ]
    books = part["books"]
    return f"""## Budgets that refill (`admit/primal_dual_budget`)

Two resources, four actions (dear, cheap, one that brings the first resource in, refusing, which restores a
little of both), coin-flip rewards and costs. Regret by the number of rounds T, {part["seeds"]} seeds; the
slope is that of its logarithm (bar: at most 0.6). "exp3" sees only what it chose, "hedge" and the choice
among offers ("offered") see all of a round; the first two are against the best fixed mixture, "offered"
against the best with all rounds known beforehand.

{table(["primal player", *[f"T = {t:,}" for t in part["horizons"]], "slope"], rows)}

![regret with budgets](knapsacks-budgets.svg)

### Adversarial rounds

Share of the optimum reached where rewards turn; proven for the first two: {part["alpha"]:.2f}. 1 is the best
fixed mixture in hindsight ("offered": the best with every round known).

{table(["rounds", "exp3", "hedge", "offered"], worst)}

### Books

{books["runs"]} runs ({books["seeds"]} seeds, each player; small budgets, drawn and adversarial rounds,
outcomes up to 15 rounds late and out of order), booked independently of the policy: the least that any stock
ever was is **{books["least"]:.3g}**, never below zero.

{part["date"]}"""


def _knapsack(part: Results) -> str:
    parts = []
    for span, v in part["spans"].items():
        rows = [
            [name, *[f"{r[key]:.2f}" for key in ("mean", "p95", "worst", "proven")], str(r["above_proven"])]
            for name, r in v.items()
        ]
        rows.append(["best possible (hindsight)", "1", "1", "1", "", ""])
        parts.append(
            f"### U/L = {span}\n\n" + table(["rule", "mean", "p95", "worst", "proven", "above proven"], rows)
        )
    return f"""## A budget that fills (`admit/time_fair`)

Ratio of the best packing in hindsight to what the rule gained, over {part["sequences"]:,} sequences for each
span of densities: uniform, log-uniform, few good ones late, falling, rising, and rising until stopped, the
adversary of the proofs. Items weigh {part["weight"]:g} of the knapsack; the proven ratio is for infinitely
small ones and is corrected for that. A good prediction is the true critical density; a bad one is off by a
factor of 2, up or down. "Above proven" counts sequences. `admit/time_fair` decided otherwise than the formula
{part["policy_differs"]} times.

{chr(10).join(chr(10) + p for p in parts)}

ECT's price is constant up to its alpha, so that requests of one density are treated alike for that share of
the budget; ZCL's never is. What that fairness costs is the difference of their ratios; a good prediction buys
both.

![thresholds](knapsacks-thresholds.svg)

{part["date"]}"""


def figures(results: Results) -> None:
    """The regret curves and the thresholds, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "apportion", "font.size": 9, "svg.fonttype": "none"})
    for name in ("linear", "censored"):
        if name in results:
            curves = {n: row["curve"] for n, row in results[name]["rows"].items()}
            slopes = {n: row["slope"] for n, row in results[name]["rows"].items()}
            _curves(plt, curves, slopes, "requests", "cumulated regret, dollars", f"bandits-{name}.svg")
    if "budgets" in results:
        found = results["budgets"]["stochastic"]
        curves = {n: [[p["rounds"], p["regret"]] for p in v["points"]] for n, v in found.items()}
        slopes = {n: v["slope"] for n, v in found.items()}
        _curves(plt, curves, slopes, "rounds T", "regret", "knapsacks-budgets.svg", "o-")
    if "knapsack" in results:
        _thresholds(plt)


def _curves(
    plt: Any, curves: Results, slopes: Results, x_name: str, y_name: str, file: str, style: str = "-"
) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for name, curve in curves.items():
        shown = [(x, y) for x, y in curve if x >= 10 and y > 0]
        axes.plot(*zip(*shown, strict=True), style, lw=1.6, ms=4, label=f"{name} ({slopes[name]:.2f})")
    last = max(x for curve in curves.values() for x, _ in curve)
    low = min(curve[-1][1] for curve in curves.values())
    axes.plot([last / 30, last], [0.5 * low / math.sqrt(30), 0.5 * low], "k:", lw=1, label="slope 0.5")
    axes.set(xscale="log", yscale="log", xlabel=x_name, ylabel=y_name)
    axes.grid(alpha=0.3, which="major")
    axes.legend(fontsize=8, title="(slope)", title_fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(DOCS / file, metadata={"Date": None})
    plt.close(figure)


def _thresholds(plt: Any) -> None:
    from apportion.solve.online_knapsack import ect, la_ect, zcl

    figure, axes = plt.subplots(figsize=(6, 3.6))
    z = [k / 400 for k in range(401)]
    axes.plot(z, [zcl(x, 1.0, 100.0) for x in z], label="ZCL")
    axes.plot(z, [ect(x, 1.0, 100.0, 0.66) for x in z], label="ECT[0.66]")
    axes.plot(z, [la_ect(x, 1.0, 100.0, 0.66, 15.0) for x in z], label="LA-ECT[0.66], predicted 15")
    axes.set(yscale="log", xlabel="share of the budget used", ylabel="density asked for (L = 1, U = 100)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "knapsacks-thresholds.svg", metadata={"Date": None})
    plt.close(figure)
