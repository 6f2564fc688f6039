"""Lengths of answers against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.measure.overflow import Lengths, Series

ANSWERS = st.lists(
    st.tuples(
        st.integers(0, 6000), st.sampled_from("mn"), st.sampled_from("tu"), st.sampled_from(["", "code"])
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(answers=ANSWERS, model=st.sampled_from([None, "m", "n"]), tenant=st.sampled_from([None, "t"]))
def test_it_says_what_numpy_says(
    answers: list[tuple[int, str, str, str]], model: str | None, tenant: str | None
) -> None:
    lengths = Lengths()
    for tokens, of_model, of_tenant, category in answers:
        lengths.add(tokens, model=of_model, tenant=of_tenant, category=category)
    series = Series(model, tenant)
    mine = np.array([a[0] for a in answers if model in (None, a[1]) and tenant in (None, a[2])])
    found, shares = lengths.ecdf(series)
    if not len(mine):
        assert (found, shares) == ([], [])
        assert lengths.saturation(1000, series) is None
        assert lengths.quantile(0.5, series) is None
        return
    values, counts = np.unique(mine, return_counts=True)
    assert found == values.tolist()
    assert shares == pytest.approx((np.cumsum(counts) / len(mine)).tolist())
    for cap in (1000, 3000, 5000):
        assert lengths.saturation(cap, series) == pytest.approx(float(np.mean(mine >= cap)))
    for share in (0.0, 0.5, 0.99, 1.0):
        assert lengths.quantile(share, series) == np.quantile(mine, share, method="inverted_cdf")
    assert sum(row["answers"] for row in lengths.rows()) == len(answers)


def test_rows_name_model_tenant_and_category() -> None:
    lengths = Lengths()
    for tokens in (500, 1000, 5000, 70_000):
        lengths.add(tokens, model="m", tenant="t", category="lists")
    assert list(lengths.rows()) == [
        {
            "model": "m",
            "tenant": "t",
            "category": "lists",
            "answers": 4,
            "p50_tokens": 1000,
            "p99_tokens": 65_536,
            "csr_1000": 0.75,
            "csr_3000": 0.5,
            "csr_5000": 0.5,
        }
    ]


def test_memory_is_bounded() -> None:
    lengths = Lengths(most_series=3)
    for tenant in range(100):
        lengths.add(10, model="m", tenant=str(tenant))
    rows = list(lengths.rows())
    assert len(rows) == 4
    assert sum(row["answers"] for row in rows) == 100
    assert rows[0]["tenant"] == "(other)"
