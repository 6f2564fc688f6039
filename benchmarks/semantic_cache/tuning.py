"""Rules with a few numbers, chosen on some folds and measured on the others.

The rules have nothing to fit but these numbers, so the choice on the training folds is the inner loop of the nested
cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from apportion.serve.cache.category import kind
from apportion.serve.cache.check import Limits
from benchmarks.semantic_cache.data import Looks

BAR = 0.001
"""False hits for each look-up that a wrong answer could be served to, at most."""
FOLDS = 5
_CHOICE = BAR / 2
"""What is asked of the training folds: half of it, since the best of many choices looks better than it is."""

Numbers = tuple[float, ...]
Rule = Callable[[Looks, Numbers], Any]
"""Which candidates are accepted, for some numbers."""


def cosine(looks: Looks, numbers: Numbers) -> Any:
    """The similarity alone."""
    return looks.cos >= numbers[0]


def ours(looks: Looks, numbers: Numbers) -> Any:
    """What `serve.cache` does."""
    threshold, most, disorder = numbers
    limits = Limits(most=most, disorder=disorder)
    same = (looks.novelty == 0) & (looks.disorder == 0)
    reworded = (
        (looks.novelty >= limits.least)
        & (looks.novelty <= limits.most)
        & (looks.balance >= limits.balance)
        & (looks.disorder <= limits.disorder)
    )
    return (looks.cos >= threshold) & (looks.conflict == 0) & (same | reworded)


THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985,
              0.99, 0.995, 0.998, 0.999, 1.1)  # fmt: skip
COSINE_GRID: tuple[Numbers, ...] = tuple((t,) for t in THRESHOLDS)
OUR_GRID: tuple[Numbers, ...] = tuple(
    product(
        (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.975, 0.98, 0.985),
        (0.0, 0.2, 0.3, 0.4, 0.5, 0.6),
        (0.0, 0.05, 0.1, 0.2, 0.4),
    )
)


class Served(NamedTuple):
    """What became of look-ups."""

    looks: int
    chances: int
    """Look-ups that a wrong answer could be served to."""
    able: int
    """Look-ups to which a right answer was there."""
    right: int
    unknown: int
    wrong: int


def serve(looks: Looks, accepted: Any, rows: Any) -> Served:
    """The first accepted candidate of each look-up is served."""
    took = accepted[rows]
    hit = took.any(axis=1)
    verdict = np.take_along_axis(looks.verdict[rows], took.argmax(axis=1)[:, None], axis=1)[:, 0][hit]
    pairs = looks.verdict.shape[1] == 1
    chances = int((looks.verdict[rows] == 0).sum()) if pairs else len(took)
    return Served(
        looks=len(took),
        chances=chances,
        able=int(looks.able[rows].sum()),
        right=int((verdict == 1).sum()),
        unknown=int((verdict == -1).sum()),
        wrong=int((verdict == 0).sum()),
    )


def chosen(looks: Looks, accepted: dict[Numbers, Any], rows: Any) -> Numbers:
    """The numbers with the most hits whose false hits are within the bar on ``rows``; of equal ones the strictest."""
    best: tuple[float, Numbers] | None = None
    fewest: tuple[float, Numbers] | None = None
    for numbers, took in accepted.items():
        served = serve(looks, took, rows)
        rate = served.wrong / max(1, served.chances)
        hits = served.right + served.unknown
        if rate <= _CHOICE and (best is None or (hits, numbers[0]) > (best[0], best[1][0])):
            best = hits, numbers
        if fewest is None or rate < fewest[0]:
            fewest = rate, numbers
    found = best or fewest
    assert found is not None
    return found[1]


def cross_validated(
    looks: Looks, rule: Rule, grid: tuple[Numbers, ...], seed: int = 0
) -> tuple[Served, list[Numbers]]:
    """Served by numbers chosen without the fold they are used on."""
    groups = np.unique(looks.group)
    fold_of = np.random.default_rng(seed).integers(FOLDS, size=len(groups))[
        np.searchsorted(groups, looks.group)
    ]
    accepted = {numbers: rule(looks, numbers) for numbers in grid}
    parts, numbers = [], []
    for fold in range(FOLDS):
        best = chosen(looks, accepted, fold_of != fold)
        numbers.append(best)
        parts.append(serve(looks, accepted[best], fold_of == fold))
    return Served(*(sum(column) for column in zip(*parts, strict=True))), numbers


def interval(wrong: int, chances: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson confidence interval of a rate."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, wrong, chances - wrong + 1)) if wrong else 0.0
    high = float(beta.ppf(1 - tail, wrong + 1, chances - wrong)) if wrong < chances else 1.0
    return low, high


def jointly(
    orders: dict[str, Looks], rule: Rule, grid: Iterable[tuple[Numbers, ...]], seed: int = 0
) -> dict[str, Served]:
    """What each data set is served by one setting for all of them, chosen without the fold it is used on.

    A setting is one tuple of numbers, or one for worded problems and one for everything else.
    """
    folds = {name: _folds(looks, seed) for name, looks in orders.items()}
    problems = {
        name: np.array([kind(text) == "problem" for text, _ in looks.texts]) for name, looks in orders.items()
    }
    taken = []
    for setting in grid:
        accepted = {}
        for name, looks in orders.items():
            first = rule(looks, setting[0])
            accepted[name] = (
                first
                if len(setting) == 1
                else np.where(problems[name][:, None], first, rule(looks, setting[1]))
            )
        taken.append(accepted)
    parts: dict[str, list[Served]] = {name: [] for name in orders}
    for fold in range(FOLDS):
        best, most = taken[-1], -1.0
        for accepted in taken:
            there = {n: serve(looks, accepted[n], folds[n] != fold) for n, looks in orders.items()}
            share = sum((s.right + s.unknown) / s.looks for s in there.values())
            if all(s.wrong <= BAR * s.chances for s in there.values()) and share > most:
                best, most = accepted, share
        for name, looks in orders.items():
            parts[name].append(serve(looks, best[name], folds[name] == fold))
    return {
        name: Served(*(sum(column) for column in zip(*several, strict=True)))
        for name, several in parts.items()
    }


def _folds(looks: Looks, seed: int) -> Any:
    groups = np.unique(looks.group)
    return np.random.default_rng(seed).integers(FOLDS, size=len(groups))[np.searchsorted(groups, looks.group)]
