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
        """The decision in one or two sentences: what was chosen and why, its sum, the alternatives."""
        n = len(self.options)
        if self.choice is None:
            offered = f" Offered: {', '.join(o.action for o in self.options[:_SHOWN])}" if n else ""
            more = f" and {n - _SHOWN} more" if n > _SHOWN else ""
            return f"Chose nothing: {self.why}." + (f"{offered}{more}." if n else "")
        drawn = self.probability is not None and self.probability < 1.0
        chance = f" with probability {self.probability:.3g}" if drawn else ""
        text = f"Chose {self.action} of {n} option{'s' if n > 1 else ''}{chance}, {self.why}: {self._sum()}."
        others = sorted((i for i in range(n) if i != self.choice), key=self._rank)
        if others:
            named = ", ".join(f"{self.options[i].action} {_dollars(self.worths[i])}" for i in others[:_SHOWN])
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            text += f" The alternatives would leave: {named}{more}."
        return text

    def _sum(self) -> str:
        """Value minus cost at prices, in words and numbers, for the chosen option."""
        chosen = self.options[self.choice or 0]
        worth = self.worths[self.choice or 0]
        priced = {name: price for name, price in self.prices.items() if price}
        text = f"{_dollars(chosen.value)} of value"
        if priced:
            paid = None if worth is None else chosen.value - worth
            bill = ", ".join(
                f"{_amount(chosen.cost.get(name))} {name} at {price:.4g}" for name, price in priced.items()
            )
            text += f" less {_dollars(paid)} of cost ({bill})"
        return f"{text} leaves {_dollars(worth)}"

    def _rank(self, index: int) -> tuple[bool, float, int]:
        worth = self.worths[index]
        return (worth is None, -(worth or 0.0), index)


_SHOWN = 4
"""Options named in an explanation; the rest are counted."""


def _amount(amount: float | None) -> str:
    return "an unknown amount of" if amount is None else f"{amount:.4g}"


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "an unknown amount"
    return f"-${-amount:.4g}" if amount < 0 else f"${amount + 0.0:.4g}"
