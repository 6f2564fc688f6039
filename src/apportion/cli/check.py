"""``apportion check``: is a configuration valid, and what does it mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from apportion.cli.start import DEFAULT_FILE

if TYPE_CHECKING:
    from apportion.measure.price import MachinePrice, TokenPrice
    from apportion.serve.config.schema import Budget, Config, Model


@click.command("check")
@click.argument("file", type=click.Path(), default=DEFAULT_FILE)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def command(file: str, json_: bool) -> None:
    """Check a configuration FILE (default: ./apportion.yaml) and show what it means.

    Everything that is wrong is told at once. The exit status is 1 if anything is.
    """
    import msgspec

    from apportion.cli.show import as_json
    from apportion.serve.config.problems import ConfigError
    from apportion.serve.config.reader import load

    try:
        config = load(file)
    except ConfigError as error:
        if not json_:
            raise
        as_json({"file": file, "valid": False, "problems": msgspec.to_builtins(error.problems)})
        sys.exit(1)
    report = meaning(config)
    if json_:
        as_json({"file": file, "valid": True, **report})
    else:
        _show(file, report)


def meaning(config: Config) -> dict[str, Any]:
    """What a valid configuration means: models with their endpoints and prices, budgets, keys, and notes."""
    models = [_model(config, name, model) for name, model in config.models.items()]
    budgets = [_budget(budget) for budget in config.all_budgets()]
    return {
        "listen": f"{config.listen.host}:{config.listen.port}",
        "models": models,
        "budgets": budgets,
        "keys": [key.name for key in config.keys],
        "notes": list(_notes(config, models)),
    }


def _model(config: Config, name: str, model: Model) -> dict[str, Any]:
    from apportion.serve.config.pricing import endpoint_price

    endpoints = []
    for target in model.endpoints:
        endpoint = config.endpoints[target.endpoint]
        upstream = target.model or endpoint.model or name
        priced = endpoint_price(config, endpoint, upstream)
        endpoints.append(
            {
                "endpoint": target.endpoint,
                "kind": endpoint.kind,
                "model": endpoint.weights if endpoint.kind == "local" else upstream,
                "price": _price(priced.price),
                "price_source": priced.source,
                "quality": target.quality,
            }
        )
    return {
        "name": name,
        "policy": model.policy.name,
        "parameters": model.policy.parameters,
        "worth_usd": model.worth_usd,
        "endpoints": endpoints,
    }


def _price(price: TokenPrice | MachinePrice | None) -> dict[str, float] | None:
    """A price in dollars, as its unit is usually quoted."""
    from apportion.measure.price import MachinePrice

    if price is None:
        return None
    if isinstance(price, MachinePrice):
        return {"usd_per_hour": price.hour / 1e12}
    return {
        "input_usd_per_mtok": price.input / 1e6,
        "output_usd_per_mtok": price.output / 1e6,
        "cached_input_usd_per_mtok": price.cached_input / 1e6,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "name": budget.name,
        "resource": budget.resource,
        "amount": budget.amount,
        "window_s": budget.window,
        "refill_per_s": budget.refill_per_s,
        "scope": budget.scope,
        "hard": budget.hard,
    }


def _notes(config: Config, models: list[dict[str, Any]]) -> list[str]:
    """What is valid but may surprise."""
    notes = []
    unknown = sorted(
        {e["endpoint"] for model in models for e in model["endpoints"] if e["price_source"] == "unknown"}
    )
    if unknown:
        named = ", ".join(unknown)
        notes.append(f"The price of {named} is unknown; it is counted as such, never as zero.")
        if any(budget.resource == "usd" and budget.hard for budget in config.all_budgets()):
            notes.append(
                f"A hard dollar budget refuses requests to {named}. Give `price`, or say in `unknown_price` "
                "what to assume."
            )
    used = {target.endpoint for model in config.models.values() for target in model.endpoints}
    notes += [f"The endpoint {name} serves no model." for name in config.endpoints if name not in used]
    for name, model in config.models.items():
        unrated = [target.endpoint for target in model.endpoints if target.quality is None]
        if model.policy.name == "route/priced" and len(model.endpoints) > 1 and unrated:
            notes.append(f"{name}: route/priced knows no `quality` of {', '.join(unrated)}.")
    if not config.keys:
        notes.append("There are no keys: everybody on this machine may use the proxy.")
    return notes


def _show(file: str, report: dict[str, Any]) -> None:
    from apportion.cli.show import table
    from apportion.serve.config.units import show_duration

    rows = []
    for model in report["models"]:
        first = (model["name"], _policy(model))
        for endpoint in model["endpoints"]:
            quality = "" if endpoint["quality"] is None else f"{endpoint['quality']:g}"
            price = _price_words(endpoint["price"], endpoint["price_source"])
            rows.append((*first, endpoint["endpoint"], endpoint["kind"], endpoint["model"], price, quality))
            first = ("", "")
    table("Models", ("model", "policy", "endpoint", "kind", "model there", "price, USD", "quality"), rows)
    budgets = []
    for budget in report["budgets"]:
        every = f"refilled {budget['refill_per_s']:g}/s" if budget["refill_per_s"] else "for ever"
        every = f"every {show_duration(budget['window_s'])}" if budget["window_s"] else every
        amount = f"{budget['amount']:g} {budget['resource']}"
        budgets.append((budget["name"], amount, every, budget["scope"], "hard" if budget["hard"] else "soft"))
    table("Budgets", ("name", "amount", "window", "scope", ""), budgets)
    for note in report["notes"]:
        click.echo(f"{click.style('note:', fg='yellow')} {note}")
    click.echo(f"{click.style('ok:', fg='green')} {file} is valid; it listens on {report['listen']}.")


def _policy(model: dict[str, Any]) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in model["parameters"].items())
    return f"{model['policy']} ({parameters})" if parameters else str(model["policy"])


def _price_words(price: dict[str, float] | None, source: str) -> str:
    if price is None:
        return "unknown"
    if source == "free":
        return "free"
    if "usd_per_hour" in price:
        return f"{price['usd_per_hour']:g} per hour"
    words = f"{price['input_usd_per_mtok']:g} in, {price['output_usd_per_mtok']:g} out per million tokens"
    return f"{words} (assumed)" if source == "assumed" else words
