"""The words between a worker and the record: entries, movements of accounts, batches and their answers."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from apportion.core.budget import Budget

RESERVE: Final = 0
"""A reservation: amounts are the most it may cost."""
SETTLE: Final = 1
"""What it did cost."""
RELEASE: Final = 2
"""It cost nothing; amounts are zero."""
PRESUME: Final = 3
"""Settled at the reserved amounts, because whoever held it died before it could tell more."""
CORRECT: Final = 4
"""What a `PRESUME` turned out to have been: amounts are the differences, mostly below zero."""

KINDS: Final = ("reserve", "settle", "release", "presume", "correct")

TOKENS, USD, SERVER_SECONDS, JOULES, GCO2, REQUESTS, PARALLEL = range(7)
"""Places in an `Amounts`."""
RESOURCES: Final = ("tokens", "usd", "server_seconds", "joules", "gco2", "requests", "parallel")
"""Names of the resources by place. ``parallel`` is held while a request is under way and never spent."""

Amounts = tuple[int, int, int, int, int, int, int]
"""Whole numbers of each resource's smallest part, by place."""
NOTHING: Final[Amounts] = (0, 0, 0, 0, 0, 0, 0)


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One line of the record. ``(reservation, kind)`` is its idempotency key: it is written at most once.

    One attempt at one endpoint is one reservation. Amounts are whole numbers of the smallest part of the
    resource (pico-dollars, tokens, nanoseconds of a server, micro-joules, micro-grams). Who it was for is in the
    columns, "" where there is none; balances of every budget follow from them.
    """

    reservation: str
    kind: int
    request: str
    """Id of the decision that the client was told (``dec_...``); several attempts share it."""
    attempt: int
    organisation: str
    team: str
    key: str
    user: str
    session: str
    model: str
    endpoint: str
    upstream_model: str
    api: str
    tags: str
    """JSON object of the key's and the client's tags; "" without."""
    status: str = ""
    """Of a settlement: ok, failed, timeout, cancelled, crashed."""
    mark: str = ""
    """How the amounts are known: measured, estimated, presumed; unknown where no price is."""
    tokens: int = 0
    usd: int | None = 0
    """None where no price is known; it then charges no dollar budget."""
    server_seconds: int = 0
    joules: int | None = 0
    gco2: int | None = 0
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    duration_us: int = 0


class Move(NamedTuple):
    """How one account has changed at one holder since its last batch, and what the holder wants of it.

    ``free`` and ``reserved`` are what the holder has of it *now* (after the movements, before any grant), in
    smallest parts; ``spent`` is what was spent since the last batch, below zero for a correction. What is missing
    against the lease that the bank knows and was not spent has been given back. ``want`` is the least that is asked
    for in addition (0: nothing), ``like`` what would be liked instead (at least ``want``).
    """

    account: str
    """``BUDGET@SUBJECT``, for example ``daily@team:red``."""
    budget: Budget
    free: int
    reserved: int
    spent: int
    want: int = 0
    like: int = 0


class Batch(NamedTuple):
    """Everything a holder tells the bank at once. Applied as a whole, exactly once: ``number`` counts from 1 and a
    batch that was applied before is only answered again.
    """

    holder: str
    number: int
    entries: list[Entry]
    moves: list[Move]
    prices: dict[str, str] = {}  # noqa: RUF012 - never changed
    """Saved pricers by scope, JSON."""


class Grant(NamedTuple):
    """The bank's answer to one `Move`.

    ``granted`` has been lent in addition to ``free`` (0, or at least ``want``). ``available`` is what the account
    could lend now, after that (below zero: overspent, or a soft budget passed). ``lent`` is what other holders have
    of it unused. ``wait_s`` is when ``want`` would fit, if it did not: 0 if it did, None if no such time is known.
    ``recall``: others were refused for what lies idle in purses; give back what is free.
    """

    account: str
    granted: int
    available: int
    lent: int
    wait_s: float | None
    recall: bool = False


class Receipt(NamedTuple):
    """The bank's answer to a `Batch`: it is durable. ``now`` is the record's clock (Unix seconds), ``holders`` how
    many holders have leases. ``grants`` are in the order of the moves. ``expired``: the bank had given this holder up
    (its leases are void: free amounts must be dropped, and its open reservations count as presumed).
    """

    now: float
    holders: int
    grants: list[Grant]
    expired: bool = False


class BankError(Exception):
    """The shared state cannot be reached or did not answer in time. The batch may or may not have been applied:
    send the very same one again.
    """


class LendingError(BankError):
    """The batch is written down for good, but whoever lends could not be told: nothing was lent. ``receipt`` is what
    the database said. Both are right: to send the same batch again, and to go on with the next.
    """

    def __init__(self, why: str, receipt: Receipt) -> None:
        super().__init__(why)
        self.receipt = receipt
