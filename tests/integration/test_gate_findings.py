"""What a review of the gate found, each as the scenario that showed it."""

from pathlib import Path

import pytest

from tests.harness import BASE_URL, ORDER, World, open_world
from tests.integration.raw_connections import on_uvloop, serving
from tests.unit import bad_sign_ins
from tests.wallets import Wallet

FEW = 5
KEY = {"Idempotency-Key": "k-1"}


def sign_in(world: World, wallet: Wallet, nonce: str) -> dict[str, str]:
    scene = bad_sign_ins.Scene(
        domain=world.settings.authority,
        origin=BASE_URL,
        chain_id=world.settings.chain_id,
        now=world.clock.now_s(),
    )
    header = bad_sign_ins.sign(scene, by=wallet.account, address=wallet.account.address, nonce=nonce)
    return {"SIGN-IN-WITH-X": header}


@pytest.mark.parametrize("days", [0, 30])
async def test_nobody_uses_up_a_wallets_turns_with_its_public_payments(tmp_path: Path, days: int) -> None:
    """A payment that settled can be read on chain by anybody, and sent here again and again."""
    async with open_world(tmp_path, rate_wallet_per_minute=FEW) as world:
        victim = await world.customer("5.00")
        public = await world.payment(victim, "GET", "/v1/servers")
        assert (await world.send_payment(public, "GET", "/v1/servers")).status_code == 200
        world.clock.advance(days * 86_400)
        for _ in range(2 * FEW):
            assert (await world.send_payment(public, "GET", "/v1/balance")).status_code in {402, 409}
        mine = await world.sign(victim, "GET", "/v1/servers")
        assert mine.status_code == 200, mine.text


async def test_a_sign_in_that_comes_with_a_known_key_is_spent(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        first, second = (sign_in(world, wallet, nonce * 17) for nonce in "ab")
        assert (await world.http.get("/v1/balance", headers=first | KEY)).status_code == 200
        again = await world.http.get("/v1/balance", headers=second | KEY)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
        assert (await world.http.get("/v1/balance", headers=second | KEY)).status_code == 401
        assert (await world.http.post("/v1/sessions", headers=second)).status_code == 401


async def test_a_spent_sign_in_does_not_find_the_answer_of_a_key(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        spent = sign_in(world, wallet, "b" * 17)
        assert (await world.http.get("/v1/servers", headers=spent)).status_code == 200
        assert (await world.sign(wallet, "GET", "/v1/balance", key="k-1")).status_code == 200
        assert (await world.http.get("/v1/balance", headers=spent | KEY)).status_code == 401


@pytest.mark.parametrize("late_s", [5, 40 * 86_400])
async def test_a_paid_read_is_paid_before_what_is_owed(tmp_path: Path, late_s: int) -> None:
    """The money of the wallet's server has ended, and the burn was not posted yet."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        await world.rent(wallet, deposit="1.00", auto_renew=True)
        shown = await world.sign(wallet, "GET", "/v1/balance")
        world.clock.advance(int(shown.headers["Spawn-Runway"]) + late_s)
        read = await world.pay(wallet, "GET", "/v1/servers")
        assert read.status_code == 200, read.text
        await world.check_books()


@pytest.mark.parametrize("late_s", [5, 40 * 86_400])
async def test_an_order_that_old_debts_would_eat_settles_nothing(tmp_path: Path, late_s: int) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        await world.rent(wallet, deposit="1.00", auto_renew=True)
        shown = await world.sign(wallet, "GET", "/v1/balance")
        world.clock.advance(int(shown.headers["Spawn-Runway"]) + late_s)
        before = await world.chain.balance_of(wallet.address)
        order = ORDER | {"name": "second", "deposit": "1.00", "fund": "1.00"}
        refused = await world.pay(wallet, "POST", "/v1/servers", order)
        paid = before - await world.chain.balance_of(wallet.address)
        assert (refused.status_code, paid) in {(201, 1_010_000), (422, 0)}, refused.text
        await world.check_books()


async def test_wallets_without_money_count_against_their_address(tmp_path: Path) -> None:
    """A new key costs nothing, so a good signature of one is no better than none."""
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        statuses = [
            (await world.sign(Wallet.numbered(700 + n), "GET", "/v1/servers")).status_code
            for n in range(2 * FEW)
        ]
        assert statuses == [402] * FEW + [429] * FEW


@on_uvloop
async def test_a_script_of_another_site_reads_every_answer(tmp_path: Path) -> None:
    origin = b"Host: spawn.test\r\nOrigin: https://elsewhere.example\r\n"
    order = b'{"name":"web","type":"small","image":"ubuntu-24.04","location":"nbg1"}'
    asked = (
        b"GET /v1/servers HTTP/1.1\r\n%b\r\n" % origin,
        b"GET /v1/servers?limit=5 HTTP/1.1\r\n%b\r\n" % origin,
        b"POST /v1/servers HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (origin, len(order), order),
        b"GET /v1/nope HTTP/1.1\r\n%b\r\n" % origin,
        b"GET /v1/servers/ HTTP/1.1\r\n%b\r\n" % origin,
    )
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        for request in asked:
            answer = await served.ask(request)
            assert answer.headers["access-control-allow-origin"] == "*", request


@on_uvloop
async def test_a_refusal_does_not_wait_for_a_body_that_was_only_announced(tmp_path: Path) -> None:
    head = b"POST /v1/servers/ HTTP/1.1\r\nHost: spawn.test\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        assert (await served.ask(head)).status == 404
