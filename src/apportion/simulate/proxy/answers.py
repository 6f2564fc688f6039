"""The answer cache in the twin: what is kept, what is found, who waits for whom; evicted by a method of the catalogue.

What a question says is not in a trace. Two requests of one tenant for one model are the same if the trace says that all
blocks of their prompts are equal and they are equally long; without blocks every request is new.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from apportion.core.eviction import Eviction
from apportion.simulate.proxy.clock import Clock
from apportion.simulate.proxy.deciding import Ended
from apportion.simulate.proxy.job import Job
from apportion.simulate.result import OK, TIMEOUT
from apportion.simulate.scenario import Cache, Choice, build

if TYPE_CHECKING:
    from apportion.simulate.proxy.proxy import Proxy


class Kept:
    """One answer that is kept."""

    __slots__ = ("begins", "created_s", "endpoint", "expires_s", "quality", "tokens")

    def __init__(
        self, created_s: float, expires_s: float, endpoint: str, tokens: int, quality: float, begins: str
    ) -> None:
        self.created_s = created_s
        self.expires_s = expires_s
        self.endpoint = endpoint
        self.tokens = tokens
        self.quality = quality
        self.begins = begins


class Asking:
    """No answer is there: this request asks, and others may wait for it."""

    __slots__ = ("begins", "flies", "key", "waiting")

    def __init__(self, key: str, begins: str, flies: bool) -> None:
        self.key = key
        self.begins = begins
        self.flies = flies
        self.waiting: list[Job] = []


class Answers:
    """Times are Unix seconds, sizes bytes."""

    def __init__(self, proxy: Proxy, config: Cache) -> None:
        self._proxy = proxy
        self._config = config
        chosen = Choice(config.eviction.name, {**config.eviction.parameters, "capacity": float(config.bytes)})
        self._eviction = build(chosen, Eviction, "cache.eviction")
        self._entries: dict[str, Kept] = {}
        self._ends: list[tuple[float, str]] = []
        self._flights: dict[str, Asking] = {}
        self._latest: dict[str, str] = {}
        """The newest entry that begins so: what a question in other words would find."""
        self.counts = {"hit": 0, "joined": 0, "semantic": 0, "miss": 0, "failed": 0}
        self.saved_usd = 0.0

    def look(self, job: Job) -> Generator[None, Any, Asking | None]:
        """None where the request was answered with what was kept; else its turn to ask. Raises `Ended`."""
        key, begins = self._key(job)
        now = self._proxy.now
        entry = self._get(key, now)
        if entry is not None and self._fits(job, entry, now):
            self._hit(job, "hit", key, entry)
            return None
        flight = self._flights.get(key)
        if flight is not None and self._config.wait_s:
            entry = yield from self._joined(job, flight)
            if entry is not None and self._fits(job, entry, now):
                self._hit(job, "joined", key, entry)
                return None
            self.counts["failed"] += 1
            return Asking(key, begins, False)
        if job.draws and job.draws[3] < self._config.similar and begins in self._latest:
            near = self._latest[begins]
            entry = self._get(near, now)
            if entry is not None and self._fits(job, entry, now):
                self._hit(job, "semantic", near, entry)
                return None
        asking = self._flights[key] = Asking(key, begins, True)
        self.counts["miss"] += 1
        return asking

    def _joined(self, job: Job, flight: Asking) -> Generator[None, Any, Kept | None]:
        """Wait for the same question that is under way. Raises `Ended` when the deadline passes first."""
        clock = self._proxy.clock
        until_s = clock.now_s + self._config.wait_s
        late = bool(job.until_s) and job.until_s < until_s
        timer = clock.at(job.until_s if late else until_s, job.resume)
        flight.waiting.append(job)
        entry: Kept | None = yield
        if timer[2] is not None and timer[0] <= clock.now_s and entry is None:
            flight.waiting = [other for other in flight.waiting if other is not job]
            if late:
                raise Ended(TIMEOUT, "deadline")
        Clock.cancel(timer)
        return entry

    def keep(self, job: Job, asking: Asking) -> None:
        """A whole answer is there: others who ask the same may have it."""
        last = job.answered_by or job.attempts[-1]
        if last.finish != "stop" or last.usage is None:
            return
        config, now, tokens = self._config, self._proxy.now, last.usage.output_tokens
        self._sweep(now)
        self._drop(asking.key)
        longest_s = self._ttl_s(1.0)
        entry = Kept(now, now + longest_s, last.route.site.name, tokens, job.expected_quality, asking.begins)
        if longest_s <= 0.0:
            return
        self._entries[asking.key] = entry
        self._latest[asking.begins] = asking.key
        heapq.heappush(self._ends, (entry.expires_s, asking.key))
        size = config.entry_bytes + config.bytes_per_token * tokens
        for victim in self._eviction.insert(asking.key, size, now, max(1e-9, job.usd or 0.0)):
            self._forget(str(victim))
        self._land(asking, self._entries.get(asking.key))

    def end(self, asking: Asking) -> None:
        """Let those go who wait."""
        self._land(asking, None)

    def summary(self) -> dict[str, Any]:
        """Hits, misses and what is held."""
        counts = self.counts
        return {
            "hits": counts["hit"] + counts["joined"] + counts["semantic"],
            "misses": counts["miss"] + counts["failed"],
            "by": dict(counts),
            "entries": len(self._entries),
            "bytes": float(self._eviction.size),
        }

    # inside

    def _key(self, job: Job) -> tuple[str, str]:
        """What the request is known by, and what it begins with."""
        key = job.key
        whose = key.tenant if self._config.share == "team" else f"key:{key.name}"
        piece = job.piece
        blocks = piece.blocks.of(job.row).tolist() if piece is not None and piece.blocks is not None else None
        if not blocks:
            return f"{whose}/{job.group.name}/{job.id}", ""
        frame = f"{whose}/{job.group.name}/{blocks[0]}"
        return f"{frame}/{','.join(map(str, blocks[1:]))}/{job.prompt_tokens}", frame

    def _fits(self, job: Job, entry: Kept, now: float) -> bool:
        """Whether the request may get ``entry``."""
        loads = [route.site.load or 0.0 for route in job.group.routes]
        if now - entry.created_s >= self._ttl_s(min(loads, default=0.0)):
            return False
        key = job.key
        if key.endpoints is not None and entry.endpoint not in key.endpoints:
            return False
        return key.require <= self._proxy.sites[entry.endpoint].config.tags

    def _ttl_s(self, load: float) -> float:
        """How long an answer is served; longer while the model is loaded."""
        config = self._config
        above = config.relax_above
        relaxed = min(1.0, max(0.0, (load - above) / (1.0 - above))) if above < 1.0 else 0.0
        return min(config.ttl_s * (1.0 + relaxed * config.relax_ttl), config.most_ttl_s)

    def _hit(self, job: Job, kind: str, key: str, entry: Kept) -> None:
        self.counts[kind] += 1
        self._eviction.hit(key, self._proxy.now)
        self._proxy.hold_request(job, "cache")
        job.cached = kind
        job.status = OK
        job.expected_quality = entry.quality
        job.output_tokens = entry.tokens

    def _get(self, key: str, now: float) -> Kept | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_s <= now:
            self._drop(key)
            return None
        return entry

    def _sweep(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            end_s, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry is not None and entry.expires_s <= end_s:
                self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._entries:
            self._eviction.remove(key)
            self._forget(key)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None and self._latest.get(entry.begins) == key:
            del self._latest[entry.begins]

    def _land(self, asking: Asking, entry: Kept | None) -> None:
        if asking.flies:
            asking.flies = False
            if self._flights.get(asking.key) is asking:
                del self._flights[asking.key]
            clock = self._proxy.clock
            waiting, asking.waiting = asking.waiting, []
            for job in waiting:
                clock.at(clock.now_s, job.resume, entry)
