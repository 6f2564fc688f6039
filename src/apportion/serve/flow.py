"""How a request is answered: options, decision, reservation, call, answer, books. Straight through.

Failures before any content lead to the next endpoint, or after a pause to another try; the client then sees
either a whole answer or one error with a real status code. After content nothing is retried.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from apportion.core import choosing
from apportion.core.outcome import Status
from apportion.measure.capping import NO_CAP, Cap
from apportion.measure.usage import Usage
from apportion.serve import books, errors, guarding, identity, translation
from apportion.serve.assemble import Assembler, assembler
from apportion.serve.call import CAP_FIELDS, NO_CONSTRAINTS, STREAMED, Api, encode_object
from apportion.serve.continuing import Live
from apportion.serve.errors import QueueFull
from apportion.serve.fitness import unfit
from apportion.serve.http.client import Exchange, Pool, Timeouts, TransportFailure, stale
from apportion.serve.http.server import Responder
from apportion.serve.job import Job, limits_headers
from apportion.serve.ledger.ledger import Refused
from apportion.serve.queue import Place
from apportion.serve.records import MOVED, usd
from apportion.serve.relay import Relay
from apportion.serve.runtime import Route
from apportion.serve.settlement import Settlements
from apportion.serve.upstream import Endpoint, backoff_s, retry_after_s
from apportion.serve.wire import StreamReader, read_usage, stream_reader

if TYPE_CHECKING:
    from apportion.serve.translate import Translation

_JSON: Final = "content-type: application/json\r\n"
_SSE: Final = (
    "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_RETRIED: Final = frozenset(
    (401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
)
"""Upstream statuses after which another endpoint may do better."""
_BROKEN: Final = ("reset", "malformed", "too_large")
_FAULTS: Final = _RETRIED - {403, 404, 409, 425}
"""Those that speak against the endpoint itself; the others a client can provoke."""
_REPEATED: Final = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
"""Those after which even the same endpoint may."""
_RESERVE_TRIES: Final = 4
_ADMIT_AGAIN_S: Final = 5.0
"""When to come again after not being let in; nobody knows when prices will have fallen."""
_LAST_WORDS_S: Final = 1.0
"""How long a finished answer whose client has left is waited for to say what it used."""
_MAX_INFLATED_BYTES: Final = 64 * 2**20
_INCLUDE_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')
_TRUE: Final = msgspec.Raw(b"true")
_ONE: Final = msgspec.Raw(b"1")
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


async def answer(job: Job, rng: random.Random, settlements: Settlements) -> None:
    """Answer ``job``. Raises ``GatewayError`` if nothing has been sent; everything else is dealt with here."""
    call = job.call
    retries = job.group.config.retries
    deadline_s = call.constraints.deadline_s
    until_s = job.started_s + deadline_s if deadline_s is not None else 0.0
    tried: list[Route] = []
    failed: UpstreamAnswer | TransportFailure | QueueFull | None = None
    paid = False
    while True:
        if until_s and time.perf_counter() >= until_s:
            raise _out_of("deadline_s")
        routes, caps = await _offer(job, tried, settlements)
        if not routes and tried:
            tried.clear()
            wait_s = backoff_s(job.tries - 1, retries.backoff_s, retries.max_backoff_s, rng)
            # What an endpoint has worked for is not asked of it, and paid, again.
            if paid or not await _pause(job, failed, wait_s, retries.max_backoff_s, until_s):
                raise _exhausted(job, failed)
            job.now = time.time()
            routes, caps = await _offer(job, tried, settlements)
        if not routes:
            raise _exhausted(job, failed) if failed is not None else _impossible(job)
        if not job.tries and job.only is None and not job.continues:
            admit(job, routes)
        job.tries += 1
        route, cap = await _reserve(job, routes, caps, settlements)
        try:
            place = await _wait(job, route, until_s, settlements)
        except (TransportFailure, QueueFull) as full:
            failed = full
            tried.append(route)
            continue
        run = Run(job, route, cap, until_s, settlements)
        left: Live | None = None
        try:
            left = await _asked(run, cap)
            if left is None:
                return
        except (UpstreamAnswer, TransportFailure) as failure:
            run.failed(failure)
            if run.out_of_time(failure):
                raise _out_of("deadline_s" if run.deadline_cut else "max_usd") from None
            if job.tries >= retries.attempts or not _worth_another(failure):
                raise _exhausted(job, failure) from None
            failed = failure
            paid = paid or _paid(failure)
            tried.append(route)
        finally:
            run.end(place)
        if left is not None and job.mover is not None:
            await job.mover.go_on(job, left)
            return


async def _asked(run: Run, cap: Cap) -> Live | None:
    """Ask one endpoint, and pass on what it answers; returns a stream whose rest is wanted elsewhere."""
    job = run.job
    if job.call.stream or ((run.cut_s or job.guarded) and job.call.api in STREAMED):
        # An answer that may have to be cut is streamed from the upstream even if the client wants it whole.
        return await _streamed(run, cap)
    await _whole(run, cap)
    return None


def _worth_another(failure: UpstreamAnswer | TransportFailure) -> bool:
    """Whether another endpoint may do better."""
    return failure.status in _RETRIED if isinstance(failure, UpstreamAnswer) else True


def _paid(failure: UpstreamAnswer | TransportFailure) -> bool:
    """Whether the endpoint had worked on the request when it failed."""
    if isinstance(failure, UpstreamAnswer) or not failure.sent:
        return False
    return failure.kind in _BROKEN or failure.phase == "total"


async def offered(job: Job, settlements: Settlements) -> list[Route]:
    """The routes that may be asked. Raises the reason why if there is none."""
    routes, _ = await _offer(job, [], settlements)
    if not routes:
        raise _impossible(job)
    return routes


async def _offer(
    job: Job, tried: list[Route], settlements: Settlements
) -> tuple[list[Route], list[Cap] | None]:
    """The routes that may be asked, and their caps, after a second look where budgets are short."""
    offer = _feasible(job, tried)
    if job.tight:
        # What others have spent must be known before less than was asked for is promised.
        settlements.flush()
        await job.look([route for route in job.routes if route not in tried])
        job.tight = False
        offer = _feasible(job, tried)
    return offer


async def _reserve(
    job: Job, routes: list[Route], caps: list[Cap] | None, settlements: Settlements
) -> tuple[Route, Cap]:
    """Decide for one of ``routes`` and hold what it may cost. Raises the error of a budget that has not so much."""
    route = job.decide(routes)
    cap = NO_CAP if caps is None else caps[routes.index(route)]
    if job.bare is not None and caps is not None:  # with examples it is longer than what was looked at
        larger = job.cap(route)
        if larger is None:
            job.ask_instead(job.bare)
            job.bare = None
        else:
            cap = larger
    for again in range(_RESERVE_TRIES):
        try:
            await job.reserve(route, cap, settlements.flush)
            return route, cap
        except Refused as refusal:
            # Others were quicker: what is left may do for a shorter answer.
            smaller = job.cap(route) if caps is not None else None
            if smaller is None or again == _RESERVE_TRIES - 1 or not _less(smaller, cap):
                raise books.refused(refusal) from None
            cap = smaller
    raise AssertionError("unreachable")


def _less(smaller: Cap, cap: Cap) -> bool:
    """Whether a cap promises less than another."""
    return (
        (smaller.most_units or 0) < (cap.most_units or 0)
        or (smaller.tokens or 0) < (cap.tokens or 0)
        or (smaller.cut_s is not None and (cap.cut_s is None or smaller.cut_s < cap.cut_s))
    )


def admit(job: Job, routes: list[Route]) -> None:
    """Ask the group's admission policy, if it has one. Raises ``OverloadedError`` for who is not let in."""
    policy = job.group.methods.admit
    if policy is None:
        return
    state = job.look_at(routes)
    used, resource = job.budget_used()
    decision = choosing.ask_admission(
        policy,
        state,
        budget_used=used,
        budget_resource=resource,
        deadline_s=job.call.constraints.deadline_s,
        tenant=identity.tenant(job.key),
    )
    job.admission = decision
    if decision.action in (None, "refuse"):
        raise errors.OverloadedError(
            f"Not let in now: {decision.why}.",
            fix="Try again later, or offer more (`apportion.effort`, `apportion.priority`).",
            retry_after_s=_ADMIT_AGAIN_S,
        )


async def _wait(job: Job, route: Route, until_s: float, settlements: Settlements) -> Place | None:
    """Wait in the queue of the route's endpoint, if it has one. Raises the queue's refusals."""
    queue = route.endpoint.queue
    if queue is None:
        return None
    try:
        place = await queue.enter(job.ticket(route, until_s, waits=queue.running >= queue.slots))
    except BaseException as error:
        job.give_back()
        if isinstance(error, errors.GatewayError):
            why = "full" if isinstance(error, QueueFull) else "too_late"
            settlements.meters.queue_refused.at(route.endpoint.name, why).add()
        raise
    job.waited_s = place.waited_s
    job.upstream_s += place.waited_s
    return place


def _out_of(name: str) -> errors.DeadlineError:
    return errors.DeadlineError(
        f"The request's '{name}' was used up before anything was produced.", field=f"apportion.{name}"
    )


def _feasible(job: Job, tried: list[Route]) -> tuple[list[Route], list[Cap] | None]:
    """The routes that may be asked now, and what each may produce under the dollar limits (None: no limits)."""
    now_s = time.perf_counter()
    call = job.call
    api, constraints = call.api, call.constraints
    routes = [
        route
        for route in job.routes
        if route.endpoint.available(now_s) and route.spoken_for(api) is not None and route not in tried
    ]
    access = job.runtime.access(job.key)
    if access.endpoints is not None:
        routes = [route for route in routes if route.endpoint.name in access.endpoints]
    if job.group.picky or access.require or constraints.require:
        routes = [route for route in routes if unfit(job, route) is None]
    if constraints is NO_CONSTRAINTS and not job.runtime.books.caps:
        return routes, None
    within = [(route, cap) for route in routes if (cap := job.cap(route)) is not None]
    return [route for route, _ in within], [cap for _, cap in within]


async def _pause(
    job: Job,
    failed: UpstreamAnswer | TransportFailure | QueueFull | None,
    wait_s: float,
    longest_s: float,
    until_s: float,
) -> bool:
    """Wait before asking the same endpoints again; False if that is pointless."""
    if isinstance(failed, QueueFull):
        return False
    if isinstance(failed, UpstreamAnswer):
        if failed.status not in _REPEATED:
            return False
        wait_s = max(wait_s, failed.retry_after_s or 0.0)
    now_s = time.perf_counter()
    resting = [r.endpoint.retry_in_s(now_s) for r in job.routes]
    wait_s = max(wait_s, min(resting, default=0.0))
    if wait_s > longest_s or (until_s and now_s + wait_s >= until_s):
        return False
    await asyncio.sleep(wait_s)
    job.upstream_s += time.perf_counter() - now_s
    return True


class Run:
    """One try at one endpoint: what it holds there, and its entry in the books, made exactly once."""

    __slots__ = (
        "_open",
        "_settlements",
        "_share",
        "cut_s",
        "deadline_cut",
        "goes_on",
        "job",
        "reader",
        "route",
        "spoken",
        "started_s",
        "timeouts",
        "translation",
    )

    def __init__(self, job: Job, route: Route, cap: Cap, until_s: float, settlements: Settlements) -> None:
        spoken = route.spoken_for(job.call.api)
        assert spoken is not None  # noqa: S101 - only feasible routes get here
        endpoint = route.endpoint
        now_s = self.started_s = time.perf_counter()
        self._settlements = settlements
        self.job = job
        self.route = route
        self.spoken = spoken
        self.translation: Translation | None = None
        self.reader: StreamReader | None = None
        """Of the stream that was asked for, if one was."""
        self.cut_s = until_s
        """When the answer ends with what there is (``perf_counter``); 0 for never."""
        if cap.cut_s is not None:
            self.cut_s = min(until_s or now_s + cap.cut_s, now_s + cap.cut_s)
        self.deadline_cut = bool(until_s) and self.cut_s == until_s
        timeouts = endpoint.timeouts
        if self.cut_s:
            timeouts = timeouts._replace(connect_s=max(0.001, min(timeouts.connect_s, self.cut_s - now_s)))
        self.timeouts: Timeouts = timeouts
        self.goes_on = job.mover is not None and job.mover.can(job, spoken)
        """Whether its stream can be taken elsewhere when it breaks or must leave."""
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

    def server_s_until(self, now_s: float) -> float:
        """The server-seconds used so far."""
        return self.route.endpoint.clock.used(self._share, now_s)

    def server_s(self, now_s: float) -> float:
        """Ends the try at the endpoint; the server-seconds it used."""
        self._open = False
        endpoint = self.route.endpoint
        endpoint.in_flight -= 1
        return endpoint.clock.stop(self._share, now_s)

    def settle(
        self,
        usage: Usage,
        finish: str | None,
        *,
        broken: str | None = None,
        cut: bool = False,
        events: int = 0,
        size: int = 0,
    ) -> None:
        """An answer, whole or in part, was produced. ``broken`` is why it ended early, if it did."""
        endpoint = self.route.endpoint
        now_s = time.perf_counter()
        if broken is None or broken == MOVED:
            endpoint.circuit.succeeded(started_s=self.started_s)
        else:
            endpoint.circuit.failed(now_s, started_s=self.started_s)
        attempt = self.job.attempted(
            "ok" if broken is None else "cancelled" if broken == MOVED else "failed",
            usage,
            self.server_s(now_s),
            self.started_s,
            now_s,
            finish=finish,
            failure=broken,
            censored=cut or broken is not None or self.job.continues,
        )
        attempt.output_events, attempt.output_bytes = events, size

    def failed(self, failure: UpstreamAnswer | TransportFailure) -> None:
        """Nothing was produced; what the endpoint's breaker, the policy and the books make of it."""
        job, endpoint, started_s = self.job, self.route.endpoint, self.started_s
        now_s = time.perf_counter()
        job.upstream_s += now_s - started_s
        server_s = self.server_s(now_s)
        if isinstance(failure, UpstreamAnswer):
            status = failure.status
            if status == 429 and failure.retry_after_s is not None:
                rest_s = min(failure.retry_after_s, endpoint.config.breaker.max_open_s)
                endpoint.rests_until_s = now_s + rest_s
            if status in _FAULTS:
                endpoint.circuit.failed(now_s, wait_s=failure.retry_after_s, started_s=started_s)
            elif status in _RETRIED:
                endpoint.circuit.cancelled(started_s=started_s)
            else:
                endpoint.circuit.succeeded(started_s=started_s)
            words = f"status {status}"
            attempt = job.attempted(
                "failed", None, server_s, started_s, now_s, failure=words, http_status=status
            )
        elif self.out_of_time(failure):
            endpoint.circuit.cancelled(started_s=started_s)
            usage = self._worked(failure)
            attempt = job.attempted(
                "timeout", usage, server_s, started_s, now_s, failure="deadline", http_status=0, censored=True
            )
        else:
            if failure.kind == "busy":
                endpoint.circuit.cancelled(started_s=started_s)
            else:
                endpoint.circuit.failed(now_s, started_s=started_s)
            timed_out = failure.kind == "timeout"
            words = f"timeout {failure.phase}" if timed_out else failure.kind
            outcome: Status = "timeout" if timed_out else "failed"
            attempt = job.attempted(
                outcome, self._worked(failure), server_s, started_s, now_s, failure=words, http_status=0
            )
        self._settlements.attempt(job, attempt, time.time())

    def stopped(self) -> None:
        """The guard has ended the answer."""
        self._settlements.meters.guarded.at(self.job.group.name, "stopped").add()

    def out_of_time(self, failure: UpstreamAnswer | TransportFailure) -> bool:
        """Whether it was the request's own time (or money) that ended the try."""
        if isinstance(failure, UpstreamAnswer):
            return False
        late = self.cut_s > 0.0 and time.perf_counter() >= self.cut_s - 0.005
        return failure.phase == "deadline" or (late and failure.phase == "connect")

    def _worked(self, failure: TransportFailure) -> Usage | None:
        """What an endpoint has to be presumed to have produced although nothing of it could be used."""
        if not failure.sent or failure.kind in ("closed", "error"):
            return None
        if self.reader is not None:  # a stream would have brought what there was
            return _produced(self.job, self.reader)
        return self.job.presumed()

    def abandoned(self, usage: Usage) -> None:
        """The client went away: the upstream was told to stop, what it made until then is booked."""
        self.route.endpoint.circuit.cancelled(started_s=self.started_s)
        now_s = time.perf_counter()
        server_s = self.server_s(now_s)
        self.job.attempted(
            "cancelled", usage, server_s, self.started_s, now_s, failure="cancelled", censored=True
        )

    def end(self, place: Place | None) -> None:
        """Whatever happened, nothing stays held, and the next in the queue may start."""
        if place is not None:
            attempts = self.job.attempts
            place.leave(None, attempts[-1].status if attempts else "cancelled")
            self.route.endpoint.served()
        if self._open:
            self.route.endpoint.circuit.cancelled(started_s=self.started_s)
            self.server_s(time.perf_counter())
            self.job.give_back()


async def _whole(run: Run, cap: Cap) -> None:
    """Ask for a whole answer and pass it on."""
    job, spoken = run.job, run.spoken
    request = _request(run, cap, streamed=False)
    loop = asyncio.get_running_loop()
    exchange = Exchange(loop, run.timeouts)
    exchange.deadline_s = run.cut_s
    try:
        pool = run.pool()
        connection = pool.take()
        if connection is not None:
            connection.run(exchange, request)
        else:
            await pool.send(exchange, request)
        await exchange.done
        if exchange.failure is not None and stale(exchange, connection is not None):
            exchange = Exchange(loop, run.timeouts)
            exchange.deadline_s = run.cut_s
            await pool.send(exchange, request, fresh=True)
            await exchange.done
    except asyncio.CancelledError:
        exchange.abort()
        if exchange.sent_s:
            run.abandoned(job.presumed())
        raise
    if exchange.failure is not None:
        raise exchange.failure
    done_s = time.perf_counter()
    if exchange.status != 200:
        raise _not_ok(exchange, spoken)
    body, usage, finish, size = _read_whole(exchange, spoken)
    if run.translation is not None:
        body = translation.response(run.translation, body)
    if usage is None or usage.input_tokens == 0:
        usage = job.estimate(0, size, usage)
    job.upstream_s += done_s - exchange.sent_s
    run.settle(usage, finish, size=size)
    job.responder.send(200, job.headers(_JSON + limits_headers(job), cost=True), body)
    job.keep(body)
    job.ended(200)


def _read_whole(exchange: Exchange, spoken: Api) -> tuple[bytes, Usage | None, str | None, int]:
    """Body, usage, finish reason and size of a whole answer. Raises ``TransportFailure`` if it is none."""
    body = exchange.body()
    try:
        usage, finish, size = read_usage(spoken, body)
    except ValueError:
        body = _decoded(exchange)  # compressed, although it was not asked to be, or broken
        try:
            usage, finish, size = read_usage(spoken, body)
        except ValueError:
            raise TransportFailure(
                "malformed", "The upstream's answer is not valid JSON.", sent=True
            ) from None
    if usage is None or finish is None:
        wrong = translation.error_in(body)
        if wrong is not None:
            raise TransportFailure("error", f"The upstream reported an error: {wrong}", sent=True)
    return body, usage, finish, size


async def _streamed(run: Run, cap: Cap) -> Live | None:
    """Ask for a stream and pass it on, or make one whole answer of it; returns one whose rest is wanted elsewhere."""
    job, call = run.job, run.job.call
    relay = await _open(run, _request(run, cap, streamed=True))
    first_s = time.perf_counter()
    job.first_chunk_s = first_s - relay.sent_s
    job.upstream_s += job.first_chunk_s
    run.route.meters.first_token_s.observe(first_s - job.started_s)
    if relay.reader.usage is not None:
        job.shrink(relay.reader.usage)
    copied = run.cut_s or job.guarded or job.cache_turn is not None or run.goes_on
    assemble = assembler(call.api) if copied and call.api in STREAMED else None
    if run.goes_on and assemble is not None:
        job.live = Live(relay, assemble, run.route)
    try:
        if call.stream:
            await _pass_on(job, relay, assemble)
        elif assemble is not None:
            try:
                assemble.write(relay.go_live(assemble))
                await relay.answered()
            finally:
                job.upstream_s += (
                    time.perf_counter() - first_s
                )  # it is the upstream that is waited for, not us
    except asyncio.CancelledError:
        try:
            await relay.last_words(_LAST_WORDS_S)
        finally:
            relay.abort()
            run.abandoned(_produced(job, relay.reader))
        raise
    except TransportFailure as failure:
        return _broken(run, relay.reader, assemble, failure)
    else:
        _whole_stream(run, relay.reader, assemble)
    finally:
        job.live = None
    job.ended(200)
    return None


def _broken(
    run: Run, reader: StreamReader, assemble: Assembler | None, failure: TransportFailure
) -> Live | None:
    """The upstream's stream has ended early: it is cut, or goes on elsewhere, or its client is told."""
    job = run.job
    usage = _produced(job, reader)
    if failure.phase == "guard":
        run.stopped()
    if failure.phase in ("deadline", "guard") and assemble is not None:
        run.settle(usage, "length", cut=True)
        _cut(run, assemble, usage, "guard" if failure.phase == "guard" else "")
        return None
    if job.live is not None:
        counted = job.live.usage(job.call)
        if counted is not None and counted.output_tokens >= reader.output_events:
            usage = counted
        run.settle(usage, reader.finish_reason, broken=MOVED if failure.phase == "move" else failure.kind)
        return job.live
    run.settle(usage, reader.finish_reason, broken=failure.kind)
    if not job.call.stream:
        # Nothing has been sent yet, but the tokens are spent: asking again would spend them twice.
        raise errors.StreamBrokenError(str(failure)) from None
    job.responder.finish()
    job.ended(200)
    return None


def _whole_stream(run: Run, reader: StreamReader, assemble: Assembler | None) -> None:
    """The upstream's stream has ended as it should."""
    job = run.job
    usage = _produced(job, reader)
    run.settle(usage, reader.finish_reason, events=reader.output_events, size=reader.output_bytes)
    if job.call.stream:
        job.responder.finish()
        if assemble is not None and job.cache_turn is not None:
            job.keep(assemble.body(usage, cut=False))
    elif assemble is not None:
        headers = job.headers(_JSON + limits_headers(job), cost=True)
        body = assemble.body(usage, cut=False)
        job.responder.send(200, headers, body)
        job.keep(body)


async def _open(run: Run, request: bytes) -> Relay:
    """A stream whose first content is there. Raises ``TransportFailure`` or ``UpstreamAnswer`` if it has none."""
    job, call, spoken = run.job, run.job.call, run.spoken
    loop = asyncio.get_running_loop()
    relay: Relay | None = None
    try:
        for fresh in (False, True):
            reader = run.reader = stream_reader(spoken)
            relay = Relay(
                loop,
                run.timeouts,
                reader,
                keep_usage=call.include_usage or not call.stream,
                translator=None if run.translation is None else run.translation.stream(job.guessed_input()),
                cost_json=partial(_cost_json, run, reader),
                usage_chunk=partial(_usage_chunk, job, reader)
                if call.include_usage and call.api in ("chat", "completions")
                else None,
                error_event=lambda error: translation.error_event(error, call.api, job.request_id),
                whole_mark=_WHOLE_MARK.get(call.api, b"") if call.n == 1 else None,
                watch=guarding.watch(job) if job.guarded else None,
                temperature=guarding.temperature(call) if job.guarded else None,
                hide_logprobs=guarding.asks_logprobs(job, spoken),
                patient=run.goes_on,
            )
            relay.deadline_s = run.cut_s
            reused = await run.pool().send(relay, request, fresh=fresh)
            try:
                await relay.first()
                break
            except TransportFailure:
                if fresh or not stale(relay, reused):
                    raise
    except asyncio.CancelledError:
        if relay is not None and relay.sent_s:
            relay.abort()
            run.abandoned(job.estimate(0, 0, relay.reader.usage))
        raise
    assert relay is not None  # noqa: S101 - the loop has made one
    if relay.status != 200:
        raise _not_ok(relay, spoken)
    return relay


def _produced(job: Job, reader: StreamReader) -> Usage:
    """What a stream has used: as the upstream says, or as far as it came."""
    known = reader.usage
    if known is not None and reader.usage_final and known.input_tokens:
        return known
    return job.estimate(reader.output_events, reader.output_bytes, known)


def _usage_chunk(job: Job, reader: StreamReader) -> bytes:
    """The usage chunk that the client asked for and the upstream did not send, from the proxy's own count."""
    from apportion.serve.translate.usage import chat_usage

    chat = job.call.api == "chat"
    return msgspec.json.encode(
        {
            "id": ("chatcmpl-" if chat else "cmpl-") + job.request_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(job.now),
            "model": reader.model or job.call.model,
            "choices": [],
            "usage": chat_usage(_produced(job, reader)),
        }
    )


def _cost_json(run: Run, reader: StreamReader) -> bytes:
    """What is said about the cost inside the stream, just before its end."""
    job, route = run.job, run.route
    usage = _produced(job, reader)
    units: int | None = None
    if route.machine is not None:
        units = route.machine.units(run.server_s_until(time.perf_counter()))
    elif route.price is not None:
        units = route.price.units(usage)
    mark = "unknown" if units is None else "estimated" if usage.estimated else "measured"
    amount = "" if units is None else f'"cost_usd":"{usd(units)}",'
    return f'{{"decision_id":"{job.id}",{amount}"cost_mark":"{mark}"}}'.encode()


class Tee:
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
        first = relay.go_live(Tee(responder, assemble))
        assemble.write(first)
    responder.start(200, headers, first)
    if responder.paused:
        relay.pause()
    await relay.answered()


def _cut(run: Run, assemble: Assembler, usage: Usage, name: str) -> None:
    """End an answer with what there is, because its time (or its money) is over, or the guard has seen enough."""
    job, call = run.job, run.job.call
    name = name or ("deadline" if run.deadline_cut else "max-usd")
    if call.stream:
        note = b': apportion {"%b":"exceeded","decision_id":"%b"}\n\n' % (name.encode(), job.id.encode())
        job.responder.finish(note + assemble.closing(usage, include_usage=call.include_usage))
    else:
        extra = f"{_JSON}x-apportion-{name}: exceeded\r\n{limits_headers(job)}"
        job.responder.send(200, job.headers(extra, cost=True), assemble.body(usage, cut=True))
    job.ended(200)


def _request(run: Run, cap: Cap, *, streamed: bool) -> bytes:
    """The request as it goes to the endpoint, in the endpoint's own dialect."""
    job, route, call, spoken = run.job, run.route, run.job.call, run.spoken
    endpoint = route.endpoint
    tokens = cap.output_tokens
    if tokens is None and job.guarded_cap:
        tokens = call.max_output_tokens  # the guard's: each endpoint has its own field for it
    if spoken == call.api and not streamed and tokens is None:
        body = encode_object({**call.fields, "model": route.model_json})
        return endpoint.request(spoken, body, call.request.headers)
    fields = dict(call.fields)
    if tokens is not None:
        _write_cap(fields, call.api, tokens, endpoint)
    if spoken != call.api:
        run.translation = translation.translate(fields, route, call.api, spoken)
        job.dropped = run.translation.dropped
        ask_usage = endpoint.config.stream_usage
        body = translation.request(run.translation, spoken, streamed=streamed, ask_usage=ask_usage)
    else:
        fields["model"] = route.model_json
        if streamed:
            fields["stream"] = _TRUE
            if run.goes_on and endpoint.continues:
                fields["timings_per_token"] = _TRUE  # llama.cpp then counts tokens that it shows together
            if not call.include_usage and spoken in ("chat", "completions") and endpoint.config.stream_usage:
                _ask_usage(fields)
            if guarding.asks_logprobs(job, spoken):
                fields |= {"logprobs": _TRUE, "top_logprobs": _ONE}
        body = encode_object(fields)
    return endpoint.request(spoken, body, call.request.headers)


def _write_cap(fields: dict[str, msgspec.Raw], api: Api, tokens: int, endpoint: Endpoint) -> None:
    """Cap the output where the client capped it, else in the field that the endpoint is known to obey."""
    names = CAP_FIELDS[api]
    hosted = "openai.com" in (endpoint.config.base_url or "")
    for name in [n for n in names if n in fields] or [names[0] if hosted else names[-1]]:
        fields[name] = msgspec.Raw(str(tokens).encode())


def _ask_usage(fields: dict[str, msgspec.Raw]) -> None:
    options = fields.get("stream_options")
    if options is None or bytes(options) == b"null":
        fields["stream_options"] = _INCLUDE_USAGE
    else:
        known = msgspec.json.decode(options, type=dict[str, msgspec.Raw])
        known["include_usage"] = _TRUE
        fields["stream_options"] = msgspec.Raw(encode_object(known))


def _not_ok(exchange: Exchange, spoken: Api) -> UpstreamAnswer | TransportFailure:
    """What to make of an answer whose status is not 200."""
    if not 400 <= exchange.status < 600:
        return TransportFailure(
            "malformed", f"The upstream answered {exchange.status}, which is no answer.", sent=True
        )
    return UpstreamAnswer(exchange.status, _decoded(exchange), spoken, retry_after_s(exchange))


def _decoded(exchange: Exchange) -> bytes:
    """The body of an answer, inflated if the upstream compressed it although it was not asked to."""
    body = exchange.body()
    coding = exchange.header(b"content-encoding")
    if coding is None or coding.lower() == b"identity" or not body:
        return body
    if coding.lower() not in (b"gzip", b"x-gzip", b"deflate"):
        raise TransportFailure(
            "malformed", f"The upstream's content encoding {coding!r} is not read.", sent=True
        )
    try:
        inflate = zlib.decompressobj(32 + zlib.MAX_WBITS)
        inflated = inflate.decompress(body, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise TransportFailure("malformed", f"The upstream's gzip is broken: {error}.", sent=True) from None
    if inflate.unconsumed_tail:
        raise TransportFailure(
            "too_large", f"The answer inflates to over {_MAX_INFLATED_BYTES} bytes.", sent=True
        )
    return inflated


def _exhausted(
    job: Job, failed: UpstreamAnswer | TransportFailure | QueueFull | None
) -> errors.GatewayError | UpstreamAnswer:
    """What the client is told when no attempt brought an answer."""
    if isinstance(failed, QueueFull):
        return failed
    if isinstance(failed, UpstreamAnswer):
        if failed.status == 401:
            # The client's key is fine; and what an upstream says of a key may quote it.
            return errors.UpstreamError("The endpoint refused the gateway's own credentials (401).")
        return failed
    if failed is not None and failed.kind == "busy":
        return errors.OverloadedError(f"{failed}", retry_after_s=1.0)
    times = f" ({job.tries} attempts)" if job.tries > 1 else ""
    if failed is not None and failed.kind == "timeout":
        return errors.UpstreamTimeoutError(f"{failed}{times}")
    return errors.UpstreamError(f"{failed}{times}")


def _impossible(job: Job) -> errors.GatewayError:
    """Why no route may be asked at all."""
    call, routes = job.call, job.routes
    now_s = time.perf_counter()
    speaking = [r for r in routes if r.spoken_for(call.api) is not None]
    if not speaking:
        return errors.UnsupportedError(
            f"No endpoint of model {job.group.name!r} answers the {call.api!r} API.", field="model"
        )
    allowed = job.runtime.access(job.key).endpoints
    if allowed is not None:  # of the others nothing is told
        speaking = [route for route in speaking if route.endpoint.name in allowed]
    why = {route.endpoint.name: unfit(job, route) for route in speaking}
    if why and all(why.values()):
        raise errors.UnsupportedError(
            f"No endpoint of model {job.group.name!r} can answer this: "
            + "; ".join(f"{name}: {said}" for name, said in why.items())
            + ".",
            details={"constraint": "fit", "endpoints": why},
        )
    speaking = [r for r in speaking if why[r.endpoint.name] is None]
    if call.constraints.max_joules is not None and all(r.power is None for r in speaking):
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
