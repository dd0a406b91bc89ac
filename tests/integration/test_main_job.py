"""The main job, in process: rent by one payment, watch it boot and burn, act upon it, destroy it, be refunded."""

from pathlib import Path

from tests.harness import ORDER, open_world


async def test_a_server_is_bought_in_one_call_and_refunded(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=30.0) as world:
        wallet = await world.wallet("10.00")
        order = ORDER | {"deposit": "0.50", "fund": "0.60"}
        bought = await world.pay(wallet, "POST", "/v1/servers", order, key="one")
        assert bought.status_code == 201, bought.text
        body = bought.json()
        assert body["server"]["status"] == "initializing"
        assert body["server"]["public_net"] == {"ipv4": None, "ipv6": None}
        assert body["server"]["hetzner_id"] is not None
        assert body["deposit_charged"] == "0.50"
        assert body["deposit_remaining"] == "0.10"
        server_id = body["server"]["id"]

        await world.run_for(60)
        shown = (await world.sign(wallet, "GET", f"/v1/servers/{server_id}")).json()["server"]
        assert shown["status"] == "running"
        assert shown["public_net"]["ipv4"] is not None

        balance = (await world.sign(wallet, "GET", "/v1/balance")).json()
        assert float(balance["reserved"]) < 0.5

        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.json()["status"] == "deleted"
        await world.run_for(30)
        assert await world.cloud.find(server_id) is None
        assert (await world.server(server_id)).status == "destroyed"
        await world.check_books()
