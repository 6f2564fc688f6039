"""What was decided and what became of it, for the latest requests, in bounded memory.

A ring: the id of a decision tells its place, so that nothing is searched and nothing is ever deleted, only
overwritten. Words are made when somebody asks.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from apportion.core.decision import Decision
from apportion.core.features import Features
from apportion.core.guard import Verdict
from apportion.core.outcome import Status
from apportion.core.state import State
from apportion.measure.usage import Usage
from apportion.serve.call import Constraints

if TYPE_CHECKING:
    from apportion.serve.cache.incontext import Chosen

MOVED: Final = "moved"
"""What stands in place of a failure where a stream has left its endpoint to go on elsewhere."""
_ID: Final = re.compile(r"dec_([0-9a-f]{2})[0-9a-f]{16}")


class Attempt(msgspec.Struct, gc=False):
    """One try at one endpoint and what came of it.

    ``units`` are pico-dollars, None when unknown; ``usage`` is None where nothing was produced; ``started_s`` and
    ``ended_s`` are ``perf_counter`` times; ``first_chunk_s`` is from the request sent to the first content of a
    stream; ``settled`` says whether it is in the books. ``by`` is what decided, ``shadow`` what the policy on trial
    would have done, ``state`` what was known (kept until it is settled) and ``waited_s`` the time in a queue.
    """

    decision: Decision
    endpoint: str
    model: str
    status: Status
    usage: Usage | None
    units: int | None
    server_s: float
    started_s: float
    ended_s: float
    first_chunk_s: float | None
    finish: str | None
    failure: str | None
    http_status: int
    censored: bool
    settled: bool = False
    output_events: int = 0
    output_bytes: int = 0
    by: str = ""
    shadow: Decision | None = None
    features: Features | None = None
    state: State | None = None
    waited_s: float = 0.0


class Record(msgspec.Struct, gc=False):
    """One request and its attempts. ``key_tags`` are the operator's, those in ``constraints`` the client's.

    ``parent`` is the decision whose strategy made this call, ``answer`` how a strategy came to its answer, ``cached``
    what the cache had to say, ``verdict`` what the guard made of the request, ``shown`` the examples
    that went with it, ``answered_by`` the endpoint whose answer the client got where it was not the last.
    """

    id: str
    request_id: str
    created_s: float
    key: str
    key_tags: dict[str, str]
    api: str
    model: str
    stream: bool
    constraints: Constraints
    attempts: list[Attempt]
    upstream_model: str | None
    status: str
    duration_s: float | None
    overhead_s: float | None
    parent: str | None = None
    answer: dict[str, Any] | None = None
    cached: dict[str, Any] | None = None
    verdict: Verdict | None = None
    shown: Chosen | None = None
    answered_by: str | None = None


def cost(attempts: list[Attempt]) -> tuple[int | None, str]:
    """Pico-dollars of all attempts together and how they are known: measured, estimated or unknown."""
    total = 0
    mark = "measured" if attempts else "unknown"
    for attempt in attempts:
        if attempt.units is None:
            return None, "unknown"
        total += attempt.units
        if attempt.usage is not None and attempt.usage.estimated:
            mark = "estimated"
    return (total if attempts else None), mark


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
    found = _ID.fullmatch(id)
    return int(found[1], 16) if found else None


def usd(units: int) -> str:
    """Pico-dollars as an exact decimal number of dollars."""
    whole, part = divmod(units, 10**12)
    if not part:
        return str(whole)
    return f"{whole}.{part:012d}".rstrip("0")


def explain(record: Record) -> dict[str, Any]:
    """A record in words and numbers, as JSON shows it."""
    attempts, constraints = record.attempts, record.constraints
    last = attempts[-1] if attempts else None
    units, mark = cost(attempts)
    if record.cached is not None and "made_by" in record.cached:
        units, mark = 0, "measured"
    used = [a.usage for a in attempts if a.usage is not None]
    return {
        "id": record.id,
        "object": "apportion.decision",
        "request_id": record.request_id,
        "created": record.created_s,
        "key": record.key,
        "key_tags": record.key_tags,
        "api": record.api,
        "model": record.model,
        "stream": record.stream,
        "effort": constraints.effort,
        "priority": constraints.priority,
        "tags": constraints.tags or [],
        "explanation": _words(record, units, mark),
        "chosen": record.answered_by or (None if last is None else last.endpoint),
        "upstream_model": record.upstream_model,
        "attempts": [_attempt(a) for a in attempts],
        "parent": record.parent,
        "strategy": record.answer,
        "cache": record.cached,
        "examples": 0 if record.shown is None else len(record.shown.ids),
        "guard": None
        if record.verdict is None
        else {
            "action": record.verdict.action,
            "probability": record.verdict.probability,
            "max_tokens": record.verdict.max_tokens,
            "why": record.verdict.why,
        },
        "outcome": {
            "status": record.status,
            "finish_reason": None if last is None else last.finish,
            "input_tokens": sum(u.input_tokens for u in used) if used else None,
            "output_tokens": sum(u.output_tokens for u in used) if used else None,
            "cost_usd": None if units is None else usd(units),
            "cost_mark": mark,
            "server_seconds": sum(a.server_s for a in attempts) if attempts else None,
            "duration_ms": _ms(record.duration_s),
            "overhead_ms": _ms(record.overhead_s),
        },
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _words(record: Record, units: int | None, mark: str) -> str:
    cached = record.cached
    if cached is not None and "made_by" in cached:
        return f"Answered from the cache ({cached['outcome']}), which decision {cached['made_by']} filled."
    if not record.attempts:
        return "No endpoint was asked." if record.status != "running" else "It is being answered."
    sentences = []
    verdict = record.verdict
    if verdict is not None and verdict.action != "pass":
        sentences.append(f"The guard said {verdict.action}: {verdict.why}.")
    if record.answer is not None:
        made = record.answer["calls"]
        sentences.append(
            f"{record.answer['strategy']} made {made} call{'s' if made != 1 else ''}: {record.answer['why']}."
        )
    for number, attempt in enumerate(record.attempts):
        text = attempt.decision.explain()
        if attempt.shadow is not None:
            text += f" On trial: {attempt.shadow.explain()}"
        if attempt.waited_s >= 0.001:
            text += f" It waited {attempt.waited_s:.3f} s in the endpoint's queue."
        if attempt.failure == MOVED:
            text += " Its stream was moved to another endpoint."
        elif attempt.failure is not None:
            text += f" It failed: {attempt.failure}."
            if number + 1 < len(record.attempts):
                text += " Then another was tried."
        sentences.append(text)
    if units is not None:
        said = "It cost" if mark == "measured" else "It cost an estimated"
        sentences.append(f"{said} ${usd(units)}.")
    elif record.status != "running":
        sentences.append("What it cost is unknown.")
    return " ".join(sentences)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    decision = attempt.decision
    return {
        "endpoint": attempt.endpoint,
        "status": attempt.http_status,
        "failure": attempt.failure,
        "duration_ms": _ms(attempt.ended_s - attempt.started_s),
        "by": attempt.by,
        "probability": decision.probability,
        "why": decision.why,
        "waited_ms": _ms(attempt.waited_s),
        "shadow": None
        if attempt.shadow is None
        else {"endpoint": attempt.shadow.action, "why": attempt.shadow.why},
        "prices": dict(decision.prices),
        "options": [
            {
                "endpoint": option.action,
                "value_usd": option.value,
                "quality": option.quality,
                "cost": dict(option.cost),
                "worth_usd": worth,
                "load": option.load,
                "weight": option.weight,
                "chosen": index == decision.choice,
            }
            for index, (option, worth) in enumerate(zip(decision.options, decision.worths, strict=True))
        ],
    }
