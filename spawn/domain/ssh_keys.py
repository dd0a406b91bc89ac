"""Public SSH keys as their owners paste them: read as strictly as sshd will read them.

A key that sshd ignores leaves its owner with a server that is paid for and locked. Invariant: a `SshPublicKey` is
a well-formed key of a type we accept, and no refusal repeats what was pasted, which may be a secret.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

TEXT_BYTES_MAX: Final = 16 * 1024
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 16384
"""OpenSSH reads no larger numbers."""

_PRIVATE_KEY: Final = re.compile(
    r"-{4,5} ?(?:BEGIN|END) [A-Z0-9 ]*PRIVATE KEY"  # PEM (RFC 7468), OpenSSH, and the vendor of SSH2
    r"|b3BlbnNzaC1rZXktdj"  # the base64 of "openssh-key-v": an OpenSSH key without its first line
    r"|PuTTY-User-Key-File|Private-Lines:"
)
_EXAMPLE: Final = "A public key is one line such as: ssh-ed25519 AAAAC3… you@example"
_MALFORMED: Final = "The key is damaged: copy the whole line of your .pub file again."


class SshPublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A public key. `blob` is its wire form (RFC 4253 section 6.6)."""

    type: str
    blob: bytes
    comment: str

    @property
    def normalized(self) -> str:
        """The one line that goes into authorized_keys: type and base64, no comment."""
        return f"{self.type} {b64encode(self.blob).decode()}"

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and the unpadded base64 of the blob's digest, as `ssh-keygen -l` prints it."""
        return "SHA256:" + b64encode(sha256(self.blob).digest()).decode().rstrip("=")


def parse_public_key(text: str) -> SshPublicKey:
    """Read one public key, as in a .pub file or a line of authorized_keys without options.

    Raises ValueError with a sentence for the owner, which repeats nothing of `text`.
    """
    if _PRIVATE_KEY.search(text):
        raise ValueError(
            "This is a private key. Consider it compromised: make a new pair with `ssh-keygen -t ed25519` "
            "and send the public half, the file that ends in .pub."
        )
    line = text.strip(" \t\r\n").replace("\t", " ")
    if len(line.encode(errors="replace")) > TEXT_BYTES_MAX:
        raise ValueError("The key is too long: a public key has at most 16 KiB.")
    if "\n" in line or "\r" in line:
        raise ValueError(f"Send one key, on one line. {_EXAMPLE}")
    if not line.isprintable():
        raise ValueError(f"The key contains unprintable characters. {_EXAMPLE}")
    key_type, encoded, comment = _split(line)
    blob = _decode(encoded)
    _check_blob(key_type, blob)
    return SshPublicKey(type=key_type, blob=blob, comment=comment)


def _split(line: str) -> tuple[str, str, str]:
    """Return type, base64 and comment; raise ValueError unless the line begins with a type we accept."""
    first, *rest = line.split(" ", 1)
    if first == "ssh-dss":
        raise ValueError(
            "DSA keys (ssh-dss) are too weak, and OpenSSH accepts them no more: make a key with "
            "`ssh-keygen -t ed25519`."
        )
    if first.endswith(("-cert-v01@openssh.com", "-cert-v00@openssh.com")):
        raise ValueError("This is a certificate: send the public key it was made for.")
    if first not in _CHECKS:
        if any(word in _CHECKS for word in line.split(" ")):
            raise ValueError("Begin with the key's type: options before it are not accepted.")
        raise ValueError(f"This is no public key of a type we accept ({', '.join(_CHECKS)}). {_EXAMPLE}")
    encoded, _, comment = "".join(rest).strip().partition(" ")
    return first, encoded, comment.strip()


def _decode(encoded: str) -> bytes:
    try:
        blob = b64decode(encoded, validate=True)
    except ValueError:
        raise ValueError(_MALFORMED) from None
    # One key has one spelling, or two texts of it could differ.
    if b64encode(blob).decode() != encoded:
        raise ValueError(_MALFORMED)
    return blob


def _check_blob(key_type: str, blob: bytes) -> None:
    fields = _strings(blob)
    if not fields or fields[0] != key_type.encode():
        raise ValueError("The key's type does not match its contents: copy the whole line of your .pub file.")
    _CHECKS[key_type](fields[1:])


def _strings(blob: bytes) -> list[bytes]:
    """Split a blob into the strings it is made of, each behind its length (RFC 4251 section 5).

    An mpint is written as a string too, so every type we accept is a sequence of them and nothing else.
    """
    fields = []
    at = 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if at + 4 > len(blob) or end > len(blob):
            raise ValueError(_MALFORMED)
        fields.append(blob[at + 4 : end])
        at = end
    return fields


def _check_ed25519(fields: list[bytes]) -> None:
    """RFC 8709 section 4: the 32-byte key."""
    if len(fields) != 1 or len(fields[0]) != 32:
        raise ValueError(_MALFORMED)


def _check_rsa(fields: list[bytes]) -> None:
    """RFC 4253 section 6.6: mpint e, mpint n."""
    if len(fields) != 2:
        raise ValueError(_MALFORMED)
    exponent, modulus = map(_natural, fields)
    bits = modulus.bit_length()
    if bits < RSA_BITS_MIN:
        raise ValueError(
            f"The RSA key has {bits} bits; at least {RSA_BITS_MIN} are needed. Make one with `ssh-keygen -t ed25519`."
        )
    if bits > RSA_BITS_MAX:
        raise ValueError(f"The RSA key has {bits} bits; OpenSSH reads {RSA_BITS_MAX} at most.")
    if not 3 <= exponent < modulus or exponent % 2 == 0 or modulus % 2 == 0:
        raise ValueError("This is no RSA key: its numbers are even, or its exponent is out of range.")


def _natural(field: bytes) -> int:
    """Read a positive mpint; RFC 4251 section 5 forbids superfluous zeros, and the first bit is the sign."""
    superfluous = field[:1] == b"\0" and field[1:2] < b"\x80"
    if superfluous or field[:1] >= b"\x80":
        raise ValueError(_MALFORMED)
    return int.from_bytes(field, "big")


def _ecdsa(name: bytes, curve: ec.EllipticCurve) -> Callable[[list[bytes]], None]:
    """RFC 5656 section 3.1: the curve's name, and an uncompressed point (SEC 1 section 2.3.3) on it."""
    point_bytes = 1 + 2 * ((curve.key_size + 7) // 8)

    def check(fields: list[bytes]) -> None:
        if len(fields) != 2:
            raise ValueError(_MALFORMED)
        named, point = fields
        if named != name or len(point) != point_bytes or point[0] != 4:
            raise ValueError(_MALFORMED)
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError:
            raise ValueError("This is no ECDSA key: its point is not on the curve.") from None

    return check


def _security_key(check: Callable[[list[bytes]], None]) -> Callable[[list[bytes]], None]:
    """OpenSSH PROTOCOL.u2f: the fields of the plain key, then the application, usually `ssh:`.

    OpenSSH reads the application as a C string, and no key that has a NUL in it.
    """

    def check_with_application(fields: list[bytes]) -> None:
        if not fields or not fields[-1] or b"\0" in fields[-1]:
            raise ValueError(_MALFORMED)
        check(fields[:-1])

    return check_with_application


_check_p256: Final = _ecdsa(b"nistp256", ec.SECP256R1())

_CHECKS: Final[dict[str, Callable[[list[bytes]], None]]] = {
    "ssh-ed25519": _check_ed25519,
    "ecdsa-sha2-nistp256": _check_p256,
    "ecdsa-sha2-nistp384": _ecdsa(b"nistp384", ec.SECP384R1()),
    "ecdsa-sha2-nistp521": _ecdsa(b"nistp521", ec.SECP521R1()),
    "sk-ssh-ed25519@openssh.com": _security_key(_check_ed25519),
    "sk-ecdsa-sha2-nistp256@openssh.com": _security_key(_check_p256),
    "ssh-rsa": _check_rsa,
}
"""What is checked of each type we accept, given the strings that follow the type in its blob."""
