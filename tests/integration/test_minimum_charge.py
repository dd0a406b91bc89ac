"""No x402 payment is below the minimum charge; what it carries above the price is credit, and every answer says so."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import PUBLIC_KEY

LIST = ("GET", "/v1/servers")
DEPOSIT = ("POST", "/v1/balance/deposit")


def decoded(header: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(b64decode(header))
    return read


def left(answer: httpx.Response) -> tuple[str, str, str]:
    """What was paid, in micro-USDC, what it cost, and what is left."""
    receipt = decoded(answer.headers["PAYMENT-RESPONSE"])
    return receipt["amount"], answer.headers["Spawn-Fee"], answer.headers["Spawn-Balance"]


async def test_a_lone_read_pays_the_minimum_and_keeps_the_rest(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        wallet = await world.wallet()
        paid = await world.pay(wallet, *LIST)
        assert paid.status_code == 200
        assert left(paid) == ("50000", "0.001", "0.049")
        assert await world.chain.balance_of(world.settings.pay_to) == 50_000
        assert await world.available(wallet.address) == 49_000
        assert await world.account("rev:opfee") == 1_000
        await world.check_books()


async def test_a_signed_call_pays_the_bare_price_out_of_that(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        wallet = await world.wallet()
        await world.pay(wallet, *LIST)
        signed = await world.sign(wallet, *LIST)
        assert (signed.status_code, signed.headers["Spawn-Fee"], signed.headers["Spawn-Balance"]) == (
            200,
            "0.001",
            "0.048",
        )
        assert "PAYMENT-RESPONSE" not in signed.headers
        await world.check_books()


async def test_an_identifying_payment_is_the_minimum_too(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        paid = await world.pay(await world.wallet(), "GET", "/v1/balance")
        assert left(paid) == ("50000", "0.00", "0.05")


@pytest.mark.parametrize(
    ("fund", "paid", "available"),
    [(None, "50000", "0.04"), ("0.03", "50000", "0.04"), ("0.60", "610000", "0.60")],
)
async def test_what_is_above_an_order_s_price_is_credit(
    tmp_path: Path, fund: str | None, paid: str, available: str
) -> None:
    """`fund` counts towards the minimum. The order is doomed for want of a deposit unless that is what was paid in."""
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        wallet = await world.customer("20.00")
        order = ORDER | {"deposit": "20.00"} | ({} if fund is None else {"fund": fund})
        bought = await world.pay(wallet, "POST", "/v1/servers", order)
        assert bought.status_code == 201, bought.text
        assert left(bought) == (paid, "0.01", available)
        await world.check_books()


async def test_a_payment_above_the_minimum_stays_as_it_is(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.005") as world:
        wallet = await world.customer()
        server = await world.rent(wallet)
        destroyed = await world.pay(wallet, "DELETE", f"/v1/servers/{server['id']}")
        assert left(destroyed)[:2] == ("5000", "0.005")


async def test_the_default_minimum_changes_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert left(await world.pay(await world.wallet(), *LIST)) == ("1000", "0.001", "0.00")
        body = (await world.ask(*LIST)).json()
        assert (body["price"], body["message"]) == ("0.001", "This call costs money.")
        assert decoded((await world.ask(*LIST)).headers["PAYMENT-REQUIRED"])["resource"]["description"] == (
            "List your servers"
        )


async def test_the_402_says_what_is_price_and_what_is_credit(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        answer = await world.ask(*LIST)
        offer, body = decoded(answer.headers["PAYMENT-REQUIRED"]), answer.json()
        assert [accept["amount"] for accept in offer["accepts"]] == ["50000"]
        assert [accept["maxAmountRequired"] for accept in body["accepts"]] == ["50000"]
        described = "List your servers ($0.001; the rest of the payment becomes balance)"
        assert offer["resource"]["description"] == body["accepts"][0]["description"] == described
        assert body["price"] == "0.05"
        assert body["message"] == (
            "This call costs 0.001 USDC, and the smallest payment is 0.05 USDC: the rest becomes balance."
        )


async def test_the_catalog_and_the_front_page_name_the_minimum(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        catalog = (await world.ask("GET", "/v1/catalog")).json()
        assert catalog["payment"]["minimum"] == "0.05"
        assert {fee["fee"] for fee in catalog["fees"] if fee["path"] == "/v1/servers"} == {"0.01", "0.001"}
        for accept in ("text/html", "text/markdown"):
            page = (await world.ask("GET", "/", accept=accept)).text
            assert "The smallest payment is $0.05; what it carries above the price" in page


async def test_a_deposit_is_at_least_the_minimum(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05", deposit_default="0.02") as world:
        refused = await world.ask(*DEPOSIT, {"amount": "0.049999"})
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            400,
            "The smallest deposit is 0.05 USDC.",
        )
        for body in ({"amount": "0.05"}, None):
            wallet = await world.wallet()
            assert left(await world.pay(wallet, *DEPOSIT, body)) == ("50000", "0.00", "0.05")


async def test_paying_calls_do_not_run_into_the_cap_of_deposits(tmp_path: Path) -> None:
    """The cap is for `fund` and deposits; what a minimum adds is no wish of the caller's."""
    async with open_world(tmp_path, minimum_charge="0.05", deposit_daily_cap="0.06") as world:
        wallet = await world.wallet()
        assert [(await world.pay(wallet, *LIST)).status_code for _ in range(2)] == [200, 200]
        assert (await world.pay(wallet, *DEPOSIT, {"amount": "0.05"})).status_code == 422
        key = {"name": "laptop", "public_key": PUBLIC_KEY}
        assert (await world.pay(wallet, "POST", "/v1/ssh-keys", key)).status_code == 201


async def test_a_repeated_payment_is_answered_as_before(tmp_path: Path) -> None:
    async with open_world(tmp_path, minimum_charge="0.05") as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *LIST)
        first, again = [await world.send_payment(payment, *LIST) for _ in range(2)]
        assert (left(first), again.headers["Idempotent-Replayed"]) == (left(again), "true")
        assert await world.available(wallet.address) == 49_000


async def test_a_floor_raises_the_price_that_is_shown_and_burnt(tmp_path: Path) -> None:
    async with open_world(tmp_path, price_floor_percent=135) as world:
        offers = (await world.ask("GET", "/v1/catalog")).json()["offers"]
        small = next(o for o in offers if (o["type"], o["location"]) == ("small", "nbg1"))
        assert (small["daily_burn"], small["deposit"]) == ("0.16", "5.34")
        server = await rented(world)
        assert (await world.server(server)).daily_usdc == 160_000


async def rented(world: World) -> str:
    server: str = (await world.rent(await world.customer("20.00")))["id"]
    return server
