"""What is to be simulated: endpoints, models, who asks, what may be spent and what goes wrong, as frozen data.

A `Scenario` says what an ``apportion.yaml`` says of decisions, and besides what the proxy does not know of its
endpoints: how fast they are (`Profile`), how many machines stand behind each, and when one of them fails. Nothing here
is alive: every run builds its own policies, accounts and machines from it, so that one scenario may be run many times,
in any process, and changed with ``dataclasses.replace``.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from apportion.core import catalogue
from apportion.core.budget import Budget
from apportion.core.errors import ApportionError
from apportion.core.method import Method
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.simulate.engine import Batching
from apportion.simulate.profile import Profile

M = TypeVar("M", bound=Method)


class ScenarioError(ApportionError):
    """What is to be simulated cannot be."""

    code = "scenario"


@dataclass(frozen=True, slots=True)
class Choice:
    """A method of the catalogue by name, with its parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def build(wanted: Choice | Method, contract: type[M], field: str) -> M:
    """A fresh method: built from the catalogue, or a copy of the object that was given."""
    made = (
        catalogue.build(wanted.name, **wanted.parameters)
        if isinstance(wanted, Choice)
        else copy.deepcopy(wanted)
    )
    if not isinstance(made, contract):
        raise ScenarioError(f"{type(made).__name__} is no {contract.__name__}.", field=field)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Where requests wait for an endpoint that works on few at once."""

    policy: Choice | Method = Choice("schedule/fcfs")
    max_waiting: int = 1000
    max_wait_s: float | None = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the number of an endpoint's instances follows its load: ``policy`` (of the family ``scale``) is asked every
    ``every_s`` how many of ``least`` to ``most`` there are to be.

    A new instance is cold for the profile's ``load_s``; one that is taken out finishes what it works on. Those count
    towards ``most``.
    """

    policy: Choice | Method = Choice("scale/target_tracking")
    least: int = 1
    most: int
    every_s: float = 15.0
    """As often as the Kubernetes autoscaler looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When a failing endpoint is left out, and when it is tried again."""

    failures: int = 5
    window_s: float = 30.0
    open_s: float = 10.0
    max_open_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Attempts at one request."""

    attempts: int = 3
    backoff_s: float = 0.25
    max_backoff_s: float = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place that answers requests: ``instances`` machines (or engines) with one ``profile``.

    ``slots`` is how many requests the proxy takes it to work on at once, over all instances (None: unknown, and then
    it has no load); with ``scaling`` their share of it comes and goes with the instances that are ready. ``spread``
    chooses the instance of a request: a method of the family ``route``, whose options are the instances that are up.
    ``delay_s`` is the way from the proxy to it and again back. ``prefix_tokens`` of its prompts' beginnings stay cached
    on each instance (0: none), by the eviction method ``prefix``.
    """

    name: str
    profile: Profile | None
    instances: int = 1
    scaling: Scaling | None = None
    batching: Batching | None = None
    spread: Choice | Method = Choice("route/round_robin")
    slots: int | None = None
    queue: Queue | None = None
    watts: float | None = None
    breaker: Breaker = Breaker()
    first_token_s: float = 120.0
    total_s: float = 600.0
    max_output_tokens: int | None = None
    context_tokens: int | None = None
    tags: frozenset[str] = frozenset()
    delay_s: float = 0.0
    prefix: Choice | Method = Choice("cache/lru")
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint in the role of a model: what it is called there, costs and is taken to be good for."""

    endpoint: str
    model: str | None = None
    """Its name there; None: that of the logical model, and then the action is the endpoint's name alone."""
    upstream_model: str = ""
    """The name that the books have, where it is not ``model``."""
    price: TokenPrice | MachinePrice | None = None
    quality: float | None = None
    weight: float = 1.0
    ttft_s: float | None = None
    output_tokens_per_s: float | None = None

    @property
    def action(self) -> str:
        """What policies call it."""
        return self.endpoint if self.model is None else f"{self.endpoint}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A logical model: its routes, and the methods that decide and predict for it.

    ``quality`` and ``length`` are predictors, already fitted; a run works on copies. ``max_output_tokens`` is what its
    clients allow (None: they say nothing).
    """

    name: str
    routes: tuple[Route, ...]
    policy: Choice | Method = Choice("route/least_load")
    baseline: Choice | Method = Choice("route/least_load")
    rollout: float = 1.0
    shadow: Choice | Method | None = None
    admit: Choice | Method | None = None
    strategy: Choice | Method | None = None
    guard: Choice | Method | None = None
    quality: Choice | Method | None = None
    length: Choice | Method | None = None
    learn: bool = True
    worth_usd: float | None = None
    expected_output_tokens: int = 256
    max_output_tokens: int | None = None
    retries: Retries = Retries()
    sticky: Literal["priced", "always", "off"] = "priced"
    sticky_s: float = 300.0
    cached: bool = True
    reads: bool = False
    """Features are read although no method asks for them (they stand in a decision log)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Who asks. A request of a tenant that no key is named after comes with the first key."""

    name: str
    team: str | None = None
    models: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None
    require: frozenset[str] = frozenset()
    routing: bool = True

    @property
    def tenant(self) -> str:
        """Whose it is: what is learned and cached is shared within it."""
        return f"team:{self.team}" if self.team else f"key:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """How budgets move prices; None takes the pricer's default."""

    update: Literal["additive", "multiplicative"] = "additive"
    step: float | None = None
    cap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Answers that are kept, as a model of hits: a trace says which prompts are equal, by their blocks, and no more.

    Two requests of one tenant for one model are the same question if all their blocks are equal and they are equally
    long. ``similar`` of the others (a share, drawn) that begin with the block that a kept answer's question begins
    with count as the same in other words. An entry takes ``entry_bytes`` and ``bytes_per_token`` of its answer. Above
    the load ``relax_above`` answers are served for longer, at full load ``1 + relax_ttl`` times ``ttl_s``, never longer
    than ``most_ttl_s``.
    """

    eviction: Choice = Choice("cache/gdsf")
    bytes: int = 256 * 2**20
    ttl_s: float = 3600.0
    most_ttl_s: float = 7 * 86400.0
    relax_above: float = 0.8
    relax_ttl: float = 3.0
    similar: float = 0.0
    bytes_per_token: float = 4.0
    entry_bytes: float = 1424.0
    share: Literal["team", "key"] = "team"
    wait_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to an endpoint at ``at_s`` (on the trace's clock).

    ``down``: the instance (None: all of them) is gone, with what runs on it; ``notice``: it will be gone in ``value``
    seconds and gets no more requests until then (a spot machine); ``up``: it is there again, and ready after ``value``
    seconds of loading; ``slow``: its iterations take ``value`` times as long; ``error``: from now on it answers every
    request with the HTTP status ``value`` and works on none (0: no longer); ``add``: one more instance, ready after
    ``value`` seconds of loading (nan: the profile's ``load_s``). A machine that loads draws what an idle one does.
    """

    at_s: float
    endpoint: str
    kind: Literal["down", "notice", "up", "slow", "error", "add"]
    value: float = 0.0
    instance: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything of one rehearsal. ``prices`` are what a unit of a resource costs outside (dollars are 1);
    ``epoch_s`` is the moment (Unix seconds) of time zero of the trace, for budgets with windows of the calendar.
    """

    endpoints: tuple[Endpoint, ...]
    models: tuple[Model, ...]
    keys: tuple[Key, ...] = (Key(name="anyone"),)
    budgets: tuple[Budget, ...] = ()
    """Each with a scope as in a configuration: ``all``, ``team``, ``key:NAME``, ``model:NAME``, ``request``, ..."""
    limits: tuple[Budget, ...] = ()
    """Rates of keys and teams (scope ``key:NAME``, ``team:NAME``): they refuse, and move no price."""
    prices: Mapping[str, float] = field(default_factory=dict)
    gco2_per_kwh: float | None = None
    pricing: Pricing = Pricing()
    cache: Cache | None = None
    events: tuple[Event, ...] = ()
    organisation: str = "default"
    epoch_s: float = 0.0
    stream: bool = True
    """Whether answers are streamed, so that the first token's time is known."""
    api: str = "chat"
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        places = {endpoint.name: endpoint for endpoint in self.endpoints}
        if not self.models:
            raise ScenarioError("There is no model.", field="models")
        if not self.keys:
            raise ScenarioError("There is no key.", field="keys")
        for model in self.models:
            if not model.routes:
                raise ScenarioError(f"The model {model.name!r} has no route.", field="models")
            for route in model.routes:
                if route.endpoint not in places:
                    raise ScenarioError(
                        f"There is no endpoint {route.endpoint!r}.", field=f"models.{model.name}"
                    )
                if places[route.endpoint].profile is None:
                    raise no_profile(route.endpoint)
        for endpoint in self.endpoints:
            if endpoint.scaling is not None:
                _check_scaling(endpoint, endpoint.scaling)
        for at in self.events:
            if at.endpoint not in places:
                raise ScenarioError(f"There is no endpoint {at.endpoint!r}.", field="events")
            if at.kind == "add" and places[at.endpoint].scaling is not None:
                raise ScenarioError(
                    f"The instances of {at.endpoint!r} are added by its scaling.",
                    field="events",
                    fix="Leave the event out, or the endpoint's `scaling`.",
                )


def _check_scaling(endpoint: Endpoint, scaling: Scaling) -> None:
    field = f"endpoints.{endpoint.name}.scaling"
    if not 1 <= scaling.least <= endpoint.instances <= scaling.most:
        raise ScenarioError(
            f"{endpoint.name!r} begins with {endpoint.instances} instances, of {scaling.least} to {scaling.most}.",
            field=field,
            fix="Give 1 <= least <= instances <= most.",
        )
    if not 0.0 < scaling.every_s < math.inf:
        raise ScenarioError(
            f"'every_s' is {scaling.every_s!r}.", field=f"{field}.every_s", fix="Give seconds above 0."
        )
    if endpoint.profile is not None and endpoint.profile.kind == "hosted":
        raise ScenarioError(
            f"{endpoint.name!r} is hosted by somebody else, who scales it.",
            field=field,
            fix="Leave `scaling` out, or give it the profile of an engine (`apportion profiles`).",
        )


def no_profile(endpoint: str, known: Iterable[str] = ()) -> ScenarioError:
    """The error of an endpoint of which nobody has said how fast it is."""
    near = difflib.get_close_matches(endpoint, list(known), n=5, cutoff=0.3)
    return ScenarioError(
        f"The endpoint {endpoint!r} has no profile.",
        field=f"endpoints.{endpoint}.profile",
        fix=f"Run `apportion calibrate {endpoint}`, or set `profile:`; `apportion profiles` lists those there are"
        + (f" ({', '.join(near)}, ...)." if near else "."),
    )
