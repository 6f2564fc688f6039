"""What a route is predicted to be worth and to cost: prices, speeds, and smoothed means of what it did before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from apportion.core.cost import Cost
from apportion.core.features import Features
from apportion.core.option import Option
from apportion.core.predictor import Estimate, LatencyPredictor, LengthPredictor
from apportion.core.resource import SERVER_SECONDS

SMOOTHING: Final = 0.1
"""The weight of the newest answer in every mean here: about the last twenty count."""
BYTES_PER_TOKEN: Final = 4.0
"""Rough length of a token in a request's body, for predictions; never for bounds or bills."""
LONG_TOKENS: Final = 200.0
"""An answer longer than this is long to a queue that wants to know."""
_POINTS: Final = 8


class Draws(Protocol):
    """What work takes in energy and emits (`measure.energy.Power`)."""

    def joules(self, server_s: float) -> float:
        """Joules of so many seconds of work."""
        ...

    def gco2(self, server_s: float) -> float | None:
        """Grams of CO2 of so many seconds of work; None: not known."""
        ...

    def joules_units(self, server_ns: int) -> int:
        """The same for nanoseconds, exactly: micro-joules."""
        ...

    def gco2_units(self, server_ns: int) -> int | None:
        """Micro-grams of CO2."""
        ...


class TokenUsd(NamedTuple):
    """Dollars for a request, and for an input, a cached input and an output token."""

    request: float
    input: float
    cached: float
    output: float


class Prospect:
    """One endpoint in the role of one model, as far as predicting goes. Both worlds predict with it.

    Priced by the token (``token_usd``), by the machine's time (``machine_usd_per_s`` for each server-second), or
    unknown. ``ttft_s`` and ``output_tokens_per_s`` are what the configuration says of its speed, ``capacity`` how many
    requests it works on at once; None is unknown.
    """

    __slots__ = (
        "action",
        "cache_rate",
        "facts",
        "machine_usd_per_s",
        "mean_output_tokens",
        "mean_server_s",
        "output_tokens_per_s",
        "power",
        "predicted_as",
        "quality",
        "server_s_per_token",
        "token_priced",
        "ttft_s",
        "usd_cached",
        "usd_in",
        "usd_out",
        "usd_request",
        "weight",
    )

    def __init__(
        self,
        action: str,
        *,
        quality: float | None = None,
        weight: float = 1.0,
        ttft_s: float | None = None,
        output_tokens_per_s: float | None = None,
        capacity: float | None = None,
        token_usd: TokenUsd | None = None,
        machine_usd_per_s: float | None = None,
        power: Draws | None = None,
    ) -> None:
        self.action = action
        self.quality = quality
        self.weight = weight
        self.ttft_s = ttft_s
        self.output_tokens_per_s = output_tokens_per_s
        self.facts = None if capacity is None else {"capacity": float(capacity)}
        """What else policies may know of it."""
        self.token_priced = token_usd is not None
        self.usd_request, self.usd_in, self.usd_cached, self.usd_out = token_usd or _FREE
        self.machine_usd_per_s = machine_usd_per_s
        self.power: Draws | None = power
        """What one request draws and emits; None where it is unknown."""
        self.mean_server_s: float | None = None
        """Server-seconds of an answer, smoothed; the prediction where the configuration gives none."""
        self.server_s_per_token: float | None = None
        """Server-seconds for each output token, smoothed."""
        self.mean_output_tokens: float | None = None
        """Output tokens of an answer, smoothed; the prediction where nobody predicts better."""
        self.cache_rate = 1.0
        """Share of a repeated beginning that the provider found in its prompt cache, smoothed."""
        self.predicted_as = action
        """Its name in the predictors' files."""

    def work(self, server_s: float) -> tuple[int, int | None, int | None]:
        """Server-seconds, joules and gCO2 of so much time, in smallest parts; None where they are unknown."""
        server_ns = SERVER_SECONDS.to_units(server_s)
        power = self.power
        if power is None:
            return (server_ns, None, None)
        return (server_ns, power.joules_units(server_ns), power.gco2_units(server_ns))

    def option(
        self,
        tokens_in: float,
        tokens_out: float,
        worth_usd: float | None,
        estimate: Estimate | None = None,
        cached_tokens: float = 0.0,
        waits_s: float | None = None,
        server_s: float | None = None,
        load: float | None = None,
    ) -> Option:
        """The route as an option: value of a right answer times quality, and predictions of what it costs.

        The dollars are those of its table, or of the machine's time; the time is what the configuration says,
        else ``waits_s`` and ``server_s`` as they are predicted. ``cached_tokens`` of the input are
        probably in the provider's prompt cache. Without an ``estimate`` the configured quality stands.
        """
        ttft_s = self.ttft_s
        by_token = self.token_priced
        amounts = {"tokens": tokens_in + tokens_out}
        if by_token:
            amounts["usd"] = self.usd_request + self.usd_in * tokens_in + self.usd_out * tokens_out
            if cached_tokens:
                amounts["usd"] -= (self.usd_in - self.usd_cached) * min(cached_tokens, tokens_in)
        if ttft_s is not None:
            speed = self.output_tokens_per_s
            amounts["seconds"] = seconds = ttft_s + (tokens_out / speed if speed else 0.0)
            server_s = seconds if server_s is None else server_s
        elif waits_s is not None:
            amounts["seconds"] = waits_s
        if server_s is not None:
            amounts["server_seconds"] = server_s
            if not by_token and self.machine_usd_per_s is not None:
                amounts["usd"] = self.machine_usd_per_s * server_s
            power = self.power
            if power is not None:
                amounts["joules"] = power.joules(server_s)
                gco2 = power.gco2(server_s)
                if gco2 is not None:
                    amounts["gco2"] = gco2
        quality, sd = self.quality, None
        if estimate is not None:
            quality, sd = estimate
        value = 0.0 if worth_usd is None else worth_usd if quality is None else worth_usd * quality
        return Option(
            self.action,
            value,
            _cost(amounts),
            load=load,
            weight=self.weight,
            quality=quality,
            quality_sd=sd,
            facts=self.facts,
        )

    def measured(self, server_s: float, output_tokens: int) -> None:
        """Take in the server-seconds of an answer, and for how many tokens."""
        self.mean_server_s = _smoothed(self.mean_server_s, server_s)
        if output_tokens:
            self.server_s_per_token = _smoothed(self.server_s_per_token, server_s / output_tokens)

    def produced(self, output_tokens: int, expected: float) -> None:
        """Take in the output tokens of a whole answer; ``expected`` is where the mean begins."""
        mean = self.mean_output_tokens
        self.mean_output_tokens = _smoothed(expected if mean is None else mean, output_tokens)

    def found_cached(self, repeated_tokens: int, cached_tokens: int) -> None:
        """Take in how much of a repeated beginning the provider had in its prompt cache."""
        found = min(1.0, cached_tokens / repeated_tokens)
        self.cache_rate += SMOOTHING * (found - self.cache_rate)


_FREE: Final = TokenUsd(0.0, 0.0, 0.0, 0.0)
_cost: Final = Cost.of


def _smoothed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + SMOOTHING * (value - mean)


# of all routes of a model


def usual_server_s(prospects: Iterable[Prospect]) -> float | None:
    """Server-seconds of an answer by whatever route: what one that was never seen is taken for."""
    known = [seconds for prospect in prospects if (seconds := prospect.mean_server_s) is not None]
    return sum(known) / len(known) if known else None


def usual_output_tokens(prospects: Iterable[Prospect], expected: float) -> float:
    """Output tokens of an answer by whatever route, as far as is known; else ``expected``."""
    known = [prospect.mean_output_tokens for prospect in prospects if prospect.mean_output_tokens is not None]
    return sum(known) / len(known) if known else expected


def output_tokens(
    prospects: Sequence[Prospect],
    length: LengthPredictor | None,
    features: Features | None,
    *,
    expected: float,
    of_model: Sequence[Prospect] = (),
    factor: float = 1.0,
    cap: int | None = None,
) -> list[float]:
    """Output tokens to expect of one answer of each route, before anything is known of it.

    A route that nobody has seen at work is taken to be like the others ``of_model``; while nothing was seen at all,
    ``expected`` (the configuration's) stands. ``factor`` is what a guard makes of it, ``cap`` the client's.
    """
    found = []
    usual: float | None = None
    for prospect in prospects:
        tokens: float | None = None
        if length is not None and features is not None:
            predicted = length.predict(features, prospect.predicted_as)
            tokens = None if predicted is None else predicted.mean
        if tokens is None:
            tokens = prospect.mean_output_tokens
            if not tokens:
                if usual is None:
                    usual = usual_output_tokens(of_model, expected)
                tokens = usual
        tokens *= factor
        found.append(tokens if cap is None or cap > tokens else float(cap))
    return found


def waits_s(
    prospects: Sequence[Prospect],
    latency: LatencyPredictor | None,
    loads: Sequence[float | None],
    tokens_in: float,
    lengths: Sequence[float],
) -> list[float | None]:
    """Seconds until each route has answered, where waiting has a price (else there is no predictor).

    One that nobody has seen at work is taken to be like the others, or it would never be tried.
    """
    if latency is None:
        return [None] * len(prospects)
    found: list[float | None] = []
    for prospect, load, tokens_out in zip(prospects, loads, lengths, strict=True):
        times = latency.predict(prospect.action, load or 0.0, tokens_in, tokens_out)
        found.append(None if times is None else times[1].mean)
    known = [seconds for seconds in found if seconds is not None]
    usual = sum(known) / len(known) if known else None
    return [usual if seconds is None else seconds for seconds in found]


def options(
    prospects: Sequence[Prospect],
    loads: Sequence[float | None],
    *,
    tokens_in: float,
    lengths: Sequence[float],
    answers: int,
    worth_usd: float | None,
    estimates: Sequence[Estimate | None],
    waits: Sequence[float | None],
    usual_s: float | None,
    turn: tuple[str, int] | None = None,
) -> list[Option]:
    """The routes as options.

    ``lengths`` are the output tokens of one answer of each (`output_tokens`), of which the request wants ``answers``;
    ``estimates`` their qualities, empty where nobody predicts; ``usual_s`` is `usual_server_s` of all routes of the
    model; ``turn`` the route of the conversation's last turn and the tokens that its provider may still hold.
    """
    found = []
    for index, prospect in enumerate(prospects):
        cached = 0.0
        if turn is not None and turn[0] == prospect.action:
            cached = turn[1] * prospect.cache_rate
        server_s = prospect.mean_server_s
        found.append(
            prospect.option(
                tokens_in,
                lengths[index] * answers,
                worth_usd,
                estimates[index] if estimates else None,
                cached,
                waits[index],
                usual_s if server_s is None else server_s,
                loads[index],
            )
        )
    return found


def heeded(prices: Mapping[str, float], options: Sequence[Option]) -> Mapping[str, float]:
    """The prices that count. A resource of which no option's use is known has no say: its price could not tell them
    apart.
    """
    for name, price in prices.items():
        if price and not _known(name, options):
            return {n: p for n, p in prices.items() if _known(n, options)}
    return prices


def _known(name: str, options: Sequence[Option]) -> bool:
    """Whether the use of a resource is known of any option."""
    for option in options:  # noqa: SIM110 - `any` would take three times as long, for each request
        if name in option.cost:
            return True
    return False


# of one that has been chosen and waits


def foresee(
    facts: dict[str, object],
    prospect: Prospect,
    length: LengthPredictor | None,
    features: Features | None,
    *,
    cap: int | None,
    mean_tokens: float,
) -> None:
    """Write into the ``facts`` of a request that waits how likely its answer is long, and how long it will take, as
    far as ``length`` can tell. ``cap`` is the client's, ``mean_tokens`` what to expect where there is none.
    """
    longer = getattr(length, "chance_longer", None)
    if longer is None or features is None:
        return
    long = longer(features, prospect.predicted_as, LONG_TOKENS)
    facts["p_long"] = 0.0 if cap is not None and cap <= LONG_TOKENS else long
    tokens: float | None = mean_tokens
    if cap is not None:
        tokens = _cut_tokens(longer, features, prospect.predicted_as, cap)
    if tokens is not None and prospect.server_s_per_token is not None:
        facts["expected_s"] = tokens * prospect.server_s_per_token


def _cut_tokens(
    longer: Callable[[Features, str, float], float | None], features: Features, name: str, cap: int
) -> float | None:
    """The mean of what a cap leaves of an answer's length: the area under P(longer than x) up to it."""
    chances = []
    for index in range(_POINTS):
        chance = longer(features, name, cap * (index + 0.5) / _POINTS)
        if chance is None:
            return None
        chances.append(chance)
    return sum(chances) * cap / _POINTS
