"""A comparison as data, and as one page that needs nothing besides itself."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from apportion.simulate.compare import Comparison, Outcome, shown_metrics
from apportion.simulate.metrics import METRICS
from apportion.simulate.paired import Difference
from apportion.simulate.pictures import pictures, png, svg

FORMAT: Final = 1
"""Of the data; goes up when a name changes its meaning."""
HEADLINE: Final = (
    "requests", "answered_share", "refused", "failed", "timeout", "cut", "retries", "ttft_mean_s", "ttft_p50_s",
    "ttft_p90_s", "ttft_p99_s", "tpot_mean_s", "tpot_p90_s", "e2e_mean_s", "e2e_p50_s", "e2e_p90_s", "e2e_p99_s",
    "queued_mean_s", "queued_p90_s", "good_share", "goodput_per_s", "output_tokens_per_s", "usd", "usd_per_1k",
    "usd_per_good", "joules", "joules_per_token", "gco2", "quality", "hit_share", "cached_share", "utilisation",
    "instances", "rented_usd",
)  # fmt: skip
"""The metrics of a table, where there is something to say of them."""
_FAR: Final = 2.0
"""Times a number that its interval reaches up to, from which on ± would mislead."""
_UNDER: Final = {
    "usd": "at the first column's quality",
    "usd_per_1k": "at the first column's quality",
    "quality": "at the first column's cost",
}


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain data: numbers that are not known are None."""
    plan = comparison.plan
    return {
        "format": FORMAT,
        "trace": {
            "name": plan.trace.name,
            "requests": len(plan.trace),
            "duration_s": plan.trace.duration_s,
            "prompt_tokens": int(plan.trace.prompt_tokens.sum()),
            "output_tokens": int(plan.trace.output_tokens.sum()),
        },
        "objective": {name: getattr(plan.objective, name) for name in ("ttft_s", "tpot_s", "e2e_s")},
        "seeds": list(plan.seeds),
        "draws": plan.draws,
        "level": comparison.level,
        "interrupted": comparison.interrupted,
        "notes": comparison.notes,
        "what_ifs": [
            {
                "what_if": what_if,
                "cases": [_case(outcome) for outcome in outcomes],
                "best_possible": {
                    metric: {"value": _plain(value), "how": comparison.best[what_if].how[metric]}
                    for metric, value in comparison.best[what_if].values.items()
                },
                "best_possible_notes": comparison.best[what_if].notes,
            }
            for what_if, outcomes in comparison.outcomes.items()
        ],
    }


def _case(outcome: Outcome) -> dict[str, Any]:
    digest = outcome.digest
    return {
        "name": outcome.case,
        "runs": [{"seed": run.seed, "draw": run.draw} for run in outcome.runs],
        "exact_quantiles": digest.exact,
        "span_s": digest.span_s,
        "metrics": {metric: _metric(outcome, metric) for metric in METRICS},
        "against_baseline": [_test(test) for test in outcome.tests],
        "by": {
            column: {
                label: {name: _plain(value) for name, value in row.items()} for label, row in rows.items()
            }
            for column, rows in digest.by.items()
        },
        "instances": digest.instances,
        **_comings(digest.facts.get("instances") or {}),
        "budgets": {name: dict(budget) for name, budget in digest.budgets.items()},
        "budget_violations": digest.violations(),
        "cache": digest.facts.get("cache"),
        "not_answered": digest.facts.get("not_answered"),
        "little": {**digest.little._asdict(), "error": digest.little.error},
    }


def _comings(endpoints: Mapping[str, Sequence[tuple[float, int, int]]]) -> dict[str, Any]:
    """How the number of machines changed, where it does."""
    found = {
        name: [{"at_s": at_s, "ready": ready, "there": there} for at_s, ready, there in changes]
        for name, changes in endpoints.items()
    }
    return {"scaled": found} if found else {}


def _metric(outcome: Outcome, metric: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {"value": _plain(outcome.value(metric))}
    estimate = outcome.estimates.get(metric)
    if estimate is not None:
        found |= {"low": _plain(estimate.low), "high": _plain(estimate.high)}
        found |= {
            f"error_{part}": _plain(getattr(estimate.spread, part)) for part in ("traffic", "seeds", "fit")
        }
    return found


def _test(test: Difference) -> dict[str, Any]:
    numbers = ("difference", "low", "high", "p", "p_corrected")
    return {
        "metric": test.metric,
        **{name: _plain(getattr(test, name)) for name in numbers},
        "significant": test.significant,
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def shown(metric: str, value: float) -> str:
    """A number as people read it."""
    if not math.isfinite(value):
        return "–"
    unit = METRICS[metric].unit
    if unit == "s":
        return _seconds(value)
    if unit == "$":
        return f"${_digits(value)}"
    if unit == "share":
        return f"{100.0 * value:.1f} %"
    if unit == "J":
        return _scaled(value, "J")
    text = f"{value:,.0f}" if float(value).is_integer() else _digits(value)
    return f"{text} {unit}" if unit == "gCO2" else text


def _seconds(value: float) -> str:
    size = abs(value)
    if size < 1.0:
        return f"{1000.0 * value:.3g} ms" if size < 0.1 else f"{1000.0 * value:.0f} ms"
    return f"{value:.3g} s" if size < 1000.0 else f"{value:,.0f} s"


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def change(test: Difference) -> str:
    """A difference to the baseline, in percent where that means something."""
    if test.difference == 0.0:
        return "same"
    if test.baseline:
        percent = 100.0 * test.difference / abs(test.baseline)
        return f"{percent:+,.1f} %" if abs(percent) < 1000.0 else f"× {test.value / test.baseline:,.3g}"
    return f"{test.difference:+.3g}"


def good(test: Difference) -> bool:
    """Whether a difference goes the right way."""
    return test.difference * METRICS[test.metric].better > 0.0


def rows(outcomes: Sequence[Outcome]) -> list[str]:
    """The metrics of the table; how many machines there were where their number changes in some case."""
    there = set(shown_metrics(outcomes))
    if not any(outcome.digest.facts.get("instances") for outcome in outcomes):
        there -= {"instances", "rented_usd"}
    return [metric for metric in HEADLINE if metric in there]


Drawn = Mapping[tuple[str, str], tuple[str, str]]
"""By what-if and name of a picture its caption and the picture itself, as SVG."""


def draw(comparison: Comparison, folder: Path | None = None) -> Drawn:
    """All pictures; into ``folder`` as files, too (PNG and SVG)."""
    found = {}
    for number, (what_if, outcomes) in enumerate(comparison.outcomes.items()):
        for name, caption, figure in pictures(outcomes, comparison.best[what_if]):
            found[what_if, name] = caption, svg(figure)
            if folder is not None:
                stem = name if not number else f"{name}-{number + 1}"
                png(figure, folder / f"{stem}.png")
                (folder / f"{stem}.svg").write_text(found[what_if, name][1], encoding="utf-8")
    return found


def page(comparison: Comparison, drawn: Drawn, *, title: str = "Rehearsal") -> str:
    """The whole comparison as one HTML file: styles and pictures inside, no scripts, nothing fetched."""
    plan = comparison.plan
    parts = [_head(title), f"<h1>{_text(title)}</h1>", f"<p class=lead>{_text(_summary(comparison))}</p>"]
    for number, (what_if, outcomes) in enumerate(comparison.outcomes.items()):
        heading = "As it is" if not plan.what_ifs[number].changes else f"What if {what_if}"
        body = [
            _table(comparison, what_if, outcomes),
            *(
                f"<figure>{_unique(picture, f'{number}{name}')}<figcaption>{_text(caption)}</figcaption></figure>"
                for (of, name), (caption, picture) in drawn.items()
                if of == what_if
            ),
            *(_details(outcome) for outcome in outcomes),
        ]
        if number:
            parts.append(f"<details><summary><h2>{_text(heading)}</h2></summary>{''.join(body)}</details>")
        else:
            parts.append(f"<h2>{_text(heading)}</h2>{''.join(body)}")
    if len(comparison.outcomes) > 1:
        parts.insert(3, _what_ifs(comparison))
    notes = [*comparison.notes, *(note for best in comparison.best.values() for note in best.notes)]
    parts.append(_how(comparison, list(dict.fromkeys(notes))))
    return "\n".join([*parts, "</main></body></html>"]) + "\n"


def _summary(comparison: Comparison) -> str:
    plan = comparison.plan
    trace = plan.trace
    hours = trace.duration_s / 3600.0
    lasted = f"{hours:.1f} hours" if hours >= 2 else f"{trace.duration_s / 60.0:.1f} minutes"
    runs = sum(len(outcome.runs) for outcomes in comparison.outcomes.values() for outcome in outcomes)
    name = f"{trace.name}: " if trace.name else ""
    return (
        f"{name}{len(trace):,} requests over {lasted}, {int(trace.prompt_tokens.sum()):,} tokens in and "
        f"{int(trace.output_tokens.sum()):,} out; {runs} simulated {'run' if runs == 1 else 'runs'}. "
        f"A good answer: {plan.objective}."
    )


def _table(comparison: Comparison, what_if: str, outcomes: Sequence[Outcome]) -> str:
    best = comparison.best[what_if]
    heads = [_text(outcome.case) for outcome in outcomes]
    if len(outcomes) > 1:
        heads[0] += "<small>baseline</small>"
    head = "".join(f"<th>{name}</th>" for name in ("", *heads, "best possible"))
    lines = []
    for metric in rows(outcomes):
        tests = [
            None,
            *({test.metric: test for test in outcome.tests}.get(metric) for outcome in outcomes[1:]),
        ]
        cells = [_cell(outcome, metric, test) for outcome, test in zip(outcomes, tests, strict=True)]
        bound = best.values.get(metric, math.nan)
        how = f' title="{_text(best.how[metric])}"' if metric in best.how else ""
        under = f"<small>{_UNDER[metric]}</small>" if metric in _UNDER and math.isfinite(bound) else ""
        cells.append(f"<td class=best{how}>{shown(metric, bound)}{under}</td>")
        lines.append(f"<tr><th>{_text(METRICS[metric].title)}</th>{''.join(cells)}</tr>")
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(outcome: Outcome, metric: str, test: Difference | None) -> str:
    text = f"<b>{shown(metric, outcome.value(metric))}</b>"
    estimate = outcome.estimates.get(metric)
    if estimate is not None and estimate.high - estimate.low > 1e-9 * abs(estimate.value):
        text += f"<small>{shown(metric, estimate.low)} to {shown(metric, estimate.high)}</small>"
    if test is None:
        return f"<td>{text}</td>"
    kind = "same"
    said = change(test)
    if test.significant:
        kind = "better" if good(test) else "worse"
        said += ", significant"
    return f"<td class={kind}>{text}<small>{_text(said)}</small></td>"


def _what_ifs(comparison: Comparison) -> str:
    """One line for each what-if: what matters most."""
    shown_here = ("answered_share", "ttft_p90_s", "e2e_p90_s", "good_share", "usd_per_1k", "quality")
    first = next(iter(comparison.outcomes.values()))
    there = [metric for metric in shown_here if metric in shown_metrics(first)]
    head = "".join(
        f"<th>{_text(name)}</th>" for name in ("", "", *(METRICS[metric].title for metric in there))
    )
    lines = []
    for what_if, outcomes in comparison.outcomes.items():
        for number, outcome in enumerate(outcomes):
            cells = "".join(f"<td>{shown(metric, outcome.value(metric))}</td>" for metric in there)
            lines.append(
                f"<tr><th>{_text(what_if) if not number else ''}</th><th>{_text(outcome.case)}</th>{cells}</tr>"
            )
    return (
        f"<h2>At a glance</h2><div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _details(outcome: Outcome) -> str:
    """By tenant, model, action, priority; machines; budgets."""
    digest = outcome.digest
    columns = (
        "requests",
        "answered_share",
        "ttft_p50_s",
        "ttft_p90_s",
        "tpot_mean_s",
        "e2e_p50_s",
        "e2e_p90_s",
        "good_share",
        "usd",
        "quality",
    )
    parts = []
    for by, groups in digest.by.items():
        if len(groups) < 2 and by == "priority":
            continue
        head = "".join(
            f"<th>{_text(name)}</th>" for name in (by, *(METRICS[column].title for column in columns))
        )
        body = "".join(
            f"<tr><th>{_text(label)}</th>"
            + "".join(f"<td>{shown(column, row.get(column, math.nan))}</td>" for column in columns)
            + "</tr>"
            for label, row in groups.items()
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts.append(
        _plain_table(
            ("machine", "requests", "output tokens", "busy", "utilisation"),
            (
                (
                    each["instance"],
                    f"{each['requests']:,}",
                    f"{each['output_tokens']:,}",
                    "–" if each["busy_s"] is None else _seconds(each["busy_s"]),
                    "–" if each["utilisation"] is None else f"{100 * each['utilisation']:.1f} %",
                )
                for each in digest.instances
            ),
        )
    )
    if digest.budgets:
        parts.append(
            _plain_table(
                ("budget", "amount", "spent", "overrun"),
                (
                    (
                        name,
                        f"{budget.get('limit', 0):,.6g} {budget.get('unit', '')}",
                        f"{budget.get('spent', 0):,.6g}",
                        f"{budget.get('overrun', 0):,.6g}",
                    )
                    for name, budget in digest.budgets.items()
                ),
            )
        )
    inside = f"<summary>{_text(outcome.case)} in detail</summary><div class=wide>{''.join(parts)}</div>"
    return f"<details>{inside}</details>"


def _plain_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = "".join(
        f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>"
        for row in body
    )
    heads = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>" if lines else ""


def _how(comparison: Comparison, notes: Sequence[str]) -> str:
    first = next(iter(comparison.outcomes.values()))
    little = first[0].digest.little
    level = f"{100 * comparison.level:g} %"
    told = [
        f"Small numbers are {level} intervals; they allow for other traffic of this kind (blocks of the trace, "
        "resampled), for chance between seeds, and for the uncertainty of the profiles where these state it.",
        "“Significant” is said where a sign-flip permutation test, corrected (Holm) for all tests of its table, says "
        "so and the interval leaves out zero.",
        "The best possible is a bound: no policy on these endpoints does better, and none may reach it. Hover over a "
        "number to see how it was found.",
        f"Little's law on the first run: {little.in_system:.4g} requests in the system on average, "
        f"{little.rate_per_s:.4g} a second times {little.mean_s:.4g} s; relative difference {little.error:.1e}.",
    ]
    if comparison.interrupted:
        told.insert(0, interrupted(comparison))
    if not first[0].digest.exact:
        told.append("Quantiles are sketched, within 0.5 % of a value that occurred.")
    items = "".join(f"<li>{_text(line)}</li>" for line in (*told, *notes))
    return f"<h2>How to read this</h2><ul>{items}</ul>"


def interrupted(comparison: Comparison) -> str:
    """How much of the plan is not there."""
    return f"Interrupted: {comparison.interrupted} of {len(comparison.plan.jobs())} runs were not made."


def made(comparison: Comparison) -> tuple[int, int]:
    """How many seeds and draws of the profiles are in the numbers."""
    runs = next(iter(comparison.outcomes.values()))[0].runs
    return len({run.seed for run in runs}), len({run.draw for run in runs} - {0})


def within(value: float, low: float, high: float) -> str:
    """How far a number may be off: a factor where that is large, nothing where it is certain; with {} for a number."""
    if not 1e-9 * abs(value) < high - low < math.inf:
        return ""
    if value > 0.0 and high > _FAR * value:
        factor = high / value
        return f"within a factor of {factor:,.3g}" if factor < 1000.0 else "unknown"
    return "± {}"


def _unique(text: str, name: str) -> str:
    """The names inside a picture, made its own: several stand on one page."""
    return (
        text.replace(' id="', f' id="{name}-').replace('"#', f'"#{name}-').replace("url(#", f"url(#{name}-")
    )


def _text(text: str) -> str:
    return html.escape(text)


def _head(title: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title><style>{_CSS}</style></head><body><main>"""


_CSS: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5a6675; --line: #d9dfe7; --ground: #fff; --soft: #f5f7fa;
  --good: #1b7f4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --dim: #9aa6b5; --line: #343c48; --ground: #14181e;
  --soft: #1c222b; --good: #5fcf97; --bad: #ff8a80; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; } h2 { margin: 2rem 0 .6rem; font-size: 1.2rem; }
.lead { color: var(--dim); margin-top: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, tbody th { text-align: left; font-weight: 500; }
thead th { vertical-align: bottom; border-bottom-width: 2px; white-space: normal; }
td b { font-weight: 600; } small { display: block; color: var(--dim); font-size: .75rem; font-weight: 400; }
td.better small:last-child { color: var(--good); } td.worse small:last-child { color: var(--bad); }
td.best { background: var(--soft); color: var(--dim); }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; color: var(--ink); }
figcaption { color: var(--dim); font-size: .85rem; }
details { margin: .5rem 0; } summary { cursor: pointer; } summary h2 { display: inline; }
"""
