"""What a review found in the code as it stood: one test each, named for the harm that was done."""

from pathlib import Path

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import Breakdown, LostAnswer, Refusal

from spawn.jobs.sweep import BATCH
from spawn.services.reservations import FORGET_S
from spawn.store.secrets import WrongKey
from tests.harness import ORDER, World, open_world
from tests.integration.server_steps import recording

COPY_ROW = """
INSERT INTO reservation SELECT id || :n, wallet, rail, NULL, fingerprint, state, fee, amount,
  payment, seal, valid_before, settlement, operation_id, answer, claim, claim_until, created_ms, keep_until
FROM reservation WHERE idempotency_key = 'k'
"""


async def test_a_rebuild_whose_answer_was_lost_never_wipes_the_disk_twice(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, first_answer_s=0.05, around=around) as world:
        wallet = await world.customer()
        server = await world.rent(wallet)
        world.cloud_faults.plan("act", LostAnswer())
        asked = await world.sign(
            wallet, "POST", f"/v1/servers/{server['id']}/rebuild", {"image": "debian-12"}
        )
        # Nobody looks until long after the machine came up again.
        world.clock.advance(300)
        await world.run_for(30)
        action = (await world.ask("GET", f"/v1/actions/{asked.json()['action']['id']}")).json()["action"]
        assert action["status"] == "success"
        assert (await world.server(server["id"])).image == "debian-12"
        assert recorders[0].changes.count("rebuild") == 1
        await world.check_books()


async def test_a_rebuild_with_the_same_image_is_not_repeated_on_a_guess(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, first_answer_s=0.05, around=around) as world:
        wallet = await world.customer()
        server = await world.rent(wallet)
        before = await world.available(wallet.address)
        world.cloud_faults.plan("act", LostAnswer())
        asked = await world.sign(
            wallet, "POST", f"/v1/servers/{server['id']}/rebuild", {"image": ORDER["image"]}
        )
        world.clock.advance(300)
        await world.run_for(10)
        action = (await world.ask("GET", f"/v1/actions/{asked.json()['action']['id']}")).json()["action"]
        assert action["status"] == "error"
        assert "nothing shows whether" in action["error"]["message"]
        assert recorders[0].changes.count("rebuild") == 1
        assert await world.available(wallet.address) == before


async def test_a_provider_that_refuses_to_be_asked_has_not_refused_the_order(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer()
        created = await world.sign(wallet, "POST", "/v1/servers", ORDER)
        for method in ("poll", "get"):
            world.cloud_faults.plan(method, Refusal(code=RefusedCode.INVALID))
        await world.run_for(90)
        server = await world.server(created.json()["server"]["id"])
        assert server.status == "running"
        assert await world.account(f"srv:{server.id}") > 0


async def handle_of(world: World, action_id: str) -> str:
    (row,) = await world.rows("SELECT handle FROM operation WHERE id = :id", id=action_id)
    return str(row["handle"])


async def test_a_forgotten_deletion_is_ordered_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer()
        server = await world.rent(wallet)
        world.cloud_faults.plan("delete", Breakdown())
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server['id']}")
        assert (await world.server(server["id"])).status == "destroying"
        await world.cloud.forget(await handle_of(world, gone.json()["action"]["id"]))
        await world.run_for(120)
        assert (await world.server(server["id"])).status == "destroyed"
        assert await world.cloud.find(server["id"]) is None


async def test_a_deletion_wins_over_money_that_ended_unnoticed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.70")
        created = await world.sign(
            wallet, "POST", "/v1/servers", ORDER | {"deposit": "0.15", "auto_renew": False}
        )
        await world.run_for(60)
        server_id = created.json()["server"]["id"]
        world.clock.advance(2 * 86_400)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200, gone.text
        assert (await world.server(server_id)).reason == "requested"
        paid = await world.rows("SELECT SUM(amount) AS usdc FROM transfer WHERE credit = 'rev:compute'")
        assert paid[0]["usdc"] == 150_000
        await world.run_for(60)
        assert (await world.server(server_id)).status == "destroyed"
        await world.check_books()


async def test_a_rebuild_never_hands_out_the_password_of_the_system_before(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.0) as world:
        wallet = await world.customer()
        created = await world.sign(wallet, "POST", "/v1/servers", ORDER)
        assert created.json()["root_password"] is None
        await world.run_for(60)
        server_id = created.json()["server"]["id"]
        rebuilt = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert rebuilt.json()["root_password"] is None
        await world.run_for(120)
        shown = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
        assert shown.json()["server"]["root_password"] is not None


async def test_penniless_signers_leave_nothing_for_long(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0.00")
        for _ in range(5):
            assert (await world.sign(wallet, "GET", "/v1/balance")).status_code == 200
        await world.tick("sweep")
        assert (await world.rows("SELECT COUNT(*) AS n FROM reservation"))[0]["n"] == 5
        world.clock.advance(60 + FORGET_S)
        await world.tick("sweep")
        assert (await world.rows("SELECT COUNT(*) AS n FROM reservation"))[0]["n"] == 0


async def test_a_sweep_goes_on_until_nothing_old_is_left(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0.00")
        await world.sign(wallet, "GET", "/v1/balance", key="k")
        copies = 2 * BATCH + 1
        await world.parts.db.write(lambda tx: [tx.execute(COPY_ROW, {"n": n}) for n in range(copies)])
        world.clock.advance(3 * 86_400)
        await world.tick("sweep")
        assert (await world.rows("SELECT COUNT(*) AS n FROM reservation"))[0]["n"] == 0


async def test_an_expired_key_is_new_even_when_the_sweep_is_late(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer()
        first = await world.sign(wallet, "GET", "/v1/ssh-keys", key="k")
        world.clock.advance(86_401)
        second = await world.sign(wallet, "GET", "/v1/servers", key="k")
        assert (first.status_code, second.status_code) == (200, 200)
        assert "Idempotent-Replayed" not in second.headers


async def test_a_database_sealed_with_another_key_is_refused_at_the_start(tmp_path: Path) -> None:
    async with open_world(tmp_path):
        pass
    with pytest.raises(WrongKey, match="sealed with another key"):
        async with open_world(tmp_path, secret_key="a5" * 32):
            pass


async def test_a_402_says_what_would_help_this_caller_here(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        stranger = await world.wallet("0.00")
        free = (await world.ask("GET", "/v1/balance")).json()
        assert "free" in free["message"]
        assert "sign the request with your wallet (RFC 9421, ERC-8128)" in free["next"]
        paying_in = (await world.ask("POST", "/v1/balance/deposit")).json()
        assert "or sign" not in paying_in["next"]
        broke = (await world.sign(stranger, "GET", "/v1/servers")).json()
        assert "POST /v1/balance/deposit" in broke["next"]


async def test_more_than_a_day_allows_is_refused_before_money_is_asked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        refused = await world.ask("POST", "/v1/servers", ORDER | {"fund": "100000000"})
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "deposit_limit"


async def test_a_tombstone_is_listed_when_its_state_is_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer()
        server = await world.rent(wallet)
        await world.sign(wallet, "DELETE", f"/v1/servers/{server['id']}")
        await world.run_for(60)
        assert (await world.sign(wallet, "GET", "/v1/servers")).json()["servers"] == []
        listed = (await world.sign(wallet, "GET", "/v1/servers?status=destroyed")).json()
        assert [s["id"] for s in listed["servers"]] == [server["id"]]
        assert listed["meta"]["total"] == 1


async def test_a_name_is_taken_in_any_case(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        await world.rent(wallet, name="web")
        taken = await world.sign(wallet, "POST", "/v1/servers", ORDER | {"name": "WEB"})
        assert taken.status_code == 409


async def test_a_wrong_method_is_told_the_right_ones(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        refused = await world.ask("PUT", "/v1/servers")
        assert refused.status_code == 405
        assert {"GET", "POST"} <= set(refused.headers["Allow"].replace(" ", "").split(","))
