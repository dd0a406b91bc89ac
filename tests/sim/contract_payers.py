"""Payers with code: wallets whose contract says what they have signed (EIP-1271), and those who only pretend.

Invariant: who has no valid signature of the contract's owner gets nothing for it, whatever the weather.
"""

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tests.sim.client_types import Answer, ConnectionLost, Request
from tests.sim.wallets import Wallet

if TYPE_CHECKING:
    from tests.sim.world import World

PATH: Final = "/v1/balance/deposit"
BODY: Final = b'{"amount":"0.50"}'
TRIES: Final = 12
_UNDEPLOYED: Final = b"\x64\x92" * 16
"""How a signature for a wallet that is not deployed yet ends (ERC-6492)."""


class Form(StrEnum):
    """What the signature looks like."""

    BARE = "bare"
    LONG = "long"
    """The owner's, and something of the wallet's own behind it."""
    HUGE = "huge"
    UNDEPLOYED = "undeployed"
    FORGED = "forged"


GOOD: Final = frozenset({Form.BARE, Form.LONG})


class ContractWallet(Wallet):
    """Pays from a contract, with the signature of the contract's owner."""

    def __init__(self, number: int, world: "World", form: Form) -> None:
        super().__init__(number, world.settings)
        self.owner = self.address
        self._form = form
        self.address = f"0x1271{number:036d}"
        self._spelled = self.address
        if form is not Form.UNDEPLOYED:
            world.chain.deploy(self.address, self.owner)
        world.chain.fund(self.address, 2_000_000)

    def _sign_digest(self, digest: bytes) -> bytes:
        signature = super()._sign_digest(digest)
        match self._form:
            case Form.BARE:
                return signature
            case Form.LONG:
                return signature + b"\x01"
            case Form.HUGE:
                return signature + bytes(1_100)
            case Form.UNDEPLOYED:
                return signature + _UNDEPLOYED
            case Form.FORGED:
                return super()._sign_digest(bytes(32))


def come(world: "World") -> None:
    """A new one pays something in."""
    number = 900_000 + world.chain.count_contract()
    form = world.random.choice(list(Form))
    wallet = ContractWallet(number, world, form)
    _ = world.spawn(_pay_in(world, wallet, form), name=f"contract {number}, {form}")


async def _pay_in(world: "World", wallet: ContractWallet, form: Form) -> None:
    challenge = await _ask(world, {})
    if challenge is None or challenge.status != 402:
        return
    proof = wallet.pay(challenge.headers["payment-required"], now=world.clock.now_s())
    answer = await _ask(world, proof.headers)
    if answer is not None and answer.status == 200 and form not in GOOD:
        world.violation(
            "foreign", f"{wallet.address} paid with a signature that is {form}: {answer.body[:200]!r}"
        )


async def _ask(world: "World", headers: dict[str, str]) -> Answer | None:
    """The answer, after as many tries as it takes while nobody knows; None if nobody ever does."""
    for turn in range(TRIES):
        try:
            answer = await world.http(Request(method="POST", path=PATH, headers=headers, body=BODY))
        except ConnectionLost:
            answer = None
        if answer is not None and answer.status != 503:
            return answer
        await asyncio.sleep(2**turn)
    return None
