"""Sessions: a wallet that has proven itself once reads for a quarter of an hour with a bearer token.

Stateless: the token itself says whose it is and until when, under an HMAC (RFC 2104) of ours. Invariant: a `Session`
was issued by a service with our secret key and has not expired. Whoever holds the token can read what the wallet
could, and no more: it opens no other session and changes nothing.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address

SESSION_S: Final = 900
ID_BYTES: Final = 16
PREFIX: Final = "spawn_session_"
"""Tells our tokens from those that callers carry for somebody else, and secret scanners what they found."""

_KEY_LABEL: Final = b"spawn session key 1"
"""The secret key seals the vault as well; a key derived under a label of its own keeps the two uses apart."""
_ADDRESS_BYTES: Final = 20
_TIME_BYTES: Final = 8
_SIGNED_BYTES: Final = _ADDRESS_BYTES + ID_BYTES + _TIME_BYTES


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Whose session it is. `id` names it in logs, where the token must not be; `expires` is unix seconds."""

    wallet: Address
    id: str
    expires: int


def find_token(authorization: str) -> str | None:
    """The token of an `Authorization: Bearer` header, if it is one of ours; other credentials are not our business."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and token.startswith(PREFIX) else None


class Sessions:
    """Issues tokens and reads them back. `key` is the service's secret key; nothing else is kept."""

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, _KEY_LABEL, "sha256")

    def issue(self, wallet: Address, *, entropy: bytes, now: int) -> str:
        """A token for `wallet`, good until `now` + SESSION_S; `entropy` is ID_BYTES that make it unlike any other."""
        expires = now + SESSION_S
        signed = bytes.fromhex(wallet[2:]) + entropy + expires.to_bytes(_TIME_BYTES, "big")
        return PREFIX + _text(signed + self._mac(signed))

    def verify(self, token: str, *, now: int) -> Session:
        """Return whose session it is; raise SpawnError(INVALID_SIGNATURE) for a token that is not ours or is over."""
        raw = _bytes(token.removeprefix(PREFIX)) if token.startswith(PREFIX) else b""
        signed, mac = raw[:_SIGNED_BYTES], raw[_SIGNED_BYTES:]
        if not hmac.compare_digest(mac, self._mac(signed)):
            raise _refusal("session_invalid", "This session token was not issued by this service.")
        session = Session(
            wallet=Address("0x" + signed[:_ADDRESS_BYTES].hex()),
            id=signed[_ADDRESS_BYTES:-_TIME_BYTES].hex(),
            expires=int.from_bytes(signed[-_TIME_BYTES:], "big"),
        )
        if now >= session.expires:
            raise _refusal(
                "session_expired", f"The session ended; a session lasts {SESSION_S // 60} minutes."
            )
        return session

    def _mac(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, "sha256")


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """What `_text` wrote; empty for every other text, so that a token has one spelling."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""
    return raw if _text(raw) == text else b""


def _refusal(reason: str, message: str) -> SpawnError:
    return SpawnError(
        Code.INVALID_SIGNATURE,
        message,
        details={"reason": reason},
        next="POST /v1/sessions for a new one, signed with your wallet.",
    )
