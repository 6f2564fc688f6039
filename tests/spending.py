"""Entries for tests of reports: made up, written into real tables, and added up again without a database."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from apportion.serve.ledger.entries import CORRECT, PRESUME, RELEASE, RESERVE, SETTLE
from apportion.serve.ledger.postgres import PostgreSQL
from apportion.serve.ledger.schema import entries, metadata
from apportion.serve.ledger.spend import Spent
from apportion.serve.ledger.sqlite import SQLite

DAY_US = 86_400_000_000
SATURDAY_US = 1_795_219_200_000_000
"""2026-11-21T00:00:00Z."""
KNOWN = {"joules", "gco2"}
Line = dict[str, Any]


def line(at_us: int, kind: int = SETTLE, **values: Any) -> Line:
    """A row of ``entries``, every column filled."""
    row: Line = {column.name: "" for column in entries.columns}
    row.update(dict.fromkeys(("usd", *(f for f in Spent._fields if f in row)), 0))
    row.update(kind=kind, attempt=1, at_us=at_us, duration_us=1, organisation="acme", joules=None, gco2=None)
    row.update(reservation=f"r{at_us}", mark="measured", status="ok", requests=1, model="chat", api="chat")
    row.update(endpoint="openai", upstream_model="gpt-4o-mini")
    return {**row, **values}


def write(engine: sa.Engine, lines: Sequence[Line]) -> None:
    """Append the lines."""
    with engine.begin() as connection:
        connection.execute(entries.insert(), list(lines))


@contextmanager
def tables(url: str) -> Iterator[sa.Engine]:
    """The engine of a database whose tables are made."""
    parsed = sa.make_url(url)
    engine = (
        SQLite(None if parsed.database is None else Path(parsed.database)).engine
        if parsed.get_backend_name() == "sqlite"
        else PostgreSQL(parsed).engine
    )
    with engine.begin() as connection:
        metadata.create_all(connection)
    yield engine
    engine.dispose()


def made_up(rng: random.Random, count: int, since_us: int, until_us: int) -> list[Line]:
    """Reservations with everything that may become of them, at random times in ``[since_us, until_us)``."""
    found: list[Line] = []
    for number in range(count):
        at_us = rng.randrange(since_us, until_us)
        who = {
            "reservation": f"r{number}",
            "team": rng.choice(("red", "blue", "")),
            "key": f"key-{rng.randrange(4)}",
            "user": rng.choice(("ann", "Ünal", "")),
            "model": rng.choice(("chat", "code")),
            "endpoint": rng.choice(("openai", "rack-7")),
            "tags": rng.choice(("", '{"env":"prod"}', '{"env":"test","a.b":"\\u00e9"}', '{"x":"\\u0000"}')),
        }
        found.append(line(at_us, RESERVE, **who, usd=10**12, tokens=9, requests=1, status="", mark=""))
        what = rng.choice(("settle", "settle", "settle", "release", "presume", "correct", "open"))
        if what == "release":
            found.append(line(at_us + 1, RELEASE, **who, requests=0))
        elif what == "settle":
            found.append(line(at_us + 1, **who, **_cost(rng)))
        elif what in ("presume", "correct"):
            usd = rng.choice((None, 10**12))
            found.append(
                line(at_us + 1, PRESUME, **who, usd=usd, tokens=9, status="crashed", mark="presumed")
            )
        if what == "correct":
            late_us = at_us + rng.randrange(2, 3 * DAY_US)
            less = None if usd is None else -rng.randrange(10**12)
            found.append(line(late_us, CORRECT, **who, usd=less, tokens=-3, requests=0))
    rng.shuffle(found)
    return found


def _cost(rng: random.Random) -> Line:
    tokens_in, tokens_out = rng.randrange(5000), rng.randrange(900)
    mark = rng.choice(("measured", "measured", "estimated", "unknown"))
    return {
        "mark": mark,
        "status": rng.choice(("ok", "failed", "cancelled")),
        "usd": None if mark == "unknown" else rng.randrange(10**18),
        "tokens": tokens_in + tokens_out,
        "input_tokens": tokens_in,
        "cached_tokens": tokens_in // 2,
        "cache_write_tokens": 3,
        "output_tokens": tokens_out,
        "reasoning_tokens": tokens_out // 3,
        "server_seconds": rng.randrange(10**12),
        "joules": rng.choice((None, rng.randrange(10**12))),
        "gco2": rng.choice((None, 7)),
    }


def added_up(
    lines: Sequence[Line], group: Any, *, until_us: int | None = None
) -> dict[tuple[str, ...], Spent]:
    """What a report should say of the lines that it counts: ``group(line)`` names the group of each."""
    corrected = {
        row["reservation"]: row
        for row in lines
        if row["kind"] == CORRECT and (until_us is None or row["at_us"] < until_us)
    }
    sums: dict[tuple[str, ...], list[int | None]] = defaultdict(
        lambda: [None if name in KNOWN else 0 for name in Spent._fields]
    )
    for row in lines:
        if row["kind"] not in (SETTLE, PRESUME, CORRECT):
            continue
        if row["kind"] == PRESUME and row["reservation"] in corrected:
            later = corrected[row["reservation"]]
            row = {**row, "status": later["status"], "mark": later["mark"]}
        one = 0 if row["kind"] == CORRECT else 1
        usd = row["usd"]
        told = {
            **{name: row.get(name) for name in Spent._fields},
            "attempts": one,
            "usd": usd or 0,
            "usd_estimated": (usd or 0) if row["mark"] == "estimated" else 0,
            "usd_presumed": (usd or 0) if row["mark"] == "presumed" else 0,
            "unpriced": one if usd is None else 0,
            "unpriced_tokens": row["tokens"] if usd is None else 0,
        }
        sum_ = sums[group(row)]
        for place, name in enumerate(Spent._fields):
            if told[name] is not None:
                sum_[place] = (sum_[place] or 0) + told[name]
    return {found: Spent._make(amounts) for found, amounts in sums.items()}
