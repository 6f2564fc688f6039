"""A strategy at work: many calls for one answer, each with its own reservation, queue and entry in the books.

The strategy says which calls and when to stop, this makes them: every call is a request of its own that goes the whole
way of `flow.answer`, only its route is given. The client sees one answer, which costs what all of them cost.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Callable, Coroutine, Mapping, MutableMapping, Sequence
from typing import Any, Final

import msgspec

from apportion.core.cost import Cost
from apportion.core.strategy import Answer, Call, Reply, Strategy
from apportion.serve import errors, heard
from apportion.serve.assemble import Api as AssembledApi
from apportion.serve.books import refused
from apportion.serve.cache import restream
from apportion.serve.call import CAP_FIELDS, STREAMED, encode_object
from apportion.serve.call import Call as Request
from apportion.serve.flow import UpstreamAnswer, admit, answer, offered
from apportion.serve.inside import Inside
from apportion.serve.job import STRATEGY, Job, limits_headers
from apportion.serve.ledger.ledger import Refused
from apportion.serve.records import Attempt, cost, usd
from apportion.serve.runtime import Route
from apportion.serve.settlement import Settlements

_JSON: Final = "content-type: application/json\r\n"
_SSE: Final = (
    "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_MOST_CALLS: Final = 64
"""Calls for one answer; those that a strategy wants beyond are refused, and it ends with what it has."""
_NOT_PASSED: Final = ("stream", "stream_options", "n", "best_of")

Vector = Callable[[str], Coroutine[Any, Any, "tuple[float, ...] | None"]]


class Maker:
    """What the calls of a strategy are made with: those of one worker."""

    def __init__(
        self,
        number: Callable[[], str],
        running: MutableMapping[str, Job],
        rng: random.Random,
        settlements: Settlements,
        vector: Vector,
        accepted: Callable[[Job, bytes], bool | None],
    ) -> None:
        self.number = number
        self.running = running
        self.rng = rng
        self.settlements = settlements
        self.vector = vector
        self.accepted = accepted
        """Whether an answer passes the operator's checks of its model; None where there are none."""


async def think(job: Job, strategy: Strategy, maker: Maker) -> None:
    """Answer ``job`` with ``strategy``. Raises as `flow.answer` does if nothing has been sent."""
    routes = await offered(job, maker.settlements)
    admit(job, routes)
    try:
        await job.reserve_request(STRATEGY, maker.settlements.flush)
    except Refused as refusal:
        raise refused(refusal) from None
    by_action = {route.action: route for route in routes}
    state = job.look_at(routes)
    call, constraints = job.call, job.call.constraints
    plan = strategy.run(
        {
            "id": job.id,
            "api": call.api,
            "options": state.options,
            "prices": state.prices,
            "features": job.features,
            "question": job.question or None,
            "worth_usd": job.worth_usd(),
            "max_usd": constraints.max_usd,
            "max_output_tokens": call.max_output_tokens,
            "stream": call.stream,
        },
        job.now,
    )
    driven = _Driven(job, by_action, maker)
    try:
        found = await driven.run(plan)
    finally:
        plan.close()
    chosen = found.content if isinstance(found.content, Mapping) else None
    body = None if chosen is None else chosen.get("body")
    driven.credit(chosen)
    if isinstance(body, bytes) and "logprobs" not in call.fields:
        body = heard.without_logprobs(call.api, body)
    job.answer = {
        "strategy": job.group.config.strategy.name if job.group.config.strategy else "",
        "why": found.why,
        "confidence": found.confidence,
        "calls": driven.made,
        "details": dict(found.details),
    }
    if not isinstance(body, bytes):
        raise driven.failed or errors.UpstreamError("None of the calls of the strategy brought an answer.")
    _send(job, body)


class _Driven:
    """The calls of one plan."""

    def __init__(self, job: Job, routes: Mapping[str, Route], maker: Maker) -> None:
        self._job = job
        self._routes = routes
        self._maker = maker
        self.made = 0
        self._by: dict[int, Job] = {}
        """Who made each answer, by the identity of what was sent to the plan (which holds it)."""
        self._contents: list[object] = []
        self.failed: Exception | None = None

    async def run(self, plan: Any) -> Answer:
        """Drive the plan to its answer."""
        try:
            calls: Sequence[Call] = next(plan)
            while True:
                room = max(0, _MOST_CALLS - self.made)
                replies = await self._together(calls[:room]) if room else []
                beyond = [Reply("refused", None, Cost()) for _ in calls[room:]]
                calls = plan.send([*replies, *beyond])
        except StopIteration as stop:
            found: Answer = stop.value
            return found

    async def _together(self, calls: Sequence[Call]) -> list[Reply]:
        self.made += len(calls)
        before = tuple(self._job.attempts)
        if len(calls) == 1:
            return [await self._reply(calls[0], before, 1)]
        tasks = [asyncio.ensure_future(self._reply(call, before, len(calls))) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def credit(self, chosen: object) -> None:
        """The chosen answer is put down to who made it."""
        child = self._by.get(id(chosen))
        if child is not None:
            job = self._job
            job.answered_by, job.route, job.decision = child.last, child.route, child.decision

    async def _reply(self, call: Call, before: Sequence[Attempt], shares: int) -> Reply:
        """Make one call, as a request of its own."""
        job, maker = self._job, self._maker
        route = self._routes.get(call.action)
        if route is None:
            return Reply("refused", None, Cost())
        inside = Inside()
        child = Job(job.runtime, _changed(job, call), job.key, job.group, inside, maker.number())
        child.parent = job.id
        child.only = route
        child.features = job.features
        child.counted = True  # the request itself has been
        child.siblings, child.shares = before, shares
        child.guarded, child.guarded_cap, child.verdict = job.guarded, job.guarded_cap, job.verdict
        started_s = time.perf_counter()
        maker.running[child.id] = child
        status = "failed"
        try:
            await answer(child, maker.rng, maker.settlements)
            status = "ok"
        except errors.GatewayError as error:
            self.failed = error
            status = "refused"
        except UpstreamAnswer as error:
            self.failed = error
        finally:
            del maker.running[child.id]
            maker.settlements.add(child)
            job.attempts.extend(child.attempts)
            job.route, job.decision = child.route or job.route, child.decision or job.decision
        took_s = time.perf_counter() - started_s
        job.upstream_s += took_s
        content = heard.content(job.call.api, inside.body) if status == "ok" else None
        if status == "ok" and content is None:
            status = "failed"
        if content is not None and "vector" in call.request.get("want", ()):  # type: ignore[operator]
            content["vector"] = await maker.vector(content["text"])
        if content is not None and "accepted" in call.request.get("want", ()):  # type: ignore[operator]
            content["accepted"] = maker.accepted(job, inside.body)
        if content is not None:
            self._by[id(content)] = child
            self._contents.append(content)
        units, _ = cost(child.attempts)
        paid = Cost() if units is None else Cost(usd=units * 1e-12)
        return Reply(status, content, paid, took_s)  # type: ignore[arg-type]


def _changed(job: Job, call: Call) -> Request:
    """The client's request as the strategy wants it for one call."""
    asked = job.call
    found = copy.copy(asked)
    fields = {name: value for name, value in asked.fields.items() if name not in _NOT_PASSED}
    overrides = call.request.get("fields")
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            fields[str(name)] = msgspec.Raw(msgspec.json.encode(value))
    added = call.request.get("append")
    if isinstance(added, Sequence) and added:
        name = "input" if asked.api == "responses" else "messages"
        if name in fields:
            before = msgspec.json.decode(fields[name])
            if isinstance(before, str):
                before = [{"role": "user", "content": before}]
            fields[name] = msgspec.Raw(msgspec.json.encode([*before, *added]))
    found.fields = fields
    found.stream = found.include_usage = False
    found.n = 1
    caps = [_number(fields.get(name)) for name in CAP_FIELDS[asked.api]]
    found.max_output_tokens = max((cap for cap in caps if cap is not None), default=None)
    if job.guarded_cap and asked.max_output_tokens is not None:  # the guard's is in no field
        found.max_output_tokens = min(
            found.max_output_tokens or asked.max_output_tokens, asked.max_output_tokens
        )
    if call.max_cost is not None and "usd" in call.max_cost:
        most, limit = call.max_cost["usd"], asked.constraints.max_usd
        least = most if limit is None else min(limit, most)
        found.constraints = msgspec.structs.replace(asked.constraints, max_usd=least)
    request = copy.copy(asked.request)
    request.body = encode_object(fields)
    found.request = request
    found.body_bytes = len(request.body)
    return found


def _number(raw: msgspec.Raw | None) -> int | None:
    return None if raw is None or bytes(raw) == b"null" else msgspec.json.decode(raw, type=int)


def _send(job: Job, body: bytes) -> None:
    """The chosen answer, as the client asked for it."""
    call = job.call
    job.keep(body)
    if call.stream and call.api in STREAMED:
        api: AssembledApi = call.api
        units, mark = cost(job.attempts)
        amount = "" if units is None else f'"cost_usd":"{usd(units)}",'
        note = f': apportion {{"decision_id":"{job.id}",{amount}"cost_mark":"{mark}"}}\n\n'
        events = restream.events(api, body, include_usage=call.include_usage, note=note.encode())
        job.responder.start(200, job.headers(_SSE + limits_headers(job), cost=True), b"".join(events))
        job.responder.finish()
    else:
        job.responder.send(200, job.headers(_JSON + limits_headers(job), cost=True), body)
    job.status = "ok"
    job.ended(200)
