"""Which answer a text ends with."""

from __future__ import annotations

import pytest

from apportion.reason._base import digest
from apportion.reason._extract import final


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("First 3, then 5. #### 1,234", "auto", "1234"),
        (r"so x = 2 and \boxed{\frac{1}{2}} is it", "auto", "2"),
        (r"\boxed{x + y}", "text", "x + y"),
        ("He pays $18.50 a day", "number", "18.5"),
        ("-7.0 degrees", "number", "-7"),
        ("it is .5", "number", "0.5"),
        ("-0", "number", "0"),
        ("no digits here", "number", None),
        ("A dog is (C).", "choice", "C"),
        ("The answer is b) 4", "choice", None),
        ("Answer: (b) 4", "choice", "B"),
        ("I'd say D", "choice", "D"),
        ("  Paris. ", "auto", "paris"),
        ("", "auto", None),
        ("...", "text", None),
    ],
)
def test_final(text: str, kind: str, answer: str | None) -> None:
    assert final(text, kind) == answer


def test_a_fingerprint_compares_answers_and_keeps_no_text() -> None:
    one, other = {"text": "We get 12.0 apples."}, {"text": "So: 12"}
    assert digest(one) == digest(other) != ""
    assert len(digest(one)) == 16
    assert digest({"text": "word " * 100}) == ""
    assert digest({"text": "12", "tool_calls": True}) == ""
