"""The durable record: reserve against several budgets at once, then settle or release."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from apportion.core.budget import Account, Budget
from apportion.core.errors import AmountError, BudgetError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was reserved: the first ``budget`` in which the amount does not fit, and what would.

    Amounts are whole numbers of the resource's smallest part. ``wait_s`` is when it would fit if nobody
    else takes any, None when no such time is known. ``account`` is the key under which the ledger keeps
    the book.
    """

    account: str
    budget: Budget
    wanted_units: int
    available_units: int
    wait_s: float | None


@runtime_checkable
class Ledger(Protocol):
    """Keeps the accounts. All or nothing: a reservation holds in every account named, or in none.

    Accounts are named by keys of the ledger's choice (a budget and who it is for). Whatever crashes, a
    hard budget is not overspent: a reservation counts until it is settled or released.
    """

    def reserve(self, amounts_units: Mapping[str, int], now: float) -> str | Refusal:
        """Hold these amounts by account; a reservation's id, or the first account in which it does not
        fit.
        """

    def settle(self, reservation: str, amounts_units: Mapping[str, int], now: float) -> None:
        """Replace a reservation by the measured amounts; an account not named is charged what was
        reserved.
        """

    def release(self, reservation: str, now: float) -> None:
        """Give a reservation back unspent."""

    def available_units(self, account: str, now: float) -> int:
        """What may be reserved in one account now."""


class MemoryLedger:
    """A `Ledger` without durability: for tests, simulation and a single process that may forget."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._accounts: dict[str, Account] = {}
        self._held: dict[str, dict[str, int]] = {}
        self._ids = itertools.count(1)
        for budget in budgets:
            self.open(budget.name, budget)

    def open(self, account: str, budget: Budget) -> None:
        """Keep a book for ``budget`` under the key ``account``."""
        if account in self._accounts:
            raise BudgetError(f"There is already an account {account!r}.", field=account)
        self._accounts[account] = Account(budget)

    def reserve(self, amounts_units: Mapping[str, int], now: float) -> str | Refusal:
        """See `Ledger`."""
        held: dict[str, int] = {}
        for key, units in amounts_units.items():
            account = self._account(key)
            if not account.reserve(units, now):
                for earlier, earlier_units in held.items():
                    self._accounts[earlier].release(earlier_units, now)
                return Refusal(
                    key, account.budget, units, account.available_units(now), account.wait_s(units, now)
                )
            held[key] = units
        reservation = str(next(self._ids))
        self._held[reservation] = held
        return reservation

    def settle(self, reservation: str, amounts_units: Mapping[str, int], now: float) -> None:
        """See `Ledger`."""
        held = self._taken(reservation)
        for key, units in held.items():
            self._accounts[key].settle(units, amounts_units.get(key, units), now)

    def release(self, reservation: str, now: float) -> None:
        """See `Ledger`."""
        for key, units in self._taken(reservation).items():
            self._accounts[key].release(units, now)

    def available_units(self, account: str, now: float) -> int:
        """See `Ledger`."""
        return self._account(account).available_units(now)

    def _account(self, key: str) -> Account:
        try:
            return self._accounts[key]
        except KeyError:
            raise BudgetError(f"There is no account {key!r}.", field=key) from None

    def _taken(self, reservation: str) -> dict[str, int]:
        try:
            return self._held.pop(reservation)
        except KeyError:
            raise AmountError(
                f"There is no open reservation {reservation!r}: it was settled or released before.",
                field="reservation",
            ) from None
