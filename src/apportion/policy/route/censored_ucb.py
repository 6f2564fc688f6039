"""Chooses an arm and how much it may use, and learns from runs that were cut short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, Kind
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._base import Router
from apportion.policy.route._learned import REMEMBERED, shown_quality, worth_of_right
from apportion.solve.bandit import confidence_width

_CUT = -1.0
"""Stands for what a run used that a limit ended."""


@final
class CensoredUCB(Router):
    """Chooses an arm and how much it may use, and learns from runs that were cut short.

    An option is an arm (a model) with a limit (output tokens, seconds): a tighter limit costs less and cuts
    more answers off. A run at limit t that used y says what would have happened at every limit s up to t: an
    answer if y <= s, else none, at the price of min(y, s). So one run updates all of its arm's limits below,
    and the arm and the limit are learned together [1]_, where a bandit over the pairs would have to try each.

        n = runs of the arm at limits >= s,   g = mean quality [y <= s],   u = mean min(y, s) / s
        choose  argmax over (arm, s) of  worth g - u cost(arm, s) + (worth + cost) sqrt(exploration ln(t) / n)

    Parameters
    ----------
    resource
        What the limit limits: "seconds" is the outcome's latency, any other name that resource of its cost.
    exploration
        Under the root, above 0. The proof needs 2; half a unit is the variance bound of a quality in [0, 1].
    pairs
        Pairs of arm and limit that are kept, an integer of one or more; beyond it the one longest without
        news is forgotten.

    Complexity
    ----------
    O(n) per decision for n options, O(limits of the arm) per outcome; five numbers a pair.

    Notes
    -----
    The arm stands in ``option.facts["arm"]`` and the limit in ``option.facts["limit"]``, or both in the
    action as "arm@limit"; without them an option is an arm without a limit. ``option.cost`` is what the
    option costs when its limit is used up; what is used of it is learned. A dearer fixed part, such as the
    prompt, is then slightly under-priced. The paper adds its own cost function of limits; here that is the
    priced cost. A pair that was never informed comes first, the cheapest of them before the others. A failed
    run that was not cut has quality 0. An option with unknown cost comes last. Requests are not told apart:
    qualities are of the arm, not of the request.

    See Also
    --------
    route/censored_linear : learns run times from features instead.
    route/linucb : on plain arms, with features.

    References
    ----------
    .. [1] V. Bengs, E. Huellermeier (2022). "Multi-Armed Bandits with Censored Consumption of Resources."
       Machine Learning 112. arXiv:2011.00813

    Examples
    --------
    >>> from apportion.core import Cost, Option, Outcome, State
    >>> offer = [Option(f"a@{t}", 0.01, Cost(usd=t * 1e-6)) for t in (100, 1000)]
    >>> policy = CensoredUCB(exploration=0.1)
    >>> state = State(0.0, offer, prices={"usd": 1.0})
    >>> policy.decide(state).action
    'a@100'
    >>> for k in range(20):
    ...     policy.learn(Outcome(f"{k}", "ok", "a@1000", Cost(tokens=300.0), quality=1.0, state=state))
    >>> policy.decide(state).action
    'a@1000'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "resource": Kind(str),
        "exploration": Interval(float, 0.0, closed="neither"),
        "pairs": Interval(int, 1),
    }

    def __init__(self, *, resource: str = "tokens", exploration: float = 0.5, pairs: int = 512) -> None:
        self.resource = resource
        self.exploration = exploration
        self.pairs = pairs
        self.start()

    def reset(self) -> None:
        """Forget every run."""
        self._pairs: dict[str, list[float]] = {}
        """Action to its runs, their quality and share of the limit used; longest without news first."""
        self._told: dict[str, list[float | None]] = {}
        """Run to its quality and what it used, each None while not known."""
        self._runs = 0

    def decide(self, state: State) -> Decision:
        """Choose the pair with the greatest optimistic gain."""
        options = state.options
        if not options:
            return self.nothing(state)
        prices, told = state.prices, state.request.get("worth_usd")
        best, choice = (-math.inf, -math.inf, -math.inf), 0
        worths: list[float | None] = []
        for index, option in enumerate(options):
            paid = option.cost.at_prices(prices)
            worth = worth_of_right(option, told)
            runs, gained, used = self._pairs.get(option.action, (0.0, 0.0, 0.0))
            light = -option.load if option.load is not None else -math.inf
            if paid is None:
                worths.append(None)
                score = (-math.inf, option.value if option.value == option.value else -math.inf, light)
            elif not runs:
                worths.append(worth - paid if worth == worth else None)
                score = (math.inf, -paid, light)
            else:
                left = worth * gained / runs - used / runs * paid
                worths.append(left)
                width = confidence_width(runs, self._runs + 1.0, self.exploration)
                score = (left + (worth + paid) * width, -paid, light)
            if score > best:
                best, choice = score, index
        why = "gains most for what it uses, if luck is good" if best[0] < math.inf else "not tried yet"
        return Decision(state.id, choice, options[choice].action, 1.0, prices, options, tuple(worths), why)

    def learn(self, outcome: Outcome) -> None:
        """Take in one run: for its own limit and for every lower one of its arm."""
        state, action = outcome.state, outcome.action
        if action is None or state is None or outcome.status in ("cancelled", "refused"):
            return
        option = next((option for option in state.options if option.action == action), None)
        if option is None:
            return
        key = f"{outcome.decision_id}|{action}"
        before, used = self._told.get(key, (None, None))
        cut = outcome.censored or outcome.status == "timeout"
        if used is None:
            seen = outcome.latency_s if self.resource == "seconds" else outcome.cost.get(self.resource)
            used = _CUT if cut else seen
        quality = shown_quality(outcome)
        if quality is None and cut and not outcome.revised:
            quality = 0.0
        if key not in self._told and len(self._told) >= REMEMBERED:
            del self._told[next(iter(self._told))]
        changed = quality is not None and quality != before
        self._told[key] = [quality if changed else before, used]
        if quality is None or not changed:
            return
        if before is None:
            self._runs += 1
        arm, limit = arm_and_limit(option)
        for other in state.options:
            its_arm, its_limit = arm_and_limit(other)
            own = other.action == action
            if own or (used is not None and its_arm == arm and its_limit < limit):
                kept = own or (used is not None and 0.0 <= used <= its_limit)
                if kept or before is None:
                    self._take(other.action, its_limit, quality if kept else 0.0, before, used)

    def _take(
        self, action: str, limit: float, quality: float, before: float | None, used: float | None
    ) -> None:
        """Add a run to one pair, or the difference that a later word makes."""
        pair = self._pairs.pop(action, None)
        if pair is None:
            if len(self._pairs) >= self.pairs:
                del self._pairs[next(iter(self._pairs))]
            pair = [0.0, 0.0, 0.0]
        if before is None:
            pair[0] += 1.0
            pair[2] += 1.0 if used is None or not 0.0 <= used < limit < math.inf else used / limit
        pair[1] += quality - (before or 0.0)
        self._pairs[action] = pair

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Limits in seconds, with few pairs kept."""
        yield {"resource": "seconds", "exploration": 2.0, "pairs": 3}


def arm_and_limit(option: Option) -> tuple[str, float]:
    """The arm and the limit of an option, from its facts or its action "arm@limit"; no limit is infinite."""
    facts = option.facts
    if facts is not None:
        limit = facts.get("limit")
        if isinstance(limit, float | int):
            return str(facts.get("arm", option.action.partition("@")[0])), float(limit)
    arm, at, text = option.action.rpartition("@")
    if at:
        try:
            return arm, float(text)
        except ValueError:
            pass
    return option.action, math.inf
