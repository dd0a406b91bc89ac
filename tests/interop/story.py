"""A server's whole life, bought route by route by any client, with every price compared with what moved.

Invariant: a call that is not bought through `Shopper.buy` is not counted as bought, and `buy` lets none pass whose
advertised price, price list, token transfer and ledger do not agree.
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spawn_schemas.money import parse_usdc

from spawn.payments.curve import checksummed
from spawn.payments.version1 import NETWORKS
from tests.interop.clients import TIMEOUT_S, Client, Receipt, Reply
from tests.interop.service import Movements, RunningService
from tests.wallets import Wallet

Route = tuple[str, str]

SESSIONS: Final[Route] = ("POST", "/v1/sessions")
ON_LENT_MACHINES: Final[frozenset[Route]] = frozenset(
    {
        ("GET", "/v1/servers/{server_id}/logs"),
        ("POST", "/v1/servers/{server_id}/exec"),
        ("GET", "/v1/commands/{command_id}"),
    }
)
"""What other servers do not have, so that no life here has it: `tests/e2e/test_lent_machine.py` buys these."""

ORDER: Final[dict[str, Any]] = {
    "type": "small",
    "image": "ubuntu-24.04",
    "location": "nbg1",
    "deposit": "0.40",
}
FUND: Final = "0.90"
"""With the fee below the $1 that stock clients pay without asking; enough for a deposit, a resize and a rest."""
RECEIVER: Final = "http://127.0.0.1:9/nobody"
"""Where nobody listens (RFC 863's port); `spawn dev` lets webhooks reach this machine."""
IDENTIFYING: Final = "0.001"
"""What it costs to prove who asks on a free route: all of it is credited."""


class Shopper:
    """One wallet with one client.

    `pays_by_x402` is the version by which it pays; None signs for its balance. One that `signs_in` pays no read.
    """

    def __init__(
        self,
        service: RunningService,
        http: httpx.AsyncClient,
        client: Client,
        wallet: Wallet,
        *,
        pays_by_x402: Literal[1, 2] | None,
        signs_in: bool,
    ) -> None:
        self.pays_by_x402 = pays_by_x402
        self._signs_in = signs_in
        self.bought: set[Route] = set()
        self._service = service
        self._http = http
        self._client = client
        self._wallet = wallet

    async def buy(
        self,
        method: str,
        template: str,
        body: object = None,
        *,
        query: str = "",
        credited: str = "0",
        **ids: str,
    ) -> Any:
        """Buy one call and see it through to the end of its action; answers the body.

        `credited` is what the price holds beyond the fee, in USDC: it stays the wallet's.
        """
        path = template.format(**ids) + query
        advertised = await self._advertised(method, path, body)
        fee = await self._listed_fee(method, template)
        assert advertised == fee + parse_usdc(credited)
        before = await self._service.mark()
        reply = await self._client.call(method, path, body)
        assert reply.status in {200, 201}, reply.body
        await self._follow(reply.body)
        moved = await self._service.moved(self._wallet.address, before)
        assert moved.fee_usdc == fee == parse_usdc(reply.headers["spawn-fee"])
        self._check_payment(reply, moved, 0 if self._proves((method, template)) else advertised)
        self.bought.add((method, template))
        return reply.body

    async def read(self, token: str, template: str, **ids: str) -> Any:
        """GET with a session's bearer: nothing is asked for, and a fee comes from the balance; answers the body."""
        fee = await self._listed_fee("GET", template)
        before = await self._service.mark()
        bearer = {"Authorization": f"Bearer {token}"}
        reply = await self._client.call("GET", template.format(**ids), headers=bearer)
        assert reply.status == 200, reply.body
        moved = await self._service.moved(self._wallet.address, before)
        assert moved.fee_usdc == fee == parse_usdc(reply.headers["spawn-fee"])
        self._check_payment(reply, moved, 0)
        return reply.body

    def _proves(self, route: Route) -> bool:
        """Whether this caller says here who it is, and does not pay."""
        return self.pays_by_x402 is None or (self._signs_in and (route[0] == "GET" or route == SESSIONS))

    def _check_payment(self, reply: Reply, moved: Movements, price: int) -> None:
        """One transfer of exactly the price, credited and acknowledged; or, where nothing is due, none at all."""
        if price == 0:
            assert (moved.on_chain, moved.paid_in, reply.receipt) == ((), (), None)
            return
        (transfer,) = moved.on_chain
        assert transfer.amount == price
        assert transfer.recipient == self._service.settings.pay_to
        assert moved.paid_in == (price,)
        assert reply.receipt is not None
        assert reply.receipt.success
        assert reply.receipt.transaction == transfer.tx_hash
        assert reply.receipt.payer == checksummed(self._wallet.address)
        self._check_dialect(reply, reply.receipt, price)

    def _check_dialect(self, reply: Reply, receipt: Receipt, price: int) -> None:
        """The receipt is in the words of the version that paid, and in no other."""
        in_v1 = self.pays_by_x402 == 1
        assert ("x-payment-response" in reply.headers, "payment-response" in reply.headers) == (
            in_v1,
            not in_v1,
        )
        network = self._service.settings.x402_network
        assert receipt.network == (NETWORKS[network] if in_v1 else network)
        assert receipt.amount == (None if in_v1 else str(price))

    async def _advertised(self, method: str, path: str, body: object) -> int:
        """What the 402 asks a caller who proves nothing, in micro-USDC: the same in both versions."""
        unpaid = await self._http.request(method, path, json=body)
        assert unpaid.status_code == 402, unpaid.text
        (offer,) = json.loads(base64.b64decode(unpaid.headers["PAYMENT-REQUIRED"]))["accepts"]
        (offer_v1,) = unpaid.json()["accepts"]
        assert offer["amount"] == offer_v1["maxAmountRequired"]
        return int(offer["amount"])

    async def _listed_fee(self, method: str, template: str) -> int:
        """What the price list says, in micro-USDC."""
        catalog = (await self._http.get("/v1/catalog")).json()
        (fee,) = [
            line["fee"] for line in catalog["fees"] if (line["method"], line["path"]) == (method, template)
        ]
        return parse_usdc(fee)

    async def _follow(self, body: Any) -> None:
        """Wait, for nothing, until the action that the call started has succeeded."""
        if "action" in body:
            shown = await self._http.get(f"/v1/actions/{body['action']['id']}", params={"wait": 30})
            action = shown.json()["action"]
            assert action["status"] == "success", action


@asynccontextmanager
async def shopping(
    service: RunningService,
    client: Client,
    wallet: Wallet,
    *,
    pays_by_x402: Literal[1, 2] | None,
    signs_in: bool = False,
) -> AsyncIterator[Shopper]:
    """A shopper with a free connection of its own, to ask prices and follow actions."""
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as http:
        yield Shopper(service, http, client, wallet, pays_by_x402=pays_by_x402, signs_in=signs_in)


def public_key() -> str:
    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


async def live_a_life(shopper: Shopper) -> None:
    """Buy every priced route that the client can, in an order in which each makes sense."""
    order, fund = ORDER | {"name": "life"}, "0"
    if shopper.pays_by_x402 is not None:
        order, fund = order | {"fund": FUND}, FUND
    key = (await shopper.buy("POST", "/v1/ssh-keys", {"name": "laptop", "public_key": public_key()}))[
        "ssh_key"
    ]
    assert (await shopper.buy("GET", "/v1/ssh-keys"))["ssh_keys"] == [key]
    created = await shopper.buy("POST", "/v1/servers", order | {"ssh_keys": [key["id"]]}, credited=fund)
    assert created["deposit_charged"] == "0.40"
    server_id = created["server"]["id"]
    listed = await shopper.buy("GET", "/v1/servers", query="?status=running&limit=5")
    assert [server["id"] for server in listed["servers"]] == [server_id]
    await _change_it(shopper, server_id)
    await _switch_it(shopper, server_id)
    await _account_for_it(shopper)
    await _be_told(shopper, server_id)
    await _read_by_session(shopper, server_id)
    assert await shopper.buy("DELETE", "/v1/ssh-keys/{key_id}", key_id=key["id"]) == {"status": "deleted"}
    gone = await shopper.buy("DELETE", "/v1/servers/{server_id}", server_id=server_id)
    assert gone["status"] == "deleted"
    assert parse_usdc(gone["deposit_refunded"]) > 0


async def _change_it(shopper: Shopper, server_id: str) -> None:
    one = "/v1/servers/{server_id}"
    running = (await shopper.buy("GET", one, query="?wait=30", server_id=server_id))["server"]
    assert running["status"] == "running"
    assert running["public_net"]["ipv4"]
    renamed = await shopper.buy("PATCH", one, {"name": "renamed"}, server_id=server_id)
    assert renamed["server"]["name"] == "renamed"
    funded = await shopper.buy("POST", f"{one}/deposit", {"amount": "0.05"}, server_id=server_id)
    assert parse_usdc(funded["server"]["deposit_remaining"]) > parse_usdc("0.40")


async def _switch_it(shopper: Shopper, server_id: str) -> None:
    one = "/v1/servers/{server_id}"
    for verb in ("stop", "start", "poweroff", "start", "reboot"):
        done = await shopper.buy("POST", f"{one}/{verb}", server_id=server_id)
        assert done["action"]["command"] == f"{verb}_server"
    rebuilt = await shopper.buy("POST", f"{one}/rebuild", {"image": "debian-12"}, server_id=server_id)
    assert rebuilt["action"]["command"] == "rebuild_server"
    resized = await shopper.buy("POST", f"{one}/resize", {"type": "medium"}, server_id=server_id)
    assert resized["new_type"] == "medium"
    shown = (await shopper.buy("GET", one, server_id=server_id))["server"]
    assert (shown["type"], shown["image"]) == ("medium", "debian-12")


async def _account_for_it(shopper: Shopper) -> None:
    balance = await shopper.buy("GET", "/v1/balance", credited=IDENTIFYING)
    parts = parse_usdc(balance["available"]) + parse_usdc(balance["reserved"])
    assert parse_usdc(balance["balance"]) == parts
    statement = await shopper.buy("GET", "/v1/balance/transactions", query="?limit=5", credited=IDENTIFYING)
    assert len(statement["transactions"]) == 5
    waiting = await shopper.buy("GET", "/v1/suspense", credited=IDENTIFYING)
    assert waiting == {"arrivals": [], "total": "0.00"}
    claimed = await shopper.buy("POST", "/v1/suspense/claim", credited=IDENTIFYING)
    assert (claimed["claimed"], claimed["left"]) == ("0.00", "0.00")
    if shopper.pays_by_x402 is not None:
        paid_in = await shopper.buy("POST", "/v1/balance/deposit", {"amount": "0.50"}, credited="0.50")
        assert paid_in["deposited"] == "0.50"


async def _be_told(shopper: Shopper, server_id: str) -> None:
    of_server = f"?resource={server_id}&limit=100"
    events = (await shopper.buy("GET", "/v1/events", query=of_server, credited=IDENTIFYING))["events"]
    assert {"server.created", "server.running", "server.rebuilt", "server.resized"} <= {
        event["type"] for event in events
    }
    wanted = {"url": RECEIVER, "types": ["server.*"]}
    webhook = (await shopper.buy("POST", "/v1/webhooks", wanted))["webhook"]
    one, its = "/v1/webhooks/{webhook_id}", {"webhook_id": webhook["id"]}
    assert (await shopper.buy("GET", "/v1/webhooks"))["webhooks"] == [webhook]
    assert (await shopper.buy("GET", one, **its))["webhook"]["url"] == RECEIVER
    changed = (await shopper.buy("PATCH", one, {"description": "mine"}, **its))["webhook"]
    assert changed["description"] == "mine"
    assert (await shopper.buy("POST", f"{one}/secret", **its))["secret"].startswith("whsec_")
    tested = await shopper.buy("POST", f"{one}/test", **its)
    sent = (await shopper.buy("GET", f"{one}/deliveries", **its))["deliveries"]
    assert [delivery["event"] for delivery in sent] == [tested["event"]]
    assert await shopper.buy("DELETE", one, **its) == {"status": "deleted"}


async def _read_by_session(shopper: Shopper, server_id: str) -> None:
    """Every route that is read, once more, with a bearer; a client that signs by itself would sign these too."""
    opened = await shopper.buy(*SESSIONS, credited=IDENTIFYING)
    if shopper.pays_by_x402 is None:
        return
    token = opened["session"]["token"]
    assert len((await shopper.read(token, "/v1/servers"))["servers"]) == 1
    shown = await shopper.read(token, "/v1/servers/{server_id}", server_id=server_id)
    assert shown["server"]["id"] == server_id
    assert len((await shopper.read(token, "/v1/ssh-keys"))["ssh_keys"]) == 1
    assert parse_usdc((await shopper.read(token, "/v1/balance"))["available"]) > 0
    assert (await shopper.read(token, "/v1/balance/transactions"))["transactions"]
    assert (await shopper.read(token, "/v1/suspense"))["arrivals"] == []
    assert (await shopper.read(token, "/v1/events"))["events"]
    assert (await shopper.read(token, "/v1/webhooks"))["webhooks"] == []
