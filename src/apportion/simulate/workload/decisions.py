"""Workloads from the proxy's own decision log: what was asked of it, and what each model was good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apportion.measure import decision_log
from apportion.measure.decision_log import Entry
from apportion.simulate.trace import Trace, empty, labels

_LINE_UNKNOWN = "a line that is no record"


def read(path: Path, broken: Callable[[Sequence[tuple[int, str]]], None] = lambda lines: None) -> Trace:
    """The requests of a log, a file or a directory of them, in order of arrival, from the first one on.

    Attempts at one request are one row: it arrived at the first attempt, and the last that answered says how long the
    answer was. The tenant is the team, or the key of those without one. A request that none answered ``failed``; its
    tokens are those that were counted, else 0. Quality is known for the action that answered and was judged.
    ``broken`` is told the lines that are no records.
    """
    log = decision_log.read([path])
    lines = _broken_lines(path)
    if lines:
        broken(lines)
    attempts: dict[str, list[Entry]] = {}
    quality: dict[str, float] = {}
    for row in log.rows:
        attempts.setdefault(row.entry.id, []).append(row.entry)
        if row.quality is not None:
            quality[row.entry.id] = row.quality
    requests = sorted(attempts.items(), key=lambda item: (item[1][0].at, item[0]))
    if not requests:
        return empty(path.stem)
    heads = [tries[0] for _, tries in requests]
    ends = [_answer(tries) for _, tries in requests]
    start = heads[0].at
    actions = tuple(sorted({entry.action for entry in ends if entry.id in quality and entry.action}))
    known = np.full((len(requests), len(actions)), np.nan)
    for place, entry in enumerate(ends):
        if entry.action in actions and entry.id in quality:
            known[place, actions.index(entry.action)] = quality[entry.id]
    deadline = np.array([_number(head, "deadline_s") for head in heads])
    priority = np.array([_number(head, "priority") for head in heads])
    return Trace(
        arrival_s=np.array([head.at - start for head in heads]),
        prompt_tokens=np.array([entry.input_tokens or 0 for entry in ends], np.int32),
        output_tokens=np.array([entry.output_tokens or 0 for entry in ends], np.int32),
        model=labels([head.model for head in heads]),
        tenant=labels([head.team or head.key for head in heads]),
        priority=None
        if np.all(np.isnan(priority))
        else np.clip(np.nan_to_num(priority), -128, 127).astype(np.int8),
        deadline_s=None if np.all(np.isnan(deadline)) else deadline,
        failed=np.array([entry.status != "ok" for entry in ends]),
        quality=known if actions else None,
        actions=actions,
        lexical=_counts(heads),
        name=path.stem,
    )


def _answer(tries: Sequence[Entry]) -> Entry:
    """The attempt that says what came of the request: the last that answered, else the last."""
    return next((entry for entry in reversed(tries) if entry.status == "ok"), tries[-1])


def _counts(heads: Sequence[Entry]) -> NDArray[np.float64] | None:
    """The lexical features of all requests; None unless all have as many."""
    rows = [head.lexical for head in heads if head.lexical]
    if len(rows) < len(heads) or len(set(map(len, rows))) != 1:
        return None
    return np.array([[number or 0.0 for number in row] for row in rows])


def _number(entry: Entry, name: str) -> float:
    value = entry.request.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _broken_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are no records, with their place in the file (of a directory: in all of its files)."""
    return [
        (line, _LINE_UNKNOWN) for line, record in enumerate(decision_log.records([path]), 1) if record is None
    ]
