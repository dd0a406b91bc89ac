"""What a barred wallet may still do, and that nothing of it is taken for what it may not.

Invariant tested throughout: a refusal comes before the chain is asked, and takes no nonce, no fee and no turn of money.
"""

from pathlib import Path
from typing import Any

import pytest
from spawn_schemas.ids import Address

from spawn.domain.barring import Barred
from spawn.store import wallets
from tests.harness import ORDER, World, open_world
from tests.integration.server_steps import code, drive, rent
from tests.wallets import Wallet

KEY = {"name": "laptop", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 42 + "B"}
CHANGES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/servers", ORDER | {"name": "more"}),
    ("PATCH", "/v1/servers/{id}", {"name": "other"}),
    ("POST", "/v1/servers/{id}/deposit", {"amount": "0.10"}),
    ("POST", "/v1/servers/{id}/stop", None),
    ("POST", "/v1/servers/{id}/poweroff", None),
    ("POST", "/v1/servers/{id}/reboot", None),
    ("POST", "/v1/servers/{id}/start", None),
    ("POST", "/v1/servers/{id}/resize", {"type": "medium"}),
    ("POST", "/v1/servers/{id}/rebuild", {"image": "debian-12"}),
    ("POST", "/v1/ssh-keys", KEY),
)
READS: tuple[tuple[str, str], ...] = (
    ("GET", "/v1/servers"),
    ("GET", "/v1/servers/{id}"),
    ("GET", "/v1/balance"),
    ("GET", "/v1/balance/transactions"),
    ("GET", "/v1/ssh-keys"),
    ("GET", "/v1/suspense"),
    ("POST", "/v1/sessions"),
)


async def set_barred(world: World, wallet: Address, to: Barred | None) -> None:
    await world.parts.db.write(lambda tx: wallets.set_barred(tx, wallet, to))


async def scene(world: World, barred: Barred) -> tuple[Wallet, str]:
    """A wallet with a running server and money, barred since."""
    wallet = await world.customer("20.00")
    server = await rent(world, wallet)
    await set_barred(world, wallet.address, barred)
    return wallet, server


async def everything(world: World) -> list[Any]:
    tables = ("reservation", "idempotency", "transfer", "hold", "operation", "account", "event")
    rows = [list(await world.rows(f"SELECT * FROM {table}")) for table in tables]
    return [[tuple(row) for row in found] for found in rows] + [await world.chain.transfers()]


@pytest.mark.parametrize("barred", Barred)
async def test_nothing_is_changed_and_nothing_is_taken(tmp_path: Path, barred: Barred) -> None:
    async with open_world(tmp_path) as world:
        wallet, server = await scene(world, barred)
        before = await everything(world)
        for method, template, body in CHANGES:
            path = template.format(id=server)
            for answer in (
                await world.sign(wallet, method, path, body, key=f"k{template}"),
                await world.pay(wallet, method, path, body),
            ):
                assert code(answer) == (403, "suspended"), (method, path, answer.text)
                assert answer.json()["error"]["details"] == {"barred": barred.value}
        assert await everything(world) == before
        await world.check_books()


@pytest.mark.parametrize("barred", Barred)
async def test_everything_can_be_read_from_the_balance(tmp_path: Path, barred: Barred) -> None:
    async with open_world(tmp_path) as world:
        wallet, server = await scene(world, barred)
        for method, template in READS:
            answer = await world.sign(wallet, method, template.format(id=server))
            assert answer.is_success, (template, answer.text)


@pytest.mark.parametrize("barred", Barred)
async def test_destroying_always_works(tmp_path: Path, barred: Barred) -> None:
    async with open_world(tmp_path) as world:
        wallet, server = await scene(world, barred)
        assert (await world.sign(wallet, "DELETE", f"/v1/servers/{server}")).is_success
        await drive(world)
        assert (await world.server(server)).status == "destroyed"
        await world.check_books()


async def test_a_suspended_wallet_pays_in_claims_and_pays_for_what_it_may(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, server = await scene(world, Barred.SUSPENDED)
        assert (await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "1.00"})).is_success
        assert (await world.sign(wallet, "POST", "/v1/suspense/claim")).is_success
        assert (await world.pay(wallet, "GET", f"/v1/servers/{server}")).is_success
        assert (await world.pay(wallet, "DELETE", f"/v1/servers/{server}")).is_success
        await world.check_books()


async def test_no_payment_of_a_blocked_wallet_is_taken(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, server = await scene(world, Barred.BLOCKED)
        before = await everything(world)
        for method, path, body in (
            ("POST", "/v1/balance/deposit", {"amount": "1.00"}),
            ("GET", f"/v1/servers/{server}", None),
            ("GET", "/v1/balance", None),
            ("DELETE", f"/v1/servers/{server}", None),
        ):
            answer = await world.pay(wallet, method, path, body)
            assert code(answer) == (403, "suspended"), (path, answer.text)
            assert "Sign reads and DELETE" in answer.json()["error"]["next"]
        assert code(await world.sign(wallet, "POST", "/v1/suspense/claim")) == (403, "suspended")
        assert await everything(world) == before


async def test_a_refused_payment_can_be_used_once_the_bar_is_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/balance/deposit", {"amount": "1.00"})
        await set_barred(world, wallet.address, Barred.BLOCKED)
        call = (payment, "POST", "/v1/balance/deposit", {"amount": "1.00"})
        assert code(await world.send_payment(*call)) == (403, "suspended")
        await set_barred(world, wallet.address, None)
        assert (await world.send_payment(*call)).is_success
        assert await world.available(wallet.address) == 1_000_000


@pytest.mark.parametrize("barred", Barred)
async def test_a_bar_between_paying_and_acting_loses_nothing(tmp_path: Path, barred: Barred) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = ORDER | {"fund": "6.00"}
        payment = await world.payment(wallet, "POST", "/v1/servers", body)
        settle = world.service.paid_calls._facilitator.settle

        async def settle_then_bar(*given: Any) -> Any:
            settled = await settle(*given)
            await set_barred(world, wallet.address, barred)
            return settled

        world.service.paid_calls._facilitator = _Settling(settle_then_bar)  # type: ignore[assignment]  # one verb of it
        first = await world.send_payment(payment, "POST", "/v1/servers", body)
        assert code(first) == (403, "suspended")
        assert first.json()["error"]["details"] == {"barred": barred.value, "credited": "6.01"}
        assert await world.available(wallet.address) == 6_010_000
        again = await world.send_payment(payment, "POST", "/v1/servers", body)
        assert code(again) == (403, "suspended")
        assert await world.available(wallet.address) == 6_010_000
        assert await world.rows("SELECT id FROM server") == []
        await world.check_books()


class _Settling:
    def __init__(self, settle: Any) -> None:
        self.settle = settle


async def test_a_call_that_was_done_before_the_bar_is_answered_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        first = await world.sign(wallet, "POST", "/v1/ssh-keys", KEY, key="once")
        assert first.is_success, first.text
        await set_barred(world, wallet.address, Barred.BLOCKED)
        again = await world.sign(wallet, "POST", "/v1/ssh-keys", KEY, key="once")
        assert again.is_success
        assert again.json() == first.json()


async def test_others_are_not_touched(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await scene(world, Barred.BLOCKED)
        other = await world.customer("20.00")
        assert await rent(world, other)
