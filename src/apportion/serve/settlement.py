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

from apportion.core import choosing, settling
from apportion.measure.overflow import Lengths
from apportion.measure.usage import Usage
from apportion.serve import showing
from apportion.serve.identity import tenant
from apportion.serve.job import Job
from apportion.serve.lessons import Lessons
from apportion.serve.meters import Meters
from apportion.serve.records import Attempt, Records
from apportion.serve.records import cost as spent
from apportion.serve.runtime import Route
from apportion.serve.tracing import Listener
from apportion.serve.transcript import answered

logger = logging.getLogger("apportion.settlement")


class Settlements:
    """The finished requests of one worker that have not been settled yet."""

    __slots__ = (
        "_loop",
        "_queue",
        "_records",
        "_running",
        "_timer",
        "lengths",
        "lessons",
        "meters",
        "on_settled",
    )

    def __init__(self, meters: Meters, records: Records, running: Sized) -> None:
        self._running = running
        self.meters = meters
        self._records = records
        self._queue: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lengths = Lengths()
        """How long answers are, by model and tenant."""
        self.lessons: Lessons | None = None
        """Who collects outcomes, if anybody does."""
        self.on_settled: Callable[[Job], None] | None = None
        """Told of every request when its books are done (tracing)."""

    def add(self, job: Job) -> None:
        """A request has ended."""
        queue = self._queue
        queue.append(job)
        if len(queue) >= settling.BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(settling.DELAY_S, self._due)

    def _due(self) -> None:
        """The timer's call. Requests that have just arrived go first: settling takes longer than answering one."""
        self._loop.call_soon(self.flush)

    def flush(self) -> bool:
        """Settle all that wait; whoever reads what they change calls this first. True if there was anything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, []
        if not queue:
            return False
        now = time.time()
        self.meters.in_flight.set(float(len(self._running)))
        for job in queue:
            try:
                self._job(job, now)
            except Exception:  # those of the others are settled all the same
                logger.exception("%s: fault while settling", job.request_id)
        return True

    def _job(self, job: Job, now: float) -> None:
        meters = self.meters
        for attempt in job.attempts:
            if not attempt.settled:
                self.attempt(job, attempt, now)
        if job.cached is not None or job.answer is not None or job.verdict is not None:
            self._decided(job)
        if job.admission is not None:
            self._admitted(job)
        if job.reservation is not None and job.attempts and job.parent is None:
            job.book_request()  # of a strategy: its calls have been booked on their own
        job.give_back()
        done = job.done
        if done is not None:
            status, duration_s = done
            if job.parent is None:  # the calls of a strategy are one request to the client
                meters.answered(job.call.api, job.group.name, status)
            route = job.route
            if route is not None:
                route.meters.duration_s.observe(duration_s)
                if job.overhead_s is not None:
                    route.meters.overhead_s.observe(job.overhead_s)
        lessons = self.lessons
        if lessons is not None and job.parent is None:
            responder = job.responder
            heard = responder.heard() if isinstance(responder, Listener) else None
            state = None if job.last is None else job.last.state
            if job.answer is not None and job.last is not None:
                lessons.attempted(job, job.last, state, job.worth_usd())
            lessons.answered(
                job,
                state,
                heard,
                turn=job.question,
                place=job.place,
                expect=job.call.constraints.expect,
            )
        if job.group.school is not None:
            self._show(job)
        if job.parent is None:
            for attempt in job.attempts:
                attempt.state = attempt.features = None
        self._records.keep(job.record())
        if self.on_settled is not None:
            self.on_settled(job)

    def _show(self, job: Job) -> None:
        """Keep a whole answer of the teacher as an example."""
        school, responder, attempt = job.group.school, job.responder, job.last
        if school is None or attempt is None or not job.alone or not isinstance(responder, Listener):
            return
        if job.restricted() or job.call.constraints.cache == "off":
            return  # it may not be shown where the student is, or to anybody
        vector = None if attempt.features is None else attempt.features.vector
        whole = attempt.status == "ok" and not attempt.censored and attempt.finish not in showing.CUT
        if vector is None or not whole or attempt.endpoint != school.settings.teacher:
            return
        text = showing.told(answered(job.call.api, responder.heard(), stream=job.call.stream))
        if text:
            option = attempt.decision.options[attempt.decision.choice or 0]
            school.add(job, vector, text, option)

    def _decided(self, job: Job) -> None:
        """Count what was decided besides the endpoint."""
        meters, model = self.meters, job.group.name
        cached = job.cached
        if cached is not None:
            meters.cache_lookups.at(model, cached["category"], cached["outcome"]).add()
            if "made_by" in cached:
                meters.cache_saved_usd.at(model).add(cached["saved_usd_pico"] * 1e-12)
                job.book_request()
        if job.answer is not None:
            meters.calls.at(model, job.answer["strategy"]).add(job.answer["calls"])
        if job.verdict is not None and job.verdict.action != "pass" and job.parent is None:
            meters.guarded.at(model, job.verdict.action).add()

    def attempt(self, job: Job, attempt: Attempt, now: float) -> None:
        """Book one attempt at once (a failed one, before the next is made)."""
        route, usage, units = job.route, attempt.usage, attempt.units
        if route is None:
            return
        attempt.settled = True
        server_s = attempt.server_s
        if route.endpoint.queue is not None:
            self.meters.queue_wait_s.histogram_at(attempt.endpoint).observe(attempt.waited_s)
        tokens_in = tokens_out = 0
        if usage is not None:
            tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
            route.measured(server_s, tokens_out)
            if attempt.status == "ok":
                route.rates.learn(job.call.request.body, usage, attempt.output_events, attempt.output_bytes)
        tokens = tokens_in + tokens_out
        job.book(attempt, route)
        usd = None if units is None else units * 1e-12
        group = job.group
        option = attempt.decision.options[attempt.decision.choice or 0]
        # What it was predicted to be worth, whatever became of it: a failure must not make money look worthless.
        value = 1.0 if group.config.worth_usd is None else option.value
        power = route.power
        joules = gco2 = 0.0
        if power is not None:
            joules, gco2 = power.joules(server_s), power.gco2(server_s) or 0.0
        job.sheet.spent(usd, tokens, server_s, value, now, joules, gco2)
        self._teach(job, attempt, route, usd, None if power is None else joules)
        lessons = self.lessons
        if lessons is not None and attempt.state is not None and job.parent is None:
            lessons.attempted(job, attempt, attempt.state, job.worth_usd())
        route.meters.book(tokens_in, tokens_out, usd, server_s)
        failure = attempt.failure
        self.meters.attempted(group.name, attempt.endpoint, "ok" if failure is None else failure)

    def _teach(
        self, job: Job, attempt: Attempt, route: Route, usd: float | None, joules: float | None
    ) -> None:
        """Tell everything that learns what the attempt has cost."""
        group, usage = job.group, attempt.usage
        methods = group.methods
        whole = job.call.api_generates and not job.continues  # the rest of an answer says nothing of lengths
        if methods.guard is not None and usage is not None and attempt.features is not None and whole:
            cut = attempt.censored or attempt.finish in showing.CUT
            length = float(usage.output_tokens)
            methods.guard.learn(attempt.features, tenant(job.key), group.name, length, censored=cut)
        if usage is not None and whole:
            self.lengths.add(usage.output_tokens, model=group.name, tenant=tenant(job.key))
        if attempt.status == "ok" and not attempt.censored and usage is not None and job.call.api_generates:
            if whole:
                route.produced(usage.output_tokens, group.usual_output_tokens)
            self._learn_ended(job, attempt, route, usage)
        learners = [
            p for p in (methods.policy, methods.shadow, methods.baseline) if p is not None and p.learns
        ]
        if not learners:
            return
        outcome = choosing.outcome(
            job.id,
            attempt.status,
            attempt.decision.action or route.action,
            tokens=0 if usage is None else usage.input_tokens + usage.output_tokens,
            server_s=attempt.server_s,
            duration_s=attempt.ended_s - attempt.started_s,
            usd=usd,
            joules=joules,
            censored=attempt.censored,
            state=attempt.state,
        )
        for policy in learners:
            try:
                policy.learn(outcome)
            except Exception:  # a method's fault is not that of the books
                logger.exception("%s: %s failed to learn", job.request_id, type(policy).__name__)

    def _admitted(self, job: Job) -> None:
        """Tell the admission policy what all attempts at a request that it let in have cost together."""
        policy, admission = job.group.methods.admit, job.admission
        if policy is None or admission is None or not policy.learns or not job.attempts:
            return
        used = [attempt.usage for attempt in job.attempts if attempt.usage is not None]
        units, _ = spent(job.attempts)
        policy.learn(
            choosing.admitted(
                job.id,
                job.attempts[-1].status,
                admission.action,
                tokens=sum(usage.input_tokens + usage.output_tokens for usage in used),
                server_s=sum(attempt.server_s for attempt in job.attempts),
                usd=None if units is None else units * 1e-12,
            )
        )

    def _learn_ended(self, job: Job, attempt: Attempt, route: Route, usage: Usage) -> None:
        """Lengths, times and what the provider's prompt cache held, of an answer that came to its end."""
        group = job.group
        methods = group.methods
        turn = job.turn
        if turn is not None and turn[0] == route.action and turn[1]:
            route.found_cached(turn[1], usage.cached_input_tokens)
        if job.marks is not None and group.conversations is not None:
            group.conversations.remember(job.marks, route.action, usage.input_tokens, job.now)
        if not group.config.predict.learn:
            return
        if methods.length is not None and attempt.features is not None and not job.continues:
            cut = attempt.finish in showing.CUT
            methods.length.learn(
                attempt.features, route.predicted_as, float(usage.output_tokens), censored=cut
            )
        if methods.latency is not None and attempt.status == "ok":
            options = attempt.decision.options
            chosen = options[attempt.decision.choice or 0]
            methods.latency.learn(
                route.action,
                chosen.load or 0.0,
                float(usage.input_tokens),
                float(usage.output_tokens),
                first_token_s=attempt.first_chunk_s,
                total_s=attempt.ended_s - attempt.started_s,
            )
