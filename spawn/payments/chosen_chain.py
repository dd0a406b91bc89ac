"""The chain that the settings name, and no other: what a node shows counts only once it is known to be of that chain.

A node of another chain shows none of the transfers that facilitators make, and refuses every one of ours; a token with
another EIP-712 domain (EIP-712, `DOMAIN_SEPARATOR` as EIP-2612 names it) refuses every signature that we ask for. Both
would look like faults of the payers.
Invariant: until chain and token were seen to be the named ones, every question ends in `WrongChain` or NodeUnavailable,
so that nothing is sent, refused, given up or credited by what another chain shows.
"""

import logging
from typing import Final

from spawn_schemas.ids import Address

from spawn.evm.node import Block, CallReverted, Log, Node, Receipt, WrongChain
from spawn.payments.exact import Terms

log = logging.getLogger(__name__)

_DOMAIN_SEPARATOR: Final = bytes.fromhex("3644e515")  # DOMAIN_SEPARATOR()
_WORD: Final = 32


class ChosenChain:
    """A `Node` that is asked about chain and token before anything else. Every method raises `WrongChain` too."""

    def __init__(self, node: Node, terms: Terms) -> None:
        self._node = node
        self._terms = terms
        self._is_known = False
        self._told = ""

    async def chain_id(self) -> int:
        """See `Node.chain_id`."""
        return await (await self._known()).chain_id()

    async def block(self, number: int | None = None) -> Block | None:
        """See `Node.block`."""
        return await (await self._known()).block(number)

    async def nonce(self, account: Address) -> int:
        """See `Node.nonce`."""
        return await (await self._known()).nonce(account)

    async def balance_wei(self, account: Address) -> int:
        """See `Node.balance_wei`."""
        return await (await self._known()).balance_wei(account)

    async def code(self, account: Address) -> bytes:
        """See `Node.code`."""
        return await (await self._known()).code(account)

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        """See `Node.call`."""
        return await (await self._known()).call(to, data, sender=sender, gas=gas, block=block)

    async def priority_fee_wei(self) -> int:
        """See `Node.priority_fee_wei`."""
        return await (await self._known()).priority_fee_wei()

    async def send(self, raw: bytes) -> None:
        """See `Node.send`."""
        await (await self._known()).send(raw)

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        """See `Node.receipts`."""
        return await (await self._known()).receipts(transactions)

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        """See `Node.logs`."""
        node = await self._known()
        return await node.logs(address, topics, first_block=first_block, last_block=last_block)

    async def _known(self) -> Node:
        if not self._is_known:
            wrong = await self._difference()
            if wrong is not None:
                self._tell(wrong)
                raise WrongChain(wrong)
            self._is_known = True
        return self._node

    async def _difference(self) -> str | None:
        """What the settings say and the chain does not; None when they agree. Raises NodeUnavailable."""
        chain_id = await self._node.chain_id()
        if chain_id != self._terms.chain_id:
            return (
                f"the node of SPAWN_RPC_URL is one of eip155:{chain_id}, and SPAWN_X402_NETWORK is "
                f"{self._terms.network}: set one of them to the other's chain"
            )
        if not await self._node.code(self._terms.asset):
            return f"there is no token at {self._terms.asset} on {self._terms.network}: set SPAWN_X402_ASSET to one"
        try:
            separator = await self._node.call(self._terms.asset, _DOMAIN_SEPARATOR)
        except CallReverted:
            separator = b""
        if len(separator) != _WORD:
            # EIP-3009 asks no token to tell it.
            log.warning(
                "the token at %s does not tell its EIP-712 domain: nobody compared it", self._terms.asset
            )
            return None
        if separator != self._terms.domain_separator:
            return (
                f"the token at {self._terms.asset} has another EIP-712 domain than SPAWN_X402_ASSET_NAME="
                f"{self._terms.asset_name!r} and SPAWN_X402_ASSET_VERSION={self._terms.asset_version!r} make, so that "
                "it refuses every payment: set them to what its name() and version() answer"
            )
        return None

    def _tell(self, wrong: str) -> None:
        """Once, and anew when it is something else."""
        if wrong != self._told:
            self._told = wrong
            log.critical("incident: %s; no payment settles until then", wrong)
