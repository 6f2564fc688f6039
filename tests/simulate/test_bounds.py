"""That bounds are bounds: against everything that could be done, on small cases."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.simulate import bounds
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.profile import Profile

jobs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=5).map(sorted)


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    arrival, size = zip(*rows, strict=True)
    return np.array(arrival, np.float64), np.array(size, np.float64)


def least_sum(rows: list[tuple[int, int]], servers: int) -> int:
    """The least sum of times in the system of all preemptive schedules, a unit of time after the other."""

    @functools.cache
    def best(now: int, rest: tuple[int, ...]) -> int:
        if not any(rest):
            return 0
        there = [i for i, (arrived, _) in enumerate(rows) if arrived <= now and rest[i]]
        worked = []
        for chosen in itertools.combinations(there, min(servers, len(there))):
            left = tuple(r - (i in chosen) for i, r in enumerate(rest))
            worked.append(best(now + 1, left))
        return len(there) + min(worked)

    return best(0, tuple(size for _, size in rows))


@given(jobs)
def test_srpt_is_the_best_of_all_schedules_of_one_server(rows: list[tuple[int, int]]) -> None:
    arrival, size = columns(rows)
    total = float((bounds.srpt(arrival, size).finish_s - arrival).sum())
    assert total == pytest.approx(least_sum(rows, 1))
    assert bounds.least_mean_s(arrival, size) * len(rows) == pytest.approx(total)


@given(jobs, st.integers(2, 3))
def test_no_schedule_of_several_servers_is_better_than_the_bound(
    rows: list[tuple[int, int]], servers: int
) -> None:
    arrival, size = columns(rows)
    bound = bounds.least_mean_s(arrival, size, servers) * len(rows)
    assert bound <= least_sum(rows, servers) + 1e-9


def test_the_bound_of_several_servers_is_not_loose_where_they_are_busy() -> None:
    rows = [(0, size) for size in (1, 1, 1, 2, 2, 3)]
    arrival, size = columns(rows)
    assert bounds.least_mean_s(arrival, size, 2) * 6 >= 0.9 * least_sum(rows, 2)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, 9.0)), min_size=1, max_size=40).map(sorted))
def test_the_server_is_never_idle_while_there_is_work(rows: list[tuple[int, float]]) -> None:
    arrival, size = columns(rows)
    made = bounds.srpt(arrival, size)
    free = 0.0
    for arrived, needed in rows:
        free = max(free, arrived) + needed
    assert float(made.finish_s.max()) == pytest.approx(free)
    assert (made.finish_s >= arrival + size - 1e-9).all()
    assert (made.centre_s <= made.finish_s - size / 2 + 1e-9).all()


CURVES = [
    {"tokens": (1.0, 4.0), "seconds": (1.0, 1.6)},
    {
        "tokens": (1.0, 2.0, 3.0),
        "seconds": (1.0, 1.1, 2.4),
        "prefill_attention_s": 0.1,
        "decode_attention_s": 0.05,
    },
    {"tokens": (1.0, 2.0, 4.0), "seconds": (1.0, 3.0, 3.2), "request_s": 0.2},
    {"tokens": (1.0, 2.0, 3.0, 5.0), "seconds": (1.0, 0.7, 2.0, 2.0)},
]


def duration(profile: Profile, batch: list[tuple[int, int]]) -> float:
    """The law of `Profile` for chunks (tokens, context) and decodes (1, context); written once more, on purpose."""
    new = sum(tokens for tokens, _ in batch)
    seconds = float(np.interp(new, profile.tokens, profile.seconds))
    slope = (profile.seconds[-1] - profile.seconds[-2]) / (profile.tokens[-1] - profile.tokens[-2])
    return seconds + max(new - profile.tokens[-1], 0) * slope + profile.request_s * len(batch)


def least_of_all_batches(profile: Profile, requests: list[tuple[int, int, int]], *, first: bool) -> float:
    """The least sum of times to the first (or last) token over everything an engine could do."""
    n = len(requests)

    @functools.cache
    def best(now: float, done: tuple[tuple[int, int], ...]) -> float:
        left = [i for i in range(n) if done[i][1] < (1 if first else requests[i][2])]
        if not left:
            return 0.0
        later = [requests[i][0] for i in range(n) if requests[i][0] > now and i in left]
        found = best(min(later), done) if later else math.inf
        choices = []
        for i, (arrived, prompt, output) in enumerate(requests):
            rest = prompt - done[i][0]
            allowed = range(rest + 1) if rest else range(2 if done[i][1] < output else 1)
            choices.append(allowed if arrived <= now else range(1))
        for chosen in itertools.product(*choices):
            if not any(chosen):
                continue
            batch, after, extra = [], list(done), 0.0
            for i, tokens in enumerate(chosen):
                if not tokens:
                    continue
                read, written = done[i]
                batch.append((tokens, read + written))
                if read < requests[i][1]:
                    extra += profile.prefill_attention_s * tokens * (read + tokens / 2)
                    after[i] = (read + tokens, int(read + tokens == requests[i][1]))
                else:
                    extra += profile.decode_attention_s * (read + written - 1)
                    after[i] = (read, written + 1)
            end = round(now + duration(profile, batch) + extra, 9)
            told = 0.0
            for i in left:
                if after[i][1] != done[i][1] and after[i][1] == (1 if first else requests[i][2]):
                    told += end - requests[i][0]
            found = min(found, told + best(end, tuple(after)))
        return found

    return best(0.0, ((0, 0),) * n)


@pytest.mark.parametrize("curve", CURVES)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=2).map(
        sorted
    )
)
@settings(max_examples=25, deadline=None)
def test_no_batching_is_better_than_the_fluid_bound(
    curve: dict, requests: list[tuple[int, int, int]]
) -> None:
    profile = Profile(name="small", batch_tokens=8, slots=4, **curve)
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    least = bounds.service(profile, prompt, output)
    n = len(requests)
    for first, own, work in ((True, least.first_s, least.prefill_s), (False, least.own_s, least.work_s)):
        reached = least_of_all_batches(profile, requests, first=first)
        assert bounds.least_mean_s(arrival.astype(float), work, 1.0, own) * n <= reached + 1e-6


@pytest.mark.parametrize("kind", ["prefill_first", "chunked", "mixed", "decode_first", "static", "slots"])
@pytest.mark.parametrize("gap_s", [0.01, 0.2, 2.0])
def test_no_engine_is_better_than_the_bound(kind: Any, gap_s: float) -> None:
    profile = Profile(
        name="engine", tokens=(1.0, 128.0, 512.0, 2048.0), seconds=(0.01, 0.015, 0.05, 0.21), slots=16,
        batch_tokens=512, prefill_attention_s=1e-8, decode_attention_s=3e-7, request_s=1e-4, before_s=0.02,
        before_s_per_token=1e-6, after_s=0.01, kv_tokens=60_000,
    )  # fmt: skip
    generator = np.random.default_rng(3)
    n = 80
    arrival = np.cumsum(generator.exponential(gap_s, n))
    prompt, output = generator.integers(1, 3000, n), generator.integers(1, 80, n)
    engine = Engine(profile, Batching(kind=kind))
    done = []
    for i in range(n):
        while engine.next_s <= arrival[i] and (ended := engine.advance(float(arrival[i]))):
            done += ended
        engine.submit(float(arrival[i]), i, int(prompt[i]), int(output[i]))
    while engine.next_s < math.inf:
        done += engine.advance(math.inf)
    assert len(done) == n
    first, finish = np.empty(n), np.empty(n)
    for one in done:
        first[one.request], finish[one.request] = one.first_token_s, one.finish_s
    least = bounds.service(profile, prompt, output)
    assert (first - arrival >= least.first_s - 1e-9).all()
    assert (finish - arrival >= least.own_s - 1e-9).all()
    assert (first - arrival).mean() >= bounds.least_mean_s(arrival, least.prefill_s, 1.0, least.first_s)
    assert (finish - arrival).mean() >= bounds.least_mean_s(arrival, least.work_s, 1.0, least.own_s)
    assert engine.busy_s >= least.work_s.sum() - 1e-9


def test_alone_the_bound_is_reached() -> None:
    profile = Profile(
        name="small", tokens=(1.0, 4.0), seconds=(1.0, 1.6), decode_attention_s=0.1, before_s=0.5
    )
    least = bounds.service(profile, np.array([4]), np.array([3]))
    assert least.first_s[0] == pytest.approx(0.5 + 1.6)
    assert least.own_s[0] == pytest.approx(0.5 + 1.6 + 2 * 1.0 + 0.1 * (4 + 5))


def test_hosted_endpoints_have_no_queue_and_are_taken_at_their_mean() -> None:
    profile = Profile(name="far", kind="hosted", ttft_s=0.4, ttft_sigma=0.5, tokens_per_s=50.0)
    least = bounds.service(profile, np.array([10, 10]), np.array([1, 51]))
    assert least.first_s.tolist() == pytest.approx([0.4 * math.exp(0.125)] * 2)
    assert least.own_s[1] - least.own_s[0] == pytest.approx(1.0)
    assert not least.work_s.any()


# cost at a quality

tables = st.integers(1, 4).flatmap(
    lambda n: st.integers(1, 3).flatmap(
        lambda k: st.lists(
            st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=k, max_size=k),
            min_size=n,
            max_size=n,
        )
    )
)


@given(tables, st.floats(0, 1))
@settings(deadline=None)
def test_the_frontier_is_the_linear_relaxation(table: list, share: float) -> None:
    scipy = pytest.importorskip("scipy.optimize")
    usd, quality = np.array(table, np.float64).transpose(2, 0, 1)
    n, k = usd.shape
    found = bounds.frontier(usd, quality)
    target = share * float(quality.max(axis=1).sum())
    each = np.kron(np.eye(n), np.ones(k))
    solved = scipy.linprog(
        usd.ravel(), -quality.reshape(1, -1), [-target], each, np.ones(n), bounds=(0, None)
    )
    assert found.usd_for(target) == pytest.approx(solved.fun, abs=1e-7)


@given(tables)
def test_no_choice_is_cheaper_than_the_frontier(table: list) -> None:
    usd, quality = np.array(table, np.float64).transpose(2, 0, 1)
    found = bounds.frontier(usd, quality)
    n, k = usd.shape
    corners = set()
    for choice in itertools.product(range(k), repeat=n):
        cost, good = float(usd[range(n), choice].sum()), float(quality[range(n), choice].sum())
        corners.add((good, cost))
        assert found.usd_for(good) <= cost + 1e-9
        assert found.quality_for(cost) >= good - 1e-9
    assert {(a, b) for a, b in zip(found.quality.tolist(), found.usd.tolist(), strict=True)} & corners


def test_actions_that_are_not_to_be_had_are_left_out() -> None:
    nan = math.nan
    found = bounds.frontier(
        np.array([[1.0, nan], [nan, nan], [1.0, 3.0]]), np.array([[0.5, 1.0], [1, 1], [0.5, 0.9]])
    )
    assert found.requests == 2
    assert found.usd.tolist() == [2.0, 4.0]
    assert found.quality.tolist() == pytest.approx([1.0, 1.4])
    assert math.isnan(found.usd_for(1.5))
    assert math.isnan(found.quality_for(1.9))
    assert math.isnan(bounds.frontier(np.full((2, 1), nan), np.zeros((2, 1))).usd_for(0.0))


# caches


def fewest_misses(keys: list[int], sizes: dict[int, int], capacity: int, *, bypass: bool = True) -> int:
    """Over everything that a cache could keep."""

    @functools.cache
    def best(place: int, held: frozenset[int]) -> int:
        if place == len(keys):
            return 0
        missed = keys[place] not in held
        there = held | {keys[place]}
        kept = (
            frozenset(some)
            for count in range(len(there) + 1)
            for some in itertools.combinations(sorted(there), count)
            if sum(sizes[key] for key in some) <= capacity and (bypass or keys[place] in some)
        )
        return missed + min(best(place + 1, some) for some in kept)

    return best(0, frozenset())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_belady_misses_least(keys: list[int], capacity: int, bypass: bool) -> None:
    misses, dropped = bounds.belady(keys, capacity, bypass=bypass)
    assert misses == fewest_misses(keys, dict.fromkeys(keys, 1), capacity, bypass=bypass)
    assert len(dropped) == len(keys)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.lists(st.integers(1, 3), min_size=4, max_size=4),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_with_sizes_no_cache_misses_less(keys: list[int], sizes: list[int], capacity: int) -> None:
    bound = bounds.fewest_misses_with_sizes(keys, [sizes[key] for key in keys], capacity)
    assert bound <= fewest_misses(keys, dict(enumerate(sizes)), capacity)
