"""The fit finds the constants that made the measurements; tables become profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.simulate.profile import ProfileError
from apportion.simulate.profiles.fit import Law, Measurements, fit, nnls
from apportion.simulate.profiles.tables import passes, serving

LAW = Law((1, 4, 64, 512), ("prefill_attention_s", "decode_attention_s", "before_s"))


def measured(theta: np.ndarray[Any, Any], noise: float, seed: int, outliers: int = 0) -> Measurements:
    """Prompts of several lengths, and steps of several batch sizes and contexts, three times each."""
    rng, m = np.random.default_rng(seed), Measurements(LAW)
    rows = []
    for n in (2, 8, 32, 64, 128, 256, 512, 1024, 2048):
        chunks = [512.0] * (n // 512) + ([float(n % 512)] if n % 512 else [])
        rows.append(("ttft_s", f"p{n}", LAW.row(chunks, prefill_pairs=n * n / 2, before=1.0)))
    for b in (1, 2, 4, 8, 16):
        rows += [("token_s", f"d{b} {c}", LAW.row([b], decode_context=b * c)) for c in (32, 1024)]
    for quantity, group, row in rows * 3:
        m.add(quantity, group, float(row @ theta) * float(np.exp(noise * rng.normal())), row)
    for i in rng.choice(len(m), size=outliers, replace=False):
        m.seconds[i] *= 5.0
    return m


constants = st.tuples(
    st.floats(1e-3, 0.1),
    *(st.floats(1e-5, 1e-3) for _ in range(3)),
    st.floats(1e-8, 1e-6),
    st.floats(1e-8, 1e-6),
    st.floats(0.002, 0.1),
)


@settings(max_examples=25, deadline=None)
@given(constants, st.integers(0, 2**31))
def test_known_constants_are_found(known: tuple[float, ...], seed: int) -> None:
    theta = np.array(known)
    m = measured(theta, 0.0, seed)
    found = fit(m, draws=2)
    profile = found.profile("a")
    for row, seconds in zip(m.rows, m.seconds, strict=True):
        assert float(row @ theta) == pytest.approx(seconds)
    assert found.error["ttft_s"] < 0.3
    for b, context in ((1, 100), (3, 50), (16, 1000)):
        truth = float(LAW.row([b], decode_context=b * context) @ theta)
        assert float(profile.seconds_of(b, decode_context=b * context)) == pytest.approx(truth, rel=0.03)
    truth = float(LAW.row([512], prefill_pairs=512 * 256) @ theta)
    assert float(profile.seconds_of(512, prefill_pairs=512 * 256)) == pytest.approx(truth, rel=0.05)


def test_outliers_do_not_move_it() -> None:
    theta = np.array([0.02, 1e-4, 2e-4, 3e-4, 1e-7, 1e-7, 0.01])
    found = fit(measured(theta, 0.02, 1, outliers=6)).profile("a")
    truth = float(LAW.row([8], decode_context=800) @ theta)
    assert float(found.seconds_of(8, decode_context=800)) == pytest.approx(truth, rel=0.04)
    spread = [float(found.drawn(i).seconds_of(8, decode_context=800)) for i in range(len(found.draws))]
    assert min(spread) < truth < max(spread) or np.std(spread) < 0.02 * truth
    assert np.std(spread) > 0


def test_the_fit_is_the_same_again() -> None:
    theta = np.array([0.02, 1e-4, 2e-4, 3e-4, 1e-7, 1e-7, 0.01])
    assert fit(measured(theta, 0.1, 1)) == fit(measured(theta, 0.1, 1))


def test_too_little_is_refused() -> None:
    m = Measurements(LAW)
    m.add("ttft_s", "a", 1.0, LAW.row([1]))
    with pytest.raises(ProfileError, match="too few"):
        fit(m)
    with pytest.raises(ProfileError, match="nan"):
        m.add("ttft_s", "a", float("nan"), LAW.row([1]))


@given(st.integers(0, 2**31), st.integers(1, 8))
def test_nnls_satisfies_its_optimality_conditions(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(20, n)), rng.normal(size=20)
    x = nnls(a, b)
    gradient = a.T @ (b - a @ x)
    assert (x >= 0).all()
    assert (gradient <= 1e-7).all()
    assert np.abs(gradient[x > 0]).max(initial=0.0) < 1e-7


def test_a_table_of_passes_becomes_a_profile() -> None:
    rows = []
    for p, b in [
        (128, 1),
        (512, 1),
        (1024, 1),
        (2048, 1),
        (4096, 1),
        (512, 2),
        (512, 4),
        (512, 8),
        (512, 16),
    ]:
        for _ in range(3):
            prompt_s = 0.03 + 1.2e-4 * b * p + 1.4e-9 * b * p * p / 2
            token_s = 0.03 + 2e-4 * b + 5e-8 * b * (p + 64)
            rows.append(
                {
                    "model": "llama2-70b",
                    "hardware": "h100-80gb",
                    "tensor_parallel": "8",
                    "prompt_size": str(p),
                    "batch_size": str(b),
                    "token_size": "128",
                    "prompt_time": str(prompt_s * 1e3),
                    "token_time": str(token_s * 1e3),
                    "average_power": "0.5",
                    "peak_power": "1.0",
                }
            )
    p = passes(rows, "llama2-70b", "h100-80gb", 8, name="a", source="made here, MIT")
    assert float(p.seconds_of(1024, prefill_pairs=1024**2 / 2)) == pytest.approx(
        0.03 + 1.2e-4 * 1024, rel=0.06
    )
    assert float(p.seconds_of(8, decode_context=8 * 576)) == pytest.approx(0.0318, rel=0.03)
    assert p.decode_watts(4) == pytest.approx(0.5 * 8 * 700)
    assert p.prefill_w == pytest.approx(8 * 700)


def test_serving_points_become_a_profile() -> None:
    rows = []
    for c in (1, 4, 16, 64, 128):
        for isl, osl in ((128, 512), (1024, 256), (2048, 1024)):
            decode = 0.006 + 2e-5 * c + 4e-8 * c * (isl + osl / 2)
            tpot = decode + c / osl * 2e-5 * isl
            rows.append(
                {
                    "concurrency": str(c),
                    "batch_size": str(c),
                    "isl": str(isl),
                    "osl": str(osl),
                    "silicon_tpot_ms": str(tpot * 1e3),
                }
            )
    p = serving(rows, gpu="h100-sxm", model="llama3.1-8b", tp=1, bits=16, name="a", source="made here, MIT")
    assert float(p.seconds_of(16, decode_context=16 * 1000)) == pytest.approx(
        0.006 + 3.2e-4 + 6.4e-4, rel=0.08
    )
    assert float(p.seconds_of(2048)) - float(p.seconds_of(1)) == pytest.approx(2e-5 * 2048, rel=0.2)
    assert p.error["tpot_s"] < 0.1
