"""A configuration of the proxy as a scenario: the same endpoints, models, keys and budgets, with profiles for speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apportion.core.budget import Budget
from apportion.core.method import Method
from apportion.serve import artefact
from apportion.serve.cache.category import Categories
from apportion.serve.config import schema
from apportion.serve.config.budgets import budget_of, limits_of
from apportion.serve.config.pricing import Prices, all_prices
from apportion.simulate import profiles, scenario
from apportion.simulate.profile import Profile
from apportion.simulate.scenario import Choice, no_profile

if TYPE_CHECKING:
    from apportion.measure.price import MachinePrice, TokenPrice

_LOCAL_SLOTS: Final = 4
_EMBEDDED_OVERHEAD_BYTES: Final = 1024 + 400
"""What an answer takes in the cache besides its text: the proxy's own overhead, and the JSON round the text."""


def scenario_of(
    config: schema.Config,
    *,
    beside: Path | None = None,
    profiles_of: Mapping[str, Profile] | None = None,
    name: str = "",
) -> scenario.Scenario:
    """What `apportion replay` simulates for ``config``.

    ``profile`` of an endpoint is looked up beside the configuration's folder; ``profiles_of`` goes before that, by
    endpoint. Raises `ScenarioError` for an endpoint that answers some model and has no profile.
    """
    prices = all_prices(config)
    used = {target.endpoint for model in config.models.values() for target in model.endpoints}
    given = profiles_of or {}
    for endpoint in sorted(used - given.keys()):
        if config.endpoints[endpoint].profile is None:
            raise no_profile(endpoint, profiles.names(beside))
    keys = tuple(_key(config, key) for key in config.keys) or (scenario.Key(name="anyone"),)
    return scenario.Scenario(
        name=name,
        endpoints=tuple(
            _endpoint(name, entry, given.get(name), beside)
            for name, entry in config.endpoints.items()
            if name in used
        ),
        models=tuple(_model(config, name, model, prices) for name, model in config.models.items()),
        keys=keys,
        budgets=tuple(budget_of(entry) for entry in config.all_budgets()),
        limits=_limits(config),
        prices=dict(config.prices),
        gco2_per_kwh=config.gco2_per_kwh,
        pricing=scenario.Pricing(update=config.pricer.update, step=config.pricer.step, cap=config.pricer.cap),
        cache=_cache(config.cache),
        organisation=config.organisation,
        notes=_notes(config),
    )


def _endpoint(
    name: str, entry: schema.Endpoint, profile: Profile | None, beside: Path | None
) -> scenario.Endpoint:
    if profile is None:
        profile = profiles.load(entry.profile or "", beside=beside)
    if entry.kind == "local":
        profile = _with_slots(profile, entry.slots or _LOCAL_SLOTS)
    queue = entry.queue
    return scenario.Endpoint(
        name=name,
        profile=profile,
        instances=entry.instances,
        scaling=_scaling(entry.scaling),
        slots=entry.slots or (_LOCAL_SLOTS if entry.kind == "local" else None),
        queue=None
        if queue is None
        else scenario.Queue(
            policy=_choice(queue.policy), max_waiting=queue.max_waiting, max_wait_s=queue.max_wait_s
        ),
        watts=entry.watts,
        breaker=scenario.Breaker(
            failures=entry.breaker.failures,
            window_s=entry.breaker.window_s,
            open_s=entry.breaker.open_s,
            max_open_s=entry.breaker.max_open_s,
        ),
        first_token_s=entry.timeouts.first_token_s,
        total_s=entry.timeouts.total_s,
        max_output_tokens=entry.max_output_tokens,
        context_tokens=entry.context_tokens,
        tags=frozenset(entry.tags),
    )


def _scaling(settings: schema.Scaling | None) -> scenario.Scaling | None:
    if settings is None:
        return None
    return scenario.Scaling(
        policy=_choice(settings.policy), least=settings.least, most=settings.most, every_s=settings.every_s
    )


def _with_slots(profile: Profile, slots: int) -> Profile:
    """The profile of the same engine, started with another number of slots, each with as much memory."""
    if profile.kind != "batch" or profile.slots == slots:
        return profile
    kv_tokens = profile.kv_tokens // profile.slots * slots
    return dataclasses.replace(profile, slots=slots, kv_tokens=kv_tokens)


def _model(config: schema.Config, name: str, model: schema.Model, prices: Prices) -> scenario.Model:
    encoder = "text/minilm" if config.text.encoder == "minilm" else None
    log = config.records.log
    return scenario.Model(
        name=name,
        routes=tuple(_route(config, name, target, prices) for target in model.endpoints),
        policy=_choice(model.policy),
        baseline=_choice(model.baseline),
        rollout=model.rollout,
        shadow=_optional(model.shadow),
        admit=_optional(model.admit),
        strategy=_optional(model.strategy),
        guard=_optional(model.guard),
        quality=_fitted("quality", model.predict.quality, encoder),
        length=_fitted("length", model.predict.length, encoder),
        learn=model.predict.learn,
        worth_usd=model.worth_usd,
        expected_output_tokens=model.expected_output_tokens,
        retries=scenario.Retries(
            attempts=model.retries.attempts,
            backoff_s=model.retries.backoff_s,
            max_backoff_s=model.retries.max_backoff_s,
        ),
        sticky=model.sticky,
        sticky_s=model.sticky_s,
        cached=model.cached,
        reads=model.feedback.retry_s > 0.0 or (log is not None and log.features),
    )


def _route(config: schema.Config, name: str, target: schema.Target, prices: Prices) -> scenario.Route:
    upstream = target.model or config.endpoints[target.endpoint].model or name
    price: TokenPrice | MachinePrice | None = prices[target.endpoint, upstream].price
    return scenario.Route(
        endpoint=target.endpoint,
        model=target.model,
        upstream_model=upstream,
        price=price,
        quality=target.quality,
        weight=target.weight,
        ttft_s=target.ttft_s,
        output_tokens_per_s=target.output_tokens_per_s,
    )


def _key(config: schema.Config, key: schema.Key) -> scenario.Key:
    """A key with its team's bounds."""
    owners: list[schema.Key | schema.Team] = [key]
    if key.team is not None and key.team in config.teams:
        owners.append(config.teams[key.team])
    models = [frozenset(owner.models) for owner in owners if owner.models is not None]
    endpoints = [frozenset(owner.endpoints) for owner in owners if owner.endpoints is not None]
    return scenario.Key(
        name=key.name,
        team=key.team,
        models=frozenset.intersection(*models) if models else None,
        endpoints=frozenset.intersection(*endpoints) if endpoints else None,
        require=frozenset(tag for owner in owners for tag in owner.require),
        routing=all(owner.routing for owner in owners),
    )


def _limits(config: schema.Config) -> tuple[Budget, ...]:
    """Rates of keys and teams."""
    found = [budget for key in config.keys for budget in limits_of(f"key:{key.name}", key.limits)]
    for name, team in config.teams.items():
        found += limits_of(f"team:{name}", team.limits)
    return tuple(found)


def _cache(settings: schema.Cache) -> scenario.Cache | None:
    if not settings.enabled:
        return None
    rules = Categories(settings.categories)["chat"]
    return scenario.Cache(
        eviction=Choice(settings.eviction),
        bytes=settings.bytes,
        ttl_s=rules.ttl_s,
        most_ttl_s=settings.ttl_s,
        relax_above=settings.relax_above if rules.relaxes else 1.0,
        relax_ttl=settings.relax_ttl,
        entry_bytes=_EMBEDDED_OVERHEAD_BYTES,
        share="key" if settings.share == "key" else "team",
        wait_s=settings.wait_s,
    )


def _notes(config: schema.Config) -> tuple[str, ...]:
    """What of the configuration the simulation leaves out."""
    found = []
    if config.cache.enabled and config.cache.semantic:
        found.append("Questions in other words are not looked for: a trace does not have them.")
    if config.cache.enabled and config.cache.share == "user":
        found.append("The cache is shared within a team: a trace names no end users.")
    for name, model in config.models.items():
        if model.examples is not None:
            found.append(f"{name}: examples are not shown: a trace has no text.")
        if model.feedback.judge is not None or model.feedback.checks:
            found.append(f"{name}: no feedback on answers comes: a trace has no text to judge.")
    return tuple(found)


def _choice(choice: schema.PolicyChoice) -> Choice:
    return Choice(choice.name, dict(choice.parameters))


def _optional(choice: schema.PolicyChoice | None) -> Choice | None:
    return None if choice is None else _choice(choice)


def _fitted(kind: artefact.Kind, file: str | None, encoder: str | None) -> Method | None:
    return None if file is None else artefact.load(Path(file), kind, encoder=encoder)[0]
