"""The bearer token that Coinbase's facilitator (CDP) wants with each call.

Made for one method and one URL, good for two minutes (CDP API v2, authentication by JWT: ES256 or EdDSA, by the kind
of the key). Invariant: key and token go nowhere but into a request to CDP's own host, over TLS; what prints or logs
this object sees neither.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Final

import httpx
import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from spawn_schemas.ids import Entropy

from spawn.settings import InvalidSetting

CDP_HOST: Final = "api.cdp.coinbase.com"
LIFE_S: Final = 120
_WANTED: Final = (
    "SPAWN_CDP_KEY_SECRET should be the secret of a CDP API key as it was handed out: base64 of 64 bytes (Ed25519), or "
    "a PEM file's text with an EC key on P-256, its line ends as they are or written \\n."
)


class CdpKey:
    """A CDP API key that signs for itself. `now` is unix time in seconds."""

    def __init__(self, key_id: str, secret: str, *, now: Callable[[], int], entropy: Entropy) -> None:
        """Raises InvalidSetting for a secret that is no key, without repeating it."""
        self._key_id = key_id
        self._key = _read(secret)
        self._algorithm = "ES256" if isinstance(self._key, EllipticCurvePrivateKey) else "EdDSA"
        self._now = now
        self._entropy = entropy

    def headers(self, method: str, url: httpx.URL) -> dict[str, str]:
        """The `Authorization` of this call; none at all where it would leave for another host, or in clear."""
        if (url.scheme, url.host, url.port) != ("https", CDP_HOST, None):
            return {}
        now = self._now()
        claims = {
            "iss": "cdp",
            "sub": self._key_id,
            "aud": ["cdp_service"],
            "iat": now,
            "nbf": now,
            "exp": now + LIFE_S,
            "uris": [f"{method} {url.host}{url.path}"],
        }
        # CDP refuses a token whose nonce it has seen.
        header = {"kid": self._key_id, "nonce": self._entropy.bytes(16).hex()}
        token = jwt.encode(claims, self._key, algorithm=self._algorithm, headers=header)
        return {"Authorization": f"Bearer {token}"}


def _read(secret: str) -> EllipticCurvePrivateKey | Ed25519PrivateKey:
    try:
        if "BEGIN" not in secret:
            raw = base64.b64decode(secret, validate=True)
            if len(raw) != 64:  # the seed, then the public key
                raise InvalidSetting(_WANTED)
            return Ed25519PrivateKey.from_private_bytes(raw[:32])
        key = load_pem_private_key(secret.replace("\\n", "\n").encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error):
        # Not chained: what the libraries say may quote the secret.
        raise InvalidSetting(_WANTED) from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        return key
    raise InvalidSetting(_WANTED)
