"""The columnar file of a workload: Parquet, a column for each field of a trace, written and read in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from apportion.simulate.trace import Blocks, Labels, Trace, TraceError, empty, joined
from apportion.simulate.workload.rows import parquet, readable

VERSION: Final = 1
_KEY: Final = b"apportion.trace"
_QUALITY: Final = "quality:"
_LEXICAL: Final = "lexical:"
_LABELS: Final = ("model", "tenant")
_PLAIN: Final = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "session",
    "priority",
    "deadline_s",
    "failed",
    "cap_tokens",
)


def write(path: str | Path, traces: Trace | Iterable[Trace]) -> int:
    """Write a workload, whole or in pieces that follow one another in time; returns the number of rows.

    The file appears under its name when it is complete. All pieces need the columns of the first.

    Raises:
        TraceError: a piece has other columns than the first, or begins before the one before it ended.
    """
    pq = parquet()
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    writer, first, last, rows = None, None, -np.inf, 0
    notes: dict[str, None] = {}
    try:
        for trace in [traces] if isinstance(traces, Trace) else traces:
            notes |= dict.fromkeys(trace.notes)
            if len(trace) == 0 and writer is not None:
                continue
            if len(trace) and (trace.arrival_s[0] < last or np.any(np.diff(trace.arrival_s) < 0)):
                raise TraceError("The rows to write are not in order of time.", field="arrival_s")
            table = _table(trace)
            if writer is None:
                first = trace
                writer = pq.ParquetWriter(aside, table.schema, compression="zstd")
            elif table.schema != writer.schema:
                raise TraceError(
                    f"A piece has the columns {', '.join(table.schema.names)}; the first has "
                    f"{', '.join(writer.schema.names)}."
                )
            writer.write_table(table)
            rows += len(trace)
            last = float(trace.arrival_s[-1]) if len(trace) else last
        if writer is None or first is None:
            first = empty()
            writer = pq.ParquetWriter(aside, _table(first).schema)
        facts = {
            "version": VERSION,
            "name": first.name,
            "notes": list(notes),
            "block_tokens": first.blocks.block_tokens if first.blocks is not None else None,
        }
        writer.add_key_value_metadata({_KEY: json.dumps(facts).encode()})
        writer.close()
        aside.replace(path)
    finally:
        if writer is not None:
            writer.close()
        aside.unlink(missing_ok=True)
    return rows


def read(path: str | Path) -> Trace:
    """The whole workload."""
    found = list(pieces(path))
    return joined(found) if found else replace(empty(), **_facts(Path(path)))


def pieces(path: str | Path, rows: int = 65536) -> Iterator[Trace]:
    """The workload at most ``rows`` requests at a time; memory does not grow with the file."""
    path = Path(path)
    facts = _facts(path)
    block_tokens = facts.pop("block_tokens")
    known: dict[str, dict[str, int]] = {name: {} for name in _LABELS}
    there = parquet().ParquetFile(path).schema_arrow.names
    file = parquet().ParquetFile(path, read_dictionary=[name for name in _LABELS if name in there])
    for batch in file.iter_batches(rows):
        columns: dict[str, Any] = {}
        actions = [name for name in batch.schema.names if name.startswith(_QUALITY)]
        counts = [name for name in batch.schema.names if name.startswith(_LEXICAL)]
        for name in batch.schema.names:
            column = batch.column(name)
            if name in _LABELS:
                columns[name] = _labels(column, known[name])
            elif name == "blocks":
                offsets = column.offsets.to_numpy().astype(np.int64)
                ids = column.values.to_numpy()[offsets[0] : offsets[-1]]
                columns[name] = Blocks(offsets - offsets[0], ids, block_tokens)
            elif name not in actions and name not in counts:
                columns[name] = column.to_numpy(zero_copy_only=False)
        if actions:
            columns["quality"] = np.stack([batch.column(name).to_numpy() for name in actions], axis=1)
            columns["actions"] = tuple(name.removeprefix(_QUALITY) for name in actions)
        if counts:
            columns["lexical"] = np.stack([batch.column(name).to_numpy() for name in counts], axis=1)
        yield Trace(**columns, **facts)


def is_ours(path: Path) -> bool:
    """Whether a Parquet file was written here."""
    with readable(path) as file:
        return _KEY in (file.metadata.metadata or {})


def length(path: str | Path) -> int:
    """The number of rows, without reading them."""
    return int(parquet().ParquetFile(path).metadata.num_rows)


def _facts(path: Path) -> dict[str, Any]:
    try:
        said = json.loads((parquet().ParquetFile(path).metadata.metadata or {})[_KEY])
    except FileNotFoundError:
        raise TraceError(f"{path} is not there.", field="TRACE") from None
    except (KeyError, ValueError, OSError) as error:
        raise TraceError(f"{path} is no workload in Parquet ({error}).", field="TRACE") from None
    if said["version"] > VERSION:
        raise TraceError(
            f"{path} is of version {said['version']}; this program reads up to {VERSION}.",
            field="version",
            fix="Use a newer apportion.",
        )
    return {"name": said["name"], "notes": tuple(said["notes"]), "block_tokens": said["block_tokens"] or 512}


def _table(trace: Trace) -> Any:
    import pyarrow

    columns: dict[str, Any] = {
        name: pyarrow.array(value) for name in _PLAIN if (value := getattr(trace, name)) is not None
    }
    for name in _LABELS:
        value = getattr(trace, name)
        if value is not None:
            codes = pyarrow.array(value.codes, mask=value.codes < 0)
            names = pyarrow.array(value.names, pyarrow.string())
            columns[name] = pyarrow.DictionaryArray.from_arrays(codes, names).cast(pyarrow.string())
    if trace.blocks is not None:
        columns["blocks"] = pyarrow.LargeListArray.from_arrays(trace.blocks.offsets, trace.blocks.ids)
    if trace.quality is not None:
        for place, action in enumerate(trace.actions):
            columns[_QUALITY + action] = pyarrow.array(np.ascontiguousarray(trace.quality[:, place]))
    if trace.lexical is not None:
        for place in range(trace.lexical.shape[1]):
            columns[f"{_LEXICAL}{place}"] = pyarrow.array(np.ascontiguousarray(trace.lexical[:, place]))
    return pyarrow.table(columns)


def _labels(column: Any, known: dict[str, int]) -> Labels:
    """A batch's dictionary column, with the codes of the whole file."""
    places = [known.setdefault(name, len(known)) for name in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(np.array([*places, -1], np.int32)[codes], tuple(known))
