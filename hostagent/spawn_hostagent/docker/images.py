"""Images: which may be run, how they come here, and which go when the disk fills up.

Invariant: an image is named by digest, comes from where the owner's list allows, and never from this machine's own
network unless the list names that place. It is one that its registry gives to everybody: the owner's logins are his.
What we pulled we may remove; what the owner pulled we never touch.
"""

import contextlib
import ipaddress
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import docker.errors
import msgspec
from docker import APIClient

from spawn_hostagent.config import Images
from spawn_hostagent.docker.engine import NO_ANSWER, said
from spawn_hostagent.walls.admission import refuse

NAME_MAX: Final = 255
SSHD_LABEL: Final = "sh.spawn.sshd"
DISK_LABEL: Final = "sh.spawn.disk"
DISK_PATH: Final = "/root"
FULL_PERCENT: Final = 95
"""A pull ends here, whatever the owner's mark for eviction: a full disk is a broken machine."""

_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST: Final = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]{1,5})?"
_REFERENCE: Final = re.compile(
    rf"(?P<name>(?:(?P<host>{_HOST})/)?{_PART}(?:/{_PART})*)@(?P<digest>sha256:[0-9a-f]{{64}})"
)
_MOUNT_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
_SYSTEM_PATHS: Final = ("/proc", "/sys", "/dev", "/run", "/tmp", "/etc/hosts", "/etc/resolv.conf")  # noqa: S108
_NOBODY: Final[dict[str, str]] = {}
"""Who asks a registry. The SDK would look for the owner's login, in his configuration and its helpers, if not told."""
_IMAGE_ENV_REFUSED: Final = ("LD_PRELOAD", "LD_AUDIT")

Told = Callable[[int, str], None]

_log: Final = logging.getLogger(__name__)


def check_name(image: str, rules: Images) -> None:
    """Refuse an image that may not run here. Raises MachineError `image_refused`; says what would be allowed."""
    found = _REFERENCE.fullmatch(image) if len(image) <= NAME_MAX else None
    if found is None:
        raise refuse(
            "image_refused", "an image is named name@sha256:… with 64 hex digits: no tag, no scheme."
        )
    name, host = found["name"], _host_of(found["host"])
    # Docker's own short forms: `debian` is docker.io/library/debian.
    full = name if host is not None else f"docker.io/{name if '/' in name else 'library/' + name}"
    naming = tuple(prefix for prefix in rules.allow if prefix)
    if any(_begins(form, prefix) for form in (name, full) for prefix in naming):
        return
    if "" not in rules.allow:
        places = ", ".join(naming)[:300] or "no place"
        raise refuse(
            "image_refused", f"the owner of this machine does not allow {name[:100]}, but images of {places}."
        )
    if host is not None and not _is_public(host):
        raise refuse("image_refused", f"{host} is no public registry, and the owner's list does not name it.")


def _host_of(first: str | None) -> str | None:
    """The registry, if the first part of a name is one: by Docker's rule it has a dot or a port, or is localhost."""
    if first is None or not ("." in first or ":" in first or first == "localhost"):
        return None
    return first


def _begins(name: str, prefix: str) -> bool:
    """Whether the name is in that place: `ghcr.io/acme` does not allow `ghcr.io/acme-evil`."""
    return name == prefix or name.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _is_public(host: str) -> bool:
    """A name with a dot on the usual port. Docker would dial addresses in the owner's LAN from inside his wall."""
    name, _, port = host.partition(":")
    if port not in ("", "443") or "." not in name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        last = name.rpartition(".")[2]
        return not last.isdigit() and last.lower() not in (
            "local",
            "localhost",
            "internal",
            "lan",
            "home",
            "arpa",
        )
    return False


def inspect(client: APIClient, image: str) -> dict[str, Any] | None:
    """What Docker knows of it; None if it is not here."""
    try:
        found: dict[str, Any] = client.inspect_image(image)  # type: ignore[no-untyped-call]  # its stub has no types
    except docker.errors.ImageNotFound:
        return None
    return found


def check_public(client: APIClient, image: str) -> None:
    """Refuse an image that its registry does not give to everybody: what is here may be by a login of the owner's.

    Raises MachineError `image_unavailable`. Blocks for as long as the registry takes to answer.
    """
    try:
        client.inspect_distribution(image, auth_config=_NOBODY)  # type: ignore[no-untyped-call]  # its stub has no types
    except docker.errors.APIError as error:
        raise refuse(
            "image_unavailable",
            f"{image[:200]} is here for the owner, and its registry does not say that it is everybody's: {said(error)}",
        ) from error


def pull(client: APIClient, image: str, tell: Told, used_percent: Callable[[], float]) -> None:
    """Fetch it, telling how far it is. Blocks for as long as that takes.

    Raises MachineError: `image_unavailable`, or `no_room` where the disk gets full; what had come is Docker's to drop.
    """
    layers: dict[str, tuple[int, int]] = {}
    try:
        stream: Any = client.pull(image, stream=True, decode=True, auth_config=_NOBODY)
        # Leaving the stream ends the pull: Docker gives up one that nobody listens to.
        with contextlib.closing(stream):
            for message in stream:
                if "error" in message:
                    raise refuse(
                        "image_unavailable", f"{image[:200]} cannot be pulled: {str(message['error'])[:300]}"
                    )
                if used_percent() >= FULL_PERCENT:
                    raise refuse("no_room", f"{image[:200]} would fill the disk of this machine.")
                _count(layers, message)
                tell(_percent(layers), str(message.get("status", ""))[:100])
    except docker.errors.APIError as error:
        raise refuse("image_unavailable", f"{image[:200]} cannot be pulled: {said(error)}") from error


def _count(layers: dict[str, tuple[int, int]], message: dict[str, Any]) -> None:
    layer, status = str(message.get("id", "")), str(message.get("status", ""))
    if status in ("Pull complete", "Already exists"):
        _, size = layers.get(layer, (1, 1))
        layers[layer] = (size, size)
    elif status in ("Downloading", "Extracting") and (detail := message.get("progressDetail")):
        # Fetching is half of the work, unpacking the other.
        size = int(detail.get("total") or 1)
        done = int(detail.get("current") or 0)
        layers[layer] = ((done if status == "Downloading" else size + done) // 2, size)
    elif status == "Pulling fs layer":
        layers.setdefault(layer, (0, 1))


def _percent(layers: Mapping[str, tuple[int, int]]) -> int:
    total = sum(size for _, size in layers.values())
    return min(99, 100 * sum(done for done, _ in layers.values()) // total) if total else 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What of an image's own settings counts here."""

    has_sshd: bool
    disk_path: str
    labels: tuple[str, ...] = ()
    """The names of those that a container of it would have by itself."""


def settings(inspected: dict[str, Any], *, with_disk: bool, with_gpus: bool) -> Settings:
    """Read them. Raises MachineError `image_refused` for an image that would get around the profile.

    `with_disk`: whether the rental's disk is mounted, which then may stand where the image declares its volume.
    """
    config = inspected.get("Config") or {}
    labels = config.get("Labels") or {}
    volumes = tuple(config.get("Volumes") or ())
    if len(volumes) > (1 if with_disk else 0):
        raise refuse(
            "image_refused",
            f"the image declares volumes ({', '.join(volumes)[:200]}), which Docker makes on the host without a limit.",
        )
    path = volumes[0] if volumes else str(labels.get(DISK_LABEL, DISK_PATH))
    if not _MOUNT_PATH.fullmatch(path) or ".." in path.split("/") or _is_systems(path):
        raise refuse("image_refused", f"the image wants its disk at {path[:100]!r}, which is the system's.")
    names = {str(variable).partition("=")[0] for variable in config.get("Env") or ()}
    if with_gpus and names & set(_IMAGE_ENV_REFUSED):
        raise refuse(
            "image_refused", "the image sets LD_PRELOAD, which NVIDIA's tools on the host would obey."
        )
    return Settings(has_sshd=SSHD_LABEL in labels, disk_path=path, labels=tuple(labels))


def _is_systems(path: str) -> bool:
    return any(path == place or path.startswith(place + "/") for place in _SYSTEM_PATHS)


class Used(msgspec.Struct):
    """When each image that we pulled was last wanted, in unix seconds."""

    at: dict[str, int] = {}


class Shelf:
    """The images that we pulled, and their order of leaving. Its calls block: they belong in a thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._coming: list[str] = []
        self._lock = threading.Lock()

    def _read(self) -> Used:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Used)
        except FileNotFoundError:
            return Used()
        except msgspec.DecodeError as error:
            # Nothing of a tenant hangs on it: images that it named are the owner's from now on, and are left alone.
            _log.error("%s is damaged (%s) and begins anew.", self._file, error)
            self._write(Used())
            return Used()

    def touch(self, image: str, now: int) -> None:
        """It is ours, and was wanted now."""
        with self._lock:
            used = self._read()
            used.at[image] = now
            self._write(used)

    def has(self, image: str) -> bool:
        with self._lock:
            return image in self._read().at

    @contextlib.contextmanager
    def coming(self, client: APIClient, image: str, now: int) -> Iterator[None]:
        """While it is fetched. It is ours from before its first byte: Docker has it before it tells of the last one.

        What is not here afterwards is no longer ours: whoever fetches it then is its owner.
        """
        self._coming.append(image)
        try:
            self.touch(image, now)
            yield
        finally:
            self._coming.remove(image)
            try:
                with self._lock:
                    self._forget_absent(client, self._read())
            except NO_ANSWER as error:
                _log.warning("What was fetched is looked at later: %s", error)

    def _forget_absent(self, client: APIClient, used: Used) -> None:
        absent = [name for name in used.at if name not in self._coming and inspect(client, name) is None]
        for name in absent:
            del used.at[name]
        if absent:
            self._write(used)

    def _write(self, used: Used) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._file.with_suffix(".new")
        with unfinished.open("wb") as file:
            file.write(msgspec.json.encode(used))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._file)

    def evict(
        self,
        client: APIClient,
        kept: Callable[[], Collection[str]],
        used_percent: Callable[[], float],
        mark_percent: int,
    ) -> tuple[str, ...]:
        """Remove what was unused for longest until the disk is below the mark; return what went.

        `kept` is asked before each, since somebody may want an image while another one goes.
        """
        with self._lock:
            return self._evict(client, kept, used_percent, mark_percent)

    def _evict(
        self,
        client: APIClient,
        kept: Callable[[], Collection[str]],
        used_percent: Callable[[], float],
        mark_percent: int,
    ) -> tuple[str, ...]:
        used, gone = self._read(), []
        # A crash in the middle of a pull left its name.
        self._forget_absent(client, used)
        for image in sorted(used.at, key=lambda name: used.at[name]):
            if used_percent() < mark_percent:
                break
            if image in self._coming or image in kept():
                continue
            try:
                client.remove_image(image)
            except docker.errors.ImageNotFound:
                pass
            except docker.errors.APIError as error:
                # A container of the owner's uses it: it is no longer only ours.
                if error.status_code != 409:
                    raise
                continue
            del used.at[image]
            gone.append(image)
        if gone:
            self._write(used)
        return tuple(gone)


def used_percent_of(folder: Path) -> float:
    """How full the disk is that this folder lies on."""
    usage = shutil.disk_usage(folder)
    return 100 * (1 - usage.free / usage.total)
