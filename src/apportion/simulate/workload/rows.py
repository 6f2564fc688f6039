"""Tables from files: CSV, JSON lines, Parquet, gzipped or not, in chunks of columns with the numbers of their lines."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from apportion.core.errors import ApportionError
from apportion.simulate.trace import TraceError

MISSING: Final[Any] = None


@dataclass(slots=True)
class Chunk:
    """Some rows: values by column, and the line of each row. ``broken`` are lines that are no rows, with what is
    wrong.
    """

    columns: dict[str, Sequence[Any]]
    lines: Sequence[int]
    broken: list[tuple[int, str]]


class SimulateExtraAbsentError(ApportionError):
    """A package of the extra ``simulate`` is needed and not installed."""

    code = "simulate_extra"


def parquet() -> Any:
    """`pyarrow.parquet`. Raises `SimulateExtraAbsentError`."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise SimulateExtraAbsentError(
            "Parquet files need pyarrow.", fix="Install it: pip install 'apportion[simulate]'."
        ) from None
    return pyarrow.parquet


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, unzipped where it is zipped. Raises `TraceError`."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            inner: Any = gzip.open(raw) if zipped else raw  # noqa: SIM115 - closed with what it reads
            with io.TextIOWrapper(inner, "utf-8-sig", newline="") as text:
                yield text
    except FileNotFoundError:
        raise TraceError(f"{path} is not there.", field="TRACE") from None
    except IsADirectoryError:
        raise TraceError(
            f"{path} is a directory.", field="TRACE", fix="Only a decision log (*.jsonl) may be one."
        ) from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not UTF-8 text: {error.reason}.", field="TRACE") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be read: {error}.", field="TRACE") from None


@contextmanager
def readable(path: Path) -> Iterator[Any]:
    """A Parquet file, open. Raises `TraceError` where it is broken, also while it is read."""
    try:
        yield parquet().ParquetFile(path)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise TraceError(f"{path} is no whole Parquet file: {error}.", field="TRACE") from None


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def header(path: Path) -> list[str]:
    """The names of the columns. Raises `TraceError`."""
    if is_parquet(path):
        with readable(path) as file:
            return list(file.schema_arrow.names)
    with opened(path) as text:
        first = text.readline()
    if not first.strip():
        raise TraceError(f"{path} is empty.", field="TRACE")
    if first.lstrip()[:1] == "{":
        return list(_object(first) or ())
    if first.lstrip()[:1] == "[":
        raise TraceError(
            f"{path} is one JSON array.", field="TRACE", fix="Write one JSON object on each line."
        )
    return [name.strip() for name in next(csv.reader([first]))]


def chunks(path: Path, wanted: Sequence[str], rows: int) -> Iterator[Chunk]:
    """The columns ``wanted``, at most ``rows`` rows at a time."""
    if is_parquet(path):
        yield from _parquet(path, wanted, rows)
        return
    with opened(path) as text:
        first = text.readline()
        if first.lstrip()[:1] == "{":
            yield from _json(itertools.chain([first], text), wanted, rows)
        else:
            names = [name.strip() for name in next(csv.reader([first]))]
            yield from _csv(text, names, wanted, rows)


def _csv(text: TextIO, names: Sequence[str], wanted: Sequence[str], rows: int) -> Iterator[Chunk]:
    reader = csv.reader(text)
    places = [names.index(name) for name in wanted]
    width = len(names)
    while True:
        kept: list[list[str]] = []
        lines: list[int] = []
        broken: list[tuple[int, str]] = []
        try:
            for row in reader:
                if len(row) == width:
                    kept.append(row)
                    lines.append(reader.line_num + 1)  # the header was read before
                elif row:
                    broken.append((reader.line_num + 1, f"{len(row)} fields where the header has {width}"))
                if len(kept) >= rows:
                    break
        except csv.Error as error:
            broken.append((reader.line_num + 1, str(error)))
            if not kept:
                yield Chunk(dict.fromkeys(wanted, ()), (), broken)
                continue
        if not kept and not broken:
            return
        turned = list(zip(*kept, strict=True)) or [()] * width
        yield Chunk({name: turned[place] for name, place in zip(wanted, places, strict=True)}, lines, broken)


def _json(lines: Iterator[str], wanted: Sequence[str], rows: int) -> Iterator[Chunk]:
    numbered = enumerate(lines, 1)
    while piece := list(itertools.islice(numbered, rows)):
        kept: list[dict[str, Any]] = []
        places: list[int] = []
        broken: list[tuple[int, str]] = []
        for number, text in piece:
            if not text.strip():
                continue
            found = _object(text)
            if found is None:
                broken.append((number, "not a JSON object"))
            else:
                kept.append(found)
                places.append(number)
        yield Chunk({name: [row.get(name) for row in kept] for name in wanted}, places, broken)


def _parquet(path: Path, wanted: Sequence[str], rows: int) -> Iterator[Chunk]:
    done = 0
    with readable(path) as file:
        for batch in file.iter_batches(rows, columns=list(wanted)):
            lines = range(done + 1, done + batch.num_rows + 1)
            done += batch.num_rows
            yield Chunk({name: batch.column(name).to_pylist() for name in wanted}, lines, [])


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else None
