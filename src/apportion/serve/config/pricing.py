"""Which price an endpoint has, and where it is from."""

from __future__ import annotations

from typing import Literal, NamedTuple

from apportion.measure.price import FREE, MachinePrice, TokenPrice, hosted_price
from apportion.serve.config.schema import Config, Endpoint, TokenPrices

Source = Literal["configured", "free", "machine", "tables", "assumed", "unknown"]

ANTHROPIC_URL = "https://api.anthropic.com"


class Priced(NamedTuple):
    """A price and where it is from; ``price`` is None if and only if ``source`` is "unknown"."""

    price: TokenPrice | MachinePrice | None
    source: Source


def endpoint_price(config: Config, endpoint: Endpoint, model: str) -> Priced:
    """The price of ``model`` (its name upstream) at ``endpoint``.

    An unknown one is what `unknown_price` says to assume ("assumed"), else unknown.
    """
    if endpoint.usd_per_hour is not None:
        return Priced(MachinePrice.of(endpoint.usd_per_hour), "machine")
    if isinstance(endpoint.price, TokenPrices):
        return Priced(token_price(endpoint.price), "configured")
    if endpoint.price == "free" or (endpoint.price == "auto" and endpoint.kind in ("local", "replay")):
        return Priced(FREE, "free")
    if endpoint.price == "auto":
        base_url = ANTHROPIC_URL if endpoint.kind == "anthropic" else None
        found = hosted_price(model, endpoint.base_url or base_url)
        if found is not None:
            return Priced(found, "tables")
    if isinstance(config.unknown_price, TokenPrices):
        return Priced(token_price(config.unknown_price), "assumed")
    return Priced(None, "unknown")


Prices = dict[tuple[str, str], Priced]
"""The price of each (endpoint, model's name upstream) that a configuration uses."""


def all_prices(config: Config) -> Prices:
    """Every price that ``config`` needs. Slow the first time (the tables are loaded): not for the event loop."""
    found: Prices = {}
    for name, model in config.models.items():
        for target in model.endpoints:
            endpoint = config.endpoints[target.endpoint]
            upstream_name = target.model or endpoint.model or name
            found[target.endpoint, upstream_name] = endpoint_price(config, endpoint, upstream_name)
    return found


def token_price(table: TokenPrices) -> TokenPrice:
    """The prices of a configuration in pico-dollars per token."""
    return TokenPrice.of(
        input_usd_per_mtok=table.input_usd_per_mtok,
        output_usd_per_mtok=table.output_usd_per_mtok,
        cached_input_usd_per_mtok=table.cached_input_usd_per_mtok,
        cache_write_usd_per_mtok=table.cache_write_usd_per_mtok,
        cache_write_1h_usd_per_mtok=table.cache_write_1h_usd_per_mtok,
        request_usd=table.request_usd,
    )
