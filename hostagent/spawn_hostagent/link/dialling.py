"""How the daemon opens a WebSocket to the service: where to, over what, and how long it waits before the next try.

Invariant: nothing of ours goes over a clear line, but on the machine itself.
"""

import random
from typing import Any, Final
from urllib.parse import urlsplit

from spawn_schemas.link import DATA_PATH, FRAME_BYTES_MAX, LINK_PATH, authority_of
from websockets.asyncio.client import connect

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
OPEN_S: Final = 15.0
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class BadAddress(Exception):
    """The link's address cannot be dialled; the message says what it should be."""


def backoff_s(failures: int, dice: random.Random) -> float:
    """How long to wait after so many failures in a row: anything up to a bound that doubles.

    The full jitter keeps the hosts of a service that was restarted from coming back together.
    """
    return dice.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 16)))


def base_of(link_url: str) -> str:
    """The link's address without its path. Raises BadAddress unless it is `wss`, or `ws` to this machine itself."""
    if _may_be_dialled(link_url):
        return link_url.rstrip("/").removesuffix(LINK_PATH).rstrip("/")
    raise BadAddress(
        f"The service's link is at {link_url}: it has to be wss://… (ws:// only on this machine itself). Run "
        "`spawn-host setup --force` to register with another service."
    )


def dial(url: str, *, max_size: int = FRAME_BYTES_MAX, **options: Any) -> connect:
    """Open a WebSocket to this address: to be awaited, or entered. Compression would cost 40 KiB a socket."""
    is_here = urlsplit(url).hostname in _LOOPBACK
    settings: dict[str, Any] = {
        "compression": None,
        "ping_interval": None,  # heartbeats are ours, and say more
        "open_timeout": OPEN_S,
        "close_timeout": 2,
        "max_size": max_size,
        "user_agent_header": "spawn-host",
        "proxy": None if is_here else True,
    }
    return connect(url, **(settings | options))


def data_url(link_url: str, stream_id: str) -> str:
    """Where the socket of a stream is brought. Raises BadAddress."""
    return base_of(link_url) + DATA_PATH + stream_id


def control_url(link_url: str) -> str:
    """Where the link is dialled. Raises BadAddress."""
    return base_of(link_url) + LINK_PATH


def _may_be_dialled(link_url: str) -> bool:
    try:
        authority_of(link_url)
    except ValueError:
        return False
    parts = urlsplit(link_url)
    return parts.scheme == "wss" or (parts.scheme == "ws" and parts.hostname in _LOOPBACK)
