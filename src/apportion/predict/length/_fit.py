"""Fitting `length/trees` to a trace, with numbers of how well it predicts what it has not seen.

Everything reported is of prompts held out; how many trees are grown is decided inside the training part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError, SavedStateError
from apportion.core.features import Features
from apportion.predict._spread import Spread
from apportion.predict.length._forest import Floats, Forest, grow
from apportion.predict.length._lengths import WINDOW, Line, Model, Models, log_tokens
from apportion.predict.length.trees import Trees

_FOLDS = 5
_LEAST_TREES, _MOST_TREES = 10, 200
"""So few always rank better than none, even where there are too few prompts held out to show it."""
_PATIENCE = 15
_DEPTH, _RATE, _LEAF = 4, 0.08, 15
_MOST_ROWS = 100_000
_RIDGE = 30.0
_SHRINK = 5.0
"""A model's own line and level count as much as the common ones when it has so many answers."""
_BUCKLEY_JAMES = 4
"""Rounds in which cut answers are given the length they would be expected to have had."""

Progress = Callable[[int, int], None]


class FitError(ApportionError):
    """A trace is too small or too uniform to fit a predictor to, or the package for fitting is missing."""

    code = "cannot_fit"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A predictor and how well it predicts prompts it has not seen (JSON-able)."""

    predictor: Trees
    report: dict[str, Any]


def fit(
    features: Sequence[Features],
    models: Sequence[str],
    output_tokens: Sequence[float],
    censored: Sequence[bool] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Fitted:
    """Fit `length/trees` to answers: one row each of the prompt's features, who answered, how long, whether cut.

    Rows of one of ``groups`` (by default: of equal features) stay on one side when rows are held out. Vectors must be
    there for all rows or are ignored. ``progress`` is told steps done and in all.

    Raises:
        FitError: for fewer than 50 rows or 20 prompts, lengths that are all the same, or without scikit-learn.
    """
    rows = _rows(features, models, output_tokens, censored, groups, seed)
    steps = (_FOLDS + 1) * (2 if rows.vectors is not None else 1)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, steps)

    heads = {"plain": _head(rows, None, seed, step)}
    if rows.vectors is not None:
        heads["meaning"] = _head(rows, rows.vectors, seed, step)
    best = min(heads.values(), key=lambda head: head.loss)
    found = Trees()
    names = sorted(set(rows.models))
    known = Models(max(found.most_models, len(names)))
    for name in names:
        known.put(name, _model(rows, name, best.held_out))
    known.anyone = _model(rows, None, best.held_out)
    meaning = heads.get("meaning")
    found.fitted(
        known,
        rows.x.shape[1],
        heads["plain"].forest,
        None if meaning is None else meaning.forest,
        None if meaning is None else meaning.projection,
    )
    return Fitted(found, _report(rows, heads, best, names))


def artefact(
    fitted: Fitted, *, encoder: str | None = None, lexical: str | None = "text/lexical"
) -> dict[str, Any]:
    """A fitted predictor as one JSON-able object; ``encoder`` made the vectors it was fitted to."""
    return {
        "apportion": "length",
        "version": 1,
        "method": "length/trees",
        "parameters": fitted.predictor.parameters(),
        "encoder": encoder if "meaning" in fitted.report["heads"] else None,
        "lexical": lexical,
        "models": sorted(fitted.report["models"]),
        "rows": fitted.report["rows"],
        "report": fitted.report,
        "saved": fitted.predictor.save(),
    }


def restore(document: Mapping[str, Any]) -> Trees:
    """The way back; raises `SavedStateError` for what is no such artefact."""
    if document.get("apportion") != "length" or document.get("version") != 1:
        raise SavedStateError(
            "This is not a length predictor that this version wrote.", field="apportion", fix="Fit it anew."
        )
    predictor = Trees(**document["parameters"])
    predictor.load(document["saved"])
    return predictor


# --- inside ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rows:
    x: Floats
    vectors: Floats | None
    y: Floats
    censored: NDArray[np.bool_]
    models: NDArray[Any]
    groups: NDArray[np.int64]
    level: Floats
    """Of each row, its model's level: what the score is relative to."""
    fold: NDArray[np.int64]


@dataclass(slots=True)
class _Head:
    forest: Forest
    projection: Floats | None
    held_out: Floats
    """Scores of rows by forests that have not seen their group."""
    loss: float
    trees: int


def _rows(
    features: Sequence[Features],
    models: Sequence[str],
    output_tokens: Sequence[float],
    censored: Sequence[bool] | None,
    groups: Sequence[Hashable] | None,
    seed: int,
) -> _Rows:
    try:
        import sklearn.tree  # noqa: F401 - asked for before any work is done
    except ImportError as error:
        raise FitError(
            "Fitting needs the package scikit-learn.", fix="Run: pip install 'apportion[fit]'"
        ) from error
    generator = np.random.RandomState(seed)
    n = len(features)
    kept = np.arange(n) if n <= _MOST_ROWS else np.sort(generator.permutation(n)[:_MOST_ROWS])
    keys: Sequence[Hashable] = groups if groups is not None else [f.lexical for f in features]
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(keys[i], len(numbers)) for i in kept], np.int64)
    if len(kept) < 50 or len(numbers) < 20:
        raise FitError(
            f"There are {len(kept)} answers to {len(numbers)} prompts; a fit needs 50 to 20.",
            field="trace",
            fix="Collect more, or use length/linear, which learns as it goes.",
        )
    x = np.array([features[i].lexical for i in kept], np.float32).astype(float)
    vectors = None
    if all(features[i].vector is not None for i in kept):
        vectors = np.array([features[i].vector for i in kept], np.float32).astype(float)
    y = np.array([log_tokens(output_tokens[i]) for i in kept])
    cut = np.array([bool(censored[i]) for i in kept]) if censored is not None else np.zeros(len(kept), bool)
    if cut.all() or float(y.std()) < 1e-9:
        raise FitError(
            "All the answers have the same length or were cut by a limit; there is nothing to fit.",
            field="trace",
        )
    names = np.array([models[i] for i in kept], object)
    level = np.zeros(len(kept))
    common = Spread(y, cut).p50
    for name in set(names):
        mine = names == name
        middle = Spread(y[mine], cut[mine]).p50
        level[mine] = (middle * mine.sum() + _SHRINK * common) / (mine.sum() + _SHRINK)
    fold = generator.randint(_FOLDS, size=len(numbers))[group]
    return _Rows(x, vectors, y, cut, names, group, level, fold)


def _head(rows: _Rows, vectors: Floats | None, seed: int, step: Callable[[], None]) -> _Head:
    """One forest, and what it would have said of each row without having seen it."""
    held_out = np.zeros(len(rows.y))
    counts: list[int] = []
    for fold in range(_FOLDS):
        test = rows.fold == fold
        train = ~test
        x, projection = _with_direction(rows, vectors, train, seed)
        inner = train & (_scattered(rows.groups, seed) < 0.15)
        if not (train & ~inner).any() or not inner.any():
            inner = train
        count = _how_many(rows, x, train & ~inner, inner, seed)
        counts.append(count)
        forest = _grown(rows, x, train, count, seed)
        full = x if projection is None or vectors is None else _appended(rows.x, vectors @ projection)
        held_out[test] = forest.many(full[test])
        step()
    everything = np.ones(len(rows.y), bool)
    x, projection = _with_direction(rows, vectors, everything, seed)
    trees = round(float(np.median(counts)))
    forest = _grown(rows, x, everything, trees, seed)
    step()
    return _Head(forest, projection, held_out, _loss(rows, held_out, everything), trees)


def _grown(rows: _Rows, x: Floats, train: NDArray[np.bool_], trees: int, seed: int) -> Forest:
    return grow(
        x[train],
        (rows.y - rows.level)[train],
        rows.censored[train],
        trees=trees,
        seed=seed,
        **_settings(rows, train),
    )


def _settings(rows: _Rows, train: NDArray[np.bool_]) -> dict[str, Any]:
    """Depth, rate and least leaf in prompts: at most a fiftieth of them."""
    prompts = len(np.unique(rows.groups[train]))
    return {"depth": _DEPTH, "rate": _RATE, "leaf": min(_LEAF, max(5, prompts // 50))}


def _how_many(rows: _Rows, x: Floats, train: NDArray[np.bool_], inner: NDArray[np.bool_], seed: int) -> int:
    """Trees after which the answers of ``inner`` are predicted no better."""
    scores = np.full(int(inner.sum()), float(np.median((rows.y - rows.level)[train])))
    best = [_loss(rows, scores, inner), 0.0]

    def watch(count: int, tree: Any) -> bool:
        scores[:] += _RATE * tree.predict(x[inner])
        loss = _loss(rows, scores, inner)
        if loss < best[0] - 1e-6:
            best[:] = [loss, count]
        return count - best[1] >= _PATIENCE

    grow(
        x[train],
        (rows.y - rows.level)[train],
        rows.censored[train],
        trees=_MOST_TREES,
        seed=seed,
        watch=watch,
        **_settings(rows, train),
    )
    return max(int(best[1]), _LEAST_TREES)


def _loss(rows: _Rows, scores: Floats, chosen: NDArray[np.bool_]) -> float:
    """Minus the mean log-likelihood: of a cut answer, of the probability of being longer than it already was."""
    errors, cut = (rows.y - rows.level)[chosen] - scores, rows.censored[chosen]
    known = errors[~cut]
    sigma = max(float(np.sqrt(np.mean(known * known))) if len(known) else 1.0, 0.05)
    beyond = [math.erfc(min(error / sigma, 8.0) / math.sqrt(2.0)) / 2.0 for error in errors[cut]]
    return (len(known) * (math.log(sigma) + 0.5) - float(np.log(beyond).sum())) / len(errors)


def _with_direction(
    rows: _Rows, vectors: Floats | None, train: NDArray[np.bool_], seed: int
) -> tuple[Floats, Floats | None]:
    """The features with a linear function of the vector beside them, and that function.

    For the rows it is fitted to the function comes from fits without their group, so that trees trust it as little as
    it deserves.
    """
    if vectors is None:
        return rows.x, None
    target = rows.y - rows.level
    direction = np.zeros(len(target))
    part = (_scattered(rows.groups, seed + 1) * _FOLDS).astype(int)
    for fold in range(_FOLDS):
        some = train & (part != fold)
        direction[part == fold] = vectors[part == fold] @ _ridge(vectors[some], target[some])
    whole = _ridge(vectors[train], target[train])
    direction[~train] = vectors[~train] @ whole
    return _appended(rows.x, direction), whole.astype(np.float32).astype(float)


def _appended(x: Floats, column: Floats) -> Floats:
    return np.concatenate([x, column.astype(np.float32).astype(float)[:, None]], axis=1)


def _ridge(x: Floats, y: Floats) -> Floats:
    """Ridge regression through the mean: vectors of unit length need no scaling."""
    if not len(x):
        return np.zeros(x.shape[1])
    gram = x.T @ x + _RIDGE * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ (y - y.mean())), float)


def _scattered(groups: NDArray[np.int64], seed: int) -> Floats:
    """A number in [0, 1) for each row, the same for all of one group."""
    return np.random.RandomState(seed + 77).rand(int(groups.max()) + 1)[groups]


def _model(rows: _Rows, name: str | None, held_out: Floats) -> Model:
    """A model's line through what was held out, drawn towards slope 1, and how its answers lie around it.

    Without a name: of all models together, for one of which nothing is known.
    """
    mine = np.flatnonzero(rows.models == name) if name is not None else np.arange(len(rows.y))
    score, y, cut = held_out[mine], rows.y[mine], rows.censored[mine]
    level = float(np.median(rows.level[mine]))
    line = Line(level)
    pull = _SHRINK * max(float(held_out.var()), 1e-3)
    for _ in range(_BUCKLEY_JAMES):
        errors = y - (line.intercept + line.slope * score)
        spread = Spread(errors, cut)
        full = y.copy()
        for i in np.flatnonzero(cut):
            full[i] += spread.mean_above(float(errors[i])) - errors[i]
        centre = float(score.mean())
        wide = float(((score - centre) ** 2).sum())
        slope = (float(((score - centre) * (full - full.mean())).sum()) + pull) / (wide + pull)
        slope = min(max(slope, 0.0), 3.0)
        middle = (float(full.sum()) + _SHRINK * (level + centre)) / (len(full) + _SHRINK)
        line = Line(middle - slope * centre, slope, (1.0 / (len(mine) + 1.0), 0.0, 0.01))
    if len(mine) > WINDOW:
        mine = mine[np.linspace(0, len(mine) - 1, WINDOW).round().astype(int)]
    kept = [bool(value) for value in rows.censored[mine]]
    return Model(line, held_out[mine].tolist(), rows.y[mine].tolist(), kept, answers=len(mine))


def _report(rows: _Rows, heads: Mapping[str, _Head], best: _Head, names: Sequence[str]) -> dict[str, Any]:
    return {
        "rows": len(rows.y),
        "prompts": int(rows.groups.max()) + 1,
        "censored": int(rows.censored.sum()),
        "heads": {
            name: {"trees": head.trees, "r2": _r2(rows, head.held_out), **_ranking(rows, head.held_out)}
            for name, head in heads.items()
        },
        "models": {name: _of_model(rows, name, best.held_out) for name in names},
    }


def _of_model(rows: _Rows, name: str, held_out: Floats) -> dict[str, Any]:
    """What is true of one model's answers when the other folds fit its line and errors."""
    mine = rows.models == name
    inside = {0.5: 0.0, 0.9: 0.0}
    seen = 0
    for fold in range(_FOLDS):
        test = mine & (rows.fold == fold) & ~rows.censored
        train = rows.fold != fold
        if not test.any() or not (mine & train).any():
            continue
        part = _Rows(
            rows.x[train],
            None,
            rows.y[train],
            rows.censored[train],
            rows.models[train],
            rows.groups[train],
            rows.level[train],
            rows.fold[train],
        )
        known = _model(part, name, held_out[train])
        seen += int(test.sum())
        for share in inside:
            limit = known.spread.quantile(share)
            inside[share] += sum(
                bool(rows.y[i] <= known.line(float(held_out[i])) + limit) for i in np.flatnonzero(test)
            )
    whole = rows.y[mine & ~rows.censored]
    return {
        "rows": int(mine.sum()),
        "median_tokens": math.exp(float(np.median(whole))) if len(whole) else None,
        "ranking": ranking(held_out[mine], rows.y[mine], rows.censored[mine]),
        "below_p50": inside[0.5] / seen if seen else None,
        "below_p90": inside[0.9] / seen if seen else None,
    }


def _ranking(rows: _Rows, scores: Floats) -> dict[str, Any]:
    """Ranking within each model, averaged by rows."""
    found = [
        (ranking(scores[mine], rows.y[mine], rows.censored[mine]), int(mine.sum()))
        for name in sorted(set(rows.models))
        for mine in (rows.models == name,)
    ]
    told = [(value, count) for value, count in found if value is not None]
    total = sum(count for _, count in told)
    return {"ranking": sum(value * count for value, count in told) / total if total else None}


def _r2(rows: _Rows, scores: Floats) -> float:
    known = ~rows.censored
    target = (rows.y - rows.level)[known]
    rest = target - scores[known]
    return 1.0 - float((rest**2).sum()) / max(float(((target - target.mean()) ** 2).sum()), 1e-12)


def ranking(scores: Floats, y: Floats, censored: NDArray[np.bool_] | None = None) -> float | None:
    """S310's ranking accuracy, with its classes taken by quartile.

    How often, of an answer among the longest quarter and one among the shortest, the longer one has the higher score;
    ties count half. None for fewer than 8 rows or lengths without spread. A cut answer counts among the longest only
    if it already is.
    """
    if len(y) < 8:
        return None
    low, high = np.quantile(y, [0.25, 0.75])
    if high <= low:
        return None
    short = y <= low
    if censored is not None:
        short &= ~censored
    long = y >= high
    if not short.any() or not long.any():
        return None
    order = np.sort(scores[short])
    below = np.searchsorted(order, scores[long], "left")
    upto = np.searchsorted(order, scores[long], "right")
    return float((below + upto).mean() / 2.0 / len(order))
