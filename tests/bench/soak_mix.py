"""What the soak sends: rounds of all kinds of calls, good and bad, each with the status it must be answered with.

Invariant: every request proves something new, but the replays, which are the very bytes of a call of the same round.
"""

import base64
import time
from threading import Event
from typing import Final

import httpx
import msgspec
from signing import SignedRequestAuth

from tests.bench.load import get
from tests.bench.peer import PATH
from tests.bench.processes import Process
from tests.bench.signatures import Key, Offer, signed_get
from tests.bench.tenants import wallets
from tests.harness import CHAIN_ID, ORDER
from tests.wallets import Wallet

SHARES: Final = {
    "signed read": 36,
    "x402 read": 20,
    "x402 v1 read": 8,
    "unpaid": 16,
    "signature over another path": 6,
    "payment in another's name": 6,
    "nothing there": 4,
    "replay": 4,
}
"""In hundredths of a round."""
_RENTER: Final = 1
"""The wallet that does nothing but rent."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one kind, each answered with `status`."""

    kind: str
    requests: list[bytes]
    status: int


class Mix:
    """Makes the rounds for one server."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._keys = wallets()[_RENTER:]
        self._offer = Offer(httpx.get(f"{server.url}{PATH}", trust_env=False).headers["PAYMENT-REQUIRED"])

    def round(self, size: int) -> list[Batch]:
        """About `size` requests, to be sent within a minute; the last batch only after the others."""
        now = int(time.time())
        keys = [self._keys[index % len(self._keys)] for index in range(size)]
        count = {kind: max(1, size * share // 100) for kind, share in SHARES.items()}
        signed = [self._signed(key, now, PATH) for key in keys[: count["signed read"]]]
        return [
            Batch(kind="signed read", requests=signed, status=200),
            self._batch("x402 read", 200, [self._paid(key, now) for key in keys[: count["x402 read"]]]),
            self._batch(
                "x402 v1 read", 200, [self._paid_v1(key, now) for key in keys[: count["x402 v1 read"]]]
            ),
            self._batch("unpaid", 402, [self._get(PATH)] * count["unpaid"]),
            self._batch(
                "signature over another path",
                401,
                [
                    self._signed(key, now, "/v1/balance")
                    for key in keys[: count["signature over another path"]]
                ],
            ),
            self._batch(
                "payment in another's name",
                402,
                [self._forged(key, now) for key in keys[: count["payment in another's name"]]],
            ),
            self._batch("nothing there", 404, [self._get(f"/v1/nothing/{now}")] * count["nothing there"]),
            self._batch("replay", 200, signed[: count["replay"]]),
        ]

    def rent_until(self, done: Event) -> int:
        """Buy a server and destroy it, again and again; return how many calls that were. Raises HTTPStatusError."""
        auth = SignedRequestAuth(Wallet.numbered(_RENTER).account, CHAIN_ID)
        calls = 0
        with httpx.Client(base_url=self._server.url, auth=auth, trust_env=False, timeout=30) as http:
            while not done.is_set():
                created = http.post("/v1/servers", json=ORDER | {"name": f"soak-{calls}"}).raise_for_status()
                http.delete(f"/v1/servers/{created.json()['server']['id']}").raise_for_status()
                calls += 2
        return calls

    def _batch(self, kind: str, status: int, requests: list[bytes]) -> Batch:
        return Batch(kind=kind, requests=requests, status=status)

    def _get(self, path: str, headers: dict[str, str] | None = None) -> bytes:
        return get(path, self._server.authority, headers or {})

    def _signed(self, key: Key, now: int, path: str) -> bytes:
        headers = signed_get(key, chain_id=CHAIN_ID, authority=self._server.authority, path=path, now=now)
        return self._get(PATH, headers)

    def _paid(self, key: Key, now: int) -> bytes:
        return self._get(PATH, {"PAYMENT-SIGNATURE": self._offer.pay(key, now)})

    def _paid_v1(self, key: Key, now: int) -> bytes:
        return self._get(PATH, {"X-PAYMENT": self._offer.pay_v1(key, now)})

    def _forged(self, key: Key, now: int) -> bytes:
        other = next(candidate for candidate in self._keys if candidate is not key)
        text = base64.b64decode(self._offer.pay(key, now)).replace(
            key.address.encode(), other.address.encode()
        )
        return self._get(PATH, {"PAYMENT-SIGNATURE": base64.b64encode(text).decode()})
