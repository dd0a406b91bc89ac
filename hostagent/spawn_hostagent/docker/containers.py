"""Making, finding and removing what one rental consists of: container, disk, network, small file.

Invariant: each function may be repeated, and ends where the first call would have; whatever fails half-way leaves only
things with the rental's name on them, which `remove` finds. All of them block: they belong in a thread.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, Final

import docker.errors
import msgspec
import requests
from docker import APIClient
from docker.utils import convert_filters
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import StartInstance

from spawn_hostagent.docker.engine import TIMEOUT_S, said, take_away
from spawn_hostagent.docker.images import Settings
from spawn_hostagent.docker.rentals import (
    LABEL,
    Facts,
    Memory,
    Remembered,
    facts_in,
    labels_of,
)
from spawn_hostagent.walls import networks
from spawn_hostagent.walls.admission import refuse
from spawn_hostagent.walls.disks import Disks
from spawn_hostagent.walls.isolation import Line, Wanted, settings_of
from spawn_hostagent.walls.looks import cgroup_file

STOP_SIGNAL: Final = "SIGTERM"
STOP_GRACE_S: Final = 10
DESCRIBE_S: Final = 10
"""Docker may never answer of one container whose lock it lost; the heartbeat waits for this."""
_ALIVE: Final = ("running", "paused", "restarting")
_NO_TOOLKIT: Final = "could not select device driver"

_log: Final = logging.getLogger(__name__)


class Found(msgspec.Struct, frozen=True):
    """One of our containers: its facts and what Docker says of it now."""

    facts: Facts
    inspected: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.inspected["Id"])

    @property
    def status(self) -> str:
        return str(self.inspected["State"]["Status"])

    @property
    def runs(self) -> bool:
        """Whether there is something to stop."""
        return self.status in _ALIVE

    @property
    def pid(self) -> int:
        """0 where it does not run, or Docker cannot describe it."""
        return int(self.inspected["State"]["Pid"])


def find(client: APIClient, rental_id: RentalId, generation: int) -> Found | None:
    """The container of this generation, if it is here and ours."""
    here = (found for found in find_all(client, rental_id) if found.facts.generation == generation)
    return next(here, None)


def find_all(client: APIClient, rental_id: RentalId | None = None) -> tuple[Found, ...]:
    """All of ours, or of one rental; in the order of their generations.

    One that Docker cannot describe hides none of the others.
    """
    label = LABEL if rental_id is None else f"{LABEL}={rental_id}"
    found = (_described(client, listed) for listed in client.containers(all=True, filters={"label": label}))
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.facts.generation))


def _described(client: APIClient, listed: dict[str, Any]) -> Found | None:
    client.timeout = DESCRIBE_S
    try:
        inspected = client.inspect_container(listed["Id"])
    except docker.errors.NotFound:
        return None
    except (docker.errors.APIError, requests.exceptions.Timeout) as error:
        found = _as_listed(listed)
        if found is not None:
            _log.error("Docker cannot describe %s: %s", found.facts.name, error)
        return found
    finally:
        client.timeout = TIMEOUT_S
    facts = facts_in(inspected["Name"], inspected["Config"]["Labels"])
    return Found(facts, inspected) if facts is not None else None


def _as_listed(listed: dict[str, Any]) -> Found | None:
    """One of ours by what Docker's list alone says.

    That it runs is believed, and it may be stopped like any other. Where it does not, nobody knows why it ended, so
    that it must not be started again: it has failed, until Docker says more. It never counts as gone.
    """
    every = (facts_in(name, listed.get("Labels")) for name in listed.get("Names") or ())
    facts = next((facts for facts in every if facts is not None), None)
    if facts is None:
        return None
    made = datetime.fromtimestamp(listed["Created"], timezone.utc).isoformat()
    status = listed["State"] if listed["State"] in (*_ALIVE, "created") else "dead"
    state = {"Status": status, "Pid": 0, "StartedAt": made, "FinishedAt": made}
    return Found(facts, {"Id": listed["Id"], "Created": made, "State": state})


def environment(order: StartInstance, settings: Settings) -> dict[str, str]:
    """The variables of the container: the tenant's, the keys for our images, and what keeps cards apart."""
    variables = dict(order.env)
    # With NVIDIA's runtime as Docker's default the variable alone decides, and many images set it to `all`.
    variables["NVIDIA_VISIBLE_DEVICES"] = ",".join(order.gpus) or "void"
    if settings.has_sshd and order.host_key is not None:
        variables["SPAWN_HOST_KEY"] = order.host_key.strip()
        variables["SPAWN_SSH_KEYS"] = "\n".join(order.ssh_keys)
    return variables


def create(
    client: APIClient,
    order: StartInstance,
    wanted: Wanted,
    facts: Facts,
    settings: Settings,
    lines: Iterable[Line],
) -> None:
    """Create the container, not yet running. Raises docker.errors.APIError."""
    client.create_container(
        order.image,
        list(order.command) or None,
        name=facts.name,
        hostname=order.hostname,
        environment=environment(order, settings),
        ports=list(order.ports),
        # What an image calls itself is emptied: the owner's own programs obey labels, a reverse proxy for one.
        labels={**dict.fromkeys(settings.labels, ""), **labels_of(facts)},
        stop_signal=STOP_SIGNAL,
        # An image's health check is a program that runs for ever, and nobody asks for its answer.
        healthcheck={"test": ["NONE"]},
        host_config=client.create_host_config(**settings_of(lines, wanted)),
    )


def begin(client: APIClient, name: str, gpus: tuple[str, ...]) -> None:
    """Start what is created, stopped or paused. Raises MachineError: `gpu_unavailable` or `docker_failed`."""
    try:
        if client.inspect_container(name)["State"]["Paused"]:
            client.unpause(name)
        else:
            client.start(name)
    except docker.errors.APIError as error:
        if gpus and (_NO_TOOLKIT in said(error) or "nvidia" in said(error).lower()):
            raise refuse(
                "gpu_unavailable",
                f"Docker cannot give out GPUs here ({said(error)}): install the NVIDIA Container Toolkit.",
            ) from error
        raise refuse("docker_failed", f"the container does not start: {said(error)}") from error


def end(client: APIClient, found: Found, grace_s: int) -> None:
    """Stop it; what is stopped or gone already is no error."""
    try:
        client.stop(found.id, timeout=grace_s)
    except docker.errors.NotFound:
        return


def last_run(client: APIClient, found: Found) -> tuple[str, ...]:
    """What Docker remembers of its last run, in order: the events since it was started, or since Docker was."""
    filters: Any = convert_filters({"container": found.id, "event": ["start", "kill", "die"]})
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    span = {"since": "1", "until": f"{seconds}.{nanoseconds:09}"}
    # The SDK's own call knows whole seconds alone, and waits without an end. Its stub does not show what is under it.
    sdk: Any = client
    answer = sdk._get(sdk._url("/events"), params={**span, "filters": filters})
    sdk._raise_for_status(answer)
    actions: list[str] = []
    for line in answer.text.splitlines():
        action = str(json.loads(line)["Action"])
        actions = [] if action == "start" else [*actions, action]
    return tuple(actions)


def remove(client: APIClient, name: str, disks: Disks, memory: Memory) -> None:
    """Remove everything that has this name: the disk last but one, the small file last, so that a crash is seen."""
    take_away(client, name)
    networks.remove(client, name)
    disks.remove(client, name)
    memory.forget(name)


def names_of(
    client: APIClient, rental_id: RentalId, disks: Disks, memory: Memory
) -> Iterator[tuple[str, int]]:
    """The names, with generations, of all that is left of a rental in any form."""
    networks_here = (
        network["Name"] for network in client.networks(filters={"label": f"{LABEL}={rental_id}"})
    )
    containers_here = (found.facts.name for found in find_all(client, rental_id))
    prefix = f"spawn-{rental_id}-"
    for name in {*networks_here, *containers_here, *disks.names(), *memory.names()}:
        generation = name.removeprefix(prefix)
        if name.startswith(prefix) and generation.isdigit():
            yield name, int(generation)


def with_kills(found: Found, remembered: Remembered) -> Remembered:
    """What is remembered, with the kernel's count of processes killed for memory, while there is a group to ask.

    Docker's own flag is about the first process alone on some engines, and comes only when all has ended on others.
    """
    if found.pid <= 0:
        return remembered
    try:
        file = cgroup_file(found.pid, "memory", "memory.oom_control") or cgroup_file(
            found.pid, "memory", "memory.events"
        )
        lines = file.read_text().splitlines() if file is not None else []
    except OSError:
        return remembered  # it ended while we looked
    counts = dict(line.split() for line in lines)
    kills = max(remembered.out_of_memory_kills, int(counts.get("oom_kill", 0)))
    return msgspec.structs.replace(remembered, out_of_memory_kills=kills)


def traffic(client: APIClient, found: Found) -> tuple[int, int]:
    """Bytes in and out of a running container since it began, as Docker counts them on its interface."""
    try:
        stats: dict[str, Any] = client.stats(found.id, stream=False, one_shot=True)
    except docker.errors.NotFound:
        return 0, 0
    links = (stats.get("networks") or {}).values()
    return sum(link["rx_bytes"] for link in links), sum(link["tx_bytes"] for link in links)


def address_of(client: APIClient, rental_id: RentalId, port: int) -> tuple[str, int]:
    """Where this port of the newest generation is published. Raises MachineError."""
    here = find_all(client, rental_id)
    if not here:
        raise refuse("unknown_rental", "no such rental is on this machine.")
    newest = here[-1]
    if newest.pid <= 0:
        raise refuse("not_running", "the rental does not run.")
    published = newest.inspected["NetworkSettings"]["Ports"].get(f"{port}/tcp")
    if not published:
        raise refuse("invalid", f"the rental was started without port {port}.")
    return str(published[0]["HostIp"]), int(published[0]["HostPort"])
