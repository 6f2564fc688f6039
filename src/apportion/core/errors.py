"""Every error apportion raises on purpose: what is wrong, which field, and what mends it."""

from __future__ import annotations


class ApportionError(Exception):
    """An error with a stable ``code``, the ``field`` at fault and the ``fix``.

    Subclasses set ``code`` (stable, documented) and their docstring says when it is raised;
    the error reference is generated from both.
    """

    code: str = "error"

    def __init__(self, message: str, *, field: str | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}" if self.fix else self.message


class ParameterError(ApportionError):
    """A parameter of a method has a value that its constraints do not allow."""

    code = "invalid_parameter"


class UnknownMethodError(ApportionError):
    """A name is not in the catalogue of methods."""

    code = "unknown_method"


class UnknownResourceError(ApportionError):
    """A resource was named that is neither built in nor added."""

    code = "unknown_resource"


class DuplicateMethodError(ApportionError):
    """A plugin offers a method under a name that is already taken."""

    code = "duplicate_method"


class MethodFileError(ApportionError):
    """A method's file or docstring does not have the parts that the catalogue reads."""

    code = "invalid_method"


class SavedStateError(ApportionError):
    """Saved learned state does not belong to this method or cannot be read."""

    code = "invalid_saved_state"


class AmountError(ApportionError):
    """An amount of a resource is not a finite number of zero or more, or was not reserved before."""

    code = "invalid_amount"


class BudgetError(ApportionError):
    """A budget is described in a way that cannot be kept: its amount, window or refill."""

    code = "invalid_budget"
