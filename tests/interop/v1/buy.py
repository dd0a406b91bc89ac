"""Pays with a stock client of PyPI `x402` 1.0:  python -m tests.interop.v1.buy httpx|requests URL PRIVATE_KEY [LIMIT]

Runs in the environment of that release. Without LIMIT (such as "$10") the clients pay anything, their own default.
Each request has a client of its own: one that has paid never pays again, since it takes the next 402 for the answer
to its payment.
"""

import asyncio
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import httpx
import requests
from eth_account import Account
from x402.clients.base import (  # type: ignore[import-not-found]  # of another environment, like the next two
    decode_x_payment_response,
)
from x402.clients.httpx import x402HttpxClient  # type: ignore[import-not-found]
from x402.clients.requests import x402_requests  # type: ignore[import-not-found]

from tests.interop.v1.lines import serve

TIMEOUT_S = 60


Response = httpx.Response | requests.Response


def by_httpx(url: str, ask: dict[str, Any], **payer: Any) -> Response:
    async def send() -> Response:
        async with x402HttpxClient(base_url=url, timeout=TIMEOUT_S, **payer) as http:
            response: httpx.Response = await http.request(
                ask["method"], ask["path"], json=ask["body"], headers=ask["headers"]
            )
            return response

    return asyncio.run(send())


def by_requests(url: str, ask: dict[str, Any], **payer: Any) -> Response:
    with x402_requests(**payer) as session:
        response: requests.Response = session.request(
            ask["method"],
            f"{url}{ask['path']}",
            json=ask["body"],
            headers=ask["headers"],
            timeout=TIMEOUT_S,
        )
        return response


CLIENTS: Final[dict[str, Callable[..., Response]]] = {"httpx": by_httpx, "requests": by_requests}


def main(client: str, url: str, key: str, limit: str | None = None) -> None:
    send = CLIENTS[client]
    most = None if limit is None else int(Decimal(limit.removeprefix("$")).scaleb(6))

    def buy(ask: dict[str, Any]) -> dict[str, Any]:
        response = send(url, ask, account=Account.from_key(key), max_value=most)
        header = response.headers.get("X-PAYMENT-RESPONSE")
        return {
            "status": response.status_code,
            "headers": {name.lower(): value for name, value in response.headers.items()},
            "body": response.json(),
            "receipt": None if header is None else decode_x_payment_response(header),
        }

    serve(buy)


main(*sys.argv[1:])
