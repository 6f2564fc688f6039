"""The arrays behind a group of instances: built from profiles, and grown as requests come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.simulate.engine import _kernel as kernel
from apportion.simulate.engine._compiled import direct
from apportion.simulate.engine._kernel import State
from apportion.simulate.engine.batching import Batching, EngineError
from apportion.simulate.profile import Profile

ENDLESS_BLOCKS = 2**50


class Store:
    """``state`` for ``kernel``; everybody who keeps it must take it from here again after `grow`."""

    def __init__(
        self,
        profiles: Sequence[Profile],
        batchings: Sequence[Batching],
        *,
        start_s: float = 0.0,
        shared_memory: bool = False,
        rows: int = 64,
        kernel: Any = kernel,
    ) -> None:
        n = len(profiles)
        if not n or n != len(batchings):
            raise EngineError(
                f"{n} profiles and {len(batchings)} batchings.",
                field="profiles",
                fix="Give one or more, and as many of the one as of the other.",
            )
        if shared_memory and len({p.block_tokens for p in profiles}) > 1:
            raise EngineError(
                "Engines with one memory have blocks of different sizes.",
                field="block_tokens",
                fix="Give all their profiles the same 'block_tokens'.",
            )
        for profile in profiles:
            check(profile)
        self.kernel = kernel
        self.profiles = tuple(profiles)
        self.batchings = tuple(batchings)
        places = max(b.places(p) for b, p in zip(batchings, profiles, strict=True))
        points = max(max(len(p.tokens), len(p.decode_tokens)) for p in profiles)
        k = kernel
        self.state = State(
            i=np.zeros((n, k.COUNTERS), np.int64),
            f=np.zeros((n, k.F)),
            due=np.full(n, np.inf),
            lane=np.zeros((n, k.LANES, max(places, *(p.block_tokens for p in profiles))), np.int64),
            time=np.zeros((n, k.TIMES, places)),
            table=np.full((n, k.TABLES, points), np.nan),
            p=np.zeros((0, k.P), np.int64),
            q=np.zeros((0, k.Q)),
            memory=np.zeros((2 if shared_memory else n + 1, 2), np.int64),
        )
        self.state.memory[0, 0] = -1
        for index, (profile, batching) in enumerate(zip(profiles, batchings, strict=True)):
            self._set(index, profile, batching, 1 if shared_memory else index + 1, start_s)
        self.grow(rows)
        self.advance = direct(kernel.advance, self.state, 0, 0.0, True)
        self.submit = direct(kernel.submit, self.state, 0, 0.0, 0.0, 0, 0, 0, 0, 0, 0)

    def _set(self, at: int, profile: Profile, batching: Batching, pool: int, start_s: float) -> None:
        s, k = self.state, self.kernel
        i, f = s.i[at], s.f[at]
        for column in (k.HEAD, k.TAIL, k.DONE, k.DONE_TAIL, k.PENDING, k.PENDING_TAIL):
            i[column] = -1
        i[k.FUSE], i[k.SPLIT] = batching.fuse, batching.split
        i[k.GATED] = batching.kind in ("decode_first", "static")
        i[k.STREAMS] = batching.kind == "slots"
        s.time[at, k.USED] = -np.inf
        i[k.TOGETHER] = batching.kind == "static"
        i[k.SLOTS], i[k.BUDGET] = batching.places(profile), batching.budget(profile)
        i[k.BLOCK], i[k.POOL] = profile.block_tokens, pool
        blocks = profile.kv_tokens // profile.block_tokens
        i[k.WATERMARK] = int(batching.watermark * blocks)
        s.memory[pool, 1] = ENDLESS_BLOCKS if batching.kind == "slots" else blocks
        i[k.POINTS] = len(profile.tokens)
        table = s.table[at]
        table[k.AT, : len(profile.tokens)] = profile.tokens
        table[k.TAKES, : len(profile.tokens)] = profile.seconds
        i[k.WATT_POINTS] = max(1, len(profile.decode_tokens))
        table[k.WATTS_AT, 0] = 0.0
        table[k.WATTS_AT, : len(profile.decode_tokens)] = profile.decode_tokens
        table[k.DRAWS, : len(profile.decode_w)] = profile.decode_w
        f[k.T0] = f[k.T1] = start_s
        f[[k.PACE_PREFILL, k.PACE_DECODE, k.POWER_PREFILL, k.POWER_DECODE]] = 1.0
        f[k.PAIR_S], f[k.CONTEXT_S] = profile.prefill_attention_s, profile.decode_attention_s
        f[k.REQUEST_S], f[k.MIXED_S] = profile.request_s, profile.mixed_s
        f[k.BEFORE_TOKEN_S] = profile.before_s_per_token
        f[k.BEFORE_S], f[k.AFTER_S] = profile.before_s, profile.after_s
        f[k.IDLE_W] = np.nan if profile.idle_w is None else profile.idle_w
        f[k.PREFILL_W] = np.nan if profile.prefill_w is None else profile.prefill_w
        budget, places = batching.budget(profile), batching.places(profile)
        n = len(profile.tokens)
        f[k.PROMPT_TOKEN_S] = k.between(table[k.AT], table[k.TAKES], n, budget) / budget
        f[k.OUTPUT_TOKEN_S] = k.between(table[k.AT], table[k.TAKES], n, places) / places

    def grow(self, rows: int) -> State:
        """``rows`` more places for requests in flight."""
        old, k = self.state, self.kernel
        had = len(old.p)
        p, q = np.zeros((had + rows, k.P), np.int64), np.zeros((had + rows, k.Q))
        p[:had], q[:had] = old.p, old.q
        p[had:, k.NEXT] = np.arange(had + 1, had + rows + 1)
        p[-1, k.NEXT] = old.memory[0, 0]
        old.memory[0, 0] = had
        self.state = old._replace(p=p, q=q)
        return self.state


def check(profile: Profile) -> None:
    """Raise `EngineError` where a profile is not one of an engine."""
    if profile.kind != "batch":
        raise EngineError(
            f"Profile '{profile.name}' is of a hosted endpoint, not of an engine.",
            field="kind",
            fix="Use it as an endpoint of a scenario, or give a profile of kind 'batch'.",
        )
    if profile.kv_tokens < profile.block_tokens:
        raise EngineError(
            f"Profile '{profile.name}' holds {profile.kv_tokens} tokens in blocks of {profile.block_tokens}.",
            field="kv_tokens",
            fix="Give memory for at least one block.",
        )
