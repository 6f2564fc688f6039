"""Streams taken from one endpoint to another while their clients read on: after a failure, or ahead of a drain.

What Llumnix does with the cache of a running request, done with its text [1]_: while the stream goes on at its
endpoint, another one reads question and answer so far; what the stream has grown by meanwhile is read again, until
little is left to read; then the stream is stopped behind a token and the other endpoint asked for the rest, of which it
has all but the last tokens in its prompt cache. After a failure there is nothing to wait for, and the rest is asked
for at once.

Each of these calls is a request of its own that goes the whole way of `flow.answer`, with its own reservation and entry
in the books; the client sees one answer, which costs what all of them cost.

.. [1] Biao Sun, Ziming Huang, Hanyu Zhao, Wencong Xiao, Xinyi Zhang, Yong Li, Wei Lin. "Llumnix: Dynamic Scheduling for
   Large Language Model Serving." OSDI 2024. arXiv:2406.03243
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Final

from apportion.serve import continuing, errors
from apportion.serve.call import Api, Call
from apportion.serve.continuing import Live, Seam
from apportion.serve.flow import Tee, UpstreamAnswer, answer
from apportion.serve.http.server import Responder
from apportion.serve.inside import Inside
from apportion.serve.job import Job
from apportion.serve.runtime import Route
from apportion.serve.settlement import Settlements

logger = logging.getLogger("apportion.moving")

_STAGES: Final = 4
"""Most times that an answer is read ahead."""
_SHORT_EVENTS: Final = 16
"""So many events more than were read, and reading the rest takes no longer than reading once more would."""
_MOST_MOVES: Final = 8
"""How often one answer may be taken elsewhere; then it ends with its endpoint."""


class Mover:
    """Takes the streams of one worker elsewhere."""

    def __init__(
        self,
        number: Callable[[], str],
        running: MutableMapping[str, Job],
        rng: random.Random,
        settlements: Settlements,
    ) -> None:
        self._number = number
        self._running = running
        self._rng = rng
        self._settlements = settlements
        self._moves: set[asyncio.Task[None]] = set()

    def can(self, job: Job, spoken: Api) -> bool:
        """Whether a stream of ``job``, asked for in the dialect ``spoken``, could go on elsewhere."""
        return (
            spoken == job.call.api
            and not job.guarded
            and job.moves < _MOST_MOVES
            and continuing.can_continue(job.call)
        )

    async def go_on(self, job: Job, left: Live) -> None:
        """Answer the rest of a stream that has ended early, or tell the client that it is broken."""
        attempt = job.attempts[-1]
        self._settlements.attempt(job, attempt, time.time())
        begun = left.begun(job.call)
        made_tokens = 0 if attempt.usage is None else attempt.usage.output_tokens
        call = None if begun is None else continuing.rest(job.call, begun.text, made_tokens)
        status = "failed"
        if begun is not None and call is None:  # it broke behind its last token
            status = "ok"
            job.responder.write(left.assemble.closing(attempt.usage, include_usage=job.call.include_usage))
        elif begun is not None and call is not None:
            sink = Tee(job.responder, left.assemble)
            for among in self._choices(job, left):
                seam = Seam(job.responder, sink, begun, made_tokens, job.id, job.attempts)
                child = await self._ask(job, call, seam, among)
                if child is not None:
                    job.route, job.decision, status = child.route, child.decision, child.status
                if seam.started:
                    break
            else:
                left.relay.tell_broken()
        else:
            left.relay.tell_broken()
        job.status = "ok" if status == "ok" else "failed"
        job.responder.finish()
        if status == "ok" and job.cache_turn is not None:
            job.keep(left.assemble.body(None, cut=False))
        job.ended(200)

    def leave(self, gone: Callable[[str], bool]) -> dict[str, int]:
        """Take the streams of all endpoints whose name is ``gone`` elsewhere, in the background.

        Returns how many are "moving", and how many are "staying" until they end.
        """
        found = {"moving": 0, "staying": 0}
        for job in list(self._running.values()):
            live, route = job.live, job.route
            if route is None or job.done is not None or not gone(route.endpoint.name):
                continue
            if live is None:
                found["staying"] += 1
                continue
            found["moving"] += 1
            if not live.moving:
                live.moving = True
                task = asyncio.ensure_future(self._move(job, live))
                self._moves.add(task)
                task.add_done_callback(self._moves.discard)
        return found

    async def close(self) -> None:
        """Give up all moves; the streams stay where they are."""
        moves = tuple(self._moves)
        for task in moves:
            task.cancel()
        await asyncio.gather(*moves, return_exceptions=True)

    async def _move(self, job: Job, live: Live) -> None:
        """Have another endpoint read what there is, again and again while much is added; then stop the stream."""
        try:
            target: Route | None = None
            for _ in range(_STAGES):
                begun = live.begun(job.call)
                among = (target,) if target is not None else self._equals(job, live.route)
                if begun is None or not among:
                    return
                read_events = live.relay.reader.output_events
                child = await self._ask(job, continuing.reading(job.call, begun.text), Inside(), among)
                if child is None or child.status != "ok" or job.live is not live:
                    return
                target = child.route
                if live.relay.reader.output_events - read_events <= _SHORT_EVENTS:
                    break
            live.target = target
            live.relay.leave(lambda: live.at_a_seam(job.call))
        except Exception:  # the stream itself goes on where it is
            logger.exception("%s: fault while moving", job.request_id)
        finally:
            live.moving = live.target is not None

    def _choices(self, job: Job, left: Live) -> list[Sequence[Route]]:
        """Whom to ask for the rest, one after the other: who has read it, then any that can."""
        others = self._equals(job, left.route)
        if left.target is None:
            return [others] if others else []
        rest = tuple(route for route in others if route.endpoint is not left.target.endpoint)
        return [(left.target,), rest] if rest else [(left.target,)]

    def _equals(self, job: Job, route: Route) -> tuple[Route, ...]:
        group = job.runtime.newest().groups.get(job.group.name)
        return () if group is None else continuing.equals(group.routes, route, job.call)

    async def _ask(self, job: Job, call: Call, responder: Responder, among: Sequence[Route]) -> Job | None:
        """Make one call for ``job`` to one of the routes ``among``; None if none of them began to answer."""
        runtime = job.runtime.newest()
        group = runtime.groups.get(job.group.name)
        if group is None:
            return None
        child = Job(runtime, call, job.key, group, responder, self._number())
        child.parent = job.id
        child.among = among
        child.counted = True  # the request itself has been
        child.siblings = tuple(job.attempts)
        child.features = job.features
        child.continues = True
        child.mover = self
        child.moves = job.moves + 1
        self._running[child.id] = child
        try:
            await answer(child, self._rng, self._settlements)
            return child
        except (errors.GatewayError, UpstreamAnswer) as error:
            logger.info("%s does not go on at another endpoint: %s", job.request_id, error)
            return None
        finally:
            del self._running[child.id]
            self._settlements.add(child)
            job.attempts.extend(child.attempts)
