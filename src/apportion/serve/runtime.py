"""A configuration brought to life: keys, models with their routes and policies, endpoints, books.

A ``Runtime`` is never changed after it was built; a reload builds the next one, which takes over what the new
file leaves equal (connections, breakers, learned state, accounts), and requests under way keep the one they
began with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

from apportion.core.method import Method
from apportion.core.policy import Policy
from apportion.core.prospect import Prospect, usual_output_tokens, usual_server_s
from apportion.measure.energy import Power
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.measure.tokens import TokenRates
from apportion.serve import errors
from apportion.serve.books import Books
from apportion.serve.call import Api
from apportion.serve.config.pricing import Prices
from apportion.serve.config.schema import Config, Key, Model, Target, Team
from apportion.serve.conversations import Conversations
from apportion.serve.http.client import Watch
from apportion.serve.identity import headers_of
from apportion.serve.keyring import Keyring, Snapshot, merged
from apportion.serve.ledger.ledger import Ledger
from apportion.serve.meters import Meters, RouteMeters
from apportion.serve.methods import Methods, models_of
from apportion.serve.upstream import Endpoint

if TYPE_CHECKING:
    from apportion.serve.showing import Class

_NO_TEAM: Final = Team(models=[], endpoints=[])
"""What a team allows that has been removed."""


class Route(Prospect):
    """One endpoint in the role of one model: what it is called there, costs and is predicted to do."""

    __slots__ = (
        "_spoken",
        "endpoint",
        "flat",
        "header",
        "machine",
        "meters",
        "model",
        "model_json",
        "most_work",
        "price",
        "rates",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        target: Target,
        logical: str,
        price: TokenPrice | MachinePrice | None,
        meters: Meters,
        gco2_per_kwh: float | None = None,
        rates: TokenRates | None = None,
    ) -> None:
        config = endpoint.config
        self.endpoint = endpoint
        self.model = target.model or config.model or logical
        self.model_json = Raw(json.dumps(self.model).encode())
        self.price: TokenPrice | None = price if isinstance(price, TokenPrice) else None
        self.machine: MachinePrice | None = price if isinstance(price, MachinePrice) else None
        self.flat = self.price.flat_rates() if self.price is not None else None
        """The most a request, an input and an output token cost, in pico-dollars; None where that depends."""
        super().__init__(
            endpoint.name if target.model is None else f"{endpoint.name}/{self.model}",
            quality=target.quality,
            weight=target.weight,
            ttft_s=target.ttft_s,
            output_tokens_per_s=target.output_tokens_per_s,
            capacity=endpoint.slots,
            token_usd=None if self.price is None else self.price.usd(),
            machine_usd_per_s=None if self.machine is None else self.machine.usd_per_s,
            power=None if config.watts is None else Power.of(config.watts, gco2_per_kwh),
        )
        self.most_work = self.work(endpoint.timeouts.total_s)
        """The most server-seconds, joules and gCO2 an attempt can take, in the resources' smallest parts."""
        self.rates = rates or TokenRates(self.model)
        """How it counts tokens, for answers that come without usage."""
        self._spoken: dict[Api, Api | None] = {}
        model, name = (
            "".join(c for c in text if c.isprintable() and c.isascii())
            for text in (self.model, endpoint.name)
        )
        self.header = f"x-apportion-model: {model}\r\nx-apportion-endpoint: {name}\r\n"
        self.meters = RouteMeters(meters, logical, endpoint.name)

    @property
    def priced(self) -> bool:
        """Whether what an answer costs in dollars will be known."""
        return self.price is not None or self.machine is not None

    def spoken_for(self, api: Api) -> Api | None:
        """The dialect in which the endpoint answers ``api``; None if it cannot."""
        try:
            return self._spoken[api]
        except KeyError:
            spoken = self._spoken[api] = self.endpoint.spoken_for(api)
            return spoken


def _learns(method: Method) -> bool:
    return method.learns if isinstance(method, Policy) else True


class Group:
    """A logical model: its routes, and the methods that decide and predict for it."""

    __slots__ = ("config", "conversations", "methods", "name", "picky", "plain", "routes", "school")

    def __init__(
        self,
        name: str,
        config: Model,
        routes: tuple[Route, ...],
        methods: Methods,
        conversations: Conversations | None,
        caching: bool = False,
        school: Class | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.routes = routes
        self.methods = methods
        self.school = school
        """Examples of a large model's answers for a small one; None where nobody is taught."""
        self.conversations = conversations
        """Where each conversation was answered last; None where that makes no difference."""
        self.picky = any(r.endpoint.config.lacks or r.endpoint.config.context_tokens for r in routes)
        """Whether some of the endpoints cannot answer everything."""
        self.plain = not (
            caching or methods.reads or methods.strategy or methods.guard or conversations is not None
        )
        """Whether only the endpoint is decided."""

    @property
    def usual_server_s(self) -> float | None:
        """Server-seconds of an answer of this model, by whatever route: what one that was never seen is taken for."""
        return usual_server_s(self.routes)

    @property
    def usual_output_tokens(self) -> float:
        """Output tokens of an answer of this model, by whatever route, as far as is known."""
        return usual_output_tokens(self.routes, float(self.config.expected_output_tokens))


class Access(NamedTuple):
    """What a key may use, its team's bounds included."""

    models: frozenset[str]
    endpoints: frozenset[str] | None
    """None: all of them."""
    require: frozenset[str] = frozenset()
    """Tags that an endpoint must have."""
    routing: bool = True
    """Whether it takes part in what is being tried."""


class Runtime:
    """Everything a request needs, of one configuration, in one worker.

    ``people`` are the keys, teams and budgets of the database, whose digests are made with ``pepper``;
    ``local_sha256`` is the digest of the key that this user's commands are told (`serve.control`). What is left out
    is taken over from ``previous``.
    """

    def __init__(
        self,
        config: Config,
        prices: Prices,
        *,
        watch: Watch,
        meters: Meters,
        ledger: Ledger,
        saved_prices: Mapping[str, str] | None = None,
        previous: Runtime | None = None,
        people: Snapshot | None = None,
        pepper: bytes | None = None,
        local_sha256: bytes | None = None,
    ) -> None:
        if people is None:
            people = previous.people if previous else Snapshot()
        self._pepper: bytes = pepper if pepper is not None else previous._pepper if previous else b""
        self._local_sha256: bytes | None = local_sha256 or (previous._local_sha256 if previous else None)
        self.configured = config
        """The configuration without what is in the database."""
        self._take_people(people)
        config = self.config
        self.ledger = ledger
        self.durable = config.ledger.durability == "machine"
        """Whether a request waits until its reservation is in the database."""
        self.headers = headers_of(config.auth)
        """Headers that name end user and session."""
        self.created_s = int(time.time())
        self.endpoints: dict[str, Endpoint] = {}
        for name, entry in config.endpoints.items():
            kept = previous.endpoints.get(name) if previous else None
            self.endpoints[name] = (
                kept
                if kept is not None and kept.config == entry
                else Endpoint(name, entry, watch, config.listen.workers)
            )
        self.groups: dict[str, Group] = {
            name: self._group(name, model, prices, meters, previous) for name, model in config.models.items()
        }
        self.books: Books = Books(
            config,
            ledger,
            saved_prices=saved_prices,
            previous=previous.books if previous else None,
            now=time.time(),
        )
        outside = {"usd": 1.0, **config.prices}
        for endpoint in self.endpoints.values():
            if endpoint.queue is not None:
                endpoint.queue.prices = outside
        self._successor: Runtime | None = None
        if previous is not None:
            previous._successor = self
            for name, endpoint in previous.endpoints.items():
                if self.endpoints.get(name) is not endpoint:
                    endpoint.close()

    def _group(
        self, name: str, model: Model, prices: Prices, meters: Meters, previous: Runtime | None
    ) -> Group:
        kept = previous.groups.get(name) if previous else None
        learned = {(r.endpoint.name, r.model): r.rates for r in kept.routes} if kept is not None else {}
        routes = []
        for target in model.endpoints:
            endpoint = self.endpoints[target.endpoint]
            upstream_name = target.model or endpoint.config.model or name
            price = prices[endpoint.name, upstream_name].price
            rates = learned.get((endpoint.name, upstream_name))
            routes.append(Route(endpoint, target, name, price, meters, self.config.gco2_per_kwh, rates))
        counts = bool(self.config.prices.get("seconds"))
        encoder = "text/minilm" if self.config.text.encoder == "minilm" else None
        before = kept.methods if kept is not None else None
        log = self.config.records.log
        methods = Methods(
            model,
            before,
            waiting_counts=counts,
            encoder=encoder,
            queued=any(route.endpoint.queue is not None for route in routes),
            logged=log is not None and log.features,
        )
        for route in routes:
            _name_for(route, methods)
        caching = self.config.cache.enabled and model.cached
        talks = _conversations(model, routes, kept)
        return Group(name, model, tuple(routes), methods, talks, caching, _school(model, kept))

    def _take_people(self, people: Snapshot) -> None:
        self.people = people
        self.config: Config = merged(self.configured, people)
        """The configuration with what is in the database."""
        self._keyring = Keyring(
            self.config,
            people.credentials,
            self._pepper,
            local_sha256=self._local_sha256,
            clock=time.time,
        )
        self._access: dict[str, tuple[Key, Access]] = {}

    def adopt(self, people: Snapshot) -> None:
        """Go over to other keys, teams and budgets of the database; what was verified before is verified anew."""
        self._take_people(people)
        self.books = Books(self.config, self.ledger, previous=self.books, now=time.time())

    def learners(self) -> dict[str, tuple[str, Method]]:
        """Every method that may have learned something, with its class's name, by the name under which it is saved."""
        found: dict[str, Method] = {}
        for name, group in self.groups.items():
            for role, method in group.methods.by_role().items():
                found[f"model/{name}/{role}"] = method
        for name, endpoint in self.endpoints.items():
            if endpoint.queue is not None:
                found[f"endpoint/{name}/queue"] = endpoint.queue.policy
        return {name: (type(m).__name__, m) for name, m in found.items() if _learns(m)}

    def newest(self) -> Runtime:
        """The runtime that has taken over from this one; itself while none has."""
        found = self
        while found._successor is not None:
            found = found._successor
        return found

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key of a request: ``Authorization: Bearer`` or ``x-api-key``. Raises ``AuthenticationError``."""
        return self._keyring.authenticate(headers)

    def access(self, key: Key) -> Access:
        """What a key may use."""
        found = self._access.get(key.name)
        # Of a key that has changed, requests under way still have what it was.
        if found is None or found[0] is not key:
            found = self._access[key.name] = (key, self._access_of(key))
        return found[1]

    def _access_of(self, key: Key) -> Access:
        owners: list[Key | Team] = [key]
        if key.team is not None:
            owners.append(self.config.teams.get(key.team, _NO_TEAM))
        allowed = [frozenset(owner.endpoints) for owner in owners if owner.endpoints is not None]
        endpoints = frozenset.intersection(*allowed) if allowed else None
        require = frozenset(tag for owner in owners for tag in owner.require)
        return Access(
            frozenset(
                name
                for name, group in self.groups.items()
                if all(owner.models is None or name in owner.models for owner in owners)
                and (endpoints is None or any(r.endpoint.name in endpoints for r in group.routes))
            ),
            endpoints,
            require,
            all(owner.routing for owner in owners),
        )

    def group(self, model: str, key: Key) -> Group:
        """The model a key asked for. Raises ``ModelNotFoundError`` naming those it may use."""
        if model not in self.access(key).models:
            known = self.models_of(key)
            listed = ", ".join(known[:50]) + (f" and {len(known) - 50} more" if len(known) > 50 else "")
            raise errors.ModelNotFoundError(
                f"The model {model[:100]!r} does not exist here or this key may not use it.",
                field="model",
                fix=f"Known models: {listed or 'none'}.",
            )
        return self.groups[model]

    def models_of(self, key: Key) -> list[str]:
        """The models that a key may use, in the order of the configuration."""
        allowed = self.access(key).models
        return [name for name in self.groups if name in allowed]


def _name_for(route: Route, methods: Methods) -> None:
    """The name under which the predictors' files know a route."""
    for predictor in (methods.quality, methods.length):
        known = models_of(predictor) if predictor is not None else frozenset()
        for name in (route.action, route.endpoint.name, route.model):
            if name in known:
                route.predicted_as = name
                return


def _school(model: Model, kept: Group | None) -> Class | None:
    """The examples of a model; those it has stay while their settings do."""
    if model.examples is None:
        return None
    if kept is not None and kept.school is not None and kept.school.settings == model.examples:
        return kept.school
    from apportion.serve.showing import Class

    return Class(model.examples)


def _conversations(model: Model, routes: Sequence[Route], kept: Group | None) -> Conversations | None:
    """The memory of conversations, where staying at an endpoint can make a difference."""
    cheaper = any(route.usd_cached < route.usd_in for route in routes)
    if len(routes) < 2 or model.sticky == "off" or (model.sticky == "priced" and not cheaper):
        return None
    if kept is not None and kept.conversations is not None and kept.config.sticky_s == model.sticky_s:
        return kept.conversations
    return Conversations(model.sticky_s)
