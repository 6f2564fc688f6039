"""Conversations in a trace: which requests belong together, how many turns they have, how long people pause."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Trace
from apportion.simulate.workload import lengths
from apportion.simulate.workload.model import Talk

_MOST_TURNS = 200


@dataclass(frozen=True, eq=False, slots=True)
class Turns:
    """The requests that belong to conversations, ordered by conversation and time: ``rows`` of the trace; ``first``
    marks openings; ``pause_s`` is the time since the turn before (nan of openings); ``new_tokens`` what the prompt has
    that was not said before.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.bool_]
    pause_s: NDArray[np.float64]
    new_tokens: NDArray[np.int64]

    def sizes(self) -> NDArray[np.int64]:
        """The number of turns of each conversation."""
        starts = np.flatnonzero(self.first)
        return np.diff(np.append(starts, len(self.rows)))


def turns(trace: Trace) -> Turns | None:
    """The conversations of a trace that numbers them, or whose prompt blocks show them; None of others."""
    session = trace.session if trace.session is not None else by_blocks(trace)
    if session is None or not np.any(session >= 0):
        return None
    rows = np.flatnonzero(session >= 0)
    rows = rows[np.argsort(session[rows], kind="stable")]
    numbers = session[rows]
    first = np.concatenate(([True], numbers[1:] != numbers[:-1]))
    times = trace.arrival_s[rows]
    prompts = trace.prompt_tokens[rows].astype(np.int64)
    said = prompts + trace.output_tokens[rows]
    pause = np.concatenate(([np.nan], np.diff(times)))
    pause[first] = np.nan
    new = prompts.copy()
    new[1:] = np.where(first[1:], prompts[1:], np.maximum(1, prompts[1:] - said[:-1]))
    return Turns(rows, first, pause, new)


def by_blocks(trace: Trace) -> NDArray[np.int64] | None:
    """Conversations by what prompts begin with: a request continues the latest one whose whole blocks it begins with,
    all but the last, which may have been cut short.

    Beginnings that more than eight requests without a conversation in common end with are templates, not
    conversations.
    """
    if trace.blocks is None:
        return None
    session = np.empty(len(trace), np.int64)
    ends: dict[int, int] = {}
    opened: dict[int, int] = {}
    count = 0
    for row in range(len(trace)):
        ids = trace.blocks.of(row).tolist()
        parent = -1
        for block in reversed(ids[1:]):
            if block in ends and opened.get(block, 0) <= 8:
                parent = ends[block]
                break
        if parent < 0:
            session[row], count = count, count + 1
        else:
            session[row] = session[parent]
        if len(ids) > 2:
            last = ids[-2]
            if parent < 0 or last not in ends:
                opened[last] = opened.get(last, 0) + 1
            ends[last] = row
    return session


def fit(trace: Trace, found: Turns) -> Talk | None:
    """The law of conversations; None if there are too few follow-ups to say."""
    follow = ~found.first
    if np.count_nonzero(follow) < 50:
        return None
    sizes = np.bincount(np.minimum(found.sizes(), _MOST_TURNS))[1:]
    rows = found.rows[follow]
    return Talk(
        tuple((sizes / sizes.sum()).tolist()),
        tuple(np.quantile(found.pause_s[follow], lengths.LEVELS).tolist()),
        lengths.fit(found.new_tokens[follow].astype(np.int32), trace.output_tokens[rows]),
        int(trace.prompt_tokens[found.rows].max()),
    )
