"""The application behind the server: finds the handler of a path, answers errors in the caller's dialect.

One object per worker. Nothing here knows a policy, an upstream or a socket by name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote

import msgspec

from apportion.core.errors import ApportionError
from apportion.serve import (
    books,
    budget_metrics,
    caching,
    errors,
    guarding,
    inside,
    openapi,
    translation,
)
from apportion.serve.admin import Admin
from apportion.serve.cache.answers import AnswerCache, Turn
from apportion.serve.call import DIALECTS, ROUTES, STREAMED, Api, parse
from apportion.serve.config.schema import Key
from apportion.serve.draining import Draining, order
from apportion.serve.flow import UpstreamAnswer, answer
from apportion.serve.http.server import Request, Responder
from apportion.serve.job import CACHE, Job, limits_headers
from apportion.serve.keyring import OPEN
from apportion.serve.ledger.ledger import Refused
from apportion.serve.lessons import REPLAY_KEY, Lessons
from apportion.serve.many import Maker, think
from apportion.serve.meters import Meters
from apportion.serve.moving import Mover
from apportion.serve.reading import Reader
from apportion.serve.records import Records, explain, owner
from apportion.serve.replaying import Replays
from apportion.serve.routes import NOBODY, Route, Routes, Visit
from apportion.serve.runtime import Group, Runtime
from apportion.serve.settlement import Settlements
from apportion.serve.spend_api import SpendApi
from apportion.serve.tracing import Listener
from apportion.serve.verdicts import Verdict

logger = logging.getLogger("apportion.gateway")

_JSON: Final = b"content-type: application/json\r\n"
_TEXT: Final = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LONGEST_RETRY_AFTER_S: Final = 3600.0


class Siblings(Protocol):
    """Asks another worker for a path on its control socket; None if it does not have it."""

    def __call__(self, worker: int, path: str, body: bytes | None = None) -> Awaitable[bytes | None]:
        """Ask; with a ``body`` by POST."""
        ...


class Gateway:
    """Answers every request of one worker."""

    def __init__(
        self,
        runtime: Runtime,
        meters: Meters,
        records: Records,
        *,
        rng: random.Random,
        reader: Reader | None = None,
    ) -> None:
        self.runtime = runtime
        self.meters = meters
        self.records = records
        self.running: dict[str, Job] = {}
        self.settlements = Settlements(meters, records, self.running)
        self.draining = False
        self.ready: Callable[[], str | None] = lambda: None
        """What keeps the worker from being ready, or None."""
        self.sibling: Siblings | None = None
        self._rng = rng
        self.reader = reader if reader is not None else Reader(None, 0.0)
        self.cache: AnswerCache | None = None
        self._maker = Maker(
            self._number, self.running, rng, self.settlements, self.reader.vector, self._accepted
        )
        self.mover = Mover(self._number, self.running, rng, self.settlements)
        self._apis: dict[str, Api] = {
            prefix + path: api for path, api in ROUTES.items() for prefix in ("/v1", "")
        }
        self.admin = Admin(lambda: self.runtime)
        self.endpoints = Draining(lambda: self.runtime, self.mover, self._others)
        self.spending = SpendApi()
        self.lessons: Lessons | None = None
        self.replays = Replays(self.ask_again, meters)
        self.routes = self._table()
        """Everything but the calls of models, with who may ask it."""

    def _number(self) -> str:
        return self.records.number()

    def teach_with(self, lessons: Lessons) -> None:
        """From now on outcomes are collected by ``lessons``."""
        self.lessons = self.settlements.lessons = lessons
        self.routes = self._table()

    def _table(self) -> Routes:
        return Routes(
            (
                Route("GET", "/", "open", self._index),
                Route("GET", "/health", "open", self._live),
                Route("GET", "/health/live", "open", self._live),
                Route("GET", "/health/ready", "open", self._ready),
                Route("GET", "/openapi.json", "open", self._openapi),
                Route("GET", "/metrics", "exposed", self._metrics),
                *(
                    Route("GET", prefix + path, "key", handler)
                    for prefix in ("/v1", "")
                    for path, handler in (("/models", self._models), ("/models/{id...}", self._model))
                ),
                Route("GET", "/apportion/decisions/{id}", "key", self._decision),
                Route("GET", "/apportion/prices", "key", self._prices),
                Route("GET", "/apportion/queues", "key", self._queues),
                Route("GET", "/apportion/lengths", "admin", self._lengths),
                Route("GET", "/apportion/cache", "admin", self._cache),
                Route("DELETE", "/apportion/cache", "admin", self._forget),
                Route("DELETE", "/apportion/cache/{id}", "admin", self._forget),
                *self.admin.routes(),
                *self.endpoints.routes(),
                *self.spending.routes(),
                *(self.lessons.routes() if self.lessons is not None else ()),
            )
        )

    def __call__(self, request: Request, responder: Responder) -> Coroutine[Any, Any, None]:
        """Answer one request."""
        api = self._apis.get(request.path)
        if api is not None and request.method == "POST":
            return self._call(request, responder, api)
        return self._other(request, responder, api)

    # calls of a model

    async def _call(
        self,
        request: Request,
        responder: Responder,
        api: Api,
        key: Key | None = None,
        endpoint: str | None = None,
    ) -> None:
        """Answer a call of a model, for ``key`` where it is known already, by ``endpoint`` where that is settled."""
        number = self.records.number()
        meters = self.meters
        job: Job | None = None
        runtime = self.runtime
        try:
            if key is None:
                key = runtime.authenticate(request.headers)
            call = parse(request, api, runtime.headers)
            group = runtime.group(call.model, key)
            wanted = self.lessons is not None and self.lessons.wants(group.name, key.name, "dec_" + number)
            if wanted or group.school is not None:
                responder = Listener(responder)
            job = Job(runtime, call, key, group, responder, number)
            if group.config.retries.resume:
                job.mover = self.mover
            self.running[job.id] = job
            if endpoint is not None:
                job.only = next(route for route in group.routes if route.endpoint.name == endpoint)
            if api == "count_tokens" and not any(r.spoken_for(api) for r in group.routes):
                self._count_tokens(job)
                return
            if group.plain:
                await answer(job, self._rng, self.settlements)
            else:
                await self._decided(job)
        except errors.GatewayError as error:
            if job is not None and job.status == "running":
                job.status = "refused"
            self._refuse(responder, error, DIALECTS[api], "req_" + number, job, api)
        except UpstreamAnswer as upstream:
            assert job is not None  # noqa: S101 - only an attempt raises it
            self._pass_error(job, upstream)
        except asyncio.CancelledError:
            if responder.gone:
                meters.cancelled.add()
            raise
        except Exception:
            logger.exception("req_%s: fault while answering", number)
            if responder.started:
                responder.abort()
            else:
                fault = errors.InternalError("The gateway failed while answering; see its log.")
                self._refuse(responder, fault, DIALECTS[api], "req_" + number, job, api)
        finally:
            if job is not None:
                del self.running[job.id]
                self.settlements.add(job)

    async def answer_for(self, key: Key, request: Request, responder: Responder) -> None:
        """Answer a call that this process makes itself (a judge's), on the books of ``key``."""
        await self._call(request, responder, self._apis[request.path], key)

    async def _decided(self, job: Job) -> None:
        """Answer a call of a model for which more is decided than the endpoint: read it, guard it, look into the
        cache, think.
        """
        methods = job.group.methods
        if methods.reads:
            await self.reader.read(job)
        if methods.guard is not None:
            guarding.inspect(job, methods.guard)
        job.recall()
        if await self._from_cache(job):
            return
        try:
            several = methods.strategy is not None and job.call.api in STREAMED and job.call.n == 1
            if several and methods.strategy is not None and job.tried_out():
                await think(job, methods.strategy, self._maker)
            else:
                await answer(job, self._rng, self.settlements)
        finally:
            caching.end(job)

    async def _from_cache(self, job: Job) -> bool:
        """Answer with what the cache has; else it is this request's turn to ask, if it may be kept at all."""
        cache = self.cache
        if cache is None or not job.group.config.cached or not self.runtime.access(job.key).routing:
            return False
        question = caching.question(job, cache)
        if question is None:
            return False
        started_s = time.perf_counter()
        deadline_s = job.call.constraints.deadline_s
        left_s = None if deadline_s is None else max(0.0, job.started_s + deadline_s - started_s)
        load, endpoints = caching.load(job.group), caching.endpoints(job)
        try:
            if left_s is None:
                found = await cache.look(question, time.time(), load=load, endpoints=endpoints)
            else:
                async with asyncio.timeout(left_s):
                    found = await cache.look(question, time.time(), load=load, endpoints=endpoints)
        except TimeoutError:
            raise errors.DeadlineError(
                "The request's 'deadline_s' was used up while an equal one was waited for.",
                field="apportion.deadline_s",
            ) from None
        if isinstance(found, Turn):
            job.cache_turn = found
            job.cached = {"outcome": found.why}
            if found.why == "failed":  # another was waited for
                job.upstream_s += time.perf_counter() - started_s
            return False
        job.upstream_s += time.perf_counter() - started_s if found.kind == "joined" else 0.0
        try:
            await job.reserve_request(CACHE, self.settlements.flush)
        except Refused as refusal:
            raise books.refused(refusal) from None
        caching.send(job, found)
        return True

    def _count_tokens(self, job: Job) -> None:
        """Counted here where no endpoint of the model can; marked as an estimate."""
        tokens = translation.count_tokens(job.call.request.body)
        headers = job.headers(
            "content-type: application/json\r\nx-apportion-usage: estimated\r\n", cost=False
        )
        job.responder.send(200, headers, msgspec.json.encode({"input_tokens": tokens}))
        job.status = "ok"
        job.ended(200)

    def _pass_error(self, job: Job, upstream: UpstreamAnswer) -> None:
        """The upstream's own error, in its words; only its shape may change."""
        call = job.call
        secret = job.route.endpoint.config.api_key if job.route is not None else None
        if secret is not None:
            # An upstream may quote the key it was sent.
            upstream.body = upstream.body.replace(secret.reveal().encode(), b"***")
        body = translation.error_body(
            upstream.body, upstream.spoken, call.api, upstream.status, job.request_id
        )
        # The gateway has tried all it may; a client that tries again multiplies the attempts.
        extra = "content-type: application/json\r\n"
        if upstream.status in (408, 409, 429) or upstream.status >= 500:
            extra += "x-should-retry: false\r\n" if job.tries > 1 or not upstream.retry_after_s else ""
        if upstream.retry_after_s is not None:
            extra += _retry_after(upstream.retry_after_s)
        job.responder.send(upstream.status, job.headers(extra, cost=True), body)
        job.ended(upstream.status)

    def _refuse(
        self,
        responder: Responder,
        error: errors.GatewayError,
        dialect: str,
        request_id: str,
        job: Job | None = None,
        api: str = "",
    ) -> None:
        """An error of the gateway's own."""
        extra = f"content-type: application/json\r\nx-apportion-error: {error.code}\r\n"
        if error.retryable is not None:
            extra += f"x-should-retry: {'true' if error.retryable else 'false'}\r\n"
        if error.retry_after_s is not None:
            extra += _retry_after(error.retry_after_s)
        if isinstance(error, errors.MethodNotAllowedError):
            extra += f"allow: {', '.join(error.allow)}\r\n"
        if isinstance(error, errors.AuthenticationError):
            extra += "www-authenticate: Bearer\r\n"
        if job is not None:
            headers = job.headers(extra + limits_headers(job), cost=True)
        else:
            headers = f"x-request-id: {request_id}\r\nrequest-id: {request_id}\r\n{extra}".encode("latin-1")
        if not responder.started:
            responder.send(error.status, headers, errors.render(error, dialect, request_id))
        if job is not None:
            job.ended(error.status, error.code)
        else:
            self.meters.answered(api, "", error.status)
        if error.status >= 500:
            # Not louder: in an outage this is every request. Metrics count them, the circuit's changes are logged.
            logger.debug("%s: %s: %s", request_id, error.code, error)

    # everything else

    async def _other(self, request: Request, responder: Responder, api: Api | None) -> None:
        number = "req_" + self.records.number()
        dialect = DIALECTS[api] if api is not None else "openai"
        if b"anthropic-version" in request.headers:
            dialect = "anthropic"
        try:
            if api is not None:
                error = errors.MethodNotAllowedError(
                    f"{request.path} is not answered to {request.method[:20]}.",
                    field="method",
                    fix="Use POST.",
                )
                error.allow = ("POST",)
                raise error
            route, names = self.routes.find(request.method, request.path)
            key = self._allowed(route, request)
            await route.handler(Visit(request, responder, number, key, names))
        except errors.GatewayError as error:
            self._refuse(responder, error, dialect, number)

    def refuses(self, request: Request) -> bool:
        """Whether a request is refused whatever its body says, so that nobody need read it."""
        try:
            if request.method == "POST" and request.path in self._apis:
                self.runtime.authenticate(request.headers)
            else:
                route, _ = self.routes.find(request.method, request.path)
                self._allowed(route, request)
        except errors.GatewayError:
            return True
        return False

    def _allowed(self, route: Route, request: Request) -> Key:
        """Who asks, if they may: decided by the route alone. Raises the error of those who may not."""
        role = route.role
        runtime = self.runtime
        if role == "exposed":
            # What an organisation asks and spends is nobody else's business.
            exposed = runtime.config.auth.required and runtime.config.listen.host not in _LOOPBACK
            role = "admin" if exposed else "open"
        if role == "open":
            return NOBODY
        key = runtime.authenticate(request.headers)
        if role == "admin" and not key.admin:
            raise errors.PermissionDeniedError(
                "This is answered to admin keys only.", field="authorization", fix="Ask with an admin key."
            )
        if role == "admin" and key is OPEN and request.method not in ("GET", "HEAD"):
            raise errors.PermissionDeniedError(
                "Where nobody needs a key, nobody makes or changes one from here.",
                field="authorization",
                fix="Use the command line (apportion keys, teams, budgets).",
            )
        return key

    async def _index(self, visit: Visit) -> None:
        visit.send(
            {
                "name": "apportion",
                "models": "/v1/models",
                "chat": "/v1/chat/completions",
                "health": "/health/ready",
                "metrics": "/metrics",
                "openapi": "/openapi.json",
            },
        )

    async def _live(self, visit: Visit) -> None:
        visit.send({"status": "ok"})

    async def _ready(self, visit: Visit) -> None:
        why = "draining" if self.draining else self.ready()
        if why is None:
            visit.send({"status": "ok"})
        else:
            visit.send({"status": "not ready", "why": why}, 503)

    async def _metrics(self, visit: Visit) -> None:
        self.settlements.flush()
        self.meters.in_flight.set(float(len(self.running)))
        for endpoint in self.runtime.endpoints.values():
            state = endpoint.circuit.state
            self.meters.circuit.at(endpoint.name).set(0.0 if state == "closed" else 1.0)
            if endpoint.queue is not None:
                self.meters.queue_waiting.at(endpoint.name).set(float(endpoint.queue.waiting))
        self.reader.count(self.meters)
        if self.cache is not None:
            held = self.cache.stats()
            self.meters.cache_bytes.set(float(held["bytes"]))
            self.meters.cache_entries.set(float(held["entries"]))
        text = self.meters.registry.render()
        if self.admin.people is not None:
            prices = self.runtime.books.explain_prices(time.time())
            try:
                balances = await asyncio.to_thread(self.admin.people.balances)
            except ApportionError as error:
                logger.warning("the budgets are missing from the metrics: %s", error)
                balances = []
            text += budget_metrics.render(balances, prices)
        visit.responder.send(200, _TEXT, text.encode())

    async def _openapi(self, visit: Visit) -> None:
        visit.responder.send(200, _JSON, openapi.document_bytes())

    async def _models(self, visit: Visit) -> None:
        found = [self._model_object(name, visit.request) for name in self.runtime.models_of(visit.key)]
        if b"anthropic-version" in visit.request.headers:
            ids = [m["id"] for m in found]
            page: dict[str, Any] = {
                "data": found,
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
        else:
            page = {"object": "list", "data": found}
        visit.send(page)

    async def _model(self, visit: Visit) -> None:
        name = visit.names["id"]
        self.runtime.group(name, visit.key)
        visit.send(self._model_object(name, visit.request))

    def _model_object(self, name: str, request: Request) -> dict[str, Any]:
        runtime = self.runtime
        if b"anthropic-version" in request.headers:
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(runtime.created_s))
            return {"type": "model", "id": name, "display_name": name, "created_at": created}
        return {
            "id": name,
            "object": "model",
            "created": runtime.created_s,
            "owned_by": runtime.groups[name].config.owned_by,
        }

    async def _decision(self, visit: Visit) -> None:
        key, id = visit.key, visit.names["id"]
        found = await self.decision(id)
        # Somebody else's decision is answered as one that does not exist.
        if found is None or not (key.admin or found["key"] == key.name):
            raise errors.NotFoundError(
                f"There is no decision {id[:40]!r} (any more).",
                field="id",
                fix="Decisions are kept for the latest requests only (records.decisions).",
            )
        visit.send(found)

    async def _prices(self, visit: Visit) -> None:
        """What a unit of each resource costs now and why: all scopes for an admin, a key's own otherwise."""
        self.settlements.flush()
        found = self.runtime.books.explain_prices(time.time())
        key = visit.key
        if not key.admin:
            own = {f"key:{key.name}", f"team:{key.team}"}
            shared = {"all", *(f"model:{name}" for name in self.runtime.models_of(key))}
            scopes = found["scopes"]
            found["scopes"] = {scope: said for scope, said in scopes.items() if scope in own | shared}
            for scope in shared & scopes.keys():
                del scopes[scope]["why"]  # it tells how much of a budget others have spent
        visit.send(found)

    async def _queues(self, visit: Visit) -> None:
        """Where the key's own requests wait; for an admin key also every queue in numbers."""
        found = self.own_queues(visit.key)
        for worker in range(self.runtime.config.listen.workers):
            if worker != self.records.worker and self.sibling is not None:
                path = f"/queues?key={quote(visit.key.name)}&admin={int(visit.key.admin)}"
                body = await self.sibling(worker, path)
                if body is not None:
                    other = msgspec.json.decode(body, type=dict[str, Any])
                    found["waiting"] += other["waiting"]
                    for name, one in other["endpoints"].items():
                        found["endpoints"].setdefault(name, []).extend(one)
        visit.send(found)

    def own_queues(self, key: Key) -> dict[str, Any]:
        """The queues of this worker, as ``key`` may see them."""
        queues = {e.name: e.queue for e in self.runtime.endpoints.values() if e.queue is not None}
        own = {job.id: job for job in self.running.values() if job.key.name == key.name}
        # Some may wait for an endpoint that has left the configuration.
        asked = {id(job.route.endpoint): job.route.endpoint for job in own.values() if job.route is not None}
        waiting = []
        for endpoint in asked.values():
            name, queue = endpoint.name, endpoint.queue
            if queue is None:
                continue
            for number, place in queue.positions(own).items():
                job = own[number]
                waiting.append(
                    {
                        "decision_id": number,
                        "model": job.group.name,
                        "endpoint": name,
                        "session": job.call.session,
                        "waited_s": round(time.perf_counter() - job.started_s, 3),
                        "ahead": place.ahead,
                        "expected_wait_s": round(place.expected_wait_s, 3),
                    }
                )
        shown = {name: [queue.snapshot()] for name, queue in queues.items()} if key.admin else {}
        return {"waiting": waiting, "endpoints": shown}

    async def _lengths(self, visit: Visit) -> None:
        """How long answers are, by model and tenant, in each worker."""
        self.settlements.flush()
        found: dict[str, Any] = {str(self.records.worker): list(self.settlements.lengths.rows())}
        for worker in range(self.runtime.config.listen.workers):
            if worker != self.records.worker and self.sibling is not None:
                body = await self.sibling(worker, "/lengths")
                if body is not None:
                    found[str(worker)] = msgspec.json.decode(body)
        visit.send({"workers": found})

    async def _cache(self, visit: Visit) -> None:
        """What the answer cache of this worker holds and has saved; never what is in it."""
        visit.send(
            {"enabled": self.cache is not None, **(self.cache.stats() if self.cache is not None else {})}
        )

    async def _forget(self, visit: Visit) -> None:
        """Remove answers from the cache: one, or those with a tag or of a tenant."""
        asked = dict(parse_qsl(visit.request.query))
        one = visit.names.get("id")
        if one is not None:
            asked["id"] = one
        if len(asked) != 1 or not asked.keys() <= {"id", "tag", "tenant"}:
            raise errors.InvalidRequestError(
                "It must be said what is to be removed.",
                field="query",
                fix="Name one answer in the path (cache key or decision id), or give ?tag= or ?tenant=.",
            )
        removed = self.forget(asked)
        for worker in range(self.runtime.config.listen.workers):
            if worker != self.records.worker and self.sibling is not None:
                body = await self.sibling(worker, "/forget", msgspec.json.encode(asked))
                removed += 0 if body is None else msgspec.json.decode(body, type=int)
        visit.send({"removed": removed})

    def forget(self, asked: dict[str, str]) -> int:
        """Remove answers from this worker's cache; how many."""
        cache = self.cache
        if cache is None:
            return 0
        id = asked.get("id")
        named = asked if id is None else {"decision_id" if id.startswith("dec_") else "key": id}
        return cache.remove(**named, now=time.time())

    async def _others(self, path: str, body: bytes) -> list[bytes]:
        """What the other workers answer; those that do not are left out."""
        if self.sibling is None:
            return []
        others = [w for w in range(self.runtime.config.listen.workers) if w != self.records.worker]
        return [found for w in others if (found := await self.sibling(w, path, body)) is not None]

    async def for_sibling(self, request: Request) -> bytes | None:
        """What another worker asks on the control socket, as JSON; None if it is not here."""
        path, asked = request.path, dict(parse_qsl(request.query))
        if path == "/feedback":
            return None if self.lessons is None else await self.lessons.from_sibling(request.body)
        if path == "/quality":
            return None if self.lessons is None else msgspec.json.encode(self.lessons.quality())
        if path == "/lengths":
            self.settlements.flush()
            return msgspec.json.encode(list(self.settlements.lengths.rows()))
        if path == "/queues":
            key = Key(name=asked.get("key", ""), admin=asked.get("admin") == "1")
            return msgspec.json.encode(self.own_queues(key))
        if path == "/endpoints":
            return msgspec.json.encode(self.endpoints.obey(order(request.body)))
        if path == "/forget":
            return msgspec.json.encode(self.forget(msgspec.json.decode(request.body, type=dict[str, str])))
        found = self.own_decision(path.removeprefix("/decisions/"))
        return None if found is None else msgspec.json.encode(found)

    # what is learned

    def teach(self, verdict: Verdict) -> None:
        """How good an answer was: for the policies, the predictor and the strategy of its model."""
        group = self.runtime.newest().groups.get(verdict.model)
        if group is None:
            return
        methods = group.methods
        outcome = verdict.outcome()
        for policy in (methods.policy, methods.shadow, methods.baseline):
            if policy is not None and policy.learns:
                policy.learn(outcome)
        features = None if verdict.state is None else verdict.state.features
        if methods.quality is not None and features is not None and group.config.predict.learn:
            route = next((r for r in group.routes if r.action == verdict.action), None)
            if route is not None:
                methods.quality.learn(features, route.predicted_as, verdict.quality, weight=verdict.weight)
        record = self.records.find(verdict.decision_id)
        school = group.school
        if school is not None and not self.replays.heard(group, verdict):
            school.heard(verdict, None if record is None else record.shown)
        if methods.strategy is not None and record is not None and record.answer is not None:
            methods.strategy.learn(record.answer["details"], verdict.quality)

    def _accepted(self, job: Job, body: bytes) -> bool | None:
        """Whether an answer passes the checks of its model; None where there are none."""
        if self.lessons is None:
            return None
        call = job.call
        return self.lessons.passes(
            job.group.name, call.api, call.request.body, body, expect=call.constraints.expect
        )

    async def ask(self, key_name: str, body: bytes) -> tuple[int, bytes]:
        """A chat completion for this process itself, on the books of the key of that name."""
        key = next((key for key in self.runtime.config.keys if key.name == key_name), None)
        if key is None:
            return 404, b""
        responder = inside.Inside()
        await self.answer_for(key, inside.request("/v1/chat/completions", body), responder)
        return responder.status, responder.body

    async def ask_again(self, group: Group, path: str, body: bytes) -> inside.Inside:
        """A request for the teacher of ``group``, on the books of the key of its replays."""
        responder = inside.Inside()
        key = next((key for key in self.runtime.config.keys if key.name == REPLAY_KEY + group.name), None)
        if key is not None and group.school is not None:
            request, api = inside.request(path, body), self._apis[path]
            await self._call(request, responder, api, key, group.school.settings.teacher)
        return responder

    def own_decision(self, id: str) -> dict[str, Any] | None:
        """A decision of this worker, explained."""
        self.settlements.flush()
        job = self.running.get(id)
        record = self.records.find(id) if job is None else job.record()
        return None if record is None else explain(record)

    async def decision(self, id: str) -> dict[str, Any] | None:
        """A decision of any worker, explained; None if no worker has it."""
        worker = owner(id)
        if worker is None:
            return None
        if worker == self.records.worker:
            return self.own_decision(id)
        if self.sibling is None:
            return None
        body = await self.sibling(worker, f"/decisions/{id}")
        return None if body is None else msgspec.json.decode(body, type=dict[str, Any])


def _retry_after(seconds: float) -> str:
    seconds = min(seconds, _LONGEST_RETRY_AFTER_S)
    return f"retry-after: {max(1, -int(-seconds // 1))}\r\nretry-after-ms: {round(seconds * 1000)}\r\n"
