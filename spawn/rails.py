"""How payments reach a chain, by setting: the embedded one, transactions of our own, or facilitators.

Invariant: opening a rail asks nobody anything, so that the service starts while its chain is down; what is opened here
closes with the stack it is given.
"""
# ruff: noqa: PLC0415 - what a real chain needs takes seconds to import, and play money needs none of it

import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spawn_schemas.ids import Entropy, parse_address

from spawn.clock import Clock
from spawn.domain.settlements import LOOK_S, RelayPolicy
from spawn.evm.node import Node
from spawn.payments.arrivals import Arrivals, ChainArrivals
from spawn.payments.chosen_chain import ChosenChain
from spawn.payments.contract_wallets import ContractWallets
from spawn.payments.devnet import DevChain
from spawn.payments.exact import Terms, terms
from spawn.payments.facilitator import Facilitator
from spawn.payments.holdings import Holdings, TokenHoldings
from spawn.payments.onchain import OnChain
from spawn.payments.standings import Standing
from spawn.services.leader import holder_name
from spawn.settings import Settings
from spawn.store.arrivals import KEEP_WATCH, SELECT_WATCH
from spawn.store.database import Database, StoreError

if TYPE_CHECKING:
    from spawn.services.relayer import Relayer


CHAIN: Final = "chain"
"""Under which name `watch` keeps the chain that a database is about."""


@dataclass(frozen=True, kw_only=True)
class Rail:
    """Who settles, and what else its chain tells us. `chain` names it: one database is about one chain for ever.

    `wallets` asks about payers with code, where a chain has code. `relayer` has to be started, where the facilitator
    is one of ours. `standings` tells how the facilitators of others fare.
    """

    chain: str
    facilitator: Facilitator
    arrivals: Arrivals
    holdings: Holdings
    wallets: ContractWallets | None = None
    relayer: "Relayer | None" = None
    standings: Callable[[], Sequence[Standing]] = tuple


def x402_terms(settings: Settings) -> Terms:
    """The terms on which we take USDC."""
    return terms(
        chain_id=settings.chain_id,
        asset=parse_address(settings.x402_asset),
        asset_name=settings.x402_asset_name,
        asset_version=settings.x402_asset_version,
        pay_to=settings.pay_to,
        max_timeout_s=settings.x402_timeout_s,
    )


def open_rail(
    settings: Settings, db: Database, clock: Clock, entropy: Entropy, opened: AsyncExitStack
) -> Rail:
    """The rail that the settings name. Raises StoreError or InvalidSetting, with what to do."""
    if settings.payments == "self":
        return self_rail(settings, db, clock, open_node(settings, opened), holder_name(entropy))
    if settings.payments == "facilitator":
        return _remote(settings, clock, entropy, open_node(settings, opened), opened)
    chain = open_devnet(settings, clock)
    opened.callback(chain.close)
    return devnet_rail(chain)


def devnet_rail(chain: DevChain) -> Rail:
    """The embedded chain is all of a rail."""
    return Rail(chain="play money", facilitator=chain, arrivals=chain, holdings=chain)


async def require_same_chain(db: Database, rail: Rail) -> None:
    """Raise StoreError where the database is about another chain: its balances are not worth the same there."""

    known = await db.read(SELECT_WATCH, {"name": CHAIN})
    if not known:
        await db.write(lambda tx: tx.execute(KEEP_WATCH, {"name": CHAIN, "cursor": rail.chain}))
        known = await db.read(SELECT_WATCH, {"name": CHAIN})
    about = known[0]["cursor"]
    if about != rail.chain:
        raise StoreError(
            f"the books of this database are about {about}, and the settings name {rail.chain}: set SPAWN_DATABASE_URL "
            "to another database, or the settings back (SPAWN_PAYMENTS, SPAWN_X402_NETWORK, SPAWN_X402_ASSET)."
        )


def open_devnet(settings: Settings, clock: Clock) -> DevChain:
    """The embedded chain, in its own file. Raises StoreError."""
    with needs_file(settings.devnet_path, "SPAWN_DEVNET_PATH"):
        return DevChain(Path(settings.devnet_path), x402_terms(settings), now=clock.now_s)


def open_node(settings: Settings, opened: AsyncExitStack) -> Node:
    """The node of a real chain, which is asked nothing yet."""
    with kept_recursion_limit():
        from spawn.evm.web3_node import Web3Node

    node = Web3Node(settings.rpc_url, timeout_s=settings.rpc_timeout_s)
    opened.push_async_callback(node.close)
    return ChosenChain(node, x402_terms(settings))


@contextmanager
def needs_file(path: str, setting: str) -> Iterator[None]:
    """Say which file cannot be used, and which setting names another."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot use {path}: {error}. Restore that file, or name another with {setting}."
        ) from error


@contextmanager
def kept_recursion_limit() -> Iterator[None]:
    """Import Ethereum's libraries without one of their effects.

    One of them raises the limit a hundredfold for arithmetic that we never do, and with it a request of brackets could
    crash the process: the JSON decoder recurses with its input.
    """
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def self_rail(
    settings: Settings, db: Database, clock: Clock, node: Node, holder: str, *, look_s: float = LOOK_S
) -> Rail:
    """Transactions of our own, through this node, where the lease of process `holder` says so.

    `look_s` is how often it looks for what other processes have written.
    """
    with kept_recursion_limit():
        from spawn.services.relayer import RELAYING, Relayer

    our_terms = x402_terms(settings)
    policy = RelayPolicy(
        multicall=parse_address(settings.relay_multicall),
        batch_max=settings.relay_batch_max,
        alone_from_usdc=settings.relay_alone_from_usdc,
        bump_after_s=settings.relay_bump_after_s,
        fee_cap_wei=settings.relay_fee_cap_wei,
        confirmations=settings.confirmations,
        settle_wait_s=settings.settle_wait_s,
        eth_price_usdc=settings.eth_price_usdc,
        look_s=look_s,
    )
    on_chain = OnChain(node, our_terms, confirmations=settings.confirmations)
    office = RELAYING if settings.lease_s >= RELAYING.lease_s else RELAYING.lasting(settings.lease_s)
    relayer = Relayer(db, node, on_chain, our_terms, policy, settings.relayer_keys, clock, holder, office)
    return Rail(
        chain=_named(our_terms),
        facilitator=relayer,
        arrivals=_arrivals(settings, node),
        holdings=TokenHoldings(node, our_terms.asset),
        wallets=ContractWallets(node, our_terms, clock.now_s),
        relayer=relayer,
    )


def _remote(settings: Settings, clock: Clock, entropy: Entropy, node: Node, opened: AsyncExitStack) -> Rail:
    import httpx

    from spawn.payments.remote import RemoteFacilitators

    our_terms = x402_terms(settings)
    client = httpx.AsyncClient(trust_env=False)
    opened.push_async_callback(client.aclose)
    cdp = None
    if settings.cdp_key_id:
        from spawn.payments.cdp import CdpKey

        cdp = CdpKey(settings.cdp_key_id, settings.cdp_key_secret, now=clock.now_s, entropy=entropy)
    remote = RemoteFacilitators(
        client,
        settings.facilitator_urls,
        our_terms,
        OnChain(node, our_terms, confirmations=settings.confirmations),
        now=clock.now_s,
        cdp=cdp,
        timeout_s=settings.facilitator_timeout_s,
        wait_s=settings.settle_wait_s,
    )
    return Rail(
        chain=_named(our_terms),
        facilitator=remote,
        arrivals=_arrivals(settings, node),
        holdings=TokenHoldings(node, our_terms.asset),
        wallets=ContractWallets(node, our_terms, clock.now_s),
        standings=remote.standings,
    )


def _arrivals(settings: Settings, node: Node) -> ChainArrivals:
    return ChainArrivals(
        node,
        x402_terms(settings),
        confirmations=max(settings.confirmations, settings.suspense_depth),
        from_block=settings.suspense_from_block,
    )


def _named(our_terms: Terms) -> str:
    return f"{our_terms.asset} on {our_terms.network}"
