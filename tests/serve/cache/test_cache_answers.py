"""Looking and keeping: what is found, by whom, for how long; and who waits for whom."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
from cache_doubles import answered, chat, oldest

from apportion.serve.cache.answers import DEFAULT, AnswerCache, Control, Hit, Turn
from apportion.serve.cache.category import Categories
from apportion.serve.cache.identity import Question
from apportion.serve.cache.settings import Cache, Category

NOW = 1_000_000.0


class Words:
    """An encoder double: counts of letters, so that texts with the same words in any order are equal."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.late = False

    async def __call__(self, text: str) -> Sequence[float] | None:
        self.asked.append(text)
        await asyncio.sleep(0)
        if self.late:
            return None
        counts = [0.01] * 27
        for letter in text.casefold():
            counts[ord(letter) - 97 if "a" <= letter <= "z" else 26] += 1.0
        return counts


def cache(vector: Words | None = None, **settings: Any) -> AnswerCache:
    return AnswerCache(Cache(enabled=True, semantic=vector is not None, **settings), oldest, vector=vector)


def ask(cached: AnswerCache, text: str = "hello", *, control: Control = DEFAULT, **how: Any) -> Question:
    body = {"tenant": "team:a", "key": "k", "user": "", "model": "m", "control": control}
    more = how.pop("body", {})
    found = cached.question("chat", chat(text, **more), **{**body, **how})
    assert found is not None
    return found


async def turn(cached: AnswerCache, question: Question, now: float = NOW, **how: Any) -> Turn:
    found = await cached.look(question, now, **how)
    assert isinstance(found, Turn)
    return found


async def hit(cached: AnswerCache, question: Question, now: float = NOW, **how: Any) -> Hit:
    found = await cached.look(question, now, **how)
    assert isinstance(found, Hit), found
    return found


async def kept(
    cached: AnswerCache, question: Question, body: bytes = answered(), now: float = NOW, **how: Any
) -> None:
    ours = await turn(cached, question, now)
    assert ours.keep(body, now=now, **how)
    ours.end()


# --- exactly the same -----------------------------------------------------------------------------


async def test_what_was_kept_is_found_with_what_it_cost() -> None:
    cached = cache()
    question = ask(cached)
    await kept(cached, question, decision_id="dec_1", endpoint="e", usd_pico=7)
    found = await hit(cached, question, NOW + 5)
    assert (found.kind, found.body, found.age_s, found.similarity) == ("hit", answered(), 5.0, None)
    assert (found.decision_id, found.endpoint, found.usd_pico) == ("dec_1", "e", 7)
    assert cached.stats()["saved_usd"] == 7e-12


@pytest.mark.parametrize(
    "body", [answered(finish="length"), answered(finish="content_filter"), b"{}", b"x", answered(n=2)]
)
async def test_what_is_not_whole_is_not_kept(body: bytes) -> None:
    cached = cache()
    ours = await turn(cached, ask(cached))
    assert not ours.keep(body, now=NOW)
    ours.end()
    assert cached.stats()["entries"] == 0


async def test_what_is_too_long_is_not_kept() -> None:
    cached = cache(answer_bytes=100)
    ours = await turn(cached, ask(cached))
    assert not ours.keep(answered("x" * 200), now=NOW)
    ours.end()


async def test_an_answer_ends_with_its_time() -> None:
    cached = cache(categories={"all": Category(match=["."], ttl_s=10.0, relaxes=False)})
    await kept(cached, ask(cached))
    await hit(cached, ask(cached), NOW + 9.9)
    (await turn(cached, ask(cached), NOW + 10.0)).end()


async def test_the_longest_time_bounds_every_category() -> None:
    cached = cache(ttl_s=5.0, categories={"all": Category(match=["."], ttl_s=100.0)})
    await kept(cached, ask(cached))
    await hit(cached, ask(cached), NOW + 4.9)
    (await turn(cached, ask(cached), NOW + 5.0, load=1.0)).end()


async def test_a_client_may_ask_for_a_younger_or_a_new_one() -> None:
    cached = cache()
    await kept(cached, ask(cached))
    young = ask(cached, control=Control(max_age_s=3.0))
    await hit(cached, young, NOW + 3.0)
    (await turn(cached, young, NOW + 4.0)).end()
    again = await turn(cached, ask(cached, control=Control("refresh")))
    assert again.why == "refresh"
    assert again.keep(answered("new"), now=NOW + 5)
    assert (
        json.loads((await hit(cached, ask(cached), NOW + 6)).body)["choices"][0]["message"]["content"]
        == "new"
    )
    assert (
        cached.question("chat", chat(), tenant="t", key="k", user="", model="m", control=Control("off"))
        is None
    )


async def test_a_key_gets_only_answers_of_its_endpoints() -> None:
    cached = cache()
    await kept(cached, ask(cached), endpoint="far")
    (await turn(cached, ask(cached), endpoints={"near"})).end()
    await hit(cached, ask(cached), endpoints={"near", "far"})


# --- tenants --------------------------------------------------------------------------------------


async def test_nothing_crosses_tenants_by_any_way() -> None:
    words = Words()
    cached = cache(words)
    await kept(cached, ask(cached, "reset my password"))
    for text in ("reset my password", "Reset my password!"):
        found = await cached.look(ask(cached, text, tenant="team:b"), NOW)
        assert isinstance(found, Turn)
        found.end()
    assert (await hit(cached, ask(cached, "Reset my password!"))).kind == "semantic"
    mine = await turn(cached, ask(cached, "under way"))
    theirs = await asyncio.wait_for(cached.look(ask(cached, "under way", tenant="team:b"), NOW), 30)
    assert isinstance(theirs, Turn)
    mine.end()
    theirs.end()


@pytest.mark.parametrize("share", ["key", "user"])
async def test_narrower_sharing(share: str) -> None:
    cached = cache(share=share)
    await kept(cached, ask(cached, user="team:a/u"))
    other = {"key": {"key": "l"}, "user": {"user": "team:a/v"}}[share]
    (await turn(cached, ask(cached, **{"user": "team:a/u", **other}))).end()
    await hit(cached, ask(cached, user="team:a/u"))


async def test_without_an_end_user_nothing_is_shared_among_them() -> None:
    cached = cache(share="user")
    assert cached.question("chat", chat(), tenant="team:a", key="k", user="", model="m") is None


# --- in other words -------------------------------------------------------------------------------


async def test_the_same_in_other_words_is_found_and_the_opposite_is_not() -> None:
    cached = cache(Words())
    await kept(cached, ask(cached, "How do I enable 2FA?"))
    found = await hit(cached, ask(cached, "how do I enable 2FA please"))
    assert found.kind == "semantic"
    assert found.similarity is not None
    assert 0.8 < found.similarity <= 1.0001
    (await turn(cached, ask(cached, "How do I disable 2FA?"))).end()
    assert cached.stats()["refused"] == {"factual": 1}


async def test_only_within_the_same_frame() -> None:
    cached = cache(Words())
    await kept(cached, ask(cached, "How do I enable 2FA?"))
    for body in ({"temperature": 0.1}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        (await turn(cached, ask(cached, "how do I enable 2FA", body=body))).end()
    (await turn(cached, ask(cached, "how do I enable 2FA", model="other"))).end()


async def test_without_a_vector_in_time_only_the_same_is_found() -> None:
    words = Words()
    cached = cache(words)
    words.late = True
    await kept(cached, ask(cached, "How do I enable 2FA?"))
    (await turn(cached, ask(cached, "how do I enable 2FA"))).end()
    await hit(cached, ask(cached, "How do I enable 2FA?"))
    words.late = False
    (await turn(cached, ask(cached, "how do I enable 2FA"))).end()
    assert cached.stats()["vectors"] == 0


async def test_a_failing_encoder_is_a_miss() -> None:
    async def broken(text: str) -> Sequence[float] | None:
        raise OSError

    cached = AnswerCache(Cache(enabled=True, semantic=True), oldest, vector=broken)
    await kept(cached, ask(cached))
    await hit(cached, ask(cached))


@pytest.mark.parametrize("values", [[], [0.0] * 3, [math.nan] * 3, [math.inf] * 3])
async def test_a_vector_without_direction_is_none(values: list[float]) -> None:
    async def odd(text: str) -> Sequence[float] | None:
        return values

    cached = AnswerCache(Cache(enabled=True, semantic=True), oldest, vector=odd)
    await kept(cached, ask(cached))
    assert cached.stats()["vectors"] == 0


async def test_volatile_questions_are_never_compared_by_meaning() -> None:
    words = Words()
    cached = cache(words)
    await kept(cached, ask(cached, "what is the weather today"))
    (await turn(cached, ask(cached, "What is the weather today?"))).end()
    assert words.asked == []
    await hit(cached, ask(cached, "what is the weather today"), NOW + 59)
    (await turn(cached, ask(cached, "what is the weather today"), NOW + 60)).end()


async def test_exact_mode_makes_no_vector() -> None:
    words = Words()
    cached = cache(words)
    (await turn(cached, ask(cached, control=Control("exact")))).end()
    assert words.asked == []


async def test_load_relaxes_time_and_threshold_but_never_the_words() -> None:
    rules = Category(match=["."], threshold=0.999, ttl_s=10.0, relaxes=True)
    cached = cache(Words(), categories={"all": rules}, relax_threshold=0.5, relax_ttl=1.0)
    await kept(cached, ask(cached, "How do I enable 2FA?"))
    close = ask(cached, "please how might I enable 2FA")
    (await turn(cached, close)).end()
    assert (await hit(cached, close, load=1.0)).kind == "semantic"
    (await turn(cached, ask(cached, "How do I disable 2FA?"), load=1.0)).end()
    exact = ask(cached, "How do I enable 2FA?")
    (await turn(cached, exact, NOW + 15)).end()
    await hit(cached, exact, NOW + 15, load=1.0)
    (await turn(cached, exact, NOW + 20, load=1.0)).end()


async def test_a_kind_that_does_not_pay_is_seldom_looked_up() -> None:
    words = Words()
    cached = cache(words, second_usd=1e9)
    for number in range(600):
        (await turn(cached, ask(cached, f"question {number}"))).end()
    assert 200 <= len(words.asked) < 260
    assert not cached.stats()["semantic"]["factual"]["pays"]


async def test_what_is_evicted_is_not_found_by_meaning() -> None:
    cached = cache(Words(), bytes=4000)
    for number in ("alpha", "beta", "gamma", "delta", "epsilon"):
        await kept(cached, ask(cached, f"tell {number}"))
    stats = cached.stats()
    assert stats["vectors"] == stats["entries"] < 5
    assert stats["bytes"] <= 4000
    (await turn(cached, ask(cached, "tell alpha!"))).end()


# --- removing -------------------------------------------------------------------------------------


async def test_one_answer_a_tag_or_a_tenant_can_be_removed() -> None:
    cached = cache(Words())
    texts = ["one cat", "two dogs", "red fox", "old owl"]
    for place, text in enumerate(texts):
        tenant = "team:a" if place < 3 else "team:b"
        await kept(
            cached,
            ask(cached, text, tags=("t",) if place == 1 else (), tenant=tenant),
            decision_id=f"dec_{place}",
        )
    assert cached.remove(now=NOW) == 0
    assert cached.remove(decision_id="dec_0", now=NOW) == 1
    (await turn(cached, ask(cached, "One cat!"))).end()
    assert cached.remove(tag="t", now=NOW) == 1
    assert cached.remove(key=ask(cached, "red fox").key, tenant="team:b", now=NOW) == 0
    assert cached.remove(tenant="team:a", now=NOW) == 1
    assert cached.stats()["entries"] == cached.stats()["vectors"] == 1


# --- one asks, the others wait --------------------------------------------------------------------


async def test_equal_requests_wait_for_the_first() -> None:
    cached = cache()
    first = await turn(cached, ask(cached))
    others = [asyncio.create_task(cached.look(ask(cached), NOW)) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in others)
    first.keep(answered("together"), now=NOW)
    first.end()
    found = await asyncio.gather(*others)
    assert {one.kind for one in found if isinstance(one, Hit)} == {"joined"}
    assert len([one for one in found if isinstance(one, Hit)]) == 5


async def test_if_the_first_fails_each_asks_on_its_own() -> None:
    cached = cache()
    first = await turn(cached, ask(cached))
    others = [asyncio.create_task(cached.look(ask(cached), NOW)) for _ in range(3)]
    await asyncio.sleep(0)
    first.end()
    found = await asyncio.gather(*others)
    assert [one.why for one in found if isinstance(one, Turn)] == ["failed"] * 3
    for one in found:
        assert isinstance(one, Turn)
        one.end()
    (await turn(cached, ask(cached))).end()


async def test_nobody_waits_longer_than_allowed() -> None:
    cached = cache(wait_s=0.01)
    first = await turn(cached, ask(cached))
    other = await asyncio.wait_for(turn(cached, ask(cached)), 30)
    assert other.keep(answered(), now=NOW)
    other.end()
    await hit(cached, ask(cached))
    first.end()


async def test_a_waiting_one_that_leaves_disturbs_nobody() -> None:
    cached = cache()
    first = await turn(cached, ask(cached))
    leaves = asyncio.create_task(cached.look(ask(cached), NOW))
    stays = asyncio.create_task(cached.look(ask(cached), NOW))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    first.keep(answered(), now=NOW)
    assert isinstance(await stays, Hit)
    first.end()


async def test_one_that_leaves_while_looking_lets_the_others_go() -> None:
    class Never(Words):
        async def __call__(self, text: str) -> Sequence[float] | None:
            await asyncio.Event().wait()
            return None

    cached = cache(Never())
    first = asyncio.create_task(cached.look(ask(cached), NOW))
    await asyncio.sleep(0)
    second = asyncio.create_task(cached.look(ask(cached), NOW))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert isinstance(await asyncio.wait_for(second, 30), Turn)


async def test_closing_lets_everybody_go() -> None:
    cached = cache()
    first = await turn(cached, ask(cached))
    waits = asyncio.create_task(cached.look(ask(cached), NOW))
    await asyncio.sleep(0)
    await cached.close()
    assert isinstance(await waits, Turn)
    first.end()


# --- nothing is told ------------------------------------------------------------------------------


async def test_neither_stats_nor_logs_hold_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cached = cache(Words())
    await kept(cached, ask(cached, "sesame opens"), answered("the secret"))
    await hit(cached, ask(cached, "Sesame opens!"))
    said = json.dumps(cached.stats()) + caplog.text
    assert "secret" not in said
    assert "sesame" not in said.casefold()


async def test_without_an_encoder_a_miss_is_not_read_until_it_has_been_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str | None] = []
    of = Categories.of

    def noted(self: Categories, text: str | None, *rest: Any) -> str:
        read.append(text)
        return of(self, text, *rest)

    monkeypatch.setattr(Categories, "of", noted)
    cached = cache()
    mine = await turn(cached, ask(cached, "Who wrote Faust?"))
    assert not read
    assert not cached.stats()["lookups"]
    mine.end()
    mine.end()
    assert mine.category == "factual"
    assert read == ["Who wrote Faust?"]
    assert cached.stats()["lookups"] == [{"category": "factual", "outcome": "miss", "count": 1}]
