"""USDC that reaches us outside a call is kept for its sender."""

from pathlib import Path

from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.payments.devnet import NOBODY
from spawn.services.suspense import AT_ONCE
from tests.harness import open_world
from tests.integration.arriving import CLAIM, LIST, balances, claim, send, waiting, watch
from tests.integration.paid_calls import challenge, nothing_changes, signed

# --- an ordinary transfer ---------------------------------------------------------------------------------------


async def test_what_arrives_outside_a_call_waits_for_its_sender(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender, other = await world.wallet("10.00"), await world.customer("1.00")
        await send(world, sender, "2.50")
        world.clock.advance(1)
        await send(world, sender, "0.000001")
        await watch(world)
        shown = await world.sign(sender, *LIST)
        assert shown.status_code == 200, shown.text
        transfers = [line for line in await world.chain.transfers() if line.sender == sender.address]
        assert shown.json() == {
            "arrivals": [
                {"transaction": transfers[0].tx_hash, "amount": "2.50", "at": "2026-09-21T14:13:20Z"},
                {"transaction": transfers[1].tx_hash, "amount": "0.000001", "at": "2026-09-21T14:13:21Z"},
            ],
            "total": "2.500001",
        }
        assert (await world.sign(other, *LIST)).json() == {"arrivals": [], "total": "0.00"}
        assert await claim(world, other) == {
            "claimed": "0.00",
            "left": "0.00",
            "balance": "1.00",
            "reserved": "0.00",
            "available": "1.00",
        }
        assert await claim(world, sender) == {
            "claimed": "2.500001",
            "left": "0.00",
            "balance": "2.500001",
            "reserved": "0.00",
            "available": "2.500001",
        }
        assert (await claim(world, sender))["claimed"] == "0.00"
        assert await balances(world, sender) == (2_500_001, 0, 3_500_001)
        statement = await world.sign(sender, "GET", "/v1/balance/transactions")
        assert [(t["kind"], t["amount"]) for t in statement.json()["transactions"]] == [
            ("claim", "0.000001"),
            ("claim", "2.50"),
        ]
        await world.check_books()


async def test_a_claim_sent_again_is_answered_from_the_first(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        await send(world, sender, "1.00")
        await watch(world)
        request = signed(world, sender, *CLAIM)
        first = await world.http.send(request)
        await send(world, sender, "2.00")
        await watch(world)
        async with nothing_changes(world):
            again = await world.http.send(request)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.json() == first.json()
        assert await balances(world, sender) == (1_000_000, 2_000_000, 3_000_000)


async def test_only_what_binds_the_request_claims(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        await send(world, sender, "1.00")
        await watch(world)
        opened = await world.sign(sender, "POST", "/v1/sessions")
        bearer = {"Authorization": f"Bearer {opened.json()['session']['token']}"}
        assert (await world.http.get(LIST[1], headers=bearer)).json()["total"] == "1.00"
        async with nothing_changes(world):
            challenge(await world.http.post(CLAIM[1], headers=bearer))
            challenge(await world.ask(*CLAIM))
        # A payment says who calls as well as a signature does, and is credited besides.
        paid = await world.pay(sender, *CLAIM)
        assert (paid.json()["claimed"], paid.json()["balance"]) == ("1.00", "1.001")
        await world.check_books()


async def test_thousands_of_arrivals_are_claimed_in_parts(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        for _ in range(AT_ONCE + 1):
            await send(world, sender, "0.01")
        await watch(world)
        shown = (await world.sign(sender, *LIST)).json()
        assert (len(shown["arrivals"]), shown["total"]) == (AT_ONCE, "1.01")
        assert [
            (body["claimed"], body["left"]) for body in [await claim(world, sender) for _ in range(3)]
        ] == [
            ("1.00", "0.01"),
            ("0.01", "0.00"),
            ("0.00", "0.00"),
        ]
        await world.check_books()


async def test_what_brings_us_nothing_is_no_arrival(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender, pay_to = await world.wallet("1.00"), world.settings.pay_to
        await world.chain.send(sender.address, pay_to, Usdc(0))
        await send(world, sender, "1.00")
        await world.chain.send(pay_to, pay_to, Usdc(400_000))
        await world.chain.mint(Address("0x" + "ee" * 20), Usdc(7))
        await watch(world)
        assert await waiting(world) == 1_000_000
        await world.check_books()


async def test_play_money_given_to_us_is_nobodys(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.chain.mint(world.settings.pay_to, Usdc(5))
        await watch(world)
        (arrival,) = await world.rows("SELECT sender, amount FROM arrival")
        assert (arrival["sender"], arrival["amount"]) == (NOBODY, 5)
        await world.check_books()
