"""A rental's disk where Docker has no quotas: a file of fixed size with an ext4 in it, which Docker mounts.

Invariant: a disk is found by its rental's name, and is removed only by `remove`. The volume names a link to the loop
device, not the device, because its number changes with a reboot; `attach` makes the link right before every start.

Docker mounts it in its own namespace of mounts, so that the agent needs none and what it mounts is gone with Docker.
"""

import contextlib
import json
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final

import docker.errors
from docker import APIClient

from spawn_hostagent.walls.isolation import MIB

_TIMEOUT_S: Final = 120
_MISCOUNTED: Final = "has active mounts"


class DiskError(Exception):
    """The disk was not made or attached; the message has what the failing program said."""


class Disks:
    """Disks of this folder. Its calls block: they belong in a thread."""

    def __init__(self, folder: Path, docker_socket: str) -> None:
        self._folder = folder
        self.lock = folder / "lock"
        """Held by who wants these disks for himself."""
        self._socket = docker_socket.removeprefix("unix://")

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.img"

    def _link(self, name: str) -> Path:
        return self._folder / f"{name}.dev"

    def make(self, client: APIClient, name: str, mib: int, labels: dict[str, str]) -> None:
        """Make the disk, its loop device and its volume; what is there of an earlier try is used. Raises DiskError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file(name)
        if not file.exists():
            unfinished = file.with_suffix(".unfinished")
            with unfinished.open("wb") as made:
                made.truncate(mib * MIB)
            _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(unfinished))
            # Docker copies what the image has at this place onto the disk, if the disk is empty.
            _run("debugfs", "-w", "-R", "rmdir lost+found", str(unfinished))
            unfinished.rename(file)
        self.attach(name)
        options = {"type": "ext4", "device": str(self._link(name)), "o": "nodev,nosuid"}
        client.create_volume(name=name, driver="local", driver_opts=options, labels=labels)

    def attach(self, name: str) -> None:
        """Give the disk a loop device, if it has none. No disk of that name is no error. Raises DiskError."""
        file = self._file(name)
        if not file.exists():
            return
        device = _device_of(file) or _run("losetup", "--find", "--show", str(file)).strip()
        link = self._link(name)
        unfinished = link.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(device)
        unfinished.rename(link)

    def remove(self, client: APIClient, name: str) -> None:
        """Remove volume, device and file. What is gone already is no error. Raises DiskError."""
        try:
            client.remove_volume(name, force=True)
        except docker.errors.NotFound:
            pass
        except docker.errors.APIError as error:
            # Older engines that were restarted under a running container count one mount too many for ever (20.10). The
            # disk goes all the same; the volume's name stays until Docker starts anew, and `remove_stale` runs.
            if _MISCOUNTED not in str(error):
                raise
            self._unmount(client.inspect_volume(name)["Mountpoint"])
        file = self._file(name)
        if file.exists() and (device := _device_of(file)) is not None:
            _run("losetup", "--detach", device)
        for path in (self._link(name), file, file.with_suffix(".unfinished")):
            path.unlink(missing_ok=True)

    def remove_stale(self, client: APIClient, label: str) -> None:
        """Forget volumes of ours whose disks are gone, if Docker lets us by now."""
        volumes = client.volumes(filters={"label": label})["Volumes"] or ()
        # The files last: a disk that is made meanwhile had its file before its volume.
        here = self.names()
        for volume in volumes:
            if volume["Name"] not in here:
                with contextlib.suppress(docker.errors.APIError):
                    client.remove_volume(volume["Name"], force=True)

    def _unmount(self, place: str) -> None:
        """Unmount it where Docker mounted it, which may be a namespace of its own. Raises DiskError."""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(self._socket)
            pid, _, _ = struct.unpack("3i", knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        namespace = f"--mount=/proc/{pid}/ns/mnt"
        if place in _run("nsenter", namespace, "findmnt", "--noheadings", "--output", "TARGET", "--list"):
            _run("nsenter", namespace, "umount", place)

    def names(self) -> tuple[str, ...]:
        """Of all disks, finished or not."""
        found = {path.stem for pattern in ("*.img", "*.unfinished") for path in self._folder.glob(pattern)}
        return tuple(sorted(found))

    def sizes_mib(self) -> dict[str, int]:
        """What each finished disk may grow to, by name, in MiB."""
        sizes = {}
        for path in self._folder.glob("*.img"):
            with contextlib.suppress(FileNotFoundError):  # it goes while we look
                sizes[path.stem] = path.stat().st_size // MIB
        return sizes


def _device_of(file: Path) -> str | None:
    listed = _run("losetup", "--json", "--list", "--output", "NAME", "--associated", str(file))
    devices = json.loads(listed)["loopdevices"] if listed.strip() else []
    return str(devices[0]["name"]) if devices else None


def _run(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are ours
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise DiskError(f"{command[0]} is not installed: install e2fsprogs and util-linux.") from error
    except subprocess.TimeoutExpired as error:
        raise DiskError(f"{command[0]} did not end within {_TIMEOUT_S} s.") from error
    if done.returncode != 0:
        raise DiskError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
    return done.stdout
