"""Where our source is, and what it looks like parsed: shared by the tests of the house's shape."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tests.engines import ROOT

PACKAGES: Final = {
    "spawn": ROOT / "spawn",
    "spawn_ledger": ROOT / "ledger" / "spawn_ledger",
    "spawn_providers": ROOT / "providers" / "spawn_providers",
    "spawn_schemas": ROOT / "schemas" / "spawn_schemas",
    "spawn_hostagent": ROOT / "hostagent" / "spawn_hostagent",
}
"""Every package we ship, by the name it is imported under."""

UNSOURCED: Final = ("__pycache__", "node_modules", ".venv", ".git", "*.egg-info", ".*_cache")
"""Names that are made, not written."""


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One source file. `name` is what a report calls it: its path below the root it was found under."""

    name: str
    lines: int
    tree: ast.Module


def read_module(path: Path, root: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(
        name=path.relative_to(root).as_posix(), lines=len(text.splitlines()), tree=ast.parse(text, str(path))
    )


def modules_under(folder: Path, *, root: Path = ROOT) -> Iterator[Module]:
    """Every Python file below `folder`, in a fixed order."""
    for path in sorted(folder.rglob("*.py")):
        if "node_modules" not in path.parts:
            yield read_module(path, root)


def package_modules() -> Iterator[Module]:
    """Every module of every package we ship."""
    for folder in PACKAGES.values():
        yield from modules_under(folder)
