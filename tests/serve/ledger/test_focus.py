"""The export follows FOCUS 1.4: which columns, of what type, what may be null, times, units, corrections."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from apportion.serve.ledger.entries import CORRECT, PRESUME
from apportion.serve.ledger.focus import COLUMNS, charges
from apportion.serve.ledger.reading import reading
from apportion.serve.ledger.spend import Question, exact, total
from spending import DAY_US, SATURDAY_US, line, made_up, tables, write

MANDATORY = {
    # Column of the Cost and Usage dataset, FOCUS 1.4: whether it may be null.
    "BilledCost": False,
    "BillingAccountId": False,
    "BillingAccountName": True,
    "BillingCurrency": False,
    "BillingPeriodEnd": False,
    "BillingPeriodStart": False,
    "ChargeCategory": False,
    "ChargeClass": True,
    "ChargeDescription": True,
    "ChargePeriodEnd": False,
    "ChargePeriodStart": False,
    "ContractedCost": False,
    "EffectiveCost": False,
    "HostProviderName": False,
    "InvoiceIssuerName": False,
    "ListCost": False,
    "PricingQuantity": True,
    "PricingUnit": True,
    "ServiceCategory": False,
    "ServiceName": False,
    "ServiceProviderName": False,
}
OTHERS = {
    # Recommended, or for what there is here: usage, resources, sub accounts, SKUs, tags.
    "ChargeFrequency": False,
    "ConsumedQuantity": True,
    "ConsumedUnit": True,
    "ResourceId": True,
    "ResourceName": True,
    "ResourceType": True,
    "ServiceSubcategory": False,
    "SkuId": True,
    "SkuMeter": True,
    "SkuPriceDetails": True,
    "SkuPriceId": True,
    "SubAccountId": True,
    "SubAccountName": True,
    "Tags": True,
}
NUMERIC = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
"""NumericFormat: no exponent, no plus sign, no separators."""
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
UNITS = re.compile(r"(\d+ )?([A-Z][A-Za-z]*)(-[A-Z][a-z]+)*")
CUSTOM_NUMBERS = ("Tokens", "Requests", "Attempts", "Seconds", "Joules", "Grams")


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with tables(url) as made:
        yield made


def export(engine: sa.Engine, **question: Any) -> list[dict[str, str | None]]:
    with reading(engine) as connection:
        return list(charges(connection, Question(**question)))


def test_the_columns_are_those_of_the_specification() -> None:
    ours = [name for name in COLUMNS if name.startswith("x_")]
    theirs = [name for name in COLUMNS if not name.startswith("x_")]
    assert set(theirs) == {*MANDATORY, *OTHERS}
    assert theirs == sorted(theirs)
    assert list(COLUMNS) == theirs + ours
    for name in COLUMNS:
        assert re.fullmatch(r"(x_)?[A-Z][A-Za-z]*", name)
        assert len(name) <= 50


def test_every_row_keeps_the_rules_of_types_and_nulls(engine: sa.Engine) -> None:
    write(engine, made_up(random.Random(3), 300, SATURDAY_US - 60 * DAY_US, SATURDAY_US))
    found = export(engine)
    assert len(found) > 50
    for row in found:
        assert set(row) == set(COLUMNS)
        for name, nullable in {**MANDATORY, **OTHERS}.items():
            value = row[name]
            assert value is not None or nullable, name
            assert value != "", f"{name}: null is null, never empty"
            if value is None:
                continue
            if name.endswith(("Cost", "Quantity")):
                assert NUMERIC.fullmatch(value), (name, value)
            elif name.endswith(("Start", "End")):
                assert UTC_TIME.fullmatch(value), (name, value)
            elif name.endswith("Unit"):
                assert UNITS.fullmatch(value), (name, value)
        for name in COLUMNS:
            if name.startswith("x_") and name.endswith(CUSTOM_NUMBERS) and row[name] is not None:
                assert NUMERIC.fullmatch(str(row[name])), (name, row[name])


def test_every_row_keeps_the_rules_between_columns(engine: sa.Engine) -> None:
    write(engine, made_up(random.Random(4), 200, SATURDAY_US - 60 * DAY_US, SATURDAY_US))
    for row in export(engine):
        assert row["ChargeCategory"] == "Usage"
        assert row["ChargeFrequency"] == "Usage-Based"
        assert row["ServiceCategory"] == "AI and Machine Learning"
        assert row["ServiceSubcategory"] == "Generative AI"
        assert row["BillingCurrency"] == "USD"
        assert row["ChargeClass"] in (None, "Correction")
        # Without negotiated prices and commitments all costs are the same.
        assert row["BilledCost"] == row["EffectiveCost"] == row["ListCost"] == row["ContractedCost"]
        # Usage has a SKU price, a quantity and a unit; a SKU price has one SKU.
        assert row["SkuPriceId"] is not None
        assert row["SkuId"] is not None
        assert row["PricingQuantity"] is not None
        assert row["PricingUnit"] is not None
        assert row["ConsumedQuantity"] is not None
        assert row["ConsumedUnit"] is not None
        assert (row["SubAccountId"] is None) == (row["SubAccountName"] is None)
        assert str(row["BillingPeriodStart"]) <= str(row["ChargePeriodStart"])
        assert str(row["ChargePeriodStart"]) < str(row["ChargePeriodEnd"]) <= str(row["BillingPeriodEnd"])
        assert str(row["BillingPeriodStart"])[8:] == str(row["BillingPeriodEnd"])[8:] == "01T00:00:00Z"
        if row["Tags"] is not None:
            tags = json.loads(row["Tags"])
            assert all(not isinstance(value, dict | list) for value in tags.values())


def test_the_costs_add_up_to_the_books(engine: sa.Engine) -> None:
    write(engine, made_up(random.Random(5), 400, SATURDAY_US - 60 * DAY_US, SATURDAY_US))
    found = export(engine)
    with reading(engine) as connection:
        books = total(connection, Question())
    assert sum(Decimal(str(row["BilledCost"])) for row in found) == Decimal(exact("usd", books.usd))
    assert sum(int(str(row["ConsumedQuantity"])) for row in found) == books.tokens
    assert sum(int(str(row["x_Requests"])) for row in found) == books.requests
    days = [str(row["ChargePeriodStart"]) for row in found]
    assert days == sorted(days)


def test_a_row_in_full(engine: sa.Engine) -> None:
    lines = [
        line(
            SATURDAY_US + n,
            key="k",
            team="red",
            tags='{"a":[1]}',
            usd=15 * 10**11,
            tokens=30,
            input_tokens=20,
        )
        for n in range(2)
    ]
    write(engine, lines)
    (row,) = export(engine)
    assert row["BilledCost"] == "3"
    assert row["ChargePeriodStart"] == "2026-11-21T00:00:00Z"
    assert row["ChargePeriodEnd"] == "2026-11-22T00:00:00Z"
    assert row["BillingPeriodEnd"] == "2026-12-01T00:00:00Z"
    assert (row["BillingAccountId"], row["SubAccountId"], row["x_KeyName"]) == ("acme", "red", "k")
    assert (row["ServiceName"], row["ResourceId"], row["SkuId"]) == ("chat", "openai", "gpt-4o-mini")
    assert (row["ConsumedQuantity"], row["x_InputTokens"], row["x_Attempts"]) == ("60", "40", "2")
    assert row["Tags"] == '{"a":"[1]"}'
    assert row["x_Joules"] is None


def test_corrections_of_a_closed_month_are_told_apart(engine: sa.Engine) -> None:
    late, early = SATURDAY_US, SATURDAY_US - 30 * DAY_US
    lines = []
    for name, presumed_us in (("a", early), ("b", late - 5)):
        lines.append(line(presumed_us, PRESUME, reservation=name, usd=100, status="crashed", mark="presumed"))
        lines.append(line(late + 1, CORRECT, reservation=name, usd=-40, requests=0))
    write(engine, lines)
    corrections = [row for row in export(engine) if row["ChargeClass"] == "Correction"]
    assert [row["BilledCost"] for row in corrections] == ["-0.00000000004"]
    others = [row for row in export(engine) if row["ChargeClass"] is None]
    assert [row["BilledCost"] for row in others] == ["0.0000000001", "0.0000000001", "-0.00000000004"]


def test_the_first_day_is_never_half_a_day(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US + 5, usd=1), line(SATURDAY_US - 5, usd=1)])
    assert len(export(engine, since_us=SATURDAY_US + DAY_US // 2)) == 1
    assert len(export(engine, since_us=SATURDAY_US - 1)) == 2
    assert len(export(engine, until_us=SATURDAY_US)) == 1


def test_what_has_no_price_costs_nothing_and_says_so(engine: sa.Engine) -> None:
    write(engine, [line(SATURDAY_US, usd=None, tokens=8, mark="unknown")])
    (row,) = export(engine)
    assert (row["BilledCost"], row["x_CostMark"], row["x_UnpricedTokens"]) == ("0", "unknown", "8")
