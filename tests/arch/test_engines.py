"""What needs an absent engine is skipped by name; where CI demands all engines, no skip passes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import ROOT, Postgres, postgres

NEEDS_NODE = """
from tests.engines import require

def test_needs_node() -> None:
    require("node")
"""
SKIPS_BY_ITSELF = """
import pytest

@pytest.mark.skip(reason="not today")
def test_skipped() -> None: ...
"""
SKIPS_AS_A_MODULE = """
import pytest

pytest.skip("not here", allow_module_level=True)
"""
FAILS_AS_EXPECTED = """
import pytest

@pytest.mark.xfail(strict=True)
def test_known() -> None:
    assert False
"""


def run_pytest(folder: Path, test: str, demand: str | None) -> subprocess.CompletedProcess[str]:
    """Run one test file on a machine without engines: an empty PATH."""
    (folder / "test_it.py").write_text(test)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPAWN_")}
    environment |= {"PATH": str(folder), "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if demand is not None:
        environment["SPAWN_TEST_REQUIRE"] = demand
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-ra"]
    return subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(folder), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("demand", [None, "", "postgresql,docker"])
def test_an_absent_engine_is_skipped_by_name(tmp_path: Path, demand: str | None) -> None:
    run = run_pytest(tmp_path, NEEDS_NODE, demand)
    assert run.returncode == 0, run.stdout
    assert "node is not installed" in run.stdout


@pytest.mark.parametrize("demand", ["all", "node", "docker, node"])
def test_a_demanded_engine_fails_when_absent(tmp_path: Path, demand: str) -> None:
    run = run_pytest(tmp_path, NEEDS_NODE, demand)
    assert run.returncode == 1, run.stdout
    assert "node is not installed, and SPAWN_TEST_REQUIRE demands it" in run.stdout


@pytest.mark.parametrize("test", [SKIPS_BY_ITSELF, SKIPS_AS_A_MODULE])
def test_demanding_all_refuses_every_skip(tmp_path: Path, test: str) -> None:
    assert run_pytest(tmp_path, test, "node").returncode in (0, 5)
    refused = run_pytest(tmp_path, test, "all")
    assert refused.returncode != 0, refused.stdout
    assert "SPAWN_TEST_REQUIRE=all refuses every skip" in refused.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, FAILS_AS_EXPECTED, "all")
    assert run.returncode == 0, run.stdout
    assert "1 xfailed" in run.stdout


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, NEEDS_NODE, "nodejs")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "SPAWN_TEST_REQUIRE names nodejs" in run.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def test_postgres_runs_what_it_is_given(server: Postgres) -> None:
    assert server.psql("SELECT 1;") == ""
    with pytest.raises(RuntimeError, match="syntax error"):
        server.psql("SELEKT 1;")
    assert "syntax error" in server.psql("SELEKT 1;", stop_at_error=False)
