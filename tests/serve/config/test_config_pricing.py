"""Where the price of an endpoint is from."""

from __future__ import annotations

import pytest

from apportion.measure.price import FREE, MachinePrice, TokenPrice
from apportion.serve.config.pricing import endpoint_price
from apportion.serve.config.schema import Config, Endpoint, TokenPrices

TABLE = TokenPrices(input_usd_per_mtok=1, output_usd_per_mtok=2)
OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("endpoint", "source"),
    [
        (Endpoint(kind="openai", base_url=OPENAI), "tables"),
        (Endpoint(kind="openai", base_url="http://10.0.0.1/v1"), "unknown"),
        (Endpoint(kind="openai", base_url=OPENAI, price="unknown"), "unknown"),
        (Endpoint(kind="openai", base_url=OPENAI, price="free"), "free"),
        (Endpoint(kind="openai", base_url=OPENAI, price=TABLE), "configured"),
        (Endpoint(kind="openai", base_url=OPENAI, usd_per_hour=2.5), "machine"),
        (Endpoint(kind="local"), "free"),
        (Endpoint(kind="replay", price=TABLE), "configured"),
    ],
)
def test_sources(endpoint: Endpoint, source: str) -> None:
    found = endpoint_price(Config(), endpoint, "gpt-4o")
    assert found.source == source
    assert (found.price is None) == (source == "unknown")
    assumed = endpoint_price(Config(unknown_price=TABLE), endpoint, "gpt-4o")
    assert assumed.source == ("assumed" if source == "unknown" else source)


def test_prices() -> None:
    anthropic = endpoint_price(Config(), Endpoint(kind="anthropic"), "claude-sonnet-4-5")
    assert isinstance(anthropic.price, TokenPrice)
    assert anthropic.price.input == 3_000_000
    machine = endpoint_price(Config(), Endpoint(kind="openai", base_url=OPENAI, usd_per_hour=3.6), "x")
    assert isinstance(machine.price, MachinePrice)
    assert machine.price.units(1) == 10**9
    assert endpoint_price(Config(), Endpoint(kind="local"), "x").price is FREE
