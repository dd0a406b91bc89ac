"""Stock clients, unchanged, sign in: for a free route, a priced read, a session. What they cannot sign they pay."""

import base64
import json
from typing import Any, Final

import httpx
import pytest
from spawn_schemas.sign_in import SIGN_IN_WITH_X
from x402.extensions.sign_in_with_x import create_siwx_payload, encode_siwx_header

from spawn.payments.timestamps import format_timestamp
from tests.interop.clients import BUYERS, TIMEOUT_S, Opener, Reply, open_httpx
from tests.interop.service import RunningService
from tests.interop.sign_in_clients import PENNILESS, SIGNERS
from tests.interop.story import public_key
from tests.wallets import Wallet

FREE: Final = ("/v1/balance", "/v1/balance/transactions")
PRICED_READS: Final = ("/v1/servers", "/v1/ssh-keys")
FEE: Final = 1_000
LAPTOP: Final = {"name": "laptop", "public_key": public_key()}


def numbered(base: int, name: str) -> Wallet:
    """A wallet of its own for each client."""
    return Wallet.numbered(base + list(SIGNERS).index(name))


async def call(
    service: RunningService, opener: Opener, wallet: Wallet, method: str, path: str, **options: Any
) -> Reply:
    async with opener(service.url, wallet, None) as client:
        return await client.call(method, path, **options)


async def pay_in(service: RunningService, wallet: Wallet) -> None:
    """A dollar in the balance."""
    await service.mint(wallet, "2.00")
    assert (await call(service, open_httpx, wallet, "POST", "/v1/balance/deposit")).status == 200


async def send(service: RunningService, method: str, path: str, **headers: str) -> httpx.Response:
    """One request and no more, whatever the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as http:
        return await http.request(method, path, headers=named)


async def challenge(service: RunningService, method: str, path: str, **headers: str) -> dict[str, Any]:
    """The PAYMENT-REQUIRED of a 402."""
    answer = await send(service, method, path, **headers)
    assert answer.status_code == 402, answer.text
    required: dict[str, Any] = json.loads(base64.b64decode(answer.headers["PAYMENT-REQUIRED"]))
    return required


async def signed(service: RunningService, wallet: Wallet, extension: dict[str, Any], **changes: str) -> str:
    """What the Python SDK answers to a challenge."""
    info = extension["info"] | extension["supportedChains"][0] | changes
    return encode_siwx_header(await create_siwx_payload(info, wallet.account, info["uri"]))


async def open_session(service: RunningService, wallet: Wallet) -> str:
    opened = await call(service, PENNILESS["x402[extensions]"], wallet, "POST", "/v1/sessions")
    assert opened.status == 201, opened.body
    return str(opened.body["session"]["token"])


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_free_route_is_signed_for_and_not_paid(service: RunningService, name: str) -> None:
    wallet = numbered(600, name)
    await service.mint(wallet, "1.00")
    before = await service.mark()
    for path in FREE:
        reply = await call(service, SIGNERS[name], wallet, "GET", path)
        assert (reply.status, reply.receipt) == (200, None), reply.body
    assert (await service.moved(wallet.address, before)).on_chain == ()


@pytest.mark.parametrize("name", BUYERS)
async def test_a_client_that_cannot_sign_pays_and_keeps_the_money(service: RunningService, name: str) -> None:
    wallet = Wallet.numbered(610 + list(BUYERS).index(name))
    await service.mint(wallet, "1.00")
    reply = await call(service, BUYERS[name].open, wallet, "GET", "/v1/balance")
    assert reply.receipt is not None
    assert reply.body["available"] == "0.001"


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_priced_read_is_paid_from_the_balance(service: RunningService, name: str) -> None:
    wallet = numbered(620, name)
    await pay_in(service, wallet)
    before = await service.mark()
    for path in PRICED_READS:
        reply = await call(service, SIGNERS[name], wallet, "GET", path)
        assert (reply.status, reply.receipt) == (200, None), reply.body
    moved = await service.moved(wallet.address, before)
    assert moved.on_chain == ()
    assert moved.fee_usdc == FEE * len(PRICED_READS)


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_priced_read_beyond_the_balance_is_paid_by_x402(service: RunningService, name: str) -> None:
    wallet = numbered(630, name)
    await service.mint(wallet, "1.00")
    reply = await call(service, SIGNERS[name], wallet, "GET", "/v1/servers")
    assert reply.status == 200, reply.body
    assert reply.receipt is not None
    assert reply.receipt.amount == str(FEE)


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_write_is_not_signed_for(service: RunningService, name: str) -> None:
    wallet = numbered(640, name)
    await pay_in(service, wallet)
    reply = await call(service, SIGNERS[name], wallet, "POST", "/v1/ssh-keys", body=LAPTOP)
    assert reply.status == 201, reply.body
    assert reply.receipt is not None
    required = await challenge(service, "POST", "/v1/ssh-keys")
    assert SIGN_IN_WITH_X not in required["extensions"]


@pytest.mark.parametrize("name", PENNILESS)
async def test_a_session_reads_what_its_wallet_could(service: RunningService, name: str) -> None:
    wallet = numbered(650, name)
    await pay_in(service, wallet)
    opened = await call(service, PENNILESS[name], wallet, "POST", "/v1/sessions")
    assert opened.status == 201, opened.body
    session = opened.body["session"]
    assert (session["wallet"], session["expires_in"]) == (wallet.address, 900)
    before = await service.mark()
    for path in (*FREE, *PRICED_READS, *PRICED_READS):
        read = await send(service, "GET", path, Authorization=f"Bearer {session['token']}")
        assert read.status_code == 200, read.text
        assert "no-store" in read.headers["Cache-Control"]
    moved = await service.moved(wallet.address, before)
    assert moved.on_chain == ()
    assert moved.fee_usdc == FEE * len(PRICED_READS) * 2


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_session_rides_along_in_a_stock_client(service: RunningService, name: str) -> None:
    """The bearer answers at once: no challenge, so nothing to sign or to pay."""
    wallet = numbered(660, name)
    await pay_in(service, wallet)
    headers = {"Authorization": f"Bearer {await open_session(service, wallet)}"}
    before = await service.mark()
    reply = await call(service, SIGNERS[name], wallet, "GET", "/v1/servers", headers=headers)
    assert (reply.status, reply.receipt) == (200, None), reply.body
    assert (await service.moved(wallet.address, before)).on_chain == ()


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/ssh-keys"), ("POST", "/v1/sessions")])
async def test_a_session_does_nothing_but_read(service: RunningService, method: str, path: str) -> None:
    wallet = Wallet.numbered(670)
    token = await open_session(service, wallet)
    refused = await send(service, method, path, Authorization=f"Bearer {token}")
    assert refused.status_code in {401, 402}, refused.text


async def test_a_session_that_is_none_is_refused(service: RunningService) -> None:
    token = await open_session(service, Wallet.numbered(671))
    other = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    refused = await send(service, "GET", "/v1/balance", Authorization=f"Bearer {other}")
    assert refused.status_code == 401
    assert refused.json()["error"]["details"]["reason"] == "session_invalid"


@pytest.mark.parametrize("name", BUYERS)
async def test_a_client_that_cannot_sign_opens_a_session_with_money_it_keeps(
    service: RunningService, name: str
) -> None:
    wallet = Wallet.numbered(680 + list(BUYERS).index(name))
    await service.mint(wallet, "1.00")
    opened = await call(service, BUYERS[name].open, wallet, "POST", "/v1/sessions")
    assert opened.status == 201, opened.body
    assert opened.receipt is not None
    token = opened.body["session"]["token"]
    read = await send(service, "GET", "/v1/balance", Authorization=f"Bearer {token}")
    assert read.json()["available"] == "0.001"


@pytest.mark.parametrize("minted", [False, True], ids=["issued by us", "minted by the client"])
async def test_each_nonce_counts_once(service: RunningService, minted: bool) -> None:
    wallet = Wallet.numbered(690 + minted)
    required = await challenge(service, "GET", "/v1/balance")
    changes = {"nonce": "kQ7Zr2mT9xWb4LpN1"} if minted else {}
    header = await signed(service, wallet, required["extensions"][SIGN_IN_WITH_X], **changes)
    first = await send(service, "GET", "/v1/balance", sign_in_with_x=header)
    assert first.status_code == 200, first.text
    elsewhere = await send(service, "GET", "/v1/balance/transactions", sign_in_with_x=header)
    assert elsewhere.status_code in {401, 402, 409}, elsewhere.text


@pytest.mark.parametrize("path", FREE)
async def test_a_caller_that_can_sign_is_asked_for_no_money(service: RunningService, path: str) -> None:
    """A stale sign-in on a free route: a text to sign afresh, and no offer that a client might take instead."""
    required = await challenge(service, "GET", path)
    assert len(required["accepts"]) == 1
    extension = required["extensions"][SIGN_IN_WITH_X]
    stale = await signed(service, Wallet.numbered(692), extension, issuedAt=format_timestamp(0))
    again = await challenge(service, "GET", path, sign_in_with_x=stale)
    assert again["accepts"] == []
    assert again["extensions"][SIGN_IN_WITH_X]["info"]["nonce"] != extension["info"]["nonce"]


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_client_that_brings_a_stale_sign_in_signs_afresh(service: RunningService, name: str) -> None:
    wallet = numbered(700, name)
    await service.mint(wallet, "1.00")
    extension = (await challenge(service, "GET", "/v1/balance"))["extensions"][SIGN_IN_WITH_X]
    headers = {SIGN_IN_WITH_X: await signed(service, wallet, extension, issuedAt=format_timestamp(0))}
    reply = await call(service, SIGNERS[name], wallet, "GET", "/v1/balance", headers=headers)
    assert (reply.status, reply.receipt) == (200, None), reply.body


async def test_a_sign_in_that_is_false_is_refused_and_asks_for_no_money(service: RunningService) -> None:
    """A stock client takes a second 402 for an order to pay what the first one asked."""
    extension = (await challenge(service, "GET", "/v1/balance"))["extensions"][SIGN_IN_WITH_X]
    header = await signed(
        service, Wallet.numbered(693), extension, domain="evil.example", uri="https://evil.example"
    )
    refused = await send(service, "GET", "/v1/balance", sign_in_with_x=header)
    assert refused.status_code == 401, refused.text
    assert refused.json()["error"]["details"]["reason"] == "domain"
    assert "PAYMENT-REQUIRED" not in refused.headers
