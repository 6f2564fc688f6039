"""Bounded, for a time, removable; and nothing else than a dictionary with these properties."""

from __future__ import annotations

from typing import Any

from cache_doubles import oldest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from apportion.serve.cache.store import Entry, Store


def entry(key: str, size: int = 0, **more: Any) -> Entry:
    given = {"frame": "f", "tenant": "t", "api": "chat", "model": "m", "category": "chat"}
    times = {"created_s": 0.0, "expires_s": 100.0}
    return Entry(key=key, body=b"x" * size, **{**given, **times, **more})


class Model(RuleBasedStateMachine):
    """Against a plain dictionary; what eviction took is known by `gone`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.known: dict[str, Entry] = {}
        self.store = Store(20_000, oldest, {"small": 0.2}, self.gone)

    def gone(self, entry: Entry) -> None:
        assert self.known.pop(entry.key) is entry

    keys = st.sampled_from("abcdefgh")

    @rule(
        key=keys,
        size=st.integers(0, 9000),
        category=st.sampled_from(["small", "chat"]),
        tenant=st.sampled_from("tu"),
        ttl_s=st.floats(0.0, 20.0),
        tags=st.sets(st.sampled_from("xy")).map(tuple),
    )
    def put(
        self, key: str, size: int, category: str, tenant: str, ttl_s: float, tags: tuple[str, ...]
    ) -> None:
        made = entry(
            key,
            size,
            category=category,
            tenant=tenant,
            tags=tags,
            decision_id=f"d{key}",
            created_s=self.now,
            expires_s=self.now + ttl_s,
        )
        self.store.remove(key=key)
        assert key not in self.known
        self.known[key] = made
        kept = self.store.put(made, self.now)
        if not kept:
            self.known.pop(key, None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        found = self.store.get(key, self.now)
        assert found is self.known.get(key) or (found is None and self.known[key].expires_s <= self.now)
        if found is not None:
            assert found.expires_s > self.now
            self.store.used(found, self.now)

    @rule(step=st.floats(0.0, 10.0))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(
        key=st.none() | keys,
        tag=st.none() | st.sampled_from("xy"),
        tenant=st.none() | st.sampled_from("tu"),
        decision=st.none() | keys,
    )
    def remove(self, key: str | None, tag: str | None, tenant: str | None, decision: str | None) -> None:
        asked = [key, tag, tenant, decision]
        want = {
            k
            for k, e in self.known.items()
            if any(a is not None for a in asked)
            and key in (None, k)
            and (tag is None or tag in e.tags)
            and tenant in (None, e.tenant)
            and decision in (None, k)
        }
        went = self.store.remove(
            key=key, tag=tag, tenant=tenant, decision_id=None if decision is None else f"d{decision}"
        )
        assert set(went) == want

    @rule()
    def sweep(self) -> None:
        self.store.sweep(self.now)
        assert all(e.expires_s > self.now for e in self.known.values())

    @invariant()
    def same_and_bounded(self) -> None:
        assert {e.key for e in self.store} == set(self.known)
        assert len(self.store) == len(self.known)
        assert self.store.size_bytes == sum(e.size_bytes for e in self.known.values())
        small = sum(e.size_bytes for e in self.known.values() if e.category == "small")
        assert small <= 4_000
        assert self.store.size_bytes - small <= 16_000


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_removal_spares_what_came_later() -> None:
    store = Store(10_000, oldest, {}, lambda _: None)
    store.put(entry("old", created_s=1.0), 1.0)
    store.put(entry("new", created_s=3.0), 3.0)
    assert store.remove(tenant="t", before_s=2.0) == ["old"]
    assert store.get("new", 4.0) is not None
