"""Routing by neighbours on tables of outcomes (`reason/jisi`), and search with a check over many models
(`reason/best_of_k`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from apportion.core import Call, Cost, Features, Option, Reply, drive
from apportion.reason.best_of_k import BestOfK
from apportion.reason.jisi import JiSi
from benchmarks.best_of_k.data import Floats, Ints, Outcomes

NEIGHBOURS = (40, 80)
BANDWIDTHS = (0.05, 0.15)
SHRINKS = (2.0, 10.0)
WORTHS = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 200)])
"""Worth of a right answer, in mean costs of the best single model."""
SEARCH_WORTHS = (0.2, 0.5, 1.0, 3.0)


def evaluate(table: Outcomes, vectors: Floats, seeds: Sequence[int], folds: int = 5) -> dict[str, object]:
    """Cost as a share of the best single model's at shares of its quality, for each method, by seed."""
    runs = []
    for seed in seeds:
        fold = np.random.default_rng(seed).permutation(len(table.right)) % folds
        scores = {name: np.zeros_like(table.right) for name in ("k nearest neighbours", "ours")}
        means = np.zeros_like(table.cost)
        chosen = []
        for f in range(folds):
            train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
            parameters = choose(table, vectors, train, seed)
            chosen.append(parameters)
            scores["ours"][test] = predicted(bank(table, vectors, train, parameters), table, vectors, test)
            plain = {"neighbours": 40, "bandwidth": 1e6, "shrink": 1e-6}
            scores["k nearest neighbours"][test] = predicted(
                bank(table, vectors, train, plain), table, vectors, test
            )
            means[test] = _known_costs(table, train, test)
        runs.append({"chosen": chosen, **{name: frontier(table, s, means) for name, s in scores.items()}})
    best = frontier(table, table.right, table.cost)
    goals = ("0.95", "0.99", "1.00")
    return {
        "questions": len(table.right),
        "models": len(table.models),
        "about_cost": table.about_cost,
        "best_single": table.models[int(table.right.mean(axis=0).argmax())],
        "quality": float(table.right.mean(axis=0).max()),
        "methods": {
            name: {
                g: [float(np.mean([r[name][g] for r in runs])), float(np.std([r[name][g] for r in runs]))]
                for g in goals
            }  # type: ignore[index]
            for name in ("k nearest neighbours", "ours")
        }
        | {"best possible": {g: [best[g], 0.0] for g in goals}},
        "chosen": [run["chosen"] for run in runs],
    }


def bank(table: Outcomes, vectors: Floats, train: Ints, parameters: dict[str, float]) -> JiSi:
    """The strategy with the training questions in its bank."""
    strategy = JiSi(capacity=len(table.right), candidates=1, **parameters)  # type: ignore[arg-type]
    for i in train:
        strategy.remember(vectors[i].tolist(), dict(zip(table.models, table.right[i].tolist(), strict=True)))
    return strategy


def predicted(strategy: JiSi, table: Outcomes, vectors: Floats, asked: Ints) -> Floats:
    """The quality that the strategy expects of each model on each asked question."""
    options = [Option(model, 0.0, Cost()) for model in table.models]
    found = []
    for i in asked:
        scores = strategy.scores(options, strategy.near(vectors[i].tolist()))
        found.append([scores[model] for model in table.models])
    return np.array(found)


def choose(table: Outcomes, vectors: Floats, train: Ints, seed: int) -> dict[str, float]:
    """The parameters with the least squared error on a quarter of the training questions."""
    order = np.random.default_rng(seed + 77).permutation(train)
    held, kept = order[: min(200, len(order) // 4)], order[min(200, len(order) // 4) :]
    best, least = {}, np.inf
    for neighbours in NEIGHBOURS:
        for bandwidth in BANDWIDTHS:
            for shrink in SHRINKS:
                parameters = {"neighbours": neighbours, "bandwidth": bandwidth, "shrink": shrink}
                error = np.square(
                    predicted(bank(table, vectors, kept, parameters), table, vectors, held)
                    - table.right[held]
                ).mean()
                if error < least:
                    best, least = parameters, float(error)
    return best


def frontier(table: Outcomes, scores: Floats, costs: Floats) -> dict[str, float]:
    """The least share of the best single model's cost at which choices by worth x score - cost reach its quality.

    At best the single model itself is taken: more than 1 is never needed.
    """
    single = int(table.right.mean(axis=0).argmax())
    unit, quality = table.cost[:, single].mean(), table.right[:, single].mean()
    each = np.arange(len(scores))
    points = []
    for worth in WORTHS:
        choice = (worth * scores - costs / unit).argmax(axis=1)
        points.append((table.cost[each, choice].mean() / unit, table.right[each, choice].mean()))
    return {
        f"{goal:.2f}": min([1.0] + [float(cost) for cost, right in points if right >= goal * quality - 1e-12])
        for goal in (0.95, 0.99, 1.0)
    }


def _known_costs(table: Outcomes, train: Ints, test: Ints) -> Floats:
    """What is known of a cost beforehand: all of it where it follows from the request, else the model's mean."""
    if "answer" in table.about_cost:
        return np.tile(table.cost[train].mean(axis=0), (len(test), 1))
    return table.cost[test]


def decision_ms(table: Outcomes, vectors: Floats, rounds: int = 200) -> dict[str, float]:
    """Milliseconds of processor time from a request to its first call, all questions in the bank."""
    everything = np.arange(len(table.right))
    strategy = bank(table, vectors, everything, {"neighbours": 40})
    options = [Option(m, 0.0, Cost(usd=0.001)) for m in table.models]
    took = []
    for i in everything[:rounds]:
        request = {"options": options, "prices": {"usd": 1.0}, "worth_usd": 0.01}
        request["features"] = Features((), tuple(vectors[i].tolist()))
        start = time.thread_time()
        plan = strategy.run(request, 0.0)
        next(plan)
        took.append(1e3 * (time.thread_time() - start))
        plan.close()
    return {"p50": float(np.quantile(took, 0.5)), "p99": float(np.quantile(took, 0.99))}


def search(table: Outcomes, vectors: Floats, seeds: Sequence[int]) -> dict[str, object]:
    """`_search_once` over seeds: the mean of every (cost, right), costs as shares of the best single model's."""
    runs = [_search_once(table, vectors, seed) for seed in seeds]
    return {
        key: np.mean([run[key] for run in runs], axis=0).tolist()  # type: ignore[arg-type]
        for key in ("points", "cheapest first", "best single", "best possible")
    }


def _search_once(table: Outcomes, vectors: Floats, seed: int, folds: int = 5) -> dict[str, object]:
    """Models asked one after the other until a check accepts an answer: the strategy driven on every test question.

    The check is taken to be right (a unit test, a known answer). Cheapest first is the plain cascade.
    """
    single = int(table.right.mean(axis=0).argmax())
    unit = float(table.cost[:, single].mean())
    fold = np.random.default_rng(seed).permutation(len(table.right)) % folds
    binary = (table.right > 0.5).astype(float)
    points: dict[float, list[tuple[float, float]]] = {worth: [] for worth in SEARCH_WORTHS}
    plain: list[tuple[float, float]] = []
    for f in range(folds):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        strategy = bank(table, vectors, train, choose(table, vectors, train, seed))
        scores, costs = predicted(strategy, table, vectors, test), _known_costs(table, train, test) / unit
        for worth in SEARCH_WORTHS:
            points[worth] += [
                _search(table, binary[i], scores[j], costs[j], table.cost[i] / unit, worth)
                for j, i in enumerate(test)
            ]
        ladder = np.argsort(table.cost[train].mean(axis=0))
        plain += [_ladder(binary[i], table.cost[i] / unit, ladder) for i in test]
    any_right = binary.max(axis=1) > 0
    least = (
        np.where(any_right, np.where(binary > 0, table.cost, np.inf).min(axis=1), table.cost.min(axis=1))
        / unit
    )
    return {
        "points": [[worth, *np.mean(of, axis=0).tolist()] for worth, of in points.items()],
        "cheapest first": np.mean(plain, axis=0).tolist(),
        "best single": [1.0, float(binary[:, single].mean())],
        "best possible": [float(least.mean()), float(any_right.mean())],
    }


def _search(
    table: Outcomes, right: Floats, scores: Floats, expected: Floats, paid: Floats, worth: float
) -> tuple[float, float]:
    """(cost, right) of one question under the strategy."""
    options = [
        Option(
            model, 0.0, Cost(usd=float(cost)), quality=float(min(max(score, 0.002), 0.998)), quality_sd=0.0
        )
        for model, score, cost in zip(table.models, scores, expected, strict=True)
    ]
    spent = 0.0

    def call(one: Call) -> Reply:
        nonlocal spent
        i = table.models.index(one.action)
        spent += paid[i]
        return Reply("ok", {"text": "an answer", "accepted": bool(right[i])}, Cost(usd=float(paid[i])))

    strategy = BestOfK(max_samples=len(options), each=1)
    answer = drive(strategy.run({"options": options, "prices": {"usd": 1.0}, "worth_usd": worth}, 0.0), call)
    return spent, float(answer.confidence == 1.0)


def _ladder(right: Floats, paid: Floats, ladder: Ints) -> tuple[float, float]:
    spent = 0.0
    for i in ladder:
        spent += paid[i]
        if right[i]:
            return spent, 1.0
    return spent, 0.0
