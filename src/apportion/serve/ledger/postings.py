"""What an entry means for an account: whether it falls under it, and with how much."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from apportion.serve.ledger.entries import CORRECT, PRESUME, SETTLE, Entry

SCOPES: Final = ("organisation", "team", "key", "user", "session", "model", "endpoint")
"""Kinds of subjects besides "all", which are columns of an entry."""
SPENDING: Final = frozenset((SETTLE, PRESUME, CORRECT))
"""Kinds of entries whose amounts were spent."""
AMOUNTS: Final = frozenset(("tokens", "usd", "server_seconds", "joules", "gco2", "requests"))
"""Resources that entries count. ``parallel`` is held and given back, never spent."""


def subject_of(account: str, budget: str) -> str:
    """The subject in an account's id, ``BUDGET@SUBJECT``. Both may contain "@"."""
    return account[len(budget) + 1 :] if account.startswith(f"{budget}@") else account.partition("@")[2]


def token(budget: str) -> str:
    """The name of a budget as it stands between commas in ``entries.charged``."""
    return budget.replace("%", "%25").replace(",", "%2C")


def kind_of(subject: str) -> str:
    """Its scope: "all", "team", "key", ..."""
    return subject.partition(":")[0]


def subjects(entry: Entry) -> list[str]:
    """All subjects that an entry falls under."""
    found = ["all"]
    for scope in SCOPES:
        name = getattr(entry, scope)
        if name:
            found.append(f"{scope}:{name}")
    return found


def amount(entry: Entry, resource: str) -> int:
    """What an entry has of a resource, in smallest parts; what is not known or not counted is 0."""
    return (getattr(entry, resource) or 0) if resource in AMOUNTS else 0


def posting(entry: Entry, subject: str, resource: str) -> int:
    """What an entry charges to an account of ``subject`` in ``resource``."""
    if entry.kind not in SPENDING:
        return 0
    scope, _, name = subject.partition(":")
    if scope != "all" and (scope not in SCOPES or getattr(entry, scope) != name or not name):
        return 0
    return amount(entry, resource)


class Postings:
    """Charges many entries to the same few accounts at once."""

    __slots__ = ("_by_scope", "_everybody", "spent")

    def __init__(self, accounts: Iterable[tuple[str, str, str, str]]) -> None:
        """``accounts`` are ``(id, budget, subject, resource)``."""
        self.spent: dict[str, int] = {}
        """Units charged, by account."""
        self._everybody: list[tuple[str, str, str]] = []
        self._by_scope: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
        for id, budget, subject, resource in accounts:
            self.spent[id] = 0
            if resource not in AMOUNTS:
                continue
            scope, _, name = subject.partition(":")
            if scope == "all":
                self._everybody.append((id, token(budget), resource))
            elif scope in SCOPES and name:
                self._by_scope.setdefault(scope, {}).setdefault(name, []).append(
                    (id, token(budget), resource)
                )

    def charge(self, entry: Entry, only: Container[str] | None = None) -> str:
        """Charge an entry; the budgets that it was charged to, each between commas. ``only`` are the accounts that
        an earlier entry was charged to, where this one takes some of that back.
        """
        if entry.kind not in SPENDING:
            return ""
        spent = self.spent
        charged = ""
        found = self._everybody
        for scope, named in self._by_scope.items():
            more = named.get(getattr(entry, scope))
            if more:
                found = found + more
        for id, name, resource in found:
            if only is not None and id not in only:
                continue
            spent[id] += getattr(entry, resource) or 0
            charged += f",{name}"
        return f"{charged}," if charged else ""
