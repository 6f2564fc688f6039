"""How many samples are drawn, and of which model."""

from __future__ import annotations

from random import Random

import pytest

from apportion.core import Call, Cost, Option, ParameterError, Reply, drive
from apportion.reason import _curve
from apportion.reason.best_of_k import BestOfK, search


def model(quality: float | None = None, usd: float = 0.001, name: str = "model") -> Option:
    return Option(name, 0.0, Cost(usd=usd), quality=quality)


def samples(
    strategy: BestOfK, offer: list[Option], right: object, worth: float = 0.05, price: float = 1.0
) -> list[str]:
    """The calls made when ``right(call, i)`` says whether the i-th passes the check."""
    called: list[str] = []

    def call(one: Call) -> Reply:
        called.append(one.action)
        good = right(one, len(called))  # type: ignore[operator]
        return Reply("ok", {"text": "yes" if good else "no", "finish": "stop"}, Cost(usd=0.001))

    drive(strategy.run({"options": offer, "prices": {"usd": price}, "worth_usd": worth}, 0.0), call)
    return called


def never(call: Call, i: int) -> bool:
    return False


def test_it_stops_when_the_next_sample_is_not_worth_its_price() -> None:
    """The number drawn is the first k at which worth x P(right | k failures) is below the price."""
    for quality in (0.1, 0.3, 0.6):
        strategy = BestOfK(accept="yes", max_samples=200)
        rates = strategy.rates(model(quality))
        k = 0
        while 0.05 * _curve.mean(_curve.posterior(rates, 0.0, k)) > 0.001:
            k += 1
        assert len(samples(strategy, [model(quality)], never)) == max(1, k)


def test_it_stops_at_the_first_that_passes() -> None:
    assert len(samples(BestOfK(accept="yes", max_samples=50), [model(0.5)], lambda call, i: i == 4)) == 4


def test_a_higher_price_buys_fewer_samples_and_a_higher_worth_more() -> None:
    drawn = [
        len(samples(BestOfK(accept="yes", max_samples=500), [model(0.3)], never, price=p)) for p in (1, 3, 10)
    ]
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[0] > drawn[-1]
    drawn = [
        len(samples(BestOfK(accept="yes", max_samples=500), [model(0.3)], never, worth=w))
        for w in (0.01, 0.1)
    ]
    assert drawn[0] < drawn[1]


def test_weak_often_or_strong_once() -> None:
    """A weak model at a tenth of the price is asked first where its samples pass often, not where they rarely do."""
    strong = model(0.95, 0.01, "strong")
    assert samples(
        BestOfK(accept="yes"), [model(0.5, 0.001, "weak"), strong], lambda c, i: True, worth=1.0
    ) == ["weak"]
    assert samples(BestOfK(accept="yes"), [model(0.01, 0.001, "weak"), strong], lambda c, i: True) == [
        "strong"
    ]


def test_failures_of_one_model_lead_on_to_the_other() -> None:
    strategy = BestOfK(accept="yes", max_samples=20)
    called = samples(
        strategy,
        [model(0.5, 0.001, "weak"), model(0.8, 0.004, "strong")],
        lambda call, i: call.action == "strong",
        worth=0.5,
    )
    assert called[0] == "weak"
    assert called[-1] == "strong"


def test_it_learns_how_often_samples_pass() -> None:
    strategy, generator = BestOfK(accept="yes", max_samples=30), Random(6)
    for _ in range(400):
        hopeless = generator.random() < 0.5
        samples(
            strategy, [model()], lambda call, i, h=hopeless: not h and generator.random() < 0.7, worth=0.02
        )
    assert _curve.mean(strategy.rates(model())) == pytest.approx(0.35, abs=0.06)
    assert len(samples(strategy, [model()], never, worth=0.02)) < len(
        samples(BestOfK(accept="yes", max_samples=30), [model()], never, worth=0.02)
    )


def test_accepted_answers_that_turn_out_wrong_are_worth_less() -> None:
    strategy = BestOfK(accept="yes")
    for quality in (1.0, 0.0, 0.0, 0.0):
        strategy.learn({"evidence": {"accepted": True}}, quality)
    strategy.learn({"evidence": {"accepted": False}}, 1.0)
    assert strategy.trust() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("accept", "content", "passes"),
    [
        ("json", {"text": '{"a": 1}'}, True),
        ("json", {"text": "{a}"}, False),
        ("json", {"text": "", "tool_calls": True}, True),
        (r"\d{3}", {"text": "call 911"}, True),
        (r"\d{3}", {"text": "call 91"}, False),
        ("", {"text": "x"}, True),
        ("", {"text": "x", "accepted": False}, False),
        ("json", {"text": "1", "accepted": False}, False),
    ],
)
def test_what_passes(accept: str, content: dict[str, object], passes: bool) -> None:
    assert BestOfK(accept=accept).accepts(content) is passes


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ParameterError, match="regular expression"):
        BestOfK(accept="(")


def test_together_costs_more_and_takes_fewer_turns() -> None:
    turns = []

    def count(at_once: int) -> int:
        plan = BestOfK(accept="yes", max_samples=8, at_once=at_once).run(
            {"options": [model(0.3)], "prices": {"usd": 1.0}, "worth_usd": 1.0}, 0.0
        )
        calls, n = next(plan), 1
        try:
            while True:
                calls = plan.send([Reply("ok", {"text": "no"}, Cost(usd=0.001)) for _ in calls])
                n += 1
        except StopIteration:
            return n

    turns = [count(n) for n in (1, 2, 4)]
    assert turns == [8, 4, 2]


def test_the_order_of_search_is_the_best_of_all() -> None:
    """Weitzman's rule against dynamic programming over every order of calls of three models with known rates."""
    generator = Random(8)
    for _ in range(60):
        rates = [generator.uniform(0.05, 1.0) for _ in range(3)]
        prices = [generator.uniform(0.001, 0.3) for _ in range(3)]
        curves = [[1.0 - (1.0 - rate) ** k for k in range(201)] for rate in rates]
        best = 0.0
        for _ in range(200):
            best = max(
                0.0, *(rate - price + (1.0 - rate) * best for rate, price in zip(rates, prices, strict=True))
            )
        ours = []
        for first in range(3):
            calls, right = search(curves, prices, 1.0, first, 1, 200)
            ours.append(right - sum(n * price for n, price in zip(calls, prices, strict=True)))
        assert max(0.0, *ours) == pytest.approx(best, abs=1e-3)
