"""From a request to a decision: options, prices, limits, the choice, and what it may cost at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from apportion.core import choosing, prospect
from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.predictor import Estimate
from apportion.core.state import State
from apportion.measure import capping
from apportion.measure.capping import NO_CAP, UNCAPPED_TOKENS, Cap
from apportion.measure.tokens import BOUND_MESSAGE_TOKENS, BOUND_REQUEST_TOKENS
from apportion.simulate.proxy.accounts import GCO2, JOULES, RESOURCES, SERVER, TOKENS, USD, left
from apportion.simulate.proxy.group import Route
from apportion.simulate.proxy.job import Job
from apportion.simulate.result import REFUSED

if TYPE_CHECKING:
    from apportion.simulate.proxy.proxy import Proxy

_LARGEST: Final = 2**62
_NO_ESTIMATES: Final[tuple[Estimate | None, ...]] = ()


class Ended(Exception):
    """The client is told that there is no answer: ``status`` is one of `result`'s, ``why`` a word."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def look_at(proxy: Proxy, job: Job, routes: Sequence[Route]) -> State:
    """What is known now, with ``routes`` as options."""
    group, now = job.group, job.now
    config, features = group.config, job.features
    tokens_in = job.body_bytes / prospect.BYTES_PER_TOKEN
    worth = config.worth_usd
    estimates: Sequence[Estimate | None] = _NO_ESTIMATES
    if group.quality is not None and features is not None:
        estimates = group.quality.predict(features, [route.predicted_as for route in routes])
    loads = [route.site.load for route in routes]
    lengths = prospect.output_tokens(
        routes,
        group.length,
        features,
        expected=float(config.expected_output_tokens),
        of_model=group.routes,
        factor=job.factor,
        cap=job.cap_tokens,
    )
    options = prospect.options(
        routes,
        loads,
        tokens_in=tokens_in,
        lengths=lengths,
        answers=1,
        worth_usd=worth,
        estimates=estimates,
        waits=prospect.waits_s(routes, group.latency, loads, tokens_in, lengths),
        usual_s=prospect.usual_server_s(group.routes),
        turn=job.turn,
    )
    scenario = proxy.scenario
    facts = choosing.request_facts(
        scenario.api,
        job.key.name,
        tokens_in,
        scenario.stream if job.parent is None else False,
        job.tries,
        priority=job.priority or None,
        worth_usd=worth,
    )
    return State(now, options, job.id, facts, prospect.heeded(job.sheet.prices(now), options), features)


def decide(proxy: Proxy, job: Job, routes: Sequence[Route]) -> Route:
    """Ask the group's policy. Raises `Ended` when it chooses none of them."""
    group = job.group
    state = job.state = look_at(proxy, job, routes)
    decision = None if job.only is None and job.turn is None else _settled_elsewhere(job, state)
    if decision is None:
        policy, other = group.policy, group.baseline
        share = group.config.rollout
        if not proxy.tried_out(job):
            policy, other, share = other, policy, 1.0 - share
        if share >= 1.0 or not job.key.routing:
            decision = policy.decide(state)
        else:
            decision = choosing.choose(state, policy, other, share)
        if group.shadow is not None:
            choosing.watched(group.shadow, state)
    job.decision = decision
    if decision.choice is None:
        raise Ended(REFUSED, "chose nothing")
    return routes[decision.choice]


def _settled_elsewhere(job: Job, state: State) -> Decision | None:
    """The decision that a strategy has made, or the conversation that stays where it is; None: it is open."""
    if job.only is not None:
        return choosing.stays(state, 0, "its strategy asks it")
    if job.turn is not None and job.group.config.sticky == "always":
        for index, option in enumerate(state.options):
            if option.action == job.turn[0]:
                return choosing.stays(state, index, "the conversation is there")
    return None


# what limits allow


def tokens_in(job: Job) -> int:
    """The most input tokens the request can have, by the proxy's bound on its body."""
    return job.body_bytes + BOUND_REQUEST_TOKENS + BOUND_MESSAGE_TOKENS * job.messages


def cap(proxy: Proxy, job: Job, route: Route) -> Cap | None:
    """What ``route`` may produce for the request under all limits on amounts; None if not even the least fits."""
    now = proxy.now
    lines = proxy.accounts.lines(job.key, job.session, job.group.name, route.site.name)
    units: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    for place, accounts in lines.caps:
        allowed = left(accounts, now)
        if place == USD:
            units = allowed
        elif place == TOKENS:
            tokens = allowed
        else:
            seconds = capping.shorter(seconds, _seconds(allowed, route, place))
    bound = bool(lines.caps)
    if proxy.accounts.per_request:
        units, tokens, seconds, bound = _limited(proxy, job, route, units, tokens, seconds, bound)
    if units is None and tokens is None and seconds is None:
        return NO_CAP
    asked = job.cap_tokens
    found = capping.cap(
        units,
        tokens,
        seconds,
        price=route.price,
        flat=route.flat,
        machine=route.machine,
        total_s=route.site.config.total_s,
        tokens_in=tokens_in(job),
        asked=asked,
        otherwise=route.site.config.max_output_tokens or UNCAPPED_TOKENS,
        n=1,
        generates=True,
    )
    if bound and (found is None or found.less):
        job.tight = True
    return found


def _limited(
    proxy: Proxy,
    job: Job,
    route: Route,
    units: int | None,
    tokens: int | None,
    seconds: float | None,
    bound: bool,
) -> tuple[int | None, int | None, float | None, bool]:
    """What accounts leave, or less where the budgets of one request say so."""
    limits = proxy.accounts.per_request
    before = [*job.siblings, *job.attempts]
    most_usd = limits.get(USD)
    if most_usd is not None:
        gone = 0
        for attempt in before:
            gone += most_usd if attempt.units is None else attempt.units
        most_usd = max(0, most_usd - gone) // job.shares
        if units is None or most_usd <= units:
            bound = False
            units = most_usd
    most = limits.get(TOKENS)
    if most is not None:
        most -= sum(a.usage.input_tokens + a.usage.output_tokens for a in before if a.usage is not None)
        tokens = capping.shorter(tokens, most // job.shares)
    used_s = sum(attempt.server_s for attempt in before)
    for place in (SERVER, JOULES, GCO2):
        if place in limits:
            time_s = _seconds(limits[place], route, place)
            if time_s is not None:
                seconds = capping.shorter(seconds, max(0.0, time_s - used_s) / job.shares)
    return units, tokens, seconds, bound


def _seconds(units: int, route: Route, place: int) -> float | None:
    """How long ``route`` may work for so much server time, energy or carbon; None: as long as it likes."""
    return capping.seconds_within(units, route.work(1.0)[place - SERVER])


def held(job: Job, route: Route, cap: Cap) -> tuple[int, ...]:
    """The most this attempt may cost, by place. The first one counts the request."""
    body, config = job.body_bytes, route.site.config
    asked = cap.output_tokens or job.cap_tokens
    estimated = int(body / 4.0) + (asked or job.group.config.expected_output_tokens)
    out = asked or config.max_output_tokens or UNCAPPED_TOKENS
    most = cap.most_units
    if most is None:
        if route.flat is not None:
            most = route.flat[0] + body * route.flat[1] + out * route.flat[2]
        elif route.price is not None:
            most = route.price.most_units(body, out)
        elif route.machine is not None:
            most = route.machine.units(cap.cut_s or config.total_s)
        else:
            most = 0
    server, joules, gco2 = route.most_work if cap.cut_s is None else route.work(cap.cut_s)
    tokens = cap.tokens if cap.tokens is not None else body + out
    return (
        min(tokens, _LARGEST),
        min(most, _LARGEST),
        server,
        min(joules or 0, _LARGEST),
        min(gco2 or 0, _LARGEST),
        0 if job.counted else 1,
        1,
        min(estimated, _LARGEST),
    )


def budget_used(proxy: Proxy, job: Job, route: Route) -> tuple[float | None, str | None]:
    """Share of the tightest hard budget that is spent, and its resource; None where none binds."""
    worst: tuple[float | None, str | None] = (None, None)
    lines = proxy.accounts.lines(job.key, job.session, job.group.name, route.site.name)
    for place, accounts in lines.caps:
        for account in accounts:
            whole = account.budget.unit.to_units(account.budget.amount)
            if whole:
                used = 1.0 - account.available_units(proxy.now) / whole
                if worst[0] is None or used > worst[0]:
                    worst = (min(1.0, max(0.0, used)), RESOURCES[place])
    return worst


def chosen(decision: Decision) -> Option:
    """The option that was chosen."""
    return decision.options[decision.choice or 0]
