"""Names of what may be used once: short, because each is a key in the indexes that every paid call touches.

Invariant: two proofs have the same name exactly when they are the same proof of the same kind.
"""

import hashlib
from base64 import urlsafe_b64encode

from spawn_schemas.ids import Address, ReservationId


def nonce_key(kind: str, scope: str, nonce: str) -> ReservationId:
    """`kind`, and 160 bits of SHA-256 over the rest, in base64url (RFC 4648).

    `scope`, in which a nonce counts once, holds no bar.
    """
    digest = hashlib.sha256(f"{scope}|{nonce}".encode()).digest()[:20]
    return ReservationId(f"{kind}_{urlsafe_b64encode(digest).decode()[:-1]}")


def authorization_key(chain_id: int, asset: Address, payer: Address, nonce: str) -> ReservationId:
    """The name of an EIP-3009 authorization; `nonce` is 0x and 64 lower-case hex digits."""
    return nonce_key("x402", f"{chain_id} {asset} {payer}", nonce)
