"""The small types: resources, costs, options, states, decisions, strategies."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import (
    SECONDS,
    TOKENS,
    USD,
    AmountError,
    Answer,
    ApportionError,
    Call,
    Cost,
    Decision,
    Option,
    Plan,
    Reply,
    Resource,
    State,
    Strategy,
    UnknownResourceError,
    add_resource,
    drive,
    resource,
    resources,
)


def test_units_are_exact() -> None:
    assert USD.to_units(0.1) == 100_000_000_000
    assert USD.to_units(Decimal("0.000000000001")) == 1
    assert USD.to_units(123456789.123456) == 123456789123456000000
    assert USD.to_units(5) == 5 * 10**12
    assert SECONDS.to_units(1.5) == 1_500_000_000
    assert TOKENS.to_units(2.5) == 2
    assert USD.from_units(-1) == Decimal("-0.000000000001")
    assert TOKENS.from_units(10**30) == Decimal(10**30)
    assert str(USD) == "usd"


@given(st.integers(0, 10**30))
def test_units_come_back(units: int) -> None:
    assert USD.to_units(USD.from_units(units)) == units


@given(st.floats(0.0, 1e9))
def test_floats_round_to_the_nearest_unit(amount: float) -> None:
    assert abs(Decimal(repr(amount)) * 10**12 - USD.to_units(amount)) <= Decimal("0.75")


@pytest.mark.parametrize("amount", [-1, -0.5, math.nan, math.inf, Decimal("-1"), Decimal("inf")])
def test_impossible_amounts_are_refused(amount: float) -> None:
    with pytest.raises(AmountError, match="usd"):
        USD.to_units(amount)


def test_resources_can_be_added_once() -> None:
    known = resources()
    new = Resource("labels_for_tests", "label", 0, "labels bought")
    assert add_resource(new) is new
    assert add_resource(Resource("labels_for_tests", "label", 0, "labels bought")) is new
    assert resource("labels_for_tests") is new
    with pytest.raises(ApportionError, match="another meaning"):
        add_resource(Resource("labels_for_tests", "label", 3))
    with pytest.raises(ApportionError, match="name of letters"):
        add_resource(Resource("two words", "x", 0))
    with pytest.raises(UnknownResourceError, match="Did you mean 'joules'"):
        resource("joule")
    assert set(known) <= set(resources())


def test_unknown_stays_unknown() -> None:
    total = Cost(usd=1.0, tokens=5) + Cost(usd=2.0, joules=3.0)
    assert total == {"usd": 3.0}
    assert sum([Cost(usd=1.0), Cost(usd=2.0)]) == Cost(usd=3.0)
    assert Cost(usd=1.5) * 2 == 2 * Cost(usd=1.5) == Cost(usd=3.0)
    assert Cost(usd=1.0).get("tokens") is None
    assert Cost(usd=1.0).get("tokens", 0.0) == 0.0
    with pytest.raises(KeyError):
        Cost(usd=1.0)["tokens"]


def test_prices_and_limits() -> None:
    cost = Cost(usd=0.5, tokens=100)
    assert cost.at_prices({}) == 0.0
    assert cost.at_prices({"usd": 2.0, "tokens": 0.01}) == 2.0
    assert cost.at_prices({"joules": 0.0}) == 0.0
    assert cost.at_prices({"joules": 0.1}) is None
    assert Cost(usd=math.nan).at_prices({"usd": 1.0}) is None
    assert cost.within({"usd": 0.5})
    assert not cost.within({"usd": 0.4})
    assert not cost.within({"joules": 1e9})
    assert not Cost(usd=math.nan).within({"usd": 1.0})


def test_costs_compare_by_resource() -> None:
    assert Cost(usd=1, tokens=2) <= Cost(usd=1, tokens=3)
    assert Cost(usd=2) >= Cost(usd=1)
    assert not Cost(usd=1, tokens=4) <= Cost(usd=2, tokens=3)
    assert not Cost(usd=1) <= Cost(usd=2, tokens=3)
    assert Cost(usd=1) != Cost(usd=2)
    assert Cost(usd=1) != 1


def test_a_cost_is_a_mapping_that_survives() -> None:
    cost = Cost(usd=0.25, tokens=7)
    assert isinstance(cost, Mapping)
    assert dict(cost) == {"usd": 0.25, "tokens": 7}
    assert list(cost) == list(cost.keys()) == ["usd", "tokens"]
    assert list(cost.values()) == [0.25, 7]
    assert "usd" in cost
    assert len(cost) == 2
    assert pickle.loads(pickle.dumps(cost)) == copy.deepcopy(cost) == cost
    assert repr(cost) == "Cost(usd=0.25, tokens=7)"
    assert cost.check() is cost
    with pytest.raises(AmountError, match="tokens"):
        Cost(usd=1, tokens=-1).check()
    with pytest.raises(TypeError):
        hash(cost)
    with pytest.raises(TypeError):
        cost + 1  # type: ignore[operator]


def test_words_are_light_and_comparable() -> None:
    option = Option("a", 0.01, Cost(usd=0.001), load=0.5)
    state = State(1.0, [option])
    assert not hasattr(option, "__dict__")
    assert not hasattr(state, "__dict__")
    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state) == state
    assert State(1.0, []).request is not State(1.0, []).request


SMALL = Option("small", 0.010, Cost(usd=0.001, tokens=50))
LARGE = Option("large", 0.018, Cost(usd=0.005, tokens=50))


def test_a_decision_explains_itself() -> None:
    prices = {"usd": 1.0, "tokens": 0.0}
    decision = Decision("id", 1, "large", 1.0, prices, [SMALL, LARGE], (0.009, 0.013), "most value left")
    assert decision.explain() == (
        "Chose large of 2 options, most value left: $0.018 of value less $0.005 of cost (0.005 usd at 1) "
        "leaves $0.013. The alternatives would leave: small $0.009."
    )


def test_a_decision_explains_chances_and_what_is_unknown() -> None:
    free = Option("free", 0.01, Cost())
    offer = [free, SMALL, *(Option(f"more-{k}", -0.001 * k, Cost(usd=0.0)) for k in range(5))]
    worths = (None, 0.009, *(-0.001 * k for k in range(5)))
    decision = Decision("id", 0, "free", 0.25, {"usd": 1.0}, offer, worths, "drawn")
    assert decision.explain() == (
        "Chose free of 7 options with probability 0.25, drawn: $0.01 of value less an unknown amount of cost "
        "(an unknown amount of usd at 1) leaves an unknown amount. The alternatives would leave: "
        "small $0.009, more-0 $0, more-1 -$0.001, more-2 -$0.002 and 2 more."
    )


def test_a_decision_for_nothing_explains_itself() -> None:
    empty = Decision("id", None, None, 1.0, {}, [], (), "no option was offered")
    assert empty.explain() == "Chose nothing: no option was offered."
    refused = Decision("id", None, None, 1.0, {}, [SMALL, LARGE], (None, None), "all unknown")
    assert refused.explain() == "Chose nothing: all unknown. Offered: small, large."
    alone = Decision("id", 0, "small", 1.0, {}, [SMALL], (0.01,), "its turn")
    assert alone.explain() == "Chose small of 1 option, its turn: $0.01 of value leaves $0.01."


class Twice(Strategy):
    """Asks until two answers agree."""

    def __init__(self) -> None:
        self.start()

    def reset(self) -> None:
        """Nothing to forget."""

    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """See `Strategy`."""
        call = Call("model", request)
        first, second = yield [call, call]
        while first.content != second.content:
            first, (second,) = second, (yield [call])
        return Answer(second.content, why="two agreed")


def test_a_strategy_is_driven_by_a_list() -> None:
    replies = [Reply("ok", text, Cost(tokens=1)) for text in ("a", "b", "c", "c")]
    left = iter(replies)
    answer = drive(Twice().run({"prompt": "?"}, 0.0), lambda call: next(left))
    assert answer == Answer("c", why="two agreed")
    assert next(left, None) is None
