"""One request on its way through the gateway, and the accounting that its end owes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from apportion.core.budget import Account
from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.resource import SERVER_SECONDS
from apportion.core.state import State
from apportion.measure.tokens import most_input_tokens
from apportion.measure.usage import Usage
from apportion.serve import books, errors
from apportion.serve.call import Call
from apportion.serve.config.schema import Key
from apportion.serve.http.server import Responder
from apportion.serve.meters import Meters
from apportion.serve.records import Attempt, Record, Records, usd
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


_NO_CAP: Final = Cap(None, None, None)


class Job:
    """A parsed request, who asked, what was decided for it, and what it cost."""

    __slots__ = (
        "accounts",
        "attempts",
        "call",
        "decision",
        "dropped",
        "first_chunk_s",
        "group",
        "held",
        "id",
        "key",
        "meters",
        "now",
        "record",
        "request_id",
        "responder",
        "route",
        "runtime",
        "sheet",
        "started_s",
        "upstream_s",
    )

    def __init__(
        self,
        runtime: Runtime,
        call: Call,
        key: Key,
        group: Group,
        responder: Responder,
        meters: Meters,
        records: Records,
        number: str,
    ) -> None:
        self.runtime = runtime
        self.call = call
        self.key = key
        self.group = group
        self.responder = responder
        self.meters = meters
        self.id = "dec_" + number
        self.request_id = "req_" + number
        self.started_s = call.request.received_s
        self.now = time.time()
        self.upstream_s = 0.0
        """Time spent waiting for upstreams (and between attempts), in seconds."""
        self.attempts = 0
        self.first_chunk_s: float | None = None
        """From the request sent to the first content of the attempt under way."""
        self.dropped: tuple[str, ...] = ()
        """Fields of the request that the endpoint's dialect has no place for."""
        self.route: Route | None = None
        self.decision: Decision | None = None
        self.accounts: tuple[Account, ...] = ()
        self.held: list[int] | None = None
        """What is reserved in each of ``accounts``, while it is."""
        self.sheet = runtime.books.sheet(key.name, group.name)
        record = self.record = Record(self.id, self.request_id, self.now, key.name, call.api, group.name)
        record.stream = call.stream
        constraints = call.constraints
        record.effort = constraints.effort
        record.priority = constraints.priority
        record.tags = constraints.tags
        record.key_tags = key.tags
        records.keep(record)

    # what may be chosen

    def cap(self, route: Route) -> Cap | None:
        """What ``route`` may produce under the dollar limits; None if not even the least fits."""
        call = self.call
        limit = call.constraints.max_usd
        if limit is None and not self.runtime.books.caps_usd:
            return _NO_CAP
        accounts = self.runtime.books.accounts(self.key.name, self.group.name, route.endpoint.name)
        left = books.usd_left_units(accounts, self.now)
        if left is None and limit is None:
            return _NO_CAP
        units = left if left is not None else int(limit * _PICO) if limit is not None else 0
        if limit is not None:
            units = min(units, int(limit * _PICO))
        if route.machine is not None:
            return Cap(None, units * 3600 / route.machine.hour, units) if route.machine.hour else _NO_CAP
        if route.price is None:
            return None
        tokens_in = most_input_tokens(call.request.body)
        if tokens_in is None:
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
        tokens_in = most_input_tokens(self.call.request.body)
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
        found = []
        for route in routes:
            amounts: dict[str, float] = {"tokens": tokens_in + tokens_out, "requests": 1.0}
            if route.price is not None:
                amounts["usd"] = route.usd_request + route.usd_in * tokens_in + route.usd_out * tokens_out
            if route.mean_server_s is not None:
                amounts["server_seconds"] = route.mean_server_s
            if route.ttft_s is not None:
                speed = route.output_tokens_per_s
                amounts["seconds"] = seconds = route.ttft_s + (tokens_out / speed if speed else 0.0)
                amounts.setdefault("server_seconds", seconds)
            if route.machine is not None and "server_seconds" in amounts:
                amounts["usd"] = route.machine.hour * 1e-12 / 3600 * amounts["server_seconds"]
            value = 0.0 if worth is None else worth * (1.0 if route.quality is None else route.quality)
            found.append(
                Option(route.action, value, Cost.of(amounts), load=route.endpoint.load, weight=route.weight)
            )
        return found

    def decide(self, routes: list[Route]) -> Route:
        """Ask the group's policy. Raises ``ConstraintError`` when it chooses none of them."""
        call = self.call
        context: dict[str, object] = {
            "api": call.api,
            "key": self.key.name,
            "input_tokens": call.body_bytes / _BYTES_PER_TOKEN,
            "stream": call.stream,
            "attempt": self.attempts,
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
        route = self.route = routes[decision.choice]
        self.record.upstream_model = route.model
        return route

    # the books

    def reserve(self, route: Route, cap: Cap) -> None:
        """Hold the most this attempt may cost, in every account it falls under."""
        accounts = self.accounts = self.runtime.books.accounts(
            self.key.name, self.group.name, route.endpoint.name
        )
        if not accounts:
            return
        call = self.call
        tokens_out = 0
        if call.api_generates:
            tokens_out = (
                cap.output_tokens or call.max_output_tokens or self.group.config.expected_output_tokens
            )
        amounts = {
            "requests": 1,
            "tokens": int(call.body_bytes / _BYTES_PER_TOKEN) + tokens_out * call.n,
            "usd": cap.most_units or 0,
        }
        self.held = books.reserve(accounts, amounts, self.now)

    def settle(
        self,
        status: Status,
        usage: Usage | None,
        server_s: float,
        *,
        finish: str | None = None,
        failure: str | None = None,
        http_status: int = 200,
        duration_s: float = 0.0,
        censored: bool = False,
    ) -> int | None:
        """Book one attempt: accounts, prices, policy, metrics, record. Returns pico-dollars, None if unknown.

        ``usage`` None means that nothing was produced (an attempt that failed before any content).
        """
        route, record, now = self.route, self.record, time.time()
        if route is None:
            return None
        price, machine = route.price, route.machine
        units: int | None
        tokens_in = tokens_out = 0
        estimated = False
        if usage is not None:
            tokens_in, tokens_out, estimated = usage.input_tokens, usage.output_tokens, usage.estimated
            units = machine.units(server_s) if machine else price.units(usage) if price else None
            record.input_tokens = (record.input_tokens or 0) + tokens_in
            record.output_tokens = (record.output_tokens or 0) + tokens_out
            route.measured(server_s)
        else:
            units = machine.units(server_s) if machine else 0
        tokens = tokens_in + tokens_out
        held = self.held
        if held is not None:
            self.held = None
            amounts = {"requests": 1, "tokens": tokens, "server_seconds": SERVER_SECONDS.to_units(server_s)}
            if units is not None:
                amounts["usd"] = units
            books.settle(self.accounts, held, amounts, now)
        known: dict[str, float] = {
            "tokens": float(tokens),
            "server_seconds": server_s,
            "seconds": duration_s,
            "requests": 1.0,
        }
        spent_usd = None
        if units is not None:
            known["usd"] = spent_usd = units * 1e-12
            record.cost_units = (record.cost_units or 0) + units
            record.cost_mark = "estimated" if estimated or record.cost_mark == "estimated" else "measured"
        else:
            record.cost_units = None
            record.cost_mark = "unknown"
        worth = self.group.config.worth_usd
        value = 0.0 if worth is None or status != "ok" else worth * (route.quality or 1.0)
        self.sheet.spent(spent_usd, tokens, server_s, value, now)
        self.group.policy.learn(
            Outcome(self.id, status, route.action, Cost.of(known), None, duration_s, censored)
        )
        route.meters.book(tokens_in, tokens_out, spent_usd, server_s)
        record.server_s = (record.server_s or 0.0) + server_s
        record.status = status
        record.finish_reason = finish
        self.meters.attempted(self.group.name, route.endpoint.name, "ok" if failure is None else failure)
        decision = self.decision
        if decision is not None:
            record.attempts.append(
                Attempt(
                    decision,
                    route.endpoint.name,
                    http_status,
                    failure,
                    duration_s * 1e3,
                    model=route.model,
                    usage=usage,
                    cost_units=units,
                    ended_s=time.perf_counter(),
                    first_chunk_s=self.first_chunk_s,
                )
            )
            self.first_chunk_s = None
        return units

    def give_back(self) -> None:
        """Release what is reserved, if anything (nothing was sent)."""
        if self.held is not None:
            held, self.held = self.held, None
            books.release(self.accounts, held, time.time())

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
        record, route = self.record, self.route
        now_s = time.perf_counter()
        overhead_ms = max(0.0, now_s - self.started_s - self.upstream_s) * 1e3
        record.overhead_ms = overhead_ms
        lines = (
            f"x-request-id: {self.request_id}\r\nrequest-id: {self.request_id}\r\n"
            f"x-apportion-decision-id: {self.id}\r\n{route.header if route else ''}"
            f"x-apportion-overhead-ms: {overhead_ms:.3f}\r\n{extra}"
        )
        if self.dropped:
            lines += f"x-apportion-dropped: {', '.join(self.dropped)}\r\n"
        if cost:
            units = record.cost_units
            said = "" if units is None else f"x-apportion-cost-usd: {usd(units)}\r\n"
            lines += f"{said}x-apportion-cost-mark: {record.cost_mark}\r\n"
        return lines.encode("latin-1")

    def finished(self) -> None:
        """The answer has ended, whatever way."""
        now_s = time.perf_counter()
        duration_s = now_s - self.started_s
        record, route = self.record, self.route
        record.duration_ms = duration_s * 1e3
        if route is not None:
            route.meters.duration_s.observe(duration_s)
            if record.overhead_ms is not None:
                route.meters.overhead_s.observe(record.overhead_ms * 1e-3)


def limits_headers(job: Job) -> str:
    """``x-ratelimit-*`` of the key's own limits per minute; empty where it has none."""
    text = ""
    for account in job.runtime.rates[job.key.name]:
        name = account.resource
        left = account.level_units
        limit = account.budget.amount
        text += f"x-ratelimit-limit-{name}: {limit:.0f}\r\nx-ratelimit-remaining-{name}: {left if left > 0 else 0}\r\n"
    return text
