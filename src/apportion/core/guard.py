"""The contract of guards: against requests and streams that take far more than they are worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from apportion.core.features import Features
from apportion.core.method import Method

Action = Literal["pass", "brief", "cap", "refuse"]


class Verdict(NamedTuple):
    """What becomes of a request.

    ``action``: "pass" it; ask it to be "brief" (``note`` is added to the instructions); "cap" its output at
    ``max_tokens`` (and add ``note`` if there is one); "refuse" it. ``probability`` that it over-generates, None
    when unknown; ``factor`` by which its predicted output tokens are re-priced; ``why`` in a few words.
    """

    action: Action
    probability: float | None = None
    max_tokens: int | None = None
    note: str | None = None
    factor: float = 1.0
    why: str = ""


class Drawn(NamedTuple):
    """One token of an answer, as its model saw it (natural logarithms of probabilities).

    ``logprob`` of the token that was taken, before any bias and at a temperature of 1; ``end_logprob``, where the
    end of the text was likelier than every token and was not taken: a lower bound of the probability with which it
    was to be drawn there; None everywhere else, and where nothing is known of it.
    """

    logprob: float
    end_logprob: float | None = None


class StreamWatch(Protocol):
    """Watches one answer as it comes."""

    def feed(self, text: str, n_tokens: int = 1, drawn: Sequence[Drawn] = ()) -> str | None:
        """The next piece of the answer, and of its tokens what is known; why it must be stopped now, or None.
        Cheap: it sees every event.
        """
        ...

    def ended(self) -> None:
        """The answer has ended by itself."""
        ...


class Guard(Method):
    """Recognises requests that will over-generate and answers that run away. One object serves all tenants;
    nothing it learns of one may show to another."""

    logprobs: bool = False
    """Whether log probabilities shall be asked for on behalf of clients that did not ask for them."""

    @abstractmethod
    def inspect(self, features: Features, tenant: str, model: str, max_tokens: int | None) -> Verdict:
        """What to do with a request whose client allows ``max_tokens`` (None: no cap)."""

    @abstractmethod
    def watch(
        self, tenant: str, model: str, expected_tokens: float | None, features: Features | None = None
    ) -> StreamWatch:
        """A watcher for one answer to a request of ``features`` (None: nobody has read it)."""

    @abstractmethod
    def learn(
        self, features: Features, tenant: str, model: str, output_tokens: float, *, censored: bool = False
    ) -> None:
        """Take in how long the answer was; ``censored``: a limit or the guard itself ended it."""
