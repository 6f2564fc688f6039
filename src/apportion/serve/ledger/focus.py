"""The ledger as a Cost and Usage dataset of FOCUS 1.4, the FinOps Open Cost and Usage Specification.

https://focus.finops.org/focus-specification/ (June 2026). A row is one UTC day of one team, key, model, endpoint,
upstream model, API, set of tags and mark. The organisation is the billing account and charges its teams, which are
the sub accounts: these are internal charges, and providers' invoices cover the same usage a second time. The model
that clients ask for is the service, the endpoint the resource, the upstream's model the SKU; a price of its own for
each kind of token is not in the ledger, so there are no unit prices. Columns of our own begin with ``x_``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
import sqlalchemy as sa

from apportion.serve.ledger.spend import CORRECTION, Question, Row, Spent, exact, rows

VERSION: Final = "1.4"
COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_OperationName",
    "x_CostMark",
    "x_Attempts",
    "x_Requests",
    "x_InputTokens",
    "x_CachedInputTokens",
    "x_CacheWriteTokens",
    "x_OutputTokens",
    "x_ReasoningTokens",
    "x_UnpricedTokens",
    "x_ServerSeconds",
    "x_Joules",
    "x_CarbonDioxideGrams",
    "x_KeyName",
)
"""Every column, in the order of the file: those of FOCUS by name, then ours."""

_BY: Final = (
    "day",
    "organisation",
    "team",
    "key",
    "model",
    "endpoint",
    "upstream_model",
    "api",
    "mark",
    "tags",
    CORRECTION,
)
_UTC: Final = ZoneInfo("UTC")
_DAY_US: Final = 86_400_000_000


def charges(connection: sa.Connection, question: Question) -> Iterator[dict[str, str | None]]:
    """One dictionary of `COLUMNS` for each row, by day; None is FOCUS's null.

    ``by``, ``sort`` and ``place`` of the question do not matter. ``since_us`` is taken back to the beginning of its
    UTC day, so that no first day is half a day.
    """
    since_us = question.since_us
    if since_us is not None:
        since_us -= since_us % _DAY_US
    for row in rows(connection, replace(question, by=_BY, sort="by", place=_UTC, since_us=since_us)):
        yield _charge(row)


def _charge(row: Row) -> dict[str, str | None]:
    day, organisation, team, key, model, endpoint, upstream_model, api, mark, tags, correction = row.group
    spent = row.spent
    usd = exact("usd", spent.usd)
    began = date.fromisoformat(day)
    month = began.replace(day=1)
    tokens = str(spent.tokens)
    sku = upstream_model or model
    return {
        "BilledCost": usd,
        "BillingAccountId": organisation,
        "BillingAccountName": organisation,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _midnight((month + timedelta(days=32)).replace(day=1)),
        "BillingPeriodStart": _midnight(month),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if correction else None,
        "ChargeDescription": f"{api or 'requests'}: {model} answered by {sku} at {endpoint}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _midnight(began + timedelta(days=1)),
        "ChargePeriodStart": _midnight(began),
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "ContractedCost": usd,
        "EffectiveCost": usd,
        "HostProviderName": organisation,
        "InvoiceIssuerName": organisation,
        "ListCost": usd,
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "ResourceId": endpoint or None,
        "ResourceName": endpoint or None,
        "ResourceType": "Endpoint" if endpoint else None,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": model,
        "ServiceProviderName": organisation,
        "ServiceSubcategory": "Generative AI",
        "SkuId": sku,
        "SkuMeter": "Tokens",
        "SkuPriceDetails": None,
        "SkuPriceId": sku,
        "SubAccountId": team or None,
        "SubAccountName": team or None,
        "Tags": _tags(tags),
        **_ours(spent),
        "x_OperationName": api or None,
        "x_CostMark": mark,
        "x_KeyName": key or None,
    }


def _ours(spent: Spent) -> dict[str, str | None]:
    return {
        "x_Attempts": str(spent.attempts),
        "x_Requests": str(spent.requests),
        "x_InputTokens": str(spent.input_tokens),
        "x_CachedInputTokens": str(spent.cached_tokens),
        "x_CacheWriteTokens": str(spent.cache_write_tokens),
        "x_OutputTokens": str(spent.output_tokens),
        "x_ReasoningTokens": str(spent.reasoning_tokens),
        "x_UnpricedTokens": str(spent.unpriced_tokens),
        "x_ServerSeconds": exact("server_seconds", spent.server_seconds),
        "x_Joules": None if spent.joules is None else exact("joules", spent.joules),
        "x_CarbonDioxideGrams": None if spent.gco2 is None else exact("gco2", spent.gco2),
    }


def _midnight(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tags(tags: str) -> str | None:
    """FOCUS wants one object whose values are no objects or lists: those become their own JSON text."""
    if not tags:
        return None
    found = {
        name: msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value
        for name, value in msgspec.json.decode(tags, type=dict[str, object]).items()
    }
    return msgspec.json.encode(found).decode()
