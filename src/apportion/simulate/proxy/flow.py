"""How a request is answered: options, decision, reservation, queue, work, books; the steps of `serve.flow`.

A request is a generator that yields where the proxy would wait, and is sent what it waited for.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from apportion.core import choosing, line, prospect
from apportion.core.option import Option
from apportion.core.outcome import Status
from apportion.measure.capping import NO_CAP, Cap
from apportion.measure.usage import Usage
from apportion.simulate.engine import Done, EngineError
from apportion.simulate.proxy.accounts import NO_LINES, Refused
from apportion.simulate.proxy.deciding import Ended, budget_used, cap, chosen, decide, held, look_at
from apportion.simulate.proxy.group import Route
from apportion.simulate.proxy.job import Attempt, Job, Task
from apportion.simulate.proxy.machines import Machine
from apportion.simulate.proxy.sites import Failure, Waits
from apportion.simulate.result import CUT, FAILED, OK, REFUSED, TIMEOUT

if TYPE_CHECKING:
    from apportion.simulate.proxy.proxy import Proxy

_RETRIED: Final = frozenset(
    (401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
)
"""Statuses after which another endpoint may do better."""
_FAULTS: Final = _RETRIED - {403, 404, 409, 425}
"""Those that speak against the endpoint itself."""
_REPEATED: Final = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
"""Those after which even the same endpoint may."""
_BROKEN: Final = ("reset", "malformed", "too_large")
_RESERVE_TRIES: Final = 4


def answer(proxy: Proxy, job: Job) -> Task:
    """Answer ``job``. Raises `Ended` if its client gets no answer."""
    retries = job.group.config.retries
    clock = proxy.clock
    tried: list[Route] = []
    failed: Failure | None = None
    paid = False
    while True:
        if job.until_s and clock.now_s >= job.until_s:
            raise Ended(TIMEOUT, "deadline")
        routes, caps = _offer(proxy, job, tried)
        if not routes and tried:
            tried.clear()
            wait_s = backoff_s(job.tries - 1, retries.backoff_s, retries.max_backoff_s, proxy.rng)
            until_s = None if paid else _pause_until(proxy, job, failed, wait_s)
            # What an endpoint has worked for is not asked of it, and paid, again.
            if until_s is None:
                raise _exhausted(failed)
            clock.at(until_s, job.resume)
            yield
            job.now = proxy.now
            routes, caps = _offer(proxy, job, tried)
        if not routes:
            raise _exhausted(failed) if failed is not None else _impossible(proxy, job)
        if not job.tries and job.only is None and job.group.admit is not None:
            admit(proxy, job, routes)
        job.tries += 1
        route, allowed = _reserve(proxy, job, routes, caps)
        try:
            queue = route.site.line
            place = None if queue is None else (yield from _wait(proxy, job, route, queue))
        except Failure as failure:
            failed = failure
            tried.append(route)
            continue
        attempt = proxy.begin(job, route, 0.0 if place is None else place.waited_s)
        try:
            yield from _run(proxy, job, attempt, allowed)
            return
        except Failure as failure:
            _note_failure(proxy, job, attempt, failure)
            if job.tries >= retries.attempts or not _worth_another(failure):
                raise _exhausted(failure) from None
            failed = failure
            paid = paid or (failure.sent and (failure.kind in _BROKEN or failure.phase == "total"))
            tried.append(route)
        finally:
            if place is not None:
                place.leave(None, attempt.status)


def _worth_another(failure: Failure) -> bool:
    """Whether another endpoint may do better."""
    return failure.status in _RETRIED if failure.kind == "status" else True


def offered(proxy: Proxy, job: Job) -> Sequence[Route]:
    """The routes that may be asked. Raises the reason why if there is none."""
    routes, _ = _offer(proxy, job, [])
    if not routes:
        raise _impossible(proxy, job)
    return routes


def _offer(proxy: Proxy, job: Job, tried: Sequence[Route]) -> tuple[Sequence[Route], list[Cap] | None]:
    """The routes that may be asked, and their caps, after a second look where budgets are short."""
    offer = _feasible(proxy, job, tried)
    if job.tight:
        # What others have spent must be known before less than was asked for is promised.
        proxy.settlements.flush()
        job.tight = False
        offer = _feasible(proxy, job, tried)
    return offer


def _feasible(proxy: Proxy, job: Job, tried: Sequence[Route]) -> tuple[Sequence[Route], list[Cap] | None]:
    """The routes that may be asked now, and what each may produce under the limits (None: no limits)."""
    now_s = proxy.clock.now_s
    group, key = job.group, job.key
    routes: Sequence[Route] = group.routes if job.only is None else (job.only,)
    for route in routes:
        if tried or route.site.circuit.state != "closed":
            routes = [route for route in routes if route.site.available(now_s) and route not in tried]
            break
    if key.endpoints is not None:
        routes = [route for route in routes if route.site.name in key.endpoints]
    if key.require:
        routes = [route for route in routes if key.require <= route.site.config.tags]
    if group.tagged:
        routes = [route for route in routes if _fits(job, route)]
    if not proxy.accounts.caps:
        return routes, None
    within = [(route, found) for route in routes if (found := cap(proxy, job, route)) is not None]
    return [route for route, _ in within], [found for _, found in within]


def _fits(job: Job, route: Route) -> bool:
    longest = route.site.config.context_tokens
    return longest is None or job.prompt_tokens <= longest


def _reserve(proxy: Proxy, job: Job, routes: Sequence[Route], caps: list[Cap] | None) -> tuple[Route, Cap]:
    """Decide for one of ``routes`` and hold what it may cost. Raises `Ended` where a budget has not so much."""
    route = decide(proxy, job, routes)
    allowed = NO_CAP if caps is None else caps[routes.index(route)]
    if not proxy.accounts.any:
        job.held = ()
        return route, allowed
    lines = proxy.accounts.lines(job.key, job.session, job.group.name, route.site.name)
    if lines is NO_LINES:
        job.lines, job.held = lines, ()
        return route, allowed
    for again in range(_RESERVE_TRIES):
        amounts = held(job, route, allowed)
        try:
            proxy.hold(job, lines, amounts)
            return route, allowed
        except Refused as refusal:
            # Others were quicker: what is left may do for a shorter answer.
            smaller = cap(proxy, job, route) if caps is not None else None
            if smaller is None or again == _RESERVE_TRIES - 1 or not _less(smaller, allowed):
                raise Ended(REFUSED, f"budget {refusal.account.budget.name}") from None
            allowed = smaller
    raise AssertionError("unreachable")


def _less(smaller: Cap, than: Cap) -> bool:
    """Whether a cap promises less than another."""
    return (
        (smaller.most_units or 0) < (than.most_units or 0)
        or (smaller.tokens or 0) < (than.tokens or 0)
        or (smaller.cut_s is not None and (than.cut_s is None or smaller.cut_s < than.cut_s))
    )


def admit(proxy: Proxy, job: Job, routes: Sequence[Route]) -> None:
    """Ask the group's admission policy, if it has one. Raises `Ended` for who is not let in."""
    policy = job.group.admit
    if policy is None:
        return
    used, resource = budget_used(proxy, job, job.only or job.group.routes[0])
    decision = choosing.ask_admission(
        policy,
        look_at(proxy, job, routes),
        budget_used=used,
        budget_resource=resource,
        deadline_s=job.until_s - job.started_s if job.until_s else None,
        tenant=job.key.tenant,
    )
    job.admission = decision
    if decision.action in (None, "refuse"):
        raise Ended(REFUSED, "not admitted")


def _wait(proxy: Proxy, job: Job, route: Route, queue: line.Line) -> Generator[None, Any, line.Place]:
    """Wait in the line of the route's endpoint. Raises `Failure` or `Ended`."""
    site = route.site
    ticket = _ticket(proxy, job, route)
    try:
        place = queue.try_enter(ticket)
        if place is None:
            queue.check_room(ticket)
            site.counts()
            queue.join(Waits(site, job, ticket, proxy.clock.now_s))
            found = yield
            if isinstance(found, Exception):
                raise found
            place = found
    except line.TurnedAway as turned:
        proxy.give_back(job)
        if turned.why == "full":
            raise Failure("full") from None
        raise Ended(TIMEOUT if turned.why == "deadline" else REFUSED, turned.why) from None
    except Failure:
        proxy.give_back(job)
        raise
    return place


def _ticket(proxy: Proxy, job: Job, route: Route) -> Option:
    """The request as a job for the endpoint of ``route``."""
    decision, group = job.decision, job.group
    assert decision is not None  # noqa: S101 - it has been decided where to wait
    option = chosen(decision)
    facts = line.claim(
        option,
        arrived_s=proxy.clock.now_s,
        deadline_s=job.until_s or None,
        priority=job.priority,
        tenant=job.key.tenant,
    )
    queue = route.site.line
    features = job.features
    if (
        queue is not None
        and queue.running >= queue.slots
        and group.length is not None
        and features is not None
    ):
        mean_tokens = 0.0
        if job.cap_tokens is None:
            mean_tokens = prospect.output_tokens(
                (route,),
                group.length,
                features,
                expected=float(group.config.expected_output_tokens),
                of_model=group.routes,
                factor=job.factor,
            )[0]
        prospect.foresee(facts, route, group.length, features, cap=job.cap_tokens, mean_tokens=mean_tokens)
    return Option(job.id, option.value, option.cost, facts=facts)


def _run(proxy: Proxy, job: Job, attempt: Attempt, allowed: Cap) -> Task:
    """One try at one endpoint. Raises `Failure` if it brings nothing."""
    site, clock = attempt.route.site, proxy.clock
    wanted = job.output_tokens
    capped = allowed.output_tokens or job.cap_tokens
    tokens = wanted if capped is None or wanted <= capped else capped
    cut_s = job.until_s
    if allowed.cut_s is not None:
        cut_s = min(cut_s or clock.now_s + allowed.cut_s, clock.now_s + allowed.cut_s)
    attempt.streamed = bool(cut_s) or job.group.guard is not None
    try:
        machine = site.send(job, attempt, max(1, tokens))
    except EngineError:
        raise Failure("status", sent=True, status=400) from None
    attempt.machine = machine.number
    timer = clock.at(cut_s, _cut, (job, machine, attempt)) if cut_s else None
    found = yield
    if timer is not None:
        clock.cancel(timer)
    if isinstance(found, Failure):
        if found.tokens and _streams(proxy, job):
            _break(proxy, job, attempt, found)
        raise found
    done, cut = found if isinstance(found, tuple) and not isinstance(found, Done) else (found, False)
    if cut and (done is None or done.tokens < 1):
        asked = Usage(job.prompt_tokens, 0, estimated=True)
        proxy.end_attempt(job, attempt, asked, done, status="timeout", failure="deadline", censored=True)
        attempt.route.site.circuit.cancelled(started_s=attempt.started_s)
        raise Ended(TIMEOUT, "deadline")
    made = done.tokens if cut else tokens
    finish = "length" if cut or made < wanted else "stop"
    usage = Usage(job.prompt_tokens, made, attempt.cached_tokens, estimated=cut)
    site.circuit.succeeded(started_s=attempt.started_s)
    proxy.end_attempt(job, attempt, usage, done, finish=finish, censored=cut)
    job.status = CUT if cut else OK


def _streams(proxy: Proxy, job: Job) -> bool:
    """Whether its client gets every token as it comes."""
    return proxy.scenario.stream and job.parent is None


def _break(proxy: Proxy, job: Job, attempt: Attempt, failure: Failure) -> None:
    """An answer ends in the middle; what had come is paid for, and nothing is tried again. Raises `Ended`."""
    attempt.route.site.circuit.failed(proxy.clock.now_s, started_s=attempt.started_s)
    usage = Usage(job.prompt_tokens, failure.tokens, estimated=True)
    done = failure.done
    proxy.end_attempt(job, attempt, usage, done, status="failed", failure=failure.kind, censored=True)
    raise Ended(FAILED, "broken")


def _worked(proxy: Proxy, job: Job, failure: Failure) -> Usage | None:
    """What an endpoint has to be presumed to have produced although nothing of it could be used."""
    if not failure.sent or failure.kind == "status":
        return None
    presumed = 0
    if not _streams(proxy, job):  # a stream would have brought what there was
        presumed = job.cap_tokens or job.group.config.expected_output_tokens
    return Usage(job.prompt_tokens, presumed, estimated=True)


def _cut(what: tuple[Job, Machine, Attempt]) -> None:
    """The request's time, or its money, is over: it ends with what there is."""
    job, machine, attempt = what
    job.resume((machine.site.take_back(machine, attempt.number), True))


def _note_failure(proxy: Proxy, job: Job, attempt: Attempt, failure: Failure) -> None:
    """Nothing was produced; what the endpoint's breaker, the policy and the books make of it."""
    circuit, now_s, started_s = attempt.route.site.circuit, proxy.clock.now_s, attempt.started_s
    status: Status = "failed"
    if failure.kind == "status":
        if failure.status in _FAULTS:
            circuit.failed(now_s, started_s=started_s)
        elif failure.status in _RETRIED:
            circuit.cancelled(started_s=started_s)
        else:
            circuit.succeeded(started_s=started_s)
        words = f"status {failure.status}"
    else:
        circuit.failed(now_s, started_s=started_s)
        timed_out = failure.kind == "timeout"
        words = f"timeout {failure.phase}" if timed_out else failure.kind
        status = "timeout" if timed_out else "failed"
    usage = _worked(proxy, job, failure)
    done, code = failure.done, failure.status
    proxy.end_attempt(job, attempt, usage, done, status=status, failure=words, http_status=code)
    proxy.settlements.attempt(job, attempt, proxy.now)


def _pause_until(proxy: Proxy, job: Job, failed: Failure | None, wait_s: float) -> float | None:
    """When the same endpoints are asked again; None if that is pointless."""
    if failed is not None and (
        failed.kind == "full" or (failed.kind == "status" and failed.status not in _REPEATED)
    ):
        return None
    now_s = proxy.clock.now_s
    resting = [route.site.circuit.retry_in_s(now_s) for route in job.group.routes]
    wait_s = max(wait_s, min(resting, default=0.0))
    if wait_s > job.group.config.retries.max_backoff_s or (job.until_s and now_s + wait_s >= job.until_s):
        return None
    return now_s + wait_s


def _exhausted(failed: Failure | None) -> Ended:
    """What the client is told when no attempt brought an answer."""
    if failed is None:
        return Ended(FAILED, "failed")
    if failed.kind in ("full", "busy"):
        return Ended(REFUSED, failed.kind)
    if failed.kind == "timeout":
        return Ended(FAILED, "timeout")
    return Ended(FAILED, f"status {failed.status}" if failed.kind == "status" else failed.kind)


def _impossible(proxy: Proxy, job: Job) -> Ended:
    """Why no route may be asked at all."""
    now_s = proxy.clock.now_s
    if not any(route.site.available(now_s) for route in job.group.routes):
        return Ended(FAILED, "no endpoint")
    return Ended(REFUSED, "budget" if proxy.accounts.caps else "no route")


def backoff_s(attempt: int, first_s: float, longest_s: float, rng: random.Random) -> float:
    """Full jitter: uniform in [0, min(longest, first * 2^attempt)], as the proxy draws it."""
    return rng.uniform(0.0, min(longest_s, first_s * 2.0**attempt))
