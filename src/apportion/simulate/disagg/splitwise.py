"""Splitwise: prompts on one pool of machines, answers on another, and a third that lends to both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from apportion.core import catalogue
from apportion.core.policy import Policy
from apportion.simulate.disagg.cluster import Cluster, Machine
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace

NATIVE: Final = "place/splitwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of machine that can be bought: what it does, what it costs and what power is provisioned for it."""

    name: str
    profile: Profile
    usd_per_hour: float
    watts: float
    layers: int = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitwise:
    """A cluster that computes prompts on machines of one kind and answers on machines of another (or the same).

    A request is given both machines when it arrives: of each pool the one with the least to do. Keys and
    values leave layer by layer while the prompt is computed. Where the queues of the prompt pool are longer
    than ``long_tokens`` the mixed pool helps, and where that is not enough a token machine joins it; likewise
    where the memory of the token pool is full. A mixed machine runs prompts and answers in the same
    iterations, and goes home when it has no work of the other phase left.

    ``policy`` names the method of the catalogue that chooses machines. `place/splitwise` runs compiled; another one
    is asked for every request.
    """

    prompt: Kind
    token: Kind
    prompts: int
    tokens: int
    mixed: int = 0
    """Machines (of the kind of ``prompt``) that are in the mixed pool for good."""
    network: Network = field(default_factory=lambda: Network(bytes_per_s=25e9, overlap=True))
    long_tokens: float = 8192.0
    policy: str | Policy = NATIVE

    def __post_init__(self) -> None:
        for name in ("prompts", "tokens", "mixed"):
            if getattr(self, name) < 0:
                raise PhasesError(f"'{name}' is {getattr(self, name)!r}.", field=name, fix="Zero or more.")
        if not (self.mixed or (self.prompts and self.tokens)):
            raise PhasesError(
                "A phase has no machine.", field="prompts", fix="Give each pool one, or mix some."
            )

    @property
    def cluster(self) -> Cluster:
        """The machines with their pools."""
        return Cluster(
            machines=[
                *[_machine(self.prompt, "prompt")] * self.prompts,
                *[_machine(self.prompt, "mixed")] * self.mixed,
                *[_machine(self.token, "token")] * self.tokens,
            ],
            network=self.network,
            choose="pools",
            long_tokens=self.long_tokens,
            name=f"Splitwise-{self.prompt.name}/{self.token.name} ({self.prompts}P, {self.tokens}T)",
        )

    @property
    def usd_per_hour(self) -> float:
        """Of all machines."""
        return (self.prompts + self.mixed) * self.prompt.usd_per_hour + self.tokens * self.token.usd_per_hour

    @property
    def watts(self) -> float:
        """Provisioned for all machines."""
        return (self.prompts + self.mixed) * self.prompt.watts + self.tokens * self.token.watts

    def run(self, trace: Trace) -> Result:
        """Serve a trace."""
        if self.policy == NATIVE:
            return self.cluster.run(trace)
        policy = self.policy if isinstance(self.policy, Policy) else catalogue.build(self.policy)
        if not isinstance(policy, Policy):
            raise PhasesError(f"{self.policy!r} decides nothing.", field="policy", fix=f"Try {NATIVE}.")
        return self.cluster.run(trace, policy)


def mixed_batching(kind: Kind, count: int) -> Cluster:
    """The baseline: every machine does both phases, in the same iterations; a request goes to the shortest queue."""
    return Cluster(
        machines=[_machine(kind, "mixed")] * count,
        choose="least_pending",
        name=f"Baseline-{kind.name} ({count}P/T)",
    )


def _machine(kind: Kind, phase: Literal["prompt", "token", "mixed"]) -> Machine:
    return Machine(profile=kind.profile, phase=phase, batching="mixed", layers=kind.layers)
