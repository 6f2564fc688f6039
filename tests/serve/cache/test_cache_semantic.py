"""The index against comparing one by one."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from apportion.serve.cache import semantic
from apportion.serve.cache.semantic import Near, packed

PLACE = ("frame", "chat")


def vectors(n: int, dimensions: int = 32, seed: int = 0) -> Any:
    made = np.random.default_rng(seed).normal(size=(n, dimensions))
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [50, 2000])
def test_finds_what_comparing_one_by_one_finds(n: int) -> None:
    near, made = Near(), vectors(n)
    for place, vector in enumerate(made):
        near.add(PLACE, str(place), packed(vector))
    queries = made[:50] + 0.05 * vectors(50, seed=1)
    found = [near.search(PLACE, packed(query), 0.5, 1) for query in queries]
    truth = [str(int((made @ query).argmax())) for query in queries]
    right = sum(bool(f) and f[0][1] == t for f, t in zip(found, truth, strict=True))
    assert right >= 49
    for query, one in zip(queries, found, strict=True):
        similarity, key = one[0]
        assert abs(similarity - made[int(key)] @ query / np.linalg.norm(query)) < 2e-3


def test_a_threshold_is_kept_and_places_are_apart() -> None:
    near, made = Near(), vectors(20)
    for place, vector in enumerate(made):
        near.add(("frame", "chat" if place % 2 else "code"), str(place), packed(vector))
    found = near.search(PLACE, packed(made[1]), 0.99)
    assert [key for _, key in found] == ["1"]
    assert near.search(PLACE, packed(made[2]), 0.99) == []
    assert near.search(("other", "chat"), packed(made[1]), -1.0) == []


@pytest.mark.parametrize("small", [10**9, 20])
def test_additions_and_removals_in_any_order(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "SMALL", small)
    rng, near, made = random.Random(3), Near(), vectors(120)
    held: dict[str, int] = {}
    for _ in range(1500):
        row = rng.randrange(len(made))
        key = str(rng.randrange(60))
        if rng.random() < 0.6:
            near.add(PLACE, key, packed(made[row]))
            held[key] = row
        else:
            near.remove(PLACE, key)
            held.pop(key, None)
        assert len(near) == len(held)
        probe = made[rng.randrange(len(made))]
        for similarity, found in near.search(PLACE, packed(probe), 0.9):
            assert found in held
            assert abs(similarity - made[held[found]] @ probe) < 2e-3
    for key in list(held):
        near.remove(PLACE, key)
    assert near.search(PLACE, packed(made[0]), -1.0) == []


def test_a_vector_of_another_length_is_left_out() -> None:
    near = Near()
    near.add(PLACE, "a", packed([1.0, 0.0]))
    near.add(PLACE, "b", packed([1.0, 0.0, 0.0]))
    near.add(PLACE, "c", b"")
    assert len(near) == 1
    assert near.search(PLACE, packed([1.0, 0.0, 0.0]), 0.0) == []


def test_what_has_no_direction_is_not_packed() -> None:
    assert packed([0.0, 0.0]) == b""
    assert packed([float("nan"), 1.0]) == b""


def test_the_encoder_can_be_loaded_after_the_index() -> None:
    pytest.importorskip("onnxruntime")
    said = """
import random
from apportion.serve.cache import semantic
near = semantic.Near()
for key in range(semantic.SMALL + 5):
    near.add(("f", "c"), str(key), semantic.packed([random.random() for _ in range(8)]))
import onnxruntime
"""
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0
