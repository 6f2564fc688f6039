"""Which requests measure an endpoint: a generator that yields rounds and is sent what was heard.

Everything that a profile needs is measured once at small sizes before anything is measured again, in random order, so
that whenever it is stopped there is something to fit, and so that a disturbance does not fall on one setting alone.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from apportion.simulate.calibrate.asks import Ask, CalibrationError, Heard, Round

Plan = Generator[Round, Sequence[Heard], None]
_LENGTHS: Final = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_SHARE_FIRST: Final = 0.25
_SHARE_AGAIN: Final = 0.15
"""The most of the time that is left for one round: when it is measured first, and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far to go: prompts and requests at once at most; how many tokens an answer has; how often all is repeated."""

    prompt_tokens: int = 2048
    concurrency: int = 16
    output_tokens: int = 32
    repeats: int = 6
    hosted: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 16), ("concurrency", 1), ("output_tokens", 8), ("repeats", 1)):
            if getattr(self, name) < least:
                raise CalibrationError(
                    f"'{name}' is {getattr(self, name)}.", field=name, fix=f"It must be at least {least}."
                )


class Clock:
    """Seconds that are left; the driver sets them."""

    left_s: float = float("inf")


def plan(limits: Limits, clock: Clock) -> Plan:
    """The rounds of a calibration."""
    rng = random.Random(limits.seed)
    rate = _Rates()
    warm = yield Round("warm", "warm", (Ask(16, 4),))
    if warm[0].failure:
        raise CalibrationError(
            f"The endpoint does not answer: {warm[0].failure.rstrip('.')}.",
            field="endpoint",
            fix="Check its address, key and model.",
        )
    yield Round("warm", "warm", (Ask(128, 4),))
    rounds = _hosted(limits) if limits.hosted else _batch(limits)
    times = [0] * len(rounds)
    while True:
        # The least measured, of those that the time allows: in the order of the plan at first, then by chance.
        open_ = [
            i
            for i, each in enumerate(rounds)
            if times[i] < limits.repeats
            and rate.seconds(each) <= (_SHARE_AGAIN if times[i] else _SHARE_FIRST) * clock.left_s
        ]
        if not open_:
            return
        fewest = [i for i in open_ if times[i] == min(times[k] for k in open_)]
        i = rng.choice(fewest) if min(times) else fewest[0]
        times[i] += 1
        heard = yield rounds[i]
        rate.learn(rounds[i], heard)


def _batch(limits: Limits) -> list[Round]:
    out, longest, most = limits.output_tokens, limits.prompt_tokens, limits.concurrency
    rounds = [Round("prefill", f"prompt {n}", (Ask(n, 2),)) for n in _LENGTHS if n <= longest]
    rounds.insert(2, Round("again", "prompt in the cache", (Ask(48, 2), Ask(48, 2, again=True))))
    contexts = sorted({16, min(512, longest), min(2048, longest)})
    rounds += [Round("decode", f"context {n}", (Ask(n, out),)) for n in contexts]
    c = 2
    while c <= most:
        rounds.append(Round("decode", f"{c} at once", tuple(Ask(16, out) for _ in range(c))))
        c = c + 1 if c < 4 else c * 2
    if most > 1:
        for n in sorted({max(32, min(1024, longest) // 8), min(1024, longest)}):
            asks = (Ask(16, 3 * out), Ask(n, 2, after_tokens=8))
            rounds.append(Round("mixed", f"prompt {n} into an answer", asks))
        rounds.append(Round("slots", f"{2 * most} at once", tuple(Ask(16, 12) for _ in range(2 * most))))
    # Never fitted to, so that it is known how right the law is between what it was fitted to.
    rounds += [Round("check", f"prompt {n}", (Ask(n, 2),)) for n in (96, 384, 1536) if n <= longest]
    for n in (2, most):
        if 1 < n <= most and longest >= 256:
            rounds.append(Round("check", f"{n} at once, context 256", tuple(Ask(256, out) for _ in range(n))))
    return list(dict.fromkeys(rounds))


def _hosted(limits: Limits) -> list[Round]:
    lengths = [n for n in (16, 128, 512, 1024, 2048, 4096) if n <= limits.prompt_tokens]
    return [Round("hosted", f"prompt {n}", (Ask(n, max(limits.output_tokens, 48)),)) for n in lengths]


class _Rates:
    """How long rounds take, roughly: seconds for a token of a prompt and of an answer."""

    def __init__(self) -> None:
        self._prompt = 0.0
        self._output = 0.0

    def seconds(self, each: Round) -> float:
        prompts = sum(ask.prompt_tokens for ask in each.asks)
        outputs = max(ask.output_tokens for ask in each.asks) * max(1, len(each.asks) // 2)
        return prompts * self._prompt + outputs * self._output

    def learn(self, each: Round, heard: Sequence[Heard]) -> None:
        for one in heard:
            if one.failure or not one.token_s:
                continue
            if each.kind in ("prefill", "hosted") and one.prompt_tokens:
                self._prompt = one.ttft_s / one.prompt_tokens
            if len(one.token_s) > 4:
                self._output = (one.token_s[-1] - one.token_s[0]) / (len(one.token_s) - 1)
