"""How a request is answered: options, decision, reservation, call, answer, books. Straight through.

Failures before any content lead to the next endpoint, or after a pause to another try; the client then sees
either a whole answer or one error with a real status code. After content nothing is retried.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from typing import Final

import msgspec

from apportion.measure.usage import Usage
from apportion.serve import errors, translation
from apportion.serve.assemble import Assembler, assembler
from apportion.serve.call import CAP_FIELDS, Api, Call, encode_object
from apportion.serve.http.client import Exchange, Pool, Timeouts, TransportFailure, stale
from apportion.serve.http.server import Responder
from apportion.serve.job import Cap, Job, limits_headers
from apportion.serve.records import usd
from apportion.serve.relay import Relay
from apportion.serve.runtime import Route
from apportion.serve.upstream import backoff_s, retry_after_s
from apportion.serve.wire import read_usage, stream_reader

_JSON: Final = "content-type: application/json\r\n"
_SSE: Final = "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_RETRIED: Final = frozenset((401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
"""Upstream statuses after which another endpoint may do better."""
_REPEATED: Final = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
"""Those after which even the same endpoint may."""
_MAX_INFLATED_BYTES: Final = 64 * 2**20
_INCLUDE_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')
_TRUE: Final = msgspec.Raw(b"true")
_WHOLE_MARK: Final[dict[Api, bytes]] = {
    "chat": b"data: [DONE]\n\n",
    "completions": b"data: [DONE]\n\n",
    "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}


class UpstreamAnswer(Exception):
    """The upstream answered with an error status; it is passed on if no endpoint does better."""

    def __init__(self, status: int, body: bytes, spoken: Api, retry_after_s: float | None) -> None:
        super().__init__(f"The upstream answered {status}.")
        self.status = status
        self.body = body
        self.spoken = spoken
        self.retry_after_s = retry_after_s


class Deadline(Exception):
    """The request's deadline (``time``) or its money was over before there was any content."""

    def __init__(self, time: bool) -> None:
        super().__init__()
        self.time = time


async def answer(job: Job, rng: random.Random) -> None:
    """Answer ``job``. Raises ``GatewayError`` if nothing has been sent; everything else is dealt with here."""
    call = job.call
    retries = job.group.config.retries
    deadline_s = call.constraints.deadline_s
    until_s = job.started_s + deadline_s if deadline_s is not None else 0.0
    tried: list[Route] = []
    failed: UpstreamAnswer | TransportFailure | None = None
    while True:
        routes, caps = _feasible(job, tried)
        if not routes and tried:
            tried.clear()
            wait_s = backoff_s(job.attempts - 1, retries.backoff_s, retries.max_backoff_s, rng)
            if not await _pause(job, failed, wait_s, retries.max_backoff_s, until_s):
                raise _exhausted(job, failed)
            job.now = time.time()
            routes, caps = _feasible(job, tried)
        if not routes:
            raise _exhausted(job, failed) if failed is not None else _impossible(job)
        route = job.decide(routes)
        cap = caps[routes.index(route)]
        job.attempts += 1
        job.reserve(route, cap)
        try:
            await _attempt(job, route, cap, until_s)
            return
        except (UpstreamAnswer, TransportFailure) as failure:
            failed = failure
            repeatable = not isinstance(failure, UpstreamAnswer) or failure.status in _RETRIED
            if not repeatable or job.attempts >= retries.attempts:
                raise _exhausted(job, failed) from None
            tried.append(route)
        except Deadline as over:
            name = "deadline_s" if over.time else "max_usd"
            raise errors.DeadlineError(
                f"The request's '{name}' was used up before anything was produced.", field=f"apportion.{name}"
            ) from None
        finally:
            job.give_back()


def _feasible(job: Job, tried: list[Route]) -> tuple[list[Route], list[Cap]]:
    """The routes that may be asked now, each with what it may produce under the limits."""
    now_s = time.perf_counter()
    api = job.call.api
    joules = job.call.constraints.max_joules is not None
    routes: list[Route] = []
    caps: list[Cap] = []
    for route in job.group.routes:
        if route in tried or not route.endpoint.available(now_s) or route.chain(api) is None or joules:
            continue
        cap = job.cap(route)
        if cap is not None:
            routes.append(route)
            caps.append(cap)
    return routes, caps


async def _pause(
    job: Job, failed: UpstreamAnswer | TransportFailure | None, wait_s: float, longest_s: float, until_s: float
) -> bool:
    """Wait before asking the same endpoints again; False if that is pointless."""
    if isinstance(failed, UpstreamAnswer):
        if failed.status not in _REPEATED:
            return False
        wait_s = max(wait_s, failed.retry_after_s or 0.0)
    now_s = time.perf_counter()
    resting = [r.endpoint.retry_in_s(now_s) for r in job.group.routes]
    wait_s = max(wait_s, min(resting, default=0.0))
    if wait_s > longest_s or (until_s and now_s + wait_s >= until_s):
        return False
    await asyncio.sleep(wait_s)
    job.upstream_s += time.perf_counter() - now_s
    return True


class Run:
    """One try at one endpoint: what it holds there, and its entry in the books, made exactly once."""

    __slots__ = ("_open", "_share", "chain", "cut_s", "deadline_cut", "job", "route", "started_s", "timeouts")

    def __init__(self, job: Job, route: Route, cap: Cap, until_s: float) -> None:
        chain = route.chain(job.call.api)
        assert chain is not None  # noqa: S101 - only feasible routes get here
        endpoint = route.endpoint
        now_s = self.started_s = time.perf_counter()
        self.job = job
        self.route = route
        self.chain = chain
        self.cut_s = until_s
        """When the answer ends with what there is (``perf_counter``); 0 for never."""
        if cap.cut_s is not None:
            self.cut_s = min(until_s or now_s + cap.cut_s, now_s + cap.cut_s)
        self.deadline_cut = bool(until_s) and self.cut_s == until_s
        timeouts = endpoint.timeouts
        if self.cut_s:
            timeouts = timeouts._replace(connect_s=max(0.001, min(timeouts.connect_s, self.cut_s - now_s)))
        self.timeouts: Timeouts = timeouts
        endpoint.circuit.begin(now_s)
        endpoint.in_flight += 1
        self._share = endpoint.clock.start(now_s)
        self._open = True

    def pool(self) -> Pool:
        """The connections of the endpoint. Raises ``TransportFailure`` while it is not running."""
        pool = self.route.endpoint.pool
        if pool is None:
            raise TransportFailure("refused", "The endpoint is not running.")
        return pool

    def server_s(self) -> float:
        """Ends the try at the endpoint; the server-seconds it used."""
        self._open = False
        endpoint = self.route.endpoint
        endpoint.in_flight -= 1
        return endpoint.clock.stop(self._share, time.perf_counter())

    def settle(self, usage: Usage, finish: str | None, *, broken: str | None = None, cut: bool = False) -> None:
        """An answer, whole or in part, was produced."""
        endpoint = self.route.endpoint
        now_s = time.perf_counter()
        if broken is None:
            endpoint.circuit.succeeded()
        else:
            endpoint.circuit.failed(now_s)
        self.job.settle(
            "ok" if broken is None else "failed",
            usage,
            self.server_s(),
            finish=finish,
            failure=broken,
            duration_s=now_s - self.started_s,
            censored=cut or broken is not None,
        )

    def failed(self, failure: UpstreamAnswer | TransportFailure) -> None:
        """Nothing was produced; what the endpoint's breaker, the policy and the books make of it."""
        job, endpoint = self.job, self.route.endpoint
        now_s = time.perf_counter()
        duration_s = now_s - self.started_s
        job.upstream_s += duration_s
        server_s = self.server_s()
        if isinstance(failure, UpstreamAnswer):
            status = failure.status
            if status == 429 and failure.retry_after_s is not None:
                rest_s = min(failure.retry_after_s, endpoint.config.breaker.max_open_s)
                endpoint.rests_until_s = now_s + rest_s
            if status in _RETRIED and status != 404:
                endpoint.circuit.failed(now_s, wait_s=failure.retry_after_s)
            else:
                endpoint.circuit.succeeded()
            job.settle(
                "failed", None, server_s, failure=f"status {status}", http_status=status, duration_s=duration_s
            )
        elif failure.phase == "deadline":
            endpoint.circuit.cancelled()
            produced = job.estimate(0, 0, None)
            job.settle("timeout", produced, server_s, failure="deadline", duration_s=duration_s, censored=True)
        else:
            endpoint.circuit.failed(now_s)
            timed_out = failure.kind == "timeout"
            words = f"timeout {failure.phase}" if timed_out else failure.kind
            job.settle(
                "timeout" if timed_out else "failed", None, server_s, failure=words, duration_s=duration_s
            )

    def abandoned(self, usage: Usage) -> None:
        """The client went away: the upstream was told to stop, what it made until then is booked."""
        self.route.endpoint.circuit.cancelled()
        duration_s = time.perf_counter() - self.started_s
        self.job.settle(
            "cancelled", usage, self.server_s(), failure="cancelled", duration_s=duration_s, censored=True
        )

    def end(self) -> None:
        """Whatever happened, nothing stays held."""
        if self._open:
            self.route.endpoint.circuit.cancelled()
            self.server_s()


async def _attempt(job: Job, route: Route, cap: Cap, until_s: float) -> None:
    """One try at one endpoint, to the end of the answer. Raises if nothing was sent to the client."""
    call = job.call
    run = Run(job, route, cap, until_s)
    try:
        if call.stream or (run.cut_s and call.api_generates):
            # An answer that may have to be cut is streamed from the upstream even if the client wants it whole.
            await _streamed(run, cap)
        else:
            await _whole(run, cap)
    except (UpstreamAnswer, TransportFailure) as failure:
        run.failed(failure)
        if isinstance(failure, TransportFailure) and failure.phase == "deadline":
            raise Deadline(run.deadline_cut) from None
        raise
    finally:
        run.end()


async def _whole(run: Run, cap: Cap) -> None:
    """Ask for a whole answer and pass it on."""
    job, route, call, spoken = run.job, run.route, run.job.call, run.chain[-1]
    request = _request(run, cap, streamed=False)
    loop = asyncio.get_running_loop()
    exchange = Exchange(loop, run.timeouts)
    try:
        pool = run.pool()
        reused = await pool.send(exchange, request)
        try:
            await exchange.answered()
        except TransportFailure:
            if not stale(exchange, reused):
                raise
            exchange = Exchange(loop, run.timeouts)
            await pool.send(exchange, request, fresh=True)
            await exchange.answered()
    except asyncio.CancelledError:
        exchange.abort()
        if exchange.sent_s:
            run.abandoned(job.estimate(0, 0, None))
        raise
    done_s = time.perf_counter()
    body = _decoded(exchange)
    if exchange.status != 200:
        raise UpstreamAnswer(exchange.status, body, spoken, retry_after_s(exchange))
    try:
        usage, finish, chars = read_usage(spoken, body)
    except ValueError:
        raise TransportFailure("malformed", "The upstream's answer is not valid JSON.", sent=True) from None
    if len(run.chain) > 1:
        body = translation.response(run.chain, body, call.model)
    if usage is None:
        usage = job.estimate(0, chars, None)
    job.upstream_s += done_s - exchange.sent_s
    run.settle(usage, finish)
    job.responder.send(200, job.headers(_JSON + limits_headers(job), cost=True), body)
    _answered(job, 200)


async def _streamed(run: Run, cap: Cap) -> None:
    """Ask for a stream and pass it on, or make one whole answer of it."""
    job, route, call, chain = run.job, run.route, run.job.call, run.chain
    spoken = chain[-1]
    request = _request(run, cap, streamed=True)
    loop = asyncio.get_running_loop()
    reader = stream_reader(spoken)

    def cost_json() -> bytes:
        usage = reader.usage or job.estimate(reader.output_events, reader.output_chars, None)
        units = route.units(route.price.units(usage) if route.price else None, time.perf_counter() - run.started_s)
        mark = "unknown" if units is None else "estimated" if usage.estimated or route.machine else "measured"
        amount = "" if units is None else f'"cost_usd":"{usd(units)}",'
        return f'{{"decision_id":"{job.id}",{amount}"cost_mark":"{mark}"}}'.encode()

    def produced() -> Usage:
        known = reader.usage
        if known is not None and reader.usage_final:
            return known
        return job.estimate(reader.output_events, reader.output_chars, known)

    def relay_to(sent_before: bool) -> Relay:
        nonlocal reader
        if sent_before:
            reader = stream_reader(spoken)
        relay = Relay(
            loop,
            run.timeouts,
            reader,
            keep_usage=call.include_usage or not call.stream,
            translator=translation.stream(chain, call) if len(chain) > 1 else None,
            cost_json=cost_json,
            error_event=lambda error: translation.error_event(error, call.api, job.request_id),
            whole_mark=_WHOLE_MARK.get(call.api, b""),
        )
        relay.deadline_s = run.cut_s
        return relay

    relay = relay_to(False)
    try:
        pool = run.pool()
        reused = await pool.send(relay, request)
        try:
            await relay.first()
        except TransportFailure:
            if not stale(relay, reused):
                raise
            relay = relay_to(True)
            await pool.send(relay, request, fresh=True)
            await relay.first()
    except asyncio.CancelledError:
        relay.abort()
        if relay.sent_s:
            run.abandoned(job.estimate(reader.output_events, reader.output_chars, None))
        raise
    if relay.status != 200:
        raise UpstreamAnswer(relay.status, _decoded(relay), spoken, retry_after_s(relay))
    first_s = time.perf_counter()
    job.upstream_s += first_s - relay.sent_s
    route.meters.first_token_s.observe(first_s - job.started_s)

    assemble = assembler(call.api) if run.cut_s else None
    try:
        if call.stream:
            await _pass_on(job, relay, assemble)
        elif assemble is not None:
            assemble.write(relay.go_live(assemble))
            await relay.answered()
    except asyncio.CancelledError:
        relay.abort()
        run.abandoned(produced())
        raise
    except TransportFailure as failure:
        if failure.phase == "deadline" and assemble is not None:
            usage = produced()
            run.settle(usage, "length", cut=True)
            _cut(run, assemble, usage)
        else:
            run.settle(produced(), reader.finish_reason, broken=failure.kind)
            if call.stream:
                job.responder.finish()
                _answered(job, 200)
            else:
                # Nothing has been sent yet, but the tokens are spent: asking again would spend them twice.
                raise errors.StreamBrokenError(str(failure)) from None
        return
    run.settle(produced(), reader.finish_reason)
    if call.stream:
        job.responder.finish()
    elif assemble is not None:
        job.responder.send(200, job.headers(_JSON + limits_headers(job), cost=True), assemble.body(produced(), cut=False))
    _answered(job, 200)


class _Tee:
    """Writes to the client and to the assembler that could close its stream."""

    __slots__ = ("_assembler", "_responder")

    def __init__(self, responder: Responder, assembler: Assembler) -> None:
        self._responder = responder
        self._assembler = assembler

    def write(self, data: bytes) -> None:
        self._assembler.write(data)
        self._responder.write(data)


async def _pass_on(job: Job, relay: Relay, assemble: Assembler | None) -> None:
    """Start the client's stream and wait for its end."""
    responder = job.responder
    headers = job.headers(_SSE + limits_headers(job) + "x-apportion-cost-mark: unknown\r\n", cost=False)
    responder.on_pause = relay.pause
    responder.on_drain = relay.resume
    if assemble is None:
        first = relay.go_live(responder)
    else:
        first = relay.go_live(_Tee(responder, assemble))
        assemble.write(first)
    responder.start(200, headers, first)
    if responder.paused:
        relay.pause()
    await relay.answered()


def _cut(run: Run, assemble: Assembler, usage: Usage) -> None:
    """End an answer with what there is, because its time (or its money) is over."""
    job, call = run.job, run.job.call
    name = "deadline" if run.deadline_cut else "max-usd"
    if call.stream:
        note = b': apportion {"%b":"exceeded","decision_id":"%b"}\n\n' % (name.encode(), job.id.encode())
        job.responder.finish(note + assemble.closing(usage, include_usage=call.include_usage))
    else:
        extra = f"{_JSON}x-apportion-{name}: exceeded\r\n{limits_headers(job)}"
        job.responder.send(200, job.headers(extra, cost=True), assemble.body(usage, cut=True))
    _answered(job, 200)


def _answered(job: Job, status: int) -> None:
    job.meters.answered(job.call.api, job.group.name, status)
    job.finished()


def _request(run: Run, cap: Cap, *, streamed: bool) -> bytes:
    """The request as it goes to the endpoint."""
    job, route, call = run.job, run.route, run.job.call
    body = _body(job, route, run.chain, cap, streamed)
    return route.endpoint.request(run.chain[-1], body, call.request.headers)


def _body(job: Job, route: Route, chain: tuple[Api, ...], cap: Cap, streamed: bool) -> bytes:
    """The request's body in the endpoint's own dialect."""
    call = job.call
    fields = dict(call.fields)
    if len(chain) == 1:
        fields["model"] = msgspec.Raw(route.model_json)
    api = call.api
    if cap.output_tokens is not None:
        names = CAP_FIELDS[api]
        given = [name for name in names if name in fields]
        hosted = "openai.com" in (route.endpoint.config.base_url or "")
        written = given or ([names[0]] if hosted or len(names) == 1 else [names[-1]])
        for name in written:
            fields[name] = msgspec.Raw(str(cap.output_tokens).encode())
    if streamed and not call.stream:
        fields["stream"] = _TRUE
    if len(chain) > 1:
        body, dropped = translation.request(chain, fields, route, streamed)
        if dropped:
            job.dropped = dropped
        return body
    if streamed and not call.include_usage and api in ("chat", "completions") and route.endpoint.config.stream_usage:
        options = fields.get("stream_options")
        if options is None or bytes(options) == b"null":
            fields["stream_options"] = _INCLUDE_USAGE
        else:
            known = msgspec.json.decode(options, type=dict[str, msgspec.Raw])
            known["include_usage"] = _TRUE
            fields["stream_options"] = msgspec.Raw(encode_object(known))
    return encode_object(fields)


def _decoded(exchange: Exchange) -> bytes:
    """The body of an answer, inflated if the upstream compressed it although it was not asked to."""
    body = exchange.body()
    coding = (exchange.header(b"content-encoding") or b"identity").lower()
    if coding == b"identity" or not body:
        return body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        raise TransportFailure("malformed", f"The upstream's content encoding {coding!r} is not read.", sent=True)
    try:
        inflate = zlib.decompressobj(32 + zlib.MAX_WBITS)
        inflated = inflate.decompress(body, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise TransportFailure("malformed", f"The upstream's gzip is broken: {error}.", sent=True) from None
    if inflate.unconsumed_tail:
        raise TransportFailure("too_large", f"The answer inflates to over {_MAX_INFLATED_BYTES} bytes.", sent=True)
    return inflated


def _exhausted(job: Job, failed: UpstreamAnswer | TransportFailure | None) -> errors.GatewayError | UpstreamAnswer:
    """What the client is told when no attempt brought an answer."""
    if isinstance(failed, UpstreamAnswer):
        return failed
    times = f" ({job.attempts} attempts)" if job.attempts > 1 else ""
    if failed is not None and failed.kind == "timeout":
        return errors.UpstreamTimeoutError(f"{failed}{times}")
    return errors.UpstreamError(f"{failed}{times}")


def _impossible(job: Job) -> errors.GatewayError:
    """Why no route may be asked at all."""
    call, routes = job.call, job.group.routes
    now_s = time.perf_counter()
    speaking = [r for r in routes if r.chain(call.api) is not None]
    if not speaking:
        return errors.UnsupportedError(
            f"No endpoint of model {job.group.name!r} answers the {call.api!r} API.", field="model"
        )
    if call.constraints.max_joules is not None:
        return errors.ConstraintError(
            "'max_joules' cannot be promised: the energy of no endpoint of this model is known.",
            field="apportion.max_joules",
            fix="Leave the constraint out.",
            details={"constraint": "max_joules", "best": None},
        )
    ready = [r for r in speaking if r.endpoint.available(now_s)]
    if not ready:
        wait_s = max(0.05, min(r.endpoint.retry_in_s(now_s) for r in speaking))
        return errors.NoEndpointError(
            f"Every endpoint of model {job.group.name!r} is out of rotation after failures.",
            retry_after_s=wait_s,
        )
    return job.unaffordable(ready)
