"""The chain of a run: the embedded one, or a real one on which the replicas settle by themselves, in bad weather.

Invariant: what is told here is asked of the chain itself, never of a replica.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.clock import SystemClock
from spawn.evm.eip3009 import AUTHORIZATION_USED, TRANSFER, address_topic
from spawn.evm.transactions import address_of
from spawn.payments.arrivals import START, Arrived
from spawn.payments.devnet import DevChain
from spawn.payments.nonces import authorization_key
from spawn.rails import open_devnet
from spawn.setting_reader import read_settings
from spawn.settings import Settings
from tests.anvil import CHAIN_ID, RELAYER_KEYS, TOKEN, Chain, anvil
from tests.e2e.anvil_books import check_at_rest

PAY_TO: Final = Address("0x" + "5a" * 20)
KEYS: Final = RELAYER_KEYS[:2]
CONFIRMATIONS: Final = 2
"""One more than the blocks that the weather takes back at a time."""
BUMP_AFTER_S: Final = 2
NODE_PATIENCE_S: Final = 2
RELAYER: Final = MappingProxyType(
    {
        "payments": "self",
        "x402_pay_to": PAY_TO,
        "relayer_key": ",".join(KEYS),
        "confirmations": str(CONFIRMATIONS),
        "suspense_depth": str(CONFIRMATIONS),
        "suspense_from_block": "0",
        "suspense_every_s": "1",
        "relay_batch_max": "3",
        "relay_bump_after_s": str(BUMP_AFTER_S),
        "relay_fee_cap_gwei": "50",
        "rpc_timeout_s": str(NODE_PATIENCE_S),
        "settle_wait_s": "4",
    }
)

SELECT_MINED: Final = "SELECT hash, relayer, nonce FROM relay WHERE state = 'confirmed'"
SELECT_SETTLED: Final = """
SELECT id, transaction_hash, relayer, relayer_nonce FROM settlement WHERE state = 'confirmed'
"""
# A transaction is handed to a node in the second in which it was signed, unless something came between.
SELECT_TOLD: Final = """
SELECT (SELECT COUNT(*) FROM relay WHERE state = 'confirmed') AS mined,
  (SELECT COUNT(DISTINCT relayer) FROM relay WHERE state = 'confirmed') AS keys,
  (SELECT COUNT(*) FROM relay WHERE state = 'replaced') AS replaced,
  (SELECT COUNT(*) FROM relay WHERE sent_at > created_at) AS again,
  (SELECT COUNT(*) FROM settlement WHERE state = 'failed') AS failed,
  (SELECT MAX(finished_at - created_at) FROM settlement) AS slowest_s,
  (SELECT token FROM lease WHERE name = 'relayer') AS terms
"""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A transfer to us by an authorization, which `nonce_key` names."""

    transaction: str
    sender: Address
    amount: Usdc
    nonce_key: str | None


class ChainOfRun(Protocol):
    """`settings` are what a replica is told about it."""

    @property
    def settings(self) -> Mapping[str, str]: ...

    async def fund(self, account: Address, amount: Usdc) -> None: ...

    async def paid(self) -> list[Paid]:
        """Every payment to us, the oldest first."""
        ...

    async def balance(self) -> Usdc:
        """What we have."""
        ...

    async def storm(self, until: float, chance: random.Random) -> None:
        """What it does by itself while replicas suffer, and calm weather after that."""
        ...

    def check(self, settings: Settings, tx: Tx) -> None:
        """At rest: whatever more it and the books must agree about."""
        ...

    def told(self, tx: Tx) -> Iterator[str]:
        """How it was for whoever brings payments to it."""
        ...


class Devnet:
    """Play money in a file; it settles at once, and nobody relays."""

    def __init__(self, folder: Path) -> None:
        self.settings = {"devnet_path": str(folder / "devnet.db")}
        self._settings = read_settings({"SPAWN_DEVNET_PATH": self.settings["devnet_path"]})

    @contextmanager
    def _open(self) -> Iterator[DevChain]:
        chain = open_devnet(self._settings, SystemClock())
        try:
            yield chain
        finally:
            chain.close()

    async def fund(self, account: Address, amount: Usdc) -> None:
        with self._open() as chain:
            await chain.mint(account, amount)

    async def paid(self) -> list[Paid]:
        found: list[Arrived] = []
        with self._open() as chain:
            page, cursor = await chain.page(START)
            while page:
                found += page
                page, cursor = await chain.page(cursor)
        return [
            Paid(transaction=one.transaction, sender=one.sender, amount=one.amount, nonce_key=one.nonce_key)
            for one in found
        ]

    async def balance(self) -> Usdc:
        with self._open() as chain:
            return await chain.balance_of(self._settings.pay_to)

    async def storm(self, until: float, chance: random.Random) -> None:
        """It has no weather."""

    def check(self, settings: Settings, tx: Tx) -> None:
        """The books were compared with it; it has nothing else."""

    def told(self, tx: Tx) -> Iterator[str]:
        yield from ()


class Anvil:
    """A chain whose blocks come late and are taken back, whose node forgets what waits and at times says nothing."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.settings = {**RELAYER, "rpc_url": chain.url}
        self._happened: dict[str, int] = {}

    async def fund(self, account: Address, amount: Usdc) -> None:
        self._chain.fund(account, amount)

    async def paid(self) -> list[Paid]:
        return await asyncio.to_thread(self._paid)

    def _paid(self) -> list[Paid]:
        to_us = ["0x" + TRANSFER.hex(), None, "0x" + address_topic(PAY_TO).hex()]
        used = {
            (log["transactionHash"], int(log["logIndex"], 16)): log["topics"][2]
            for log in self._logs(["0x" + AUTHORIZATION_USED.hex()])
        }
        found = []
        for log in self._logs(to_us):
            sender, transaction = Address("0x" + log["topics"][1][26:]), log["transactionHash"]
            nonce = used[transaction, int(log["logIndex"], 16) - 1]
            found.append(
                Paid(
                    transaction=transaction,
                    sender=sender,
                    amount=Usdc(int(log["data"], 16)),
                    nonce_key=authorization_key(CHAIN_ID, TOKEN, sender, nonce),
                )
            )
        return found

    def _logs(self, topics: list[str | None]) -> list[Any]:
        question = {"address": TOKEN, "topics": topics, "fromBlock": "0x0", "toBlock": "latest"}
        found: list[Any] = self._chain.ask("eth_getLogs", question)
        return found

    async def balance(self) -> Usdc:
        return self._chain.balance(PAY_TO)

    # --- its weather ------------------------------------------------------------------------------------------------

    async def storm(self, until: float, chance: random.Random) -> None:
        # What is taken back must not be what was given without a transaction.
        await asyncio.to_thread(self._chain.mine, CONFIRMATIONS)
        await asyncio.to_thread(self._chain.set_automine, False)
        while time.monotonic() < until:
            await asyncio.sleep(chance.uniform(0.2, 1.2))
            (kind,) = chance.choices(("block", "forget", "late", "reorganise", "hang"), (16, 2, 2, 2, 1))
            self._happened[kind] = self._happened.get(kind, 0) + 1
            match kind:
                case "forget":
                    await asyncio.to_thread(self._chain.drop_all)
                case "late":
                    await asyncio.sleep(2 * BUMP_AFTER_S)
                case "reorganise":
                    await asyncio.to_thread(self._chain.reorg, CONFIRMATIONS - 1)
                case "hang":
                    await self._hang(NODE_PATIENCE_S + 1)
                case _:
                    await asyncio.to_thread(self._chain.mine)
        await asyncio.to_thread(self._chain.ask, "evm_setIntervalMining", 1)

    async def _hang(self, seconds: float) -> None:
        self._chain.hang()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._chain.wake()

    # --- what is true of it -----------------------------------------------------------------------------------------

    def check(self, settings: Settings, tx: Tx) -> None:
        """Every transaction of our keys is known and has a nonce of its own, and moved the payments that it should."""
        paid = self._paid()
        check_at_rest(settings, self._chain, moved=[one.transaction for one in paid])
        mined = self._mined()
        booked = {row["hash"]: (row["relayer"], row["nonce"]) for row in tx.all(SELECT_MINED, {})}
        assert booked == mined
        assert len(set(booked.values())) == len(booked)
        for account in map(address_of, KEYS):
            assert self._chain.nonce(account) == sum(sender == account for sender, _ in mined.values())
        settled = tx.all(SELECT_SETTLED, {})
        assert {row["id"]: row["transaction_hash"] for row in settled} == {
            one.nonce_key: one.transaction for one in paid
        }
        for row in settled:
            # Found on the chain after its transaction was given up, it is in none that we wait for.
            assert (row["relayer"], row["relayer_nonce"]) in {(None, None), mined[row["transaction_hash"]]}

    def _mined(self) -> dict[str, tuple[str, int]]:
        """Which key and nonce each of our transactions in a block has."""
        accounts = {*map(address_of, KEYS)}
        blocks = (
            self._chain.ask("eth_getBlockByNumber", hex(number), True)
            for number in range(self._chain.head + 1)
        )
        return {
            one["hash"]: (one["from"], int(one["nonce"], 16))
            for block in blocks
            for one in block["transactions"]
            if one["from"] in accounts
        }

    def told(self, tx: Tx) -> Iterator[str]:
        (row,) = tx.all(SELECT_TOLD, {})
        yield f"{row['terms']} terms of the relayer; the chain's weather {dict(sorted(self._happened.items()))}"
        yield (
            f"{row['mined']} transactions of {row['keys']} keys mined, {row['replaced']} replaced by dearer ones, "
            f"{row['again']} sent again; {row['failed']} payments failed, the slowest took {row['slowest_s']} s"
        )


@contextmanager
def open_chain(name: str, folder: Path) -> Iterator[ChainOfRun]:
    """`devnet` or `anvil`, which is started and ended here."""
    if name == "devnet":
        yield Devnet(folder)
        return
    with anvil() as chain:
        yield Anvil(chain)
