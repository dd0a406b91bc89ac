"""A settled payment can be read on chain by anybody: its answer is for who sent it."""

import json
from base64 import b64decode
from pathlib import Path

import httpx

from tests.harness import BASE_URL, World, open_world
from tests.wallets import Wallet, encode

LIST = ("GET", "/v1/servers")


async def bought(world: World, wallet: Wallet) -> str:
    """The header of a payment that has bought a list of servers."""
    header = await world.payment(wallet, *LIST)
    assert (await world.send_payment(header, *LIST)).status_code == 200
    return header


def as_read_on_chain(header: str) -> dict[str, object]:
    """What a stranger can make of a payment: everything but what only travelled between its sender and us."""
    payload: dict[str, object] = json.loads(b64decode(header))
    del payload["extensions"]
    return payload


async def test_the_very_same_header_gets_its_answer_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        header = await bought(world, wallet)
        again = await world.send_payment(header, *LIST)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")


async def test_a_challenge_has_a_nonce_for_every_route_and_stock_clients_send_it_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for method, path in (LIST, ("POST", "/v1/balance/deposit")):
            nonces = set()
            for _ in range(2):
                challenge = await world.ask(method, path)
                read = json.loads(b64decode(challenge.headers["PAYMENT-REQUIRED"]))
                extension = read["extensions"].get("sign-in-with-x") or read["extensions"]["challenge"]
                nonces.add(extension["info"]["nonce"])
            assert len(nonces) == 2


async def test_a_stranger_who_read_the_payment_on_chain_gets_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        header = await bought(world, wallet)
        stolen = await world.send_payment(encode(as_read_on_chain(header)), *LIST)
        assert stolen.status_code == 409
        assert stolen.json()["error"]["code"] == "idempotency_conflict"
        assert "servers" not in stolen.text


async def test_version_1_says_nothing_secret_so_its_answer_stays_at_its_address(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payload = json.loads(b64decode(await world.payment(wallet, *LIST)))
        spoken = encode(
            {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload["payload"]}
        )
        headers = {"X-PAYMENT": spoken}
        assert (await world.http.get(LIST[1], headers=headers)).status_code == 200
        assert (await world.http.get(LIST[1], headers=headers)).headers["Idempotent-Replayed"] == "true"
        elsewhere = httpx.ASGITransport(app=world.service.app, client=("203.0.113.9", 1))  # type: ignore[arg-type]  # ours is narrower
        async with httpx.AsyncClient(transport=elsewhere, base_url=BASE_URL) as stranger:
            assert (await stranger.get(LIST[1], headers=headers)).status_code == 409
