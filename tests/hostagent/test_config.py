"""The owner's configuration: the example names every field, and what is not understood is refused by its name."""

from collections.abc import Iterable, Iterator
from datetime import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from spawn_hostagent.cli.common import open_config
from spawn_hostagent.config import Config, ConfigError, Hours, Limits, load, parse
from spawn_hostagent.failures import Failure
from spawn_hostagent.joining.endpoints import link_address, service_address, speed_address

from tests.engines import ROOT

EXAMPLE = ROOT / "hostagent" / "agent.yaml.example"


def fields_of(kind: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        name = f"{path}{field.encode_name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from fields_of(field.type, f"{name}.")
        else:
            yield name


def keys_of(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_example_is_a_configuration() -> None:
    config = load(EXAMPLE)
    assert config.limits.windows() == (Hours(time(22), time(6)), Hours(time(12), time(13, 30)))
    assert config.known_only


def test_the_example_has_every_field_and_a_word_on_each() -> None:
    text = EXAMPLE.read_text()
    assert set(keys_of(yaml.safe_load(text))) == set(fields_of(Config))
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.strip().startswith("#") and not line.endswith(("limits:", "images:")):
            assert lines[number - 1].strip().startswith("#"), f"nothing explains: {line}"


@pytest.mark.parametrize(
    "name", ["limits.cpus", "limits.memory_gb", "limits.disk_gb", "limits.up_mbit", "runtime"]
)
def test_null_is_no_limit_where_the_example_says_so(name: str) -> None:
    tree = yaml.safe_load(EXAMPLE.read_text())
    *path, last = name.split(".")
    place = tree
    for part in path:
        place = place[part]
    place[last] = None
    parse(yaml.safe_dump(tree), "agent.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("service: https://a.example\ncpu: 4", "unknown field `cpu`"),
        ("service: https://a.example\nlimits: {cpus: -1}", "limits.cpus"),
        ("service: https://a.example\nlimits: {gpus: some}", "limits.gpus"),
        ("service: https://a.example\nlimits: {hours: ['25:00-26:00']}", "22:00-06:00"),
        ("service: https://a.example\nlimits: {hours: ['00:00-00:00']}", "for all day leave hours out"),
        (
            "service: https://a.example\nlimits: {hours: ['08:00-08:00'], strict_hours: true}",
            "covers no minute",
        ),
        ("service: https://a.example\nlimits: {hours: ['24:00-06:00']}", "22:00-06:00"),
        ("service: https://a.example\ntenant_dns: [dns.lan]", "tenant_dns: 'dns.lan'"),
        ("service: https://a.example\ntenant_dns: ['fe80::1']", "IPv4 address"),
        ("service: https://a.example\ntenant_dns: [127.0.0.53]", "tenant_dns"),
        ("service: https://a.example\ntenant_dns: ['9.9.9.9 } ; accept']", "tenant_dns"),
        ("limits: {}", "service"),
        ("service: [", "not YAML"),
        ("- a\n- b", "Expected `object`"),
        ("", "service"),
    ],
)
def test_what_is_not_understood_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, "agent.yaml")
    assert words in str(refused.value)
    assert "agent.yaml" in str(refused.value) or "hours" in str(refused.value)


@pytest.mark.parametrize(
    ("hours", "covered"),
    [
        ("00:00-24:00", range(24)),
        ("22:00-24:00", (22, 23)),
        ("22:00-02:00", (0, 1, 22, 23)),
        ("02:00-04:00", (2, 3)),
    ],
)
def test_hours_may_go_over_midnight_or_up_to_it(hours: str, covered: Iterable[int]) -> None:
    (window,) = Limits(hours=(hours,)).windows()
    assert [hour for hour in range(24) if window.covers(time(hour))] == list(covered)


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`spawn-host setup` writes one"):
        load(tmp_path / "agent.yaml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://api.example.org", "https://api.example.org"),
        ("https://api.example.org/", "https://api.example.org"),
        ("api.example.org", "https://api.example.org"),
        (" https://api.example.org:8443 ", "https://api.example.org:8443"),
        ("http://127.0.0.1:8402", "http://127.0.0.1:8402"),
        ("http://[::1]:8402", "http://[::1]:8402"),
        ("http://localhost:8402", "http://localhost:8402"),
    ],
)
def test_addresses_of_services(text: str, address: str) -> None:
    assert service_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://api.example.org", "not encrypted"),
        ("http://127.0.0.1.example.org", "not encrypted"),
        ("ftp://api.example.org", "begins with https://"),
        ("https://", "not the address"),
        ("https://api.example.org/v1", "not the address"),
        ("https://user@api.example.org", "not the address"),
        ("https://api.example.org:99999", "port"),
        ("", "not the address"),
    ],
)
def test_unsafe_and_senseless_addresses_are_refused(text: str, words: str) -> None:
    with pytest.raises(Failure, match=words):
        service_address(text)


def test_the_address_is_judged_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("service: http://api.example.org\n")
    with pytest.raises(Failure, match="not encrypted"):
        open_config(path)
    path.write_text("service: api.example.org/\n")
    assert open_config(path).service == "https://api.example.org"


@pytest.mark.parametrize(
    "text", ["ws://link.example.org/v1/hosts/link", "https://link.example.org", "nothing"]
)
def test_a_link_in_clear_or_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(Failure):
        link_address(text)


def test_where_to_measure_follows_from_the_link() -> None:
    assert (
        speed_address("wss://link.example.org:8403/v1/hosts/link")
        == "https://link.example.org:8403/v1/hosts/speed/"
    )
    assert speed_address("ws://127.0.0.1:8403/v1/hosts/link") == "http://127.0.0.1:8403/v1/hosts/speed/"
