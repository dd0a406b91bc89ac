"""A rental as Docker keeps it: its names, its labels, and the small file beside them for what changes.

Invariant: everything that is needed to adopt a container after a crash is in its labels or in its file, and a container
is ours only if its name says the same as its labels: an image can bring labels of its own, but no name.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import DiskLimit
from spawn_schemas.orders import EndedBy, RentalReport, RentalState, StartInstance

from spawn_hostagent.walls.admission import Taken

LABEL: Final = "sh.spawn.rental"
FACTS: Final = "sh.spawn.facts"
KILLED: Final = 137

_log: Final = logging.getLogger(__name__)


def container_name(rental_id: RentalId, generation: int) -> str:
    """Also the name of its network and of its disk: a second one of the same name collides."""
    return f"spawn-{rental_id}-{generation}"


def rental_in(name: str) -> tuple[RentalId, int] | None:
    """Whose container has this name, and of which generation; None where it is no such name."""
    rental_id, _, generation = name.removeprefix("spawn-").rpartition("-")
    is_ours = name.startswith("spawn-") and rental_id and generation.isdecimal()
    return (RentalId(rental_id), int(generation)) if is_ours else None


def bridge_name(container: str) -> str:
    """The interface on the host: Linux takes 15 characters."""
    return "spw-" + hashlib.sha256(container.encode()).hexdigest()[:11]


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was agreed when it began; a label, which never changes."""

    rental_id: RentalId
    generation: int
    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[str, ...]
    ports: tuple[int, ...]
    up_mbit: int | None
    image: str
    disk_limit: DiskLimit
    disk_path: str
    lease_expires_at: int

    @property
    def name(self) -> str:
        return container_name(self.rental_id, self.generation)

    @property
    def taken(self) -> Taken:
        return Taken(cpus=self.cpus, memory_mib=self.memory_mib, disk_mib=self.disk_mib, gpus=self.gpus)


def facts_of(order: StartInstance, disk_limit: DiskLimit, disk_path: str) -> Facts:
    """The facts that this order makes."""
    return Facts(
        rental_id=order.rental_id,
        generation=order.generation,
        cpus=order.cpus,
        memory_mib=order.memory_mib,
        disk_mib=order.disk_mib,
        gpus=order.gpus,
        ports=order.ports,
        up_mbit=order.up_mbit,
        image=order.image,
        disk_limit=disk_limit,
        disk_path=disk_path,
        lease_expires_at=order.lease_expires_at,
    )


def labels_of(facts: Facts) -> dict[str, str]:
    return {LABEL: facts.rental_id, FACTS: msgspec.json.encode(facts).decode()}


def facts_in(name: str, labels: dict[str, str] | None) -> Facts | None:
    """The facts of a container or network of this name; None if it is not ours."""
    try:
        facts = msgspec.json.decode((labels or {}).get(FACTS, ""), type=Facts)
    except msgspec.DecodeError:
        return None
    return facts if name.lstrip("/") == facts.name else None


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What changes. `began` once it ran; `ended_by` is why it was stopped, written before it is.

    `ended_alone` is the `FinishedAt` of a run that was seen to end by itself: Docker forgets that when it starts anew.
    """

    lease_expires_at: int | None = None
    began: bool = False
    ended_by: EndedBy | None = None
    ended_alone: str | None = None
    out_of_memory_kills: int = 0


class Memory:
    """The small files, one for each container, replaced as a whole. Its calls block: they belong in a thread.

    Of two changes at once neither is lost: a lease may come while a container begins.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()

    def read(self, name: str) -> Remembered:
        """What is known of the container of this name; nothing is known of one without a file.

        Of one whose file is damaged, that it ran: its disk must not go, and no other rental may suffer for it.
        """
        return self._known(name)[0]

    def _known(self, name: str) -> tuple[Remembered, bool]:
        """What is known, and whether its file can be read."""
        path = self._folder / f"{name}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Remembered), True
        except FileNotFoundError:
            return Remembered(), True
        except (msgspec.DecodeError, OSError) as error:
            _log.error(
                "%s is damaged (%s): its lease is what the container and the journal say.", path, error
            )
            return Remembered(began=True), False

    def change(self, name: str, edit: Callable[[Remembered], Remembered]) -> None:
        """Write down what `edit` makes of what is known, unless that is the same; a damaged file is written anew."""
        with self._turn:
            known, is_whole = self._known(name)
            edited = edit(known)
            if edited != known or not is_whole:
                self._write(name, edited)

    def _write(self, name: str, what: Remembered) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._folder / f"{name}.new"
        with unfinished.open("wb") as file:
            file.write(msgspec.json.encode(what))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._folder / f"{name}.json")

    def forget(self, name: str) -> None:
        with self._turn:
            (self._folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self._folder.glob("*.json")))


def report(
    facts: Facts,
    inspected: dict[str, Any],
    remembered: Remembered,
    disk_used_mib: int | None,
    actions: tuple[str, ...] = (),
) -> RentalReport:
    """What is told of a container that Docker describes so; `actions` are Docker's events of its last run."""
    state = inspected["State"]
    status = _status(state["Status"])
    kills = remembered.out_of_memory_kills
    exit_code = int(state["ExitCode"]) if state["Status"] == "exited" else None
    ended_by = _ended_by(state, remembered, actions) if status == "stopped" else None
    moments = {"running": state["StartedAt"], "exited": state["FinishedAt"]}
    return RentalReport(
        rental_id=facts.rental_id,
        generation=facts.generation,
        state=status,
        since=_seconds(moments.get(state["Status"], inspected["Created"])),
        lease_expires_at=remembered.lease_expires_at or facts.lease_expires_at,
        exit_code=exit_code,
        ended_by=ended_by,
        out_of_memory_kills=max(kills, 1) if ended_by == "out_of_memory" else kills,
        disk_used_mib=disk_used_mib,
        gpus=facts.gpus,
        image_digest=facts.image.rpartition("@")[2],
    )


def _status(docker_says: str) -> RentalState:
    states: dict[str, RentalState] = {
        "created": "creating",
        "running": "running",
        # Its owner froze it: it does nothing for who pays.
        "paused": "stopped",
        "restarting": "running",
        "exited": "stopped",
    }
    # `removing` and `dead` are what Docker says of a container that it cannot get rid of.
    return states.get(docker_says, "failed")


def is_undecided(inspected: dict[str, Any], remembered: Remembered) -> bool:
    """Whether it takes Docker's events to say why it stopped."""
    state = inspected["State"]
    is_known = remembered.ended_by is not None or remembered.ended_alone == state["FinishedAt"]
    return state["Status"] == "exited" and not is_known


def ended_alone(actions: tuple[str, ...]) -> bool:
    """Whether a run with these events of Docker ended by itself: Docker saw it end, and nobody had asked it to.

    An exit code would not do: a tenant chooses it. When Docker goes down it stops its containers as `docker stop` does,
    with `kill` before `die`; and of what died while Docker or the machine was down it has no `die` at all.
    """
    return "die" in actions and "kill" not in actions[: actions.index("die")]


def _ended_by(state: dict[str, Any], remembered: Remembered, actions: tuple[str, ...]) -> EndedBy | None:
    """Why it stopped; None where neither the service nor the tenant wanted it."""
    if state["Status"] == "paused":
        return "owner"
    if remembered.ended_by is not None:
        return remembered.ended_by
    if remembered.ended_alone != state["FinishedAt"] and not ended_alone(actions):
        return None
    # OOMKilled alone is not enough: it is true of a container whose child was killed long before it ended by itself,
    # and false on some engines where only a child was.
    starved = state.get("OOMKilled") or remembered.out_of_memory_kills > 0
    return "out_of_memory" if starved and state["ExitCode"] == KILLED else "exit"


def _seconds(moment: str) -> int:
    """Docker's RFC 3339 with nanoseconds, as unix seconds; Python 3.10 reads no more than six digits."""
    return int(datetime.fromisoformat(moment[:19] + "+00:00").timestamp())
