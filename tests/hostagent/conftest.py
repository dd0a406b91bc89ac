"""What several tests of the host agent stand on."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from spawn_hostagent.cli import check as cli_check
from spawn_hostagent.cli import common as cli_common
from spawn_hostagent.cli import setup as cli_setup
from spawn_hostagent.cli import uninstall as cli_uninstall

from tests.hostagent.cli_stage import DeskServer, FakeMachines, Owner
from tests.hostagent.docker_engine import engine
from tests.isolation.arena import Arena, lent


@pytest.fixture
def desk() -> Iterator[DeskServer]:
    with DeskServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def ground() -> Iterator[Arena]:
    """A real engine of this module's own, and managers that lend it out."""
    with engine() as made, lent(made) as opened:
        yield opened


@pytest.fixture
def owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Owner]:
    """Nothing of the real machine is touched but the temporary folder: no unit, no firewall, no program."""
    machines = FakeMachines()
    for module in (cli_common, cli_uninstall):
        monkeypatch.setattr(module, "open_machines", lambda *_: machines)
    for module in (cli_setup, cli_check):
        monkeypatch.setattr(module, "isolation_of", lambda *_: machines.isolation())
    monkeypatch.setattr(cli_uninstall, "UNIT", tmp_path / "units" / "spawn-host.service")
    monkeypatch.setattr(cli_uninstall, "IN_DOCKER", tmp_path / "none")
    monkeypatch.setattr("spawn_hostagent.preflight.programs.run_program", lambda command: None)
    monkeypatch.delenv("SPAWN_HOST_TOKEN", raising=False)
    with open(os.devnull, encoding="utf-8") as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        yield Owner(tmp_path, machines, capsys)
