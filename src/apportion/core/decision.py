"""A choice, with enough beside it to explain it later and to judge other policies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apportion.core.option import Option


@dataclass(slots=True)
class Decision:
    """What a policy chose. Treat it as immutable; ``options`` and ``prices`` are the state's own, not copies.

    ``choice`` is an index into ``options`` and ``action`` that option's action, both None when nothing
    was chosen. ``probability`` is that of this choice when it was drawn at random, 1.0 when it was
    certain, None when the policy cannot say. ``worths`` holds, for each option, the dollars left after
    paying ``prices``, None where not known or not looked at. ``why`` is the rule that decided, in a few
    words.
    """

    id: str
    choice: int | None
    action: str | None
    probability: float | None
    prices: Mapping[str, float]
    options: Sequence[Option]
    worths: tuple[float | None, ...]
    why: str

    def explain(self) -> str:
        """The decision in one or two sentences: what was chosen, its worth, the prices, the alternatives."""
        if self.choice is None:
            offered = f" Offered: {', '.join(o.action for o in self.options)}." if self.options else ""
            return f"Chose nothing: {self.why}.{offered}"
        chosen = self.options[self.choice]
        text = f"Chose {chosen.action}"
        if self.probability is not None and self.probability < 1.0:
            text += f" (probability {self.probability:.3g})"
        text += f": {self.why}."
        text += f" It promised {_dollars(chosen.value)} of value for {_amounts(chosen.cost)}"
        if self.prices:
            text += f" at prices {_prices(self.prices)}"
        worth = self.worths[self.choice]
        text += f", which leaves {_dollars(worth)}" if worth is not None else ""
        others = [i for i in range(len(self.options)) if i != self.choice]
        if others:
            shown = sorted(others, key=self._rank)[:_SHOWN]
            text += "; the alternatives: " + ", ".join(
                f"{self.options[i].action} {_dollars(self.worths[i])}" for i in shown
            )
            if len(others) > _SHOWN:
                text += f" and {len(others) - _SHOWN} more"
        return text + "."

    def _rank(self, index: int) -> tuple[bool, float, int]:
        worth = self.worths[index]
        return (worth is None, -(worth or 0.0), index)


_SHOWN = 4
"""Alternatives named in an explanation; the rest are counted."""


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "unknown"
    return f"-${-amount:.4g}" if amount < 0 else f"${amount:.4g}"


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:.4g} {name}" for name, amount in amounts.items()) or "an unknown cost"


def _prices(prices: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_dollars(price)}" for name, price in prices.items())
