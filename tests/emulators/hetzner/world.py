"""One project at Hetzner Cloud, in memory: what there is, and what is under way.

Invariant: everything follows from the seed, the calls and the time. Nothing runs in the background: what was set in
motion waits as an event, and `catch_up` lets happen all that is due, each in its own millisecond.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from string import ascii_letters, digits
from typing import Final, Literal

import msgspec

from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.errors import ApiError, invalid

# RFC 2544 keeps 198.18.0.0/15 for benchmarks and RFC 3849 keeps 2001:db8::/32 for documentation: nothing that is
# sent to these addresses can reach a stranger.
_IPV4_BASE: Final = int(IPv4Address("198.18.0.0"))
_IPV6_BASE: Final = int(IPv6Address("2001:db8::"))

Seconds = tuple[int, int]
"""The shortest and the longest that something takes."""

Event = Callable[[], None]

TIMED_OUT: Final = ("timeout", "the action has timed out")


class Server(msgspec.Struct, kw_only=True):
    """`boots` counts the times its guest was started, so that what an earlier guest was about to do is void."""

    id: int
    name: str
    labels: dict[str, str]
    status: str
    created_ms: int
    server_type: catalog.ServerType
    location: catalog.Location
    image: catalog.Image | None
    disk_gb: int
    protected: bool = False
    ssh_keys: list[int] = []
    user_data: str = ""
    root_password: str | None = None
    ipv4: int | None = None
    ipv6: int | None = None
    networks: dict[int, str] = {}
    firewalls: list[int] = []
    ingoing_traffic: int | None = None
    outgoing_traffic: int | None = None
    deaf: bool = False
    """Its guest does not react to ACPI."""
    boots: int = 0


class Action(msgspec.Struct, kw_only=True):
    """`ends_ms` is None where it has no end in sight."""

    id: int
    command: str
    resources: list[tuple[str, int]]
    started_ms: int
    ends_ms: int | None
    status: Literal["running", "success", "error"] = "running"
    finished_ms: int | None = None
    error: tuple[str, str] | None = None


class SshKey(msgspec.Struct, kw_only=True):
    id: int
    name: str
    fingerprint: str
    public_key: str
    labels: dict[str, str]
    created_ms: int


class PrimaryIp(msgspec.Struct, kw_only=True):
    id: int
    name: str
    type: Literal["ipv4", "ipv6"]
    ip: str
    location: catalog.Location
    labels: dict[str, str]
    auto_delete: bool
    created_ms: int
    server: int | None = None
    protected: bool = False


class Network(msgspec.Struct, kw_only=True):
    id: int
    name: str
    ip_range: str
    network_zone: str
    created_ms: int
    labels: dict[str, str] = {}
    hosts: int = 1

    def next_host(self) -> str:
        self.hosts += 1
        return str(IPv4Network(self.ip_range)[self.hosts])


class Firewall(msgspec.Struct, kw_only=True):
    id: int
    name: str
    created_ms: int
    labels: dict[str, str] = {}


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the next action: it ends in this error half-way, or without one gets nowhere.

    Then it fails after `stuck_s`; if that is None, not before somebody sees to it.
    """

    error: tuple[str, str] | None
    stuck_s: int | None = None


class World:
    def __init__(self, now_ms: Callable[[], int], *, seed: int = 0) -> None:
        self._now_ms = now_ms
        self.at_ms = now_ms()
        self.servers: dict[int, Server] = {}
        self.actions: dict[int, Action] = {}
        self.ssh_keys: dict[int, SshKey] = {}
        self.primary_ips: dict[int, PrimaryIp] = {}
        self.networks: dict[int, Network] = {}
        self.firewalls: dict[int, Firewall] = {}
        self.depleted: set[tuple[str, str]] = set()
        """Pairs of server type and location for which there is no machine left."""
        self.said_full: set[tuple[str, str]] = set()
        """Such pairs as the list of server types calls not available, rightly or not."""
        self.withdrawn: set[tuple[str, str]] = set()
        """Such pairs as cannot be ordered any more, which the list does not tell yet."""
        self.gone: dict[int, tuple[int, Server]] = {}
        """Servers that were, and when they ceased: a list that lags still shows them."""
        self.cloud_init: Callable[[Server], None] = lambda server: None
        """What a guest does when it boots from a fresh disk; nothing, unless a test says so."""
        self.flaw: Flaw | None = None
        self.server_limit: int | None = None
        self.auto_deletes = True
        """Whether the addresses that are made for a server die with it."""
        self._stuck: list[Event] = []
        self._busy: defaultdict[int, list[Action]] = defaultdict(list)
        self._dice = random.Random(f"hetzner/{seed}")
        self._events: list[tuple[int, int, Event]] = []
        self._scheduled = 0
        self._last_id = self._dice.randrange(10**6, 10**8)
        self._addresses = 0

    def catch_up(self) -> None:
        """Let everything happen that is due."""
        now = self._now_ms()
        while self._events and self._events[0][0] <= now:
            self.at_ms, _, event = heapq.heappop(self._events)
            event()
        self.at_ms = now

    def schedule(self, at_ms: int, event: Event) -> None:
        self._scheduled += 1
        heapq.heappush(self._events, (at_ms, self._scheduled, event))

    def new_id(self) -> int:
        self._last_id += self._dice.randrange(1, 1_000)
        return self._last_id

    def new_password(self) -> str:
        return "".join(self._dice.choices(ascii_letters + digits, k=20))

    def new_address(self, type_: str) -> str:
        self._addresses += 1
        if type_ == "ipv4":
            return str(IPv4Address(_IPV4_BASE + self._addresses))
        return f"{IPv6Address(_IPV6_BASE + (self._addresses << 64))}/64"

    def lasts_ms(self, seconds: Seconds) -> int:
        return self._dice.randrange(seconds[0] * 1_000, seconds[1] * 1_000 + 1)

    # --- actions ------------------------------------------------------------------------------------------------

    def running(self, server: Server) -> list[Action]:
        """What is under way with this server; as long as there is anything, it is locked."""
        return self._busy.get(server.id, [])

    def begin(
        self,
        command: str,
        server: Server,
        *,
        seconds: Seconds | None = None,
        done: Event = lambda: None,
        undone: Event = lambda: None,
        after: Action | None = None,
    ) -> Action:
        """An action that takes its time, then is `done`; or, with a flaw, is `undone` half-way or never ends.

        Without `seconds` it has succeeded at once. `after` another one, it begins when that ends.
        """
        flaw, self.flaw = self.flaw, None
        lasts = self.lasts_ms(seconds) if seconds else 0
        if flaw is not None and flaw.error is not None:
            lasts //= 2
        begins_ms = after.ends_ms if after else self.at_ms
        endless = begins_ms is None or (flaw is not None and flaw.error is None)
        action = Action(
            id=self.new_id(),
            command=command,
            resources=[("server", server.id)],
            started_ms=self.at_ms,
            ends_ms=None if endless or begins_ms is None else begins_ms + lasts,
        )
        self.actions[action.id] = action
        self._busy[server.id].append(action)
        if action.ends_ms is not None:
            error = flaw.error if flaw else None
            self._at(action.ends_ms, partial(self._finish, action, server, error, undone if error else done))
            return action
        fail = partial(self._finish, action, server, TIMED_OUT, undone)
        self._stuck.append(fail)
        if flaw is not None and flaw.stuck_s is not None:
            self._at(self.at_ms + flaw.stuck_s * 1_000, fail)
        return action

    def _at(self, at_ms: int, event: Event) -> None:
        if at_ms <= self.at_ms:
            event()
        else:
            self.schedule(at_ms, event)

    def _finish(self, action: Action, server: Server, error: tuple[str, str] | None, effect: Event) -> None:
        if action.status == "running":
            self.end(action, error)
            if server.id in self.servers:
                effect()

    def unstick(self) -> None:
        """Every action that gets nowhere fails now."""
        stuck, self._stuck = self._stuck, []
        for fail in stuck:
            fail()

    def end(self, action: Action, error: tuple[str, str] | None = None) -> None:
        action.status = "error" if error else "success"
        action.error = error
        action.finished_ms = self.at_ms
        for type_, id_ in action.resources:
            if type_ == "server":
                self._busy[id_].remove(action)
                if not self._busy[id_]:
                    del self._busy[id_]

    # --- servers ------------------------------------------------------------------------------------------------

    def server(self, id_: int) -> Server:
        """Raises `not_found`."""
        if id_ not in self.servers:
            raise ApiError("not_found", f"server with ID '{id_}' not found")
        return self.servers[id_]

    def unlocked(self, id_: int) -> Server:
        """The server, if nothing is under way with it; raises `locked`."""
        server = self.server(id_)
        if self.running(server):
            raise ApiError("locked", "server is locked")
        return server

    def remove(self, server: Server) -> None:
        """The server is gone, and with it what was made for it alone."""
        del self.servers[server.id]
        self.gone[server.id] = (self.at_ms, server)
        for action in list(self.running(server)):
            self.end(action, ("action_failed", "the server is gone"))
        for address in [ip for ip in self.primary_ips.values() if ip.server == server.id]:
            address.server = None
            if address.auto_delete:
                del self.primary_ips[address.id]

    def add_primary_ip(self, type_: Literal["ipv4", "ipv6"], location: catalog.Location) -> PrimaryIp:
        id_ = self.new_id()
        made = PrimaryIp(
            id=id_,
            name=f"primary_ip-{id_}",
            type=type_,
            ip=self.new_address(type_),
            location=location,
            labels={},
            auto_delete=self.auto_deletes,
            created_ms=self.at_ms,
        )
        self.primary_ips[id_] = made
        return made

    def add_network(self, name: str, *, ip_range: str = "10.0.0.0/16", zone: str = "eu-central") -> Network:
        """What an operator has made by hand."""
        made = Network(
            id=self.new_id(), name=name, ip_range=ip_range, network_zone=zone, created_ms=self.at_ms
        )
        self.networks[made.id] = made
        return made

    def add_firewall(self, name: str) -> Firewall:
        made = Firewall(id=self.new_id(), name=name, created_ms=self.at_ms)
        self.firewalls[made.id] = made
        return made

    # --- the catalog --------------------------------------------------------------------------------------------

    def server_type(self, wanted: str | int) -> catalog.ServerType:
        for known in catalog.SERVER_TYPES:
            if str(wanted) in (known.name, str(known.id)):
                return known
        raise invalid("server_type", f"server type '{wanted}' not found")

    def image(self, wanted: str | int, architecture: str) -> catalog.Image:
        """By id, or by name and architecture: one name stands for an image of each."""
        for known in catalog.IMAGES:
            if str(wanted) == str(known.id):
                if known.architecture != architecture:
                    raise invalid("image", "image has another architecture than the server type")
                return known
            if (known.name, known.architecture) == (wanted, architecture):
                return known
        raise invalid("image", f"image '{wanted}' not found")

    def require_capacity(self, server_type: catalog.ServerType, location: catalog.Location) -> None:
        pair = (server_type.name, location.name)
        if location.name not in server_type.sold_in or pair in self.withdrawn:
            raise ApiError("invalid_input", "unsupported location for server type")
        if pair in self.depleted:
            raise ApiError("resource_unavailable", "error during placement")
