"""Prompts of two kinds, for one to learn from and others to be tested on: other topics, other wordings."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

Kind = Literal["short", "long"]


class Prompt(NamedTuple):
    """What is asked, and what kind of answer that calls for."""

    text: str
    kind: Kind


_TEMPLATES: dict[str, dict[Kind, tuple[str, ...]]] = {
    "train": {
        "short": (
            "What is the capital of {place}?",
            "Answer yes or no: is {thing} heavier than a car?",
            "What is {a} plus {b}? Give only the number.",
            "Translate the word {thing} into French.",
            "Is this review positive or negative: the {thing} broke after a day.",
            "Name one colour that a {thing} can have.",
            "In one word, what is a {thing} used for?",
        ),
        "long": (
            "Write a short story about a {thing} in {place}.",
            "Explain in detail how a {thing} is made.",
            "Give me ten tips for travelling to {place}.",
            "Describe the history of {place}.",
            "Write an essay about why the {thing} changed the world.",
            "Write a Python program that sorts a list of every {thing} by price.",
            "Compare life in {place} with life in a big city.",
        ),
    },
    "test": {
        "short": (
            "Which country is {place} in?",
            "True or false: a {thing} can swim.",
            "How much is {a} minus {b}? Only the result, please.",
            "What is the plural of {thing}?",
            "Label the sentiment as good or bad: I love my new {thing}.",
            "Which is larger, a {thing} or a house? One word only.",
        ),
        "long": (
            "Write a poem about a {thing} that dreams of {place}.",
            "Explain step by step how to repair a {thing}.",
            "Make a detailed plan for a week in {place}.",
            "Write a blog article about the future of the {thing}.",
            "Describe a day in the life of a teacher in {place}.",
            "List the advantages and disadvantages of owning a {thing}, and discuss each of them.",
        ),
    },
}
_TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "place": ("Norway", "Peru", "Kenya", "Japan", "Greece", "Canada", "Vietnam", "Egypt"),
        "thing": ("lamp", "bicycle", "violin", "kettle", "rocket", "pencil", "tractor", "camera"),
    },
    "test": {
        "place": ("Lisbon", "Nairobi", "Kyoto", "Quito", "Oslo", "Hanoi", "Toronto", "Athens"),
        "thing": ("clock", "guitar", "umbrella", "robot", "candle", "ladder", "boat", "telescope"),
    },
}


def prompts(part: Literal["train", "test"], n: int, share_short: float, seed: int) -> list[Prompt]:
    """``n`` different prompts of ``part`` in random order, ``share_short`` of them asking for little."""
    draw = random.Random(f"{part}-{seed}")
    wanted: dict[Kind, int] = {"short": round(n * share_short)}
    wanted["long"] = n - wanted["short"]
    found: dict[str, Kind] = {}
    for kind, count in wanted.items():
        made = 0
        while made < count:
            text = draw.choice(_TEMPLATES[part][kind]).format(
                place=draw.choice(_TOPICS[part]["place"]),
                thing=draw.choice(_TOPICS[part]["thing"]),
                a=draw.randrange(10, 100),
                b=draw.randrange(1, 10),
            )
            if text not in found:
                found[text] = kind
                made += 1
    chosen = [Prompt(text, kind) for text, kind in found.items()]
    draw.shuffle(chosen)
    return chosen
