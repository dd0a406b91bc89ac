"""Authorizations for tests: signed by a key at hand, in the form that our verifier hands on."""

import msgspec
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32
from spawn_schemas.ids import Address
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization

from spawn.payments.exact import ExactPayment, terms

NOW = 1_900_000_000
PAYEE = Address("0x209693bc6afc0c5328ba36faf03c514ef312287c")
TERMS = terms(
    chain_id=84532,
    asset=Address("0x036cbd53842c5426634e7929541ec2318f3dcf7e"),
    asset_name="USDC",
    asset_version="2",
    pay_to=PAYEE,
)


def authorize(
    account: LocalAccount,
    *,
    value: int,
    nonce: int = 0,
    valid_after: int = 0,
    valid_before: int = NOW + 300,
    payer: Address | None = None,
    pay_to: Address = PAYEE,
) -> ExactPayment:
    """A payment signed by `account`; with `payer`, one that claims to be somebody else's."""
    payment = ExactPayment(
        payer=payer or Address(account.address.lower()),
        pay_to=pay_to,
        value=value,
        valid_after=valid_after,
        valid_before=valid_before,
        nonce=f"0x{nonce:064x}",
        signature="0x",
    )
    digest = hash_eip3009_authorization(
        ExactEIP3009Authorization(
            from_address=payment.payer,
            to=payment.pay_to,
            value=str(value),
            valid_after=str(valid_after),
            valid_before=str(valid_before),
            nonce=payment.nonce,
        ),
        TERMS.chain_id,
        TERMS.asset,
        TERMS.asset_name,
        TERMS.asset_version,
    )
    signature = bytes(account.unsafe_sign_hash(Hash32(digest)).signature)
    return msgspec.structs.replace(payment, signature="0x" + signature.hex())
