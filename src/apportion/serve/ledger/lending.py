"""What one batch does to the accounts, and what it is answered."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, func, select

from apportion.serve.ledger.books import Book, Books
from apportion.serve.ledger.entries import Grant, Move
from apportion.serve.ledger.schema import holders, leases
from apportion.serve.ledger.windows import US

_RECALL_US: Final = 2 * US
"""For so long others are asked to give back what lies unused, after somebody was refused."""


def grant(c: Connection, books: Books, holder: str, move: Move) -> Grant:
    """Lend what a move wants, after it has been applied."""
    book = books[move.account]
    account = book.account
    granted, lent = 0, 0
    wait_s: float | None = 0.0
    recall = book.recall_us > books.now_us
    account.available_units(books.now)
    if move.want > 0:
        granted = _offer(book, move)
        if account.lend(granted, books.now):
            book.free += granted
            recall = False
        else:
            granted, wait_s = 0, account.wait_s(move.want, books.now)
            lent = _unused(c, holder, move.account) if account.lent_units > book.free else 0
            if lent:
                book.recall_us = books.now_us + _RECALL_US
    if not account.lent_units:
        book.recall_us = 0
    if granted or not move.want:
        lent = account.lent_units - book.free
    return Grant(move.account, granted, account.level_units, lent, wait_s, recall and book.free > 0)


def nothing(move: Move) -> Grant:
    """What somebody is answered whose budget is not the one that is kept under this name."""
    return Grant(move.account, 0, 0, 0, None)


def repeat(book: Book, move: Move, now: float) -> Grant:
    """What was answered to a move that had been applied before: the lease has it."""
    account = book.account
    account.available_units(now)
    granted = max(0, book.free - move.free)
    wait_s = account.wait_s(move.want, now) if move.want and not granted else 0.0
    return Grant(move.account, granted, account.level_units, account.lent_units - book.free, wait_s)


def _offer(book: Book, move: Move) -> int:
    """What is wanted, and of what is liked beyond that a fair part: half of what is left, shared by the holders."""
    sharing = 2 * max(1, book.holders + (not book.held))
    spare = (book.account.level_units - move.want) // sharing
    return move.want + max(0, min(move.like - move.want, spare))


def _unused(c: Connection, holder: str, account: str) -> int:
    """What holders that live have of an account and have not promised; `holder` itself aside."""
    unused = select(func.coalesce(func.sum(leases.c.free), 0)).join_from(
        leases, holders, holders.c.holder == leases.c.holder
    )
    here = (leases.c.account == account, leases.c.holder != holder, holders.c.dead_us.is_(None))
    return int(c.execute(unused.where(*here)).scalar_one())
