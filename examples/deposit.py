"""A server that lives from its deposit: be warned by a webhook, pay in once, then let it end.

    python examples/deposit.py http://127.0.0.1:8402      (a `spawn dev --fast-forward` must be running there)

The last warning comes six hours before the end, so time has to pass: type 1h and Enter into that service, again and
again. `spawn demo --fast-forward` does that for you. Needs `pip install "x402[evm,httpx]==2.25.0" standardwebhooks`.
"""

import asyncio
import http.server
import json
import sys
import threading
from typing import Any

import httpx
from agent import CHAIN_ID, CREATE, buyer, chapter, new_wallet, say, show
from eth_account.signers.local import LocalAccount
from signing import SignedRequestAuth
from standardwebhooks import Webhook, WebhookVerificationError

PATIENCE_S = 120
"""How long to wait for the next event."""
LAST_WARNING_S = 6 * 3600
Inbox = asyncio.Queue[dict[str, Any]]


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes what is signed with our secret, and answers at once: the work is done elsewhere."""

    secret = ""
    loop: asyncio.AbstractEventLoop
    inbox: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            event = Webhook(self.secret).verify(body, dict(self.headers))
        except WebhookVerificationError:
            self.send_response(401)
        else:
            self.send_response(204)
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, event)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what arrives is told by whoever reads the inbox."""


def listen(inbox: Inbox) -> http.server.ThreadingHTTPServer:
    """A receiver on a free port of this machine."""
    Receiver.loop, Receiver.inbox = asyncio.get_running_loop(), inbox
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


async def next_event(inbox: Inbox) -> dict[str, Any]:
    """The next event that arrives, told in a line."""
    try:
        event = await asyncio.wait_for(inbox.get(), PATIENCE_S)
    except TimeoutError:
        raise SystemExit(f"no event within {PATIENCE_S} s: does time pass there?") from None
    data = event["data"]
    told = {
        "deposit.low": "{runway_s} s are left, until {expires_at}",
        "deposit.exhausted": "the money has ended",
        "server.destroying": "{previous} -> {status}, because {reason}",
    }
    line = told.get(event["type"], "{status}" if "status" in data else "").format_map(data)
    say(f"  -> {event['at']}  {event['type']:20} {line}")
    return event


async def rent(url: str, wallet: LocalAccount) -> str:
    chapter("Rent a server for a day: $0.01 fee + $0.17, of which $0.15 is its deposit")
    async with buyer(url, wallet) as http:
        bought = show(await http.post("/v1/servers", json=CREATE | {"deposit": "0.15", "fund": "0.17"}))
    server: dict[str, Any] = bought["server"]
    say(f"       {server['id']}, which renews from the ${bought['deposit_remaining']} that are left")
    return str(server["id"])


async def subscribe(http: httpx.AsyncClient, port: int) -> None:
    chapter("Register a webhook for what happens to it")
    wanted = {"url": f"http://127.0.0.1:{port}/", "types": ["server.*", "deposit.*"]}
    made = show(await http.post("/v1/webhooks", json=wanted))
    Receiver.secret = made["secret"]
    say(f"       {made['webhook']['id']}; its secret is shown once, and signs every delivery")


async def pay_in(url: str, wallet: LocalAccount) -> None:
    chapter("Six hours are left: pay in $0.05, eight hours more")
    async with buyer(url, wallet) as http:
        show(await http.post("/v1/balance/deposit", json={"amount": "0.05"}))


async def live(url: str, wallet: LocalAccount, inbox: Inbox) -> None:
    chapter("Time passes; whatever arrives was signed, and is verified with the standard library for that")
    saved = False
    while True:
        event = await next_event(inbox)
        if event["type"] == "deposit.low" and event["data"]["threshold_s"] == LAST_WARNING_S:
            if saved:
                chapter("Six hours are left again: this time the agent lets it end")
            else:
                await pay_in(url, wallet)
            saved = True
        if event["type"] == "server.destroyed":
            return


async def look_back(http: httpx.AsyncClient, server_id: str) -> None:
    chapter("What is left: a server that paid for its last second, and no refund, because nothing was over")
    server = show(await http.get("/v1/balance"))
    say(f"       balance ${server['balance']}, reserved ${server['reserved']}")
    feed = show(await http.get("/v1/events", params={"resource": server_id, "limit": 100}))
    say(f"       {len(feed['events'])} events of it can be read again, among them:")
    for event in feed["events"]:
        if event["type"].startswith("deposit."):
            say(f"       {event['at']}  {event['type']:20} {json.dumps(event['data']['threshold_s'])}")


async def main(url: str, wallet: LocalAccount) -> None:
    inbox: Inbox = asyncio.Queue()
    receiver = listen(inbox)
    server_id = await rent(url, wallet)
    async with httpx.AsyncClient(base_url=url, timeout=60, auth=SignedRequestAuth(wallet, CHAIN_ID)) as http:
        await subscribe(http, receiver.server_port)
        await live(url, wallet, inbox)
        await look_back(http, server_id)
    receiver.shutdown()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], new_wallet()))
