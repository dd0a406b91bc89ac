"""Payments by the thousand from a seed: good ones, and ones changed where a verifier has something to look at.

A mutation works on a draft at one of three times: before it is signed (the payer means it), after (the signature stays
what it was), or on the finished header. What becomes of the payment is not said here: two verifiers are asked.
"""

import base64
import json
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization

from tests.unit.bad_payments import ORDER

Json = dict[str, Any]

PRICE: Final = 1_000
CHAIN_ID: Final = 84532
NETWORK: Final = f"eip155:{CHAIN_ID}"
NETWORK_V1: Final = "base-sepolia"
PAYEE: Final[LocalAccount] = Account.from_key("0x" + "fe" * 32)
PAYERS: Final[list[LocalAccount]] = [Account.from_key(bytes([number]) * 32) for number in range(1, 9)]
STRANGER: Final = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
ASSET: Final = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
OFFER: Final[Json] = {
    "scheme": "exact",
    "network": NETWORK,
    "amount": str(PRICE),
    "asset": ASSET,
    "payTo": PAYEE.address,
    "maxTimeoutSeconds": 300,
    "extra": {"name": "USDC", "version": "2", "paymentFlow": "upfront"},
}
ALWAYS: Final = 2**256 - 1
_WRAPPER: Final = b"\x64\x92" * 16


class Generated(NamedTuple):
    """A header of one protocol version, and the names of what was done to it."""

    version: int
    header: str
    mutations: tuple[str, ...]


class Draft:
    """A payment in the making."""

    def __init__(self, version: int, now: int, chance: random.Random) -> None:
        self.version = version
        self.now = now
        self.chance = chance
        self.signer = chance.choice(PAYERS)
        self.domain: Json = {"chain": CHAIN_ID, "asset": ASSET, "name": "USDC", "version": "2"}
        self.authorization: Json = {
            "from": self.signer.address,
            "to": PAYEE.address,
            "value": str(PRICE),
            "validAfter": "0",
            "validBefore": str(now + 300),
            "nonce": "0x" + chance.randbytes(32).hex(),
        }
        self.envelope: Json = {}

    def sign(self) -> None:
        """Put the authorization, signed as it stands, into the envelope of its version."""
        fields = self.authorization
        digest = hash_eip3009_authorization(
            ExactEIP3009Authorization(
                from_address=fields["from"],
                to=fields["to"],
                value=fields["value"],
                valid_after=fields["validAfter"],
                valid_before=fields["validBefore"],
                nonce=fields["nonce"],
            ),
            self.domain["chain"],
            self.domain["asset"],
            self.domain["name"],
            self.domain["version"],
        )
        signature = bytes(self.signer.unsafe_sign_hash(Hash32(digest)).signature)
        payload = {"signature": "0x" + signature.hex(), "authorization": dict(fields)}
        if self.version == 1:
            self.envelope = {"x402Version": 1, "scheme": "exact", "network": NETWORK_V1, "payload": payload}
        else:
            accepted = {**OFFER, "extra": dict(OFFER["extra"])}
            self.envelope = {"x402Version": 2, "accepted": accepted, "payload": payload}


Change = Callable[[Any, random.Random], Any]
MISSING: Final = object()


def generate(count: int, seed: int, now: Callable[[], int]) -> "list[Callable[[], Generated]]":
    """`count` makers of payments; each is called when its turn has come, since its times are counted from then."""
    return [_maker(seed, number, now) for number in range(count)]


def _maker(seed: int, number: int, now: Callable[[], int]) -> Callable[[], Generated]:
    def make() -> Generated:
        chance = random.Random(f"{seed} {number}")
        draft = Draft(chance.choice((1, 2)), now(), chance)
        wanted = {chance.choice(NAMES) for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2, 3)))}
        names = tuple(name for name in NAMES if name in wanted)
        for name in names:
            SIGNED.get(name, _nothing)(draft)
        draft.sign()
        for name in names:
            TAMPERED.get(name, _nothing)(draft)
        text = json.dumps(draft.envelope).encode()
        for name in names:
            text = JSON[name](text) if name in JSON else text
        header = base64.b64encode(text).decode()
        for name in names:
            header = HEADER[name](header, chance) if name in HEADER else header
        return Generated(draft.version, header, names)

    return make


def _nothing(_draft: Draft) -> None:
    """A mutation that has its time later, or had it before."""


def _authorize(field: str, value: Callable[[Draft], int | str]) -> Callable[[Draft], None]:
    def mutate(draft: Draft) -> None:
        draft.authorization[field] = str(value(draft))

    return mutate


def _sign_for(field: str, value: object) -> Callable[[Draft], None]:
    def mutate(draft: Draft) -> None:
        draft.domain[field] = value

    return mutate


def _signed_by_another(draft: Draft) -> None:
    draft.signer = draft.chance.choice([payer for payer in PAYERS if payer is not draft.signer])


def _payee_pays(draft: Draft) -> None:
    draft.signer = PAYEE
    draft.authorization["from"] = PAYEE.address


SIGNED: Final[dict[str, Callable[[Draft], None]]] = {
    "value": _authorize("value", lambda at: at.chance.choice((PRICE - 1, PRICE + 1, 0, 2**64, ALWAYS))),
    "validAfter at its edge": _authorize("validAfter", lambda at: at.now + at.chance.choice((-1, 0, 0, 1))),
    "validAfter": _authorize("validAfter", lambda at: at.chance.choice((at.now - 60, at.now + 60, ALWAYS))),
    "validBefore at its edge": _authorize("validBefore", lambda at: at.now + at.chance.choice((5, 6, 7))),
    "validBefore": _authorize(
        "validBefore", lambda at: at.chance.choice((0, at.now - 1, at.now + 3590, at.now + 3700, ALWAYS))
    ),
    "to a stranger": _authorize("to", lambda _: STRANGER),
    "the payee pays": _payee_pays,
    "a strange nonce": _authorize("nonce", lambda at: "0x" + at.chance.choice(("00", "ff")) * 32),
    "signed by another": _signed_by_another,
    "signed for another chain": _sign_for("chain", 8453),
    "signed for another token": _sign_for("asset", STRANGER),
    "signed for another name": _sign_for("name", "USD Coin"),
    "signed for another version": _sign_for("version", "1"),
}


def _edited(path: str, *changes: Change) -> Callable[[Draft], None]:
    """Change one field of the finished payment, if an earlier mutation has left it there."""
    *parents, last = path.split(".")

    def mutate(draft: Draft) -> None:
        place: Any = draft.envelope
        for name in parents:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            return
        value = draft.chance.choice(changes)(place[last], draft.chance)
        if value is MISSING:
            del place[last]
        else:
            place[last] = value

    return mutate


def _to(*values: object) -> Change:
    return lambda _old, chance: chance.choice(values)


def _added(path: str, name: str, value: object) -> Callable[[Draft], None]:
    def mutate(draft: Draft) -> None:
        place: Any = draft.envelope
        for parent in filter(None, path.split(".")):
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[name] = value

    return mutate


def _text(change: Callable[[str], str]) -> Change:
    return lambda old, _chance: change(old) if isinstance(old, str) else old


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Change:
    """Change what a field of hex says; one that an earlier mutation made unreadable stays."""

    def made(old: Any, chance: random.Random) -> Any:
        try:
            data = bytes.fromhex(old[2:])
        except (TypeError, ValueError):
            return old
        return "0x" + change(data, chance).hex()

    return made


def _bit_flipped(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _high_s(data: bytes, _chance: random.Random) -> bytes:
    s = (ORDER - int.from_bytes(data[32:64], "big")) % 2**256
    return data[:32] + s.to_bytes(32, "big") + bytes([(55 - data[64]) % 256]) if len(data) == 65 else data


def _compact(data: bytes, _chance: random.Random) -> bytes:
    return data[:32] + bytes([data[32] | (data[64] - 27 & 1) << 7]) + data[33:64] if len(data) == 65 else data


def _with_v(*values: int) -> Change:
    return _bytes(lambda data, chance: data[:64] + bytes([chance.choice(values)]))


def _from_zero(data: bytes, _chance: random.Random) -> bytes:
    return data[:64] + bytes([(data[64] - 27) % 256]) if len(data) == 65 else data


def _wrapped(factory: str, deploy: bytes) -> Change:
    return _bytes(
        lambda data, _: abi_encode(["address", "bytes", "bytes"], [factory, deploy, data]) + _WRAPPER
    )


def _mixed_case(old: str) -> str:
    """Letters in turn small and capital: EIP-55 has that for next to no address."""
    return "".join(
        letter.upper() if place % 2 else letter.lower() for place, letter in enumerate(old)
    ).replace("X", "x")


_NUMBERS: Final[tuple[Change, ...]] = (
    lambda old, _: int(old) if str(old).isdigit() else old,
    lambda old, _: float(old) if str(old).isdigit() and int(old) < 2**50 else old,
    _text(lambda old: "0" * 3 + old),
    _text(lambda old: "+" + old),
    _text(lambda old: f" {old}"),
    _text(lambda old: f"{old}\n"),
    _text(lambda old: f"{old[:1]}_{old[1:]}"),
    _text(lambda old: old.translate({ord("0") + digit: 0x660 + digit for digit in range(10)})),
    _text(lambda old: hex(int(old)) if old.isdigit() else old),
    _to(
        "", "-1", "1e3", "abc", None, True, [], str(2**256), str(2**256 + PRICE), "9" * 78, "9" * 400, MISSING
    ),
)
_ADDRESSES: Final[tuple[Change, ...]] = (
    _text(str.lower),
    _text(lambda old: "0x" + old[2:].upper()),
    _text(_mixed_case),
    _text(lambda old: "0X" + old[2:]),
    _text(lambda old: old[2:]),
    _text(lambda old: old[:-1]),
    _text(lambda old: old + "0"),
    _text(lambda old: old + "\n"),
    _text(lambda old: old[:-1] + "g"),
    _text(lambda old: old[:-1] + ("0" if old[-1:] != "0" else "1")),
    _to(STRANGER, "", None, 5, [], MISSING),
)
_HEX: Final[tuple[Change, ...]] = (
    _text(lambda old: "0x" + old[2:].upper()),
    _text(lambda old: "0X" + old[2:]),
    _text(lambda old: old[2:]),
    _text(lambda old: f"{old[:10]} {old[10:]}"),
    _text(lambda old: old + "\n"),
    _text(lambda old: old[:-1]),
    _bytes(lambda data, _: data[:-1]),
    _bytes(lambda data, _: data + b"\x00"),
    _bytes(_bit_flipped),
    _to("", "0x", None, 7, {}, MISSING),
)
_VERSIONS: Final = _to("2", "1", 2.0, 1.0, 1, 2, 3, 0, -2, True, None, MISSING)
_EXTRAS: Final = _to(
    {},
    None,
    MISSING,
    {"name": "USDC", "version": "2"},
    {**OFFER["extra"], "version": "1"},
    {**OFFER["extra"], "more": 1},
)

TAMPERED: Final[dict[str, Callable[[Draft], None]]] = {
    **{
        f"{name} written otherwise": _edited(f"payload.authorization.{name}", *_NUMBERS)
        for name in ("value", "validAfter", "validBefore")
    },
    **{
        f"{name} written otherwise": _edited(f"payload.authorization.{name}", *_ADDRESSES)
        for name in ("from", "to")
    },
    "nonce written otherwise": _edited("payload.authorization.nonce", *_HEX),
    "signature written otherwise": _edited("payload.signature", *_HEX),
    "signature with a bit flipped": _edited("payload.signature", _bytes(_bit_flipped)),
    "signature with high s": _edited("payload.signature", _bytes(_high_s)),
    "signature with v from 0": _edited("payload.signature", _bytes(_from_zero)),
    "signature with another v": _edited("payload.signature", _with_v(0, 1, 2, 26, 27, 28, 29, 35, 255)),
    "signature of another length": _edited(
        "payload.signature",
        _bytes(_compact),
        _bytes(lambda data, chance: (data * 3)[: chance.choice((1, 32, 64, 66, 130, 195))]),
        _bytes(lambda _, chance: chance.randbytes(65)),
        _bytes(lambda data, _: data + _WRAPPER),
    ),
    "signature wrapped": _edited("payload.signature", _wrapped(STRANGER, b"deploy")),
    "signature wrapped with nothing to deploy": _edited(
        "payload.signature", _wrapped("0x" + "00" * 20, b""), _wrapped(STRANGER, b"")
    ),
    "the version": _edited("x402Version", _VERSIONS),
    "the scheme": _edited("scheme", _to("upto", "EXACT", "", None, MISSING)),
    "the scheme accepted": _edited("accepted.scheme", _to("upto", "EXACT", "", None, MISSING)),
    "the network": _edited("network", _to("base", "BASE-SEPOLIA", NETWORK, "", 84532, MISSING)),
    "the network accepted": _edited(
        "accepted.network",
        _to("eip155:8453", "EIP155:84532", "eip155:084532", "eip155:*", NETWORK_V1, MISSING),
    ),
    "the amount accepted": _edited(
        "accepted.amount", _to(str(PRICE + 1), "0", f"0{PRICE}", PRICE, f"{PRICE}.0", "", MISSING)
    ),
    "the asset accepted": _edited("accepted.asset", *_ADDRESSES),
    "the payee accepted": _edited("accepted.payTo", *_ADDRESSES),
    "the timeout accepted": _edited(
        "accepted.maxTimeoutSeconds", _to(60, 0, -1, "300", 300.0, 2**70, None, MISSING)
    ),
    "the extra accepted": _edited("accepted.extra", _EXTRAS),
    "accepted": _edited("accepted", _to(None, [], "exact", MISSING)),
    "the payload": _edited("payload", _to(None, [], {}, "0x", MISSING)),
    "the authorization": _edited("payload.authorization", _to(None, [], {}, "0x", MISSING)),
    "a resource": _added("", "resource", {"url": "http://127.0.0.1:8402/v1/servers"}),
    "a strange resource": _added("", "resource", "http://127.0.0.1:8402/v1/servers"),
    "extensions": _added("", "extensions", {"payment-identifier": {"info": {"required": False}}}),
    "strange extensions": _added("", "extensions", []),
    "more": _added("", "more", {"of": ["anything"]}),
    "more in the payload": _added("payload", "more", 1),
    "more in the authorization": _added("payload.authorization", "chainId", 1),
    "a Permit2 authorization too": _added("payload", "permit2Authorization", {"from": STRANGER}),
}


def _first(member: bytes) -> Callable[[bytes], bytes]:
    """Put one more member before the others."""
    return lambda text: b"{" + member + b", " + text[1:]


def _padded(text: bytes) -> bytes:
    """The same JSON, of a length to which base64 adds two characters of padding."""
    return text + b" " * ((1 - len(text)) % 3)


JSON: Final[dict[str, Callable[[bytes], bytes]]] = {
    "too long": _first(b'"filler": "' + b"x" * 8192 + b'"'),
    "NaN": _first(b'"filler": NaN'),
    "infinity": _first(b'"filler": [-Infinity]'),
    "half a surrogate pair": _first(rb'"filler": "\ud83d"'),
    "not UTF-8": _first(b'"filler": "\xff"'),
    "a control character": _first(b'"filler": "\x01"'),
    "deep": _first(b'"filler": ' + b"[" * 300 + b"]" * 300),
    "a long number": _first(b'"filler": ' + b"7" * 4_000),
    "a member twice": _first(b'"payload": 5'),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "space around": lambda text: b" \r\n\t" + text + b"\n",
    "more after the JSON": lambda text: text + b"{}",
    "escaped": lambda text: text.replace(b'"from"', rb'"\u0066rom"').replace(b"exact", rb"\u0065xact"),
    "no padding": _padded,
    "more after the padding": _padded,
    "unused bits set": _padded,
}


def _into(junk: str) -> Callable[[str, random.Random], str]:
    def mutate(header: str, chance: random.Random) -> str:
        at = chance.randrange(len(header) + 1)
        return header[:at] + chance.choice(junk) + header[at:]

    return mutate


HEADER: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "no padding": lambda header, _: header.rstrip("="),
    "unused bits set": lambda header, _: header[:-3] + chr(ord(header[-3]) + 1) + header[-2:],
    "more padding": lambda header, _: header + "=",
    "more after the padding": lambda header, _: header + "QUJD",
    "a space in the header": _into(" \t\n"),
    "junk in the header": _into("!~,_-%"),
    "header cut": lambda header, chance: header[: chance.randrange(len(header))],
    "header twice": lambda header, _: f"{header}, {header}",
}

NAMES: Final = (*dict.fromkeys((*SIGNED, *TAMPERED, *JSON, *HEADER)),)
