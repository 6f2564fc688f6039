"""Replicas of the two models on equal hardware, in virtual time: how much each has to do, when an answer is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from apportion.simulate.engine import Engine
from apportion.simulate.profile import Profile
from apportion.simulate.profiles import load


class Hardware(NamedTuple):
    """The same machines, once all with the large model and once shared between the two."""

    name: str
    large: Profile
    small: Profile
    alone: int
    """Replicas of the large model where there is nothing else."""
    n_large: int
    n_small: int


def gpus() -> Hardware:
    """Sixteen A100: four replicas of 70B, or three and four of 8B, which is sixty times what answered here."""
    return Hardware(
        "16 A100: Llama 3.1 70B (4 GPUs each) and 8B (1 GPU each)",
        load("a100-llama3.1-70b-tp4-kernels"),
        load("a100-llama3.1-8b-tp1-kernels"),
        alone=4,
        n_large=3,
        n_small=4,
    )


def cores(prompt_rate: float, output_rate: float, larger: float) -> Hardware:
    """Four cores with the measured rates of the small model (tokens a second), and a model ``larger`` times as slow."""

    def profile(name: str, factor: float) -> Profile:
        # One request at a time: a prompt of n tokens takes n / prompt_rate, each further token 1 / output_rate.
        token_s = factor / output_rate
        seconds = tuple(max(token_s, factor * n / prompt_rate) for n in (1.0, 64.0, 4096.0))
        return Profile(name=name, tokens=(1.0, 64.0, 4096.0), seconds=seconds, slots=1, batch_tokens=4096)

    name = f"4 cores: SmolLM2-135M as measured, and a model {larger:g} times as slow"
    return Hardware(name, profile("large", larger), profile("small", 1.0), alone=4, n_large=3, n_small=1)


def arrivals(n: int, rate: float, seed: int) -> Any:
    """Poisson arrivals, seconds; all at once where ``rate`` is infinite."""
    gaps = np.random.default_rng(seed).exponential(1.0, n)
    return np.zeros(n) if math.isinf(rate) else np.cumsum(gaps) / rate


class Ended(NamedTuple):
    """An answer is there."""

    request: int
    at_s: float


class Fleet:
    """``n_large`` and ``n_small`` replicas; a request goes to the one with the least to do."""

    def __init__(self, hardware: Hardware, n_large: int, n_small: int) -> None:
        self._of = {
            "large": [Engine(hardware.large) for _ in range(n_large)],
            "small": [Engine(hardware.small) for _ in range(n_small)],
        }

    def load(self, model: str) -> float:
        """Requests for each replica."""
        return sum(engine.requests for engine in self._of[model]) / max(1, len(self._of[model]))

    def submit(self, model: str, now_s: float, request: int, tokens_in: int, tokens_out: int) -> None:
        """A request for ``model``."""
        engine = min(self._of[model], key=lambda engine: engine.requests)
        engine.submit(now_s, request, tokens_in, tokens_out)

    def until(self, now_s: float) -> Iterator[Ended]:
        """What ends up to ``now_s``, in order."""
        found = []
        for engine in (*self._of["large"], *self._of["small"]):
            while engine.requests and engine.next_s <= now_s:
                found += [Ended(done.request, done.finish_s) for done in engine.advance(now_s)]
        yield from sorted(found, key=lambda ended: ended.at_s)


def timed(
    hardware: Hardware, sent: Sequence[tuple[str, int, int]], rate: float, *, alone: bool, seed: int = 0
) -> tuple[float, float]:
    """Mean latency and the time until all is answered, in seconds, of requests that are settled: who answers, and the
    tokens of prompt and answer. ``alone``: all hardware is the large model's."""
    fleet = (
        Fleet(hardware, hardware.alone, 0) if alone else Fleet(hardware, hardware.n_large, hardware.n_small)
    )
    arrived = arrivals(len(sent), rate, seed)
    ended = np.zeros(len(sent))
    for place, (model, tokens_in, tokens_out) in enumerate(sent):
        for one in fleet.until(arrived[place]):
            ended[one.request] = one.at_s
        fleet.submit(model, float(arrived[place]), place, tokens_in, tokens_out)
    for one in fleet.until(math.inf):
        ended[one.request] = one.at_s
    return float((ended - arrived).mean()), float(ended.max() - arrived[0])
