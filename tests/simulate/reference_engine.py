"""The engine said slowly and plainly: token by token, iteration by iteration, lists of objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apportion.simulate.engine import Batching
from apportion.simulate.profile import Profile


@dataclass(eq=False)
class Request:
    """What arrives: ``cancel_s`` is when its client gives up."""

    number: int
    arrival_s: float
    prompt: int
    output: int
    cached: int = 0
    priority: int = 0
    cancel_s: float = math.inf
    computed: int = 0
    made: int = 0
    times: list[float] = field(default_factory=list)
    started_s: float = math.nan
    finish_s: float = math.nan
    preempted: int = 0
    server_s: float = 0.0
    joules: float = 0.0
    gone: bool = False
    slot: int = -1

    @property
    def goal(self) -> int:
        return self.prompt + self.made

    @property
    def rank(self) -> tuple[int, int]:
        return (-self.priority, self.number)


def line(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Linear between points, constant before, last slope after."""
    if len(x) == 1 or at <= x[0]:
        return y[0]
    i = next((i for i in range(len(x) - 1) if x[i] <= at < x[i + 1]), len(x) - 2)
    return y[i] + (y[i + 1] - y[i]) * (at - x[i]) / (x[i + 1] - x[i])


class Reference:
    """Runs a list of requests to the end; ``checks`` collects what each iteration had in it."""

    def __init__(
        self, profile: Profile, batching: Batching, paces: Sequence[tuple[float, float]] = ()
    ) -> None:
        self.profile, self.batching, self.paces = profile, batching, sorted(paces)
        self.waiting: list[Request] = []
        self.prompts: list[Request] = []
        self.decoding: list[Request] = []
        self.done: list[Request] = []
        self.now = 0.0
        self.iterations = 0
        self.busy_s = 0.0
        self.passes: list[tuple[int, int, bool]] = []
        self.blocks = profile.kv_tokens // profile.block_tokens
        self.endless = batching.kind == "slots"
        self.places = batching.places(profile)
        self.budget = batching.budget(profile)
        self.left_s: list[float | None] = [None] * self.places

    def size(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_tokens)

    def taken(self) -> int:
        held = sum(self.size(r.goal) for r in self.prompts)
        return held + sum(self.size(r.prompt + r.made - 1) for r in self.decoding)

    def free(self) -> int:
        return 2**60 if self.endless else self.blocks - self.taken()

    def run(self, requests: Sequence[Request]) -> list[Request]:
        coming = sorted(requests, key=lambda r: (r.arrival_s, r.number))
        for request in coming:
            request.computed = min(request.cached, request.prompt - 1)
        while True:
            while coming and coming[0].arrival_s <= self.now:
                self.waiting.append(coming.pop(0))
            for held in (self.waiting, self.prompts, self.decoding):
                for request in [r for r in held if r.cancel_s <= self.now]:
                    if self.batching.kind == "static" and held is not self.waiting:
                        request.gone = True
                    else:
                        held.remove(request)
                        if request.slot >= 0:
                            self.left_s[request.slot] = self.now
            self.waiting.sort(key=lambda r: r.rank)
            if self.iterate():
                continue
            if not coming:
                return self.done
            self.now = coming[0].arrival_s

    def choose(self, request: Request) -> int:
        """The idle slot that llama.cpp gives to a request."""
        taken = {r.slot for r in self.prompts + self.decoding}
        idle = [slot for slot in range(self.places) if slot not in taken]
        used = [(at, slot) for slot in idle if (at := self.left_s[slot]) is not None]
        if used and min(request.cached, request.prompt - 1) / request.prompt > 0.1:
            return min(slot for _, slot in used)
        never = [slot for slot in idle if self.left_s[slot] is None]
        return max(never) if never else min(used)[1]

    def fill_slots(self) -> list[tuple[Request, int]]:
        while self.waiting and len(self.decoding) + len(self.prompts) < self.places:
            request = self.waiting.pop(0)
            request.slot = self.choose(request)
            self.prompts.append(request)
        self.prompts.sort(key=lambda r: r.slot)
        left, taken = self.budget - len(self.decoding), []
        for request in self.prompts:
            tokens = min(request.goal - request.computed, left)
            left -= tokens
            if tokens:
                taken.append((request, tokens))
                if math.isnan(request.started_s):
                    request.started_s = self.now
        return taken

    def forward_passes(self, chunks: list[tuple[Request, int]], decoding: list[Request]) -> list[int]:
        """The tokens of each forward pass."""
        if self.batching.kind != "slots":
            return [len(decoding) + sum(n for _, n in chunks)]
        batch = sorted(r.slot for r in decoding)
        for request, n in chunks:
            batch += [request.slot] * n
        sizes = []
        while batch:
            members: list[int] = []
            for slot in batch:
                if not members or slot == members[-1] + 1:
                    members.append(slot)
            size = 0
            while all(slot in batch for slot in members):
                for slot in members:
                    batch.remove(slot)
                size += len(members)
            sizes.append(size)
        return sizes

    def finish(self, request: Request) -> None:
        if request.slot >= 0:
            self.left_s[request.slot] = self.now
        if not request.gone:
            request.finish_s = self.now
            self.done.append(request)

    def preempt(self) -> None:
        victim = max(self.decoding + self.prompts, key=lambda r: r.rank)
        (self.decoding if victim in self.decoding else self.prompts).remove(victim)
        if victim.gone or victim.made >= victim.output:
            self.finish(victim)
            return
        victim.computed = min(victim.cached, victim.prompt - 1, victim.goal - 1)
        victim.preempted += 1
        self.waiting.append(victim)
        self.waiting.sort(key=lambda r: r.rank)

    def needed(self) -> int:
        return sum((r.prompt + r.made - 1) % self.profile.block_tokens == 0 for r in self.decoding)

    def secure(self) -> None:
        while self.decoding and self.needed() > self.free():
            self.preempt()

    def fill(self, grown: int) -> list[tuple[Request, int]]:
        """The prompts of this iteration with the tokens of each."""
        kind = self.batching.kind
        if kind == "slots":
            return self.fill_slots()
        if kind in ("decode_first", "static") and self.decoding:
            return []
        split = kind == "chunked"
        left = self.budget - (len(self.decoding) if kind in ("chunked", "mixed") else 0)
        taken: list[tuple[Request, int]] = []
        for request in self.prompts:
            tokens = min(request.goal - request.computed, left)
            if tokens > 0:
                taken.append((request, tokens))
                left -= tokens
        while self.waiting:
            request = self.waiting[0]
            running = len(self.decoding) + len(self.prompts)
            spare = int(self.batching.watermark * self.blocks) if running else 0
            if running >= self.places or self.size(request.goal) > self.free() - grown - spare:
                break
            tokens = request.goal - request.computed
            if split:
                tokens = min(tokens, left)
                if tokens <= 0:
                    break
            elif taken and tokens > left:
                break
            self.waiting.pop(0)
            if math.isnan(request.started_s):
                request.started_s = self.now
            self.prompts.append(request)
            taken.append((request, tokens))
            left -= tokens
        return taken

    def iterate(self) -> bool:
        """One iteration from now on; False where there is nothing to do."""
        p, fuse = self.profile, self.batching.fuse
        if fuse:
            self.secure()
        chunks = self.fill(self.needed() if fuse else 0)
        if not chunks and not fuse:
            self.secure()
        decoding = list(self.decoding) if fuse or not chunks else []
        tokens = sum(n for _, n in chunks) + len(decoding)
        if not tokens:
            return False
        seconds = sum(line(p.tokens, p.seconds, n) for n in self.forward_passes(chunks, decoding))
        seconds += p.request_s * (len(chunks) + len(decoding))
        seconds += p.mixed_s if chunks and decoding else 0.0
        seconds += sum(p.prefill_attention_s * n * (r.computed + n / 2) for r, n in chunks)
        seconds += sum(p.decode_attention_s * (r.prompt + r.made - 1) for r in decoding)
        seconds *= next((pace for at, pace in reversed(self.paces) if at <= self.now), 1.0)
        watts = (p.prefill_w or 0.0) if chunks else line(p.decode_tokens, p.decode_w, len(decoding))
        for request, n in [*chunks, *((r, 1) for r in decoding)]:
            request.server_s += seconds * n / tokens
            request.joules += watts * seconds * n / tokens
        self.now += seconds
        self.busy_s += seconds
        self.iterations += 1
        for request in decoding:
            request.made += 1
            if request.made <= request.output:
                request.times.append(self.now)
        self.passes.append((tokens, 0 if self.endless else self.taken(), bool(chunks)))
        self.leave()
        for request, n in chunks:
            request.computed += n
            if request.computed == request.goal:
                self.prompts.remove(request)
                if self.batching.kind == "static" and request.cancel_s <= self.now:
                    continue
                request.made += 1
                request.times.append(self.now)
                if request.made >= request.output:
                    self.finish(request)
                else:
                    self.decoding.append(request)
        return True

    def leave(self) -> None:
        if self.batching.kind == "static" and any(r.made < r.output for r in self.decoding):
            return
        for request in [r for r in self.decoding if r.made >= r.output]:
            self.decoding.remove(request)
            self.finish(request)


def rows(requests: Sequence[Request]) -> dict[int, dict[str, Any]]:
    """What became of those that ended, by number."""
    return {
        r.number: {
            "started_s": r.started_s,
            "first_token_s": r.times[0],
            "finish_s": r.finish_s,
            "longest_gap_s": max((b - a for a, b in zip(r.times, r.times[1:], strict=False)), default=0.0),
            "preempted": r.preempted,
            "server_s": r.server_s,
            "joules": r.joules,
            "tokens": r.output,
        }
        for r in requests
    }
