"""What the cascade keeps, what it passes on, and what it learns from what became of it."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Call, Cost, Option, Reply, drive
from apportion.reason.cascade import Cascade, free_energy, sequence_score

SMALL = Option("small", 0.0, Cost(usd=0.001), quality=0.6)
LARGE = Option("large", 0.0, Cost(usd=0.01), quality=0.9)
logits = st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=8)


@given(logits, st.floats(0.05, 5.0))
def test_free_energy_is_its_definition(values: list[float], temperature: float) -> None:
    shifted = max(values)
    plain = -shifted - temperature * math.log(sum(math.exp((v - shifted) / temperature) for v in values))
    assert free_energy(values, temperature) == pytest.approx(plain)
    assert free_energy([v + 3.0 for v in values], temperature) == pytest.approx(plain - 3.0, abs=1e-6)
    assert -free_energy(values, temperature) >= max(values) - 1e-9


def test_cold_energy_is_the_largest_and_that_of_a_whole_distribution_at_one_is_nothing() -> None:
    p = [0.7, 0.2, 0.1]
    logs = [math.log(x) for x in p]
    assert -free_energy(logs, 0.001) == pytest.approx(math.log(0.7), abs=1e-3)
    assert free_energy(logs, 1.0) == pytest.approx(0.0)
    assert -free_energy(logs, 0.5) == pytest.approx(0.5 * math.log(sum(x * x for x in p)))  # Renyi of order 2


def test_the_score_falls_back_on_what_there_is() -> None:
    assert sequence_score({"logprobs": [-1.0, -3.0]}, 0.5) == -2.0
    assert sequence_score({"logprobs": None, "top_logprobs": [[]]}, 0.5) is None
    both = {"logprobs": [-9.0], "top_logprobs": [[-0.1], [-0.3]]}
    assert sequence_score(both, 0.5) == pytest.approx(-0.2)


def ask(strategy: Cascade, score: float | None, **request: object) -> list[str]:
    """Which endpoints were called when the small model's tokens all have log probability ``score``."""
    called = []

    def call(one: Call) -> Reply:
        called.append(one.action)
        said = {"text": f"It is {one.action}", "finish": request.get("finish", "stop")}
        if score is not None:
            said["logprobs"] = [score]
        return Reply("ok", said, Cost(usd=0.001))

    drive(strategy.run({"options": [LARGE, SMALL], "prices": {"usd": 1.0}, **request}, 0.0), call)
    return called


def test_it_escalates_exactly_when_the_gain_is_worth_the_price() -> None:
    """Kept at p, the larger is right with 0.9 and costs 0.01: escalate iff worth (0.9 - p) > 0.01."""
    strategy = Cascade()
    strategy.calibrate("small", [(-2.0, float(i % 10 < 4)) for i in range(200)])
    kept = strategy.chance(SMALL, -2.0)
    assert kept == pytest.approx(0.4, abs=0.01)
    even = 0.01 / (0.9 - kept)
    offer = {"max_usd": None}
    assert ask(strategy, -2.0, worth_usd=1.05 * even, **offer)[:2] in (["small", "large"], ["large"])
    assert ask(strategy, -2.0, worth_usd=0.95 * even, **offer) == ["small"]
    dear = {"prices": {"usd": 1.2}}
    assert ask(strategy, -2.0, worth_usd=1.05 * even, **dear) == ["small"]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_cut_short_is_not_kept(finish: str) -> None:
    assert ask(Cascade(threshold=-5.0), -0.1, finish=finish) == ["small", "large"]
    if finish == "length":
        asked_for = {"max_output_tokens": 5, "worth_usd": 1e-6}
        assert ask(Cascade(threshold=-5.0), -0.1, finish=finish, **asked_for) == ["small"]


def test_without_log_probabilities_the_predicted_quality_decides() -> None:
    assert ask(Cascade(), None, worth_usd=1.0)[-1] == "large"
    assert ask(Cascade(), None, worth_usd=0.02) == ["small"]


def test_a_small_model_that_saves_nothing_is_left_out() -> None:
    hopeless = Option("small", 0.0, Cost(usd=0.009), quality=0.05)
    request = {"options": [hopeless, LARGE], "prices": {"usd": 1.0}, "worth_usd": 10.0}
    answer = drive(Cascade().run(request, 0.0), lambda call: Reply("ok", {"text": "x"}, Cost(usd=0.01)))
    assert answer.details["calls"] == 1
    assert answer.details["action"] == "large"


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_share_is_kept_to(share: float) -> None:
    strategy, generator = Cascade(share=share, window=200), Random(2)
    escalated = sum(len(ask(strategy, -generator.expovariate(1.0))) == 2 for _ in range(1500))
    assert escalated / 1500 == pytest.approx(share, abs=0.04)


def test_when_the_larger_model_fails_the_smaller_ones_answer_is_given() -> None:
    def call(one: Call) -> Reply:
        if one.action == "large":
            return Reply("failed", None, Cost())
        return Reply("ok", {"text": "4", "logprobs": [-3.0]}, Cost(usd=0.001))

    request = {"options": [SMALL, LARGE], "prices": {"usd": 1.0}, "worth_usd": 1.0}
    answer = drive(Cascade().run(request, 0.0), call)
    assert answer.details["action"] == "small"
    assert answer.details["calls"] == 2


def step(action: str, answer: str, score: float = -1.0) -> dict[str, object]:
    return {"action": action, "score": score, "answer": answer, "short": False}


@pytest.mark.parametrize(
    ("small", "large", "quality", "learned"),
    [
        ("a", "a", 1.0, 1.0),
        ("a", "a", 0.0, 0.0),
        ("a", "b", 1.0, 0.0),
        ("a", "b", 0.0, None),
        ("", "b", 1.0, None),
    ],
)
def test_what_an_outcome_of_the_larger_says_of_the_smaller(
    small: str, large: str, quality: float, learned: float | None
) -> None:
    strategy = Cascade()
    strategy.learn(
        {"action": "large", "evidence": {"steps": [step("small", small), step("large", large)]}}, quality
    )
    seen = strategy.save()["learned"]["_seen"]
    assert seen.get("small", [[None, None]])[0][1] == learned
    assert seen["large"] == [[-1.0, quality]]
    assert seen["small>large"] == [[-1.0, quality]]


def test_outcomes_make_it_escalate_where_the_small_model_errs() -> None:
    strategy, generator = Cascade(), Random(3)
    for _ in range(300):
        score = -generator.expovariate(1.0)
        right = float(generator.random() < math.exp(score))
        strategy.learn({"action": "small", "evidence": {"steps": [step("small", "a", score)]}}, right)
    assert ask(strategy, -0.02, worth_usd=0.05) == ["small"]
    assert ask(strategy, -2.5, worth_usd=0.05) == ["small", "large"]
