"""What holds of every eviction in the catalogue, checked against a plain dictionary."""

from __future__ import annotations

import copy
import doctest
import gc
import inspect
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import catalogue
from apportion.core.checks import watched
from apportion.core.errors import ParameterError, SavedStateError
from apportion.core.eviction import Eviction, Key

NAMES = tuple(name for name in catalogue.names("cache") if issubclass(catalogue.find(name), Eviction))
Make = Callable[[], Eviction]


def makes() -> Iterator[object]:
    for name in NAMES:
        cls = catalogue.find(name)
        for parameters in ({"capacity": 10}, {"capacity": 64.0}, *cls.examples()):
            shown = ",".join(f"{key}={value!r}"[:40] for key, value in parameters.items())
            yield pytest.param(bind(cls, parameters), id=f"{name}[{shown}]")


def bind(cls: type[Any], parameters: Any) -> Make:
    return lambda: cls(**copy.deepcopy(dict(parameters)))


every_eviction = pytest.mark.parametrize("make", list(makes()))


class Modelled:
    """An eviction beside a dictionary of what it must hold."""

    def __init__(self, eviction: Eviction) -> None:
        self.eviction = eviction
        self.held: dict[Key, float] = {}
        self.course: list[object] = []
        self.now = 0.0

    def ask(self, key: Key, size: float, cost: float = 1.0) -> None:
        if key in self.held:
            self.now += 1.0
            self.eviction.hit(key, self.now)
            self.check()
        else:
            self.offer(key, size, cost)

    def offer(self, key: Key, size: float, cost: float = 1.0) -> None:
        self.now += 1.0
        victims = list(self.eviction.insert(key, size, self.now, cost))
        self.course.append((key, victims))
        assert len(set(victims)) == len(victims), "dropped twice"
        assert set(victims) <= self.held.keys() | {key}, "dropped what was not held"
        self.held[key] = size
        for victim in victims:
            del self.held[victim]
        self.check()

    def remove(self, key: Key) -> None:
        self.eviction.remove(key)
        self.held.pop(key, None)
        self.check()

    def check(self) -> None:
        eviction = self.eviction
        assert eviction.size <= eviction.capacity
        assert eviction.size == sum(self.held.values())
        assert len(eviction) == len(self.held)

    def check_keys(self, keys: list[Key]) -> None:
        assert [key in self.eviction for key in keys] == [key in self.held for key in keys]


KEYS: list[Key] = [*range(12), "a", "b", "é", "long" * 20, ""]
SIZES = st.sampled_from([0.25, 0.5, 1, 1, 1, 2, 3.5, 8, 70])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "offer", "remove", "hit"]),
        st.sampled_from(KEYS),
        SIZES,
        st.sampled_from([1.0, 0.0, 3.0, 1e-9, math.inf, math.nan]),
    ),
    max_size=120,
)


@every_eviction
@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_it_holds_what_it_says_and_never_too_much(
    make: Make, steps: list[tuple[str, Key, float, float]]
) -> None:
    model = Modelled(make())
    for action, key, size, cost in steps:
        if action == "ask":
            model.ask(key, size, cost)
        elif action == "offer":
            model.offer(key, size, cost)
        elif action == "remove":
            model.remove(key)
        else:
            model.eviction.hit(key, model.now)
            model.check()
    model.check_keys(KEYS)


def play(model: Modelled, rounds: int, seed: int, keys: int = 60) -> list[object]:
    """Skewed requests of mixed sizes, with removals and replacements; what was dropped."""
    generator = random.Random(seed)
    start = len(model.course)
    for _ in range(rounds):
        key = int(keys * generator.random() ** 2.5)
        name: Key = key if key % 3 else f"key-{key}"
        size = 1.0 + key % 4 * 0.5
        if generator.random() < 0.02:
            model.remove(name)
        elif generator.random() < 0.02:
            model.offer(name, size * 2)
        else:
            model.ask(name, size, cost=1.0 + key % 5)
    return model.course[start:]


@every_eviction
def test_the_same_course_leads_to_the_same_cache(make: Make) -> None:
    first = play(Modelled(make()), 1500, seed=1)
    assert first == play(Modelled(make()), 1500, seed=1)
    other = Modelled(make())
    play(other, 300, seed=2)
    other.eviction.reset()
    again = Modelled(other.eviction)
    assert len(again.eviction) == 0
    assert again.eviction.size == 0
    assert first == play(again, 1500, seed=1), "reset leaves something behind"
    twin = Modelled(again.eviction.clone())
    assert first == play(twin, 1500, seed=1), "a clone is not new"


@every_eviction
def test_saved_state_continues_identically(make: Make) -> None:
    model = Modelled(make())
    play(model, 1500, seed=3)
    saved = json.loads(json.dumps(model.eviction.save(), allow_nan=False))
    twin = Modelled(make())
    play(twin, 100, seed=4)
    twin.eviction.load(saved)
    twin.held, twin.now = dict(model.held), model.now
    twin.check()
    twin.check_keys(list(model.held))
    assert play(model, 1500, seed=5) == play(twin, 1500, seed=5)


@every_eviction
def test_the_state_of_another_is_refused(make: Make) -> None:
    eviction = make()
    saved = eviction.save()
    with pytest.raises(SavedStateError):
        eviction.load({**saved, "method": "other"})
    with pytest.raises(SavedStateError):
        eviction.load({**saved, "capacity": eviction.capacity + 1})
    with pytest.raises(SavedStateError):
        eviction.load({**saved, "learned": {}})


@every_eviction
def test_memory_is_bounded(make: Make) -> None:
    model = Modelled(make())
    sizes = []
    for stop in (6000, 12000):
        for key in range(stop - 6000, stop):
            model.ask(key, 1.0)
            model.ask(key // 2, 1.0)
            model.ask(key % 5, 1.0)
        sizes.append(len(json.dumps(model.eviction.save())))
    assert sizes[1] <= 1.1 * sizes[0] + 2000


@every_eviction
def test_huge_empty_and_nonsense_sizes_are_not_admitted(make: Make) -> None:
    model = Modelled(make())
    model.ask("first", 1.0)
    for size in (model.eviction.capacity * 1.01, math.inf, math.nan, 0.0, -1.0):
        assert list(model.eviction.insert("odd", size, 5.0)) == ["odd"]
        assert "odd" not in model.eviction
        model.check()
    assert list(model.eviction.insert("first", math.inf, 6.0)) == ["first"]
    assert len(model.eviction) == 0


@every_eviction
def test_unknown_keys_are_ignored(make: Make) -> None:
    eviction = make()
    eviction.remove("nobody")
    eviction.hit("nobody", 1.0)
    assert "nobody" not in eviction
    assert len(eviction) == eviction.size == 0


@every_eviction
def test_it_touches_no_clock_file_or_global_random(make: Make) -> None:
    model = Modelled(make())
    play(model, 300, seed=6)
    gc.disable()  # hypothesis times the collector
    try:
        with watched() as touched:
            play(model, 300, seed=7)
    finally:
        gc.enable()
    assert not touched


@every_eviction
def test_parameters_stay_and_are_shown(make: Make) -> None:
    eviction = make()
    given_ = copy.deepcopy(eviction.parameters())
    play(Modelled(eviction), 200, seed=8)
    assert eviction.parameters() == given_
    assert f"capacity={eviction.capacity!r}" in repr(eviction)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_is_documented_and_checked(name: str) -> None:
    cls = catalogue.find(name)
    info = catalogue.describe(name)
    assert info.summary.endswith(".")
    assert cls.constraints.keys() == cls.signature().keys()
    assert getattr(cls, "__final__", False)
    assert not inspect.isabstract(cls)
    assert list(cls.examples())
    for key, constraint in cls.constraints.items():
        with pytest.raises(ParameterError, match=f"The '{key}' parameter of {cls.__name__} must be"):
            cls(**{"capacity": 10, key: constraint.wrong()})
    runner, report = doctest.DocTestRunner(verbose=False), list[str]()
    tests = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, sys.modules[cls.__module__])
    assert sum(len(test.examples) for test in tests), "no doctest"
    for test in tests:
        runner.run(test, out=report.append)
    assert not report, "".join(report)


def test_the_family_is_complete() -> None:
    assert {"cache/lru", "cache/lfu", "cache/s3_fifo", "cache/sieve", "cache/w_tinylfu", "cache/gdsf"} <= set(
        NAMES
    )
