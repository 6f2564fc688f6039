"""A profile from what was heard of an endpoint: which iterations each time is made of, then the fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from apportion.simulate.calibrate.asks import CalibrationError, Heard, Round
from apportion.simulate.calibrate.drive import Log
from apportion.simulate.profile import Profile, ProfileError
from apportion.simulate.profiles.fit import Fit, Law, Measurements, fit, robust

_LEAST_STEPS: Final = 4
_DEFAULT_SLOTS: Final = 256
_DEFAULT_BATCH: Final = 8192
_POINTS_MAX: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the endpoint without measuring: None where it is not."""

    slots: int | None = None
    batch_tokens: int | None = None
    context_tokens: int | None = None
    batching: Literal["prefill_first", "chunked", "slots"] | None = None
    usd_per_hour: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The profile, and the rows to show: what was measured in each setting (median) and what the profile says."""

    profile: Profile
    settings: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class _Reading:
    """One time of a round with its iterations."""

    quantity: str
    setting: str
    seconds: float
    parts: dict[str, Any]
    chunks: list[float] = field(default_factory=list)


def calibrated(name: str, log: Log, known: Known, *, seed: int = 0, source: str = "") -> Calibrated:
    """Fit a profile of an engine to what was measured.

    Raises:
        CalibrationError: when that is too little.
    """
    slots, found_slots = _slots(log.rounds, known.slots)
    batch, batching = _batch(log.rounds, known)
    readings: list[_Reading] = []
    unseen: list[_Reading] = []
    for each, heard in log.rounds:
        (unseen if each.kind == "check" else readings).extend(_readings(each, heard, slots, batch))
    law = Law(_points(readings), _free(readings))
    measured = Measurements(law)
    for i, r in enumerate(readings):
        if r.seconds > 0:
            measured.add(r.quantity, f"{i:06d}", r.seconds, law.row(r.chunks, **r.parts))
    try:
        done: Fit = fit(measured, rng=np.random.default_rng(seed))
    except ProfileError as error:
        raise CalibrationError(
            f"Too little was measured: {error.message}", field="max-seconds", fix="Give it more time."
        ) from None
    kv = {} if known.context_tokens is None else {"kv_tokens": slots * known.context_tokens}
    profile = done.profile(
        name,
        batching=batching,
        slots=slots,
        batch_tokens=batch,
        shared_tokens=_shared_tokens(log.rounds),
        usd_per_hour=known.usd_per_hour,
        source=source,
        facts={
            "slots": "known" if known.slots else "measured" if found_slots else "not reached",
            "requests": log.requests,
            "seconds": round(log.seconds, 1),
            "ended": log.ended,
            "rows": done.rows,
        },
        **kv,
        **_power(log, known),
    )
    if unseen:
        theta = _theta(law, profile)
        wrong = [abs(float(law.row(r.chunks, **r.parts) @ theta) / r.seconds - 1.0) for r in unseen]
        profile = replace(profile, error={**profile.error, "unseen_s": round(float(np.mean(wrong)), 4)})
    return Calibrated(profile, _shown([*readings, *unseen], law, profile))


def calibrated_hosted(name: str, log: Log, *, seed: int = 0, source: str = "") -> Calibrated:
    """Fit the law of a hosted endpoint: time to the first token by prompt length, and the rate of one answer."""
    heard = [one for each, heard in log.rounds if each.kind == "hosted" for one in heard]
    lengths = np.array([one.prompt_tokens for one in heard], float)
    ttft = np.array([one.ttft_s for one in heard])
    rates = np.array([r for r in map(_rate, heard) if r is not None])
    if len(heard) < 4 or len(rates) < 3:
        raise CalibrationError(
            f"Too little was measured: {len(heard)} answers.", field="max-seconds", fix="Give it more time."
        )
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = _hosted_law(lengths, ttft, rates)
    predicted = np.empty_like(ttft)
    fold = rng.permutation(len(ttft)) % min(5, len(ttft))
    for k in range(int(fold.max()) + 1):
        kept = fold != k
        other = _hosted_law(lengths[kept], ttft[kept], rates)
        predicted[~kept] = other["ttft_s"] + other["ttft_s_per_token"] * lengths[~kept]
    draws = []
    for _ in range(20):
        pick, rate = rng.integers(len(ttft), size=len(ttft)), rng.integers(len(rates), size=len(rates))
        draws.append(_hosted_law(lengths[pick], ttft[pick], rates[rate]))
    rate_error = float(np.mean(np.abs(constants["tokens_per_s"] / rates - 1.0)))
    profile = Profile(
        name=name,
        kind="hosted",
        error={
            "ttft_s": round(float(np.mean(np.abs(predicted / ttft - 1.0))), 4),
            "rate": round(rate_error, 4),
        },
        draws=tuple(draws),
        source=source,
        facts={
            "requests": log.requests,
            "seconds": round(log.seconds, 1),
            "ended": log.ended,
            "rows": len(heard),
        },
        **constants,
    )
    shown = [
        {
            "quantity": "ttft_s",
            "setting": setting,
            "times": len(times),
            "measured_s": float(np.median(times)),
            "profile_s": profile.ttft_s + profile.ttft_s_per_token * tokens,
        }
        for setting, times, tokens in (
            (s, [h.ttft_s for e, hs in log.rounds if e.setting == s for h in hs], n)
            for s, n in {
                e.setting: float(np.median([h.prompt_tokens for h in hs]))
                for e, hs in log.rounds
                if e.kind == "hosted"
            }.items()
        )
    ]
    return Calibrated(profile, shown)


def _hosted_law(lengths: Any, ttft: Any, rates: Any) -> dict[str, float]:
    theta = robust(np.column_stack([np.ones_like(lengths), lengths]), ttft, np.ones_like(ttft))
    expected = np.maximum(theta[0] + theta[1] * lengths, 1e-9)
    return {
        "ttft_s": _digits(theta[0]),
        "ttft_s_per_token": _digits(theta[1]),
        "ttft_sigma": _digits(_spread(np.log(ttft / expected))),
        "tokens_per_s": _digits(float(np.median(rates))),
        "rate_sigma": _digits(_spread(np.log(rates))),
    }


def _readings(each: Round, heard: Sequence[Heard], slots: int, batch: int) -> list[_Reading]:
    """The times that a round tells."""
    if each.kind == "prefill":
        return [_first(each, heard[0], batch)]
    if each.kind == "again":
        # All but the last token of the prompt was there already: what is left is the overhead and one token.
        return (
            [_first(each, heard[1], batch)]
            if heard[1].cached_tokens >= heard[1].prompt_tokens - 8 > 0
            else []
        )
    if each.kind == "check" and len(heard) == 1:
        return [_first(each, heard[0], batch)]
    if each.kind in ("decode", "check") and len(heard) <= slots:
        first = [_first(each, heard[0], batch)] if len(heard) == 1 else []
        return [*first, *_steps(each, heard)]
    if each.kind == "mixed" and slots > 1:
        return _mixed(each, heard, batch)
    return []


def _first(each: Round, one: Heard, batch: int) -> _Reading:
    """The time to the first token of a prompt alone: its pieces, and the overhead."""
    n = max(1, one.prompt_tokens - one.cached_tokens)
    pairs = n * (one.cached_tokens + n / 2)
    return _Reading(
        "ttft_s",
        each.setting if each.kind != "decode" else f"prompt {each.asks[0].prompt_tokens}",
        one.ttft_s,
        {"prefill_pairs": pairs, "before": 1.0},
        _pieces(n, batch),
    )


def _steps(each: Round, heard: Sequence[Heard]) -> list[_Reading]:
    """The mean iteration while all of them generate."""
    begin = max(one.token_s[0] for one in heard)
    end = min(one.token_s[-1] for one in heard)
    seconds = steps = context = 0.0
    for one in heard:
        inside = [i for i, t in enumerate(one.token_s) if begin <= t <= end]
        if len(inside) < _LEAST_STEPS:
            return []
        tokens = _tokens_per_piece(one)
        seconds += one.token_s[inside[-1]] - one.token_s[inside[0]]
        steps += (inside[-1] - inside[0]) * tokens
        context += one.prompt_tokens + tokens * (inside[0] + inside[-1]) / 2
    c = len(heard)
    parts = {"decode_context": context, "requests": float(c)}
    return [_Reading("token_s", each.setting, seconds / steps, parts, [float(c)])]


def _mixed(each: Round, heard: Sequence[Heard], batch: int) -> list[_Reading]:
    """From the first iteration in which the second request's prompt can take part to its first token."""
    running, late = heard
    window = _window(running, late)
    if len(window) < 2:
        return []
    begin, end, steps = window[0], window[-1], len(window) - 1
    n = late.prompt_tokens - late.cached_tokens
    pieces = _pieces(n, batch)
    plain = max(0, steps - len(pieces))
    before = sum(1 for t in running.token_s if t <= begin)
    context = running.prompt_tokens + before + steps / 2
    parts = {
        "prefill_pairs": n * (late.cached_tokens + n / 2),
        "decode_context": context * (len(pieces) + plain),
        "requests": float(len(pieces) + plain),
        "mixed": float(len(pieces)),
    }
    if steps < len(pieces):  # the generating request stood still meanwhile
        parts |= {"decode_context": context * steps, "mixed": float(steps)}
        return [_Reading("mixed_s", each.setting, end - begin, parts, [*pieces[:-1], pieces[-1] + steps])]
    return [
        _Reading("mixed_s", each.setting, end - begin, parts, [*(p + 1.0 for p in pieces), *([1.0] * plain)])
    ]


def _slots(rounds: Sequence[tuple[Round, list[Heard]]], known: int | None) -> tuple[int, bool]:
    """How many are worked on at once: of more than that, so many have their first token before any has ended."""
    if known is not None:
        return known, False
    found, tried = [], 0
    for each, heard in rounds:
        if each.kind == "slots":
            ended = min(one.token_s[-1] for one in heard)
            begun = sum(1 for one in heard if one.token_s[0] < ended)
            tried = max(tried, len(heard))
            if begun < len(heard):
                found.append(begun)
    if not found:
        return max(_DEFAULT_SLOTS, tried), False
    return max(1, int(np.median(found))), True


def _shared_tokens(rounds: Sequence[tuple[Round, list[Heard]]]) -> int:
    """What prompts that nobody has sent before find in memory all the same."""
    new = [
        one.cached_tokens
        for each, heard in rounds
        if not any(ask.again for ask in each.asks)
        for one in heard
        if one.failure is None and one.prompt_tokens
    ]
    return int(np.median(new)) if new else 0


def _batch(rounds: Sequence[tuple[Round, list[Heard]]], known: Known) -> tuple[int, str]:
    """Tokens of an iteration at most: how much of a prompt is in one gap between two tokens of another request."""
    if known.batch_tokens is not None:
        return known.batch_tokens, known.batching or "chunked"
    found: list[tuple[int, int, float]] = []
    for each, heard in rounds:
        if each.kind == "mixed":
            running, late = heard
            n, window = late.prompt_tokens - late.cached_tokens, _window(running, late)
            gaps = np.diff(window)
            if len(gaps):
                large = gaps[gaps > 0.7 * gaps.max()]
                found.append((n, len(large), n * float(large.mean() / gaps.sum())))
    if not found:
        return _DEFAULT_BATCH, known.batching or "chunked"
    longest = max(n for n, _, _ in found)
    if np.median([pieces for n, pieces, _ in found if n == longest]) < 2:
        return _DEFAULT_BATCH, known.batching or "prefill_first"
    return _rounded(
        float(np.median([tokens for n, _, tokens in found if n == longest]))
    ), known.batching or "chunked"


def _window(running: Heard, late: Heard) -> list[float]:
    """When a generating request had its tokens, from the first after another was sent to that one's first token."""
    after = [t for t in running.token_s if late.sent_s < t]
    last = next((i for i, t in enumerate(after) if t >= late.token_s[0] - 1e-3), None)
    return [] if last is None else after[: last + 1]


def _rounded(tokens: float) -> int:
    """A power of two, where one is near (what engines are set to), else a multiple of 16."""
    power = 2 ** round(math.log2(tokens))
    return int(power) if abs(power / tokens - 1.0) < 0.25 else int(math.ceil(tokens / 16) * 16)


def _pieces(tokens: float, batch: int) -> list[float]:
    whole, rest = divmod(int(tokens), batch)
    return [float(batch)] * whole + ([float(rest)] if rest else [])


def _points(readings: Sequence[_Reading]) -> tuple[float, ...]:
    """Where T may bend: every size of an iteration that was measured, thinned to sizes that differ by a third."""
    sizes = sorted({size for r in readings for size in r.chunks})
    if not sizes:
        raise CalibrationError("Nothing was measured.", field="max-seconds", fix="Give it more time.")
    points: list[float] = []
    for size in sizes:
        if not points or size >= points[-1] * 1.3:
            points.append(size)
    while len(points) > _POINTS_MAX:
        ratios = [points[i + 1] / points[i - 1] for i in range(1, len(points) - 1)]
        del points[1 + int(np.argmin(ratios))]
    return tuple(points)


def _free(readings: Sequence[_Reading]) -> tuple[str, ...]:
    """The constants that what was measured can tell apart."""
    names = ["decode_attention_s", "before_s"]
    if len({r.parts.get("prefill_pairs") for r in readings if r.quantity == "ttft_s"}) > 2:
        names.insert(0, "prefill_attention_s")
    if any(r.quantity == "mixed_s" for r in readings):
        names.append("mixed_s")
    return tuple(names)


def _tokens_per_piece(one: Heard) -> float:
    """Tokens that come in one piece of the stream, where the endpoint counts more tokens than it sent pieces."""
    pieces = len(one.token_s)
    return one.output_tokens / pieces if one.output_tokens > 1.5 * pieces else 1.0


def _rate(one: Heard) -> float | None:
    n = max(one.output_tokens, len(one.token_s)) - 1
    span_s = one.token_s[-1] - one.token_s[0]
    return n / span_s if n >= _LEAST_STEPS and span_s > 0 else None


def _power(log: Log, known: Known) -> dict[str, Any]:
    """Watts by what was done, from the meter or as told."""
    if known.watts is not None:
        return {"prefill_w": known.watts, "decode_tokens": (1.0,), "decode_w": (known.watts,)}
    prefill = [w for (each, _), w in zip(log.rounds, log.watts, strict=False) if each.kind == "prefill" and w]
    decode: dict[int, list[float]] = {}
    for (each, heard), w in zip(log.rounds, log.watts, strict=False):
        if each.kind == "decode" and w:
            decode.setdefault(len(heard), []).append(w)
    if not prefill or not decode:
        return {}
    sizes = sorted(decode)
    return {
        "prefill_w": _digits(float(np.median(prefill))),
        "decode_tokens": tuple(float(c) for c in sizes),
        "decode_w": tuple(_digits(float(np.median(decode[c]))) for c in sizes),
    }


def _shown(readings: Sequence[_Reading], law: Law, profile: Profile) -> list[dict[str, Any]]:
    theta = _theta(law, profile)
    rows: dict[tuple[str, str], list[_Reading]] = {}
    for r in readings:
        rows.setdefault((r.quantity, r.setting), []).append(r)
    return [
        {
            "quantity": quantity,
            "setting": setting,
            "times": len(found),
            "measured_s": float(np.median([r.seconds for r in found])),
            "profile_s": float(np.median([law.row(r.chunks, **r.parts) @ theta for r in found])),
        }
        for (quantity, setting), found in rows.items()
    ]


def _theta(law: Law, profile: Profile) -> np.ndarray[Any, np.dtype[np.float64]]:
    slopes = np.diff(profile.seconds) / np.diff(profile.tokens)
    return np.array([profile.seconds[0], *slopes, *(getattr(profile, name) for name in law.free)])


def _spread(logs: Any) -> float:
    """A robust standard deviation."""
    return float(1.4826 * np.median(np.abs(logs - np.median(logs))))


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
