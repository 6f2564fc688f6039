"""What the record asks of a database in each transaction, where SQLite and PostgreSQL are told it in different words.

These are the statements of the hot path: fixed texts, whole batches at once. Everything rare is SQLAlchemy Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import Connection, Engine

from apportion.serve.ledger.schema import entries

COLUMNS: Final = tuple(column.name for column in entries.columns)
"""Of an entry, in the order of its rows: the fields of `Entry`, then at_us, holder, charged."""
READS: Final = "apportion_reads"
"""Execution option of an engine or connection that only reads, if need be for minutes. On SQLite it then locks
nobody out.
"""


class HolderRow(NamedTuple):
    """A holder, locked. ``alive`` is how many holders are."""

    batch: int
    opened_us: int
    seen_us: int
    oldest_us: int | None
    dead_us: int | None
    alive: int


class AccountRow(NamedTuple):
    """An account, locked, with the lease that one holder has of it (None without) and how many have one."""

    id: str
    budget: str
    subject: str
    definition: str
    defined_us: int
    state: str
    at_us: int
    opened_us: int
    recall_us: int
    free: int | None
    reserved: int | None
    holders: int


class Store(Protocol):
    """One kind of database. All but ``engine`` happen in the caller's transaction."""

    engine: Engine

    def lock(self, c: Connection) -> None:
        """Let nobody else make or change tables until the transaction ends."""
        ...

    def patient(self, c: Connection) -> None:
        """The rest of this transaction may take minutes."""
        ...

    def holder(self, c: Connection, holder: str) -> HolderRow | None: ...

    def accounts(self, c: Connection, holder: str, ids: Sequence[str]) -> list[AccountRow]:
        """Those that exist, sorted by id and locked in that order."""
        ...

    def now_us(self, c: Connection, clock_us: int) -> int:
        """The record's clock. ``clock_us`` is this machine's, which matters only where the record has none."""
        ...

    def insert_entries(self, c: Connection, rows: Sequence[tuple[Any, ...]]) -> None: ...

    def insert_accounts(self, c: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Those that do not exist yet, in the order of their ids."""
        ...

    def save(self, c: Connection, now_us: int, rows: Sequence[tuple[str, int, str]]) -> None:
        """Accounts have changed: ``(state, recall_us, id)`` each."""
        ...

    def lend(self, c: Connection, holder: str, rows: Sequence[tuple[str, int, int]]) -> None:
        """Leases have changed: ``(account, free, reserved)`` each."""
        ...

    def unlend(self, c: Connection, holder: str, accounts: Sequence[str]) -> None:
        """These leases are over."""
        ...

    def seen(self, c: Connection, holder: str, batch: int, now_us: int, oldest_us: int | None) -> None:
        """A holder's batch was applied."""
        ...

    def again(self, error: BaseException) -> bool:
        """Whether the transaction failed only because of another one, and may be tried again at once."""
        ...
