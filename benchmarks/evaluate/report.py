"""The results as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway.report import table

PAGE = Path(__file__).parents[2] / "docs" / "results" / "evaluate.md"

_OURS = ("as logged", "inverse propensity", "self-normalised", "direct", "doubly robust")
_BEST = "had it run itself"
_PEER = "obp: "


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page from what was measured."""
    worlds = results["worlds"]
    quality = [world for world in worlds if world["measure"] == "quality"]
    cost = [world for world in worlds if world["measure"] == "cost"]
    parts = [
        _HEAD.format(rows=results["rows"], logs=int(worlds[0]["estimators"][_BEST]["logs"])),
        "## Over all of them",
        _SUMMARY,
        _summary(quality),
        _overall(quality, cost),
        "## Quality, world by world",
        "Root mean square error; in brackets the share of the 95% intervals that held the truth.",
        _worlds(quality),
        "## Cost, world by world",
        "Root mean square error as a share of the true cost.",
        _worlds(cost, relative=True),
        _MISSED,
        _origin(results),
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _summary(worlds: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in worlds[0]["estimators"] if name not in (*_OURS, _BEST)]
    rows = []
    for name in (*_OURS, *names, _BEST):
        cells = [world["estimators"][name] for world in worlds]
        known = [cell["coverage"] for cell in cells if cell["coverage"] is not None]
        widths = [cell["width"] for cell in cells if cell["width"] is not None]
        role = "baseline" if name == "as logged" else "peer" if name.startswith(_PEER) else ""
        role = "best possible" if name == _BEST else role
        rows.append(
            [
                f"**{name}**" if name == "doubly robust" else name,
                role,
                f"{_mean([cell['rmse'] for cell in cells]):.3f}",
                f"{_mean([abs(cell['bias']) for cell in cells]):.3f}",
                f"{_mean(known):.0%}" if known else "",
                f"{min(known):.0%}" if known else "",
                f"{_mean(widths):.2f}" if widths else "",
            ]
        )
    head = ("estimator of quality", "", "error (RMSE)", "bias, absolute", "coverage", "least", "width")
    return table(head, rows)


def _overall(quality: Sequence[Mapping[str, Any]], cost: Sequence[Mapping[str, Any]]) -> str:
    def better(worlds: Sequence[Mapping[str, Any]], other: str) -> int:
        return sum(w["estimators"]["doubly robust"]["rmse"] < w["estimators"][other]["rmse"] for w in worlds)

    n, m = len(quality), len(cost)
    return (
        f"Doubly robust has the smaller error than inverse propensity in {better(quality, 'inverse propensity')} of "
        f"{n} worlds for quality and {better(cost, 'inverse propensity')} of {m} for cost, than self-normalised in "
        f"{better(quality, 'self-normalised')} and {better(cost, 'self-normalised')}, than the log's own mean in "
        f"{better(quality, 'as logged')} and {better(cost, 'as logged')}."
    )


def _worlds(worlds: Sequence[Mapping[str, Any]], *, relative: bool = False) -> str:
    rows = []
    for world in worlds:
        cells = []
        for name in (*_OURS, _BEST):
            cell = world["estimators"][name]
            scale = world["truth"] if relative else 1.0
            text = f"{cell['rmse'] / scale:.1%}" if relative else f"{cell['rmse']:.3f}"
            covered = cell["coverage"]
            cells.append(text if covered is None or relative else f"{text} ({covered:.0%})")
        true = f"{world['truth']:.3g}{' ' + world['unit'] if world['unit'] else ''}"
        rows.append(
            [
                f"{world['data']}, {world['logging']}: {world['policy']}",
                true,
                f"{world['effective']:.0f}",
                *cells,
            ]
        )
    return table(("log and policy", "truth", "effective rows", *_OURS, _BEST), rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _origin(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    absent = f" The peer is missing: {results['peer_absent']}" if results["peer_absent"] else ""
    return (
        f"Measured {results['measured_at']} at commit {results['commit']} on {machine['cpus']} x {machine['cpu']}, "
        f"Python {machine['python']}.{absent}"
    )


_HEAD = """
# Estimates from the decision log: results

How near [`apportion evaluate`](../guides/evaluate.md) comes to the truth. On `llmrouter_9_models` and
`gsm8k_multi_model` every model's answer to every query is known, so the true quality and cost of any policy are, too.
A logging policy that knows no quality (it prefers cheap models and goes by the length of the query) writes logs of
{rows} decisions with their probabilities, {logs} of them for every world; three other policies are estimated from each:
always the best single model, a router made of the outcomes, and that router with some exploration. Everything on this
page is written by `python -m benchmarks.evaluate --peers DIR` (`--quick` for a small run); the data sets are read from
`$APPORTION_DATA`.
"""

_SUMMARY = """
Means over the worlds: two data sets, two logging policies, three policies each. *Error* is on the scale of quality, 0
to 1. *Coverage* is the share of the 95% intervals that held the truth, *least* that of the worst world. The direct
method has no interval here: how wrong its model is, it cannot know. *Had it run itself* is the mean of as many
decisions by the policy in question: no estimate from another's log can do better. The peer is the Open Bandit
Pipeline (`obp` 0.5.7)
with its own cross-fitted ridge model and bootstrap, on the first 100 of the logs.
"""

_MISSED = """
## What was missed, and why

- Where a tenth of the traffic is drawn at random among 9 or 16 models, the policy in question was followed in so few of
  the rows (see *effective rows*) that every estimator is off by several hundredths, and intervals from so few
  rows hold the truth less often than they say. `apportion evaluate` warns below 50 effective rows. The doubly robust
  interval reckons with failures that happened not to happen (`measure.off_policy.doubly_robust`); without that it held
  the truth in 90% on the average and 80% in the worst world, like the peer's. How many rows' worth of the pooled
  variance it adds (10) is the one constant that was looked at on these data; 0 to 30 change its coverage by one to
  three points.
- Doubly robust is as good as its outcome model. Counts of words say little of whether a model answers a question, so
  here it gains little over the self-normalised estimate in quality, and much in cost, which is easy to predict.
- The direct method has a small error where its model happens to be right, and is never warned by its own spread.
"""
