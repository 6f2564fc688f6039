"""The engine's state and what one iteration does to it, on flat arrays: compiled, or plain Python where it cannot be.

Every function takes the state and the number ``k`` of an instance. Between two calls an instance is idle, or has a
plan: from ``T0`` on it does ``COUNT`` iterations of the same requests, which end at ``T1``. ``commit`` makes the plan
fact, ``begin`` makes the next. A plan of decode iterations only may be long, since nothing changes until a request
ends: its j-th iteration takes BASE + j * GROWTH seconds (contexts grow by a token each), so that all its times have
closed forms; ``cut`` shortens it to the end of the iteration in progress when something comes between.

A request is a row of the pool. While it decodes, its context is ORIGIN plus the instance's count of decode iterations
(STEP), so that nothing has to be written for a token; and it ends at a known STEP.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.engine._compiled import njit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class State(NamedTuple):
    """All instances (n, of at most S requests at once) and all requests in them (rows of a pool)."""

    i: Ints
    """n x I: counters and settings of an instance."""
    f: Floats
    """n x F: times, shares, constants of the profile."""
    due: Floats
    """n: when something changes next; inf when nothing will."""
    lane: Ints
    """n x LANES x (S or the size of a block)."""
    time: Floats
    """n x TIMES x S."""
    table: Floats
    """n x 4 x points of the profile's tables."""
    p: Ints
    """rows x P."""
    q: Floats
    """rows x Q."""
    memory: Ints
    """(1 + pools) x 2: blocks taken, blocks there are. First: the free row of the pool (-1: none), the next number in
    order of submission.
    """


# Columns of State.i
(
    KIND, COUNT, STEP, DECODING, PROMPTS, CONTEXT, GROWN, HEAD, TAIL, WAITING, DONE, DONE_TAIL, PENDING, PENDING_TAIL,
    LEAVING, QUEUED, LEFT, ITERATIONS, FUSE, SPLIT, GATED, TOGETHER, SLOTS, BUDGET, BLOCK, WATERMARK, POOL, POINTS,
    WATT_POINTS, NEW, PREEMPTIONS, AWAITED, STREAMS, COUNTERS,
) = range(34)  # fmt: skip
# Columns of State.f
(
    T0, T1, BASE, GROWTH, WATTS, BUSY_S, BUSY_J, SHARE_S, SHARE_J, PACE_PREFILL, PACE_DECODE, POWER_PREFILL,
    POWER_DECODE, PAIR_S, CONTEXT_S, REQUEST_S, BEFORE_S, AFTER_S, IDLE_W, PREFILL_W, PROMPT_TOKEN_S, OUTPUT_TOKEN_S,
    MIXED_S, BEFORE_TOKEN_S, WASTE_S, WASTE_J, F,
) = range(27)  # fmt: skip
# State.lane: rows that decode, and the STEP at which each has all its tokens; rows whose prompts are being computed, in
# order, and the tokens of each in the plan; how many decoding requests have which ORIGIN modulo the size of a block.
# With STREAMS also, by the number of a slot: the row in it plus one (0: nobody), and room to count tokens.
ROW, END, PRE, TAKE, CROSSING, SEAT, LEFT_OVER, LANES = range(8)
# State.time, of those that decode: longest time between two tokens, time of the last token; of slots: when it was left.
GAP, LAST, USED, TIMES = range(4)
# State.table: seconds of an iteration by its tokens, power of decoding by its requests.
AT, TAKES, WATTS_AT, DRAWS, TABLES = range(5)
# Columns of State.p
(
    REQUEST, PROMPT, OUTPUT, CACHED, PRIORITY, ORDER, NEXT, PREVIOUS, TOKENS, COMPUTED, ORIGIN, PHASE, HOLD, GOING,
    PREEMPTED, TAG, SLOT, P,
) = range(18)  # fmt: skip
# Columns of State.q
READY_S, STARTED_S, FIRST_S, FINISH_S, LAST_S, GAP_S, SERVER_S, JOULES, ARRIVED_S, Q = range(10)
# Kinds of a plan: none; look at the queue at T0; one iteration with prompts; COUNT iterations of decoding.
IDLE, WAKE, PROMPT_PLAN, DECODE_PLAN = range(4)
# Phases of a row
FREE, ON_ITS_WAY, IN_QUEUE, IN_PROMPT, IN_DECODE, FINISHED, LANDING = range(7)


# The loop over many instances: routers, columns of `wants`, of the rows that come out, cells of `at` (rows that are
# out, requests taken in of this piece, of all, in flight, most in flight), and why it stopped.
ROUND_ROBIN, RANDOM, LEAST_REQUESTS, LEAST_KV, LEAST_WORK, POWER_OF_TWO, TABLE, ASK = range(8)
PROMPT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, URGENCY, MARK, CHOICE, OTHER, WANTS = range(8)
(
    OUT_REQUEST, OUT_INSTANCE, OUT_PROMPT, OUT_CACHED, OUT_TOKENS, OUT_PREEMPTED, OUT_PRIORITY, OUT_TAG, OUT_REFUSED,
    OUT_INTS,
) = range(10)  # fmt: skip
(
    OUT_ARRIVAL_S, OUT_STARTED_S, OUT_FIRST_S, OUT_FINISH_S, OUT_GAP_S, OUT_SERVER_S, OUT_JOULES, OUT_FLOATS,
) = range(8)  # fmt: skip
ROWS, TAKEN, NUMBER, FLIGHT, MOST, CELLS = range(6)
AT_END, ROWS_FULL, POOL_FULL, ROUTER = range(4)


@njit
def between(x: Floats, y: Floats, n: int, at: float) -> float:
    """y at ``at``, linear between the ``n`` points, constant before the first, with the last slope after the last."""
    if n == 1 or at <= x[0]:
        return float(y[0])
    low, high = 0, n - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if x[middle] <= at:
            low = middle
        else:
            high = middle
    return float(y[low] + (y[high] - y[low]) * (at - x[low]) / (x[high] - x[low]))


@njit
def span(s: State, k: int, count: int) -> float:
    """Seconds of the first ``count`` iterations of the plan."""
    return float(count * s.f[k, BASE] + s.f[k, GROWTH] * (0.5 * count * (count - 1)))


@njit
def ended_by(s: State, k: int, t: float) -> int:
    """Iterations of the plan that have ended at time ``t``."""
    count = s.i[k, COUNT]
    if s.i[k, KIND] <= WAKE or t <= s.f[k, T0]:
        return 0
    if t >= s.f[k, T1]:
        return int(count)
    j = _root(s, k, t - s.f[k, T0])
    while j > 0 and s.f[k, T0] + span(s, k, j) > t:
        j -= 1
    while j < count and s.f[k, T0] + span(s, k, j + 1) <= t:
        j += 1
    return j


@njit
def _root(s: State, k: int, seconds: float) -> int:
    """About how many iterations of the plan fit into ``seconds``; within a few of the truth."""
    slope = 0.5 * s.f[k, GROWTH]
    first = s.f[k, BASE] - slope
    if slope > 1e-12 * s.f[k, BASE]:
        j = (np.sqrt(first * first + 4.0 * slope * seconds) - first) / (2.0 * slope)
    elif s.f[k, BASE] > 0.0:
        j = seconds / s.f[k, BASE]
    else:
        j = 0.0
    return int(min(int(j), s.i[k, COUNT]))


@njit
def crossings(s: State, k: int, count: int) -> int:
    """Blocks that the decoding requests fill up and need anew in the next ``count`` iterations."""
    size = s.i[k, BLOCK]
    whole, rest = (count - 1) // size, (count - 1) % size
    x = s.i[k, STEP] % size
    blocks = s.i[k, DECODING] * whole
    for r in range(size):
        n = s.lane[k, CROSSING, r]
        if x + rest >= size:
            blocks += n
        if x == 0:
            blocks += n
        x += 1
        if x == size:
            x = 0
    return int(blocks)


@njit
def blocks_of(s: State, k: int, tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    return int((tokens + s.i[k, BLOCK] - 1) // s.i[k, BLOCK])


@njit
def room(s: State, k: int) -> int:
    """Blocks nobody has."""
    pool = s.i[k, POOL]
    return int(s.memory[pool, 1] - s.memory[pool, 0])


@njit
def goal(s: State, row: int) -> int:
    """Tokens whose keys and values the next token of a request that does not decode needs."""
    return int(s.p[row, PROMPT] + s.p[row, TOKENS])


@njit
def enqueue(s: State, k: int, row: int) -> None:
    """Into the waiting line: higher priority first, then by order of submission."""
    p = s.p
    p[row, PHASE] = LANDING if p[row, PHASE] == LANDING else IN_QUEUE
    before = s.i[k, TAIL]
    after = -1
    if before >= 0 and _goes_before(p, row, before):
        before, after = -1, s.i[k, HEAD]
        while not _goes_before(p, row, after):
            before, after = after, p[after, NEXT]
    p[row, PREVIOUS] = before
    p[row, NEXT] = after
    if before >= 0:
        p[before, NEXT] = row
    else:
        s.i[k, HEAD] = row
    if after >= 0:
        p[after, PREVIOUS] = row
    else:
        s.i[k, TAIL] = row
    s.i[k, WAITING] += 1


@njit
def _goes_before(p: Ints, row: int, other: int) -> bool:
    if p[row, PRIORITY] != p[other, PRIORITY]:
        return bool(p[row, PRIORITY] > p[other, PRIORITY])
    return bool(p[row, ORDER] < p[other, ORDER])


@njit
def unlink(s: State, k: int, row: int) -> None:
    """Out of the waiting line."""
    before, after = s.p[row, PREVIOUS], s.p[row, NEXT]
    if before >= 0:
        s.p[before, NEXT] = after
    else:
        s.i[k, HEAD] = after
    if after >= 0:
        s.p[after, PREVIOUS] = before
    else:
        s.i[k, TAIL] = before
    s.i[k, WAITING] -= 1


@njit
def free_row(s: State, row: int) -> None:
    """Give a row back to the pool."""
    s.p[row, PHASE] = FREE
    s.p[row, NEXT] = s.memory[0, 0]
    s.memory[0, 0] = row


@njit
def join(s: State, k: int, row: int) -> None:
    """A request whose keys and values are there begins to decode."""
    n = s.i[k, DECODING]
    context = s.p[row, PROMPT] + s.p[row, TOKENS] - 1
    s.p[row, ORIGIN] = context - s.i[k, STEP]
    s.p[row, PHASE] = IN_DECODE
    s.lane[k, ROW, n] = row
    s.lane[k, END, n] = s.i[k, STEP] + s.p[row, OUTPUT] - s.p[row, TOKENS]
    s.time[k, GAP, n] = s.q[row, GAP_S]
    s.time[k, LAST, n] = s.q[row, LAST_S]
    s.q[row, SERVER_S] -= s.f[k, SHARE_S]
    s.q[row, JOULES] -= s.f[k, SHARE_J]
    s.lane[k, CROSSING, s.p[row, ORIGIN] % s.i[k, BLOCK]] += 1
    s.i[k, CONTEXT] += context
    s.i[k, DECODING] = n + 1


@njit
def part(s: State, k: int, b: int) -> int:
    """The b-th decoding request stops decoding; its row, brought up to date. It still has its memory."""
    row = s.lane[k, ROW, b]
    context = s.p[row, ORIGIN] + s.i[k, STEP]
    s.lane[k, CROSSING, s.p[row, ORIGIN] % s.i[k, BLOCK]] -= 1
    s.i[k, CONTEXT] -= context
    tokens = min(context + 1 - s.p[row, PROMPT], s.p[row, OUTPUT])
    if s.i[k, TOGETHER]:
        s.i[k, LEFT] -= tokens - s.p[row, TOKENS]
    s.p[row, TOKENS] = tokens
    s.p[row, COMPUTED] = context
    s.q[row, GAP_S] = s.time[k, GAP, b]
    s.q[row, LAST_S] = s.time[k, LAST, b]
    s.q[row, SERVER_S] += s.f[k, SHARE_S]
    s.q[row, JOULES] += s.f[k, SHARE_J]
    n = s.i[k, DECODING] - 1
    s.i[k, DECODING] = n
    s.lane[k, ROW, b] = s.lane[k, ROW, n]
    s.lane[k, END, b] = s.lane[k, END, n]
    s.time[k, GAP, b] = s.time[k, GAP, n]
    s.time[k, LAST, b] = s.time[k, LAST, n]
    return int(row)


@njit
def finish(s: State, k: int, row: int, t: float) -> None:
    """A request has all its tokens, or goes: its memory is free (unless held), and it is reported (unless it goes: then
    its shares are what came after it was reported, and nobody's)."""
    s.q[row, FINISH_S] = t + s.f[k, AFTER_S]
    if s.i[k, STREAMS]:
        s.lane[k, SEAT, s.p[row, SLOT]] = 0
        s.time[k, USED, s.p[row, SLOT]] = t
    if s.p[row, GOING] or not s.p[row, HOLD]:
        s.memory[s.i[k, POOL], 0] -= blocks_of(s, k, s.p[row, COMPUTED])
    if s.p[row, GOING]:
        s.i[k, LEAVING] -= 1
        s.f[k, WASTE_S] += s.q[row, SERVER_S]
        s.f[k, WASTE_J] += s.q[row, JOULES]
        free_row(s, row)
        return
    s.p[row, PHASE] = FINISHED
    s.p[row, NEXT] = -1
    if s.i[k, DONE] < 0:
        s.i[k, DONE] = row
    else:
        s.p[s.i[k, DONE_TAIL], NEXT] = row
    s.i[k, DONE_TAIL] = row


@njit
def preempt(s: State, k: int) -> None:
    """The least urgent, then the last that arrived, gives its memory back and will be computed again."""
    worst, at, decoding = -1, -1, False
    for b in range(s.i[k, DECODING]):
        if worst < 0 or _goes_before(s.p, worst, s.lane[k, ROW, b]):
            worst, at, decoding = s.lane[k, ROW, b], b, True
    for b in range(s.i[k, PROMPTS]):
        if worst < 0 or _goes_before(s.p, worst, s.lane[k, PRE, b]):
            worst, at, decoding = s.lane[k, PRE, b], b, False
    if decoding:
        row = part(s, k, at)
        if s.p[row, GOING] or s.p[row, TOKENS] >= s.p[row, OUTPUT]:
            s.i[k, LEFT] -= s.p[row, OUTPUT] - s.p[row, TOKENS]
            finish(s, k, row, s.f[k, T0])
            return
        s.memory[s.i[k, POOL], 0] -= blocks_of(s, k, s.p[row, COMPUTED])
        s.i[k, QUEUED] += goal(s, row)
    else:
        row = s.lane[k, PRE, at]
        s.memory[s.i[k, POOL], 0] -= blocks_of(s, k, goal(s, row))
        s.i[k, QUEUED] += s.p[row, COMPUTED]
        drop_prompt(s, k, at)
    s.p[row, COMPUTED] = min(s.p[row, CACHED], goal(s, row) - 1)
    s.i[k, QUEUED] -= s.p[row, COMPUTED]
    s.p[row, PREEMPTED] += 1
    s.i[k, PREEMPTIONS] += 1
    s.p[row, PHASE] = IN_QUEUE
    enqueue(s, k, row)


@njit
def drop_prompt(s: State, k: int, at: int) -> None:
    """Take the ``at``-th prompt out of those being computed, keeping the order of the others."""
    n = s.i[k, PROMPTS] - 1
    s.i[k, PROMPTS] = n
    for b in range(at, n):
        s.lane[k, PRE, b] = s.lane[k, PRE, b + 1]
        s.lane[k, TAKE, b] = s.lane[k, TAKE, b + 1]


@njit
def fits_now(s: State, k: int, row: int) -> bool:
    """Whether there is a place and memory for a waiting request."""
    if s.i[k, DECODING] + s.i[k, PROMPTS] >= s.i[k, SLOTS]:
        return False
    spare = s.i[k, WATERMARK] if s.i[k, DECODING] + s.i[k, PROMPTS] > 0 else 0
    return bool(blocks_of(s, k, goal(s, row)) <= room(s, k) - spare)


@njit
def land(s: State, k: int) -> None:
    """Requests that bring their keys and values join as long as they are first in line and fit."""
    while s.i[k, HEAD] >= 0:
        row = s.i[k, HEAD]
        if s.p[row, PHASE] != LANDING or not fits_now(s, k, row):
            return
        unlink(s, k, row)
        s.memory[s.i[k, POOL], 0] += blocks_of(s, k, goal(s, row) - 1)
        if s.i[k, STREAMS]:
            take_slot(s, k, row)
        join(s, k, row)


@njit
def take_slot(s: State, k: int, row: int) -> None:
    """llama.cpp's choice among idle slots: the one left longest ago, of those never used the last; but where more than
    a tenth of the prompt is kept, the first that keeps something (what is kept is alike in all).
    """
    alike = 10 * s.p[row, CACHED] > s.p[row, PROMPT]
    best = -1
    for slot in range(s.i[k, SLOTS]):
        if s.lane[k, SEAT, slot] > 0:
            continue
        used = s.time[k, USED, slot]
        if alike and used > -np.inf:
            best = slot
            break
        if best < 0 or used == -np.inf or used < s.time[k, USED, best]:
            best = slot
    s.lane[k, SEAT, best] = row + 1
    s.p[row, SLOT] = best


@njit
def admit_by_slot(s: State, k: int) -> int:
    """Who waits takes a slot, even where the iteration is full; prompts fill it in the order of their slots."""
    while s.i[k, HEAD] >= 0:
        row = s.i[k, HEAD]
        if s.p[row, PHASE] == LANDING or not fits_now(s, k, row):
            break
        unlink(s, k, row)
        s.memory[s.i[k, POOL], 0] += blocks_of(s, k, goal(s, row))
        s.p[row, PHASE] = IN_PROMPT
        take_slot(s, k, row)
        b = s.i[k, PROMPTS]
        s.i[k, PROMPTS] = b + 1
        while b > 0 and s.p[s.lane[k, PRE, b - 1], SLOT] > s.p[row, SLOT]:
            s.lane[k, PRE, b] = s.lane[k, PRE, b - 1]
            b -= 1
        s.lane[k, PRE, b] = row
    total, budget = 0, s.i[k, BUDGET] - s.i[k, DECODING]
    for b in range(s.i[k, PROMPTS]):
        row = s.lane[k, PRE, b]
        x = min(goal(s, row) - s.p[row, COMPUTED], budget - total)
        s.lane[k, TAKE, b] = x
        total += x
        if x > 0 and s.q[row, STARTED_S] != s.q[row, STARTED_S]:
            s.q[row, STARTED_S] = s.f[k, T0]
        elif x == 0 and s.q[row, STARTED_S] == s.f[k, T0]:
            s.q[row, STARTED_S] = np.nan
    return int(total)


@njit
def passes_s(s: State, k: int) -> float:
    """Seconds, by their tokens, of the forward passes over an iteration whose slots have memories of their own.

    llama.cpp (`split_equal` of its batches, sequential): tokens are in the order decoding slots, slots with prompts,
    each by number. A pass takes the first that has tokens left and, going on, each that is the next slot by number, and
    as many tokens of each as the one with the fewest has.
    """
    left = s.lane[k, LEFT_OVER]
    places = s.i[k, SLOTS]
    left[:places] = 0
    for b in range(s.i[k, DECODING]):
        left[s.p[s.lane[k, ROW, b], SLOT]] = 1
    if s.i[k, KIND] == PROMPT_PLAN:
        for b in range(s.i[k, PROMPTS]):
            left[s.p[s.lane[k, PRE, b], SLOT]] = s.lane[k, TAKE, b]
    seconds = 0.0
    while True:
        size, last, fewest = 0, -1, 0
        for prompts in range(2):
            for slot in range(places):
                if left[slot] == 0 or (size > 0 and slot != last + 1):
                    continue
                if (s.p[s.lane[k, SEAT, slot] - 1, PHASE] == IN_PROMPT) == (prompts == 1):
                    fewest = left[slot] if size == 0 else min(fewest, left[slot])
                    size, last = size + 1, slot
        if size == 0:
            return seconds
        seconds += between(s.table[k, AT], s.table[k, TAKES], s.i[k, POINTS], size * fewest)
        left[last - size + 1 : last + 1] -= fewest


@njit
def admit(s: State, k: int) -> int:
    """Fill the iteration with prompts: what is left of begun ones, then the waiting line; their tokens in all."""
    if s.i[k, GATED] and s.i[k, DECODING] > 0:
        return 0
    if s.i[k, STREAMS]:
        return int(admit_by_slot(s, k))
    total = 0
    for b in range(s.i[k, PROMPTS]):
        total += s.lane[k, TAKE, b]
    budget = s.i[k, BUDGET] - total - (s.i[k, DECODING] if s.i[k, FUSE] else 0)
    for b in range(s.i[k, PROMPTS]):
        row = s.lane[k, PRE, b]
        more = min(goal(s, row) - s.p[row, COMPUTED] - s.lane[k, TAKE, b], budget)
        if more > 0:
            s.lane[k, TAKE, b] += more
            total += more
            budget -= more
    while s.i[k, HEAD] >= 0:
        row = s.i[k, HEAD]
        need = goal(s, row) - s.p[row, COMPUTED]
        if s.p[row, PHASE] == LANDING or not fits_now(s, k, row):
            break
        if s.i[k, SPLIT]:
            if budget <= 0:
                break
            need = min(need, budget)
        elif total > 0 and need > budget:
            break
        unlink(s, k, row)
        s.memory[s.i[k, POOL], 0] += blocks_of(s, k, goal(s, row))
        s.p[row, PHASE] = IN_PROMPT
        if s.q[row, STARTED_S] != s.q[row, STARTED_S]:
            s.q[row, STARTED_S] = s.f[k, T0]
        n = s.i[k, PROMPTS]
        s.lane[k, PRE, n] = row
        s.lane[k, TAKE, n] = need
        s.i[k, PROMPTS] = n + 1
        total += need
        budget -= need
    return total


@njit
def grow(s: State, k: int, count: int) -> None:
    """Set memory aside for ``count`` iterations of decoding, instead of what the plan had set aside."""
    blocks = crossings(s, k, count) if count else 0
    s.memory[s.i[k, POOL], 0] += blocks - s.i[k, GROWN]
    s.i[k, GROWN] = blocks


@njit
def secure(s: State, k: int) -> None:
    """Make room for one iteration of decoding, and take it."""
    while s.i[k, DECODING] > 0 and crossings(s, k, 1) > room(s, k):
        preempt(s, k)
    if s.i[k, DECODING] > 0:
        grow(s, k, 1)


@njit
def longest(s: State, k: int) -> int:
    """Iterations of decoding until something changes by itself: a request ends, or memory does."""
    n = s.i[k, DECODING]
    end = s.lane[k, END, 0]
    if s.i[k, TOGETHER]:
        for b in range(1, n):
            if end <= s.i[k, STEP] or s.i[k, STEP] < s.lane[k, END, b] < end:
                end = s.lane[k, END, b]
    else:
        for b in range(1, n):
            end = min(end, s.lane[k, END, b])
    count = end - s.i[k, STEP]
    free = room(s, k) + s.i[k, GROWN]
    if n * (count // s.i[k, BLOCK] + 1) > free and crossings(s, k, count) > free:
        low, high = 1, count
        while high - low > 1:
            middle = (low + high) >> 1
            if crossings(s, k, middle) <= free:
                low = middle
            else:
                high = middle
        count = low
    return int(count)


@njit
def begin(s: State, k: int) -> None:
    """Plan what the instance does from T0 on."""
    for b in range(s.i[k, PROMPTS]):
        s.lane[k, TAKE, b] = 0
    land(s, k)
    if s.i[k, FUSE]:
        secure(s, k)
    tokens = admit(s, k)
    n = s.i[k, DECODING]
    if tokens == 0 and not s.i[k, FUSE]:
        secure(s, k)
    if tokens > 0:
        s.i[k, KIND], s.i[k, COUNT] = PROMPT_PLAN, 1
    elif s.i[k, DECODING] > 0:
        # Who lost its memory just now may leave room for whoever is first in line: look again soon.
        count = longest(s, k) if s.i[k, DECODING] == n else 1
        grow(s, k, count)
        s.i[k, KIND], s.i[k, COUNT] = DECODE_PLAN, count
    else:
        s.i[k, KIND], s.i[k, COUNT] = IDLE, 0
    price(s, k)


@njit
def price(s: State, k: int) -> None:
    """What the iterations of the plan take, and draw."""
    f = s.f
    n = s.i[k, DECODING]
    streams_s = passes_s(s, k) if s.i[k, STREAMS] and s.i[k, KIND] > WAKE else 0.0
    if s.i[k, KIND] == PROMPT_PLAN:
        new, requests, seconds = 0, 0, 0.0
        for b in range(s.i[k, PROMPTS]):
            x = s.lane[k, TAKE, b]
            if x > 0:
                new += x
                requests += 1
                seconds += f[k, PAIR_S] * x * (s.p[s.lane[k, PRE, b], COMPUTED] + 0.5 * x)
        if s.i[k, FUSE]:
            new += n
            requests += n
            seconds += f[k, MIXED_S] if n > 0 else 0.0
            seconds += f[k, CONTEXT_S] * s.i[k, CONTEXT]
        if s.i[k, STREAMS]:
            seconds += streams_s
        else:
            seconds += between(s.table[k, AT], s.table[k, TAKES], s.i[k, POINTS], new)
        seconds += f[k, REQUEST_S] * requests
        f[k, BASE], f[k, GROWTH] = seconds * f[k, PACE_PREFILL], 0.0
        f[k, WATTS] = f[k, PREFILL_W] * f[k, POWER_PREFILL]
        s.i[k, NEW] = new
    elif s.i[k, KIND] == DECODE_PLAN:
        points = s.i[k, POINTS]
        seconds = streams_s if s.i[k, STREAMS] else between(s.table[k, AT], s.table[k, TAKES], points, n)
        seconds += f[k, CONTEXT_S] * s.i[k, CONTEXT] + f[k, REQUEST_S] * n
        f[k, BASE], f[k, GROWTH] = seconds * f[k, PACE_DECODE], f[k, CONTEXT_S] * n * f[k, PACE_DECODE]
        f[k, WATTS] = (
            between(s.table[k, WATTS_AT], s.table[k, DRAWS], s.i[k, WATT_POINTS], n) * f[k, POWER_DECODE]
        )
        s.i[k, NEW] = n
    f[k, T1] = f[k, T0] + span(s, k, s.i[k, COUNT])
    look(s, k)


@njit
def look(s: State, k: int) -> None:
    """Set when the instance has to be looked at next."""
    due = s.f[k, T1] if s.i[k, KIND] != IDLE else np.inf
    if s.i[k, PENDING] >= 0:
        due = min(due, s.q[s.i[k, PENDING], READY_S])
    s.due[k] = due


@njit
def commit(s: State, k: int) -> None:
    """The plan has been carried out: tokens, ends and times of its requests; T0 is where it ended."""
    i, f = s.i, s.f
    count = i[k, COUNT]
    began, t = f[k, T0], f[k, T1]
    prompts = i[k, KIND] == PROMPT_PLAN
    seconds = t - began
    each_s = seconds / i[k, NEW]
    each_j = f[k, WATTS] * each_s
    f[k, BUSY_S] += seconds
    f[k, BUSY_J] += f[k, WATTS] * seconds
    i[k, ITERATIONS] += count
    n = i[k, DECODING]
    if n > 0 and (i[k, FUSE] or not prompts):
        first = began + f[k, BASE]
        longest_gap = f[k, BASE] + f[k, GROWTH] * (count - 1) if count > 1 else 0.0
        if i[k, TOGETHER]:
            for b in range(n):
                if s.lane[k, END, b] > i[k, STEP]:
                    gap = max(first - s.time[k, LAST, b], longest_gap)
                    s.time[k, GAP, b] = max(s.time[k, GAP, b], gap)
        else:
            for b in range(n):
                gap = max(first - s.time[k, LAST, b], longest_gap)
                s.time[k, GAP, b] = max(s.time[k, GAP, b], gap)
        for b in range(n):
            s.time[k, LAST, b] = t
        i[k, STEP] += count
        i[k, CONTEXT] += n * count
        i[k, GROWN] = 0
        if not i[k, TOGETHER]:
            i[k, LEFT] -= n * count
        f[k, SHARE_S] += each_s
        f[k, SHARE_J] += each_j
    leave_ended(s, k, t)
    if prompts:
        b = 0
        while b < i[k, PROMPTS]:
            if advance_prompt(s, k, b, each_s, each_j, t):
                drop_prompt(s, k, b)
            else:
                b += 1
    f[k, T0] = t


@njit
def leave_ended(s: State, k: int, t: float) -> None:
    """Decoding requests that have all their tokens, or go, leave."""
    step = s.i[k, STEP]
    if s.i[k, TOGETHER]:
        for b in range(s.i[k, DECODING]):
            if s.lane[k, END, b] > step:
                return
    b = 0
    while b < s.i[k, DECODING]:
        if s.lane[k, END, b] > step:
            b += 1
            continue
        finish(s, k, part(s, k, b), t)


@njit
def advance_prompt(s: State, k: int, b: int, each_s: float, each_j: float, t: float) -> bool:
    """A piece of a prompt is computed; whether nothing of it is left, so that it decodes, ends or has gone."""
    row, x = s.lane[k, PRE, b], s.lane[k, TAKE, b]
    s.p[row, COMPUTED] += x
    s.i[k, QUEUED] -= x
    s.q[row, SERVER_S] += x * each_s
    s.q[row, JOULES] += x * each_j
    if s.p[row, GOING]:
        s.i[k, QUEUED] -= goal(s, row) - s.p[row, COMPUTED]
        s.i[k, LEFT] -= s.p[row, OUTPUT] - s.p[row, TOKENS]
        s.p[row, COMPUTED] = goal(s, row)
        finish(s, k, row, t)
        return True
    if s.p[row, COMPUTED] < goal(s, row):
        return False
    if s.p[row, TOKENS] == 0:
        s.q[row, FIRST_S] = t + s.f[k, AFTER_S]
    else:
        s.q[row, GAP_S] = max(s.q[row, GAP_S], t - s.q[row, LAST_S])
    s.q[row, LAST_S] = t
    s.p[row, TOKENS] += 1
    s.i[k, LEFT] -= 1
    if s.p[row, TOKENS] >= s.p[row, OUTPUT]:
        finish(s, k, row, t)
    else:
        join(s, k, row)
    return True


@njit
def step(s: State, k: int) -> None:
    """The next thing that happens at instance ``k``: somebody arrives, or the plan ends and the next begins."""
    row = s.i[k, PENDING]
    if row >= 0 and s.q[row, READY_S] <= s.due[k]:
        s.i[k, PENDING] = s.p[row, NEXT]
        s.i[k, AWAITED] -= 1
        deliver(s, k, row, s.q[row, READY_S])
        return
    if s.i[k, KIND] > WAKE:
        commit(s, k)
    begin(s, k)


@njit
def deliver(s: State, k: int, row: int, t: float) -> None:
    """A request stands before the engine at time ``t``."""
    enqueue(s, k, row)
    kind = s.i[k, KIND]
    if kind == IDLE:
        s.f[k, T0] = max(s.f[k, T0], t)
        wake(s, k)
    elif kind == PROMPT_PLAN and t <= s.f[k, T0]:
        admit(s, k)
        price(s, k)
    elif kind == DECODE_PLAN and s.i[k, HEAD] == row and may_enter(s, k, row):
        cut(s, k, t)
    else:
        look(s, k)


@njit
def may_enter(s: State, k: int, row: int) -> bool:
    """Whether a request may have a chance at the end of the iteration in progress (begin decides)."""
    if s.i[k, GATED] and s.p[row, PHASE] != LANDING:
        return False
    if s.i[k, DECODING] + s.i[k, PROMPTS] >= s.i[k, SLOTS]:
        return False
    return bool(blocks_of(s, k, goal(s, row)) <= room(s, k) + s.i[k, GROWN])


@njit
def wake(s: State, k: int) -> None:
    """No plan any more: make one at T0."""
    s.i[k, KIND], s.i[k, COUNT] = WAKE, 0
    s.f[k, T1] = s.f[k, T0]
    look(s, k)


@njit
def cut(s: State, k: int, t: float) -> None:
    """End a plan of decoding with the iteration that is in progress at time ``t``."""
    if s.i[k, KIND] == DECODE_PLAN:
        count = ended_by(s, k, t)
        if s.f[k, T0] + span(s, k, count) < t:
            count += 1
        if count < s.i[k, COUNT]:
            grow(s, k, count)
            if count == 0:
                wake(s, k)
                return
            s.i[k, COUNT] = count
            s.f[k, T1] = s.f[k, T0] + span(s, k, count)
    look(s, k)


@njit
def new_row(s: State, request: int, prompt: int, output: int, cached: int, priority: int) -> int:
    """A row of the pool for a request; the pool must have one."""
    row = s.memory[0, 0]
    s.memory[0, 0] = s.p[row, NEXT]
    p = s.p[row]
    p[REQUEST], p[PROMPT], p[OUTPUT], p[PRIORITY] = request, prompt, output, priority
    p[CACHED] = min(cached, prompt - 1)
    p[ORDER] = s.memory[0, 1]
    s.memory[0, 1] += 1
    p[NEXT], p[PREVIOUS], p[TOKENS], p[ORIGIN], p[HOLD], p[GOING], p[PREEMPTED] = -1, -1, 0, 0, 0, 0, 0
    p[SLOT] = -1
    p[COMPUTED] = p[CACHED]
    p[PHASE] = ON_ITS_WAY
    q = s.q[row]
    q[STARTED_S], q[FIRST_S], q[FINISH_S], q[LAST_S] = np.nan, np.nan, np.nan, np.nan
    q[GAP_S], q[SERVER_S], q[JOULES] = 0.0, 0.0, 0.0
    return int(row)


@njit
def send(s: State, k: int, row: int, t: float) -> None:
    """A request sets out for the engine and is there at time ``t``."""
    s.i[k, QUEUED] += goal(s, row) - s.p[row, COMPUTED] if s.p[row, PHASE] != LANDING else 0
    s.i[k, LEFT] += s.p[row, OUTPUT] - s.p[row, TOKENS]
    s.q[row, READY_S] = t
    s.i[k, AWAITED] += 1
    tail = s.i[k, PENDING_TAIL]
    if s.i[k, PENDING] < 0:
        s.i[k, PENDING], s.i[k, PENDING_TAIL] = row, row
    elif s.q[tail, READY_S] <= t:
        s.p[tail, NEXT] = row
        s.i[k, PENDING_TAIL] = row
    else:
        before, after = -1, s.i[k, PENDING]
        while s.q[after, READY_S] <= t:
            before, after = after, s.p[after, NEXT]
        s.p[row, NEXT] = after
        if before < 0:
            s.i[k, PENDING] = row
        else:
            s.p[before, NEXT] = row
    look(s, k)


@njit
def submit(
    s: State, k: int, now: float, delay: float, request: int, prompt: int, output: int, cached: int,
    priority: int, hold: int,
) -> int:  # fmt: skip
    """A new request at ``now``; its row, or -1 where the pool has none left."""
    if s.memory[0, 0] < 0:
        return -1
    row = new_row(s, request, prompt, output, cached, priority)
    s.p[row, HOLD] = hold
    s.q[row, ARRIVED_S] = now
    send(s, k, row, now + delay + s.f[k, BEFORE_S] + s.f[k, BEFORE_TOKEN_S] * prompt)
    return row


@njit
def advance(s: State, k: int, until: float, through: bool) -> float:
    """Everything that happens before ``until``; with ``through`` also what happens then, but not further than the first
    moment at which something finishes.
    """
    while s.due[k] < until or (through and s.due[k] == until and until < np.inf):
        if through and s.i[k, DONE] >= 0:
            break
        step(s, k)
    return float(s.due[k])


@njit
def going(s: State, k: int, row: int, now: float) -> float:
    """Take a request out; when it has left: at once, or at the end of the iteration in progress."""
    phase = s.p[row, PHASE]
    if phase in (ON_ITS_WAY, IN_QUEUE, LANDING):
        return _from_line(s, k, row, now)
    if phase == IN_DECODE:
        cut(s, k, now)
        s.p[row, GOING] = 1
        s.i[k, LEAVING] += 1
        b = 0
        while s.lane[k, ROW, b] != row:
            b += 1
        ran = s.i[k, KIND] == DECODE_PLAN or (s.i[k, KIND] == PROMPT_PLAN and s.i[k, FUSE])
        made = s.i[k, COUNT] if ran else 0
        if not s.i[k, TOGETHER]:
            s.i[k, LEFT] -= s.lane[k, END, b] - s.i[k, STEP] - made
            s.lane[k, END, b] = s.i[k, STEP] + made
        if s.i[k, KIND] == WAKE:
            leave_ended(s, k, now)
            return now
    else:
        s.p[row, GOING] = 1
        s.i[k, LEAVING] += 1
    return float(s.f[k, T1])


@njit
def _from_line(s: State, k: int, row: int, now: float) -> float:
    """Out of the waiting line, or off the way to it."""
    on_its_way = False
    before, other = -1, s.i[k, PENDING]
    while other >= 0:
        if other == row:
            on_its_way = True
            break
        before, other = other, s.p[other, NEXT]
    landing = s.p[row, PHASE] == LANDING
    if not landing:
        s.i[k, QUEUED] -= goal(s, row) - s.p[row, COMPUTED]
    s.i[k, LEFT] -= s.p[row, OUTPUT] - s.p[row, TOKENS]
    if on_its_way:
        s.i[k, AWAITED] -= 1
        if before < 0:
            s.i[k, PENDING] = s.p[row, NEXT]
        else:
            s.p[before, NEXT] = s.p[row, NEXT]
        if s.i[k, PENDING_TAIL] == row:
            s.i[k, PENDING_TAIL] = before
        look(s, k)
    else:
        first = s.i[k, HEAD] == row
        unlink(s, k, row)
        if first:
            attend(s, k, now)
    free_row(s, row)
    return now


@njit
def attend(s: State, k: int, now: float) -> None:
    """Something other than the engine's own work has changed: look at the waiting line at the next chance."""
    if s.i[k, KIND] == DECODE_PLAN and s.i[k, HEAD] >= 0 and may_enter(s, k, s.i[k, HEAD]):
        cut(s, k, now)
    elif s.i[k, KIND] == IDLE and s.i[k, HEAD] >= 0:
        s.f[k, T0] = max(s.f[k, T0], now)
        wake(s, k)
    else:
        look(s, k)


@njit
def change_pace(
    s: State, k: int, now: float, prefill: float, decode: float, w_pre: float, w_dec: float
) -> None:
    """Iterations that begin from ``now`` on take, and draw, so many times what the profile says."""
    f = s.f
    f[k, PACE_PREFILL], f[k, PACE_DECODE], f[k, POWER_PREFILL], f[k, POWER_DECODE] = (
        prefill,
        decode,
        w_pre,
        w_dec,
    )
    cut(s, k, now)
    if s.i[k, KIND] == PROMPT_PLAN and now <= f[k, T0]:
        price(s, k)


@njit
def work(s: State, k: int, now: float) -> float:
    """Seconds of work in the instance at full batches, by the true lengths."""
    left = s.i[k, LEFT]
    if s.i[k, KIND] == DECODE_PLAN and not s.i[k, TOGETHER]:
        left -= s.i[k, DECODING] * ended_by(s, k, now)
    return float(s.i[k, QUEUED] * s.f[k, PROMPT_TOKEN_S] + left * s.f[k, OUTPUT_TOKEN_S])


@njit
def settle(tree: Ints, due: Floats, leaf: int) -> None:
    """Find the winners above an instance whose due time has changed: ``tree[1]`` is due first, lower numbers first."""
    node = (len(tree) // 2 + leaf) >> 1
    while node:
        left, right = tree[2 * node], tree[2 * node + 1]
        tree[node] = left if right < 0 or (left >= 0 and due[left] <= due[right]) else right
        node >>= 1


@njit
def memory_share(s: State, n: int, now: float) -> float:
    """The share of an instance's blocks that is taken at ``now``."""
    pool = s.i[n, POOL]
    blocks = s.memory[pool, 0] - s.i[n, GROWN]
    if s.i[n, GROWN] > 0:
        ended = ended_by(s, n, now)
        if ended > 0:
            blocks += crossings(s, n, ended)
    return float(blocks / s.memory[pool, 1])


@njit
def weight(s: State, router: int, n: int, now: float) -> float:
    """What a router compares."""
    if router == LEAST_KV:
        return memory_share(s, n, now)
    if router == LEAST_WORK:
        return work(s, n, now)
    i = s.i
    return float(i[n, DECODING] + i[n, PROMPTS] + i[n, WAITING] + i[n, AWAITED])


@njit
def route(s: State, router: int, number: int, choice: int, other: int, now: float) -> int:
    """The instance for a request; ties go to the first from ``choice`` on."""
    n = len(s.due)
    if router == ROUND_ROBIN:
        return number % n
    if router in (RANDOM, TABLE):
        return choice
    if router == POWER_OF_TWO:
        return choice if weight(s, router, choice, now) <= weight(s, router, other, now) else other
    best, least = choice, weight(s, router, choice, now)
    for offset in range(1, n):
        index = (choice + offset) % n
        found = weight(s, router, index, now)
        if found < least:
            best, least = index, found
    return best


@njit
def drain(s: State, n: int, out: Ints, out_s: Floats, at: Ints) -> None:
    """Write down what has finished at an instance, and free its rows."""
    row = s.i[n, DONE]
    while row >= 0:
        p, q, r = s.p[row], s.q[row], at[ROWS]
        out[r, OUT_REQUEST], out[r, OUT_INSTANCE] = p[REQUEST], n
        out[r, OUT_PROMPT], out[r, OUT_CACHED], out[r, OUT_TOKENS] = p[PROMPT], p[CACHED], p[TOKENS]
        out[r, OUT_PREEMPTED], out[r, OUT_PRIORITY] = p[PREEMPTED], p[PRIORITY]
        out[r, OUT_TAG], out[r, OUT_REFUSED] = p[TAG], 0
        out_s[r, OUT_ARRIVAL_S], out_s[r, OUT_STARTED_S] = q[ARRIVED_S], q[STARTED_S]
        out_s[r, OUT_FIRST_S], out_s[r, OUT_FINISH_S] = q[FIRST_S], q[FINISH_S]
        out_s[r, OUT_GAP_S], out_s[r, OUT_SERVER_S], out_s[r, OUT_JOULES] = (
            q[GAP_S],
            q[SERVER_S],
            q[JOULES],
        )
        at[ROWS] += 1
        at[FLIGHT] -= 1
        following = p[NEXT]
        free_row(s, row)
        row = following
    s.i[n, DONE] = -1


@njit
def refuse(n: int, want: Ints, now: float, out: Ints, out_s: Floats, at: Ints) -> None:
    """Write down that an instance can never hold a request."""
    r = at[ROWS]
    out[r, OUT_REQUEST], out[r, OUT_INSTANCE] = at[NUMBER], n
    out[r, OUT_PROMPT], out[r, OUT_CACHED], out[r, OUT_TOKENS] = want[PROMPT_TOKENS], 0, 0
    out[r, OUT_PREEMPTED], out[r, OUT_PRIORITY] = 0, want[URGENCY]
    out[r, OUT_TAG], out[r, OUT_REFUSED] = want[MARK], 1
    out_s[r, :] = np.nan
    out_s[r, OUT_ARRIVAL_S], out_s[r, OUT_FINISH_S] = now, now
    out_s[r, OUT_GAP_S], out_s[r, OUT_SERVER_S], out_s[r, OUT_JOULES] = 0.0, 0.0, 0.0
    at[ROWS] += 1


@njit
def play(
    s: State, tree: Ints, most: Ints, arrival_s: Floats, wants: Ints, router: int, last: bool, out: Ints,
    out_s: Floats, at: Ints,
) -> int:  # fmt: skip
    """Go on until the piece of the trace is at its end (``last``: until everything has finished), or something is
    needed; what, is returned.
    """
    n = len(arrival_s)
    spare = s.lane.shape[2]
    endless = np.inf
    while True:
        j = at[TAKEN]
        now = arrival_s[j] if j < n else endless
        first = tree[1]
        if s.due[first] < now and (j < n or last):
            if at[ROWS] + spare > len(out):
                return ROWS_FULL
            step(s, first)
            settle(tree, s.due, first)
            if s.i[first, DONE] >= 0:
                drain(s, first, out, out_s, at)
            continue
        if j == n:
            return AT_END
        if s.memory[0, 0] < 0:
            return POOL_FULL
        if at[ROWS] + spare > len(out):
            return ROWS_FULL
        want = wants[j]
        if router == ASK and want[CHOICE] < 0:
            return ROUTER
        chosen = route(s, TABLE if router == ASK else router, at[NUMBER], want[CHOICE], want[OTHER], now)
        if want[PROMPT_TOKENS] + want[OUTPUT_TOKENS] - 1 > most[chosen]:
            refuse(chosen, want, now, out, out_s, at)
        else:
            row = submit(
                s, chosen, now, 0.0, at[NUMBER], want[PROMPT_TOKENS], want[OUTPUT_TOKENS], want[CACHED_TOKENS],
                want[URGENCY], 0,
            )  # fmt: skip
            s.p[row, TAG] = want[MARK]
            settle(tree, s.due, chosen)
            at[FLIGHT] += 1
            at[MOST] = max(at[MOST], at[FLIGHT])
        at[TAKEN] += 1
        at[NUMBER] += 1
