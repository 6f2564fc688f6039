"""Accepts what is worth its share of a budget that fills up, with one price for as long as is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.errors import ParameterError
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.state import State
from apportion.policy.admit._base import REFUSE, Admission, admission_worths
from apportion.solve.online_knapsack import ect, ect_slope, la_ect, zcl


@final
class TimeFair(Admission):
    """Accepts what is worth its share of a budget that fills up, with one price for as long as is wanted.

    A budget is a knapsack that requests fill one by one, and nobody knows what is still to come. A request is
    accepted when the dollars it leaves, per unit of the resource, reach a threshold that rises as the budget
    is used. The threshold of ZCL loses least in the worst case, but asks a different price at every moment:
    the same request is served in the morning and refused in the afternoon. ECT asks one price for a share
    alpha of the budget, with the least possible loss for that fairness; LA-ECT asks the predicted critical
    price for a share gamma, and is good when the prediction is and never worse than a known factor when not
    [1]_.

        z = share of the budget that is used,   density = (value - sum_r price_r cost_r) / cost[resource]
        choose  argmax of  worth - Psi(z) cost[resource],   refuse when that is below 0 zcl      Psi = (U e /
        L)^z L / e                                              ln(U/L) + 1 competitive ect      Psi = L up to
        alpha, then U exp(beta (z - 1)),  beta e^(beta (1 - alpha)) = U / (alpha L)     beta la_ect   Psi =
        zcl squeezed into 1 - gamma, and the predicted price for gamma    (ln(U/L) + 1) / (1 - gamma) static
        Psi = the predicted price, or L where there is none                     U / L, when it is L

    Parameters
    ----------
    rule
        "ect", "zcl", "la_ect" or "static".
    lowest
        L: the least density worth serving at all, above 0, in dollars left per unit of the resource.
    highest
        U: the greatest density that comes, above ``lowest``.
    alpha
        ECT's share of the budget at one price, in (0, 1]. Below 1 / (ln(U/L) + 1) it gains nothing over ZCL.
    gamma
        LA-ECT's share at the predicted price, in [0, 1]: how far the prediction is trusted.
    predicted
        The critical density: the lowest that would be served if all were known, for instance last window's;
        None: L. A request may bring its own as ``request["critical_density"]``.
    resource
        The resource whose budget fills, where ``request["budget_resource"]`` does not name one.
    utilisation
        What z is: "budget_used", "load", or the "greater" of the two, from the request; an unknown one counts
        as 0.

    Complexity
    ----------
    O(n) per decision for n options; nothing is learned; O(1) memory.

    Notes
    -----
    The ratios hold for requests that are small beside the budget, and densities within [L, U] (they are cut
    to it). Choosing among several ways to serve by the surplus over the threshold is the multiple-choice
    form; with one way it is the paper's rule. A request with an unknown cost is accepted while z is below one
    half: nothing is known against it. Constant price here means per unit of the resource, so a longer request
    pays more.

    See Also
    --------
    admit/always : the baseline.
    admit/primal_dual_budget : several budgets that refill.

    References
    ----------
    .. [1] A. Lechowicz, R. Sengupta, B. Sun, S. Kamali, M. Hajiesmaili (2024). "Time Fairness in Online Knapsack
       Problems." ICLR. arXiv:2305.13293

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option("serve", 0.010, Cost(usd=0.001)), Option("refuse", 0.0, Cost(usd=0.0))]
    >>> policy = TimeFair(rule="ect", alpha=0.5, lowest=1.0, highest=100.0)
    >>> [policy.decide(State(0.0, offer, request={"budget_used": z}, prices={"usd": 1.0})).action
    ...  for z in (0.0, 0.5, 0.6, 0.9)]
    ['serve', 'serve', 'serve', 'refuse']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "rule": OneOf("ect", "zcl", "la_ect", "static"),
        "lowest": Interval(float, 0.0, closed="neither"),
        "highest": Interval(float, 0.0, closed="neither"),
        "alpha": Interval(float, 0.0, 1.0, closed="right"),
        "gamma": Interval(float, 0.0, 1.0),
        "predicted": Interval(float, 0.0, closed="neither") | Kind(type(None)),
        "resource": Kind(str),
        "utilisation": OneOf("greater", "budget_used", "load"),
    }

    def __init__(
        self,
        *,
        rule: str = "ect",
        lowest: float = 0.1,
        highest: float = 100.0,
        alpha: float = 0.5,
        gamma: float = 0.5,
        predicted: float | None = None,
        resource: str = "usd",
        utilisation: str = "greater",
    ) -> None:
        self.rule = rule
        self.lowest = lowest
        self.highest = highest
        self.alpha = alpha
        self.gamma = gamma
        self.predicted = predicted
        self.resource = resource
        self.utilisation = utilisation
        self.start()
        if not lowest < highest:
            raise ParameterError(
                f"The 'highest' parameter of TimeFair must be above lowest ({lowest!r}), got {highest!r}.",
                field="highest",
            )

    def reset(self) -> None:
        """Nothing is learned; the slope of ECT is worked out once."""
        self._slope = ect_slope(self.lowest, self.highest, self.alpha)

    def threshold(self, utilisation: float, predicted: float | None = None) -> float:
        """The density asked for at ``utilisation``."""
        low, high = self.lowest, self.highest
        if self.rule == "ect":
            return ect(utilisation, low, high, self.alpha, self._slope)
        if self.rule == "zcl":
            return zcl(utilisation, low, high)
        critical = predicted if predicted is not None else self.predicted
        critical = low if critical is None else min(high, max(low, critical))
        return critical if self.rule == "static" else la_ect(utilisation, low, high, self.gamma, critical)

    def decide(self, state: State) -> Decision:
        """Choose the way to serve with the greatest surplus over the threshold, or refuse."""
        options, request = state.options, state.request
        if not options:
            return self.nothing(state)
        left = admission_worths(state)
        used = _utilisation(request, self.utilisation)
        asked = self.threshold(min(used, 1.0), _number(request.get("critical_density")))
        name = request.get("budget_resource")
        resource = name if isinstance(name, str) else self.resource
        best, choice = -math.inf, -1
        for index, (option, worth) in enumerate(zip(options, left, strict=True)):
            if option.action == REFUSE:
                continue
            amount = option.cost.get(resource)
            surplus = 0.0 if used < 0.5 else -math.inf
            if worth is not None and amount is not None:
                surplus = worth - asked * amount
            if surplus > best:
                best, choice = surplus, index
        if choice < 0 or best < -1e-12:
            return self.turned_away(state, left, 1.0, f"worth less than the {asked:.3g} a unit asked for")
        why = f"worth the {asked:.3g} a unit asked for"
        return Decision(state.id, choice, options[choice].action, 1.0, state.prices, options, left, why)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Each rule."""
        yield {"rule": "zcl", "highest": 10.0}
        yield {"rule": "la_ect", "predicted": 5.0, "gamma": 0.8}
        yield {"rule": "static", "lowest": 1.0, "utilisation": "load", "alpha": 1.0}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) and value == value else None


def _utilisation(request: Mapping[str, object], which: str) -> float:
    """How full it is, zero or more."""
    names = ("budget_used", "load") if which == "greater" else (which,)
    return max(0.0, *(_number(request.get(name)) or 0.0 for name in names), 0.0)
