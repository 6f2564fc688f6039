"""The compiled heart: lanes that run iterations, pools of memory that they share, links between the pools.

A lane runs one iteration after another. A machine is one lane and one pool; a pipeline of p stages is p lanes (one
for each batch under way) with one pool and one gate; a device that is split by phase is two lanes with one pool. A
request is in one linked list at a time: the queue of prompts, the batch of prompts under way, those that wait
for memory elsewhere, those whose keys and values have come.

Answers are not walked token by token: a lane counts its decoding iterations, and a request that joins at count c with
n tokens to go leaves at count c + n. An iteration costs O(1) besides the requests that come and go.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.engine._compiled import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIXED, PREFILL_FIRST, CHUNKED = range(3)
"""What goes into an iteration: whole prompts together with the decoding requests; whole prompts and, while there are
any, nothing else; pieces of prompts that fill up what the decoding requests leave of the token budget."""

LEAST_PENDING, PAIRED, POOLS, HALVES = range(4)
"""How machines are chosen at the arrival: the prompt lane with the least to do keeps the answer (colocated);
the least loaded of either phase; Splitwise's three pools; the device with the least to do in both of its
halves (semi-PD)."""

PROMPT, TOKEN, BOTH = range(3)
"""Pools of Splitwise."""

NOBODY = -1


class Requests(NamedTuple):
    """Arrays of shape (n,), in order of arrival."""

    arrival_s: Floats
    prompt: Ints
    output: Ints
    prompt_lane: Ints
    token_lane: Ints
    prefilled: Ints
    """Tokens of the prompt that are done."""
    chunk: Ints
    """Tokens of the prompt in the iteration under way."""
    started_s: Floats
    first_s: Floats
    moved_s: Floats
    """When the keys and values had come to where the answer is made."""
    finish_s: Floats
    after: Ints
    """The next in the same list."""


class Lanes(NamedTuple):
    """Arrays of shape (lanes,) but the heaps, (lanes, slots)."""

    kind: Ints
    pool: Ints
    gate: Ints
    stages: Ints
    law: Ints
    slots: Ints
    budget: Ints
    """Tokens of an iteration."""
    share: Floats
    """Part of the device's processors."""
    end_s: Floats
    """When the iteration under way ends; infinite: idle."""
    began_s: Floats
    steps: Ints
    """Decoding iterations so far."""
    decoding: Ints
    context: Floats
    """Tokens that the decoding requests look back at."""
    decodes_now: Ints
    demand: Floats
    """Part of the memory's bandwidth that the iteration under way uses."""
    queue: Ints
    queue_tail: Ints
    ready: Ints
    ready_tail: Ints
    batch: Ints
    pending: Ints
    """Tokens of prompts that were assigned and are not done."""
    committed: Ints
    """Tokens of requests whose answer was assigned and is not finished."""
    answers: Ints
    """Requests of whom the answer was assigned and is not finished."""
    busy_s: Floats
    iterations: Ints
    label: Ints
    home: Ints
    moves: Ints
    heap_at: NDArray[np.int64]
    heap_of: NDArray[np.int64]


class Pools(NamedTuple):
    """Memory of a machine and its place in the network; arrays of shape (pools,)."""

    capacity: Ints
    used: Ints
    peak: Ints
    waiting: Ints
    waiting_tail: Ints
    first_lane: Ints
    last_lane: Ints
    node: Ints
    link: Floats
    """Bytes a second, in and out."""
    out_free_s: Floats
    in_free_s: Floats
    sent_bytes: Floats
    gate_free_s: Floats
    gate_stage_s: Floats


class Laws(NamedTuple):
    """What an iteration takes, by profile."""

    points: Ints
    tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]
    prefill_attention: Floats
    decode_attention: Floats
    request: Floats
    mixed: Floats
    floor_s: Floats
    """Reading the weights."""
    saturates: Floats
    """The part of the processors that is enough for the whole bandwidth of the memory."""
    hop_s: Floats
    kv_bytes: Floats
    layers: Ints


class World(NamedTuple):
    """All of it. ``numbers`` holds local_bandwidth, latency_s, serial_tokens (shorter prompts are sent whole),
    long_tokens (a longer queue overflows into another pool), overlap; ``counts`` the length of the heap of transfers.
    """

    r: Requests
    ln: Lanes
    p: Pools
    w: Laws
    moving_at: Floats
    moving: Ints
    counts: Ints
    numbers: Floats


@njit
def whole_s(
    w: Laws, law: int, new: float, pairs: float, context: float, requests: float, both: bool
) -> tuple[float, float]:
    """Seconds of an iteration on the whole device, and how much of them is reading memory."""
    n, tokens, seconds = w.points[law], w.tokens[law], w.seconds[law]
    if new <= tokens[0] or n == 1:
        base = seconds[0]
    else:
        i = 1
        while i < n - 1 and new > tokens[i]:
            i += 1
        base = seconds[i - 1] + (seconds[i] - seconds[i - 1]) * (new - tokens[i - 1]) / (
            tokens[i] - tokens[i - 1]
        )
    memory = min(w.floor_s[law], base) + w.decode_attention[law] * context
    total = (
        base
        + w.prefill_attention[law] * pairs
        + w.decode_attention[law] * context
        + w.request[law] * requests
    )
    if both:
        total += w.mixed[law]
    return total, memory


@njit
def shared_s(
    total_s: float, memory_s: float, share: float, saturates: float, other: float
) -> tuple[float, float]:
    """Seconds of an iteration on a ``share`` of the processors, and its part of the memory's bandwidth.

    What computes takes 1 / share as long. What reads memory is as fast as on the whole device while the share is
    enough to saturate the bandwidth, and in proportion below. Where this and the ``other`` lane together want more
    than there is, the reading of this one stretches.
    """
    slower = min(1.0, share / saturates)
    reading = memory_s / slower
    seconds = reading + (total_s - memory_s) / share
    demand = memory_s / seconds if seconds > 0.0 else 0.0
    if demand + other > 1.0:
        seconds += reading * (demand + other - 1.0)
        demand = memory_s / seconds
    return seconds, demand


@njit
def push(keys: NDArray[np.int64], values: NDArray[np.int64], n: int, key: int, value: int) -> None:
    """Add to a heap of ``n`` by key, ties by value."""
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if keys[up] < key or (keys[up] == key and values[up] < value):
            break
        keys[i], values[i] = keys[up], values[up]
        i = up
    keys[i], values[i] = key, value


@njit
def pop(keys: NDArray[np.int64], values: NDArray[np.int64], n: int) -> None:
    """Take the first from a heap of ``n``."""
    key, value = keys[n - 1], values[n - 1]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= n - 1:
            break
        if j + 1 < n - 1 and (
            keys[j + 1] < keys[j] or (keys[j + 1] == keys[j] and values[j + 1] < values[j])
        ):
            j += 1
        if key < keys[j] or (key == keys[j] and value < values[j]):
            break
        keys[i], values[i] = keys[j], values[j]
        i = j
    keys[i], values[i] = key, value


@njit
def append(head: Ints, tail: Ints, after: Ints, where: int, request: int) -> None:
    """To the end of a list."""
    after[request] = NOBODY
    if head[where] == NOBODY:
        head[where] = request
    else:
        after[tail[where]] = request
    tail[where] = request


@njit
def take(p: Pools, pool: int, tokens: int) -> None:
    """Reserve memory."""
    p.used[pool] += tokens
    p.peak[pool] = max(p.peak[pool], p.used[pool])


@njit
def join(world: World, lane: int, request: int) -> None:
    """The request decodes here from the lane's next iteration on; its first token is made."""
    ln, r = world.ln, world.r
    push(
        ln.heap_at[lane], ln.heap_of[lane], ln.decoding[lane], ln.steps[lane] + r.output[request] - 1, request
    )
    ln.decoding[lane] += 1
    ln.context[lane] += r.prompt[request]


@njit
def finish(world: World, lane: int, request: int, now: float) -> None:
    """The last token is made; its memory is free."""
    ln, r, p = world.ln, world.r, world.p
    r.finish_s[request] = now
    p.used[ln.pool[lane]] -= r.prompt[request] + r.output[request]
    home = r.token_lane[request]
    ln.committed[home] -= r.prompt[request] + r.output[request]
    ln.answers[home] -= 1


@njit
def transfer(world: World, request: int, ready: float, done: float, sent: float, target_only: bool) -> float:
    """When the keys and values of ``request`` have come to its token lane.

    The prompt was computed from ``ready`` to ``done``; ``sent`` bytes of the same batch go first. Links are
    serial: one transfer at a time leaves a machine, one at a time comes in. Layer by layer, layer i can leave
    when it is computed, so that what is left after ``done`` is one layer, or what the link could not carry in
    time.
    """
    ln, r, p, w = world.ln, world.r, world.p, world.w
    source, target = ln.pool[r.prompt_lane[request]], ln.pool[r.token_lane[request]]
    law = ln.law[r.prompt_lane[request]]
    size = r.prompt[request] * w.kv_bytes[law]
    local = p.node[source] == p.node[target]
    rate = world.numbers[0] if local else min(p.link[source], p.link[target])
    all_s, own_s = (sent + size) / rate, size / rate
    out_s, in_s = p.out_free_s[source], p.in_free_s[target]
    if world.numbers[4] > 0.0 and not target_only and r.prompt[request] >= world.numbers[2]:
        layers = w.layers[law]
        came = max(done + all_s / layers, ready + (done - ready) / layers + all_s)
        came = max(came, max(out_s + all_s, in_s + own_s))
    else:
        came = max(max(done, out_s) + all_s, in_s + own_s)
    p.in_free_s[target] = came
    p.sent_bytes[source] += size
    return float(came + world.numbers[1])


@njit
def send(world: World, request: int, came: float) -> None:
    """Put the end of a transfer into the heap of transfers."""
    n = world.counts[0]
    at, of = world.moving_at, world.moving
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if at[up] < came or (at[up] == came and of[up] < request):
            break
        at[i], of[i] = at[up], of[up]
        i = up
    at[i], of[i] = came, request
    world.counts[0] = n + 1


@njit
def received(world: World) -> int:
    """The first of the heap of transfers, taken from it."""
    at, of = world.moving_at, world.moving
    first = of[0]
    n = world.counts[0]
    key, value = at[n - 1], of[n - 1]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= n - 1:
            break
        if j + 1 < n - 1 and (at[j + 1] < at[j] or (at[j + 1] == at[j] and of[j + 1] < of[j])):
            j += 1
        if key < at[j] or (key == at[j] and value < of[j]):
            break
        at[i], of[i] = at[j], of[j]
        i = j
    at[i], of[i] = key, value
    world.counts[0] = n - 1
    return int(first)


@njit
def need(world: World, request: int) -> int:
    """Tokens of memory that the prompt takes where it is computed: the answer's too where that stays."""
    r, ln = world.r, world.ln
    here = ln.pool[r.prompt_lane[request]] == ln.pool[r.token_lane[request]]
    return int(r.prompt[request] + (r.output[request] if here else 0))


@njit
def begin(world: World, lane: int, now: float) -> None:  # noqa: PLR0915 (a call costs more than it explains)
    """Start the next iteration of an idle lane, if there is anything to do."""
    r, ln, p, w = world.r, world.ln, world.p, world.w
    pool, law, kind = ln.pool[lane], ln.law[lane], ln.kind[lane]
    while ln.ready[lane] != NOBODY and ln.decoding[lane] < ln.slots[lane]:
        request = ln.ready[lane]
        ln.ready[lane] = r.after[request]
        join(world, lane, request)
    new, pairs, prompts = 0.0, 0.0, 0
    ln.batch[lane] = NOBODY
    last = NOBODY
    budget = ln.budget[lane] - (ln.decoding[lane] if kind != PREFILL_FIRST else 0)
    while ln.queue[lane] != NOBODY:
        request = ln.queue[lane]
        left = r.prompt[request] - r.prefilled[request]
        chunk = left
        if kind == CHUNKED:
            chunk = min(left, budget - int(new))
            if chunk <= 0:
                break
        elif new > 0.0 and new + left > budget:
            break
        if ln.decoding[lane] + prompts >= ln.slots[lane]:
            break
        if r.prefilled[request] == 0:
            tokens = need(world, request)
            if p.used[pool] + tokens > p.capacity[pool]:
                break
            take(p, pool, tokens)
            r.started_s[request] = now
        pairs += chunk * (r.prefilled[request] + 0.5 * chunk)
        new += chunk
        prompts += 1
        r.chunk[request] = chunk
        ln.queue[lane] = r.after[request]
        r.after[request] = NOBODY
        if last == NOBODY:
            ln.batch[lane] = request
        else:
            r.after[last] = request
        last = request
        if chunk < left:
            break
    decodes = ln.decoding[lane] if kind != PREFILL_FIRST or prompts == 0 else 0
    if prompts == 0 and decodes == 0:
        ln.end_s[lane] = np.inf
        ln.demand[lane] = 0.0
        return
    context = ln.context[lane] if decodes else 0.0
    both = prompts > 0 and decodes > 0
    seconds, memory = whole_s(w, law, new + decodes, pairs, context, float(prompts + decodes), both)
    if ln.share[lane] < 1.0:
        other = 0.0
        for i in range(p.first_lane[pool], p.last_lane[pool]):
            if i != lane:
                other += ln.demand[i]
        seconds, ln.demand[lane] = shared_s(seconds, memory, ln.share[lane], w.saturates[law], other)
    start = now
    stages = ln.stages[lane]
    if stages > 1:
        gate = ln.gate[lane]
        stage = seconds / stages
        # A batch that follows a longer one is held up by it at every stage (a bubble).
        start = max(now, p.gate_free_s[gate] + max(0.0, (stages - 1) * (p.gate_stage_s[gate] - stage)))
        p.gate_free_s[gate] = start + stage
        p.gate_stage_s[gate] = stage
        seconds += (stages - 1) * w.hop_s[law]
    ln.decodes_now[lane] = decodes
    ln.began_s[lane] = start
    ln.end_s[lane] = start + seconds
    ln.busy_s[lane] += seconds
    ln.iterations[lane] += 1


@njit
def wake(world: World, pool: int, now: float) -> None:
    """Memory has become free: send for what waits for it, and let idle lanes begin."""
    r, ln, p = world.r, world.ln, world.p
    while p.waiting[pool] != NOBODY:
        request = p.waiting[pool]
        tokens = r.prompt[request] + r.output[request]
        if p.used[pool] + tokens > p.capacity[pool]:
            break
        p.waiting[pool] = r.after[request]
        take(p, pool, tokens)
        came = transfer(world, request, now, now, 0.0, True)
        source = ln.pool[r.prompt_lane[request]]
        p.out_free_s[source] = max(p.out_free_s[source], came - world.numbers[1])
        send(world, request, came)
    for lane in range(p.first_lane[pool], p.last_lane[pool]):
        if ln.end_s[lane] == np.inf:
            begin(world, lane, now)


@njit
def end(world: World, lane: int) -> None:  # noqa: PLR0915
    """The iteration of ``lane`` is over: tokens are made, requests finish, move on or stay."""
    r, ln, p, w = world.r, world.ln, world.p, world.w
    now, pool = ln.end_s[lane], ln.pool[lane]
    freed = False
    ln.demand[lane] = 0.0
    if ln.decodes_now[lane] > 0:
        ln.steps[lane] += 1
        ln.context[lane] += ln.decoding[lane]
        while ln.decoding[lane] > 0 and ln.heap_at[lane, 0] == ln.steps[lane]:
            request = ln.heap_of[lane, 0]
            pop(ln.heap_at[lane], ln.heap_of[lane], ln.decoding[lane])
            ln.decoding[lane] -= 1
            ln.context[lane] -= r.prompt[request] + r.output[request] - 1
            finish(world, lane, request, now)
            freed = True
    request = ln.batch[lane]
    ln.batch[lane] = NOBODY
    sent = 0.0
    out_s = p.out_free_s[pool]
    while request != NOBODY:
        following = r.after[request]
        r.prefilled[request] += r.chunk[request]
        ln.pending[lane] -= r.chunk[request]
        if r.prefilled[request] < r.prompt[request]:
            r.after[request] = ln.queue[lane]  # the rest of it is next
            if ln.queue[lane] == NOBODY:
                ln.queue_tail[lane] = request
            ln.queue[lane] = request
            request = following
            continue
        r.first_s[request] = now
        target = r.token_lane[request]
        away = ln.pool[target] != pool
        if r.output[request] == 1:
            if away:
                p.used[pool] -= r.prompt[request]
                p.used[ln.pool[target]] += r.prompt[request] + r.output[request]  # `finish` gives it back
            finish(world, target, request, now)
            r.moved_s[request] = now
            freed = True
        elif target == lane and ln.decoding[lane] < ln.slots[lane]:
            r.moved_s[request] = now
            join(world, lane, request)
        elif not away:
            r.moved_s[request] = now
            append(ln.ready, ln.ready_tail, r.after, target, request)
            if ln.end_s[target] == np.inf:
                begin(world, target, now)
        else:
            goal = ln.pool[target]
            tokens = r.prompt[request] + r.output[request]
            if p.waiting[goal] != NOBODY or p.used[goal] + tokens > p.capacity[goal]:
                append(p.waiting, p.waiting_tail, r.after, goal, request)
            else:
                take(p, goal, tokens)
                came = transfer(world, request, ln.began_s[lane], now, sent, False)
                sent += r.prompt[request] * w.kv_bytes[ln.law[lane]]
                out_s = max(out_s, came - world.numbers[1])
                send(world, request, came)
        request = following
    p.out_free_s[pool] = max(p.out_free_s[pool], out_s)
    ln.end_s[lane] = np.inf
    if freed:
        wake(world, pool, now)  # which begins here too
    else:
        begin(world, lane, now)


@njit
def arrive(world: World, request: int, prompt_lane: int, token_lane: int) -> None:
    """The request joins the queue of its prompt lane."""
    r, ln = world.r, world.ln
    r.prompt_lane[request], r.token_lane[request] = prompt_lane, token_lane
    ln.pending[prompt_lane] += r.prompt[request]
    ln.committed[token_lane] += r.prompt[request] + r.output[request]
    ln.answers[token_lane] += 1
    append(ln.queue, ln.queue_tail, r.after, prompt_lane, request)
    if ln.end_s[prompt_lane] == np.inf:
        begin(world, prompt_lane, r.arrival_s[request])


@njit
def advance(world: World, until_s: float) -> None:
    """Everything that happens before or at ``until_s``: transfers first, then lanes by number."""
    ln = world.ln
    lanes = len(ln.end_s)
    while True:
        first, when = NOBODY, np.inf
        for lane in range(lanes):
            if ln.end_s[lane] < when:
                first, when = lane, ln.end_s[lane]
        if world.counts[0] > 0 and world.moving_at[0] <= when:
            when = world.moving_at[0]
            first = lanes
        if when > until_s or first == NOBODY:
            return
        if first == lanes:
            request = received(world)
            world.r.moved_s[request] = when
            target = world.r.token_lane[request]
            source = ln.pool[world.r.prompt_lane[request]]
            world.p.used[source] -= world.r.prompt[request]
            append(ln.ready, ln.ready_tail, world.r.after, target, request)
            if ln.end_s[target] == np.inf:
                begin(world, target, when)
            wake(world, source, when)
        else:
            end(world, first)


@njit
def least_pending(ln: Lanes, first: int, last: int) -> int:
    """The lane with the fewest tokens to do: of prompts, and one for each answer."""
    best = first
    for lane in range(first, last):
        if ln.pending[lane] + ln.answers[lane] < ln.pending[best] + ln.answers[best]:
            best = lane
    return best


@njit
def home_again(ln: Lanes) -> None:
    """Mixed machines that have nothing of the other phase left go back to their pool."""
    for lane in range(len(ln.label)):
        if ln.label[lane] == BOTH and ln.home[lane] != BOTH:
            other = ln.pending[lane] if ln.home[lane] == TOKEN else ln.answers[lane]
            if other == 0:
                ln.label[lane] = ln.home[lane]
                ln.moves[lane] += 1


@njit
def prompt_place(ln: Lanes, tokens: int, long_tokens: float) -> int:
    """Splitwise's machine for a prompt: the shortest queue of the prompt pool, else of the mixed, else of the token
    pool (which then becomes mixed), else of all."""
    for label in (PROMPT, BOTH):
        best = NOBODY
        for lane in range(len(ln.label)):
            if ln.label[lane] == label and (best == NOBODY or ln.pending[lane] < ln.pending[best]):
                best = lane
        if best != NOBODY and (ln.pending[best] == 0 or ln.pending[best] + tokens <= long_tokens):
            return best
    best = NOBODY
    for lane in range(len(ln.label)):
        if ln.label[lane] == TOKEN and (best == NOBODY or ln.committed[lane] < ln.committed[best]):
            best = lane
    if best == NOBODY:
        best = 0
        for lane in range(len(ln.label)):
            if ln.pending[lane] < ln.pending[best]:
                best = lane
    return best


@njit
def token_place(ln: Lanes, p: Pools, tokens: int, prompt_lane: int) -> int:
    """Splitwise's machine for an answer: the emptiest memory of the token pool, else of the mixed, else of the prompt
    pool (which then becomes mixed), else where the prompt is."""
    for label in (TOKEN, BOTH, PROMPT):
        best = NOBODY
        for lane in range(len(ln.label)):
            if ln.label[lane] == label and (best == NOBODY or ln.committed[lane] < ln.committed[best]):
                best = lane
        if best != NOBODY and ln.committed[best] + tokens <= p.capacity[ln.pool[best]]:
            return best
    return prompt_lane


@njit
def become_mixed(ln: Lanes, lane: int, phase: int) -> None:
    """A machine that is given work of the other phase joins the mixed pool."""
    if ln.label[lane] != BOTH and ln.label[lane] != phase:
        ln.label[lane] = BOTH
        ln.moves[lane] += 1


@njit
def drive(world: World, mode: int, first: int, until_s: float, prompt_lanes: int) -> int:
    """Let requests arrive from ``first`` on, choosing machines by ``mode``, as long as they come before or at
    ``until_s``; the index of the next. Lanes below ``prompt_lanes`` take prompts, in the mode PAIRED."""
    r, ln = world.r, world.ln
    n, lanes = len(r.arrival_s), len(ln.end_s)
    i = first
    while i < n and r.arrival_s[i] <= until_s:
        if r.finish_s[i] == r.finish_s[i]:  # ended before it began: it fits nowhere
            i += 1
            continue
        advance(world, r.arrival_s[i])
        if mode == LEAST_PENDING:
            prompt_lane = least_pending(ln, 0, lanes)
            token_lane = prompt_lane
        elif mode == PAIRED:
            prompt_lane = 0
            for lane in range(prompt_lanes):
                if ln.pending[lane] < ln.pending[prompt_lane]:
                    prompt_lane = lane
            token_lane = prompt_lanes
            for lane in range(prompt_lanes, lanes):
                if ln.committed[lane] < ln.committed[token_lane]:
                    token_lane = lane
        elif mode == HALVES:
            prompt_lane = 0
            for lane in range(0, lanes, 2):
                if (
                    ln.pending[lane] + ln.answers[lane + 1]
                    < ln.pending[prompt_lane] + ln.answers[prompt_lane + 1]
                ):
                    prompt_lane = lane
            token_lane = prompt_lane + 1
        else:
            home_again(ln)
            prompt_lane = prompt_place(ln, r.prompt[i], world.numbers[3])
            become_mixed(ln, prompt_lane, PROMPT)
            token_lane = token_place(ln, world.p, r.prompt[i] + r.output[i], prompt_lane)
            become_mixed(ln, token_lane, TOKEN)
        arrive(world, i, prompt_lane, token_lane)
        i += 1
    return i
