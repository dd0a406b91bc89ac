"""compose.yaml says only what this version understands, and no secret. Nothing here needs Docker or Caddy."""

import ipaddress
import re
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from spawn.setting_reader import read_settings
from tests.engines import ROOT

COMPOSE: Final = (ROOT / "compose.yaml").read_text()
EXAMPLE: Final = (ROOT / "compose.env.example").read_text()
CADDY: Final = (ROOT / "Caddyfile").read_text()
VARIABLE: Final = re.compile(r"\$\{(\w+)(?::\?[^}]*)?\}")
FILLED_IN: Final = {
    "PUBLIC_HOST": "spawn.example",
    "POSTGRES_PASSWORD": "secret",
    "SPAWN_SECRET_KEY": "5a" * 32,
}
REPLICAS: Final = ("spawn-1", "spawn-2", "spawn-3")


def compose() -> dict[str, Any]:
    """The file as compose reads it, with every variable filled in."""
    read: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda found: FILLED_IN[found[1]], COMPOSE))
    return read


def test_every_variable_is_demanded_and_has_its_line_in_the_example_without_a_secret() -> None:
    lines = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if line and not line.startswith("#"))
    assert lines.keys() == {found[1] for found in VARIABLE.finditer(COMPOSE)} == FILLED_IN.keys()
    assert all(":?" in found[0] for found in VARIABLE.finditer(COMPOSE))
    assert {name: value for name, value in lines.items() if value} == {"PUBLIC_HOST": "localhost"}


def test_replicas_are_alike_and_their_settings_are_ones_of_this_version() -> None:
    services = compose()["services"]
    assert services["spawn-1"] == services["spawn-2"] == services["spawn-3"]
    settings = read_settings(services["spawn-1"]["environment"])
    assert settings.database_url.startswith("postgresql://")
    assert settings.authority == "spawn.example"
    assert set(services["spawn-1"]["environment"]) <= {
        f"SPAWN_{name.upper()}" for name in settings.__struct_fields__
    }
    assert services["migrate"]["environment"] == services["spawn-1"]["environment"]


def test_caddy_leads_to_all_replicas_and_they_believe_it_and_nobody_else() -> None:
    services, networks = compose()["services"], compose()["networks"]
    settings = read_settings(services["spawn-1"]["environment"])
    address = ipaddress.ip_address(services["caddy"]["networks"]["inside"]["ipv4_address"])
    assert settings.trusted_networks == (ipaddress.ip_network(address),)
    (subnet,) = networks["inside"]["ipam"]["config"]
    assert address in ipaddress.ip_network(subnet["subnet"])
    _, port = settings.listen_address
    (upstreams,) = re.findall(r"reverse_proxy (.*) \{", CADDY)
    assert upstreams.split() == [f"{name}:{port}" for name in REPLICAS]
    assert {name for name in services if name.startswith("spawn-")} == {*REPLICAS}
    assert set(re.findall(r"\{\$(\w+)\}", CADDY)) <= services["caddy"]["environment"].keys()


def test_what_is_depended_on_is_there_and_is_waited_for_until_it_is_well() -> None:
    read = compose()
    services = read["services"]
    for service in services.values():
        waited_for = service.get("depends_on", {})
        assert {*waited_for} <= services.keys()
        for name, how in waited_for.items() if isinstance(waited_for, dict) else ():
            if how["condition"] == "service_healthy":
                assert "test" in services[name]["healthcheck"]
        named = {mount.partition(":")[0] for mount in service.get("volumes", ())}
        assert {name for name in named if not name.startswith(".")} <= read["volumes"].keys()
        assert {*service["networks"]} <= read["networks"].keys()


def test_only_caddy_is_reached_from_outside_and_the_database_is_inside() -> None:
    services = compose()["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]
    assert services["postgres"]["networks"] == ["inside"]
    assert compose()["networks"]["inside"]["internal"] is True


def test_replicas_have_fewer_connections_than_postgresql_takes() -> None:
    settings = read_settings(compose()["services"]["spawn-1"]["environment"])
    assert len(REPLICAS) * (settings.database_connections + 4) < 97


def test_images_are_plain_names() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    images += [service["image"] for service in compose()["services"].values()]
    assert [image for image in images if not re.fullmatch(r"[a-z]+(:[\w.-]+)?", image)] == []
    for copied in re.findall(r"^COPY (?!--from)(\S+)", dockerfile, re.MULTILINE):
        assert (ROOT / copied).exists()
