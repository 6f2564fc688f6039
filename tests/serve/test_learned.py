"""What was learned survives a restart; what is broken or somebody else's never stops one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import pytest

from apportion.core import catalogue
from apportion.core.cost import Cost
from apportion.core.features import Features
from apportion.core.method import Constraint, Interval, Method
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.serve.learned import Learned, names, parameters_of

NAME = "model/my chat/policy"


@final
class Counter(Method):
    """Counts."""

    constraints: ClassVar[Mapping[str, Constraint]] = {"step": Interval(float, 0.0)}

    def __init__(self, *, step: float = 1.0) -> None:
        self.step = step
        self.start()

    def reset(self) -> None:
        self.count = 0.0
        self.seen: list[str] = []

    def learn(self) -> None:
        self.count += self.step


class Fragile(Method):
    """Breaks in the middle of loading."""

    def __init__(self) -> None:
        self.start()

    def reset(self) -> None:
        self.count = 0.0

    def load(self, saved: Mapping[str, Any]) -> None:
        super().load(saved)
        if self.count:
            raise RuntimeError("half way")


def counted(n: int, **parameters: float) -> Counter:
    made = Counter(**parameters)
    for _ in range(n):
        made.learn()
    return made


async def saved(
    directory: Path, n: int, *, worker: int = 0, kind: str = "test/counter", **parameters: float
) -> Path:
    learned = Learned(directory, worker)
    await learned.save({NAME: (kind, counted(n, **parameters))})
    (path,) = (directory / f"worker-{worker:02d}").glob("*.json")
    return path


async def test_it_continues(tmp_path: Path) -> None:
    path = await saved(tmp_path, 3)
    fresh = Counter()
    assert Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 3.0
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert list(names(tmp_path)) == [path]
    await saved(tmp_path, 5)
    assert Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 5.0


def test_nothing_was_saved(tmp_path: Path) -> None:
    fresh = counted(1)
    assert not Learned(tmp_path / "absent", 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 1.0


async def test_a_worker_without_takes_the_newest_of_its_siblings(tmp_path: Path) -> None:
    for worker, count in ((1, 10), (2, 20), (3, 30)):
        path = await saved(tmp_path, count, worker=worker)
        os.utime(path, (worker % 3, worker % 3))
    fresh = Counter()
    assert Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 20.0
    assert Learned(tmp_path, 3).load(NAME, "test/counter", fresh)
    assert fresh.count == 30.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version":1}',
        b'{"version":9,"name":"x","method":"m","parameters":"","saved_at":0,"state":{}}',
    ],
)
async def test_a_broken_file_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = await saved(tmp_path, 3)
    path.write_bytes(content)
    fresh = Counter()
    with caplog.at_level(logging.WARNING):
        assert not Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 0.0
    assert "not used" in caplog.text
    assert not path.exists()
    assert path.with_suffix(".set-aside").read_bytes() == content


@pytest.mark.parametrize("change", ["method", "parameters", "state"])
async def test_another_methods_state_is_set_aside(tmp_path: Path, change: str) -> None:
    path = await saved(tmp_path, 3)
    found = json.loads(path.read_bytes())
    found[change] = {"state": {"method": "Counter", "learned": {"other": 1}}}.get(change, "other")
    path.write_text(json.dumps(found))
    fresh = Counter()
    assert not Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 0.0
    assert not path.exists()


async def test_other_parameters_begin_anew(tmp_path: Path) -> None:
    await saved(tmp_path, 3, step=2.0)
    assert not Learned(tmp_path, 0).load(NAME, "test/counter", Counter())
    assert parameters_of(Counter()) != parameters_of(Counter(step=2.0))
    assert parameters_of(counted(3)) == parameters_of(Counter())


async def test_a_siblings_bad_file_is_left_to_it_and_another_is_taken(tmp_path: Path) -> None:
    bad = await saved(tmp_path, 3, worker=1)
    bad.write_bytes(b"{")
    good = await saved(tmp_path, 4, worker=2)
    os.utime(good, (1, 1))
    fresh = Counter()
    assert Learned(tmp_path, 0).load(NAME, "test/counter", fresh)
    assert fresh.count == 4.0
    assert bad.read_bytes() == b"{"


async def test_what_fails_half_way_begins_anew(tmp_path: Path) -> None:
    full = Fragile()
    full.count = 3.0
    await Learned(tmp_path, 0).save({NAME: ("test/fragile", full)})
    fresh = Fragile()
    assert not Learned(tmp_path, 0).load(NAME, "test/fragile", fresh)
    assert fresh.count == 0.0


async def test_what_cannot_be_saved_is_told_and_the_others_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Counter()
    odd.seen = [object()]  # type: ignore[list-item]
    await Learned(tmp_path, 0).save({"odd": ("test/counter", odd), NAME: ("test/counter", counted(2))})
    assert "odd" in caplog.text
    assert len(list(names(tmp_path))) == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    await Learned(blocked, 0).save({NAME: ("test/counter", counted(2))})
    assert "could not be saved" in caplog.text


def builds(name: str) -> bool:
    return all(p.default is not p.empty for p in catalogue.find(name).signature().values())


METHODS = [
    name
    for name in catalogue.names()
    if name.partition("/")[0] in ("route", "admit", "quality", "length", "latency") and builds(name)
]


@pytest.mark.parametrize("name", METHODS)
async def test_every_method_that_the_proxy_keeps_continues(tmp_path: Path, name: str) -> None:
    method = catalogue.build(name)
    if isinstance(method, Policy):
        options = [Option(action, 0.02, Cost(usd=0.001), quality=0.5) for action in ("a", "b")]
        for number in range(30):
            state = State(
                float(number), options, f"dec_{number}", {}, {"usd": 1.0}, Features((1.0, float(number % 3)))
            )
            decision = method.decide(state)
            outcome = Outcome(
                decision.id, "ok", decision.action, Cost(usd=0.001), 1.0, latency_s=0.1, state=state
            )
            method.learn(outcome)
    await Learned(tmp_path, 0).save({"model/m/policy": (name, method)})
    fresh = catalogue.build(name)
    assert Learned(tmp_path, 1).load("model/m/policy", name, fresh)
    assert json.dumps(fresh.save(), sort_keys=True) == json.dumps(method.save(), sort_keys=True)
