"""``apportion evaluate``: what another policy would have done and brought, from the decision log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from apportion.core.policy import Policy
    from apportion.measure.decision_log import Row
    from apportion.measure.evaluation import Estimate, Report

_TITLES = {
    "quality": "quality",
    "value_usd": "value, $ a request",
    "cost_usd": "cost, $ a request",
    "net_usd": "value less cost, $",
}


@click.command("evaluate")
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option("--policy", required=True, metavar="NAME", help="The policy, for example route/priced.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of it.")
@click.option("--against", metavar="NAME", help="A policy to compare it with, row by row.")
@click.option(
    "--against-param", "against_parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of that."
)
@click.option("--model", metavar="NAME", help="The logical model, where the log holds several.")
@click.option(
    "--learn-from",
    type=click.FloatRange(0, 0.95),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Let a policy that learns do so from this share of the log, its beginning, and judge it, frozen, on the rest.",
)
@click.option(
    "--replay",
    is_flag=True,
    help="Let it learn as it goes; only decisions that it would have made itself count.",
)
@click.option(
    "--level",
    type=click.FloatRange(0.5, 0.999),
    default=0.95,
    show_default=True,
    help="Confidence of the intervals.",
)
@click.option(
    "--most-weight",
    type=click.FloatRange(min=1.0),
    metavar="WEIGHT",
    help="Clip the weights: less variance, some bias.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap and the replay.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    logs: tuple[str, ...],
    policy: str,
    parameters: tuple[str, ...],
    against: str | None,
    against_parameters: tuple[str, ...],
    model: str | None,
    learn_from: float,
    replay: bool,
    level: float,
    most_weight: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Estimate from the decision log what another policy would have done and brought.

    LOG is a file or directory that `records.log` of a configuration has written. Estimates are doubly robust; others
    stand beside them. What to make of them: docs/guides/evaluate.md.
    """
    from apportion.measure import evaluation
    from apportion.measure.decision_log import read

    built = _built(policy, parameters, "--policy")
    other = None if against is None else _built(against, against_parameters, "--against")
    if replay and (other is not None or learn_from):
        raise click.UsageError("--replay goes neither with --against nor with --learn-from.")
    log = read(logs, model=model)
    rows = _of_one_model(log.rows)
    if replay:
        report = evaluation.replay(rows, built, level=level, seed=seed)
    else:
        report = evaluation.evaluate(
            rows,
            built,
            against=other,
            learn_from=learn_from,
            level=level,
            most_weight=most_weight,
            seed=seed,
        )
    if built.learns and not replay and not learn_from:
        report.warnings.insert(
            0, f"{policy} learns; here it has learned nothing. Use --learn-from 0.5, or --replay."
        )
    if log.broken:
        report.warnings.append(f"{log.broken} lines of the log could not be read.")
    if as_json:
        _json(policy, against, level, report)
    else:
        _print(policy, against, level, len(rows), report)


def _built(name: str, parameters: Sequence[str], option: str) -> Policy:
    from apportion.core import catalogue
    from apportion.core.policy import Policy

    given: dict[str, Any] = {}
    for text in parameters:
        key, is_, value = text.partition("=")
        if not (key and is_):
            raise click.BadParameter("a parameter is given as NAME=VALUE.", param_hint=f"{option} parameters")
        given[key] = _value(value)
    found = catalogue.build(name, **given)
    if not isinstance(found, Policy):
        raise click.BadParameter(f"{name} is no policy.", param_hint=option)
    return found


def _value(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _of_one_model(rows: Sequence[Row]) -> Sequence[Row]:
    models = sorted({row.entry.model for row in rows})
    if len(models) > 1:
        raise click.UsageError(f"The log holds several models: {', '.join(models)}. Name one with --model.")
    return rows


def _json(policy: str, against: str | None, level: float, report: Report) -> None:
    from apportion.cli.show import as_json

    data = asdict(report)
    for part in ("logged", "against"):
        data[part] = {name: _flat(each) for name, each in getattr(report, part).items()}
    data["estimates"] = {
        measure: {name: _flat(each) for name, each in found.items()}
        for measure, found in report.estimates.items()
    }
    as_json({"policy": policy, "compared_with": against, "level": level, **data})


def _flat(estimate: Estimate) -> Mapping[str, float]:
    return {"mean": estimate.mean, "low": estimate.interval.low, "high": estimate.interval.high}


def _print(policy: str, against: str | None, level: float, n: int, report: Report) -> None:
    from apportion.cli.show import console, table

    rows = []
    for measure, found in report.estimates.items():
        named = {"as logged": report.logged[measure], **found}
        for number, (name, estimate) in enumerate(named.items()):
            rows.append(["" if number else _TITLES[measure], name, *_cells(estimate)])
        if against is not None:
            rows.append(["", f"less {against}", *_cells(report.against[measure], signed=True)])
    table(f"{policy}, {report.method}", ("", "", "estimate", f"{level:.0%} interval"), rows)
    target = console()
    target.print(
        f"{report.rows:,} of {n:,} decisions, {report.labelled:,} with a known quality. "
        f"Agreement {report.agreement:.0%}, effective sample size {report.effective:,.0f}.",
        style="dim",
        soft_wrap=True,
    )
    for warning in report.warnings:
        target.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _cells(estimate: Estimate, *, signed: bool = False) -> tuple[str, str]:
    sign = "+" if signed else ""
    low, high = estimate.interval
    interval = f"{low:{sign}.4g} to {high:{sign}.4g}" if low == low else "not known"
    return f"{estimate.mean:{sign}.4g}", interval
