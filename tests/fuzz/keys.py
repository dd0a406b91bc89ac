"""SSH public keys: whatever is accepted the library `cryptography` can load, and no refusal repeats what was pasted."""

import base64
from binascii import Error as NotBase64
from random import Random
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from spawn.domain.ssh_keys import parse_public_key
from tests.fuzz.target import Target, spoil_bytes
from tests.unit.test_ssh_keys import (
    ED25519,
    ED25519_POINT,
    SK_ED25519,
    SK_P256,
    line,
    openssh,
    p256_point,
)

REPEATED_MAX: Final = 24
"""Longer than any word of our own sentences."""


def check(data: bytes) -> bool:
    """All of `parse_public_key`."""
    text = data.decode(errors="replace")
    try:
        key = parse_public_key(text)
    except ValueError as refused:
        told = str(refused)
        assert not any(
            word in told for word in text.split() if len(word) > REPEATED_MAX and word not in _OURS
        )
        return False
    again = parse_public_key(key.normalized)
    assert (again.type, again.blob, again.comment) == (key.type, key.blob, "")
    assert base64.b64encode(key.blob).decode() in text
    fields = _fields(key.blob)
    if key.type.startswith("sk-"):
        # The library knows no application but OpenSSH's own; OpenSSH reads every one that is a C string.
        assert b"\0" not in fields[-1]
        fields[-1] = b"ssh:"
    load_ssh_public_key(f"{key.type} {base64.b64encode(_blob(fields)).decode()}".encode())
    return True


def mutate(data: bytes, dice: Random) -> bytes:
    """Spoil the line, or one of the strings that its blob is made of, whose length is then made right or left wrong."""
    words = data.split(b" ")
    if len(words) < 2 or dice.random() < 0.3:
        return spoil_bytes(data, dice)
    try:
        fields = _fields(base64.b64decode(words[1], validate=True))
    except NotBase64:
        return spoil_bytes(data, dice)
    at = dice.randrange(len(fields) + 1)
    match dice.randrange(4):
        case 0:
            fields.insert(at, dice.choice((b"", b"\0", b"\x80", *fields)))
        case 1:
            del fields[at:]
        case _:
            fields = [
                spoil_bytes(field, dice) if place == at else field for place, field in enumerate(fields)
            ]
    blob = _blob(fields)
    if dice.random() < 0.2:
        blob = spoil_bytes(blob, dice)
    words[1] = base64.b64encode(blob)
    return b" ".join(words)


def _fields(blob: bytes) -> list[bytes]:
    """As many strings as there are, and the rest as one more."""
    fields = []
    while len(blob) >= 4:
        end = 4 + int.from_bytes(blob[:4], "big")
        fields.append(blob[4:end])
        blob = blob[end:]
    return [*fields, blob] if blob else fields


def _blob(fields: list[bytes]) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


_CURVES: Final = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
_SEEDS: Final = (
    line(ED25519, ED25519_POINT) + " you@example",
    openssh(rsa.generate_private_key(65537, 2048)),
    openssh(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be refused
    *(openssh(ec.generate_private_key(curve)) for curve in _CURVES),
    openssh(ed25519.Ed25519PrivateKey.generate()),
    line(SK_ED25519, ED25519_POINT, b"ssh:"),
    line(SK_P256, b"nistp256", p256_point(), b"ssh:"),
    line("ssh-dss", b"\1", b"\2", b"\3", b"\4"),
    "ssh-ed25519-cert-v01@openssh.com AAAA",
    'command="true" ssh-ed25519 AAAA',
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\n-----END OPENSSH PRIVATE KEY-----",
)


def _refusal(text: str) -> str:
    try:
        parse_public_key(text)
    except ValueError as refused:
        return str(refused)
    raise AssertionError("that is no key")


_OURS: Final = _refusal("none")
"""Long words that a sentence of ours holds itself: the types we accept."""

TARGET: Final = Target(seeds=tuple(seed.encode() for seed in _SEEDS), check=check, mutate=mutate)
