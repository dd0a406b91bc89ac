"""Sign requests to spawn with a wallet, so that they are paid from its prepaid balance.

    client = httpx.Client(auth=SignedRequestAuth(account, chain_id=84532), base_url="http://127.0.0.1:8402")
    client.get("/v1/balance")

The format is HTTP Message Signatures (RFC 9421) as ERC-8128 profiles it; libraries for other languages exist.
Needs `httpx` and `eth-account`.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Generator

import httpx
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount


class SignedRequestAuth(httpx.Auth):
    """Adds a signature to every request, good for one use within `lifetime_s` seconds (at most 60)."""

    requires_request_body = True

    def __init__(
        self,
        account: LocalAccount,
        chain_id: int,
        *,
        lifetime_s: int = 60,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._account = account
        self._keyid = f"erc8128:{chain_id}:{account.address.lower()}"
        self._lifetime_s = lifetime_s
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        parts = self._covered(request)
        created = int(self._clock())
        names = " ".join(f'"{name}"' for name in parts)
        parameters = (
            f"({names});created={created};expires={created + self._lifetime_s}"
            f';nonce="{secrets.token_urlsafe(16)}";keyid="{self._keyid}"'
        )
        lines = [f'"{name}": {value}' for name, value in parts.items()]
        base = "\n".join([*lines, f'"@signature-params": {parameters}'])
        signature = self._account.sign_message(encode_defunct(text=base)).signature
        request.headers["Signature-Input"] = f"eth={parameters}"
        request.headers["Signature"] = f"eth=:{base64.b64encode(signature).decode()}:"
        yield request

    def _covered(self, request: httpx.Request) -> dict[str, str]:
        """What the signature speaks for: all that says what is asked, and of whom."""
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        parts = {"@authority": request.url.netloc.decode("ascii"), "@method": request.method, "@path": path}
        if query:
            parts["@query"] = f"?{query}"
        if request.content:
            digest = base64.b64encode(hashlib.sha256(request.content).digest()).decode()
            request.headers["Content-Digest"] = f"sha-256=:{digest}:"
            parts["content-digest"] = request.headers["Content-Digest"]
        return parts
