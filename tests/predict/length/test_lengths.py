"""The distribution of errors against its definitions, the lines, and the three predictors of length."""

from __future__ import annotations

import doctest
import json
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Features, LengthPredictor, catalogue
from apportion.core.errors import ParameterError, SavedStateError
from apportion.predict._spread import Spread, product_limit
from apportion.predict.length import linear, trees, typical
from apportion.predict.length._lengths import Line, Models
from apportion.predict.length.linear import Linear
from apportion.predict.length.trees import Trees
from apportion.predict.length.typical import Typical

ERRORS = st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=60)


def test_product_limit_of_a_textbook_example() -> None:
    """Remission times of 6-MP patients (Freireich 1963): S(6) = 0.857, S(10) = 0.753, S(22) = 0.538, S(23) = 0.448."""
    times = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    cut = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    values, above = product_limit([*times, *cut], [False] * len(times) + [True] * len(cut))
    found = dict(zip(values.tolist(), above.tolist(), strict=True))
    for time, expected in (
        (6, 0.857),
        (7, 0.807),
        (10, 0.753),
        (13, 0.690),
        (16, 0.627),
        (22, 0.538),
        (23, 0.448),
    ):
        assert found[time] == pytest.approx(expected, abs=5e-4)


@given(ERRORS)
def test_without_censoring_it_is_the_empirical_distribution(errors: list[tuple[float, bool]]) -> None:
    seen = sorted(value for value, _ in errors)
    spread = Spread(seen, [False] * len(seen))
    for share in (0.1, 0.5, 0.9):
        found = spread.quantile(share)
        assert sum(value <= found for value in seen) >= share * len(seen) - 1e-6
        assert sum(value < found for value in seen) <= share * len(seen) + 1e-6
    assert spread.mean_exp == pytest.approx(sum(map(math.exp, seen)) / len(seen))
    assert spread.mean_above(-10.0) == pytest.approx(sum(seen) / len(seen))


@given(ERRORS)
def test_probabilities_fall_and_censoring_only_lengthens(errors: list[tuple[float, bool]]) -> None:
    values = [value for value, _ in errors]
    spread, blind = Spread(values, [cut for _, cut in errors]), Spread(values, [False] * len(values))
    points = [x / 4 for x in range(-28, 29)]
    chances = [spread.chance_above(point) for point in points]
    assert all(0.0 <= chance <= 1.0 for chance in chances)
    assert all(a >= b - 1e-9 for a, b in pairwise(chances))
    for share in (0.2, 0.5, 0.9):
        assert spread.quantile(share) >= blind.quantile(share)
    for point in points:
        assert spread.mean_above(point) >= point
    assert (spread.p50, spread.p90) == (spread.quantile(0.5), spread.quantile(0.9))


def test_a_line_is_found_from_its_points() -> None:
    generator, line = Random(1), Line(5.0, 1.0)
    for _ in range(500):
        score = generator.gauss(0, 1)
        truth = 4.0 + 0.5 * score + generator.gauss(0, 0.1)
        line.learn(score, truth - line(score))
    assert line.intercept == pytest.approx(4.0, abs=0.1)
    assert line.slope == pytest.approx(0.5, abs=0.1)


def test_one_wild_answer_moves_a_line_little() -> None:
    line, bounded = Line(5.0, 1.0, (0.01, 0.0, 0.01)), 0.0
    before = line(0.0)
    line.learn(0.0, 14.0)
    bounded = line(0.0) - before
    assert 0.0 < bounded < 0.05


MAKERS: list[Callable[[], LengthPredictor]] = [Typical, Linear, Trees]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("limit", [math.inf, 60.0])
def test_quantiles_cover_what_they_say_censored_or_not(
    make: Callable[[], LengthPredictor], limit: float
) -> None:
    """Answers of which half are cut at 60 tokens: the predicted quantiles are still those of the uncut lengths."""
    generator, predictor = Random(2), make()
    inside, cases = [0, 0], 0
    for round_ in range(4000):
        features = Features((generator.random(), generator.random()))
        tokens = math.exp(4.0 + generator.gauss(0, 0.6))
        if round_ > 1000:
            found = predictor.predict(features, "m")
            assert found is not None
            assert found.p50 <= found.p90
            cases += 1
            inside[0] += tokens <= found.p50
            # Beyond the limit nothing can be known but that it was passed.
            inside[1] += tokens <= found.p90 or found.p90 >= 0.95 * limit
        predictor.learn(features, "m", min(tokens, limit), censored=tokens > limit)
    assert inside[0] / cases == pytest.approx(0.5, abs=0.04)
    assert inside[1] / cases >= 0.87
    if limit == math.inf:
        assert inside[1] / cases <= 0.93


def test_the_prompt_is_learned_from_and_tells_models_apart() -> None:
    generator, predictor = Random(3), Linear()
    for _ in range(600):
        long = generator.random() < 0.5
        features = Features((1.0, float(long), generator.random()))
        for name, factor in (("terse", 1.0), ("wordy", 4.0)):
            predictor.learn(
                features, name, factor * (800 if long else 40) * math.exp(generator.gauss(0, 0.2))
            )
    short_, long_ = Features((1.0, 0.0, 0.5)), Features((1.0, 1.0, 0.5))
    for name, factor in (("terse", 1.0), ("wordy", 4.0)):
        one, other = predictor.predict(short_, name), predictor.predict(long_, name)
        assert one is not None
        assert other is not None
        assert one.p50 == pytest.approx(40 * factor, rel=0.4)
        assert other.p50 == pytest.approx(800 * factor, rel=0.4)
        chance = predictor.chance_longer(long_, name, 200 * factor)
        assert chance is not None
        assert chance > 0.9
        assert predictor.chance_longer(short_, name, 200 * factor) < 0.1  # type: ignore[operator]


def test_a_model_that_changes_is_followed() -> None:
    predictor, features = Typical(), Features((0.0,))
    for tokens in [100.0] * 300 + [1000.0] * 300:
        predictor.learn(features, "m", tokens)
    found = predictor.predict(features, "m")
    assert found is not None
    assert found.p50 == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize("make", MAKERS)
def test_it_is_saved_copied_bounded_and_sound(make: Callable[[], LengthPredictor]) -> None:
    generator, predictor = Random(4), make()
    features = [Features(tuple(generator.random() for _ in range(4))) for _ in range(20)]
    assert predictor.predict(features[0], "m") is None
    for wild in (0.0, -5.0, 1e300, math.inf, 1.0):
        predictor.learn(features[0], "wild", wild, censored=wild > 1)
    for f in features:
        predictor.learn(f, "m", generator.random() * 500, censored=generator.random() < 0.2)
    assert predictor.models == {"m", "wild"}  # type: ignore[attr-defined]
    restored = make()
    restored.load(json.loads(json.dumps(predictor.save(), allow_nan=False)))
    thawed = pickle.loads(pickle.dumps(predictor))
    for name in ("m", "wild"):
        for f in features:
            found = predictor.predict(f, name)
            assert found == restored.predict(f, name) == thawed.predict(f, name)
            assert found is not None
            assert all(map(math.isfinite, found))
    for other in (restored, thawed, predictor):
        other.learn(features[0], "m", 77.0)
    assert predictor.save() == restored.save() == thawed.save()
    with pytest.raises(SavedStateError):
        predictor.load({"method": "Another", "learned": {}})
    predictor.reset()
    assert predictor.predict(features[0], "m") is None
    small = type(predictor)(most_models=3)  # type: ignore[call-arg]
    for n in range(50):
        for _ in range(3):
            small.learn(features[0], f"model {n}", 10.0)
    assert [n for n in range(50) if small.predict(features[0], f"model {n}")] == [47, 48, 49]


def test_features_of_another_number_start_anew() -> None:
    predictor = Linear()
    for _ in range(10):
        predictor.learn(Features((1.0, 0.0)), "m", 100)
    assert predictor.predict(Features((1.0, 0.0, 0.0)), "m") is not None
    predictor.learn(Features((1.0, 0.0, 0.0)), "m", 100)
    assert predictor.predict(Features((1.0, 0.0, 0.0)), "m") is not None


def test_the_least_recently_heard_of_goes_first() -> None:
    models = Models(2)
    for name in ("a", "b", "a", "c"):
        models.learn(name, 0.0, 10.0, censored=False)
    assert set(models.saved()["known"]) == {"a", "c"}


def test_the_catalogue_knows_them() -> None:
    for name, kind in (("length/typical", Typical), ("length/linear", Linear), ("length/trees", Trees)):
        assert isinstance(catalogue.build(name), kind)
        found = catalogue.describe(name)
        assert found.baseline == (kind is Typical)
    for parameters in kind.examples():
        assert kind(**parameters).clone().parameters() == dict(parameters)
    with pytest.raises(ParameterError, match="penalty"):
        Linear(penalty=0.0)
    for module in (typical, linear, trees):
        assert doctest.testmod(module).failed == 0


def test_a_line_tells_the_same_whoever_was_asked_about_before() -> None:
    """It keeps the score of the marks it looked at last, and no longer than the score holds."""
    random = Random(4)
    known = [Features(tuple(random.random() for _ in range(4))) for _ in range(6)]
    asked, fresh = Linear(), Linear()
    for step in range(120):
        features, model = random.choice(known), random.choice("ab")
        tokens = float(random.randint(1, 500))
        for predictor in (asked, fresh):
            predictor.learn(features, model, tokens, censored=step % 7 == 0)
        for each in known:
            for name in "ab":
                other = Linear()
                other.load(fresh.save())
                assert asked.predict(each, name) == asked.predict(each, name) == other.predict(each, name)
    asked.load(Linear().save())
    assert asked.predict(known[0], "a") is None
    for _ in range(4):
        asked.learn(known[0], "a", 50.0)
    before = asked.predict(known[0], "a")
    asked.reset()
    assert before is not None
    assert asked.predict(known[0], "a") is None
