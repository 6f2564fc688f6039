"""Requests: how many ordinary ones are flagged, how many that over-generate are found, learning as they come."""

from __future__ import annotations

import random
from typing import Any

from apportion.core import Features
from apportion.policy.guard.overflow import Overflow
from apportion.predict.text.lexical import Lexical
from benchmarks.guards.prompts import ordinary, overflow, rows

CAP_TOKENS = 5000


def run(
    seed: int,
    n: int,
    *,
    guard: Overflow | None = None,
    tenant: str = "t",
    model: str = "m",
    cap_tokens: int = CAP_TOKENS,
    unseen: bool = True,
) -> dict[str, Any]:
    """One tenant's stream, 5% of it over-generating; if ``unseen``, the second half has wordings that were not in
    the first.
    """
    generator = random.Random(seed)
    lexical = Lexical()
    scale = cap_tokens / CAP_TOKENS * 5.0 if cap_tokens < CAP_TOKENS else 1.0
    lengths = [int(row["response_chars"]) / 4.0 * scale for row in rows("gsm8k_multi_model", "outcomes")]
    prompts = ordinary()
    guard = guard or Overflow(action="cap")
    seen_wordings, new_wordings = slice(0, 2), slice(2, 3) if unseen else slice(0, 2)
    wild = [iter(overflow(n, seed, seen_wordings)), iter(overflow(n, seed + 1, new_wordings))]
    seen = dict.fromkeys(prompts, 0)
    flagged = dict.fromkeys(prompts, 0)
    found = [0, 0]
    for place in range(n):
        second = place >= n // 2
        if generator.random() < 0.05:
            _, prompt = next(wild[second])
            tokens, source = float(cap_tokens), None
        else:
            source = generator.choice(list(prompts))
            prompt, tokens = generator.choice(prompts[source]), generator.choice(lengths)
        features = Features(tuple(lexical.features(prompt)))
        verdict = guard.inspect(features, tenant, model, None)
        flag = bool(verdict.why)
        if second:
            if source is None:
                found[0] += flag
                found[1] += 1
            else:
                seen[source] += 1
                flagged[source] += flag
        capped = verdict.action == "cap" and tokens > (verdict.max_tokens or 0)
        served = float(verdict.max_tokens or 0) if capped else tokens
        guard.learn(features, tenant, model, served, censored=capped)
    return {
        "seed": seed,
        "flagged": {name: flagged[name] / max(seen[name], 1) for name in seen},
        "flagged_all": sum(flagged.values()) / sum(seen.values()),
        "found": found[0] / max(found[1], 1),
    }
