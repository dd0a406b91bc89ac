"""Where a customer may have us connect to: the decision behind every outgoing connection that somebody else aimed.

A URL and an address are judged apart, because what a name leads to changes. Invariant: nothing but a globally
routable unicast address is dialled, unless the operator named its network; what embeds an IPv4 address is judged by
it or refused; and a URL means here what it means to whoever dials, since it is taken apart once, here.

The tables are the IANA registries of special-purpose addresses (RFC 6890 and later), not Python's, which differ
between its versions.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, Literal

import idna
import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_MAX: Final = 2048
_PORTS: Final = {"https": 443, "http": 80}

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:\[\]\\%]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:/(?:[a-z0-9._~!$&'()*+,;=:@/-]|%[0-9a-f]{2})*)?(?:\?(?:[a-z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-f]{2})*)?)",
    re.IGNORECASE | re.ASCII,
)
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NOWHERE: Final = frozenset({"localhost", "local", "internal", "onion", "invalid", "home.arpa"})
"""Names that no public DNS server answers for (RFC 6761 and 6762, RFC 8375, ICANN's `internal`)."""

_NOT_GLOBAL: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            # Public, and yet the inside of a cloud: Azure answers its machines there.
            "168.63.129.16/32",
        ),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NOT_GLOBAL_6: Final = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)
"""Within 2000::/3. Teredo is in the first, 6to4 the third: both carry an IPv4 address to wherever it leads."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Where every IPv4 address is for a machine that has only IPv6 (RFC 6052)."""


class BadTarget(ValueError):
    """Not to be dialled. The message is for the customer, and never says what a name led to."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows. `networks` may be dialled besides the internet, over plain http too.

    `own_host` is what callers reach this service by, `own_port` the port that it listens on.
    """

    networks: tuple[Network, ...]
    own_host: str
    own_port: int


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL taken apart. `host` is ASCII and lower-case; `path` has the query with it. `address`, if `host` is one."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def is_plain(self) -> bool:
        return self.scheme == "http"

    @property
    def authority(self) -> str:
        """Host, and port unless it is the scheme's own: the value of a `Host` header."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The one spelling under which it is kept."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_target(text: str, rules: Rules) -> Target:
    """Take a customer's URL apart. Raises BadTarget for one that is not to be dialled whatever its name leads to."""
    if len(text) > URL_MAX:
        raise BadTarget(f"A URL has at most {URL_MAX} characters.")
    found = _URL.fullmatch(text)
    if found is None:
        raise BadTarget(
            "That is no URL to send to: write https://host/path, percent-encoded, without user, password or fragment."
        )
    scheme: Literal["http", "https"] = "http" if found["scheme"].lower() == "http" else "https"
    port = _PORTS[scheme] if found["port"] is None else int(found["port"])
    if not 0 < port < 65_536:
        raise BadTarget("A port is a number from 1 to 65535.")
    if scheme == "http" and not rules.networks:
        raise BadTarget("Events are sent over https only.")
    host, address = _host(found["host"])
    if address is None and host == rules.own_host:
        raise BadTarget(f"{host} is this service itself.")
    path = found["target"]
    if not path.startswith("/"):
        path = f"/{path}"
    return Target(scheme=scheme, host=host, port=port, path=path, address=address)


def _host(text: str) -> tuple[str, Address | None]:
    """The host in its one spelling, and the address if it is one."""
    if text.startswith("["):
        return _ipv6(text[1:-1])
    name = _ascii(text)
    *_, last = labels = name.split(".")
    if _NUMBER.fullmatch(last):
        # Resolvers read 127.1, 0177.0.0.1, 0x7f000001 and 2130706433 as addresses: only one spelling is let in.
        return _ipv4(name)
    if not last or len(labels) < 2 or len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise BadTarget("The host is a full domain name, without a dot at its end, or an address.")
    if last in _NOWHERE or ".".join(labels[-2:]) in _NOWHERE:
        raise BadTarget(f"{name} is no name on the public internet.")
    return name, None


def _ascii(text: str) -> str:
    """Lower case, and Punycode for what is not ASCII, as browsers do it (UTS #46)."""
    lower = text.lower()
    if lower.isascii() and "xn--" not in lower:
        return lower
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode()
    except idna.IDNAError as error:
        raise BadTarget("The host is no domain name.") from error


def _ipv4(text: str) -> tuple[str, Address]:
    try:
        address = IPv4Address(text)
    except AddressValueError as error:
        raise BadTarget("An IPv4 address is four decimal numbers with dots between them.") from error
    return str(address), address


def _ipv6(text: str) -> tuple[str, Address]:
    try:
        address = IPv6Address(text)
    except AddressValueError as error:
        raise BadTarget("Between the brackets of a host is an IPv6 address.") from error
    return str(address), address


def check_address(target: Target, address: Address, rules: Rules, *, is_own: bool) -> None:
    """Raise BadTarget unless this address, which the target's name led to, may be dialled for it.

    `is_own` says that it is an address of this very machine.
    """
    if any(address in network for network in rules.networks):
        if is_own and target.port == rules.own_port:
            raise BadTarget(f"{target.authority} is this service itself.")
        return
    if target.is_plain:
        raise BadTarget("Events are sent over https only.")
    if is_own or not is_global(address):
        raise BadTarget(f"{target.host} leads to an address that is not on the public internet.")


def is_global(address: Address) -> bool:
    """Whether an address is one machine's on the public internet, as far as its number says."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_GLOBAL)
    if address in _NAT64:
        return is_global(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.scope_id is not None or address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _NOT_GLOBAL_6)


def networks(text: str) -> tuple[Network, ...]:
    """Read a comma list of addresses and networks. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
