"""What a real chain shows and what the books say, held against each other after everything that went wrong.

Invariant: nothing here asks the service: chain and database alone.
"""

import json
from base64 import b64decode
from collections.abc import Iterable
from typing import Any, Final

import httpx
from spawn_ledger.accounts import COST_GAS, EXT_USDC
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx
from spawn_ledger.verify import verify
from spawn_schemas.ids import Address

from spawn.domain.settlements import gas_cost_usdc
from spawn.evm.transactions import address_of
from spawn.settings import Settings
from spawn.store.place import Place
from spawn.store.places import place_of
from tests.anvil import Chain

ETHER: Final = 10**18

_SELECT_UNFINISHED: Final = """
SELECT id FROM settlement WHERE finished_at IS NULL
UNION ALL SELECT hash AS id FROM relay WHERE state IN ('signed', 'broadcast')
"""
_SELECT_BUSY: Final = """
SELECT id FROM operation WHERE status = 'running'
UNION ALL SELECT id FROM reservation WHERE state IN ('reserved', 'settled') AND rail = 'x402'
"""
_SELECT_CREDITS: Final = (
    "SELECT reference, amount FROM transfer WHERE debit = :ext ORDER BY reference, amount"
)


def unfinished(place: Place) -> list[str]:
    """Payments and transactions that are neither done nor given up."""
    with place.snapshot() as tx:
        return [row["id"] for row in tx.all(_SELECT_UNFINISHED, {})]


def is_busy(place: Place) -> bool:
    """Whether anything at all is under way."""
    with place.snapshot() as tx:
        return bool(tx.all(_SELECT_UNFINISHED, {}) or tx.all(_SELECT_BUSY, {}))


def receipt_of(answer: httpx.Response) -> dict[str, Any]:
    """What the answer says became of the payment."""
    receipt: dict[str, Any] = json.loads(b64decode(answer.headers["PAYMENT-RESPONSE"]))
    return receipt


def check_at_rest(settings: Settings, chain: Chain, *, moved: Iterable[str]) -> None:
    """`check_books`, and each relayer has used each of its nonces, by itself, and booked what that burnt."""
    check_books(settings, chain, moved=moved)
    with place_of(settings.database_url).snapshot() as tx:
        burnt_wei = [
            wei for key in settings.relayer_keys for wei in _check_nonces(tx, chain, address_of(key))
        ]
        booked = balance_of(tx, COST_GAS).balance
    assert booked == sum(gas_cost_usdc(wei, settings.eth_price_usdc) for wei in burnt_wei)


def check_books(settings: Settings, chain: Chain, *, moved: Iterable[str]) -> None:
    """What the chain shows and what the books say are the same, and nothing of ours is left on its way.

    `moved`: in which transactions money reached us, one for each transfer.
    """
    arrived = chain.transfers(settings.pay_to)
    assert sorted(one.transaction for one in arrived) == sorted(moved)
    assert chain.pending() == [], "a transaction waits that nobody knows of"
    held = chain.balance(settings.pay_to)
    with place_of(settings.database_url).snapshot() as tx:
        credits = [(row["reference"], row["amount"]) for row in tx.all(_SELECT_CREDITS, {"ext": EXT_USDC})]
        assert tx.all(_SELECT_UNFINISHED, {}) == []
        assert balance_of(tx, EXT_USDC).balance == held, "the treasury and the books differ"
        assert verify(tx, chain_balance_usdc=held) == []
    assert credits == sorted((one.transaction, one.amount) for one in arrived)


def _check_nonces(tx: Tx, chain: Chain, account: Address) -> list[int]:
    """What our transactions burnt, of which there is one at each nonce; answers it in wei, one by one."""
    signed = tx.all("SELECT * FROM relay WHERE relayer = :account ORDER BY nonce", {"account": account})
    assert {row["nonce"] for row in signed} == set(range(chain.nonce(account))), "a nonce was left out"
    mined = [row for row in signed if row["state"] == "confirmed"]
    assert len(mined) == chain.nonce(account)
    gas_wei = [row["gas_wei"] for row in mined]
    assert sum(gas_wei) == 10 * ETHER - chain.ether_wei(account)
    return gas_wei
