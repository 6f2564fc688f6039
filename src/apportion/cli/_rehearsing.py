"""What `replay` and `compare` share: a trace and configurations become runs, and these become tables and files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from apportion.simulate.compare import Case, Comparison, Outcome
    from apportion.simulate.pool import Engine
    from apportion.simulate.trace import Trace

_Command = TypeVar("_Command", bound=Callable[..., object])
_LITTLE = 10_000
"""Requests that are simulated sooner than processes are started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command line."""

    format: str | None
    skip_bad: bool
    until: str | None
    rate: float | None
    objective: str | None
    what_ifs: tuple[str, ...]
    seeds: int
    draws: int | None
    level: float
    engine: Engine | None
    workers: int | None
    json_: bool
    html: Path | None
    out: Path | None
    rows: str
    columns: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, str]:
        """What the file calls fields of a trace."""
        pairs = [text.partition("=") for text in self.columns]
        for name, _, value in pairs:
            if not name or not value:
                raise click.BadParameter("has two names with = between.", param_hint="--column")
        return {name: value for name, _, value in pairs}


def options(command: _Command) -> _Command:
    """The options that both commands have."""
    for option in (
        click.option(
            "--rows",
            type=click.Choice(("parquet", "csv")),
            default="parquet",
            show_default=True,
            help="How the rows of the runs are written into --out.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="FOLDER",
            help="Write everything there: report.html, report.json, pictures, the rows of every run.",
        ),
        click.option(
            "--html",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Write the report as one HTML page.",
        ),
        click.option("--json", "json_", is_flag=True, help="As JSON."),
        click.option(
            "--workers", type=click.IntRange(1, 1024), help="Runs at a time; as many as there are processors."
        ),
        click.option(
            "--engine",
            type=click.Choice(("processes", "ray", "serial")),
            help="Where the runs are made: processes, or one after the other (serial) where there is little to do.",
        ),
        click.option(
            "--level",
            type=click.FloatRange(0.5, 0.999),
            default=0.95,
            show_default=True,
            help="Confidence of intervals and tests.",
        ),
        click.option(
            "--draws",
            type=click.IntRange(0, 1000),
            help="Runs with other constants of the profiles that fit as well: 4 where profiles have them, else 0.",
        ),
        click.option(
            "--what-if",
            "what_ifs",
            multiple=True,
            metavar="CHANGE",
            help="rate=2, lose=ENDPOINT[@10m], slow:ENDPOINT=1.5[@10m], price[:ENDPOINT]=2, budget[:NAME]=0.5, "
            "instances:ENDPOINT=4; several at once with commas. Each is run besides.",
        ),
        click.option(
            "--objective",
            metavar="LIMITS",
            help="What makes an answer a good one, for example ttft=1s,tpot=50ms,e2e=30s.",
        ),
        click.option(
            "--rate", type=click.FloatRange(min=0.0, min_open=True), help="So many times the requests."
        ),
        click.option(
            "--until", metavar="DURATION", help="Only the beginning of the trace, for example 10m or 2h."
        ),
        click.option(
            "--skip-bad", is_flag=True, help="Leave malformed rows out; they are counted and shown."
        ),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="FIELD=NAME",
            help="What the trace's file calls a field.",
        ),
        click.option("--format", metavar="NAME", help="The trace's format, where its header does not tell."),
    ):
        command = option(command)
    return command


def asked(**given: Any) -> Asked:
    """The options as they come from click; those that cannot be are refused before anything is read."""
    from apportion.simulate.metrics import Objective, seconds
    from apportion.simulate.whatif import parse

    wanted = Asked(**given)
    Objective.parse(wanted.objective or "")
    for text in wanted.what_ifs:
        parse(text)
    if wanted.until is not None:
        seconds(wanted.until, "--until")
    if wanted.html is not None or wanted.out is not None:
        _needed("matplotlib", "--html" if wanted.html is not None else "--out", "pictures")
    if wanted.out is not None and wanted.rows == "parquet":
        _needed("pyarrow", "--out", "Parquet", ", or say --rows csv")
    return wanted


def _needed(module: str, option: str, what: str, otherwise: str = "") -> None:
    """Refuse an option now, not after all runs, where what it needs is not installed."""
    if find_spec(module) is None:
        raise click.UsageError(
            f"{option} needs {module} for {what}: pip install 'apportion[simulate]'{otherwise}."
        )


def opened(path: str, wanted: Asked) -> Trace:
    """The trace, cut and thinned or thickened as asked."""
    from apportion.simulate.metrics import seconds
    from apportion.simulate.trace import TraceError
    from apportion.simulate.workload import open_trace, shape

    _say(f"Reading {path} ...")
    trace = open_trace(path, wanted.format, wanted.skip_bad, columns=wanted.named)
    for note in trace.notes:
        _say(f"note: {note}")
    if wanted.until is not None and len(trace):
        trace = shape.window(
            trace, float(trace.arrival_s[0]), float(trace.arrival_s[0]) + seconds(wanted.until, "--until")
        )
    if wanted.rate is not None:
        trace = shape.scaled(trace, wanted.rate)
    if not len(trace):
        raise TraceError(
            f"{path} has no requests.", field="TRACE", fix="Check --until and --rate, or the file."
        )
    _say(
        f"{len(trace):,} requests over {trace.duration_s:,.0f} s: {trace.prompt_tokens.mean():,.0f} tokens in and "
        f"{trace.output_tokens.mean():,.0f} out on average."
    )
    return trace


def case(path: str, name: str | None = None) -> Case:
    """A configuration file as what is simulated."""
    _say(f"Reading {path} ...")
    from apportion.cli._scenario import scenario_of
    from apportion.serve.config.reader import load
    from apportion.simulate.compare import Case

    name = name or Path(path).stem
    return Case(name, scenario_of(load(path), beside=Path(path).parent, name=name))


def with_baseline(one: Case) -> tuple[Case, ...]:
    """A configuration before which stands the same with every model's ``baseline`` in place of its policy; only itself
    where that is the same.
    """
    from apportion.simulate.compare import Case

    models = tuple(replace(model, policy=model.baseline, shadow=None) for model in one.scenario.models)
    if all(model.policy == model.baseline for model in one.scenario.models):
        return (one,)
    names = {getattr(model.baseline, "name", "baseline").rpartition("/")[2] for model in one.scenario.models}
    name = f"baseline ({', '.join(sorted(names))})"
    return Case(name, replace(one.scenario, models=models, name=name)), one


def named_rightly(cases: Sequence[Case], wanted: Asked) -> None:
    """Refuse what-ifs of endpoints and budgets that are not there, before a trace is read for them."""
    from apportion.simulate.trace import empty
    from apportion.simulate.whatif import parse

    for text in wanted.what_ifs:
        for each in cases:
            parse(text).apply(each.scenario, empty())


def rehearse(cases: Sequence[Case], trace: Trace, wanted: Asked, title: str) -> None:
    """Run everything, and show and write what came of it."""
    from apportion.simulate.compare import Plan, compare, has_draws
    from apportion.simulate.engine import cold
    from apportion.simulate.metrics import Objective
    from apportion.simulate.whatif import AS_IS, parse

    draws = wanted.draws
    if draws is None:
        draws = 4 if any(has_draws(each.scenario) for each in cases) else 0
    plan = Plan(
        tuple(cases),
        trace,
        what_ifs=(AS_IS, *(parse(text) for text in wanted.what_ifs)),
        seeds=tuple(range(wanted.seeds)),
        draws=draws,
        objective=Objective.parse(wanted.objective or ""),
        out=wanted.out,
        form=wanted.rows,
    )
    jobs = len(plan.jobs())
    engine: Engine = wanted.engine or ("serial" if jobs == 1 or jobs * len(trace) <= _LITTLE else "processes")
    if cold():  # here, or every process would do it
        _say("Compiling the simulator: about a minute, once ...")
        little = replace(
            plan, trace=trace.take(slice(0, 20)), what_ifs=(AS_IS,), seeds=(0,), draws=0, out=None
        )
        compare(little, engine="serial")
    with _progress() as told:
        comparison = compare(plan, engine=engine, workers=wanted.workers, level=wanted.level, told=told)
    _write(comparison, wanted, title)
    if wanted.json_:
        from apportion.cli.show import as_json
        from apportion.simulate.report import as_data

        as_json(as_data(comparison))
    else:
        _show(comparison)


def _write(comparison: Comparison, wanted: Asked, title: str) -> None:
    import msgspec

    from apportion.simulate import report

    pages = [path for path in (wanted.html, wanted.out and wanted.out / "report.html") if path is not None]
    if not pages:
        return
    drawn = report.draw(comparison, wanted.out)
    text = report.page(comparison, drawn, title=title)
    for path in pages:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        _say(f"Wrote {path}")
    if wanted.out is not None:
        (wanted.out / "report.json").write_bytes(msgspec.json.encode(report.as_data(comparison)))


def _show(comparison: Comparison) -> None:
    """The tables of the terminal."""
    from apportion.cli.show import console, table
    from apportion.simulate import report
    from apportion.simulate.metrics import METRICS

    for number, (what_if, outcomes) in enumerate(comparison.outcomes.items()):
        best = comparison.best[what_if]
        head = ["", *(outcome.case for outcome in outcomes), "best possible"]
        rows = []
        for metric in report.rows(outcomes):
            cells = [_cell(outcome, metric) for outcome in outcomes]
            bound = best.values.get(metric)
            rows.append([METRICS[metric].title, *cells, "" if bound is None else report.shown(metric, bound)])
        table("As it is" if not number else f"What if {what_if}", head, rows)
    target = console()
    first = next(iter(comparison.outcomes.values()))
    for outcome in first:
        for name in outcome.digest.violations():
            budget = outcome.digest.budgets[name]
            target.print(
                f"{outcome.case}: budget {name} was overrun by {budget['overrun']:,.6g} {budget.get('unit', '')}.",
                style="yellow",
                soft_wrap=True,
            )
    plan = comparison.plan
    told = [f"A good answer: {plan.objective}."]
    if len(first) > 1:
        told.append(
            f"In brackets: against {first[0].case}; * significant (sign-flip permutation test, Holm's correction, "
            f"{comparison.level:.0%})."
        )
    told.append("Best possible: no policy on these endpoints does better, and none may reach it.")
    if any({"usd", "usd_per_1k", "quality"} & best.values.keys() for best in comparison.best.values()):
        told.append(
            f"Its cost is that at the quality of {first[0].case}, its quality that at the cost of {first[0].case}: who "
            "pays more may have more."
        )
    told.append(_uncertain(comparison))
    if comparison.interrupted:
        told.insert(0, report.interrupted(comparison))
    for line in told:
        target.print(line, style="dim", soft_wrap=True)
    for note in dict.fromkeys(
        (*comparison.notes, *(note for best in comparison.best.values() for note in best.notes))
    ):
        target.print(f"note: {note}", style="yellow", soft_wrap=True)


def _uncertain(comparison: Comparison) -> str:
    from apportion.simulate.report import made

    n, fits = made(comparison)
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    draws = f" and {fits} draw{'s' if fits > 1 else ''} of the profiles' fit" if fits else ""
    return f"After ±: {seeds}{draws}, and other traffic of this kind (blocks of the trace, resampled)."


def _cell(outcome: Outcome, metric: str) -> str:
    """A number, how far it may be off, and what it is against the baseline."""
    from apportion.simulate import report
    from apportion.simulate.metrics import METRICS

    text = report.shown(metric, outcome.value(metric))
    estimate = outcome.estimates.get(metric)
    if estimate is not None:
        off = report.within(estimate.value, estimate.low, estimate.high)
        half = (estimate.high - estimate.low) / 2
        if METRICS[metric].unit == "share" and off and estimate.value + half > 1.0:
            text += f" ({report.shown(metric, estimate.low)} to {report.shown(metric, estimate.high)})"
        elif off.startswith("±"):
            text += f" ± {report.shown(metric, half)}"
        elif off:
            text += f" ({off})"
    test = next((test for test in outcome.tests if test.metric == metric), None)
    if test is not None and test.difference:
        text += f" ({report.change(test)}{'*' if test.significant else ''})"
    return text


def _say(text: str) -> None:
    """What is going on: not part of the answer, hence on standard error."""
    click.echo(text, err=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error; away from a terminal a line for every tenth of the runs."""
    if not sys.stderr.isatty():
        last = [0]

        def line(done: int, of: int, name: str) -> None:
            if of > 1 and (not done or done == of or 10 * (done - last[0]) >= of):
                last[0] = done
                _say(f"{done} of {of} runs" + (f": {name}" if name else " ..."))

        yield line
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from apportion.cli.show import console

    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        tasks: list[TaskID] = []

        def bar(done: int, of: int, name: str) -> None:
            if not tasks:
                tasks.append(bars.add_task("", total=of))
            bars.update(tasks[0], completed=done, description=name)

        yield bar
