"""What is sold of lent machines, from the operator's settings: images, size, ports, and where tenants reach them.

Invariant: pure; a text that cannot be meant raises ValueError with what it should be.
"""

import re
from typing import Final, Literal

import msgspec
from spawn_providers.base import Endpoint
from spawn_schemas.ids import RentalId

_IMAGE: Final = re.compile(r"([a-z0-9.-]{1,64})=([A-Za-z0-9][A-Za-z0-9._/:-]{0,254}@sha256:[0-9a-f]{64})")
_PORT: Final = re.compile(r"([0-9]{1,5})(/http)?")
SSH_PORT: Final = 22
_SERVER: Final = "srv_"


class InnerPort(msgspec.Struct, frozen=True):
    """A port of the container, and how strangers reach it: by a public port of its own, or by a host name."""

    number: int
    kind: Literal["tcp", "http"]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    cores: int
    memory_gb: int
    disk_gb: int


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    """Where tenants reach what they rented: public ports of `host`, and names below `http_host` (empty: none)."""

    host: str
    ports: range
    http_host: str
    http_port: int

    def name_of(self, rental_id: RentalId, port: int) -> str:
        """The first label of the host name that leads to an HTTP port; an id has an underscore, which names lack."""
        return f"p{port}-{rental_id.removeprefix(_SERVER)}"

    def named(self, rental_id: RentalId, port: int) -> Endpoint | None:
        """Where an HTTP port is reached; None where no names are set."""
        if not self.http_host:
            return None
        name = f"{self.name_of(rental_id, port)}.{self.http_host}"
        return Endpoint(port=port, host=name, public_port=self.http_port, kind="http")


def parse_name(label: str) -> tuple[int, RentalId] | None:
    """The port and the rental that the first label of a host name leads to; None for any other label."""
    match = re.fullmatch(r"p([0-9]{1,5})-([a-z0-9]{1,40})", label)
    return None if match is None else (int(match[1]), RentalId(_SERVER + match[2]))


def parse_images(text: str) -> dict[str, str]:
    """`debian-12=registry/debian@sha256:…,…` as the reference of each name. Raises ValueError."""
    images: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _IMAGE.fullmatch(part)
        if match is None or match[1] in images:
            raise ValueError("a comma list of name=reference@sha256:…, no name twice")
        images[match[1]] = match[2]
    return images


def parse_size(text: str) -> Size:
    """`2,4,40`: cores, GB of memory, GB of disk. Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(
        part.isascii() and part.isdigit() and 0 < int(part) < 10_000 for part in parts
    ):
        raise ValueError("cores, GB of memory and GB of disk, such as 2,4,40")
    cores, memory_gb, disk_gb = map(int, parts)
    return Size(cores=cores, memory_gb=memory_gb, disk_gb=disk_gb)


def parse_ports(text: str) -> tuple[InnerPort, ...]:
    """`22,8888/http`. Raises ValueError."""
    ports: list[InnerPort] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PORT.fullmatch(part)
        if (
            match is None
            or not 0 < int(match[1]) < 65_536
            or int(match[1]) in {port.number for port in ports}
        ):
            raise ValueError("a comma list of ports, those by host name with /http, such as 22,8888/http")
        ports.append(InnerPort(int(match[1]), "tcp" if match[2] is None else "http"))
    return tuple(ports)


def parse_range(text: str) -> range:
    """`20000-20999`. Raises ValueError."""
    first, _, last = text.partition("-")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError("two ports, such as 20000-20999")
    if not 1024 <= int(first) <= int(last) < 65_536:
        raise ValueError("ports from 1024 to 65535, the lower one first")
    return range(int(first), int(last) + 1)
