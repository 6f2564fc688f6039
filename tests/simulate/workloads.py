"""Workloads for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from apportion.simulate.trace import Blocks, Labels, Trace
from apportion.simulate.workload import plain
from apportion.simulate.workload.generate import generate


def small(n: int, seed: int, *, full: bool = False) -> Trace:
    """``n`` requests with arbitrary values; ``full`` has every column."""
    rng = np.random.default_rng(seed)
    more: dict[str, Any] = {}
    if full:
        counts = rng.integers(0, 4, n)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        more = {
            "model": Labels(rng.integers(-1, 2, n).astype(np.int32), ("small", "large")),
            "tenant": Labels(rng.integers(-1, 3, n).astype(np.int32), ("a", "b", 'ü, "quoted"')),
            "session": rng.integers(-1, 5, n).astype(np.int64),
            "priority": rng.integers(-3, 4, n).astype(np.int8),
            "deadline_s": np.where(rng.random(n) < 0.5, np.nan, rng.random(n) * 10),
            "failed": rng.random(n) < 0.2,
            "blocks": Blocks(offsets, rng.integers(0, 50, offsets[-1]).astype(np.int64), 128),
            "quality": np.where(rng.random((n, 2)) < 0.5, np.nan, rng.random((n, 2))),
            "actions": ("cheap", "dear"),
            "cap_tokens": rng.integers(0, 100, n).astype(np.int32),
            "lexical": rng.random((n, 3)),
        }
    return Trace(
        arrival_s=np.cumsum(rng.standard_gamma(0.5, n)),
        prompt_tokens=rng.integers(1, 2000, n).astype(np.int32),
        output_tokens=rng.integers(0, 500, n).astype(np.int32),
        name="small",
        **more,
    )


def bursty(shape: float, rate: float, duration_s: float, seed: int = 0) -> Trace:
    """Gamma gaps of one shape, log-normal lengths."""
    return generate(plain(rate, duration_s, shape=shape, sigma=0.6), seed)


def same(a: Trace, b: Trace) -> None:
    """Both say the same of every request; codes may differ where names do not."""
    assert len(a) == len(b)
    for name in (
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "session",
        "priority",
        "deadline_s",
        "failed",
        "quality",
        "cap_tokens",
        "lexical",
    ):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
    for name in ("model", "tenant"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert [one.at(i) for i in range(len(a))] == [other.at(i) for i in range(len(a))]
    assert (a.blocks is None) == (b.blocks is None)
    if a.blocks is not None and b.blocks is not None:
        assert a.blocks.block_tokens == b.blocks.block_tokens
        for row in range(len(a)):
            np.testing.assert_array_equal(a.blocks.of(row), b.blocks.of(row))
    assert a.actions == b.actions
