"""Payments that must not pass, as data: shared by the tests of the verifier and of the HTTP doors.

Each entry turns a good payment (the JSON of a `PAYMENT-SIGNATURE` header) into a header value that is refused
for one stated reason. Where a key is needed to build it, it is the attacker's: nobody else's is at hand.
"""

import base64
import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data
from eth_account.signers.local import LocalAccount
from spawn_schemas.errors import Code
from spawn_schemas.x402 import Reason

Payment = dict[str, Any]

ATTACKER: LocalAccount = Account.from_key("0x" + "a7" * 32)
STRANGER = "0x00000000000000000000000000000000000000Aa"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
TRANSFER = [
    {"name": "from", "type": "address"},
    {"name": "to", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "validAfter", "type": "uint256"},
    {"name": "validBefore", "type": "uint256"},
    {"name": "nonce", "type": "bytes32"},
]


class BadPayment(NamedTuple):
    """`expected` is a Code when the header is no payment at all, a Reason when the payment does not pay."""

    name: str
    make: Callable[[Payment], str]
    expected: Code | Reason


def header(payment: object) -> str:
    """A header value as clients write it."""
    return base64.b64encode(json.dumps(payment).encode()).decode()


def sign(
    payment: Payment, account: LocalAccount, *, kind: str = "TransferWithAuthorization", **domain: Any
) -> str:
    """Return `account`'s EIP-712 signature over the authorization as it stands; `domain` overrides ours."""
    accepted = payment["accepted"]
    authorization = payment["payload"]["authorization"]
    message = {name: int(authorization[name]) for name in ("value", "validAfter", "validBefore")}
    signable = encode_typed_data(
        {
            "name": accepted["extra"]["name"],
            "version": accepted["extra"]["version"],
            "chainId": int(accepted["network"].split(":")[1]),
            "verifyingContract": accepted["asset"],
            **domain,
        },
        {kind: TRANSFER},
        {**authorization, **message, "nonce": bytes.fromhex(authorization["nonce"][2:])},
    )
    return "0x" + account.sign_message(signable).signature.hex().removeprefix("0x")


def _edited(path: str, value: object) -> Callable[[Payment], str]:
    """Set one field, named by its path, to `value`, or to what `value` makes of the old one."""

    def make(good: Payment) -> str:
        payment = copy.deepcopy(good)
        *parents, last = path.split(".")
        place = payment
        for name in parents:
            place = place[name]
        place[last] = value(place[last]) if callable(value) else value
        return header(payment)

    return make


def _without(path: str) -> Callable[[Payment], str]:
    def make(good: Payment) -> str:
        payment = copy.deepcopy(good)
        *parents, last = path.split(".")
        place = payment
        for name in parents:
            place = place[name]
        del place[last]
        return header(payment)

    return make


def _by_attacker(**changes: Any) -> Callable[[Payment], str]:
    """A payment that the attacker signs for himself, properly, after changing these authorization fields."""

    def make(good: Payment) -> str:
        payment = copy.deepcopy(good)
        authorization = payment["payload"]["authorization"]
        authorization["from"] = ATTACKER.address
        for name, change in changes.items():
            authorization[name] = change(good) if callable(change) else change
        payment["payload"]["signature"] = sign(payment, ATTACKER)
        return header(payment)

    return make


def _forged(
    kind: str = "TransferWithAuthorization", *, own: bool = True, **domain: Any
) -> Callable[[Payment], str]:
    """The attacker's signature on the wrong data, or (`own=False`) on somebody else's payment."""

    def make(good: Payment) -> str:
        payment = copy.deepcopy(good)
        if own:
            payment["payload"]["authorization"]["from"] = ATTACKER.address
        payment["payload"]["signature"] = sign(payment, ATTACKER, kind=kind, **domain)
        return header(payment)

    return make


def _personal_message(good: Payment) -> str:
    payment = copy.deepcopy(good)
    payment["payload"]["authorization"]["from"] = ATTACKER.address
    text = json.dumps(payment["payload"]["authorization"])
    signature = ATTACKER.sign_message(encode_defunct(text=text)).signature
    payment["payload"]["signature"] = "0x" + signature.hex().removeprefix("0x")
    return header(payment)


def _signature(change: Callable[[bytes], bytes]) -> Callable[[Payment], str]:
    return _edited("payload.signature", lambda text: "0x" + change(bytes.fromhex(text[2:])).hex())


def _high_s(signature: bytes) -> bytes:
    """The other signature that recovers to the same key: valid for ecrecover, refused by USDC (EIP-2)."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def _compact(signature: bytes) -> bytes:
    """EIP-2098: 64 bytes, the parity in the top bit of s."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + s.to_bytes(32, "big")


def _no_curve_point(signature: bytes) -> bytes:
    """Five is not the x of any point of the curve, so this r belongs to no key."""
    return (5).to_bytes(32, "big") + signature[32:]


def _mangled(change: Callable[[str], str]) -> Callable[[Payment], str]:
    """Change a header that ends in two padding characters and has a plus or a slash in it."""

    def make(good: Payment) -> str:
        payment = copy.deepcopy(good)
        for length in range(1, 200):
            payment["filler"] = "~?" * length
            text = header(payment)
            if text.endswith("==") and ("/" in text or "+" in text):
                return change(text)
        raise AssertionError("no filler gave the wanted header")

    return make


def _raw(data: bytes) -> Callable[[Payment], str]:
    return lambda _good: base64.b64encode(data).decode()


def _now(good: Payment) -> int:
    """When the good payment was made: stock clients sign validBefore = now + maxTimeoutSeconds."""
    return int(good["payload"]["authorization"]["validBefore"]) - int(good["accepted"]["maxTimeoutSeconds"])


_AUTHORIZATION = "payload.authorization"

NOT_A_PAYMENT = [
    ("empty", lambda _: ""),
    ("not base64", lambda _: "%%%%"),
    ("padding missing", _mangled(lambda text: text.rstrip("="))),
    ("half the padding missing", _mangled(lambda text: text[:-1])),
    ("too much padding", _mangled(lambda text: text + "=")),
    ("url-safe alphabet", _mangled(lambda text: text.replace("/", "_").replace("+", "-"))),
    ("space inside", _mangled(lambda text: text[:40] + " " + text[40:])),
    ("junk inside", _mangled(lambda text: text[:40] + "!" + text[40:])),
    ("two values", _mangled(lambda text: text + ", " + text)),
    ("more after the padding", _mangled(lambda text: text + "QUJD")),
    ("unused bits set", _mangled(lambda text: text[:-3] + chr(ord(text[-3]) + 1) + "==")),
    ("longer than 8 KiB", _edited("filler", "x" * 8192)),
    ("not JSON", _raw(b"hello, I would like to pay")),
    ("empty JSON text", _raw(b" ")),
    ("truncated JSON", lambda good: base64.b64encode(json.dumps(good).encode()[:-2]).decode()),
    ("two JSON texts", lambda good: base64.b64encode(json.dumps(good).encode() * 2).decode()),
    ("not UTF-8", _raw(b'{"x402Version":2,"accepted":"\xff\xfe"}')),
    ("array", _raw(b"[]")),
    ("null", _raw(b"null")),
    ("nested without end", _raw(b'{"extensions":' + b"[" * 6000)),
    ("nested deeply", _raw(b'{"other":' + b"[" * 2900 + b"]" * 2900 + b"}")),
    ("no version", _without("x402Version")),
    ("version as text", _edited("x402Version", "2")),
    ("version as fraction", _edited("x402Version", 2.5)),
    ("no accepted", _without("accepted")),
    ("accepted is null", _edited("accepted", None)),
    ("accepted amount as number", _edited("accepted.amount", 1000)),
    ("no network", _without("accepted.network")),
    ("no payload", _without("payload")),
    ("no signature", _without("payload.signature")),
    ("signature is null", _edited("payload.signature", None)),
    ("signature without 0x", _edited("payload.signature", lambda text: text[2:])),
    ("signature not hex", _edited("payload.signature", lambda text: text[:-1] + "g")),
    ("signature of half a byte", _edited("payload.signature", lambda text: text[:-1])),
    ("no authorization", _without(_AUTHORIZATION)),
    ("permit2 instead", _edited("payload", {"signature": "0x", "permit2Authorization": {}})),
    *((f"no {name}", _without(f"{_AUTHORIZATION}.{name}")) for name in (field["name"] for field in TRANSFER)),
    *(
        (f"value {value!r}", _edited(f"{_AUTHORIZATION}.value", value))
        for value in (
            1000,
            -1,
            "-1",
            "+1",
            "01",
            "1.0",
            "1e3",
            " 1",
            "1 ",
            "1\n",
            "0x10",
            "",
            "1_000",
            "\u0661",
            None,
        )
    ),
    ("value of 257 bits", _edited(f"{_AUTHORIZATION}.value", str(2**256))),
    ("value of 79 digits", _edited(f"{_AUTHORIZATION}.value", "1" + "0" * 78)),
    ("validAfter as number", _edited(f"{_AUTHORIZATION}.validAfter", 0)),
    ("validBefore of 257 bits", _edited(f"{_AUTHORIZATION}.validBefore", str(2**256))),
    ("from too short", _edited(f"{_AUTHORIZATION}.from", lambda text: text[:-1])),
    ("from too long", _edited(f"{_AUTHORIZATION}.from", lambda text: text + "0")),
    ("from with a line end", _edited(f"{_AUTHORIZATION}.from", lambda text: text + "\n")),
    ("from without 0x", _edited(f"{_AUTHORIZATION}.from", lambda text: text[2:])),
    ("to not hex", _edited(f"{_AUTHORIZATION}.to", lambda text: text[:-1] + "z")),
    ("nonce too short", _edited(f"{_AUTHORIZATION}.nonce", "0x01")),
    ("nonce without 0x", _edited(f"{_AUTHORIZATION}.nonce", lambda text: text[2:])),
    ("nonce not hex", _edited(f"{_AUTHORIZATION}.nonce", "0x" + "xy" * 32)),
]

NOT_FOR_US = [
    ("version 1", _edited("x402Version", 1), Reason.INVALID_VERSION),
    ("version 3", _edited("x402Version", 3), Reason.INVALID_VERSION),
    ("scheme upto", _edited("accepted.scheme", "upto"), Reason.UNSUPPORTED_SCHEME),
    ("scheme in capitals", _edited("accepted.scheme", "EXACT"), Reason.UNSUPPORTED_SCHEME),
    ("another chain", _edited("accepted.network", "eip155:1"), Reason.NETWORK_MISMATCH),
    ("network by its old name", _edited("accepted.network", "base-sepolia"), Reason.NETWORK_MISMATCH),
    ("another token", _edited("accepted.asset", STRANGER), Reason.INVALID_REQUIREMENTS),
    ("another payee accepted", _edited("accepted.payTo", STRANGER), Reason.RECIPIENT_MISMATCH),
    ("another payee signed", _by_attacker(to=STRANGER), Reason.RECIPIENT_MISMATCH),
    (
        "payee unchanged in accepted only",
        _edited(f"{_AUTHORIZATION}.to", STRANGER),
        Reason.RECIPIENT_MISMATCH,
    ),
    (
        "payee pays itself",
        lambda good: _edited(f"{_AUTHORIZATION}.from", good["accepted"]["payTo"])(good),
        Reason.RECIPIENT_MISMATCH,
    ),
]

NOT_SIGNED = [
    ("no signature bytes", _edited("payload.signature", "0x")),
    ("compact signature (EIP-2098)", _signature(_compact)),
    ("66 bytes", _signature(lambda signature: signature + b"\x00")),
    ("contract wallet (ERC-6492)", _signature(lambda signature: signature * 3 + b"\x64\x92" * 16)),
    ("all zero", _signature(lambda _: bytes(65))),
    ("r zero", _signature(lambda signature: bytes(32) + signature[32:])),
    ("r is the order", _signature(lambda signature: ORDER.to_bytes(32, "big") + signature[32:])),
    ("r on no curve point", _signature(_no_curve_point)),
    ("s zero", _signature(lambda signature: signature[:32] + bytes(32) + signature[64:])),
    (
        "s is the order",
        _signature(lambda signature: signature[:32] + ORDER.to_bytes(32, "big") + signature[64:]),
    ),
    ("high s", _signature(_high_s)),
    ("v counted from 0", _signature(lambda signature: signature[:64] + bytes([signature[64] - 27]))),
    (
        "v of another chain (EIP-155)",
        _signature(lambda signature: signature[:64] + bytes([signature[64] + 8])),
    ),
    ("other parity", _signature(lambda signature: signature[:64] + bytes([55 - signature[64]]))),
    ("one bit of r", _signature(lambda signature: bytes([signature[0] ^ 1]) + signature[1:])),
    (
        "one bit of s",
        _signature(lambda signature: signature[:63] + bytes([signature[63] ^ 1]) + signature[64:]),
    ),
    ("r and s swapped", _signature(lambda signature: signature[32:64] + signature[:32] + signature[64:])),
    ("signed by a stranger", _forged(own=False)),
    ("value changed", _edited(f"{_AUTHORIZATION}.value", lambda text: str(int(text) + 1))),
    ("validAfter changed", _edited(f"{_AUTHORIZATION}.validAfter", lambda text: str(int(text) + 1))),
    ("validBefore changed", _edited(f"{_AUTHORIZATION}.validBefore", lambda text: str(int(text) + 1))),
    ("nonce changed", _edited(f"{_AUTHORIZATION}.nonce", "0x" + "00" * 32)),
    ("payer changed", _edited(f"{_AUTHORIZATION}.from", STRANGER)),
    ("signed for another chain", _forged(chainId=1)),
    ("signed for another token", _forged(verifyingContract=STRANGER)),
    ("signed with another token name", _forged(name="USD Coin (bridged)")),
    ("signed with another token version", _forged(version="1")),
    ("receiveWithAuthorization", _forged("ReceiveWithAuthorization")),
    ("a personal message", _personal_message),
]

DOES_NOT_PAY = [
    (
        "one unit too little",
        _by_attacker(value=lambda good: str(int(good["accepted"]["amount"]) - 1)),
        Reason.VALUE_MISMATCH,
    ),
    (
        "one unit too much",
        _by_attacker(value=lambda good: str(int(good["accepted"]["amount"]) + 1)),
        Reason.VALUE_MISMATCH,
    ),
    ("nothing", _by_attacker(value="0"), Reason.VALUE_MISMATCH),
    ("everything", _by_attacker(value=str(2**256 - 1)), Reason.VALUE_MISMATCH),
    ("expired", _by_attacker(validBefore=lambda good: str(_now(good) - 1)), Reason.VALID_BEFORE),
    ("about to expire", _by_attacker(validBefore=lambda good: str(_now(good) + 3)), Reason.VALID_BEFORE),
    ("never expires", _by_attacker(validBefore=str(2**256 - 1)), Reason.VALID_BEFORE),
    ("not yet valid", _by_attacker(validAfter=lambda good: str(_now(good) + 60)), Reason.VALID_AFTER),
    ("never valid", _by_attacker(validAfter=str(2**256 - 1)), Reason.VALID_AFTER),
]

BAD_PAYMENTS = [
    *(BadPayment(name, make, Code.INVALID_PAYMENT) for name, make in NOT_A_PAYMENT),
    *(BadPayment(name, make, reason) for name, make, reason in NOT_FOR_US),
    *(BadPayment(name, make, Reason.SIGNATURE) for name, make in NOT_SIGNED),
    *(BadPayment(name, make, reason) for name, make, reason in DOES_NOT_PAY),
]
