"""A host agent's calls over plain HTTP: registration, another key, and the heartbeat of who cannot hold a socket.

Invariant: the private key never leaves the host. A signature proves a call; a token does so once, at registration.
"""

from typing import Annotated, Final, Literal

import msgspec

from spawn_schemas.ids import HostId
from spawn_schemas.inventory import Inventory, Metrics
from spawn_schemas.orders import Ack, Command, Desired, RentalReport

REGISTER_PATH: Final = "/v1/hosts/register"
KEY_PATH: Final = "/v1/hosts/key"
HEARTBEAT_PATH: Final = "/api/hosts/heartbeat"

HOST_HEADER: Final = "Spawn-Host"
TIMESTAMP_HEADER: Final = "Spawn-Timestamp"
NONCE_HEADER: Final = "Spawn-Nonce"
SIGNATURE_HEADER: Final = "Spawn-Signature"
CLOCK_SKEW_S: Final = 60
"""How far a signed call's clock may be off."""

TOKEN_PREFIX: Final = "spwn_reg_"  # noqa: S105 - what every token begins with
"""What a registration token begins with; it is good once, for 24 hours."""

Base64 = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[A-Za-z0-9+/]+={0,2}$(?!\n)")]
HostName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$(?!\n)",
        description="Lower-case letters, digits and hyphens, 32 at most.",
        examples=["attic-4090"],
    ),
]


class RegisterHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`public_key` is raw Ed25519 in base64; `proof` its signature over `registration_text`."""

    token: Annotated[str, msgspec.Meta(max_length=128)]
    public_key: Base64
    proof: Base64
    inventory: Inventory
    agent_version: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[ -~]*$(?!\n)")]


class HostRegistered(msgspec.Struct, frozen=True, kw_only=True):
    """`link_url` is where the agent dials out to (`wss://…`)."""

    host_id: HostId
    name: str
    link_url: str
    heartbeat_interval_s: int


class ChangeKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signed as a call by the old key; `proof` is the new one's signature over `registration_text` of the host's id."""

    public_key: Base64
    proof: Base64


class KeyChanged(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["changed"]


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """Our own form of the fallback heartbeat. The forms of `{"event": …, "data": …}` and `{"hostId": …}` are read, too.

    `acks` are what came of commands of earlier answers.
    """

    status: Literal["online", "draining", "drained"] = "online"
    metrics: Metrics = Metrics()
    rentals: tuple[RentalReport, ...] = ()
    inventory: Inventory | None = None
    acks: tuple[Ack, ...] = ()


class BeatAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """`commands` come again with each answer until one of the heartbeats acknowledges them."""

    ok: Literal[True]
    commands: tuple[Command, ...]
    desired: tuple[Desired, ...]
    desired_generation: int
    next_s: int


def registration_text(secret: str, public_key: str) -> bytes:
    """What a new key signs to show that somebody has it; `secret` is the token, or the host's id at a change of key."""
    return f"spawn-host-key-1\n{secret}\n{public_key}".encode()


def request_text(
    *, method: str, path: str, body_sha256: str, timestamp_s: int, nonce: str, host_id: HostId
) -> bytes:
    """What a host signs of each plain call; `body_sha256` in hex."""
    return f"spawn-host-call-1\n{host_id}\n{method}\n{path}\n{body_sha256}\n{timestamp_s}\n{nonce}".encode()
