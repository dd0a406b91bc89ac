"""What the link needs of the host's identity, wherever its key is kept.

Invariant: the private key stays behind `sign`.
"""

from typing import Protocol

from spawn_schemas.ids import HostId


class Signer(Protocol):
    """This host, registered."""

    @property
    def host_id(self) -> HostId:
        """The name that the service gave it."""
        ...

    @property
    def service(self) -> str:
        """The address of the service's HTTP API, without a slash at its end."""
        ...

    @property
    def link_url(self) -> str:
        """Where the link is dialled: `wss://…`, with or without the path of the link."""
        ...

    @property
    def public_key(self) -> str:
        """What signs now: raw Ed25519, in base64."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        ...

    def headers(self, method: str, path: str, body: bytes, *, now_s: int, nonce: str) -> dict[str, str]:
        """What proves a plain call, as `spawn_schemas.hosts` has it; `now_s` by the service's clock."""
        ...

    async def rotate(self) -> None:
        """Make another key and have the service take it. After a crash in the middle it may be called again."""
        ...

    def switch(self) -> bool:
        """The service refused the key: sign with the other one of a rotation that broke off; False if there is none."""
        ...

    def finish_rotation(self, accepted: str) -> None:
        """The service believed this public key after a `switch`: keep it alone."""
        ...
