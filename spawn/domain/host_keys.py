"""The SSH host key that we give a machine, so that its owner can check at the first login whom they talk to.

Invariant: pure; the same seed gives the same key, letter for letter.
"""

from base64 import b64encode
from hashlib import sha256
from ipaddress import ip_address
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

SEED_BYTES: Final = 32
SSH_PORT: Final = 22
_TYPE: Final = b"ssh-ed25519"
_LINE: Final = 70
_CIPHER_BLOCK: Final = 8


class HostKey(msgspec.Struct, frozen=True, kw_only=True):
    """An Ed25519 key pair as OpenSSH writes it: the private file's text, and type and base64 of the public half."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"HostKey(public={self.public!r})"


def host_key(seed: bytes) -> HostKey:
    """The key that this seed of SEED_BYTES is.

    The file is written here (OpenSSH PROTOCOL.key), since libraries draw its check number at random.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    blob = _string(_TYPE) + _string(public)
    check = sha256(b"check" + seed).digest()[:4]
    secret = check + check + blob + _string(seed + public) + _string(b"")
    padding = bytes(range(1, 1 + -len(secret) % _CIPHER_BLOCK))
    no_cipher = _string(b"none") + _string(b"none") + _string(b"")
    file = (
        b"openssh-key-v1\0" + no_cipher + (1).to_bytes(4, "big") + _string(blob) + _string(secret + padding)
    )
    return HostKey(private=_armoured(file), public=_line(blob))


def public_of(private: str) -> str:
    """Type and base64 of the public half of a private key that `host_key` made."""
    key = load_ssh_private_key(private.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("a host key of ours is an Ed25519 key")
    return _line(_string(_TYPE) + _string(key.public_key().public_bytes_raw()))


def known_hosts(public: str, *, ipv4: str | None, ipv6: str | None) -> str | None:
    """A line for ~/.ssh/known_hosts; None as long as the machine has no address.

    ssh looks addresses up as text, in the spelling that `ip_address` has too.
    """
    addresses = [str(ip_address(address)) for address in (ipv4, ipv6) if address is not None]
    return f"{','.join(addresses)} {public}" if addresses else None


def known_host_at(public: str, *, host: str, port: int) -> str:
    """A line for ~/.ssh/known_hosts where sshd is reached at a port of its own."""
    return f"{host if port == SSH_PORT else f'[{host}]:{port}'} {public}"


def _string(value: bytes) -> bytes:
    """RFC 4251 section 5."""
    return len(value).to_bytes(4, "big") + value


def _line(blob: bytes) -> str:
    return f"{_TYPE.decode()} {b64encode(blob).decode()}"


def _armoured(file: bytes) -> str:
    text = b64encode(file).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""])
