"""How long answers are, and what share of them runs on: per model, tenant and category (BenchOverflow, S311)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

CAPS = (1000, 3000, 5000)
"""The lengths at which cap-saturation rates are reported."""


class Series(NamedTuple):
    """Whose answers: ``None`` stands for all."""

    model: str | None = None
    tenant: str | None = None
    category: str | None = None


class Lengths:
    """Counts of answer lengths. Exact up to ``most_tokens``, beyond which a length counts as that; when there are
    ``most_series`` different ones, new ones are counted as the model's tenant "(other)".
    """

    def __init__(self, *, most_series: int = 2000, most_tokens: int = 65_536) -> None:
        self.most_series = most_series
        self.most_tokens = most_tokens
        self._counts: dict[tuple[str, str, str], Counter[int]] = {}

    def add(self, output_tokens: int, *, model: str, tenant: str = "", category: str = "") -> None:
        """One more answer."""
        key = (model, tenant, category)
        if key not in self._counts and len(self._counts) >= self.most_series:
            key = (model, "(other)", "")
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counter()
        counts[min(max(int(output_tokens), 0), self.most_tokens)] += 1

    def counts(self, series: Series = Series()) -> Counter[int]:  # noqa: B008
        """Answers by length, of all that ``series`` covers."""
        found: Counter[int] = Counter()
        for key, counts in self._counts.items():
            if all(wanted is None or wanted == part for wanted, part in zip(series, key, strict=True)):
                found.update(counts)
        return found

    def ecdf(self, series: Series = Series()) -> tuple[list[int], list[float]]:  # noqa: B008
        """The lengths that occurred, rising, and for each the share of answers that are at most so long."""
        counts = self.counts(series)
        total, below = counts.total(), 0
        lengths, shares = sorted(counts), []
        for length in lengths:
            below += counts[length]
            shares.append(below / total)
        return lengths, shares

    def saturation(self, cap: int, series: Series = Series()) -> float | None:  # noqa: B008
        """CSR@cap: the share of answers of at least ``cap`` tokens; None without answers."""
        counts = self.counts(series)
        total = counts.total()
        return sum(n for length, n in counts.items() if length >= cap) / total if total else None

    def quantile(self, share: float, series: Series = Series()) -> int | None:  # noqa: B008
        """The least length that at least ``share`` of the answers do not exceed; None without answers."""
        lengths, shares = self.ecdf(series)
        return lengths[min(bisect_left(shares, share - 1e-12), len(lengths) - 1)] if lengths else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per model, tenant and category: answers, p50, p99, and the rates at `CAPS`."""
        for key in sorted(self._counts):
            series = Series(*key)
            row: dict[str, Any] = dict(zip(("model", "tenant", "category"), key, strict=True))
            row |= {"answers": self._counts[key].total()}
            row |= {"p50_tokens": self.quantile(0.5, series), "p99_tokens": self.quantile(0.99, series)}
            row |= {f"csr_{cap}": self.saturation(cap, series) for cap in CAPS}
            yield row
