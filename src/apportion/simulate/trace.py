"""A workload: requests in order of arrival, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError


class TraceError(ApportionError):
    """A workload is malformed."""

    code = "trace"


@dataclass(frozen=True, eq=False, slots=True)
class Labels:
    """A column of names: ``codes`` (int32, shape n) index ``names``; -1 is none. Names may be there that no row has."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def at(self, index: int) -> str:
        """The name of one row, "" where it has none."""
        code = self.codes[index]
        return "" if code < 0 else self.names[code]


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """What each prompt begins with, as ids of blocks of ``block_tokens`` tokens: row i has
    ``ids[offsets[i]:offsets[i + 1]]``. Equal ids are equal beginnings.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    block_tokens: int = 512

    def of(self, index: int) -> NDArray[np.int64]:
        """The ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: NDArray[np.int64]) -> Blocks:
        """Those of ``rows``, in their order."""
        sizes = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes)
        return Blocks(offsets, self.ids[places], self.block_tokens)


@dataclass(frozen=True, eq=False, slots=True)
class Trace:
    """Requests in order of arrival. All columns have the same length n; None is "the source does not say".

    ``arrival_s`` (float64) are seconds, non-decreasing; ``prompt_tokens`` and ``output_tokens`` (int32) what was
    sent and what came back; ``session`` (int64) numbers conversations, -1 is none; ``priority`` (int8) is higher for
    more urgent; ``deadline_s`` (float64) is relative to the arrival, nan is none; ``failed`` (bool) marks requests
    that failed when they were recorded. ``quality`` (float64, shape n x len(actions)) is how good each action's answer
    was or would have been, nan where unknown; ``actions`` are the names of its columns. ``cap_tokens`` (int32) is the
    most output that the client allowed, 0 is no limit; ``lexical`` (float64, n x k) the counts of what each request
    said, as a decision log has them.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    model: Labels | None = None
    tenant: Labels | None = None
    session: NDArray[np.int64] | None = None
    priority: NDArray[np.int8] | None = None
    deadline_s: NDArray[np.float64] | None = None
    failed: NDArray[np.bool_] | None = None
    blocks: Blocks | None = None
    quality: NDArray[np.float64] | None = None
    cap_tokens: NDArray[np.int32] | None = None
    lexical: NDArray[np.float64] | None = None
    actions: tuple[str, ...] = ()
    name: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for column in fields(self):
            value = getattr(self, column.name)
            size = _length(value)
            if size is not None and size != n:
                raise TraceError(f"'{column.name}' has {size} rows where 'arrival_s' has {n}.")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last, in seconds."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    def take(self, rows: Any) -> Trace:
        """The rows that ``rows`` selects: a mask, a slice, or indices in the order that is wanted."""
        index = np.arange(len(self))[rows]
        changed: dict[str, Any] = {}
        for column in COLUMNS:
            value = getattr(self, column)
            if isinstance(value, np.ndarray):
                changed[column] = value[index]
            elif isinstance(value, Labels):
                changed[column] = Labels(value.codes[index], value.names)
            elif isinstance(value, Blocks):
                changed[column] = value.take(index)
        return replace(self, **changed)


COLUMNS: Final = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "model",
    "tenant",
    "session",
    "priority",
    "deadline_s",
    "failed",
    "blocks",
    "quality",
    "cap_tokens",
    "lexical",
)
"""The fields of `Trace` that have a value for each request."""


def joined(traces: Sequence[Trace], *, name: str = "", apart: bool = False) -> Trace:
    """All rows of several traces one after the other; nothing is sorted and no time is moved.

    A column that only some of them have is filled with "none" for the others. Conversations and blocks of equal
    numbers are taken for the same ones, unless ``apart``: then those of different traces are kept apart.
    """
    traces = [trace for trace in traces if len(trace)] or list(traces[:1])
    if not traces:
        return empty()
    if len(traces) == 1:
        return replace(traces[0], name=name or traces[0].name)
    actions = tuple(dict.fromkeys(action for trace in traces for action in trace.actions))
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        values = [getattr(trace, column) for trace in traces]
        if all(value is None for value in values):
            columns[column] = None
        elif column in ("model", "tenant"):
            columns[column] = _joined_labels(traces, values)
        elif column == "blocks":
            columns[column] = _joined_blocks(traces, values, apart)
        elif column == "quality":
            columns[column] = _joined_quality(traces, actions)
        elif column == "lexical":
            columns[column] = _joined_counts(values)
        else:
            parts = [
                np.full(len(trace), _NONE[column], _TYPES[column]) if value is None else value
                for trace, value in zip(traces, values, strict=True)
            ]
            if column == "session" and apart:
                parts = _apart(parts)
            columns[column] = np.concatenate(parts)
    notes = tuple(dict.fromkeys(note for trace in traces for note in trace.notes))
    return Trace(**columns, actions=actions, name=name or traces[0].name, notes=notes)


def empty(name: str = "") -> Trace:
    """No request at all."""
    return Trace(np.empty(0), np.empty(0, np.int32), np.empty(0, np.int32), name=name)


_TYPES: Final = {
    "arrival_s": np.float64,
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "session": np.int64,
    "priority": np.int8,
    "deadline_s": np.float64,
    "failed": np.bool_,
    "cap_tokens": np.int32,
}
_NONE: Final = {"session": -1, "priority": 0, "deadline_s": np.nan, "failed": False, "cap_tokens": 0}


def _joined_counts(values: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    """Counts of all rows; none where they are not all counts of the same things."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len({value.shape[1] for value in known}) != 1:
        return None
    return np.concatenate(known)


def _joined_labels(traces: Sequence[Trace], values: Sequence[Labels | None]) -> Labels:
    known: dict[str, int] = {}
    codes = []
    for trace, value in zip(traces, values, strict=True):
        if value is None:
            codes.append(np.full(len(trace), -1, np.int32))
            continue
        places = [known.setdefault(name, len(known)) for name in value.names]
        codes.append(np.array([*places, -1], np.int32)[value.codes])
    return Labels(np.concatenate(codes), tuple(known))


def _joined_blocks(traces: Sequence[Trace], values: Sequence[Blocks | None], apart: bool) -> Blocks:
    sizes = {value.block_tokens for value in values if value is not None}
    if len(sizes) > 1:
        raise TraceError(
            f"The traces have blocks of different sizes: {', '.join(map(str, sorted(sizes)))} tokens.",
            field="blocks",
        )
    known = [
        Blocks(np.zeros(len(trace) + 1, np.int64), np.empty(0, np.int64)) if value is None else value
        for trace, value in zip(traces, values, strict=True)
    ]
    counts = np.concatenate([np.diff(value.offsets) for value in known])
    parts = [value.ids[value.offsets[0] : value.offsets[-1]] for value in known]
    ids = np.concatenate(_apart(parts) if apart else parts)
    return Blocks(np.concatenate(([0], np.cumsum(counts))).astype(np.int64), ids, sizes.pop())


def _joined_quality(traces: Sequence[Trace], actions: Sequence[str]) -> NDArray[np.float64]:
    parts = []
    for trace in traces:
        part = np.full((len(trace), len(actions)), np.nan)
        if trace.quality is not None:
            part[:, [actions.index(action) for action in trace.actions]] = trace.quality
        parts.append(part)
    return np.concatenate(parts)


def _apart(parts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The same numbers (-1 is none), each part's above all of the parts before it."""
    moved, above = [], 0
    for part in parts:
        moved.append(np.where(part < 0, -1, part + above))
        above = max(above, int(moved[-1].max(initial=-1)) + 1)
    return moved


def _length(value: Any) -> int | None:
    if isinstance(value, np.ndarray):
        return len(value)
    if isinstance(value, Labels):
        return len(value.codes)
    if isinstance(value, Blocks):
        return len(value.offsets) - 1
    return None


def labels(names: Sequence[str]) -> Labels:
    """A column of names from the names themselves, numbered as they appear; "" is none."""
    known: dict[str, int] = {}
    codes = np.empty(len(names), np.int32)
    for i, name in enumerate(names):
        codes[i] = known.setdefault(name, len(known)) if name else -1
    return Labels(codes, tuple(known))
