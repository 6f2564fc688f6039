"""How much of a device's processors prompts get and how much answers, steered by what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.policy import Policy
from apportion.core.state import State


@final
class PhaseSplit(Policy):
    """Chooses the largest share for prompts on which answers are predicted to keep their objective.

    semi-PD runs prompts and answers at once on shares x and 1 - x of one device [1]_. The pressure of a phase
    is its measured latency over its objective. On another share that of answers is predicted to scale
    inversely with the share (what the paper fits). A request is worth something only if it meets both
    objectives: what answers do not need is best given to prompts, whose latency only falls with it; and what
    answers lack, more for prompts cannot make good. So answers come first: over ``limit`` they are given the
    least that is predicted to bring them below ``comfort``; else, where prompts are not at ``ease``, prompts
    are given the most that leaves answers there.

        predicted(x')  =  p_answer * (1 - x) / (1 - x')
        choose  the largest x' with |x' - x| <= step and predicted(x') <= comfort (the smallest, if none),
                if p_answer > limit (then x' < x), or p_prompt > ease (then x' > x);  else x

    An option is a split with the fact ``share``; the request says ``share`` (the present one), ``ttft`` and
    ``tpot`` (the pressures).

    Parameters
    ----------
    step
        The most that the share moves at a time.
    comfort
        The pressure of answers that is aimed at.
    limit
        The pressure of answers from which they are given more; above ``comfort``, so that the split comes to rest.
    ease
        The pressure of prompts below which they are not given more.
    smooth
        Weight of the newest measurement, in (0, 1]; 1 forgets the others.
    cap
        Pressures are taken to be at most this.

    Complexity
    ----------
    O(n) for n splits; O(1) memory: two smoothed pressures.

    Notes
    -----
    Decoding slows by less than in inverse proportion while its share saturates the memory, so that the
    prediction errs on the side of answers; the next measurement corrects it. The paper weighs the two
    objectives by how far each is missed; that oscillates where both cannot be met.

    See Also
    --------
    place/splitwise : phases on machines of their own.

    References
    ----------
    .. [1] K. Hong, L. Chen, Z. Wang, X. Li and others (2025). "semi-PD: Towards Efficient LLM Serving via Phase-Wise
       Disaggregated Computation and Unified Storage." arXiv:2504.19867

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> splits = [Option(f"{x:g}", 0.0, Cost(), facts={"share": x}) for x in (0.3, 0.4, 0.5, 0.6, 0.7)]
    >>> policy = PhaseSplit(smooth=1.0)
    >>> policy.decide(State(0.0, splits, request={"share": 0.5, "ttft": 1.6, "tpot": 0.7})).action
    '0.6'
    >>> policy.decide(State(2.0, splits, request={"share": 0.6, "ttft": 0.4, "tpot": 1.1})).action
    '0.5'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "step": Interval(float, 0, 1, closed="right"),
        "comfort": Interval(float, 0, closed="neither"),
        "limit": Interval(float, 0, closed="neither"),
        "ease": Interval(float, 0),
        "smooth": Interval(float, 0, 1, closed="right"),
        "cap": Interval(float, 0, closed="neither"),
    }

    def __init__(
        self,
        *,
        step: float = 0.1,
        comfort: float = 0.88,
        limit: float = 0.95,
        ease: float = 0.25,
        smooth: float = 0.5,
        cap: float = 2.0,
    ) -> None:
        self.step = step
        self.comfort = comfort
        self.limit = limit
        self.ease = ease
        self.smooth = smooth
        self.cap = cap
        self.start()

    def reset(self) -> None:
        """Forget the measurements."""
        self._pressures: list[float] = []

    def decide(self, state: State) -> Decision:
        """Choose a split; the present one (or the one nearest to it) where nothing presses."""
        options = state.options
        if not options:
            return self.nothing(state)
        shares = [_number(o.facts.get("share") if o.facts is not None else None, 0.5) for o in options]
        shares = [min(max(share, 0.01), 0.99) for share in shares]
        share = min(max(_number(state.request.get("share"), 0.5), 0.01), 0.99)
        prompt, answer = self._smoothed(
            *(min(max(_number(state.request.get(name), 0.0), 0.0), self.cap) for name in ("ttft", "tpot"))
        )

        index = min(range(len(options)), key=lambda i: (abs(shares[i] - share), options[i].action))
        why = "nothing presses"
        if answer > self.limit or prompt > self.ease:
            more = answer <= self.limit
            near = [
                i
                for i in range(len(options))
                if 1e-9 < (shares[i] - share if more else share - shares[i]) <= self.step + 1e-9
            ]
            kept = [i for i in near if answer * (1.0 - share) / (1.0 - shares[i]) <= self.comfort]
            if kept:
                index = min(kept, key=lambda i: (-shares[i], options[i].action))
            elif near and not more:
                index = min(near, key=lambda i: (shares[i], options[i].action))
            why = "answers leave it to prompts" if more else "answers need more"
        paid = options[index].cost.at_prices(state.prices)
        worths: list[float | None] = [None] * len(options)
        worths[index] = None if paid is None else options[index].value - paid
        return Decision(
            state.id, index, options[index].action, 1.0, state.prices, options, tuple(worths), why
        )

    def _smoothed(self, prompt: float, answer: float) -> tuple[float, float]:
        if self._pressures:
            old, new = self._pressures, self.smooth
            prompt, answer = (1 - new) * old[0] + new * prompt, (1 - new) * old[1] + new * answer
        self._pressures = [prompt, answer]
        return prompt, answer

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Bold, and cautious."""
        yield {"step": 0.3, "smooth": 1.0, "ease": 0.0}
        yield {"step": 0.05, "smooth": 0.3, "comfort": 0.7, "limit": 0.9, "cap": 4.0}


def _number(value: object, missing: float) -> float:
    return float(value) if isinstance(value, int | float) and value == value else missing
