"""A workload as a law: what is fitted to a trace, kept in a file, and generated from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct, field

from apportion.simulate.trace import TraceError
from apportion.simulate.workload import lengths
from apportion.simulate.workload.gaps import Gaps
from apportion.simulate.workload.lengths import Lengths

VERSION: Final = 1


class Kind(Struct, frozen=True):
    """Requests of one model and tenant ("" is none), and what share of all they are. ``lengths`` are their laws, one
    for each window of lengths; ``failed`` is the probability that a request fails.
    """

    model: str
    tenant: str
    share: float
    lengths: tuple[Lengths, ...]
    failed: float = 0.0


class Talk(Struct, frozen=True):
    """Conversations: ``turns[k]`` is the probability of k + 1 turns, ``pause_s`` are quantiles (at `lengths.LEVELS`)
    of the time from one turn to the next, ``more`` the law of what a turn adds to the prompt and of its answer; a
    prompt is everything said before and what is new, at most ``longest_tokens``.
    """

    turns: tuple[float, ...]
    pause_s: tuple[float, ...]
    more: Lengths
    longest_tokens: int

    @property
    def mean_turns(self) -> float:
        """Turns of the average conversation."""
        return sum((k + 1) * p for k, p in enumerate(self.turns)) / sum(self.turns)


class Memory(Struct, frozen=True):
    """How gaps hang together: the normal scores of gaps are a sum of first-order autoregressions, of which the j-th
    has the share ``shares[j]`` of the variance and keeps ``keeps[j]`` of itself from gap to gap; what is left over is
    independent.
    """

    shares: tuple[float, ...] = ()
    keeps: tuple[float, ...] = ()


class Model(Struct, frozen=True, kw_only=True):
    """A workload as a law.

    Time is cut into windows of ``window_s``; in window w requests come at ``rates[w]`` a second with gaps of the law
    ``gaps[law[w]]``, scaled to that rate. After the last window the first follows again. ``length_window_s`` is the
    width of the windows of `Kind.lengths`.
    """

    name: str
    window_s: float
    rates: tuple[float, ...]
    gaps: tuple[Gaps, ...]
    law: tuple[int, ...]
    kinds: tuple[Kind, ...]
    length_window_s: float
    memory: Memory = Memory()
    talk: Talk | None = None
    blocks: bool = False
    """Whether generated prompts say what blocks they begin with."""
    fitness: dict[str, Any] = field(default_factory=dict)
    """How well it fits (`fitness.report`)."""
    notes: tuple[str, ...] = ()
    version: int = VERSION

    @property
    def duration_s(self) -> float:
        """All windows together."""
        return self.window_s * len(self.rates)

    @property
    def requests(self) -> float:
        """Expected in all windows together."""
        return self.window_s * sum(self.rates)


def save(model: Model, path: str | Path) -> None:
    """Write it as JSON."""
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=1))


def load(path: str | Path) -> Model:
    """Read it again. Raises `TraceError`."""
    try:
        model = msgspec.json.decode(Path(path).read_bytes(), type=Model)
    except FileNotFoundError:
        raise TraceError(f"{path} is not there.", field="MODEL") from None
    except (msgspec.DecodeError, OSError) as error:
        raise TraceError(
            f"{path} is no fitted workload: {error}.", field="MODEL", fix="`apportion trace fit` writes one."
        ) from None
    if model.version > VERSION:
        raise TraceError(
            f"{path} is of version {model.version}; this program reads up to {VERSION}.",
            field="version",
            fix="Use a newer apportion.",
        )
    if not (model.rates and len(model.rates) == len(model.law) and model.window_s > 0 and model.kinds):
        raise TraceError(f"{path} has no windows, or a window without a law.", field="MODEL")
    if max(model.law) >= len(model.gaps) or any(not kind.lengths for kind in model.kinds):
        raise TraceError(f"{path} names a law that is not in it.", field="MODEL")
    return model


def plain(
    rate_per_s: float,
    duration_s: float,
    *,
    prompt_tokens: float = 512.0,
    output_tokens: float = 128.0,
    sigma: float = 0.0,
    shape: float = 1.0,
    name: str = "plain",
) -> Model:
    """One rate, gamma gaps of one ``shape`` (1 is a Poisson process), log-normal lengths with these medians and log
    standard deviation (0: all alike), prompts and answers independent.
    """
    medians = (prompt_tokens, output_tokens)
    sides = [
        lengths.mixture_quantiles(np.ones(1), np.array([median]), np.array([max(sigma, 1e-6)]), 1e6)
        for median in medians
    ]
    return Model(
        name=name,
        window_s=duration_s,
        rates=(rate_per_s,),
        gaps=(Gaps((1.0,), (shape,), (1.0,)),),
        law=(0,),
        kinds=(Kind("", "", 1.0, (lengths.independent(*sides),)),),
        length_window_s=duration_s,
    )
