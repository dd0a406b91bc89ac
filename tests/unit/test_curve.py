"""Two libraries agree on who signed and on what is no signature: the one we use, and the one that it replaced."""

import coincurve
from coincurve import PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from spawn.payments.curve import keccak256, recover

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEYS = st.integers(1, ORDER - 1).map(lambda number: PrivateKey(number.to_bytes(32, "big")))
DIGESTS = st.binary(min_size=32, max_size=32)
NOTHING = None


def by_coincurve(digest: bytes, signature: bytes) -> str | None:
    """Who signed, by the rules of EIP-2 and the yellow paper; None for what is no signature."""
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    if v not in {27, 28} or not 0 < s <= ORDER // 2 or not 0 < int.from_bytes(r, "big") < ORDER:
        return NOTHING
    try:
        compact = signature[:64] + bytes([v - 27])
        key = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except Exception:  # noqa: BLE001 - it raises a bare Exception for a point that is not on the curve
        return NOTHING
    return "0x" + keccak256(key.format(compressed=False)[1:])[12:].hex()


def by_us(digest: bytes, signature: bytes) -> str | None:
    try:
        return recover(digest, signature)
    except ValueError:
        return NOTHING


@given(key=KEYS, digest=DIGESTS)
def test_a_signature_is_by_its_key(key: PrivateKey, digest: bytes) -> None:
    made = key.sign_recoverable(digest, hasher=None)
    signature = made[:64] + bytes([made[64] + 27])
    signer = "0x" + keccak256(key.public_key.format(compressed=False)[1:])[12:].hex()
    assert by_us(digest, signature) == signer == by_coincurve(digest, signature)


@given(
    digest=DIGESTS, body=st.binary(min_size=64, max_size=64), v=st.sampled_from([0, 1, 26, 27, 28, 29, 255])
)
@example(digest=bytes(32), body=bytes(64), v=27)
@example(digest=bytes(32), body=b"\xff" * 64, v=28)
@example(digest=b"\xff" * 32, body=(ORDER - 1).to_bytes(32, "big") + (ORDER // 2).to_bytes(32, "big"), v=27)
@example(digest=bytes(32), body=ORDER.to_bytes(32, "big") + (1).to_bytes(32, "big"), v=27)
@example(digest=bytes(32), body=(1).to_bytes(32, "big") + (ORDER // 2 + 1).to_bytes(32, "big"), v=27)
def test_any_bytes_are_by_the_same_account_or_by_none(digest: bytes, body: bytes, v: int) -> None:
    signature = body + bytes([v])
    assert by_us(digest, signature) == by_coincurve(digest, signature)


@given(key=KEYS, digest=DIGESTS, at=st.integers(0, 64), flip=st.integers(1, 255))
def test_a_spoiled_signature_is_by_somebody_else_or_by_nobody(
    key: PrivateKey, digest: bytes, at: int, flip: int
) -> None:
    made = key.sign_recoverable(digest, hasher=None)
    signature = bytearray(made[:64] + bytes([made[64] + 27]))
    whole = by_us(digest, bytes(signature))
    signature[at] ^= flip
    spoiled = by_us(digest, bytes(signature))
    assert spoiled == by_coincurve(digest, bytes(signature))
    assert spoiled != whole
