"""The contract of everything that decides."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from apportion.core.decision import Decision
from apportion.core.method import Method
from apportion.core.outcome import Outcome
from apportion.core.state import State


class Policy(Method):
    """Decides, and learns from what became of it.

    Synchronous; reads no clock (time is ``state.now``), does no I/O, draws only from its own seeded
    generator, and changes none of its inputs. That is why one object serves in the proxy, in the
    simulator and in a test.
    """

    learns: ClassVar[bool] = False
    """Whether `learn` does anything; where it does not, no outcome need be made for it."""

    wants_features: ClassVar[bool] = False
    """Whether `decide` looks at `State.features`; where it does not, the request need not be read."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.learns = cls.learn is not Policy.learn

    @abstractmethod
    def decide(self, state: State) -> Decision:
        """Choose one of ``state.options``; with no options, choose nothing and say so."""

    def learn(self, outcome: Outcome) -> None:
        """Take in what became of a decision: late, twice, out of order, as a failure, or never. Here:
        nothing.
        """

    def nothing(self, state: State, why: str = "no option was offered") -> Decision:
        """The decision not to choose, with the reason."""
        return Decision(
            state.id, None, None, 1.0, state.prices, state.options, (None,) * len(state.options), why
        )
