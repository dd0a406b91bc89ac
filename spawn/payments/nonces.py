"""Names of what may be used once: short, because each is a key in the indexes that every paid call touches.

Invariant: two proofs have the same name exactly when they are the same proof of the same kind.
"""

import hashlib
from base64 import urlsafe_b64encode


def nonce_key(kind: str, *parts: str) -> str:
    """`kind`, and SHA-256 over the parts, each behind its length."""
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return f"{kind}|{urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:43]}"
