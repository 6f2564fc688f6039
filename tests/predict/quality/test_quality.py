"""The quality predictors: what they recover, that they are calibrated, saved whole, bounded and honest."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Features, catalogue
from apportion.core.errors import ParameterError, SavedStateError
from apportion.core.predictor import QualityPredictor
from apportion.predict.quality._arrays import pack, sigmoid, unpack
from apportion.predict.quality._calibration import Calibrator, calibration_error
from apportion.predict.quality._fit import artefact, fit, logistic, restore, stack
from apportion.predict.quality.knn import KNN
from apportion.predict.quality.linear import Linear
from apportion.predict.quality.mixture import combine

METHODS = ("knn", "linear", "boosted", "mixture")
MODELS = ("small", "large")


def chances(lexical: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The true chance of a right answer: hard requests are hard for both, each has a subject of its own."""
    hard = 2.0 * (lexical[:, 0] - 0.5)
    return np.asarray(
        sigmoid(np.stack((0.3 - 2.0 * hard + 2.0 * vectors[:, 0], 1.5 - hard + 1.0 * vectors[:, 1]), 1))
    )


def world(n: int, seed: int) -> tuple[list[Features], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Requests, whether each model was right, and the true chances."""
    random = np.random.default_rng(seed)
    lexical = random.random((n, 4))
    vectors = random.standard_normal((n, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    p = chances(lexical, 3.0 * vectors)
    right = (random.random(p.shape) < p).astype(float)
    known = [Features(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(lexical, vectors, strict=True)]
    return known, right, p


FEATURES, RIGHT, _ = world(900, 1)
NEW, NEW_RIGHT, NEW_CHANCES = world(600, 2)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {method: fit(FEATURES, MODELS, RIGHT, method=method, folds=3, dims=12) for method in METHODS}


def said(predictor: QualityPredictor, features: list[Features]) -> np.ndarray[Any, Any]:
    found = [predictor.predict(one, MODELS) for one in features]
    return np.array([[one.mean if one else math.nan for one in row] for row in found])


@pytest.mark.parametrize("method", METHODS)
def test_fitted_is_better_than_the_mean_and_calibrated_on_new_requests(method: str, fitted: Any) -> None:
    p = said(fitted[method].predictor, NEW)
    error = ((p - NEW_CHANCES) ** 2).mean()
    assert error < 0.6 * ((RIGHT.mean(0) - NEW_CHANCES) ** 2).mean()
    assert calibration_error(p, NEW_RIGHT) <= 0.05
    assert fitted[method].report["ece"] <= 0.05


def test_the_report_is_an_honest_forecast_of_new_data(fitted: Any) -> None:
    for method in METHODS:
        brier = ((said(fitted[method].predictor, NEW) - NEW_RIGHT) ** 2).mean()
        assert fitted[method].report["brier"] == pytest.approx(brier, abs=0.02)


def test_the_mixture_is_no_worse_than_its_best_member(fitted: Any) -> None:
    errors = {m: ((said(fitted[m].predictor, NEW) - NEW_CHANCES) ** 2).mean() for m in METHODS}
    assert errors["mixture"] <= 1.1 * min(errors[m] for m in METHODS[:3])
    assert sum(fitted["mixture"].report["weights"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_vector_the_marks_answer(method: str, fitted: Any) -> None:
    marks = [Features(one.lexical) for one in NEW]
    p = said(fitted[method].predictor, marks)
    seen = ((p - NEW_CHANCES) ** 2).mean()
    assert ((said(fitted[method].predictor, NEW) - NEW_CHANCES) ** 2).mean() < seen
    assert seen < ((RIGHT.mean(0) - NEW_CHANCES) ** 2).mean()
    assert calibration_error(p, NEW_RIGHT) <= 0.05


@pytest.mark.parametrize("method", METHODS)
def test_saved_as_json_it_goes_on_exactly(method: str, fitted: Any) -> None:
    document = json.loads(json.dumps(artefact(fitted[method], encoder="text/minilm"), allow_nan=False))
    twin = restore(document)
    original = pickle.loads(pickle.dumps(fitted[method].predictor))
    assert document["method"] == f"quality/{method}"
    for one, right in zip(NEW[:60], NEW_RIGHT, strict=False):
        assert twin.predict(one, MODELS) == original.predict(one, MODELS)
        for model, quality in zip(MODELS, right, strict=True):
            twin.learn(one, model, quality)
            original.learn(one, model, quality)
    assert twin.predict(NEW[70], MODELS) == original.predict(NEW[70], MODELS)
    assert twin.save() == original.save()


@pytest.mark.parametrize("method", METHODS)
def test_fitting_twice_gives_the_same(method: str) -> None:
    first, second = (
        fit(FEATURES[:200], MODELS, RIGHT[:200], method=method, folds=2, dims=6, seed=4) for _ in range(2)
    )
    assert first.predictor.save() == second.predictor.save()


@pytest.mark.parametrize("method", METHODS)
def test_missing_outcomes_are_no_wrong_answers(method: str) -> None:
    random = np.random.default_rng(5)
    sparse = np.where(random.random(RIGHT.shape) < 0.5, RIGHT, np.nan)
    found = fit(FEATURES, MODELS, sparse, method=method, folds=3, dims=12, views=("vector",))
    p = said(found.predictor, NEW)
    assert p.mean(0) == pytest.approx(NEW_CHANCES.mean(0), abs=0.06)
    assert ((p - NEW_CHANCES) ** 2).mean() < 0.8 * ((RIGHT.mean(0) - NEW_CHANCES) ** 2).mean()


@pytest.mark.parametrize("method", ["knn", "linear", "mixture"])
def test_cold_it_learns_what_is_told(method: str) -> None:
    predictor = catalogue.build(f"quality/{method}")
    assert isinstance(predictor, QualityPredictor)
    assert predictor.predict(FEATURES[0], MODELS) == [None, None]
    for one, right in zip(FEATURES, RIGHT, strict=True):
        predictor.learn(one, "small", right[0])
    assert predictor.predict(FEATURES[0], MODELS)[1] is None
    p = np.array([predictor.predict(one, ["small"])[0].mean for one in NEW])  # type: ignore[union-attr]
    error = ((p - NEW_CHANCES[:, 0]) ** 2).mean()
    assert error < 0.7 * ((RIGHT[:, 0].mean() - NEW_CHANCES[:, 0]) ** 2).mean()


def test_boosted_knows_nothing_before_it_is_fitted_and_nothing_of_a_new_model(fitted: Any) -> None:
    cold = catalogue.build("quality/boosted")
    assert isinstance(cold, QualityPredictor)
    cold.learn(FEATURES[0], "small", 1.0)
    assert cold.predict(FEATURES[0], ["small"]) == [None]
    warm = pickle.loads(pickle.dumps(fitted["boosted"].predictor))
    warm.learn(FEATURES[0], "newcomer", 1.0)
    found = warm.predict(FEATURES[0], ["newcomer", "small"])
    assert found[0] is None
    assert found[1] is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_changed_is_recalibrated_and_the_change_noticed(method: str, fitted: Any) -> None:
    predictor = pickle.loads(pickle.dumps(fitted[method].predictor))
    before = said(predictor, NEW).mean(0)
    for one in FEATURES + FEATURES:
        predictor.learn(one, "large", 0.0)
    after = said(predictor, NEW).mean(0)
    assert after[1] < 0.35 * before[1]
    assert after[0] == pytest.approx(before[0], abs=0.05)
    drift = predictor.drift()
    assert drift["large"].changed
    assert drift["large"].quality_changed
    assert "small" not in drift or not drift["small"].changed
    predictor.forget_drift("large")
    assert "large" not in predictor.drift()


@pytest.mark.parametrize("method", ["knn", "linear", "mixture"])
def test_wider_where_less_is_known(method: str, fitted: Any) -> None:
    predictor = fitted[method].predictor
    usual = np.mean([predictor.predict(one, MODELS)[0].sd for one in NEW[:100]])
    odd = Features((9.0, -9.0, 9.0, -9.0), tuple(-3.0 * x for x in NEW[0].vector or ()))
    assert predictor.predict(odd, MODELS)[0].sd > 1.5 * usual


def test_few_rows_make_wide_predictions() -> None:
    spreads = []
    for rows in (30, 120, 480):
        predictor = Linear(dims=12)
        for one, right in zip(FEATURES[:rows], RIGHT, strict=False):
            predictor.learn(one, "small", right[0])
        spreads.append(np.mean([predictor.predict(one, ["small"])[0].sd for one in NEW[:50]]))  # type: ignore[union-attr]
    assert spreads[0] > spreads[1] > spreads[2]


def test_the_stated_error_is_about_the_real_one(fitted: Any) -> None:
    for method in METHODS:
        found = [fitted[method].predictor.predict(one, MODELS) for one in NEW]
        sd = np.array([[one.sd for one in row] for row in found])
        real = np.sqrt(((said(fitted[method].predictor, NEW) - NEW_CHANCES) ** 2).mean())
        assert 0.3 < np.sqrt((sd**2).mean()) / real < 3.0, method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quality", [math.nan, -0.1, 1.1, math.inf])
def test_nonsense_is_not_learned(method: str, quality: float, fitted: Any) -> None:
    predictor = pickle.loads(pickle.dumps(fitted[method].predictor))
    before = predictor.save()
    predictor.learn(NEW[0], "small", quality)
    predictor.learn(NEW[0], "small", 1.0, weight=0.0)
    predictor.learn(NEW[0], "small", 1.0, weight=math.inf)
    assert predictor.save() == before


@pytest.mark.parametrize("method", METHODS)
def test_features_of_another_length_are_refused_quietly(method: str, fitted: Any) -> None:
    predictor = fitted[method].predictor
    assert predictor.predict(Features((1.0,)), MODELS) == [None, None]
    shorter = Features(NEW[0].lexical, (1.0, 0.0))
    assert predictor.predict(shorter, MODELS) == predictor.predict(Features(NEW[0].lexical), MODELS)


@pytest.mark.parametrize("method", ["knn", "linear", "mixture"])
def test_memory_is_bounded(method: str) -> None:
    parameters = {"capacity": 60} if method != "linear" else {}
    predictor = catalogue.build(f"quality/{method}", dims=4, **parameters)
    assert isinstance(predictor, QualityPredictor)
    sizes = []
    for round_ in range(900):
        predictor.learn(FEATURES[round_], f"model-{round_ % 300}", RIGHT[round_, 0])
        if round_ in (599, 899):
            sizes.append(len(pickle.dumps(predictor)))
    assert sizes[1] <= 1.01 * sizes[0] + 100


def test_neighbours_forget_the_oldest() -> None:
    predictor = KNN(k=5, capacity=20)
    for place in range(40):
        predictor.learn(Features((place / 40,)), "small", float(place < 20))
    found = predictor.predict(Features((0.1,)), ["small"])[0]
    assert found is not None
    assert found.mean < 0.4


def test_neighbours_are_the_nearest_by_brute_force() -> None:
    predictor = KNN(k=7, dims=12)
    for one, right in zip(FEATURES[:200], RIGHT, strict=False):
        for model, quality in zip(MODELS, right, strict=True):
            predictor.learn(one, model, quality)
    seat = predictor._seats["vector"]
    head: Any = seat.head
    assert head.rows == 200  # both models' outcomes of one request share a place
    rows = np.array([seat.view.row(one) for one in FEATURES[:200]])
    x = seat.view.row(NEW[0])
    assert x is not None
    distance = ((rows - x) ** 2).sum(1)
    near, _ = head._near(x.astype(np.float32))
    assert set(near.tolist()) == set(np.argsort(distance)[:7].tolist())


def test_the_common_fit_of_lines_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    x = np.hstack((np.ones((300, 1)), random.standard_normal((300, 3))))
    y = (random.random((300, 2)) < sigmoid(x @ np.array([[0.5, 1.0, -1.0, 0.0], [0, 0, 2.0, 1.0]]).T)).astype(
        float
    )
    found = logistic(x, y, np.zeros((2, 4)), 2.0, steps=2000)
    for model in range(2):
        # The intercept is nearly free here and quite free there.
        known = LogisticRegression(C=0.5, tol=1e-8).fit(x[:, 1:], y[:, model])
        assert found[model, 1:] == pytest.approx(known.coef_[0], abs=0.01)
        assert found[model, 0] == pytest.approx(known.intercept_[0], abs=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_stacking_finds_the_best_weights_on_the_simplex(seed: int) -> None:
    random = np.random.default_rng(seed)
    quality = random.random((40, 2))
    held = [np.clip(quality + random.normal(0.1 * k, 0.1 + 0.2 * k, quality.shape), 0, 1) for k in range(3)]
    weights = stack(held, quality)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= 0.0

    def error(share: Any) -> float:
        return float(((sum(w * one for w, one in zip(share, held, strict=True)) - quality) ** 2).mean())

    best = error(weights)
    for other in random.dirichlet(np.ones(3), 200):
        assert best <= error(other) + 1e-9


def test_a_mixture_has_the_mean_and_variance_of_a_mixture() -> None:
    first = np.array([0.2, np.nan]), np.array([0.1, np.nan])
    second = np.array([0.6, 0.5]), np.array([0.0, 0.3])
    mean, sd = combine([first, second], [0.25, 0.75])
    assert mean == pytest.approx([0.5, 0.5])
    assert np.square(sd) == pytest.approx([0.25 * (0.01 + 0.09) + 0.75 * 0.01, 0.09])


def test_calibration_mends_a_bent_probability() -> None:
    random = np.random.default_rng(3)
    true = 0.1 + 0.8 * random.random(6000)
    bent = sigmoid(2.0 * np.log(true / (1 - true)) + 0.7)
    right = (random.random(6000) < true).astype(float)
    calibrator = Calibrator(1)
    calibrator.fit(bent[:3000, None], right[:3000, None])
    line = calibrator.line[0]
    assert line == pytest.approx([-0.35, 0.5], abs=0.08)
    online = Calibrator(1)
    for p, y in zip(bent, right, strict=True):
        online.learn(0, float(p), float(y), 1.0)
    assert online.line[0] == pytest.approx([-0.35, 0.5], abs=0.15)
    mended, _ = calibrator.apply(bent[3000:3001], np.zeros(1))
    assert mended[0] == pytest.approx(true[3000], abs=0.1)


def test_calibration_error_by_hand() -> None:
    p, y = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(p, y) == pytest.approx((2 * abs(0.05 - 0.5) + 2 * 0.05) / 4)
    assert math.isnan(calibration_error(np.array([np.nan]), np.array([1.0])))


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<i2", "<i4"])
def test_arrays_survive_json(kind: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(kind)
    back = unpack(json.loads(json.dumps(pack(array))))
    assert back.dtype == array.dtype
    assert (back == array).all()
    back[0, 0] = 7  # writable
    with pytest.raises(TypeError, match="cannot be packed"):
        pack(np.array(["text"]))


@pytest.mark.parametrize("method", METHODS)
def test_another_state_is_refused(method: str, fitted: Any) -> None:
    predictor = catalogue.build(f"quality/{method}")
    with pytest.raises(SavedStateError, match="is of 'Another'"):
        predictor.load({"method": "Another", "learned": {}})
    saved = fitted[method].predictor.save()
    saved["learned"]["seats"]["vector"]["view"]["centre"]["base64"] = "AAAA"
    with pytest.raises(SavedStateError, match="cannot be read"):
        predictor.load(saved)
    with pytest.raises(SavedStateError):
        restore({"apportion": "quality", "version": 99})


def test_what_cannot_be_fitted_is_told() -> None:
    def refused(match: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {"features": FEATURES[:40], "models": MODELS, "quality": RIGHT[:40]}
        with pytest.raises(ParameterError, match=match):
            fit(**(arguments | changes))

    refused("no way to fit", method="oracle")
    refused("has shape", quality=RIGHT[:39])
    refused("outside", quality=RIGHT[:40] * 10)
    refused("too few", features=FEATURES[:5], quality=RIGHT[:5])
    refused("hardly tried", quality=np.where([True, False], RIGHT[:40], np.nan))
    refused("different", models=("small", "small"))
    refused("nothing is held out", folds=1)
    refused("different numbers", features=[*FEATURES[:39], Features((1.0,))])


def test_copies_of_a_request_stay_in_one_fold() -> None:
    """Held out together, copies cannot vouch for each other: the report must not believe them."""
    random = np.random.default_rng(8)
    noise, _, _ = world(60, 9)
    coin = (random.random((60, 2)) < 0.5).astype(float)
    copies, answers = noise * 5, np.tile(coin, (5, 1))
    groups = list(range(60)) * 5
    apart = fit(copies, MODELS, answers, method="knn", k=5, folds=3, views=("vector",))
    together = fit(copies, MODELS, answers, method="knn", k=5, folds=3, groups=groups, views=("vector",))
    assert apart.report["brier"] < 0.15
    assert together.report["brier"] > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_docstrings_and_examples(method: str) -> None:
    module = importlib.import_module(f"apportion.predict.quality.{method}")
    found = catalogue.find(f"quality/{method}")
    info = catalogue.describe(f"quality/{method}")
    assert info.summary.endswith(".")
    assert info.papers
    assert found.constraints.keys() == found.signature().keys()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(
        found, found.__name__, sys.modules[module.__name__]
    ):
        assert test.examples
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    for parameters in ({}, *found.examples()):
        built = catalogue.build(f"quality/{method}", **parameters)
        twin = built.clone()
        assert twin.parameters() == built.parameters()
        assert all(f"{name}={value!r}" in repr(built) for name, value in built.parameters().items())
    for name, constraint in found.constraints.items():
        with pytest.raises(ParameterError, match=name):
            catalogue.build(f"quality/{method}", **{name: constraint.wrong()})


@pytest.mark.parametrize("method", ["mixture", "boosted"])
def test_without_scikit_learn_it_says_what_to_install(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    rows = [Features((float(i), 1.0)) for i in range(40)]
    quality = [[float(i % 2), 1.0] for i in range(40)]
    with pytest.raises(ParameterError, match="scikit-learn") as caught:
        fit(rows, ["a", "b"], quality, method=method)
    assert "apportion[fit]" in str(caught.value.fix)
