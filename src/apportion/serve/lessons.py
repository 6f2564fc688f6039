"""How good answers were, from wherever that is heard: people, checks, a judge, questions asked again. One a worker.

The flow tells it of every decision and every answer, after the answer was sent; it remembers them for a while, has
them looked at, writes the decision log, and tells the policies and predictors what came out (`teach`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from apportion.core.state import State
from apportion.measure.calibration import Calibration, merged
from apportion.measure.decision_log import Amounts, Entry, Offered
from apportion.measure.decision_log import Word as LoggedWord
from apportion.measure.metrics import Registry
from apportion.serve import errors
from apportion.serve import judge as judging
from apportion.serve.call import Api
from apportion.serve.checks.check import Check, Settings, made
from apportion.serve.checks.examiner import Exam, Examiner, Result, examine
from apportion.serve.checks.schemas import CheckError
from apportion.serve.decision_log import DecisionLog
from apportion.serve.feedback import FeedbackApi, Post
from apportion.serve.judge import Ask, Judge, Judging, drawn
from apportion.serve.records import Attempt, owner
from apportion.serve.retries import Retries
from apportion.serve.routes import Route, Visit
from apportion.serve.tracing import MAX_CONTENT_BYTES
from apportion.serve.verdicts import Case, Kind, Packed, Verdict, Verdicts, Word

if TYPE_CHECKING:
    from apportion.serve.job import Job

JUDGE_KEY: Final = "judge:"
"""Begins the names of the keys that judges are asked under; their own answers are neither judged nor learned from."""
REPLAY_KEY: Final = "replay:"
"""Begins the names of the keys under which examples are asked for again; all of those answers are judged."""
_PASSED: Final = 0.5
_ASKED_AGAIN: Final = "asked again"
_RECALL_S: Final = 3.0
"""How long an older decision is looked for in the log."""


class JudgeSettings(Protocol):
    """`config.schema.Judge`."""

    @property
    def model(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def parallel(self) -> int: ...
    @property
    def criteria(self) -> str | None: ...


class FeedbackSettings(Protocol):
    """`config.schema.Feedback`."""

    @property
    def checks(self) -> Sequence[Settings]: ...
    @property
    def judge(self) -> JudgeSettings | None: ...
    @property
    def retry_s(self) -> float: ...
    @property
    def wait_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class ModelLessons:
    """What is asked of the answers of one logical model."""

    checks: tuple[Check, ...] = ()
    judging: Judging | None = None
    retry_s: float = 0.0
    wait_s: float = 20.0

    @classmethod
    def of(cls, model: str, settings: FeedbackSettings) -> ModelLessons:
        """As the configuration says. Raises `CheckError` naming the field."""
        checks = []
        for number, each in enumerate(settings.checks):
            try:
                checks.append(made(each))
            except CheckError as error:
                field = f"models.{model}.feedback.checks[{number}].{error.field}"
                raise CheckError(error.message, field=field, fix=error.fix) from None
        judge = settings.judge
        return cls(
            tuple(checks),
            None
            if judge is None
            else Judging(
                judge.model,
                JUDGE_KEY + model,
                judge.share,
                judge.parallel,
                judge.criteria or judging.CRITERIA,
            ),
            settings.retry_s,
            settings.wait_s,
        )


class LessonMeters:
    """The metric families of feedback. Labels are names from the configuration and short fixed words."""

    def __init__(self, registry: Registry) -> None:
        at = ("model", "endpoint")
        self.words = registry.counter(
            "apportion_feedback_total", "Words on answers, by what they came from.", ("model", "source")
        )
        self.unknown = registry.counter(
            "apportion_feedback_unknown_total", "Feedback on decisions that are not kept, or not the asker's."
        ).at()
        self.checks = registry.counter(
            "apportion_checks_total", "Checks of answers: passed, failed.", ("model", "check", "result")
        )
        self.unchecked = registry.counter(
            "apportion_checks_dropped_total", "Answers that nobody looked at because too many waited."
        ).at()
        self.judgements = registry.counter(
            "apportion_judgements_total",
            "Answers offered to a judge: graded, unclear, failed, left_out.",
            ("model", "result"),
        )
        self.verdicts = registry.counter(
            "apportion_verdicts_total", "Answers whose quality became known and had been predicted.", at
        )
        self.observed = registry.counter(
            "apportion_quality_observed_total", "Sum of their observed quality; over verdicts: the mean.", at
        )
        self.predicted = registry.counter(
            "apportion_quality_predicted_total",
            "Sum of their predicted quality; over verdicts: the mean.",
            at,
        )
        self.drift = registry.gauge(
            "apportion_quality_drift",
            "Workers that see answers become worse or better than predicted.",
            (*at, "direction"),
        )
        self.lines = registry.counter("apportion_decision_log_lines_total", "Lines of the decision log.").at()
        self.dropped = registry.counter(
            "apportion_decision_log_dropped_total", "Lines that could not be written to the decision log."
        ).at()


class Lessons:
    """Everything of one worker that has to do with how good its answers were. Made inside the event loop.

    ``teach`` is told each verdict; ``ask`` sends a judge's request under a key; ``sibling`` passes feedback on.
    """

    def __init__(
        self,
        worker: int,
        *,
        teach: Callable[[Verdict], None],
        remember: int = 10_000,
        comments: bool = False,
        log: DecisionLog | None = None,
        log_features: bool = True,
        ask: Ask | None = None,
        sibling: Post | None = None,
        meters: LessonMeters | None = None,
    ) -> None:
        self.log = log
        self.siblings: Callable[[], Awaitable[list[bytes]]] | None = None
        """Asks the other workers for their ``quality()``, as JSON."""
        self.before: Callable[[], object] | None = None
        """Called before a decision is looked up: what has just been answered may not have been told yet."""
        self._worker = worker
        self._recalling = False
        self._teach = teach
        self._comments = comments
        self._log_features = log_features
        self._meters = meters
        self._models: Mapping[str, ModelLessons] = {}
        self._verdicts = Verdicts(remember, self._taught)
        self._api = FeedbackApi(worker, self._verdicts, self, sibling)
        self._examiner = Examiner(self._examined)
        self._judge = None if ask is None else Judge(ask, self._judged)
        self._retries = Retries()
        self._calibrations: dict[tuple[str, str], Calibration] = {}
        self._told = [0, 0, 0]

    def configure(self, models: Mapping[str, ModelLessons]) -> None:
        """Go over to another configuration, by logical model."""
        self._models = models

    def routes(self) -> Iterator[Route]:
        """The part of the route table that is answered here."""
        yield from self._api.routes()
        yield Route("GET", "/apportion/quality", "admin", self._quality)

    async def from_sibling(self, body: bytes) -> bytes | None:
        """What another worker passed on; None if there is no such decision, or that cannot be said now."""
        try:
            return await self._api.from_sibling(body)
        except errors.GatewayError:
            return None

    # what the flow tells

    def wants(self, model: str, key: str, id: str) -> bool:
        """Whether the content of an answer has to be kept until it has been looked at."""
        lessons = self._models.get(model)
        if lessons is None or key.startswith(JUDGE_KEY):
            return False
        return bool(lessons.checks) or self._is_judged(lessons, id, key)

    def passes(
        self, model: str, api: Api, body: bytes, answer: bytes, *, expect: str | None = None
    ) -> bool | None:
        """Whether a whole answer passes every check of its model that applies; None if none does."""
        lessons = self._models.get(model)
        if lessons is None or not lessons.checks:
            return None
        exam = Exam("", api, body, answer, False, expect, lessons.checks, False)
        scores = [score for _, score in examine(exam).scores]
        return all(score >= _PASSED for score in scores) if scores else None

    def attempted(self, job: Job, attempt: Attempt, state: State | None, worth_usd: float | None) -> None:
        """A decision was carried out: a line of the log."""
        if self.log is not None:
            self.log.add(entry_of(job, attempt, state, worth_usd, features=self._log_features))

    def answered(
        self,
        job: Job,
        state: State | None,
        heard: bytes | None = None,
        *,
        turn: str = "",
        place: object = None,
        expect: str | None = None,
    ) -> None:
        """A request was answered: words may come on it. ``heard`` is the answer's body, where it was wanted.

        ``turn`` is the user's last text and ``place`` where in the conversation it stands (how many messages), for
        questions that are asked again; ``expect`` is the right answer, where the client told it.
        """
        model, key = job.group.name, job.key.name
        attempt = job.last
        if attempt is None or attempt.status != "ok" or key.startswith(JUDGE_KEY):
            return
        decision = attempt.decision
        option = None if decision.choice is None else decision.options[decision.choice]
        now = time.time()
        self._verdicts.remember(
            Case(
                id=job.id,
                at=job.now,
                key=key,
                model=model,
                action=decision.action or attempt.endpoint,
                endpoint=attempt.endpoint,
                upstream_model=attempt.model,
                state=None if state is None else Packed.of(state),
                predicted=None if option is None else option.quality,
            )
        )
        lessons = self._models.get(model)
        if lessons is None:
            return
        if lessons.retry_s and turn:
            self._asked_again(job, lessons, turn, place, now)
        if heard is not None and len(heard) < MAX_CONTENT_BYTES:  # of a longer one the end is missing
            # The judge may be where the request may not be seen.
            judged = self._is_judged(lessons, job.id, key) and not job.restricted()
            if lessons.checks or judged:
                body, stream = job.call.request.body, job.call.stream
                self._examiner.submit(
                    Exam(job.id, job.call.api, body, heard, stream, expect, lessons.checks, judged)
                )

    def tick(self, now: float) -> None:
        """Once a second: teach what has waited long enough, show how it stands."""
        self._verdicts.ripe(now)
        meters = self._meters
        if meters is None:
            return
        for (model, endpoint), found in self._calibrations.items():
            for direction in ("worse", "better"):
                meters.drift.at(model, endpoint, direction).set(float(found.drift == direction))
        log = self.log
        now_told = [self._examiner.dropped, log.lines if log else 0, log.dropped if log else 0]
        for counter, new, old in zip(
            (meters.unchecked, meters.lines, meters.dropped), now_told, self._told, strict=True
        ):
            if new > old:
                counter.add(float(new - old))
        self._told = now_told

    async def close(self) -> None:
        """Finish what is being looked at, teach all that waits, close the log."""
        await self._examiner.close()
        if self._judge is not None:
            await self._judge.close()
        self._verdicts.ripe(math.inf)
        self.tick(time.time())
        if self.log is not None:
            await asyncio.to_thread(self.log.close)

    # how good they were

    def quality(self) -> dict[str, Any]:
        """Predicted against observed quality in this worker, by model and endpoint."""
        found: dict[str, Any] = {}
        for (model, endpoint), calibration in sorted(self._calibrations.items()):
            found.setdefault(model, {})[endpoint] = calibration.table()
        return found

    async def _quality(self, visit: Visit) -> None:
        tables = [self.quality()]
        if self.siblings is not None:
            tables += [msgspec.json.decode(body, type=dict[str, Any]) for body in await self.siblings()]
        visit.send({"object": "apportion.quality", "models": together(tables)})

    # words

    def asked(self) -> None:
        """A decision is going to be looked up (`feedback.Listener`)."""
        if self.before is not None:
            self.before()

    async def recalled(self, id: str) -> Case | None:
        """An older decision from the log: one look at a time, and not a long one (`feedback.Listener`)."""
        if self.log is None or owner(id) != self._worker:
            return None
        if self._recalling:
            raise errors.OverloadedError(
                "An older decision is being looked for already.",
                fix="Try again in a moment.",
                retry_after_s=2.0,
            )
        self._recalling = True
        try:
            entry = await asyncio.to_thread(self.log.find, id, _RECALL_S)
        finally:
            self._recalling = False
        if entry is None or entry.status != "ok" or entry.choice is None:
            return None
        case = case_of(entry)
        self._verdicts.recall(case)
        return case

    def spoken(self, case: Case, word: Word, now: float, comment: str | None) -> None:
        """A person has spoken (`feedback.Listener`)."""
        self._log_word(case, word, now, comment if self._comments else None)
        if self._meters is not None:
            self._meters.words.at(case.model, "person").add()

    def unknown(self) -> None:
        """Somebody spoke of what is not here (`feedback.Listener`)."""
        if self._meters is not None:
            self._meters.unknown.add()

    def _say(self, id: str, kind: Kind, source: str, score: float, *, least_wait_s: float = 0.0) -> None:
        """An automatic word.

        Where there is a judge, signs that tell little of the content count only on answers that are drawn for it: the
        many that merely pass would drown what it says.
        """
        case = self._verdicts.find(id)
        if case is None:
            return
        now = time.time()
        lessons = self._models.get(case.model)
        word = Word(kind, source, score)
        wait_s: float | None = max(least_wait_s, 0.0 if lessons is None else lessons.wait_s)
        if kind in ("check", "retry") and lessons is not None and lessons.judging is not None:
            wait_s = wait_s if self._is_judged(lessons, id, case.key) else None
        self._verdicts.say(case, word, now, wait_s)
        self._log_word(case, word, now, None)
        if self._meters is not None:
            self._meters.words.at(case.model, kind).add()

    def _log_word(self, case: Case, word: Word, now: float, comment: str | None) -> None:
        if self.log is None:
            return
        self.log.add(
            LoggedWord(
                id=case.id,
                at=now,
                source=f"{word.kind}:{word.source}",
                score=word.score,
                quality=case.quality,
                comment=comment,
            )
        )

    def _asked_again(self, job: Job, lessons: ModelLessons, turn: str, place: object, now: float) -> None:
        tenant = f"team:{job.key.team}" if job.key.team else f"key:{job.key.name}"
        person = job.session or job.user
        where = (job.group.name, place)
        # Counted from the end of one answer to the beginning of the next request.
        earlier = self._retries.seen(
            tenant, person, turn, where, job.id, now, lessons.retry_s + max(0.0, now - job.now)
        )
        if earlier is not None:
            self._say(earlier, "retry", _ASKED_AGAIN, 0.0)
        if self._retries.heeds(person, turn):
            self._say(job.id, "retry", _ASKED_AGAIN, 1.0, least_wait_s=lessons.retry_s)  # until it is

    def _is_judged(self, lessons: ModelLessons, id: str, key: str) -> bool:
        wanted = lessons.judging
        if self._judge is None or wanted is None:
            return False
        return key.startswith(REPLAY_KEY) or drawn(id, wanted.share)

    def _examined(self, result: Result) -> None:
        case = self._verdicts.find(result.id)
        if case is None:
            return
        for check, score in result.scores:
            if self._meters is not None:
                passed = "passed" if score >= 0.5 else "failed"
                self._meters.checks.at(case.model, check.name, passed).add()
            self._say(result.id, check.word, check.name, score)
        lessons = self._models.get(case.model)
        if self._judge is not None and lessons is not None and lessons.judging and result.exchange:
            self._judge.offer(result.id, lessons.judging, result.exchange)

    def _judged(self, id: str, wanted: Judging, result: judging.Result, grade: float | None) -> None:
        if self._meters is not None:
            self._meters.judgements.at(wanted.key.removeprefix(JUDGE_KEY), result).add()
        if grade is not None:
            self._say(id, "judge", wanted.model, grade)

    def _taught(self, verdict: Verdict) -> None:
        if verdict.predicted is not None:
            at = (verdict.model, verdict.endpoint)
            calibration = self._calibrations.get(at)
            if calibration is None:
                calibration = self._calibrations[at] = Calibration()
            calibration.observe(verdict.predicted, verdict.quality, verdict.earlier)
            if self._meters is not None and verdict.earlier is None:
                self._meters.verdicts.at(*at).add()
                self._meters.observed.at(*at).add(verdict.quality)
                self._meters.predicted.at(*at).add(verdict.predicted)
        self._teach(verdict)


def case_of(entry: Entry) -> Case:
    """A decision of the log as words may come on it: without the embedding, which is not logged."""
    choice = entry.choice
    action = entry.action or ""
    return Case(
        id=entry.id,
        at=entry.at,
        key=entry.key,
        model=entry.model,
        action=action,
        endpoint=entry.endpoint,
        upstream_model=entry.upstream_model,
        state=entry.state(),
        predicted=None if choice is None else entry.options[choice].quality,
    )


def together(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several workers' ``quality()`` say together."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table in tables:
        for model, endpoints in table.items():
            for endpoint, each in endpoints.items():
                found.setdefault(model, {}).setdefault(endpoint, []).append(each)
    return {
        model: {endpoint: merged(each) for endpoint, each in sorted(endpoints.items())}
        for model, endpoints in sorted(found.items())
    }


def entry_of(
    job: Job, attempt: Attempt, state: State | None, worth_usd: float | None, *, features: bool
) -> Entry:
    """A decision and what it cost as the log has it: without content, and without names of end users."""
    decision, usage, units = attempt.decision, attempt.usage, attempt.units
    cost: Amounts = {"server_seconds": attempt.server_s, "requests": 1.0}
    if units is not None:
        cost["usd"] = units * 1e-12
    if usage is not None:
        cost["tokens"] = float(usage.input_tokens + usage.output_tokens)
    request: dict[str, Any] = {}
    lexical: Sequence[float] | None = None
    if state is not None:
        request = {
            name: value
            for name, value in state.request.items()
            if name not in _LEFT_OUT and type(value) in _PLAIN
        }
        if features and state.features is not None:
            lexical = state.features.lexical
    return Entry(
        id=job.id,
        at=job.now,
        model=job.group.name,
        options=[Offered.of(option) for option in decision.options],
        choice=decision.choice,
        probability=decision.probability,
        prices=dict(decision.prices),
        key=job.key.name,
        team=job.key.team or "",
        api=job.call.api,
        attempt=job.attempts.index(attempt) + 1,
        endpoint=attempt.endpoint,
        upstream_model=attempt.model,
        policy=job.group.config.policy.name,
        why=decision.why,
        request=request,
        lexical=lexical,
        worth_usd=worth_usd,
        status=attempt.status,
        cost=cost,
        estimated=usage is not None and usage.estimated,
        latency_s=attempt.ended_s - attempt.started_s,
        input_tokens=None if usage is None else usage.input_tokens,
        output_tokens=None if usage is None else usage.output_tokens,
        censored=attempt.censored,
        finish=attempt.finish,
        failure=attempt.failure,
    )


_PLAIN: Final = (str, int, float, bool, list)
_LEFT_OUT: Final = frozenset(("user", "session", "key"))
