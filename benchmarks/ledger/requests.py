"""A request as the ledger sees it: four budgets that it falls under, a reservation, a settlement."""

from __future__ import annotations

from typing import Final

import msgspec

from apportion.core.budget import Budget
from apportion.serve.ledger.entries import RESERVE, RESOURCES, SETTLE, Amounts, Entry
from apportion.serve.ledger.ledger import Ledger
from apportion.serve.ledger.purse import Line, Lines

BUDGETS: Final = (
    (Budget("all-day", "usd", 1_000_000, window_s=86_400.0), "all"),
    (Budget("team-day", "usd", 1_000_000, window_s=86_400.0, scope="team"), "team:bench"),
    (Budget("key-rate", "requests", 10**9, refill_per_s=10**7, scope="key"), "key:bench"),
    (Budget("key-tokens", "tokens", 10**13, refill_per_s=10**11, scope="key"), "key:bench"),
)
"""None is ever used up; each is checked."""

HELD: Final[Amounts] = (2_000, 1_200_000_000, 0, 0, 0, 1, 0)
SPENT: Final[Amounts] = (700, 330_000_000, 450_000_000, 0, 0, 1, 0)

_blank: Final = Entry(
    reservation="", kind=RESERVE, request="dec_0123456789abcdef", attempt=0, organisation="default", team="bench",
    key="bench", user="user-1", session="session-1", model="bench-model", endpoint="near",
    upstream_model="upstream-model", api="chat", tags='{"team":"bench"}',
)  # fmt: skip


def lines(ledger: Ledger) -> Lines:
    """The purses of the four budgets."""
    hard = []
    for budget, subject in BUDGETS:
        place = RESOURCES.index(budget.resource)
        hard.append(Line(ledger.purse(f"{budget.name}@{subject}", budget, subject), place, place))
    return Lines(tuple(hard), ())


def reserve_of(reservation: str) -> Entry:
    """The entry of the reservation: `HELD`."""
    return msgspec.structs.replace(_blank, reservation=reservation, tokens=HELD[0], usd=HELD[1], requests=1)


def settle_of(reservation: str) -> Entry:
    """The entry of the settlement: `SPENT`."""
    return msgspec.structs.replace(
        _blank, reservation=reservation, kind=SETTLE, status="ok", mark="measured", tokens=SPENT[0], usd=SPENT[1],
        server_seconds=SPENT[2], requests=1, input_tokens=500, output_tokens=200, duration_us=450_000,
    )  # fmt: skip
