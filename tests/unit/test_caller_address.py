"""Whose call it is: nobody but a trusted proxy can say that it is another's."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spawn.api.addresses import NO_ADDRESS, Proxies, caller_address

NOBODY = Proxies(())
TRUSTED = Proxies(map(ip_network, ("10.0.0.0/8", "192.0.2.1/32", "2001:db8:1::/48")))
PROXY = "10.0.0.1"
STRANGER = "198.51.100.7"


def asked(peer: str | None, *lines: str | bytes, trusted: Proxies = TRUSTED) -> str:
    """The caller of a request over a socket to `peer`, with these X-Forwarded-For lines among its headers."""
    raw = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    headers = [(b"host", b"spawn.test"), *((b"x-forwarded-for", line) for line in raw), (b"accept", b"*/*")]
    scope: dict[str, Any] = {"client": None if peer is None else (peer, 4711), "headers": headers}
    return caller_address(scope, trusted)


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        (STRANGER, STRANGER),
        ("2001:db8:2::1", "2001:db8:2::1"),
        ("2001:0DB8:0002:0::1", "2001:db8:2::1"),
        ("::ffff:198.51.100.7", STRANGER),
        ("fe80::1%eth0", "fe80::1"),
        ("", NO_ADDRESS),
        (None, NO_ADDRESS),
    ],
)
@pytest.mark.parametrize("trusted", [NOBODY, TRUSTED], ids=["nobody trusted", "some trusted"])
@pytest.mark.parametrize("lines", [(), ("203.0.113.9",)], ids=["no header", "a header"])
def test_without_a_trusted_proxy_the_socket_decides(
    peer: str | None, caller: str, trusted: Proxies, lines: tuple[str, ...]
) -> None:
    assert asked(peer, *lines, trusted=trusted) == caller


def test_a_scope_need_not_name_a_client() -> None:
    assert caller_address({"headers": []}, TRUSTED) == NO_ADDRESS


@pytest.mark.parametrize(
    ("lines", "caller"),
    [
        ((), PROXY),
        (("203.0.113.9",), "203.0.113.9"),
        (("203.0.113.9, 10.2.3.4",), "203.0.113.9"),
        (("203.0.113.9,10.2.3.4,192.0.2.1",), "203.0.113.9"),
        (("203.0.113.9", "10.2.3.4"), "203.0.113.9"),
        (("203.0.113.66", "203.0.113.9"), "203.0.113.9"),
        (("203.0.113.66, 203.0.113.9",), "203.0.113.9"),
        (("10.9.9.9, 203.0.113.9",), "203.0.113.9"),
        (("10.9.9.9, 10.2.3.4",), "10.9.9.9"),
        (("192.0.2.2",), "192.0.2.2"),
        ((" \t203.0.113.9\t ",), "203.0.113.9"),
        (("203.0.113.9:51234",), "203.0.113.9"),
        (("2001:DB8:2::0:9",), "2001:db8:2::9"),
        (("[2001:db8:2::9]",), "2001:db8:2::9"),
        (("[2001:db8:2::9]:51234",), "2001:db8:2::9"),
        (("203.0.113.9, [2001:db8:1::2]:443",), "203.0.113.9"),
        (("fe80::1%eth0",), "fe80::1"),
        (("[fe80::1%25eth0]:1",), "fe80::1"),
        (("::ffff:203.0.113.9",), "203.0.113.9"),
        (("203.0.113.9, ::ffff:10.2.3.4",), "203.0.113.9"),
    ],
)
@pytest.mark.parametrize("peer", [PROXY, "::ffff:10.0.0.1"])
def test_behind_trusted_proxies_it_is_the_rightmost_address_of_another(
    peer: str, lines: tuple[str, ...], caller: str
) -> None:
    assert asked(peer, *lines) == caller


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            "unknown",
            "_hidden",
            "proxy.internal",
            "203.0.113",
            "203.0.113.256",
            "203.0.113.09",
            "0xcb007109",
        ),
        *("203.0.113.9:", "203.0.113.9:123456", "203.0.113.9:http", "203.0.113.9%eth0", "203.0.113.9/32"),
        *(
            "[2001:db8:2::9",
            "2001:db8:2::9]",
            "[]:1",
            "[]",
            "[[2001:db8:2::9]]",
            "2001:db8:2::9::1",
            ":",
            "::g",
        ),
        *("203.0.113.9 203.0.113.10", '"203.0.113.9"', "for=203.0.113.9", "203.0.113.9\x00", "\xb2.0.113.9"),
    ],
)
def test_where_a_proxy_writes_no_address_the_caller_is_that_proxy(entry: str) -> None:
    assert asked(PROXY, entry) == PROXY
    assert asked(PROXY, f"203.0.113.66, {entry}, 10.2.3.4") == "10.2.3.4"


def test_only_so_many_proxies_are_followed() -> None:
    hops = [f"10.0.0.{number}" for number in range(40)]
    assert asked(PROXY, ", ".join(["203.0.113.9", *hops])) == "10.0.0.24"
    assert asked(PROXY, ", ".join(["203.0.113.9", *hops[:15]])) == "203.0.113.9"


def test_an_ipv6_proxy_is_trusted_by_its_network() -> None:
    assert asked("2001:db8:1:2::3", "203.0.113.9") == "203.0.113.9"
    assert asked("2001:db8:2::3", "203.0.113.9") == "2001:db8:2::3"


def test_no_proxies_are_falsy() -> None:
    assert not NOBODY
    assert TRUSTED


headers = st.lists(
    st.one_of(st.binary(max_size=60), st.from_regex(rb"[0-9a-f.:,\[\]% ]{0,60}", fullmatch=True)), max_size=4
)


@given(headers)
def test_the_headers_of_a_stranger_change_nothing(lines: list[bytes]) -> None:
    assert asked(STRANGER, *lines) == STRANGER


@given(headers)
def test_what_a_caller_writes_left_of_the_proxy_changes_nothing(lines: list[bytes]) -> None:
    """The proxy appends to the last line, or adds a line of its own."""
    assert asked(PROXY, *lines, STRANGER) == STRANGER
    joined = b", ".join([*lines, STRANGER.encode()])
    assert asked(PROXY, joined) == STRANGER


@given(headers)
@example([b"10.0.0.1:1:1"])
def test_the_answer_is_always_an_address(lines: list[bytes]) -> None:
    """The library raises ValueError for what is none."""
    ip_address(asked(PROXY, *lines))


@given(st.ip_addresses(), st.integers(1, 128), st.ip_addresses())
def test_a_network_is_what_the_library_says(base: Any, length: int, address: Any) -> None:
    network = ip_network((base, min(length, base.max_prefixlen)), strict=False)
    inside = address if address.version == base.version else base
    mapped = getattr(inside, "ipv4_mapped", None) or getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None:
        return
    believed = asked(str(inside), STRANGER, trusted=Proxies([network])) == STRANGER
    assert believed == (inside in network)
