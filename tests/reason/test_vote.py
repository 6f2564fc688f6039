"""When a vote is decided."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Call, Cost, Option, Reply, drive
from apportion.reason.vote import Vote, futures, leads

shape = st.floats(0.2, 40.0)


@settings(deadline=None)
@given(shape, shape)
def test_leading_for_good_is_a_tail_of_the_beta_distribution(first: float, second: float) -> None:
    special = pytest.importorskip("scipy.special")
    first, second = max(first, second), min(first, second)
    assert leads(first, second) == pytest.approx(1.0 - special.betainc(first, second, 0.5), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12))
def test_more_votes_never_make_it_less_sure_on_average(first: int, second: int, more: int) -> None:
    first, second = max(first, second), min(first, second)
    after = futures(first + 0.5, second + 0.5, more)
    assert sum(chance for chance, _ in after) == pytest.approx(1.0)
    expected = sum(chance * c for chance, c in after)
    now = leads(first + 0.5, second + 0.5)
    assert expected >= now - 1e-9
    if more < first - second:  # no vote can change the leader: nothing is gained
        assert expected == pytest.approx(now)


def test_futures_are_those_of_a_simulation() -> None:
    generator = np.random.default_rng(1)
    shares = generator.beta(2.5, 1.5, 100_000)
    seconds = generator.binomial(5, 1.0 - shares)
    found = [chance for chance, _ in futures(2.5, 1.5, 5)]
    assert found == pytest.approx(np.bincount(seconds, minlength=6) / 100_000, abs=0.006)


def votes(strategy: Vote, answers: str, worth: float = 0.1, price: float = 1.0) -> tuple[str, int]:
    """The answer and the number of samples when the model says ``answers`` one after the other."""
    left = iter(answers)

    def call(one: Call) -> Reply:
        return Reply("ok", {"text": f"The answer is {next(left)}."}, Cost(usd=0.001))

    offer = [Option("model", 0.0, Cost(usd=0.001), quality=0.5)]
    answer = drive(strategy.run({"options": offer, "prices": {"usd": price}, "worth_usd": worth}, 0.0), call)
    return str(answer.content["text"])[-2], int(str(answer.details["calls"]))  # type: ignore[index]


def test_agreement_stops_early_and_contention_goes_on() -> None:
    strategy = Vote(max_samples=20)
    assert votes(strategy, "7" * 20)[1] < votes(strategy, "7878787" + "8" * 13)[1]
    assert votes(strategy, "7878787" + "8" * 13, worth=10.0)[0] == "8"


def test_price_and_worth_bend_the_number_of_samples() -> None:
    close = "12" * 10
    by_price = [votes(Vote(max_samples=20), close, price=p)[1] for p in (0.1, 1.0, 10.0, 1000.0)]
    assert by_price == sorted(by_price, reverse=True)
    assert by_price[-1] == 1
    assert (
        votes(Vote(max_samples=20), close, worth=100.0)[1] == 19
    )  # at 10 to 9 the twentieth cannot change it


def test_with_a_fixed_level_it_is_adaptive_consistency() -> None:
    strategy = Vote(max_samples=40, confidence=0.95, prior=1.0)
    drawn = votes(strategy, "4" * 40)[1]
    assert leads(drawn + 1.0, 1.0) >= 0.95 > leads(float(drawn), 1.0)


def test_the_leader_is_given_with_how_likely_it_is_right() -> None:
    strategy, generator = Vote(), Random(5)
    assert strategy.chance(0.8) == pytest.approx(0.8)
    for _ in range(600):  # the most frequent answer is right 7 times in 10, another one 2 in 10
        c = generator.uniform(0.5, 1.0)
        right = generator.random() < (0.7 if generator.random() < c else 0.2)
        strategy.learn({"evidence": {"decided": c}}, float(right))
    for c in (0.5, 0.75, 1.0):
        assert strategy.chance(c) == pytest.approx(0.7 * c + 0.2 * (1.0 - c), abs=0.08)


@given(st.lists(st.tuples(st.floats(0.5, 1.0), st.floats(0.0, 1.0)), max_size=60), st.integers(1, 100))
def test_a_clearer_lead_is_never_worth_less(outcomes: list[tuple[float, float]], window: int) -> None:
    strategy = Vote(window=window)
    for c, quality in outcomes:
        strategy.learn({"evidence": {"decided": c}}, quality)
    found = [strategy.chance(c) for c in (0.5, 0.7, 0.9, 1.0)]
    assert found == sorted(found)
    assert found[0] >= 0.0
    assert found[-1] <= 1.0


def test_texts_that_cannot_be_compared_are_not_sampled_on() -> None:
    offer = [Option("model", 0.0, Cost(usd=1e-6))]
    request = {"options": offer, "prices": {"usd": 1.0}, "worth_usd": 1.0}
    texts = iter(range(100))
    answer = drive(
        Vote(kind="text").run(request, 0.0),
        lambda call: Reply("ok", {"text": f"Essay {next(texts)}: " + "word " * 100}, Cost(usd=1e-6)),
    )
    assert answer.details["calls"] == 2
    assert answer.confidence is None
    assert answer.content is not None
