"""numba's ``njit`` where it is installed; the same functions as plain Python where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    from numba import njit as _njit
    from numba import typeof as _typeof
except ImportError:
    COMPILED = False

    def njit(function: F) -> F:
        """The function as it is."""
        return function

    def direct(function: F, *like: Any) -> F:
        """The function as it is."""
        return function

else:
    COMPILED = True

    def njit(function: F) -> F:
        """The function compiled at its first call; the machine code is kept beside the file."""
        compiled: Any = _njit(cache=True, error_model="numpy", nogil=True)(function)
        return compiled  # type: ignore[no-any-return]

    def direct(function: F, *like: Any) -> F:
        """The machine code of a function for arguments with the types of ``like``, and no others: for what is called
        so often that finding out the types anew takes most of a call.
        """
        compile_for = getattr(function, "compile", None)
        if compile_for is None:
            return function
        typeof: Any = _typeof
        return compile_for(tuple(typeof(value) for value in like))  # type: ignore[no-any-return]


def cold(function: Callable[..., Any]) -> bool:
    """Whether a function is to be compiled and its machine code is not kept from before."""
    if not COMPILED:
        return False
    plain: Any = function.py_func  # type: ignore[attr-defined]
    source = Path(plain.__code__.co_filename)
    index = f"{source.stem}.{plain.__qualname__}-{plain.__code__.co_firstlineno}.*.nbi"
    kept = Path(function.stats.cache_path).glob(index)  # type: ignore[attr-defined]
    return not any(file.stat().st_mtime >= source.stat().st_mtime for file in kept)
