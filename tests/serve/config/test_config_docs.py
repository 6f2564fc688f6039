"""The references are what the code says, and the example in them is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import inspect

from apportion.serve.config import docs, schema
from apportion.serve.config.reader import loads

ROOT = Path(__file__).parents[3]


def test_the_pages_are_up_to_date() -> None:
    assert docs.main(["--check", str(ROOT / docs.FOLDER)]) == 0, "run: python -m apportion.serve.config.docs"


def test_the_example_is_valid() -> None:
    environ = {"RESEARCH_KEY": "a", "OPENAI_API_KEY": "b", "ANTHROPIC_API_KEY": "c"}
    config = loads(docs.EXAMPLE, environ=environ)
    assert set(config.models) == {"chat", "small"}


@pytest.mark.parametrize("name", [name for name in schema.__all__ if name != "Secret"])
def test_every_key_is_described(name: str) -> None:
    cls = getattr(schema, name)
    assert cls.__doc__
    kind = inspect.type_info(cls)
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        assert isinstance(field.type, inspect.Metadata), field.name
        assert (field.type.extra_json_schema or {}).get("description", "").endswith("."), field.name
        assert f"`{field.encode_name}`" in docs.configuration() or field.encode_name == "parameters"


def test_writing_and_checking(tmp_path: Path) -> None:
    assert docs.main(["--check", str(tmp_path)]) == 1
    assert docs.main([str(tmp_path)]) == 0
    assert docs.main(["--check", str(tmp_path)]) == 0
    assert "| 401 | `invalid_api_key` |" in (tmp_path / "errors.md").read_text()
