"""Does an answer repeat itself, does it say anything new?  Detectors that see its text alone."""

from __future__ import annotations

from collections import deque

_PROBE = 48
"""Characters that must occur twice, exactly, before a period is suspected."""
_BUFFER = 8192
_LEAST, _LONG = 800, 300
"""Characters of repetition at least, and of a period that need not come as often."""
_NO_DIGITS = dict.fromkeys(map(ord, "0123456789"))
_COUNTED, _DIGITS = 64, 0.04
"""Characters of a period in which numbers may change, and the most of them that may be digits."""
_WORD = 16
"""A word without an end (base64, scripts without spaces) is taken in pieces of so many characters."""
_SEEN = 8192
"""How many different sequences of words are remembered."""
_SPAN = 28
"""Characters of a sequence of words."""
_NEW = 0.04
"""Of the sequences in the window at least so many are new in an answer that goes anywhere."""


class Period:
    """The last 48 characters are looked for in the 8 000 before; once found, what comes is compared with what
    stood one period earlier, until it differs.
    """

    def __init__(self) -> None:
        self._text = ""
        self._waiting = 0
        self.chars = 0
        """In a period; 0 while there is none."""
        self.same_chars = 0
        """That have come as they stood one period before."""

    def feed(self, text: str) -> bool:
        """More text; whether it goes on with the period (what is too short to tell is kept until it is not)."""
        self._text += text
        self._waiting += len(text)
        if self._waiting < _PROBE:
            return self.same_chars > 0
        text, new, period = self._text, self._waiting, self.chars
        self._waiting = 0
        if len(text) > 2 * _BUFFER:
            self._text = text[-_BUFFER:]
        if period and len(text) >= new + period and text[-new:] == text[-new - period : -period]:
            self.same_chars += new
            return True
        self.same_chars = 0
        place = text.rfind(text[-_PROBE:], max(len(text) - _BUFFER, 0), len(text) - 1)
        self.chars = len(text) - _PROBE - place if place >= 0 else 0
        return False

    def often(self) -> bool:
        """Whether it has come often enough, and long enough, to be no accident."""
        periods = 2 if self.chars >= _LONG else 4
        return self.same_chars >= max(periods * self.chars, _LEAST)


class Repeats:
    """The same again and again, exactly or but for the numbers in it: ``repeat_tokens`` of it, four periods at
    least (two long ones). Where numbers change, the period has 64 other characters or more, and few digits: a
    loop that counts ("Step 7: ..."); shorter ones look like data made from a template, which people ask for.
    """

    def __init__(self, repeat_tokens: int) -> None:
        self._repeat_tokens = repeat_tokens
        self._exact, self._counted = Period(), Period()
        self._exact_tokens = self._counted_tokens = 0
        self._digits = 0

    def feed(self, text: str, tokens: int) -> str | None:
        """The next piece of the answer; why it repeats itself, or None."""
        exact, counted = self._exact, self._counted
        self._exact_tokens = self._exact_tokens + tokens if exact.feed(text) else 0
        if self._exact_tokens >= self._repeat_tokens and exact.often():
            return f"repeats itself: the same {exact.chars} characters for {self._exact_tokens} tokens"
        plain = text.translate(_NO_DIGITS)
        if counted.feed(plain):
            self._counted_tokens += tokens
            self._digits += len(text) - len(plain)
        else:
            self._counted_tokens = self._digits = 0
        if (
            self._counted_tokens >= self._repeat_tokens
            and counted.chars >= _COUNTED
            and self._digits <= _DIGITS * counted.same_chars
            and counted.often()
        ):
            return f"repeats itself but for numbers: {counted.chars} characters for {self._counted_tokens} tokens"
        return None


class Novelty:
    """Of the sequences of words (28 characters) in the last ``loop_tokens`` hardly any is new: loops with small
    changes, or with a long period.
    """

    def __init__(self, loop_tokens: int) -> None:
        self._loop_tokens = loop_tokens
        self._word = ""
        self._tail = ""
        self._seen: dict[int, None] = {}
        self._window: deque[bool] = deque()
        self._fresh = 0

    def feed(self, text: str) -> str | None:
        """The next piece of the answer; why it goes round in circles, or None."""
        pieces = (self._word + text).split()
        self._word = "" if text[-1:].isspace() or not pieces else pieces.pop()
        if len(self._word) > _WORD:
            pieces.append(self._word)
            self._word = ""
        seen, window = self._seen, self._window
        for piece in pieces:
            for start in range(0, len(piece), _WORD):
                word = piece[start : start + _WORD]
                self._tail = f"{self._tail} {word}"[-_SPAN:]
                sequence = hash(self._tail)
                fresh = sequence not in seen
                if fresh:
                    seen[sequence] = None
                    if len(seen) > _SEEN:
                        del seen[next(iter(seen))]
                window.append(fresh)
                self._fresh += fresh
                if len(window) > self._loop_tokens:
                    self._fresh -= window.popleft()
        if len(window) >= self._loop_tokens and self._fresh < _NEW * self._loop_tokens:
            return f"goes round in circles: {self._fresh} new of the last {len(window)} sequences of words"
        return None
