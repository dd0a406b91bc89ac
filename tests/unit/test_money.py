"""Amounts survive the wire exactly, and nothing that is no amount gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.money import MAX_USDC, USDC, Usdc, format_usdc, parse_usdc

amounts = st.integers(min_value=0, max_value=MAX_USDC).map(Usdc)


@given(amounts)
def test_what_is_written_is_read_back(amount: Usdc) -> None:
    assert parse_usdc(format_usdc(amount)) == amount


@given(amounts)
def test_an_amount_has_two_to_six_decimals_and_no_more_than_it_needs(amount: Usdc) -> None:
    decimals = format_usdc(amount).partition(".")[2]
    assert 2 <= len(decimals) <= 6
    assert len(decimals) == 2 or not decimals.endswith("0")


@given(amounts.filter(bool))
def test_a_loss_is_the_gain_with_a_sign(amount: Usdc) -> None:
    assert format_usdc(Usdc(-amount)) == f"-{format_usdc(amount)}"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (1, "0.000001"),
        (1_000, "0.001"),
        (150_000, "0.15"),
        (5 * USDC, "5.00"),
        (-10_000, "-0.01"),
    ],
)
def test_how_amounts_look(amount: int, text: str) -> None:
    assert format_usdc(Usdc(amount)) == text


@pytest.mark.parametrize(
    ("text", "amount"), [("5", 5 * USDC), ("5.0", 5 * USDC), ("0.000001", 1), ("007", 7 * USDC)]
)
def test_fewer_digits_mean_the_same(text: str, amount: int) -> None:
    assert parse_usdc(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "5.",
        ".5",
        "-1",
        "+1",
        "1e3",
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "0.0000001",
        "1,00",
        "١",
        "NaN",
        "0x10",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="decimal string"):
        parse_usdc(text)


def test_an_amount_beyond_all_sense_is_refused() -> None:
    assert parse_usdc("1000000000") == MAX_USDC
    with pytest.raises(ValueError, match="larger"):
        parse_usdc("1000000000.000001")
