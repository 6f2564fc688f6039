"""Asks the large model again for examples that are wanted and poor (IC-Cache's replay), while it has nothing to do.

What a new answer is worth is told by the checks or the judge of its model, as of any answer; only then does it take the
place of the one before, and only if it is better. What it costs is on the books of a key of its own (`replay:MODEL`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from apportion.serve import showing
from apportion.serve.inside import Inside
from apportion.serve.meters import Meters
from apportion.serve.runtime import Group
from apportion.serve.verdicts import Verdict

logger = logging.getLogger("apportion.replaying")

Ask = Callable[[Group, str, bytes], Awaitable[Inside]]
"""Has the teacher of a model answer: the path and the body of the request."""

_REST_S: Final = 60.0
"""A teacher that refuses, or a budget that is spent, is left alone for so long."""
_MOST_WAITING: Final = 256


class _Waiting(NamedTuple):
    example: str
    answer: str


class Replays:
    """The replays of one worker: at most one under way for each model."""

    def __init__(self, ask: Ask, meters: Meters) -> None:
        self._ask = ask
        self._meters = meters
        self._running: dict[str, asyncio.Task[None]] = {}
        self._rests_until_s: dict[str, float] = {}
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        """New answers of which nobody has said yet how good they are, by their decision."""

    def tick(self, groups: Iterable[Group], now: float) -> None:
        """Once a second: ask for the best example of each model whose teacher has nothing to do."""
        for group in groups:
            school, worth_usd = group.school, group.config.worth_usd
            if school is None or school.settings.replay is None or worth_usd is None:
                continue
            resting = now < self._rests_until_s.get(group.name, 0.0)
            if resting or group.name in self._running or not _idle(group, school):
                continue
            for replay in school.examples.replays(1, worth_usd=worth_usd, now=now):
                school.examples.tried(replay.id, now)
                task = asyncio.ensure_future(self._replay(group, replay.id, replay.asked))
                self._running[group.name] = task
                task.add_done_callback(partial(self._over, group.name))

    def heard(self, group: Group, verdict: Verdict) -> bool:
        """Whether ``verdict`` is the first on a new answer of ``group``; the example then has the better one of two."""
        waiting = self._waiting.pop(verdict.decision_id, None)
        if waiting is None or group.school is None:
            return False
        better = group.school.examples.replayed(
            waiting.example, waiting.answer, verdict.quality, time.time(), verdict.decision_id
        )
        self._meters.replays.at(group.name, "better" if better else "no_better").add()
        return True

    def _over(self, model: str, _: asyncio.Task[None]) -> None:
        self._running.pop(model, None)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _replay(self, group: Group, example: str, asked: bytes) -> None:
        path, _, body = asked.partition(b"\n")
        try:
            reply = await self._ask(group, path.decode(), body)
        except Exception:
            logger.exception("model %s: an example could not be asked for again", group.name)
            reply = None
        text = "" if reply is None or reply.status != 200 else showing.text_of(path.decode(), reply.body)
        if reply is None or not text or reply.decision_id is None:
            self._meters.replays.at(group.name, "failed").add()
            self._rests_until_s[group.name] = time.time() + _REST_S
            return
        self._waiting[reply.decision_id] = _Waiting(example, text)
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popitem(last=False)


def _idle(group: Group, school: showing.Class) -> bool:
    """Whether the teacher is there and has so little to do that a replay is in nobody's way."""
    settings = school.settings
    route = next((route for route in group.routes if route.endpoint.name == settings.teacher), None)
    if route is None or settings.replay is None:
        return False
    load = route.endpoint.load
    busy = route.endpoint.in_flight > 0 if load is None else load > settings.replay.idle
    return not busy
