"""How a request asks the answer cache, and how what it finds is sent."""

from __future__ import annotations

from typing import Final

import msgspec

from apportion.serve import identity
from apportion.serve.assemble import Api as StreamedApi
from apportion.serve.cache import restream
from apportion.serve.cache.answers import AnswerCache, Control, Hit
from apportion.serve.cache.identity import Question
from apportion.serve.call import STREAMED
from apportion.serve.job import Job, limits_headers
from apportion.serve.runtime import Group

_JSON: Final = "content-type: application/json\r\n"
_SSE: Final = (
    "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)


def question(job: Job, cache: AnswerCache) -> Question | None:
    """What ``job`` asks, as the cache knows it; None where it must be answered anew."""
    call, constraints = job.call, job.call.constraints
    mode = constraints.cache or "on"
    if mode == "off" or call.api == "count_tokens":
        return None
    return cache.question(
        call.api,
        call.fields,
        tenant=identity.tenant(job.key),
        key=job.key.name,
        user=job.user,
        model=job.group.name,
        variant=_variant(job),
        control=Control(mode, constraints.cache_max_age_s),
        tags=tuple(constraints.tags or ()),
    )


def _variant(job: Job) -> str:
    """What changes an answer and is not in the request: what stands behind the model, and how hard it tries."""
    group, effort = job.group, job.call.constraints.effort
    chosen = group.config.strategy if job.tried_out() else None
    strategy = None if chosen is None else [chosen.name, chosen.parameters]
    return msgspec.json.encode([[route.model for route in group.routes], strategy, effort]).decode()


def load(group: Group) -> float:
    """The least load of the model's endpoints; 0 where it is unknown."""
    return min((route.endpoint.load or 0.0 for route in group.routes), default=0.0)


def endpoints(job: Job) -> frozenset[str] | None:
    """The endpoints whose answers the key may have; None for all of them."""
    access, asked = job.runtime.access(job.key), job.call.constraints.require
    if access.endpoints is None and not access.require and not asked:
        return None
    required = access.require | frozenset(asked or ())
    return frozenset(
        route.endpoint.name
        for route in job.group.routes
        if required <= route.endpoint.tags
        and (access.endpoints is None or route.endpoint.name in access.endpoints)
    )


def end(job: Job) -> None:
    """The request's turn to ask, if it had one, is over."""
    turn = job.cache_turn
    if turn is not None:
        turn.end()
        if job.cached is not None:
            job.cached["category"] = turn.category


def send(job: Job, hit: Hit) -> None:
    """Answer ``job`` with what was kept. It costs nothing."""
    call = job.call
    job.cached = {
        "outcome": hit.kind,
        "made_by": hit.decision_id,
        "age_s": round(hit.age_s, 3),
        "similarity": hit.similarity,
        "category": hit.category,
        "key": hit.key,
        "saved_usd_pico": hit.usd_pico,
    }
    job.status = "ok"
    near = "" if hit.similarity is None else f"x-apportion-cache-similarity: {hit.similarity:.4f}\r\n"
    said = (
        f"x-apportion-cache: {hit.kind}\r\nage: {int(hit.age_s)}\r\n{near}"
        f"x-apportion-cache-key: {hit.key}\r\nx-apportion-cost-usd: 0\r\nx-apportion-cost-mark: measured\r\n"
        f"{limits_headers(job)}"
    )
    if call.stream and call.api in STREAMED:
        api: StreamedApi = call.api
        note = b': apportion {"decision_id":"%b","cost_usd":"0","cost_mark":"measured"}\n\n' % job.id.encode()
        events = restream.events(api, hit.body, include_usage=call.include_usage, note=note)
        job.responder.start(200, job.headers(_SSE + said, cost=False), b"".join(events))
        job.responder.finish()
    else:
        job.responder.send(200, job.headers(_JSON + said, cost=False), hit.body)
    job.ended(200)
