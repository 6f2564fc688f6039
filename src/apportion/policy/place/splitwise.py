"""Splitwise's choice: the shortest queue of the phase's own pool, and other pools when that one is full."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State


@final
class Splitwise(Policy):
    """Chooses the machine for one phase of a request: the least loaded of its pool, else of the mixed one,
    else of the other.

    Machines are in three pools, for prompts, for answers ("token") and mixed [1]_. A prompt goes to the
    machine with the fewest pending tokens, an answer to the one with the fewest tokens committed to its
    memory. Where the queue would be longer than ``long_tokens`` (prompts) or the memory is full (answers),
    the mixed pool is looked at in the same way; where that has no room either, the machine of the other pool
    with the most free memory is chosen, which the cluster then counts as mixed until it has no work of the
    other phase left.

        prompt  argmin pending    over prompt, then mixed, if  pending = 0  or  pending + tokens <= long_tokens
        answer  argmin committed  over token, then mixed, if  committed + tokens <= memory
        else    argmin committed  over the other pool
        else    argmin pending over all (prompt), the prompt's own machine (answer)

    An option is a machine with the facts ``pool``, ``pending_tokens``, ``committed_tokens``, ``kv_tokens`` and
    ``prompt_here``; the request says ``phase`` ("prompt" or "token"), ``prompt_tokens`` and ``output_tokens``.

    Parameters
    ----------
    long_tokens
        The longest queue of prompts, in tokens, that a prompt joins while another pool may have room.

    Complexity
    ----------
    O(n) for n machines; nothing is learned; O(1) memory.

    Notes
    -----
    The length of the answer is taken as known, as in the authors' simulator; a serving system has to
    predict it. The paper also moves a machine for good that has been mixed for long; `plan.provision`
    chooses the sizes of the pools instead.

    See Also
    --------
    route/least_load : one pool for everything.

    References
    ----------
    .. [1] P. Patel, E. Choukse, C. Zhang, A. Shah, I. Goiri, S. Maleki and R. Bianchini (2024). "Splitwise: Efficient
       Generative LLM Inference Using Phase Splitting." ISCA 2024. arXiv:2311.18677

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> def machine(name, pool, pending):
    ...     facts = {"pool": pool, "pending_tokens": pending, "committed_tokens": 0, "kv_tokens": 10_000}
    ...     return Option(name, 0.0, Cost(), facts=facts)
    >>> machines = [machine("a", "prompt", 700), machine("b", "prompt", 300), machine("c", "token", 0)]
    >>> policy = Splitwise(long_tokens=1024.0)
    >>> policy.decide(State(0.0, machines, request={"phase": "prompt", "prompt_tokens": 500})).action
    'b'
    >>> policy.decide(State(0.0, machines, request={"phase": "prompt", "prompt_tokens": 900})).action
    'c'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"long_tokens": Interval(float, 0)}

    def __init__(self, *, long_tokens: float = 8192.0) -> None:
        self.long_tokens = long_tokens
        self.start()

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, state: State) -> Decision:
        """Choose a machine for the phase that the request names; without one, for its prompt."""
        options = state.options
        if not options:
            return self.nothing(state)
        answer = state.request.get("phase") == "token"
        prompt = _amount(state.request.get("prompt_tokens"))
        tokens = prompt + (_amount(state.request.get("output_tokens")) if answer else 0.0)
        own, other, measure = (
            ("token", "prompt", "committed_tokens") if answer else ("prompt", "token", "pending_tokens")
        )
        for pool in (own, "mixed"):
            index = _least(options, pool, measure)
            if index is not None and self._has_room(options[index], tokens, answer):
                return self._chosen(state, index, f"least loaded of the {pool} pool")
        index = _least(options, other, "committed_tokens")
        if index is not None and (not answer or self._has_room(options[index], tokens, answer)):
            return self._chosen(state, index, f"lent by the {other} pool")
        if answer:
            here = [i for i, option in enumerate(options) if _fact(option, "prompt_here", False) is True]
            index = here[0] if here else _least(options, None, measure)
        else:
            index = _least(options, None, measure)
        return self._chosen(state, index or 0, "every pool is full")

    def _has_room(self, option: Option, tokens: float, answer: bool) -> bool:
        if answer:
            return _number(option, "committed_tokens", 0.0) + tokens <= _number(option, "kv_tokens", math.inf)
        pending = _number(option, "pending_tokens", 0.0)
        return pending == 0 or pending + tokens <= self.long_tokens

    def _chosen(self, state: State, index: int, why: str) -> Decision:
        options, prices = state.options, state.prices
        worths: list[float | None] = [None] * len(options)
        paid = options[index].cost.at_prices(prices)
        worths[index] = None if paid is None else options[index].value - paid
        return Decision(state.id, index, options[index].action, 1.0, prices, options, tuple(worths), why)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A short queue."""
        yield {"long_tokens": 2048.0}


def _least(options: Iterable[Option], pool: str | None, measure: str) -> int | None:
    """The option of ``pool`` (None: of all) with the least of ``measure``, ties by name."""
    found = [
        (_number(option, measure, 0.0), option.action, i)
        for i, option in enumerate(options)
        if pool is None or _fact(option, "pool", "mixed") == pool
    ]
    return min(found)[2] if found else None


def _fact(option: Option, name: str, missing: Any) -> Any:
    facts = option.facts
    value = facts.get(name) if facts is not None else None
    return missing if value is None else value


def _number(option: Option, name: str, missing: float) -> float:
    return _amount(_fact(option, name, missing), missing)


def _amount(value: object, missing: float = 0.0) -> float:
    return float(value) if isinstance(value, int | float) and value == value else missing
