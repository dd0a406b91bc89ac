"""Our verdict on a payment beside that of PyPI `x402`: where they differ, docs/differences.md says why.

Theirs is that of a server that uses it: its reading of the header, its matching with what was offered, and the
verification of its facilitator on a chain that has nothing against the payment (no code at the payer, enough money,
a simulation that succeeds). The table in the document and the classes here are the same, or this fails.
"""

import base64
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import pytest
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import parse_address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import MAX_UINT256
from x402 import x402ResourceServerSync
from x402.http.utils import decode_payment_signature_header
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.mechanisms.evm.exact.v1.facilitator import ExactEvmSchemeV1
from x402.mechanisms.evm.signer import FacilitatorEvmSigner
from x402.schemas import PaymentPayload, PaymentPayloadV1, PaymentRequirements, PaymentRequirementsV1

from spawn.payments import exact, version1
from spawn.payments.exact import MAX_LIFE_S, PaymentInvalid
from spawn.payments.header import MAX_HEADER_BYTES
from tests.engines import ROOT
from tests.interop.generated_payments import (
    ASSET,
    CHAIN_ID,
    NAMES,
    NETWORK_V1,
    OFFER,
    PAYEE,
    PRICE,
    Generated,
    generate,
)
from tests.unit.bad_payments import ORDER

COUNT: Final = 5_000
FIXED: Final = 402
PAYS: Final = "pays"
TERMS: Final = exact.terms(
    chain_id=CHAIN_ID,
    asset=parse_address(ASSET),
    asset_name="USDC",
    asset_version="2",
    pay_to=parse_address(PAYEE.address),
)


class WillingChain:
    """What their verification asks of a node, answered so that it finds nothing to object to."""

    def get_code(self, address: str) -> bytes:
        return b"\x60" if address.lower() == ASSET.lower() else b""

    def read_contract(self, *_call: object) -> None:
        """The simulated transfer: it returns nothing, and does not revert."""


SERVER: Final = x402ResourceServerSync()
CHAIN: Final = cast("FacilitatorEvmSigner", WillingChain())
SCHEME: Final = ExactEvmScheme(CHAIN)
SCHEME_V1: Final = ExactEvmSchemeV1(CHAIN)
OFFERED: Final = PaymentRequirements.model_validate(OFFER)
OFFERED_V1: Final = PaymentRequirementsV1(
    scheme="exact",
    network=NETWORK_V1,
    max_amount_required=str(PRICE),
    resource="http://127.0.0.1:8402/v1/servers",
    pay_to=PAYEE.address,
    max_timeout_seconds=300,
    asset=ASSET,
    extra={"name": "USDC", "version": "2"},
)


class Verdicts(NamedTuple):
    """`pays`, or the word for why not: ours, and theirs."""

    payment: Generated
    now: int
    ours: str
    theirs: str

    @property
    def differ(self) -> bool:
        return (self.ours == PAYS) != (self.theirs == PAYS)


def our_verdict(payment: Generated, now: int) -> str:
    try:
        if payment.version == 1:
            identified = version1.identify(version1.decode_payment(payment.header), TERMS)
        else:
            identified = exact.identify(exact.decode_payment(payment.header), TERMS)
        exact.check(identified, amount_usdc=Usdc(PRICE), now=now)
    except SpawnError as error:
        return error.code.value
    except PaymentInvalid as invalid:
        return invalid.reason.value
    return PAYS


def their_verdict(payment: Generated) -> str:
    """`no payment`, `no match` and `exception` are our words for what they have none for."""
    try:
        payload = decode_payment_signature_header(payment.header)
    except Exception:  # noqa: BLE001 - as their server does: whatever it is, there is no payment
        return "no payment"
    try:
        if payment.version == 1 and isinstance(payload, PaymentPayloadV1):
            answer = SCHEME_V1.verify(payload, OFFERED_V1)
        elif payment.version == 2 and isinstance(payload, PaymentPayload):
            if SERVER.find_matching_requirements([OFFERED], payload) is None:
                return "no match"
            answer = SCHEME.verify(payload, OFFERED)
        else:
            return "no payment"
    except Exception:  # noqa: BLE001 - it raises what its parts raise; the payment is not taken
        return "exception"
    return PAYS if answer.is_valid else str(answer.invalid_reason)


def judge(make: Callable[[], Generated]) -> Verdicts:
    """Both verdicts in the same second: theirs reads the clock of the machine."""
    for _ in range(5):
        now = int(time.time())
        payment = make()
        verdicts = Verdicts(payment, now, our_verdict(payment, now), their_verdict(payment))
        if int(time.time()) == now:
            return verdicts
    raise AssertionError("this machine is too slow to judge a payment within a second")


def content(verdicts: Verdicts) -> dict[str, Any]:
    """What the header holds, read as leniently as they read it; nothing, if even that finds no object."""
    try:
        read = json.loads(base64.b64decode(verdicts.payment.header))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def authorization(verdicts: Verdicts) -> dict[str, Any]:
    found: dict[str, Any] = content(verdicts)["payload"]["authorization"]
    return found


def signature(verdicts: Verdicts) -> bytes:
    return bytes.fromhex(content(verdicts)["payload"]["signature"].removeprefix("0x"))


_UINT = re.compile(r"0|[1-9][0-9]{0,77}")
_HEX = re.compile(r"0x[0-9a-fA-F]*")


def _repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise KeyError("a member comes twice")
    return dict(pairs)


def _not_json(_name: str) -> None:
    raise ValueError("JSON has no such number")


def raises(kind: type[Exception], read: Callable[[], object]) -> bool:
    try:
        read()
    except kind:
        return True
    return False


def raw(verdicts: Verdicts) -> bytes:
    return base64.b64decode(verdicts.payment.header)


def is_plain_base64(verdicts: Verdicts) -> bool:
    return base64.b64encode(raw(verdicts)).decode() == verdicts.payment.header


def has_numbers_json_has_not(verdicts: Verdicts) -> bool:
    return raises(ValueError, lambda: json.loads(raw(verdicts), parse_constant=_not_json))


def has_half_a_surrogate_pair(verdicts: Verdicts) -> bool:
    text = json.dumps(content(verdicts), ensure_ascii=False)
    return raises(UnicodeEncodeError, text.encode)


def has_a_member_twice(verdicts: Verdicts) -> bool:
    return raises(KeyError, lambda: json.loads(raw(verdicts), object_pairs_hook=_repeated))


def says_another_version(verdicts: Verdicts) -> bool:
    version = content(verdicts).get("x402Version")
    return type(version) is not int or version != verdicts.payment.version


def writes_numbers_otherwise(verdicts: Verdicts) -> bool:
    numbers = [authorization(verdicts)[name] for name in ("value", "validAfter", "validBefore")]
    return any(not isinstance(number, str) or not _UINT.fullmatch(number) for number in numbers)


def writes_hex_otherwise(verdicts: Verdicts) -> bool:
    fields = [authorization(verdicts)[name] for name in ("from", "to", "nonce")]
    return any(
        not isinstance(field, str) or not _HEX.fullmatch(field)
        for field in (*fields, content(verdicts)["payload"]["signature"])
    )


def writes_the_timeout_otherwise(verdicts: Verdicts) -> bool:
    timeout = content(verdicts)["accepted"]["maxTimeoutSeconds"]
    return type(timeout) is not int and float(timeout) == OFFER["maxTimeoutSeconds"]


def has_high_s(verdicts: Verdicts) -> bool:
    signed = signature(verdicts)
    return len(signed) == 65 and int.from_bytes(signed[32:64], "big") > ORDER // 2


def wraps_an_ordinary_signature(verdicts: Verdicts) -> bool:
    return signature(verdicts).endswith(b"\x64\x92" * 16)


def echoes_another_offer(verdicts: Verdicts) -> bool:
    """What is echoed is not, letter by letter, what was offered; whom and what it is to pay is."""
    accepted = content(verdicts)["accepted"]
    echoed = {name: accepted.get(name) for name in OFFER if name != "extra"}
    extra = accepted.get("extra") or {}
    return (
        echoed != {name: value for name, value in OFFER.items() if name != "extra"}
        or {name: extra.get(name) for name in OFFER["extra"]} != OFFER["extra"]
    ) and [accepted[name].lower() for name in ("asset", "payTo")] == [ASSET.lower(), PAYEE.address.lower()]


class Difference(NamedTuple):
    """One way to differ: the words of both (theirs: any of them), and what such a payment looks like."""

    name: str
    ours: str
    theirs: tuple[str, ...]
    looks: Callable[[Verdicts], bool]

    def explains(self, verdicts: Verdicts) -> bool:
        if verdicts.ours != self.ours or verdicts.theirs not in self.theirs:
            return False
        return self.looks(verdicts)


_VALID_AFTER: Final = "invalid_exact_evm_payload_authorization_valid_after"
_VALID_BEFORE: Final = "invalid_exact_evm_payload_authorization_valid_before"
_SIGNATURE: Final = "invalid_exact_evm_payload_signature"
_RECIPIENT: Final = "invalid_exact_evm_payload_recipient_mismatch"
_MALFORMED: Final = "invalid_payment"

DIFFERENCES: Final = (
    Difference("junk in base64", _MALFORMED, (PAYS,), lambda at: not is_plain_base64(at)),
    Difference("long header", _MALFORMED, (PAYS,), lambda at: len(at.payment.header) > MAX_HEADER_BYTES),
    Difference("NaN and Infinity", _MALFORMED, (PAYS,), has_numbers_json_has_not),
    Difference("half a surrogate pair", _MALFORMED, (PAYS,), has_half_a_surrogate_pair),
    Difference("a member twice", _MALFORMED, (PAYS,), has_a_member_twice),
    Difference("version written otherwise", _MALFORMED, (PAYS,), says_another_version),
    Difference("another version", "invalid_x402_version", (PAYS,), says_another_version),
    Difference("number written otherwise", _MALFORMED, (PAYS,), writes_numbers_otherwise),
    Difference("hex written otherwise", _MALFORMED, (PAYS,), writes_hex_otherwise),
    Difference("timeout written otherwise", _MALFORMED, (PAYS,), writes_the_timeout_otherwise),
    Difference(
        "valid from this second",
        _VALID_AFTER,
        (PAYS,),
        lambda at: int(authorization(at)["validAfter"]) == at.now,
    ),
    Difference(
        "valid for more than an hour",
        _VALID_BEFORE,
        (PAYS,),
        lambda at: at.now + MAX_LIFE_S < int(authorization(at)["validBefore"]) <= MAX_UINT256,
    ),
    Difference(
        "the payee pays itself",
        _RECIPIENT,
        (PAYS,),
        lambda at: str(authorization(at)["from"]).lower() == PAYEE.address.lower(),
    ),
    Difference("high s", _SIGNATURE, (PAYS,), has_high_s),
    Difference("v from 0", _SIGNATURE, (PAYS,), lambda at: signature(at)[64:] in (b"\x00", b"\x01")),
    Difference("wrapped ordinary signature", _SIGNATURE, (PAYS,), wraps_an_ordinary_signature),
    Difference("another echo", PAYS, ("no match", "no payment"), echoes_another_offer),
    Difference(
        "strange resource", PAYS, ("no payment",), lambda at: not isinstance(content(at)["resource"], dict)
    ),
    Difference(
        "Permit2 beside it",
        PAYS,
        ("invalid_permit2_spender",),
        lambda at: "permit2Authorization" in content(at)["payload"],
    ),
    Difference("not UTF-8", PAYS, ("no payment",), lambda at: raises(UnicodeDecodeError, raw(at).decode)),
)


def explained(verdicts: Verdicts) -> list[str]:
    """The names of the classes that a difference falls in; one that a payment is not even read for explains nothing."""
    names = []
    for difference in DIFFERENCES:
        try:
            if difference.explains(verdicts):
                names.append(difference.name)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return names


def told(verdicts: Verdicts, seed: int) -> str:
    payment = verdicts.payment
    return (
        f"seed {seed}, at {verdicts.now}, version {payment.version}, {payment.mutations}: "
        f"ours {verdicts.ours!r}, theirs {verdicts.theirs!r}: {payment.header}"
    )


def judge_all(seed: int) -> list[Verdicts]:
    return [judge(make) for make in generate(COUNT, seed, lambda: int(time.time()))]


@pytest.fixture(scope="module")
def fixed() -> list[Verdicts]:
    return judge_all(FIXED)


def test_every_difference_is_explained_and_every_explanation_is_needed(fixed: list[Verdicts]) -> None:
    seen = Counter(name for verdicts in fixed if verdicts.differ for name in explained(verdicts))
    unexplained = [told(verdicts, FIXED) for verdicts in fixed if verdicts.differ and not explained(verdicts)]
    print(f"of {COUNT} payments {sum(verdicts.differ for verdicts in fixed)} differ: {seen}")
    assert unexplained == []
    assert {difference.name for difference in DIFFERENCES} - seen.keys() == set()


def test_other_payments_differ_for_the_same_reasons() -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    unexplained = [
        told(verdicts, seed) for verdicts in judge_all(seed) if verdicts.differ and not explained(verdicts)
    ]
    assert unexplained == []


def test_the_payments_are_worth_judging(fixed: list[Verdicts]) -> None:
    """Both verdicts are common, in both versions, and every mutation is there alone."""
    verdicts = Counter((each.payment.version, each.ours == PAYS, each.theirs == PAYS) for each in fixed)
    assert len(verdicts) == 8
    assert all(verdicts[version, pays, pays] > COUNT // 10 for version in (1, 2) for pays in (True, False))
    assert {each.payment.mutations[0] for each in fixed if len(each.payment.mutations) == 1} == set(NAMES)


def test_an_unchanged_payment_pays_with_both(fixed: list[Verdicts]) -> None:
    assert {(each.ours, each.theirs) for each in fixed if not each.payment.mutations} == {(PAYS, PAYS)}


def test_both_refuse_in_the_words_that_the_document_has(fixed: list[Verdicts]) -> None:
    """Where two things are wrong the order of looking decides; so only what is wrong in one way."""
    words = {
        (each.ours, each.theirs)
        for each in fixed
        if len(each.payment.mutations) == 1 and not each.differ and each.ours != each.theirs
    }
    documented = {
        (ours, their) for ours, theirs in _rows("Other words") for their in re.findall(r"`([^`]+)`", theirs)
    }
    assert words == {(ours.strip("`"), their) for ours, their in documented}


def test_the_document_has_the_same_differences() -> None:
    rows = [
        (name, ours.strip("`"), tuple(re.findall(r"`([^`]+)`", theirs)))
        for name, ours, theirs in _rows("Verdicts")
    ]
    assert rows == [(difference.name, difference.ours, difference.theirs) for difference in DIFFERENCES]


def _rows(heading: str) -> list[tuple[str, ...]]:
    """The cells of a table of the document, without its head and, for the verdicts, without the words at the end."""
    text = (ROOT / "docs" / "differences.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    wanted = 3 if heading == "Verdicts" else 2
    return [tuple(cell.strip() for cell in line.strip("|").split("|")[:wanted]) for line in lines]
