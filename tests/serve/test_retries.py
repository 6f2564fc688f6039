"""Asking the same again at once: noticed for one person of one tenant, in bounded memory, without words."""

from __future__ import annotations

import random
import string

from apportion.serve.retries import Retries

TEXT = "Please explain to me how the tides of the sea depend on the moon and on the sun"


def ask(
    retries: Retries,
    id: str,
    text: str = TEXT,
    *,
    tenant: str = "red",
    person: str = "ann",
    place: object = 1,
    now: float = 0.0,
) -> str | None:
    return retries.seen(tenant, person, text, place, id, now, 60.0)


def test_the_same_again_is_a_retry() -> None:
    retries = Retries()
    assert ask(retries, "a") is None
    assert ask(retries, "b", TEXT.upper() + "!", now=10.0) == "a"
    assert ask(retries, "c", now=20.0) == "b"


def test_only_at_once() -> None:
    retries = Retries()
    ask(retries, "a")
    assert ask(retries, "b", now=61.0) is None


def test_only_of_the_same_person_and_tenant() -> None:
    retries = Retries()
    ask(retries, "a")
    assert ask(retries, "b", person="bob") is None
    assert ask(retries, "c", tenant="blue") is None
    assert ask(retries, "d") == "a"


def test_nobody_is_not_a_person() -> None:
    retries = Retries()
    ask(retries, "a", person="")
    assert ask(retries, "b", person="") is None


def test_short_words_and_other_places_say_nothing() -> None:
    retries = Retries()
    ask(retries, "a", "go on please")
    assert ask(retries, "b", "go on please") is None
    ask(retries, "c", place=1)
    assert ask(retries, "d", place=3) is None


def test_other_questions_are_no_retries() -> None:
    generator = random.Random(0)
    words = ["".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(500)]
    false = 0
    for number in range(300):
        retries = Retries()
        ask(retries, "a", " ".join(generator.choices(words, k=8)))
        false += ask(retries, "b", " ".join(generator.choices(words, k=8))) is not None
        ask(retries, "c", f"what is {number} plus {number + 1} times three")
        false += ask(retries, "d", f"what is {number} plus {number + 2} times three") is not None
    assert false == 0


def test_memory_is_bounded_and_holds_no_words() -> None:
    retries = Retries(tenants=3, people=5)
    for number in range(50):
        for person in range(20):
            for _ in range(10):
                ask(retries, "a", f"{TEXT} {number}", tenant=f"t{number}", person=f"p{person}")
    assert len(retries._tenants) == 3
    assert all(len(people) == 5 for people in retries._tenants.values())
    assert all(len(asked) <= 8 for people in retries._tenants.values() for asked in people.values())
    assert "tides" not in repr(retries._tenants)
    assert "p19" not in repr(retries._tenants)
