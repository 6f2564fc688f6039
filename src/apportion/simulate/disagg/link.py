"""The network between machines, over which keys and values move."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apportion.core.errors import ApportionError


class PhasesError(ApportionError):
    """A cluster, a split or a search over phases is described in a way that cannot be simulated."""

    code = "phases"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What carries keys and values from where prompts are computed to where answers are made.

    Each machine has one port, full duplex: one transfer at a time leaves it and one comes in, at the rate of the
    slower of the two ports. Machines of one node (`Machine.node`) move them at ``local_bytes_per_s``.
    """

    bytes_per_s: float = 50e9
    """Of a machine's port: 400 Gbit/s. Infinite: no transfer takes time but the latency."""
    local_bytes_per_s: float = 300e9
    """Within a node: NVLink of an A100, one direction."""
    latency_s: float = 0.0
    """Of every transfer: setting it up, and telling the other side that it is complete."""
    overlap: bool = False
    """Send each layer when it is computed, rather than all of them after the prompt."""
    serial_tokens: int = 512
    """Prompts shorter than this are sent whole even so (what Splitwise does, as there is little to hide)."""

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "local_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise PhasesError(
                    f"'{name}' is {getattr(self, name)!r}.", field=name, fix="It must be positive."
                )
        if not (0 <= self.latency_s < math.inf):
            raise PhasesError(f"'latency_s' is {self.latency_s!r}.", field="latency_s", fix="Zero or more.")
