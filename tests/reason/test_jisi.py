"""Routing by neighbours, the switch, and the bank."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apportion.core import Call, Cost, Features, Option, Reply, drive
from apportion.reason._bank import Bank
from apportion.reason.jisi import JiSi

MODELS = ("cheap", "middle", "dear")
COST = {"cheap": 0.001, "middle": 0.002, "dear": 0.01}
OFFER = [Option(name, 0.0, Cost(usd=COST[name])) for name in MODELS]


def near(axis: int, generator: np.random.Generator, spread: float = 0.05) -> tuple[float, ...]:
    vector = np.zeros(8)
    vector[axis] = 1.0
    vector += generator.normal(0.0, spread, 8)
    return tuple(vector / np.linalg.norm(vector))


def trained(generator: np.random.Generator, **parameters: object) -> JiSi:
    """The cheap model knows axis 0, the middle one axis 1, on axis 2 only the dear one is right."""
    strategy = JiSi(**parameters)  # type: ignore[arg-type]
    for i in range(150):
        axis = i % 3
        strategy.remember(
            near(axis, generator),
            {"cheap": float(axis == 0), "middle": float(axis == 1), "dear": 0.95},
            {name: near(3 + axis, generator) for name in MODELS},
        )
    return strategy


def ask(
    strategy: JiSi, vector: tuple[float, ...], worth: float, reply: object = None
) -> tuple[str, list[Call]]:
    made: list[Call] = []

    def call(one: Call) -> Reply:
        made.append(one)
        said = {"text": one.action, "finish": "stop", "vector": reply}
        return Reply("ok", said, Cost(usd=COST[one.action]))

    request = {"options": OFFER, "prices": {"usd": 1.0}, "worth_usd": worth, "features": Features((), vector)}
    answer = drive(strategy.run(request, 0.0), call)
    return str(answer.details["action"]), made


def test_it_routes_to_the_cheapest_that_knows() -> None:
    generator = np.random.default_rng(1)
    strategy = trained(generator, candidates=1)
    for axis, name in enumerate(MODELS):
        assert ask(strategy, near(axis, generator), 0.05)[0] == name
    assert ask(strategy, near(2, generator), 0.0001)[0] == "cheap"


def test_scores_are_weighted_means_of_neighbours() -> None:
    strategy = JiSi(neighbours=2, bandwidth=0.5, shrink=1.0)
    strategy.remember((1.0, 0.0), {"m": 1.0})
    strategy.remember((0.0, 1.0), {"m": 0.0})
    option = Option("m", 0.0, Cost(), quality=0.5)
    near_both = strategy._bank.similar((0.8, 0.6))
    weights = np.exp([0.0, (0.6 - 0.8) / 0.5])
    keep = 1.0 - 1.0 / strategy.capacity
    general = (keep * 1.0 + 0.0 + 0.5) / (keep + 1.0 + 1.0)
    expected = (weights[0] + general) / (weights.sum() + 1.0)
    assert strategy.scores([option], near_both)["m"] == pytest.approx(expected, rel=1e-5)


def test_the_answer_tells_how_hard_the_request_was() -> None:
    """Requests alike, answers not: where the cheap model answers like this it was wrong, so it is led on."""
    generator = np.random.default_rng(2)
    strategy = JiSi(candidates=1, mix=0.3)
    for i in range(100):
        hard = i % 4 == 0
        strategy.remember(
            near(0, generator),
            {"cheap": float(not hard), "middle": 0.0, "dear": 0.99},
            {"cheap": near(4 if hard else 3, generator)},
        )
    assert [c.action for c in ask(strategy, near(0, generator), 0.03, near(3, generator))[1]] == ["cheap"]
    assert [c.action for c in ask(strategy, near(0, generator), 0.03, near(4, generator))[1]] == [
        "cheap",
        "dear",
    ]


def test_several_answers_are_combined_where_that_pays() -> None:
    """Nobody is right more than half the time, a right answer is worth much: all are asked and combined."""
    generator = np.random.default_rng(3)
    strategy = JiSi(candidates=3)
    for _ in range(200):
        strategy.remember(near(0, generator), {name: float(generator.random() < 0.5) for name in MODELS})
    action, made = ask(strategy, near(0, generator), 1.0)
    assert action.startswith("+")
    assert len(made) == 4
    combined = made[-1].request["append"]
    assert "Answer 1:" in combined[0]["content"]  # type: ignore[index]
    assert "Answer 3:" in combined[0]["content"]  # type: ignore[index]
    assert len(ask(strategy, near(0, generator), 0.002)[1]) == 1


def test_combined_answers_that_turn_out_bad_are_not_bought_again() -> None:
    generator = np.random.default_rng(4)
    strategy = JiSi(candidates=3)
    for _ in range(100):
        strategy.remember(near(0, generator), {name: float(generator.random() < 0.5) for name in MODELS})
    assert ask(strategy, near(0, generator), 0.2)[0].startswith("+")
    for _ in range(100):
        strategy.remember(near(0, generator), {f"+{name}": 0.3 for name in MODELS})
    assert not ask(strategy, near(0, generator), 0.2)[0].startswith("+")


def test_it_learns_from_the_details_of_its_answers() -> None:
    generator = np.random.default_rng(5)
    strategy = JiSi(candidates=1)
    for _ in range(60):
        request = {"options": OFFER, "prices": {"usd": 1.0}, "worth_usd": 0.05}
        request["features"] = Features((), near(0, generator))
        answer = drive(
            strategy.run(request, 0.0),
            lambda c: Reply("ok", {"text": c.action, "vector": (1.0,) * 8}, Cost()),
        )
        strategy.learn(json.loads(json.dumps(answer.details)), float(answer.details["action"] == "dear"))
    assert answer.details["action"] == "dear"


def test_the_bank_is_a_ring_and_survives_saving() -> None:
    bank = Bank(20)
    for i in range(50):
        bank.add((float(i), 1.0), {"a": i / 50}, {"a": (1.0, 0.0)} if i % 2 else {})
    assert bank.size == 20
    held = np.sort(bank.quality[:20, 0] * 50)
    assert held == pytest.approx(np.arange(30, 50))
    again = Bank(20)
    again.load(json.loads(json.dumps(bank.save())))
    assert np.array_equal(again.similar((1.0, 2.0)), bank.similar((1.0, 2.0)))
    alike = again.similar_replies("a", (1.0, 0.0))
    assert np.isnan(alike).sum() == 10
    assert np.nansum(alike) == pytest.approx(10.0)
    again.add((1.0, 1.0), {"b": 1.0}, {})
    assert again.size == 20
    again.add((1.0, 1.0, 1.0), {"b": 1.0}, {})
    assert again.similar((1.0, 1.0, 1.0)).size == 0
