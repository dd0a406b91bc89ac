"""What is refused before Docker hears of it: malformed, malicious or immodest orders.

Invariant: pure; whatever passes is safe to hand to Docker and within what the owner lends, all tenants together. The
service is not trusted here: a stolen service must not get more of the machine than its owner gave.
"""

import math
import re
from collections.abc import Iterable
from typing import Final

import msgspec
from spawn_schemas.orders import Problem, StartInstance

from spawn_hostagent.machines import Capacity, MachineError

MEMORY_MIB_MIN: Final = 16
DISK_MIB_MIN: Final = 16
PORTS_MAX: Final = 64
ENV_MAX: Final = 256
ENV_BYTES_MAX: Final = 64 * 1024
ARGUMENTS_MAX: Final = 1024
ARGUMENT_BYTES_MAX: Final = 128 * 1024
KEYS_MAX: Final = 64
KEY_BYTES_MAX: Final = 16 * 1024

_RENTAL: Final = re.compile(r"[a-z0-9][a-z0-9_]{2,62}")
_HOSTNAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_GPU: Final = re.compile(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PUBLIC_KEY: Final = re.compile(r"[\x20-\x7e]{16,16384}")
# `SPAWN_` is how keys reach our images. NVIDIA's hook runs on the host and reads the container's variables: it would
# give all cards to who asks by name, and loaded what `LD_PRELOAD` says (CVE-2025-23266).
_OURS: Final = ("SPAWN_", "NVIDIA_", "LD_PRELOAD", "LD_AUDIT")


class Lent(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner lends, to all tenants together. `gpus` are UUIDs of healthy cards; `up_mbit` None is no limit."""

    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[str, ...] = ()
    rentals: int = 16
    up_mbit: int | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What one rental has of it; a stopped one keeps its part, since it may be resumed.

    What is not `is_rental` is a disk that lost its container.
    """

    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[str, ...] = ()
    is_rental: bool = True


def refuse(code: str, message: str) -> MachineError:
    """The error that says so; `code` is one of `Problem`'s."""
    return MachineError(msgspec.convert({"code": code, "message": message}, Problem))


def check_names(rental_id: str, generation: int) -> None:
    """Refuse what cannot be part of a container's name. Raises MachineError `invalid`."""
    if not _RENTAL.fullmatch(rental_id):
        raise refuse("invalid", "rental_id has to be 3 to 63 of a-z, 0-9 and _.")
    if not 0 <= generation < 2**31:
        raise refuse("invalid", "generation has to be a number from 0 to 2147483647.")


def check_form(order: StartInstance) -> None:
    """Refuse what no honest service sends. Raises MachineError `invalid`."""
    check_names(order.rental_id, order.generation)
    if not _HOSTNAME.fullmatch(order.hostname):
        raise refuse("invalid", "hostname has to be one DNS label: letters, digits and inner hyphens.")
    if not math.isfinite(order.cpus) or order.cpus < 0.01:
        raise refuse("invalid", "cpus has to be 0.01 or more.")
    if order.memory_mib < MEMORY_MIB_MIN or order.disk_mib < DISK_MIB_MIN:
        raise refuse("invalid", f"memory_mib has to be at least {MEMORY_MIB_MIN}, disk_mib {DISK_MIB_MIN}.")
    if order.up_mbit is not None and not 1 <= order.up_mbit <= 1_000_000:
        raise refuse("invalid", "up_mbit has to be from 1 to 1000000.")
    _check_ports(order.ports)
    _check_env(order.env)
    check_arguments(order.command)
    _check_keys(order)
    for gpu in order.gpus:
        if not _GPU.fullmatch(gpu):
            raise refuse("invalid", f"{gpu[:60]!r} is no UUID of a GPU; they look like GPU-xxxxxxxx-xxxx-….")
    if len(set(order.gpus)) != len(order.gpus):
        raise refuse("invalid", "gpus names one twice.")


def _check_ports(ports: tuple[int, ...]) -> None:
    if len(ports) > PORTS_MAX or len(set(ports)) != len(ports):
        raise refuse("invalid", f"ports have to be at most {PORTS_MAX} different ones.")
    if any(not 1 <= port <= 65535 for port in ports):
        raise refuse("invalid", "ports are numbers from 1 to 65535.")


def _check_env(env: dict[str, str]) -> None:
    if (
        len(env) > ENV_MAX
        or sum(len(name) + len(value.encode()) for name, value in env.items()) > ENV_BYTES_MAX
    ):
        raise refuse("invalid", f"env has to be at most {ENV_MAX} variables, {ENV_BYTES_MAX} bytes together.")
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise refuse("invalid", f"{name[:60]!r} is no name of a variable.")
        if name.startswith(_OURS):
            raise refuse(
                "invalid", f"{name[:60]} is not for tenants to set: the host's own programs read it."
            )
        if "\0" in value:
            raise refuse("invalid", f"the value of {name} has a zero byte.")


def check_arguments(arguments: tuple[str, ...]) -> None:
    """Refuse arguments of a program that no system takes. Raises MachineError `invalid`."""
    size = sum(len(argument.encode(errors="surrogatepass")) + 1 for argument in arguments)
    if len(arguments) > ARGUMENTS_MAX or size > ARGUMENT_BYTES_MAX:
        raise refuse(
            "invalid", f"a command has at most {ARGUMENTS_MAX} words and {ARGUMENT_BYTES_MAX} bytes."
        )
    if any("\0" in argument for argument in arguments):
        raise refuse("invalid", "a word of the command has a zero byte.")


def _check_keys(order: StartInstance) -> None:
    if len(order.ssh_keys) > KEYS_MAX or sum(map(len, order.ssh_keys)) > KEY_BYTES_MAX:
        raise refuse("invalid", f"ssh_keys have to be at most {KEYS_MAX}, {KEY_BYTES_MAX} bytes together.")
    if any(not _PUBLIC_KEY.fullmatch(key) for key in order.ssh_keys):
        raise refuse("invalid", "an SSH key is one line of printable characters, as in authorized_keys.")
    if order.host_key is not None and not (
        len(order.host_key) <= KEY_BYTES_MAX
        and order.host_key.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        and "\0" not in order.host_key
    ):
        raise refuse("invalid", "host_key has to be a private key in OpenSSH's form.")


def free(lent: Lent, taken: Iterable[Taken]) -> Capacity:
    """What is lent and not taken. Never less than nothing: an owner may lower his limits under rentals."""
    rows = tuple(taken)
    held = {gpu for row in rows for gpu in row.gpus}
    return Capacity(
        cpus=max(0.0, round(lent.cpus - sum(row.cpus for row in rows), 6)),
        memory_mib=max(0, lent.memory_mib - sum(row.memory_mib for row in rows)),
        disk_mib=max(0, lent.disk_mib - sum(row.disk_mib for row in rows)),
        gpus=tuple(gpu for gpu in lent.gpus if gpu not in held),
        rentals=max(0, lent.rentals - sum(row.is_rental for row in rows)),
    )


def check_room(order: StartInstance, lent: Lent, taken: Iterable[Taken]) -> None:
    """Refuse what is beyond the owner's limits, or does not fit beside the others.

    Raises MachineError: `over_limits` where it would not fit on the empty machine, `no_room` where it does not now,
    `gpu_unavailable` for a card that somebody has.
    """
    left = free(lent, taken)
    asked = (
        ("cpus", order.cpus, lent.cpus, left.cpus),
        ("memory_mib", order.memory_mib, lent.memory_mib, left.memory_mib),
        ("disk_mib", order.disk_mib, lent.disk_mib, left.disk_mib),
    )
    for name, wanted, most, now in asked:
        if wanted > most:
            raise refuse("over_limits", f"{name} {wanted} is more than the {most} that the owner lends.")
        if wanted > now:
            raise refuse("no_room", f"{name} {wanted} does not fit: {now} of {most} are free.")
    if left.rentals < 1:
        raise refuse("no_room", f"the owner takes {lent.rentals} rentals at once, and so many are here.")
    for gpu in order.gpus:
        if gpu not in lent.gpus:
            raise refuse("over_limits", f"{gpu} is not a healthy GPU that the owner lends.")
        if gpu not in left.gpus:
            raise refuse("gpu_unavailable", f"{gpu} is another rental's.")
