"""The token for Coinbase's facilitator: right for one call, and for nobody else."""

import base64
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from spawn.payments.cdp import CDP_HOST, LIFE_S, CdpKey
from spawn.settings import InvalidSetting
from tests.harness import SeededEntropy

NOW = 1_900_000_000
KEY_ID = "organizations/11111111-2222-3333-4444-555555555555/apiKeys/66666666-7777-8888-9999-000000000000"
SETTLE = httpx.URL(f"https://{CDP_HOST}/platform/v2/x402/settle")
ED25519 = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
P256 = ec.derive_private_key(0x1234567, ec.SECP256R1())


def _edwards_secret() -> str:
    public = ED25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(b"\x07" * 32 + public).decode()


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    pem: bytes = key.private_bytes(Encoding.PEM, form, NoEncryption())
    return pem.decode()


def _key(secret: str) -> CdpKey:
    return CdpKey(KEY_ID, secret, now=lambda: NOW, entropy=SeededEntropy())


def _read(token: str, public: Any, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    claims = jwt.decode(
        token,
        public,
        algorithms=[algorithm],
        audience="cdp_service",
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    return jwt.get_unverified_header(token), claims


@pytest.mark.parametrize(
    ("secret", "public", "algorithm"),
    [
        (_edwards_secret(), ED25519.public_key(), "EdDSA"),
        (_pem(ED25519), ED25519.public_key(), "EdDSA"),
        (_pem(P256), P256.public_key(), "ES256"),
        (_pem(P256, PrivateFormat.TraditionalOpenSSL), P256.public_key(), "ES256"),
        (_pem(P256).replace("\n", "\\n"), P256.public_key(), "ES256"),
    ],
    ids=["base64", "pem-ed25519", "pem-ec", "sec1", "escaped"],
)
def test_the_token_is_signed_for_this_very_call(secret: str, public: Any, algorithm: str) -> None:
    headers = _key(secret).headers("POST", SETTLE.copy_with(query=b"a=b"))
    header, claims = _read(headers["Authorization"].removeprefix("Bearer "), public, algorithm)
    assert header["kid"] == KEY_ID
    assert header["alg"] == algorithm
    assert len(header["nonce"]) == 32
    assert claims == {
        "iss": "cdp",
        "sub": KEY_ID,
        "aud": ["cdp_service"],
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + LIFE_S,
        "uris": ["POST api.cdp.coinbase.com/platform/v2/x402/settle"],
    }


def test_no_two_tokens_have_the_same_nonce() -> None:
    key = _key(_edwards_secret())
    tokens = [key.headers("POST", SETTLE)["Authorization"].removeprefix("Bearer ") for _ in range(8)]
    assert len({jwt.get_unverified_header(token)["nonce"] for token in tokens}) == 8


@pytest.mark.parametrize(
    "url",
    [
        "https://facilitator.example/settle",
        "http://api.cdp.coinbase.com/platform/v2/x402/settle",
        "https://api.cdp.coinbase.com:8443/platform/v2/x402/settle",
        "https://api.cdp.coinbase.com.example/settle",
        "https://api.cdp.coinbase.com@facilitator.example/settle",
        "https://facilitator.example/api.cdp.coinbase.com/settle",
        "https://127.0.0.1/settle",
    ],
)
def test_nobody_else_gets_one(url: str) -> None:
    assert _key(_edwards_secret()).headers("POST", httpx.URL(url)) == {}


@pytest.mark.parametrize(
    "url", ["https://API.CDP.Coinbase.com/platform/v2/x402/settle", "https://api.cdp.coinbase.com:443/x"]
)
def test_other_spellings_of_the_host_are_that_host(url: str) -> None:
    assert "Authorization" in _key(_edwards_secret()).headers("POST", httpx.URL(url))


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "hunter2",
        base64.b64encode(b"\x07" * 32).decode(),
        "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----",
        _pem(ec.derive_private_key(0x1234567, ec.SECP384R1())),
        _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ],
    ids=["empty", "word", "half", "no-pem", "other-curve", "rsa"],
)
def test_what_is_no_key_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(InvalidSetting, match="SPAWN_CDP_KEY_SECRET should be") as refused:
        _key(secret)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_what_prints_the_key_does_not_see_it() -> None:
    secret = _edwards_secret()
    key = _key(secret)
    shown = f"{key!r} {key} {vars(key)}"
    assert secret not in shown
    assert "0707" not in shown
