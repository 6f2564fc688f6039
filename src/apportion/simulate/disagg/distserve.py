"""DistServe: prefill and decoding on instances of their own, each with the parallelism that suits its phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from apportion.simulate.disagg.cluster import Cluster, Machine
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """An instance: ``profile`` is one stage's worth of devices with its tensor parallelism doing the whole model;
    ``stages`` of them hold the model together.
    """

    profile: Profile
    """Iterations of the whole model at this tensor parallelism; its ``kv_tokens`` are those of the whole instance."""
    tensor: int
    stages: int = 1
    layers: int = 80
    hop_s: float = 50e-6

    @property
    def devices(self) -> int:
        """Devices of the instance."""
        return self.tensor * self.stages

    def machine(
        self,
        phase: Literal["prompt", "token", "mixed"],
        batching: Literal["mixed", "prefill_first", "chunked"],
        node: int = -1,
    ) -> Machine:
        """The instance with a phase and a place."""
        return Machine(
            profile=self.profile,
            phase=phase,
            batching=batching,
            stages=self.stages,
            node=node,
            hop_s=self.hop_s,
            layers=self.layers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistServe:
    """Instances for prefill, instances for decoding, and keys and values pulled over the network.

    A request goes to the prefill instance with the shortest queue and to the decoding instance with the least
    to do. Its keys and values stay where they were computed until the decoding instance has memory for the
    whole answer, which then fetches them: a burst waits in the memory of the prefill instances. ``paired``
    puts instance i of both phases on one node (low affinity: only within a node is the network fast);
    otherwise any may send to any.
    """

    prefill: Parallel
    decode: Parallel
    prefills: int = 1
    decodes: int = 1
    network: Network = field(default_factory=Network)
    paired: bool = False

    def __post_init__(self) -> None:
        for name in ("prefills", "decodes"):
            if getattr(self, name) < 1:
                raise PhasesError(f"'{name}' is {getattr(self, name)!r}.", field=name, fix="One or more.")
        if self.network.overlap:
            raise PhasesError("DistServe fetches after the prompt.", field="overlap", fix="Leave it off.")

    @property
    def devices(self) -> int:
        """Of all instances."""
        return self.prefills * self.prefill.devices + self.decodes * self.decode.devices

    @property
    def cluster(self) -> Cluster:
        """The instances and the network."""
        return Cluster(
            machines=[
                *(
                    self.prefill.machine("prompt", "mixed", i if self.paired else -1)
                    for i in range(self.prefills)
                ),
                *(
                    self.decode.machine("token", "mixed", i if self.paired else -1)
                    for i in range(self.decodes)
                ),
            ],
            network=self.network,
            choose="paired",
            name=f"DistServe ({self.prefills}P tp{self.prefill.tensor} pp{self.prefill.stages}, "
            f"{self.decodes}D tp{self.decode.tensor} pp{self.decode.stages})",
        )

    def run(self, trace: Trace) -> Result:
        """Serve a trace."""
        return self.cluster.run(trace)


def colocated(
    instance: Parallel,
    count: int = 1,
    batching: Literal["mixed", "prefill_first", "chunked"] = "prefill_first",
) -> Cluster:
    """The baseline: both phases on every instance. ``prefill_first`` is continuous batching as vLLM does it."""
    return Cluster(
        machines=[instance.machine("mixed", batching)] * count,
        choose="least_pending",
        name=f"colocated {batching} tp{instance.tensor} pp{instance.stages} x{count}",
    )


def candidates(instances: Sequence[Parallel], devices: int) -> list[Parallel]:
    """Those whose weights leave memory for keys and values and that need at most ``devices``."""
    return [i for i in instances if i.devices <= devices and i.profile.kv_tokens > 1]
