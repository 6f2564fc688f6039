"""Spends several budgets that refill so that their prices settle where income and spending meet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, MappingOf, OneOf
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.admit._base import REFUSE, Admission, admission_worths
from apportion.solve.online_prices import dual_step, hedge, mixed

_NONE: Mapping[str, float] = {}
_PENDING = 4096
"""Decisions whose cost is not measured yet; beyond it the oldest keeps the amount that was set aside."""


@final
class PrimalDualBudget(Admission):
    """Spends several budgets that refill so that their prices settle where income and spending meet.

    Two players learn against each other [1]_. The dual one holds a price for each resource and moves it by
    gradient descent: up when a round cost more than its share of the budget, down when less. The primal one
    chooses what leaves most at these prices, by a rule without regret. When a budget could be overdrawn, the
    request is refused, and the budget recovers. Whatever the requests are, drawn or chosen by an adversary,
    the same method serves: against the best fixed mixture it loses O(sqrt(T)) in the first case, and keeps a
    share of at least (rho + beta) / (1 + beta) in the second, where rho is the budget per round and beta what
    refusing restores, in units of the most that a round can cost.

        lambda_r <- clip(lambda_r + rate (cost_r - allowed_r), 0, most_price),  allowed_r = budget_r / horizon
        + income_r L_o = value - sum_r (price_r + lambda_r) cost_r "offered"  choose argmax L_o of this
        request "hedge"    choose o with probability ~ exp(eta sum of past L_o), all options' L known "exp3"
        the same from the chosen option's L alone, over its probability, with a share drawn evenly

    Parameters
    ----------
    budgets
        Resource to the amount in stock at the start, zero or more.
    refill_per_s
        Resource to the amount that comes in each second, zero or more; a stock does not grow beyond ``cap``.
    most
        Resource to the most that one decision can cost, zero or more, which is set aside until the cost is
        measured; a resource that is not named: what the option is predicted to cost.
    cap
        The most that a stock holds, in units of its budget, one or more.
    primal
        "offered" believes the value and cost each option comes with; "hedge" and "exp3" learn, per action and
        whatever the request, from offered and from measured ones.
    horizon
        T: decisions over which the starting stock should last, an integer of one or more.
    value_usd
        The most that one decision is worth, above 0: the unit in which rewards are learned.
    rate
        Step of the prices in units of value_usd / (most * sqrt(horizon)), above 0.
    most_price
        Greatest price of a resource in units of value_usd over its allowance, above 0.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(n R) per decision for n options and R budgets, O(R) per outcome; R prices, one sum an action (64 at
    most), the amounts set aside for at most 4096 decisions.

    Notes
    -----
    Prices lambda come on top of the state's: give a resource either this budget or a soft budget of the
    proxy, not both. Prices move with the measured cost, when it comes; until then what could at most be spent
    is set aside, so that no order of outcomes overdraws a stock, as long as no cost exceeds ``most`` (or,
    unnamed, its prediction). A cost that never comes stays set aside. Costs below zero, as in simulation,
    fill the stock. A refused round costs what its option says, nothing if it says nothing. The paper refuses
    when a stock is below 1, the most that a round can cost; here when it is below what the option could cost.
    The reward of "exp3" is the offered value where no quality came, else the worth of the measured one.

    See Also
    --------
    admit/time_fair : one budget that does not refill, and fairness over time.
    admit/always : the baseline.

    References
    ----------
    .. [1] M. Bernasconi, M. Castiglioni, A. Celli, F. Fusco (2023). "Bandits with Replenishable Knapsacks: the Best of
       both Worlds." arXiv:2306.08470

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option("serve", 0.02, Cost(usd=0.01)), Option("refuse", 0.0, Cost(usd=0.0))]
    >>> policy = PrimalDualBudget(budgets={"usd": 0.02}, refill_per_s={"usd": 0.004}, horizon=100)
    >>> actions = []
    >>> for k in range(8):
    ...     decision = policy.decide(State(float(k), offer, id=f"{k}", prices={"usd": 1.0}))
    ...     policy.learn(Outcome(decision.id, "ok", decision.action, Cost(usd=0.01 * (decision.choice == 0))))
    ...     actions.append(decision.action)
    >>> actions
    ['serve', 'serve', 'refuse', 'serve', 'refuse', 'serve', 'refuse', 'refuse']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "budgets": MappingOf(Interval(float, 0.0)),
        "refill_per_s": MappingOf(Interval(float, 0.0)),
        "most": MappingOf(Interval(float, 0.0)),
        "cap": Interval(float, 1.0),
        "primal": OneOf("offered", "hedge", "exp3"),
        "horizon": Interval(int, 1),
        "value_usd": Interval(float, 0.0, closed="neither"),
        "rate": Interval(float, 0.0, closed="neither"),
        "most_price": Interval(float, 0.0, closed="neither"),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        budgets: Mapping[str, float] = {},
        refill_per_s: Mapping[str, float] = {},
        most: Mapping[str, float] = {},
        cap: float = 1.0,
        primal: str = "offered",
        horizon: int = 10_000,
        value_usd: float = 0.01,
        rate: float = 1.0,
        most_price: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.budgets = budgets
        self.refill_per_s = refill_per_s
        self.most = most
        self.cap = cap
        self.primal = primal
        self.horizon = horizon
        self.value_usd = value_usd
        self.rate = rate
        self.most_price = most_price
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Full stocks, prices of zero."""
        self.stock = {name: float(amount) for name, amount in self.budgets.items()}
        """Resource to what is left and not set aside."""
        self.price = dict.fromkeys(self.budgets, 0.0)
        """Resource to its lambda, dollars per unit."""
        self._income = dict.fromkeys(self.budgets, 0.0)
        """Resource to what came in per decision, on average."""
        self._scale = {name: float(self.most.get(name, 0.0)) for name in self.budgets}
        """Resource to the most that a decision cost or could cost so far."""
        self._pending: dict[str, dict[str, Any]] = {}
        self._gains: dict[str, float] = {}
        self._rounds = 0
        self._now: float | None = None
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Refill, choose at the prices of the moment, set aside what it may cost."""
        if not state.options:
            return self.nothing(state)
        self._refill(state.now)
        self._rounds += 1
        left = admission_worths(state)
        feasible = [k for k, option in enumerate(state.options) if left[k] is not None and self._fits(option)]
        gains = {k: (left[k] or 0.0) - self._charged(state.options[k]) for k in feasible}
        serving = [k for k in feasible if state.options[k].action != REFUSE]
        if not serving:
            why = "a budget could be overdrawn, or a cost is unknown"
            decision = self.turned_away(state, left, 1.0, why)
        elif self.primal == "offered" and max(gains.values()) < 0.0:
            decision = self.turned_away(state, left, 1.0, "worth less than the budgets' prices")
        else:
            index, chance = self._choose(state, gains)
            action = state.options[index].action
            why = (
                "most left after the budgets' prices"
                if self.primal == "offered"
                else "drawn by what it gained"
            )
            decision = Decision(state.id, index, action, chance, state.prices, state.options, left, why)
        self._set_aside(state, decision, gains)
        return decision

    def learn(self, outcome: Outcome) -> None:
        """Put back what was set aside, take out what it cost, correct the prices; each decision once."""
        pending = self._pending.get(outcome.decision_id)
        if pending is None or outcome.revised or pending["action"] != outcome.action:
            return
        del self._pending[outcome.decision_id]
        action, chance = outcome.action, pending["chance"]
        spent = {}
        for name, aside in pending["aside"].items():
            measured = outcome.cost.get(name)
            if measured is None or not math.isfinite(measured):
                measured = 0.0 if action == REFUSE or outcome.status == "refused" else aside
            spent[name] = measured
            self._put(name, aside - measured)
            self._scale[name] = max(self._scale[name], abs(measured))
            self._step(name, measured - pending["counted"][name])
        if self.primal == "hedge":
            for other, gain in pending["gains"].items():
                self._learn_gain(other, gain)
        elif self.primal == "exp3" and action is not None:
            worth, quality = pending["worth"], outcome.quality
            gain = pending["value"] if quality is None or worth is None else worth * quality
            paid = sum(self.price[name] * amount for name, amount in spent.items())
            self._learn_gain(action, (gain - paid) / chance)

    def _choose(self, state: State, gains: dict[int, float]) -> tuple[int, float]:
        """The option, among those with ``gains``, and its probability."""
        if self.primal == "offered":
            refusing = [k for k in gains if state.options[k].action == REFUSE]
            return max(gains, key=lambda k: (gains[k], k in refusing, -k)), 1.0
        places = list(gains)
        actions = [state.options[k].action for k in places]
        rounds = max(self.horizon, self._rounds)
        pressure = math.log(max(len(places), 2)) / rounds
        eta = math.sqrt(pressure / (len(places) if self.primal == "exp3" else 1)) / self._unit()
        chances = hedge([self._gains.get(action, 0.0) for action in actions], eta)
        if self.primal == "exp3":
            chances = mixed(chances, min(0.5, math.sqrt(len(places) * pressure)))
        draw = self._random.random()
        for place, chance in zip(places, chances, strict=True):
            draw -= chance
            if draw < 0.0:
                return place, chance
        return places[-1], chances[-1]

    def _learn_gain(self, action: str, gain: float) -> None:
        """Add a gain to an action's sum."""
        before = self._gains.pop(action, 0.0)
        if len(self._gains) >= 64:
            del self._gains[next(iter(self._gains))]
        self._gains[action] = before + gain

    def _unit(self) -> float:
        """The most that the gain of a round can be, in dollars."""
        return self.value_usd + sum(self.price[name] * self._scale[name] for name in self.budgets)

    def _charged(self, option: Option) -> float:
        """What an option pays for the budgets, at their prices."""
        return sum(price * (option.cost.get(name) or 0.0) for name, price in self.price.items())

    def _aside(self, option: Option) -> dict[str, float]:
        """The most that an option can cost each budget."""
        if option.action == REFUSE:
            return {name: max(0.0, option.cost.get(name) or 0.0) for name in self.stock}
        return {name: max(0.0, option.cost.get(name) or 0.0, self.most.get(name, 0.0)) for name in self.stock}

    def _fits(self, option: Option) -> bool:
        """Whether no stock can be overdrawn; an unknown cost in a resource without a ``most`` does not fit."""
        if option.action == REFUSE:
            return True
        if any(option.cost.get(name) is None and name not in self.most for name in self.stock):
            return False
        return all(amount <= self.stock[name] for name, amount in self._aside(option).items())

    def _set_aside(self, state: State, decision: Decision, gains: dict[int, float]) -> None:
        """Hold what the choice may cost, and move the prices by what it is predicted to cost."""
        if decision.choice is None:
            for name in self.stock:
                self._step(name, -self._allowed(name))
            return
        option = state.options[decision.choice]
        aside = self._aside(option)
        counted = {}
        for name, amount in aside.items():
            self.stock[name] -= amount
            self._scale[name] = max(self._scale[name], amount)
            allowed = self._allowed(name)
            unknown = 0.0 if option.action == REFUSE else allowed
            counted[name] = option.cost.get(name, unknown)
            self._step(name, counted[name] - allowed)
        if len(self._pending) >= _PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[state.id] = {
            "action": option.action,
            "aside": aside,
            "counted": counted,
            "chance": decision.probability,
            "value": option.value,
            "worth": None if not option.quality else option.value / option.quality,
            "gains": {state.options[k].action: gain for k, gain in gains.items()},
        }

    def _put(self, name: str, amount: float) -> None:
        """Add to a stock, within what it holds."""
        self.stock[name] = min(
            self.stock[name] + amount, max(self.cap * self.budgets[name], self.stock[name])
        )

    def _refill(self, now: float) -> None:
        """Let in what came since the last decision."""
        passed = 0.0 if self._now is None else max(0.0, now - self._now)
        self._now = now if self._now is None else max(now, self._now)
        for name in self.stock:
            amount = self.refill_per_s.get(name, 0.0) * passed
            self._income[name] += (amount - self._income[name]) / min(self._rounds + 1, 1000)
            self._put(name, amount)

    def _allowed(self, name: str) -> float:
        """What a decision may spend on average: its share of the first stock, and what comes in."""
        return self.budgets[name] / self.horizon + self._income[name]

    def _step(self, name: str, excess: float) -> None:
        """Move the price of a resource by what was spent above what is allowed."""
        scale = self._scale[name] or 1.0
        rate = self.rate * self.value_usd / (scale * scale * math.sqrt(self.horizon))
        allowed = self._allowed(name)
        top = self.most_price * self.value_usd / allowed if allowed > 0.0 else 1e12
        self.price[name] = dual_step(self.price[name], excess, 0.0, rate, min(top, 1e12))

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Each primal player, several budgets."""
        yield {"budgets": {"usd": 0.5, "tokens": 900.0}, "refill_per_s": {"usd": 0.01}, "most": {"usd": 0.4}}
        yield {"primal": "hedge", "budgets": {"usd": 3.0}, "most": {"usd": 1.0}, "horizon": 50, "seed": 2}
        yield {"primal": "exp3", "budgets": {"usd": 3.0}, "cap": 2.0, "value_usd": 1.0, "rate": 2.0}
