"""An operator whose smallest payment costs more than it brings is told so at start, and only then."""

import logging

import pytest

from spawn.services.economics import warn_of_loss
from spawn.setting_reader import read_settings
from spawn.settings import Settings
from tests.payments import PAYEE

SELF = {
    "payments": "self",
    "rpc_url": "http://127.0.0.1:1",
    "relayer_key": "11" * 32,
    "x402_pay_to": PAYEE,
}
FACILITATOR = {
    "payments": "facilitator",
    "rpc_url": "http://127.0.0.1:1",
    "x402_facilitator_url": "https://x402.example",
    "x402_pay_to": PAYEE,
}


def warnings(caplog: pytest.LogCaptureFixture, settings: Settings) -> list[str]:
    with caplog.at_level(logging.WARNING):
        warn_of_loss(settings)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "settings",
    [
        read_settings({}),
        read_settings({}, **SELF, minimum_charge="0.002"),
        read_settings({}, **SELF, gas_price_gwei=0.005),
        read_settings({}, **FACILITATOR),
    ],
    ids=["play money", "a larger minimum", "cheaper gas", "a fee that is covered"],
)
def test_who_loses_nothing_hears_nothing(caplog: pytest.LogCaptureFixture, settings: Settings) -> None:
    assert warnings(caplog, settings) == []


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        (read_settings({}, **SELF), "0.001943"),
        (read_settings({}, **FACILITATOR, facilitator_fee="0.01"), "0.01"),
    ],
)
def test_who_loses_is_told_how_much(caplog: pytest.LogCaptureFixture, settings: Settings, cost: str) -> None:
    (said,) = warnings(caplog, settings)
    assert f"costs about {cost} USDC" in said
    assert "SPAWN_MINIMUM_CHARGE" in said
