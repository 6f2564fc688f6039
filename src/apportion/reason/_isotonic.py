"""A rising curve from a score to a probability, fitted to what came true (isotonic regression)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence


def fit(pairs: Iterable[tuple[float, float]], prior: float = 1.0) -> tuple[list[float], list[float]]:
    """Scores and probabilities of the knots of the best rising fit to (score, outcome in [0, 1]).

    Pools adjacent violators, then draws each block towards the mean of all with the strength of ``prior``
    observations, so that a short block is neither 0 nor 1.
    """
    at_score: dict[float, list[float]] = {}
    for score, outcome in pairs:
        held = at_score.setdefault(score, [0.0, 0.0])
        held[0] += outcome
        held[1] += 1.0
    if not at_score:
        return [], []
    overall = sum(held[0] for held in at_score.values()) / sum(held[1] for held in at_score.values())
    blocks: list[list[float]] = []  # sum of scores, sum of outcomes, count
    for score, (outcomes, n) in sorted(at_score.items()):
        blocks.append([score * n, outcomes, n])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    xs = [scores / n for scores, _, n in blocks]
    ys = [(outcomes + prior * overall) / (n + prior) for _, outcomes, n in blocks]
    for i in range(1, len(ys)):  # drawing short blocks further than long ones may break the order
        ys[i] = max(ys[i], ys[i - 1])
    return xs, ys


def at(knots: tuple[Sequence[float], Sequence[float]], score: float) -> float | None:
    """The probability at ``score``: straight lines between the knots, level outside; None without knots."""
    xs, ys = knots
    if not xs:
        return None
    i = bisect_right(xs, score)
    if i == 0:
        return ys[0]
    if i == len(xs):
        return ys[-1]
    left, right = xs[i - 1], xs[i]
    share = (score - left) / (right - left) if right > left else 1.0
    return ys[i - 1] + share * (ys[i] - ys[i - 1])
