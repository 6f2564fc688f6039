"""DistServe's placement: which parallelism for each phase, and how many instances of each (its algorithms 1
and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from apportion.simulate.disagg.cluster import Cluster, Machine
from apportion.simulate.disagg.distserve import DistServe, Parallel, candidates
from apportion.simulate.disagg.goodput import Objectives, highest
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.trace import Trace

INSTANT: Final = Profile(name="instant", slots=4096)
"""A machine that computes any prompt in no time."""

Workload = Callable[[float], Trace]
"""Requests at a rate (a second)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What was found: the system, the rate that it carries, and that rate for each device."""

    system: DistServe
    rate_per_s: float

    @property
    def per_device(self) -> float:
        """Goodput: requests a second and device within the objectives."""
        return self.rate_per_s / self.system.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search for the placement of the highest goodput per device.

    ``instances`` are the parallelisms that have a profile; ``devices`` the most that one prefill and one
    decoding part may have together; ``rates`` where to look for the highest rate of one part; ``tolerance``
    of each bisection.
    """

    instances: Sequence[Parallel]
    workload: Workload
    objectives: Objectives
    network: Network = field(default_factory=Network)
    devices: int = 16
    node_devices: int = 8
    rates: tuple[float, float] = (0.05, 400.0)
    tolerance: float = 0.03

    def rate(self, cluster: Cluster) -> float:
        """The highest rate at which a cluster meets the objectives."""

        def meets(rate: float) -> bool:
            trace = self.workload(rate)
            return self.objectives.met(cluster.run(trace), trace)

        return highest(meets, *self.rates, self.tolerance)

    def phase_rate(self, instance: Parallel, phase: Literal["prefill", "decode"]) -> float:
        """The highest rate of one instance that does only one phase and is judged on that phase alone.

        Prefill alone: answers of one token. Decoding alone: prompts take no time elsewhere, and their keys
        and values are at once where they are wanted.
        """
        part = instance.machine("token", "mixed")
        if phase == "prefill":
            cluster = Cluster(machines=[replace(part, phase="mixed")])
            limits = replace(self.objectives, tpot_s=math.inf)
        else:
            cluster = Cluster(
                machines=[Machine(profile=INSTANT, phase="prompt"), part],
                network=Network(bytes_per_s=math.inf, local_bytes_per_s=math.inf),
                choose="paired",
            )
            limits = replace(self.objectives, ttft_s=math.inf)

        def meets(rate: float) -> bool:
            trace = self.workload(rate)
            if phase == "prefill":
                trace = replace(trace, output_tokens=np.ones_like(trace.output_tokens))
            return limits.met(cluster.run(trace), trace)

        return highest(meets, *self.rates, self.tolerance)

    def high_affinity(self, rate_per_s: float | None = None) -> Placement:
        """Any instance may send to any other fast enough: the best parallelism of each phase by itself, per
        device, and then as many instances of each as the traffic needs (algorithm 1). ``rate_per_s`` is the
        traffic; without it, the smallest ratio within ``devices`` whose sides are closest to each other.
        """
        prefill, prefill_rate = self._best("prefill")
        decode, decode_rate = self._best("decode")
        if rate_per_s is not None:
            counts = math.ceil(rate_per_s / prefill_rate), math.ceil(rate_per_s / decode_rate)
        else:
            counts = self._ratio(prefill, prefill_rate, decode, decode_rate)
        system = DistServe(
            prefill=prefill, decode=decode, prefills=counts[0], decodes=counts[1], network=self.network
        )
        return Placement(system=system, rate_per_s=self.rate(system.cluster))

    def low_affinity(self) -> Placement:
        """Only within a node is the network fast: prefill and decoding parts share nodes, and are tried
        together (algorithm 2)."""
        return self._tried(
            [
                DistServe(prefill=p, decode=d, network=self.network, paired=True)
                for p in candidates(self.instances, self.node_devices)
                for d in candidates(self.instances, self.node_devices - p.devices)
                if p.stages == d.stages  # the same layers of both sit on one node
            ]
        )

    def exhaustive(self, counts: Sequence[tuple[int, int]]) -> Placement:
        """Every pair of parallelisms with every ratio of instances, each simulated whole."""
        return self._tried(
            [
                DistServe(prefill=p, decode=d, prefills=n, decodes=m, network=self.network)
                for p in candidates(self.instances, self.devices)
                for d in candidates(self.instances, self.devices)
                for n, m in counts
                if n * p.devices + m * d.devices <= self.devices
            ]
        )

    def _tried(self, systems: Sequence[DistServe]) -> Placement:
        if not systems:
            raise PhasesError(
                "No placement fits.", field="devices", fix="Give it more devices or other instances."
            )
        found = [Placement(system=s, rate_per_s=self.rate(s.cluster)) for s in systems]
        return max(found, key=lambda f: (f.per_device, -f.system.devices))

    def _best(self, phase: Literal["prefill", "decode"]) -> tuple[Parallel, float]:
        chosen = candidates(self.instances, self.node_devices)
        if not chosen:
            raise PhasesError("No instance fits into a node.", field="instances")
        rates = [self.phase_rate(instance, phase) for instance in chosen]
        at = max(range(len(chosen)), key=lambda i: (rates[i] / chosen[i].devices, -chosen[i].devices))
        if rates[at] <= 0:
            raise PhasesError(
                f"No instance meets the objectives of {phase}.", field="objectives", fix="Relax them."
            )
        return chosen[at], rates[at]

    def _ratio(
        self, prefill: Parallel, prefill_rate: float, decode: Parallel, decode_rate: float
    ) -> tuple[int, int]:
        """How many of each carry the most per device, within ``devices``."""
        best, worth = (1, 1), -1.0
        for n in range(1, self.devices // prefill.devices + 1):
            for m in range(1, (self.devices - n * prefill.devices) // decode.devices + 1):
                carried = min(n * prefill_rate, m * decode_rate)
                each = carried / (n * prefill.devices + m * decode.devices)
                if each > worth * (1 + 1e-9):
                    best, worth = (n, m), each
        return best
