"""Prices: bounded whatever is fed, independent of units, and near the linear-programming optimum."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import (
    Account,
    AmountError,
    Budget,
    BudgetError,
    Cost,
    Option,
    ParameterError,
    Pricer,
    State,
)
from apportion.core.pricer import LIMIT, Pace, Update
from apportion.policy.route.priced import Priced

UPDATES: tuple[Update, ...] = ("additive", "multiplicative")
NAMES = ("tokens", "joules", "seconds")


class Stream:
    """Independent requests with one paid option, whose linear-programming optimum is known in closed form.

    The paid option costs one of a few vectors c with equal chances and is worth v, uniform on [0, 1]. At
    dual prices l with l.c in [0, 1], buying if v > l.c spends E[c (1 - l.c)] a request and is worth E[(1
    - (l.c)^2) / 2]. With budgets of exactly that where l > 0, and of more where l = 0, l is optimal by
    complementary slackness.
    """

    def __init__(self, costs: list[list[float]], duals: list[float], slack: float = 1.5) -> None:
        self.costs = np.array(costs)
        self.duals = np.array(duals)
        paid = self.costs @ self.duals
        assert (paid >= 0).all()
        assert (paid <= 1).all()
        spent = (self.costs * (1 - paid)[:, None]).mean(axis=0)
        self.rates = np.where(self.duals > 0, spent, spent * slack)
        self.optimum = ((1 - paid**2) / 2).mean()
        """Value a request of the fluid linear programme, which no policy exceeds in expectation."""

    def draw(self, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        return generator.random(length), self.costs[generator.integers(len(self.costs), size=length)]

    def bound(self, values: np.ndarray, costs: np.ndarray) -> float:
        """By weak duality, a bound on the value a request that anyone can reach on this very draw."""
        return float(self.rates @ self.duals + np.maximum(0.0, values - costs @ self.duals).mean())


ONE = Stream([[1.0], [0.5], [1.5]], [0.5])
THREE = Stream([[1.0, 0.2, 0.6], [0.2, 1.0, 0.3], [0.7, 0.7, 0.9], [0.4, 0.1, 0.5]], [0.45, 0.3, 0.0])


def serve(
    stream: Stream,
    length: int,
    seed: int,
    update: Update,
    pace: Pace = "adaptive",
    unit: float = 1.0,
    dollars: float = 1.0,
    second_s: float = 1.0,
) -> tuple[float, list[float]]:
    """Route one stream with `Priced` at the prices of a `Pricer`, hard budgets kept by accounts.

    Returns the gap to the bound as a share of the optimum and, by resource, the share of its budget spent.
    ``unit``, ``dollars`` and ``second_s`` change the units of cost, value and time.
    """
    values, costs = stream.draw(length, seed)
    names = NAMES[: len(stream.rates)]
    window_s = length * second_s
    budgets = [
        Budget(name, name, float(rate) * length * unit, window_s=window_s)
        for name, rate in zip(names, stream.rates, strict=True)
    ]
    pricer = Pricer(budgets, update=update, pace=pace, outside={}, worth_usd=dollars)
    policy = Priced()
    limits = [budget.amount for budget in budgets]
    left = [float(limit) for limit in limits]
    nothing = Option("nothing", 0.0, Cost.of(dict.fromkeys(names, 0.0)))
    bought = 0.0
    for step, (value, cost) in enumerate(zip(values.tolist(), (costs * unit).tolist(), strict=True)):
        now = step * second_s
        options = [nothing]
        if all(amount <= rest for amount, rest in zip(cost, left, strict=True)):
            options.append(Option("buy", value * dollars, Cost.of(dict(zip(names, cost, strict=True)))))
        decision = policy.decide(State(now, options, prices=pricer.prices(now)))
        if decision.action == "buy":
            chosen = options[1]
            pricer.spend(chosen.cost, now, chosen.value)
            left = [rest - amount for amount, rest in zip(cost, left, strict=True)]
            bought += value
    gap = (stream.bound(values, costs) - bought / length) / stream.optimum
    return gap, [1.0 - rest / float(limit) for rest, limit in zip(left, limits, strict=True)]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("pace", ["adaptive", "even"])
@pytest.mark.parametrize("stream", [ONE, THREE], ids=["one", "three"])
def test_within_five_percent_of_the_optimum_and_on_budget(stream: Stream, update: Update, pace: Pace) -> None:
    gap, spent = serve(stream, 10_000, seed=1, update=update, pace=pace)
    assert 0.0 <= gap < 0.05
    for share, dual in zip(spent, stream.duals, strict=True):
        assert share <= 1.0
        assert share > 0.97 or dual == 0.0


@pytest.mark.parametrize(("update", "batch"), [("additive", 100), ("multiplicative", 20)])
@pytest.mark.parametrize("stream", [ONE, THREE], ids=["one", "three"])
def test_batches_of_spending_are_enough(stream: Stream, update: Update, batch: int) -> None:
    """The proxy sums spendings and looks at prices now and then, not at every request."""
    length = 10_000
    values, costs = stream.draw(length, seed=5)
    names = NAMES[: len(stream.rates)]
    limits = stream.rates * length
    budgets = [
        Budget(n, n, float(limit), window_s=float(length)) for n, limit in zip(names, limits, strict=True)
    ]
    pricer = Pricer(budgets, update=update, outside={})
    spent, waiting, bought, value_waiting = np.zeros(len(names)), np.zeros(len(names)), 0.0, 0.0
    prices = np.zeros(len(names))
    for now in range(length):
        if now % batch == 0:
            pricer.spend(Cost(**dict(zip(names, waiting.tolist(), strict=True))), float(now), value_waiting)
            waiting[:], value_waiting = 0.0, 0.0
            prices = np.array([pricer.prices(float(now))[name] for name in names])
        if values[now] > costs[now] @ prices and (spent + costs[now] <= limits).all():
            spent += costs[now]
            waiting += costs[now]
            bought += values[now]
            value_waiting += values[now]
    assert (stream.bound(values, costs) - bought / length) / stream.optimum < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("stream", [ONE, THREE], ids=["one", "three"])
def test_the_gap_shrinks_like_one_over_the_root_of_time(stream: Stream, update: Update) -> None:
    lengths = [316, 1000, 3162, 10_000, 31_623]
    seeds = [12, 8, 6, 4, 3]
    gaps = [
        np.mean([serve(stream, length, seed, update)[0] for seed in range(count)])
        for length, count in zip(lengths, seeds, strict=True)
    ]
    slope = np.polyfit(np.log(lengths), np.log(gaps), 1)[0]
    assert slope <= -0.45, gaps


@pytest.mark.parametrize("update", UPDATES)
def test_the_learned_price_is_the_dual(update: Update) -> None:
    """Averaged over the second half of the run."""
    values, costs = ONE.draw(20_000, seed=2)
    pricer = Pricer(
        [Budget("b", "tokens", ONE.rates[0] * 20_000, window_s=20_000.0)], update=update, outside={}
    )
    seen = []
    for now, (value, cost) in enumerate(zip(values.tolist(), costs[:, 0].tolist(), strict=True)):
        price = pricer.prices(float(now))["tokens"]
        if value > price * cost:
            pricer.spend(Cost(tokens=cost), float(now), value)
        if now >= 10_000:
            seen.append(price)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "units", [{"unit": 2.0**20}, {"unit": 2.0**-20}, {"dollars": 2.0**-12}, {"second_s": 2.0**-10}], ids=str
)
def test_units_do_not_matter(update: Update, units: dict[str, float]) -> None:
    """Powers of two scale floats exactly, so that even the rounding is the same."""
    plain = serve(THREE, 1500, 3, update)
    scaled = serve(THREE, 1500, 3, update, **units)
    assert scaled[0] == pytest.approx(plain[0], abs=1e-6)
    assert scaled[1] == pytest.approx(plain[1], abs=1e-6)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("pace", ["adaptive", "even"])
def test_a_refilled_budget_is_never_negative_and_well_spent(update: Update, pace: Pace) -> None:
    """Poisson demand for about twice the refill: the balance stays at zero or above, and the value near
    the best.
    """
    generator = np.random.default_rng(4)
    budget = Budget("bucket", "tokens", 200, refill_per_s=1.0)
    account = Account(budget)
    pricer = Pricer([budget], update=update, pace=pace, outside={})
    policy = Priced()
    nothing = Option("nothing", 0.0, Cost(tokens=0.0))
    now = bought = 0.0
    horizon = 20_000.0
    while now < horizon:
        now += generator.exponential(0.5)
        cost = int(generator.integers(1, 4))
        value = generator.random() * cost
        options = [nothing]
        if account.reserve(cost, now):
            options.append(Option("buy", value, Cost(tokens=float(cost))))
        decision = policy.decide(State(now, options, prices=pricer.prices(now)))
        assert account.balance_units(now) >= 0
        if decision.action == "buy":
            account.settle(cost, cost, now)
            pricer.spend(Cost(tokens=float(cost)), now, value)
            bought += value
        elif len(options) > 1:
            account.release(cost, now)
        assert account.available_units(now) >= 0
    # Demand is 4 tokens a second, each worth uniform on [0, 1]: the best quarter averages 7/8.
    best = (1.0 + 200 / horizon) * horizon * 7 / 8
    assert bought > 0.95 * best


def test_idle_time_lowers_prices_to_the_outside_price() -> None:
    pricer = Pricer([Budget("b", "usd", 100.0, window_s=1000.0)])
    for second in range(100):
        pricer.spend(Cost(usd=0.5), float(second), 1.0)
    dear = pricer.prices(100.0)["usd"]
    assert dear > 1.0
    later = [pricer.prices(100.0 + wait)["usd"] for wait in (0.0, 10.0, 100.0, 500.0)]
    assert later == sorted(later, reverse=True)
    assert pricer.prices(5000.0)["usd"] == 1.0


def test_reading_prices_changes_nothing() -> None:
    quiet, watched = (Pricer([Budget("b", "tokens", 1000, window_s=100.0)]) for _ in range(2))
    for step in range(200):
        now = step * 0.9
        for between in np.linspace(now, now + 0.8, 5):
            watched.prices(float(between))
        for pricer in (quiet, watched):
            pricer.spend(Cost(tokens=20), now, 1.0)
    assert quiet.save() == watched.save()


def test_a_returned_price_list_stays_as_it_was() -> None:
    pricer = Pricer([Budget("b", "tokens", 10, window_s=10.0)])
    first = pricer.prices(0.0)
    kept = dict(first)
    assert pricer.prices(0.0) is first
    for _ in range(20):
        pricer.spend(Cost(tokens=5), 0.0, 1.0)
    assert first == kept
    assert pricer.prices(0.0)["tokens"] > 0.0


def test_budgets_on_one_resource_add_up_and_are_explained() -> None:
    pricer = Pricer(
        [
            Budget("day", "usd", 10, window_s=86400.0),
            Budget("bucket", "usd", 1, refill_per_s=0.001),
            Budget("ever", "usd", 1000),
            Budget("none", "joules", 0, window_s=60.0),
        ],
        outside={"usd": 1.0, "seconds": 0.01},
    )
    for second in range(50):
        pricer.spend(Cost(usd=0.01), float(second), 0.02)
    prices = pricer.prices(50.0)
    assert prices["usd"] > 1.0
    assert prices["seconds"] == 0.01
    assert prices["joules"] == LIMIT
    assert pricer.shadow["usd"] == pytest.approx(prices["usd"] - 1.0, rel=0.05)
    text = pricer.explain(50.0)
    assert "usd: " in text
    assert "5% spent with 0% of its window gone" in text
    assert "for budget 'bucket' (its bucket is" in text
    assert "it only limits" in text
    assert "its amount is zero" in text


def test_a_budget_that_does_not_bind_adds_nothing() -> None:
    for update in UPDATES:
        pricer = Pricer([Budget("b", "usd", 1000.0, window_s=1000.0)], update=update)
        for second in range(900):
            pricer.spend(Cost(usd=0.1), float(second), 1.0)
            assert pricer.prices(second + 0.999)["usd"] < 1.5
        assert pricer.prices(900.0)["usd"] == pytest.approx(1.0)


@pytest.mark.parametrize("update", UPDATES)
def test_a_price_does_not_wind_up(update: Update) -> None:
    """After fifty soft budgets were spent in one window, slow traffic brings the price back in a few
    windows.
    """
    pricer = Pricer([Budget("b", "tokens", 100, window_s=100.0, hard=False)], update=update)
    for step in range(500):
        pricer.spend(Cost(tokens=10), step * 0.1, 1.0)
    assert 0.1 < pricer.shadow["tokens"] <= 4 * 0.1
    for step in range(200, 800, 20):
        pricer.spend(Cost(tokens=10), float(step), 1.0)
    assert pricer.prices(800.0)["tokens"] < 0.01


@pytest.mark.parametrize("update", UPDATES)
def test_continues_identically_after_json(update: Update) -> None:
    budgets = [Budget("w", "tokens", 100, window_s=50.0), Budget("r", "usd", 1, refill_per_s=0.1)]
    pricer, other = (Pricer(budgets, update=update) for _ in range(2))
    for step in range(30):
        pricer.spend(Cost(tokens=7, usd=0.2), step * 1.7, 0.3)
    other.load(json.loads(json.dumps(pricer.save(), allow_nan=False)))
    for step in range(30, 90):
        now = step * 1.7
        assert other.prices(now) == pricer.prices(now)
        for one in (pricer, other):
            one.spend(Cost(tokens=7, usd=0.2), now, 0.3)
    fresh = Pricer(budgets, update=update)
    other.load(json.loads(json.dumps(fresh.save(), allow_nan=False)))
    assert other.prices(0.0) == fresh.prices(0.0)


amounts = st.one_of(
    st.floats(0.0, 1e308),
    st.sampled_from([0.0, 5e-324, 1e-160, 1e-30, 1.0, 1e30, 1.7e308]),
    st.integers(0, 10**300),
)
events = st.lists(
    st.tuples(amounts, st.floats(-1e15, 1e15), st.one_of(st.none(), st.floats(-1e308, 1e308))), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(
    update=st.sampled_from(UPDATES),
    pace=st.sampled_from(["adaptive", "even"]),
    amount=st.one_of(st.sampled_from([0.0, 1e-300, 1e-12, 1.0, 1e18, 1e300]), st.floats(1e-6, 1e12)),
    window_s=st.one_of(st.none(), st.floats(1e-3, 1e12)),
    refill=st.one_of(st.none(), st.floats(0.0, 1e300)),
    step=st.sampled_from([1e-6, 0.5, 100.0]),
    course=events,
)
def test_prices_are_finite_never_negative_and_capped_whatever_is_fed(
    update: Update,
    pace: Pace,
    amount: float,
    window_s: float | None,
    refill: float | None,
    step: float,
    course: list[tuple[float, float, float | None]],
) -> None:
    budget = Budget("b", "tokens", amount, window_s, None if window_s else refill)
    pricer = Pricer([budget], update=update, pace=pace, step=step)
    for spent, now, value in course:
        pricer.spend(Cost(tokens=spent), now, value)
        for wait in (0.0, 1.0, 1e6):
            price = pricer.prices(min(now + wait, 1e15))["tokens"]
            assert 0.0 <= price <= LIMIT
        assert 0.0 <= pricer.shadow["tokens"] <= LIMIT
        json.dumps(pricer.save(), allow_nan=False)
        assert pricer.explain(now)


@pytest.mark.parametrize("amount", [math.nan, math.inf, -1.0, 10**400, "5"])
def test_an_impossible_cost_is_refused_by_name_and_changes_nothing(amount: float) -> None:
    pricer = Pricer([Budget("b", "tokens", 100, window_s=60.0), Budget("c", "usd", 100, window_s=60.0)])
    pricer.spend(Cost(usd=1, tokens=5), 0.0)
    before = pricer.save()
    with pytest.raises(AmountError, match="tokens") as caught:
        pricer.spend(Cost(usd=1, tokens=amount), 1.0)
    assert caught.value.field == "tokens"
    with pytest.raises(AmountError, match="value"):
        pricer.spend(Cost(usd=1), 1.0, math.nan)
    with pytest.raises(AmountError, match="now"):
        pricer.spend(Cost(usd=1), math.nan)
    with pytest.raises(AmountError, match="now"):
        pricer.prices(math.inf)
    assert pricer.save() == before


def test_an_unknown_cost_moves_no_price_and_is_counted() -> None:
    pricer = Pricer([Budget("b", "tokens", 1, window_s=60.0)])
    pricer.spend(Cost(usd=5), 1.0)
    assert pricer.shadow["tokens"] == 0.0
    assert pricer.unknown_spendings == 1


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ParameterError, match="The 'step' parameter of Pricer must be a number in"):
        Pricer(step=0.0)
    with pytest.raises(
        ParameterError, match="'update' parameter of Pricer must be 'additive' or 'multiplicative'"
    ):
        Pricer(update="other")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="outside"):
        Pricer(outside={"usd": -1.0})
    with pytest.raises(BudgetError, match="same name"):
        Pricer([Budget("b", "usd", 1), Budget("b", "tokens", 1)])


def _course(budget: Budget) -> list[tuple[float, str]]:
    """Prices and their reasons over three days of spending at random."""
    pricer = Pricer([budget])
    random = np.random.default_rng(3)
    found = []
    for now in 1.7e9 + np.sort(random.random(200)) * 3 * 86400.0:
        pricer.spend(Cost(tokens=float(random.integers(1, 200))), float(now), float(random.random()))
        found.append((pricer.prices(float(now))["tokens"], pricer.explain(float(now))))
    return found


def test_a_day_of_the_calendar_prices_like_any_day() -> None:
    fixed = _course(Budget("b", "tokens", 4000, window_s=86400.0))
    assert fixed == _course(Budget("b", "tokens", 4000, calendar="day"))
    assert any(price > 0.0 for price, _ in fixed)


def test_a_sliding_window_prices_like_a_bucket_that_gains_as_much() -> None:
    sliding = _course(Budget("b", "tokens", 4000, window_s=86400.0, sliding=True))
    bucket = _course(Budget("b", "tokens", 4000, refill_per_s=4000 / 86400.0))
    assert [price for price, _ in sliding] == pytest.approx([price for price, _ in bucket])
    assert "of its sliding window is left" in sliding[-1][1]


def test_a_month_says_how_much_of_it_is_gone() -> None:
    pricer = Pricer([Budget("b", "usd", 100, calendar="month")])
    half = 1_700_000_000.0  # 14 November 2023, 22:13 UTC: 13.93 of 30 days
    pricer.spend(Cost(usd=25.0), half, 1.0)
    assert "25% spent with 46% of its window gone" in pricer.explain(half)
