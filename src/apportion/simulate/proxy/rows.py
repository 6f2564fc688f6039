"""The rows of a result, collected in blocks so that memory does not grow with the trace."""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.proxy.job import Job
from apportion.simulate.result import COLUMNS, OK

_BLOCK: Final = 8192
_NAN: Final = math.nan


class Sink(Protocol):
    """Takes blocks of columns, in the order in which requests ended."""

    def add(self, columns: dict[str, NDArray[Any]]) -> object:
        """Equally long columns, all of `result.COLUMNS`."""


class Rows:
    """One row for each request that has ended."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self._rows: list[tuple[Any, ...]] = []
        self._blocks: list[dict[str, NDArray[Any]]] = []

    def add(self, job: Job, tenant: int, finish_s: float, action: int) -> None:
        """A request has ended: what its client has seen, and what it cost."""
        attempts = job.attempts
        last = job.answered_by or (attempts[-1] if attempts else None)
        first_s = gap_s = queued_s = joules = gco2 = _NAN
        server_s, machine, preempted, cached, tokens_out = 0.0, -1, 0, 0, 0
        units: int | None = 0
        for attempt in attempts:
            server_s += attempt.server_s
            units = None if units is None or attempt.units is None else units + attempt.units
        if last is not None:
            machine, preempted = last.machine, last.preempted
            if last.usage is not None:
                cached, tokens_out = last.usage.cached_input_tokens, last.usage.output_tokens
            if last.first_s is not None:
                first_s, gap_s = last.first_s, last.gap_s
            if last.worked_s is not None:
                queued_s = last.worked_s - job.started_s
            joules = _joules(job)
            draw = last.route.draw
            if draw is not None:
                grams = draw.gco2(server_s)
                gco2 = _NAN if grams is None else grams
        else:
            joules = gco2 = 0.0  # no machine has worked for it
        if first_s != first_s and job.status == OK and job.cached:
            first_s, gap_s, queued_s = finish_s, 0.0, 0.0
        self._rows.append(
            (
                job.index,
                job.started_s,
                job.group.code,
                tenant,
                job.priority,
                action,
                machine,
                job.status,
                len(attempts),
                job.prompt_tokens,
                cached,
                tokens_out,
                queued_s,
                first_s,
                finish_s,
                gap_s,
                preempted,
                server_s,
                _NAN if units is None else units * 1e-12,
                joules,
                gco2,
                job.expected_quality,
            )
        )
        if len(self._rows) >= _BLOCK:
            self._block()

    def _block(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        block = {
            name: np.array(values, kind)
            for (name, kind), values in zip(COLUMNS.items(), zip(*rows, strict=True), strict=True)
        }
        if self._sink is not None:
            self._sink.add(block)
        else:
            self._blocks.append(block)

    def columns(self) -> dict[str, NDArray[Any]]:
        """All of them (none, where a sink has taken them)."""
        self._block()
        if not self._blocks:
            return {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        return {name: np.concatenate([block[name] for block in self._blocks]) for name in COLUMNS}


def _joules(job: Job) -> float:
    """What the machines drew for it: by their profiles, else by the watts that the configuration states."""
    total = 0.0
    for attempt in job.attempts:
        joules = attempt.joules
        if not attempt.server_s and joules is None:
            continue  # it never got there
        if joules is None or joules != joules:
            draw = attempt.route.draw
            if draw is None:
                return _NAN
            joules = draw.joules(attempt.server_s)
        total += joules
    return total
