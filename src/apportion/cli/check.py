"""``apportion check``: is a configuration valid, and what does it mean."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apportion.cli.start import DEFAULT_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from apportion.measure.price import MachinePrice, TokenPrice
    from apportion.serve.config.schema import Budget, Config, Key, Model, PolicyChoice, Team


_BOOKS = ("url", "redis", "durability", "when_lost", "journal")


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
    report = meaning(config, time.time(), Path(file).parent)
    if json_:
        as_json({"file": file, "valid": True, **report})
    else:
        _show(file, report)


def meaning(config: Config, now: float, beside: Path | None = None) -> dict[str, Any]:
    """What a valid configuration means: models with their endpoints and prices, who may spend what, where the books
    are, and notes. ``now`` (Unix seconds) tells which keys have expired; files of profiles lie ``beside`` it.
    """
    models = [_model(config, name, model) for name, model in config.models.items()]
    return {
        "listen": f"{config.listen.host}:{config.listen.port}",
        "organisation": config.organisation,
        "models": models,
        "decisions": list(_decisions(config)),
        "budgets": [_budget(budget) for budget in config.all_budgets()],
        "limits": [
            *(_limits(f"team:{name}", team) for name, team in config.teams.items()),
            *(_limits(f"key:{key.name}", key) for key in config.keys),
        ],
        "teams": list(config.teams),
        "keys": [key.name for key in config.keys],
        "ledger": _ledger(config),
        "notes": [
            *_notes(config, models),
            *_unread(config),
            *_unprofiled(config, beside),
            *_people_notes(config, now),
        ],
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


def _decisions(config: Config) -> Iterator[dict[str, str]]:
    """What is decided besides the endpoint: where, by what."""

    def said(where: str, setting: str, choice: PolicyChoice | str | None) -> Iterator[dict[str, str]]:
        if choice is not None:
            name = choice if isinstance(choice, str) else _named(choice.name, choice.parameters)
            yield {"of": where, "setting": setting, "value": name}

    for name, model in config.models.items():
        if model.rollout < 1.0:
            yield from said(name, "rollout", f"{model.rollout:.0%}, else {model.baseline.name}")
        for setting in ("shadow", "admit", "strategy", "guard"):
            yield from said(name, setting, getattr(model, setting))
        for setting in ("quality", "length"):
            yield from said(name, f"predict.{setting}", getattr(model.predict, setting))
        checks = [check.kind for check in model.feedback.checks]
        yield from said(name, "feedback.checks", ", ".join(checks) or None)
        if model.feedback.judge is not None:
            judge = model.feedback.judge
            yield from said(name, "feedback.judge", f"{judge.model}, {judge.share:.0%} of the answers")
        if model.examples is not None:
            yield from said(name, "examples", f"{model.examples.teacher} for {model.examples.student}")
    for name, endpoint in config.endpoints.items():
        if endpoint.queue is not None:
            yield from said(name, "queue", endpoint.queue.policy)
    if config.text.encoder != "off":
        yield from said("all", "text.encoder", config.text.encoder)
    if config.cache.enabled:
        kinds = "exact and semantic" if config.cache.semantic else "exact"
        yield from said("all", "cache", f"{kinds}, {config.cache.eviction}")


def _unread(config: Config) -> Iterator[str]:
    """What was turned on and cannot do what it is for."""
    from apportion.core import catalogue
    from apportion.core.policy import Policy

    if config.cache.enabled and config.cache.semantic and config.text.encoder == "off":
        yield "The cache is semantic, but nothing tells what texts mean: set `text.encoder: minilm`."
    for name, model in config.models.items():
        found = catalogue.find(model.policy.name)
        learns = issubclass(found, Policy) and found.learns
        outcomes = model.feedback.checks or model.feedback.judge or model.feedback.retry_s
        if learns and not outcomes:
            yield (
                f"The policy of model {name} learns from how good answers were, and only `POST /v1/feedback` "
                "says so (no checks, no judge, `feedback`)."
            )


def _unprofiled(config: Config, beside: Path | None) -> Iterator[str]:
    """Which endpoints `apportion replay` will not know how to model although the file says how."""
    if all(endpoint.profile is None for endpoint in config.endpoints.values()):
        return
    from apportion.simulate.profile import ProfileError
    from apportion.simulate.profiles import load

    for name, endpoint in config.endpoints.items():
        if endpoint.profile is not None:
            try:
                load(endpoint.profile, beside=beside)
            except ProfileError as error:
                yield f"The profile of endpoint {name} cannot be read: {error}"


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
    dated = isinstance(budget.window, str)
    return {
        "name": budget.name,
        "resource": budget.resource,
        "amount": budget.amount,
        "window_s": None if dated else budget.window,
        "calendar": budget.window if dated else None,
        "time_zone": budget.time_zone if dated else None,
        "sliding": budget.sliding,
        "refill_per_s": budget.refill_per_s,
        "scope": budget.scope,
        "hard": budget.hard,
        "overdraft": budget.overdraft,
    }


def _limits(scope: str, owner: Key | Team) -> dict[str, Any]:
    limits = owner.limits
    return {
        "scope": scope,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "parallel": limits.parallel,
    }


def _ledger(config: Config) -> dict[str, Any]:
    """Where the books are, without passwords; looking makes no directory."""
    from apportion.serve.config import state

    ledger = config.ledger
    url = state.default_url(create=False) if ledger.url is None else ledger.url.reveal()
    return {
        "url": state.shown(url),
        "redis": None if ledger.redis is None else state.shown(ledger.redis.reveal()),
        "durability": ledger.durability,
        "when_lost": ledger.when_lost,
        "lease_s": ledger.lease_s,
        "commit_s": ledger.commit_s,
        "journal": None if url == "memory" else ledger.journal or str(state.location() / "journal"),
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
    return notes


def _people_notes(config: Config, now: float) -> Iterator[str]:
    """What is valid about keys, end users and books, but may surprise."""
    from apportion.serve.config.units import show_moment

    if not config.auth.required:
        yield "No key is needed: everybody on this machine may use the proxy."
    elif not config.keys:
        yield "There are no keys here: requests need one that is made with `apportion keys create`."
    for key in config.keys:
        if key.expires is not None and key.expires <= now:
            yield f"The key {key.name} has expired ({show_moment(key.expires)})."
        team = config.teams.get(key.team or "")
        for model, needed in config.models.items():
            places = {target.endpoint for target in needed.endpoints}
            owners = [owner for owner in (key, team) if owner is not None]
            if any(owner.models is not None and model not in owner.models for owner in owners):
                continue
            for owner in owners:
                places &= places if owner.endpoints is None else set(owner.endpoints)
            if not places:
                yield f"The key {key.name} may use the model {model}, but no endpoint that serves it."
    kinds = {budget.scope.partition(":")[0] for budget in config.all_budgets()}
    for kind, name in (("user", "end user"), ("session", "session")):
        if kind in kinds:
            yield f"A request that names no {name} falls under no budget of scope `{kind}`."
    if config.ledger.url is not None and config.ledger.url.reveal() == "memory":
        yield "The books are in memory: every start begins all budgets anew."


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
    decisions = [(d["of"], d["setting"], d["value"]) for d in report["decisions"]]
    table("Decisions", ("of", "setting", "by"), decisions)
    budgets = [
        (b["name"], f"{b['amount']:,.12g} {b['resource']}", _window(b), b["scope"], _strictness(b))
        for b in report["budgets"]
    ]
    table("Budgets", ("name", "amount", "window", "scope", ""), budgets)
    rates = ("requests_per_minute", "tokens_per_minute", "parallel")
    limits = [
        (entry["scope"], *("" if entry[name] is None else f"{entry[name]}" for name in rates))
        for entry in report["limits"]
        if any(entry[name] is not None for name in rates)
    ]
    table("Limits", ("of", "requests a minute", "tokens a minute", "parallel"), limits)
    ledger = report["ledger"]
    books = [(name, str(ledger[name])) for name in _BOOKS if ledger[name] is not None]
    table("Books", ("setting", "value"), [*books, ("lease", show_duration(ledger["lease_s"]))])
    for note in report["notes"]:
        click.echo(f"{click.style('note:', fg='yellow')} {note}")
    click.echo(f"{click.style('ok:', fg='green')} {file} is valid; it listens on {report['listen']}.")


def _window(budget: dict[str, Any]) -> str:
    from apportion.serve.config.units import show_duration

    if budget["refill_per_s"]:
        return f"refilled {budget['refill_per_s']:g}/s"
    if budget["calendar"]:
        return f"each {budget['calendar']} ({budget['time_zone']})"
    if budget["window_s"]:
        return f"{'any' if budget['sliding'] else 'every'} {show_duration(budget['window_s'])}"
    return "" if budget["scope"] == "request" or budget["resource"] == "parallel" else "for ever"


def _strictness(budget: dict[str, Any]) -> str:
    if budget["overdraft"]:
        return f"hard, overdraft {budget['overdraft']:g}"
    return "hard" if budget["hard"] else "soft"


def _policy(model: dict[str, Any]) -> str:
    return _named(model["policy"], model["parameters"])


def _named(name: str, parameters: Mapping[str, object]) -> str:
    """A method with its parameters."""
    said = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name} ({said})" if said else name


def _price_words(price: dict[str, float] | None, source: str) -> str:
    if price is None:
        return "unknown"
    if source == "free":
        return "free"
    if "usd_per_hour" in price:
        return f"{price['usd_per_hour']:g} per hour"
    words = f"{price['input_usd_per_mtok']:g} in, {price['output_usd_per_mtok']:g} out per million tokens"
    return f"{words} (assumed)" if source == "assumed" else words
