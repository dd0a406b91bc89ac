"""Open a session: prove a wallet once, then read for a quarter of an hour with a bearer, and no key at hand.

    TOKEN=$(KEY=0xYOUR_PRIVATE_KEY python examples/session.py http://127.0.0.1:8402)
    curl http://127.0.0.1:8402/v1/balance -H "Authorization: Bearer $TOKEN"

Opening one is free. What is printed reads all that the wallet may read until it expires, and nothing else; keep it
like a password. Reads that have a price are paid from the balance.
Needs `httpx` and `eth-account`, and signing.py beside this file.
"""

import os
import sys

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount
from signing import SignedRequestAuth

CHAIN_ID = 84532


def open_session(url: str, wallet: LocalAccount) -> str:
    """The token of a new session. Whoever refuses one says why."""
    answer = httpx.post(f"{url}/v1/sessions", auth=SignedRequestAuth(wallet, CHAIN_ID), timeout=60)
    if answer.status_code != 201:
        raise SystemExit(f"the service refused: {answer.text}")
    token: str = answer.json()["session"]["token"]
    return token


if __name__ == "__main__":
    if len(sys.argv) != 2 or "KEY" not in os.environ:
        raise SystemExit(__doc__)
    print(open_session(sys.argv[1], Account.from_key(os.environ["KEY"])))
