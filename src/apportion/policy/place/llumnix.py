"""Llumnix's choice: the instance with the most freedom gets new requests; the least free one gives some away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State


@final
class Llumnix(Policy):
    """Chooses the instance that a request joins or leaves, by how long its memory will do: its freeness.

    Every request has a virtual usage of its instance's memory [1]_. A running one uses what it uses; the first of
    those that wait uses what it asks for, so that a full instance is in debt; a request of high priority also uses
    the headroom that it is to have; and an instance that is to be emptied is used without bound. What is left, over
    the requests that share it, is for how many steps the batch can go on. Headroom is kept as long as others find a
    place without it: where no instance is free, or may join, beside it, everything is decided as if there were none,
    so that headroom which nobody can afford makes nobody wait.

        freeness  =  spare / max(1, running)  if  spare > 0  else  spare;     spare = memory - sum of virtual usages
        dispatch  the freest; one of high priority the freest whatever headroom is kept
        leave     the least free, if below ``leave_below``
        join      the freest, if above ``join_above``

    So load is balanced, memory defragmented, priorities kept apart and instances emptied by one rule. An option is
    an instance with the facts ``kv_tokens``, ``used_tokens``, ``head_tokens`` (asked for by the first that waits),
    ``running``, ``high`` (running ones of high priority) and ``draining``; the request says ``task`` (dispatch,
    leave or join), and ``high`` where it is of high priority.

    Parameters
    ----------
    leave_below
        Freeness below which an instance gives requests away, in steps of its batch.
    join_above
        Freeness above which it may be given some.
    headroom
        Share of an instance's memory that its requests of high priority keep free together, in [0, 1]: all but 1,600 of
        13,616 tokens in the paper.

    Complexity
    ----------
    O(n) for n instances; no memory.

    Notes
    -----
    The paper divides a negative spare by the requests, too; then of two instances in debt the fuller one looks freer.
    It always keeps the headroom: once there is a request of high priority on nearly every instance, all are in debt,
    nothing moves, and those of low and of high priority wait alike. Those of high priority gather by themselves: the
    instance that one of them has emptied is the freest for the next.
    Which request leaves is for the instance to say: those of low priority first, then the shortest, whose copy is
    soon made.

    See Also
    --------
    scale/freeness : how many instances there are.
    route/round_robin : what it should beat.

    References
    ----------
    .. [1] B. Sun, Z. Huang, H. Zhao, W. Xiao and others (2024). "Llumnix: Dynamic Scheduling for Large Language Model
       Serving." OSDI. arXiv:2406.03243

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> def box(name, used, running, **facts):
    ...     facts |= {"kv_tokens": 1000, "used_tokens": used, "running": running}
    ...     return Option(name, 0.0, Cost(), facts=facts)
    >>> boxes = [box("a", 900, 10, head_tokens=300), box("b", 400, 4), box("c", 100, 1, draining=True)]
    >>> policy = Llumnix()
    >>> [policy.decide(State(0.0, boxes, request={"task": task})).action for task in ("dispatch", "leave", "join")]
    ['b', 'c', 'b']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "leave_below": Interval(float),
        "join_above": Interval(float),
        "headroom": Interval(float, 0, 1),
    }

    def __init__(
        self, *, leave_below: float = 10.0, join_above: float = 60.0, headroom: float = 0.88
    ) -> None:
        self.leave_below = leave_below
        self.join_above = join_above
        self.headroom = headroom
        self.start()

    def reset(self) -> None:
        """There is nothing to forget."""

    def decide(self, state: State) -> Decision:
        """Choose an instance; nothing where none is below, or above, the bound of the task."""
        options = state.options
        if not options:
            return self.nothing(state)
        task = state.request.get("task", "dispatch")
        freeness = self._freenesses(options, task, bool(state.request.get("high")))
        sign = 1.0 if task == "leave" else -1.0
        choice = min(range(len(options)), key=lambda i: (sign * freeness[i], options[i].action))
        if task == "leave" and freeness[choice] >= self.leave_below:
            return self.nothing(state, "none is short of memory")
        if task == "join" and freeness[choice] <= self.join_above:
            return self.nothing(state, "none has memory to spare")
        paid = options[choice].cost.at_prices(state.prices)
        worths: list[float | None] = [None] * len(options)
        worths[choice] = None if paid is None else options[choice].value - paid
        why = "the least free" if task == "leave" else "the freest"
        return Decision(
            state.id, choice, options[choice].action, 1.0, state.prices, options, tuple(worths), why
        )

    def _freenesses(self, options: Sequence[Option], task: object, high: bool) -> list[float]:
        """Of every instance: with the headroom that is kept, where somebody can do with what is left."""
        plain = [_freeness(option, 0.0) for option in options]
        if task == "dispatch" and high:
            return plain
        kept = [_freeness(option, self.headroom) for option in options]
        enough = 0.0 if task == "dispatch" else self.join_above
        return kept if max(kept) > enough else plain

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Parameter sets that the common tests use."""
        yield {"leave_below": 0.0, "join_above": 100.0, "headroom": 0.5}


def _freeness(option: Option, headroom: float) -> float:
    """Steps for which the memory of an instance will do, less what its requests of high priority keep free."""
    facts = option.facts or {}
    if facts.get("draining"):
        return -math.inf
    memory, used, head, running, high = _numbers(
        facts, ("kv_tokens", "used_tokens", "head_tokens", "running", "high")
    )
    spare = memory - used - head - (headroom * memory if high > 0 else 0.0)
    # In debt, sharing it among more requests would make a fuller instance look freer.
    return spare / max(1.0, running) if spare > 0.0 else spare


def _numbers(facts: Mapping[str, object], names: Sequence[str]) -> list[float]:
    found = []
    for name in names:
        value = facts.get(name)
        known = isinstance(value, (int, float)) and math.isfinite(value)
        found.append(float(value) if known else 0.0)  # type: ignore[arg-type]
    return found
