"""A configuration brought to life: keys, models with their routes and policies, endpoints, books.

A ``Runtime`` is never changed after it was built; a reload builds the next one, which takes over what the new
file leaves equal (connections, breakers, learned state, accounts), and requests under way keep the one they
began with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Raw

from apportion.core import catalogue
from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.resource import SERVER_SECONDS
from apportion.measure.energy import Power
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.measure.tokens import TokenRates
from apportion.serve import errors
from apportion.serve.books import Books
from apportion.serve.call import Api
from apportion.serve.config.pricing import Prices
from apportion.serve.config.schema import Config, Key, Model, Target, Team
from apportion.serve.http.client import Watch
from apportion.serve.identity import headers_of
from apportion.serve.keyring import Keyring, Snapshot, merged
from apportion.serve.ledger.ledger import Ledger
from apportion.serve.meters import Meters, RouteMeters
from apportion.serve.upstream import Endpoint

_SMOOTHING: Final = 0.1
_NO_TEAM: Final = Team(models=[], endpoints=[])
"""What a team allows that has been removed."""


class Route:
    """One endpoint in the role of one model: what it is called there, costs and is predicted to do."""

    __slots__ = (
        "_spoken",
        "action",
        "endpoint",
        "flat",
        "header",
        "machine",
        "mean_server_s",
        "meters",
        "model",
        "model_json",
        "most_work",
        "output_tokens_per_s",
        "power",
        "price",
        "quality",
        "rates",
        "ttft_s",
        "usd_in",
        "usd_out",
        "usd_request",
        "weight",
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
        self.action = endpoint.name if target.model is None else f"{endpoint.name}/{self.model}"
        self.price: TokenPrice | None = price if isinstance(price, TokenPrice) else None
        self.machine: MachinePrice | None = price if isinstance(price, MachinePrice) else None
        self.flat = self.price.flat_rates() if self.price is not None else None
        """The most a request, an input and an output token cost, in pico-dollars; None where that depends."""
        self.power = None if config.watts is None else Power.of(config.watts, gco2_per_kwh)
        """What one request draws and emits; None where it is unknown."""
        self.most_work = self.work(endpoint.timeouts.total_s)
        """The most server-seconds, joules and gCO2 an attempt can take, in the resources' smallest parts."""
        self.rates = rates or TokenRates(self.model)
        """How it counts tokens, for answers that come without usage."""
        self.quality = target.quality
        self.weight = target.weight
        self.ttft_s = target.ttft_s
        self.output_tokens_per_s = target.output_tokens_per_s
        self.mean_server_s: float | None = None
        """Server-seconds of an answer, smoothed; the prediction where the configuration gives none."""
        scale = 1e-12
        tokens = self.price
        self.usd_in = tokens.input * scale if tokens else 0.0
        self.usd_out = tokens.output * scale if tokens else 0.0
        self.usd_request = tokens.request * scale if tokens else 0.0
        self._spoken: dict[Api, Api | None] = {}
        model, name = (
            "".join(c for c in text if c.isprintable() and c.isascii())
            for text in (self.model, endpoint.name)
        )
        self.header = f"x-apportion-model: {model}\r\nx-apportion-endpoint: {name}\r\n"
        self.meters = RouteMeters(meters, logical, endpoint.name)

    def work(self, server_s: float) -> tuple[int, int | None, int | None]:
        """Server-seconds, joules and gCO2 of so much time, in smallest parts; None where they are unknown."""
        server_ns = SERVER_SECONDS.to_units(server_s)
        power = self.power
        if power is None:
            return (server_ns, None, None)
        return (server_ns, power.joules_units(server_ns), power.gco2_units(server_ns))

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

    def option(self, tokens_in: float, tokens_out: float, worth_usd: float | None) -> Option:
        """The route as an option: value of a right answer times quality, and predictions of what it costs.

        The dollars are those of its table, or of the machine's time; the time is what the configuration says,
        else the smoothed measurement.
        """
        server_s = self.mean_server_s
        ttft_s = self.ttft_s
        if self.price is not None and ttft_s is None:
            usd = self.usd_request + self.usd_in * tokens_in + self.usd_out * tokens_out
            if server_s is None:
                amounts = {"tokens": tokens_in + tokens_out, "usd": usd}
            else:
                amounts = {"tokens": tokens_in + tokens_out, "usd": usd, "server_seconds": server_s}
        else:
            amounts = {"tokens": tokens_in + tokens_out}
            if ttft_s is not None:
                speed = self.output_tokens_per_s
                amounts["seconds"] = seconds = ttft_s + (tokens_out / speed if speed else 0.0)
                server_s = seconds if server_s is None else server_s
            if server_s is not None:
                amounts["server_seconds"] = server_s
            if self.price is not None:
                amounts["usd"] = self.usd_request + self.usd_in * tokens_in + self.usd_out * tokens_out
            elif self.machine is not None and server_s is not None:
                amounts["usd"] = self.machine.hour * 1e-12 / 3600 * server_s
        power = self.power
        if power is not None and server_s is not None:
            amounts["joules"] = power.joules(server_s)
            gco2 = power.gco2(server_s)
            if gco2 is not None:
                amounts["gco2"] = gco2
        quality = self.quality
        value = 0.0 if worth_usd is None else worth_usd if quality is None else worth_usd * quality
        return Option(self.action, value, Cost.of(amounts), load=self.endpoint.load, weight=self.weight)

    def measured(self, server_s: float) -> None:
        """Take in the server-seconds of an answer."""
        mean = self.mean_server_s
        self.mean_server_s = server_s if mean is None else mean + _SMOOTHING * (server_s - mean)


class Group:
    """A logical model: its routes and the policy that chooses among them."""

    __slots__ = ("config", "name", "policy", "policy_key", "routes")

    def __init__(
        self, name: str, config: Model, routes: tuple[Route, ...], policy: Policy, policy_key: str
    ) -> None:
        self.name = name
        self.config = config
        self.routes = routes
        self.policy = policy
        self.policy_key = policy_key


class Access(NamedTuple):
    """What a key may use, its team's bounds included."""

    models: frozenset[str]
    endpoints: frozenset[str] | None
    """None: all of them."""


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
                kept if kept is not None and kept.config == entry else Endpoint(name, entry, watch)
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
        policy_key = json.dumps([model.policy.name, model.policy.parameters], sort_keys=True, default=repr)
        policy = (
            kept.policy
            if kept is not None and kept.policy_key == policy_key
            else catalogue.build(model.policy.name, **model.policy.parameters)
        )
        if not isinstance(policy, Policy):
            raise TypeError(f"{model.policy.name} is not a policy")
        return Group(name, model, tuple(routes), policy, policy_key)

    def _take_people(self, people: Snapshot) -> None:
        self.people = people
        self.config: Config = merged(self.configured, people)
        """The configuration with what is in the database."""
        self._keyring = Keyring(
            self.config, people.credentials, self._pepper, local_sha256=self._local_sha256
        )
        self._access: dict[str, tuple[Key, Access]] = {}

    def adopt(self, people: Snapshot) -> None:
        """Go over to other keys, teams and budgets of the database; what was verified before is verified anew."""
        self._take_people(people)
        self.books = Books(self.config, self.ledger, previous=self.books, now=time.time())

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
        return Access(
            frozenset(
                name
                for name, group in self.groups.items()
                if all(owner.models is None or name in owner.models for owner in owners)
                and (endpoints is None or any(r.endpoint.name in endpoints for r in group.routes))
            ),
            endpoints,
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
