"""What is done each minute: walls looked at, disks measured, images evicted, half-made things removed.

Invariant: it removes only what never ran and nobody is making: a tenant's disk goes with an explicit `destroy`; where
somebody removed its container by hand, it is found as left over. Its calls block: they belong in a thread.
"""

import logging
import os
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any, Final

import docker.errors
import msgspec
from docker import APIClient
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import EndedBy

from spawn_hostagent.ballast import Ballast
from spawn_hostagent.config import Config
from spawn_hostagent.docker import containers
from spawn_hostagent.docker.containers import Found
from spawn_hostagent.docker.engine import said
from spawn_hostagent.docker.images import Shelf
from spawn_hostagent.docker.rentals import (
    LABEL,
    Memory,
    Remembered,
    ended_alone,
    facts_in,
    is_undecided,
    rental_in,
)
from spawn_hostagent.walls.disks import Disks
from spawn_hostagent.walls.isolation import MIB

BESIDE_MIB_MAX: Final = 4
"""A list of hosts or of resolvers is some KiB."""

_log: Final = logging.getLogger(__name__)


class Housekeeping:
    """For what lies in these places. `used_percent` is of the disk that images lie on.

    `wanted_images` are those that somebody is being started from.
    """

    def __init__(
        self,
        disks: Disks,
        memory: Memory,
        shelf: Shelf,
        config: Config,
        used_percent: Callable[[], float],
        wanted_images: Callable[[], Iterable[str]],
    ) -> None:
        self._disks, self._memory, self._shelf = disks, memory, shelf
        self._rules, self._ballast = config.images, Ballast(config.state)
        self._used_percent, self._wanted_images = used_percent, wanted_images
        self.used_mib: dict[str, int] = {}
        """What each container's disk held when it was last measured, by name."""

    def remove_half_made(self, client: APIClient, making: Container[str]) -> None:
        """Remove what a crash left of containers that never ran; `making` has, at any time, the names being made.

        It is looked at after the containers were: whatever left it meanwhile has begun, and says so in its file.
        """
        here = {found.facts.name: found for found in containers.find_all(client)}
        for name, found in here.items():
            if found.status == "created" and name not in making and not self._memory.read(name).began:
                containers.remove(client, name, self._disks, self._memory)
        left = {*self._disks.names(), *self._memory.names(), *_networks(client)} - here.keys()
        for name in left:
            if name not in making and not self._memory.read(name).began:
                containers.remove(client, name, self._disks, self._memory)

    def leftovers(self, client: APIClient, making: Container[str]) -> tuple[tuple[RentalId, int], ...]:
        """What held data and has no container any more, as rentals and generations."""
        here = {found.facts.name for found in containers.find_all(client)}
        left = {*self._disks.names(), *self._memory.names(), *_networks(client)} - here
        return tuple(
            rental
            for name in sorted(left)
            if name not in making
            and self._memory.read(name).began
            and (rental := rental_in(name)) is not None
        )

    def measure(self, client: APIClient) -> tuple[Found, ...]:
        """Measure all disks; return the running containers that have more than they rented and nothing to stop them."""
        too_large = []
        for found in containers.find_all(client):
            used = used_mib(client, found)
            if used is None:
                continue
            self.used_mib[found.facts.name] = used
            is_over = found.facts.disk_limit == "poll" and used > found.facts.disk_mib
            if found.runs and (is_over or beside_mib(found) > BESIDE_MIB_MAX):
                too_large.append(found)
        return tuple(too_large)

    def remember_kills(self, found: Found) -> None:
        """Write down how many processes the kernel killed for memory: the count goes with the control group."""

        def counted(known: Remembered) -> Remembered:
            after = containers.with_kills(found, known)
            return msgspec.structs.replace(after, began=True) if found.runs else after

        self._note(found.facts.name, counted)

    def remember_end(self, client: APIClient, found: Found) -> tuple[str, ...]:
        """Docker's events of its last run where they have to say why it stopped; that it ended by itself is kept."""
        name = found.facts.name
        if not is_undecided(found.inspected, self._memory.read(name)):
            return ()
        actions = containers.last_run(client, found)
        if ended_alone(actions):
            finished_at: str = found.inspected["State"]["FinishedAt"]
            self._note(name, lambda known: msgspec.structs.replace(known, ended_alone=finished_at))
        return actions

    def end(self, client: APIClient, found: Found, grace_s: int, why: EndedBy) -> None:
        """Stop it and write down why, first where that can be: a full disk keeps nobody running."""
        name = found.facts.name

        def ended(known: Remembered) -> Remembered:
            return msgspec.structs.replace(known, ended_by=why)

        self.remember_kills(found)
        is_noted = self._note(name, ended)
        containers.end(client, found, grace_s)
        if not is_noted:
            # It may be who filled the disk, and writes no more: what is given up now is ours.
            self._ballast.give_up()
            self._note(name, ended)

    def _note(self, name: str, edit: Callable[[Remembered], Remembered]) -> bool:
        """Write it down, if the disk takes it; say whether it did. Nothing else waits for that."""
        try:
            self._memory.change(name, edit)
        except OSError as error:
            _log.error("What became of %s cannot be written down: %s", name, error)
            return False
        return True

    def evict(self, client: APIClient) -> tuple[str, ...]:
        """Remove images of ours that were unused for longest, while the disk is over the owner's mark.

        Where there is room, some of it is kept for when there is none.
        """

        def kept() -> set[str]:
            # The containers last: whoever was being started before them is one of them now.
            starting = self._wanted_images()
            here = (found.facts.image for found in containers.find_all(client))
            return {*self._rules.prepull, *starting, *here}

        gone = self._shelf.evict(client, kept, self._used_percent, self._rules.evict_at_percent)
        self._ballast.make()
        return gone


def _networks(client: APIClient) -> set[str]:
    """The names of networks that are ours."""
    listed = client.networks(filters={"label": LABEL})
    return {
        network["Name"] for network in listed if facts_in(network["Name"], network.get("Labels")) is not None
    }


def used_mib(client: APIClient, found: Found) -> int | None:
    """What is on the rental's disk; None where it cannot be told, as of a stopped one whose disk is not mounted."""
    if found.facts.disk_limit == "loop":
        if found.pid <= 0:
            return None
        try:
            size = os.statvfs(Path(f"/proc/{found.pid}/root") / found.facts.disk_path.lstrip("/"))
        except OSError:
            return None  # it ended while we looked
        return (size.f_blocks - size.f_bfree) * size.f_frsize // MIB
    try:
        listed: list[dict[str, Any]] = client.containers(all=True, size=True, filters={"id": found.id})
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as error:
        _log.error("Docker cannot measure %s: %s", found.facts.name, said(error))
        return None
    return int(listed[0].get("SizeRw", 0)) // MIB + beside_mib(found) if listed else None


def beside_mib(found: Found) -> int:
    """What is in the files that Docker keeps for it beside its disk, which no quota counts."""
    used = 0
    for which in ("HostsPath", "HostnamePath", "ResolvConfPath"):
        # From an agent in a container Docker's folder is seen by way of the machine's first process.
        for root in ("/", "/proc/1/root"):
            try:
                file = os.stat(root + str(found.inspected.get(which) or "/nowhere"))
            except OSError:
                continue  # it has none before it was started first
            used += file.st_blocks * 512
            break
    return used // MIB
