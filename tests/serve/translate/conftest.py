"""The fixture that every test of translation uses."""

from __future__ import annotations

import pytest
from translate_sdk import Sdk


@pytest.fixture(scope="session")
def sdk() -> Sdk:
    return Sdk()
