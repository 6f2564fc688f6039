"""All that is measured, put together."""

from __future__ import annotations

import datetime
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.semantic_cache import data, peer, speed, trace, tuning
from benchmarks.semantic_cache.data import Looks
from benchmarks.semantic_cache.tuning import Numbers, Served

ORDERS = 1


@dataclass
class Row:
    """One method on one data set."""

    data: str
    method: str
    looks: int
    chances: int
    able: int
    right: int
    unknown: int
    wrong: int
    low: float
    high: float
    numbers: list[Numbers]

    @classmethod
    def of(cls, name: str, method: str, served: Served, numbers: list[Numbers]) -> Row:
        """With the confidence interval of the false-hit rate."""
        return cls(name, method, *served, *tuning.interval(served.wrong, served.chances), numbers)


def measured(*, quick: bool) -> dict[str, Any] | None:
    """Everything, as JSON has it; None without data."""
    with ProcessPoolExecutor(3) as pool:
        rows, day, times = pool.submit(_sets, quick), pool.submit(_trace, quick), pool.submit(_speed, quick)
        if not rows.result():
            return None
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "quick": quick,
            "rows": rows.result(),
            "trace": day.result(),
            "speed": times.result(),
        }


def _sets(quick: bool) -> list[dict[str, Any]]:
    from benchmarks.routing.encode import embed

    sets: dict[str, list[Looks]] = {}
    for name, made in (("gsm_plus_variants", data.gsm), ("paws_wiki_en", data.paws)):
        looks = made(embed)
        if looks is None:
            return []
        sets[name] = [looks]
    for name in ("banking77", "clinc150"):
        orders = [data.stream(name, embed, seed) for seed in range(1 if quick else ORDERS)]
        sets[name] = [looks for looks in orders if looks is not None]
    if not all(sets.values()):
        return []
    rows = [row for name, orders in sets.items() for row in _rows(name, orders)]
    return [asdict(row) for row in [*rows, *_together(sets)]]


def _speed(quick: bool) -> list[dict[str, Any]]:
    return [speed.measured(n) for n in ((1_000,) if quick else (1_000, 10_000, 100_000))]


def _rows(name: str, orders: list[Looks]) -> list[Row]:
    """Each method on one data set, by cross-validation; several orders of a stream added up."""
    found = []
    for method, rule, grid in (
        ("cosine", tuning.cosine, tuning.COSINE_GRID),
        ("ours", tuning.ours, tuning.OUR_GRID),
    ):
        parts = [tuning.cross_validated(looks, rule, grid, seed) for seed, looks in enumerate(orders)]
        found.append(
            Row.of(name, method, _sum([s for s, _ in parts]), [n for _, several in parts for n in several])
        )
    peers = [(looks, peer.served(looks.cos)) for looks in orders]
    if all(accepted is not None for _, accepted in peers):
        served = _sum([tuning.serve(looks, accepted, slice(None)) for looks, accepted in peers])
        found.append(Row.of(name, "gptcache", served, []))
    possible = _sum(
        [
            Served(len(k.able), int((k.verdict == 0).any(axis=1).sum()), n := int(k.able.sum()), n, 0, 0)
            for k in orders
        ]
    )
    found.append(Row.of(name, "best possible", possible, []))
    return found


def _together(sets: dict[str, list[Looks]]) -> list[Row]:
    """One setting for all data sets at once, chosen so that none is over the bar on the training folds.

    The cache has a rule for worded problems and one for all else, told apart by the text (`category.kind`).
    """
    found = []
    orders = {name: looks[0] for name, looks in sets.items()}
    ones = [(n,) for n in tuning.COSINE_GRID]
    ours = [
        (problem, (threshold, 0.0, 0.0))
        for problem in ((0.7, 0.5, 0.2), (0.75, 0.6, 0.2), (0.75, 0.6, 0.4), (0.8, 0.6, 0.4), (0.9, 0.4, 0.2))
        for threshold in (0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99)
    ]
    for method, rule, grid in (("cosine", tuning.cosine, ones), ("ours", tuning.ours, ours)):
        for name, served in tuning.jointly(orders, rule, grid).items():
            found.append(Row.of(name, f"{method}, one setting for all", served, []))
    return found


def _sum(parts: list[Served]) -> Served:
    return Served(*(sum(column) for column in zip(*parts, strict=True)))


def _trace(quick: bool) -> list[dict[str, Any]]:
    from benchmarks.routing.encode import embed

    day = trace.made(0, 3_000 if quick else trace.CALLS)
    if not day:
        return []
    known = trace.vectors(day, embed)
    plan: list[tuple[str, Any, dict[str, Any]]] = [
        (f"one rule: cosine {threshold:g}, {ttl_s:g} s", trace.uniform(threshold, ttl_s), {"checked": False})
        for ttl_s in (60.0, 600.0, 86400.0)
        for threshold in (0.8, 0.95, 0.99, 0.999)
    ]
    plan += [
        (f"one rule, words checked: cosine {threshold:g}, {ttl_s:g} s", trace.uniform(threshold, ttl_s), {})
        for ttl_s in (600.0, 86400.0)
        for threshold in (0.8,)
    ]
    plan += [
        ("categories, built in", trace.BUILT_IN, {}),
        ("categories, and one configured", trace.by_category(), {}),
        (
            "categories, and one configured; busy, not relaxed",
            trace.by_category(),
            {"load": 1.0, "relaxed": False},
        ),
        ("categories, and one configured; busy, relaxed (x4)", trace.by_category(), {"load": 1.0}),
        ("categories, and one configured; busy, relaxed (x24)", trace.by_category(23.0), {"load": 1.0}),
    ]
    rows = [
        {"cache": name, **trace.run(day, settings, known, **how)._asdict()} for name, settings, how in plan
    ]
    return [*rows, {"cache": "best possible", **trace.best_possible(day)._asdict()}]
