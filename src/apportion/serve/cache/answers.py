"""The answer cache of one worker: look before asking, keep what came.

    found = await cache.look(question, now)
    if isinstance(found, Hit): ...                       # send found.body
    else:
        try: ...; found.keep(body, now=..., ...)         # a `Turn`: it is ours to ask
        finally: found.end()

Exactly the same request gets the same answer; while one of several is under way the others wait for it. Otherwise,
where a vector of its last question comes in time, the nearest questions asked in the same frame are read word by word
(`check`), and the first that asks the same is answered alike. Failures of anything here are misses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from apportion.core.eviction import Eviction
from apportion.serve.cache import identity
from apportion.serve.cache.breakeven import BreakEven
from apportion.serve.cache.category import Categories, Rules
from apportion.serve.cache.check import Reading, read, same
from apportion.serve.cache.complete import complete
from apportion.serve.cache.identity import Mode, Question
from apportion.serve.cache.semantic import Near, packed
from apportion.serve.cache.settings import Cache
from apportion.serve.cache.shared import Removal, Shared
from apportion.serve.cache.store import Entry, Store

logger = logging.getLogger("apportion.cache")

Vector = Callable[[str], Awaitable[Sequence[float] | None]]
"""The vector of a text; None if it does not come in time."""
Kind = Literal["hit", "semantic", "joined"]
_MOST: Final = 4
"""Near questions that are read."""
_READINGS: Final = 4096


class Control(NamedTuple):
    """What one request wants of the cache."""

    mode: Mode = "on"
    max_age_s: float | None = None


DEFAULT: Final = Control()


class Hit(NamedTuple):
    """An answer that is there. ``looked_s`` is what finding it took; ``seconds``, ``usd_pico`` what making it did."""

    kind: Kind
    key: str
    body: bytes
    category: str
    age_s: float
    similarity: float | None
    decision_id: str
    endpoint: str
    usd_pico: int
    seconds: float
    looked_s: float


class Turn:
    """No answer is there: this request asks. `keep` what comes; `end` in any case."""

    __slots__ = ("_cache", "_category", "_flight", "_started_s", "_vector", "question", "why")

    def __init__(
        self,
        cache: AnswerCache,
        question: Question,
        category: str | None,
        flight: asyncio.Future[Entry | None] | None,
        vector: bytes | None,
        why: str,
    ) -> None:
        self._cache = cache
        self._category = category
        self._flight = flight
        self._vector = vector
        self._started_s = time.perf_counter()
        self.question = question
        self.why = why
        """What became of the look: "miss", "refresh", or "failed" where another was waited for in vain."""

    @property
    def category(self) -> str:
        """That of the question. Where the look did not need it, it is found out when somebody asks: at `end`."""
        if self._category is None:
            self._category = self._cache._category(self.question)
            self._cache._counts[self._category, self.why] += 1
        return self._category

    def keep(
        self,
        body: bytes,
        *,
        now: float,
        decision_id: str = "",
        endpoint: str = "",
        usd_pico: int = 0,
    ) -> bool:
        """Keep an answer, the whole one in the client's dialect, if it may be given to others. Never raises."""
        entry = self._cache._kept(
            self.question,
            self.category,
            self._vector,
            body,
            now,
            decision_id,
            endpoint,
            usd_pico,
            time.perf_counter() - self._started_s,
        )
        self._land(entry)
        return entry is not None

    def end(self) -> None:
        """Let those go who wait, and count the look. May be called again."""
        self._land(None)
        _ = self.category

    def _land(self, entry: Entry | None) -> None:
        if self._flight is not None:
            self._cache._landed(self.question.key, self._flight, entry)
            self._flight = None


class AnswerCache:
    """Made of `settings.Cache`. ``make`` builds the eviction method of a capacity in bytes; ``vector`` is the
    encoder's, None without one; ``shared`` is what workers have in common, None for nothing."""

    def __init__(
        self,
        settings: Cache,
        make: Callable[[float], Eviction],
        *,
        vector: Vector | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.settings = settings
        self.categories = Categories(settings.categories)
        self._vector = vector if settings.semantic else None
        self._shared = shared
        self._near = Near()
        self._store = Store(settings.bytes, make, self.categories.quotas(), self._gone)
        self._flights: dict[str, asyncio.Future[Entry | None]] = {}
        self._accounts: dict[str, BreakEven] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[str] = Counter()
        self._saved_pico = 0
        self._readings: dict[str, Reading] = {}

    # asking

    def question(
        self,
        api: str,
        fields: Mapping[str, Any],
        *,
        tenant: str,
        key: str,
        user: str,
        model: str,
        variant: str = "",
        control: Control = DEFAULT,
        tags: tuple[str, ...] = (),
    ) -> Question | None:
        """What a request is to the cache; None if it is to be answered as if there were none.

        ``tenant`` is that of `serve.identity`, ``user`` the end user as the books name it ("" for nobody).
        """
        share = self.settings.share
        if share == "user" and not user:
            return None
        return identity.question(
            api,
            fields,
            tenant={"team": tenant, "key": f"key:{key}", "user": f"user:{user}"}[share],
            model=model,
            variant=variant,
            mode=control.mode,
            max_age_s=control.max_age_s,
            max_temperature=self.settings.max_temperature,
            tags=tags,
        )

    async def look(
        self, question: Question, now: float, *, load: float = 0.0, endpoints: Collection[str] | None = None
    ) -> Hit | Turn:
        """An answer, or the turn to ask for one.

        ``load`` of the model is from 0 (idle) to 1 (full); ``endpoints`` are those whose answers this key may get
        (None: all). Waits for the same request under way, and for the encoder, each within its time.
        """
        started_s = time.perf_counter()
        if question.mode == "refresh":
            return self._turn(question, None, None, None, "refresh")
        flight = self._flights.get(question.key)
        entry = self._store.get(question.key, now)
        if entry is None and flight is None and self._shared is None and self._vector is None:
            # Exact answers alone, and there is none: what kind of question it is matters when one is kept.
            return self._turn(question, None, self._took_off(question.key), None, "miss")
        category = self._category(question)
        rules = self.categories[category]
        wanted = _Wanted(question, now, endpoints, self._ttl_s(rules, load))
        if entry is None and self._shared is not None:
            entry = await self._shared.get(question.key)
            if entry is not None and wanted.fits(entry):
                self._take_in(entry, now)
        if entry is not None and wanted.fits(entry):
            return self._hit("hit", entry, now, None, started_s)
        flight = self._flights.get(question.key)
        if flight is not None and self.settings.wait_s:
            entry = await self._joined(flight)
            if entry is not None and wanted.fits(entry):
                return self._hit("joined", entry, now, None, started_s)
            return self._turn(question, category, None, None, "failed")
        flight = self._took_off(question.key)
        try:
            vector, found = await self._alike(question, category, rules, wanted, load)
        except BaseException:
            self._landed(question.key, flight, None)
            raise
        if found is None:
            return self._turn(question, category, flight, vector, "miss")
        similarity, entry = found
        hit = self._hit("semantic", entry, now, similarity, started_s)
        self._landed(question.key, flight, entry)
        return hit

    async def _joined(self, flight: asyncio.Future[Entry | None]) -> Entry | None:
        try:
            return await asyncio.wait_for(asyncio.shield(flight), self.settings.wait_s)
        except TimeoutError:
            return None

    async def _alike(
        self, question: Question, category: str, rules: Rules, wanted: _Wanted, load: float
    ) -> tuple[bytes | None, tuple[float, Entry] | None]:
        """The question's vector, and the most similar entry that answers it."""
        text = question.text
        if self._vector is None or text is None or question.mode != "on" or rules.threshold >= 1.0:
            return None, None
        account = self._account(category)
        if not account.due():
            return None, None
        started_s = time.perf_counter()
        try:
            values = await self._vector(text)
        except Exception:
            logger.exception("The encoder failed; looked for equal requests only.")
            values = None
        vector = packed(values) if values is not None else b""
        if not vector:
            return None, None
        threshold = rules.threshold - (
            self._relaxed(load) * self.settings.relax_threshold if rules.relaxes else 0
        )
        found = None
        reading = None
        for similarity, key in self._near.search((question.frame, category), vector, threshold, _MOST):
            entry = self._store.get(key, wanted.now)
            if entry is None or entry.text is None or not wanted.fits(entry):
                continue
            reading = reading or read(text)
            if same(reading, self._read(entry), rules.limits):
                found = similarity, entry
                break
            self._refused[category] += 1
        account.looked(time.perf_counter() - started_s)
        if found is not None:
            account.hit(found[1].usd_pico / 1e12, found[1].seconds)
        return vector, found

    def _read(self, entry: Entry) -> Reading:
        """The entry's question, word by word; of some it is remembered."""
        reading = self._readings.pop(entry.key, None) or read(entry.text or "")
        self._readings[entry.key] = reading
        if len(self._readings) > _READINGS:
            del self._readings[next(iter(self._readings))]
        return reading

    # keeping

    def remove(
        self,
        *,
        key: str | None = None,
        decision_id: str | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        now: float,
    ) -> int:
        """Drop the answers that fit all that is given, here and, within `sync_s`, wherever they are shared."""
        what = Removal(before_s=now, key=key, decision_id=decision_id, tag=tag, tenant=tenant)
        if self._shared is not None:
            self._shared.remove(what)
        return len(self._store.remove(**msgspec.structs.asdict(what)))

    def sync(self, entries: Sequence[Entry], removed: Sequence[Removal], now: float) -> None:
        """Take in what others have kept and dropped."""
        for what in removed:
            self._store.remove(**msgspec.structs.asdict(what))
        for entry in entries:
            self._take_in(entry, now)

    def stats(self) -> dict[str, Any]:
        """Counts for metrics and operators; nothing of what was asked or answered."""
        return {
            "entries": len(self._store),
            "bytes": int(self._store.size_bytes),
            "vectors": len(self._near),
            "saved_usd": self._saved_pico / 1e12,
            "lookups": [
                {"category": category, "outcome": outcome, "count": count}
                for (category, outcome), count in sorted(self._counts.items())
            ],
            "refused": dict(sorted(self._refused.items())),
            "semantic": {
                name: {"hit_rate": account.rate, "pays": account.pays}
                for name, account in sorted(self._accounts.items())
            },
        }

    async def close(self) -> None:
        """Let everybody go who waits."""
        for key, flight in list(self._flights.items()):
            self._landed(key, flight, None)
        if self._shared is not None:
            await self._shared.close()

    def _kept(
        self,
        question: Question,
        category: str,
        vector: bytes | None,
        body: bytes,
        now: float,
        decision_id: str,
        endpoint: str,
        usd_pico: int,
        seconds: float,
    ) -> Entry | None:
        rules = self.categories[category]
        try:
            if len(body) > self.settings.answer_bytes or not complete(question.api, body, question.n):
                return None
            longest_s = self._ttl_s(rules, 1.0)
            entry = Entry(
                key=question.key,
                frame=question.frame,
                tenant=question.tenant,
                api=question.api,
                model=question.model,
                category=category,
                body=bytes(body),
                created_s=now,
                expires_s=now + longest_s,
                decision_id=decision_id,
                endpoint=endpoint,
                usd_pico=usd_pico,
                seconds=seconds,
                tags=question.tags,
                text=question.text if vector else None,
                vector=vector or None,
            )
            if longest_s <= 0.0 or not self._take_in(entry, now):
                return None
        except Exception:
            logger.exception("An answer could not be kept.")
            return None
        if self._shared is not None:
            self._shared.put(entry, longest_s)
        return entry

    def _take_in(self, entry: Entry, now: float) -> bool:
        if not self._store.put(entry, now):
            return False
        if entry.vector:
            self._near.add((entry.frame, entry.category), entry.key, entry.vector)
        return True

    def _gone(self, entry: Entry) -> None:
        self._readings.pop(entry.key, None)
        if entry.vector:
            self._near.remove((entry.frame, entry.category), entry.key)

    # small things

    def _turn(
        self,
        question: Question,
        category: str | None,
        flight: asyncio.Future[Entry | None] | None,
        vector: bytes | None,
        why: str,
    ) -> Turn:
        if category is not None:
            self._counts[category, why] += 1
        return Turn(self, question, category, flight, vector, why)

    def _hit(self, kind: Kind, entry: Entry, now: float, similarity: float | None, started_s: float) -> Hit:
        self._counts[entry.category, kind] += 1
        self._saved_pico += entry.usd_pico
        self._store.used(entry, now)
        return Hit(
            kind=kind,
            key=entry.key,
            body=entry.body,
            category=entry.category,
            age_s=max(0.0, now - entry.created_s),
            similarity=similarity,
            decision_id=entry.decision_id,
            endpoint=entry.endpoint,
            usd_pico=entry.usd_pico,
            seconds=entry.seconds,
            looked_s=time.perf_counter() - started_s if kind != "joined" else 0.0,
        )

    def _category(self, question: Question) -> str:
        return self.categories.of(question.text, question.model, question.tags)

    def _took_off(self, key: str) -> asyncio.Future[Entry | None]:
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        return flight

    def _landed(self, key: str, flight: asyncio.Future[Entry | None], entry: Entry | None) -> None:
        if not flight.done():
            flight.set_result(entry)
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _account(self, category: str) -> BreakEven:
        return self._accounts.setdefault(category, BreakEven(self.settings.second_usd))

    def _relaxed(self, load: float) -> float:
        """How far rules give way, from 0 to 1."""
        above = self.settings.relax_above
        return min(1.0, max(0.0, (load - above) / (1.0 - above))) if above < 1.0 else 0.0

    def _ttl_s(self, rules: Rules, load: float) -> float:
        longer = self._relaxed(load) * self.settings.relax_ttl if rules.relaxes else 0.0
        return min(rules.ttl_s * (1.0 + longer), self.settings.ttl_s)


class _Wanted(NamedTuple):
    """Which entries a request may get."""

    question: Question
    now: float
    endpoints: Collection[str] | None
    ttl_s: float

    def fits(self, entry: Entry) -> bool:
        """Whether ``entry`` is one of them."""
        age_s, oldest_s = self.now - entry.created_s, self.question.max_age_s
        return (
            entry.tenant == self.question.tenant
            and age_s < self.ttl_s
            and (oldest_s is None or age_s <= oldest_s)
            and (self.endpoints is None or entry.endpoint in self.endpoints)
        )
