"""Notices that the same question is asked again at once: a sign that the first answer was not good.

Only within one tenant and for one end user or session, and only keyed hashes are kept, so that neither words nor who
said them can be read from memory. "Near-identical" is a distance of at most a few bits between 64-bit similarity
hashes (Charikar 2002) of the words: another space, case or one word of many. Short texts ("continue", "yes") say
nothing and are passed over, and so is the same text at another place of a longer conversation.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict, deque
from itertools import pairwise
from typing import Final

_WORDS: Final = re.compile(r"\w+")
_FEWEST_WORDS: Final = 4
_MOST_WORDS: Final = 128
"""Of a longer text, the beginning and the end."""
_MOST_CHARACTERS: Final = 32 * 2**10
_NEAR: Final = 6
"""Bits that may differ."""
_LATEST: Final = 8
"""Questions that are kept of one user or session."""


class Retries:
    """The latest questions: of at most ``people`` users or sessions in each of at most ``tenants`` tenants."""

    def __init__(self, *, tenants: int = 256, people: int = 1024) -> None:
        self._most_tenants, self._most_people = tenants, people
        self._key = secrets.token_bytes(16)
        self._tenants: OrderedDict[str, OrderedDict[bytes, deque[tuple[int, bytes, float, str]]]] = (
            OrderedDict()
        )

    def seen(
        self, tenant: str, person: str, text: str, place: object, id: str, now: float, within_s: float
    ) -> str | None:
        """The decision that answered the same question less than ``within_s`` ago, if one did; it is remembered under
        ``id`` from now on.

        ``person`` is the end user or session, "" for nobody, of whom nothing is known. ``place`` says where in the
        conversation the text stands.
        """
        words = _words(text)
        if not person or len(words) < _FEWEST_WORDS:
            return None
        asked = self._of(tenant, self._hash(person))
        print_ = self._print(words)
        where = self._hash(repr(place))
        found = None
        for index in range(len(asked) - 1, -1, -1):
            known, there, at, earlier = asked[index]
            if now - at > within_s:
                continue
            if there == where and (known ^ print_).bit_count() <= _NEAR:
                found = earlier
                del asked[index]
                break
        asked.append((print_, where, now, id))
        return found

    @staticmethod
    def heeds(person: str, text: str) -> bool:
        """Whether it would be noticed if this were asked again."""
        return bool(person) and len(_words(text)) >= _FEWEST_WORDS

    def _of(self, tenant: str, person: bytes) -> deque[tuple[int, bytes, float, str]]:
        people = self._tenants.get(tenant)
        if people is None:
            people = self._tenants[tenant] = OrderedDict()
            if len(self._tenants) > self._most_tenants:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant)
        asked = people.get(person)
        if asked is None:
            asked = people[person] = deque(maxlen=_LATEST)
            if len(people) > self._most_people:
                people.popitem(last=False)
        else:
            people.move_to_end(person)
        return asked

    def _hash(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="replace"), digest_size=8, key=self._key).digest()

    def _print(self, words: list[str]) -> int:
        """The similarity hash: each bit is the majority of that bit over the hashes of all neighbouring words."""
        import numpy as np

        if len(words) > _MOST_WORDS:
            words = words[: _MOST_WORDS // 2] + words[-_MOST_WORDS // 2 :]
        pairs = b"".join(self._hash(f"{one} {next}") for one, next in pairwise(["", *words, ""]))
        bits = np.unpackbits(np.frombuffer(pairs, np.uint8).reshape(-1, 8), axis=1)
        majority = np.packbits(bits.mean(axis=0) > 0.5).tobytes()
        # Other numbers in the same words are another question.
        numbers = self._hash(" ".join(word for word in words if any(c.isdigit() for c in word)))
        return int.from_bytes(majority) ^ int.from_bytes(numbers)


def _words(text: str) -> list[str]:
    return _WORDS.findall(text[:_MOST_CHARACTERS].casefold())
