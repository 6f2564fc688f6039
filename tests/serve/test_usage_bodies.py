"""Usage objects of real answers, priced: equal to the tables' own reading of them, but for known departures."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot

from apportion.measure.price import hosted_price
from apportion.serve.wire import usage_of

AT = datetime(2026, 10, 1, tzinfo=UTC)
DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
FILE = DATA / "llm_usage_bodies" / "usages.csv.gz"
DIALECTS = {"responses": "responses", "anthropic": "messages", "chat": "chat"}


def bodies() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Provider, its flavour, model and usage of every body in an API that the proxy speaks."""
    with gzip.open(FILE, "rt") as lines:
        for row in csv.DictReader(lines):
            provider, flavour = row["provider_id"], row["api_flavor"]
            if provider and (provider, flavour) != ("google", "default"):  # Gemini's own API
                yield provider, flavour, row["model"], json.loads(row["usage_json"])


def departs(provider: str, flavour: str, usage: dict[str, Any]) -> str | None:
    """Why ours is right to differ from the tables' reading."""
    if "cost" in usage:
        return "the provider says what it charged"
    if any(i["type"] != "message" for i in usage.get("iterations", ())):
        return "iterations beside the totals are billed too"
    total = usage.get("total_tokens", 0)
    if provider == "google" and total > usage["prompt_tokens"] + usage["completion_tokens"]:
        return "thoughts are billed, and reported only in the total"
    if flavour == "embeddings" and usage.get("completion_tokens"):
        return "it is no embedding"
    return None


@pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE.name}: set APPORTION_DATA to the data folder")
def test_real_usage_objects_cost_what_the_tables_say() -> None:
    providers = {provider.id: provider for provider in get_snapshot().providers}
    same = 0
    reasons: set[str] = set()
    for provider, flavour, model, body in bodies():
        default = "messages" if provider == "anthropic" else "chat"
        ours = usage_of(DIALECTS.get(flavour, default), body)
        info = providers[provider].find_model(model)
        price = hosted_price(model, provider=provider, at=AT)
        if info is None or price is None or ours is None:
            assert ours is not None or not any(body[k] for k in body if k.endswith("_tokens")), body
            continue
        _, read = providers[provider].extract_usage({"model": model, "usage": body}, api_flavor=flavour)
        table = info.calc_price(read, providers[provider], genai_request_timestamp=AT).total_price
        reason = departs(provider, flavour, body)
        if reason is None:
            assert Decimal(price.units(ours)) == table * 10**12, (provider, model, body)
            same += 1
        else:
            reasons.add(reason)
    assert same > 300
    assert len(reasons) >= 3
