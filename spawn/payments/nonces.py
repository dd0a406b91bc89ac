"""Names of what may be used once: short, because each is a key in the indexes that every paid call touches.

Invariant: two proofs have the same name exactly when they are the same proof of the same kind.
"""

import hashlib


def nonce_key(kind: str, scope: str, nonce: str) -> str:
    """`kind`, and 160 bits of SHA-256 over the rest. `scope`, in which a nonce counts once, holds no bar."""
    return f"{kind}|{hashlib.sha256(f'{scope}|{nonce}'.encode()).hexdigest()[:40]}"
