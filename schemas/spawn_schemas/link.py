"""What the service and a host agent say to each other over the link, one frame a message.

Invariant: desired state lives with the service, and a lost, repeated or late frame costs nothing: a command carries its
id, the generation of its rental and the moment from which it must not begin, and its answer may be asked for again.

A frame is one text message of JSON, `type` first. The agent dials `wss://…/v1/hosts/link`; the service sends
`challenge`, the agent `hello`, the service `welcome`, and from there on both as they need. Public streams do not run
here: for each, `dial` asks the agent for a socket of its own at `…/v1/hosts/data/{stream_id}`.
"""

from typing import Final, Literal, Union
from urllib.parse import urlsplit

import msgspec

from spawn_schemas.ids import HostId, RentalId
from spawn_schemas.inventory import Inventory, Metrics
from spawn_schemas.orders import Ack, Command, Desired, Port, RentalReport

VERSION: Final = 1
"""The only version of this protocol there is; another one is refused at `hello` with `CLOSE_UPGRADE`."""

LINK_PATH: Final = "/v1/hosts/link"
DATA_PATH: Final = "/v1/hosts/data/"
"""Where the agent brings the socket of one stream: this, the stream's id, and `Authorization: Bearer <token>`."""
END_OF_STREAM: Final = "end"
"""The text message on a data socket that says that this side will send no more bytes; binary messages are the bytes."""
FRAME_BYTES_MAX: Final = 1024 * 1024
"""The longest frame that either side takes."""
DATA_BYTES_MAX: Final = 256 * 1024
"""The longest binary message on a data socket."""
STREAM_IDLE_S: Final = 3600.0
"""Either side ends a stream on which nothing passed for so long; a shell that somebody left open is not idle sooner."""

# Why the service closed the link, as WebSocket close codes (RFC 6455 section 7.4.2: 4000 to 4999 are private).
CLOSE_REFUSED: Final = 4401
"""Unknown host, wrong signature, or revoked: dialling again does not help."""
CLOSE_SUPERSEDED: Final = 4409
"""A newer session of the same host is connected."""
CLOSE_UPGRADE: Final = 4426
"""The agent speaks another version."""


class Frame(msgspec.Struct, kw_only=True, tag_field="type"):
    """What every frame carries. `seq` counts each side's frames of one session from 1; a repeated one is dropped.

    `session_epoch` is the service's number of the session, 0 before `welcome`: frames of another are dropped. `ts` is
    the sender's clock in unix milliseconds, so that each side knows how far the other's is off.
    """

    v: int = VERSION
    host_id: HostId
    session_epoch: int
    seq: int
    ts: int


class Challenge(Frame, tag="challenge"):
    """The first frame, by the service; `nonce` is 32 random bytes in hex. `seq` is 0 for all three of the login."""

    nonce: str


class Hello(Frame, tag="hello"):
    """The agent's answer. `signature` is Ed25519 over `login_text`, in base64."""

    signature: str
    agent_version: str


class Welcome(Frame, tag="welcome"):
    """The session is open; `session_epoch` is its number. `silence_s`: a link that is silent for so long is dead."""

    heartbeat_interval_s: int
    silence_s: int
    desired_generation: int


class Heartbeat(Frame, tag="heartbeat"):
    """`rentals` is how many run, `traffic` the bytes in and out of each since its container began."""

    status: Literal["online", "draining", "drained"]
    metrics: Metrics
    rentals: int
    traffic: dict[RentalId, tuple[int, int]] = {}


class HeartbeatAck(Frame, tag="heartbeat_ack"):
    """The service heard it; from now on `heartbeat_interval_s`."""

    heartbeat_interval_s: int


class CommandFrame(Frame, tag="command"):
    command: Command


class AckFrame(Frame, tag="ack"):
    ack: Ack


class StateSync(Frame, tag="state_sync"):
    """All that the host has with our label; on connect, every minute, and when Docker says that something changed."""

    rentals: tuple[RentalReport, ...]
    inventory: Inventory | None = None
    draining: bool = False


class DesiredFrame(Frame, tag="desired"):
    """All that the service wants of this host; the answer to `state_sync`, and whenever it changes.

    A labelled container that is not in it may run for five minutes more, then it is stopped, and stays.
    """

    generation: int
    rentals: tuple[Desired, ...]


class Dial(Frame, tag="dial"):
    """Somebody connected to a public port of a rental: bring a data socket within ten seconds."""

    stream_id: str
    token: str
    rental_id: RentalId
    port: Port


class DialFailed(Frame, tag="dial_failed"):
    """There is nothing to bring a socket for: not rented here, port not open, or nobody listens."""

    stream_id: str
    message: str


ToAgent = Union[Challenge, Welcome, HeartbeatAck, CommandFrame, DesiredFrame, Dial]  # noqa: UP007 - see Order
ToService = Union[Hello, Heartbeat, AckFrame, StateSync, DialFailed]  # noqa: UP007 - see Order


def login_text(*, host_id: HostId, nonce: str, authority: str) -> bytes:
    """What the agent signs at `hello`. `authority` is the host and port it dialled, so that nobody relays a login."""
    return f"spawn-link-1\n{authority}\n{host_id}\n{nonce}".encode()


def authority_of(link_url: str) -> str:
    """The `authority` of `login_text`: host, and port unless it is the scheme's own. Raises ValueError."""
    parts = urlsplit(link_url)
    if not parts.hostname:
        raise ValueError(f"{link_url} names no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_usual = parts.port in (None, {"wss": 443, "ws": 80}.get(parts.scheme))
    return host if is_usual else f"{host}:{parts.port}"
