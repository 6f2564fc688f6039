"""The heads work on single numbers and few arrays: they say what the formulas in arrays say, to 1e-9."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Features
from apportion.core.errors import SavedStateError
from apportion.predict.quality._arrays import logit, pack, sigmoid, unpack
from apportion.predict.quality._calibration import FLOOR, Calibrator
from apportion.predict.quality._fit import artefact, fit, restore
from apportion.predict.quality._leaves import Leaves
from apportion.predict.quality._view import View
from apportion.predict.quality.boosted import BoostedHead
from apportion.predict.quality.knn import SHRINK, KNNHead, kernel
from apportion.predict.quality.linear import LinearHead
from apportion.predict.quality.mixture import combine

EXACT = 1e-9
Array = np.ndarray[Any, Any]
seeds = st.integers(0, 2**32 - 1)
each = settings(max_examples=60, deadline=None)


def same(said: tuple[list[float], list[float]], mean: Array, sd: Array) -> None:
    np.testing.assert_allclose(said[0], mean, rtol=0.0, atol=EXACT)
    np.testing.assert_allclose(said[1], sd, rtol=0.0, atol=EXACT)


# trees


def grown(
    random: np.random.Generator, most_leaves: int, width: int
) -> tuple[list[int], list[float], list[list[int]]]:
    """A tree as `BoostedHead` has it, split at random until it has a random number of leaves."""
    mark, cut, child = [0], [0.0], [[0, 0]]
    leaves = [0]
    for _ in range(int(random.integers(0, most_leaves))):
        node = leaves.pop(int(random.integers(len(leaves))))
        mark[node], cut[node] = int(random.integers(width)), float(random.normal())
        child[node] = [len(mark), len(mark) + 1]
        for new in child[node]:
            leaves.append(new)
            mark.append(0)
            cut.append(0.0)
            child.append([new, new])
    return mark, cut, child


def forest(
    random: np.random.Generator, trees: int, most_leaves: int, width: int
) -> tuple[Array, Array, Array, Array]:
    roots: list[int] = []
    marks: list[int] = []
    cuts: list[float] = []
    children: list[list[int]] = []
    for _ in range(trees):
        mark, cut, child = grown(random, most_leaves, width)
        roots.append(len(marks))
        children += [[a + len(marks), b + len(marks)] for a, b in child]
        marks += mark
        cuts += cut
    return (
        np.array(roots, np.int32),
        np.array(marks, np.int16),
        np.array(cuts, np.float32),
        np.array(children, np.int32).reshape(-1, 2),
    )


def walked(x: Array, roots: Array, mark: Array, cut: Array, child: Array) -> list[int]:
    """The leaf of every tree, found by going down from its root."""
    found = []
    for node in roots.tolist():
        while child[node, 0] != node:
            node = int(child[node, int(np.float32(x[mark[node]]) > cut[node])])
        found.append(node)
    return found


@each
@given(seeds, st.integers(1, 12), st.sampled_from((1, 2, 8, 9, 16, 17, 33, 64, 65, 130, 300)))
def test_the_first_leaf_that_no_test_rules_out_is_the_one_that_is_walked_to(
    seed: int, trees: int, most_leaves: int
) -> None:
    random = np.random.default_rng(seed)
    width = 5
    roots, mark, cut, child = forest(random, trees, most_leaves, width)
    leaves = Leaves(roots, mark, cut, child)
    assert sorted(leaves.nodes.tolist()) == [node for node in range(len(child)) if child[node, 0] == node]
    rows = random.normal(size=(20, width))
    rows[0] = cut[random.integers(len(cut), size=width)]  # exactly on the cut: to the left
    rows[1], rows[2], rows[3] = np.inf, -np.inf, np.nan
    for x in rows:
        assert leaves.nodes[leaves.of(x)].tolist() == walked(x, roots, mark, cut, child)


@each
@given(seeds, st.integers(1, 40), st.integers(1, 5))
def test_trees_say_the_sum_of_their_leaves(seed: int, trees: int, models: int) -> None:
    random = np.random.default_rng(seed)
    roots, mark, cut, child = forest(random, trees, 16, 6)
    value = random.normal(0, 0.1, (len(child), models)).astype(np.float32)
    rarity = random.random(len(child)).astype(np.float32)
    base, scale = random.random(models), random.random(models)
    head = BoostedHead(roots, mark, cut, child, value, rarity, base, scale)
    x = random.normal(size=6)
    leaf = walked(x, roots, mark, cut, child)
    wide = float(np.sqrt(rarity[leaf].mean()))
    same(head.raw(x), np.clip(base + value[leaf].sum(0), 1e-3, 1.0 - 1e-3), scale * wide)
    head.grow()
    mean, sd = head.raw(x)
    assert np.isnan([mean[-1], sd[-1]]).all()
    added = head.value[leaf].sum(0)[:models]  # in single precision the order of the sum depends on the width
    same((mean[:-1], sd[:-1]), np.clip(base + added, 1e-3, 1.0 - 1e-3), scale * wide)


def test_saved_trees_that_go_in_a_circle_are_refused() -> None:
    random = np.random.default_rng(1)
    known = [Features(tuple(row)) for row in random.random((60, 3)).tolist()]
    document = artefact(fit(known, ["m"], (random.random((60, 1)) < 0.5).astype(float), method="boosted"))
    saved = document["saved"]["learned"]["seats"]["lexical"]["head"]
    assert restore(document).predict(known[0], ["m"])[0] is not None
    child = unpack(saved["child"])
    inner = int(np.flatnonzero(child[:, 0] != np.arange(len(child)))[0])
    child[inner, 1] = inner
    saved["child"] = pack(child)
    with pytest.raises(SavedStateError, match="circle"):
        restore(document)


# the others


@each
@given(seeds, st.integers(1, 6), st.integers(1, 40))
def test_the_line_says_the_logistic_of_its_mean(seed: int, models: int, width: int) -> None:
    random = np.random.default_rng(seed)
    root = random.normal(size=(models, width + 1, width + 1))
    spread = root @ root.transpose(0, 2, 1) / width
    weights, x = random.normal(size=(models, width + 1)), random.normal(size=width)
    rows = random.integers(0, 3, models).astype(float)
    full = np.concatenate(([1.0], x))
    variance = np.einsum("mij,i,j->m", spread, full, full)
    mean = sigmoid(weights @ full / np.sqrt(1.0 + np.pi / 8.0 * variance))
    sd = np.minimum(mean * (1.0 - mean) * np.sqrt(variance), np.sqrt(mean * (1.0 - mean)))
    mean[rows == 0.0] = sd[rows == 0.0] = np.nan
    same(LinearHead(weights, spread, rows, np.ones(width + 1), 100.0).raw(x), mean, sd)


@each
@given(seeds, st.integers(1, 5), st.sampled_from((3, 30, 31, 200)))
def test_neighbours_say_their_weighted_mean(seed: int, models: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    k = 30
    head = KNNHead(random.random(7), models, k, 1000)
    quality = random.random((rows, models))
    quality[random.random(quality.shape) < 0.3] = np.nan
    head.fill(random.normal(size=(rows, 7)), quality)
    head.reach = float(random.choice((0.0, 1.0)))
    x = random.normal(size=7)
    point = (x * head.metric).astype(np.float32)
    distance = head._norms - 2.0 * (head.points @ point) + point @ point
    near = np.argsort(distance)[:k]
    fade = kernel(np.maximum(distance[near], 0.0), head.reach)
    heard = fade @ head.weight[near] + SHRINK
    total, count = head.base.T
    mean = (fade @ head.worth[near] + SHRINK * (total + 0.5) / (count + 1.0)) / heard
    sd = np.sqrt(np.maximum(mean * (1.0 - mean), 0.0) / (heard + 1.0))
    mean[count <= 0.0] = sd[count <= 0.0] = np.nan
    said = head.raw(x)
    # The sums are made in single precision, in whatever order the neighbours were found.
    np.testing.assert_allclose(said[0], mean, atol=1e-5)
    np.testing.assert_allclose(said[1], sd, atol=1e-5)


@each
@given(seeds, st.integers(1, 6))
def test_calibration_says_the_line_on_the_log_odds(seed: int, models: int) -> None:
    random = np.random.default_rng(seed)
    calibrator = Calibrator(models)
    for _ in range(20):
        model = int(random.integers(models))
        calibrator.learn(model, float(random.random()), float(random.random()), float(random.random()) + 0.1)
    p, sd = random.random(models), random.random(models)
    p[0] = random.choice((0.0, 1.0, 0.5, np.nan))
    raw, (offset, slope) = logit(p), calibrator.line.T
    out = sigmoid(offset + slope * raw)
    steep, inner = out * (1.0 - out), np.clip(p, 1e-3, 1.0 - 1e-3)
    line = np.stack((np.ones(models), raw), 1)
    variance = steep**2 * np.einsum("mi,mij,mj->m", line, calibrator.spread, line)
    variance = variance + (sd * slope * steep / (inner * (1.0 - inner))) ** 2
    same(calibrator.apply(p.tolist(), sd.tolist()), out, np.sqrt(np.minimum(variance, steep + FLOOR)))


@each
@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_a_mixture_leaves_out_who_does_not_know(seed: int, members: int, models: int) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(members))
    p, sd = random.random((members, models)), random.random((members, models))
    p[random.random(p.shape) < 0.4] = np.nan
    weight = np.where(np.isnan(p), 0.0, shares[:, None])
    with np.errstate(invalid="ignore"):
        weight = weight / weight.sum(0)
    mean = (weight * np.nan_to_num(p)).sum(0)
    sd_of_all = np.sqrt((weight * (sd**2 + (np.nan_to_num(p) - mean) ** 2)).sum(0))
    said = [(a.tolist(), b.tolist()) for a, b in zip(p, sd, strict=True)]
    same(combine(said, shares.tolist()), mean, sd_of_all)


@each
@given(seeds, st.booleans())
def test_one_row_is_seen_as_many_are(seed: int, with_vectors: bool) -> None:
    random = np.random.default_rng(seed)
    lexical = random.exponential(3.0, (30, 5)) * random.choice((-1.0, 1.0), (30, 5))
    vectors = random.normal(size=(30, 8)) if with_vectors else None
    view = View.fitted(lexical, vectors, 4)
    rows = view.rows(lexical, vectors)
    for place, row in enumerate(rows):
        vector = None if vectors is None else tuple(vectors[place].tolist())
        seen = view.row(Features(tuple(lexical[place].tolist()), vector))
        np.testing.assert_allclose(seen, row, rtol=0.0, atol=EXACT)
