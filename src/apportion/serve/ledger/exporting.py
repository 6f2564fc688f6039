"""The entries themselves, a JSON object a line, in the order in which they were written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from apportion.core.resource import GCO2, JOULES, SERVER_SECONDS, USD
from apportion.serve.ledger.entries import KINDS
from apportion.serve.ledger.report import shown
from apportion.serve.ledger.schema import entries

_UNITS: Final = {"usd": USD, "server_seconds": SERVER_SECONDS, "joules": JOULES, "gco2": GCO2}
_ROWS_AT_ONCE: Final = 1000


def lines(
    connection: sa.Connection, since_us: int | None = None, until_us: int | None = None
) -> Iterator[str]:
    """Entries of ``[since_us, until_us)``, read as they are taken. Amounts are exact decimal strings in the unit of
    their resource, ``at`` is in UTC; ``tags`` are an object.
    """
    wanted = sa.select(entries).order_by(entries.c.at_us, entries.c.reservation, entries.c.kind)
    if since_us is not None:
        wanted = wanted.where(entries.c.at_us >= since_us)
    if until_us is not None:
        wanted = wanted.where(entries.c.at_us < until_us)
    streaming = {"stream_results": True, "max_row_buffer": _ROWS_AT_ONCE}
    with connection.execute(wanted, execution_options=streaming) as found:
        for row in found.mappings():
            yield _line(dict(row))


def _line(row: dict[str, Any]) -> str:
    at_us = row.pop("at_us")
    row["kind"] = KINDS[row["kind"]]
    row["tags"] = msgspec.Raw(row["tags"].encode()) if row["tags"] else {}
    row["charged"] = [name for name in row["charged"].split(",") if name]
    for name, unit in _UNITS.items():
        if row[name] is not None:
            row[name] = f"{unit.from_units(row[name]):f}"
    return msgspec.json.encode({"at": shown(at_us), "at_us": at_us, **row}).decode() + "\n"
