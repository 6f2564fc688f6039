"""What an answer costs in dollars, exactly: whole numbers of pico-dollars (10^-12 USD) all the way.

A price of p dollars per million tokens is p * 10^6 pico-dollars per token, so every published price (six
decimals at most) is a whole number and sums of costs never drift. What is not known is None, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Self

from apportion.core.prospect import TokenUsd
from apportion.measure.usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

Amount = int | float | str | Decimal

_PUSD = 10**12
_USD = 1e-12
_PUSD_PER_TOKEN = 10**6
"""Pico-dollars per token of one dollar per million tokens."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Prices of one model at one place, in pico-dollars per token (``request``: per request).

    The parts of a `Usage` lie inside its totals: cached and cache-writing tokens are input tokens that cost
    something else, reasoning and audio tokens likewise. ``reasoning``, ``audio_input`` and ``audio_output``
    None means that they cost what the rest of their side costs.

    ``tiers`` are ``(above, price)``, highest first: a request with more than ``above`` input tokens pays
    ``price`` for all of its tokens, as every provider with long-context prices counts.

    ``web_search`` and ``file_search`` are pico-dollars for each call of a tool that the provider runs. How many
    calls a request leads to is not known before, so no bound includes them.

    ``services`` are the prices of other classes of service by the provider's word ("priority", "flex"); an answer
    is charged by the class that it says it was served with.

    ``reports``: the provider tells in each answer what it charged, and that is believed.

    ``changes_at`` is the Unix time in seconds at which the published price changes next, None if no
    change is published.
    """

    input: int
    output: int
    cached_input: int
    cache_write: int
    cache_write_1h: int
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    request: int = 0
    tiers: tuple[tuple[int, TokenPrice], ...] = ()
    changes_at: float | None = None
    image_input: int | None = None
    image_output: int | None = None
    web_search: int = 0
    file_search: int = 0
    services: tuple[tuple[str, TokenPrice], ...] = ()
    reports: bool = False

    @classmethod
    def of(
        cls,
        *,
        input_usd_per_mtok: Amount,
        output_usd_per_mtok: Amount,
        cached_input_usd_per_mtok: Amount | None = None,
        cache_write_usd_per_mtok: Amount | None = None,
        cache_write_1h_usd_per_mtok: Amount | None = None,
        request_usd: Amount = 0,
    ) -> Self:
        """Prices from dollars per million tokens and dollars per request.

        What is None costs as its whole: cached and cache-writing tokens as input, writing for an hour as
        writing for five minutes. Raises `ValueError` for an amount that is negative or not finite.
        """
        whole = per_token(input_usd_per_mtok)
        write = whole if cache_write_usd_per_mtok is None else per_token(cache_write_usd_per_mtok)
        return cls(
            input=whole,
            output=per_token(output_usd_per_mtok),
            cached_input=whole if cached_input_usd_per_mtok is None else per_token(cached_input_usd_per_mtok),
            cache_write=write,
            cache_write_1h=write
            if cache_write_1h_usd_per_mtok is None
            else per_token(cache_write_1h_usd_per_mtok),
            request=_whole(request_usd, _PUSD),
        )

    def units(self, usage: Usage) -> int:
        """What ``usage`` costs, in pico-dollars."""
        if self.reports and usage.billed_units is not None:
            return usage.billed_units
        if usage.service:
            served = self.of_service(usage.service)
            if served is not self:
                return served.units(usage)
        tokens_in = usage.input_tokens
        for above, price in self.tiers:
            if tokens_in > above:
                return price.units(usage)
        cached = usage.cached_input_tokens
        write = usage.cache_write_tokens
        write_1h = usage.cache_write_1h_tokens
        tokens_out = usage.output_tokens
        total = (
            self.request
            + cached * self.cached_input
            + write * self.cache_write
            + write_1h * self.cache_write_1h
        )
        tokens_in -= cached + write + write_1h
        if self.audio_input is not None:
            total += usage.audio_input_tokens * self.audio_input
            tokens_in -= usage.audio_input_tokens
        if self.reasoning is not None:
            total += usage.reasoning_tokens * self.reasoning
            tokens_out -= usage.reasoning_tokens
        if self.audio_output is not None:
            total += usage.audio_output_tokens * self.audio_output
            tokens_out -= usage.audio_output_tokens
        if self.image_input is not None:
            total += usage.image_input_tokens * self.image_input
            tokens_in -= usage.image_input_tokens
        if self.image_output is not None:
            total += usage.image_output_tokens * self.image_output
            tokens_out -= usage.image_output_tokens
        if usage.web_searches or usage.file_searches:
            total += usage.web_searches * self.web_search + usage.file_searches * self.file_search
        # Parts that exceed their whole are a provider's slip; the whole then counts no less than nothing.
        if tokens_in > 0:
            total += tokens_in * self.input
        if tokens_out > 0:
            total += tokens_out * self.output
        return total

    def usd(self) -> TokenUsd:
        """The prices in dollars, for predictions."""
        return TokenUsd(self.request * _USD, self.input * _USD, self.cached_input * _USD, self.output * _USD)

    def of_service(self, service: str | None) -> TokenPrice:
        """The prices of a class of service, as a request or an answer names it; these where it has none of its own."""
        for name, price in self.services:
            if name == service:
                return price
        return self

    def most_units(self, input_tokens: int, output_tokens: int, *, cache_writes: bool = True) -> int:
        """The most that a request can cost, in pico-dollars, with at most so many tokens of each side.

        ``cache_writes`` False promises that nothing is written to a cache at an extra price.
        """
        request, rate_in, rate_out = self._most(input_tokens, cache_writes)
        return request + input_tokens * rate_in + output_tokens * rate_out

    def flat_rates(self) -> tuple[int, int, int] | None:
        """The most that a request, an input token and an output token can cost; None if that depends on the size."""
        return None if self.tiers else self._most(0, True)

    def output_tokens_within(
        self, usd_units: int, input_tokens: int, *, cache_writes: bool = True, most: int = 2**31 - 1
    ) -> int:
        """The largest output cap with which a request cannot cost more than ``usd_units`` pico-dollars.

        At most ``most``. 0 says that not even one output token fits.
        """
        request, rate_in, rate_out = self._most(input_tokens, cache_writes)
        left = usd_units - request - input_tokens * rate_in
        if left < 0:
            return 0
        return most if rate_out == 0 else min(most, left // rate_out)

    def _most(self, input_tokens: int, cache_writes: bool) -> tuple[int, int, int]:
        """The highest price of a request, an input token and an output token over the tiers within reach."""
        rates_in = [self.input, self.cached_input, self.audio_input or 0, self.image_input or 0]
        if cache_writes:
            rates_in += (self.cache_write, self.cache_write_1h)
        rates_out = (self.output, self.reasoning or 0, self.audio_output or 0, self.image_output or 0)
        highest = (self.request, max(rates_in), max(rates_out))
        for above, price in self.tiers:
            if input_tokens > above:
                request, rate_in, rate_out = price._most(0, cache_writes)
                highest = (max(highest[0], request), max(highest[1], rate_in), max(highest[2], rate_out))
        return highest


FREE = TokenPrice(input=0, output=0, cached_input=0, cache_write=0, cache_write_1h=0)
"""Known to cost nothing, which is not the same as unknown."""


@dataclass(frozen=True, slots=True)
class MachinePrice:
    """A machine of one's own: pico-dollars per hour, charged for measured server-seconds."""

    hour: int

    @classmethod
    def of(cls, usd_per_hour: Amount) -> Self:
        """The price of a machine that costs ``usd_per_hour`` dollars per hour."""
        return cls(hour=_whole(usd_per_hour, _PUSD))

    @property
    def usd_per_s(self) -> float:
        """Dollars for a server-second, for predictions."""
        return self.hour * _USD / 3600

    def units(self, server_seconds: float) -> int:
        """What ``server_seconds`` of the machine cost, in pico-dollars, to the nearest."""
        nanoseconds = round(server_seconds * 1e9)
        hour_ns = 3600 * 10**9
        return (self.hour * nanoseconds + hour_ns // 2) // hour_ns


def per_token(usd_per_mtok: Amount) -> int:
    """Pico-dollars per token of a price in dollars per million tokens, to the nearest whole number."""
    return _whole(usd_per_mtok, _PUSD_PER_TOKEN)


def hosted_price(
    model: str,
    base_url: str | None = None,
    provider: str | None = None,
    *,
    at: datetime | None = None,
    context: Mapping[str, str] | None = None,
) -> TokenPrice | None:
    """The published price of a hosted model, from the tables in the ``genai-prices`` package (no network).

    ``provider`` is an id of that package ("openai", ...); else the place is told by ``base_url``; else by the
    model's name. ``at`` (default: now) picks among dated prices, ``context`` among variants such
    as ``{"service_tier": "priority"}``. None: unknown, because the place or the model is not in the tables,
    or is not priced by the token. Without a ``context`` the prices of the classes of service that the tables know
    are in `TokenPrice.services`.
    """
    from genai_prices.data_snapshot import get_snapshot

    if at is None:
        at = datetime.now(tz=UTC)
    try:
        place, found = get_snapshot().find_provider_model(
            model, None, provider, None if provider is not None else base_url
        )
    except LookupError:
        return None
    prices = found.get_prices(at, dict(context) if context else None)
    price = _from_table(prices)
    if price is None:
        return None
    services = {} if context else _services(found, at)
    return replace(
        price,
        changes_at=_next_change(found, at),
        services=tuple((name, served) for name, served in services.items() if served != price),
        reports=place.id in _REPORTING,
    )


_REPORTING = frozenset(("openrouter", "perplexity", "x-ai"))
"""Providers whose usage says what the answer was charged. OpenRouter: "the total amount charged to your account";
xAI: "the actual amount billed"; Perplexity: `cost.total_cost`."""
_SERVICE_KEYS = frozenset(("service_tier", "speed"))


def _services(model: ModelInfo, at: datetime) -> dict[str, TokenPrice]:
    """The prices of other classes of service, by the word that requests and answers name them with."""
    found: dict[str, TokenPrice] = {}
    for variant in model.price_variants or ():
        if len(variant.when) == 1 and not variant.when.keys().isdisjoint(_SERVICE_KEYS):
            (name,) = variant.when.values()
            price = _from_table(model.get_prices(at, dict(variant.when)))
            if price is not None:
                found[name] = price
    return found


def _from_table(prices: ModelPrice) -> TokenPrice | None:
    if prices.input_mtok is None:
        return None
    starts = sorted({start for value in vars(prices).values() for start in _starts(value)}, reverse=True)
    tiers = tuple((start, _row(prices, start + 1)) for start in starts)
    return replace(_row(prices, 0), tiers=tiers)


def _row(prices: ModelPrice, input_tokens: int) -> TokenPrice:
    """The prices that a request with so many input tokens pays.

    A table that prices input alone (embeddings, rankers) is of a model without output.
    """

    def rate(key: str) -> int | None:
        value: Any = getattr(prices, key)
        return None if value is None else per_token(_value_at(value, input_tokens))

    def each(key: str) -> int:
        value: Any = getattr(prices, key)
        return 0 if value is None else _whole(_value_at(value, input_tokens), _PUSD // 1000)

    whole = rate("input_mtok") or 0
    cached, write, write_1h = rate("cache_read_mtok"), rate("cache_write_mtok"), rate("cache_write_1h_mtok")
    if write is None:
        write = whole
    return TokenPrice(
        input=whole,
        output=rate("output_mtok") or 0,
        cached_input=whole if cached is None else cached,
        cache_write=write,
        cache_write_1h=write if write_1h is None else write_1h,
        reasoning=rate("output_reasoning_mtok"),
        audio_input=rate("input_audio_mtok"),
        audio_output=rate("output_audio_mtok"),
        request=each("requests_kcount"),
        image_input=rate("input_image_mtok"),
        image_output=rate("output_image_mtok"),
        web_search=each("web_searches_kcount"),
        file_search=each("storage_searches_kcount"),
    )


def _starts(value: Any) -> list[int]:
    return [tier.start for tier in getattr(value, "tiers", ())]


def _value_at(value: Any, input_tokens: int) -> Decimal:
    """A price, which may be in tiers (ascending), for a request with so many input tokens."""
    applies: Decimal = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if input_tokens > tier.start:
            applies = tier.price
    return applies


def _next_change(model: ModelInfo, at: datetime) -> float | None:
    """The next moment after ``at`` (Unix seconds) at which a dated or daily price begins or ends."""
    prices = model.prices if isinstance(model.prices, list) else []
    moments: list[datetime] = []
    for constraint in [entry.constraint for entry in (*prices, *(model.price_variants or ()))]:
        start = getattr(constraint, "start_date", None)
        if start is not None:
            moments.append(datetime(start.year, start.month, start.day, tzinfo=UTC))
        for name in ("start_time", "end_time"):
            daily = getattr(constraint, name, None)
            if daily is not None:
                today = datetime.combine(at.astimezone(UTC).date(), daily)
                today = today.replace(tzinfo=UTC) if today.tzinfo is None else today
                moments += [today + timedelta(days=days) for days in (-1, 0, 1, 2)]
    coming = [moment.timestamp() for moment in moments if moment > at]
    return min(coming, default=None)


def _whole(amount: Amount, units: int) -> int:
    """``amount`` times ``units`` as the nearest whole number; a float counts as the decimal written."""
    exact = amount if isinstance(amount, Decimal) else Decimal(str(amount))
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"A price must be a finite number of zero or more, got {amount!r}.")
    return int((exact * units).to_integral_value(ROUND_HALF_EVEN))
