"""Who a request proves to be: read from its bytes alone, by the specifications and not by the product's verifier.

Invariant: a wallet is named only if its own key signed exactly what was sent (a payment its authorization, a signed
request its method, path, query and body, a sign-in its text), or if the bearer was handed to it. Times are not judged.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from coincurve import PublicKey

from spawn.settings import Settings
from tests.sim.attacker_proofs import (
    CURVE_ORDER,
    V1_NETWORKS,
    authorization_digest,
    keccak,
    offer_of,
    sign_in_text,
    text_digest,
)
from tests.sim.client_types import Request

PROOFS: Final = ("payment-signature", "x-payment", "signature-input", "authorization", "sign-in-with-x")
"""Headers that say who calls, the one that decides first."""
_INPUT: Final = re.compile(
    r'([a-z][a-z0-9_]*)=(\(("[^"]*"(?: "[^"]*")*)\);.*keyid="erc8128:(\d+):(0x[0-9a-fA-F]{40})".*)'
)


def recovered(digest: bytes, signature: bytes) -> str | None:
    """The account that made this signature; None for one that the token would not take (EIP-2)."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > CURVE_ORDER // 2:
        return None
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), digest, hasher=None
        )
    except ValueError:
        return None
    return "0x" + keccak(key.format(compressed=False)[1:])[12:].hex()


def proof_of(request: Request) -> str | None:
    """The name of the header that decides who calls."""
    headers = {name.lower() for name in request.headers}
    return next((name for name in PROOFS if name in headers), None)


class Callers:
    """Reads proofs for one service. `tokens` are the bearers that it handed out, and to whom.

    `owner_of` says whose key code at an account stands by (EIP-1271), or None where there is no code.
    """

    def __init__(self, settings: Settings, owner_of: Callable[[str], str | None]) -> None:
        self._settings = settings
        self._owner_of = owner_of
        self._chain = settings.x402_network.removeprefix("eip155:")
        self.tokens: dict[str, str] = {}

    def who(self, request: Request) -> str | None:
        """The wallet that this request is proven to come from, or None."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        match proof_of(request):
            case "payment-signature":
                return self._paid(_decoded(headers["payment-signature"]), self._settings.x402_network)
            case "x-payment":
                network = V1_NETWORKS.get(self._settings.x402_network, "")
                return self._paid(_decoded(headers["x-payment"]), network)
            case "signature-input":
                return self._signed(request, headers)
            case "authorization":
                return self.tokens.get(headers["authorization"].removeprefix("Bearer "))
            case "sign-in-with-x":
                return self._signed_in(_decoded(headers["sign-in-with-x"]))
            case _:
                return None

    def _paid(self, payload: Any, network: str) -> str | None:
        try:
            inner = payload["payload"]
            authorization = {name: str(value) for name, value in inner["authorization"].items()}
            named = payload.get("network") or payload["accepted"]["network"]
            if named != network or authorization["to"].lower() != self._settings.pay_to:
                return None
            payer = authorization["from"].lower()
            digest = authorization_digest(offer_of(self._settings, 0), authorization)
            signature = bytes.fromhex(inner["signature"][2:])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if recovered(digest, signature) == payer:
            return payer
        owner = self._owner_of(payer)
        return payer if owner is not None and recovered(digest, signature[:65]) == owner else None

    def _signed(self, request: Request, headers: Mapping[str, str]) -> str | None:
        read = _INPUT.fullmatch(headers["signature-input"])
        if read is None or read[4] != self._chain:
            return None
        label, parameters, names = read[1], read[2], read[3].split(" ")
        derived = {
            '"@authority"': self._settings.authority,
            '"@method"': request.method,
            '"@path"': request.path,
            '"@query"': f"?{request.query}",
        }
        digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
        needed = [*list(derived)[:3], *(['"@query"'] if request.query else [])]
        if request.body:
            needed.append('"content-digest"')
            if headers.get("content-digest") != f"sha-256=:{digest}:":
                return None
        if any(name not in names for name in needed):
            return None
        lines = [f"{name}: {derived.get(name, headers.get(name.strip(chr(34)), ''))}" for name in names]
        made = headers.get("signature", "").removeprefix(f"{label}=:").removesuffix(":")
        signer = recovered(
            text_digest("\n".join([*lines, f'"@signature-params": {parameters}'])), from_base64(made)
        )
        return signer if signer == read[5].lower() else None

    def _signed_in(self, claim: Any) -> str | None:
        try:
            signer = recovered(text_digest(sign_in_text(claim)), bytes.fromhex(claim["signature"][2:]))
            is_ours = claim["domain"] == self._settings.authority and claim["address"].lower() == signer
        except (KeyError, TypeError, ValueError):
            return None
        return signer if is_ours else None


def _decoded(header: str) -> Any:
    try:
        return json.loads(from_base64(header))
    except ValueError:
        return None


def from_base64(text: str) -> bytes:
    """What it holds; nothing, where it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
