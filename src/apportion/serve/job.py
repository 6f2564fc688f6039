"""One request on its way through the gateway, and the accounting that its end owes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from apportion.core import choosing, prospect
from apportion.core.decision import Decision
from apportion.core.features import Features
from apportion.core.guard import Verdict
from apportion.core.line import claim
from apportion.core.option import Option
from apportion.core.outcome import Status
from apportion.core.predictor import Estimate
from apportion.core.prospect import BYTES_PER_TOKEN
from apportion.core.resource import resource
from apportion.core.state import State
from apportion.measure.capping import NO_CAP, UNCAPPED_TOKENS, Cap, cap, roomy, seconds_within, shorter
from apportion.measure.price import TokenPrice
from apportion.measure.tokens import most_input_tokens
from apportion.measure.usage import Usage
from apportion.serve import books, errors, identity, showing
from apportion.serve.call import NO_CONSTRAINTS, Call
from apportion.serve.config.schema import Key
from apportion.serve.conversations import Marks, marks_of
from apportion.serve.http.server import Responder
from apportion.serve.ledger.entries import (
    GCO2,
    JOULES,
    RESERVE,
    RESOURCES,
    SETTLE,
    TOKENS,
    USD,
    Entry,
)
from apportion.serve.ledger.entries import (
    SERVER_SECONDS as SERVER,
)
from apportion.serve.ledger.ledger import Refused, Reservation, Unavailable
from apportion.serve.ledger.purse import NO_LINES, Lines, Purse, short
from apportion.serve.records import Attempt, Record, usd
from apportion.serve.records import cost as spent
from apportion.serve.runtime import Group, Route, Runtime

if TYPE_CHECKING:
    from apportion.serve.cache.answers import Turn
    from apportion.serve.cache.incontext import Chosen
    from apportion.serve.continuing import Live
    from apportion.serve.moving import Mover

_PICO: Final = 10**12
_LARGEST: Final = 2**62
"""More than any amount that is believed; what the database can keep."""


CACHE: Final = "cache"
STRATEGY: Final = "strategy"
"""What stands in the books where an endpoint would: for an answer from the cache, and for a request whose strategy
makes calls of their own."""


class Rare:
    """What few requests have. The others pay nothing for it."""

    admission: Decision | None = None
    """Whether it was let in, where that is asked."""
    answer: dict[str, Any] | None = None
    """How a strategy came to its answer."""
    cache_turn: Turn | None = None
    """Its turn to ask what the cache does not know."""
    cached: dict[str, Any] | None = None
    """What the cache had to say."""
    features: Features | None = None
    """What it says, in numbers, once somebody has read it."""
    guarded_cap = False
    """Whether the guard has capped it."""
    guarded = False
    """Whether its answers are watched while they come."""
    live: Live | None = None
    """Its stream, while that is on its way and can go on elsewhere."""
    marks: Marks | None = None
    mover: Mover | None = None
    """Who takes its stream elsewhere, where the model is to."""
    moves = 0
    """How often it has been already."""
    only: Route | None = None
    """The one route that may be asked, where that has been decided elsewhere."""
    parent: str | None = None
    """The request whose strategy makes this call; None for a client's own."""
    place: float | None = None
    """Where in the conversation that stands: how many messages there are."""
    question = ""
    """The last thing the user said, once somebody has read it."""
    among: Sequence[Route] | None = None
    """The routes that may be asked, where they are fewer than the model's."""
    alone = False
    """Whether it is the first turn of its conversation."""
    bare: Call | None = None
    """The request without the examples that are shown with it."""
    continues = False
    """Whether its answer is the rest of one that was begun elsewhere, or only reads it."""
    choosable: Chosen | None = None
    """Examples that may be shown."""
    shadow: Decision | None = None
    """What the policy on trial would have done."""
    turn: tuple[str, int] | None = None
    """The route of the conversation's last turn, and the tokens that its provider may still hold."""
    answered_by: Attempt | None = None
    """The attempt whose answer the client got, where that need not be the last."""
    shares: int = 1
    """Among how many calls that go out together what is left of the request's limits is shared."""
    siblings: Sequence[Attempt] = ()
    """What other calls of the same strategy have taken of the request's limits."""
    verdict: Verdict | None = None
    """What the guard made of it."""
    waited_s = 0.0
    """Time spent in an endpoint's queue before the attempt under way."""


class Job(Rare):
    """A parsed request, who asked, what was decided for it, and what it cost."""

    __slots__ = (
        "_bound",
        "_tokens_in",
        "attempts",
        "by",
        "call",
        "counted",
        "decision",
        "done",
        "dropped",
        "error",
        "first_chunk_s",
        "group",
        "id",
        "key",
        "lines",
        "now",
        "overhead_s",
        "request_id",
        "reservation",
        "responder",
        "route",
        "runtime",
        "session",
        "sheet",
        "started_s",
        "state",
        "status",
        "tight",
        "tries",
        "upstream_s",
        "user",
    )

    def __init__(
        self, runtime: Runtime, call: Call, key: Key, group: Group, responder: Responder, number: str
    ) -> None:
        self.runtime = runtime
        self.call = call
        self.key = key
        self.group = group
        self.responder = responder
        self.id = "dec_" + number
        self.request_id = "req_" + number
        self.started_s = call.request.received_s
        self.now = time.time()
        self.upstream_s = 0.0
        """Time spent waiting for upstreams (and between attempts), in seconds."""
        self.overhead_s: float | None = None
        """Time spent in the proxy itself until the answer began."""
        self.tries = 0
        self.attempts: list[Attempt] = []
        """What has been tried and settled, in order."""
        self.done: tuple[int, float] | None = None
        """Status and duration in seconds, once the answer has ended."""
        self.error: str | None = None
        """Code of the error that the client was told, if it was."""
        self.first_chunk_s: float | None = None
        """From the request sent to the first content of the attempt under way."""
        self.status = "running"
        self.dropped: tuple[str, ...] = ()
        """Fields of the request that the endpoint's dialect has no place for."""
        self.route: Route | None = None
        self.decision: Decision | None = None
        self.counted = False
        self.tight = False
        """Whether budgets are so nearly spent that the bank has to be asked how they stand."""
        self._bound = False
        """Whether an account allows less than the client and the budgets of one request do."""
        self._tokens_in: int | None = -1
        self.user = self.session = ""
        """End user and session, as the books name them."""
        if call.user or call.session:
            tenant = identity.tenant(key)
            self.user = identity.qualified(tenant, call.user)
            self.session = identity.qualified(tenant, call.session)
        self.lines = NO_LINES
        """Everything the attempt under way falls under."""
        self.reservation: Reservation | None = None
        """What the attempt under way holds, while it does."""
        self.sheet = runtime.books.sheet(key.name, group.name)
        self.state: State | None = None
        """What was known at the decision for the attempt under way."""
        self.by = ""
        """What decided: the model's policy, its baseline, its conversation, or a strategy."""

    # what may be chosen

    def tokens_in(self) -> int | None:
        """The most input tokens the request can have; None where it does not tell."""
        if self._tokens_in == -1:
            self._tokens_in = most_input_tokens(self.call.request.body)
        return self._tokens_in

    def lines_of(self, route: Route) -> Lines:
        """Everything the request falls under if ``route`` answers it."""
        return self.runtime.books.lines(
            self.key, self.user, self.session, self.group.name, route.endpoint.name
        )

    def cap(self, route: Route) -> Cap | None:
        """What ``route`` may produce under all limits on amounts; None if not even the least fits."""
        lines = self.lines_of(route)
        units: int | None = None
        tokens: int | None = None
        seconds: float | None = None
        self._bound = bool(lines.caps)
        for place, purses in lines.caps:
            left = books.left(purses)
            if place == USD:
                units = left
            elif place == TOKENS:
                tokens = left
            else:
                seconds = shorter(seconds, _seconds(left, route, place))
        if self.call.constraints is not NO_CONSTRAINTS or self.runtime.books.per_request:
            units, tokens, seconds = self._limited(route, units, tokens, seconds)
        if units is None and tokens is None and seconds is None:
            return NO_CAP
        call, price, tokens_in = self.call, self.price(route), self.tokens_in()
        asked = call.max_output_tokens
        flat = route.flat if price is route.price or price is None else price.flat_rates()
        if seconds is None:
            whole = roomy(units, tokens, flat, tokens_in, asked, call.n)
            if whole is not None:
                return whole
        endpoint = route.endpoint
        otherwise = endpoint.config.max_output_tokens
        if otherwise is None and call.constraints.max_usd is None:
            otherwise = UNCAPPED_TOKENS
        found = cap(
            units,
            tokens,
            seconds,
            price=price,
            flat=flat,
            machine=route.machine,
            total_s=endpoint.timeouts.total_s,
            tokens_in=tokens_in,
            asked=asked,
            otherwise=otherwise,
            n=call.n,
            generates=call.api_generates,
        )
        if self._bound and (found is None or found.less):
            self.tight = True
        return found

    def _limited(
        self, route: Route, units: int | None, tokens: int | None, seconds: float | None
    ) -> tuple[int | None, int | None, float | None]:
        """What accounts leave, or less where the client or the budgets of one request say so."""
        limits = self.runtime.books.per_request
        asked, joules = self.call.constraints.max_usd, self.call.constraints.max_joules
        usd = None if asked is None else int(asked * _PICO)
        usd = shorter(usd, limits.get(USD))
        before = [*self.siblings, *self.attempts]
        used_s = sum(attempt.server_s for attempt in before)
        if usd is not None:
            gone = spent(before)[0] if before else 0
            usd = 0 if gone is None else max(0, usd - gone) // self.shares
            if units is None or usd <= units:
                self._bound = False
                units = usd
        most = limits.get(TOKENS)
        if most is not None:
            most -= sum(a.usage.input_tokens + a.usage.output_tokens for a in before if a.usage)
            tokens = shorter(tokens, most // self.shares)
        allowed = [(place, limits[place]) for place in (SERVER, JOULES, GCO2) if place in limits]
        if joules is not None:
            allowed.append((JOULES, int(joules * 1e6)))
        for place, amount in allowed:
            time_s = _seconds(amount, route, place)
            if time_s is not None:
                seconds = shorter(seconds, max(0.0, time_s - used_s) / self.shares)
        return units, tokens, seconds

    def price(self, route: Route) -> TokenPrice | None:
        """The prices of the class of service that the request asks for; None where none is known."""
        price = route.price
        if price is None or not price.services:
            return price
        asked = self.call.fields.get("speed" if self.call.api == "messages" else "service_tier")
        if asked is None:
            return price
        try:
            return price.of_service(msgspec.json.decode(asked, type=str))
        except msgspec.DecodeError:
            return price

    async def look(self, routes: Sequence[Route]) -> None:
        """Ask the bank how the accounts of these routes stand."""
        purses: dict[Purse, None] = {}
        for route in routes:
            purses.update(dict.fromkeys(purse for purse, _, _ in self.lines_of(route).hard))
        if purses:
            try:
                await self.runtime.ledger.look(list(purses))
            except Unavailable as error:
                raise books.unavailable(error) from None

    def unaffordable(self, routes: Sequence[Route]) -> errors.GatewayError:
        """Why none of ``routes`` fits the limits on amounts, and the least that one would take."""
        for route in routes:
            refusal = self._exhausted(route)
            if refusal is not None:
                return books.refused(refusal)
        limit = self.call.constraints.max_usd
        constraint = "budget" if limit is None else "max_usd"
        field = None if limit is None else "apportion.max_usd"
        usd_counts = limit is not None or any(
            place == USD for route in routes for place, _ in self.lines_of(route).caps
        )
        if usd_counts and all(not route.priced for route in routes):
            return errors.UnknownPriceError(
                f"A hard dollar limit applies and the price of model {self.group.name!r} is unknown.",
                field=field,
                fix="Give the endpoint a price, or say what to assume (unknown_price).",
                details={"constraint": constraint, "best": None},
            )
        tokens_in = self.tokens_in()
        if tokens_in is None:
            return errors.ConstraintError(
                "A hard limit applies and what this input takes cannot be bounded "
                "(remote files or images, or tools that the provider runs).",
                field=field,
                fix="Send the content inline.",
                details={"constraint": constraint, "best": None},
            )
        if limit is None:
            limits = self.runtime.books.per_request
            return errors.BudgetExceededError(
                "What one request may take here allows not even the shortest answer to this one, or an endpoint's "
                "use of a limited resource is not known.",
                fix="Send less input, or ask the operator for more.",
                details={
                    "constraint": "budget",
                    "per_request": {
                        RESOURCES[place]: str(_amount(place, most)) for place, most in limits.items()
                    },
                },
            )
        least = min(self._least(route, USD) or 0 for route in routes)
        return errors.ConstraintError(
            f"The least this request can be sure to cost at most is ${usd(least)}; 'max_usd' is {limit:g}.",
            field=field,
            fix=f"Allow at least {usd(least)}.",
            details={"constraint": "max_usd", "best": {"max_usd": usd(least)}},
        )

    def _exhausted(self, route: Route) -> Refused | None:
        """The first account that has not even the least that ``route`` may take, if that is why it cannot answer."""
        for place, purses in self.lines_of(route).caps:
            least = self._least(route, place)
            if least is None:
                continue
            for purse in purses:
                if purse.left < least:
                    wait_s = books.refill_s(purse, least, self.now)
                    return Refused(purse, least, max(0, purse.left), wait_s)
        return None

    def _least(self, route: Route, place: int) -> int | None:
        """The least of a resource that the request can be sure to take at most; None where that is not known."""
        tokens_in = self.tokens_in()
        out = self.call.n if self.call.api_generates else 0
        if place == USD:
            price = self.price(route)
            if price is None or tokens_in is None:
                return None if route.machine is None else 1
            return price.most_units(tokens_in, out)
        if place == TOKENS:
            return None if tokens_in is None else tokens_in + out
        return None if route.work(1.0)[place - SERVER] is None else 1

    @property
    def routes(self) -> Sequence[Route]:
        """The routes that may be asked at all."""
        if self.only is not None:
            return (self.only,)
        return self.group.routes if self.among is None else self.among

    def tokens_out(self, routes: Sequence[Route]) -> list[float]:
        """Output tokens to expect of one answer of each route, before anything is known of it."""
        call, group = self.call, self.group
        if not call.api_generates:
            return [0.0] * len(routes)
        return prospect.output_tokens(
            routes,
            group.methods.length,
            self.features,
            of_model=group.routes,
            expected=float(group.config.expected_output_tokens),
            factor=1.0 if self.verdict is None else self.verdict.factor,
            cap=call.max_output_tokens,
        )

    def worth_usd(self) -> float | None:
        """What a right answer is worth, in dollars; None where nobody says."""
        worth, effort = self.group.config.worth_usd, self.call.constraints.effort
        return worth if worth is None or effort is None else worth * effort

    def options(self, routes: Sequence[Route]) -> list[Option]:
        """The routes as options: value of a right answer times quality, and predictions of the cost."""
        call, group = self.call, self.group
        methods = group.methods
        tokens_in = call.body_bytes / BYTES_PER_TOKEN
        estimates: Sequence[Estimate | None] = ()
        if methods.quality is not None and self.features is not None:
            estimates = methods.quality.predict(self.features, [route.predicted_as for route in routes])
        lengths = self.tokens_out(routes)
        loads = [route.endpoint.load for route in routes]
        return prospect.options(
            routes,
            loads,
            tokens_in=tokens_in,
            lengths=lengths,
            answers=call.n,
            worth_usd=self.worth_usd(),
            estimates=estimates,
            waits=prospect.waits_s(routes, methods.latency, loads, tokens_in, lengths),
            usual_s=group.usual_server_s,
            turn=self.turn,
        )

    def context(self) -> dict[str, object]:
        """What a policy is told about the request."""
        call = self.call
        constraints = call.constraints
        return choosing.request_facts(
            call.api,
            self.key.name,
            call.body_bytes / BYTES_PER_TOKEN,
            call.stream,
            self.tries,
            effort=constraints.effort,
            priority=constraints.priority,
            tags=constraints.tags,
            user=call.user,
            worth_usd=self.worth_usd(),
        )

    def look_at(self, routes: Sequence[Route]) -> State:
        """What is known now, with ``routes`` as options."""
        options = self.options(routes)
        prices = prospect.heeded(self.sheet.prices(self.now), options)
        return State(self.now, options, self.id, self.context(), prices, self.features)

    def restricted(self) -> bool:
        """Whether only some endpoints may see it."""
        access = self.runtime.access(self.key)
        return bool(access.require or access.endpoints is not None or self.call.constraints.require)

    def tried_out(self) -> bool:
        """Whether the model's policy decides, and not the baseline: the same for all of a conversation."""
        if not self.runtime.access(self.key).routing:
            return False
        return choosing.drawn_in(self.group.config.rollout, self.session or self.user or self.id)

    def recall(self) -> None:
        """Find out where the conversation was answered last."""
        conversations = self.group.conversations
        if conversations is not None and self.call.api_generates:
            self.marks = marks_of(identity.tenant(self.key), self.call)
            self.turn = conversations.find(self.marks, self.now)

    def decide(self, routes: list[Route]) -> Route:
        """Ask the group's policy. Raises ``ConstraintError`` when it chooses none of them."""
        group = self.group
        methods = group.methods
        if self.bare is not None:
            self.ask_instead(self.bare)
            self.bare = None
        state = self.state = self.look_at(routes)
        student = self._offer_examples(state, routes)
        decision = self._settled_elsewhere(state)
        if decision is None:
            tried_out = self.tried_out()
            self.by = group.config.policy.name if tried_out else group.config.baseline.name
            policy, other, share = methods.policy, methods.baseline, group.config.rollout
            if not tried_out:
                policy, other, share = other, policy, 1.0 - share
            if not self.runtime.access(self.key).routing:
                share = 1.0  # it takes no part
            decision = choosing.choose(state, policy, other, share)
            if methods.shadow is not None:
                self.shadow = choosing.watched(methods.shadow, state)
        self.decision = decision
        if decision.choice is None:
            raise errors.ConstraintError(f"The policy of model {group.name!r} chose nothing: {decision.why}.")
        if decision.choice < len(routes):
            self.route = routes[decision.choice]
        else:
            self.route = routes[student]
            if self.choosable is not None:
                self.bare = self.call
                self.ask_instead(showing.shown(self.call, self.choosable))
        return self.route

    def ask_instead(self, call: Call) -> None:
        """Go on with another form of the request; what it takes is bounded anew."""
        self.call = call
        self._tokens_in = -1

    def _offer_examples(self, state: State, routes: list[Route]) -> int:
        """Add the small endpoint with examples to the options; its place among ``routes``, 0 where there is none."""
        school, chosen = self.group.school, self.choosable
        if school is None or chosen is None or self.only is not None or not self.tried_out():
            return 0
        student = school.student(routes)
        if student is None:
            return 0
        state.options = [*state.options, showing.option(state.options[student], chosen, routes[student])]
        return student

    def _settled_elsewhere(self, state: State) -> Decision | None:
        """The decision that a strategy has made, or the conversation that stays where it is; None: it is open."""
        options = state.options
        if self.only is not None:
            index, self.by, why = 0, "strategy", "its strategy asks it"
            if self.parent is None:
                self.by, why = "replay", "an example is asked for again"
        elif self.turn is not None and self.group.config.sticky == "always":
            places = [i for i, option in enumerate(options) if option.action == self.turn[0]]
            if not places:
                return None
            index, self.by, why = places[0], "conversation", "the conversation is there"
        else:
            return None
        return choosing.stays(state, index, why)

    def ticket(self, route: Route, until_s: float, *, waits: bool) -> Option:
        """The request as a job for the endpoint of ``route``; ``until_s`` is its deadline, 0 for none.

        How long it will take is worked out only if it ``waits``: for others nobody asks.
        """
        decision, methods = self.decision, self.group.methods
        assert decision is not None  # noqa: S101 - it has been decided where to wait
        chosen = decision.options[decision.choice or 0]
        cap = self.call.max_output_tokens
        facts = claim(
            chosen,
            arrived_s=time.perf_counter(),
            deadline_s=until_s or None,
            priority=self.call.constraints.priority or 0,
            tenant=identity.tenant(self.key),
        )
        if waits:
            mean = self.tokens_out((route,))[0] if cap is None else 0.0
            prospect.foresee(facts, route, methods.length, self.features, cap=cap, mean_tokens=mean)
        return Option(self.id, chosen.value, chosen.cost, facts=facts)

    def budget_used(self) -> tuple[float | None, str | None]:
        """Share of the tightest hard budget that is spent, and its resource; None where none binds."""
        worst: tuple[float | None, str | None] = (None, None)
        for place, purses in self.lines_of(self.routes[0]).caps:
            for purse in purses:
                budget = purse.budget
                whole = budget.unit.to_units(budget.amount) if purse.known else 0
                if whole and (worst[0] is None or 1.0 - purse.left / whole > worst[0]):
                    worst = (min(1.0, max(0.0, 1.0 - purse.left / whole)), RESOURCES[place])
        return worst

    # the books

    def _held(self, route: Route, cap: Cap) -> tuple[int, ...]:
        """The most this attempt may cost, by place. The first one counts the request."""
        call, group = self.call, self.group
        body = call.body_bytes
        estimated = int(body / BYTES_PER_TOKEN)
        out = 0
        if call.api_generates:
            asked = cap.output_tokens or call.max_output_tokens
            estimated += (asked or group.config.expected_output_tokens) * call.n
            out = (asked or route.endpoint.config.max_output_tokens or UNCAPPED_TOKENS) * call.n
        most = cap.most_units
        if most is None:
            # A token has at least a byte. No limit applies: this is what is presumed should we die before we know.
            price = self.price(route)
            if price is route.price and route.flat is not None:
                most = route.flat[0] + body * route.flat[1] + out * route.flat[2]
            elif price is not None:
                most = price.most_units(body, out)
            elif route.machine is not None:
                most = route.machine.units(cap.cut_s or route.endpoint.timeouts.total_s)
            else:
                most = 0
        server, joules, gco2 = route.most_work if cap.cut_s is None else route.work(cap.cut_s)
        tokens = cap.tokens
        if tokens is None:
            tokens = body + out
        return (
            min(tokens, _LARGEST),
            min(most, _LARGEST),
            server,
            min(joules or 0, _LARGEST),
            min(gco2 or 0, _LARGEST),
            0 if self.counted else 1,
            1,
            min(estimated, _LARGEST),
        )

    def _entry(self, endpoint: str, upstream_model: str, held: tuple[int, ...]) -> Entry:
        key = self.key
        asked = self.call.constraints.tags
        tags = {**dict.fromkeys(asked or (), ""), **key.tags} if asked or key.tags else None
        tokens, most, server, joules, gco2, requests, _, _ = held
        runtime = self.runtime
        return Entry(
            runtime.ledger.reservation_id(),
            RESERVE,
            self.id,
            self.tries,
            runtime.config.organisation,
            key.team or "",
            key.name,
            self.user,
            self.session,
            self.group.name,
            endpoint,
            upstream_model,
            self.call.api,
            "" if tags is None else msgspec.json.encode(tags).decode(),
            "",
            "",
            tokens,
            most,
            server,
            joules,
            gco2,
            requests,
        )

    async def reserve(self, route: Route, cap: Cap, flush: Callable[[], bool]) -> None:
        """Hold the most this attempt may cost, in every account it falls under. The first one counts the request.

        Raises `Refused` if a budget has less, and the gateway's error while the ledger can promise nothing.
        """
        held = self._held(route, cap)
        await self._hold(
            self.lines_of(route), held, self._entry(route.endpoint.name, route.model, held), flush
        )

    async def reserve_request(self, place: str, flush: Callable[[], bool]) -> None:
        """Hold one request and nothing else, in the books under ``place``. Raises as `reserve`."""
        lines = self.runtime.books.lines(self.key, self.user, self.session, self.group.name, place)
        held = (0, 0, 0, 0, 0, 1, 0, 0)
        await self._hold(lines, held, self._entry(place, "", held), flush)

    async def _hold(
        self, lines: Lines, held: tuple[int, ...], entry: Entry, flush: Callable[[], bool]
    ) -> None:
        ledger = self.runtime.ledger
        self.lines = lines
        try:
            found = ledger.take(lines, held, entry)
            if found is None and short(lines, held) and flush():
                found = ledger.take(lines, held, entry)
            if found is None:
                found = await ledger.reserve(lines, held, entry)
            self.reservation = found
            if self.runtime.durable:
                await ledger.durable()
        except Unavailable as error:
            self.give_back()
            raise books.unavailable(error) from None
        except BaseException:
            self.give_back()
            raise
        self.counted = True

    def book_request(self) -> None:
        """Settle what `reserve_request` held: one request that cost nothing itself."""
        reservation, self.reservation = self.reservation, None
        if reservation is None:
            return
        took_s = 0.0 if self.done is None else self.done[1]
        entry = msgspec.structs.replace(
            reservation.entry, kind=SETTLE, status="ok", mark="measured", duration_us=int(took_s * 1e6)
        )
        self.runtime.ledger.settle(reservation, (0, 0, 0, 0, 0, 1, 0), entry)

    def shrink(self, known: Usage) -> None:
        """A stream has told its input: hold no more than that and the output it may still make."""
        reservation, route, call = self.reservation, self.route, self.call
        price = None if route is None else self.price(route)
        if reservation is None or price is None or not call.max_output_tokens:
            return
        held = reservation.held
        out = call.max_output_tokens * call.n
        most = price.most_units(known.input_tokens, out)
        tokens = known.input_tokens + out
        if most < held[USD] or tokens < held[TOKENS]:
            self.runtime.ledger.shrink(
                reservation, (min(tokens, held[TOKENS]), min(most, held[USD]), *held[2:])
            )

    def give_back(self) -> None:
        """Release what is reserved, if anything (nothing was sent)."""
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            if reservation.entry.requests:
                self.counted = False
            self.runtime.ledger.release(reservation)

    def book(self, attempt: Attempt, route: Route) -> None:
        """Settle what the attempt held with what it has cost."""
        reservation, self.reservation = self.reservation, None
        if reservation is None:
            return
        was = reservation.entry
        usage, units = attempt.usage, attempt.units
        server, joules, gco2 = route.work(attempt.server_s)
        tokens_in = tokens_out = cached = writes = reasoning = 0
        mark = "measured"
        if usage is not None:
            tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
            cached = usage.cached_input_tokens
            writes = usage.cache_write_tokens + usage.cache_write_1h_tokens
            reasoning = usage.reasoning_tokens
            if usage.estimated:
                mark = "estimated"
        if units is None:
            mark = "unknown"
        tokens = tokens_in + tokens_out
        if units is not None and units > _LARGEST:
            units = _LARGEST
        entry = Entry(
            was.reservation,
            SETTLE,
            was.request,
            was.attempt,
            was.organisation,
            was.team,
            was.key,
            was.user,
            was.session,
            was.model,
            was.endpoint,
            was.upstream_model,
            was.api,
            was.tags,
            attempt.status,
            mark,
            tokens,
            units,
            server,
            joules,
            gco2,
            was.requests,
            tokens_in,
            cached,
            writes,
            tokens_out,
            reasoning,
            int((attempt.ended_s - attempt.started_s) * 1e6),
        )
        spends = (tokens, units or 0, server, joules or 0, gco2 or 0, was.requests, 0)
        now_due = self.runtime.newest().books.lines(
            self.key, self.user, self.session, self.group.name, route.endpoint.name
        )
        if now_due is not self.lines:
            self.runtime.ledger.charge_also(now_due)
        self.runtime.ledger.settle(reservation, spends, entry)

    def attempted(
        self,
        status: Status,
        usage: Usage | None,
        server_s: float,
        started_s: float,
        ended_s: float,
        *,
        finish: str | None = None,
        failure: str | None = None,
        http_status: int = 200,
        censored: bool = False,
    ) -> Attempt:
        """Note one attempt and what it cost; the books are settled by ``settlement`` soon after.

        ``usage`` None means that nothing was produced (an attempt that failed before any content). Times in
        ``perf_counter`` seconds.
        """
        route, decision = self.route, self.decision
        assert route is not None  # noqa: S101 - an attempt follows a decision
        assert decision is not None  # noqa: S101
        machine, price = route.machine, route.price
        units: int | None
        if machine is not None:
            units = machine.units(server_s)
        elif usage is None:
            units = 0
        else:
            units = None if price is None else price.units(usage)
        attempt = Attempt(
            decision,
            route.endpoint.name,
            route.model,
            status,
            usage,
            units,
            server_s,
            started_s,
            ended_s,
            self.first_chunk_s,
            finish,
            failure,
            http_status,
            censored,
            by=self.by,
            shadow=self.shadow,
            features=self.features,
            state=self.state,
            waited_s=self.waited_s,
        )
        self.attempts.append(attempt)
        self.first_chunk_s = None
        self.state = None
        if self.shadow is not None:
            self.shadow = None
        if self.waited_s:
            self.waited_s = 0.0
        self.status = status
        return attempt

    def presumed(self) -> Usage:
        """Usage of an answer that was paid for and never seen: all it was allowed, else what was expected."""
        call = self.call
        out = (
            (call.max_output_tokens or self.group.config.expected_output_tokens) if call.api_generates else 0
        )
        known = self.estimate(0, 0, None)
        return msgspec.structs.replace(known, output_tokens=out * call.n)

    def estimate(self, output_events: int, output_bytes: int, known: Usage | None) -> Usage:
        """Usage counted by the proxy, where the upstream gave none or its stream broke before the end.

        ``output_bytes`` are the answer's in UTF-8, ``output_events`` those of its stream that carried some of it.
        """
        route = self.route
        assert route is not None  # noqa: S101 - something was asked
        counted = route.rates.output_tokens(output_events, output_bytes)
        body = self.call.request.body
        if known is None:
            return Usage(input_tokens=route.rates.input_tokens(body), output_tokens=counted, estimated=True)
        return msgspec.structs.replace(
            known,
            input_tokens=known.input_tokens or route.rates.input_tokens(body),
            output_tokens=max(known.output_tokens, counted),
            estimated=True,
        )

    def guessed_input(self) -> Usage:
        """Usage at the start of an answer, quickly."""
        route = self.route
        assert route is not None  # noqa: S101 - something was asked
        return Usage(input_tokens=route.rates.quick_input_tokens(self.call.body_bytes), estimated=True)

    # what is said about it

    def headers(self, extra: str = "", *, cost: bool) -> bytes:
        """Response headers of an answer; ``cost`` where it is known before the body goes out."""
        route = self.route
        overhead_s = time.perf_counter() - self.started_s - self.upstream_s
        self.overhead_s = overhead_s = overhead_s if overhead_s > 0.0 else 0.0
        said = ""
        if cost:
            units, mark = spent(self.attempts)
            amount = "" if units is None else f"x-apportion-cost-usd: {usd(units)}\r\n"
            said = f"{amount}x-apportion-cost-mark: {mark}\r\n"
        if self.cached is not None and "made_by" not in self.cached:
            said += f"x-apportion-cache: {self.cached['outcome']}\r\n"
        if self.answer is not None:
            said += f"x-apportion-calls: {self.answer['calls']}\r\n"
        waited_s = sum(attempt.waited_s for attempt in self.attempts)
        if waited_s:
            said += f"x-apportion-queued-ms: {waited_s * 1e3:.1f}\r\n"
        if self.dropped:
            said += f"x-apportion-dropped: {', '.join(self.dropped)}\r\n"
        id = self.request_id
        if self.call.dialect == "anthropic":
            extra += f"request-id: {id}\r\n"
        return (
            f"x-request-id: {id}\r\nx-apportion-decision-id: {self.id}\r\n"
            f"{route.header if route else ''}x-apportion-overhead-ms: {overhead_s * 1e3:.3f}\r\n{said}{extra}"
        ).encode("latin-1")

    def ended(self, status: int, error: str | None = None) -> None:
        """The answer has ended with this HTTP status; ``error`` is the code of the gateway's own, if it was one."""
        self.error = error
        self.done = (status, time.perf_counter() - self.started_s)

    @property
    def last(self) -> Attempt | None:
        """The attempt that the client's answer came from; the last one where none did; None before any."""
        return self.answered_by or (self.attempts[-1] if self.attempts else None)

    def keep(self, body: bytes) -> None:
        """A complete answer, in the client's dialect, is there: others who ask the same may have it."""
        turn, last = self.cache_turn, self.last
        if turn is None or last is None:
            return
        units, _ = spent(self.attempts)
        turn.keep(
            body,
            now=time.time(),
            decision_id=self.id,
            endpoint=last.endpoint,
            usd_pico=units or 0,
        )

    def record(self) -> Record:
        """What is kept of it."""
        call, route, key = self.call, self.route, self.key
        return Record(
            self.id,
            self.request_id,
            self.now,
            key.name,
            key.tags,
            call.api,
            self.group.name,
            call.stream,
            call.constraints,
            self.attempts,
            None if route is None else route.model,
            self.status,
            None if self.done is None else self.done[1],
            self.overhead_s,
            self.parent,
            self.answer,
            self.cached,
            self.verdict,
            self.choosable if self.bare is not None else None,
            None if self.answered_by is None else self.answered_by.endpoint,
        )


def _amount(place: int, units: int) -> Decimal:
    return resource(RESOURCES[place]).from_units(units)


def _seconds(units: int, route: Route, place: int) -> float | None:
    """How long ``route`` may work for so much server time, energy or carbon; None: as long as it likes."""
    return seconds_within(units, route.work(1.0)[place - SERVER])


def limits_headers(job: Job) -> str:
    """``x-ratelimit-*`` of the key's own limits per minute, and warnings of soft budgets; empty without."""
    text = ""
    for purse, limit in job.runtime.books.rates(job.key):
        left = purse.left
        text += f"{limit}x-ratelimit-remaining-{purse.resource}: {left if left > 0 else 0}\r\n"
    if job.lines.soft:
        for warning in books.warnings(job.lines):
            text += f"x-apportion-budget-warning: {warning}\r\n"
    return text
