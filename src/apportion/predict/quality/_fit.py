"""Fits the quality predictors offline, from requests whose answers' quality is known for some of the models.

Everything that is chosen, is chosen on held-out folds: the strength of the line's shrinkage, the stretch of the
neighbours' space, the number of trees, the weights of the mixture, the calibration. Only growing a tree is left
to scikit-learn (extra `fit`), inside the function that does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apportion.core import catalogue
from apportion.core.errors import ParameterError, SavedStateError
from apportion.core.features import Features
from apportion.core.predictor import QualityPredictor
from apportion.predict.quality._arrays import Floats, Integers, logit, sigmoid
from apportion.predict.quality._base import MODELS, Head, Seat, TwoViews
from apportion.predict.quality._calibration import Calibrator, calibration_error
from apportion.predict.quality._view import View
from apportion.predict.quality.boosted import BoostedHead
from apportion.predict.quality.knn import MARKS_CAPACITY, SHRINK, KNNHead, kernel
from apportion.predict.quality.linear import LinearHead
from apportion.predict.quality.mixture import MixtureHead

VERSION = 1
"""Of the artefact's form."""
FEWEST_ROWS = 20


class Fitted(NamedTuple):
    """A predictor ready for use and what held-out data say of it (an object that JSON can carry)."""

    predictor: QualityPredictor
    report: dict[str, Any]


class Rows(NamedTuple):
    """One view of the data: ``x`` (rows, width), ``quality`` (rows, models) with NaN where missing, ``fold`` of
    each row, how many of the columns are lexical ``marks``.
    """

    x: Floats
    quality: Floats
    fold: Integers
    marks: int


class Member(NamedTuple):
    """A fitted head and its predictions for rows that it had not seen."""

    head: Head
    held_out: Floats


def fit(
    features: Sequence[Features],
    models: Sequence[str],
    quality: npt.ArrayLike,
    *,
    method: str = "mixture",
    seed: int = 0,
    folds: int = 5,
    groups: Sequence[Hashable] | None = None,
    views: Sequence[str] = ("vector", "lexical"),
    **parameters: Any,
) -> Fitted:
    """Fit ``method`` ("knn", "linear", "boosted" or "mixture") to n requests and m models.

    ``quality`` is n x m in [0, 1], NaN or None where a model was not tried. Rows of one of ``groups`` (copies of
    a request, turns of a conversation) stay together when data are held out. ``views`` "vector" needs a vector
    in all of ``features``; without, only the lexical view is fitted. ``parameters`` go to the method.
    Raises `ParameterError` with the remedy.
    """
    fitters: dict[str, Callable[[Rows, TwoViews], Member]] = {
        "knn": fit_knn,
        "linear": fit_linear,
        "boosted": fit_boosted,
        "mixture": fit_mixture,
    }
    if method not in fitters:
        raise ParameterError(
            f"There is no way to fit {method!r}.", field="method", fix=f"One of {', '.join(fitters)}."
        )
    if method in ("boosted", "mixture"):
        try:
            import sklearn.tree  # noqa: F401 - asked for before any work is done
        except ImportError as error:
            raise ParameterError(
                f"Fitting {method!r} needs the package scikit-learn.",
                field="method",
                fix="Run: pip install 'apportion[fit]', or fit 'linear' or 'knn'.",
            ) from error
    table = _checked(features, models, quality, folds)
    predictor = catalogue.build(f"quality/{method}", seed=seed, **parameters)
    if not isinstance(predictor, TwoViews):
        raise ParameterError(f"quality/{method} cannot be fitted here.", field="method")
    lexical = np.array([one.lexical for one in features], float)
    vectors = None
    if "vector" in views and all(one.vector is not None for one in features):
        vectors = np.array([one.vector for one in features], float)
    fold = _folds(groups if groups is not None else range(len(table)), folds, seed)
    means = {model: float(mean) for model, mean in zip(models, np.nanmean(table, 0), strict=True)}
    reports = {}
    for name in ("vector", "lexical"):
        if name not in views or (name == "vector" and vectors is None):
            continue
        shown = vectors if name == "vector" else None
        view = View.fitted(lexical, shown, predictor.dims)
        rows = Rows(view.rows(lexical, shown), table, fold, lexical.shape[1])
        member = fitters[method](rows, predictor)
        calibrator = Calibrator(len(models))
        calibrator.fit(member.held_out, table)
        predictor.seat(name, Seat(view, member.head, models, calibrator), means)
        reports[name] = _report(models, table, fold, member)
    best = next(iter(reports.values()))
    report = {"rows": len(table), **best, "views": {name: _short(one) for name, one in reports.items()}}
    return Fitted(predictor, report)


def artefact(fitted: Fitted, *, encoder: str | None = None, lexical: str | None = None) -> dict[str, Any]:
    """``fitted`` as an object that JSON can carry, with the names of the encoders that made its features."""
    name = type(fitted.predictor).__module__.rpartition(".")[2]
    return {
        "apportion": "quality",
        "version": VERSION,
        "method": f"quality/{name}",
        "parameters": fitted.predictor.parameters(),
        "encoder": encoder,
        "lexical": lexical,
        "models": list(fitted.report["models"]),
        "rows": fitted.report["rows"],
        "report": fitted.report,
        "saved": fitted.predictor.save(),
    }


def restore(document: Mapping[str, Any]) -> QualityPredictor:
    """The predictor of an `artefact`; raises `SavedStateError` if it is something else."""
    if document.get("apportion") != "quality" or document.get("version") != VERSION:
        raise SavedStateError(
            "This is not a quality predictor of this version.",
            field="version",
            fix="Write it anew with `apportion fit quality`.",
        )
    predictor = catalogue.build(document["method"], **document["parameters"])
    if not isinstance(predictor, QualityPredictor):
        raise SavedStateError(f"{document['method']!r} predicts no quality.", field="method")
    predictor.load(document["saved"])
    return predictor


# What goes in


def _checked(
    features: Sequence[Features], models: Sequence[str], quality: npt.ArrayLike, folds: int
) -> Floats:
    table = np.array(quality, float)
    if table.shape != (len(features), len(models)):
        raise ParameterError(
            f"The quality has shape {table.shape}, expected {(len(features), len(models))}.",
            field="quality",
            fix="One row for each request, one column for each model, NaN where it was not tried.",
        )
    if not 0 < len(set(models)) == len(models) <= MODELS:
        raise ParameterError(
            f"There are {len(models)} models, {len(set(models))} of them different.",
            field="models",
            fix=f"Name between 1 and {MODELS} models, each once.",
        )
    known = table[~np.isnan(table)]
    if known.size and not (known.min() >= 0.0 and known.max() <= 1.0):
        raise ParameterError(
            f"A quality is {known.min()} or {known.max()}, outside [0, 1].",
            field="quality",
            fix="Divide scores by the highest possible score.",
        )
    few = [model for model, count in zip(models, (~np.isnan(table)).sum(0), strict=True) if count < 2]
    if len(features) < FEWEST_ROWS or few:
        raise ParameterError(
            f"{len(features)} rows are too few{f', and {few[0]!r} was hardly tried' if few else ''}.",
            field="quality",
            fix=f"Give at least {FEWEST_ROWS} rows and two outcomes of every model, better some hundreds.",
        )
    if folds < 2:
        raise ParameterError(f"With {folds} folds nothing is held out.", field="folds", fix="Use 2 or more.")
    if len({len(one.lexical) for one in features}) != 1:
        raise ParameterError(
            "The requests have different numbers of lexical marks.",
            field="features",
            fix="Make all of them with one encoder.",
        )
    return table


def _folds(groups: Sequence[Hashable], folds: int, seed: int) -> Integers:
    """A fold for each row, equal for equal groups, as even as groups allow in random order."""
    first: dict[Hashable, int] = {}
    number = np.array([first.setdefault(group, len(first)) for group in groups])
    folds = min(folds, len(first))
    order = np.random.default_rng(seed).permutation(len(first))
    places: Integers = (order % folds)[number]
    return places


def _report(models: Sequence[str], table: Floats, fold: Integers, member: Member) -> dict[str, Any]:
    """Held-out figures; the calibration of every fold is fitted on the others."""
    p = np.full_like(table, np.nan)
    for place in np.unique(fold):
        calibrator = Calibrator(len(models))
        calibrator.fit(member.held_out[fold != place], table[fold != place])
        here = member.held_out[fold == place]
        p[fold == place] = sigmoid(calibrator.line[:, 0] + calibrator.line[:, 1] * logit(here))
    known = ~np.isnan(table)
    error = (p - table) ** 2
    rows = {}
    for place, model in enumerate(models):
        mine = known[:, place]
        rows[model] = {
            "rows": int(mine.sum()),
            "mean": float(table[mine, place].mean()),
            "brier": float(error[mine, place].mean()),
            "brier_of_mean": float(table[mine, place].var()),
            "ece": calibration_error(p[mine, place], table[mine, place]),
        }
    report: dict[str, Any] = {
        "models": rows,
        "brier": float(error[known].mean()),
        "ece": calibration_error(p, table),
    }
    if isinstance(member.head, MixtureHead):
        report["weights"] = dict(member.head.shares)
    return report


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "models"}


# The line

STRENGTHS = (10.0, 40.0, 160.0, 640.0, 2560.0)
OWN = (1.0, 4.0)
"""How many times stronger a model's own departure from the common line is held than the line itself."""


def fit_linear(rows: Rows, owner: TwoViews) -> Member:
    """Both strengths of shrinkage by held-out error; the covariance by Laplace's approximation."""
    x = np.hstack((np.ones((len(rows.x), 1)), rows.x))
    choices = [(l2, own) for l2 in STRENGTHS for own in OWN]
    held = np.full((len(choices), *rows.quality.shape), np.nan)
    for place in np.unique(rows.fold):
        train, test = rows.fold != place, rows.fold == place
        starts: dict[float, Floats] = {}
        for number, (l2, own) in enumerate(choices):
            common, weights = _line(x[train], rows.quality[train], l2, own, starts.get(l2))
            starts[l2] = common
            held[number, test] = sigmoid(x[test] @ weights.T)
    errors = [float(np.nanmean((one - rows.quality) ** 2)) for one in held]
    best = int(np.argmin(errors))
    l2, own = choices[best]
    _, weights = _line(x, rows.quality, l2, own, None)
    precision = np.full(x.shape[1], l2 * own)
    precision[0] = 0.25
    spread = np.empty((len(weights), x.shape[1], x.shape[1]))
    count = np.zeros(len(weights))
    for model, line in enumerate(weights):
        known = ~np.isnan(rows.quality[:, model])
        out = sigmoid(x[known] @ line)
        hessian = x[known].T @ (x[known] * (out * (1.0 - out))[:, None]) + np.diag(precision)
        spread[model] = np.linalg.inv(hessian)
        count[model] = known.sum()
    memory = float(owner.parameters().get("memory", 20_000))
    return Member(LinearHead(weights, spread, count, 1.0 / precision, memory), held[best])


def _line(x: Floats, quality: Floats, l2: float, own: float, common: Floats | None) -> tuple[Floats, Floats]:
    """What the models have in common, and each model's line drawn towards it."""
    if common is None:
        first = logistic(x, quality, np.zeros((quality.shape[1], x.shape[1])), l2)
        common = first.mean(0)
    prior = np.tile(common, (quality.shape[1], 1))
    prior[:, 0] = 0.0
    return common, logistic(x, quality, prior, l2 * own)


def logistic(x: Floats, quality: Floats, prior: Floats, l2: float, steps: int = 200) -> Floats:
    """Most probable weights (models, width) of logistic regressions with the prior N(``prior``, 1 / ``l2``), the
    first column of ``x`` being the intercept, which is nearly free.

    All models at once, by steps with one bound of the curvature (1/4 of x'x) and momentum: one factorisation
    serves every model and step [Boehning and Lindsay, 1988].
    """
    known = ~np.isnan(quality)
    target = np.where(known, quality, 0.0)
    precision = np.full(x.shape[1], l2)
    precision[0] = 0.25
    inverse = np.linalg.inv(0.25 * (x.T @ x) + np.diag(precision))
    weights = prior.copy()
    rate = np.where(known, quality, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    weights[:, 0] = logit(rate)
    ahead, pace = weights, 1.0
    for _ in range(steps):
        residual = target - np.where(known, sigmoid(x @ ahead.T), 0.0)
        step = (residual.T @ x - precision * (ahead - prior)) @ inverse
        fresh = ahead + step
        faster = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * pace * pace))
        if float((step * (fresh - weights)).sum()) < 0.0:
            faster = 1.0
        ahead = fresh + (pace - 1.0) / faster * (fresh - weights)
        weights, pace = fresh, faster
        if float(np.abs(step).max()) < 1e-4:
            break
    return weights


# Neighbours

TUNED_ROWS = 1500
"""Held-out rows that the stretch of the space is chosen on; more would not change the choice."""


def fit_knn(rows: Rows, owner: TwoViews) -> Member:
    """The stretch of the space by held-out error, among a few built from what a line finds telling."""
    parameters = owner.parameters()
    k, capacity = int(parameters["k"]), int(parameters["capacity"])
    if rows.marks == rows.x.shape[1]:
        capacity = min(capacity, MARKS_CAPACITY)
    metric = _metric(rows, k)
    held = np.full(rows.quality.shape, np.nan)
    for place in np.unique(rows.fold):
        train, test = rows.fold != place, rows.fold == place
        held[test] = _neighbours(rows.x[train], rows.quality[train], rows.x[test], metric, k)[0]
    head = KNNHead(metric, rows.quality.shape[1], k, capacity)
    head.fill(rows.x, rows.quality)
    some = np.random.default_rng(owner.seed).permutation(len(rows.x))[:TUNED_ROWS]
    points = (rows.x * metric).astype(np.float32)
    distance = _distances(points, points[some])
    reach = min(k + 1, len(points)) - 1  # its own point is among the nearest
    head.reach = float(np.median(np.partition(distance, reach, 1)[:, reach]))
    return Member(head, held)


def _metric(rows: Rows, k: int) -> Floats:
    """The best of several stretches for the columns of ``rows.x``."""
    width = rows.x.shape[1]
    train, test = rows.fold != 0, np.flatnonzero(rows.fold == 0)[:TUNED_ROWS]
    x = np.hstack((np.ones((int(train.sum()), 1)), rows.x[train]))
    lines = logistic(x, rows.quality[train], np.zeros((rows.quality.shape[1], x.shape[1])), 160.0)[:, 1:]
    telling = np.sqrt((lines**2).mean(0))
    telling = telling / max(float(telling.mean()), 1e-9)
    choices = []
    for marks in (0.3, 1.0, 2.0) if rows.marks < width else (1.0,):
        plain = np.where(np.arange(width) < rows.marks, marks, 1.0)
        choices += [plain, plain * np.sqrt(telling), plain * telling]
    errors = []
    for metric in choices:
        p, _ = _neighbours(rows.x[train], rows.quality[train], rows.x[test], metric, k)
        errors.append(float(np.nanmean((p - rows.quality[test]) ** 2)))
    best: Floats = choices[int(np.argmin(errors))]
    return best


def _distances(points: Floats, others: Floats) -> Floats:
    """Squared distances (others, points)."""
    norms = np.einsum("ij,ij->i", points, points)
    found = norms - 2.0 * (others @ points.T) + np.einsum("ij,ij->i", others, others)[:, None]
    return np.asarray(np.maximum(found, 0.0))


def _neighbours(
    train: Floats, quality: Floats, test: Floats, metric: Floats, k: int
) -> tuple[Floats, Floats]:
    """What `KNNHead` would say of the rows ``test``, many at a time."""
    k = min(k, len(train))
    points, others = (train * metric).astype(np.float32), (test * metric).astype(np.float32)
    known = ~np.isnan(quality)
    weight, worth = known.astype(float), np.where(known, quality, 0.0)
    mean = (worth.sum(0) + 0.5) / (weight.sum(0) + 1.0)
    p, heard = np.empty((len(test), quality.shape[1])), np.empty((len(test), quality.shape[1]))
    for start in range(0, len(test), 512):
        part = slice(start, start + 512)
        distance = _distances(points, others[part])
        near = np.argpartition(distance, k - 1, 1)[:, :k]
        away = np.take_along_axis(distance, near, 1)
        fade = kernel(away, float(np.median(away.max(1))))
        heard[part] = np.einsum("ij,ijm->im", fade, weight[near]) + SHRINK
        p[part] = (np.einsum("ij,ijm->im", fade, worth[near]) + SHRINK * mean) / heard[part]
    return p, heard


# Trees

SHRINK_LEAF = 5.0
TREE_DIRECTIONS = 24
"""Trees are offered the marks and so many of the vector's strongest directions: with more they overfit."""
PATIENCE = 40
"""Trees without improvement of the held-out error after which no more are grown."""


def fit_boosted(rows: Rows, owner: TwoViews) -> Member:
    """The number of trees by held-out error, all folds growing side by side; then all rows."""
    parameters = owner.parameters()
    trees = int(parameters.get("trees", 300))
    leaves, rate = int(parameters.get("leaves", 16)), float(parameters.get("rate", 0.1))
    places = [int(place) for place in np.unique(rows.fold)]
    forests = [_Forest(rows, rows.fold != place, leaves, rate, owner.seed + place) for place in places]
    best, at = math.inf, 0
    held = np.full(rows.quality.shape, np.nan)
    for number in range(trees):
        for forest in forests:
            forest.grow()
        now = np.full(rows.quality.shape, np.nan)
        for place, forest in zip(places, forests, strict=True):
            now[rows.fold == place] = forest.said[rows.fold == place]
        error = float(np.nanmean((now - rows.quality) ** 2))
        if error < best:
            best, at, held = error, number + 1, now
        elif number + 1 - at >= PATIENCE:
            break
    final = _Forest(rows, np.ones(len(rows.x), bool), leaves, rate, owner.seed)
    for _ in range(at):
        final.grow()
    moved = np.sqrt(np.nanmean((held - final.said) ** 2, 0))
    return Member(final.head(moved), np.clip(held, 1e-3, 1.0 - 1e-3))


class _Forest:
    """Trees grown on the rows of ``train``; ``said`` are its predictions for all rows."""

    def __init__(self, rows: Rows, train: npt.NDArray[np.bool_], leaves: int, rate: float, seed: int) -> None:
        self.rows, self.leaves, self.rate = rows, leaves, rate
        self.random = np.random.default_rng(seed)
        self.train = np.flatnonzero(train)
        self.x = rows.x[:, : rows.marks + TREE_DIRECTIONS].astype(np.float32)
        self.known = ~np.isnan(rows.quality)
        self.base = np.array(
            [
                float(np.nanmean(column)) if np.any(~np.isnan(column)) else float(np.nanmean(rows.quality))
                for column in rows.quality[self.train].T
            ]
        )
        self.said = np.tile(self.base, (len(rows.x), 1))
        self.trees: list[tuple[Any, Floats, Floats]] = []

    def grow(self) -> None:
        """One more tree, on the residuals of a random share of the rows."""
        from sklearn.tree import ExtraTreeRegressor

        size = len(self.train)
        drawn = self.train[self.random.permutation(size)[: max(int(0.7 * size), 1)]]
        known = self.known[drawn]
        residual = np.where(known, self.rows.quality[drawn] - self.said[drawn], 0.0)
        tree = ExtraTreeRegressor(
            max_leaf_nodes=self.leaves,
            max_depth=8,
            min_samples_leaf=min(20, max(size // 20, 1)),
            max_features=0.4,
            random_state=int(self.random.integers(1 << 31)),
        ).fit(self.x[drawn], residual)
        leaf = tree.apply(self.x)
        nodes = tree.tree_.node_count
        models = residual.shape[1]
        mine = leaf[drawn]
        total = np.stack([np.bincount(mine, residual[:, m], nodes) for m in range(models)], 1)
        count = np.stack([np.bincount(mine, known[:, m], nodes) for m in range(models)], 1)
        value = self.rate * total / (count + SHRINK_LEAF)
        self.said += value[leaf]
        rarity = 1.0 / np.maximum(np.bincount(mine, minlength=nodes), 1.0)
        self.trees.append((tree.tree_, value, rarity / rarity[leaf].mean()))

    def head(self, moved: Floats) -> BoostedHead:
        """All trees in a row; ``moved`` is how far predictions typically move with the data (models)."""
        marks, cuts, children, values, rarities, roots = [], [], [], [], [], []
        start = 0
        for tree, value, rarity in self.trees:
            here = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            child = np.stack((tree.children_left, tree.children_right), 1)
            children.append(np.where(leaf[:, None], here[:, None], child) + start)
            marks.append(np.where(leaf, 0, tree.feature))
            cuts.append(tree.threshold)
            values.append(value)
            rarities.append(rarity)
            roots.append(start)
            start += tree.node_count
        empty = np.zeros((0, len(self.base)))
        return BoostedHead(
            np.array(roots, np.int32),
            np.concatenate(marks).astype(np.int16) if marks else np.zeros(0, np.int16),
            np.concatenate(cuts).astype(np.float32) if cuts else np.zeros(0, np.float32),
            np.concatenate(children).astype(np.int32) if children else np.zeros((0, 2), np.int32),
            np.concatenate([empty, *values]).astype(np.float32),
            np.concatenate(rarities).astype(np.float32) if rarities else np.zeros(0, np.float32),
            self.base,
            moved,
        )


# The mixture


def fit_mixture(rows: Rows, owner: TwoViews) -> Member:
    """All three kinds, weighted by held-out error; a kind that adds nothing is left out."""
    found = {
        "knn": fit_knn(rows, owner),
        "linear": fit_linear(rows, owner),
        "boosted": fit_boosted(rows, owner),
    }
    shares = stack([one.held_out for one in found.values()], rows.quality)
    chosen = {name: share for name, share in zip(found, shares, strict=True) if share > 0.02}
    total = sum(chosen.values())
    chosen = {name: share / total for name, share in chosen.items()}
    held = np.sum([share * found[name].held_out for name, share in chosen.items()], 0)
    head = MixtureHead({name: found[name].head for name in chosen}, chosen, rows.quality.shape[1])
    return Member(head, held)


def stack(held_out: Sequence[Floats], quality: Floats) -> list[float]:
    """Weights on the simplex that make the squared error of the weighted mean least, exactly: by trying
    every subset.
    """
    known = ~np.isnan(quality)
    off = np.stack([one[known] - quality[known] for one in held_out])
    gram = off @ off.T / known.sum()
    best, weights = math.inf, [0.0] * len(held_out)
    for subset in range(1, 1 << len(held_out)):
        places = [place for place in range(len(held_out)) if subset >> place & 1]
        part = gram[np.ix_(places, places)] + 1e-12 * np.eye(len(places))
        share = np.linalg.solve(part, np.ones(len(places)))
        share = share / share.sum()
        if share.min() < 0.0:
            continue
        error = float(share @ part @ share)
        if error < best:
            best, weights = error, [0.0] * len(held_out)
            for place, one in zip(places, share, strict=True):
                weights[place] = float(one)
    return weights
