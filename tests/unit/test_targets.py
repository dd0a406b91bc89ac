"""Where a customer may have us connect to: which addresses, and which URLs."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spawn.domain.targets import (
    URL_MAX,
    Address,
    BadTarget,
    Rules,
    check_address,
    is_global,
    networks,
    parse_target,
)

PUBLIC: Final = Rules(networks=(), own_host="api.spawn.example", own_port=8402)
DEVELOPMENT: Final = Rules(networks=networks("127.0.0.0/8, ::1"), own_host="127.0.0.1", own_port=8402)

NEVER: Final = {
    "loopback": "127.0.0.1",
    "loopback, further on": "127.255.255.254",
    "this network": "0.0.0.0",  # noqa: S104 - judged, not bound
    "private, 10": "10.0.0.1",
    "private, 172": "172.31.255.255",
    "private, 192": "192.168.1.1",
    "carrier-grade NAT": "100.64.0.1",
    "Alibaba's metadata": "100.100.100.200",
    "link-local": "169.254.1.1",
    "metadata of most clouds": "169.254.169.254",
    "Oracle's metadata": "192.0.0.192",
    "Azure's inside": "168.63.129.16",
    "documentation": "203.0.113.7",
    "benchmarking": "198.18.0.1",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "loopback, IPv6": "::1",
    "unspecified, IPv6": "::",
    "IPv4-mapped loopback": "::ffff:127.0.0.1",
    "IPv4-mapped public": "::ffff:8.8.8.8",
    "IPv4-compatible loopback": "::127.0.0.1",
    "IPv4-translated metadata": "::ffff:0:169.254.169.254",
    "6to4 of loopback": "2002:7f00:1::",
    "6to4 of metadata": "2002:a9fe:a9fe::1",
    "Teredo": "2001:0:7f00:1::1",
    "NAT64 of metadata": "64:ff9b::a9fe:a9fe",
    "NAT64 of loopback": "64:ff9b::7f00:1",
    "NAT64, local use": "64:ff9b:1::808:808",
    "unique local": "fd00::1",
    "AWS's metadata, IPv6": "fd00:ec2::254",
    "GCP's metadata, IPv6": "fd20:ce::254",
    "link-local, IPv6": "fe80::1",
    "link-local, with its interface": "fe80::1%eth0",
    "site-local": "fec0::1",
    "multicast, IPv6": "ff02::1",
    "discard-only": "100::1",
    "documentation, IPv6": "2001:db8::1",
    "documentation, IPv6, the new one": "3fff::1",
    "segment routing": "5f00::1",
    "benchmarking, IPv6": "2001:2::1",
    "ORCHID": "2001:20::1",
    "not given to anybody": "4000::1",
}


@pytest.mark.parametrize("text", NEVER.values(), ids=NEVER.keys())
def test_it_is_not_dialled(text: str) -> None:
    assert not is_global(ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "1.1.1.1", "223.255.255.255", "2606:4700:4700::1111", "2a01:4f8::1", "64:ff9b::808:808"],
)
def test_it_is_dialled(text: str) -> None:
    assert is_global(ip_address(text))


@given(st.ip_addresses())
@example(IPv6Address("64:ff9b::a00:1"))
def test_what_python_calls_special_is_never_dialled(address: Address) -> None:
    inner = address
    if isinstance(address, IPv6Address) and address in IPv6Network("64:ff9b::/96"):
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    special = (
        inner.is_private
        or inner.is_loopback
        or inner.is_link_local
        or inner.is_multicast
        or inner.is_reserved
        or inner.is_unspecified
        or not inner.is_global
    )
    assert not (special and is_global(address))


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_by_what_it_leads_to(address: IPv4Address) -> None:
    value = int(address)
    assert is_global(IPv6Address((0x64FF9B << 96) | value)) == is_global(address)
    for embedded in (
        IPv6Address((0xFFFF << 32) | value),
        IPv6Address(value),
        IPv6Address((0x2002 << 112) | (value << 80)),
        IPv6Address((0x2001 << 112) | (value ^ 0xFFFFFFFF)),
    ):
        assert not is_global(embedded)


@given(st.ip_addresses(v=4, network=IPv4Network("10.0.0.0/8")) | st.ip_addresses(v=6, network="fc00::/7"))
def test_no_address_of_a_private_network_is_dialled(address: Address) -> None:
    target = parse_target("https://hooks.example.com/", PUBLIC)
    with pytest.raises(BadTarget, match="not on the public internet") as refused:
        check_address(target, address, PUBLIC, is_own=False)
    assert str(address) not in str(refused.value)


def test_our_own_public_address_is_not_dialled() -> None:
    target = parse_target("https://hooks.example.com/", PUBLIC)
    check_address(target, IPv4Address("8.8.8.8"), PUBLIC, is_own=False)
    with pytest.raises(BadTarget):
        check_address(target, IPv4Address("8.8.8.8"), PUBLIC, is_own=True)


def test_a_network_that_the_operator_named_is_dialled_over_http_too_but_for_this_service() -> None:
    loopback = IPv4Address("127.0.0.1")
    check_address(parse_target("http://127.0.0.1:9000/", DEVELOPMENT), loopback, DEVELOPMENT, is_own=True)
    with pytest.raises(BadTarget, match="this service itself"):
        check_address(parse_target("http://127.0.0.1:8402/", DEVELOPMENT), loopback, DEVELOPMENT, is_own=True)
    with pytest.raises(BadTarget, match="https only"):
        check_address(
            parse_target("http://hooks.example.com/", DEVELOPMENT),
            IPv4Address("8.8.8.8"),
            DEVELOPMENT,
            is_own=False,
        )
    with pytest.raises(BadTarget, match="public internet"):
        check_address(
            parse_target("https://hooks.example.com/", DEVELOPMENT),
            IPv4Address("10.0.0.1"),
            DEVELOPMENT,
            is_own=False,
        )


BAD_URLS: Final = {
    "plain http": "http://hooks.example.com/",
    "another scheme": "ftp://hooks.example.com/",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://hooks.example.com:70/_x",
    "no scheme": "//hooks.example.com/",
    "no host": "https:///path",
    "a scheme that folds to https": "http\u017f://hooks.example.com/",
    "a user": "https://user@hooks.example.com/",
    "a user and a password": "https://user:pass@hooks.example.com/",
    "a host behind a user": "https://hooks.example.com@127.0.0.1/",
    "a host behind a backslash": "https://hooks.example.com\\@127.0.0.1/",
    "a fragment": "https://hooks.example.com/#here",
    "a line end": "https://hooks.example.com/\r\nHost: 127.0.0.1",
    "a line end at the end": "https://hooks.example.com/\n",
    "a blank": "https://hooks.example.com/a b",
    "a tab in the host": "https://hooks\t.example.com/",
    "letters that are not percent-encoded": "https://hooks.example.com/\u00fc",
    "a bad percent-encoding": "https://hooks.example.com/%zz",
    "a percent-encoded host": "https://127%2e0.0.1/",
    "port 0": "https://hooks.example.com:0/",
    "port 65536": "https://hooks.example.com:65536/",
    "no port after the colon": "https://hooks.example.com:/",
    "a port in other digits": "https://hooks.example.com:\u0664\u0664\u0663/",
    "a dot at the end": "https://hooks.example.com./",
    "a dot at the end, of another script": "https://hooks.example.com\u3002/",
    "a dot at the end of an address": "https://127.0.0.1./",
    "two dots": "https://hooks..example.com/",
    "localhost": "https://localhost/",
    "below localhost": "https://hooks.localhost/",
    "LOCALHOST": "https://LOCALHOST/",
    "a name of the local network": "https://printer.local/",
    "Google's metadata": "https://metadata.google.internal/",
    "a name without a dot": "https://metadata/",
    "an underscore": "https://my_host.example.com/",
    "a hyphen first": "https://-hooks.example.com/",
    "a label too long": f"https://{'a' * 64}.example.com/",
    "a name too long": f"https://{'a.' * 130}com/",
    "decimal": "https://2130706433/",
    "hexadecimal": "https://0x7f000001/",
    "octal": "https://017700000001/",
    "octal parts": "https://0177.0.0.1/",
    "a hexadecimal part": "https://127.0.0.0x1/",
    "two parts": "https://127.1/",
    "five parts": "https://1.127.0.0.1/",
    "leading zeros": "https://127.000.000.001/",
    "digits in circles": "https://\u2460\u2461\u2466.1/",
    "no IPv6 address": "https://[::g]/",
    "an IPv6 address with an interface": "https://[fe80::1%25eth0]/",
    "no Punycode": "https://xn--a.example.com/",
    "our own host": "https://api.spawn.example/v1/servers",
    "our own host in capitals": "https://API.spawn.EXAMPLE/",
    "our own host on another port": "https://api.spawn.example:9000/",
    "too long": "https://hooks.example.com/" + "a" * URL_MAX,
}


@pytest.mark.parametrize("url", BAD_URLS.values(), ids=BAD_URLS.keys())
def test_it_is_no_url_to_send_to(url: str) -> None:
    with pytest.raises(BadTarget):
        parse_target(url, PUBLIC)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://Hooks.Example.COM", "https://hooks.example.com/"),
        ("HTTPS://hooks.example.com:443/a?b=c", "https://hooks.example.com/a?b=c"),
        ("https://hooks.example.com:8443?b", "https://hooks.example.com:8443/?b"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
        ("https://XN--BCHER-KVA.example/", "https://xn--bcher-kva.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://\uff18.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:4700:0::1111]:8443/", "https://[2606:4700:4700::1111]:8443/"),
        ("https://r3---x.example.com/%2e%2e/@:x", "https://r3---x.example.com/%2e%2e/@:x"),
    ],
)
def test_a_url_is_kept_in_one_spelling(written: str, kept: str) -> None:
    target = parse_target(written, PUBLIC)
    assert target.url == kept
    assert parse_target(kept, PUBLIC) == target


@given(st.text(max_size=80) | st.from_regex(r"https?://[^/]{0,30}/?.{0,20}"))
@example("https://\u2488.\u2488.\u2488.\u2488/")
def test_whatever_is_written_is_refused_or_understood_for_good(text: str) -> None:
    try:
        target = parse_target(text, PUBLIC)
    except BadTarget:
        return
    assert target.url.isascii()
    assert parse_target(target.url, PUBLIC) == target
    assert target.host == target.host.lower()
    assert 0 < target.port < 65_536


@pytest.mark.parametrize("text", ["10.0.0.1/8", "everything", "127.0.0.0/33"])
def test_networks_are_written_out(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        networks(text)
