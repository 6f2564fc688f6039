"""Everything a policy may look at when it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from apportion.core.features import Features
from apportion.core.option import Option


@dataclass(slots=True)
class State:
    """What is known at one decision. Treat it as immutable.

    ``now`` is the time in seconds (any fixed origin; policies read no clock); ``options`` what may be
    chosen, all feasible; ``id`` becomes the decision's; ``request`` is the context, possibly empty;
    ``prices`` are dollars per unit of each resource; ``features`` describe the request in numbers, None when
    nobody asked for them.
    """

    now: float
    options: Sequence[Option]
    id: str = ""
    request: Mapping[str, object] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    features: Features | None = None
