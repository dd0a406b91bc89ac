"""Attacks by proofs that are wrong somewhere: in an amount, a key, a time, a text, or in how they stand together.

Invariant: each is refused for the reason that it was made for, in both versions of x402, and costs nobody anything.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from tests.sim import attacker_proofs as proofs
from tests.sim.attacker_kit import CREATE, READ, Thief, attack, with_headers
from tests.sim.attacker_proofs import Called, Payload, changed, high_s
from tests.sim.client_types import Request
from tests.sim.moves import Kind
from tests.sim.owner_wishes import NO_SERVER

STRANGER: Final = "0x00000000000000000000000000000000000000aa"
DEAD: Final = "0x000000000000000000000000000000000000dead"
_EXACT: Final = "402 invalid_exact_evm_payload_"
SIGNATURE: Final = f"{_EXACT}signature"
VALUE: Final = f"{_EXACT}authorization_value_mismatch"
BEFORE: Final = f"{_EXACT}authorization_valid_before"
AFTER: Final = f"{_EXACT}authorization_valid_after"
RECIPIENT: Final = f"{_EXACT}recipient_mismatch"
UNPAID: Final = "402 payment_required"

ROUTES: Final[tuple[tuple[str, str, Any, int], ...]] = (
    ("GET", "/v1/servers", None, READ),
    ("GET", "/v1/ssh-keys", None, READ),
    ("GET", "/v1/webhooks", None, READ),
    ("GET", "/v1/balance", None, READ),
    ("POST", "/v1/balance/deposit", {"amount": "1.00"}, 1_000_000),
    (
        "POST",
        "/v1/servers",
        {"name": "got", "type": "small", "image": "debian-12", "location": "nbg1"},
        CREATE,
    ),
)
"""Calls that anybody may make: method, path, body, price."""

Forging = Callable[[Thief, int], Payload]


def _after(**fields: Any) -> Forging:
    """Signed well, and changed afterwards."""
    return lambda thief, price: changed(thief.payload(price), **fields)


def _signed(**fields: Callable[[Thief, int], str]) -> Forging:
    """Other fields, which the thief did sign."""
    return lambda thief, price: thief.payload(
        price, **{name: made(thief, price) for name, made in fields.items()}
    )


def _offered(**fields: str) -> Forging:
    """An offer of the thief's own making, echoed; what is signed is as it should be."""

    def forged(thief: Thief, price: int) -> Payload:
        good = thief.payload(price)
        return good | {"accepted": good["accepted"] | fields}

    return forged


def _elsewhere(field: str, value: Any) -> Forging:
    """Signed in another domain (EIP-712), and said to be for ours."""

    def forged(thief: Thief, price: int) -> Payload:
        ours = proofs.offer_of(thief.world.settings, max(price, thief.world.settings.minimum_charge_usdc))
        theirs = ours | (
            {"extra": ours["extra"] | {field: value}} if field in ours["extra"] else {field: value}
        )
        made = proofs.payment(thief.key, theirs, now=thief.now, nonce=thief.random.getrandbits(256))
        return made | {"accepted": ours}

    return forged


def _of_another(thief: Thief, price: int) -> Payload:
    """A rich wallet's name on the thief's signature."""
    rich = thief.pick(
        "SELECT id FROM account WHERE id LIKE 'wallet:%' AND id <> :me ORDER BY id", me=_mine(thief)
    )
    return thief.payload(price, **{"from": DEAD if rich is None else rich["id"].removeprefix("wallet:")})


def _mine(thief: Thief) -> str:
    return f"wallet:{thief.key.address}"


def _at(seconds: int) -> Callable[[Thief, int], str]:
    return lambda thief, _: str(thief.now + seconds)


def _price(change: int) -> Callable[[Thief, int], str]:
    def value(thief: Thief, price: int) -> str:
        return str(max(price, thief.world.settings.minimum_charge_usdc) + change)

    return value


PAYMENTS: Final[tuple[tuple[Forging, str, bool], ...]] = (
    (_after(value="1"), SIGNATURE, True),
    (_after(validBefore="99999999999"), SIGNATURE, True),
    (_after(nonce="0x" + "0" * 64), SIGNATURE, True),
    (_after(to=STRANGER), RECIPIENT, True),
    (_after(signature=high_s), SIGNATURE, True),
    (_after(signature=lambda made: made[:64] + bytes([made[64] - 27])), SIGNATURE, True),
    (_after(signature=lambda made: made[:64] + bytes([55 - made[64]])), SIGNATURE, True),
    (_after(signature=lambda made: made[:64]), SIGNATURE, True),
    (_after(signature=lambda made: bytes(65)), SIGNATURE, True),
    (_after(signature=lambda made: made * 3 + b"\x64\x92" * 16), SIGNATURE, True),
    (_of_another, SIGNATURE, True),
    (_signed(value=_price(-1)), VALUE, True),
    (_signed(value=_price(1)), VALUE, True),
    (_signed(value=lambda *_: str(2**256 - 1)), VALUE, True),
    (_signed(validBefore=_at(-1)), BEFORE, True),
    (_signed(validBefore=_at(3)), BEFORE, True),
    (_signed(validBefore=_at(86_400)), BEFORE, True),
    (_signed(validAfter=_at(300)), AFTER, True),
    (_signed(to=lambda thief, _: thief.key.address), RECIPIENT, True),
    (_offered(network="eip155:1"), "402 network_mismatch", False),
    (_offered(asset=STRANGER), "402 invalid_payment_requirements", False),
    (_offered(payTo=STRANGER), RECIPIENT, False),
    (_offered(scheme="upto"), "402 unsupported_scheme", False),
    (_elsewhere("network", "eip155:1"), SIGNATURE, False),
    (_elsewhere("asset", STRANGER), SIGNATURE, True),
    (_elsewhere("name", "USD Coin"), SIGNATURE, True),
    (_elsewhere("version", "1"), SIGNATURE, True),
)
"""How a payment is forged, why it is refused, and whether version 1 can say it as well."""


async def payment(thief: Thief) -> None:
    """A payment with one thing wrong."""
    forge, reason, in_both = thief.random.choice(PAYMENTS)
    method, path, body, price = thief.random.choice(ROUTES)
    version = thief.random.choice((1, 2)) if in_both else 2
    payload = forge(thief, price)
    request = (
        thief.paid(payload, method, path, version=version)
        if body is None
        else thief.paid(payload, method, path, body, version=version)
    )
    await thief.strike(request, reason)


Bending = Callable[[Request], Request]


def _digested(request: Request, body: bytes) -> Request:
    headers = proofs.digest_header(body)
    return with_headers(
        replace(request, body=body), **{name.replace("-", "_"): text for name, text in headers.items()}
    )


BENT: Final[tuple[tuple[Bending, str], ...]] = (
    (lambda call: replace(call, method="PATCH"), "401 signature"),
    (lambda call: replace(call, path="/v1/webhooks"), "401 signature"),
    (lambda call: replace(call, query="limit=2"), "401 coverage"),
    (lambda call: replace(call, body=call.body + b" "), "401 digest"),
    (lambda call: _digested(call, b'{"name":"b","public_key":"ssh-ed25519 AAAA"}'), "401 signature"),
    (
        lambda call: with_headers(call, signature_input=call.headers["signature-input"] + ";x=1"),
        "401 signature",
    ),
)
"""What is done to a signed call on its way, and what is told."""


async def signature(thief: Thief) -> None:
    """A signed call that was changed afterwards, or signed by the wrong key, for somebody else, at another time."""
    if thief.random.random() < 0.4:
        call = thief.sign("POST", "/v1/ssh-keys", {"name": "a", "public_key": "ssh-ed25519 AAAA"})
        bend, reason = thief.random.choice(BENT)
        bent = bend(call)
        # Only one of the two methods is there.
        await thief.strike(bent, "405 method_not_allowed" if bent.method == "PATCH" else reason)
        return
    owner = thief.their("server")
    rich = DEAD if owner is None else owner["wallet"]
    path = "/v1/servers" if owner is None else f"/v1/servers/{owner['id']}"
    options, reason = thief.random.choice(
        (
            ({"keyid": rich}, "401 signature"),
            ({"authority": "other.example"}, "401 signature"),
            ({"life_s": 61}, "401 lifetime"),
            ({"now": thief.now - 90}, "401 expired"),
            ({"now": thief.now + 90}, "401 not_yet_valid"),
            ({"signature": high_s}, "401 signature"),
            ({"signature": lambda made: made[:64]}, "401 signature"),
        )
    )
    await thief.strike(thief.sign("GET", path, **options), reason)


async def sign_in(thief: Thief) -> None:
    """A sign-in in another's name, for another service, or where a signature is needed."""
    owner = thief.their("server")
    rich = DEAD if owner is None else owner["wallet"]
    server = f"/v1/servers/{NO_SERVER if owner is None else owner['id']}"
    ways: tuple[tuple[Callable[[], str], str, str, str], ...] = (
        (lambda: thief.sign_in(address=rich), "GET", "/v1/balance", "401 signature"),
        (lambda: thief.sign_in(address=rich), "POST", "/v1/sessions", "401 signature"),
        (lambda: thief.sign_in(domain="other.example"), "GET", "/v1/events", "401 domain"),
        (lambda: thief.sign_in(now=thief.now - 400), "GET", "/v1/balance", UNPAID),
        (lambda: thief.sign_in(now=thief.now + 60), "GET", "/v1/balance", "401 not_yet_valid"),
        (thief.sign_in, "DELETE", server, UNPAID),
        (thief.sign_in, "POST", "/v1/suspense/claim", UNPAID),
    )
    make, method, path, reason = thief.random.choice(ways)
    await thief.strike(thief.ask(method, path, headers={"SIGN-IN-WITH-X": make()}), reason)


async def session(thief: Thief) -> None:
    """A token that was never handed out; one's own where something is to be changed; one's own after its end."""
    forged = f"spawn_session_{urlsafe_b64encode(thief.random.randbytes(76)).decode().rstrip('=')}"
    await thief.strike(_bearing(thief, forged, "GET", "/v1/balance"), "401 session_invalid")
    opened = await thief.strike(
        thief.ask("POST", "/v1/sessions", headers={"SIGN-IN-WITH-X": thief.sign_in()}), "201"
    )
    if opened is None or opened.status != 201:
        return
    token, wrong_by_s = opened.json()["session"]["token"], thief.world.clock.wrong_by_s
    for method, path in (
        ("POST", "/v1/suspense/claim"),
        ("POST", "/v1/sessions"),
        ("DELETE", "/v1/ssh-keys/sk_aaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ):
        await thief.strike(_bearing(thief, token, method, path), UNPAID, "401 session_expired")
    changed_token = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
    await thief.strike(_bearing(thief, changed_token, "GET", "/v1/events"), "401 session_invalid")
    await thief.rest(930.0)
    if wrong_by_s == thief.world.clock.wrong_by_s:
        await thief.strike(_bearing(thief, token, "GET", "/v1/balance"), "401 session_expired")


def _bearing(thief: Thief, token: str, method: str, path: str) -> Request:
    return thief.ask(method, path, headers={"Authorization": f"Bearer {token}"})


async def headers(thief: Thief) -> None:
    """Headers doubled, in conflict, or in each other's place."""
    target = ("GET", "/v1/servers")
    payload = thief.payload(READ)
    two, one = proofs.encoded(payload), proofs.encoded(proofs.in_version_1(payload))
    other = proofs.encoded(thief.payload(READ))
    signed = thief.sign(*target)
    request, reason = thief.random.choice(
        (
            (thief.ask(*target, headers={"PAYMENT-SIGNATURE": two, "X-PAYMENT": one}), "400 invalid_payment"),
            (
                thief.ask(*target, headers={"PAYMENT-SIGNATURE": two, "payment-signature": other}),
                "400 invalid_payment",
            ),
            (thief.ask(*target, headers={"X-PAYMENT": one, "x-payment": one}), "400 invalid_payment"),
            (thief.ask(*target, headers={"PAYMENT-SIGNATURE": one}), "400 invalid_payment"),
            (thief.ask(*target, headers={"X-PAYMENT": two}), "400 invalid_payment"),
            (thief.ask(*target, headers={"PAYMENT-SIGNATURE": two[:-4]}), "400 invalid_payment"),
            (with_headers(signed, PAYMENT_SIGNATURE="e30="), "400 invalid_payment"),
            (with_headers(signed, Idempotency_Key="one", idempotency_key="two"), "400 invalid_request"),
            (with_headers(signed, Idempotency_Key="k" * 256), "400 invalid_request"),
            (with_headers(signed, Signature=signed.headers["signature"]), "401 malformed"),
            (with_headers(signed, Signature_Input=signed.headers["signature-input"]), "401 malformed"),
        )
    )
    await thief.strike(request, reason)


async def beside(thief: Thief) -> None:
    """The thief's payment beside a proof of somebody else's: who pays is who calls."""
    heard = thief.heard("signature-input")
    theirs = thief.their("server", "ended_at IS NULL")
    if heard is None or theirs is None:
        return
    path = f"/v1/servers/{theirs['id']}"
    captured = {
        name: value for name, value in heard[0].headers.items() if name.lower().startswith("signature")
    }
    call = thief.paid(thief.payload(5_000), "DELETE", path)
    await thief.strike(replace(call, headers=captured | dict(call.headers)), "403 forbidden")
    signed = proofs.signed(
        thief.key,
        Called(method="DELETE", path=path),
        thief.world.settings,
        now=thief.now,
        nonce=thief.nonce(),
    )
    token = thief.ask(
        "DELETE", path, headers=signed | {"SIGN-IN-WITH-X": thief.sign_in(address=theirs["wallet"])}
    )
    await thief.strike(token, "403 forbidden")


MOVES: Final[tuple[Kind, ...]] = (
    attack("payment", 2.5, payment),
    attack("signature", 1.5, signature),
    attack("sign_in", 1.0, sign_in),
    attack("session", 0.5, session),
    attack("headers", 1.0, headers),
    attack("beside", 0.5, beside),
)
