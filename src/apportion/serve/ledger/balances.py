"""What is left of budgets, as the record has it: read from the accounts, changing nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from apportion.core.budget import Account, Budget
from apportion.serve.ledger.books import opened
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.openings import seen
from apportion.serve.ledger.schema import accounts
from apportion.serve.ledger.windows import US

MOST: Final = 1000
"""Accounts told at once."""


class Balance(NamedTuple):
    """The book of one budget for one subject (``all``, ``key:NAME``, ...), in the resource's unit.

    ``spent`` is what the present window has spent, ``held`` what requests under way may take at most, ``left`` what
    is neither (below zero: a soft budget passed). ``begins_again_s`` (Unix seconds) is when the next window begins,
    None without one.
    """

    budget: str
    subject: str
    resource: str
    amount: Decimal
    spent: Decimal
    held: Decimal
    left: Decimal
    hard: bool
    begins_again_s: float | None


def balances(
    connection: Connection,
    now: float,
    *,
    budgets: Sequence[str] | None = None,
    most: int = MOST,
) -> list[Balance]:
    """The accounts of these budgets (None: of all) at ``now``, Unix seconds; at most ``most``."""
    wanted = select(accounts.c.budget, accounts.c.subject, accounts.c.definition, accounts.c.state)
    if budgets is not None:
        wanted = wanted.where(accounts.c.budget.in_(budgets))
    wanted = wanted.order_by(accounts.c.budget, accounts.c.subject).limit(most)
    return [
        _balance(name, subject, Account.load(decode(definition), json.loads(state)), now)
        for name, subject, definition, state in connection.execute(wanted)
    ]


def balances_of(connection: Connection, now: float, wanted: Sequence[tuple[Budget, str]]) -> list[Balance]:
    """The accounts of these budgets and subjects at ``now``, Unix seconds, as the next request would find them: also
    those that no request has opened, and those whose budget is another since the last.
    """
    ids = [f"{budget.name}@{subject}" for budget, subject in wanted]
    rows = select(accounts.c.id, accounts.c.definition, accounts.c.state).where(accounts.c.id.in_(ids))
    kept = {row.id: row for row in connection.execute(rows)}
    found = []
    for id, (budget, subject) in zip(ids, wanted, strict=True):
        row = kept.get(id)
        account = None if row is None else Account.load(decode(row.definition), json.loads(row.state))
        if account is None or account.resource != budget.resource:
            account = opened(budget, seen(connection, budget, subject, int(now * US)), now)
        elif account.budget != budget:
            account.change(budget, now)
        found.append(_balance(budget.name, subject, account, now))
    return found


def _balance(name: str, subject: str, account: Account, now: float) -> Balance:
    budget = account.budget
    unit = budget.unit
    # What is lent to workers and not promised yet is left; they only hold it ready.
    left_units = account.available_units(now) + account.lent_units
    begins_again_s = None if budget.sliding else budget.window(now)[1]
    return Balance(
        name,
        subject,
        unit.name,
        unit.from_units(unit.to_units(budget.amount)),
        unit.from_units(account.window_spent_units(now)),
        unit.from_units(account.reserved_units),
        unit.from_units(left_units),
        budget.hard,
        None if begins_again_s is None or math.isinf(begins_again_s) else begins_again_s,
    )
