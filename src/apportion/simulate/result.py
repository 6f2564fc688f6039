"""What a run has brought: a row for each request, as columns."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError

OK, REFUSED, FAILED, TIMEOUT, CUT = range(5)
"""How a request ended: answered, not let in (budget, admission, queue full), failed at every endpoint, its deadline
passed, answered but ended by a limit."""
STATUSES: Final = ("ok", "refused", "failed", "timeout", "cut")

COLUMNS: Final[Mapping[str, str]] = {
    "request": "int64",
    "arrival_s": "float64",
    "model": "int32",
    "tenant": "int32",
    "priority": "int8",
    "action": "int32",
    "instance": "int32",
    "status": "int8",
    "tries": "int16",
    "prompt_tokens": "int32",
    "cached_tokens": "int32",
    "output_tokens": "int32",
    "queued_s": "float64",
    "first_token_s": "float64",
    "finish_s": "float64",
    "longest_gap_s": "float64",
    "preempted": "int16",
    "server_s": "float64",
    "usd": "float64",
    "joules": "float64",
    "gco2": "float64",
    "quality": "float64",
}
"""Names and types. ``model``, ``tenant``, ``action`` index the result's ``names`` (-1 none); ``instance`` numbers the
machines of the whole fleet (``names["instance"]``). ``first_token_s`` and ``finish_s`` are times on the clock of
``arrival_s``, as the client sees them; ``queued_s`` is waiting before the engine's first work; ``longest_gap_s`` the
longest time between two tokens. Not a number where unknown or where it never happened; a request that was not answered
has no times but ``finish_s``, when its client was told. TTFT is first_token_s - arrival_s, end to end is
finish_s - arrival_s, TPOT is (finish_s - first_token_s) / (output_tokens - 1)."""


@dataclass(eq=False, slots=True)
class Result:
    """One run. ``columns`` are arrays of equal length by name (all of `COLUMNS`), in the order in which requests
    ended; ``names`` the labels of coded columns, and of ``instance``; ``facts`` what there is besides: ``seed``,
    ``horizon_s``, ``in_system_s`` (the number of requests in the system, summed over time as the run went),
    ``iterations``, ``busy_s`` and ``there_s`` by instance (for how long it worked, and was there; None for somebody
    else's), ``instances`` (of each endpoint that is scaled: when their number changed, and then how many were ready,
    and how many there), ``rented_usd`` (what machines with a price by the hour cost, busy or not; nan where none has
    one), ``idle_j`` (joules that machines drew for nobody: doing nothing, or at work for those who had been given up),
    ``budgets`` (by name: ``limit``, ``unit``, ``spent``, ``overrun``), ``cache`` (``hits``, ``misses``), ``events``,
    ``notes``.
    """

    columns: dict[str, NDArray[Any]]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.columns["request"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def save(self, path: str | Path) -> Path:
        """Write the run: a ``.parquet`` file with everything, or a ``.csv`` with the columns and names only."""
        path = Path(path)
        with sink(path, names=self.names) as file:
            file.add(self.columns)
            file.close(names=self.names, facts=self.facts, name=self.name)
        return path

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Seconds to the first token."""
        return np.asarray(self["first_token_s"] - self["arrival_s"])

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Seconds from arrival to the end of the answer."""
        return np.asarray(self["finish_s"] - self["arrival_s"])

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Seconds for each output token after the first; not a number for answers of one token."""
        more = self["output_tokens"].astype(np.float64) - 1.0
        more[more < 1.0] = np.nan
        return np.asarray((self["finish_s"] - self["first_token_s"]) / more)


def empty(n: int) -> dict[str, NDArray[Any]]:
    """Columns of ``n`` rows where nothing is known yet."""
    return {
        name: np.full(
            n, np.nan if kind == "float64" else -1 if name in ("action", "model", "tenant") else 0, kind
        )
        for name, kind in COLUMNS.items()
    }


class ResultError(ApportionError):
    """A result cannot be written or read."""

    code = "result"


class Sink(Protocol):
    """Where rows go that are too many to keep, in the order in which requests ended."""

    def add(self, columns: dict[str, NDArray[Any]]) -> object:
        """Take a chunk of rows: equally long columns, all of `COLUMNS`."""


class _File(ABC):
    """A file that rows are written to as they come. Used as a context manager; an unfinished file is completed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.close()

    @abstractmethod
    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write a chunk of rows."""

    @abstractmethod
    def close(
        self,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        facts: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        """Finish the file, with what is known besides the rows."""


class ParquetSink(_File):
    """Rows as Parquet; what is known besides stands in the file's metadata, as JSON under ``apportion``."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        self._arrow, parquet = arrow()
        schema = self._arrow.schema(
            [(name, self._arrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
        )
        self._writer = parquet.ParquetWriter(self.path, schema, compression="zstd")

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write a chunk of rows, as one group."""
        arrays = [self._arrow.array(np.asarray(columns[name], kind)) for name, kind in COLUMNS.items()]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._writer.schema))

    def close(
        self,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        facts: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        """Finish the file."""
        self._open = False
        about = {"name": name, "names": names or {}, "facts": facts or {}}
        self._writer.add_key_value_metadata({"apportion": json.dumps(about, default=_plain)})
        self._writer.close()


class CsvSink(_File):
    """Rows as CSV, for spreadsheets: names instead of codes, nothing where nothing is known."""

    def __init__(self, path: str | Path, *, names: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(Path(path))
        self._names = names or {}
        self._text = self.path.open("w", encoding="utf-8", newline="")
        self._text.write(",".join(COLUMNS) + "\n")

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write a chunk of rows."""
        cells = [_cells(name, columns[name], self._names.get(name)) for name in COLUMNS]
        self._text.writelines(",".join(row) + "\n" for row in zip(*cells, strict=True))

    def close(
        self,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        facts: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        """Finish the file; what is known besides the rows has no place in it."""
        self._open = False
        self._text.close()


def sink(path: str | Path, *, names: Mapping[str, Sequence[str]] | None = None) -> ParquetSink | CsvSink:
    """A file for rows, by the ending of its name; raises `ResultError` for an unknown one."""
    path = Path(path)
    if path.suffix == ".parquet":
        return ParquetSink(path)
    if path.suffix == ".csv":
        return CsvSink(path, names=names)
    raise ResultError(
        f"Results are not written as {path.suffix or 'a file without an ending'}.",
        field=str(path),
        fix="Name it .parquet or .csv.",
    )


def load(path: str | Path) -> Result:
    """Read a run that was saved as Parquet; raises `ResultError` where it is none."""
    path = Path(path)
    arrow_, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            about = (file.metadata.metadata or {}).get(b"apportion")
            table = file.read()
    except (OSError, arrow_.ArrowInvalid) as error:
        raise ResultError(f"{path} cannot be read as Parquet: {error}.", field=str(path)) from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if about is None or missing:
        raise ResultError(
            f"{path} is no saved run{': it lacks ' + ', '.join(missing) if missing else ''}.",
            field=str(path),
            fix="Save one with `apportion replay ... --out DIR`.",
        )
    known = json.loads(about)
    return Result(
        {name: table.column(name).to_numpy().astype(kind) for name, kind in COLUMNS.items()},
        {column: tuple(names) for column, names in known["names"].items()},
        known["facts"],
        known["name"],
    )


def concat(results: Sequence[Result], *, name: str = "") -> Result:
    """One result of several (parts of one run, or runs of parts of a trace): the names are put together, of the
    facts those that are numbers in all of them are added up.
    """
    if not results:
        return Result(empty(0), name=name)
    names: dict[str, tuple[str, ...]] = {}
    for column in dict.fromkeys(column for each in results for column in each.names):
        all_names = (label for each in results for label in each.names.get(column, ()))
        names[column] = tuple(dict.fromkeys(all_names))
    columns = {}
    for column, kind in COLUMNS.items():
        parts = [_recoded(each, column, names.get(column)) for each in results]
        columns[column] = np.concatenate(parts).astype(kind)
    facts = {
        fact: sum(each.facts[fact] for each in results)
        for fact, value in results[0].facts.items()
        if all(_number(each.facts.get(fact)) for each in results) and fact not in ("seed", "horizon_s")
    }
    horizons = [each.facts["horizon_s"] for each in results if "horizon_s" in each.facts]
    if horizons:
        facts["horizon_s"] = max(horizons)
    return Result(columns, names, facts, name or results[0].name)


def arrow() -> tuple[Any, Any]:
    """pyarrow and its parquet; raises `ResultError` naming the extra where they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResultError(
            "Parquet needs pyarrow.", field="--out", fix="pip install 'apportion[simulate]', or write .csv."
        ) from error
    return pyarrow, pyarrow.parquet


def _recoded(result: Result, column: str, names: tuple[str, ...] | None) -> NDArray[Any]:
    codes = result[column]
    own = result.names.get(column)
    if names is None or own is None or own == names[: len(own)]:
        return codes
    to = np.array([*(names.index(label) for label in own), -1], np.int64)
    return np.asarray(to[codes])


def _cells(column: str, values: NDArray[Any], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        return [_quoted(names[code]) if 0 <= code < len(names) else "" for code in values.tolist()]
    if column == "status":
        return [STATUSES[code] for code in values.tolist()]
    if values.dtype.kind == "f":
        return ["" if value != value else repr(value) for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """What JSON does not know."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a result's facts")
