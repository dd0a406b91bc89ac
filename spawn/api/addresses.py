"""From which address a call comes: the socket says so, or a proxy that we were told to trust.

Invariant: a header counts only as far as trusted proxies wrote it. Each appends the address that it saw to
X-Forwarded-For, so the list is read from its right end, and what stands left of the first stranger is hearsay.

Addresses are bytes here, and IPv4 is read as the part of IPv6 that mirrors it (RFC 4291 section 2.5.5.2): a dual
socket names its IPv4 peers so.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, Final

NO_ADDRESS: Final = "unknown"
"""The caller behind a socket without addresses, such as a unix socket: all such callers are one."""
_FORWARDED_FOR: Final = b"x-forwarded-for"
_HOPS_MAX: Final = 16
"""Proxies behind one another that are followed."""
_MAPPED: Final = bytes(10) + b"\xff\xff"
_ENTRY: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?|([^\[\]]+)")
"""An address, also in brackets, with or without a port; only an address without either may have bare colons."""


class Proxies:
    """The networks of the proxies that are trusted, ready to be asked."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._prefixes = tuple(_prefix(network) for network in networks)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __contains__(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any(number >> shift == prefix for prefix, shift in self._prefixes)


def caller_address(scope: Mapping[str, Any], trusted: Proxies) -> str:
    """The caller's address in its shortest spelling, without port or zone, IPv4 as such even on an IPv6 socket.

    Behind trusted proxies it is the right-most address that is none of theirs; where all are, the left-most; and
    where a proxy wrote what is no address, that proxy's own.
    """
    client = scope.get("client")
    if client is None:
        return NO_ADDRESS
    host: str = client[0]
    if not trusted and host and ":" not in host:
        return host
    address = _read(host)
    if address is None:
        return NO_ADDRESS
    if address in trusted:
        address = _forwarded_for(scope["headers"], address, trusted)
    return _text(address)


def _forwarded_for(headers: Iterable[tuple[bytes, bytes]], peer: bytes, trusted: Proxies) -> bytes:
    lines = b",".join(value for name, value in headers if name == _FORWARDED_FOR).decode("latin-1")
    nearest = peer
    for entry in reversed(lines.rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]):
        address = _read(entry.strip(" \t"))
        if address is None:
            return nearest
        if address not in trusted:
            return address
        nearest = address
    return nearest


def _read(entry: str) -> bytes | None:
    """The address in an entry of the list, or None if there is none."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    text = match[1] or match[2] or match[3]
    try:
        if ":" in text:
            return inet_pton(AF_INET6, text.partition("%")[0])
        return _MAPPED + inet_pton(AF_INET, text)
    except (OSError, ValueError):
        return None


def _text(address: bytes) -> str:
    if address.startswith(_MAPPED):
        return inet_ntop(AF_INET, address[len(_MAPPED) :])
    return inet_ntop(AF_INET6, address)


def _prefix(network: IPv4Network | IPv6Network) -> tuple[int, int]:
    """The bits that every address of the network begins with, and how many follow."""
    number = int(network.network_address)
    if isinstance(network, IPv4Network):
        number |= int.from_bytes(_MAPPED, "big") << network.max_prefixlen
    shift = network.max_prefixlen - network.prefixlen
    return number >> shift, shift
