"""What an operator orders of lent machines: to add one, to let it register, to rest it, to let it go.

Invariant: a registration token is never here, only its hash; a host that was revoked stays revoked, and its name its
own.
"""

from typing import Annotated, Any, Final, assert_never

import msgspec
from msgspec.structs import replace
from spawn_ledger.accounts import host_account
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.hosts import HostName
from spawn_schemas.ids import Address, Entropy, HostId, new_command_id, new_host_id
from spawn_schemas.money import Usdc, format_usdc
from spawn_schemas.orders import Command, Drain, Undrain

from spawn.domain.hosts import TOKEN_S, UPTIME_WINDOW_S, Host, HostState, down_s, uptime
from spawn.services import host_reports
from spawn.services.moments import moment
from spawn.store import hosts, rentals

TokenHash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Wallet = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{40}$(?!\n)")]
Amount = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
_DRAIN_S: Final = 86_400


class AddHost(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="add_host"):
    """A machine that `wallet` is paid for, at `daily_usdc`; it registers with the token of this hash."""

    name: HostName
    wallet: Wallet
    daily_usdc: Amount
    token_hash: TokenHash


class NewHostToken(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="new_host_token"):
    """Let a host register, or register anew; every token of it that was not used is good no more."""

    name: HostName
    token_hash: TokenHash


class RevokeHost(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="revoke_host"):
    """Never hear a host again. What runs there is lost to its tenants, who pay for it no longer."""

    name: HostName


class RestHost(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="rest_host"):
    """Place nothing new on a host, or place something again."""

    name: HostName
    draining: bool


HostOrder = AddHost | NewHostToken | RevokeHost | RestHost


class HostLine(msgspec.Struct, frozen=True, kw_only=True):
    """A host as an operator sees it."""

    id: HostId
    name: str
    state: str
    wallet: Address
    daily: str
    owed: str
    rentals: int
    draining: bool
    agent: str | None
    last_seen: str | None
    uptime: float
    inventory: Any = None
    metrics: Any = None


def carry_out(tx: Tx, order: HostOrder, entropy: Entropy, now: int) -> tuple[str, ...]:
    """Raises SpawnError."""
    match order:
        case AddHost():
            return _add(tx, order, entropy, now)
        case NewHostToken():
            host = _living(tx, order.name)
            tx.execute(hosts.END_TOKENS, {"host_id": host.id, "now": now})
            _insert_token(tx, host.id, order.token_hash, now)
            return (f"{host.name} may register until {moment(now + TOKEN_S)}, once.",)
        case RevokeHost():
            return _revoke(tx, order, now)
        case RestHost():
            return _rest(tx, order, entropy, now)
        case unreachable:
            assert_never(unreachable)


def lines(tx: Tx, now: int) -> list[HostLine]:
    """Every host, those that were revoked too."""
    return [_line(tx, host, now) for host in hosts.all_hosts(tx)]


def line(tx: Tx, name: str, now: int) -> HostLine:
    """One host, with what it says of itself. Raises not_found."""
    host = _named(tx, name)
    shown = _line(tx, host, now)
    return replace(
        shown,
        inventory=None if host.inventory is None else msgspec.json.decode(host.inventory),
        metrics=None if host.metrics is None else msgspec.json.decode(host.metrics),
    )


def _line(tx: Tx, host: Host, now: int) -> HostLine:
    since = max(now - UPTIME_WINDOW_S, host.registered_at or now)
    outages = [
        (row["began_at"], row["ended_at"])
        for row in tx.all(hosts.SELECT_OUTAGES, {"host_id": host.id, "since": since})
    ]
    return HostLine(
        id=host.id,
        name=host.name,
        state=host.state.value,
        wallet=host.wallet,
        daily=format_usdc(host.daily_usdc),
        owed=format_usdc(balance_of(tx, host_account(host.id)).balance),
        rentals=len(rentals.of_host(tx, host.id)),
        draining=host.draining,
        agent=host.agent_status,
        last_seen=None if host.last_seen is None else moment(host.last_seen),
        uptime=round(uptime(now - since, down_s(outages, since, now)), 4),
    )


def _add(tx: Tx, order: AddHost, entropy: Entropy, now: int) -> tuple[str, ...]:
    if hosts.find_named(tx, order.name) is not None:
        raise SpawnError(
            Code.CONFLICT,
            f"There is, or was, a host {order.name}.",
            next=f"Choose another name, or let it register anew with `spawn hosts token {order.name}`.",
        )
    host = Host(
        id=new_host_id(entropy),
        name=order.name,
        wallet=Address(order.wallet),
        daily_usdc=Usdc(order.daily_usdc),
        created_at=now,
    )
    hosts.insert(tx, host)
    _insert_token(tx, host.id, order.token_hash, now)
    return (
        f"{host.name} is {host.id}: {format_usdc(host.daily_usdc)} USDC a day, its share for {host.wallet}.",
        f"It may register until {moment(now + TOKEN_S)}, once.",
    )


def _revoke(tx: Tx, order: RevokeHost, now: int) -> tuple[str, ...]:
    host = _living(tx, order.name)
    lost = rentals.of_host(tx, host.id)
    for rental in lost:
        host_reports.gone(tx, rental, now)
    tx.execute(hosts.END_TOKENS, {"host_id": host.id, "now": now})
    hosts.save(tx, host, replace(host, state=HostState.REVOKED, revoked_at=now))
    return (
        f"{host.name} is revoked: its key is good for nothing any more.",
        f"{len(lost)} servers ran there; the reconciler ends them within minutes, and their owners are told.",
    )


def _rest(tx: Tx, order: RestHost, entropy: Entropy, now: int) -> tuple[str, ...]:
    host = _living(tx, order.name)
    hosts.save(tx, host, replace(host, draining=order.draining))
    if host.draining != order.draining and host.public_key is not None:
        command = Command(
            command_id=new_command_id(entropy),
            expires_at=now + _DRAIN_S,
            order=Drain() if order.draining else Undrain(),
        )
        host_reports.issue(tx, command, host.id, now)
    if order.draining:
        return (f"{host.name} takes nothing new; what runs there goes on.",)
    return (f"{host.name} takes rentals again.",)


def _insert_token(tx: Tx, host_id: HostId, token_hash: str, now: int) -> None:
    tx.execute(hosts.INSERT_TOKEN, {"hash": token_hash, "host_id": host_id, "expires_at": now + TOKEN_S})


def _named(tx: Tx, name: str) -> Host:
    host = hosts.find_named(tx, name)
    if host is None:
        raise SpawnError(Code.NOT_FOUND, f"There is no host {name}.", next="`spawn hosts list` has them all.")
    return host


def _living(tx: Tx, name: str) -> Host:
    host = _named(tx, name)
    if host.state is HostState.REVOKED:
        raise SpawnError(
            Code.CONFLICT, f"{name} was revoked.", next="Add the machine again, under another name."
        )
    return host
