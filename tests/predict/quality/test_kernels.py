"""What is compiled says what is said in arrays, while it learns, too."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.predict.quality.test_heads import Array, each, forest, seeds

from apportion.core import Features
from apportion.core.errors import SavedStateError
from apportion.predict.quality import _base
from apportion.predict.quality._arrays import pack, unpack
from apportion.predict.quality._base import Head, TwoViews
from apportion.predict.quality._calibration import Calibrator
from apportion.predict.quality._fit import artefact, fit, restore
from apportion.predict.quality._kernels import Kernels, kernels
from apportion.predict.quality._view import View
from apportion.predict.quality.boosted import Boosted, BoostedHead
from apportion.predict.quality.knn import KNN, KNNHead
from apportion.predict.quality.linear import Linear, LinearHead
from apportion.predict.quality.mixture import Mixture, combine

pytest.importorskip("numba")
MODELS = ["small", "middle", "large"]
always = settings(each, derandomize=True)
"""Where neighbours are sought: two that are about equally far may change places, which no run may meet by chance."""


@pytest.fixture(scope="module")
def loops() -> Kernels:
    found = kernels()
    assert found is not None
    return found


def alike(head: Head, x: Array, loops: Kernels, within: float) -> None:
    plain = np.array(head.raw(x))
    quick = np.empty(plain.shape)
    head.quick(x, loops, quick)
    np.testing.assert_allclose(quick, plain, rtol=0.0, atol=within)  # NaN where it is NaN


@always
@given(
    seeds,
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from((0, 1, 2, 29, 30, 31, 400)),
    st.sampled_from((1, 2, 7, 30)),
)
def test_neighbours(loops: Kernels, seed: int, models: int, width: int, rows: int, k: int) -> None:
    random = np.random.default_rng(seed)
    head = KNNHead(random.random(width) + 0.1, models, k, 500)
    quality = random.random((rows, models))
    quality[random.random(quality.shape) < 0.3] = np.nan
    head.fill(random.normal(size=(rows, width)), quality)
    head.reach = float(random.choice((0.0, width / 2.0)))
    alike(head, random.normal(size=width), loops, 1e-4)
    for _ in range(int(random.integers(0, 40))):  # over the end of the ring, and more memory is taken
        head.learn(random.normal(size=width), int(random.integers(models)), float(random.random()), 1.0)
    head.grow()
    alike(head, random.normal(size=width), loops, 1e-4)
    if head.reach > 0.0:
        alike(head, np.full(width, np.nan), loops, 1e-4)


@each
@given(seeds, st.integers(0, 6), st.integers(1, 90))
def test_lines(loops: Kernels, seed: int, models: int, width: int) -> None:
    random = np.random.default_rng(seed)
    root = random.normal(size=(models, width + 1, width + 1))
    spread = root @ root.transpose(0, 2, 1) / width
    rows = random.integers(0, 3, models).astype(float)
    head = LinearHead(random.normal(size=(models, width + 1)), spread, rows, np.ones(width + 1), 100.0)
    alike(head, random.normal(size=width), loops, 1e-9)
    head.grow()
    alike(head, random.normal(size=width), loops, 1e-9)
    head.learn(random.normal(size=width), models, 1.0, 1.0)
    alike(head, random.normal(size=width), loops, 1e-9)


@each
@given(seeds, st.integers(0, 300), st.integers(1, 5), st.sampled_from((1, 2, 17, 70)))
def test_trees(loops: Kernels, seed: int, trees: int, models: int, most_leaves: int) -> None:
    random = np.random.default_rng(seed)
    width = 6
    roots, mark, cut, child = forest(random, trees, most_leaves, width)
    value = random.normal(0, 0.01, (len(child), models)).astype(np.float32)
    rarity = random.random(len(child)).astype(np.float32)
    head = BoostedHead(roots, mark, cut, child, value, rarity, random.random(models), random.random(models))
    rows = random.normal(size=(5, width))
    rows[0] = cut[random.integers(len(cut), size=width)] if len(cut) else 0.0  # exactly on the cut
    rows[1], rows[2], rows[3] = np.inf, -np.inf, np.nan
    for x in rows:
        alike(head, x, loops, 1e-5)
    head.grow()
    alike(head, rows[4], loops, 1e-5)


@each
@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_mixtures(loops: Kernels, seed: int, members: int, models: int) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(members))
    parts = random.random((members, 2, models))
    unknown = random.random((members, models)) < 0.4
    parts[:, 0][unknown] = parts[:, 1][unknown] = np.nan
    quick = np.empty((2, models))
    loops.mix(parts, shares, quick)
    plain = combine([(p.tolist(), sd.tolist()) for p, sd in parts], shares.tolist())
    np.testing.assert_allclose(quick, plain, rtol=0.0, atol=1e-12)


@each
@given(seeds, st.integers(1, 6))
def test_calibration(loops: Kernels, seed: int, models: int) -> None:
    random = np.random.default_rng(seed)
    calibrator = Calibrator(models)
    for _ in range(20):
        model = int(random.integers(models))
        calibrator.learn(model, float(random.random()), float(random.random()), float(random.random()) + 0.1)
    said = random.random((2, models))
    said[0, 0] = random.choice((0.0, 1.0, 0.5, np.nan))
    plain = calibrator.apply(*said.tolist())
    calibrator.quick(said, loops)
    np.testing.assert_allclose(said, plain, rtol=0.0, atol=1e-12)


@each
@given(seeds, st.booleans())
def test_rows(loops: Kernels, seed: int, with_vectors: bool) -> None:
    random = np.random.default_rng(seed)
    lexical = random.exponential(3.0, (30, 5)) * random.choice((-1.0, 1.0), (30, 5))
    vectors = random.normal(size=(30, 8)) if with_vectors else None
    view = View.fitted(lexical, vectors, 4)
    for place, marks in enumerate(lexical):
        vector = None if vectors is None else tuple(vectors[place].tolist())
        seen = Features(tuple(marks.tolist()), vector)
        plain, quick = view.row(seen), view.row(seen, loops)
        assert plain is not None
        assert quick is not None
        np.testing.assert_allclose(quick, plain, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("with_vectors", [False, True])
@pytest.mark.parametrize("method", [KNN, Linear, Boosted, Mixture])
def test_a_predictor_that_was_prepared_says_the_same(method: type[TwoViews], with_vectors: bool) -> None:
    random = np.random.default_rng(11)
    plain = _fitted(method, random, with_vectors)
    prepared = _again(plain)
    prepared.prepare()
    _go_alike(plain, prepared, random, with_vectors)


@always
@given(seeds, st.booleans(), st.sampled_from((KNN, Linear, Mixture)))
def test_a_predictor_that_begins_cold_says_the_same(
    seed: int, with_vectors: bool, method: type[TwoViews]
) -> None:
    random = np.random.default_rng(seed)
    parameters = {} if method is Linear else {"k": 3, "capacity": 10}
    plain, prepared = method(**parameters), method(**parameters)
    prepared.prepare()
    _go_alike(plain, prepared, random, with_vectors)


def test_without_numba_a_predictor_goes_on_in_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    plain = _fitted(Mixture, random, False)
    seen = _features(random, False)
    said = plain.predict(seen, MODELS)
    monkeypatch.setattr(_base, "kernels", lambda: None)
    plain.prepare()
    assert plain.predict(seen, MODELS) == said


@pytest.mark.parametrize("fault", [RuntimeError("no locator available"), TypeError("no such option")])
def test_where_numba_cannot_compile_there_are_no_loops(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def njit(*given: object, **named: object) -> None:
        raise fault

    monkeypatch.setattr("numba.njit", njit)
    assert kernels.__wrapped__() is None
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels.__wrapped__() is None


def test_a_row_of_another_length_is_no_way_out_of_the_arrays(loops: Kernels) -> None:
    random = np.random.default_rng(4)
    near = KNNHead(np.ones(7), 2, 3, 100)
    near.fill(random.normal(size=(20, 7)), random.random((20, 2)))
    line = LinearHead(np.ones((2, 8)), np.ones((2, 8, 8)), np.ones(2), np.ones(8), 100.0)
    roots, mark, cut, child = forest(random, 9, 17, 7)
    value, rarity = np.ones((len(child), 2), np.float32), np.ones(len(child), np.float32)
    trees = BoostedHead(roots, mark, cut, child, value, rarity, np.ones(2), np.ones(2))
    for head in (near, line, trees):
        with pytest.raises((ValueError, IndexError)):
            head.quick(np.zeros(3), loops, np.empty((2, 2)))


@pytest.mark.parametrize(("head", "part"), [("knn", "weight"), ("knn", "points"), ("linear", "spread")])
def test_saved_arrays_that_do_not_fit_together_are_refused(head: str, part: str) -> None:
    document = artefact(fit(*_told(np.random.default_rng(5), False), method=head))
    saved = document["saved"]["learned"]["seats"]["lexical"]["head"]
    saved[part] = pack(unpack(saved[part])[..., :-1])
    with pytest.raises(SavedStateError, match="do not fit together"):
        restore(document)


@pytest.mark.parametrize("part", ["value", "rarity", "base", "scale", "mark", "cut", "child"])
def test_saved_trees_that_do_not_fit_together_are_refused(part: str) -> None:
    document = artefact(fit(*_told(np.random.default_rng(5), False), method="boosted"))
    saved = document["saved"]["learned"]["seats"]["lexical"]["head"]
    saved[part] = pack(unpack(saved[part])[:1])
    with pytest.raises(SavedStateError, match="cannot be read"):
        restore(document)


@pytest.mark.parametrize("head", ["knn", "linear", "boosted", "mixture"])
@pytest.mark.parametrize("models", [MODELS[:-1], [*MODELS, "one more"], [MODELS[0]] * len(MODELS)])
def test_another_number_of_models_than_was_saved_is_refused(head: str, models: list[str]) -> None:
    document = artefact(fit(*_told(np.random.default_rng(5), False), method=head))
    document["saved"]["learned"]["seats"]["lexical"]["models"] = models
    with pytest.raises(SavedStateError, match="do not fit together"):
        restore(document)


def _go_alike(plain: TwoViews, prepared: TwoViews, random: np.random.Generator, with_vectors: bool) -> None:
    models = [*MODELS, "new"]
    for _ in range(25):
        seen = _features(random, with_vectors and random.random() < 0.7)
        said = plain.predict(seen, models), prepared.predict(seen, models)
        for one, other in zip(*said, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other == pytest.approx(one, abs=1e-4)
        model, quality = str(random.choice(models)), float(random.random())
        for predictor in (plain, prepared):
            predictor.learn(seen, model, quality)
    assert prepared.save() == plain.save()  # nothing is learned from what is compiled


def _features(random: np.random.Generator, with_vector: bool) -> Features:
    vector = None
    if with_vector:
        away = random.normal(size=12)
        vector = tuple((away / np.linalg.norm(away)).tolist())
    return Features(tuple(random.exponential(1.0, 8).tolist()), vector)


def _told(random: np.random.Generator, with_vectors: bool) -> tuple[list[Features], list[str], Any]:
    known = [_features(random, with_vectors) for _ in range(80)]
    right = [[one.lexical[0] < 1.0, one.lexical[1] < 0.5, random.random() < 0.5] for one in known]
    return known, MODELS, np.array(right, float)


def _fitted(method: type[TwoViews], random: np.random.Generator, with_vectors: bool) -> TwoViews:
    known, models, right = _told(random, with_vectors)
    views = ("vector", "lexical") if with_vectors else ("lexical",)
    found = fit(known, models, right, method=method.__name__.lower(), views=views).predictor
    assert isinstance(found, TwoViews)
    return found


def _again(predictor: TwoViews) -> TwoViews:
    found = type(predictor)(**predictor.parameters())
    found.load(predictor.save())
    return found
