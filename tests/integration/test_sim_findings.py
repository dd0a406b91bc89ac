"""What the simulation found in the service as it stood: the scenario of each without a simulation, named for its harm.

`docs/sim-findings.md` says of each what was promised and why it was broken.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.catalog import Catalog
from spawn_providers.simulated_faults import Breakdown, Delay, LostRequest, Refusal

from spawn.services.admin import AnnouncePrice, Clerk
from spawn.services.claims import CLAIM_S
from spawn.store.backup import back_up
from spawn.store.places import file_of
from tests.harness import ORDER, World, open_world
from tests.integration.event_steps import session
from tests.integration.paid_calls import (
    Barrier,
    machines,
    nothing_changes,
    paid_in,
    refusal,
    usdc,
    while_time_passes,
)
from tests.integration.server_steps import Recorder, action, balance, drive, order, rent, show
from tests.wallets import Wallet

FUNDS = usdc("20.00")
READ = usdc("0.001")
RAISED = usdc("0.20")
CHEAPEST = ORDER | {"deposit": "0.15"}
"""An order whose deposit is the least that there is, so that any rise of the price makes it too small."""
DEBIAN = {"image": "debian-12"}
BUY = CHEAPEST | {"fund": "1.00"}


async def told(world: World, server_id: str, type: str) -> list[dict[str, Any]]:
    """What the events of this type said of the server, oldest first."""
    rows = await world.rows(
        "SELECT data FROM event WHERE resource = :id AND type = :type ORDER BY seq", id=server_id, type=type
    )
    return [msgspec.json.decode(row["data"]) for row in rows]


# --- a deposit that is added before the provider has accepted -----------------------------------------------------


async def ordered(world: World, wallet: Wallet) -> str:
    """A server that its provider has not accepted: the request was lost on the way to it."""
    world.cloud_faults.plan("create", LostRequest())
    created = await order(world, wallet)
    assert created.status_code == 201, created.text
    server_id: str = created.json()["server"]["id"]
    assert (await world.server(server_id)).provider_ref is None
    return server_id


async def add(world: World, wallet: Wallet, server_id: str, amount: str) -> None:
    added = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": amount})
    assert added.status_code == 200, added.text


@pytest.mark.embedded
async def test_what_was_added_to_a_server_whose_creation_fails_comes_back(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await ordered(world, wallet)
        await add(world, wallet, server_id, "0.25")
        world.cloud_faults.plan("create", Refusal(code=RefusedCode.OUT_OF_CAPACITY))
        await drive(world)
        assert (await world.server(server_id)).status == "failed"
        assert await world.account(f"srv:{server_id}") == 0
        assert await world.available(wallet.address) == FUNDS - READ
        await world.check_books()
        database = file_of(world.settings.database_url)
        assert back_up(database, tmp_path / "copy.db", replace=False).paid_in_usdc == FUNDS


async def test_what_was_added_to_a_server_that_is_not_accepted_yet_is_shown(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await ordered(world, wallet)
        held = (await balance(world, wallet))["reserved"]
        await add(world, wallet, server_id, "0.25")
        has = await balance(world, wallet)
        assert (has["balance"], has["reserved"]) == (FUNDS - READ, held + usdc("0.25"))
        assert (await show(world, wallet, server_id))["deposit_remaining"] == "0.25"


async def test_a_deposit_that_is_added_before_the_provider_accepts_is_told(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await ordered(world, wallet)
        await add(world, wallet, server_id, "0.25")
        (funded,) = await told(world, server_id, "deposit.funded")
        assert (funded["deposit_remaining"], funded["expires_at"]) == ("0.25", None), (
            "when it ends is not known"
        )
        await drive(world)
        await add(world, wallet, server_id, "0.50")
        _, later = await told(world, server_id, "deposit.funded")
        assert later["expires_at"] is not None


# --- a call that is repeated when it is not for sale any more -----------------------------------------------------


class Dwindled(Recorder):
    """A provider that sells no `small` in Nuremberg any more, and installs no Debian."""

    async def catalog(self) -> Catalog:
        known = await self.inner.catalog()
        kept = tuple(o for o in known.offers if (o.type, o.location) != (ORDER["type"], ORDER["location"]))
        assert len(kept) < len(known.offers)
        images = tuple(image for image in known.images if image.name != DEBIAN["image"])
        assert len(images) < len(known.images)
        return msgspec.structs.replace(known, offers=kept, images=images)


async def raise_price(world: World) -> None:
    """From now on a new order costs more than `CHEAPEST` sets aside."""
    clerk = Clerk(world.parts.db, world.service.services.shop.prices, world.clock, world.parts.entropy)
    await clerk.carry_out(
        AnnouncePrice(type=ORDER["type"], location=ORDER["location"], daily_usdc=RAISED, effective_at=None)
    )


async def test_an_order_is_answered_again_after_the_price_rose(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        beside = await world.payment(wallet, "POST", "/v1/servers", BUY)
        first = await world.send_payment(payment, "POST", "/v1/servers", BUY, key="k")
        assert first.status_code == 201, first.text
        await raise_price(world)
        async with nothing_changes(world):
            for again in (payment, beside):
                answer = await world.send_payment(again, "POST", "/v1/servers", BUY, key="k")
                assert answer.status_code == 201, answer.text
                assert answer.headers["Idempotent-Replayed"] == "true"
                assert answer.json()["server"] == first.json()["server"]
            refusal(await world.send_payment(beside, "POST", "/v1/servers", BUY), 400, "invalid_request")
        assert (await machines(world), len(await paid_in(world, wallet))) == (1, 1)


async def test_an_order_is_answered_again_after_the_offer_has_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        first = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        signed = await world.sign(wallet, "POST", "/v1/servers", CHEAPEST | {"name": "second"}, key="k")
        assert (first.status_code, signed.status_code) == (201, 201)
        clock = world.clock
    async with open_world(tmp_path, clock=clock, around=Dwindled) as world:
        again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        assert (again.status_code, again.json()["server"]) == (201, first.json()["server"])
        again = await world.sign(wallet, "POST", "/v1/servers", CHEAPEST | {"name": "second"}, key="k")
        assert (again.status_code, again.json()["server"]) == (201, signed.json()["server"])
        assert await machines(world) == 2


async def test_a_rebuild_is_answered_again_after_its_image_has_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        rebuild = f"/v1/servers/{await rent(world, wallet)}/rebuild"
        first = await world.sign(wallet, "POST", rebuild, DEBIAN, key="k")
        assert first.status_code == 200, first.text
        await drive(world)
        clock = world.clock
    async with open_world(tmp_path, clock=clock, around=Dwindled) as world:
        again = await world.sign(wallet, "POST", rebuild, DEBIAN, key="k")
        assert (again.status_code, again.json()["action"]["id"]) == (200, first.json()["action"]["id"])
        async with nothing_changes(world):
            refusal(await world.sign(wallet, "POST", rebuild, DEBIAN, key="new"), 400, "invalid_request")


async def test_an_order_that_was_never_answered_is_answered_after_the_price_rose(tmp_path: Path) -> None:
    """The call died while it waited for the provider; nobody has its claim any more."""
    async with open_world(tmp_path, first_answer_s=30) as world:
        wallet = await world.wallet()
        gate = Barrier()
        world.cloud_faults.plan("create", Delay(gate=gate))
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        asking = asyncio.create_task(world.send_payment(payment, "POST", "/v1/servers", BUY))
        await gate.reached.wait()
        asking.cancel()
        await asyncio.wait({asking})
        gate.set()
        await world.service.operator.idle()
        await raise_price(world)
        world.clock.advance(CLAIM_S + 1)
        again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        assert again.status_code == 201, again.text
        assert again.json()["server"]["hetzner_id"] is not None
        assert (await machines(world), len(await paid_in(world, wallet))) == (1, 1)
        await world.check_books()


async def test_a_payment_that_was_on_its_way_when_the_price_rose_becomes_credit(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        world.chain_faults.lose_answer = 1
        pending = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        refusal(pending, 503, "settlement_pending")
        await raise_price(world)
        for _ in range(2):
            again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
            details = {"minimum_deposit": "0.20", "credited": "1.01"}
            assert refusal(again, 400, "invalid_request")["details"] == details
        assert await world.available(wallet.address) == usdc("1.01")
        assert len(await paid_in(world, wallet)) == 1
        await world.check_books()


async def test_what_is_not_for_sale_is_refused_before_money_is_asked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        token = await session(world, wallet)
        await raise_price(world)
        async with nothing_changes(world):
            refusal(await world.ask("POST", "/v1/servers", BUY), 400, "invalid_request")
            reader = await world.ask("POST", "/v1/servers", BUY, Authorization=f"Bearer {token}")
            refusal(reader, 400, "invalid_request")
            paid = await world.send_payment(payment, "POST", "/v1/servers", BUY, key="k")
            assert refusal(paid, 400, "invalid_request")["details"] == {"minimum_deposit": "0.20"}
            refusal(await world.sign(wallet, "POST", "/v1/servers", CHEAPEST), 400, "invalid_request")


# --- a machine that its provider speaks of ------------------------------------------------------------------------


async def test_a_machine_that_nobody_here_deleted_is_not_being_destroyed_by_nobody(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        world.clock.advance(1)
        await world.cloud.delete(ref)
        await world.tick("reconcile")
        seen = await show(world, wallet, server_id)
        assert (seen["status"], seen["reason"]) == ("unknown", None)
        assert await told(world, server_id, "server.destroying") == []
        await world.run_for(900, step_s=60)
        gone = await world.server(server_id)
        assert (gone.status, gone.reason) == ("destroyed", "vanished")
        await world.check_books()


async def test_a_rebuild_that_was_forgotten_and_not_done_is_not_taken_for_done(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        before = await world.available(wallet.address)
        world.cloud_faults.plan("act", Breakdown())
        asked = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", DEBIAN)
        assert asked.status_code == 200, asked.text
        action_id = asked.json()["action"]["id"]
        (running,) = await world.rows("SELECT handle FROM operation WHERE id = :id", id=action_id)
        await world.cloud.forget(running["handle"])
        await drive(world, limit_s=2_000, step_s=5)
        ended = await action(world, action_id)
        assert (ended["status"], ended["error"]["code"]) == ("error", "provider_failed")
        machine = await world.cloud.find((await world.server(server_id)).id)
        assert machine is not None
        assert (await world.server(server_id)).image == machine.image == ORDER["image"]
        assert await told(world, server_id, "server.rebuilt") == []
        assert await world.available(wallet.address) == before


# --- what a caller is told ----------------------------------------------------------------------------------------


async def test_a_provider_that_failed_says_when_to_come_again(tmp_path: Path) -> None:
    """The caller still waits when it turns out that nobody can tell whether the same image was installed again."""
    async with open_world(tmp_path, first_answer_s=30) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        world.cloud_faults.plan("act", LostRequest())
        asking = world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": ORDER["image"]})
        error = refusal(await while_time_passes(world, asking), 503, "provider_failed")
        assert error["retry_after"] == 30


@pytest.mark.parametrize("body", [{"name": "web"}, {"auto_renew": True}, {"name": "web", "auto_renew": True}])
async def test_a_change_that_changes_nothing_is_no_news(tmp_path: Path, body: dict[str, Any]) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, name="web", auto_renew=True)
        same = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", body)
        assert (same.status_code, same.json()["server"]["name"]) == (200, "web")
        assert await told(world, server_id, "server.updated") == []
        renamed = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", body | {"name": "other"})
        assert renamed.status_code == 200
        assert [one["name"] for one in await told(world, server_id, "server.updated")] == ["other"]


async def test_the_start_of_what_runs_tells_its_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        started = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/start")
        assert started.json()["action"]["status"] == "success", started.text
        ends = await told(world, server_id, "operation.succeeded")
        assert (ends[-1]["action"], ends[-1]["command"]) == (started.json()["action"]["id"], "start_server")
        assert len(ends) == 2
