"""Sign-ins (EIP-4361) and session tokens: whatever is accepted was signed by its wallet, or issued by us."""

import hmac
import json
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from random import Random
from typing import Any, Final

from eth_account import Account
from eth_account.messages import encode_defunct
from spawn_schemas.errors import Code
from spawn_schemas.ids import Address

from spawn.payments import sign_in
from spawn.payments.sessions import ID_BYTES, PREFIX, SESSION_S, Sessions, find_token
from tests.fuzz.target import Target, assert_plain_base64, attempt, spoil_base64_json, spoil_bytes
from tests.unit.bad_sign_ins import BAD_SIGN_INS, Scene, sign, text_of
from tests.unit.bad_signatures import CALLER

NOW: Final = 1_900_000_000
SCENE: Final = Scene(domain="api.example.com", origin="https://api.example.com", chain_id=84532, now=NOW)
PARTY: Final = sign_in.relying_party(
    public_url="https://api.example.com", authority="api.example.com", chain_id=84532
)
SESSIONS: Final = Sessions(b"k" * 32)
TOKEN: Final = SESSIONS.issue(Address(CALLER.address.lower()), entropy=bytes(ID_BYTES), now=NOW)


def check_sign_in(data: bytes) -> bool:
    """`SIGN-IN-WITH-X`."""
    found = attempt(lambda: sign_in.verify(data.decode("latin-1"), PARTY, now=NOW), Code.INVALID_SIGNATURE)
    if found is None:
        return False
    assert_plain_base64(data)
    # A field that nobody reads may be of any bytes.
    fields = json.loads(b64decode(data).decode(errors="replace"))
    told = {name: value for name, value in fields.items() if value is not None}
    # A wallet may sign its address in any case; the product tries the two spellings there are.
    spellings = (fields["address"], Account.from_key(CALLER.key).address)
    signers = {
        Account.recover_message(
            encode_defunct(text=text_of({**told, "address": spelling})), signature=fields["signature"]
        ).lower()
        for spelling in spellings
    }
    assert found.wallet in signers
    assert found.wallet == fields["address"].lower()
    assert fields["domain"] == SCENE.domain
    assert fields["nonce"] == found.nonce
    assert found.issued_at <= NOW + sign_in.CLOCK_SKEW_S
    assert NOW <= found.expires <= found.issued_at + sign_in.MAX_AGE_S
    return True


def check_session(data: bytes) -> bool:
    """`Authorization: Bearer`."""
    token = find_token(data.decode("latin-1"))
    if token is None:
        return False
    session = attempt(lambda: SESSIONS.verify(token, now=NOW), Code.INVALID_SIGNATURE)
    if session is None:
        return False
    text = token.removeprefix(PREFIX)
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert urlsafe_b64encode(raw).decode().rstrip("=") == text
    key = hmac.new(b"k" * 32, b"spawn session key 1", "sha256").digest()
    assert hmac.new(key, raw[:-32], "sha256").digest() == raw[-32:]
    assert session.expires > NOW
    return True


def _signed_again(value: Any) -> Any:
    """The sign-in with a signature over what it has become; itself where none can be made."""
    try:
        told = {name: item for name, item in value.items() if item is not None}
        made = CALLER.sign_message(encode_defunct(text=text_of(told))).signature
    except Exception:  # noqa: BLE001 - a spoiled text fails in many ways
        return value
    return {**value, "signature": "0x" + bytes(made).hex()}


def mutate_sign_in(data: bytes, dice: Random) -> bytes:
    """Mostly the JSON, sometimes the header."""
    if dice.random() < 0.15:
        return spoil_bytes(data, dice)
    return spoil_base64_json(data, dice, _signed_again)


SIGN_IN: Final = Target(
    seeds=(
        sign(SCENE).encode(),
        *(bad.make(SCENE).encode("latin-1", errors="replace") for bad in BAD_SIGN_INS),
    ),
    check=check_sign_in,
    mutate=mutate_sign_in,
)
SESSION: Final = Target(
    seeds=(
        f"Bearer {TOKEN}".encode(),
        f"bearer  {SESSIONS.issue(Address('0x' + 'a7' * 20), entropy=bytes(ID_BYTES), now=NOW - SESSION_S)}".encode(),
        b"Basic dTpw",
    ),
    check=check_session,
    mutate=spoil_bytes,
)
