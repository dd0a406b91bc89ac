"""The forms that a setting's text may have.

Invariant: each answers for any text, and says nothing about whether the setting is wise.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from spawn_schemas.ids import parse_address
from spawn_schemas.money import parse_usdc

from spawn.domain.targets import networks

_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1 (SEC 2, section 2.4.1): a private key is a number below it."""


def is_timeout(seconds: float) -> bool:
    return 0.1 <= seconds <= 3600


def is_caip2(text: str) -> bool:
    chain = text.removeprefix("eip155:")
    return chain != text and chain.isascii() and chain.isdigit() and int(chain) > 0


def is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def is_amount(text: str) -> bool:
    try:
        parse_usdc(text)
    except ValueError:
        return False
    return True


def is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        usable = url.port is None or url.port > 0
    except ValueError:
        return False
    bare = url.path in {"", "/"} and not url.query and not url.fragment and url.username is None
    return usable and bare and url.scheme in {"http", "https"} and bool(url.hostname)


def is_http(text: str) -> bool:
    try:
        url = urlsplit(text)
        usable = url.port is None or url.port > 0
    except ValueError:
        return False
    return usable and url.scheme in {"http", "https"} and bool(url.hostname)


def is_token(text: str) -> bool:
    """What can stand in a header behind `Bearer`, or nothing."""
    return re.fullmatch(r"[!-~]*", text) is not None


def is_private_key(text: str) -> bool:
    return re.fullmatch(r"(?:0x)?[0-9a-fA-F]{64}", text) is not None and 0 < int(text, 16) < _CURVE_ORDER


def is_listen(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_name_or_ip(text: str) -> bool:
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return is_ip(text) or re.fullmatch(rf"{label}(\.{label})*", text) is not None


def is_host_name(text: str) -> bool:
    """What a lent machine may be called (`spawn_schemas.hosts.HostName`)."""
    return re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", text) is not None


def is_link(text: str) -> bool:
    """Where hosts dial out to: encrypted, unless it never leaves this machine."""
    try:
        url = urlsplit(text)
        usable = url.port is None or url.port > 0
    except ValueError:
        return False
    bare = url.path in {"", "/"} and not url.query and not url.fragment and url.username is None
    here = url.hostname == "localhost" or (
        is_ip(url.hostname or "") and ip_address(url.hostname or "").is_loopback
    )
    return usable and bare and bool(url.hostname) and (url.scheme == "wss" or (url.scheme == "ws" and here))


def is_price(text: str) -> bool:
    return is_amount(text) and parse_usdc(text) > 0


def parses(parse: Callable[[str], object], text: str) -> bool:
    """Whether `parse` takes it."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


def are_networks(text: str) -> bool:
    try:
        return all(network.prefixlen > 0 for network in networks(text))
    except ValueError:
        return False


def is_secret(text: str) -> bool:
    return text == "" or (len(text) == 64 and all(c in "0123456789abcdefABCDEF" for c in text))


_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(text: str) -> int:
    """`7d`, `6h`, `90m` or `45s` in seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a whole number and s, m, h or d")
    return int(match[1]) * _UNIT_S[match[2]]


def listed(text: str) -> tuple[str, ...]:
    """The parts of a comma list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
