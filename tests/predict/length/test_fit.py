"""Fitting the trees: against known truths, censored and not, and what the report says of them."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest

from apportion.core import Features
from apportion.core.errors import SavedStateError
from apportion.predict.length._fit import FitError, artefact, fit, ranking, restore
from apportion.predict.length._forest import Forest, hazard, newton

pytest.importorskip("sklearn")


def answers(
    n: int, seed: int = 0, limit: float = math.inf
) -> tuple[list[Features], list[str], list[float], list[bool]]:
    """Two models, lengths that depend on a step and a slope of the features; cut at ``limit``."""
    generator = Random(seed)
    features, models, tokens, cut = [], [], [], []
    for _ in range(n):
        x = tuple(generator.random() for _ in range(5))
        for model, factor in (("terse", 1.0), ("wordy", 3.0)):
            length = factor * math.exp(4.0 + 1.2 * (x[0] > 0.5) + x[1] + generator.gauss(0, 0.3))
            features.append(Features(x))
            models.append(model)
            tokens.append(min(length, limit))
            cut.append(length > limit)
    return features, models, tokens, cut


def truth(x: tuple[float, ...], factor: float) -> float:
    return factor * math.exp(4.0 + 1.2 * (x[0] > 0.5) + x[1])


@pytest.mark.parametrize("limit", [math.inf, 400.0])
def test_a_known_truth_is_found_also_behind_a_limit(limit: float) -> None:
    features, models, tokens, cut = answers(400, limit=limit)
    fitted = fit(features, models, tokens, cut)
    for x, _, _, _ in zip(*answers(50, seed=9), strict=True):
        for model, factor in (("terse", 1.0), ("wordy", 3.0)):
            found = fitted.predictor.predict(x, model)
            assert found is not None
            expected = truth(x.lexical, factor)
            if expected < limit:
                assert found.p50 == pytest.approx(expected, rel=0.45)
                assert found.p90 == pytest.approx(expected * math.exp(1.2816 * 0.3), rel=0.6)
            else:
                assert found.p50 > 0.7 * limit
    assert fitted.report["heads"]["plain"]["r2"] > (0.5 if limit == math.inf else 0.4)
    assert fitted.report["heads"]["plain"]["ranking"] > 0.85
    if limit == math.inf:
        for said in fitted.report["models"].values():
            assert said["below_p50"] == pytest.approx(0.5, abs=0.08)
            assert said["below_p90"] == pytest.approx(0.9, abs=0.05)


def test_leaving_the_cut_answers_at_their_word_would_be_worse() -> None:
    features, models, tokens, cut = answers(300, limit=150.0)
    honest, blind = fit(features, models, tokens, cut), fit(features, models, tokens)
    fresh, _, _, _ = answers(40, seed=5)
    error = {"honest": 0.0, "blind": 0.0}
    for x in fresh:
        expected = math.log(truth(x.lexical, 1.0))
        for name, fitted in (("honest", honest), ("blind", blind)):
            found = fitted.predictor.predict(x, "terse")
            assert found is not None
            error[name] += abs(math.log(found.p50) - expected)
    assert error["honest"] < 0.8 * error["blind"]


def test_vectors_are_used_when_they_tell_more() -> None:
    generator = np.random.RandomState(1)
    direction = generator.randn(16)
    features, tokens = [], []
    for _ in range(400):
        v = generator.randn(16)
        v /= np.linalg.norm(v)
        features.append(Features((float(generator.rand()), 0.5), tuple(v.tolist())))
        tokens.append(
            math.exp(5 + 2 * float(v @ direction) / np.linalg.norm(direction) + 0.1 * generator.randn())
        )
    fitted = fit(features, ["m"] * 400, tokens)
    heads = fitted.report["heads"]
    assert heads["meaning"]["r2"] > 0.5 > 0.1 > heads["plain"]["r2"]
    document = json.loads(json.dumps(artefact(fitted, encoder="text/minilm"), allow_nan=False))
    assert document["encoder"] == "text/minilm"
    restored = restore(document)
    for f in features[:20]:
        assert restored.predict(f, "m") == fitted.predictor.predict(f, "m")
    without = restored.predict(Features(features[0].lexical), "m")
    assert without is not None
    for wrong in (Features((0.5,)), Features((0.5, 0.5), (1.0, 0.0))):
        assert restored.predict(wrong, "m") is not None


def test_what_is_served_corrects_the_fit() -> None:
    features, models, tokens, cut = answers(200)
    predictor = fit(features, models, tokens, cut).predictor
    x = Features((0.9, 0.5, 0.5, 0.5, 0.5))
    before, unheard = predictor.predict(x, "terse"), predictor.predict(x, "new")
    assert before is not None
    assert unheard is not None
    assert before.p50 < unheard.p50 < 3 * before.p50  # between the two models there are
    assert unheard.p90 / unheard.p50 > before.p90 / before.p50  # and less sure
    for f in features[:300]:
        predictor.learn(f, "terse", 5 * truth(f.lexical, 1.0))
        predictor.learn(f, "new", truth(f.lexical, 10.0))
    after, new = predictor.predict(x, "terse"), predictor.predict(x, "new")
    assert after is not None
    assert new is not None
    assert after.p50 == pytest.approx(5 * before.p50, rel=0.5)
    assert new.p50 == pytest.approx(truth(x.lexical, 10.0), rel=0.5)


def test_a_forest_is_what_scikit_learn_says_one_by_one_and_together() -> None:
    from sklearn.tree import DecisionTreeRegressor

    from apportion.predict.length._forest import flat

    generator = np.random.RandomState(3)
    x = generator.rand(300, 6).astype(np.float32).astype(float)
    y = np.sin(5 * x[:, 0]) + x[:, 1]
    grown = [DecisionTreeRegressor(max_depth=d, random_state=0).fit(x, y * (d + 1)) for d in (1, 2, 3, 5)]
    forest = flat(0.5, grown, 0.1)
    expected = 0.5 + 0.1 * sum(tree.predict(x) for tree in grown)
    np.testing.assert_allclose(forest.many(x), expected, atol=1e-12)
    np.testing.assert_allclose([forest(row.astype(np.float32)) for row in x], expected, atol=1e-12)
    again = Forest.restored(json.loads(json.dumps(forest.saved())))
    np.testing.assert_array_equal(again.many(x), forest.many(x))
    none = flat(0.25, [], 0.1)
    assert none(x[0]) == 0.25
    assert none.many(x[:2]).tolist() == [0.25, 0.25]


def test_newton_steps_are_those_of_the_likelihood() -> None:
    """Against numerical derivatives of the log-likelihood of a censored normal."""
    y, score = np.array([0.0, 0.0, 1.0, -1.0]), np.array([0.4, 0.4, 0.2, 0.5])
    censored = np.array([False, True, True, False])
    step, weight = newton(y, score, censored)
    known = (y - score)[~censored]
    sigma = math.sqrt(float(np.mean(known**2)))

    def loss(i: int, s: float) -> float:
        z = (y[i] - s) / sigma
        return z * z / 2 if not censored[i] else -math.log(0.5 * math.erfc(z / math.sqrt(2)))

    h = 1e-4
    for i in range(4):
        first = (loss(i, score[i] + h) - loss(i, score[i] - h)) / (2 * h)
        second = (loss(i, score[i] + h) - 2 * loss(i, score[i]) + loss(i, score[i] - h)) / h**2
        assert step[i] == pytest.approx(-first / second, rel=1e-3)
        assert weight[i] == pytest.approx(second * sigma**2, rel=1e-3)
    assert hazard(np.array([0.0]))[0] == pytest.approx(math.sqrt(2 / math.pi))


def test_ranking_is_by_pairs() -> None:
    generator = np.random.RandomState(0)
    y, scores = generator.rand(60), generator.rand(60).round(1)
    low, high = np.quantile(y, [0.25, 0.75])
    pairs = [(a, b) for a in scores[y >= high] for b in scores[y <= low]]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert ranking(scores, y) == pytest.approx(expected)
    assert ranking(y, y) == 1.0
    assert ranking(scores[:5], y[:5]) is None
    assert ranking(scores, np.ones(60)) is None


def test_what_cannot_be_fitted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    features, models, tokens, cut = answers(100)
    with pytest.raises(FitError, match="needs 50"):
        fit(features[:10], models[:10], tokens[:10])
    with pytest.raises(FitError, match="to 1 prompts"):
        fit([features[0]] * 100, ["m"] * 100, tokens[:100])
    with pytest.raises(FitError, match="same length"):
        fit(features, models, [5.0] * len(features))
    with pytest.raises(FitError, match="same length"):
        fit(features, models, tokens, [True] * len(features))
    with pytest.raises(SavedStateError):
        restore({"apportion": "quality", "version": 1})
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(FitError, match="scikit-learn"):
        fit(features, models, tokens, cut)


def test_progress_ends_at_its_total() -> None:
    features, models, tokens, cut = answers(60)
    told: list[tuple[int, int]] = []
    fit(features, models, tokens, cut, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(told), len(told))
