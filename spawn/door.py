"""Who may have a connection, and for how long: their number, in all and by address, and the clock of each.

Invariant: a connection that was let in, or turned away, is watched until it is gone. One timer serves them all, so that
a request costs no timer of its own.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Protocol

import msgspec
from spawn_schemas.errors import Code, SpawnError

from spawn.settings import Settings

Network = IPv4Network | IPv6Network

TURNED_AWAY_MAX: Final = 64
"""Connections beyond the limit that are told so at one time; others are cut."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, seconds and connections, as `Settings` documents them."""

    head_max_bytes: int
    body_max_bytes: int
    head_s: float
    body_s: float
    idle_s: float
    answer_s: float
    open_max: int
    open_per_address_max: int

    @property
    def raw_body_max_bytes(self) -> int:
        """What a body may take on the wire: chunk sizes and extensions come on top of it."""
        return 2 * self.body_max_bytes + self.head_max_bytes


def bounds_of(settings: Settings) -> Bounds:
    """The bounds that the settings ask for."""
    return Bounds(
        head_max_bytes=settings.head_max_bytes,
        body_max_bytes=settings.body_max_bytes,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        idle_s=settings.idle_timeout_s,
        answer_s=settings.answer_timeout_s,
        open_max=settings.connections_max,
        open_per_address_max=settings.connections_per_address_max,
    )


def in_front(proxies: Iterable[Network]) -> Callable[[str], bool]:
    """Whether an address stands for many callers: this machine's own, where a proxy may run, or a trusted proxy's."""
    networks = tuple(proxies)

    def is_in_front(address: str) -> bool:
        ip = _read(address)
        return ip.is_loopback or any(ip in network for network in networks)

    return is_in_front


def neighbourhood(address: str) -> str:
    """What is counted as one address: of IPv6 the /64, because its holder has all of it (RFC 6177)."""
    ip = _read(address)
    return str(ip) if isinstance(ip, IPv4Address) else str(IPv6Network((int(ip) >> 64 << 64, 64)))


def _read(address: str) -> IPv4Address | IPv6Address:
    """A peer's address without its zone, and IPv4 as such, which a dual socket maps into IPv6 (RFC 4291, 2.5.5.2)."""
    ip = ip_address(address.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


class Guest(Protocol):
    """A connection as the door sees it."""

    left_s: float
    """How long it may still keep us waiting; the door counts it down, to within a second."""
    loop: asyncio.AbstractEventLoop

    def expire(self) -> None:
        """Its time is up."""


class Door:
    """Counts the connections and ends those whose time is up. One for each server; its loop's thread only.

    `exempt` says of which addresses any number of connections is taken: proxies, who speak for others.
    """

    def __init__(
        self, bounds: Bounds, *, exempt: Callable[[str], bool], new_request_id: Callable[[], str]
    ) -> None:
        self.bounds = bounds
        self.new_request_id = new_request_id
        self._exempt = exempt
        self._admitted: dict[Guest, str | None] = {}
        self._turned_away: set[Guest] = set()
        self._per_address: Counter[str] = Counter()
        self._sweeping = False
        self._swept_at = 0.0
        shortest_s = min(bounds.head_s, bounds.body_s, bounds.idle_s, bounds.answer_s)
        self._every_s = min(1.0, shortest_s / 4)

    def admit(self, connection: Guest, address: str | None) -> SpawnError | None:
        """Let a connection in, or say why not. Either way its time is kept until it leaves."""
        if not self._sweeping:
            self._sweeping = True
            self._swept_at = connection.loop.time()
            connection.loop.call_later(self._every_s, self._sweep, connection.loop)
        place = None if address is None or self._exempt(address) else neighbourhood(address)
        refused = self._refused(place)
        if refused is not None:
            self._turned_away.add(connection)
            return refused
        self._admitted[connection] = place
        if place is not None:
            self._per_address[place] += 1
        return None

    def leave(self, connection: Guest) -> None:
        """Forget a connection that is closed."""
        self._turned_away.discard(connection)
        place = self._admitted.pop(connection, None)
        if place is not None:
            self._per_address[place] -= 1
            if not self._per_address[place]:
                del self._per_address[place]

    @property
    def open(self) -> int:
        """How many connections there are, those who were turned away included."""
        return len(self._admitted) + len(self._turned_away)

    def may_explain(self) -> bool:
        """Whether one more of those who were turned away can be told why."""
        return len(self._turned_away) <= TURNED_AWAY_MAX

    def _refused(self, place: str | None) -> SpawnError | None:
        if len(self._admitted) >= self.bounds.open_max:
            return SpawnError(
                Code.OVERLOADED,
                "This service has no connection to spare.",
                next="Try again in a moment.",
                retry_after_s=1,
            )
        if place is not None and self._per_address[place] >= self.bounds.open_per_address_max:
            return SpawnError(
                Code.RATE_LIMITED,
                f"Your address has {self.bounds.open_per_address_max} connections open, the most it may have.",
                next="Use those again, or close some.",
                retry_after_s=1,
            )
        return None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all connections, instead of several for each request."""
        now = loop.time()
        for connection in [*self._admitted, *self._turned_away]:
            connection.left_s -= now - self._swept_at
            if connection.left_s <= 0:
                connection.expire()
        self._swept_at = now
        self._sweeping = bool(self._admitted or self._turned_away)
        if self._sweeping:
            loop.call_later(self._every_s, self._sweep, loop)
