"""From an answer to what is learned of it: checks, judge, people and questions asked again, together."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.features import Features
from apportion.core.option import Option
from apportion.core.state import State
from apportion.measure.decision_log import read
from apportion.measure.metrics import Registry
from apportion.measure.usage import Usage
from apportion.serve import decision_log, errors, lessons
from apportion.serve.checks.schemas import CheckError
from apportion.serve.config.schema import Key
from apportion.serve.decision_log import DecisionLog
from apportion.serve.http.server import Request
from apportion.serve.judge import drawn
from apportion.serve.lessons import JUDGE_KEY, LessonMeters, Lessons, ModelLessons, together
from apportion.serve.records import Attempt
from apportion.serve.routes import Visit
from apportion.serve.tracing import MAX_CONTENT_BYTES
from apportion.serve.verdicts import Verdict

TURN = "please explain the tides of the sea to me"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "_PATIENCE_S", 120.0)
    monkeypatch.setattr(lessons, "_RECALL_S", 120.0)


def settings(*checks: dict[str, Any], judge: Any = None, retry_s: float = 0.0, wait_s: float = 0.0) -> Any:
    empty = {"schema": None, "pattern": None, "compare": "text", "phrases": None}
    made = [SimpleNamespace(**(empty | check)) for check in checks]
    return SimpleNamespace(checks=made, judge=judge, retry_s=retry_s, wait_s=wait_s)


JUDGE = SimpleNamespace(model="large", share=1.0, parallel=2, criteria=None)


class Job:
    """As much of a job as is looked at."""

    def __init__(self, number: int = 1, *, key: str = "red", user: str = "", status: str = "ok") -> None:
        self.id = f"dec_00aaaaaaaa{number:08x}"
        self.now = 100.0
        self.key = Key(name=key, team="lab")
        self.user, self.session = user, ""
        self.group = SimpleNamespace(
            name="chat", config=SimpleNamespace(policy=SimpleNamespace(name="route/thompson"))
        )
        body = {"model": "chat", "messages": [{"role": "user", "content": TURN}]}
        self.call = SimpleNamespace(
            api="chat", stream=False, request=SimpleNamespace(body=json.dumps(body).encode())
        )
        options = [
            Option("small", 0.01, Cost(usd=0.001), quality=0.5),
            Option("large", 0.018, Cost(usd=0.005), quality=0.9),
        ]
        self.state = State(
            100.0, options, self.id, {"api": "chat", "user": "ann"}, {"usd": 1.0}, Features((1.0, math.nan))
        )
        decision = Decision(self.id, 1, "large", 0.25, {"usd": 1.0}, options, (0.009, 0.013), "drawn")
        self.attempts = [
            Attempt(
                decision,
                "large",
                "m",
                status,  # type: ignore[arg-type]
                Usage(input_tokens=10, output_tokens=5),
                5_000_000_000,
                0.5,
                1.0,
                2.0,
                None,
                "stop",
                None,
                200,
                False,
            )
        ]

    @property
    def last(self) -> Any:
        return self.attempts[-1] if self.attempts else None

    def restricted(self) -> bool:
        return False


def said(text: str) -> bytes:
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    ).encode()


class School:
    """Lessons, and what they teach."""

    def __init__(self, tmp_path: Path, chat: Any = None, *, grade: int = 9, **more: Any) -> None:
        self.taught: list[Verdict] = []
        self.asked: list[str] = []
        self.registry = Registry(tmp_path / "metrics", 0)
        self.grade = grade
        self.lessons = Lessons(
            0, teach=self.taught.append, ask=self.ask, meters=LessonMeters(self.registry), **more
        )
        self.lessons.configure({} if chat is None else {"chat": ModelLessons.of("chat", chat)})

    async def ask(self, key: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append(key)
        mark = re.search(r"GRADE-([0-9a-f]+)", body.decode())
        assert mark
        return 200, said(f"GRADE-{mark[1]}: {self.grade}")

    async def settled(self, n: int) -> None:
        async with asyncio.timeout(60):
            while len(self.taught) < n:
                await asyncio.sleep(0.005)
                self.lessons.tick(math.inf)

    async def post(self, body: dict[str, Any], path: str = "/v1/feedback", key: Key = Key(name="red")) -> Any:  # noqa: B008
        method = "POST" if body else "GET"
        request = Request(method, path.encode(), "1.1", {}, True)
        request.body = json.dumps(body).encode()
        found: list[bytes] = []
        responder = SimpleNamespace(send=lambda status, headers, content: found.append(content))
        (route,) = [r for r in self.lessons.routes() if r.path == path]
        await route.handler(Visit(request, responder, "req_1", key, {}))  # type: ignore[arg-type]
        return json.loads(found[0])

    def answered(self, job: Job, heard: bytes | None = None, **more: Any) -> None:
        self.lessons.attempted(job, job.attempts[-1], job.state, 0.02)  # type: ignore[arg-type]
        self.lessons.answered(job, job.state, heard, **more)  # type: ignore[arg-type]


async def test_a_check_is_taught(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "not_empty"}, {"kind": "refusal"}))
    assert school.lessons.wants("chat", "red", "dec_1")
    assert not school.lessons.wants("other", "red", "dec_1")
    job = Job()
    school.answered(job, said("I'm sorry, but I can't."))
    await school.settled(1)
    (verdict,) = school.taught
    assert verdict.quality == pytest.approx(1 / 26)
    assert verdict.state is not None
    assert verdict.state.features is not None
    assert verdict.state.features.lexical[0] == 1.0
    assert verdict.state.options is job.state.options
    outcome = verdict.outcome()
    assert (outcome.action, outcome.revised, outcome.decision_id) == ("large", True, job.id)
    assert set(verdict.sources) == {"not_empty", "refusal"}
    text = school.registry.render()
    assert 'apportion_checks_total{model="chat",check="refusal",result="failed"} 1' in text
    await school.lessons.close()


async def test_the_right_answer_is_taught(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "exact", "compare": "number"}))
    school.answered(Job(), said("It is 42."), expect="42")
    await school.settled(1)
    assert school.taught[0].quality == 1.0
    assert school.taught[0].weight > 0.98
    await school.lessons.close()


async def test_the_judge_and_the_checks_are_combined(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "not_empty"}, judge=JUDGE, wait_s=1000.0), grade=5)
    school.answered(Job(), said("Well."))
    async with asyncio.timeout(60):
        while 'result="graded"' not in school.registry.render():
            await asyncio.sleep(0.005)
    assert school.asked == [JUDGE_KEY + "chat"]
    assert school.taught == []
    await school.lessons.close()
    assert [verdict.quality for verdict in school.taught] == [pytest.approx((1 * 1.0 + 4 * 0.5) / 5)]


async def test_an_answer_whose_end_is_missing_is_not_checked(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "finish"}))
    school.answered(Job(), said("x" * MAX_CONTENT_BYTES)[:MAX_CONTENT_BYTES])
    await school.lessons.close()
    assert school.taught == []


async def test_a_judges_own_answers_are_left_alone(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "not_empty"}, judge=JUDGE))
    key = JUDGE_KEY + "chat"
    assert not school.lessons.wants("chat", key, "dec_1")
    school.answered(Job(key=key), said("x"))
    await school.lessons.close()
    assert school.taught == []
    assert school.asked == []


async def test_a_failed_request_has_no_quality(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "not_empty"}))
    school.answered(Job(status="failed"), said(""))
    await school.lessons.close()
    assert school.taught == []


async def test_asking_again_speaks_against_the_first_answer(tmp_path: Path) -> None:
    school = School(tmp_path, settings(retry_s=60.0))
    for number, user in ((1, "ann"), (2, "bob"), (3, ""), (4, "ann"), (5, "")):
        school.answered(Job(number, user=user), turn=TURN, place=1)
    await school.lessons.close()
    qualities = {v.decision_id: v.quality for v in school.taught}
    assert qualities == {Job(1).id: 0.0, Job(2).id: 1.0, Job(4).id: 1.0}
    weights = {v.decision_id: v.weight for v in school.taught}
    assert weights[Job(1).id] > weights[Job(2).id]


async def test_where_there_is_a_judge_form_counts_only_where_it_was_asked(tmp_path: Path) -> None:
    """Otherwise the many answers that merely pass would drown what it says."""
    judge = SimpleNamespace(model="large", share=0.5, parallel=2, criteria=None)
    school = School(tmp_path, settings({"kind": "not_empty"}, judge=judge, wait_s=1000.0), grade=4)
    jobs = [Job(number) for number in range(1, 41)]
    drawn_ids = {job.id for job in jobs if drawn(job.id, 0.5)}
    for job in jobs:
        school.answered(job, said("x"))
    async with asyncio.timeout(60):
        while f'result="graded"}} {len(drawn_ids)}' not in school.registry.render():
            await asyncio.sleep(0.005)
    await school.lessons.close()
    assert {v.decision_id for v in school.taught} == drawn_ids
    assert 5 < len(drawn_ids) < 35
    assert all(v.quality == pytest.approx((1.0 + 4 * 0.4) / 5) for v in school.taught)


async def test_a_person_speaks_and_is_logged(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log", 0)
    school = School(tmp_path, log=log)
    flushed: list[int] = []
    school.lessons.before = lambda: flushed.append(1)
    job = Job()
    school.answered(job)
    found = await school.post({"decision_id": job.id, "score": 0.75, "comment": "secret words"})
    assert found["quality"] == 0.75
    assert flushed == [1]
    with pytest.raises(errors.NotFoundError):
        await school.post({"decision_id": Job(9).id, "score": 1})
    await school.lessons.close()
    text = (tmp_path / "log" / "worker-00.jsonl").read_text()
    assert "secret" not in text
    assert "tides" not in text
    assert "ann" not in text
    (row,) = read([tmp_path / "log"]).rows
    entry = row.entry
    assert row.quality == 0.75
    assert (entry.probability, entry.action, entry.policy, entry.team) == (
        0.25,
        "large",
        "route/thompson",
        "lab",
    )
    assert (entry.worth_usd, entry.cost["usd"], entry.latency_s) == (0.02, pytest.approx(0.005), 1.0)
    assert entry.state().features == Features((1.0, 0.0))
    assert [option.quality for option in entry.state().options] == [0.5, 0.9]
    rendered = school.registry.render()
    assert 'apportion_feedback_total{model="chat",source="person"} 1' in rendered
    assert "apportion_feedback_unknown_total 1" in rendered
    assert "apportion_decision_log_lines_total 2" in rendered
    assert "apportion_decision_log_dropped_total 0" in rendered


async def test_comments_are_kept_where_that_is_wanted(tmp_path: Path) -> None:
    school = School(tmp_path, log=DecisionLog(tmp_path / "log", 0), comments=True, log_features=False)
    school.answered(Job())
    await school.post({"decision_id": Job().id, "label": "bad", "comment": "no tide"})
    await school.lessons.close()
    text = (tmp_path / "log" / "worker-00.jsonl").read_text()
    assert "no tide" in text
    assert "lexical" not in text


async def test_predicted_and_observed_quality_are_shown(tmp_path: Path) -> None:
    school = School(tmp_path)
    for number in range(1, 201):
        school.answered(Job(number))
        await school.post({"decision_id": Job(number).id, "score": 0.0})
    school.lessons.tick(0.0)
    rendered = school.registry.render()
    at = '{model="chat",endpoint="large"'
    assert f"apportion_verdicts_total{at}}} 200" in rendered
    assert f"apportion_quality_observed_total{at}}} 0" in rendered
    assert f'apportion_quality_drift{at},direction="worse"}} 1' in rendered
    other = json.dumps(school.lessons.quality()).encode()

    async def siblings() -> list[bytes]:
        return [other]

    school.lessons.siblings = siblings
    found = await school.post({}, "/apportion/quality", Key(name="boss", admin=True))
    table = found["models"]["chat"]["large"]
    assert (table["count"], table["drift"]) == (400, "worse")
    assert table["calibration_error"] == pytest.approx(0.9)
    assert together([]) == {}
    await school.lessons.close()


async def test_what_is_wrong_in_the_configuration_is_named() -> None:
    with pytest.raises(CheckError) as refused:
        ModelLessons.of("chat", settings({"kind": "not_empty"}, {"kind": "pattern", "pattern": "("}))
    assert refused.value.field == "models.chat.feedback.checks[1].pattern"


async def test_a_reload_changes_what_is_asked(tmp_path: Path) -> None:
    school = School(tmp_path, settings({"kind": "not_empty"}))
    school.lessons.configure({"chat": ModelLessons.of("chat", settings())})
    assert not school.lessons.wants("chat", "red", "dec_1")
    await school.lessons.close()


async def test_late_words_find_their_decision_in_the_log(tmp_path: Path) -> None:
    """After a restart, or when memory has long moved on."""
    before = School(tmp_path, log=DecisionLog(tmp_path / "log", 0, file_bytes=1500))
    assert before.lessons.log is not None
    for number in range(1, 31):
        before.answered(Job(number))
        before.lessons.log.flush()
    before.answered(Job(31, status="failed"))
    await before.lessons.close()
    assert len(list((tmp_path / "log").glob("*.gz"))) > 3
    after = School(tmp_path, log=DecisionLog(tmp_path / "log", 0), remember=5)
    for number in (1, 15, 30):
        found = await after.post({"decision_id": Job(number).id, "score": 0.5})
        assert found["quality"] == 0.5
        assert not (await after.post({"decision_id": Job(number).id, "score": 0.5}))["changed"]
    for id, key in ((Job(31).id, "red"), (Job(99).id, "red"), (Job(2).id, "blue")):
        with pytest.raises(errors.NotFoundError):
            await after.post({"decision_id": id, "score": 1}, key=Key(name=key))
    assert [v.decision_id for v in after.taught] == [Job(n).id for n in (1, 15, 30)]
    state = after.taught[0].state
    assert state is not None
    assert [option.action for option in state.options] == ["small", "large"]
    assert (after.taught[0].endpoint, after.taught[0].predicted) == ("large", 0.9)
    await after.lessons.close()
    assert [row.quality for row in read([tmp_path / "log"]).rows if row.quality is not None] == [0.5] * 3


async def test_one_look_into_the_log_at_a_time(tmp_path: Path) -> None:
    school = School(tmp_path, log=DecisionLog(tmp_path / "log", 0))
    looks = [asyncio.ensure_future(school.post({"decision_id": Job(n).id, "score": 1})) for n in (1, 2)]
    found = await asyncio.gather(*looks, return_exceptions=True)
    assert {type(each) for each in found} == {errors.NotFoundError, errors.OverloadedError}
    await school.lessons.close()
