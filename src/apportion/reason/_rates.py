"""What is known of how often one model's samples pass: in general, and where its quality was predicted high or low.

A prediction shifts the general distribution (`_curve.tilted`) until enough requests with about that prediction
were seen; from then on what became of those counts, so that predictions need not be calibrated and what they leave
open, often a choice between hopeless and easy, is learned. Plain lists, so that JSON carries them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from apportion.reason import _curve

KNOTS = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
"""Predicted qualities at which distributions are kept; between them they are mixed."""

PRIOR_REQUESTS = 10.0
"""Requests that the distribution before the first one is worth."""

Known = dict[str, Any]


def nothing() -> Known:
    """Before the first request."""
    return {"general": list(_curve.UNKNOWN), "n": 0.0, "at": [[0.0, list(_curve.UNKNOWN)] for _ in KNOTS]}


def expected(known: Known, quality: float | None, sd: float | None) -> tuple[float, ...]:
    """The distribution of the rate on a request with this predicted ``quality``, whose error has ``sd``."""
    general = tuple(known["general"])
    if quality is None:
        return general
    shares = _shares(quality)
    trust = sum(share * known["at"][k][0] for k, share in shares)
    mixed = [PRIOR_REQUESTS * w for w in _curve.tilted(general, quality, sd)]
    for k, share in shares:
        n, seen = known["at"][k]
        mixed = [w + share * n * s for w, s in zip(mixed, seen, strict=True)]
    return tuple([w / (PRIOR_REQUESTS + trust) for w in mixed])


def note(
    known: Known, quality: float | None, sd: float | None, right: float, wrong: float, window: float
) -> None:
    """Take in what the samples of one request were: expectation-maximisation, one step a request."""
    n = known["n"] = min(known["n"] + 1.0, window)
    seen = _curve.posterior(known["general"], right, wrong)
    step = 1.0 / (n + PRIOR_REQUESTS)
    known["general"] = [w + step * (s - w) for w, s in zip(known["general"], seen, strict=True)]
    if quality is not None:
        _note_at(known, quality, _curve.posterior(expected(known, quality, sd), right, wrong), window)


def _note_at(known: Known, quality: float, seen: Iterable[float], window: float) -> None:
    seen = list(seen)
    for k, share in _shares(quality):
        n, before = known["at"][k]
        if share > 0.0:
            m = n + share
            known["at"][k] = [
                min(m, window),
                [w + share / m * (s - w) for w, s in zip(before, seen, strict=True)],
            ]


def fitted(rows: Iterable[tuple[float, float, float | None, float | None]], window: float) -> Known:
    """From past requests: (right, wrong, predicted quality, its sd), the last two None where nothing was predicted."""
    rows = list(rows)
    known = nothing()
    known["general"] = list(_curve.fitted((right, wrong, 1.0) for right, wrong, _, _ in rows))
    known["n"] = min(float(len(rows)), window)
    for right, wrong, quality, sd in rows:
        if quality is not None:
            tilted = _curve.tilted(known["general"], quality, sd)
            _note_at(known, quality, _curve.posterior(tilted, right, wrong), window)
    return known


def _shares(quality: float) -> tuple[tuple[int, float], ...]:
    """The knots around ``quality`` with their shares."""
    k = min(max(bisect_right(KNOTS, quality), 1), len(KNOTS) - 1)
    share = (quality - KNOTS[k - 1]) / (KNOTS[k] - KNOTS[k - 1])
    return (k - 1, 1.0 - share), (k, share)
