"""Handing transactions to the node, and what its refusals mean.

Invariant: only a node that took the bytes, or says that it has them or has seen their nonce in a block, makes a
transaction `broadcast`. Every refusal leaves it to be sent again; a trouble is told once, and once more when it ends.
"""

import logging
from collections.abc import Iterable
from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address

from spawn.domain.settlements import RelayPolicy
from spawn.evm.node import (
    AlreadyKnown,
    Node,
    NodeUnavailable,
    NonceTooLow,
    OutOfGasMoney,
    SendRefused,
    Underpriced,
)
from spawn.services.relayer_flight import Flight
from spawn.store import settlements as rows
from spawn.store.database import Database
from spawn.store.settlements import Relay

log = logging.getLogger(__name__)

RETRY_S: Final = 5
"""How long what a node refused is left alone before it is sent again."""


class Sending:
    """Sends for one account."""

    def __init__(self, account: Address, db: Database, node: Node) -> None:
        self._account = account
        self._db = db
        self._node = node
        self._troubles: set[str] = set()

    def complain(self, trouble: str, message: str) -> None:
        """An incident, told once until `resolved`."""
        if trouble not in self._troubles:
            self._troubles.add(trouble)
            log.error("incident: relayer %s: %s", self._account, message)

    def resolved(self, trouble: str) -> None:
        if trouble in self._troubles:
            self._troubles.discard(trouble)
            log.info("relayer %s: the trouble with %s is over", self._account, trouble)

    async def send(self, flights: Iterable[Flight], policy: RelayPolicy, now: int) -> None:
        """Send the newest version of each, in the order of their nonces, until the node takes no more."""
        sent: list[Relay] = []
        for flight in sorted(flights, key=lambda flight: flight.nonce):
            if not await self._send(flight, now):
                break
            flight.push_at = now + policy.bump_after_s
            sent.append(flight.newest)

        def record(tx: Tx) -> None:
            for relay in sent:
                rows.sent(tx, relay, now)

        if sent:
            await self._db.write(record)

    async def _send(self, flight: Flight, now: int) -> bool:
        flight.sent, flight.push_at = False, now + RETRY_S
        try:
            await self._node.send(flight.newest.raw)
        except (AlreadyKnown, NonceTooLow):
            pass  # it arrived before; or another has its nonce, which the next look at the chain shows
        except OutOfGasMoney:
            self.complain("gas money", "it cannot pay for gas: send ether to it. Payments wait until then.")
            return False
        except Underpriced:
            flight.dear, flight.push_at = True, now
            self.complain("price", "the node wants higher fees than SPAWN_RELAY_FEE_CAP_GWEI may allow")
            return False
        except SendRefused as error:
            self.complain("sending", f"the node refuses its transactions: {error}")
            return False
        except NodeUnavailable as error:
            self.complain("sending", f"the node does not say whether it has a transaction: {error}")
            flight.push_at = now  # it may have arrived
            return False
        flight.sent, flight.dear = True, False
        for trouble in ("gas money", "price", "sending"):
            self.resolved(trouble)
        return True

    async def resend(self, relay: Relay) -> None:
        """Hand in bytes of ours that the chain has lost. Raises NodeUnavailable."""
        try:
            await self._node.send(relay.raw)
        except (AlreadyKnown, NonceTooLow):
            pass  # not lost after all
        except SendRefused as error:
            self.complain("sending", f"the node refuses its transactions: {error}")
