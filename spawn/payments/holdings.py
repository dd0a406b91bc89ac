"""How much of the token an account holds, asked of whichever chain we settle on."""

from typing import Protocol

from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.evm.eip3009 import balance_of_call
from spawn.evm.node import CallReverted, Node, NodeUnavailable

_WORD = 32


class Holdings(Protocol):
    """What the embedded chain can tell by itself, and `TokenHoldings` for any other."""

    async def balance_of(self, address: Address) -> Usdc:
        """What the account holds now, in micro-USDC. Raises NodeUnavailable."""
        ...


class TokenHoldings:
    """`Holdings` of one token, as its contract tells them."""

    def __init__(self, node: Node, asset: Address) -> None:
        self._node = node
        self._asset = asset

    async def balance_of(self, address: Address) -> Usdc:
        """See `Holdings.balance_of`."""
        try:
            word = await self._node.call(self._asset, balance_of_call(address))
        except CallReverted as error:
            raise NodeUnavailable(f"{self._asset} refuses to tell balances") from error
        if len(word) != _WORD:
            raise NodeUnavailable(
                f"there is no token at {self._asset}: compare SPAWN_X402_ASSET and the chain"
            )
        return Usdc(int.from_bytes(word, "big"))
