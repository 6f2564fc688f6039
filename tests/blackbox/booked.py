"""What the proxy has booked: the entries of its ledger, and its metrics, which must agree with them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from .proxy import Gateway

PATIENCE_S = 60.0
SETTLING = "kind IN (1, 2, 3, 4)"
"""Entries that say what a reservation came to: settle, release, presume, correct."""


class Booked(NamedTuple):
    """The sums of all attempts at one endpoint."""

    attempts: int
    units: int
    """Pico-dollars."""
    input_tokens: int
    output_tokens: int
    marks: frozenset[str] = frozenset()
    """How the amounts are known: measured, estimated, presumed, unknown."""


async def booked(gateway: Gateway, endpoint: str, attempts: int) -> Booked:
    """The books of ``endpoint`` once ``attempts`` attempts are in them."""
    until_s = time.monotonic() + PATIENCE_S
    while (found := from_ledger(gateway, endpoint)).attempts < attempts and time.monotonic() < until_s:
        await asyncio.sleep(0.03)
    assert found.attempts == attempts, f"{found} after {PATIENCE_S} s, wanted {attempts} attempts"
    return found


async def check_metrics(gateway: Gateway) -> None:
    """The metrics say of every endpoint what the ledger says."""
    samples = await gateway.metrics()

    def total(name: str, endpoint: str, **labels: str) -> float:
        wanted = [f'{k}="{v}"' for k, v in {"endpoint": endpoint, **labels}.items()]
        return sum(v for k, v in samples.items() if k.startswith(name + "{") and all(w in k for w in wanted))

    for (endpoint,) in query(gateway, "SELECT DISTINCT endpoint FROM entries"):
        said = (
            round(total("apportion_attempts_total", endpoint)),
            round(total("apportion_cost_usd_total", endpoint) * 10**12),
            round(total("apportion_tokens_total", endpoint, direction="input")),
            round(total("apportion_tokens_total", endpoint, direction="output")),
        )
        assert said == from_ledger(gateway, endpoint)[:4], f"the metrics say something else of {endpoint}"


def from_ledger(gateway: Gateway, endpoint: str) -> Booked:
    rows = query(
        gateway,
        f"SELECT usd, input_tokens, output_tokens, mark FROM entries WHERE endpoint = ? AND {SETTLING}",
        endpoint,
    )
    return Booked(
        len(rows),
        sum(row[0] or 0 for row in rows),
        sum(row[1] for row in rows),
        sum(row[2] for row in rows),
        frozenset(row[3] for row in rows),
    )


def attempts_of(gateway: Gateway, request: str) -> list[tuple[str, int | None]]:
    """Endpoint and pico-dollars of every settled attempt of a request, by its decision id."""
    rows = query(
        gateway,
        f"SELECT endpoint, usd FROM entries WHERE request = ? AND {SETTLING} ORDER BY attempt",
        request,
    )
    return [(row[0], row[1]) for row in rows]


def query(gateway: Gateway, statement: str, *values: str) -> Sequence[tuple[Any, ...]]:
    """Rows of the ledger of a gateway whose home is its own directory."""
    file = gateway.directory / ".local" / "state" / "apportion" / "ledger.db"
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()
