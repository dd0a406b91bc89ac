"""The three wheels carry what they should, under names that no other distribution can own."""

import ast
import shutil
import subprocess
import sys
import zipfile
from typing import Final

import pytest

from tests.arch.tree import PACKAGES, UNSOURCED
from tests.engines import ROOT

FOLDERS: Final = {"spawn_sh": ".", "spawn_schemas": "schemas", "spawn_host": "hostagent"}
"""Where each distribution is built, by the name its wheel begins with."""
PACKAGES_IN: Final = {
    "spawn_sh": {"spawn", "spawn_ledger", "spawn_providers"},
    "spawn_schemas": {"spawn_schemas"},
    "spawn_host": {"spawn_hostagent"},
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.Path]:
    """Build all three from a copy of the tree."""
    tree = tmp_path_factory.mktemp("wheels") / "tree"
    # Compiled files stay in the copy: a developer's tree has them, and the wheel must not.
    unwanted = [pattern for pattern in UNSOURCED if pattern != "__pycache__"]
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*unwanted))
    for folder in (tree / "migrations", tree / "examples", tree / "spawn"):
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "left_over.cpython-311.pyc").touch()
    built = {}
    for name, source in FOLDERS.items():
        build = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tree / "dist")],
            cwd=tree / source,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert build.returncode == 0, build.stdout + build.stderr
        (path,) = (tree / "dist").glob(f"{name}-*.whl")
        built[name] = zipfile.Path(path)
    return built


def names(wheel: zipfile.Path) -> list[str]:
    return wheel.root.namelist()


def metadata(wheel: zipfile.Path) -> list[str]:
    (name,) = (name for name in names(wheel) if name.endswith(".dist-info/METADATA"))
    return wheel.joinpath(name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_owns_only_our_names(wheels: dict[str, zipfile.Path], name: str) -> None:
    tops = {path.split("/")[0] for path in names(wheels[name])}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES_IN[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_is_typed_and_clean(wheels: dict[str, zipfile.Path], name: str) -> None:
    held = names(wheels[name])
    assert {f"{package}/py.typed" for package in PACKAGES_IN[name]} <= set(held)
    assert [path for path in held if "__pycache__" in path or path.endswith((".db", ".key"))] == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_every_module(wheels: dict[str, zipfile.Path], name: str) -> None:
    wanted = {
        f"{package}/{path.relative_to(PACKAGES[package]).as_posix()}"
        for package in PACKAGES_IN[name]
        for path in PACKAGES[package].rglob("*.py")
    }
    assert wanted - set(names(wheels[name])) == set()


def test_the_service_ships_its_migrations_and_examples(wheels: dict[str, zipfile.Path]) -> None:
    held = set(names(wheels["spawn_sh"]))
    for folder, shipped in (("migrations", "spawn/_migrations"), ("examples", "spawn/_examples")):
        wanted = {
            f"{shipped}/{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*.py")
        }
        assert wanted, f"{folder} is empty"
        assert wanted - held == set()


def test_the_daemon_needs_schemas_and_no_service(wheels: dict[str, zipfile.Path]) -> None:
    lines = metadata(wheels["spawn_host"])
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist:")]
    assert [name for name in needed if name.startswith("spawn")] == ["spawn-schemas==0.1.0"]
    assert not any(
        name.startswith(("litestar", "alembic", "aiosqlite", "psycopg", "uvicorn")) for name in needed
    )
    assert "Requires-Python: >=3.10" in lines


def test_every_wheel_carries_the_licence(wheels: dict[str, zipfile.Path]) -> None:
    for wheel in wheels.values():
        assert "License-Expression: Apache-2.0" in metadata(wheel)
    assert any(path.endswith("licenses/LICENSE") for path in names(wheels["spawn_sh"]))


@pytest.mark.parametrize("package", ["spawn_schemas", "spawn_hostagent"])
def test_what_hosts_run_is_python_3_10(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
