"""The layers and bans of `.importlinter` hold, and each of them would notice a violation."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.arch.tree import PACKAGES, UNSOURCED, Module, modules_under, package_modules, read_module
from tests.engines import ROOT

LINT_IMPORTS: Final = Path(sys.executable).with_name("lint-imports")
ENVIRONMENT_READERS: Final = {
    "spawn/settings.py",
    "spawn/cli.py",
    "spawn/cli_common.py",
    "hostagent/spawn_hostagent/cli/common.py",
    "hostagent/spawn_hostagent/control/instance.py",  # systemd's own variable
}
THIRD_PARTY_OF_SCHEMAS: Final = {"msgspec", "spawn_schemas"}
THIRD_PARTY_OF_HOSTS: Final = THIRD_PARTY_OF_SCHEMAS | {
    "cryptography",
    "docker",
    "httpx",
    "keyring",
    "psutil",
    "pynvml",
    "requests",  # Docker's SDK speaks by it, and raises what it and urllib3 raise
    "rich",
    "spawn_hostagent",
    "typer",
    "urllib3",
    "websockets",
    "yaml",
}
"""What may be imported on a lent machine besides the standard library; each is in hostagent/pyproject.toml."""

PACKAGES_CONTRACT: Final = "Packages import only what is below them"
DAEMON_CONTRACT: Final = "The service does not know the daemon"
ROOMS_CONTRACT: Final = "Rooms import only what is below them"
PURE_CONTRACT: Final = (
    "The domain and the ledger do no I/O, read no clock, draw no randomness and know no framework"
)
X402_CONTRACT: Final = "The stock x402 client is for tests and examples"
PROVIDERS_CONTRACT: Final = "Concrete providers are named only where the app is built"


class Plant(msgspec.Struct, frozen=True):
    """A module that must not be: where it would lie, what it would say, and which contract forbids it."""

    path: str
    text: str
    contract: str


PLANTS: Final = (
    Plant("spawn_schemas/planted.py", "import spawn_ledger.tx", PACKAGES_CONTRACT),
    Plant("spawn_ledger/planted.py", "import spawn_providers.base", PACKAGES_CONTRACT),
    Plant("spawn_providers/planted.py", "import spawn.domain", PACKAGES_CONTRACT),
    Plant("spawn_hostagent/planted.py", "import spawn.domain", PACKAGES_CONTRACT),
    Plant("spawn_hostagent/planted.py", "import spawn_ledger.tx", PACKAGES_CONTRACT),
    Plant("spawn/services/planted.py", "import spawn_hostagent", DAEMON_CONTRACT),
    Plant("spawn/services/planted.py", "import spawn.api", ROOMS_CONTRACT),
    Plant("spawn/api/planted.py", "import spawn.jobs", ROOMS_CONTRACT),
    Plant("spawn/store/planted.py", "import spawn.services", ROOMS_CONTRACT),
    Plant("spawn/payments/planted.py", "import spawn.store", ROOMS_CONTRACT),
    Plant("spawn/domain/planted.py", "import spawn.store", ROOMS_CONTRACT),
    Plant("spawn/attic.py", "", ROOMS_CONTRACT),
    Plant("spawn/domain/planted.py", "import sqlite3", PURE_CONTRACT),
    Plant("spawn/domain/planted.py", "import litestar", PURE_CONTRACT),
    Plant("spawn/domain/planted.py", "from datetime import datetime", PURE_CONTRACT),
    Plant("spawn_ledger/planted.py", "import time", PURE_CONTRACT),
    Plant("spawn_ledger/planted.py", "def late() -> None:\n    import asyncio", PURE_CONTRACT),
    Plant("spawn/payments/planted.py", "import x402", X402_CONTRACT),
    Plant("spawn_providers/planted.py", "from x402.http import decode", X402_CONTRACT),
    Plant("spawn/services/planted.py", "from spawn_providers.simulated import world", PROVIDERS_CONTRACT),
    Plant(
        "spawn/jobs/planted.py",
        "def late() -> None:\n    import spawn_providers.simulated",
        PROVIDERS_CONTRACT,
    ),
)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of our packages, side by side, under the real contracts."""
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns(*UNSOURCED))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    # The copy's own packages come first: the working directory before what is installed.
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [str(LINT_IMPORTS), "--no-cache", "--no-logo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_contracts_hold(house: Path) -> None:
    run = lint_imports(house)
    assert run.returncode == 0, run.stdout
    assert "0 broken" in run.stdout


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.path}: {plant.text}")
def test_a_violation_breaks_its_contract(house: Path, plant: Plant) -> None:
    (house / plant.path).write_text(plant.text + "\n")
    run = lint_imports(house)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"{plant.contract} BROKEN" in run.stdout


def test_every_contract_has_a_planted_violation() -> None:
    names = [
        line.removeprefix("name = ")
        for line in (ROOT / ".importlinter").read_text().splitlines()
        if line.startswith("name = ")
    ]
    assert sorted(names) == sorted({plant.contract for plant in PLANTS})


def environment_reads(module: Module) -> Iterator[str]:
    """Each place where a module looks at the process's environment."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "getenvb"):
                yield f"{module.name}:{node.lineno}"
            case ast.ImportFrom(module="os", names=names) if any(
                alias.name.removesuffix("b") in {"environ", "getenv"} for alias in names
            ):
                yield f"{module.name}:{node.lineno}"
            case _:
                continue


def test_only_the_settings_read_the_environment() -> None:
    reads = [
        read
        for module in package_modules()
        if module.name not in ENVIRONMENT_READERS
        for read in environment_reads(module)
    ]
    assert reads == []


def imported_names(module: Module) -> Iterator[str]:
    """The top-level name of everything that a module imports."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name.partition(".")[0]
            case _:
                continue


def foreign_imports(module: Module, allowed: set[str]) -> list[str]:
    known = allowed | sys.stdlib_module_names
    return [f"{module.name}: {name}" for name in imported_names(module) if name not in known]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("spawn_schemas", THIRD_PARTY_OF_SCHEMAS), ("spawn_hostagent", THIRD_PARTY_OF_HOSTS)],
)
def test_a_host_needs_few_packages(package: str, allowed: set[str]) -> None:
    found = [
        foreign for module in modules_under(PACKAGES[package]) for foreign in foreign_imports(module, allowed)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["import os\nprint(os.environ)", "from os import environ", "import os\nos.getenv('A')"]
)
def test_a_planted_read_of_the_environment_is_seen(tmp_path: Path, text: str) -> None:
    path = tmp_path / "planted.py"
    path.write_text(text)
    assert list(environment_reads(read_module(path, tmp_path))) != []


def test_a_planted_foreign_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("import json, httpx.auth\nfrom litestar import get\nimport spawn_schemas.ids\n")
    found = foreign_imports(read_module(path, tmp_path), THIRD_PARTY_OF_SCHEMAS)
    assert found == ["planted.py: httpx", "planted.py: litestar"]
