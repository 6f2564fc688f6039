"""Stops answers that repeat themselves or go round in circles, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.features import Features
from apportion.core.guard import Guard, StreamWatch, Verdict
from apportion.core.method import Constraint, Interval
from apportion.policy.guard._watch import Watch


@final
class Repetition(Guard):
    """Stops answers that repeat themselves or go round in circles, and nothing else.

    A model that has lost its way, or was led astray, repeats itself until a limit ends it. Two signs are watched
    for: the same characters again and again, exactly; and sequences of words of which hardly any is
    new. Ordinary tables, code, lists, poems and data repeat words but not for so long [1]_, [2]_.

        stop  iff  repetition for repeat_tokens, four periods at least (two of 300 characters), exact or, where a
                   period has 64 other characters or more and few digits, but for its numbers;
              or   new sequences of words < 4% of the last loop_tokens

    Parameters
    ----------
    repeat_tokens
        Tokens of exact repetition after which an answer is stopped.
    loop_tokens
        Words in which hardly any sequence is new after which an answer is stopped.

    Complexity
    ----------
    O(1) per character of an answer, a few microseconds per event; per answer at most 16 kB of text and 8 192
    sequences; nothing is learned.

    Notes
    -----
    The papers are about attacks that suppress the end of the answer; this is only defence. A table of zeros
    that someone really wants is stopped, too: raise ``repeat_tokens`` for them.

    See Also
    --------
    guard/overflow : also recognises requests that will over-generate.

    References
    ----------
    .. [1] K. Gao, Y. Bai, J. Gu, S. Xia, P. Torr, Z. Li, W. Liu (2024). "Inducing High Energy-Latency of Large
       Vision-Language Models with Verbose Images." ICLR 2024. arXiv:2401.11170
    .. [2] A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi (2020). "The Curious Case of Neural Text Degeneration."
       ICLR 2020. arXiv:1904.09751

    Examples
    --------
    >>> guard = Repetition(repeat_tokens=100)
    >>> watch = guard.watch("team", "model", None)
    >>> next(why for why in (watch.feed("Sorry, I will try again. ", 6) for _ in range(1000)) if why)
    'repeats itself: the same 25 characters for 192 tokens'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "repeat_tokens": Interval(int, 20),
        "loop_tokens": Interval(int, 50),
    }

    def __init__(self, *, repeat_tokens: int = 300, loop_tokens: int = 250) -> None:
        self.repeat_tokens = repeat_tokens
        self.loop_tokens = loop_tokens
        self.start()

    def reset(self) -> None:
        """It learns nothing."""

    def inspect(self, features: Features, tenant: str, model: str, max_tokens: int | None) -> Verdict:
        """Every request passes."""
        return Verdict("pass")

    def watch(
        self, tenant: str, model: str, expected_tokens: float | None, features: Features | None = None
    ) -> StreamWatch:
        """A watcher for one answer."""
        return Watch(self.repeat_tokens, self.loop_tokens)

    def learn(
        self, features: Features, tenant: str, model: str, output_tokens: float, *, censored: bool = False
    ) -> None:
        """It learns nothing."""

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Quick to stop."""
        yield {"repeat_tokens": 100, "loop_tokens": 200}
