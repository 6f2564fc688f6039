"""Each rule against the shortest program that says the same, or against what its paper promises."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import catalogue
from apportion.core.errors import ParameterError
from apportion.core.eviction import Eviction
from apportion.policy.cache import _cold_rl_training as training
from apportion.policy.cache._dueling import arrays, values
from apportion.policy.cache._sketch import CountMin
from apportion.policy.cache.cold_rl import ColdRL
from apportion.policy.cache.gdsf import GDSF
from apportion.policy.cache.lru import LRU
from apportion.policy.cache.mark0 import Mark0
from apportion.policy.cache.mark_and_predict import MarkAndPredict
from apportion.policy.cache.w_tinylfu import WTinyLFU

TRACES = st.lists(st.integers(0, 9), max_size=120)


def misses(cache: Eviction, trace: Sequence[int], before: Callable[[int], None] = lambda place: None) -> int:
    missed = 0
    for place, key in enumerate(trace):
        before(place)
        if key in cache:
            cache.hit(key, float(place))
        else:
            missed += 1
            cache.insert(key, 1.0, float(place))
    return missed


def next_uses(trace: Sequence[int]) -> list[float]:
    after: dict[int, int] = {}
    found = [math.inf] * len(trace)
    for place in range(len(trace) - 1, -1, -1):
        found[place] = after.get(trace[place], math.inf)
        after[trace[place]] = place
    return found


def belady(trace: Sequence[int], k: int) -> tuple[int, list[bool]]:
    """The fewest misses, and for each request whether its key is dropped before its next one."""
    after, held, missed = next_uses(trace), dict[int, int](), 0
    discarded = [False] * len(trace)
    for place, key in enumerate(trace):
        if key not in held:
            missed += 1
            if len(held) == k:
                victim = max(held, key=lambda name: after[held[name]])
                discarded[held.pop(victim)] = True
        held[key] = place
    return missed, discarded


def naive_lru(trace: Sequence[int], k: int) -> int:
    held: list[int] = []
    missed = 0
    for key in trace:
        if key in held:
            held.remove(key)
        else:
            missed += 1
            del held[: max(len(held) - k + 1, 0)]
        held.append(key)
    return missed


def naive_lfu(trace: Sequence[int], k: int) -> int:
    """Ties go to the one that has had its count for the longest."""
    held: dict[int, tuple[int, int]] = {}
    missed = 0
    for place, key in enumerate(trace):
        if key in held:
            held[key] = (held[key][0] + 1, place)
        else:
            missed += 1
            if len(held) == k:
                del held[min(held, key=held.__getitem__)]
            held[key] = (1, place)
    return missed


def naive_sieve(trace: Sequence[int], k: int) -> int:
    """The paper's pseudocode: index 0 is the head (youngest)."""
    queue: list[int] = []
    visited: dict[int, bool] = {}
    hand: int | None = None
    missed = 0
    for key in trace:
        if key in visited:
            visited[key] = True
            continue
        missed += 1
        if len(queue) == k:
            at = queue.index(hand) if hand is not None else len(queue) - 1
            while visited[queue[at]]:
                visited[queue[at]] = False
                at = at - 1 if at > 0 else len(queue) - 1
            hand = queue[at - 1] if at > 0 else None
            del visited[queue.pop(at)]
        queue.insert(0, key)
        visited[key] = False
    return missed


def naive_s3_fifo(trace: Sequence[int], k: int, small: float, promote: int) -> int:
    tried, main, ghosts, hits = list[int](), list[int](), list[int](), dict[int, int]()
    missed = 0
    for key in trace:
        if key in hits:
            hits[key] = min(hits[key] + 1, 3)
            continue
        missed += 1
        known = key in ghosts
        if known:
            ghosts.remove(key)
        while len(tried) + len(main) == k:
            if tried and (len(tried) >= small * k or not main):
                oldest = tried.pop(0)
                if hits[oldest] >= promote:
                    hits[oldest] = 0
                    main.append(oldest)
                else:
                    del hits[oldest]
                    ghosts = [*ghosts, oldest]
                    while len(ghosts) > (1 - small) * k:
                        ghosts.pop(0)
            else:
                oldest = main.pop(0)
                if hits[oldest]:
                    hits[oldest] -= 1
                    main.append(oldest)
                else:
                    del hits[oldest]
        (main if known else tried).append(key)
        hits[key] = 0
    return missed


@settings(deadline=None, max_examples=150, derandomize=True)
@given(trace=TRACES, k=st.integers(1, 6))
def test_the_classics_are_what_their_papers_say(trace: list[int], k: int) -> None:
    def ours(name: str, **parameters: object) -> int:
        cache = catalogue.build(f"cache/{name}", capacity=k, **parameters)
        assert isinstance(cache, Eviction)
        return misses(cache, trace)

    assert ours("lru") == naive_lru(trace, k)
    assert ours("lfu") == naive_lfu(trace, k)
    assert ours("sieve") == naive_sieve(trace, k)
    assert ours("s3_fifo") == naive_s3_fifo(trace, k, 0.1, 2)
    assert ours("s3_fifo", small=0.5, promote_after=1) == naive_s3_fifo(trace, k, 0.5, 1)


@pytest.mark.parametrize("name", catalogue.names("cache"))
def test_nobody_misses_less_than_the_best_possible(name: str) -> None:
    generator = random.Random(0)
    for k in (1, 3, 8):
        trace = [int(20 * generator.random() ** 2) for _ in range(400)]
        cache = catalogue.build(name, capacity=k)
        assert isinstance(cache, Eviction)
        assert belady(trace, k)[0] <= misses(cache, trace) <= len(trace)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([0.5, 1.0, 8.0])),
        max_size=80,
    )
)
def test_gdsf_drops_the_least_merit_per_byte(steps: list[tuple[int, float, float]]) -> None:
    cache, price = GDSF(capacity=8), 0.0
    held: dict[int, list[float]] = {}
    for key, size, cost in steps:
        if key in held:
            cache.hit(key, 0.0)
            held[key][1] += 1
            held[key][0] = price + held[key][1] * held[key][2]
            continue
        victims = cache.insert(key, size, 0.0, cost)
        for victim in victims:
            least = min(entry[0] for entry in held.values())
            assert held[victim][0] == pytest.approx(least)
            price = held.pop(victim)[0]
        assert sum(entry[3] for entry in held.values()) + size <= 8
        held[key] = [price + cost / size, 1.0, cost / size, size]
        assert cache.price == pytest.approx(price)


def test_gdsf_keeps_what_is_dear_to_make_again() -> None:
    generator = random.Random(1)
    paid = {}
    for rule in (GDSF(capacity=20), LRU(capacity=20)):
        generator.seed(1)
        spent = 0.0
        for place in range(4000):
            key = int(100 * generator.random())
            cost = 10.0 if key % 10 == 0 else 0.1
            if key in rule:
                rule.hit(key, place)
            else:
                spent += cost
                rule.insert(key, 1.0, place, cost)
        paid[type(rule)] = spent
    assert paid[GDSF] < 0.25 * paid[LRU]


def test_lfu_with_ageing_forgets_the_favourites_of_yesterday() -> None:
    trace = [key for key in range(10) for _ in range(50)] + [100 + place % 10 for place in range(2000)]
    plain = misses(catalogue.build("cache/lfu", capacity=10), trace)  # type: ignore[arg-type]
    aged = misses(catalogue.build("cache/lfu", capacity=10, ageing=True), trace)  # type: ignore[arg-type]
    assert plain > 1900
    assert aged < 700


@settings(deadline=None, max_examples=40, derandomize=True)
@given(keys=st.lists(st.integers(0, 30) | st.text(max_size=3), max_size=200))
def test_the_sketch_never_counts_too_little_and_survives_growth(keys: list[int | str]) -> None:
    sketch = CountMin()
    sketch.fit(100)  # no halving within 200 additions
    for key in keys:
        sketch.add(key)
    before = {key: sketch.count(key) for key in keys}
    assert all(before[key] >= min(keys.count(key), 15) for key in before)
    sketch.fit(3000)
    assert {key: sketch.count(key) for key in keys} == before


def test_the_sketch_forgets() -> None:
    sketch = CountMin()
    for _ in range(12):
        sketch.add("old")
    for number in range(2000):
        sketch.add(number % 7)
    assert sketch.count("old") < 12 / 2


def test_w_tinylfu_keeps_a_scan_out() -> None:
    generator = random.Random(2)
    hot = [int(50 * generator.random()) for _ in range(3000)]
    cache = WTinyLFU(capacity=50, adaptive=False)
    misses(cache, hot)
    misses(cache, range(1000, 1500))
    assert sum(key in cache for key in range(50)) >= 45


def test_w_tinylfu_moves_its_window_when_recency_pays() -> None:
    trace = [
        place // 2 + (20 if place % 2 == 0 else 0) for place in range(30_000)
    ]  # each comes again soon, once
    fixed = misses(WTinyLFU(capacity=600, adaptive=False), trace)
    assert misses(WTinyLFU(capacity=600), trace) < 0.8 * fixed


# --- paging with predictions (S289) ---


@settings(deadline=None, max_examples=100, derandomize=True)
@given(trace=TRACES, k=st.integers(1, 5), seed=st.integers(0, 3))
def test_right_discard_bits_make_mark0_the_best_possible(trace: list[int], k: int, seed: int) -> None:
    best, discarded = belady(trace, k)
    cache = Mark0(capacity=k, seed=seed)
    assert misses(cache, trace, lambda place: cache.foresee(discarded[place])) == best


def phases(trace: Sequence[int], k: int) -> list[bool]:
    """For each request whether its key is not asked for in the phase after its own."""
    number, seen, phase = list[int](), set[int](), 0
    for key in trace:
        if key not in seen and len(seen) == k:
            seen, phase = set(), phase + 1
        seen.add(key)
        number.append(phase)
    asked = set(zip(number, trace, strict=True))
    return [(phase + 1, key) not in asked for phase, key in zip(number, trace, strict=True)]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(trace=TRACES, k=st.integers(1, 5), seed=st.integers(0, 3))
def test_right_phase_bits_miss_at_most_twice_the_best_possible(trace: list[int], k: int, seed: int) -> None:
    bits = phases(trace, k)
    cache = MarkAndPredict(capacity=k, seed=seed)
    assert misses(cache, trace, lambda place: cache.foresee(bits[place])) <= 2 * belady(trace, k)[0]


def adversarial(k: int, length: int, seed: int) -> list[int]:
    """Of k + 1 keys always a random one that was not asked for lately: hard for every rule."""
    generator = random.Random(seed)
    return [generator.randrange(k + 1) for _ in range(length)]


@pytest.mark.parametrize("rule", [Mark0, MarkAndPredict])
@pytest.mark.parametrize("how", ["inverted", "random", "always", "never"])
def test_wrong_bits_stay_within_the_harmonic_bound(
    rule: type[Mark0] | type[MarkAndPredict], how: str
) -> None:
    k = 16
    harmonic = sum(1.0 / i for i in range(1, k + 1))
    generator = random.Random(5)
    zipf = [int(200 * generator.random() ** 3) for _ in range(6000)]
    loop = [place % (k + 1) for place in range(6000)]
    for trace in (zipf, loop, adversarial(k, 6000, 6)):
        best, right = belady(trace, k)
        if rule is MarkAndPredict:
            right = phases(trace, k)
        wrong = {
            "inverted": [not bit for bit in right],
            "random": [generator.random() < 0.5 for _ in right],
            "always": [True] * len(right),
            "never": [False] * len(right),
        }[how]
        cache = rule(capacity=k)
        missed = misses(cache, trace, lambda place, cache=cache, wrong=wrong: cache.foresee(wrong[place]))  # type: ignore[misc]
        assert missed <= 2 * (1.1 * 2 * harmonic) * best + 6 * k


@pytest.mark.parametrize("rule", [Mark0, MarkAndPredict])
def test_more_wrong_bits_cost_smoothly_more(rule: type[Mark0] | type[MarkAndPredict]) -> None:
    k = 32
    generator = random.Random(7)
    trace = [int(400 * generator.random() ** 3) for _ in range(20_000)]
    right = belady(trace, k)[1] if rule is Mark0 else phases(trace, k)
    counts = []
    for share in (0.0, 0.05, 0.2, 0.5):
        flips = random.Random(8)
        bits = [bit != (flips.random() < share) for bit in right]
        cache = rule(capacity=k)
        counts.append(misses(cache, trace, lambda place, cache=cache, bits=bits: cache.foresee(bits[place])))  # type: ignore[misc]
    assert all(less <= more * 1.02 for less, more in itertools.pairwise(counts))
    assert counts[1] - counts[0] < 0.5 * (counts[3] - counts[0])


def test_learned_bits_miss_less_than_lru_and_marker() -> None:
    """A loop beside favourites: recency is misleading, what comes again in time can be learned."""
    generator = random.Random(9)
    trace = [
        int(40 * generator.random()) if place % 2 else 1000 + place // 2 % 300 for place in range(30_000)
    ]
    for k in (45, 60, 100):
        learned, blind = Mark0(capacity=k), Mark0(capacity=k)
        ours = misses(learned, trace)
        marker = misses(blind, trace, lambda place, blind=blind: blind.foresee(False))  # type: ignore[misc]
        assert ours < 0.95 * misses(LRU(capacity=k), trace)
        assert ours < 0.98 * marker
        assert learned.trusting


# --- Cold-RL (S090) ---


def log(rounds: int, seed: int) -> list[training.Request]:
    """Favourites of small size, and bursts of large entries that are asked for once."""
    generator = random.Random(seed)
    found, fresh = list[training.Request](), 10_000
    for place in range(rounds):
        if place % 400 < 200:
            key = int(60 * generator.random() ** 1.5)
            found.append(training.Request(float(place), key, 1.0 + key % 3))
        else:
            fresh += 1
            found.append(training.Request(float(place), fresh, 6.0))
    return found


def hits(cache: Eviction, requests: Sequence[training.Request]) -> int:
    found = 0
    for now, key, size, cost in requests:
        if key in cache:
            found += 1
            cache.hit(key, now)
        else:
            cache.insert(key, size, now, cost)
    return found


def test_the_gradient_is_that_of_the_loss() -> None:
    generator = np.random.default_rng(0)
    weights = {name: np.array(value) for name, value in training.fresh(seed=1).items()}
    x, y = generator.standard_normal((5, 4, 6)), generator.random((5, 4))

    def loss() -> float:
        q = np.stack([values(weights, sample) for sample in x])
        return float(np.mean((q - np.stack([y, np.zeros_like(y)], axis=2)) ** 2))

    for name, slope in training._gradient(weights, x, y).items():
        flat, sloped = weights[name].reshape(-1), slope.reshape(-1)
        for at in generator.integers(0, len(flat), 4):
            kept = flat[at]
            flat[at] = kept + 1e-6
            above = loss()
            flat[at] = kept - 1e-6
            below = loss()
            flat[at] = kept
            assert sloped[at] == pytest.approx((above - below) / 2e-6, rel=1e-3, abs=1e-7)


def test_returns_are_the_discounted_hits_to_come() -> None:
    requests = [training.Request(float(now), key, 1.0) for now, key in enumerate("abaab")]
    found = training.returns(requests, patience=2.0)
    e = math.exp
    assert found == pytest.approx([e(-1) + e(-1.5), e(-1.5), e(-0.5), 0.0, 0.0])
    assert training.returns(requests, patience=2.0, ttl_s=1.0) == pytest.approx([0.0, 0.0, e(-0.5), 0.0, 0.0])


def test_a_trained_network_beats_lru_on_bursts() -> None:
    capacity = 60.0
    network = training.train(log(8000, seed=1), capacity, steps=250, rounds=2)
    later = log(8000, seed=2)
    ours = hits(ColdRL(capacity=capacity, network=network), later)
    assert ours >= 1.15 * hits(LRU(capacity=capacity), later)


def test_without_a_network_or_without_time_it_is_lru() -> None:
    requests = log(3000, seed=3)
    lru = hits(LRU(capacity=70.0), requests)
    assert hits(ColdRL(capacity=70.0), requests) == lru
    late = ColdRL(capacity=70.0, network=training.fresh(seed=0))
    late.out_of_time = lambda: True
    assert hits(late, requests) == lru
    assert late.fallbacks > 0
    in_time = ColdRL(capacity=70.0, network=training.fresh(seed=0))
    in_time.out_of_time = lambda: False
    hits(in_time, requests)
    assert in_time.fallbacks == 0


def test_time_that_runs_out_halfway_counts_too() -> None:
    for calls in (1, 2, 3):
        cache = ColdRL(capacity=3.0, network=training.fresh(seed=0))
        answers = iter([False] * (calls - 1) + [True])
        for key in range(3):
            cache.insert(key, 1.0, 0.0)
        cache.out_of_time = lambda answers=answers: next(answers)  # type: ignore[misc]
        assert list(cache.insert(9, 1.0, 1.0)) == [0]
        assert cache.fallbacks == 1


def test_a_network_of_the_wrong_shape_is_refused() -> None:
    network = training.fresh(seed=0)
    arrays(network)
    for wrong in ({}, {**network, "w1": [[0.0]]}, {**network, "more": [0.0]}):
        with pytest.raises(ParameterError, match="'network' parameter of ColdRL"):
            ColdRL(capacity=1, network=wrong)
