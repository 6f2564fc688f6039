"""SplitFuse (DeepSpeed-FastGen) against whole prompts first (vLLM of that time): a 70B model on four A100."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.engine import Batching, Engine
from apportion.simulate.profile import Profile
from apportion.simulate.trace import Trace

SLA_PROMPT_TOKENS_PER_S = 512.0
SLA_TOKENS_PER_S = (2.0, 4.0, 6.0)
EMA_SPAN = 16
CLIENTS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
SYSTEMS = {
    "prompts first, 4,096 tokens": Batching("prefill_first", batch_tokens=4096),
    "SplitFuse, 512 tokens": Batching("chunked", batch_tokens=512),
    "SplitFuse, 768 tokens": Batching("chunked", batch_tokens=768),
    "SplitFuse, 1,024 tokens": Batching("chunked", batch_tokens=1024),
    "SplitFuse, 2,048 tokens": Batching("chunked", batch_tokens=2048),
}
BASELINE = "prompts first, 4,096 tokens"


class Answer(NamedTuple):
    """A request with the time of every token."""

    arrival_s: float
    prompt_tokens: int
    token_s: NDArray[np.float64]


def lengths(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompts around 2,600 tokens, answers around 128, normal with a deviation of 30%, as in the paper."""
    rng = np.random.default_rng(seed)
    return tuple(np.maximum(rng.normal(m, 0.3 * m, n), 8).astype(np.int64) for m in (2600, 128))  # type: ignore[return-value]


def played(
    profile: Profile,
    batching: Batching,
    prompts: Sequence[int],
    outputs: Sequence[int],
    *,
    arrival_s: Sequence[float] | None = None,
    clients: int = 0,
) -> tuple[list[Answer], list[int]]:
    """All answers, and the sizes of the passes that had prompts while others waited. Either requests arrive at
    ``arrival_s``, or each of ``clients`` sends its next when its last is answered.
    """
    engine = Engine(profile, batching)
    n = len(prompts)
    came: dict[int, float] = {}
    times: dict[int, list[NDArray[np.float64]]] = {r: [] for r in range(n)}
    coming = (
        [(0.0, r) for r in range(clients)]
        if arrival_s is None
        else list(zip(arrival_s, range(n), strict=True))
    )
    heapq.heapify(coming)
    following = clients if arrival_s is None else n
    sizes: list[int] = []
    while coming or engine.next_s < float("inf"):
        if coming and coming[0][0] <= engine.next_s:
            now, request = heapq.heappop(coming)
            came[request] = now
            engine.submit(now, request, int(prompts[request]), int(outputs[request]))
            continue
        now = engine.next_s
        plan = engine.planned()
        if plan is not None and plan.ends_s[-1] <= now:
            for request in plan.decoding:
                times[request].append(plan.ends_s)
            for request in plan.completing:
                times[request].append(plan.ends_s)
            if plan.prompts and engine.waiting:
                sizes.append(plan.size)
        for done in engine.advance(now):
            if following < n and arrival_s is None:
                heapq.heappush(coming, (done.finish_s, following))
                following += 1
    answers = [Answer(came[r], int(prompts[r]), np.sort(np.concatenate(times[r]))) for r in range(n)]
    return answers, sizes


def slowest_rate(answer: Answer) -> float:
    """The least that the exponential moving average (span 16 tokens) of an answer's tokens a second falls to."""
    gaps = np.diff(answer.token_s)
    if not len(gaps):
        return np.inf
    mean, worst, alpha = gaps[0], gaps[0], 2.0 / (EMA_SPAN + 1)
    for gap in gaps[1:]:
        mean += alpha * (gap - mean)
        worst = max(worst, mean)
    return float(1.0 / worst)


def judged(answers: Sequence[Answer], passes: Sequence[int]) -> dict[str, Any]:
    """What the paper looks at."""
    first = np.array([a.token_s[0] - a.arrival_s for a in answers])
    in_time = first <= np.array([a.prompt_tokens for a in answers]) / SLA_PROMPT_TOKENS_PER_S
    rates = np.array([slowest_rate(a) for a in answers])
    span_s = max(a.token_s[-1] for a in answers) - min(a.arrival_s for a in answers)
    gaps = np.concatenate([np.diff(a.token_s) for a in answers])
    return {
        "requests_per_s": len(answers) / span_s,
        "effective_per_s": {
            f"{x:g}": float((in_time & (rates >= x)).sum() / span_s) for x in SLA_TOKENS_PER_S
        },
        "latency_s": float(np.mean([a.token_s[-1] - a.arrival_s for a in answers])),
        "first_token_p95_s": float(np.quantile(first, 0.95)),
        "gap_p50_s": float(np.quantile(gaps, 0.5)),
        "gap_p95_s": float(np.quantile(gaps, 0.95)),
        "pass_tokens": [int(min(passes)), int(max(passes))] if passes else None,
    }


def compare(profile: Profile, burst: Trace | None, *, quick: bool) -> dict[str, Any]:
    """Closed loop with more and more clients (the paper's), and a BurstGPT-like open loop at rising rates."""
    n = 128 if quick else 512
    prompts, outputs = lengths(n, 0)
    found: dict[str, Any] = {
        "profile": profile.name,
        "source": profile.source,
        "requests": n,
        "clients": {},
        "burst": {},
    }
    for name, batching in SYSTEMS.items():
        found["clients"][name] = {
            str(c): judged(*played(profile, batching, prompts, outputs, clients=c))
            for c in (CLIENTS[::3] if quick else CLIENTS)
        }
    if burst is not None:
        for name, batching in SYSTEMS.items():
            found["burst"][name] = {}
            for rate in (1.0, 3.0) if quick else (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0):
                answered = np.flatnonzero(burst.output_tokens > 0)[: 2 * n]
                at = burst.arrival_s[answered] - burst.arrival_s[answered[0]]
                at *= len(at) / at[-1] / rate
                sizes = (burst.prompt_tokens[answered].tolist(), burst.output_tokens[answered].tolist())
                found["burst"][name][f"{rate:g}"] = judged(
                    *played(profile, batching, *sizes, arrival_s=at.tolist())
                )
    return found
