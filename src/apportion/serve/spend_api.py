"""``GET /apportion/spend``: where the money went. Admin keys see everything, other keys what they spent themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from apportion.core.errors import ParameterError
from apportion.serve import errors
from apportion.serve.config.schema import Key
from apportion.serve.routes import Route, Visit

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from apportion.serve.ledger.spend import Question

_JSON: Final = "content-type: application/json\r\nx-request-id: {}\r\n"
_GROUPS: Final = 1000
"""Groups in an answer that asks for no number."""
_MOST_GROUPS: Final = 10_000
_FIELDS: Final = 100
_AT_ONCE: Final = 2
_PATIENCE_S: Final = 5.0


class SpendApi:
    """Answers reports from the books, a few at a time, each in a thread and for a limited time.

    ``engine`` is given as soon as the database is open.
    """

    def __init__(self, *, patience_s: float = _PATIENCE_S) -> None:
        self.engine: Engine | None = None
        self._patience_s = patience_s
        self._running = 0

    def routes(self) -> Iterator[Route]:
        """The part of the route table that is answered here."""
        yield Route("GET", "/apportion/spend", "key", self.spend)

    async def spend(self, visit: Visit) -> None:
        """The handler of the route. Raises `GatewayError`."""
        question, limit = read(visit.request.query, visit.key, time.time())
        engine = self.engine
        if engine is None:
            raise errors.LedgerUnavailableError("The books are not open yet.", retry_after_s=1.0)
        if self._running >= _AT_ONCE:
            raise errors.OverloadedError(
                f"{_AT_ONCE} reports are being made already.", fix="Try again in a moment.", retry_after_s=2.0
            )
        self._running += 1
        try:
            body = await asyncio.to_thread(self._report, engine, question, limit)
        finally:
            self._running -= 1
        visit.responder.send(200, _JSON.format(visit.number).encode(), body)

    def _report(self, engine: Engine, question: Question, limit: int) -> bytes:
        from sqlalchemy.exc import SQLAlchemyError

        from apportion.serve.ledger.reading import reading
        from apportion.serve.ledger.report import as_json
        from apportion.serve.ledger.spend import rows, total

        until = time.monotonic() + self._patience_s
        try:
            with reading(engine, self._patience_s) as connection:
                found = list(rows(connection, question, limit + 1))
                whole = total(connection, question) if len(found) > limit else None
                return "".join(as_json(question, found, limit, total=whole)).encode()
        except SQLAlchemyError:
            if time.monotonic() >= until:
                raise errors.OverloadedError(
                    f"The report takes longer than {self._patience_s:g} seconds.",
                    field="since",
                    fix="Ask for a shorter time, or use `apportion spend`.",
                ) from None
            raise errors.LedgerUnavailableError(
                "The books cannot be read now.", fix="Try again in a moment.", retry_after_s=5.0
            ) from None


def read(query: str, key: Key, now_s: float) -> tuple[Question, int]:
    """The question in a query string, and the most groups to answer with. ``key`` is who asks.

    Raises `InvalidRequestError`, `PermissionDeniedError`.
    """
    from apportion.serve.ledger.buckets import zone
    from apportion.serve.ledger.spend import COLUMNS, SORTS, TAG, Question, grouping, instant

    given: dict[str, list[str]] = {}
    for name, value in _pairs(query):
        given.setdefault(name, []).append(value)
    only: dict[str, Sequence[str]] = {
        name: given.pop(name) for name in [*given] if name in COLUMNS or name.startswith(TAG)
    }
    if not key.admin:
        if {*only.get("key", ())} - {key.name}:
            raise errors.PermissionDeniedError("A key reads what it spent itself.", field="key")
        only["key"] = (key.name,)
    try:
        place = zone(_one(given, "time_zone") or "UTC")
        since, until = _one(given, "since"), _one(given, "until")
        question = Question(
            by=grouping(_one(given, "by") or ""),
            since_us=None if since is None else instant(since, now_s, place, "since"),
            until_us=None if until is None else instant(until, now_s, place, "until"),
            place=place,
            only=only,
            sort=_choice(_one(given, "sort") or "usd", SORTS),
        )
        limit = _limit(_one(given, "limit"))
    except ParameterError as error:
        raise errors.InvalidRequestError(error.message, field=error.field, fix=error.fix) from None
    if given:
        raise errors.InvalidRequestError(
            f"There is no parameter {next(iter(given))[:60]!r}.",
            field=next(iter(given))[:60],
            fix=f"Known: by, since, until, time_zone, sort, limit, {', '.join(COLUMNS)}, {TAG}NAME.",
        )
    return question, limit


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        raise errors.InvalidRequestError(
            f"The query has more than {_FIELDS} parameters.", field="query"
        ) from None


def _one(given: dict[str, list[str]], name: str) -> str | None:
    values = given.pop(name, [])
    if len(values) > 1:
        raise errors.InvalidRequestError(f"The parameter {name!r} is given twice.", field=name)
    return values[0] if values else None


def _choice(text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise errors.InvalidRequestError(
            f"{text[:60]!r} is no order.", field="sort", fix=f"Use {', '.join(known)}."
        )
    return text


def _limit(text: str | None) -> int:
    if text is None:
        return _GROUPS
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_GROUPS and len(text) < 9):
        raise errors.InvalidRequestError(
            f"{text[:60]!r} is no number of groups.", field="limit", fix=f"Use 1 to {_MOST_GROUPS}."
        )
    return int(text)
