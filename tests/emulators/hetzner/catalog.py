"""What the emulated Hetzner Cloud sells: locations, server types and images, as they were in autumn 2026.

Which family is sold where is the real rule, the prices of cx23, cx33, cx43 and cpx22 are public ones; all other
prices are made up in proportion. Like the real list, `prices` names more locations than a type can be ordered in.
"""

from typing import Any, Final

import msgspec

Json = dict[str, Any]

TIB: Final = 2**40
VAT: Final = 19
EU: Final = ("fsn1", "nbg1", "hel1")
US: Final = ("ash", "hil")
ASIA: Final = ("sin",)


class Location(msgspec.Struct, frozen=True):
    id: int
    name: str
    description: str
    country: str
    city: str
    latitude: float
    longitude: float
    network_zone: str


LOCATIONS: Final = (
    Location(1, "fsn1", "Falkenstein DC Park 1", "DE", "Falkenstein", 50.47612, 12.370071, "eu-central"),
    Location(2, "nbg1", "Nuremberg DC Park 1", "DE", "Nuremberg", 49.452102, 11.076665, "eu-central"),
    Location(3, "hel1", "Helsinki DC Park 1", "FI", "Helsinki", 60.169855, 24.938379, "eu-central"),
    Location(4, "ash", "Ashburn, VA", "US", "Ashburn, VA", 39.045821, -77.487073, "us-east"),
    Location(5, "hil", "Hillsboro, OR", "US", "Hillsboro, OR", 45.54222, -122.951924, "us-west"),
    Location(6, "sin", "Singapore", "SG", "Singapore", 1.283333, 103.833333, "ap-southeast"),
)


class ServerType(msgspec.Struct, frozen=True, kw_only=True):
    """`sold_in` can be ordered, `listed_in` can be read about; `gone_from` was sold there once."""

    id: int
    name: str
    cores: int
    memory_gb: int
    disk_gb: int
    architecture: str
    cpu_type: str
    monthly_cents: int
    sold_in: tuple[str, ...]
    gone_from: tuple[str, ...] = ()

    @property
    def listed_in(self) -> tuple[str, ...]:
        return self.sold_in + self.gone_from


def _family(
    rows: tuple[tuple[int, str, int, int, int, int], ...],
    sold_in: tuple[str, ...],
    *,
    gone_from: tuple[str, ...] = (),
    architecture: str = "x86",
    cpu_type: str = "shared",
) -> tuple[ServerType, ...]:
    return tuple(
        ServerType(
            id=id_,
            name=name,
            cores=cores,
            memory_gb=memory,
            disk_gb=disk,
            architecture=architecture,
            cpu_type=cpu_type,
            monthly_cents=cents,
            sold_in=sold_in,
            gone_from=gone_from,
        )
        for id_, name, cores, memory, disk, cents in rows
    )


SERVER_TYPES: Final = (
    _family(
        (
            (114, "cx23", 2, 4, 40, 549),
            (115, "cx33", 4, 8, 80, 849),
            (116, "cx43", 8, 16, 160, 1599),
            (117, "cx53", 16, 32, 320, 3049),
        ),
        EU,
    )
    + _family(
        (
            (45, "cax11", 2, 4, 40, 599),
            (93, "cax21", 4, 8, 80, 1049),
            (94, "cax31", 8, 16, 160, 2049),
            (95, "cax41", 16, 32, 320, 4049),
        ),
        EU,
        architecture="arm",
    )
    + _family(
        (
            (22, "cpx11", 2, 2, 40, 699),
            (23, "cpx21", 3, 4, 80, 1399),
            (24, "cpx31", 4, 8, 160, 2499),
            (25, "cpx41", 8, 16, 240, 4649),
            (26, "cpx51", 16, 32, 360, 9199),
        ),
        US,
        gone_from=EU,
    )
    + _family(
        (
            (108, "cpx12", 1, 2, 40, 1149),
            (109, "cpx22", 2, 4, 80, 1949),
            (110, "cpx32", 4, 8, 160, 3549),
            (111, "cpx42", 8, 16, 320, 6949),
            (112, "cpx52", 12, 24, 480, 9999),
            (113, "cpx62", 16, 32, 640, 13899),
        ),
        EU + ASIA,
    )
    + _family(
        (
            (96, "ccx13", 2, 8, 80, 1649),
            (97, "ccx23", 4, 16, 160, 3149),
            (98, "ccx33", 8, 32, 240, 6249),
            (99, "ccx43", 16, 64, 360, 12449),
            (100, "ccx53", 32, 128, 600, 24899),
            (101, "ccx63", 48, 192, 960, 37349),
        ),
        EU + US + ASIA,
        cpu_type="dedicated",
    )
)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    architecture: str
    flavor: str
    version: str | None
    type: str = "system"
    deprecated: bool = False

    @property
    def description(self) -> str:
        return self.name.replace("-", " ").title()


_SYSTEM: Final = (
    ("ubuntu-22.04", "ubuntu", "22.04"),
    ("ubuntu-24.04", "ubuntu", "24.04"),
    ("ubuntu-26.04", "ubuntu", "26.04"),
    ("debian-12", "debian", "12"),
    ("debian-13", "debian", "13"),
    ("fedora-41", "fedora", "41"),
    ("fedora-43", "fedora", "43"),
    ("rocky-9", "rocky", "9"),
    ("rocky-10", "rocky", "10"),
    ("alma-9", "alma", "9"),
    ("alma-10", "alma", "10"),
    ("centos-stream-9", "centos", "stream9"),
    ("centos-stream-10", "centos", "stream10"),
    ("opensuse-16", "opensuse", "16"),
)
_APPS: Final = (("docker-ce", "ubuntu", "24.04"), ("wordpress", "ubuntu", "24.04"))
_END_OF_LIFE: Final = frozenset({"fedora-41"})
"""Deprecated: left out of lists unless asked for, and still to be had."""

IMAGES: Final = tuple(
    Image(
        id=67_794_396 + 2 * place + shift,
        name=name,
        architecture=architecture,
        flavor=flavor,
        version=version,
        type="system" if place < len(_SYSTEM) else "app",
        deprecated=name in _END_OF_LIFE,
    )
    for place, (name, flavor, version) in enumerate(_SYSTEM + _APPS)
    for shift, architecture in enumerate(("x86", "arm"))
)


def included_traffic(location: str) -> int:
    return TIB * (20 if location in EU else 1)


def price(net: str) -> Json:
    """Net, and gross with the value added tax of the project's owner."""
    whole, _, digits = net.partition(".")
    gross = int(whole + digits) * (100 + VAT)
    scale = len(digits) + 2
    text = str(gross).zfill(scale + 1)
    return {"net": f"{net}000000", "gross": f"{text[:-scale]}.{text[-scale:]}"}


def _euros(ten_thousandths: int) -> str:
    return f"{ten_thousandths // 10_000}.{ten_thousandths % 10_000:04}"


def prices(server_type: ServerType) -> list[Json]:
    """Per location; a month costs at most what 624 hours do."""
    rows = []
    for location in LOCATIONS:
        if server_type.architecture == "arm" and location.name in ASIA:
            continue
        monthly = server_type.monthly_cents * 100 * (100 if location.name in EU else 120) // 100
        rows.append(
            {
                "location": location.name,
                "price_hourly": price(_euros(round(monthly / 624))),
                "price_monthly": price(_euros(monthly)),
                "included_traffic": included_traffic(location.name),
                "price_per_tb_traffic": price("7.4000" if location.name in ASIA else "1.0000"),
            }
        )
    return rows
