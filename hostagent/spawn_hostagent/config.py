"""What the owner of a machine decided: which service, what is lent, when, and where the daemon keeps its files.

Invariant: these limits hold whatever the service asks. An unknown or malformed field is refused by its name.
"""

import os
import re
from datetime import time
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from spawn_hostagent.failures import Failure
from spawn_hostagent.walls.firewall import is_resolver

MIB_PER_GB: Final = 1024
DEFAULT_STATE_DIR: Final = Path("/var/lib/spawn-host")
REGISTRIES: Final = (
    "docker.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.gitlab.com",
)
"""Well-known ones; a registry of somebody's own is for the owner to name."""
_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")

Positive = Annotated[float, msgspec.Meta(gt=0)]


class ConfigError(Failure):
    """The file cannot be used; the message says where, why and what to write instead."""


class Hours(msgspec.Struct, frozen=True):
    """A stretch of every day, by the machine's own clock; one that does not end after it began goes over midnight."""

    begin: time
    end: time

    def covers(self, at: time) -> bool:
        if self.begin < self.end:
            return self.begin <= at < self.end
        return at >= self.begin or at < self.end


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be used by all tenants together; None lends all but a reserve for the machine itself.

    `gpus` are UUIDs or indexes, `all` or `none`. `hours` are like `22:00-06:00`: outside of them nothing new starts,
    and with `strict_hours` what runs is stopped.
    """

    cpus: Positive | None = None
    memory_gb: Positive | None = None
    disk_gb: Positive | None = None
    gpus: Literal["all", "none"] | tuple[str | int, ...] = "all"
    hours: tuple[str, ...] = ()
    strict_hours: bool = False
    up_mbit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    rentals: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16

    def windows(self) -> tuple[Hours, ...]:
        """The hours, parsed. Raises ConfigError."""
        return tuple(_window(text) for text in self.hours)


class Images(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images that tenants may run: beginnings of names without tag or digest; "" is any public registry.

    Docker dials what a registry's name, redirects and sign-in lead to, from within the owner's network: those of
    `REGISTRIES` are not for strangers to say. `prepull` are fetched ahead, by digest.

    `evict_at_percent` of the disk used, those unused for longest are removed.
    """

    allow: tuple[str, ...] = REGISTRIES
    prepull: tuple[str, ...] = ()
    evict_at_percent: Annotated[int, msgspec.Meta(ge=10, le=99)] = 85


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`service` is the service's address (`https://…`; plain `http` on loopback only).

    `known_only` refuses tenants where isolation is below the floor; it is the default and only an owner who is his own
    tenant turns it off. `tenant_dns` are the resolvers of tenants; empty, those of the machine.
    """

    service: str
    name: str = ""
    state_dir: str = str(DEFAULT_STATE_DIR)
    docker_socket: str = "unix:///var/run/docker.sock"
    runtime: str | None = None
    known_only: bool = True
    tenant_dns: tuple[str, ...] = ()
    limits: Limits = Limits()
    images: Images = Images()

    @property
    def state(self) -> Path:
        return Path(self.state_dir)


def load(path: Path) -> Config:
    """Read `agent.yaml`. Raises ConfigError."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {os.strerror(error.errno or 0)}. `spawn-host setup` writes one."
        ) from error


def parse(text: str, name: str) -> Config:
    """A configuration from its YAML; `name` is what errors call it. Raises ConfigError."""
    try:
        config = msgspec.convert(yaml.safe_load(text) or {}, Config)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}. The example beside the daemon explains each field.") from error
    config.limits.windows()
    for address in config.tenant_dns:
        if not is_resolver(address):
            raise ConfigError(
                f"{name}: tenant_dns: {address!r} is no resolver that a container can ask: write its IPv4 address."
            )
    return config


def _window(text: str) -> Hours:
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ConfigError(f"limits.hours: {text!r} is not hours of a day: write them like 22:00-06:00.")
    hour, minute, end_hour, end_minute = map(int, found.groups("0"))
    begin, end = time(hour, minute), time(end_hour, end_minute)
    if begin == end and not text.endswith("24:00"):
        raise ConfigError(
            f"limits.hours: {text!r} begins and ends together, and covers no minute: for all day leave hours out."
        )
    return Hours(begin, end)
