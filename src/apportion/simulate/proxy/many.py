"""A strategy at work in virtual time: many calls for one answer, each a request of its own.

What an answer says is not in a trace. A call here is right with the probability that the trace (or the prediction)
gives its action, drawn for this request: right answers agree, wrong ones scatter over a few others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from apportion.core.cost import Cost
from apportion.core.outcome import Status
from apportion.core.strategy import Answer, Call, Plan, Reply, Strategy
from apportion.simulate.proxy.deciding import Ended, look_at
from apportion.simulate.proxy.flow import admit, answer, offered
from apportion.simulate.proxy.group import Route
from apportion.simulate.proxy.job import Attempt, Job, Task
from apportion.simulate.result import CUT, FAILED, OK

if TYPE_CHECKING:
    from apportion.simulate.proxy.proxy import Proxy

_MOST_CALLS: Final = 64
"""Calls for one answer; those that a strategy wants beyond are refused, and it ends with what it has."""
_WRONG: Final = 8
"""Different wrong answers."""
_STREAM_BYTES: Final = len('"stream":true,')
"""What the body of a single call does not say."""


def think(proxy: Proxy, job: Job, strategy: Strategy) -> Task:
    """Answer ``job`` with ``strategy``. Raises `Ended` if its client gets no answer."""
    routes = offered(proxy, job)
    admit(proxy, job, routes)
    proxy.hold_request(job, "strategy")
    lines, amounts = job.lines, job.held
    by_action = {route.action: route for route in routes}
    state = look_at(proxy, job, routes)
    plan = strategy.run(
        {
            "id": job.id,
            "api": job.api,
            "options": state.options,
            "prices": state.prices,
            "features": job.features,
            "question": None,
            "worth_usd": job.group.config.worth_usd,
            "max_usd": None,
            "max_output_tokens": job.cap_tokens,
            "stream": proxy.scenario.stream,
        },
        job.now,
    )
    driven = _Driven(proxy, job, by_action)
    try:
        found = yield from driven.run(plan)
    finally:
        plan.close()
        job.lines, job.held = lines, amounts
    child = driven.by.get(id(found.content))
    if child is not None:
        job.answered_by = child.attempts[-1]
    job.answer = found.details
    if child is None:
        raise driven.failed or Ended(FAILED, "strategy")
    job.status = OK


class _Driven:
    """The calls of one plan."""

    def __init__(self, proxy: Proxy, job: Job, routes: Mapping[str, Route]) -> None:
        self._proxy = proxy
        self._job = job
        self._routes = routes
        self.made = 0
        self.by: dict[int, Job] = {}
        """Who made each answer, by the identity of what was sent to the plan."""
        self.failed: Ended | None = None
        self._left = 0
        self._rng = random.Random(int(job.draws[2] * 2**53) if job.draws else 0)

    def run(self, plan: Plan) -> Any:
        """Drive the plan to its answer."""
        kept: list[Reply] = []
        try:
            calls: Sequence[Call] = next(plan)
            while True:
                room = max(0, _MOST_CALLS - self.made)
                replies = (yield from self._together(calls[:room])) if room else []
                beyond = [Reply("refused", None, Cost()) for _ in calls[room:]]
                kept += replies
                calls = plan.send([*replies, *beyond])
        except StopIteration as stop:
            found: Answer = stop.value
            return found

    def _together(self, calls: Sequence[Call]) -> Any:
        self.made += len(calls)
        job = self._job
        before = tuple(job.attempts)
        replies: list[Reply | None] = [None] * len(calls)
        self._left = len(calls)
        for place, call in enumerate(calls):
            route = self._routes.get(call.action)
            if route is None:
                replies[place] = Reply("refused", None, Cost())
                self._left -= 1
            else:
                self._begin(call, route, before, len(calls), replies, place)
        if self._left:
            job.waits = True
            yield
            job.waits = False
        return replies

    def _begin(
        self,
        call: Call,
        route: Route,
        before: Sequence[Attempt],
        shares: int,
        replies: list[Reply | None],
        place: int,
    ) -> None:
        """Make one call, as a request of its own."""
        job, proxy = self._job, self._proxy
        child = proxy.job(job.index, job.key, job.group)
        child.parent, child.only, child.features = job, route, job.features
        child.counted = True  # the request itself has been
        child.siblings, child.shares = before, shares
        child.verdict, child.factor, child.until_s = job.verdict, job.factor, job.until_s
        child.priority, child.session, child.piece, child.row = job.priority, job.session, job.piece, job.row
        child.draws = job.draws
        proxy.number(child)
        _changed(child, job, call, streamed=proxy.scenario.stream)
        task = child.task = self._call(child, replies, place)
        next(task, None)

    def _call(self, child: Job, replies: list[Reply | None], place: int) -> Task:
        proxy, job = self._proxy, self._job
        status: Status = "failed"
        try:
            yield from answer(proxy, child)
            status = "ok"
        except Ended as end:
            self.failed = end
            status = "failed" if end.status == FAILED else "refused"
        finally:
            proxy.settlements.add(child)
            job.attempts.extend(child.attempts)
        content = self._content(child) if status == "ok" else None
        if content is not None:
            self.by[id(content)] = child
        usd = child.usd if child.attempts else None
        took_s = proxy.clock.now_s - child.started_s
        replies[place] = Reply(status, content, Cost() if usd is None else Cost(usd=usd), took_s)
        self._left -= 1
        if not self._left and job.waits:
            job.resume()

    def _content(self, child: Job) -> dict[str, Any]:
        """What an answer says, as strategies read it."""
        last = child.attempts[-1]
        quality = self._proxy.expected_quality(child, last)
        right = math.isnan(quality) or self._rng.random() < quality
        return {
            "text": said(0 if last.usage is None else last.usage.output_tokens, right, self._rng),
            "finish": "length" if child.status == CUT else last.finish,
            "logprobs": None,
            "top_logprobs": None,
            "tool_calls": False,
            "vector": None,
            "accepted": None,
            "body": b"",
        }


def said(tokens: int, right: bool, rng: random.Random) -> str:
    """The text of an answer of so many ``tokens``: right ones agree, wrong ones are of a few kinds."""
    return "The answer is 1." if right else f"The answer is {2 + rng.randrange(_WRONG)}."


def _changed(child: Job, job: Job, call: Call, *, streamed: bool) -> None:
    """The size of the client's request as the strategy wants it for one call."""
    more = -_STREAM_BYTES if streamed else 0
    fields = call.request.get("fields")
    cap = job.cap_tokens
    if isinstance(fields, Mapping):
        for name, value in fields.items():
            more += len(f'"{name}":,') + len(msgspec.json.encode(value))
            if name in ("max_tokens", "max_completion_tokens") and isinstance(value, int):
                cap = value if cap is None else min(cap, value)
    added = call.request.get("append")
    longer = 0
    if isinstance(added, Sequence) and added:
        longer = sum(len(msgspec.json.encode(message)) + 1 for message in added)
        child.messages = job.messages + len(added)
    child.takes(job.prompt_tokens + longer // 4, job.output_tokens)
    child.body_bytes = job.body_bytes + more + longer
    child.cap_tokens = cap
