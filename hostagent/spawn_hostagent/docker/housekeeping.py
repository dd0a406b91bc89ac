"""What is done each minute: walls looked at, disks measured, images evicted, half-made things removed.

Invariant: it removes only what never ran and nobody is making: a tenant's disk goes with an explicit `destroy`; where
somebody removed its container by hand, it is found as left over. Its calls block: they belong in a thread.
"""

import os
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
from docker import APIClient
from spawn_schemas.ids import RentalId

from spawn_hostagent.config import Images
from spawn_hostagent.docker import containers
from spawn_hostagent.docker.containers import Found
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


class Housekeeping:
    """For what lies in these places. `used_percent` is of the disk that images lie on.

    `wanted_images` are those that somebody is being started from.
    """

    def __init__(
        self,
        disks: Disks,
        memory: Memory,
        shelf: Shelf,
        rules: Images,
        used_percent: Callable[[], float],
        wanted_images: Callable[[], Iterable[str]],
    ) -> None:
        self._disks, self._memory, self._shelf = disks, memory, shelf
        self._rules = rules
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
            if found.facts.disk_limit == "poll" and used > found.facts.disk_mib and found.pid > 0:
                too_large.append(found)
        return tuple(too_large)

    def remember_kills(self, found: Found) -> None:
        """Write down how many processes the kernel killed for memory: the count goes with the control group."""

        def counted(known: Remembered) -> Remembered:
            after = containers.with_kills(found, known)
            return msgspec.structs.replace(after, began=True) if found.pid > 0 else after

        self._memory.change(found.facts.name, counted)

    def remember_end(self, client: APIClient, found: Found) -> tuple[str, ...]:
        """Docker's events of its last run where they have to say why it stopped; that it ended by itself is kept."""
        name = found.facts.name
        if not is_undecided(found.inspected, self._memory.read(name)):
            return ()
        actions = containers.last_run(client, found)
        if ended_alone(actions):
            finished_at: str = found.inspected["State"]["FinishedAt"]
            self._memory.change(name, lambda known: msgspec.structs.replace(known, ended_alone=finished_at))
        return actions

    def evict(self, client: APIClient) -> tuple[str, ...]:
        """Remove images of ours that were unused for longest, while the disk is over the owner's mark."""

        def kept() -> set[str]:
            # The containers last: whoever was being started before them is one of them now.
            starting = self._wanted_images()
            here = (found.facts.image for found in containers.find_all(client))
            return {*self._rules.prepull, *starting, *here}

        return self._shelf.evict(client, kept, self._used_percent, self._rules.evict_at_percent)


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
    return int(listed[0].get("SizeRw", 0)) // MIB if listed else None
