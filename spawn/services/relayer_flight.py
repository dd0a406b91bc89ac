"""A transaction in flight, and the key that signs it.

Invariant: every version of a flight has the same nonce, so that one of them happens at most; a later version may have
fewer payments (those that expired), never others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from spawn_schemas.ids import Address

from spawn.domain.settlements import Fees, gas_limit
from spawn.evm.multicall import Call, aggregate3
from spawn.evm.transactions import address_of, sign
from spawn.services.relayer_desk import Item
from spawn.store.settlements import Relay


@dataclass(eq=False, kw_only=True)
class Flight:
    """`relays` are its versions, the newest last, one at least.

    `sent`: a node has the newest version, as far as we know. `dear`: it was refused because it offers too little.
    `seen`: it was in a block when we last looked. `push_at`: when to send it again, or to offer more (unix seconds).
    `passed_since`: since when another transaction seems to have its nonce.
    """

    nonce: int
    items: list[Item]
    relays: list[Relay] = field(repr=False)
    sent: bool = False
    dear: bool = False
    seen: bool = False
    push_at: int = 0
    passed_since: int | None = None

    @property
    def newest(self) -> Relay:
        return self.relays[-1]

    @property
    def fees(self) -> Fees:
        return Fees(max_fee_wei=self.newest.max_fee_wei, priority_fee_wei=self.newest.priority_fee_wei)

    def add(self, relay: Relay) -> None:
        """A new version is stored; no node has it."""
        self.relays.append(relay)
        self.sent = self.dear = False
        for item in self.items:
            item.transaction = relay.hash


class Signer:
    """Makes transactions for one key, which it never shows."""

    def __init__(self, key: str, *, chain_id: int, asset: Address, multicall: Address) -> None:
        self.account = address_of(key)
        self._key = key
        self._chain_id = chain_id
        self._asset = asset
        self._multicall = multicall

    def __repr__(self) -> str:
        return f"Signer({self.account})"

    def sign(self, items: Sequence[Item], *, nonce: int, attempt: int, fees: Fees, now: int) -> Relay:
        """A transaction that moves these payments; without any, one to ourselves that fills the nonce.

        Takes a millisecond of the processor, so that it is to be called on a thread.
        """
        gas = gas_limit(len(items), by_code=any(item.by_code for item in items))
        to, data = self._call(items)
        signed = sign(
            self._key,
            chain_id=self._chain_id,
            nonce=nonce,
            to=to,
            data=data,
            gas_limit=gas,
            max_fee_wei=fees.max_fee_wei,
            priority_fee_wei=fees.priority_fee_wei,
        )
        return Relay(
            hash=signed.hash,
            relayer=self.account,
            nonce=nonce,
            attempt=attempt,
            raw=signed.raw,
            gas_limit=gas,
            max_fee_wei=fees.max_fee_wei,
            priority_fee_wei=fees.priority_fee_wei,
            state="signed",
            block_number=None,
            gas_wei=None,
            created_at=now,
            sent_at=None,
        )

    def _call(self, items: Sequence[Item]) -> tuple[Address, bytes]:
        match items:
            case []:
                return self.account, b""
            case [item]:
                return self._asset, item.call
            case _:
                return self._multicall, aggregate3([Call(to=self._asset, data=item.call) for item in items])
