"""The HTTP API as structs: what callers send and what they get back.

Invariant: requests forbid unknown fields, answers have no hidden ones; money is a decimal string,
a moment an ISO 8601 UTC string, an address lower-case.
"""

from typing import Annotated, Literal

import msgspec

from spawn_schemas.lent import ContainerView, PortView, SshView
from spawn_schemas.money import UsdcText

# A pattern ends in `$(?!\n)`: Python's `$` lets a line end pass, and the `\Z` that does not is unknown to ECMA-262,
# in whose dialect OpenAPI publishes patterns.
Moment = Annotated[str, msgspec.Meta(description="UTC, ISO 8601.", examples=["2026-02-24T10:00:00Z"])]
ServerType = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9-]{1,32}$(?!\n)", description="A type of `GET /v1/catalog`.", examples=["small"]
    ),
]
ImageName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9.-]{1,64}$(?!\n)",
        description="An image of `GET /v1/catalog`.",
        examples=["ubuntu-24.04"],
    ),
]
LocationName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9-]{1,32}$(?!\n)", description="A location of `GET /v1/catalog`.", examples=["nbg1"]
    ),
]
Hostname = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$(?!\n)",
        description="Letters, digits and hyphens, 63 at most; unique among the wallet's servers.",
        examples=["my-agent-node"],
    ),
]
AmountText = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$(?!\n)",
        description="USDC as a decimal string with up to six decimals.",
        examples=["5.00"],
    ),
]
"""An amount in a request: never negative, unlike what an answer may say of a change."""
Network = Literal["dual", "ipv6"]
ActionStatus = Literal["running", "success", "error"]


# --- requests -------------------------------------------------------------------------------------------------


class Fallback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another location, another type or both; what is left out is as ordered."""

    type: ServerType | None = None
    location: LocationName | None = None


class CreateServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server to rent. `fund` adds to the price and to the balance, so that one call can buy a server."""

    name: Hostname
    type: ServerType
    image: ImageName
    location: LocationName
    ssh_keys: Annotated[
        tuple[str, ...], msgspec.Meta(max_length=20, description="Ids of registered keys.")
    ] = ()
    user_data: (
        Annotated[
            str,
            msgspec.Meta(
                max_length=32768,
                description="For cloud-init: a script, a cloud-config or a multipart archive. It shares 32 KiB with "
                "what we plant, and runs again after a rebuild.",
            ),
        ]
        | None
    ) = None
    host_key: Annotated[
        bool,
        msgspec.Meta(
            description="An Ed25519 host key made by us, told as `known_hosts`; false: the machine makes its own."
        ),
    ] = True
    network: Network = "dual"
    auto_renew: Annotated[
        bool, msgspec.Meta(description="Go on from the available balance when the deposit is used up.")
    ] = True
    fallback: Annotated[
        tuple[Fallback, ...],
        msgspec.Meta(
            max_length=5,
            description="What to order instead, in this order, where the provider has no room. Each at its own price.",
        ),
    ] = ()
    deposit: (
        Annotated[
            AmountText,
            msgspec.Meta(
                description="The server's reserve; by default the catalog's, at least one day of burn."
            ),
        ]
        | None
    ) = None
    fund: (
        Annotated[
            AmountText, msgspec.Meta(description="Paid on top of the fee and credited to the balance first.")
        ]
        | None
    ) = None


class UpdateServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed about a server without touching the machine."""

    name: Hostname | None = None
    auto_renew: bool | None = None


class ResizeServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: ServerType
    upgrade_disk: Annotated[
        bool, msgspec.Meta(description="Grow the disk too; it can never shrink again.")
    ] = False


class RebuildServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    image: ImageName


class FundServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Move money from the available balance into a server's deposit."""

    amount: AmountText


class Deposit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    amount: AmountText


class RegisterSshKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[
        str,
        msgspec.Meta(
            min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)", examples=["my-laptop"]
        ),
    ]
    public_key: Annotated[
        str, msgspec.Meta(max_length=16384, examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI... user@host"])
    ]


# --- answers --------------------------------------------------------------------------------------------------


class PublicNet(msgspec.Struct, frozen=True, kw_only=True):
    ipv4: str | None
    ipv6: str | None


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A server as create and list show it. `hetzner_id` is null until known, and for other providers."""

    id: str
    hetzner_id: int | None
    name: str
    type: str
    status: str
    image: str
    location: str
    public_net: PublicNet
    created_at: Moment
    owner_wallet: str


class ReadyView(msgspec.Struct, frozen=True, kw_only=True):
    """How far the machine says that it has come since it was ordered or rebuilt.

    `ssh` is when its sshd answered, `reported_at` when its cloud-init told how it had ended, and `log` the end of what
    it wrote, which only `GET /v1/servers/{server_id}` shows.
    """

    ssh: Moment | None
    cloud_init: Literal["pending", "done", "failed"]
    reported_at: Moment | None
    log: str | None


class TrafficView(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes since the calendar month (UTC) began, as last counted. Of what goes out `included_bytes` are free.

    `charged` is what the rest cost so far, at `overage_usdc_per_tb` for each 2^40 bytes; null: nothing is asked for it.
    """

    ingoing_bytes: int
    outgoing_bytes: int
    included_bytes: int
    overage_usdc_per_tb: UsdcText | None
    charged: UsdcText


class ServerView(ServerSummary, frozen=True, kw_only=True):
    """A server in full. `deposit_expires_at` is when its money ends at today's burn.

    `ssh_host_keys` are the ones that we planted, `known_hosts` the line for them at its present addresses. `ready` is
    null where the machine was told nothing that it could report by. `ssh` and `ports` say where one on a lent machine,
    which has no address of its own, is reached, and `container` how it is there; for any other they are null and empty.
    """

    cores: int
    memory_gb: int
    disk_gb: int
    network: str
    ssh_keys: tuple[str, ...]
    auto_renew: bool
    daily_burn: UsdcText
    deposit_remaining: UsdcText
    deposit_expires_at: Moment | None
    traffic: TrafficView | None
    reason: str | None
    action: str | None
    root_password: str | None
    ssh_host_keys: tuple[str, ...]
    known_hosts: str | None
    ready: ReadyView | None
    ssh: SshView | None = None
    ports: tuple[PortView, ...] = ()
    container: ContainerView | None = None


class ActionError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class ActionSummary(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    status: ActionStatus
    command: str
    started: Moment


class ActionView(ActionSummary, frozen=True, kw_only=True):
    finished: Moment | None
    error: ActionError | None
    server_id: str


class ServerCreated(msgspec.Struct, frozen=True, kw_only=True):
    """`deposit_charged` is the server's reserve, `deposit_remaining` the wallet's available balance."""

    server: ServerSummary
    action: ActionSummary
    deposit_charged: UsdcText
    deposit_remaining: UsdcText
    root_password: str | None


class PageMeta(msgspec.Struct, frozen=True, kw_only=True):
    page: int
    per_page: int
    total: int


class ServerList(msgspec.Struct, frozen=True, kw_only=True):
    servers: tuple[ServerSummary, ...]
    meta: PageMeta


class ServerShown(msgspec.Struct, frozen=True, kw_only=True):
    server: ServerView


class ServerDestroyed(msgspec.Struct, frozen=True, kw_only=True):
    """`deposit_refunded` is what came back to the balance, a fee paid from the balance already taken from it."""

    status: Literal["deleted"]
    deposit_refunded: UsdcText
    action: ActionSummary


class ServerFunded(msgspec.Struct, frozen=True, kw_only=True):
    server: ServerView
    available: UsdcText


class ActionStarted(msgspec.Struct, frozen=True, kw_only=True):
    action: ActionSummary


class ActionShown(msgspec.Struct, frozen=True, kw_only=True):
    action: ActionView


class ServerResized(msgspec.Struct, frozen=True, kw_only=True):
    """`deposit_delta` is the change of the available balance: negative for an upgrade."""

    action: ActionSummary
    new_type: str
    deposit_delta: UsdcText


class ServerRebuilt(msgspec.Struct, frozen=True, kw_only=True):
    action: ActionSummary
    root_password: str | None


class SshKeyView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    fingerprint: str
    created_at: Moment
    owner_wallet: str


class SshKeyShown(msgspec.Struct, frozen=True, kw_only=True):
    ssh_key: SshKeyView


class SshKeyList(msgspec.Struct, frozen=True, kw_only=True):
    ssh_keys: tuple[SshKeyView, ...]


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["deleted"]


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """`balance` = `available` + `reserved`, each accrued to this second."""

    balance: UsdcText
    reserved: UsdcText
    available: UsdcText


class Deposited(BalanceView, frozen=True, kw_only=True):
    deposited: UsdcText


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the statement. `amount` is signed by what it did to `balance`; an internal move did nothing."""

    id: str
    kind: str
    amount: UsdcText
    internal: bool
    reference: str
    at: Moment


class TransactionList(msgspec.Struct, frozen=True, kw_only=True):
    transactions: tuple[TransactionView, ...]
    next_cursor: str | None


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A right to read, until `expires_at`; `expires_in` is in seconds. `token` is null in a repeated answer."""

    token: Annotated[str, msgspec.Meta(description="Send it as `Authorization: Bearer`; shown once.")] | None
    wallet: str
    expires_at: Moment
    expires_in: int


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True):
    session: SessionView


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["ok"]
    version: str
    schema: str
    providers: tuple[str, ...]
