"""What limits allow: nothing that could break one, and all that cannot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apportion.measure.capping import NO_CAP, Cap, cap, roomy, seconds_within, shorter
from apportion.measure.price import MachinePrice, TokenPrice

PRICE = TokenPrice.of(input_usd_per_mtok=1, output_usd_per_mtok=4, request_usd=0.001)
MACHINE = MachinePrice.of(3.6)

limits = st.none() | st.integers(-(10**9), 10**11)
counts = st.none() | st.integers(1, 5000)


def asked(
    units: int | None,
    tokens: int | None,
    seconds: float | None = None,
    *,
    price: TokenPrice | None = PRICE,
    machine: MachinePrice | None = None,
    tokens_in: int | None = 100,
    asked: int | None = None,
    otherwise: int | None = 1000,
    n: int = 1,
    generates: bool = True,
) -> Cap | None:
    return cap(
        units,
        tokens,
        seconds,
        price=price,
        flat=None if price is None else price.flat_rates(),
        machine=machine,
        total_s=600.0,
        tokens_in=tokens_in,
        asked=asked,
        otherwise=otherwise,
        n=n,
        generates=generates,
    )


@given(limits, limits, st.integers(0, 3000), counts, counts, st.integers(1, 3))
def test_what_is_allowed_cannot_break_a_limit(
    units: int | None, tokens: int | None, tokens_in: int, wanted: int | None, otherwise: int | None, n: int
) -> None:
    found = asked(units, tokens, tokens_in=tokens_in, asked=wanted, otherwise=otherwise, n=n)
    if found is None:
        least = PRICE.most_units(tokens_in, n)
        assert (units is not None and units < least) or (tokens is not None and tokens < tokens_in + n)
        return
    if units is None and tokens is None:
        assert found is NO_CAP
        return
    out = found.output_tokens or wanted
    assert out is not None
    most = PRICE.most_units(tokens_in, out * n)
    assert units is None or most <= units
    assert tokens is None or tokens_in + out * n <= tokens
    assert found.most_units in (most, None)
    target = wanted or otherwise
    assert found.less == (target is not None and out < target)
    more = PRICE.most_units(tokens_in, (out + 1) * n)
    if found.less:  # one more would have broken something
        assert (units is not None and more > units) or (
            tokens is not None and tokens_in + (out + 1) * n > tokens
        )


@given(limits, limits, st.integers(0, 3000), st.integers(1, 5000), st.integers(1, 3))
def test_the_common_case_is_the_general_one(
    units: int | None, tokens: int | None, tokens_in: int, wanted: int, n: int
) -> None:
    quick = roomy(units, tokens, PRICE.flat_rates(), tokens_in, wanted, n)
    if quick is None or (units is None and tokens is None):
        return
    found = asked(units, tokens, tokens_in=tokens_in, asked=wanted, n=n)
    assert found is not None
    assert (quick.output_tokens, quick.cut_s, quick.tokens) == (None, None, tokens_in + wanted * n)
    assert (found.output_tokens, found.cut_s, found.most_units, found.tokens, found.less) == (
        quick.output_tokens,
        quick.cut_s,
        quick.most_units,
        quick.tokens,
        False,
    )


@given(
    st.none() | st.integers(-(10**9), 10**17),
    limits,
    st.integers(0, 3000),
    counts,
    counts,
    st.integers(1, 3),
    st.tuples(*[st.integers(0, 10**7)] * 4),
)
def test_flat_rates_only_save_looking_for_them(
    units: int | None,
    tokens: int | None,
    tokens_in: int,
    wanted: int | None,
    otherwise: int | None,
    n: int,
    rates: tuple[int, int, int, int],
) -> None:
    price = TokenPrice(
        input=rates[0],
        output=rates[1],
        cached_input=rates[2],
        cache_write=rates[2],
        cache_write_1h=rates[2],
        request=rates[3],
    )

    def found(flat: tuple[int, int, int] | None) -> tuple[object, ...] | None:
        one = cap(
            units,
            tokens,
            None,
            price=price,
            flat=flat,
            machine=None,
            total_s=600.0,
            tokens_in=tokens_in,
            asked=wanted,
            otherwise=otherwise,
            n=n,
            generates=True,
        )
        # Of a request that fits as it is, with no limit on money, nobody asks what it costs.
        most = None if one is None or units is None else one.most_units
        return None if one is None else (one.output_tokens, one.cut_s, most, one.tokens, one.less)

    assert found(price.flat_rates()) == found(None)


def test_a_machine_is_stopped_when_its_money_is_gone() -> None:
    found = asked(10**9, None, price=None, machine=MACHINE)  # a tenth of a cent an hour... a second is 10^9
    assert found is not None
    assert found.cut_s == 1.0
    assert found.most_units == 10**9
    assert found.less
    assert asked(0, None, price=None, machine=MACHINE) is None
    rich = asked(10**15, None, price=None, machine=MACHINE)
    assert rich is not None
    assert (rich.cut_s, rich.most_units) == (None, 600 * 10**9)


def test_what_cannot_be_bounded_is_not_promised() -> None:
    assert asked(10**12, None, tokens_in=None) is None
    assert asked(10**12, None, price=None) is None
    assert asked(None, 10**6, tokens_in=None) is None
    assert asked(None, None, 0.0) is None
    late = asked(None, None, 900.0)
    assert late is not None
    assert late.cut_s is None


def test_what_makes_no_output_needs_its_input_only() -> None:
    units = PRICE.most_units(100, 0)
    found = asked(units, None, generates=False)
    assert found is not None
    assert (found.most_units, found.tokens) == (units, 100)
    assert asked(units - 1, None, generates=False) is None


def test_time_of_other_resources() -> None:
    assert seconds_within(10**9, None) == 0.0
    assert seconds_within(10**9, 0) is None
    assert seconds_within(3 * 10**9, 10**9) == 3.0
    assert shorter(None, 2) == 2
    assert shorter(1, None) == 1
    assert shorter(3, 2) == 2
