"""Who lends to workers: what a ledger may ask of the shared record, whichever store stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from apportion.serve.ledger.entries import Batch, Entry, Receipt


class Recovery(NamedTuple):
    """What a dead holder's journal brought to light: reservations that were ``settled`` at their measured cost,
    ``presumed`` to have cost all they had reserved, and those the record ``known`` already had in full.
    """

    settled: int
    presumed: int
    known: int


class Bank(Protocol):
    """Blocking; each call is one transaction. Called by one thread of each worker, by many workers at once.

    Every call raises `BankError` when the store cannot be reached, is locked for too long or lost the connection:
    it may or may not have been carried out then, and repeating the very same call is always right.
    """

    def open(self, holder: str, machine: str) -> Receipt:
        """Register ``holder``: an id that is never used again, for example ``secrets.token_hex(8)``."""
        ...

    def commit(self, batch: Batch) -> Receipt:
        """Apply a batch, durably. What is charged to the accounts of its moves follows from its entries.

        A holder that was given up, or is not known, is answered ``expired``: the entries are written and charged,
        the moves are not applied, reservations still open are presumed. Its leases stay lent until `recover`,
        `close` or `forget`, because it may have promised something since it sent the batch.
        """
        ...

    def recover(self, holder: str, found: Sequence[tuple[Entry, Entry | None]]) -> Recovery:
        """Write what the journal of a dead holder knows (reserved, settled or None), and close the holder.

        Every account that an entry falls under is charged, whether the holder still has leases or not.
        """
        ...

    def forget(self, holder: str) -> None:
        """An operator knows that ``holder`` and its journal are gone for good: presume what is open, take back
        what it was lent.
        """
        ...

    def close(self, holder: str) -> None:
        """The holder ends: all leases come back. What it left open is presumed; a tidy one leaves nothing."""
        ...

    def prices(self) -> dict[str, str]:
        """The pricers saved last, JSON by scope."""
        ...

    def dispose(self) -> None:
        """Close all connections."""
        ...
