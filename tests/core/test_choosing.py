"""Who decides with what probability, what an admission policy sees, and what is told of it."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from apportion.core import Cost, Decision, Option, Outcome, Policy, State
from apportion.core.choosing import (
    admitted,
    ask_admission,
    choose,
    drawn_in,
    mixed,
    outcome,
    request_facts,
    stays,
    watched,
)

OPTIONS = [Option("a", 1.0, Cost(usd=0.5)), Option("b", 2.0, Cost(usd=0.7), load=0.25)]


class Fixed(Policy):
    """Chooses one, with a probability."""

    learns: ClassVar[bool] = False

    def __init__(self, choice: int = 0, probability: float | None = 1.0) -> None:
        self.choice, self.probability = choice, probability

    def decide(self, state: State) -> Decision:
        action = state.options[self.choice].action
        return Decision(
            state.id, self.choice, action, self.probability, state.prices, state.options, (), "fixed"
        )

    def learn(self, outcome: Outcome) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError


class Broken(Fixed):
    def decide(self, state: State) -> Decision:
        raise ValueError("broken")


def state() -> State:
    return State(0.0, OPTIONS, "dec_1", {"x": 1}, {"usd": 1.0})


def test_a_share_is_drawn_alike_every_time() -> None:
    names = [f"s{i}" for i in range(4000)]
    for share in (0.0, 0.2, 0.7, 1.0):
        drawn = [drawn_in(share, name) for name in names]
        assert drawn == [drawn_in(share, name) for name in names]
        assert sum(drawn) / len(drawn) == pytest.approx(share, abs=0.03)


def test_the_probability_is_that_before_it_was_drawn_who_decides() -> None:
    """Against counting: a share of 0.3 decides by 0.8/0.2, the others always take b."""
    rng, n, hits = random.Random(5), 20_000, 0
    for _ in range(n):
        mine = rng.random() < 0.3
        hits += (rng.random() < 0.8) if mine else False
    policy, other = Fixed(0, 0.8), Fixed(1, 1.0)
    assert choose(state(), policy, other, 0.3).probability == pytest.approx(0.24)
    assert hits / n == pytest.approx(0.24, abs=0.01)
    assert choose(state(), Fixed(1, 0.2), other, 0.3).probability == pytest.approx(0.3 * 0.2 + 0.7)
    assert choose(state(), policy, other, 1.0).probability == 0.8
    assert mixed(Fixed(0, 0.8).decide(state()), Fixed(1, 0.5).decide(state()), 0.3) is None
    assert mixed(Fixed(0, None).decide(state()), other.decide(state()), 0.3) is None


def test_whoever_only_watches_breaks_nothing() -> None:
    assert watched(Broken(), state()) is None
    assert choose(state(), Fixed(0, 1.0), Broken(), 0.5).probability == 1.0


def test_what_stays_is_certain() -> None:
    found = stays(state(), 1, "the conversation is there")
    assert (found.action, found.probability, found.worths) == ("b", 1.0, (None, None))


def test_admission_sees_the_best_option_or_nothing() -> None:
    asked = state()
    asked.options = [*OPTIONS, Option("dark", 9.0, Cost())]  # what it costs is not known
    found = ask_admission(
        Fixed(0), asked, budget_used=0.5, budget_resource="usd", deadline_s=None, tenant="key:a"
    )
    assert found.action == "accept"
    accept, refuse = asked.options
    assert (accept.value, accept.cost["usd"], refuse.action) == (2.0, 0.7, "refuse")
    assert asked.request["load"] == 0.0
    assert (asked.request["x"], asked.request["budget_used"], asked.request["tenant"]) == (1, 0.5, "key:a")


def test_what_is_not_known_is_not_told() -> None:
    told = outcome(
        "dec_1",
        "ok",
        "a",
        tokens=30,
        server_s=0.5,
        duration_s=0.7,
        usd=None,
        joules=None,
        censored=False,
        state=None,
    )
    assert dict(told.cost) == {"tokens": 30.0, "server_seconds": 0.5, "seconds": 0.7, "requests": 1.0}
    assert told.latency_s == 0.7
    assert dict(admitted("dec_1", "ok", "accept", tokens=3, server_s=1.0, usd=0.5).cost)["usd"] == 0.5
    assert request_facts("chat", "k", 10.0, False, 1) == {
        "api": "chat",
        "key": "k",
        "input_tokens": 10.0,
        "stream": False,
        "attempt": 1,
    }
    assert request_facts("chat", "k", 10.0, False, 1, effort=2.0, tags=["x"])["effort"] == 2.0
