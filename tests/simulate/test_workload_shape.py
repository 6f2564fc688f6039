"""Operations on workloads: nothing is lost, nothing is invented, piecewise is as whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import same, small

from apportion.simulate.trace import Trace, TraceError, empty, joined
from apportion.simulate.workload import shape

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 10**6)


def cut(trace: Trace, size: int) -> list[Trace]:
    return [trace.take(slice(i, i + size)) for i in range(0, len(trace), size)]


def ordered(trace: Trace) -> bool:
    return bool(np.all(np.diff(trace.arrival_s) >= 0))


@given(SIZES, SEEDS, st.floats(0.1, 10))
def test_compressed_keeps_every_request_and_their_order(n: int, seed: int, factor: float) -> None:
    trace = small(n, seed, full=True)
    faster = shape.compressed(trace, factor)
    np.testing.assert_allclose(faster.arrival_s * factor, trace.arrival_s)
    np.testing.assert_array_equal(faster.prompt_tokens, trace.prompt_tokens)


@given(SIZES, SEEDS, st.integers(1, 4))
def test_scaled_by_a_whole_number_has_so_many_copies(n: int, seed: int, factor: int) -> None:
    trace = small(n, seed, full=True)
    denser = shape.scaled(trace, factor, seed=seed)
    assert len(denser) == n * factor
    assert ordered(denser)
    assert sorted(denser.prompt_tokens.tolist()) == sorted(trace.prompt_tokens.tolist() * factor)
    assert trace.session is not None
    assert denser.session is not None
    own = len(set(trace.session.tolist()) - {-1})
    assert len(set(denser.session.tolist()) - {-1}) == own * factor  # copies are strangers
    period = trace.duration_s * n / max(1, n - 1)
    assert denser.arrival_s[-1] <= trace.arrival_s[0] + period + 1e-9
    same(shape.scaled(trace, 1.0), trace)


def test_scaled_by_a_part_keeps_that_part_and_whole_conversations() -> None:
    trace = small(20_000, 1)
    assert abs(len(shape.scaled(trace, 0.3)) / 20_000 - 0.3) < 0.02
    assert abs(len(shape.scaled(trace, 2.5)) / 20_000 - 2.5) < 0.02
    talks = small(2000, 2, full=True)
    talks = shape.thinned(talks, 0.5, seed=3)
    before = small(2000, 2, full=True).session
    assert before is not None
    assert talks.session is not None
    for number in set(talks.session.tolist()) - {-1}:
        assert np.sum(talks.session == number) == np.sum(before == number)


@given(SIZES, SEEDS, st.integers(1, 9), st.floats(0, 1))
def test_thinned_and_window_by_pieces_are_as_whole(n: int, seed: int, size: int, share: float) -> None:
    trace = small(n, seed, full=True)
    parts = list(shape.thinned_pieces(cut(trace, size), share, seed=seed))
    same(joined(parts), shape.thinned(trace, share, seed=seed))
    low, high = share * trace.arrival_s[-1], trace.arrival_s[-1]
    whole = shape.window(trace, low, high)
    assert all(low <= t < high for t in whole.arrival_s)
    found = list(shape.window_pieces(cut(trace, size), low, high))
    assert sum(map(len, found)) == len(whole)
    if found:
        same(joined(found), whole)


@settings(deadline=None)
@given(st.lists(st.tuples(SIZES, SEEDS), min_size=1, max_size=4), st.integers(1, 30))
def test_mixed_has_all_requests_in_order_and_by_pieces_too(parts: list[tuple[int, int]], size: int) -> None:
    traces = [small(n, seed, full=bool(seed % 2)) for n, seed in parts]
    traces[0] = shape.moved(traces[0], 0.25)
    whole = shape.mixed(traces, apart=False)
    assert ordered(whole)
    assert len(whole) == sum(n for n, _ in parts)
    assert sorted(whole.arrival_s) == sorted(np.concatenate([trace.arrival_s for trace in traces]))
    found = list(shape.mixed_pieces([cut(trace, 1 + size // 2) for trace in traces], rows=size))
    assert all(len(piece) <= size for piece in found)
    assert all(len(piece) == size for piece in found[:-1])
    np.testing.assert_array_equal(joined(found).arrival_s, whole.arrival_s)
    assert sorted(joined(found).prompt_tokens) == sorted(whole.prompt_tokens)


def test_mixed_keeps_conversations_and_blocks_of_different_traces_apart() -> None:
    a, b = small(30, 1, full=True), small(30, 1, full=True)
    both = shape.mixed([a, b])
    assert both.session is not None
    assert a.session is not None
    assert len(set(both.session.tolist()) - {-1}) == 2 * len(set(a.session.tolist()) - {-1})
    assert both.blocks is not None
    assert a.blocks is not None
    assert len(np.unique(both.blocks.ids)) == 2 * len(np.unique(a.blocks.ids))


@given(SIZES, SEEDS, st.integers(1, 4))
def test_repeated_and_after(n: int, seed: int, times: int) -> None:
    trace = small(n, seed)
    again = shape.repeated(trace, times)
    assert len(again) == n * times
    assert ordered(again)
    np.testing.assert_array_equal(again.prompt_tokens, np.tile(trace.prompt_tokens, times))
    one_after_other = shape.after([trace, empty(), trace], gap_s=2.0)
    assert ordered(one_after_other)
    assert len(one_after_other) == 2 * n
    assert one_after_other.arrival_s[n] == trace.arrival_s[-1] + 2.0


def test_only() -> None:
    trace = small(200, 5, full=True)
    picked = shape.only(trace, models=["small"], tenants=["a", "b"])
    assert trace.model is not None
    assert trace.tenant is not None
    wanted = [i for i in range(200) if trace.model.at(i) == "small" and trace.tenant.at(i) in ("a", "b")]
    same(picked, trace.take(np.array(wanted)))
    with pytest.raises(TraceError, match=r"no model huge.*It has: small, large"):
        shape.only(trace, models=["huge"])
    with pytest.raises(TraceError, match="does not say the tenant"):
        shape.only(small(3, 0), tenants=["a"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none(factor: float) -> None:
    with pytest.raises(TraceError, match="'factor'"):
        shape.compressed(small(3, 0), factor)
    with pytest.raises(TraceError):
        shape.scaled(small(3, 0), factor)


def test_uniform_is_uniform_and_fixed() -> None:
    draws = shape.uniform(np.arange(100_000, dtype=np.uint64), 7)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.01
    np.testing.assert_array_equal(draws, shape.uniform(np.arange(100_000, dtype=np.uint64), 7))
    assert not np.any(draws == shape.uniform(np.arange(100_000, dtype=np.uint64), 8))
