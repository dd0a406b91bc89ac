"""The paid calls that are crashed, the client who makes them, and what must hold whatever happened.

Invariant: what is expected is computed here, from the price list and from when things happened; the service's own
figures are only compared with it.
"""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
from signing import SignedRequestAuth
from spawn_schemas.money import Usdc, parse_usdc

from spawn.domain.operations import OperationStatus
from spawn.domain.servers import Command, Server, Status
from tests import databases
from tests.e2e.facts import Facts
from tests.e2e.lives import House
from tests.harness import CHAIN_ID, ORDER
from tests.wallets import Wallet

DAY_S: Final = 86_400
DAILY_USDC: Final = {"small": 150_000, "medium": 220_000}
RESERVE_USDC: Final = 500_000
RENT: Final = ORDER | {"deposit": "0.50"}
PATIENCE: Final = 10 if databases.ALONE else 20
"""How often a client repeats a call that is answered with 503."""
LEAST_WAIT_S: Final = 0 if databases.ALONE else 20
"""What a dead process had claimed is free at once, or only after a while that no client need count in seconds."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One paid call on a prepared world. `price` is what an x402 payment for it carries; None: it is signed.

    `fee` is what the service keeps. In `path` stands `{server}` for the world's server.
    """

    name: str
    world: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    price: Usdc | None = None
    fee: Usdc
    key: str | None = None
    done: Callable[[Facts], bool]
    """Whether the world shows the effect."""
    truth: "Callable[[Answered], None]"
    """Raises AssertionError unless the answer is true."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer beside the world before the call and after it. Amounts are micro-USDC."""

    body: dict[str, Any]
    before: Facts
    after: Facts

    def usdc(self, field: str) -> int:
        text: str = self.body[field]
        return -parse_usdc(text[1:]) if text.startswith("-") else parse_usdc(text)

    @property
    def gained(self) -> int:
        """By how much the available balance has grown, payments included."""
        return self.after.available_usdc - self.before.available_usdc


@dataclass
class Client:
    """An agent that sends one call, and sends it again until it has a final answer."""

    wallet: Wallet
    scenario: Scenario
    house: House
    path: str
    payment: str | None

    def send(self) -> httpx.Response:
        """The call: with the very same payment each time, or with a fresh signature. Raises `Died`."""
        headers = {} if self.scenario.key is None else {"Idempotency-Key": self.scenario.key}
        if self.payment is not None:
            headers["PAYMENT-SIGNATURE"] = self.payment
            return self._request(self.scenario.method, self.path, headers=headers)
        return self._request(self.scenario.method, self.path, headers=headers, auth=self._auth())

    def insist(self) -> httpx.Response:
        """Send until there is an answer that does not ask for patience."""
        for _ in range(PATIENCE):
            answer = self.house.outlive(self.send)
            if answer.status_code != 503:
                return answer
            self.house.pass_time(max(int(answer.headers["Retry-After"]), LEAST_WAIT_S))
        raise AssertionError("no final answer")

    def balance(self) -> int:
        """The balance as the service shows it, accrued to this second."""
        answer = self.house.request("GET", "/v1/balance", auth=self._auth())
        assert answer.status_code == 200, answer.text
        return parse_usdc(answer.json()["balance"])

    def server(self, server_id: str) -> dict[str, Any]:
        """The server as its owner is shown it, for the fee of a read."""
        answer = self.house.request("GET", f"/v1/servers/{server_id}", auth=self._auth())
        assert answer.status_code == 200, answer.text
        server: dict[str, Any] = answer.json()["server"]
        return server

    def action(self, action_id: str) -> dict[str, Any]:
        answer = self.house.request("GET", f"/v1/actions/{action_id}")
        assert answer.status_code == 200, answer.text
        action: dict[str, Any] = answer.json()["action"]
        return action

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        return self.house.request(method, path, json=self.scenario.body, **how)

    def _auth(self) -> SignedRequestAuth:
        return SignedRequestAuth(self.wallet.account, CHAIN_ID, clock=lambda: self.house.now_s)


def check_money(facts: Facts, before: Facts, *, paid: Usdc, fee: Usdc, shown: int) -> None:
    """Every micro-USDC is where it should be; `shown` is the balance that the service shows."""
    assert facts.violations == []
    assert facts.paid_usdc == before.paid_usdc + paid
    assert facts.booked_usdc == facts.paid_usdc
    assert facts.fees_usdc == before.fees_usdc + fee
    assert facts.held_usdc == 0
    assert facts.available_usdc + facts.reserves_usdc == facts.paid_usdc - facts.fees_usdc - facts.burn_usdc
    assert shown == facts.paid_usdc - facts.fees_usdc - sum(burnt(server, facts) for server in facts.servers)


def check_machines(facts: Facts) -> None:
    """Each server has its machine, each machine its server, and nothing is under way."""
    assert {(s.id, s.provider_ref) for s in facts.live} == {(m.key, m.ref) for m in facts.machines}
    assert len(facts.machines) == len(facts.live) <= 1
    assert len(facts.servers) <= 1, "a second server was bought"
    for server, machine in zip(facts.live, facts.machines, strict=True):
        assert (server.status.value, server.provider_type, server.ipv4, server.disk_gb) == (
            machine.status.value,
            machine.provider_type,
            machine.ipv4,
            machine.disk_gb,
        )
    assert {o.status for o in facts.operations} <= {OperationStatus.SUCCESS}


def burnt(server: Server, facts: Facts) -> int:
    """What the server has cost up to now: exact by the second, and no less than an hour if it has ended."""
    mine = [o for o in facts.operations if o.server_id == server.id]
    created = next(o for o in mine if o.command is Command.CREATE)
    assert created.accepted_at is not None
    ended = next((o.created_at for o in mine if o.command is Command.DESTROY), None)
    until = facts.now_s if ended is None else ended
    turn = until if facts.resized_at is None else facts.resized_at
    owed = DAILY_USDC["small"] * (turn - created.accepted_at) + DAILY_USDC["medium"] * (until - turn)
    least = 0 if ended is None else -(-DAILY_USDC["small"] // 24)
    return max(owed // DAY_S, least)


def check_receipt(answer: httpx.Response, scenario: Scenario, after: Facts) -> None:
    """The receipt names the transfer that the chain shows, and a signed call has none."""
    receipt = answer.headers.get("PAYMENT-RESPONSE")
    assert (receipt is None) == (scenario.price is None)
    if receipt is not None:
        settled = json.loads(b64decode(receipt))
        assert settled["success"] is True
        assert settled["transaction"] == after.payments[-1].tx_hash
        assert after.payments[-1].amount == scenario.price


def _true_deposit(said: Answered) -> None:
    assert said.usdc("deposited") == said.gained == 5_000_000
    assert said.usdc("available") == said.usdc("balance") == said.after.available_usdc
    assert said.usdc("reserved") == 0


def _true_create(said: Answered) -> None:
    (server,) = said.after.live
    shown = said.body["server"]
    assert shown["id"] == server.id
    assert shown["owner_wallet"] == server.wallet
    # On a server nobody takes over what a dead process had claimed before its claim ends, and no answer waits for that.
    if databases.ALONE or shown["hetzner_id"] is not None:
        assert str(shown["hetzner_id"]) == server.provider_ref
    assert (shown["name"], shown["type"], shown["location"]) == (server.name, server.type, server.location)
    assert server.status is Status.RUNNING
    assert said.usdc("deposit_charged") == RESERVE_USDC
    assert said.after.reserves_usdc + said.after.burn_usdc == RESERVE_USDC
    assert said.usdc("deposit_remaining") == said.after.available_usdc


def _true_resize(said: Answered) -> None:
    (server,) = said.after.live
    resize = next(o for o in said.after.operations if o.command is Command.RESIZE)
    create = next(o for o in said.after.operations if o.command is Command.CREATE)
    assert create.accepted_at is not None
    assert said.body["new_type"] == server.type == "medium"
    assert server.status is Status.RUNNING
    left = RESERVE_USDC - DAILY_USDC["small"] * (resize.created_at - create.accepted_at) // DAY_S
    same_runway = -(-left * DAILY_USDC["medium"] // DAILY_USDC["small"])
    assert said.usdc("deposit_delta") == left - same_runway
    assert said.gained == said.usdc("deposit_delta") - RESIZE_FEE


def _true_delete(said: Answered) -> None:
    (server,) = said.after.servers
    assert said.body["status"] == "deleted"
    assert server.status is Status.DESTROYED
    assert said.usdc("deposit_refunded") == said.gained
    assert said.after.reserves_usdc == 0


CREATE_FEE: Final = Usdc(10_000)
RESIZE_FEE: Final = Usdc(10_000)
DELETE_FEE: Final = Usdc(5_000)

SCENARIOS: Final = (
    Scenario(
        name="deposit by x402",
        world="newcomer",
        method="POST",
        path="/v1/balance/deposit",
        body={"amount": "5.00"},
        price=Usdc(5_000_000),
        fee=Usdc(0),
        done=lambda facts: bool(facts.payments),
        truth=_true_deposit,
    ),
    Scenario(
        name="create by x402",
        world="newcomer",
        method="POST",
        path="/v1/servers",
        body=RENT | {"fund": "0.60"},
        price=Usdc(610_000),
        fee=CREATE_FEE,
        key="my first server",
        done=lambda facts: bool(facts.servers),
        truth=_true_create,
    ),
    Scenario(
        name="create from the balance",
        world="customer",
        method="POST",
        path="/v1/servers",
        body=RENT,
        fee=CREATE_FEE,
        key="create-1",
        done=lambda facts: bool(facts.servers),
        truth=_true_create,
    ),
    Scenario(
        name="resize from the balance",
        world="tenant",
        method="POST",
        path="/v1/servers/{server}/resize",
        body={"type": "medium"},
        fee=RESIZE_FEE,
        key="resize-1",
        done=lambda facts: facts.servers[0].type == "medium",
        truth=_true_resize,
    ),
    Scenario(
        name="delete from the balance",
        world="tenant",
        method="DELETE",
        path="/v1/servers/{server}",
        fee=DELETE_FEE,
        key="delete-1",
        done=lambda facts: facts.servers[0].status is Status.DESTROYED,
        truth=_true_delete,
    ),
    Scenario(
        name="delete by x402",
        world="tenant",
        method="DELETE",
        path="/v1/servers/{server}",
        price=DELETE_FEE,
        fee=DELETE_FEE,
        done=lambda facts: facts.servers[0].status is Status.DESTROYED,
        truth=_true_delete,
    ),
)
