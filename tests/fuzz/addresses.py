"""Who calls, behind proxies: a header counts only where a trusted proxy handed it over, and names an address.

An input is the socket's peer in the first line, and X-Forwarded-For in the others.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from spawn.api.addresses import NO_ADDRESS, Proxies, caller_address
from tests.fuzz.target import Target, spoil_bytes

NETWORKS: Final = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"), ip_network("127.0.0.1/32"))
TRUSTED: Final = Proxies(NETWORKS)


def check(data: bytes) -> bool:
    """All of `caller_address`, with and without trusted proxies."""
    peer, *lines = data.split(b"\n")
    headers = [(b"x-forwarded-for", line) for line in lines]
    scope = {"client": (peer.decode("latin-1"), 1), "headers": headers}
    alone = {**scope, "headers": []}
    assert caller_address(scope, Proxies([])) == caller_address(alone, Proxies([]))
    found = caller_address(scope, TRUSTED)
    if found == NO_ADDRESS:
        return False
    address = ip_address(found)
    assert not isinstance(address, IPv6Address) or address.ipv4_mapped is None
    nearest = caller_address(alone, TRUSTED)
    if found == nearest:
        return True
    assert _is_trusted(ip_address(nearest))
    assert any(digit in b",".join(lines) for digit in b"0123456789abcdefABCDEF:")
    return True


def _is_trusted(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in NETWORKS if network.version == address.version)


_SEEDS: Final = (
    "10.0.0.1\n203.0.113.7, 198.51.100.1, 10.1.2.3",
    '127.0.0.1\n[2001:db8::1]:443\n"x", 192.0.2.1:80',
    "::ffff:10.0.0.1\nfe80::1%eth0, 2001:0DB8::0001",
    "2001:db8::2\n::ffff:127.0.0.1, unknown, _hidden",
    "203.0.113.7\n10.0.0.1",
)
TARGET: Final = Target(seeds=tuple(seed.encode() for seed in _SEEDS), check=check, mutate=spoil_bytes)
