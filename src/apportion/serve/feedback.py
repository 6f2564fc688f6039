"""``POST /v1/feedback``: whoever got an answer says how good it was. Late, twice or in contradiction is fine.

A key speaks about its own decisions only; another's is answered as one that does not exist. A decision of another
worker is passed on to that one, over the workers' private sockets.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from apportion.serve import errors
from apportion.serve.records import owner
from apportion.serve.routes import Route, Visit
from apportion.serve.verdicts import Case, Verdicts, Word

LABELS: Final[dict[str, float]] = {
    **dict.fromkeys(("right", "correct", "good", "accepted", "up", "thumbs_up", "yes", "true"), 1.0),
    **dict.fromkeys(("wrong", "incorrect", "bad", "rejected", "down", "thumbs_down", "no", "false"), 0.0),
    **dict.fromkeys(("partly", "partial", "mixed"), 0.5),
}
"""Words in place of a score."""
_DEFAULT_SOURCE: Final = "user"

Post = Callable[[int, str, bytes], Awaitable[bytes | None]]
"""Sends a body to a path on another worker's control socket; its answer, None if it has none."""


class Given(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may say."""

    decision_id: Annotated[str, Meta(max_length=64)] | None = None
    request_id: Annotated[str, Meta(max_length=64)] | None = None
    score: Annotated[float, Meta(ge=0, le=1)] | None = None
    label: Annotated[str, Meta(max_length=32)] | bool | None = None
    source: Annotated[str, Meta(min_length=1, max_length=64)] = _DEFAULT_SOURCE
    comment: Annotated[str, Meta(max_length=4096)] | None = None


class Told(Struct, frozen=True, kw_only=True):
    """The same between workers: ``key`` is None for an admin."""

    decision_id: str
    score: float
    source: str
    comment: str | None
    key: str | None


class Listener(Protocol):
    """Who else wants to know of a person's word."""

    def asked(self) -> None:
        """A decision is going to be looked up."""
        ...

    async def recalled(self, id: str) -> Case | None:
        """An older decision that is not in memory any more, from wherever it is kept; None if it is nowhere.

        Raises `GatewayError` when that cannot be said now.
        """
        ...

    def spoken(self, case: Case, word: Word, now: float, comment: str | None) -> None:
        """A word has been taken."""
        ...

    def unknown(self) -> None:
        """Somebody spoke about a decision that is not here."""
        ...


class FeedbackApi:
    """Takes people's words on this worker's decisions, and passes on those about others'."""

    def __init__(
        self, worker: int, verdicts: Verdicts, listener: Listener, sibling: Post | None = None
    ) -> None:
        self._worker = worker
        self._verdicts = verdicts
        self._listener = listener
        self.sibling = sibling

    def routes(self) -> Iterator[Route]:
        """The part of the route table that is answered here."""
        yield Route("POST", "/v1/feedback", "key", self.feedback)
        yield Route("POST", "/apportion/feedback", "key", self.feedback)

    async def feedback(self, visit: Visit) -> None:
        """The handler of both. Raises `GatewayError`."""
        told = read(visit.request.body, None if visit.key.admin else visit.key.name)
        worker = owner(told.decision_id)
        answer: dict[str, Any] | None = None
        if worker == self._worker:
            answer = await self.take(told)
        elif worker is not None and self.sibling is not None:
            body = await self.sibling(worker, "/feedback", msgspec.json.encode(told))
            answer = None if body is None else msgspec.json.decode(body, type=dict[str, Any])
        if answer is None:
            if worker is None:
                self._listener.unknown()
            raise errors.NotFoundError(
                f"There is no decision {told.decision_id[:40]!r} (any more).",
                field="decision_id",
                fix="Feedback is taken for the latest decisions (records.feedback) and those in the log (records.log).",
            )
        visit.send(answer)

    async def from_sibling(self, body: bytes) -> bytes | None:
        """The answer to another worker that passed on a word; None if there is no such decision."""
        answer = await self.take(msgspec.json.decode(body, type=Told))
        return None if answer is None else msgspec.json.encode(answer)

    async def take(self, told: Told) -> dict[str, Any] | None:
        """Take a word; None if there is no such decision, or it is somebody else's."""
        self._listener.asked()
        case = self._verdicts.find(told.decision_id)
        if case is None:
            case = await self._listener.recalled(told.decision_id)
        if case is None or told.key not in (None, case.key):
            self._listener.unknown()
            return None
        now = time.time()
        word = Word("person", told.source, told.score)
        changed = self._verdicts.say(case, word, now, 0.0)
        self._listener.spoken(case, word, now, told.comment)
        return {
            "object": "apportion.feedback",
            "decision_id": case.id,
            "model": case.model,
            "quality": case.taught,
            "changed": changed,
            "sources": len(case.words),
        }


def read(body: bytes, key: str | None) -> Told:
    """What a body says. Raises `InvalidRequestError` naming the field."""
    try:
        given = msgspec.json.decode(body, type=Given)
    except msgspec.ValidationError as error:
        raise errors.InvalidRequestError(
            f"The feedback is wrong: {error}.", fix="See /openapi.json, or docs/guides/feedback.md."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.InvalidJSONError(f"The body is not valid JSON: {error}.") from None
    ids = [id for id in (given.decision_id, given.request_id) if id is not None]
    if len(ids) != 1:
        raise errors.InvalidRequestError(
            "Exactly one of 'decision_id' and 'request_id' says what it is about.",
            field="decision_id",
            fix="Both are in the answer's headers: x-apportion-decision-id, x-request-id.",
        )
    if (given.score is None) == (given.label is None):
        raise errors.InvalidRequestError(
            "Exactly one of 'score' and 'label' is needed.", field="score", fix='Send "score": 0 to 1.'
        )
    # A request and its decision share their number.
    id = ids[0] if given.request_id is None else "dec_" + given.request_id.removeprefix("req_")
    return Told(
        decision_id=id,
        score=_score(given),
        source=given.source,
        comment=given.comment,
        key=key,
    )


def _score(given: Given) -> float:
    if given.score is not None:
        return given.score
    label = str(given.label).strip().lower().replace(" ", "_").replace("-", "_")
    score = LABELS.get(label)
    if score is None:
        raise errors.InvalidRequestError(
            f"{label!r} is no label.", field="label", fix=f"Use one of {', '.join(LABELS)}, or a score."
        )
    return score
