"""What the documents say about settings, commands and files is so."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from spawn.cli import cli
from spawn.settings import Settings
from tests.engines import ROOT

ROW = re.compile(r"^\| `(SPAWN_\w+)` \| ([^|]+) \|", re.MULTILINE)
TOLD_IN_WORDS = {
    "SPAWN_CDP_KEY_ID",
    "SPAWN_CDP_KEY_SECRET",
    "SPAWN_COMMUNITY_DAILY_USDC",
    "SPAWN_COMMUNITY_HOST",
    "SPAWN_COMMUNITY_IMAGES",
    "SPAWN_EUR_SOURCE",
    "SPAWN_HETZNER_LOCATION",
    "SPAWN_HETZNER_SSH_KEY_NAMES",
    "SPAWN_HETZNER_TOKEN",
    "SPAWN_X402_FACILITATOR_URL",
    "SPAWN_LINK_URL",
    "SPAWN_PUBLIC_URL",
    "SPAWN_RELAY_HOST",
    "SPAWN_RELAY_HTTP_URL",
    "SPAWN_RELAYER_KEY",
    "SPAWN_RPC_URL",
    "SPAWN_SECRET_KEY",
    "SPAWN_TRUSTED_PROXIES",
    "SPAWN_WEBHOOK_NETWORKS",
}
"""Settings whose default is worked out, or is nothing."""
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
CODE_PATH = re.compile(r"`((?:spawn|ledger|schemas|providers|migrations|tests|docs|examples)/[\w./]+\.\w+)`")
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    if path.parent.name != "shared"
)


def documented() -> dict[str, str]:
    rows = ROW.findall((ROOT / "docs" / "settings.md").read_text())
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)), "a setting is described twice"
    return dict(rows)


def test_every_setting_is_described_and_no_other() -> None:
    assert documented().keys() == {f"SPAWN_{name.upper()}" for name in Settings.__struct_fields__}


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: str(field.name))
def test_the_default_is_the_one_described(field: msgspec.structs.FieldInfo) -> None:
    name = f"SPAWN_{field.name.upper()}"
    if name not in TOLD_IN_WORDS:
        assert documented()[name].startswith(f"`{field.default}`")


def commands(group: click.Group, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


@pytest.mark.parametrize("command", list(commands(cli, "spawn")))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"`{command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_only_what_is_there(document: Path) -> None:
    text = document.read_text()
    links = {target for target in LINK.findall(text) if not (document.parent / target).exists()}
    paths = {path for path in CODE_PATH.findall(text) if not (ROOT / path).exists()}
    assert links | paths == set()
