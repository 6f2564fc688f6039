"""A request's text as numbers: made only where somebody looks at them, and for no longer than allowed."""

from __future__ import annotations

from typing import Protocol, cast

from apportion.core import catalogue
from apportion.core.features import Features
from apportion.serve import asking, showing
from apportion.serve.embedder import Embedder
from apportion.serve.job import Job
from apportion.serve.meters import Meters

_MORE = ("images", "files", "tool_results")
"""What a question is about besides its text."""


class Lexical(Protocol):
    """The cheap counts of a text."""

    def features(self, turn: str, before: str, facts: object) -> tuple[float, ...]:
        """Counts and marks, in the order of its names."""
        ...


class Reader:
    """Reads the requests of one worker. ``embedder`` None: the counts alone. ``wait_s`` is the longest for a vector."""

    def __init__(self, embedder: Embedder | None, wait_s: float) -> None:
        self._lexical: Lexical | None = None
        self._embedder = embedder
        self._wait_s = wait_s
        self._told: dict[str, int] = {}

    async def read(self, job: Job) -> None:
        """Give ``job`` its question and features."""
        asked = asking.read(job.call.api, job.call.fields)
        job.question = asked.turn
        job.place = asked.facts.get("messages")
        vector = await self.vector(asked.embed) if job.group.methods.encodes else None
        if self._lexical is None:
            self._lexical = cast(Lexical, catalogue.build("text/lexical"))
        school = job.group.school
        facts = asked.facts
        job.alone = not asked.before and not any(facts.get(name) for name in _MORE)
        if school is not None and job.alone and not job.call.has_tools and job.call.api in showing.APIS:
            job.choosable = school.choose(showing.owner(job), vector, job.now)
        job.features = Features(self._lexical.features(asked.turn, asked.before, asked.facts), vector)

    async def vector(self, text: str) -> tuple[float, ...] | None:
        """The meaning of a text; None without an encoder, or when it takes too long."""
        return None if self._embedder is None else await self._embedder.vector(text, self._wait_s)

    def count(self, meters: Meters) -> None:
        """Add to the metrics what the encoder has done since the last time."""
        if self._embedder is None:
            return
        counters = self._embedder.counters
        now = {name: getattr(counters, name) for name in ("hits", "misses", "late", "full", "failed")}
        for name, count in now.items():
            meters.vectors.at(name).add(count - self._told.get(name, 0))
        self._told = now
