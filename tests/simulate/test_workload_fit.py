"""The generator and its fit: known laws are found again, what is generated is as fitted, by pieces as whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import bursty, same

from apportion.simulate.trace import Blocks, Labels, Trace, TraceError, joined
from apportion.simulate.workload import (
    Model,
    burstgpt,
    conversations,
    fit,
    fitness,
    gaps,
    generate,
    generated_pieces,
    lengths,
    load,
    open_trace,
    plain,
    save,
)
from apportion.simulate.workload.gaps import Gaps
from apportion.simulate.workload.model import Kind, Memory, Talk

DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.mark.parametrize("shape", [0.25, 0.6, 2.5])
def test_gamma_gaps_are_found_again(shape: float) -> None:
    x = np.random.default_rng(3).standard_gamma(shape, 20_000) * 7.0
    law = gaps.fit(x)
    assert law.kind == "gamma"
    assert law.shapes[0] == pytest.approx(shape, rel=0.05)
    assert fitness.ks(gaps.relative(x), law.cdf) < 0.015


def test_exponential_gaps_are_called_so() -> None:
    assert gaps.fit(np.random.default_rng(0).exponential(2.0, 5000)) == Gaps()


def test_volleys_need_several_gammas() -> None:
    rng = np.random.default_rng(1)
    x = np.where(rng.random(6000) < 0.7, rng.standard_gamma(2.0, 6000) * 0.001, rng.exponential(1.0, 6000))
    law = gaps.fit(x)
    assert len(law.weights) >= 2
    assert fitness.ks(gaps.relative(x), law.cdf) < 0.02
    assert fitness.ks(x / x.mean(), gaps.fit(x, most_parts=1).cdf) > 0.1
    assert law.cv2 == pytest.approx(x.var() / x.mean() ** 2, rel=0.1)


def test_the_distribution_of_a_gamma_against_known_values() -> None:
    # Erlang of shape 2 and mean 1: 1 - (1 + 2x) exp(-2x).
    at = np.array([0.1, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(
        Gaps((1.0,), (2.0,), (1.0,)).cdf(at), 1 - (1 + 2 * at) * np.exp(-2 * at), atol=1e-5
    )
    np.testing.assert_allclose(Gaps().cdf(at), 1 - np.exp(-at), atol=1e-5)


def test_zipf_and_lognormal_lengths_are_found_again() -> None:
    rng = np.random.default_rng(5)
    law = lengths.zipf_quantiles(1.3, 4000)
    drawn = np.rint(np.interp(rng.random(20_000), lengths.LEVELS, law)).astype(np.int32)
    assert lengths.zipf_exponent(drawn) == pytest.approx(1.3, abs=0.05)
    both = np.where(rng.random(20_000) < 0.4, rng.normal(3.0, 0.3, 20_000), rng.normal(6.0, 0.5, 20_000))
    two = np.exp(both).astype(np.int32) + 1
    found = lengths.quantiles(two, "lognormal")
    assert fitness.ks(two, lambda at: lengths.cdf(tuple(found), at), discrete=True) < 0.03


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=60))
def test_lengths_stay_within_what_was_seen(pairs: list[tuple[int, int]]) -> None:
    prompts, outputs = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    law = lengths.fit(prompts, outputs)
    p, o = law.draw(200, np.random.default_rng(0))
    assert prompts.min() <= p.min()
    assert p.max() <= prompts.max()
    assert outputs.min() <= o.min()
    assert o.max() <= outputs.max()


def test_prompts_and_answers_stay_together() -> None:
    rng = np.random.default_rng(2)
    prompts = rng.integers(10, 1000, 5000).astype(np.int32)
    outputs = (prompts // 2 + rng.integers(0, 50, 5000)).astype(np.int32)
    p, o = lengths.fit(prompts, outputs).draw(5000, rng)
    assert np.corrcoef(p, o)[0, 1] > 0.95


@pytest.mark.parametrize("shape", [0.4, 1.0, 2.0])
def test_the_generator_keeps_rate_and_shape(shape: float) -> None:
    trace = bursty(shape, 20.0, 2000.0, seed=1)
    assert len(trace) == pytest.approx(40_000, rel=0.03)
    found = gaps.fit(np.diff(trace.arrival_s), most_parts=1)
    assert found.shapes[0] == pytest.approx(shape, rel=0.05)
    # The dispersion of counts of a renewal process tends to the squared coefficient of variation of its gaps.
    assert fitness.dispersion(trace.arrival_s, 20.0, end=2000.0) == pytest.approx(1 / shape, rel=0.35)


def test_rates_follow_the_windows_and_start_over() -> None:
    model = msgspec.structs.replace(
        plain(1.0, 30.0), window_s=10.0, rates=(50.0, 0.0, 5.0), law=(0, 0, 0), length_window_s=10.0
    )
    times = generate(model, 2, duration_s=3000.0).arrival_s
    assert times[-1] < 3000
    counts = np.bincount((times % 30 // 10).astype(int), minlength=3) / 100
    assert counts == pytest.approx([500, 0, 50], rel=0.05)
    assert len(generate(model, 2, duration_s=3000.0, rate=2.0)) == pytest.approx(2 * len(times), rel=0.05)


def test_memory_makes_bursts_and_leaves_the_gaps_as_they_are() -> None:
    alone = plain(20.0, 2000.0, shape=0.7)
    together = msgspec.structs.replace(alone, memory=Memory((0.4,), (0.95,)))
    a, b = generate(alone, 1).arrival_s, generate(together, 1).arrival_s
    assert fitness.ks(np.diff(a), np.diff(b)) < 0.02
    assert fitness.dispersion(b, 5.0) > 2 * fitness.dispersion(a, 5.0)


def talking(turns: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)) -> Model:
    more = lengths.independent(np.full(len(lengths.LEVELS), 40.0), np.full(len(lengths.LEVELS), 60.0))
    talk = Talk(turns, tuple(np.linspace(5, 15, len(lengths.LEVELS))), more, 2000)
    kinds = (
        Kind("m1", "t1", 0.75, plain(1, 1).kinds[0].lengths, 0.1),
        Kind("m2", "", 0.25, plain(1, 1, prompt_tokens=64).kinds[0].lengths),
    )
    return msgspec.structs.replace(
        plain(20.0, 300.0), talk=talk, kinds=kinds, blocks=True, memory=Memory((0.3,), (0.9,))
    )


@pytest.mark.parametrize("rows", [1, 7, 1000, 10**6])
def test_generated_by_pieces_is_as_whole(rows: int) -> None:
    model = talking()
    duration = 20.0 if rows == 1 else 300.0
    parts = list(generated_pieces(model, 3, rows=rows, duration_s=duration))
    assert all(len(part) == rows for part in parts[:-1])
    same(joined(parts), generate(model, 3, duration_s=duration))
    assert len(generate(model, 3, requests=123)) == 123


def test_conversations_grow_and_keep_their_model() -> None:
    model = talking()
    trace = generate(model, 5)
    found = conversations.turns(trace)
    assert found is not None
    assert trace.model is not None
    assert trace.session is not None
    assert found.sizes().mean() == pytest.approx(2.0, rel=0.1)
    follow = ~found.first
    assert np.all(found.pause_s[follow] >= 5.0)
    assert trace.failed is not None
    np.testing.assert_array_equal(np.unique(found.new_tokens[follow]), [40])
    for number in np.unique(trace.session)[:50]:
        assert len(set(trace.model.codes[trace.session == number])) == 1
    assert trace.blocks is not None
    np.testing.assert_array_equal(np.diff(trace.blocks.offsets), trace.prompt_tokens // 512)
    alone = msgspec.structs.replace(model, talk=None)
    np.testing.assert_array_equal(generate(alone, 5).arrival_s, trace.arrival_s)  # arrivals stay as they are


def test_conversations_are_fitted() -> None:
    model = talking()
    again = fit(
        generate(msgspec.structs.replace(model, kinds=model.kinds[1:]), 5), window_s=300, length_window_s=300
    )
    assert again.talk is not None
    assert model.talk is not None
    assert again.talk.mean_turns == pytest.approx(model.talk.mean_turns, rel=0.12)
    np.testing.assert_allclose(np.mean(again.talk.pause_s), np.mean(model.talk.pause_s), rtol=0.2)
    assert again.talk.more.prompts[50] == 40
    assert again.talk.more.outputs[50] == 60


def test_conversations_are_seen_in_prompt_blocks() -> None:
    ids = [[0, 1, 2, 3], [0, 9, 8, 7], [0, 1, 2, 5, 6], [0, 1, 2, 5, 20, 21], [0, 9, 8, 30]]
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in ids])))
    trace = Trace(
        np.arange(5.0),
        np.full(5, 2000, np.int32),
        np.full(5, 10, np.int32),
        blocks=Blocks(offsets.astype(np.int64), np.concatenate(ids).astype(np.int64)),
    )
    session = conversations.by_blocks(trace)
    assert session is not None
    assert session.tolist() == [0, 1, 0, 0, 1]


def test_a_fit_brings_back_its_own_model(tmp_path: Path) -> None:
    trace = bursty(0.5, 20.0, 300.0, seed=4)
    codes = (np.random.default_rng(0).random(len(trace)) < 0.2).astype(np.int32)
    trace = replace(trace, model=Labels(codes, ("a", "b")), failed=np.arange(len(trace)) % 10 == 0)
    model = fit(trace)
    assert model.requests == pytest.approx(len(trace), rel=0.001)
    assert [kind.model for kind in model.kinds] == ["a", "b"]
    assert model.kinds[1].share == pytest.approx(codes.mean())
    assert model.kinds[0].failed == pytest.approx(0.1, abs=0.01)
    report = model.fitness
    assert all(
        row["law"] == "gamma" and row["shape"] == pytest.approx(0.5, rel=0.1) for row in report["arrivals"]
    )
    assert report["worst"]["ks"] < 0.05
    assert report["worst"]["ks_prompt"] < 0.05
    assert abs(report["dispersion"]["1"]["off"]) < 0.15
    save(model, tmp_path / "m.json")
    assert load(tmp_path / "m.json") == model
    same(generate(load(tmp_path / "m.json"), 9), generate(model, 9))


def test_coarse_times_are_spread_over_their_step() -> None:
    trace = bursty(1.0, 5.0, 600.0)
    model = fit(replace(trace, arrival_s=np.floor(trace.arrival_s)), window_s=600, length_window_s=600)
    assert "steps of 1 s" in model.notes[0]
    assert model.gaps[0].kind == "exponential"
    assert fitness.spread(trace.arrival_s, 0)[1] == 0.0


def test_what_cannot_be_fitted_or_generated_or_read(tmp_path: Path) -> None:
    trace = bursty(1.0, 5.0, 100.0)
    with pytest.raises(TraceError, match="100 at different times"):
        fit(trace.take(slice(0, 50)))
    with pytest.raises(TraceError, match="50 requests were answered"):
        fit(replace(trace, output_tokens=np.zeros(len(trace), np.int32)))
    with pytest.raises(TraceError, match="'rate'"):
        generate(plain(1.0, 1.0), rate=0.0)
    with pytest.raises(TraceError, match="no request in any"):
        generate(msgspec.structs.replace(plain(1.0, 1.0), rates=(0.0,)))
    for text in ("{", "{}", '{"version": 99}'):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(TraceError):
            load(tmp_path / "m.json")


def aggregates(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    days = rng.integers(2000, 9000, 14)
    (folder / "daily.csv").write_text(
        "day,requests,total_tokens\n" + "".join(f"{d},{n},{n * 800}\n" for d, n in enumerate(days))
    )
    (folder / "hourly_profile.csv").write_text(
        "hour_of_day,mean_requests_per_hour\n" + "".join(f"{h},{10 + h}\n" for h in range(24))
    )
    counts = rng.poisson(3.0, 7 * 1440)
    (folder / "week1_minute_tokens.csv").write_text(
        "minute,total_tokens_per_s\n"
        + "".join(f"{m},{c * 800 / 60:.2f}\n" for m, c in enumerate(counts) if c)
    )
    return folder


def test_a_workload_from_aggregates(tmp_path: Path) -> None:
    model = burstgpt.model(aggregates(tmp_path), days=30, requests=200_000, seed=1)
    assert model.duration_s == 30 * 86400
    assert model.requests == pytest.approx(200_000)
    trace = generate(model, 2)
    assert len(trace) == pytest.approx(200_000, rel=0.02)
    assert trace.failed is not None
    assert trace.failed.mean() == pytest.approx(burstgpt.FAILED, abs=0.002)
    answered = ~trace.failed
    tokens = (trace.prompt_tokens + trace.output_tokens)[answered].mean()
    assert tokens == pytest.approx(800, rel=0.05)
    hours = np.bincount((trace.arrival_s % 86400 // 3600).astype(int), minlength=24)
    assert hours[23] / hours[0] == pytest.approx(3.3, rel=0.1)
    (tmp_path / "daily.csv").unlink()
    with pytest.raises(TraceError, match=r"no daily\.csv"):
        burstgpt.model(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["azure_llm_2023/azure_conv", "azure_llm_2023/azure_code", "mooncake_fast25/mooncake_conversation"],
)
def test_the_bars_on_published_traces(name: str) -> None:
    path = DATA / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name}: set APPORTION_DATA to the data folder")
    report = fit(open_trace(path)).fitness
    assert all(value <= 0.1 for value in report["worst"].values()), report["worst"]
    assert all(abs(one["off"]) < 0.15 for one in report["dispersion"].values()), report["dispersion"]
