"""The results as a page of the documentation, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway.report import table
from benchmarks.queueing.burst import CAP_TOKENS, LONG_TOKENS, MODEL, bounds, in_order, ranking, summary

PAGE = Path(__file__).parents[2] / "docs" / "results" / "queueing.md"
Results = Mapping[str, Any]

_TITLES = {
    "fcfs": "`schedule/fcfs` (baseline)",
    "litellm": "LiteLLM's scheduler, our predictions as its priorities (peer)",
    "litellm_order": "LiteLLM's scheduler, told all the time that the endpoint is busy",
    "predictive_sjf": "`schedule/predictive_sjf`",
    "alise": "`schedule/alise`",
    "priced": "`schedule/priced`",
    "weighted_fair": "`schedule/weighted_fair`",
    "edf": "`schedule/edf`",
    "sjf": "`schedule/sjf`",
    "priced, true lengths": "`schedule/priced`, true lengths",
    "weighted_fair, short first": "`schedule/weighted_fair`, `short_first`",
    "spt": "shortest first, true lengths (best that interrupts nothing)",
    "srpt": "shortest remaining, true lengths, interrupting (best possible)",
}


def write_page(results: Results) -> None:
    """Write the page from what was measured."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD]
    for name, section in (
        ("burst", _burst),
        ("sweep", _sweep),
        ("traces", _traces),
        ("speeds", _speeds),
        ("unequal", _unequal),
        ("cost", _cost),
    ):
        if results.get(name, {}).get("measured_at"):  # and not only begun
            parts += [section(results[name]), _origin(results[name])]
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")


_HEAD = """
# Who goes next: results

What the [queue before an endpoint](../guides/queueing.md) gains. Everything on this page is written by
`python -m benchmarks.queueing` (`--quick` for a small run, `--only burst` for one section); the data sets are
read from `$APPORTION_DATA`.
"""


def _origin(section: Results) -> str:
    machine = section["machine"]
    return (
        f"*{section['measured_at']}, commit {section['commit']}, {machine['cpu']}, {machine['cpus']} CPUs (shared with "
        f"other work), Python {machine['python']}.*"
    )


def _less(value: float, base: float) -> str:
    return f"{100.0 * (value / base - 1.0):+.0f}%"


def _burst(section: Results) -> str:
    runs = section["runs"]
    fcfs = summary(runs["fcfs"])
    rows = []
    for name, measured in runs.items():
        numbers = summary(measured)
        rows.append(
            [
                _TITLES[name],
                f"{numbers['short_median_s']:.1f}",
                _less(numbers["short_median_s"], fcfs["short_median_s"]),
                f"{numbers['mean_s']:.1f}",
                f"{numbers['long_median_s']:.1f}",
                "in the engine" if name == "litellm" else f"{numbers['max_wait_s']:.1f}",
                "" if name == "litellm" else f"{sum(row['service_s'] for row in measured):.0f}",
            ]
        )
    replayed = bounds(runs["fcfs"], section["patience_s"])
    if section.get("litellm_order"):
        replayed["litellm_order"] = in_order(runs["fcfs"], section["litellm_order"])
    for name in ("litellm_order", "predictive_sjf", "alise", "priced", "spt", "srpt"):
        if name not in replayed:
            continue
        numbers = replayed[name]
        rows.append(
            [
                f"replayed: {_TITLES[name]}",
                f"{numbers['short_median_s']:.1f}",
                _less(numbers["short_median_s"], replayed["fcfs"]["short_median_s"]),
                f"{numbers['mean_s']:.1f}",
                f"{numbers['long_median_s']:.1f}",
                f"{numbers['max_wait_s']:.1f}",
                f"{sum(row['service_s'] for row in runs['fcfs']):.0f}",
            ]
        )
    _ecdf(runs)
    n = len(runs["fcfs"])
    return f"""
## A burst at a real model with one slot

{n} requests at once, half of them asking for a short answer, at {
        MODEL
    } on the embedded llama.cpp with one slot,
through the proxy's queue. All have the same `max_tokens` ({
        CAP_TOKENS
    }); whether an answer will be long is predicted
from the text alone by `{section["predictor"]}`, taught with the model's answers to {
        len(section["lesson"])
    } other prompts (other
topics, other wordings; long is more than {LONG_TOKENS} tokens). It orders {
        100 * ranking(runs["fcfs"]):.0f}% of
the pairs of test requests rightly, and takes {
        section["predict_ms"]:.2f} ms. Short and long in the table are what the prompt
asks for, not what the model then does: some "short" ones ramble to the limit.

{
        table(
            [
                "order",
                "short, median s",
                "vs FCFS",
                "all, mean s",
                "long, median s",
                "longest wait s",
                "busy s",
            ],
            rows,
        )
    }

![Share of requests that were answered within a time, by order](queueing-burst.svg)

The replayed rows put the service times measured under FCFS into other orders, so that another speed of the
machine in another minute plays no part; *busy*, the sum of all service, shows how much it did. Nobody starves:
the longest wait of every order is at most the length of the burst, since a burst ends; the bounds under an endless
stream are stated in the methods and tested. LiteLLM's scheduler has no lengths, no slots and no fairness: it sorts
by a number that the client sends, and lets the first in line through
whenever it looks, whether or not the endpoint is busy. So the line before it is nearly always empty, and the burst goes
through in the order in which it came, to queue up inside the engine.
"""


def _sweep(section: Results) -> str:
    return (
        _by_load(section["by_load"])
        + _by_tenant(section["by_tenant"])
        + _by_value(section["by_value"])
        + _by_error(section["by_error"])
    )


def _by_load(loads: Results) -> str:
    names = list(next(iter(loads.values())))

    def against(name: str, found: Results) -> str:
        mine, base = found[name]["short_median_s"], found["fcfs"]["short_median_s"]
        return f"{mine:.2f} ({_less(mine, base)})"

    short = [[_TITLES[name]] + [against(name, found) for found in loads.values()] for name in names]
    mean = [[_TITLES[name]] + [f"{found[name]['mean_s']:.2f}" for found in loads.values()] for name in names]
    wait = [
        [_TITLES[name]] + [f"{found[name]['max_wait_s']:.0f}" for found in loads.values()] for name in names
    ]
    head = ["order", *(f"load {load}" for load in loads)]
    _lines(
        "queueing-load.svg",
        {
            name: [(float(load), found[name]["short_median_s"]) for load, found in loads.items()]
            for name in names
        },
        "load",
        "median latency of short requests, s",
        log=True,
    )
    return f"""
## From idle to saturated

The requests of the burst with their measured service times and their predictions, arriving at random (Poisson)
so that the one slot is busy for a given share of the time; simulated with the same policy objects, means over
seeds.

Median latency of the short requests in seconds, and against FCFS:

{table(head, short)}

![Median latency of short requests by load](queueing-load.svg)

Mean latency of all requests in seconds:

{table(head, mean)}

Longest wait in seconds:

{table(head, wait)}

"""


def _by_tenant(section: Results) -> str:
    tenants = [
        [
            _TITLES[name],
            f"{found['jain_service']:.2f}",
            f"{found['slowdown_light']:.1f}",
            f"{found['slowdown_heavy']:.1f}",
            f"{found['max_wait_light_s']:.0f}",
        ]
        for name, found in section.items()
    ]
    return f"""### Four tenants, one of whom sends 70% of the requests

*Equal shares* is Jain's index of the service that the tenants got at load 4, where each of them asks for more than
a quarter of the server (1: equal; 0.25: one has all). The others are at load 0.95, where the three ask for less
than their share: *slowdown* is latency over service.

{
        table(
            [
                "order",
                "equal shares",
                "slowdown of the three",
                "slowdown of the one",
                "longest wait of the three, s",
            ],
            tenants,
        )
    }

"""


def _by_value(values: Results) -> str:
    earned = [
        [_TITLES.get(name, name)] + [f"{100 * found[name]:.0f}%" for found in values.values()]
        for name in next(iter(values.values()))
    ]
    return f"""### Dollars

Answers worth 0.2, 0.5 or 2 cents, half of them worth nothing after a deadline of 1 to 20 mean services beyond their
own, every mean service of waiting costing 0.02 cents: what is earned, less what waiting costs, as a share of all there
was to earn.

{table(["order", *(f"load {load}" for load in values)], earned)}

"""


def _by_error(errors: Results) -> str:
    noise = [
        [
            "nothing but noise" if error == "inf" else error,
            f"{100 * found['ranking']:.0f}%",
            *(
                f"{found[name]:.2f} ({_less(found[name], found['fcfs'])})"
                for name in ("predictive_sjf", "alise", "priced", "spt")
            ),
            *(
                f"{found[f'{name}, mean']:.2f} ({_less(found[f'{name}, mean'], found['fcfs, mean'])})"
                for name in ("predictive_sjf", "spt")
            ),
        ]
        for error, found in errors.items()
    ]
    _lines(
        "queueing-error.svg",
        {
            name: [(found["ranking"], found[name]) for found in errors.values()]
            for name in ("fcfs", "predictive_sjf", "alise", "priced", "spt")
        },
        "share of pairs that the predictions order rightly",
        "median latency of short requests at load 0.8, s",
    )
    return f"""### How good must a prediction be?

True lengths times log-normal noise, at load 0.8; latency of the short requests in seconds. Pairs of requests of
about the same length count in the ranking too, and matter little. The last row shows how much of a median is gained
by merely not being first come, first served: the mean tells.

{
        table(
            [
                "sd of log error",
                "pairs ordered rightly",
                "median: `predictive_sjf`",
                "`alise`",
                "`priced`",
                "true lengths",
                "mean: `predictive_sjf`",
                "true lengths",
            ],
            noise,
        )
    }

![Median latency of short requests by how well the predictions rank](queueing-error.svg)
"""


def _traces(section: Results) -> str:
    rows = []
    mixes = {"all": "conversation, code and summaries on one endpoint", "azure_conv": "conversation alone"}
    rankings = []
    for mix, title in mixes.items():
        if mix not in section:
            continue
        rankings.append(f"{title}: {100 * section[mix]['ranking']:.0f}%")
        for slots, found in section[mix]["slots"].items():
            for limit, sustained in found["sustained"].items():
                fcfs = sustained["fcfs"]
                names = ("alise", "spt", "alise, interrupting", "srpt")
                gains = [f"{sustained[name]:.2f} ({sustained[name] / fcfs:.2f} x)" for name in names]
                rows.append([title, slots, f"{limit} x", f"{fcfs:.2f}", *gains])
    waits = []
    for mix, title in mixes.items():
        for slots, found in section.get(mix, {"slots": {}})["slots"].items():
            chosen = found["chosen"]["alise"]
            at = {
                name: {f"{load:.2f}": wait for load, _, wait in curve}
                for name, curve in found["curves"].items()
            }
            waits.append(
                [
                    title,
                    slots,
                    f"{at['fcfs'].get('0.70', float('nan')):.0f}",
                    f"{at['alise'].get('0.70', float('nan')):.0f}",
                    f"{at['spt'].get('0.70', float('nan')):.0f}",
                    f"{(chosen['levels'] - 1) * chosen['ageing_s']:.0f}",
                ]
            )
    curves = section["all"]["slots"]["1"]["curves"]
    _lines(
        "queueing-alise.svg",
        {name: [(load, times) for load, times, _ in curve] for name, curve in curves.items()},
        "load",
        "normalised latency, times that of an idle server",
        log=True,
    )
    return f"""
## ALISE on traces of real lengths

Azure's conversation and code traces and arXiv summaries (`azure_llm_2023`, `vidur_arxiv_lengths`), arrivals as
recorded and sped up to each load, service times from measured paces of a 70-billion-parameter model
(`splitwise_perf_model`). The predictor is the median answer of the application and the size of the prompt,
learned on earlier traffic; it orders pairs rightly ({"; ".join(rankings)}).
ALISE's levels and ageing are chosen on earlier traffic too. Normalised latency is latency over output tokens, averaged
over requests; the table has the highest load at which it stays within a limit, in times of that of an idle server (at
most 0.98 is tried), and in brackets how many times FCFS's that is.

{
        table(
            [
                "traffic",
                "slots",
                "limit",
                "FCFS",
                "`schedule/alise`",
                "true lengths",
                "ALISE in an engine that interrupts",
                "SRPT (best possible)",
            ],
            rows,
        )
    }

![Normalised latency by load, one slot](queueing-alise.svg)

The longest wait at load 0.7, in seconds (nan: the order was beyond every limit before), and what ALISE's
ageing adds to the wait that FCFS would give, at most:

{table(["traffic", "slots", "FCFS", "`schedule/alise`", "true lengths", "ageing"], waits)}

The paper's 1.8 to 2.1 times is reached inside an engine that interrupts a running answer and swaps its memory out. The
same policy object in a simulated engine that can do that (at a price for each resumption) is shown beside it. Before
an OpenAI-compatible endpoint nothing can be interrupted: there the column of true lengths is the most that any
prediction can gain. With many slots FCFS already carries almost everything, and there is little to win by any order.
"""


def _speeds(section: Results) -> str:
    names = ("greedy", "greedy, corrected")
    rows = [
        [error, *(f"{section[kind][error][name]:.2f}" for kind in ("random", "bias") for name in names)]
        for error in section["random"]
    ]
    blind = [[name, f"{times:.2f}"] for name, times in section["no prediction"].items()]
    _lines(
        "queueing-speeds.svg",
        {
            f"{kind}: {name}": [(float(error), found[name]) for error, found in section[kind].items()]
            for kind in ("random", "bias")
            for name in ("greedy", "greedy, corrected")
        },
        "speed predictions wrong by up to this factor",
        "weighted completion time over the bound",
    )
    return f"""
## Unequal servers whose speeds are not known

`route/speed_oblivious` before four servers of speeds 8, 4, 2 and 1 that also depend on the request (by about a
factor of 2), load 0.8, requests of weight 1 or 3; the sum of weighted completion times as a multiple of a
linear program's lower bound, which knows everything in advance and may split requests. Predictions are wrong
for each request anew, or by one factor for a whole server; what is measured corrects the second kind, and draws the
first towards what a server takes on average.

{
        table(
            [
                "error up to",
                "each request: as predicted",
                "each request: corrected",
                "each server: as predicted",
                "each server: corrected",
            ],
            rows,
        )
    }

![Weighted completion time over the bound, by error](queueing-speeds.svg)

At error 1 it is the greedy rule with known speeds, and the rest of the way to the bound is the future that nobody knows
and the splitting that nobody can do. Without any prediction of the requests:

{table(["rule", "times the bound"], blind)}
"""


def _unequal(section: Results) -> str:
    rows = [
        [name, f"{found['mean_s']:.1f}", f"{found['median_s']:.1f}"]
        for name, found in section["rules"].items()
    ]
    return f"""
### Live, two servers

{section["requests"]} requests at random times to two real servers of one slot, one of which is stopped for three
quarters of the time; each behind the proxy's queue, shortest first. The rules take turns, a few requests
each, as other work kept the machine busy; only large differences say anything. Latency in seconds:

{table(["rule", "mean", "median"], rows)}
"""


def _cost(section: Results) -> str:
    counts = list(next(iter(section["decide_us"].values())))
    rows = [
        [f"`{name}`", *(f"{found[n]:.0f}" for n in counts), f"{section['enter_leave_us'][name]:.1f}"]
        for name, found in section["decide_us"].items()
    ]
    return f"""
## What it costs

Microseconds of processor time of one decision, median, by how many wait; and of entering a queue with a free
slot and leaving it again.

{table(["method", *(f"{n} waiting" for n in counts), "enter and leave"], rows)}
"""


def _ecdf(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, kind in zip(axes, ("short", "long"), strict=True):
        for name, rows in runs.items():
            times = sorted(row["latency_s"] for row in rows if row["kind"] == kind)
            axis.step(times, [(k + 1) / len(times) for k in range(len(times))], where="post", label=name)
        axis.set_title(f"{kind} requests")
        axis.set_xlabel("seconds since the burst")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share answered")
    axes[1].legend(fontsize=8)
    _save(figure, "queueing-burst.svg")


def _lines(
    name: str, lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, log: bool = False
) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.8))
    for label, points in lines.items():
        ordered = sorted(points)
        axis.plot([p[0] for p in ordered], [p[1] for p in ordered], marker="o", markersize=3, label=label)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if log:
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, name)


def _save(figure: Any, name: str) -> None:
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "apportion"
    figure.tight_layout()
    figure.savefig(PAGE.parent / name, metadata={"Date": None})
