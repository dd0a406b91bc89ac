"""Names for the things callers hold, so that one kind of id can never stand in for another.

Invariant: an address is lower-case everywhere inside; only the edge that shows it to a wallet may
checksum it.
"""

import re
from base64 import b32encode
from typing import NewType, Protocol

Address = NewType("Address", str)
"""An EVM account, `0x` and 40 lower-case hex digits."""
ServerId = NewType("ServerId", str)
ActionId = NewType("ActionId", str)
"""Names an operation to its caller; 128 random bits, so that knowing it is the right to read it."""
SshKeyId = NewType("SshKeyId", str)
WebhookId = NewType("WebhookId", str)
ReservationId = NewType("ReservationId", str)
HostId = NewType("HostId", str)
"""Names a lent machine."""
RentalId = NewType("RentalId", str)
"""Names what a tenant has on a host: the id of its server, which is all that the host learns of it."""
CommandId = NewType("CommandId", str)

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}")


def parse_address(text: str) -> Address:
    """Return `text` in lower case; raise ValueError unless it is a 20-byte hex address."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("an address is 0x and 40 hex digits")
    return Address(text.lower())


class Entropy(Protocol):
    """Where random bytes come from: the operating system, or a seed in tests."""

    def bytes(self, count: int, /) -> bytes: ...


def _random_text(entropy: Entropy) -> str:
    return b32encode(entropy.bytes(16)).decode().rstrip("=").lower()


def new_server_id(entropy: Entropy) -> ServerId:
    return ServerId("srv_" + _random_text(entropy))


def new_action_id(entropy: Entropy) -> ActionId:
    return ActionId("act_" + _random_text(entropy))


def new_ssh_key_id(entropy: Entropy) -> SshKeyId:
    return SshKeyId("sk_" + _random_text(entropy))


def new_webhook_id(entropy: Entropy) -> WebhookId:
    return WebhookId("wh_" + _random_text(entropy))


def new_host_id(entropy: Entropy) -> HostId:
    return HostId("host_" + _random_text(entropy))


def new_command_id(entropy: Entropy) -> CommandId:
    return CommandId("cmd_" + _random_text(entropy))
