"""Energy in closed form: a kilowatt-hour is 3.6 million joules and emits what its grid says."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.resource import GCO2, JOULES, SERVER_SECONDS
from apportion.measure.energy import Power

HOUR_NS = 3600 * 10**9


def test_a_kilowatt_hour() -> None:
    power = Power.of(1000, 363.5)
    assert power.joules_units(HOUR_NS) == JOULES.to_units(3_600_000)
    assert power.gco2_units(HOUR_NS) == GCO2.to_units(363.5)
    assert power.joules(3600.0) == pytest.approx(3_600_000)
    assert power.gco2(3600.0) == pytest.approx(363.5)


def test_a_short_answer() -> None:
    power = Power.of(87.5, 400)
    spent = power.joules_units(SERVER_SECONDS.to_units(0.25))
    assert JOULES.from_units(spent) == pytest.approx(21.875)
    assert power.gco2_units(SERVER_SECONDS.to_units(0.25)) == round(21.875 * 400 / 3.6e6 * 1e6)
    assert power.joules_units(0) == power.gco2_units(0) == 0


def test_what_is_not_known_is_none() -> None:
    power = Power.of(300)
    assert power.gco2_units(HOUR_NS) is None
    assert power.gco2(1.0) is None
    clean = Power.of(300, 0)
    assert clean.gco2_units(HOUR_NS) == 0


@pytest.mark.parametrize(("ns", "microjoules"), [(499, 0), (500, 1), (501, 1), (1499, 1), (1500, 2)])
def test_halves_go_up(ns: int, microjoules: int) -> None:
    assert Power.of(1).joules_units(ns) == microjoules


@given(
    st.decimals(0, 10**5, places=4, allow_nan=False),
    st.decimals(0, 2000, places=4, allow_nan=False),
    st.integers(0, 10**15),
)
def test_exact_to_half_a_unit(watts: object, grid: object, ns: int) -> None:
    power = Power.of(float(str(watts)), float(str(grid)))
    joules = Fraction(str(watts)) * Fraction(ns, 10**9)
    assert abs(power.joules_units(ns) - joules * 10**6) <= Fraction(1, 2)
    grams = power.gco2_units(ns)
    assert grams is not None
    assert abs(grams - joules * Fraction(str(grid)) / 3_600_000 * 10**6) <= Fraction(1, 2)
