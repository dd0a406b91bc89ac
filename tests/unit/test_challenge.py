"""Stock clients understand our offer, can pay it, and read the receipt."""

import json
from base64 import b64decode

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Reason
from x402 import x402ClientSync
from x402.extensions.payment_identifier import append_payment_identifier_to_extensions
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired, ResourceInfo

from spawn.payments.challenge import Challenges, challenge_json, settle_response
from spawn.payments.exact import check, decode_payment, identify, payment_identifier, terms

ASSET = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
PAYEE = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
TERMS = terms(
    chain_id=84532,
    asset=Address(ASSET.lower()),
    asset_name="USDC",
    asset_version="2",
    pay_to=Address(PAYEE.lower()),
)
URL = "http://127.0.0.1:8402/v1/servers"
PAYER = Account.from_key("0x" + "11" * 32)
SCHEME = ExactEvmScheme(EthAccountSigner(PAYER))


def offer(
    amount: int, *, description: str = "Rent a server", error: str = "payment_required", url: str = URL
) -> PaymentRequired:
    value = (
        Challenges(TERMS).prepare(description, {}).header(Usdc(amount), url, error, challenge_json(bytes(16)))
    )
    decoded = decode_payment_required_header(value.decode())
    assert isinstance(decoded, PaymentRequired)
    return decoded


def pay(required: PaymentRequired) -> PaymentPayload:
    payload = x402ClientSync().register("eip155:84532", SCHEME).create_payment_payload(required)
    assert isinstance(payload, PaymentPayload)
    return payload


def test_the_stock_client_reads_what_we_ask() -> None:
    required = offer(1_000_000, description="Ein Server in Nürnberg — „klein“", error="payment_required")
    assert required.x402_version == 2
    assert required.error == "payment_required"
    assert required.resource == ResourceInfo(
        url=URL, description="Ein Server in Nürnberg — „klein“", mime_type="application/json"
    )
    (accepted,) = required.accepts
    assert accepted.model_dump(by_alias=True) == {
        "scheme": "exact",
        "network": "eip155:84532",
        "asset": ASSET,
        "amount": "1000000",
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USDC", "version": "2", "paymentFlow": "upfront"},
    }


@pytest.mark.parametrize("amount", [1, 1_000, 1_000_000])
def test_the_stock_client_pays_what_we_ask(amount: int) -> None:
    value = encode_payment_signature_header(pay(offer(amount)))
    payment = identify(decode_payment(value), TERMS)
    assert payment.payer == PAYER.address.lower()
    check(payment, amount_usdc=Usdc(amount), now=payment.valid_before - 300)


def test_the_stock_client_may_name_its_purchase() -> None:
    required = offer(1_000)
    assert required.extensions is not None
    append_payment_identifier_to_extensions(required.extensions, "pay_0123456789abcdef")
    value = encode_payment_signature_header(pay(required))
    assert payment_identifier(decode_payment(value)) == "pay_0123456789abcdef"


@given(url=st.text(min_size=1), error=st.text(), description=st.text(), amount=st.integers(0, 2**60))
def test_what_is_filled_in_is_never_taken_for_anything_else(
    url: str, error: str, description: str, amount: int
) -> None:
    """Parts of a prepared offer are joined as bytes: whatever they hold, it reads back as it was given."""
    value = (
        Challenges(TERMS)
        .prepare(description, {"x": {"error": "(url)"}})
        .header(Usdc(amount), url, error, challenge_json(bytes(16)))
    )
    read = json.loads(b64decode(value))
    assert read["error"] == error
    assert read["resource"] == {"url": url, "description": description, "mimeType": "application/json"}
    assert [accepted["amount"] for accepted in read["accepts"]] == [str(amount)]
    assert read["extensions"]["x"] == {"error": "(url)"}


def test_the_receipt_of_a_settlement() -> None:
    header = settle_response(
        success=True, network=TERMS.network, transaction="0x" + "ab" * 32, payer=PAYER.address, amount="1000"
    )
    receipt = decode_payment_response_header(header.decode())
    assert receipt.success
    assert receipt.transaction == "0x" + "ab" * 32
    assert receipt.network == "eip155:84532"
    assert receipt.payer == PAYER.address
    assert receipt.amount == "1000"
    assert receipt.error_reason is None


def test_the_receipt_of_a_refused_and_of_a_pending_settlement() -> None:
    refused = decode_payment_response_header(
        settle_response(success=False, network=TERMS.network, error_reason=Reason.INSUFFICIENT_FUNDS).decode()
    )
    assert (refused.success, refused.transaction, refused.error_reason) == (False, "", "insufficient_funds")
    pending = decode_payment_response_header(
        settle_response(
            success=False,
            network=TERMS.network,
            transaction="0x" + "cd" * 32,
            error_reason=Reason.SETTLEMENT_PENDING,
        ).decode()
    )
    assert (pending.transaction, pending.error_reason) == ("0x" + "cd" * 32, "settlement_pending")
