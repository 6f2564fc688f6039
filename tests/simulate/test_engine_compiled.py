"""Machine code that is kept is found again."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from apportion.simulate.engine._compiled import COMPILED, cold

SOURCE = """
from apportion.simulate.engine._compiled import njit


@njit
def one_more(x):
    return x + {more}
"""


def module(path: Path) -> ModuleType:
    """A module made from a file."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def test_a_function_is_cold_until_it_was_compiled_and_again_when_its_file_changes(tmp_path: Path) -> None:
    if not COMPILED:
        pytest.skip("numba is not installed: nothing is compiled")
    path = tmp_path / "counting.py"
    path.write_text(SOURCE.format(more=1))
    first = module(path)
    assert cold(first.one_more)
    assert first.one_more(1) == 2
    assert not cold(first.one_more)
    assert not cold(module(path).one_more)
    path.write_text(SOURCE.format(more=2))
    later_s = path.stat().st_mtime + 10
    os.utime(path, (later_s, later_s))
    assert cold(module(path).one_more)
