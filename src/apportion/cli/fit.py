"""``apportion fit``: predictors of quality and length, fitted to your own data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from apportion.core.features import Features
    from apportion.measure.labels import Label

_PATH = click.Path(path_type=Path)
_ENCODE_TOGETHER = 64


@click.group("fit")
def command() -> None:
    """Fit predictors of quality and length to your own data.

    LABELS and TRACE are CSV or JSON lines (gzipped or not) or decision logs of this proxy. Columns: the prompt
    (`prompt`, `text`, `question`, `query`), `model`, and `quality` in 0..1 or `output_tokens`. A wide table has a
    column of qualities for each model instead.
    """


@command.command("quality")
@click.argument("labels", nargs=-1, required=True, type=_PATH)
@click.option(
    "--output", "-o", type=_PATH, default=Path("quality.json"), show_default=True, help="The file to write."
)
@click.option(
    "--method",
    type=click.Choice(["mixture", "knn", "linear", "boosted"]),
    default="mixture",
    show_default=True,
    help="The predictor to fit.",
)
@click.option("--models", help="Columns of a wide table that are models, with commas between.")
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, help="What a perfect answer scores."
)
@click.option("--encoder/--no-encoder", default=True, help="Use what prompts mean, too (extra `text`).")
@click.option("--seed", type=click.IntRange(0), default=0, help="Start of the random choices.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def quality(
    labels: tuple[Path, ...],
    output: Path,
    method: str,
    models: str | None,
    scale: float,
    encoder: bool,
    seed: int,
    json_: bool,
) -> None:
    """Fit how well each model answers which prompts to graded answers."""
    from apportion.cli.show import as_json, table
    from apportion.measure.labels import LabelsError
    from apportion.predict.quality import _fit
    from apportion.serve import artefact

    rows, skipped = _read(labels, models, scale)
    graded = [row for row in rows if row.quality is not None]
    if not graded:
        raise LabelsError("No row has a quality.", field="LABELS", fix="Add a column `quality`, from 0 to 1.")
    prompts = list(dict.fromkeys((row.prompt, row.lexical) for row in graded))
    place = {prompt: n for n, prompt in enumerate(prompts)}
    names = sorted({row.model for row in graded})
    column = {name: n for n, name in enumerate(names)}
    total = [[0.0] * len(names) for _ in prompts]
    count = [[0] * len(names) for _ in prompts]
    groups: list[str] = [""] * len(prompts)
    for row in graded:
        at, model = place[row.prompt, row.lexical], column[row.model]
        total[at][model] += row.quality or 0.0
        count[at][model] += 1
        groups[at] = row.group or f"prompt {at}"
    mean = [
        [t / c if c else float("nan") for t, c in zip(*pair, strict=True)]
        for pair in zip(total, count, strict=True)
    ]
    features, used = _features(list(_once(graded)), encoder=encoder)
    with _working(f"fitting quality/{method}"):
        fitted = _fit.fit(features, names, mean, method=method, seed=seed, groups=groups)
    document = _fit.artefact(fitted, encoder=used, lexical="text/lexical")
    digest = artefact.write(output, document)
    report = fitted.report
    if json_:
        as_json(
            {"file": str(output), "sha256": digest, "skipped": skipped, "encoder": used, "report": report}
        )
        return
    shown = [
        (
            name,
            str(said["rows"]),
            f"{said['mean']:.3f}",
            f"{said['brier']:.4f}",
            f"{said['brier_of_mean']:.4f}",
            f"{said['ece']:.3f}",
        )
        for name, said in report["models"].items()
    ]
    head = ("model", "rows", "mean", "Brier", "Brier of the mean", "ECE")
    table(f"quality/{method} on held-out prompts", head, shown)
    click.echo(
        f"{len(prompts)} prompts, {len(names)} models, {_vectors(used)}; held out: "
        f"Brier {report['brier']:.4f}, calibration error {report['ece']:.3f}."
    )
    _written(output, digest, skipped)


@command.command("length")
@click.argument("trace", nargs=-1, required=True, type=_PATH)
@click.option(
    "--output", "-o", type=_PATH, default=Path("length.json"), show_default=True, help="The file to write."
)
@click.option("--encoder/--no-encoder", default=False, help="Use what prompts mean, too (extra `text`).")
@click.option("--seed", type=click.IntRange(0), default=0, help="Start of the random choices.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def length(trace: tuple[Path, ...], output: Path, encoder: bool, seed: int, json_: bool) -> None:
    """Fit how long each model's answers are to a trace of prompts and output tokens.

    Answers that a limit cut (`finish_reason` is `length`, or `censored` is true) count as at least so long.
    """
    from apportion.cli.show import as_json, table
    from apportion.measure.labels import LabelsError
    from apportion.predict.length import _fit
    from apportion.serve import artefact

    rows, skipped = _read(trace, None, 1.0)
    measured = [row for row in rows if row.output_tokens is not None]
    if not measured:
        raise LabelsError("No row has output tokens.", field="TRACE", fix="Add a column `output_tokens`.")
    unique, used = _features(list(_once(measured)), encoder=encoder)
    place = {(row.prompt, row.lexical): n for n, row in enumerate(_once(measured))}
    where = [place[row.prompt, row.lexical] for row in measured]
    with _counted("growing trees") as progress:
        fitted = _fit.fit(
            [unique[n] for n in where],
            [row.model for row in measured],
            [row.output_tokens or 0.0 for row in measured],
            [row.censored for row in measured],
            groups=[row.group or f"prompt {n}" for row, n in zip(measured, where, strict=True)],
            seed=seed,
            progress=progress,
        )
    document = _fit.artefact(fitted, encoder=used)
    digest = artefact.write(output, document)
    report = fitted.report
    if json_:
        as_json(
            {"file": str(output), "sha256": digest, "skipped": skipped, "encoder": used, "report": report}
        )
        return
    shown = [
        (
            name,
            str(said["rows"]),
            "" if said["median_tokens"] is None else f"{said['median_tokens']:.0f}",
            *(
                "" if said[key] is None else f"{said[key]:.3f}"
                for key in ("ranking", "below_p50", "below_p90")
            ),
        )
        for name, said in report["models"].items()
    ]
    head = ("model", "rows", "median tokens", "ranking", "below p50", "below p90")
    table("length/trees on held-out prompts", head, shown)
    best = max(report["heads"].values(), key=lambda found: found["r2"])
    click.echo(
        f"{report['prompts']} prompts, {report['rows']} answers ({report['censored']} cut by a limit), "
        f"{_vectors(used)}; held out: explains {best['r2']:.0%} of the spread of log lengths."
    )
    _written(output, digest, skipped)


def _read(paths: Sequence[Path], models: str | None, scale: float) -> tuple[list[Label], int]:
    from apportion.cli.show import bytes_progress
    from apportion.measure import labels

    named = [name.strip() for name in models.split(",") if name.strip()] if models else []
    with bytes_progress() as progress:
        found = labels.read(paths, models=named, scale=scale, progress=progress)
    return found.rows, found.skipped


def _once(rows: Sequence[Label]) -> Iterator[Label]:
    """The first row of each prompt, in order."""
    seen = set()
    for row in rows:
        if (row.prompt, row.lexical) not in seen:
            seen.add((row.prompt, row.lexical))
            yield row


def _features(rows: Sequence[Label], *, encoder: bool) -> tuple[list[Features], str | None]:
    """What predictors see of each prompt; the encoder that made the vectors, None without."""
    from apportion.core import catalogue
    from apportion.core.errors import ApportionError
    from apportion.core.features import Features

    lexical: Any = catalogue.build("text/lexical")
    counts = [row.lexical if row.lexical is not None else lexical.features(row.prompt) for row in rows]
    wrong = next((n for n, count in enumerate(counts) if len(count) != len(lexical.names)), None)
    if wrong is not None:
        raise ApportionError(
            f"A decision log has {len(counts[wrong])} counts a request, this version makes {len(lexical.names)}.",
            field="TRACE",
            fix="Fit to logs that this version wrote.",
        )
    if not encoder or any(not row.prompt for row in rows):
        return [Features(tuple(count)) for count in counts], None
    vectors = _encoded([row.prompt for row in rows])
    if vectors is None:
        return [Features(tuple(count)) for count in counts], None
    return [Features(tuple(c), v) for c, v in zip(counts, vectors, strict=True)], "text/minilm"


def _encoded(prompts: Sequence[str]) -> list[tuple[float, ...]] | None:
    """Vectors of the prompts; None, with a word of why, where the encoder cannot be had."""
    import importlib.util
    import os

    from apportion.cli.show import bytes_progress
    from apportion.core import catalogue
    from apportion.serve import store

    if not all(importlib.util.find_spec(name) for name in ("onnxruntime", "tokenizers")):
        click.echo("Going by counts alone: for vectors run pip install 'apportion[text]'.", err=True)
        return None
    try:
        with bytes_progress() as progress:
            files = store.ensure_encoder(progress=progress)
    except store.StoreError as error:
        click.echo(f"Going by counts alone: {error}", err=True)
        return None
    encoder: Any = catalogue.build(
        "text/minilm",
        model_file=str(files.model_file),
        tokenizer_file=str(files.tokenizer_file),
        threads=min(os.cpu_count() or 1, 64),
    )
    found: list[tuple[float, ...]] = []
    with _counted("encoding prompts") as progress:
        for start in range(0, len(prompts), _ENCODE_TOGETHER):
            found += encoder.encode(prompts[start : start + _ENCODE_TOGETHER])
            progress(len(found), len(prompts))
    return found


@contextmanager
def _counted(label: str) -> Iterator[Any]:
    """A progress bar on standard error for steps; away from a terminal one line."""
    import sys

    if not sys.stderr.isatty():
        click.echo(f"{label} ...", err=True)
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apportion.cli.show import console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def _working(label: str) -> Iterator[None]:
    """A spinner on standard error while something of unknown length is at work."""
    from apportion.cli.show import console

    target = console(stderr=True)
    if not target.is_terminal:
        click.echo(f"{label} ...", err=True)
        yield
        return
    with target.status(label):
        yield


def _vectors(encoder: str | None) -> str:
    return f"vectors of {encoder}" if encoder else "counts alone"


def _written(output: Path, digest: str, skipped: int) -> None:
    if skipped:
        click.echo(f"{skipped} rows had no prompt or nothing known of the answer and were left out.")
    click.echo(f"Written: {output} (SHA-256 {digest[:16]}...).")
