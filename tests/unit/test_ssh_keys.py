"""A pasted key is read as sshd reads it, or refused with a sentence that helps and repeats nothing."""

import re
import shutil
import subprocess
from base64 import b64decode, b64encode
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from spawn.domain.ssh_keys import TEXT_BYTES_MAX, SshPublicKey, parse_public_key

ED25519: Final = "ssh-ed25519"
RSA: Final = "ssh-rsa"
P256: Final = "ecdsa-sha2-nistp256"
SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
SK_P256: Final = "sk-ecdsa-sha2-nistp256@openssh.com"

# A signing key for nobody: RFC 8032 section 7.1, test 1.
ED25519_POINT: Final = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def strings(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def line(key_type: str, *fields: bytes, blob: bytes | None = None) -> str:
    """The public line of a key with these fields after its type."""
    wire = strings(key_type.encode(), *fields) if blob is None else blob
    return f"{key_type} {b64encode(wire).decode()}"


def openssh(
    private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> str:
    return (
        private.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def p256_point() -> bytes:
    public = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


@cache
def good_keys() -> dict[str, str]:
    """One public line of every type we accept."""
    return {
        ED25519: openssh(ed25519.Ed25519PrivateKey.generate()),
        RSA: openssh(rsa_key(2048)),
        P256: openssh(ec.generate_private_key(ec.SECP256R1())),
        "ecdsa-sha2-nistp384": openssh(ec.generate_private_key(ec.SECP384R1())),
        "ecdsa-sha2-nistp521": openssh(ec.generate_private_key(ec.SECP521R1())),
        SK_ED25519: line(SK_ED25519, ED25519_POINT, b"ssh:"),
        SK_P256: line(SK_P256, b"nistp256", p256_point(), b"ssh:"),
    }


TYPES: Final = sorted(good_keys())


def blob_of(text: str) -> bytes:
    return b64decode(text.split(" ")[1])


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r"^[A-Z].*") as caught:
        parse_public_key(text)
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize("key_type", TYPES)
def test_every_type_is_read(key_type: str) -> None:
    text = good_keys()[key_type]
    key = parse_public_key(f"  {text} \t me at home  \r\n")
    assert key == SshPublicKey(type=key_type, blob=blob_of(text), comment="me at home")
    assert key.normalized == text
    assert parse_public_key(key.normalized).fingerprint == key.fingerprint


def test_a_comment_is_optional_and_may_be_in_any_language() -> None:
    text = good_keys()[ED25519]
    assert parse_public_key(text).comment == ""
    assert parse_public_key(text + " käthe@büro").comment == "käthe@büro"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
@pytest.mark.parametrize("key_type", TYPES)
def test_fingerprints_are_those_of_ssh_keygen(key_type: str, tmp_path: Path) -> None:
    text = good_keys()[key_type]
    (tmp_path / "key.pub").write_text(text + "\n")
    told = subprocess.run(
        ["ssh-keygen", "-l", "-E", "sha256", "-f", str(tmp_path / "key.pub")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert told.stdout.split(" ")[1] == parse_public_key(text).fingerprint


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
@pytest.mark.parametrize("arguments", [("ed25519",), ("rsa", "-b", "2048"), ("ecdsa", "-b", "384")])
def test_keys_of_ssh_keygen_are_read(arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-N", "", "-C", "me", "-f", str(path), "-t", *arguments], check=True, timeout=30
    )
    text = (tmp_path / "key.pub").read_text()
    assert parse_public_key(text).normalized + " me\n" == text
    assert "private key" in refusal(path.read_text())


@cache
def private_texts() -> dict[str, str]:
    """Private keys as people have them, whole and in part."""
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    whole = private.private_bytes(pem, serialization.PrivateFormat.OpenSSH, plain).decode()
    lines = whole.strip().split("\n")
    return {
        "openssh": whole,
        "without the first line": "\n".join(lines[1:]),
        "base64 only": "".join(lines[1:-1]),
        "base64 after a type": f"{ED25519} {''.join(lines[1:-1])}",
        "pkcs8": private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode(),
        "encrypted pkcs8": private.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        ).decode(),
        "rsa": rsa_key(2048)
        .private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
        .decode(),
        "ssh2": "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nAAAA\n",
        "putty": "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: me\n",
    }


@pytest.mark.parametrize("shape", list(private_texts()))
def test_a_private_key_is_called_compromised_and_never_repeated(shape: str) -> None:
    text = private_texts()[shape]
    message = refusal(text)
    assert "private key" in message
    assert "compromised" in message
    assert not [word for word in re.findall(r"[A-Za-z0-9+/]{16,}", text) if word in message]


def test_the_word_private_in_a_comment_is_no_private_key() -> None:
    assert parse_public_key(good_keys()[ED25519] + " my PRIVATE KEY's other half").type == ED25519


REFUSED: Final = {
    "nothing": ("", "no public key of a type we accept"),
    "chat": ("hello there", "no public key of a type we accept"),
    "no type": (good_keys()[ED25519].split(" ")[1], "ssh-ed25519 AAAA"),
    "no contents": (ED25519, "does not match"),
    "two keys": ("\n".join([good_keys()[ED25519]] * 2), "one line"),
    "an option": (f"no-pty {good_keys()[ED25519]}", "options before it"),
    "a quoted option": (f'command="ls -l" {good_keys()[ED25519]}', "options before it"),
    "dsa": (line("ssh-dss", mpint(7), mpint(3), mpint(2), mpint(4)), "DSA"),
    "a certificate": (f"{ED25519}-cert-v01@openssh.com AAAA", "certificate"),
    "a null": (good_keys()[ED25519] + " \0", "unprintable"),
    "a surrogate": (good_keys()[ED25519] + " \ud800", "unprintable"),
    "a long comment": (good_keys()[ED25519] + " " + "x" * TEXT_BYTES_MAX, "too long"),
    "a long comment in bytes": (good_keys()[ED25519] + " " + "é" * (TEXT_BYTES_MAX // 2), "too long"),
    "an alphabet of URLs": (line(ED25519, b"\xff" * 32).replace("/", "_"), "damaged"),
    "another spelling": (line(P256, b"nistp256", p256_point())[:-2] + "R=", "damaged"),
    "no padding": (
        line(ED25519, ED25519_POINT, blob=strings(ED25519.encode(), b"x" * 33)).rstrip("="),
        "damaged",
    ),
    "another type inside": (line(ED25519, blob=blob_of(good_keys()[RSA])), "does not match"),
    "a short ed25519": (line(ED25519, ED25519_POINT[:-1]), "damaged"),
    "a long ed25519": (line(ED25519, ED25519_POINT + b"\0"), "damaged"),
    "a trailing byte": (line(ED25519, blob=blob_of(good_keys()[ED25519]) + b"\0"), "damaged"),
    "a trailing string": (line(ED25519, ED25519_POINT, b""), "damaged"),
    "a small rsa": (line(RSA, mpint(65537), mpint(2**2046 + 1)), "2047 bits"),
    "a huge rsa": (line(RSA, mpint(65537), mpint(2**16384 + 1)), "16385 bits"),
    "an even exponent": (line(RSA, mpint(65536), mpint(2**2047 + 1)), "no RSA key"),
    "exponent one": (line(RSA, mpint(1), mpint(2**2047 + 1)), "no RSA key"),
    "no exponent": (line(RSA, b"", mpint(2**2047 + 1)), "no RSA key"),
    "an exponent above the modulus": (line(RSA, mpint(2**2047 + 3), mpint(2**2047 + 1)), "no RSA key"),
    "an even modulus": (line(RSA, mpint(65537), mpint(2**2047)), "no RSA key"),
    "a negative modulus": (line(RSA, mpint(65537), b"\x80" + b"\1" * 255), "damaged"),
    "a padded modulus": (line(RSA, mpint(65537), b"\0" + mpint(2**2047 + 1)), "damaged"),
    "a padded exponent": (line(RSA, b"\0\1\0\1", mpint(2**2047 + 1)), "damaged"),
    "rsa without a modulus": (line(RSA, mpint(65537)), "damaged"),
    "another curve inside": (line(P256, b"nistp384", p256_point()), "damaged"),
    "a compressed point": (line(P256, b"nistp256", b"\2" + p256_point()[1:33]), "damaged"),
    "a hybrid point": (line(P256, b"nistp256", b"\6" + p256_point()[1:]), "damaged"),
    "the point at infinity": (line(P256, b"nistp256", b"\0"), "damaged"),
    "a point off the curve": (line(P256, b"nistp256", b"\4" + b"\1" * 64), "not on the curve"),
    "no point": (line(P256, b"nistp256"), "damaged"),
    "sk without an application": (line(SK_ED25519, ED25519_POINT), "damaged"),
    "sk with an empty application": (line(SK_ED25519, ED25519_POINT, b""), "damaged"),
    "sk with a NUL in its application": (line(SK_ED25519, ED25519_POINT, b"ssh:\0x"), "damaged"),
    "sk with two applications": (line(SK_P256, b"nistp256", p256_point(), b"ssh:", b"ssh:"), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_sshd_would_not_accept_is_refused(case: str) -> None:
    text, words = REFUSED[case]
    message = refusal(text)
    assert words in message
    assert not [word for word in re.findall(r"[A-Za-z0-9+/]{24,}", text) if word in message]


@given(key_type=st.sampled_from(TYPES), data=st.data())
def test_no_part_of_a_key_is_a_key(key_type: str, data: st.DataObject) -> None:
    blob = blob_of(good_keys()[key_type])
    kept = data.draw(st.integers(0, len(blob) - 1))
    refusal(line(key_type, blob=blob[:kept]))


def length_offsets(blob: bytes) -> list[int]:
    """Where the lengths of the strings in `blob` are."""
    offsets = []
    at = 0
    while at < len(blob):
        offsets.append(at)
        at += 4 + int.from_bytes(blob[at : at + 4], "big")
    return offsets


@given(key_type=st.sampled_from(TYPES), data=st.data(), length=st.integers(0, 2**32 - 1))
def test_a_key_with_a_wrong_length_is_no_key(key_type: str, data: st.DataObject, length: int) -> None:
    blob = blob_of(good_keys()[key_type])
    at = data.draw(st.sampled_from(length_offsets(blob)))
    length = data.draw(st.sampled_from([length, length % 600]))
    changed = blob[:at] + length.to_bytes(4, "big") + blob[at + 4 :]
    if changed != blob:
        refusal(line(key_type, blob=changed))


@given(key_type=st.sampled_from(TYPES), data=st.data())
def test_a_flipped_bit_parses_or_is_refused_and_nothing_else(key_type: str, data: st.DataObject) -> None:
    blob = bytearray(blob_of(good_keys()[key_type]))
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << bit % 8
    text = line(key_type, blob=bytes(blob))
    try:
        key = parse_public_key(text)
    except ValueError as error:
        refused: type[Exception] | None = type(error)
    else:
        refused = None
        assert key.normalized == text
    assert refused in (None, ValueError)


@given(st.one_of(st.text(), st.builds("{} {}".format, st.sampled_from(TYPES), st.text())))
def test_any_other_text_is_refused(text: str) -> None:
    refusal(text)


@given(st.sampled_from(TYPES), st.binary(max_size=200))
def test_any_other_contents_are_refused(key_type: str, contents: bytes) -> None:
    refusal(line(key_type, blob=strings(key_type.encode()) + contents))
