"""A logical model in the twin: its routes, and the methods that decide and predict for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeVar

from apportion.core.guard import Guard
from apportion.core.method import Method
from apportion.core.policy import Policy
from apportion.core.predictor import LatencyPredictor, LengthPredictor, QualityPredictor
from apportion.core.prospect import Prospect, usual_output_tokens
from apportion.core.strategy import Strategy
from apportion.measure.energy import Power
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.simulate.proxy.sites import Site
from apportion.simulate.scenario import Choice, Model, Scenario, build
from apportion.simulate.scenario import Route as RouteConfig

M = TypeVar("M", bound=Method)
_LATENCY: Final = Choice("latency/load")
_LENGTH: Final = Choice("length/linear")
_LEAST_TOKENS: Final = 1024
"""Shorter beginnings are in no provider's prompt cache."""


class Route(Prospect):
    """One endpoint in the role of one model."""

    __slots__ = ("code", "draw", "flat", "machine", "most_work", "price", "site", "upstream_model")

    def __init__(
        self, site: Site, config: RouteConfig, model: str, code: int, gco2_per_kwh: float | None
    ) -> None:
        price = config.price
        self.site = site
        self.code = code
        """Its action's place in the result's names."""
        self.upstream_model = config.upstream_model or config.model or model
        self.price: TokenPrice | None = price if isinstance(price, TokenPrice) else None
        self.machine: MachinePrice | None = price if isinstance(price, MachinePrice) else None
        self.flat = self.price.flat_rates() if self.price is not None else None
        """The most a request, an input and an output token cost, in pico-dollars; None where that depends."""
        watts = site.config.watts
        self.draw = None if watts is None else Power.of(watts, gco2_per_kwh)
        tokens = self.price
        super().__init__(
            config.action,
            quality=config.quality,
            weight=config.weight,
            ttft_s=config.ttft_s,
            output_tokens_per_s=config.output_tokens_per_s,
            capacity=None if site.slots is None else float(site.slots),
            token_usd=None if tokens is None else tokens.usd(),
            machine_usd_per_s=None if self.machine is None else self.machine.usd_per_s,
            power=self.draw,
        )
        site.prospects.append(self)
        self.most_work = self.work(site.config.total_s)
        """The most server-seconds, joules and gCO2 an attempt can take, in the resources' smallest parts."""


class Turn(NamedTuple):
    """The last turn of a conversation: the route that answered it, when, and its input tokens."""

    action: str
    at_s: float
    input_tokens: int


class Conversations:
    """Where each conversation was answered last, as far as the trace numbers them."""

    __slots__ = ("_capacity", "_keep_s", "_turns")

    def __init__(self, keep_s: float, capacity: int = 8192) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._turns: OrderedDict[tuple[str, str], Turn] = OrderedDict()

    def find(self, tenant: str, session: str, now: float) -> tuple[str, int] | None:
        """The route of the last turn, and the tokens that its provider may hold; None for a new one."""
        turn = self._turns.get((tenant, session))
        if turn is None or now - turn.at_s > self._keep_s:
            return None
        return turn.action, turn.input_tokens if turn.input_tokens >= _LEAST_TOKENS else 0

    def remember(self, tenant: str, session: str, action: str, input_tokens: int, now: float) -> None:
        """The conversation was answered by ``action``."""
        turns = self._turns
        turns[tenant, session] = Turn(action, now, input_tokens)
        turns.move_to_end((tenant, session))
        while len(turns) > self._capacity:
            turns.popitem(last=False)


class Group:
    """A logical model of one run. Methods are built anew."""

    def __init__(
        self,
        config: Model,
        code: int,
        sites: Mapping[str, Site],
        actions: Mapping[str, int],
        scenario: Scenario,
    ) -> None:
        self.name = config.name
        self.config = config
        self.code = code
        """Its place in the result's names."""
        self.routes = [
            Route(sites[route.endpoint], route, config.name, actions[route.action], scenario.gco2_per_kwh)
            for route in config.routes
        ]
        self.policy = self._method("policy", config.policy, Policy)
        self.baseline = self._method("baseline", config.baseline, Policy)
        self.shadow = self._optional("shadow", config.shadow, Policy)
        self.admit = self._optional("admit", config.admit, Policy)
        self.strategy = self._optional("strategy", config.strategy, Strategy)
        self.guard = self._optional("guard", config.guard, Guard)
        self.quality = self._optional("quality", config.quality, QualityPredictor)
        self.length = self._optional("length", config.length, LengthPredictor)
        if self.length is None and any(route.site.line is not None for route in self.routes):
            self.length = self._method("length", _LENGTH, LengthPredictor)
        self.latency: LatencyPredictor | None = None
        if scenario.prices.get("seconds"):  # waiting is predicted where it has a price
            self.latency = self._method("latency", _LATENCY, LatencyPredictor)
        seeing = [p for p in (self.policy, self.shadow, self.admit) if p is not None and p.wants_features]
        reading = (self.quality, self.length, self.strategy, self.guard)
        self.reads = bool(seeing) or config.reads or any(method is not None for method in reading)
        """Whether somebody looks at what a request says."""
        self.sees = [type(m).__name__ for m in (*seeing, self.quality, self.guard) if m is not None]
        """Who decides less well without."""
        self.caches = scenario.cache is not None and config.cached
        self.conversations = self._conversations()
        self.learners = [p for p in (self.policy, self.shadow, self.baseline) if p is not None and p.learns]
        self.plain = not (
            self.caches or self.reads or self.strategy or self.guard or self.conversations is not None
        )
        """Whether only the endpoint is decided."""
        for route in self.routes:
            self._name(route)
        self.tagged = any(route.site.config.context_tokens for route in self.routes)
        """Whether some of the endpoints cannot answer everything."""

    @property
    def usual_output_tokens(self) -> float:
        """Output tokens of an answer of this model, by whatever route, as far as is known."""
        return usual_output_tokens(self.routes, float(self.config.expected_output_tokens))

    def _name(self, route: Route) -> None:
        """The name under which the predictors' files know a route."""
        for predictor in (self.quality, self.length):
            known = frozenset(getattr(predictor, "models", ()))
            for name in (route.action, route.site.name, route.upstream_model):
                if name in known:
                    route.predicted_as = name
                    return

    def _method(self, role: str, wanted: Choice | Method, contract: type[M]) -> M:
        return build(wanted, contract, f"models.{self.config.name}.{role}")

    def _optional(self, role: str, wanted: Choice | Method | None, contract: type[M]) -> M | None:
        return None if wanted is None else self._method(role, wanted, contract)

    def _conversations(self) -> Conversations | None:
        """The memory of conversations, where staying at an endpoint can make a difference."""
        config = self.config
        cheaper = any(route.usd_cached < route.usd_in for route in self.routes)
        if len(self.routes) < 2 or config.sticky == "off" or (config.sticky == "priced" and not cheaper):
            return None
        return Conversations(config.sticky_s)
