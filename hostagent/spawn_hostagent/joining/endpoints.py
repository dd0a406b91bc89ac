"""Addresses of the service: which are safe to talk to, and where the others follow from one.

Invariant: nothing is sent in clear but to this machine itself.
"""

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from spawn_schemas.link import LINK_PATH

from spawn_hostagent.failures import Failure

SPEED_PATH: Final = "/v1/hosts/speed/"
"""Where the service's relay lets a host measure its own connection: this and `down`, `up` or `ping`."""


def service_address(text: str) -> str:
    """The address as it is kept, without a path. Raises Failure for what is not https, or http on the loopback."""
    address = text.strip()
    if "://" not in address:
        address = f"https://{address}"
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        raise Failure(f"{text} is not an address: its port is not a number from 1 to 65535.") from None
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise Failure(f"{text} is not the address of a service: write it like https://api.example.org.")
    _refuse_clear_text(text, parts.scheme, "https", "http", parts.hostname)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def link_address(text: str) -> str:
    """The same for the link's own address, which the service told. Raises Failure."""
    parts = urlsplit(text)
    if not parts.hostname:
        raise Failure(
            f"the service named {text!r} as the address of its link, which is none: tell its operator."
        )
    _refuse_clear_text(text, parts.scheme, "wss", "ws", parts.hostname)
    return text


def speed_address(link_url: str) -> str:
    """Where the relay measures, from the link's address: it is the same listener. Ends in a slash."""
    parts = urlsplit(link_address(link_url))
    scheme = "https" if parts.scheme == "wss" else "http"
    return f"{scheme}://{parts.netloc}{parts.path.removesuffix(LINK_PATH)}{SPEED_PATH}"


def _refuse_clear_text(text: str, scheme: str, safe: str, clear: str, host: str) -> None:
    if scheme == safe or (scheme == clear and is_loopback(host)):
        return
    if scheme == clear:
        raise Failure(
            f"{text} is not encrypted: write {safe}://; {clear}:// is for a service on this machine alone."
        )
    raise Failure(f"{text} is not an address of a service: it begins with {safe}://.")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
