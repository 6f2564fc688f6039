"""Prompts of wanted lengths, made of common short words: the same for the same request, and no two alike but where the
trace says that they begin alike.

Every prompt is the beginning of an endless text that its key determines: requests of one conversation read the same
text, so that a longer prompt begins with the shorter one; a block of the trace is 512 (or so many) words of its own.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Trace
from apportion.simulate.workload.shape import uniform

_WORDS: Final = np.array(
    """
    able about above act add again age air all also and any area arm art ask away baby back bad bag ball bank base bed
    best big bird bit black blood blue boat body book born both box boy bring build bus but buy call came can car care
    case cat cell cent city class clear close cold come cook cool cost could cover cup cut dark date day deal deep did
    dog door down draw drive drop dry each ear early earth east easy eat edge end even ever eye face fact fair fall far
    farm fast father fear feel few field fill film final find fine fire first fish five flat floor fly food foot force
    form four free fresh friend front full game garden gas girl give glass gold good grass great green ground group
    grow gun had hair half hall hand hard hat have head hear heart heat help her here high hill his hold home hope
    horse hot hour house how ice idea inside island job join just keep key kid kind king know lady lake land large last
    late law lay lead learn leave left leg less let letter life light like line list live long look lose lot low main
    make man many map mark may meal mean meat meet men mile milk mind mine miss money month moon more most move much
    music must name near neck need never new next nice night nine north nose note now off oil old once one only open
    order other our out over own page paint pair paper park part pass past path pay
    """.split()  # noqa: SIM905
)


class Prompts:
    """The prompts of a trace. ``per_word`` tokens make a word and ``extra_tokens`` come with every request (its
    template), as `measured` finds them. ``seed`` makes other texts.
    """

    def __init__(
        self, trace: Trace, *, seed: int = 0, per_word: float = 1.0, extra_tokens: float = 0.0
    ) -> None:
        self._trace, self._seed = trace, seed
        self.per_word, self.extra_tokens = per_word, extra_tokens

    def of(self, row: int) -> str:
        """The prompt of one request."""
        trace = self._trace
        count = self.words(int(trace.prompt_tokens[row]))
        if trace.blocks is not None:
            return self._of_blocks(row, count)
        if trace.session is not None and trace.session[row] >= 0:
            return self._text(f"conversation {trace.session[row]}", count)
        return self._text(f"request {row}", count)

    def words(self, tokens: int) -> int:
        """How many words make so many tokens."""
        return max(1, round((tokens - self.extra_tokens) / self.per_word))

    def _of_blocks(self, row: int, count: int) -> str:
        blocks = self._trace.blocks
        assert blocks is not None  # noqa: S101 - asked before
        size = max(1, round(blocks.block_tokens / self.per_word))
        parts = []
        for block in blocks.of(row).tolist():
            if count < size:
                break  # what is left is the request's own
            parts.append(self._text(f"block {block}", size))
            count -= size
        return " ".join([*parts, self._text(f"request {row}", count)] if count else parts)

    def _text(self, key: str, count: int) -> str:
        places: NDArray[np.uint64] = np.arange(count, dtype=np.uint64) + np.uint64(hash_of(key))
        return " ".join(_WORDS[(uniform(places, self._seed) * len(_WORDS)).astype(np.int64)])


def hash_of(key: str) -> int:
    """A number of 63 bits from a text, the same on every machine (FNV-1a)."""
    number = 0xCBF29CE484222325
    for byte in key.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    return number >> 1
