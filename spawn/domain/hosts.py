"""Lent machines: who they are, what silence means, how often they should speak, how reliable they were.

Invariant: pure. Silence alone never destroys anything: it only stops placements, money and the listing, and each of
them comes back with the host. Of those that fall silent together with too many others none is taken to be offline.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from spawn_schemas.ids import Address, HostId
from spawn_schemas.money import Usdc

BEAT_RENTED_S: Final = 5
BEAT_IDLE_S: Final = 30
BEAT_PLAIN_S: Final = 60
"""How often a host says that it is there: by the link while something runs, while nothing does, and without one."""
BEATS_PER_S: Final = 1_000
"""Heartbeats of all hosts that one process takes: about 6 % of a core."""
SUSPECT_S: Final = 20
"""Silence from which on nothing new is placed; longer where a host was told to speak less often."""
WARNING_S: Final = 120
OFFLINE_S: Final = 300
"""Silence from which on its rentals cost nothing, back to when it was last heard."""
REFUND_S: Final = 1_800
HIDDEN_S: Final = 86_400
_LATE_S: Final = 15
"""How late a heartbeat may be before anybody is suspected."""
MASS_PART: Final = 5
MASS_LEAST: Final = 3
"""More than a fifth of all hosts, and at least three, falling silent together: it is we who do not hear."""
MASS_SPREAD_S: Final = BEAT_PLAIN_S + 2 * _LATE_S
"""How far apart the last words may lie of hosts that fall silent together: each speaks in its own time, and what
another process heard is in the books up to `_LATE_S` later.
"""
MASS_WINDOW_S: Final = 3_600
"""How long we may blame ourselves for one host's silence."""
UPTIME_WINDOW_S: Final = 30 * 86_400
UPTIME_GRACE_S: Final = 600
TOKEN_S: Final = 86_400
"""How long a registration token is good."""
LEASE_S: Final = 3_600
"""How long a rental runs on while its host does not hear us."""


class HostState(StrEnum):
    """`new` has not registered, `refundable` is so long offline that its tenants may go elsewhere."""

    NEW = "new"
    ONLINE = "online"
    SUSPECT = "suspect"
    WARNED = "warned"
    OFFLINE = "offline"
    REFUNDABLE = "refundable"
    HIDDEN = "hidden"
    REVOKED = "revoked"


SILENT: Final = frozenset({HostState.OFFLINE, HostState.REFUNDABLE, HostState.HIDDEN})
"""Nobody pays for what runs there."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A lent machine. Times are unix seconds, `daily_usdc` what 24 h of its one offer cost.

    `draining` is our wish, `agent_status` what the host says of itself. `inventory` and `metrics` are JSON of
    `spawn_schemas.link`.
    """

    id: HostId
    name: str
    wallet: Address
    daily_usdc: Usdc
    public_key: str | None = None
    state: HostState = HostState.NEW
    epoch: int = 0
    last_seen: int | None = None
    beat_s: int = BEAT_IDLE_S
    draining: bool = False
    agent_status: str | None = None
    agent_version: str | None = None
    inventory: str | None = None
    metrics: str | None = None
    desired_generation: int = 0
    created_at: int
    registered_at: int | None = None
    revoked_at: int | None = None

    @property
    def takes_rentals(self) -> bool:
        """Whether something may be placed there now."""
        return self.state is HostState.ONLINE and not self.draining and self.agent_status in {None, "online"}


def beat_s(*, rented: bool, hosts: int) -> int:
    """How often a host should speak: to be missed soon, but not more than `BEATS_PER_S` of all together."""
    wanted = BEAT_RENTED_S if rented else BEAT_IDLE_S
    return min(BEAT_PLAIN_S, max(wanted, -(-hosts // BEATS_PER_S)))


def suspect_after_s(beat: int) -> int:
    """The silence from which on a host that should speak each `beat` seconds is suspected."""
    return max(SUSPECT_S, beat + _LATE_S)


def state_after(silence_s: int, beat: int) -> HostState:
    """What a silence of so long means."""
    for limit_s, state in (
        (HIDDEN_S, HostState.HIDDEN),
        (REFUND_S, HostState.REFUNDABLE),
        (OFFLINE_S, HostState.OFFLINE),
        (WARNING_S, HostState.WARNED),
        (suspect_after_s(beat), HostState.SUSPECT),
    ):
        if silence_s >= limit_s:
            return state
    return HostState.ONLINE


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Which hosts are in another state by now. `blames_us`: some are not said to be offline, because too many are."""

    moves: Mapping[HostId, HostState]
    blames_us: bool = False


def judge(hosts: Sequence[Host], now: int, *, listening_since: int) -> Verdict:
    """What the hosts' silence means at `now`; we hear since `listening_since`, and before that nobody was silent.

    Whoever is heard again is online at once, whatever is thought of the others.
    """
    known = [
        h for h in hosts if h.last_seen is not None and h.state not in {HostState.NEW, HostState.REVOKED}
    ]
    silences_s = {host.id: now - max(host.last_seen or 0, listening_since) for host in known}
    ours = _ours([host for host in known if host.state not in SILENT], silences_s)
    wanted = {host.id: state_after(silences_s[host.id], host.beat_s) for host in known if host.id not in ours}
    moves = {h.id: wanted[h.id] for h in known if h.id in wanted and wanted[h.id] is not h.state}
    return Verdict(moves=moves, blames_us=bool(ours))


def _ours(heard: Sequence[Host], silences_s: Mapping[HostId, int]) -> frozenset[HostId]:
    """Those that would be offline now, if so many fell silent with them that it must be we who do not hear.

    Long before the first of them is offline all of them are late: who is nearly so is counted, and nobody has to wait.
    """
    late = [host.id for host in heard if silences_s[host.id] >= OFFLINE_S - MASS_SPREAD_S]
    if len(late) < MASS_LEAST or len(late) * MASS_PART <= len(heard):
        return frozenset()
    return frozenset(name for name in late if OFFLINE_S <= silences_s[name] < OFFLINE_S + MASS_WINDOW_S)


def uptime(observed_s: int, down_s: int) -> float:
    """The part of the time that a host was there; ten minutes are given to everybody. 1.0 where nothing was seen."""
    if observed_s <= 0:
        return 1.0
    return min(1.0, (observed_s - down_s + UPTIME_GRACE_S) / observed_s)


def down_s(outages: Sequence[tuple[int, int | None]], since: int, now: int) -> int:
    """The seconds from `since` to `now` that lie in outages; one without an end goes on."""
    spans = ((max(began, since), min(now if ended is None else ended, now)) for began, ended in outages)
    return sum(max(0, end - begin) for begin, end in spans)


def share_usdc(daily_usdc: Usdc, percent: int) -> Usdc:
    """What of a day's price is its host's, rounded down to whole micro-USDC."""
    return Usdc(daily_usdc * percent // 100)
