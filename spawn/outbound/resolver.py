"""What a name leads to, asked of the system's resolver.

Invariant: names that a customer chose are looked up on threads of their own, so that a name server which keeps us
waiting holds up nothing but other customers' names.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final, Protocol

from spawn.domain.targets import Address

LOOKUP_S: Final = 5
_THREADS: Final = 16


class Unresolvable(Exception):
    """The name leads nowhere, or not within LOOKUP_S."""


class Resolver(Protocol):
    """Looks names up."""

    async def resolve(self, host: str) -> tuple[Address, ...]:
        """Every address of `host`, at least one. Raises Unresolvable."""
        ...


class SystemResolver:
    """getaddrinfo, without the search list of this machine."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="outbound-dns")

    async def resolve(self, host: str) -> tuple[Address, ...]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOKUP_S):
                return await loop.run_in_executor(self._threads, _addresses, f"{host}.")
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise Unresolvable(host) from error

    def close(self) -> None:
        """Wait for no lookup that is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(host: str) -> tuple[Address, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in found))
