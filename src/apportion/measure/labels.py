"""Tables of answers somebody has graded or measured: CSV or JSON lines, long or wide, gzipped or not; decision logs.

Long: a row is one answer, with columns for the prompt and the model, and its quality, its tokens or both. Wide: a row
is one prompt and every model has a column with its quality. Columns are found by their usual names; what is wrong is
said with file, line and column.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from apportion.core.errors import ApportionError
from apportion.measure import decision_log

PROMPT: Final = ("prompt", "text", "question", "query", "instruction", "input")
MODEL: Final = ("model", "model_name", "model_id")
QUALITY: Final = ("quality", "score", "correct", "label", "reward", "accuracy")
OUTPUT_TOKENS: Final = ("output_tokens", "completion_tokens", "generated_tokens", "response_tokens")
OUTPUT_CHARS: Final = ("output_chars", "response_chars", "answer_chars")
INPUT_TOKENS: Final = ("input_tokens", "prompt_tokens")
COST: Final = ("cost_usd", "cost")
FINISH: Final = ("finish_reason", "finish", "stop_reason")
CENSORED: Final = ("censored", "truncated")
GROUP: Final = ("group", "session", "conversation", "prompt_id", "query_id", "question_id", "idx", "id")
_CUT: Final = ("length", "max_tokens", "max_output_tokens")
_TRUE: Final = {"true": 1.0, "yes": 1.0, "pass": 1.0, "false": 0.0, "no": 0.0, "fail": 0.0}
_CHARS_PER_TOKEN: Final = 4.25

Progress = Callable[[int, int | None, str], None]


class LabelsError(ApportionError):
    """A table of graded or measured answers cannot be read: the message names the file, the line and the column."""

    code = "invalid_labels"


class Label(NamedTuple):
    """One answer. ``lexical`` stands in for the prompt where only its counts were kept; None is unknown."""

    prompt: str
    model: str
    quality: float | None = None
    output_tokens: float | None = None
    censored: bool = False
    input_tokens: float | None = None
    cost_usd: float | None = None
    group: str | None = None
    lexical: tuple[float, ...] | None = None


class Labels(NamedTuple):
    """What was read. ``skipped`` rows had no prompt, or nothing that is known of the answer."""

    rows: list[Label]
    skipped: int


def read(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (),
    scale: float = 1.0,
    progress: Progress = lambda done, total, label: None,
) -> Labels:
    """All answers of the tables and decision logs.

    ``models`` names the columns of wide tables that are models (left out: all whose first value is a quality).
    ``scale`` is what a perfect answer scores. ``progress`` is told bytes done, bytes in all and the file.

    Raises:
        LabelsError: with file, line and column.
    """
    found: list[Label] = []
    skipped = 0
    logs = [path for path in paths if path.is_dir() or _is_log(path)]
    for label in _logged(logs) if logs else ():
        if label is None:
            skipped += 1
        else:
            found.append(label)
    for path in paths:
        if path in logs:
            continue
        columns: _Columns | None = None
        for line, row in _rows(path, progress):
            if columns is None:
                columns = _Columns(path, line, row, models, scale)
            labels = columns.labels(line, row)
            skipped += not labels
            found += labels
    if not found:
        raise LabelsError(
            "No answer was found: every row lacks the prompt or what is known of the answer.", field="LABELS"
        )
    return Labels(found, skipped)


# --- files ------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TextIO, Any]]:
    """The text of a file, and the raw file under it, whose place tells the progress."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            inner: Any = gzip.open(raw) if zipped else raw  # noqa: SIM115 - closed with what it reads
            with io.TextIOWrapper(inner, "utf-8-sig", newline="") as text:
                yield text, raw
    except FileNotFoundError:
        raise LabelsError(f"{path} is not there.", field="LABELS") from None
    except IsADirectoryError:
        raise LabelsError(f"{path} is a directory.", field="LABELS") from None
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path} is not UTF-8 text: {error.reason}.", field="LABELS") from None
    except (OSError, EOFError) as error:
        raise LabelsError(f"{path} cannot be read: {error}.", field="LABELS") from None


def _rows(path: Path, progress: Progress) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with the number of their line, as mappings from column to value."""
    with _opened(path) as (text, raw):
        total = path.stat().st_size
        first = text.readline()
        if first.lstrip()[:1] == "{":
            rows = _json(path, first, text)
        elif first.lstrip()[:1] == "[":
            raise LabelsError(
                f"{path} is one JSON array.", field="LABELS", fix="Write one JSON object on each line."
            )
        else:
            rows = _csv(path, first, text)
        for number, (line, row) in enumerate(rows):
            if number % 500 == 0:
                progress(raw.tell(), total, path.name)
            yield line, row
        progress(total, total, path.name)


def _json(path: Path, first: str, text: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    line, row = 1, first
    while row:
        if row.strip():
            try:
                value = json.loads(row)
            except ValueError as error:
                raise LabelsError(f"{path}, line {line}: not JSON: {error}.", field="LABELS") from None
            if not isinstance(value, dict):
                raise LabelsError(f"{path}, line {line}: not a JSON object.", field="LABELS")
            yield line, value
        row = text.readline()
        line += 1


def _csv(path: Path, first: str, text: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    head = next(csv.reader([first]), [])
    if len(head) < 2 and "\t" in first:
        head = first.rstrip("\r\n").split("\t")
    delimiter = "\t" if "\t" in first and "," not in first else ","
    names = [name.strip() for name in head]
    if len(names) < 2 or len(set(names)) != len(names):
        raise LabelsError(
            f"{path}, line 1: no header of different column names was found.",
            field="LABELS",
            fix="The first line names the columns, such as prompt,model,quality.",
        )
    reader = csv.reader(text, delimiter=delimiter)
    try:
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise LabelsError(
                    f"{path}, line {reader.line_num + 1}: {len(cells)} values for {len(names)} columns.",
                    field="LABELS",
                )
            yield reader.line_num + 1, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise LabelsError(f"{path}, line {reader.line_num + 1}: {error}.", field="LABELS") from None


# --- columns ----------------------------------------------------------------------------------------


class _Columns:
    """Which column is what, decided at the first row."""

    def __init__(
        self, path: Path, line: int, row: Mapping[str, Any], models: Sequence[str], scale: float
    ) -> None:
        self._path, self._scale = path, scale
        names = {str(name).lower(): name for name in row}
        self._prompt = _first(names, PROMPT) or ("messages" if "messages" in row else None)
        if self._prompt is None:
            raise LabelsError(
                f"{path}, line {line}: there is no column with the prompt; it has {', '.join(map(str, row))}.",
                field="LABELS",
                fix=f"Name it one of {', '.join(PROMPT)} (or `messages`).",
            )
        self._model = _first(names, MODEL)
        self._group = _first(names, GROUP)
        self._quality = self._tokens = self._chars = self._input = self._cost = self._finish = (
            self._censored
        ) = None
        self._wide: list[str] = []
        if self._model is not None and not models:
            self._quality, self._tokens = _first(names, QUALITY), _first(names, OUTPUT_TOKENS)
            self._chars = _first(names, OUTPUT_CHARS)
            self._input, self._cost = _first(names, INPUT_TOKENS), _first(names, COST)
            self._finish, self._censored = _first(names, FINISH), _first(names, CENSORED)
            if self._quality is None and self._tokens is None and self._chars is None:
                raise LabelsError(
                    f"{path}, line {line}: there is no column with the quality or the output tokens of an answer.",
                    field="LABELS",
                    fix=f"Name it one of {', '.join((*QUALITY, *OUTPUT_TOKENS))}.",
                )
            return
        self._wide = self._models(line, row, models)

    def labels(self, line: int, row: Mapping[str, Any]) -> list[Label]:
        """The answers of one row."""
        prompt = self._text(row)
        if not prompt:
            return []
        group = None if self._group is None or row.get(self._group) in (None, "") else str(row[self._group])
        if self._wide:
            graded = [(name, self._grade(line, row, name)) for name in self._wide]
            return [
                Label(prompt, name, quality, group=group) for name, quality in graded if quality is not None
            ]
        model = str(row.get(self._model) or "") if self._model else ""
        if not model:
            raise LabelsError(f"{self._path}, line {line}, column {self._model}: no model.", field="LABELS")
        quality = None if self._quality is None else self._grade(line, row, self._quality)
        tokens = self._amount(line, row, self._tokens)
        if tokens is None and (chars := self._amount(line, row, self._chars)) is not None:
            tokens = chars / _CHARS_PER_TOKEN
        if quality is None and tokens is None:
            return []
        cut = self._finish is not None and row.get(self._finish) in _CUT
        if self._censored is not None:
            cut = cut or _flag(row.get(self._censored))
        return [
            Label(
                prompt,
                model,
                quality,
                tokens,
                cut,
                self._amount(line, row, self._input),
                self._amount(line, row, self._cost),
                group,
            )
        ]

    def _models(self, line: int, row: Mapping[str, Any], models: Sequence[str]) -> list[str]:
        missing = [name for name in models if name not in row]
        if missing:
            raise LabelsError(
                f"{self._path}, line {line}: there is no column {missing[0]!r}; it has {', '.join(map(str, row))}.",
                field="models",
            )
        if models:
            return list(models)
        known = (*PROMPT, *MODEL, *GROUP, *OUTPUT_TOKENS, *OUTPUT_CHARS, *INPUT_TOKENS, *COST, "messages")
        found = [
            str(name)
            for name, value in row.items()
            if str(name).lower() not in known and _number(value, self._scale) is not None
        ]
        if not found:
            raise LabelsError(
                f"{self._path}, line {line}: there is neither a column `model` nor one with qualities in "
                f"[0, {self._scale:g}]; it has {', '.join(map(str, row))}.",
                field="LABELS",
                fix="A long table has the columns prompt, model, quality; a wide one a column for each model "
                "(name them with --models).",
            )
        return found

    def _text(self, row: Mapping[str, Any]) -> str:
        value = row.get(self._prompt) if self._prompt else None
        if isinstance(value, list):  # a conversation: what was said last by the user, after what it answers
            said = [part for part in value if isinstance(part, dict) and isinstance(part.get("content"), str)]
            return "\n".join(str(part["content"]) for part in said[-3:])
        return value.strip() if isinstance(value, str) else ""

    def _grade(self, line: int, row: Mapping[str, Any], column: str) -> float | None:
        value = row.get(column)
        if value is None or value == "":
            return None
        number = _number(value, self._scale)
        if number is None:
            raise LabelsError(
                f"{self._path}, line {line}, column {column}: {str(value)[:40]!r} is not in [0, {self._scale:g}].",
                field=column,
                fix="Name the columns that are models with --models."
                if self._wide
                else "Scores out of ten are read with --scale 10.",
            )
        return number

    def _amount(self, line: int, row: Mapping[str, Any], column: str | None) -> float | None:
        value = None if column is None else row.get(column)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0.0):
            raise LabelsError(
                f"{self._path}, line {line}, column {column}: {str(value)[:40]!r} is not a number of zero or more.",
                field=column,
            )
        return number


def _first(names: Mapping[str, Any], wanted: Iterable[str]) -> str | None:
    return next((names[name] for name in wanted if name in names), None)


def _number(value: Any, scale: float) -> float | None:
    """A quality in [0, 1], or None if ``value`` is none."""
    if isinstance(value, str) and value.strip().lower() in _TRUE:
        return _TRUE[value.strip().lower()]
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value) / scale
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None


def _flag(value: Any) -> bool:
    return value is True or (
        isinstance(value, str | int) and str(value).strip().lower() in ("1", "true", "yes")
    )


# --- the proxy's own log ----------------------------------------------------------------------------


def _is_log(path: Path) -> bool:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    with _opened(path) as (text, _):
        first = text.readline(300)
    return '"kind":"log"' in first or '"kind":"decision"' in first


def _logged(paths: Sequence[Path]) -> Iterator[Label | None]:
    for row in decision_log.read(paths).rows:
        entry = row.entry
        known = row.quality is not None or entry.output_tokens
        if entry.status != "ok" or entry.action is None or entry.lexical is None or not known:
            yield None
            continue
        yield Label(
            "",
            entry.action,
            row.quality,
            entry.output_tokens or None,
            entry.censored or entry.finish in _CUT,
            entry.input_tokens,
            entry.cost.get("usd"),
            entry.id,
            tuple(count or 0.0 for count in entry.lexical),
        )
