"""Bodies that two readers would read differently, that are no JSON, or that carry something into logs and headers."""

import gzip
from typing import Any

import msgspec

from tests.attacks.kit import BAD_REQUEST, Answer, Theme, refused, unpaid
from tests.attacks.scene import BUY, CREATE, Scene, Wire
from tests.harness import ORDER
from tests.integration.paid_calls import PUBLIC_KEY

body = Theme("body")

KEYS = ("POST", "/v1/ssh-keys")
GOOD = msgspec.json.encode(ORDER)


async def on_every_rail(scene: Scene, method: str, target: str, sent: Any) -> list[Wire]:
    """The call unpaid, signed, and with a payment that would pay it."""
    payment = await scene.payload(scene.thief, *CREATE, ORDER)
    return [
        scene.ask(method, target, sent),
        scene.sign(scene.thief, method, target, sent),
        scene.paid(payment, method, target, sent),
    ]


for name, text in (
    ("white space", b" "),
    ("truncated", GOOD[:-1]),
    ("two texts", GOOD * 2),
    ("more behind it", GOOD + b"x"),
    ("a zero byte behind it", GOOD + b"\0"),
    ("a comment", GOOD[:-1] + b"/*x*/}"),
    ("a comma too many", GOOD[:-1] + b",}"),
    ("single quotes", GOOD.replace(b'"', b"'")),
    ("UTF-16", GOOD.decode().encode("utf-16")),
    ("a byte order mark", b"\xef\xbb\xbf" + GOOD),
    ("not UTF-8", GOOD.replace(b"web", b"w\xffb")),
    ("an overlong letter", GOOD.replace(b"web", b"w\xc1\xa5b")),
    ("a lone surrogate", GOOD.replace(b"web", b"w\\ud800b")),
    ("a line end in a string", GOOD.replace(b"web", b"w\nb")),
    ("NaN", GOOD.replace(b'"web"', b"NaN")),
    ("Infinity", GOOD.replace(b'"web"', b"-Infinity")),
    ("a number of 5 000 digits", b'{"name":' + b"9" * 5_000 + b"}"),
    ("an exponent of 400", b'{"name":1e400}'),
    ("nested a hundred deep", b'{"ssh_keys":' + b"[" * 100 + b"]" * 100 + b"}"),
    ("a form", b"name=web&type=small"),
    ("XML", b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"),
    ("gzip", gzip.compress(GOOD)),
):

    @body(
        f"{name}, for an order",
        "RFC 8259, and nothing is guessed: refused before money is asked",
        BAD_REQUEST,
    )
    async def _(scene: Scene, text: bytes = text) -> list[Wire]:
        return await on_every_rail(scene, *CREATE, text)


for name, change in (
    ("an unknown field", {"price": "0.00"}),
    ("the owner named", {"wallet": "0x" + "00" * 20}),
    ("a fee chosen", {"fee": "0.00"}),
    ("a prototype", {"__proto__": {"fund": "1.00"}}),
    ("a field in capitals", {"Fund": "1.00"}),
    ("a list for a name", {"name": ["web"]}),
    ("true for a number", {"deposit": True}),
    ("1 for true", {"auto_renew": 1}),
    ("text for true", {"auto_renew": "true"}),
    ("a line end in a name", {"name": "web\n"}),
    ("a header in a name", {"name": "web\r\nX-Evil: 1"}),
    ("a zero byte in a name", {"name": "w\0b"}),
    ("escape codes in a name", {"name": "\x1b[2Jweb"}),
    ("a domain for a name", {"name": "web.example"}),
    ("a name in other letters", {"name": "w\u0435b"}),
    ("a shell in a name", {"name": "$(reboot)"}),
    ("a path for an image", {"image": "../../etc/passwd"}),
    ("an image that is not offered", {"image": "windows-11"}),
    ("a type that is not sold", {"type": "free"}),
    ("a line end in a type", {"type": "small\n"}),
    ("a place that is not sold", {"location": "moon1"}),
    ("21 keys", {"ssh_keys": ["key_a"] * 21}),
    ("32 KiB and a byte of user data", {"user_data": "x" * 32_769}),
):

    @body(f"{name}, for an order", "every field has a form, and no field has a way around it", BAD_REQUEST)
    async def _(scene: Scene, change: dict[str, Any] = change) -> list[Wire]:
        return await on_every_rail(scene, *CREATE, ORDER | change)


for name, changed in (
    ("a line end in a key's name", {"name": "laptop\n"}),
    ("a header in a key's name", {"name": "a\r\nSet-Cookie: a=b"}),
    ("an empty name", {"name": ""}),
    ("a second key in a line end", {"public_key": f"{PUBLIC_KEY}\n{PUBLIC_KEY}"}),
    ("options before a key", {"public_key": f'command="reboot" {PUBLIC_KEY}'}),
    ("a private key", {"public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}),
    ("a key of another type inside", {"public_key": PUBLIC_KEY.replace("ssh-ed25519", "ssh-rsa", 1)}),
    ("a cut key", {"public_key": PUBLIC_KEY.split(" ")[1][:-8]}),
    ("a key of 17 KiB", {"public_key": "ssh-rsa " + "A" * 17_000}),
):

    @body(f"{name}, to register", "what goes into authorized_keys is one key and nothing else", BAD_REQUEST)
    async def _(scene: Scene, changed: dict[str, str] = changed) -> list[Wire]:
        key = {"name": "laptop", "public_key": PUBLIC_KEY}
        payment = await scene.payload(scene.thief, *KEYS, key)
        return [
            scene.sign(scene.thief, *KEYS, key | changed),
            scene.paid(payment, *KEYS, key | changed),
        ]


def twice(name: str, first: str, last: str) -> bytes:
    """The order with one field two times."""
    return GOOD[:-1] + f',"{name}":"{first}","{name}":"{last}"}}'.encode()


@body(
    "fund twice, the small one paid",
    "what is priced is what is acted on",
    unpaid("invalid_exact_evm_payload_authorization_value_mismatch"),
)
async def _(scene: Scene) -> Wire:
    small = await scene.payload(scene.thief, *CREATE, ORDER | {"fund": "0.01"})
    return scene.paid(small, *CREATE, twice("fund", "0.01", "6.00"))


@body(
    "amount twice, the small one paid",
    "what is priced is what is credited",
    unpaid("invalid_exact_evm_payload_authorization_value_mismatch"),
)
async def _(scene: Scene) -> Wire:
    target = "/v1/balance/deposit"
    small = await scene.payload(scene.thief, "POST", target, {"amount": "0.01"})
    return scene.paid(small, "POST", target, b'{"amount":"0.01","amount":"100.00"}')


TOO_LARGE: Answer = refused(413, "request_too_large")


@body("of 129 KiB", "SPAWN_BODY_MAX_BYTES, before anything is decoded", TOO_LARGE)
async def _(scene: Scene) -> list[Wire]:
    return await on_every_rail(scene, *CREATE, GOOD + b" " * 131_072)


@body("of 129 KiB where none belongs", "as above, on a route that takes none", TOO_LARGE)
async def _(scene: Scene) -> list[Wire]:
    target = f"/v1/servers/{scene.server}"
    huge = b" " * 131_073
    return [scene.sign(scene.owner, method, target, huge) for method in ("GET", "DELETE")]


@body("missing, and paid for", "who pays for nothing keeps the money", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    return [
        await scene.pay(scene.thief, *CREATE),
        await scene.pay(scene.thief, *CREATE, b"null"),
        scene.sign(scene.thief, *CREATE),
        scene.sign(scene.thief, *CREATE, b"null"),
    ]


@body(
    "in another encoding",
    "Content-Encoding is not undone: what is hashed and signed is what is read",
    BAD_REQUEST,
)
async def _(scene: Scene) -> Wire:
    packed = gzip.compress(msgspec.json.encode(BUY))
    payload = await scene.payload(scene.thief, *CREATE, BUY)
    return scene.paid(payload, *CREATE, packed).plus(("Content-Encoding", "gzip"))


@body("a bomb in gzip", "as above: nothing is unpacked", BAD_REQUEST)
async def _(scene: Scene) -> Wire:
    packed = gzip.compress(b" " * 20_000_000 + GOOD)
    return scene.sign(scene.thief, *CREATE, packed, ("Content-Encoding", "gzip"))


for name, query in (
    ("limit=0", "limit=0"),
    ("limit=101", "limit=101"),
    ("limit=-1", "limit=-1"),
    ("a limit in other digits", "limit=%D9%A1"),
    ("a page beyond 64 bits", "page=99999999999999999999"),
    ("SQL for a status", "status=running'--"),
    ("a header for a status", "status=%0d%0aX-Evil:1"),
):

    @body(f"none, but {name}", "parameters have bounds, refused before money is asked", BAD_REQUEST)
    async def _(scene: Scene, query: str = query) -> list[Wire]:
        target = f"/v1/servers?{query}"
        return [
            scene.ask("GET", target),
            scene.sign(scene.thief, "GET", target),
            scene.paid(await scene.payload(scene.thief, "GET", "/v1/servers"), "GET", target),
        ]


for cursor in ("x", "c", "c-1", "c1'--", "c%D9%A1", "c99999999999999999999"):

    @body(f"none, but the cursor {cursor}", "a cursor is ours or none", BAD_REQUEST)
    async def _(scene: Scene, cursor: str = cursor) -> Wire:
        return scene.sign(scene.thief, "GET", f"/v1/balance/transactions?cursor={cursor}")
