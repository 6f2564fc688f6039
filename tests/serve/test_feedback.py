"""`POST /v1/feedback`: own decisions only, whatever the order; other workers' are passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apportion.serve import errors
from apportion.serve.config.schema import Key
from apportion.serve.feedback import LABELS, FeedbackApi, read
from apportion.serve.http.server import Request
from apportion.serve.routes import Visit
from apportion.serve.verdicts import Case, Verdict, Verdicts, Word

ADMIN, RED, BLUE = Key(name="boss", admin=True), Key(name="red"), Key(name="blue")
OWN, OTHER = "dec_00aaaaaaaa00000001", "dec_01bbbbbbbb00000001"


class Answer:
    """Takes the place of a responder."""

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self.status, self.body = status, json.loads(body)


class Office:
    """A worker that decided for the key `red`."""

    def __init__(self, worker: int = 0, id: str = OWN) -> None:
        self.taught: list[Verdict] = []
        self.heard: list[tuple[Word, str | None]] = []
        self.not_found = 0
        verdicts = Verdicts(100, self.taught.append)
        verdicts.remember(
            Case(
                id=id,
                at=0.0,
                key="red",
                model="chat",
                action="a",
                endpoint="a",
                upstream_model="m",
                state=None,
            )
        )
        self.api = FeedbackApi(worker, verdicts, self)

    def asked(self) -> None:
        pass

    async def recalled(self, id: str) -> Case | None:
        return None

    def spoken(self, case: Case, word: Word, now: float, comment: str | None) -> None:
        self.heard.append((word, comment))

    def unknown(self) -> None:
        self.not_found += 1

    async def post(self, body: object, key: Key = RED) -> dict[str, Any]:
        request = Request("POST", b"/v1/feedback", "1.1", {}, True)
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = Answer()
        await self.api.feedback(Visit(request, answer, "req_1", key, {}))  # type: ignore[arg-type]
        assert answer.status == 200
        found: dict[str, Any] = answer.body
        return found


async def test_a_score_is_taught() -> None:
    office = Office()
    found = await office.post({"decision_id": OWN, "score": 0.25, "source": "app", "comment": "meh"})
    assert (found["quality"], found["changed"], found["model"]) == (0.25, True, "chat")
    assert [v.quality for v in office.taught] == [0.25]
    assert office.heard == [(Word("person", "app", 0.25), "meh")]


async def test_a_request_id_names_its_decision() -> None:
    office = Office()
    assert (await office.post({"request_id": "req_" + OWN[4:], "label": "right"}))["decision_id"] == OWN


@pytest.mark.parametrize("label", [*LABELS, "Thumbs up", True, False])
async def test_labels(label: str | bool) -> None:
    score = (await Office().post({"decision_id": OWN, "label": label}))["quality"]
    assert score in (0.0, 0.5, 1.0)
    if isinstance(label, bool):
        assert score == float(label)


async def test_twice_and_in_contradiction() -> None:
    office = Office()
    say = {"decision_id": OWN}
    assert (await office.post({**say, "score": 1}))["changed"]
    assert not (await office.post({**say, "score": 1}))["changed"]
    assert (await office.post({**say, "score": 0}))["quality"] == 0.0
    assert (await office.post({**say, "score": 1, "source": "reviewer"}))["quality"] == 0.5
    assert [v.quality for v in office.taught] == [1.0, 0.0, 0.5]


async def test_an_admin_may_speak_of_all_others_only_of_their_own() -> None:
    office = Office()
    assert (await office.post({"decision_id": OWN, "score": 1}, ADMIN))["changed"]
    for body in ({"decision_id": OWN, "score": 0}, {"decision_id": OWN[:-1] + "2", "score": 0}):
        with pytest.raises(errors.NotFoundError) as refused:
            await office.post(body, BLUE)
        assert "There is no decision" in str(refused.value)
    assert len(office.taught) == 1
    assert office.not_found == 2


async def test_another_workers_decision_is_passed_on() -> None:
    here, there = Office(), Office(1, OTHER)
    asked: list[tuple[int, str]] = []

    async def sibling(worker: int, path: str, body: bytes) -> bytes | None:
        asked.append((worker, path))
        return await there.api.from_sibling(body)

    here.api.sibling = sibling
    found = await here.post({"decision_id": OTHER, "score": 0.5})
    assert found["quality"] == 0.5
    assert asked == [(1, "/feedback")]
    assert here.taught == []
    assert len(there.taught) == 1
    with pytest.raises(errors.NotFoundError):
        await here.post({"decision_id": OTHER, "score": 0.5}, BLUE)


@pytest.mark.parametrize("id", [OTHER, "dec_", "nonsense", "req_x", ""])
async def test_who_is_not_found(id: str) -> None:
    with pytest.raises(errors.NotFoundError):
        await Office().post({"decision_id": id, "score": 1})


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "Expected `object`"),
        ({}, 400, "decision_id"),
        ({"decision_id": OWN, "request_id": OWN, "score": 1}, 400, "Exactly one"),
        ({"decision_id": OWN}, 400, "score"),
        ({"decision_id": OWN, "score": 1, "label": "right"}, 400, "Exactly one"),
        ({"decision_id": OWN, "score": 1.5}, 400, "<= 1.0"),
        ({"decision_id": OWN, "score": -1}, 400, ">= 0.0"),
        ({"decision_id": OWN, "score": "1"}, 400, "score"),
        ({"decision_id": OWN, "label": "so so"}, 400, "no label"),
        ({"decision_id": OWN, "score": 1, "rating": 5}, 400, "rating"),
        ({"decision_id": OWN, "score": 1, "comment": "x" * 5000}, 400, "4096"),
        ({"decision_id": "x" * 100, "score": 1}, 400, "64"),
    ],
)
def test_what_is_wrong_is_named(body: object, status: int, words: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(errors.InvalidRequestError) as refused:
        read(raw, "red")
    assert refused.value.status == status
    assert words in str(refused.value)
