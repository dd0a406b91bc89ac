"""`spawn economics` as an operator reads it: on 80 columns, for a program, and by its exit code."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spawn.api.routes import fees
from spawn.cli import cli


def economics(*arguments: str, columns: str = "80", **settings: str) -> Result:
    env = {f"SPAWN_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(cli, ["economics", *arguments], env=env | {"COLUMNS": columns})


def plain(*arguments: str, exit_code: int = 0, **settings: str) -> dict[str, Any]:
    done = economics("--json", *arguments, **settings)
    assert done.exit_code == exit_code, done.output
    read: dict[str, Any] = json.loads(done.output)
    return read


def line(done: Result, begins: str) -> list[str]:
    (found,) = (row for row in done.output.splitlines() if row.startswith(f"{begins} "))
    return found.removeprefix(begins).split()


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_lone_read_is_seen_to_cost_more_than_it_brings(columns: str) -> None:
    done = economics("--rail", "self", columns=columns)
    assert done.exit_code == 1
    assert max(map(len, done.output.splitlines())) <= int(columns)
    read = ["0.001", "0.001", "0.001943", "-0.000943", "-95", "-0.000264", "loss"]
    assert line(done, "GET /v1/servers/{id}") == read
    assert line(done, "POST /v1/servers/{id}/poweroff") == [
        "0.002", "0.002", "0.001943", "0.000057", "2", "0.000736"
    ]  # fmt: skip
    assert line(done, "POST /v1/balance/deposit")[:2] == ["any", "0.01"]
    assert "SPAWN_MINIMUM_CHARGE=0.002 " in done.output
    assert line(done, "small     cx23")[3:] == ["0.15", "0.118441", "0.031559", "21"]
    assert line(done, "small     cpx21") == ["ash", "hil", "0.32", "unknown"]
    assert line(done, "small  cx23") == ["0.15", "0.19764", "-0.04764", "-32", "0.208", "loss"]


def test_the_advised_minimum_ends_the_loss() -> None:
    advised = plain("--rail", "self", exit_code=1)["least_minimum_charge"]
    assert plain("--rail", "self", minimum_charge=advised)["sells_at_a_loss"] is False
    assert plain("--rail", "self", exit_code=1, minimum_charge="0.0019")["sells_at_a_loss"] is True


def test_every_priced_route_and_every_offer_is_there() -> None:
    report = plain("--rail", "devnet")
    assert [(r["method"], r["path"], r["price"]) for r in report["routes"]] == [
        (fee.method, fee.path, fee.fee) for fee in fees()
    ]
    assert len(report["servers"]) == 18
    assert report["sells_at_a_loss"] is False


def test_assumptions_are_those_that_were_given() -> None:
    given = ("--gas-price-gwei", "0.02", "--eth-price", "4500.00", "--batch", "10", "--fx", "1.20")
    report = plain("--rail", "self", *given, exit_code=1)
    # 64,760 gas, and (29,960 + 415,100) / 10, at 0.00009 USDC for a thousand
    assert report["settlement"] == {"alone": "0.005829", "batched": "0.004006", "batch": 10}
    small = report["servers"][0]
    assert small["wholesale"] == {
        "currency": "EUR", "daily_micro": 109_667, "monthly_micro": 3_290_000, "step_s": 3600,
        "tb_micro": 1_000_000,
    }  # fmt: skip
    assert small["margin"] == {"cost": "0.131601", "amount": "0.018399", "percent": "12.2"}


def test_a_facilitator_s_fee_is_the_cost_alone_and_in_a_batch() -> None:
    report = plain("--rail", "facilitator", facilitator_fee="0.0005")
    assert report["settlement"] == {"alone": "0.0005", "batched": "0.0005", "batch": 1}
    assert "batched" not in economics("--rail", "facilitator").output


def test_the_rail_is_that_of_the_service_unless_another_is_asked_for() -> None:
    assert plain()["rail"] == "devnet"


def test_a_raised_price_says_what_it_was() -> None:
    done = economics("--rail", "devnet", price_floor_percent="135")
    assert "raised from 0.15" in done.output


def test_with_a_margin_it_is_left_of_every_price_whose_cost_is_known() -> None:
    shown = plain("--rail", "devnet", price_margin_percent="25")
    known = [server for server in shown["servers"] if server["margin"] is not None]
    assert known
    assert all(25 <= float(server["margin"]["percent"]) < 26 for server in known)
    assert (
        "a margin of 25 %" in economics("--rail", "devnet", columns="200", price_margin_percent="25").output
    )


def test_what_no_minimum_charge_makes_up_for_is_said() -> None:
    done = economics("--rail", "self", "--gas-price-gwei", "30")
    assert done.exit_code == 1
    assert "No minimum charge" in done.output
    assert "SPAWN_MINIMUM_CHARGE" not in done.output


def test_a_price_that_is_none_names_its_setting() -> None:
    done = economics("--fx", "1,08")
    assert "SPAWN_EUR_PRICE" in str(done.exception)
