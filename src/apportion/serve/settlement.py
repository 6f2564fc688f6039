"""What the end of a request owes: accounts, prices, policy, metrics, record. Done in batches.

The client has its answer already; settling a few milliseconds later, many at a time, costs a third of settling
each on its own (the code and the data are still in the processor's caches). Until then a request's reservation
stands, so that no budget can be overspent in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sized
from typing import Final

from apportion.core.cost import Cost
from apportion.core.outcome import Outcome
from apportion.serve.job import Job
from apportion.serve.meters import Meters
from apportion.serve.records import Attempt, Records

logger = logging.getLogger("apportion.settlement")

_DELAY_S: Final = 0.004
_BATCH: Final = 32


class Settlements:
    """The finished requests of one worker that have not been settled yet."""

    __slots__ = ("_loop", "_meters", "_queue", "_records", "_running", "_timer", "on_settled")

    def __init__(self, meters: Meters, records: Records, running: Sized) -> None:
        self._running = running
        self._meters = meters
        self._records = records
        self._queue: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.on_settled: Callable[[Job], None] | None = None
        """Told of every request when its books are done (tracing)."""

    def add(self, job: Job) -> None:
        """A request has ended."""
        queue = self._queue
        queue.append(job)
        if len(queue) >= _BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(_DELAY_S, self.flush)

    def flush(self) -> bool:
        """Settle all that wait; whoever reads what they change calls this first. True if there was anything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, []
        if not queue:
            return False
        now = time.time()
        self._meters.in_flight.set(float(len(self._running)))
        for job in queue:
            try:
                self._job(job, now)
            except Exception:  # those of the others are settled all the same
                logger.exception("%s: fault while settling", job.request_id)
        return True

    def _job(self, job: Job, now: float) -> None:
        meters = self._meters
        for attempt in job.attempts:
            if not attempt.settled:
                self.attempt(job, attempt, now)
        job.give_back()
        done = job.done
        if done is not None:
            status, duration_s = done
            meters.answered(job.call.api, job.group.name, status)
            route = job.route
            if route is not None:
                route.meters.duration_s.observe(duration_s)
                if job.overhead_s is not None:
                    route.meters.overhead_s.observe(job.overhead_s)
        self._records.keep(job.record())
        if self.on_settled is not None:
            self.on_settled(job)

    def attempt(self, job: Job, attempt: Attempt, now: float) -> None:
        """Book one attempt at once (a failed one, before the next is made)."""
        route, usage, units = job.route, attempt.usage, attempt.units
        if route is None:
            return
        attempt.settled = True
        server_s = attempt.server_s
        duration_s = attempt.ended_s - attempt.started_s
        tokens_in = tokens_out = 0
        if usage is not None:
            tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
            route.measured(server_s)
            if attempt.status == "ok":
                route.rates.learn(job.call.request.body, usage, attempt.output_events, attempt.output_bytes)
        tokens = tokens_in + tokens_out
        job.book(attempt, route)
        usd = None if units is None else units * 1e-12
        group = job.group
        worth = group.config.worth_usd
        # What it was predicted to be worth, whatever became of it: a failure must not make money look worthless.
        value = 1.0 if worth is None else worth * (1.0 if route.quality is None else route.quality)
        power = route.power
        joules = gco2 = 0.0
        if power is not None:
            joules, gco2 = power.joules(server_s), power.gco2(server_s) or 0.0
        job.sheet.spent(usd, tokens, server_s, value, now, joules, gco2)
        policy = group.policy
        if policy.learns:
            known: dict[str, float] = {
                "tokens": float(tokens),
                "server_seconds": server_s,
                "seconds": duration_s,
                "requests": 1.0,
            }
            if usd is not None:
                known["usd"] = usd
            if power is not None:
                known["joules"] = joules
            cost = Cost.of(known)
            policy.learn(
                Outcome(job.id, attempt.status, route.action, cost, None, duration_s, attempt.censored)
            )
        route.meters.book(tokens_in, tokens_out, usd, server_s)
        failure = attempt.failure
        self._meters.attempted(group.name, attempt.endpoint, "ok" if failure is None else failure)
