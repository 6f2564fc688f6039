"""The application behind the server: finds the handler of a path, answers errors in the caller's dialect.

One object per worker. Nothing here knows a policy, an upstream or a socket by name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from apportion.core.errors import ApportionError
from apportion.serve import budget_metrics, errors, openapi, translation
from apportion.serve.admin import Admin
from apportion.serve.call import DIALECTS, ROUTES, Api, parse
from apportion.serve.config.schema import Key
from apportion.serve.flow import UpstreamAnswer, answer
from apportion.serve.http.server import Request, Responder
from apportion.serve.job import Job, limits_headers
from apportion.serve.keyring import OPEN
from apportion.serve.meters import Meters
from apportion.serve.records import Records, explain, owner
from apportion.serve.routes import NOBODY, Route, Routes, Visit
from apportion.serve.runtime import Runtime
from apportion.serve.settlement import Settlements
from apportion.serve.spend_api import SpendApi

logger = logging.getLogger("apportion.gateway")

_JSON: Final = b"content-type: application/json\r\n"
_TEXT: Final = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LONGEST_RETRY_AFTER_S: Final = 3600.0

Siblings = Callable[[int, str], Awaitable[bytes | None]]
"""Asks another worker for a path on its control socket; None if it does not have it."""


class Gateway:
    """Answers every request of one worker."""

    def __init__(self, runtime: Runtime, meters: Meters, records: Records, *, rng: random.Random) -> None:
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
        self._apis: dict[str, Api] = {
            prefix + path: api for path, api in ROUTES.items() for prefix in ("/v1", "")
        }
        self.admin = Admin(lambda: self.runtime)
        self.spending = SpendApi()
        self.routes = Routes(
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
                *self.admin.routes(),
                *self.spending.routes(),
            )
        )
        """Everything but the calls of models, with who may ask it."""

    def __call__(self, request: Request, responder: Responder) -> Coroutine[Any, Any, None]:
        """Answer one request."""
        api = self._apis.get(request.path)
        if api is not None and request.method == "POST":
            return self._call(request, responder, api)
        return self._other(request, responder, api)

    # calls of a model

    async def _call(self, request: Request, responder: Responder, api: Api) -> None:
        number = self.records.number()
        meters = self.meters
        job: Job | None = None
        runtime = self.runtime
        try:
            key = runtime.authenticate(request.headers)
            call = parse(request, api, runtime.headers)
            group = runtime.group(call.model, key)
            job = Job(runtime, call, key, group, responder, number)
            self.running[job.id] = job
            if api == "count_tokens" and not any(r.spoken_for(api) for r in group.routes):
                self._count_tokens(job)
                return
            await answer(job, self._rng, self.settlements)
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
