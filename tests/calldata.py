"""Reading the calls that a token and Multicall3 take: the other side of our encoders, written apart from them."""

from typing import Final

from spawn_schemas.ids import Address

from spawn.payments.exact import ExactPayment

TRANSFER_BY_KEY: Final = bytes.fromhex("e3ee160e")
TRANSFER_BY_BYTES: Final = bytes.fromhex("cf092995")
AUTHORIZATION_STATE: Final = bytes.fromhex("e94a0102")
BALANCE_OF: Final = bytes.fromhex("70a08231")
AGGREGATE3: Final = bytes.fromhex("82ad56cb")


def address_in(word: bytes) -> str:
    """The account in a 32-byte word."""
    return "0x" + word[12:].hex()


def payment_in(selector: bytes, words: list[bytes]) -> ExactPayment:
    """What `transferWithAuthorization` is asked to do, by either of its overloads."""
    if selector == TRANSFER_BY_KEY:
        signature = words[7] + words[8] + words[6][31:]
    else:
        length = int.from_bytes(words[7], "big")
        signature = b"".join(words[8:])[:length]
    return ExactPayment(
        payer=Address(address_in(words[0])),
        pay_to=Address(address_in(words[1])),
        value=int.from_bytes(words[2], "big"),
        valid_after=int.from_bytes(words[3], "big"),
        valid_before=int.from_bytes(words[4], "big"),
        nonce="0x" + words[5].hex(),
        signature="0x" + signature.hex(),
    )
