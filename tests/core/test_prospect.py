"""What a route is predicted to cost: by its table, its machine's time, its speed, and what it did before."""

from __future__ import annotations

import pytest

from apportion.core import Cost, Estimate, Features, LengthPredictor, Option, Quantiles
from apportion.core.prospect import (
    Prospect,
    TokenUsd,
    foresee,
    heeded,
    options,
    output_tokens,
    usual_output_tokens,
    usual_server_s,
    waits_s,
)
from apportion.measure.energy import Power
from apportion.measure.price import MachinePrice, TokenPrice

TABLE = TokenUsd(0.001, 1e-6, 1e-7, 4e-6)


def test_priced_by_the_token() -> None:
    found = Prospect("a", token_usd=TABLE, quality=0.5).option(1000, 200, 2.0, None, 400)
    assert found.value == 1.0
    assert found.cost["usd"] == pytest.approx(0.001 + 1e-3 - 400 * 9e-7 + 8e-4)
    assert found.cost["tokens"] == 1200
    assert "server_seconds" not in found.cost
    better = Prospect("a", token_usd=TABLE, quality=0.5).option(1000, 200, 2.0, Estimate(0.9, 0.1))
    assert (better.value, better.quality, better.quality_sd) == (1.8, 0.9, 0.1)


def test_priced_by_the_machine() -> None:
    power = Power.of(500, 360)
    machine = MachinePrice.of(3.6)
    route = Prospect("a", machine_usd_per_s=machine.usd_per_s, power=power)
    assert "usd" not in route.option(10, 10, None).cost
    cost = route.option(10, 10, None, server_s=2.0, load=0.5).cost
    assert cost["usd"] == pytest.approx(0.002)
    assert (cost["joules"], cost["gco2"]) == (pytest.approx(1000.0), pytest.approx(0.1))
    assert route.work(2.0) == (2 * 10**9, power.joules_units(2 * 10**9), power.gco2_units(2 * 10**9))


def test_a_known_speed_goes_before_predictions() -> None:
    route = Prospect("a", ttft_s=0.5, output_tokens_per_s=50)
    cost = route.option(10, 100, None, waits_s=9.0).cost
    assert (cost["seconds"], cost["server_seconds"]) == (2.5, 2.5)
    assert Prospect("a").option(10, 100, None, waits_s=9.0).cost["seconds"] == 9.0


def test_means_follow_what_was_seen() -> None:
    route = Prospect("a")
    route.measured(2.0, 100)
    route.measured(4.0, 0)
    assert route.mean_server_s == pytest.approx(2.2)
    assert route.server_s_per_token == pytest.approx(0.02)
    route.produced(356, 256.0)
    assert route.mean_output_tokens == pytest.approx(266.0)
    route.found_cached(100, 0)
    assert route.cache_rate == pytest.approx(0.9)
    other = Prospect("b")
    assert usual_server_s((route, other)) == route.mean_server_s
    assert usual_server_s((other,)) is None
    assert usual_output_tokens((other,), 256.0) == 256.0
    assert output_tokens((route, other), None, None, expected=1.0, of_model=(route, other)) == [266.0, 266.0]
    assert output_tokens((other,), None, None, expected=300.0, factor=2.0, cap=500) == [500.0]


def test_options_of_a_conversation_count_on_the_cache() -> None:
    one, two = Prospect("one", token_usd=TABLE), Prospect("two", token_usd=TABLE)
    found = options(
        (one, two),
        (0.5, None),
        tokens_in=1000.0,
        lengths=[10.0, 20.0],
        answers=2,
        worth_usd=None,
        estimates=(),
        waits=[None, None],
        usual_s=3.0,
        turn=("one", 1000),
    )
    assert found[0].cost["usd"] == pytest.approx(0.001 + 1e-4 + 8e-5)
    assert found[1].cost["usd"] == pytest.approx(0.001 + 1e-3 + 16e-5)
    assert [option.load for option in found] == [0.5, None]
    assert [option.cost["server_seconds"] for option in found] == [3.0, 3.0]


def test_a_resource_nobody_knows_has_no_say() -> None:
    offered = [Option("a", 0.0, Cost(usd=1.0)), Option("b", 0.0, Cost(usd=1.0, joules=2.0))]
    assert heeded({"usd": 1.0, "joules": 2.0, "gco2": 3.0}, offered) == {"usd": 1.0, "joules": 2.0}
    prices = {"usd": 1.0, "gco2": 0.0}
    assert heeded(prices, offered) is prices


class Uniform(LengthPredictor):
    """Answers are equally likely of any length up to 400 tokens."""

    def predict(self, features: Features, model: str) -> Quantiles | None:
        return Quantiles(200.0, 200.0, 360.0)

    def chance_longer(self, features: Features, model: str, tokens: float) -> float | None:
        return None if model == "dark" else max(0.0, 1.0 - tokens / 400.0)

    def learn(self, features: Features, model: str, output_tokens: float, *, censored: bool = False) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError


def test_who_waits_is_foreseen() -> None:
    route, features = Prospect("a"), Features((1.0,))
    route.measured(1.0, 100)

    def facts(cap: int | None, route: Prospect = route) -> dict[str, object]:
        found: dict[str, object] = {}
        foresee(found, route, Uniform(), features, cap=cap, mean_tokens=200.0)
        return found

    assert facts(None) == {"p_long": 0.5, "expected_s": pytest.approx(2.0)}
    assert facts(200) == {
        "p_long": 0.0,
        "expected_s": pytest.approx(1.5),
    }  # half reach the cap: (100 + 200) / 2
    assert facts(400)["expected_s"] == pytest.approx(2.0)
    dark = Prospect("dark")
    dark.measured(1.0, 100)
    assert facts(100, dark) == {"p_long": 0.0}
    nothing: dict[str, object] = {}
    foresee(nothing, route, None, features, cap=None, mean_tokens=1.0)
    assert not nothing


class Half:
    """A latency of half a second, where the route is known."""

    def predict(self, action: str, load: float, tokens_in: float, tokens_out: float) -> object:
        quantiles = Quantiles(0.5 + load, 0.5, 0.5)
        return None if action == "new" else (quantiles, quantiles)


def test_a_route_nobody_has_seen_waits_like_the_others() -> None:
    routes = (Prospect("a"), Prospect("new"), Prospect("b"))
    found = waits_s(routes, Half(), (0.0, None, 1.0), 1.0, (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert found == [0.5, 1.0, 1.5]
    assert waits_s(routes, None, (), 1.0, ()) == [None, None, None]


def test_tables_give_the_same_dollars() -> None:
    price = TokenPrice.of(
        input_usd_per_mtok=1, output_usd_per_mtok=4, cached_input_usd_per_mtok=0.1, request_usd=0.001
    )
    assert price.usd() == pytest.approx(TABLE)
