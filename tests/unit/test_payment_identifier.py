"""The extension `payment-identifier` is declared as the SDK declares it, and read as the SDK reads it, or refused."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from spawn_schemas.errors import SpawnError
from spawn_schemas.x402 import Authorization, ExactEvmPayload, PaymentPayload, PaymentRequirements
from x402.extensions.payment_identifier import (
    declare_payment_identifier_extension,
    extract_and_validate_payment_identifier,
    is_payment_identifier_required,
    is_valid_payment_id,
    validate_payment_identifier,
)
from x402.schemas import PaymentPayload as SdkPayload

from spawn.payments.challenge import PAYMENT_IDENTIFIER
from spawn.payments.exact import payment_identifier

KEY = "payment-identifier"
ID = "pay_0123456789abcdef"
ADDRESS = "0x" + "11" * 20
OFFER = PaymentRequirements(
    scheme="exact",
    network="eip155:84532",
    amount="1",
    asset=ADDRESS,
    pay_to=ADDRESS,
    max_timeout_seconds=60,
)
SIGNED = ExactEvmPayload(
    signature="0x",
    authorization=Authorization(
        from_=ADDRESS, to=ADDRESS, value="1", valid_after="0", valid_before="1", nonce="0x" + "00" * 32
    ),
)
REFUSED = object()

identifiers = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=130), st.from_regex(r"[\w-]{14,18}")
)
infos = st.fixed_dictionaries({}, optional={"id": identifiers, "required": st.sampled_from([True, False, 1])})
extensions = st.one_of(
    identifiers,
    st.lists(identifiers, max_size=2),
    st.fixed_dictionaries({}, optional={"info": st.one_of(infos, identifiers), "id": identifiers}),
)


def ours(extension: Any) -> object:
    """What we read from an extension: an id, None, or REFUSED."""
    payload = PaymentPayload(x402_version=2, accepted=OFFER, payload=SIGNED, extensions={KEY: extension})
    try:
        return payment_identifier(payload)
    except SpawnError:
        return REFUSED


def test_we_declare_what_the_sdk_declares() -> None:
    declared = PAYMENT_IDENTIFIER[KEY]
    assert declared == declare_payment_identifier_extension()
    assert validate_payment_identifier(declared).valid
    assert not is_payment_identifier_required(declared)


@given(extension=extensions)
@example({"info": {"required": False, "id": ID}})
@example({"info": {"required": False, "id": f"{ID}\n"}})
@example({"info": {"required": False, "id": None}})
@example({"info": {"required": False}})
@example({"info": {"id": ID}})
@example({"id": ID})
@example(ID)
def test_no_name_is_overlooked_and_none_is_made_up(extension: Any) -> None:
    """Where the SDK finds an id we find it, and what it calls invalid we refuse; `required` may be left out."""
    payload = SdkPayload.model_construct(x402_version=2, extensions={KEY: extension})
    found, validation = extract_and_validate_payment_identifier(payload)
    mine = ours(extension)
    if isinstance(mine, str):
        assert mine == extension["info"]["id"]
        assert is_valid_payment_id(mine)
        assert found in {mine, None}
    elif mine is None:
        assert found is None
        assert extension is None or extension["info"].get("id") is None
    else:
        # The SDK takes an empty extension for none at all, and its pattern lets a line end pass.
        assert not validation.valid or not extension or (found or "").endswith("\n")


@pytest.mark.parametrize(("length", "taken"), [(15, False), (16, True), (128, True), (129, False)])
def test_the_ends_of_the_range(length: int, taken: bool) -> None:
    identifier = "a" * length
    assert ours({"info": {"required": False, "id": identifier}}) == (identifier if taken else REFUSED)
