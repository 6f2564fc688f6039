"""What was decided and what became of it, for the latest requests, in bounded memory.

A ring: the id of a decision tells its place, so that nothing is searched and nothing is ever deleted, only
overwritten. Words are made when somebody asks.
"""

from __future__ import annotations

import secrets
from typing import Any

from apportion.core.decision import Decision
from apportion.measure.usage import Usage


class Attempt:
    """One try at one endpoint. Times in milliseconds; ``ended_s`` in ``perf_counter`` time."""

    __slots__ = (
        "cost_units",
        "decision",
        "duration_ms",
        "ended_s",
        "endpoint",
        "failure",
        "first_chunk_s",
        "model",
        "status",
        "usage",
    )

    def __init__(
        self,
        decision: Decision,
        endpoint: str,
        status: int,
        failure: str | None,
        duration_ms: float,
        *,
        model: str = "",
        usage: Usage | None = None,
        cost_units: int | None = None,
        ended_s: float = 0.0,
        first_chunk_s: float | None = None,
    ) -> None:
        self.decision = decision
        self.endpoint = endpoint
        self.status = status
        self.failure = failure
        self.duration_ms = duration_ms
        self.model = model
        """What the endpoint was asked for."""
        self.usage = usage
        """None where nothing was produced."""
        self.cost_units = cost_units
        self.ended_s = ended_s
        self.first_chunk_s = first_chunk_s
        """From the request sent to the first content of a stream."""


class Record:
    """One request, from the decision to its cost. ``cost_units`` are pico-dollars, None when unknown."""

    __slots__ = (
        "api",
        "attempts",
        "cost_mark",
        "cost_units",
        "created_s",
        "duration_ms",
        "effort",
        "finish_reason",
        "id",
        "input_tokens",
        "key",
        "key_tags",
        "model",
        "output_tokens",
        "overhead_ms",
        "priority",
        "request_id",
        "server_s",
        "status",
        "stream",
        "tags",
        "upstream_model",
    )

    def __init__(self, id: str, request_id: str, created_s: float, key: str, api: str, model: str) -> None:
        self.id = id
        self.request_id = request_id
        self.created_s = created_s
        self.key = key
        self.api = api
        self.model = model
        self.stream = False
        self.effort: float | None = None
        self.priority: int | None = None
        self.tags: list[str] | None = None
        self.key_tags: dict[str, str] | None = None
        self.attempts: list[Attempt] = []
        self.upstream_model: str | None = None
        self.status = "running"
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cost_units: int | None = None
        self.cost_mark = "unknown"
        self.duration_ms: float | None = None
        self.overhead_ms: float | None = None
        self.server_s: float | None = None


class Records:
    """The latest ``capacity`` records of one worker."""

    __slots__ = ("_capacity", "_count", "_prefix", "_ring", "worker")

    def __init__(self, capacity: int, worker: int) -> None:
        self._capacity = max(1, capacity)
        self._ring: list[Record | None] = [None] * self._capacity
        self._count = 0
        self.worker = worker
        self._prefix = f"{worker:02x}{secrets.token_hex(4)}"

    def number(self) -> str:
        """The common part of the next request's ids: worker, start of the worker, count."""
        self._count += 1
        return f"{self._prefix}{self._count:08x}"

    def keep(self, record: Record) -> None:
        """Remember a record under its id."""
        self._ring[int(record.id[-8:], 16) % self._capacity] = record

    def find(self, id: str) -> Record | None:
        """The record of a decision id, if it is still kept here."""
        try:
            record = self._ring[int(id[-8:], 16) % self._capacity]
        except ValueError:
            return None
        return record if record is not None and record.id == id else None


def owner(id: str) -> int | None:
    """The worker that made a decision id, None if it is none."""
    body = id.removeprefix("dec_")
    if len(body) != 18 or not id.startswith("dec_"):
        return None
    try:
        int(body, 16)
        return int(body[:2], 16)
    except ValueError:
        return None


def usd(units: int) -> str:
    """Pico-dollars as an exact decimal number of dollars."""
    whole, part = divmod(units, 10**12)
    if not part:
        return str(whole)
    return f"{whole}.{part:012d}".rstrip("0")


def explain(record: Record) -> dict[str, Any]:
    """A record in words and numbers, as JSON shows it."""
    last = record.attempts[-1] if record.attempts else None
    return {
        "id": record.id,
        "object": "apportion.decision",
        "request_id": record.request_id,
        "created": record.created_s,
        "key": record.key,
        "api": record.api,
        "model": record.model,
        "stream": record.stream,
        "effort": record.effort,
        "priority": record.priority,
        "tags": record.tags or [],
        "key_tags": record.key_tags or {},
        "explanation": _words(record),
        "chosen": None if last is None else last.endpoint,
        "upstream_model": record.upstream_model,
        "attempts": [_attempt(a) for a in record.attempts],
        "outcome": {
            "status": record.status,
            "finish_reason": record.finish_reason,
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
            "cost_usd": None if record.cost_units is None else usd(record.cost_units),
            "cost_mark": record.cost_mark,
            "server_seconds": record.server_s,
            "duration_ms": record.duration_ms,
            "overhead_ms": record.overhead_ms,
        },
    }


def _words(record: Record) -> str:
    if not record.attempts:
        return "No endpoint was asked."
    sentences = []
    for number, attempt in enumerate(record.attempts):
        text = attempt.decision.explain()
        if attempt.failure is not None:
            text += f" It failed: {attempt.failure}"
            if number + 1 < len(record.attempts):
                text += " Then another was tried."
        sentences.append(text)
    if record.cost_units is not None:
        said = "It cost" if record.cost_mark == "measured" else "It cost an estimated"
        sentences.append(f"{said} ${usd(record.cost_units)}.")
    elif record.status != "running":
        sentences.append("What it cost is unknown.")
    return " ".join(sentences)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    decision = attempt.decision
    return {
        "endpoint": attempt.endpoint,
        "status": attempt.status,
        "failure": attempt.failure,
        "duration_ms": round(attempt.duration_ms, 3),
        "probability": decision.probability,
        "why": decision.why,
        "prices": dict(decision.prices),
        "options": [
            {
                "endpoint": option.action,
                "value_usd": option.value,
                "cost": dict(option.cost),
                "worth_usd": worth,
                "load": option.load,
                "weight": option.weight,
                "chosen": index == decision.choice,
            }
            for index, (option, worth) in enumerate(zip(decision.options, decision.worths, strict=True))
        ],
    }
