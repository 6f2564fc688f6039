"""Makes the checks in a thread, off the event loop and after the answer was sent; what is too much is left out."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from apportion.serve.checks.check import Check
from apportion.serve.checks.exchange import Exchange, read
from apportion.serve.config.schema import Api

logger = logging.getLogger("apportion.checks")

_MOST_BYTES: Final = 64 * 2**20
_MOST_EXAMS: Final = 2000


class Exam(NamedTuple):
    """An answer to be looked at. ``judged`` says whether it is to be shown to a judge as well."""

    id: str
    api: Api
    body: bytes
    answer: bytes
    stream: bool
    expect: str | None
    checks: Sequence[Check]
    judged: bool


class Result(NamedTuple):
    """What came out: scores by check, and the exchange where a judge is to see it."""

    id: str
    scores: list[tuple[Check, float]]
    exchange: Exchange | None


class Examiner:
    """One thread. ``done`` is called on the event loop. ``dropped`` counts answers that nobody looked at."""

    def __init__(self, done: Callable[[Result], None]) -> None:
        self.dropped = 0
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Exam | None] = queue.SimpleQueue()
        self._bytes = 0
        self._thread: threading.Thread | None = None

    def submit(self, exam: Exam) -> bool:
        """Look at an answer soon; False if there is too much to do. Contents are kept until then only."""
        size = len(exam.body) + len(exam.answer)
        if self._bytes + size > _MOST_BYTES or self._queue.qsize() >= _MOST_EXAMS:
            self.dropped += 1
            return False
        self._bytes += size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
            self._thread.start()
        self._queue.put(exam)
        return True

    async def close(self, within_s: float = 5.0) -> None:
        """Finish what waits, if that does not take long."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, within_s)
            await asyncio.sleep(0)  # results that were called back

    def _run(self) -> None:
        while (exam := self._queue.get()) is not None:
            result = examine(exam)
            try:
                self._loop.call_soon_threadsafe(self._told, exam, result)
            except RuntimeError:  # the loop is closed
                return

    def _told(self, exam: Exam, result: Result) -> None:
        self._bytes -= len(exam.body) + len(exam.answer)
        self._done(result)


def examine(exam: Exam) -> Result:
    """Make every check; one that fails for a reason of its own says nothing."""
    scores = []
    exchange: Exchange | None = None
    try:
        exchange = read(exam.api, exam.body, exam.answer, stream=exam.stream, expect=exam.expect)
    except Exception:
        logger.exception("%s: an answer could not be read", exam.id)
        return Result(exam.id, [], None)
    for check in exam.checks:
        try:
            score = check.of(exchange)
        except Exception:
            logger.exception("%s: the check %s failed", exam.id, check.name)
            continue
        if score is not None:
            scores.append((check, score))
    return Result(exam.id, scores, exchange if exam.judged and exchange.choices else None)
