"""The best that was possible on the same work, knowing the future: for latency, for cost at a quality, for caches.

Every function here is a bound: no policy, however clever, does better. Where it is also reached by some schedule, its
docstring says so.

References
----------
L. Schrage (1968). "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline." Operations
Research 16(3). doi:10.1287/opre.16.3.687
W. L. Eastman, S. Even, I. M. Isaacs (1964). "Bounds for the Optimal Scheduling of n Jobs on m Processors." Management
Science 11(2). doi:10.1287/mnsc.11.2.268
M. X. Goemans, M. Queyranne, A. S. Schulz, M. Skutella, Y. Wang (2002). "Single Machine Scheduling with Release Dates."
SIAM Journal on Discrete Mathematics 15(2). doi:10.1137/S089548019936223X (mean busy times)
P. Sinha, A. A. Zoltners (1979). "The Multiple-Choice Knapsack Problem." Operations Research 27(3).
doi:10.1287/opre.27.3.503 (its linear relaxation, from the convex hulls)
L. A. Belady (1966). "A Study of Replacement Algorithms for a Virtual-Storage Computer." IBM Systems Journal 5(2).
D. S. Berger, N. Beckmann, M. Harchol-Balter (2018). "Practical Bounds on Optimal Caching with Variable Object Sizes."
POMACS 2(2). arXiv:1711.03709 (PFOO-L)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.profile import Profile

Array = NDArray[np.float64]

# latency, one queue


class Schedule(NamedTuple):
    """When each request ends at one server, and the mean time at which it was worked on (its work's centre)."""

    finish_s: Array
    centre_s: Array


def srpt(arrival_s: Array, size_s: Array) -> Schedule:
    """One server that always works on what is left least (Schrage 1968): the least mean time in the system that any
    schedule has, reached by this one. Arrivals in order; O(n log n).
    """
    return _preemptive(arrival_s, size_s, by_rest=True)


def _preemptive(arrival_s: Array, size_s: Array, *, by_rest: bool) -> Schedule:
    """One server for the least key: what is left of the request, or its size. Ties: who came first."""
    n = len(arrival_s)
    arrivals, sizes = arrival_s.tolist(), size_s.tolist()
    finish, centre = [math.nan] * n, [0.0] * n
    heap: list[tuple[float, int, float]] = []
    now, came = 0.0, 0
    while came < n or heap:
        if not heap:
            now = max(now, arrivals[came])
        while came < n and arrivals[came] <= now:
            heapq.heappush(heap, (sizes[came], came, sizes[came]))
            came += 1
        key, index, rest = heap[0]
        until = arrivals[came] if came < n else math.inf
        worked = min(rest, until - now)
        if sizes[index] > 0.0:
            centre[index] += worked * (now + worked / 2) / sizes[index]
        if now + rest <= until:
            heapq.heappop(heap)
            now += rest
            finish[index] = now
            if sizes[index] == 0.0:
                centre[index] = now
        else:
            heapq.heapreplace(heap, (rest - worked if by_rest else key, index, rest - worked))
            now = until
    return Schedule(np.array(finish), np.array(centre))


def least_mean_s(arrival_s: Array, size_s: Array, servers: float = 1.0, own_s: Array | None = None) -> float:
    """No policy has a lower mean time in the system: seconds, nan without requests.

    ``size_s`` is the work of each request, of which all servers together do ``servers`` a second; ``own_s`` is how long
    each takes at least with everything to itself (None: its size, as with servers that work on one request each). With
    one such server the bound is reached. Otherwise it is the greatest of: everybody alone; SRPT on one server that is
    as fast as all together; and with ``own_s`` None, the least mean of the centres of the work (on that server the
    shortest goes first, mean busy times) and after it half of everybody's own work.
    """
    if not len(arrival_s):
        return math.nan
    own = size_s if own_s is None else own_s
    together = size_s / servers
    bounds = [float(own.mean()), float((srpt(arrival_s, together).finish_s - arrival_s).mean())]
    if own_s is None and servers > 1.0:
        centres = _preemptive(arrival_s, together, by_rest=False).centre_s
        bounds.append(float((centres + size_s / 2 - arrival_s).mean()))
    return max(bounds)


# latency, engines that batch


class Service(NamedTuple):
    """The least that each request needs of one engine: seconds with the engine to itself until the first token
    (``first_s``) and until the last (``own_s``), both as its client sees them; and seconds of the engine's time that it
    takes from the others, in the best batch (``work_s``; of these ``prefill_s`` before its first token).
    """

    first_s: Array
    own_s: Array
    prefill_s: Array
    work_s: Array


def service(
    profile: Profile,
    prompt_tokens: NDArray[np.integer],
    output_tokens: NDArray[np.integer],
    cached_tokens: NDArray[np.integer] | int = 0,
) -> Service:
    """The least service of each request by the law of `Profile`, whatever the batching.

    Alone: an iteration takes no less time with others in it. The prompt may be cut into chunks: for k of them the sum
    of the durations is at least k times the convex hull of the profile's curve at their mean. In a batch: an iteration
    with m tokens takes at least m times the least of T(m) / m, and attention and the share for each request are the
    request's own. Of endpoints of the ``hosted`` kind the expectation is taken: they have no queue, hence no work.
    """
    prompt = np.maximum(prompt_tokens - np.asarray(cached_tokens), 1).astype(np.float64)
    context = np.minimum(np.asarray(cached_tokens), np.maximum(prompt_tokens - 1, 0)).astype(np.float64)
    more = np.maximum(output_tokens.astype(np.float64) - 1.0, 0.0)
    around = profile.before_s + profile.before_s_per_token * prompt_tokens + profile.after_s
    if profile.kind == "hosted":
        first = (profile.ttft_s + profile.ttft_s_per_token * prompt) * math.exp(profile.ttft_sigma**2 / 2)
        each = math.exp(profile.rate_sigma**2 / 2) / profile.tokens_per_s if profile.tokens_per_s else 0.0
        none = np.zeros(len(prompt))
        return Service(first + around, first + more * each + around, none, none)
    most = float(max(profile.batch_tokens + profile.slots, prompt.max(initial=1.0)))
    at, hull = _hull(profile, most)
    attention = profile.prefill_attention_s * prompt * (context + prompt / 2)
    first = _chunked(prompt, at, hull) + profile.request_s + attention
    contexts = more * prompt_tokens + more * (more - 1.0) / 2
    one = float(np.interp(1.0, at, hull))
    decode = more * (one + profile.request_s) + profile.decode_attention_s * contexts
    each = float((hull / at).min())
    prefill_s = each * prompt + attention + profile.request_s
    work = prefill_s + more * (each + profile.request_s) + profile.decode_attention_s * contexts
    return Service(first + around, first + decode + around, prefill_s, work)


def _hull(profile: Profile, most: float) -> tuple[Array, Array]:
    """The lower convex hull of the least duration of an iteration with at least so many tokens, from 1 to ``most``."""
    x, y = np.asarray(profile.tokens, np.float64), np.asarray(profile.seconds, np.float64)
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0
    at = np.unique(np.concatenate([[1.0, most], x[(x > 1.0) & (x < most)]]))
    seconds = np.interp(at, x, y) + np.maximum(at - x[-1], 0.0) * slope
    seconds = np.minimum.accumulate(seconds[::-1])[::-1]
    kept: list[int] = []
    for i in range(len(at)):
        while len(kept) > 1 and _above(at, seconds, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return at[kept], seconds[kept]


def _above(x: Array, y: Array, left: int, middle: int, right: int) -> bool:
    return bool((y[middle] - y[left]) * (x[right] - x[left]) >= (y[right] - y[left]) * (x[middle] - x[left]))


def _chunked(tokens: Array, at: Array, hull: Array) -> Array:
    """The least time of ``tokens`` in any number of iterations: k * hull(tokens / k) is convex in k, so that the
    first k that is no better than the one before ends the search.
    """
    best = np.interp(tokens, at, hull)
    chunks = 2.0
    better = tokens >= chunks
    while better.any():
        found = chunks * np.interp(tokens / chunks, at, hull)
        better &= (found < best) & (tokens >= chunks)
        best = np.where(better, found, best)
        chunks += 1.0
    return best


# cost at a quality


class Frontier(NamedTuple):
    """What every level of quality costs at least: corners of a convex curve, ``quality`` and ``usd`` in total over the
    ``requests`` that are in it.
    """

    quality: Array
    usd: Array
    requests: int

    def usd_for(self, quality: float) -> float:
        """The least cost of a total ``quality`` (nan where it cannot be had)."""
        if not self.requests or quality > self.quality[-1] * (1 + 1e-12) + 1e-12:
            return math.nan
        return float(np.interp(quality, self.quality, self.usd))

    def quality_for(self, usd: float) -> float:
        """The most total quality for ``usd`` (nan where even the cheapest answers cost more)."""
        if not self.requests or usd < self.usd[0] * (1 - 1e-12) - 1e-12:
            return math.nan
        return float(np.interp(usd, self.usd, self.quality))


def frontier(usd: Array, quality: Array) -> Frontier:
    """The linear relaxation of choosing one action for each request: shapes (requests x actions), nan where an action
    is not to be had. Solved exactly: each request's actions on their convex hull, the steps of all hulls by what a
    unit of quality costs in them. Choices without fractions cost at least as much, and at the corners no more.
    """
    usable = np.isfinite(usd) & np.isfinite(quality)
    rows = usable.any(axis=1)
    cost = np.where(usable, usd, np.inf)[rows]
    good = np.where(usable, quality, -np.inf)[rows]
    n = len(cost)
    if not n:
        return Frontier(np.zeros(0), np.zeros(0), 0)
    every = np.arange(n)
    cheapest = cost.min(axis=1)
    at = np.argmax(np.where(cost == cheapest[:, None], good, -np.inf), axis=1)
    start_usd, start_quality = float(cheapest.sum()), float(good[every, at].sum())
    steps: list[tuple[Array, Array]] = []
    while True:
        gain, price = good - good[every, at][:, None], cost - cost[every, at][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where((gain > 0.0) & np.isfinite(price), price / gain, np.inf)
        least = rate.min(axis=1)
        if not np.isfinite(least).any():
            break
        best = np.argmax(np.where(rate == least[:, None], gain, -np.inf), axis=1)
        moved = np.isfinite(least)
        steps.append((gain[every, best][moved], price[every, best][moved]))
        at = np.where(moved, best, at)
    gains = np.concatenate([gain for gain, _ in steps]) if steps else np.zeros(0)
    prices = np.concatenate([price for _, price in steps]) if steps else np.zeros(0)
    order = np.argsort(prices / gains, kind="stable") if len(gains) else np.zeros(0, np.int64)
    return Frontier(
        start_quality + np.concatenate([[0.0], np.cumsum(gains[order])]),
        start_usd + np.concatenate([[0.0], np.cumsum(prices[order])]),
        n,
    )


# caches


def next_uses(keys: Sequence[int]) -> list[float]:
    """For each request the place of the next one of the same key; infinity for the last."""
    after: dict[int, int] = {}
    found = [math.inf] * len(keys)
    for place in range(len(keys) - 1, -1, -1):
        found[place] = after.get(keys[place], math.inf)
        after[keys[place]] = place
    return found


def belady(keys: Sequence[int], capacity: int, *, bypass: bool = False) -> tuple[int, list[bool]]:
    """The fewest misses of a cache of ``capacity`` entries of one size, and for each request whether its key is
    dropped before it is asked for again. With ``bypass`` the cache need not keep what was just asked for.
    """
    after = next_uses(keys)
    held: dict[int, int] = {}
    heap: list[tuple[float, int]] = []
    discarded = [False] * len(keys)
    misses = 0
    for place, key in enumerate(keys):
        if key not in held:
            misses += 1
            if bypass:
                held[key] = place
                heapq.heappush(heap, (-after[place], place))
            if len(held) == capacity + bypass:
                while True:
                    _, last = heapq.heappop(heap)
                    if held.get(keys[last]) == last:
                        break
                discarded[last] = True
                del held[keys[last]]
            if bypass:
                continue
        held[key] = place
        heapq.heappush(heap, (-after[place], place))
    return misses, discarded


def fewest_misses_with_sizes(keys: Sequence[int], sizes: Sequence[int], capacity: float) -> int:
    """No cache can miss less (PFOO-L, Berger et al. 2018): every hit needs its size for the time since the request
    before; the cheapest hits are taken until all the bytes and time there are, are used up.
    """
    last: dict[int, int] = {}
    needs = []
    for place, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        if key in last and size <= capacity:
            needs.append(size * (place - last[key]))
        last[key] = place
    needs.sort()
    left = capacity * len(keys)
    hits = 0
    for need in needs:
        left -= need
        if left < 0:
            break
        hits += 1
    return len(keys) - hits
