"""From what is known to a decision, and from what became of it to what the policies are told.

The same few steps in the proxy and in the simulator: who decides, with what probability, what an admission policy
sees, and the outcomes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.policy import Policy
from apportion.core.state import State

logger = logging.getLogger("apportion.choosing")

REFUSE: Final = Option("refuse", 0.0, Cost(usd=0.0, tokens=0.0, server_seconds=0.0, seconds=0.0))


def drawn_in(share: float, who: str) -> bool:
    """Whether ``who`` (a session, else an end user, else a decision's id) is among the ``share`` of those for whom the
    model's policy decides and not its baseline: the same for all of a conversation.
    """
    return share >= 1.0 or zlib.crc32(who.encode()) / 2**32 < share


def choose(state: State, policy: Policy, other: Policy, share: float) -> Decision:
    """The decision of ``policy``, which decides for ``share`` of the requests, and ``other`` for the rest.

    Its probability is that before it was drawn who decides. With a share of 1 (or 0) nobody else is asked.
    """
    decision = policy.decide(state)
    if 0.0 < share < 1.0:
        else_ = watched(other, state)
        if else_ is not None:
            decision.probability = mixed(decision, else_, share)
    return decision


def watched(policy: Policy, state: State) -> Decision | None:
    """What a policy that does not act would do; its faults are not the request's."""
    try:
        return policy.decide(state)
    except Exception:
        logger.exception("%s: a policy that only watches has failed", state.id)
        return None


def mixed(decision: Decision, other: Decision, share: float) -> float | None:
    """The probability of a choice before it was drawn who decides: ``share`` is that of whose ``decision`` it is.

    None where the other draws, too, and has drawn something else: how likely this was is then not known.
    """
    if decision.probability is None or other.probability is None:
        return None
    if other.choice == decision.choice:
        return share * decision.probability + (1.0 - share) * other.probability
    return share * decision.probability if other.probability == 1.0 else None


def stays(state: State, index: int, why: str) -> Decision:
    """The decision for option ``index`` where no policy is asked: a conversation stays, a strategy has chosen."""
    options = state.options
    return Decision(
        state.id,
        index,
        options[index].action,
        1.0,
        state.prices,
        options,
        (None,) * len(options),
        why,
    )


def request_facts(
    api: str,
    key: str,
    input_tokens: float,
    stream: bool,
    attempt: int,
    *,
    effort: float | None = None,
    priority: int | None = None,
    tags: Sequence[str] | None = None,
    user: str | None = None,
    worth_usd: float | None = None,
) -> dict[str, object]:
    """What a policy is told about a request (`State.request`); ``attempt`` counts from 0 while it is decided first."""
    facts: dict[str, object] = {
        "api": api,
        "key": key,
        "input_tokens": input_tokens,
        "stream": stream,
        "attempt": attempt,
    }
    if effort is not None:
        facts["effort"] = effort
    if priority is not None:
        facts["priority"] = priority
    if tags:
        facts["tags"] = tags
    if user is not None:
        facts["user"] = user
    if worth_usd is not None:
        facts["worth_usd"] = worth_usd
    return facts


def ask_admission(
    policy: Policy,
    state: State,
    *,
    budget_used: float | None,
    budget_resource: str | None,
    deadline_s: float | None,
    tenant: str,
) -> Decision:
    """Whether a request is let in: its best option at the present prices against refusing it. ``state`` is changed.

    ``budget_used`` is the spent share of the tightest hard budget, of ``budget_resource``; None where none binds.
    """
    best = max(state.options, key=lambda option: _left(option, state.prices))
    accept = dataclasses.replace(best, action="accept")
    state.request = {
        **state.request,
        "load": min((option.load or 0.0 for option in state.options), default=0.0),
        "budget_used": budget_used,
        "budget_resource": budget_resource,
        "deadline_s": deadline_s,
        "tenant": tenant,
    }
    state.options = [accept, REFUSE]
    return policy.decide(state)


def _left(option: Option, prices: Mapping[str, float]) -> float:
    paid = option.cost.at_prices(prices)
    return -math.inf if paid is None else option.value - paid


def outcome(
    id: str,
    status: Status,
    action: str,
    *,
    tokens: int,
    server_s: float,
    duration_s: float,
    usd: float | None,
    joules: float | None,
    censored: bool,
    state: State | None,
) -> Outcome:
    """What the routing policies learn of one attempt: ``tokens`` of both sides; None is not known."""
    known: dict[str, float] = {
        "tokens": float(tokens),
        "server_seconds": server_s,
        "seconds": duration_s,
        "requests": 1.0,
    }
    if usd is not None:
        known["usd"] = usd
    if joules is not None:
        known["joules"] = joules
    return Outcome(id, status, action, Cost.of(known), None, duration_s, censored, state)


def admitted(
    id: str, status: Status, action: str | None, *, tokens: int, server_s: float, usd: float | None
) -> Outcome:
    """What the admission policy learns of a request that it let in: all its attempts together."""
    known = {"tokens": float(tokens), "server_seconds": server_s, "requests": 1.0}
    if usd is not None:
        known["usd"] = usd
    return Outcome(id, status, action, Cost.of(known))
