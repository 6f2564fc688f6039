"""A worker for tests: purses as plain dictionaries, a journal as another, and nothing that is the proxy's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from apportion.core.budget import Budget
from apportion.serve.ledger.bank import Bank, Recovery
from apportion.serve.ledger.entries import RELEASE, RESERVE, SETTLE, Batch, Entry, Grant, Move, Receipt

SCOPES = ("organisation", "team", "key", "user", "session", "model", "endpoint")


def an_entry(reservation: str, kind: int = RESERVE, **columns: Any) -> Entry:
    """An entry of alice of the red team."""
    said: dict[str, Any] = {
        "request": "dec_000000000000000000",
        "attempt": 1,
        "organisation": "default",
        "team": "red",
        "key": "alice",
        "user": "bob",
        "session": "",
        "model": "small",
        "endpoint": "here",
        "upstream_model": "small-1",
        "api": "chat",
        "tags": "",
        "status": "ok" if kind == SETTLE else "",
        "mark": "measured" if kind == SETTLE else "",
        **columns,
    }
    return Entry(reservation=reservation, kind=kind, **said)


def account(budget: Budget, entry: Entry) -> str | None:
    """The account of ``budget`` that ``entry`` falls under."""
    kind, _, only = budget.scope.partition(":")
    if kind == "all":
        return f"{budget.name}@all"
    name = getattr(entry, kind)
    return f"{budget.name}@{kind}:{name}" if name and only in ("", name) else None


def held(budget: Budget, entry: Entry) -> int:
    """What a reservation holds of a budget."""
    return 1 if budget.resource == "parallel" else getattr(entry, budget.resource) or 0


class Teller:
    """One holder. ``budgets`` are all there are; hard ones are lent, soft ones only told."""

    def __init__(self, bank: Bank, holder: str, budgets: Iterable[Budget]) -> None:
        self.bank = bank
        self.holder = holder
        self.budgets = list(budgets)
        self.number = 0
        self.count = 0
        self.of: dict[str, Budget] = {}
        self.free: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.unsaid: dict[str, int] = {}
        self.entries: list[Entry] = []
        self.batch: Batch | None = None
        self.open: dict[str, Entry] = {}
        self.journal: dict[str, tuple[Entry, Entry | None]] = {}
        bank.open(holder, "here")

    def accounts(self, entry: Entry) -> list[tuple[str, Budget]]:
        found = [(account(budget, entry), budget) for budget in self.budgets]
        return [(id, budget) for id, budget in found if id is not None]

    def know(self, entry: Entry) -> None:
        """There are purses for everything that ``entry`` falls under."""
        for id, budget in self.accounts(entry):
            self.of[id] = budget
            for purse in (self.free, self.reserved, self.unsaid):
                purse.setdefault(id, 0)

    def reserve(self, **columns: Any) -> Entry | None:
        """Promise what the purses allow; None where one is short."""
        entry = an_entry(f"{self.holder}-{self.count:x}", RESERVE, **columns)
        self.know(entry)
        needs = [(id, held(budget, entry)) for id, budget in self.accounts(entry) if budget.hard]
        if any(need > self.free[id] for id, need in needs if need):
            return None
        for id, need in needs:
            self.free[id] -= need
            self.reserved[id] += need
        self.count += 1
        self.entries.append(entry)
        self.open[entry.reservation] = entry
        self.journal[entry.reservation] = (entry, None)
        return entry

    def settled(self, entry: Entry, **amounts: Any) -> Entry:
        """What a reservation came to; written to the journal."""
        kind = SETTLE if amounts else RELEASE
        nothing = dict.fromkeys(("tokens", "usd", "server_seconds", "joules", "gco2", "requests"), 0)
        end = msgspec.structs.replace(
            entry, kind=kind, **(nothing | amounts), status="ok" if amounts else "", mark="measured"
        )
        self.journal[entry.reservation] = (entry, end)
        return end

    def settle(self, entry: Entry, **amounts: Any) -> None:
        """A reservation ends; without amounts it has cost nothing."""
        end = self.settled(entry, **amounts)
        del self.open[entry.reservation]
        for id, budget in self.accounts(entry):
            spent = 0 if budget.resource == "parallel" else held(budget, end)
            if budget.hard:
                was = held(budget, entry)
                self.reserved[id] -= was
                self.free[id] = max(0, self.free[id] + was - spent)
            self.unsaid[id] += spent
        self.entries.append(end)

    def next(self, wants: Mapping[str, tuple[int, int]]) -> Batch:
        """All there is to say."""
        self.number += 1
        moves = [
            Move(id, budget, self.free[id], self.reserved[id], self.unsaid[id], *wants.get(id, (0, 0)))
            for id, budget in self.of.items()
        ]
        batch = Batch(self.holder, self.number, self.entries, moves)
        self.entries = []
        self.unsaid = dict.fromkeys(self.unsaid, 0)
        return batch

    def say(self, wants: Mapping[str, tuple[int, int]] | None = None) -> Receipt:
        """Send the batch that is under way, or the next, and take in the answer."""
        self.batch = self.batch or self.next(wants or {})
        receipt = self.bank.commit(self.batch)
        self.heard(receipt)
        return receipt

    def say_unheard(self, wants: Mapping[str, tuple[int, int]] | None = None) -> Receipt:
        """The same, but the answer is lost: it will be said again."""
        self.batch = self.batch or self.next(wants or {})
        return self.bank.commit(self.batch)

    def heard(self, receipt: Receipt) -> None:
        batch = self.batch
        assert batch is not None
        self.batch = None
        if receipt.expired:
            return
        for move, grant in zip(batch.moves, receipt.grants, strict=True):
            assert move.account == grant.account
            self.free[move.account] += grant.granted
        for entry in batch.entries:
            if entry.kind != RESERVE:
                self.journal.pop(entry.reservation, None)

    def lease(self, columns: Mapping[str, Any], want: int, like: int = 0) -> list[Grant]:
        """Ask for something of every hard account that such an entry falls under."""
        entry = an_entry("", RESERVE, **columns)
        self.know(entry)
        wants = {id: (want, max(want, like)) for id, budget in self.accounts(entry) if budget.hard}
        return self.say(wants).grants

    def recovered(self, *, settled: bool = True) -> Recovery:
        """Somebody reads the journal of this holder; without ``settled`` it knows of no settlement."""
        found = [(reserve, end if settled else None) for reserve, end in self.journal.values()]
        return self.bank.recover(self.holder, found)
