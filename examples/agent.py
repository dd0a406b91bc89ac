"""An agent's whole journey with a stock x402 client: meet a price, pay it, get a server, and be refunded.

    python examples/agent.py http://127.0.0.1:8402          (a `spawn dev` must be running there)

Nothing in here is special to spawn but the paths: paying is the official `x402` package, reading from the balance
is a signed request (signing.py beside this file). Needs `pip install "x402[evm,httpx]==2.25.0"`.
"""

import asyncio
import subprocess
import sys
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from eth_account.signers.local import LocalAccount
from signing import SignedRequestAuth
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.http.utils import decode_payment_required_header, decode_payment_response_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

CHAIN_ID = 84532
CREATE = {"name": "my-agent-node", "type": "small", "image": "ubuntu-24.04", "location": "nbg1"}


def say(text: str = "") -> None:
    print(text, flush=True)


def chapter(title: str) -> None:
    say(f"\n# {title}")


def dollars(micro_usdc: str | None) -> str:
    """Micro-USDC, as x402 counts, in dollars."""
    return f"${int(micro_usdc or 0) / 1_000_000:.6f}".rstrip("0").rstrip(".")


def show(response: httpx.Response, what: str = "") -> dict[str, Any]:
    """One line per request: what was asked, what it cost, what came back, what is left."""
    fee = response.headers.get("Spawn-Fee")
    paid = f"${fee} from the balance" if fee not in {None, "0.00"} else "free"
    receipt = response.headers.get("PAYMENT-RESPONSE")
    if receipt is not None:
        paid = f"paid {dollars(decode_payment_response_header(receipt).amount)}"
    left = response.headers.get("Spawn-Balance")
    url = response.request.url.raw_path.decode()
    say(f"{response.request.method:6} {url}")
    say(
        f"       {response.status_code} | {paid}{f' | balance ${left}' if left else ''}{f' | {what}' if what else ''}"
    )
    body: dict[str, Any] = response.json()
    if response.is_error and response.status_code != 402:
        raise SystemExit(f"the service refused: {body}")
    return body


def buyer(url: str, wallet: LocalAccount, limit: str | None = None) -> x402HttpxClient:
    """A stock client. Without a limit of ours it refuses to pay more than $1 for one call."""
    client = x402Client()
    register_exact_evm_client(client, EthAccountSigner(wallet))
    if limit is not None:
        client.set_spend_controls({"max_amount_per_payment": limit})
    return x402HttpxClient(client, base_url=url, timeout=60)


def new_public_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


async def follow(http: httpx.AsyncClient, action: dict[str, Any]) -> None:
    """Wait until an action has ended. An action's id is enough to ask, and asking is free."""
    while True:
        response = await http.get(f"/v1/actions/{action['id']}", params={"wait": 30})
        action = response.json()["action"]
        if action["status"] != "running":
            show(response, f"{action['command']}: {action['status']}")
            return


async def meet_the_price(http: httpx.AsyncClient) -> None:
    chapter("Ask for a server without paying")
    response = await http.post("/v1/servers", json=CREATE)
    body = show(response, body_of_402(response))
    say(f"       {body['message']}")


def body_of_402(response: httpx.Response) -> str:
    offer: Any = decode_payment_required_header(response.headers["PAYMENT-REQUIRED"]).accepts[0]
    return f"{offer.scheme} {dollars(offer.amount)} USDC on {offer.network} to {offer.pay_to}"


async def buy(http: httpx.AsyncClient) -> dict[str, Any]:
    chapter("Register an SSH key, paying with the stock client")
    answer = await http.post("/v1/ssh-keys", json={"name": "agent", "public_key": new_public_key()})
    key = show(answer)["ssh_key"]
    say(f"       {key['id']} {key['fingerprint']}")

    chapter("Buy a server in one call: $0.01 fee + $0.60 of funds, $0.50 of which is its deposit")
    order = CREATE | {"ssh_keys": [key["id"]], "deposit": "0.50", "fund": "0.60"}
    answer = await http.post("/v1/servers", json=order, headers={"Idempotency-Key": "my-first-server"})
    bought = show(answer)
    server: dict[str, Any] = bought["server"]
    say(f"       {server['id']} is {server['status']}; deposit ${bought['deposit_charged']}")
    return server


async def pay_in(url: str, wallet: LocalAccount) -> None:
    chapter("Pay in more than $1: the client's own limit has to be raised for that")
    async with buyer(url, wallet, limit="$10") as http:
        show(await http.post("/v1/balance/deposit", json={"amount": "5.00"}))


async def watch_it_boot(http: httpx.AsyncClient, server_id: str) -> None:
    chapter("Wait for it; from here on requests are signed and paid from the balance")
    wait_s = 0
    while True:
        response = await http.get(f"/v1/servers/{server_id}", params={"wait": wait_s})
        wait_s = 30
        server = show(response)["server"]
        net = server["public_net"]
        say(f"       {server['status']} {net['ipv4'] or 'no address yet'} {net['ipv6'] or ''}")
        if server["status"] == "running":
            return


async def watch_it_burn(http: httpx.AsyncClient) -> None:
    chapter("Watch the deposit burn ($0.15 a day, exact to the micro-dollar; asking is free)")
    first = show(await http.get("/v1/balance"))
    await asyncio.sleep(2)
    second = show(await http.get("/v1/balance"))
    say(f"       reserved ${first['reserved']} -> ${second['reserved']} within two seconds")


async def change_it(http: httpx.AsyncClient, server_id: str) -> None:
    chapter("Stop it, and make it bigger")
    await follow(http, show(await http.post(f"/v1/servers/{server_id}/stop"))["action"])
    resized = show(await http.post(f"/v1/servers/{server_id}/resize", json={"type": "medium"}))
    say(
        f"       now a {resized['new_type']}; deposit_delta ${resized['deposit_delta']} keeps its runway as it was"
    )
    await follow(http, resized["action"])


async def end_it(http: httpx.AsyncClient, server_id: str) -> None:
    chapter("Destroy it: what is left of the deposit comes back")
    gone = show(await http.delete(f"/v1/servers/{server_id}"))
    say(f"       {gone['status']}, refunded ${gone['deposit_refunded']}")
    await follow(http, gone["action"])
    statement = show(await http.get("/v1/balance/transactions", params={"limit": 100}))
    for line in reversed(statement["transactions"]):
        amount = f"({line['amount']})" if line["internal"] else line["amount"]
        say(f"       {line['at']}  {line['kind']:15} {amount:>12}")
    balance = show(await http.get("/v1/balance"))
    say(
        f"       balance ${balance['balance']}, reserved ${balance['reserved']}, available ${balance['available']}"
    )


def new_wallet() -> LocalAccount:
    wallet: LocalAccount = Account.create()
    say(f"The agent's wallet is {wallet.address}; it asks the faucet for play money.")
    command = [sys.executable, "-m", "spawn", "faucet", wallet.address, "--amount", "20.00"]
    subprocess.run(command, check=True)  # noqa: S603 - our own command
    return wallet


async def main(url: str, wallet: LocalAccount) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await meet_the_price(http)
    async with buyer(url, wallet) as http:
        server = await buy(http)
    await pay_in(url, wallet)
    async with httpx.AsyncClient(base_url=url, timeout=60, auth=SignedRequestAuth(wallet, CHAIN_ID)) as http:
        await watch_it_boot(http, server["id"])
        await watch_it_burn(http)
        await change_it(http, server["id"])
        await end_it(http, server["id"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], new_wallet()))
