"""What an operator orders: credit, bars on wallets, price changes, lent machines.

Invariant: what an order changes is one transaction, the same whether the command line holds the database or asks the
service for it; and whatever is done to a wallet is noted with its reason, and told to its owner.
"""

from typing import Annotated, Final, assert_never

import msgspec
from spawn_ledger.accounts import EXP_GOODWILL, wallet_account
from spawn_ledger.transfers import Code as TransferCode
from spawn_ledger.transfers import Transfer, TransferIdReused, post, transfer_id
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType, WalletData
from spawn_schemas.ids import Address, Entropy, ServerId, new_action_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.clock import Clock
from spawn.domain.barring import Verb, barred_after
from spawn.domain.operations import new_operation, poweroff_plan
from spawn.domain.price_changes import PriceChange, PriceChangeId
from spawn.domain.servers import Command
from spawn.services import hosts_admin, meters, price_changes
from spawn.services.create_server import SERVERS_MAX
from spawn.services.events import emit
from spawn.services.hosts_admin import AddHost, NewHostToken, RestHost, RevokeHost
from spawn.services.moments import moment
from spawn.services.price_list import PriceList
from spawn.services.price_refresh import Refresher, refreshed
from spawn.store import operations, rentals, servers, wallets
from spawn.store.database import Database

CREDIT_MAX: Final = Usdc(1_000_000_000)
"""More than $1,000 at once is a slip of the pen."""
SELECT_ON: Final = """
SELECT * FROM server WHERE wallet = :wallet AND ended_at IS NULL AND status = 'running' ORDER BY id LIMIT :limit
"""

Reason = Annotated[str, msgspec.Meta(max_length=500)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[ -~]+$")]
Wallet = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{40}$(?!\n)")]
Amount = Annotated[int, msgspec.Meta(ge=1, le=10**15)]


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="credit"):
    """Give a wallet money of ours. The same `id` again changes nothing."""

    id: Name
    wallet: Wallet
    usdc: Amount
    reason: Reason


class Bar(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="bar"):
    """Suspend, restore, block or unblock a wallet."""

    verb: Verb
    wallet: Wallet
    reason: Reason


class AnnouncePrice(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="announce_price"):
    """Change what 24 h of an offer cost; without `effective_at` (unix seconds) from the earliest moment on."""

    type: Name
    location: Name
    daily_usdc: Amount
    effective_at: int | None


class WithdrawPrice(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="withdraw_price"):
    """Take back a price that is not in force yet."""

    id: Name


class RefreshPrices(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="refresh_prices"):
    """Read the provider's lists now, and change what they change."""


class Unfreeze(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="unfreeze"):
    """Start the meter of a server that was rebuilt; without `server`, of all that were."""

    server: Name | None


AtOnce = (
    Credit | Bar | AnnouncePrice | WithdrawPrice | Unfreeze | AddHost | NewHostToken | RevokeHost | RestHost
)
"""What is one transaction."""
Order = AtOnce | RefreshPrices


class Clerk:
    """Carries out orders on the database of this process."""

    def __init__(
        self,
        db: Database,
        prices: PriceList,
        clock: Clock,
        entropy: Entropy,
        refresher: Refresher | None = None,
    ) -> None:
        self._db = db
        self._prices = prices
        self._clock = clock
        self._entropy = entropy
        self._refresher = refresher

    async def carry_out(self, order: Order) -> tuple[str, ...]:
        """Do it, and say in sentences what was done. Raises SpawnError for a refusal."""
        if isinstance(order, RefreshPrices):
            return await refreshed(self._refresher, self._db)
        now = self._clock.now_s()
        said = await self._db.write(lambda tx: carry_out(tx, order, self._prices, self._entropy, now))
        await self._prices.refresh(self._db)
        return said


def carry_out(tx: Tx, order: AtOnce, prices: PriceList, entropy: Entropy, now: int) -> tuple[str, ...]:
    """The one table of what can be ordered. Raises SpawnError."""
    match order:
        case Credit():
            return _credit(tx, order, now)
        case Bar():
            return _bar(tx, order, entropy, now)
        case AnnouncePrice():
            change = price_changes.announce(
                tx,
                prices,
                type=order.type,
                location=order.location,
                daily_usdc=Usdc(order.daily_usdc),
                effective_at=order.effective_at,
                entropy=entropy,
                now=now,
            )
            return (
                f"{change.id}: {_price(change)}, from {moment(change.effective_at)} on.",
                _telling(change),
            )
        case WithdrawPrice():
            back = price_changes.withdraw(tx, prices, PriceChangeId(order.id), entropy=entropy, now=now)
            return (f"{order.id} is withdrawn by {back.id}: {_price(back)}, as before.", _telling(back))
        case Unfreeze():
            return _unfreeze(tx, order, now)
        case AddHost() | NewHostToken() | RevokeHost() | RestHost():
            return hosts_admin.carry_out(tx, order, entropy, now)
        case _:
            assert_never(order)


def _unfreeze(tx: Tx, order: Unfreeze, now: int) -> tuple[str, ...]:
    if order.server is None:
        frozen = [servers.server_from(row) for row in tx.all(servers.SELECT_FROZEN, {})]
    else:
        frozen = [servers.get_server(tx, ServerId(order.server))]
    for server in frozen:
        rental = rentals.find(tx, server.id)
        if rental is not None and rental.paused_at is not None:
            raise SpawnError(
                Code.CONFLICT,
                f"The host of {server.id} is silent.",
                next="Nothing: the meter starts when the host is heard again.",
            )
        if not server.frozen:
            raise SpawnError(
                Code.CONFLICT,
                f"{server.id} is not frozen.",
                next="`spawn admin servers` lists those that live.",
            )
        # It is due at once: the next burn charges, warns and says when to look again.
        servers.update_server(tx, server, meters.started(server, now))
    owners = {server.wallet for server in frozen}
    return (
        f"Metered from now on: {len(frozen)} servers of {len(owners)} wallets.",
        "Whoever has no money for them is warned before anything ends.",
    )


def _price(change: PriceChange) -> str:
    return f"{change.type} in {change.location} costs {format_usdc(change.daily_usdc)} USDC a day"


def _telling(change: PriceChange) -> str:
    if change.told_to is None:
        return "Every owner has been told; new orders pay it from now on."
    return "The first owners have been told, the service tells the rest; new orders pay it from now on."


def _credit(tx: Tx, order: Credit, now: int) -> tuple[str, ...]:
    wallet, amount = Address(order.wallet), Usdc(order.usdc)
    if amount > CREDIT_MAX:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"{format_usdc(amount)} USDC is more than {format_usdc(CREDIT_MAX)}, which is the most at once.",
            next="If it is meant, give it in several credits.",
        )
    _require_reason(order.reason)
    given = f"{format_usdc(amount)} USDC to {wallet} (--id {order.id})"
    try:
        is_new = post(
            tx,
            Transfer(
                id=transfer_id("goodwill", order.id),
                debit=EXP_GOODWILL,
                credit=wallet_account(wallet),
                amount=amount,
                code=TransferCode.GOODWILL,
                reference=order.id,
                at=now,
            ),
        )
    except TransferIdReused as reused:
        raise SpawnError(
            Code.CONFLICT,
            f"A credit with --id {order.id} was given before, with another wallet or amount.",
            next="Choose another --id, or leave it out; `spawn admin statement` shows what was given.",
        ) from reused
    if not is_new:
        return (f"Given before, and not again: {given}.",)
    tx.execute(wallets.LOOK_AT_ONCE, {"wallet": wallet, "now": now})
    wallets.insert_note(
        tx, wallet, at=now, kind="credit", reason=f"{format_usdc(amount)} USDC: {order.reason}"
    )
    _tell(tx, wallet, EventType.CREDIT_GRANTED, "goodwill", order.reason, now, amount)
    return (f"Given: {given}.",)


def _bar(tx: Tx, order: Bar, entropy: Entropy, now: int) -> tuple[str, ...]:
    wallet = Address(order.wallet)
    before = wallets.barred(tx, wallet)
    after = barred_after(order.verb, before)
    if after is not None:
        _require_reason(order.reason)
    wallets.insert_note(tx, wallet, at=now, kind=order.verb.value, reason=order.reason)
    if after is not before:
        wallets.set_barred(tx, wallet, after)
        type = EventType.WALLET_RESTORED if after is None else EventType.WALLET_SUSPENDED
        _tell(tx, wallet, type, "restored" if after is None else after.value, order.reason, now)
    if after is None:
        was = "it was not barred" if before is None else f"it was {before.value}"
        return (
            f"{wallet} may do everything ({was}). Its servers stay as they are: their owner starts them.",
        )
    as_before = ", as before" if after is before else ""
    return (f"{wallet} is {after.value}{as_before}.", *_power_off(tx, wallet, entropy, now))


def _power_off(tx: Tx, wallet: Address, entropy: Entropy, now: int) -> list[str]:
    """Order every running server off that nothing else runs on."""
    ordered: list[ServerId] = []
    busy: list[str] = []
    for row in tx.all(SELECT_ON, {"wallet": wallet, "limit": SERVERS_MAX}):
        server = servers.server_from(row)
        running = operations.find_running(tx, server.id)
        if running is not None:
            busy.append(
                f"{server.id} stays on while {running.command} runs on it: repeat this when it is done."
            )
            continue
        operation = new_operation(new_action_id(entropy), server, Command.POWEROFF, poweroff_plan(), now)
        operations.insert_operation(tx, operation)
        ordered.append(server.id)
    off = [f"Being powered off: {', '.join(ordered)}."] if ordered else []
    return off + busy


def _require_reason(reason: str) -> None:
    if not reason.strip() or not reason.isprintable():
        raise SpawnError(
            Code.INVALID_REQUEST,
            "A reason is needed, in one line: its owner reads it, and so does the next operator.",
            next="Say it with --reason.",
        )


def _tell(
    tx: Tx, wallet: Address, type: EventType, kind: str, reason: str, now: int, amount: Usdc | None = None
) -> None:
    data = WalletData(kind=kind, reason=reason, amount=None if amount is None else format_usdc(amount))
    emit(tx, wallet, type, data, resource=wallet, at=now)
