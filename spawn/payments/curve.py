"""Ethereum's hash and signature recovery, each behind one function, so that the library can change alone.

Invariant: `recover` accepts exactly the signatures that the USDC contract accepts from an ordinary account,
so what is accepted here cannot be refused there for its form.
"""

from functools import lru_cache
from typing import Final

from sha3 import keccak_256  # type: ignore[import-untyped]  # a C extension without annotations
from spawn_schemas.ids import Address
from spec256k1 import PublicKey

_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_N: Final = _ORDER.to_bytes(32, "big")
_HALF_N: Final = (_ORDER // 2).to_bytes(32, "big")
_ZERO: Final = bytes(32)
_RECOVERY_ID: Final = {27: b"\x00", 28: b"\x01"}


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it (the padding of the original submission, not of FIPS 202)."""
    digest: bytes = keccak_256(data).digest()
    return digest


def personal_digest(message: bytes) -> bytes:
    """The hash that a wallet signs for a message of bytes (EIP-191, version 0x45)."""
    return keccak256(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message))


def recover(digest: bytes, signature: bytes) -> Address:
    """Return the account that signed the 32-byte `digest` with `signature` (r, s, v: 65 bytes).

    Raises ValueError with the reason for a signature that the token contract would refuse: high s (EIP-2),
    v other than 27 and 28, r or s outside 1..n-1, or a point that is not on the curve.
    """
    if len(signature) != 65:
        raise ValueError(f"a signature is 65 bytes, not {len(signature)}")
    recovery_id = _RECOVERY_ID.get(signature[64])
    if recovery_id is None:
        raise ValueError("v, the last byte of the signature, must be 27 or 28")
    # Big-endian bytes of one length compare as the numbers do.
    if not _ZERO < signature[:32] < _N:
        raise ValueError("r is outside the range of the curve")
    s = signature[32:64]
    if s == _ZERO or s > _HALF_N:
        raise ValueError("s is zero or in the upper half of the range (EIP-2)")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + recovery_id, digest)
    except ValueError as error:
        raise ValueError("the signature belongs to no key") from error
    return Address("0x" + keccak256(key.format(compressed=False)[1:])[12:].hex())


@lru_cache(maxsize=16_384)
def checksummed(address: Address) -> str:
    """The mixed-case spelling of EIP-55, which wallets show and x402 clients compare letter by letter."""
    digits = address[2:]
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if mark >= "8" else digit for digit, mark in zip(digits, marks, strict=False)
    )
