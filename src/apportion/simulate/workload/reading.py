"""Workloads from files of any known form. Rows that are malformed are counted and shown; nothing is dropped in
silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Blocks, Labels, Trace, TraceError, empty, joined
from apportion.simulate.workload import decisions, formats, rows, servegen, store
from apportion.simulate.workload.formats import Format

SHOWN: Final = 10
"""Malformed rows that are shown; all are counted."""
_MOST_TOKENS: Final = 2**31 - 1
_MOST_S: Final = 1e11
"""Seconds: 3,000 years. Later than that are only seconds that are none, and a float loses their microseconds."""


class DisorderError(TraceError):
    """A trace read in pieces is not in order of time."""

    code = "trace_order"


@dataclass
class Malformed:
    """The rows that are none: how many, and the first of them with their lines."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, found: Sequence[tuple[int, str]]) -> None:
        """Count them."""
        self.count += len(found)
        self.first += found[: max(0, SHOWN - len(self.first))]

    @property
    def rows(self) -> str:
        """How many, in words."""
        return f"{self.count:,} malformed row{'' if self.count == 1 else 's'}"

    def shown(self) -> str:
        """The first of them, one after the other."""
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return "; ".join(f"line {line}: {what}" for line, what in self.first) + more


def open_trace(
    path: str | Path,
    format: str | None = None,
    skip_bad: bool = False,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Trace:
    """A whole workload, in order of arrival. The form is recognised by the header; ``format`` names it.

    ``columns`` maps fields of a trace to the file's own names for them. ``seed`` is for forms that say rates instead
    of requests (ServeGen). What was done to it (sorted, rows skipped) stands in ``notes``.

    Raises:
        TraceError: the file, its form or its rows are not as they should be; with lines.
    """
    malformed = Malformed()
    read = list(_pieces(Path(path), format, 65536, malformed, columns, seed, check=False))
    _refuse(Path(path), malformed, skip_bad)
    trace = joined(read) if read else empty()
    notes = trace.notes
    if malformed.count:
        notes += (f"{malformed.rows} skipped ({malformed.shown()})",)
    late = int(np.count_nonzero(np.diff(trace.arrival_s) < 0))
    if late:
        trace = trace.take(np.argsort(trace.arrival_s, kind="stable"))
        notes += (f"sorted by time: {late:,} rows came before an earlier one",)
    return replace(trace, name=trace.name or _name(Path(path)), notes=notes)


def pieces(
    path: str | Path,
    format: str | None = None,
    *,
    rows: int = 65536,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Iterator[Trace]:
    """The workload at most ``rows`` requests at a time, in bounded memory. Codes of names mean the same in all pieces;
    later pieces may know more names.

    Raises:
        TraceError: as `open_trace`; malformed rows when all were read, so that they could be counted.
        DisorderError: the rows are not in order of time (read it whole, that sorts it).
    """
    malformed = Malformed()
    for piece in _pieces(Path(path), format, rows, malformed, columns, seed, check=True):
        if skip_bad or not malformed.count:
            yield piece
    _refuse(Path(path), malformed, skip_bad)


def _refuse(path: Path, malformed: Malformed, skip_bad: bool) -> None:
    if malformed.count and not skip_bad:
        raise TraceError(
            f"{path} has {malformed.rows}: {malformed.shown()}.",
            field="TRACE",
            fix="Mend them, or leave them out with --skip-bad.",
        )


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def form_of(path: Path, format: str | None) -> Format:
    """The form of a file. Raises `TraceError`."""
    if path.is_dir():
        return formats.DECISIONS
    if format is not None:
        return formats.named(format)
    if rows.is_parquet(path) and store.is_ours(path):
        return formats.TRACE
    if (
        "_lengths" in path.name
        and (rates := path.with_name(path.name.replace("_lengths", "_rates"))).is_file()
    ):
        raise TraceError(
            f"{path} has the lengths of ServeGen's clients, not when they ask.",
            field="TRACE",
            fix=f"Name {rates}.",
        )
    return formats.recognised([name.lower() for name in rows.header(path)])


def _pieces(
    path: Path,
    format: str | None,
    size: int,
    malformed: Malformed,
    columns: Mapping[str, str] | None,
    seed: int,
    *,
    check: bool,
) -> Iterator[Trace]:
    if not path.exists():
        raise TraceError(f"{path} is not there.", field="TRACE")
    form = form_of(path, format)
    if form is formats.TRACE:
        yield from store.pieces(path, size)
        return
    if form is formats.DECISIONS:
        trace = decisions.read(path, malformed.add)
        yield from _cut(trace, size)
        return
    if form is formats.SERVEGEN:
        yield from servegen.pieces(path, malformed.add, np.random.default_rng(seed), size)
        return
    placed = formats.placed(form, rows.header(path), columns, path)
    names: dict[str, _Names] = {own: _Names() for own in ("model", "tenant", "session") if own in placed}
    start: float | None = None
    last = -np.inf
    for chunk in rows.chunks(path, list(placed.values()), size):
        trace, at, broken = _parsed(form, placed, chunk, names)
        malformed.add(broken)
        if not len(trace):
            continue
        if start is None:
            start = at
        # A float does not hold the nanoseconds of a date: seconds are within the chunk, then from the first.
        trace = replace(trace, arrival_s=trace.arrival_s + (at - start))
        if check:
            trace = _in_order(path, trace, last)
            last = float(trace.arrival_s[-1])
        yield trace


def _in_order(path: Path, trace: Trace, last: float) -> Trace:
    if np.any(np.diff(trace.arrival_s) < 0):
        trace = trace.take(np.argsort(trace.arrival_s, kind="stable"))
    if trace.arrival_s[0] < last:
        raise DisorderError(
            f"{path} is not in order of time: a row of {trace.arrival_s[0]:g} s comes after one of {last:g} s.",
            field="TRACE",
            fix="Sort it first: `apportion trace convert` does.",
        )
    return trace


def _cut(trace: Trace, size: int) -> Iterator[Trace]:
    for begin in range(0, len(trace), size):
        yield trace.take(slice(begin, begin + size))


# --- columns ----------------------------------------------------------------------------------------


class _Names:
    """Names by number, in the order in which they appear, over all pieces."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def codes(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """Numbers of names; -1 for none."""
        known = self.known
        return np.array(
            [-1 if v is None or v == "" else known.setdefault(str(v), len(known)) for v in values], np.int64
        )


class _Wrong(ValueError):
    """A value is not what its column holds."""


def _parsed(
    form: Format, placed: Mapping[str, str], chunk: rows.Chunk, names: Mapping[str, _Names]
) -> tuple[Trace, float, list[tuple[int, str]]]:
    """A trace with seconds after ``at`` (of dates the chunk's first, else 0), ``at``, and the broken rows by line."""
    broken = list(chunk.broken)
    good = np.ones(len(chunk.lines), bool)
    values: dict[str, Any] = {}
    at = 0.0
    for name, column in placed.items():
        raw = chunk.columns[column]
        if name in names:
            values[name] = raw
            continue
        parse = _PARSERS[name]
        bad: list[tuple[int, str]] = []
        if name == "arrival_s":
            parsed, at, bad = _times(raw, form.second.get(column.strip().lower(), 1.0))
        else:
            parsed, bad = _each(raw, parse)
        values[name] = parsed
        for row, what in bad:
            if good[row]:
                broken.append((chunk.lines[row], f"{column}: {what}"))
            good[row] = False
    kept = np.flatnonzero(good)
    whole = len(kept) == len(good)
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in names:
            codes = names[name].codes(value if whole else [value[i] for i in kept])
            made[name] = (
                codes if name == "session" else Labels(codes.astype(np.int32), tuple(names[name].known))
            )
        elif name == "blocks":
            lists = [value[i] for i in kept]
            sizes = np.array([0, *map(len, lists)], np.int64)
            ids = np.fromiter(chain.from_iterable(lists), np.int64)
            made[name] = Blocks(np.cumsum(sizes), ids, form.block_tokens)
        else:
            made[name] = value[kept]
    if form.failed_without_output:
        made["failed"] = made["output_tokens"] == 0
    return Trace(**made), at, sorted(broken)


def _times(raw: Sequence[Any], per_second: float) -> tuple[NDArray[np.float64], float, list[tuple[int, str]]]:
    """Seconds after the first of the dates, or numbers as they are; with what has to be added."""
    sample = next((value for value in raw if value not in (None, "")), None)
    if isinstance(sample, datetime) or (isinstance(sample, str) and _is_date(sample)):
        dates, bad = _each(raw, _DATES)
        first = next((d for i, d in enumerate(dates) if not np.isnat(d)), np.datetime64(0, "ns"))
        return (dates - first).astype(np.int64) / 1e9, float(first.astype(np.int64)) / 1e9, bad
    numbers, bad = _each(raw, _PARSERS["arrival_s"])
    seconds = numbers / per_second
    far = np.flatnonzero(np.abs(seconds) > _MOST_S)
    return (
        seconds,
        0.0,
        bad + [(row, f"{raw[row]} is no time in seconds (milliseconds?)") for row in far.tolist()],
    )


def _is_date(text: str) -> bool:
    return len(text) > 9 and text[4:5] == "-" and text[7:8] == "-"


@dataclass(frozen=True)
class _Parser:
    whole: Callable[[Sequence[Any]], NDArray[Any]]
    """A column at once; raises ValueError, TypeError or OverflowError where it cannot."""
    one: Callable[[Any], Any]
    """One value; raises the same."""
    none: Any
    """What stands for a value that is wrong."""
    noun: str = "number"


def _each(raw: Sequence[Any], parser: _Parser) -> tuple[Any, list[tuple[int, str]]]:
    try:
        return parser.whole(raw), []
    except (ValueError, TypeError, OverflowError):
        pass
    values, bad = [], []
    for row, value in enumerate(raw):
        try:
            values.append(parser.one(value))
        except _Wrong as error:
            bad.append((row, str(error)))
            values.append(parser.none)
        except (ValueError, TypeError, OverflowError):
            bad.append((row, f"{value!r} is no {parser.noun}"))
            values.append(parser.none)
    return parser.whole(values), bad


def _all_tokens(raw: Sequence[Any]) -> NDArray[np.int32]:
    numbers = np.asarray(raw).astype(np.float64)
    if not np.all((numbers >= 0) & (numbers <= _MOST_TOKENS) & (numbers == np.floor(numbers))):
        raise ValueError
    return numbers.astype(np.int32)


def _tokens(value: Any) -> int:
    number = float(value)
    if not number.is_integer():
        raise _Wrong(f"{value} is not a whole number")
    if not 0 <= number <= _MOST_TOKENS:
        raise _Wrong(f"{value} is not between 0 and {_MOST_TOKENS}")
    return int(number)


def _all_finite(raw: Sequence[Any]) -> NDArray[np.float64]:
    numbers = np.asarray(raw).astype(np.float64)
    if not np.all(np.isfinite(numbers)):
        raise ValueError
    return numbers


def _finite(value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise _Wrong(f"{value} is not finite")
    return number


def _deadline(value: Any) -> float:
    if value is None or value == "":
        return float("nan")
    number = float(value)
    if number <= 0:
        raise _Wrong(f"{value} is not positive")
    return number


def _priority(value: Any) -> int:
    number = 0 if value is None or value == "" else int(value)
    if not -128 <= number <= 127:
        raise _Wrong(f"{value} is not between -128 and 127")
    return number


_TRUTH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "0": False,
    "false": False,
    "no": False,
    "": False,
    "none": False,
}


def _failed(value: Any) -> bool:
    try:
        return _TRUTH[str(value).strip().lower()]
    except KeyError:
        raise _Wrong(f"{value!r} is neither true nor false") from None


def _ids(value: Any) -> Sequence[int]:
    if value is None:
        return []
    return [int(number) for number in (value.split() if isinstance(value, str) else value)]


def _date(value: Any) -> np.datetime64:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "ns")


def _all_dates(raw: Sequence[Any]) -> NDArray[np.datetime64]:
    if raw and isinstance(raw[0], str):
        raw = [text.removesuffix("Z").removesuffix("+00:00") for text in raw]
        if any("+" in text or text.count("-") > 2 for text in raw):
            raise ValueError
    return np.asarray(raw, "datetime64[ns]")


def _one_by_one(one: Callable[[Any], Any], kind: Any) -> Callable[[Sequence[Any]], NDArray[Any]]:
    return lambda raw: np.array([one(value) for value in raw], kind)


_DATES: Final = _Parser(_all_dates, _date, np.datetime64("NaT"), "date")
_PARSERS: Final[Mapping[str, _Parser]] = {
    "arrival_s": _Parser(_all_finite, _finite, 0.0),
    "prompt_tokens": _Parser(_all_tokens, _tokens, 0),
    "output_tokens": _Parser(_all_tokens, _tokens, 0),
    "priority": _Parser(_one_by_one(_priority, np.int8), _priority, 0),
    "deadline_s": _Parser(_one_by_one(_deadline, np.float64), _deadline, None),
    "failed": _Parser(_one_by_one(_failed, np.bool_), _failed, False),
    "blocks": _Parser(lambda raw: _listed([_ids(value) for value in raw]), _ids, [], "list of ids"),
}


def _listed(lists: Sequence[Sequence[int]]) -> NDArray[Any]:
    made = np.empty(len(lists), object)
    for place, ids in enumerate(lists):
        made[place] = ids
    return made
