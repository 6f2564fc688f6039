"""Requests from a fitted workload, as many as are wanted, in pieces of bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from apportion.simulate.trace import Blocks, Labels, Trace, TraceError, empty, joined
from apportion.simulate.workload.gaps import from_normal
from apportion.simulate.workload.lengths import LEVELS
from apportion.simulate.workload.model import Memory, Model, Talk

Floats = NDArray[np.float64]

BLOCK_TOKENS = 512


def generate(
    model: Model,
    seed: int = 0,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    rate: float = 1.0,
) -> Trace:
    """A whole generated workload; see `generated_pieces`."""
    found = list(generated_pieces(model, seed, requests=requests, duration_s=duration_s, rate=rate))
    return joined(found) if found else empty(model.name)


def generated_pieces(
    model: Model,
    seed: int = 0,
    *,
    rows: int = 65536,
    requests: int | None = None,
    duration_s: float | None = None,
    rate: float = 1.0,
) -> Iterator[Trace]:
    """A generated workload, ``rows`` requests at a time (the last piece has fewer).

    It ends after ``duration_s`` or ``requests``, whichever comes first; by default when all windows of the model have
    passed. After the last window comes the first again. ``rate`` multiplies the rates and leaves the laws of the gaps
    as they are. The same model, seed and arguments give the same requests, however many ``rows`` a piece has.

    Raises:
        TraceError: a number is not above 0, or no request would ever come.
    """
    for name, value in (("rate", rate), ("duration_s", duration_s), ("requests", requests), ("rows", rows)):
        if value is not None and not value > 0:
            raise TraceError(f"'{name}' is {value:g}; it has to be above 0.", field=name)
    if sum(model.rates) <= 0:
        raise TraceError("The workload has no request in any of its windows.", field="rates")
    if duration_s is None and requests is None:
        duration_s = model.duration_s
    until_s = np.inf if duration_s is None else duration_s
    left = np.inf if requests is None else requests
    # Each column has its own generator, so that neither pieces nor what is drawn for one column moves another.
    streams = [np.random.default_rng([seed, column]) for column in range(5)]
    content = _Content(model, streams[1:])
    for times in _of_size(_arrivals(model, streams[0], until_s, rate), rows):
        times = times[: int(min(left, len(times)))]
        left -= len(times)
        if len(times):
            yield content.of(times)
        if not left:
            return


def _of_size(parts: Iterator[Floats], rows: int) -> Iterator[Floats]:
    waiting, count = [], 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            whole = np.concatenate(waiting)
            cut = len(whole) // rows * rows
            yield from np.split(whole[:cut], cut // rows)
            waiting, count = [whole[cut:]], len(whole) - cut
    if count:
        yield np.concatenate(waiting)


# --- arrivals ---------------------------------------------------------------------------------------


def _arrivals(model: Model, rng: Generator, until_s: float, rate: float) -> Iterator[Floats]:
    """Times window by window. A gap that crosses the end of a window goes on in the next at that one's rate."""
    quantiles = [law.quantiles() for law in model.gaps]
    scores = _Scores(model.memory, rng)
    owed: float | None = None
    window = 0
    while (start := window * model.window_s) < until_s:
        place = window % len(model.rates)
        window += 1
        density = model.rates[place] * rate
        if density <= 0:
            continue
        knots = quantiles[model.law[place]]
        expected = density * model.window_s
        if owed is None:  # the first request comes somewhere within a gap
            owed = float(from_normal(scores.draw(1), knots)[0] * rng.random())
        times = []
        while owed < expected:
            gaps = from_normal(scores.draw(max(16, int((expected - owed) * 1.1))), knots)
            ends = owed + np.cumsum(gaps)
            used = int(np.searchsorted(ends, expected))  # requests at owed, ends[0], ..., ends[used - 1]
            times.append(np.concatenate(([owed], ends[: min(used, len(gaps) - 1)])))
            if used < len(gaps):
                scores.give_back(len(gaps) - used - 1)
                owed = float(ends[used])
            else:
                owed = float(ends[-1])
        owed -= expected
        if times:
            found = start + np.concatenate(times) / density
            yield found[: np.searchsorted(found, until_s)] if found[-1] >= until_s else found


class _Scores:
    """Normal scores that remember: sums of first-order autoregressions and of what is independent."""

    _PIECE = 8192

    def __init__(self, memory: Memory, rng: Generator) -> None:
        self._memory, self._rng = memory, rng
        self._states = [float(rng.standard_normal()) for _ in memory.keeps]
        self._scores = np.empty(0)
        self._at = 0

    def draw(self, n: int) -> Floats:
        """The next ``n``."""
        if self._at + n > len(self._scores):
            left = self._scores[self._at :]
            more = [self._more() for _ in range(-((len(left) - n) // self._PIECE))]
            self._scores, self._at = np.concatenate([left, *more]), 0
        self._at += n
        return np.asarray(self._scores[self._at - n : self._at])

    def give_back(self, n: int) -> None:
        """The last ``n`` drawn were not used."""
        self._at -= n

    def _more(self) -> Floats:
        n, memory = self._PIECE, self._memory
        total = np.sqrt(max(0.0, 1.0 - sum(memory.shares))) * self._rng.standard_normal(n)
        for place, (share, keep) in enumerate(zip(memory.shares, memory.keeps, strict=True)):
            steps = np.sqrt(1.0 - keep * keep) * self._rng.standard_normal(n)
            steps[0] += keep * self._states[place]
            path = _filtered(steps, keep)
            self._states[place] = float(path[-1])
            total += np.sqrt(share) * path
        return np.asarray(total)


def _filtered(steps: Floats, keep: float) -> Floats:
    """x[i] = keep * x[i - 1] + steps[i], by doubling: after round k each x holds the last 2 ** k steps."""
    x = steps.copy()
    reach, power = 1, keep
    while reach < len(x) and power > 1e-12:
        x[reach:] += power * x[:-reach].copy()
        reach, power = reach * 2, power * power
    return x


# --- what is asked ----------------------------------------------------------------------------------


class _Content:
    """Models, tenants, lengths, failures and conversations for times; open conversations go on from piece to piece."""

    def __init__(self, model: Model, streams: list[Generator]) -> None:
        self._model = model
        self._kind_rng, self._length_rng, self._fail_rng, self._talk_rng = streams
        models = tuple(dict.fromkeys(kind.model for kind in model.kinds if kind.model))
        tenants = tuple(dict.fromkeys(kind.tenant for kind in model.kinds if kind.tenant))
        self._models, self._tenants = models, tenants
        self._model_of = np.array([models.index(k.model) if k.model else -1 for k in model.kinds], np.int32)
        self._tenant_of = np.array(
            [tenants.index(k.tenant) if k.tenant else -1 for k in model.kinds], np.int32
        )
        shares = np.array([kind.share for kind in model.kinds])
        self._below = np.cumsum(shares) / shares.sum()
        self._failed = np.array([kind.failed for kind in model.kinds])
        self._talks = None if model.talk is None else _Talks(model.talk, self._talk_rng)

    def of(self, times: Floats) -> Trace:
        model, n = self._model, len(times)
        kind = np.minimum(
            np.searchsorted(self._below, self._kind_rng.random(n), side="right"), len(self._below) - 1
        )
        place = (times // model.length_window_s).astype(np.int64)
        # Drawn by place in the stream, not by group, so that pieces of any size give the same lengths.
        prompts, outputs = self._lengths(kind, place)
        session = blocks = None
        luck = self._fail_rng.random(n)
        if self._talks is not None:
            kind, prompts, outputs, session = self._talks.laid_over(
                times, kind, prompts, outputs, luck, self._failed
            )
            if model.blocks:
                blocks = _blocks(session, prompts)
        failed = None
        if np.any(self._failed > 0):
            failed = luck < self._failed[kind]
            outputs = np.where(failed, 0, outputs).astype(np.int32)
        return Trace(
            arrival_s=times,
            prompt_tokens=prompts,
            output_tokens=outputs,
            model=Labels(self._model_of[kind], self._models) if self._models else None,
            tenant=Labels(self._tenant_of[kind], self._tenants) if self._tenants else None,
            session=session,
            failed=failed,
            blocks=blocks,
            name=model.name,
        )

    def _lengths(
        self, kind: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        uniform = self._length_rng.random((len(kind), 3))
        prompts = np.empty(len(kind), np.int32)
        outputs = np.empty(len(kind), np.int32)
        most = max(len(each.lengths) for each in self._model.kinds)
        laws = np.array([len(each.lengths) for each in self._model.kinds])
        group = kind * most + place % laws[kind]
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            law = self._model.kinds[number // most].lengths[number % most]
            prompts[rows], outputs[rows] = law.at(uniform[rows])
        return prompts, outputs


class _Talks:
    """Lays conversations over arrivals: an arrival continues the conversation whose next turn has been due for
    longest, or, where none is due, opens another. The arrivals stay as they are.
    """

    _DRAWN = 4096

    def __init__(self, talk: Talk, rng: Generator) -> None:
        self._talk, self._rng = talk, rng
        self._due: list[tuple[float, int, int, int, int]] = []
        """(when, conversation, turns left after that one, tokens said so far, kind)."""
        self._count = 0
        self._turns_below = np.cumsum(talk.turns) / sum(talk.turns)
        self._draws = self._drawn()

    def _drawn(self) -> Iterator[tuple[int, float, int, int]]:
        """Turns of a conversation, a pause, and what a turn adds and is answered."""
        while True:
            uniform = self._rng.random((self._DRAWN, 5))
            turns = np.minimum(
                np.searchsorted(self._turns_below, uniform[:, 0], side="right"), len(self._turns_below) - 1
            )
            pauses = np.interp(uniform[:, 1], LEVELS, self._talk.pause_s)
            more, outputs = self._talk.more.at(uniform[:, 2:])
            yield from zip(turns.tolist(), pauses.tolist(), more.tolist(), outputs.tolist(), strict=True)

    def laid_over(
        self,
        times: Floats,
        kind: NDArray[np.int64],
        prompts: NDArray[np.int32],
        outputs: NDArray[np.int32],
        luck: Floats,
        failed: Floats,
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Kinds, prompts, answers and conversations of requests; what is given is meant for openings. The answer of a
        request whose ``luck`` is below its kind's ``failed`` is not in the prompts that follow.
        """
        due, longest = self._due, self._talk.longest_tokens
        kind, prompts, outputs = kind.copy(), prompts.copy(), outputs.copy()
        session = np.empty(len(times), np.int64)
        fails = failed.tolist()
        columns = (times, prompts, outputs, kind, luck)
        opening = zip(*(column.tolist() for column in columns), strict=True)
        for row, ((now, prompt, output, of_kind, lucky), drawn) in enumerate(
            zip(opening, self._draws, strict=False)
        ):
            left, pause, more, answer = drawn
            if due and due[0][0] <= now:
                _, number, left, said, of_kind = heapq.heappop(due)
                prompt, output = min(longest, said + more), answer
                prompts[row], outputs[row], kind[row] = prompt, output, of_kind
            else:
                number, self._count = self._count, self._count + 1
            session[row] = number
            if left:
                said = prompt if lucky < fails[of_kind] else prompt + output
                heapq.heappush(due, (now + pause, number, left - 1, said, of_kind))
        return kind, prompts, outputs, session


def _blocks(session: NDArray[np.int64], prompts: NDArray[np.int32]) -> Blocks:
    """Whole blocks of prompts: those of one conversation begin with the same."""
    counts = prompts.astype(np.int64) // BLOCK_TOKENS
    offsets = np.concatenate(([0], np.cumsum(counts)))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    return Blocks(offsets, np.repeat(session, counts) * 2**20 + within, BLOCK_TOKENS)
