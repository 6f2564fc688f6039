"""Beginnings of prompts that one machine still holds (prefix caching), as far as the trace says which are equal."""

from __future__ import annotations

from apportion.core.eviction import Eviction
from apportion.simulate.proxy.job import Job
from apportion.simulate.scenario import Choice, Endpoint, build


class Prefixes:
    """Blocks of tokens by id. A prompt finds the blocks that it begins with, up to the first that is missing."""

    __slots__ = ("_held",)

    def __init__(self, config: Endpoint) -> None:
        wanted = config.prefix
        if isinstance(wanted, Choice):
            wanted = Choice(wanted.name, {**wanted.parameters, "capacity": config.prefix_tokens})
        self._held = build(wanted, Eviction, f"endpoints.{config.name}.prefix")

    def found(self, job: Job, now_s: float) -> int:
        """Tokens of the prompt that need not be computed (never all of them); its blocks are held from now on."""
        blocks = job.piece.blocks
        if blocks is None:
            return 0
        held, size = self._held, blocks.block_tokens
        equal = 0
        leading = True
        for block in blocks.of(job.row).tolist():
            if block in held:
                held.hit(block, now_s)
                equal += leading
            else:
                leading = False
                held.insert(block, size, now_s, size)
        return max(0, min(equal * int(size), job.prompt_tokens - 1))
