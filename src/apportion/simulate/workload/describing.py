"""What a workload is like, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Labels, Trace
from apportion.simulate.workload import conversations, fitness

_SHOWN = 20


def described(trace: Trace) -> dict[str, Any]:
    """Requests, rate, burstiness, lengths, who asks for what, conversations; what the trace does not say is None."""
    n, duration_s = len(trace), trace.duration_s
    found = conversations.turns(trace) if n else None
    return {
        "name": trace.name,
        "requests": n,
        "start_s": float(trace.arrival_s[0]) if n else None,
        "duration_s": duration_s,
        "rate_per_s": n / duration_s if duration_s else None,
        "busiest_minute_per_s": _busiest(trace.arrival_s) if n else None,
        "gap_cv": _cv(np.diff(trace.arrival_s)) if n > 2 and duration_s else None,
        "dispersion": {
            f"{width:g}": fitness.dispersion(
                trace.arrival_s, width, start=float(trace.arrival_s[0]), end=float(trace.arrival_s[-1])
            )
            for width in fitness.scales_s(duration_s)
        },
        "prompt_tokens": _lengths(trace.prompt_tokens),
        "output_tokens": _lengths(trace.output_tokens[trace.output_tokens > 0]),
        "together": _correlation(trace),
        "models": _shares(trace.model),
        "tenants": _shares(trace.tenant),
        "failed": None if trace.failed is None or not n else float(trace.failed.mean()),
        "conversations": None if found is None else _conversations(found),
        "blocks": None if trace.blocks is None else _blocks(trace),
        "priorities": None if trace.priority is None else sorted(map(int, np.unique(trace.priority))),
        "deadlines": None if trace.deadline_s is None else int(np.isfinite(trace.deadline_s).sum()),
        "actions": list(trace.actions),
        "notes": list(trace.notes),
    }


def _busiest(times: NDArray[np.float64]) -> float:
    return float(np.unique((times - times[0]) // 60, return_counts=True)[1].max() / 60)


def _cv(gaps: NDArray[np.float64]) -> float:
    return float(gaps.std() / gaps.mean())


def _lengths(tokens: NDArray[np.int32]) -> dict[str, float] | None:
    if not len(tokens):
        return None
    quantiles = np.quantile(tokens, [0.5, 0.9, 0.99])
    named = dict(zip(("p50", "p90", "p99"), quantiles.tolist(), strict=True))
    return {"mean": float(tokens.mean()), **named, "max": float(tokens.max())}


def _correlation(trace: Trace) -> float | None:
    """Rank correlation (Spearman) of prompt and answer lengths; None where one of them is always the same."""
    there = trace.output_tokens > 0
    if np.count_nonzero(there) < 3:
        return None
    ranks = [_ranks(column[there]) for column in (trace.prompt_tokens, trace.output_tokens)]
    if any(side.std() == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.int32]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2.0)[place.reshape(-1)])


def _shares(column: Labels | None) -> dict[str, float] | None:
    """The most frequent names with their shares; "" are requests without."""
    if column is None or not len(column.codes):
        return None
    counts = np.bincount(column.codes + 1, minlength=len(column.names) + 1)
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    names = ("", *column.names)
    return {names[k]: float(counts[k] / len(column.codes)) for k in order if counts[k]}


def _conversations(found: conversations.Turns) -> dict[str, float]:
    sizes = found.sizes()
    pauses = found.pause_s[~found.first]
    return {
        "conversations": len(sizes),
        "mean_turns": float(sizes.mean()),
        "one_turn": float(np.mean(sizes == 1)),
        "most_turns": int(sizes.max()),
        "pause_p50_s": float(np.median(pauses)) if len(pauses) else float("nan"),
        "new_tokens_p50": float(np.median(found.new_tokens[~found.first])) if len(pauses) else float("nan"),
    }


def _blocks(trace: Trace) -> dict[str, float]:
    blocks = trace.blocks
    assert blocks is not None  # noqa: S101 - asked before
    distinct = len(np.unique(blocks.ids))
    return {
        "block_tokens": blocks.block_tokens,
        "blocks": len(blocks.ids),
        "seen_before": 1.0 - distinct / len(blocks.ids) if len(blocks.ids) else 0.0,
    }
