"""Something that can be chosen, with what it is predicted to be worth and to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apportion.core.cost import Cost


@dataclass(slots=True)
class Option:
    """One thing to choose. Treat it as immutable (it is not frozen because freezing costs time per request).

    ``action`` names it (a model, an endpoint, "retry", ...); ``value`` is its predicted value in dollars;
    ``cost`` its predicted cost. ``value_sd`` and ``cost_sd`` are standard deviations of the predictions,
    in the same units, None when unknown. ``load`` is work in flight over capacity (1.0 is full), None
    when unknown. ``weight`` is a share that the configuration gives it, zero or more.
    """

    action: str
    value: float
    cost: Cost
    value_sd: float | None = field(default=None, kw_only=True)
    cost_sd: Cost | None = field(default=None, kw_only=True)
    load: float | None = field(default=None, kw_only=True)
    weight: float = field(default=1.0, kw_only=True)
    quality: float | None = field(default=None, kw_only=True)
    quality_sd: float | None = field(default=None, kw_only=True)
    facts: Mapping[str, object] | None = field(default=None, kw_only=True)
