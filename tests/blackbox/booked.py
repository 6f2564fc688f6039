"""What the proxy has booked for an endpoint: read in one place, from the metrics and from the ledger."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import NamedTuple

from .proxy import Gateway

PATIENCE_S = 10.0


class Booked(NamedTuple):
    """The sums of all attempts at one endpoint."""

    attempts: int
    units: int
    """Pico-dollars."""
    input_tokens: int
    output_tokens: int
    marks: frozenset[str]
    """How the amounts are known; empty where only the metrics say them."""


async def booked(gateway: Gateway, endpoint: str, attempts: int) -> Booked:
    """The books of ``endpoint`` once ``attempts`` attempts are in them.

    Where the gateway keeps a ledger, the sums of its entries; they must be those of the metrics.
    """
    until_s = time.monotonic() + PATIENCE_S
    while True:
        metrics = await from_metrics(gateway, endpoint)
        ledger = from_ledger(gateway, endpoint)
        found = ledger or metrics
        if found.attempts >= attempts or time.monotonic() > until_s:
            break
        await asyncio.sleep(0.05)
    assert found.attempts == attempts, f"{found} after {PATIENCE_S} s, wanted {attempts} attempts"
    if ledger is not None:
        assert ledger[:4] == metrics[:4], "the metrics say something else than the ledger"
    return found


async def from_metrics(gateway: Gateway, endpoint: str) -> Booked:
    samples = await gateway.metrics()

    def total(name: str, **labels: str) -> float:
        wanted = [f'{k}="{v}"' for k, v in {"endpoint": endpoint, **labels}.items()]
        return sum(v for k, v in samples.items() if k.startswith(name + "{") and all(w in k for w in wanted))

    return Booked(
        round(total("apportion_attempts_total")),
        round(total("apportion_cost_usd_total") * 10**12),
        round(total("apportion_tokens_total", direction="input")),
        round(total("apportion_tokens_total", direction="output")),
        frozenset(),
    )


def from_ledger(gateway: Gateway, endpoint: str) -> Booked | None:
    """The same from the entries that settle a reservation; None for a gateway that keeps no such file."""
    file = gateway.directory / ".local" / "state" / "apportion" / "ledger.db"
    if not file.is_file():
        return None
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT usd, input_tokens, output_tokens, mark FROM entries WHERE endpoint = ? AND kind IN (1, 2, 3, 4)",
            (endpoint,),
        ).fetchall()
    return Booked(
        len(rows),
        sum(row[0] or 0 for row in rows),
        sum(row[1] for row in rows),
        sum(row[2] for row in rows),
        frozenset(row[3] for row in rows),
    )
