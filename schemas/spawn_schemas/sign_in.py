"""The x402 extension `sign-in-with-x` as it travels: our challenge, and what a wallet that signed it sends back.

Invariant: a decoded `SignIn` holds only characters that its field may hold in an EIP-4361 text, so no field can run
over its line and pass for another; whether it is *true* is decided by whoever checks its signature.
"""

from typing import Annotated

import msgspec

from spawn_schemas.x402 import AddressText, HexText

SIGN_IN_WITH_X = "sign-in-with-x"
"""The key of the extension; the header that answers it has the same name."""

EIP191 = "eip191"

NONCE_MIN = 8
NONCE_MAX = 128
"""EIP-4361 wants 8 letters and digits at least; ours have 32, and nobody needs more than we remember of a request."""

# `\Z` and not `$`, which would let a trailing newline through. The character sets are those of RFC 3986.
NonceText = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9]{{{NONCE_MIN},{NONCE_MAX}}}\Z")]
UriText = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*\Z")
]
StatementText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;= -]*\Z")]
RequestIdText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~:@!$&'()*+,;=%-]*\Z")]


class SignIn(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The `SIGN-IN-WITH-X` header. Times are RFC 3339, `chain_id` is CAIP-2 (`eip155:8453`)."""

    domain: str
    address: AddressText
    uri: UriText
    version: str
    chain_id: str
    type: str
    nonce: NonceText
    issued_at: str
    statement: StatementText | None = None
    expiration_time: str | None = None
    not_before: str | None = None
    request_id: RequestIdText | None = None
    resources: tuple[UriText, ...] | None = None
    signature_scheme: str | None = None
    signature: HexText


class SignInInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a wallet is asked to sign; it adds its address and its chain."""

    domain: str
    uri: str
    version: str
    nonce: str
    issued_at: str
    expiration_time: str
    statement: str


class SignInChain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A chain whose accounts may sign in, and how they sign."""

    chain_id: str
    type: str


class SignInExtension(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The value of `extensions["sign-in-with-x"]` in a challenge. `schema` describes the header that answers it."""

    info: SignInInfo
    supported_chains: tuple[SignInChain, ...]
    schema: msgspec.Raw
