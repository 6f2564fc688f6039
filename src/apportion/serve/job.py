"""One request on its way through the gateway, and the accounting that its end owes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, TypeVar

import msgspec

from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.outcome import Status
from apportion.core.resource import resource
from apportion.core.state import State
from apportion.measure.price import TokenPrice
from apportion.measure.tokens import most_input_tokens
from apportion.measure.usage import Usage
from apportion.serve import books, errors, identity
from apportion.serve.call import NO_CONSTRAINTS, Call
from apportion.serve.config.schema import Key
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
from apportion.serve.ledger.purse import NO_LINES, Lines, Purse
from apportion.serve.records import Attempt, Record, usd
from apportion.serve.records import cost as spent
from apportion.serve.runtime import Group, Route, Runtime

_BYTES_PER_TOKEN: Final = 4.0
"""Rough length of a token in a request body, for predictions; never for bounds or bills."""
_UNCAPPED_TOKENS: Final = 16_384
"""Output reserved in a hard dollar budget for a request that neither client nor endpoint caps."""
_PICO: Final = 10**12
_LARGEST: Final = 2**62
"""More than any amount that is believed; what the database can keep."""


class Cap:
    """What a route may produce for a request under its limits."""

    __slots__ = ("cut_s", "most_units", "output_tokens", "tokens")

    def __init__(
        self,
        output_tokens: int | None,
        cut_s: float | None,
        most_units: int | None,
        tokens: int | None = None,
    ) -> None:
        self.output_tokens = output_tokens
        """Cap to write into the request, per choice; None leaves what the client said."""
        self.cut_s = cut_s
        """Seconds of machine time after which the budget is gone; None without such a limit."""
        self.most_units = most_units
        """The most the answer can cost, in pico-dollars; None where that is not bounded."""
        self.tokens = tokens
        """The most tokens it can take, input and output; None where that is not bounded."""


NO_CAP: Final = Cap(None, None, None)


class Job:
    """A parsed request, who asked, what was decided for it, and what it cost."""

    __slots__ = (
        "_bound",
        "_tokens_in",
        "attempts",
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
                seconds = _shorter(seconds, _seconds(left, route, place))
        if self.call.constraints is not NO_CONSTRAINTS or self.runtime.books.per_request:
            units, tokens, seconds = self._limited(route, units, tokens, seconds)
        if units is None and tokens is None and seconds is None:
            return NO_CAP
        roomy = self._roomy(route, units, tokens)
        if roomy is not None and seconds is None:
            return roomy
        cut_s = None
        if route.machine is not None and units is not None:
            if units <= 0:
                self._short()
                return None
            free_s = units * 3600 / route.machine.hour if route.machine.hour else None
            seconds = free_s if seconds is None or (free_s is not None and free_s < seconds) else seconds
        total_s = route.endpoint.timeouts.total_s
        if seconds is not None and seconds < total_s:
            if seconds <= 0.0:
                self._short()
                return None
            self.tight = self.tight or self._bound
            cut_s = seconds
        if route.machine is not None:
            units, most = None, route.machine.units(cut_s or total_s)
        else:
            most = None
        return self._capped(route, units, tokens, cut_s, most)

    def _capped(
        self, route: Route, units: int | None, tokens: int | None, cut_s: float | None, most: int | None
    ) -> Cap | None:
        """The output that ``units`` of money and ``tokens`` allow."""
        if units is None and tokens is None:
            return Cap(None, cut_s, most)
        call, price = self.call, self.price(route)
        tokens_in = self.tokens_in()
        if tokens_in is None or (units is not None and price is None):
            self._short()
            return None
        if not call.api_generates:
            if price is not None:
                most = price.most_units(tokens_in, 0)
            if (units is not None and (most or 0) > units) or (tokens is not None and tokens_in > tokens):
                self._short()
                return None
            return Cap(None, cut_s, most, tokens_in)
        within = None
        if units is not None and price is not None:
            within = price.output_tokens_within(units, tokens_in) // call.n
        if tokens is not None:
            room = (tokens - tokens_in) // call.n
            within = room if within is None or room < within else within
        if within is None or within < 1:
            self._short()
            return None
        asked = call.max_output_tokens or route.endpoint.config.max_output_tokens
        if call.constraints.max_usd is None:
            asked = asked or _UNCAPPED_TOKENS
        if asked is not None and within < asked and self._bound:
            self.tight = True
        tokens_out = min(within, asked) if asked else within
        if price is not None:
            most = price.most_units(tokens_in, tokens_out * call.n)
        changed = call.max_output_tokens is None or tokens_out < call.max_output_tokens
        return Cap(tokens_out if changed else None, cut_s, most, tokens_in + tokens_out * call.n)

    def _short(self) -> None:
        """Not even the least fits, as far as is known here."""
        self.tight = self.tight or self._bound

    def _limited(
        self, route: Route, units: int | None, tokens: int | None, seconds: float | None
    ) -> tuple[int | None, int | None, float | None]:
        """What accounts leave, or less where the client or the budgets of one request say so."""
        limits = self.runtime.books.per_request
        asked, joules = self.call.constraints.max_usd, self.call.constraints.max_joules
        usd = None if asked is None else int(asked * _PICO)
        usd = _shorter(usd, limits.get(USD))
        if usd is not None:
            gone = spent(self.attempts)[0] if self.attempts else 0
            usd = 0 if gone is None else max(0, usd - gone)
            if units is None or usd <= units:
                self._bound = False
                units = usd
        most = limits.get(TOKENS)
        if most is not None:
            most -= sum(a.usage.input_tokens + a.usage.output_tokens for a in self.attempts if a.usage)
            tokens = _shorter(tokens, most)
        for place in (SERVER, JOULES, GCO2):
            if place in limits:
                seconds = _shorter(seconds, _seconds(limits[place], route, place))
        if joules is not None:
            seconds = _shorter(seconds, _seconds(int(joules * 1e6), route, JOULES))
        return units, tokens, seconds

    def _roomy(self, route: Route, units: int | None, tokens: int | None) -> Cap | None:
        """The cap of a request that its client capped, if there is room for all of it; else None."""
        asked, tokens_in = self.call.max_output_tokens, self.tokens_in()
        if asked is None or tokens_in is None:
            return None
        price = self.price(route)
        flat = route.flat if price is route.price or price is None else price.flat_rates()
        out = asked * self.call.n
        most = None
        if units is not None:
            if flat is None:
                return None
            most = flat[0] + tokens_in * flat[1] + out * flat[2]
            if most > units:
                return None
        if tokens is not None and tokens_in + out > tokens:
            return None
        return Cap(None, None, most, tokens_in + out)

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

    def options(self, routes: list[Route]) -> list[Option]:
        """The routes as options: value of a right answer times quality, and static predictions of the cost."""
        call, config = self.call, self.group.config
        tokens_in = call.body_bytes / _BYTES_PER_TOKEN
        cap = call.max_output_tokens
        expected = config.expected_output_tokens if call.api_generates else 0
        tokens_out = (expected if cap is None or cap > expected else cap) * call.n
        worth = config.worth_usd
        if worth is not None and call.constraints.effort is not None:
            worth *= call.constraints.effort
        return [route.option(tokens_in, tokens_out, worth) for route in routes]

    def decide(self, routes: list[Route]) -> Route:
        """Ask the group's policy. Raises ``ConstraintError`` when it chooses none of them."""
        call = self.call
        context: dict[str, object] = {
            "api": call.api,
            "key": self.key.name,
            "input_tokens": call.body_bytes / _BYTES_PER_TOKEN,
            "stream": call.stream,
            "attempt": self.tries,
        }
        if call.constraints.effort is not None:
            context["effort"] = call.constraints.effort
        if call.constraints.priority is not None:
            context["priority"] = call.constraints.priority
        if call.constraints.tags:
            context["tags"] = call.constraints.tags
        if call.user is not None:
            context["user"] = call.user
        state = State(self.now, self.options(routes), self.id, context, self.sheet.prices(self.now))
        decision = self.decision = self.group.policy.decide(state)
        if decision.choice is None:
            raise errors.ConstraintError(
                f"The policy of model {self.group.name!r} chose nothing: {decision.why}."
            )
        self.route = routes[decision.choice]
        return self.route

    # the books

    def _held(self, route: Route, cap: Cap) -> tuple[int, ...]:
        """The most this attempt may cost, by place. The first one counts the request."""
        call, group = self.call, self.group
        body = call.body_bytes
        estimated = int(body / _BYTES_PER_TOKEN)
        out = 0
        if call.api_generates:
            asked = cap.output_tokens or call.max_output_tokens
            estimated += (asked or group.config.expected_output_tokens) * call.n
            out = (asked or route.endpoint.config.max_output_tokens or _UNCAPPED_TOKENS) * call.n
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

    def _entry(self, route: Route, held: tuple[int, ...]) -> Entry:
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
            route.endpoint.name,
            route.model,
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
        ledger = self.runtime.ledger
        lines = self.lines = self.lines_of(route)
        held = self._held(route, cap)
        entry = self._entry(route, held)
        try:
            found = ledger.take(lines, held, entry)
            if found is None and flush():
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
        )
        self.attempts.append(attempt)
        self.first_chunk_s = None
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
        )


_Number = TypeVar("_Number", int, float)


def _shorter(one: _Number | None, other: _Number | None) -> _Number | None:
    """The smaller of two limits; None is no limit."""
    if one is None or (other is not None and other < one):
        return other
    return one


def _amount(place: int, units: int) -> Decimal:
    return resource(RESOURCES[place]).from_units(units)


def _seconds(units: int, route: Route, place: int) -> float | None:
    """How long ``route`` may work for so much server time, energy or carbon; None: as long as it likes."""
    rate = route.work(1.0)[place - SERVER]
    if rate is None:
        return 0.0  # what cannot be measured is not promised
    return units / rate if rate else None


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
