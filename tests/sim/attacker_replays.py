"""Attacks by what others sent: the same bytes again, elsewhere, in other words, and at the same time.

Attackers hear what went over the wire and what stands on the chain. Invariant: a proof buys one effect, for its own
wallet; whoever repeats it gets the stored answer of that effect, without its secrets, or is refused.
"""

import asyncio
import base64
import hashlib
import json
from dataclasses import replace
from typing import Final

from tests.sim import attacker_proofs as proofs
from tests.sim.attacker_forgeries import BEFORE, UNPAID, VALUE
from tests.sim.attacker_kit import READ, Thief, attack, fresh, from_elsewhere, with_headers, word
from tests.sim.client_types import Answer, Request
from tests.sim.moves import Kind
from tests.sim.owner_wishes import NO_SERVER

OTHER_REQUEST: Final = "409 idempotency_conflict"
NOT_FOR_SALE: Final = "400 invalid_request"
PAYMENTS: Final = ("payment-signature", "x-payment")


async def replay(thief: Thief) -> None:
    """Bytes that were answered, sent again: once, or many times at once; at once, or much later."""
    heard = thief.heard("payment-signature", "x-payment", "signature-input", "sign-in-with-x")
    if heard is None:
        return
    request, answer = heard
    if thief.random.random() < 0.3:
        request = from_elsewhere(request, thief.address)
    if thief.random.random() < 0.3:
        await thief.rest(10 ** thief.random.uniform(0, 5.3))
    copies = thief.random.choice((1, 1, 1, 2, 8))
    await thief.at_once(*[request] * copies, right=_again(request, answer), late=True)


def _again(request: Request, answer: Answer) -> tuple[str, ...]:
    """What the same bytes are told."""
    names = {name.lower() for name in request.headers}
    # Days later it is forgotten, and may not be for sale any more at what it says.
    stored = (f"{answer.status} replayed", *([NOT_FOR_SALE] if request.path == "/v1/servers" else []))
    if "payment-signature" in names:
        return *stored, BEFORE
    if "x-payment" in names:
        # In version 1 it has to come from where it came from.
        return *stored, BEFORE, OTHER_REQUEST
    if "signature-input" in names:
        return stored
    return "401 nonce_used", UNPAID


async def elsewhere(thief: Thief) -> None:
    """A payment or a signature that bought one thing, sent for another."""
    heard = thief.heard("payment-signature", "x-payment", "signature-input")
    if heard is None:
        return
    request = heard[0]
    theirs = thief.their("server", "ended_at IS NULL")
    server = f"/v1/servers/{NO_SERVER if theirs is None else theirs['id']}"
    moved = thief.random.choice(
        (
            replace(request, method="GET", path="/v1/ssh-keys", query="x=1", body=b""),
            replace(request, method="DELETE", path=server, query="", body=b""),
            replace(request, method="POST", path="/v1/suspense/claim", query="x=1", body=b""),
            replace(request, method="POST", path=f"{server}/poweroff", query="", body=b""),
            replace(request, query=f"{request.query}&x=1" if request.query else "x=1"),
        )
    )
    if moved.query == request.query and moved.path == request.path:
        return
    if "signature-input" in {name.lower() for name in request.headers}:
        await thief.strike(moved, "401 signature", "401 coverage", "401 digest", late=True)
    else:
        await thief.strike(moved, OTHER_REQUEST, BEFORE, VALUE, late=True)


async def reword(thief: Thief) -> None:
    """The very request again, its payment in other bytes: as whoever reads the chain can make it."""
    heard = thief.heard("payment-signature", "x-payment")
    if heard is None:
        return
    request = heard[0]
    # Neither payment nor key of the header stand on the chain.
    hidden = (*PAYMENTS, "idempotency-key")
    kept = {name: text for name, text in request.headers.items() if name.lower() not in hidden}
    (text,) = (text for name, text in request.headers.items() if name.lower() in PAYMENTS)
    inner = json.loads(base64.b64decode(text))["payload"]
    if not _is_booked(thief, inner["authorization"]["from"].lower(), inner["authorization"]["nonce"]):
        return
    offer = proofs.offer_of(thief.world.settings, 0)
    bare = {"x402Version": 2, "accepted": offer, "payload": inner}
    header = thief.random.choice(
        (
            {"PAYMENT-SIGNATURE": proofs.encoded(bare)},
            {"PAYMENT-SIGNATURE": proofs.encoded(bare | {"padding": "x"})},
            {"X-PAYMENT": proofs.encoded(proofs.in_version_1(bare))},
        )
    )
    await thief.strike(
        replace(request, headers=kept | header, address=thief.address), OTHER_REQUEST, BEFORE, late=True
    )


async def other_key(thief: Thief) -> None:
    """Somebody's idempotency key, under the thief's own signature: it opens nothing, and is free to use."""
    heard = thief.heard(*PAYMENTS, "signature-input")
    if heard is None:
        return
    request = heard[0]
    key = next((text for name, text in request.headers.items() if name.lower() == "idempotency-key"), None)
    if key is None or thief.world.rows(
        "SELECT key FROM idempotency WHERE key = :key AND wallet = :me", key=key, me=thief.key.address
    ):
        return
    call = thief.sign(request.method, request.path, request.body, query=request.query)
    answer = await thief.send(with_headers(call, Idempotency_Key=key))
    if answer is not None and word(answer) in {f"{heard[1].status} replayed", OTHER_REQUEST}:
        thief.world.violation("foreign", f"{thief.name}: {word(answer)} by another's key to {request}")


async def from_chain(thief: Thief) -> None:
    """A payment that stands on the chain, put into a header of the thief's making."""
    seen = [
        payment
        for payment in thief.world.chain.seen.values()
        if _is_booked(thief, payment.payer, payment.nonce)
    ]
    if not seen:
        return
    paid = thief.random.choice(seen)
    offer = proofs.offer_of(thief.world.settings, paid.value)
    authorization = {
        "from": paid.payer,
        "to": paid.pay_to,
        "value": str(paid.value),
        "validAfter": str(paid.valid_after),
        "validBefore": str(paid.valid_before),
        "nonce": paid.nonce,
    }
    inner = {"signature": paid.signature, "authorization": authorization}
    payload = {"x402Version": 2, "accepted": offer, "payload": inner}
    version = thief.random.choice((1, 2))
    request = thief.random.choice(
        (
            lambda: thief.paid(payload, "GET", "/v1/servers", version=version),
            lambda: thief.paid(payload, "GET", "/v1/balance", version=version),
            lambda: thief.paid(payload, "POST", "/v1/suspense/claim", version=version),
        )
    )()
    await thief.strike(request, OTHER_REQUEST, BEFORE, VALUE, late=True)


def _is_booked(thief: Thief, payer: str, nonce: str) -> bool:
    """Whether a call has had it: before that it would be the payer's own call that is taken away."""
    settings = thief.world.settings
    scope = f"{settings.chain_id} {settings.x402_asset.lower()} {payer}"
    name = hashlib.sha256(f"{scope}|{nonce.lower()}".encode()).digest()[:20]
    id = f"topup|x402_{base64.urlsafe_b64encode(name).decode().rstrip('=')}"
    return bool(thief.world.rows("SELECT seq FROM transfer WHERE id = :id AND code = 'topup'", id=id))


async def spread(thief: Thief) -> None:
    """One proof of the thief's own for many calls at once, in both versions, under many keys: it buys one."""
    if thief.random.random() < 0.6:
        thief.world.chain.fund(thief.key.address, 1_000_000)
        payload = thief.payload(READ)
        calls = [
            thief.paid(payload, "GET", path, version=version)
            for path in ("/v1/servers", "/v1/ssh-keys", "/v1/webhooks", "/v1/balance")
            for version in (1, 2)
        ]
    else:
        signed = thief.sign("GET", "/v1/servers")
        calls = [
            signed,
            from_elsewhere(signed, "192.0.2.254"),
            with_headers(signed, Idempotency_Key=f"{thief.random.getrandbits(64)}"),
        ] * 3
    thief.random.shuffle(calls)
    answers = await thief.at_once(
        *calls, right=("200", "200 replayed", OTHER_REQUEST, UNPAID, "402 settlement_failed")
    )
    if len(fresh(answers)) > 1:
        thief.world.violation(
            "paid", f"{thief.name}: one proof bought {len(fresh(answers))} answers: {calls[0]}"
        )


async def ahead(thief: Thief) -> None:
    """A copy of a call comes before the call itself, from elsewhere or for something else.

    The thief plays both: nobody honest is robbed of an answer.
    """
    thief.world.chain.fund(thief.key.address, 1_000_000)
    original = thief.paid(thief.payload(READ), "GET", "/v1/servers", version=thief.random.choice((1, 2)))
    copy = from_elsewhere(original, "192.0.2.253")
    other = replace(original, path="/v1/ssh-keys")
    answers: list[Answer] = []
    for call in (thief.random.choice((copy, other)), original):
        answer = await thief.strike(
            call, "200", "200 replayed", OTHER_REQUEST, "402 settlement_failed", late=True
        )
        answers += [] if answer is None else [answer]
        await asyncio.sleep(thief.random.choice((0.0, 0.0, 1.0)))
    if len(fresh(answers)) > 1:
        thief.world.violation("paid", f"{thief.name}: one payment bought two answers: {original}")


async def sign_in_again(thief: Thief) -> None:
    """A sign-in of the thief's own, many times at once: it is good for one."""
    header = {"SIGN-IN-WITH-X": thief.sign_in()}
    paths = ("/v1/balance", "/v1/events", "/v1/balance/transactions")
    calls = [thief.ask("GET", path, headers=header) for path in paths] * 3
    calls += [thief.ask("POST", "/v1/sessions", headers=header)] * 2
    thief.random.shuffle(calls)
    answers = await thief.at_once(*calls, right=("200", "201", "401 nonce_used", OTHER_REQUEST))
    if len(fresh(answers)) > 1:
        thief.world.violation("foreign", f"{thief.name}: one sign-in opened {len(fresh(answers))} answers")


MOVES: Final[tuple[Kind, ...]] = (
    attack("replay", 3.0, replay),
    attack("elsewhere", 1.5, elsewhere),
    attack("reword", 1.0, reword),
    attack("other_key", 1.0, other_key),
    attack("from_chain", 1.0, from_chain),
    attack("spread", 0.8, spread),
    attack("ahead", 0.6, ahead),
    attack("sign_in_again", 0.4, sign_in_again),
)
