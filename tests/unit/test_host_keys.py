"""Host keys that we make are OpenSSH's, and its client believes the line that we show."""

import subprocess
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from spawn.domain.host_keys import HostKey, host_key, known_hosts, public_of
from spawn.domain.ssh_keys import parse_public_key

SEEDS = st.binary(min_size=32, max_size=32)
KEY = host_key(bytes(range(32)))


@given(SEEDS)
def test_a_seed_is_one_key(seed: bytes) -> None:
    made = host_key(seed)
    assert made == host_key(seed)
    assert public_of(made.private) == made.public == parse_public_key(made.public).normalized
    # What is sealed, sized and told to cloud-init is of one length, whatever the seed.
    assert len(made.private) == len(KEY.private)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="a seed has 32 bytes"):
        host_key(bytes(length))


def test_a_key_of_another_kind_is_none_of_ours() -> None:
    other = generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )
    with pytest.raises(TypeError):
        public_of(other.decode())


def test_openssh_reads_the_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(KEY.private)
    read = subprocess.run(
        ["ssh-keygen", "-y", "-f", file], capture_output=True, text=True, check=True, timeout=30
    )
    assert read.stdout.strip() == KEY.public


def test_no_traceback_shows_the_private_half() -> None:
    assert repr(KEY) == f"HostKey(public={KEY.public!r})"
    assert KEY.private not in repr([KEY]) + str(HostKey(private=KEY.private, public=KEY.public))


def test_a_machine_without_an_address_has_no_line() -> None:
    assert known_hosts(KEY.public, ipv4=None, ipv6=None) is None


@pytest.mark.parametrize("ipv6", ["2001:db8::1", "2001:DB8:0:0::1", "2001:0db8:0:0:0:0:0:1"])
def test_openssh_finds_the_line_by_either_address(tmp_path: Path, ipv6: str) -> None:
    line = known_hosts(KEY.public, ipv4="203.0.113.7", ipv6=ipv6)
    assert line == f"203.0.113.7,2001:db8::1 {KEY.public}"
    file = tmp_path / "known_hosts"
    file.write_text(line + "\n")
    for address in ("203.0.113.7", "2001:db8::1"):
        found = subprocess.run(
            ["ssh-keygen", "-F", address, "-f", file], capture_output=True, text=True, check=True, timeout=30
        )
        assert KEY.public in found.stdout


@given(st.ip_addresses(v=4), st.ip_addresses(v=6))
def test_a_line_has_what_there_is(ipv4: IPv4Address, ipv6: IPv6Address) -> None:
    assert known_hosts(KEY.public, ipv4=str(ipv4), ipv6=None) == f"{ipv4} {KEY.public}"
    assert known_hosts(KEY.public, ipv4=None, ipv6=ipv6.exploded) == f"{ipv6} {KEY.public}"
