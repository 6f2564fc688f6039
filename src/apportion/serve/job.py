"""One request on its way through the gateway, and the accounting that its end owes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from apportion.core.budget import Account
from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.outcome import Status
from apportion.core.state import State
from apportion.measure.tokens import most_input_tokens
from apportion.measure.usage import Usage
from apportion.serve import books, errors
from apportion.serve.books import NO_ACCOUNTS, Amounts
from apportion.serve.call import Call
from apportion.serve.config.schema import Key
from apportion.serve.http.server import Responder
from apportion.serve.records import Attempt, Record, usd
from apportion.serve.records import cost as spent
from apportion.serve.runtime import Group, Route, Runtime

_BYTES_PER_TOKEN: Final = 4.0
"""Rough length of a token in a request body, for predictions; never for bounds or bills."""
_CHARS_PER_TOKEN: Final = 4.5
_UNCAPPED_TOKENS: Final = 16_384
"""Output reserved in a hard dollar budget for a request that neither client nor endpoint caps."""
_PICO: Final = 10**12


class Cap:
    """What a route may produce for a request under its dollar limits."""

    __slots__ = ("cut_s", "most_units", "output_tokens")

    def __init__(self, output_tokens: int | None, cut_s: float | None, most_units: int | None) -> None:
        self.output_tokens = output_tokens
        """Cap to write into the request, per choice; None leaves what the client said."""
        self.cut_s = cut_s
        """Seconds of machine time after which the money is gone; None without such a limit."""
        self.most_units = most_units
        """The most the answer can cost, in pico-dollars; None where that is not bounded."""


NO_CAP: Final = Cap(None, None, None)


class Job:
    """A parsed request, who asked, what was decided for it, and what it cost."""

    __slots__ = (
        "_tokens_in",
        "accounts",
        "attempts",
        "call",
        "counted",
        "decision",
        "done",
        "dropped",
        "error",
        "first_chunk_s",
        "group",
        "held",
        "id",
        "key",
        "now",
        "overhead_s",
        "request_id",
        "responder",
        "route",
        "runtime",
        "sheet",
        "started_s",
        "status",
        "tight",
        "tries",
        "upstream_s",
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
        """Whether dollar limits had to be looked at closely."""
        self._tokens_in: int | None = -1
        self.accounts = NO_ACCOUNTS
        self.held: Amounts | None = None
        """The amounts reserved in ``accounts``, while they are."""
        self.sheet = runtime.books.sheet(key.name, group.name)

    # what may be chosen

    def tokens_in(self) -> int | None:
        """The most input tokens the request can have; None where it does not tell."""
        if self._tokens_in == -1:
            self._tokens_in = most_input_tokens(self.call.request.body)
        return self._tokens_in

    def cap(self, route: Route) -> Cap | None:
        """What ``route`` may produce under the dollar limits; None if not even the least fits."""
        call = self.call
        limit = self._max_units()
        accounts = self.runtime.books.accounts(self.key.name, self.group.name, route.endpoint.name)
        if limit is None:
            if not accounts.usd:
                return NO_CAP
            most = self._roomy(route, accounts.usd)
            if most is not None:
                return Cap(None, None, most)
        self.tight = True
        left = books.usd_left_units(accounts, self.now)
        units = limit if limit is not None else left or 0
        if left is not None and left < units:
            units = left
        if route.machine is not None:
            most = route.machine.units(route.endpoint.timeouts.total_s)
            if most <= units:
                return Cap(None, None, most)
            return Cap(None, units * 3600 / route.machine.hour, units) if units > 0 else None
        tokens_in = self.tokens_in()
        if route.price is None or tokens_in is None:
            return None
        if not call.api_generates:
            most = route.price.most_units(tokens_in, 0)
            return Cap(None, None, most) if most <= units else None
        within = route.price.output_tokens_within(units, tokens_in) // call.n
        if within < 1:
            return None
        asked = call.max_output_tokens or route.endpoint.config.max_output_tokens
        if limit is None:
            asked = asked or _UNCAPPED_TOKENS
        tokens_out = min(within, asked) if asked else within
        most = route.price.most_units(tokens_in, tokens_out * call.n)
        changed = call.max_output_tokens is None or tokens_out < call.max_output_tokens
        return Cap(tokens_out if changed else None, None, most)

    def _max_units(self) -> int | None:
        """What of ``max_usd`` earlier attempts have left, in pico-dollars; None without the constraint."""
        limit = self.call.constraints.max_usd
        if limit is None:
            return None
        gone = spent(self.attempts)[0] if self.attempts else 0
        return 0 if gone is None else max(0, int(limit * _PICO) - gone)

    def _roomy(self, route: Route, accounts: tuple[Account, ...]) -> int | None:
        """The most that a request capped by its client can cost, if every account has more than that; else None.

        The levels may be older than now: they only rise with time.
        """
        asked, flat, tokens_in = self.call.max_output_tokens, route.flat, self.tokens_in()
        if asked is None or flat is None or tokens_in is None:
            return None
        most = flat[0] + tokens_in * flat[1] + asked * self.call.n * flat[2]
        for account in accounts:
            if account.level_units < most:
                return None
        return most

    def unaffordable(self, routes: Sequence[Route]) -> errors.GatewayError:
        """Why none of ``routes`` fits the dollar limits, and the least that one would cost."""
        limit = self.call.constraints.max_usd
        hard = limit is None
        if all(not route.priced for route in routes):
            return errors.UnknownPriceError(
                f"A hard dollar limit applies and the price of model {self.group.name!r} is unknown.",
                field=None if hard else "apportion.max_usd",
                fix="Give the endpoint a price, or say what to assume (unknown_price).",
                details={"constraint": "budget" if hard else "max_usd", "best": None},
            )
        tokens_in = self.tokens_in()
        if tokens_in is None:
            return errors.ConstraintError(
                "A hard dollar limit applies and the cost of this input cannot be bounded "
                "(remote files or images, or tools that the provider runs).",
                field=None if hard else "apportion.max_usd",
                fix="Send the content inline.",
                details={"constraint": "budget" if hard else "max_usd", "best": None},
            )
        out = self.call.n if self.call.api_generates else 0
        least = min((r.price.most_units(tokens_in, out) for r in routes if r.price is not None), default=0)
        details: dict[str, object] = {"constraint": "max_usd", "best": {"max_usd": usd(least)}}
        said = f"The least this request can be sure to cost at most is ${usd(least)}"
        if hard:
            details["constraint"] = "budget"
            return errors.BudgetExceededError(
                f"{said}; the gateway's dollar budgets allow less now.", details=details
            )
        return errors.ConstraintError(
            f"{said}; 'max_usd' is {limit:g}.",
            field="apportion.max_usd",
            fix=f"Allow at least {usd(least)}.",
            details=details,
        )

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

    def reserve(self, route: Route, cap: Cap) -> None:
        """Hold the most this attempt may cost, in every account it falls under. The first one counts the request."""
        accounts = self.accounts = self.runtime.books.accounts(
            self.key.name, self.group.name, route.endpoint.name
        )
        first = not self.counted
        if first:
            books.count(accounts, self.now)
            self.counted = True
        if not accounts.metered:
            return
        call = self.call
        tokens = int(call.body_bytes / _BYTES_PER_TOKEN)
        if call.api_generates:
            out = cap.output_tokens or call.max_output_tokens or self.group.config.expected_output_tokens
            tokens += out * call.n
        amounts = (tokens, cap.most_units or 0, route.most_server_units, 0)
        try:
            books.reserve(accounts, amounts, self.now)
        except errors.GatewayError:
            if first:  # what is refused has cost nobody a request
                for account in accounts.counted:
                    account.refund(1, self.now)
                self.counted = False
            raise
        self.held = amounts

    def give_back(self) -> None:
        """Release what is reserved, if anything (nothing was sent)."""
        if self.held is not None:
            held, self.held = self.held, None
            books.release(self.accounts, held, time.time())

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

    def estimate(self, output_events: int, output_chars: int, known: Usage | None) -> Usage:
        """Usage counted by the proxy, where the upstream gave none or its stream broke before the end."""
        counted = max(output_events, round(output_chars / _CHARS_PER_TOKEN))
        if known is not None:
            return msgspec.structs.replace(
                known, output_tokens=max(known.output_tokens, counted), estimated=True
            )
        return Usage(
            input_tokens=max(1, round(self.call.body_bytes / _BYTES_PER_TOKEN)),
            output_tokens=counted,
            estimated=True,
        )

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


def limits_headers(job: Job) -> str:
    """``x-ratelimit-*`` of the key's own limits per minute; empty where it has none."""
    text = ""
    for account, limit in job.runtime.rates[job.key.name]:
        left = account.level_units
        name = account.resource
        text += f"{limit}x-ratelimit-remaining-{name}: {left if left > 0 else 0}\r\n"
    return text
