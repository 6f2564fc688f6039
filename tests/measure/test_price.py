"""Prices are exact: what genai-prices computes, in whole pico-dollars; unknown stays unknown."""

from __future__ import annotations

import csv
import gzip
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import Usage as TableUsage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.measure.price import FREE, MachinePrice, TokenPrice, hosted_price
from apportion.measure.usage import Usage

AT = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def _six_decimals(prices: ModelPrice) -> bool:
    for value in vars(prices).values():
        amounts = (
            [value.base, *(t.price for t in value.tiers)] if isinstance(value, TieredPrices) else [value]
        )
        if any(a is not None and -a.normalize().as_tuple().exponent > 6 for a in amounts):
            return False
    return True


MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    for model in provider.models
    if _six_decimals(model.get_prices(AT)) and provider.find_model(model.id) is model
]


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Usages with parts inside their totals; audio, images and cached input do not overlap."""
    whole = draw(st.sampled_from([0, 100, 5_000, 150_000, 2_000_000]))
    parts = [draw(st.integers(0, whole)) for _ in range(5)]
    plain = draw(st.integers(0, 400_000))
    out, reasoning, audio, image = (draw(st.integers(0, 100_000)) for _ in range(4))
    return Usage(
        input_tokens=plain + sum(parts),
        cached_input_tokens=parts[0],
        cache_write_tokens=parts[1],
        cache_write_1h_tokens=parts[2],
        audio_input_tokens=parts[3],
        image_input_tokens=parts[4],
        output_tokens=out + reasoning + audio + image,
        reasoning_tokens=reasoning,
        audio_output_tokens=audio,
        image_output_tokens=image,
        web_searches=draw(st.integers(0, 20)),
        file_searches=draw(st.integers(0, 20)),
    )


def table_usage(usage: Usage) -> TableUsage:
    """The same usage in the words of genai-prices, where hour-long writes are part of all writes."""
    return TableUsage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.audio_input_tokens,
        output_audio_tokens=usage.audio_output_tokens,
        cache_audio_read_tokens=0,
        input_text_tokens=0,
        output_text_tokens=0,
        input_image_tokens=usage.image_input_tokens,
        output_image_tokens=usage.image_output_tokens,
        cache_image_read_tokens=0,
        input_video_tokens=0,
        output_video_tokens=0,
        output_citation_tokens=0,
        web_searches=usage.web_searches,
        storage_searches=usage.file_searches,
    )


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(MODELS), usages())
def test_costs_equal_the_tables_exactly(model: tuple[str, str], usage: Usage) -> None:
    provider_id, name = model
    price = hosted_price(name, provider=provider_id, at=AT)
    provider, info = get_snapshot().find_provider_model(name, None, provider_id, None)
    table = info.get_prices(AT)
    if table.input_mtok is None:
        assert price is None
        return
    assert price is not None
    expected = info.calc_price(table_usage(usage), provider, genai_request_timestamp=AT).total_price
    assert Decimal(price.units(usage)) == expected * 10**12


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(MODELS),
    usages(),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)
def test_the_bound_is_never_exceeded(
    model: tuple[str, str], usage: Usage, more_in: int, more_out: int
) -> None:
    price = hosted_price(model[1], provider=model[0], at=AT) or FREE
    most = price.most_units(usage.input_tokens + more_in, usage.output_tokens + more_out)
    fees = usage.web_searches * price.web_search + usage.file_searches * price.file_search
    assert price.units(usage) <= most + fees
    usage.web_searches = usage.file_searches = 0
    usage.cache_write_tokens = usage.cache_write_1h_tokens = 0
    most = price.most_units(usage.input_tokens + more_in, usage.output_tokens + more_out, cache_writes=False)
    assert price.units(usage) <= most


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 10**13), st.integers(0, 300_000), st.booleans())
def test_the_output_cap_is_the_largest(model: tuple[str, str], units: int, tokens_in: int, w: bool) -> None:
    price = hosted_price(model[1], provider=model[0], at=AT) or FREE
    cap = price.output_tokens_within(units, tokens_in, cache_writes=w, most=10**9)
    if cap > 0:
        assert price.most_units(tokens_in, cap, cache_writes=w) <= units
    if cap < 10**9:
        assert price.most_units(tokens_in, cap + 1, cache_writes=w) > units


def test_a_thousand_answers_add_up_exactly() -> None:
    price = TokenPrice.of(input_usd_per_mtok=0.1, output_usd_per_mtok="0.4", cached_input_usd_per_mtok=0.025)
    usage = Usage(input_tokens=3, output_tokens=1, cached_input_tokens=1)
    assert price.units(usage) == 2 * 100_000 + 25_000 + 400_000
    assert sum(price.units(usage) for _ in range(1000)) == 625_000_000


def test_what_is_left_out_costs_as_its_whole() -> None:
    price = TokenPrice.of(input_usd_per_mtok=2, output_usd_per_mtok=8, request_usd=0.001)
    plain = price.units(Usage(input_tokens=10, output_tokens=5, reasoning_tokens=3, audio_input_tokens=4))
    assert plain == 10 * 2_000_000 + 5 * 8_000_000 + 10**9
    cached = price.units(Usage(input_tokens=10, output_tokens=5, cached_input_tokens=6, cache_write_tokens=4))
    assert cached == plain
    hour = TokenPrice.of(input_usd_per_mtok=2, output_usd_per_mtok=8, cache_write_usd_per_mtok=2.5)
    assert hour.cache_write_1h == hour.cache_write == 2_500_000


@pytest.mark.parametrize(
    ("model", "base_url", "provider"),
    [
        ("no-such-model", "https://api.openai.com/v1", None),
        ("gpt-4o", "http://10.0.0.7:8000/v1", None),
        ("gpt-4o", "http://localhost:11434/v1", None),
        ("gpt-4o", None, "no-such-provider"),
        ("mistral-ocr-2503", "https://api.mistral.ai/v1", None),
        ("my-own-model", None, None),
    ],
)
def test_unknown_is_unknown(model: str, base_url: str | None, provider: str | None) -> None:
    assert hosted_price(model, base_url, provider, at=AT) is None


def test_the_place_decides_the_price() -> None:
    by_url = hosted_price("gpt-4o", "https://api.openai.com/v1", at=AT)
    assert by_url == hosted_price("gpt-4o", provider="openai", at=AT) == hosted_price("gpt-4o", at=AT)
    assert by_url is not None
    assert (by_url.input, by_url.output, by_url.cached_input) == (2_500_000, 10_000_000, 1_250_000)


def test_long_context_costs_more_for_all_of_it() -> None:
    price = hosted_price("claude-sonnet-4-5", provider="anthropic", at=AT)
    assert price is not None
    assert price.tiers
    above, dear = price.tiers[0]
    assert price.units(Usage(input_tokens=above)) == above * price.input
    assert price.units(Usage(input_tokens=above + 1)) == (above + 1) * dear.input > above * price.input


def test_a_published_change_is_announced() -> None:
    night = hosted_price("deepseek-chat", provider="deepseek", at=datetime(2025, 6, 1, 17, tzinfo=UTC))
    assert night is not None
    assert night.changes_at is not None
    change = datetime.fromtimestamp(night.changes_at, tz=UTC)
    assert datetime(2025, 6, 1, 17, tzinfo=UTC) < change <= datetime(2025, 6, 2, 17, tzinfo=UTC)
    assert hosted_price("deepseek-chat", provider="deepseek", at=change) != night


def test_a_variant_is_chosen_by_its_context() -> None:
    usage = Usage(input_tokens=1000, output_tokens=100)
    different = 0
    for context in ({"service_tier": "priority"}, {"processing": "batch"}):
        compared = 0
        for provider_id, name in MODELS:
            provider, info = get_snapshot().find_provider_model(name, None, provider_id, None)
            if not any(variant.when == context for variant in info.price_variants or ()):
                continue
            price = hosted_price(name, provider=provider_id, at=AT, context=context)
            plain = hosted_price(name, provider=provider_id, at=AT)
            if price is None or plain is None:  # not priced by the token
                continue
            expected = info.calc_price(
                table_usage(usage), provider, genai_request_timestamp=AT, price_context=context
            ).total_price
            assert Decimal(price.units(usage)) == expected * 10**12
            compared += 1
            different += price.units(usage) != plain.units(usage)
        assert compared > 5
    assert different > 0


@pytest.mark.parametrize("key", ["service_tier", "speed"])
def test_an_answer_is_charged_by_the_service_it_was_served_with(key: str) -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    compared = different = 0
    for provider_id, name in MODELS:
        provider, info = get_snapshot().find_provider_model(name, None, provider_id, None)
        price = hosted_price(name, provider=provider_id, at=at)
        for service in {v.when[key] for v in info.price_variants or () if set(v.when) == {key}}:
            if price is None:
                continue
            usage = Usage(input_tokens=1000, output_tokens=100, cached_input_tokens=10, service=service)
            expected = info.calc_price(
                table_usage(usage), provider, genai_request_timestamp=at, price_context={key: service}
            ).total_price
            assert Decimal(price.units(usage)) == expected * 10**12, (name, service)
            most = price.of_service(service).most_units(1000, 100)
            assert price.units(usage) <= most
            compared += 1
            usage.service = ""
            different += Decimal(price.units(usage)) != expected * 10**12
    assert compared >= 4
    assert different >= 4


def test_an_unknown_service_costs_what_the_usual_costs() -> None:
    price = hosted_price("gpt-5", provider="openai", at=AT)
    assert price is not None
    assert price.of_service("express") is price.of_service(None) is price.of_service("default") is price
    usage = Usage(input_tokens=9, output_tokens=1)
    assert price.units(Usage(input_tokens=9, output_tokens=1, service="express")) == price.units(usage)


def test_searches_cost_by_the_call() -> None:
    price = hosted_price("claude-sonnet-4-5", provider="anthropic", at=AT)
    assert price is not None
    plain = Usage(input_tokens=10809, output_tokens=644)
    searched = Usage(input_tokens=10809, output_tokens=644, web_searches=5)
    assert price.units(searched) - price.units(plain) == 5 * 10**12 // 100  # $10 a thousand


def test_what_the_provider_says_it_charged_is_believed_where_it_does_say_so() -> None:
    """OpenRouter's price depends on which provider it chose, and its tools have fees of their own."""
    told = Usage(input_tokens=900, output_tokens=69, billed_units=16_061_400_000)
    for place, believed in (("openrouter", True), ("openai", False)):
        model = "openai/gpt-4o-mini" if believed else "gpt-4o-mini"
        price = hosted_price(model, provider=place, at=AT)
        assert price is not None
        silent = Usage(input_tokens=900, output_tokens=69)
        assert price.units(silent) == 900 * price.input + 69 * price.output != told.billed_units
        assert price.units(told) == (told.billed_units if believed else price.units(silent))
    own = TokenPrice.of(input_usd_per_mtok=1, output_usd_per_mtok=1)
    assert own.units(told) == 969 * 10**6, "a configured price is the operator's word"


def test_a_machine_is_charged_by_the_second() -> None:
    price = MachinePrice.of(3.6)
    assert price.units(1.0) == 10**9
    assert price.units(0.25) == 25 * 10**7
    assert MachinePrice.of("0.0001").units(0) == 0
    assert MachinePrice.of(1).units(3600) == 10**12


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), Decimal("-0.1")])
def test_an_impossible_price_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite number of zero or more"):
        TokenPrice.of(input_usd_per_mtok=wrong, output_usd_per_mtok=1)


def test_a_separate_collection_of_prices_agrees_on_the_base_tier() -> None:
    """The snapshot of genai-prices from the data folder, for models that are still at the same price."""
    file = DATA / "llm_prices" / "genai_prices.csv.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name}: the data folder is not here (set APPORTION_DATA)")
    with gzip.open(file, "rt") as lines:
        rows = [
            row for row in csv.DictReader(lines) if row["usd_per_mtok_input"] and row["provider"] == "openai"
        ]
    assert len(rows) > 20
    compared = same = 0
    for row in rows:
        price = hosted_price(row["model"], provider=row["provider"], at=datetime(2026, 8, 1, tzinfo=UTC))
        if price is None:
            continue
        compared += 1
        expected = Decimal(row["usd_per_mtok_input"]), Decimal(row["usd_per_mtok_output"] or "0")
        same += (Decimal(price.input) / 10**6, Decimal(price.output) / 10**6) == expected
    assert compared > 20
    assert same >= 0.9 * compared
