"""What a decision really cost and was worth, with what is not known said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apportion.core.cost import Cost
from apportion.core.state import State

Status = Literal["ok", "failed", "timeout", "cancelled", "refused"]


@dataclass(slots=True)
class Outcome:
    """What became of a decision. It may come late, twice, out of order or never. Treat it as immutable.

    ``decision_id`` and ``action`` are the decision's; ``cost`` is measured. ``quality`` is in [0, 1],
    None when no signal came (yet). ``latency_s`` is None when unknown. ``censored`` says that a limit cut
    it short, so the true cost and latency are at least those given. ``state`` is what was known at the
    decision, None when that is no longer kept. ``revised`` marks a later word on a decision whose cost was
    told before: only ``quality`` is new.
    """

    decision_id: str
    status: Status
    action: str | None
    cost: Cost
    quality: float | None = None
    latency_s: float | None = None
    censored: bool = False
    state: State | None = None
    revised: bool = False
