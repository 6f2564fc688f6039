"""What the end of a request owes: accounts, prices, policies, the log. In batches, as in the proxy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from apportion.core import choosing
from apportion.core.settling import BATCH, DELAY_S
from apportion.measure.decision_log import Amounts, Entry, Offered
from apportion.simulate.proxy.clock import Clock, Timer
from apportion.simulate.proxy.deciding import chosen
from apportion.simulate.proxy.job import Attempt, Job

if TYPE_CHECKING:
    from apportion.simulate.proxy.proxy import Proxy

logger = logging.getLogger("apportion.simulate")

_CUT: Final = ("length", "max_tokens", "incomplete")
"""Finish reasons of an answer that a limit ended."""
_LEFT_OUT: Final = frozenset(("user", "session", "key"))
_PLAIN: Final = (str, int, float, bool, list)


class Settlements:
    """The finished requests that have not been settled yet."""

    def __init__(self, proxy: Proxy, log: Callable[[Entry], object] | None) -> None:
        self._proxy = proxy
        self._log = log
        self._queue: list[Job] = []
        self._timer: Timer | None = None

    def add(self, job: Job) -> None:
        """A request has ended."""
        queue = self._queue
        queue.append(job)
        if len(queue) >= BATCH:
            self.flush()
        elif self._timer is None:
            clock = self._proxy.clock
            self._timer = clock.at(clock.now_s + DELAY_S, self.flush)

    def flush(self, _: object = None) -> bool:
        """Settle all that wait. True if there was anything."""
        if self._timer is not None:
            Clock.cancel(self._timer)
            self._timer = None
        queue, self._queue = self._queue, []
        now = self._proxy.now
        for job in queue:
            self._job(job, now)
        return bool(queue)

    def _job(self, job: Job, now: float) -> None:
        for attempt in job.attempts:
            if not attempt.settled:
                self.attempt(job, attempt, now)
        if job.admission is not None:
            self._admitted(job)
        if job.held is not None and (job.cached or job.answer is not None):
            self._proxy.accounts.settle(job.lines, job.held, (0, 0, 0, 0, 0, 1, 0), now)
            job.held = None
        if job.held is not None:
            self._proxy.give_back(job)
        if job.answer is not None and job.attempts and self._log is not None:
            self._log(entry_of(job, job.answered_by or job.attempts[-1]))
        for attempt in job.attempts if job.parent is None else ():
            attempt.state = None

    def attempt(self, job: Job, attempt: Attempt, now: float) -> None:
        """Book one attempt at once (a failed one, before the next is made)."""
        attempt.settled = True
        route, usage, units, server_s = attempt.route, attempt.usage, attempt.units, attempt.server_s
        tokens_in = tokens_out = 0
        if usage is not None:
            tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
            route.measured(server_s, tokens_out)
        tokens = tokens_in + tokens_out
        lines = attempt.lines
        if lines.hard or lines.soft:
            server, joules_units, gco2_units = route.work(server_s)
            requests = attempt.held[5]
            spent = (tokens, units or 0, server, joules_units or 0, gco2_units or 0, requests, 0)
            self._proxy.accounts.settle(lines, attempt.held, spent, now)
        usd = None if units is None else units * 1e-12
        worth = job.group.config.worth_usd
        # What it was predicted to be worth, whatever became of it: a failure must not make money look worthless.
        value = 1.0 if worth is None else chosen(attempt.decision).value
        joules = gco2 = 0.0
        draw = route.draw
        if draw is not None:
            joules, gco2 = draw.joules(server_s), draw.gco2(server_s) or 0.0
        job.sheet.spent(usd, tokens, server_s, value, now, joules, gco2)
        self._teach(job, attempt, usd, None if draw is None else joules, tokens)
        if self._log is not None and attempt.state is not None and job.parent is None:
            self._log(entry_of(job, attempt))

    def _teach(
        self, job: Job, attempt: Attempt, usd: float | None, joules: float | None, tokens: int
    ) -> None:
        """Tell everything that learns what the attempt has cost."""
        group, usage, route = job.group, attempt.usage, attempt.route
        if group.guard is not None and usage is not None and job.features is not None:
            cut = attempt.censored or attempt.finish in _CUT
            length = float(usage.output_tokens)
            group.guard.learn(job.features, job.key.tenant, group.name, length, censored=cut)
        if attempt.status == "ok" and not attempt.censored and usage is not None:
            known = route.mean_output_tokens is not None
            route.produced(usage.output_tokens, 0.0 if known else group.usual_output_tokens)
            self._learn_lengths(job, attempt)
        learners = group.learners
        if not learners:
            return
        outcome = choosing.outcome(
            job.id,
            attempt.status,
            attempt.decision.action or route.action,
            tokens=tokens,
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
            except Exception:
                logger.exception("%s: %s failed to learn", job.id, type(policy).__name__)

    def _admitted(self, job: Job) -> None:
        """Tell the admission policy what all attempts at a request that it let in have cost together."""
        policy, admission = job.group.admit, job.admission
        if policy is None or admission is None or not policy.learns or not job.attempts:
            return
        used = [attempt.usage for attempt in job.attempts if attempt.usage is not None]
        usd = job.usd
        policy.learn(
            choosing.admitted(
                job.id,
                job.attempts[-1].status,
                admission.action,
                tokens=sum(usage.input_tokens + usage.output_tokens for usage in used),
                server_s=sum(attempt.server_s for attempt in job.attempts),
                usd=usd,
            )
        )

    def _learn_lengths(self, job: Job, attempt: Attempt) -> None:
        """Lengths, times and what the provider's prompt cache held, of a whole answer."""
        group, route, usage, turn = job.group, attempt.route, attempt.usage, job.turn
        assert usage is not None  # noqa: S101 - the caller has looked
        if turn is not None and turn[0] == route.action and turn[1]:
            route.found_cached(turn[1], usage.cached_input_tokens)
        if group.conversations is not None and job.session:
            group.conversations.remember(
                job.key.tenant, job.session, route.action, usage.input_tokens, job.now
            )
        if not group.config.learn:
            return
        if group.length is not None and job.features is not None:
            group.length.learn(
                job.features,
                route.predicted_as,
                float(usage.output_tokens),
                censored=attempt.finish in _CUT,
            )
        if group.latency is not None:
            first_s = attempt.first_s
            streamed = attempt.streamed or (self._proxy.scenario.stream and job.parent is None)
            group.latency.learn(
                route.action,
                chosen(attempt.decision).load or 0.0,
                float(usage.input_tokens),
                float(usage.output_tokens),
                first_token_s=first_s - attempt.started_s if first_s is not None and streamed else None,
                total_s=attempt.ended_s - attempt.started_s,
            )


def entry_of(job: Job, attempt: Attempt) -> Entry:
    """A decision and what it cost as the decision log has it."""
    decision, usage, units, state = attempt.decision, attempt.usage, attempt.units, attempt.state
    cost: Amounts = {"server_seconds": attempt.server_s, "requests": 1.0}
    if units is not None:
        cost["usd"] = units * 1e-12
    if usage is not None:
        cost["tokens"] = float(usage.input_tokens + usage.output_tokens)
    request: dict[str, Any] = {}
    lexical = None
    if state is not None:
        request = {
            name: value
            for name, value in state.request.items()
            if name not in _LEFT_OUT and type(value) in _PLAIN
        }
        lexical = None if state.features is None else state.features.lexical
    policy = job.group.config.policy
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
        api=job.api,
        attempt=job.attempts.index(attempt) + 1,
        endpoint=attempt.route.site.name,
        upstream_model=attempt.route.upstream_model,
        policy=getattr(policy, "name", type(policy).__name__),
        why=decision.why,
        request=request,
        lexical=lexical,
        worth_usd=job.group.config.worth_usd,
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
