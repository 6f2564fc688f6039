"""``apportion trace``: workloads read, changed, described, fitted, generated, and sent to a live endpoint."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from apportion.simulate.result import Result
    from apportion.simulate.trace import Trace
    from apportion.simulate.workload.model import Model
    from apportion.simulate.workload.replay import Progress

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(min=0.0, min_open=True)
_SHOWN_WINDOWS = 12


@click.group("trace")
def command() -> None:
    """Read, change, describe, fit, generate and send workloads.

    TRACE is a file of any known form: BurstGPT, Azure LLM inference, Mooncake, ServeGen (a table of rates beside its
    table of lengths), a decision log of this proxy, any CSV, JSON lines or Parquet with columns for time and tokens,
    zipped or not.
    """


def _reading(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random choices."
        ),
        click.option(
            "--column", "columns", multiple=True, metavar="FIELD=NAME", help="What the file calls a field."
        ),
        click.option(
            "--skip-bad", is_flag=True, help="Leave malformed rows out; they are counted and shown."
        ),
        click.option("--format", "format_", metavar="NAME", help="The form, where the header does not tell."),
    ):
        function = option(function)
    return function


@command.command("convert")
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True, type=_PATH)
@click.argument("output", type=_PATH)
@_reading
@click.option("--from", "start", metavar="DURATION", help="Leave out what comes before, for example 10m.")
@click.option("--until", metavar="DURATION", help="Leave out what comes after, for example 2h.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only requests for this model.")
@click.option("--tenant", "tenants", multiple=True, metavar="NAME", help="Only requests of this tenant.")
@click.option("--rate", type=_POSITIVE, help="So many times the requests in the same time.")
@click.option("--faster", type=_POSITIVE, help="The same requests in so many times less time.")
@click.option("--repeat", type=click.IntRange(1), default=1, help="So many times, one after the other.")
@click.option("--after", is_flag=True, help="Several traces one after the other, not at the same time.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def convert(
    traces: tuple[Path, ...],
    output: Path,
    format_: str | None,
    skip_bad: bool,
    columns: tuple[str, ...],
    seed: int,
    start: str | None,
    until: str | None,
    models: tuple[str, ...],
    tenants: tuple[str, ...],
    rate: float | None,
    faster: float | None,
    repeat: int,
    after: bool,
    json_: bool,
) -> None:
    """Write TRACE to OUTPUT as Parquet: cut, picked, thinned or thickened, several mixed.

    Times count from the first request. One trace that is in order is read and written piece by piece, whatever its
    size, unless --rate goes above 1, it is repeated, models or tenants are picked, or rows may be skipped.
    """
    from apportion.simulate.workload import DisorderError, open_trace, pieces, shape, write

    _for_parquet(output)
    named = _columns(columns)
    first_s, last_s = _duration(start, "--from", 0.0), _duration(until, "--until", float("inf"))
    notes: list[str] = []

    def picked(trace: Trace) -> Trace:
        if models or tenants:
            return shape.only(trace, models=models or None, tenants=tenants or None)
        return trace

    def whole() -> Trace:
        read = [open_trace(path, format_, skip_bad, columns=named, seed=seed) for path in traces]
        read = [picked(shape.window(shape.from_zero(trace), first_s, last_s)) for trace in read]
        trace = read[0] if len(read) == 1 else shape.after(read) if after else shape.mixed(read)
        if rate is not None:
            trace = shape.scaled(trace, rate, seed=seed)
        if faster is not None:
            trace = shape.compressed(trace, faster)
        return shape.repeated(trace, repeat) if repeat > 1 else trace

    def streamed() -> Iterator[Trace]:
        found: Iterator[Trace] = _from_zero(
            pieces(traces[0], format_, skip_bad=skip_bad, columns=named, seed=seed)
        )
        found = shape.window_pieces(found, first_s, last_s)
        if rate is not None:
            found = shape.thinned_pieces(found, rate, seed=seed)
        for trace in found:
            yield picked(shape.compressed(trace, faster) if faster is not None else trace)

    def told(found: Iterator[Trace]) -> Iterator[Trace]:
        for trace in found:
            notes.extend(note for note in trace.notes if note not in notes)
            yield trace

    alone = len(traces) == 1 and repeat == 1 and (rate is None or rate <= 1) and not (models or tenants)
    # Skipped rows are told with the whole trace only.
    if alone and not skip_bad:
        try:
            rows = write(output, told(streamed()))
        except DisorderError:
            rows = write(output, told(iter([whole()])))
    else:
        rows = write(output, told(iter([whole()])))
    if json_:
        from apportion.cli.show import as_json

        as_json({"file": str(output), "requests": rows, "notes": notes})
        return
    _notes(notes)
    click.echo(f"{rows:,} requests written to {output}.")


def _from_zero(found: Iterator[Trace]) -> Iterator[Trace]:
    from apportion.simulate.workload import shape

    start: float | None = None
    for trace in found:
        start = float(trace.arrival_s[0]) if start is None else start
        yield shape.moved(trace, -start)


@command.command("describe")
@click.argument("trace", metavar="TRACE", type=_PATH)
@_reading
@click.option("--plot", type=_PATH, metavar="PNG", help="Draw it.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def describe(
    trace: Path,
    format_: str | None,
    skip_bad: bool,
    columns: tuple[str, ...],
    seed: int,
    plot: Path | None,
    json_: bool,
) -> None:
    """Show what TRACE is like: rate, burstiness, lengths, models, conversations."""
    from apportion.cli.show import as_json, table
    from apportion.simulate.workload import open_trace
    from apportion.simulate.workload.describing import described

    read = open_trace(trace, format_, skip_bad, columns=_columns(columns), seed=seed)
    found = described(read)
    if plot is not None:
        from apportion.simulate.workload import pictures

        pictures.of_trace(read, plot)
    if json_:
        as_json(found)
        return
    _notes(found["notes"])
    table(found["name"], ("what", "how much"), [(name, value) for name, value in _lines(found) if value])


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "requests", f"{found['requests']:,}"
    yield "duration", _time(found["duration_s"])
    if found["rate_per_s"]:
        yield (
            "rate",
            f"{found['rate_per_s']:.3g} a second, {found['busiest_minute_per_s']:.3g} in the busiest minute",
        )
    if found["gap_cv"] is not None:
        yield "gaps", f"coefficient of variation {found['gap_cv']:.2f} (1: Poisson)"
    yield (
        "dispersion of counts",
        ", ".join(f"{value:.2f} in {width} s" for width, value in found["dispersion"].items()),
    )
    for side in ("prompt", "output"):
        one = found[f"{side}_tokens"]
        if one:
            yield (
                f"{side} tokens",
                f"mean {one['mean']:,.0f}, p50 {one['p50']:,.0f}, p90 {one['p90']:,.0f}, p99 {one['p99']:,.0f}, "
                f"max {one['max']:,.0f}",
            )
    if found["together"] is not None:
        yield "rank correlation", f"{found['together']:+.2f} of prompt and output"
    for name in ("models", "tenants"):
        shares = found[name] or {}
        yield name, ", ".join(f"{label or '(none)'} {share:.1%}" for label, share in list(shares.items())[:8])
    if found["failed"] is not None:
        yield "failed", f"{found['failed']:.2%}"
    talk = found["conversations"]
    if talk:
        yield (
            "conversations",
            f"{talk['conversations']:,}, {talk['mean_turns']:.2f} turns on the average, {talk['one_turn']:.0%} have "
            f"one; {talk['pause_p50_s']:.0f} s between turns (median)",
        )
    if found["blocks"]:
        yield (
            "prompt blocks",
            f"{found['blocks']['blocks']:,}, {found['blocks']['seen_before']:.1%} seen before",
        )
    if found["actions"]:
        yield "quality known of", ", ".join(found["actions"])


@command.command("fit")
@click.argument("trace", metavar="TRACE", type=_PATH)
@_reading
@click.option(
    "--output", "-o", type=_PATH, default=Path("workload.json"), show_default=True, help="The file to write."
)
@click.option(
    "--window", metavar="DURATION", help="Width of the windows of arrivals. Default: the best of several."
)
@click.option(
    "--length-window", metavar="DURATION", help="Width of the windows of lengths. Default: likewise."
)
@click.option(
    "--prompts",
    type=click.Choice(["empirical", "lognormal", "zipf"]),
    default="empirical",
    show_default=True,
    help="The law of prompt lengths.",
)
@click.option(
    "--outputs",
    type=click.Choice(["empirical", "lognormal", "zipf"]),
    default="empirical",
    show_default=True,
    help="The law of output lengths.",
)
@click.option("--plot", type=_PATH, metavar="PNG", help="Draw the trace beside what is generated.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def fit(
    trace: Path,
    format_: str | None,
    skip_bad: bool,
    columns: tuple[str, ...],
    seed: int,
    output: Path,
    window: str | None,
    length_window: str | None,
    prompts: Literal["empirical", "lognormal", "zipf"],
    outputs: Literal["empirical", "lognormal", "zipf"],
    plot: Path | None,
    json_: bool,
) -> None:
    """Fit a workload to TRACE, for `apportion trace generate`, and show how well it fits.

    TRACE may be the folder of BurstGPT's aggregates (daily, hourly_profile, week1_minute_tokens): then the workload is
    one of its size, 10.31 million requests of 213 days.
    """
    from apportion.cli.show import as_json
    from apportion.simulate.workload import fit as fitted
    from apportion.simulate.workload import open_trace, save

    if _is_burstgpt(trace):
        from apportion.simulate.workload import burstgpt

        model = burstgpt.model(trace, seed=seed)
    else:
        read = open_trace(trace, format_, skip_bad, columns=_columns(columns), seed=seed)
        _notes(read.notes)
        click.echo("Fitting ...", err=True)
        model = fitted(
            read,
            window_s=_duration(window, "--window", None),
            length_window_s=_duration(length_window, "--length-window", None),
            prompt_law=prompts,
            output_law=outputs,
            seed=seed,
        )
        if plot is not None:
            from apportion.simulate.workload import pictures

            pictures.of_fit(model, read, plot, seed=seed)
    save(model, output)
    if json_:
        as_json({"file": str(output), "requests": model.requests, "notes": model.notes, **model.fitness})
        return
    _notes(model.notes)
    _print_fit(model)
    click.echo(f"{model.requests:,.0f} requests in {_time(model.duration_s)}; written to {output}.")


def _is_burstgpt(path: Path) -> bool:
    return path.is_dir() and any((path / f"daily{end}").is_file() for end in (".csv", ".csv.gz"))


def _print_fit(model: Model) -> None:
    from apportion.cli.show import table

    report = model.fitness
    if not report:
        return
    rows: list[tuple[str, ...]] = [
        (
            _time(row["start_s"]),
            f"{row['requests']:,}",
            row["law"],
            f"{row['shape']:.2f}",
            f"{row['ks']:.3f}",
            f"{row['held_out']:.3f}",
            f"{row['exponential']:.3f}" + (" fits" if row["exponential_fits"] else ""),
        )
        for row in report["arrivals"]
    ]
    head: tuple[str, ...] = (
        "from",
        "requests",
        "law of the gaps",
        "gamma shape",
        "distance",
        "held out",
        "exponential",
    )
    table(f"Arrivals, windows of {_time(model.window_s)}", head, _few(rows, len(head)))
    rows = [
        (
            _time(row["start_s"]),
            f"{row['requests']:,}",
            *(f"{row[f'{kind}_{side}']:.3f}" for side in ("prompt", "output") for kind in ("ks", "held_out")),
        )
        for row in report["lengths"]
    ]
    head = ("from", "requests", "prompt: distance", "held out", "output: distance", "held out")
    table(f"Lengths, windows of {_time(model.length_window_s)}", head, _few(rows, len(head)))
    rows = [
        (f"{width} s", f"{one['trace']:.2f}", f"{one['generated']:.2f}", f"{one['off']:+.1%}")
        for width, one in report["dispersion"].items()
    ]
    table("Index of dispersion of counts", ("in bins of", "trace", "generated", "off"), rows)
    if model.talk is not None:
        click.echo(f"Conversations have {model.talk.mean_turns:.2f} turns on the average.")


def _few(rows: Sequence[tuple[str, ...]], width: int) -> Sequence[tuple[str, ...]]:
    """The rows, without those in the middle if they are many."""
    if len(rows) <= _SHOWN_WINDOWS:
        return rows
    half = _SHOWN_WINDOWS // 2
    left_out = (f"... {len(rows) - 2 * half} more", *[""] * (width - 1))
    return [*rows[:half], left_out, *rows[-half:]]


@command.command("generate")
@click.argument("model", metavar="MODEL", type=_PATH)
@click.argument("output", type=_PATH)
@click.option("--requests", type=click.IntRange(1), help="So many. Default: as many as the trace had.")
@click.option("--duration", metavar="DURATION", help="For so long, for example 1h. Default: as the trace.")
@click.option("--rate", type=_POSITIVE, default=1.0, show_default=True, help="So many times the rate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def generate(
    model: Path, output: Path, requests: int | None, duration: str | None, rate: float, seed: int, json_: bool
) -> None:
    """Generate requests from MODEL, which `apportion trace fit` has written, into OUTPUT (Parquet).

    Memory does not grow with their number.
    """
    from apportion.cli.show import as_json
    from apportion.simulate.workload import generated_pieces, load, write

    _for_parquet(output)
    fitted = load(model)
    duration_s = _duration(duration, "--duration", None)
    if requests is not None and duration_s is None:
        duration_s = float("inf")
    total = requests or int(fitted.requests * rate * (duration_s or fitted.duration_s) / fitted.duration_s)
    with _bar("Generating", total) as told:

        def counted() -> Iterator[Trace]:
            done = 0
            for piece in generated_pieces(fitted, seed, requests=requests, duration_s=duration_s, rate=rate):
                yield piece
                done += len(piece)
                told(done, "")

        rows = write(output, counted())
    if json_:
        as_json({"file": str(output), "requests": rows, "seed": seed})
    else:
        click.echo(f"{rows:,} requests written to {output}.")


@command.command("send")
@click.argument("trace", metavar="TRACE", type=_PATH)
@click.argument("url", metavar="URL")
@_reading
@click.option("--until", metavar="DURATION", help="Only the beginning of the trace, for example 10m.")
@click.option("--speed", type=_POSITIVE, default=1.0, show_default=True, help="So many times as fast.")
@click.option(
    "--model", "asked_for", default="", metavar="NAME", help="Ask for this model, whatever the trace says."
)
@click.option(
    "--map-model", "maps", multiple=True, metavar="TRACE=NAME", help="Ask for NAME where the trace has TRACE."
)
@click.option("--key", envvar="APPORTION_API_KEY", show_envvar=True, help="The key, if URL wants one.")
@click.option("--most-tokens", type=click.IntRange(1), help="Longest answer that is asked for.")
@click.option(
    "--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Ask for answers of exact length."
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Ask twice first, to make prompts of right length.",
)
@click.option(
    "--constraints", is_flag=True, help="Pass priorities and deadlines on, to a proxy of this kind."
)
@click.option(
    "--in-flight", type=click.IntRange(1), default=1024, show_default=True, help="Most requests at once."
)
@click.option(
    "--when-full",
    type=click.Choice(["wait", "drop"]),
    default="wait",
    show_default=True,
    help="What a request does that would be one more.",
)
@click.option("--out", type=_PATH, metavar="FILE", help="Write a row for every request (Parquet or CSV).")
@click.option("--plot", type=_PATH, metavar="PNG", help="Draw the times.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def send(
    trace: Path,
    url: str,
    format_: str | None,
    skip_bad: bool,
    columns: tuple[str, ...],
    seed: int,
    until: str | None,
    speed: float,
    asked_for: str,
    maps: tuple[str, ...],
    key: str | None,
    most_tokens: int | None,
    ignore_eos: bool,
    measure: bool,
    constraints: bool,
    in_flight: int,
    when_full: Literal["wait", "drop"],
    out: Path | None,
    plot: Path | None,
    json_: bool,
) -> None:
    """Send TRACE to URL, an endpoint of the OpenAI kind (http://127.0.0.1:8080/v1), at the times it was recorded.

    An open loop: nobody waits for an answer before the next request is sent, and a request's times count from when it
    was due. Ctrl-C sends no more and waits for the answers that are under way, twice gives them up; what came is
    shown.
    """
    from dataclasses import replace

    import numpy as np

    from apportion.cli.show import as_json
    from apportion.simulate.trace import TraceError
    from apportion.simulate.workload import open_trace, shape

    read = shape.from_zero(open_trace(trace, format_, skip_bad, columns=_columns(columns), seed=seed))
    _notes(read.notes)
    read = shape.window(read, 0.0, _duration(until, "--until", float("inf")))
    if not len(read):
        raise TraceError(f"{trace} has no requests.", field="TRACE")
    if read.model is None and not asked_for:
        raise click.UsageError("The trace does not say for which model; name one with --model.")
    if most_tokens is not None:
        read = replace(read, output_tokens=np.minimum(read.output_tokens, most_tokens))
    run = _run(
        _sent(
            read,
            url,
            {"key": key, "model": asked_for, "models": _pairs(maps, "--map-model"), "ignore_eos": ignore_eos}
            | {"constraints": constraints, "most_connections": in_flight},
            {"speed": speed, "most_in_flight": in_flight, "when_full": when_full},
            measure,
            seed,
        )
    )
    if out is not None:
        run.save(out)
    if plot is not None:
        from apportion.simulate.workload import pictures

        pictures.of_run(run, plot)
    if json_:
        as_json({**_sums(run), **run.facts})
        return
    _print_run(run)


async def _sent(
    trace: Trace, url: str, endpoint: dict[str, Any], how: dict[str, Any], measure: bool, seed: int
) -> Result:
    import gc
    import signal
    import time

    from apportion.cli._load import OpenAI
    from apportion.simulate.workload import replay
    from apportion.simulate.workload.prompts import Prompts

    transport = OpenAI(url, **endpoint)
    stop = replay.Stop()

    def interrupt() -> None:
        (stop.now if stop.asked.is_set() else stop.asked).set()

    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGINT, interrupt)
    gc.freeze()  # what is here stays: a collection of it would make requests late
    try:
        prompts = Prompts(trace, seed=seed)
        if measure:
            prompts.per_word, prompts.extra_tokens = await replay.measured(transport, trace, seed=seed)
        with _bar("Sending", len(trace)) as told:

            def watch(progress: Progress) -> None:
                told(progress.done, f"{progress.sent:,} sent, {progress.failed:,} failed")

            return await replay.send(
                trace, transport, prompts, clock=time.perf_counter, watch=watch, stop=stop, **how
            )
    finally:
        gc.unfreeze()
        if sys.platform != "win32":
            loop.remove_signal_handler(signal.SIGINT)
        transport.close()


def _run(sent: Coroutine[Any, Any, Result]) -> Result:
    """On the loop that is quicker, where there is one."""
    if sys.platform == "win32":
        return asyncio.run(sent)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(sent)


def _sums(run: Result) -> dict[str, Any]:
    import numpy as np

    from apportion.simulate.result import STATUSES

    answered = run["status"] == 0
    sums: dict[str, Any] = {
        "ended": len(run),
        "status": {name: int(np.count_nonzero(run["status"] == k)) for k, name in enumerate(STATUSES)},
    }
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = getattr(run, name)[answered]
        values = values[np.isfinite(values)]
        if len(values):
            p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
            sums[name] = {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99}
    return sums


def _print_run(run: Result) -> None:
    from apportion.cli.show import table

    sums, facts = _sums(run), run.facts
    rows = [
        (title, *(f"{sums[name][part] * 1e3:,.1f}" for part in ("mean", "p50", "p90", "p99")))
        for name, title in (
            ("ttft_s", "first token"),
            ("tpot_s", "each further token"),
            ("e2e_s", "end to end"),
        )
        if name in sums
    ]
    table("Times in ms", ("", "mean", "p50", "p90", "p99"), rows)
    late = facts["lateness_s"]
    if late:
        p50, p95, p99 = (f"{late[part] * 1e3:,.2f}" for part in ("p50", "p95", "p99"))
        click.echo(f"Sent late by {p50} ms (median), {p95} ms (p95), {p99} ms (p99).")
    shown = ", ".join(f"{count:,} {name}" for name, count in sums["status"].items() if count)
    click.echo(f"{facts['sent']:,} of {facts['requests']:,} requests sent: {shown or 'none ended'}.")
    for name, what in (("dropped", "left out, for too many were under way"), ("given_up", "given up")):
        if facts[name]:
            click.echo(f"{facts[name]:,} {what}.")
    if facts["waited_for_room"]:
        click.echo(f"{facts['waited_for_room']:,} waited for others to end (--in-flight).")
    for side in ("prompt", "output"):
        share = facts[f"{side}_tokens_of_wanted"]
        if share == share and abs(share - 1.0) > 0.02:
            click.echo(f"The endpoint counted {share:.1%} of the {side} tokens of the trace.")
    for why, count in list(facts["why"].items())[:5]:
        click.echo(f"  {count:,} x {why}")


# --- small things -----------------------------------------------------------------------------------


def _for_parquet(output: Path) -> None:
    """Refuse a name that says the file is another form than it will be."""
    if output.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".txt", ".gz"):
        raise click.BadParameter(
            f"is written as Parquet: call it {output.with_suffix('.parquet').name}.", param_hint="OUTPUT"
        )


def _columns(given: tuple[str, ...]) -> dict[str, str]:
    return _pairs(given, "--column")


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    found = {}
    for text in given:
        name, is_, value = text.partition("=")
        if not (name and is_ and value):
            raise click.BadParameter("has two names with = between.", param_hint=option)
        found[name] = value
    return found


def _duration(text: str | None, option: str, otherwise: Any) -> Any:
    from apportion.serve.config.units import duration_s

    if text is None:
        return otherwise
    found = duration_s(text)
    if found is None or found <= 0:
        raise click.BadParameter(f"{text!r} is no duration; write for example 10m or 2h.", param_hint=option)
    return found


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on standard error; away from a terminal one line."""
    if not sys.stderr.isatty():
        click.echo(f"{title} {total:,} requests ...", err=True)
        yield lambda done, label: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apportion.cli.show import console

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
        console=console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task(title, total=total, now="")
        yield lambda done, label: bars.update(task, completed=done, now=label)
