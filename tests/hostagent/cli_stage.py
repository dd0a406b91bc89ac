"""Owners at their machines: commands run in this process, on a Docker that is a fake and a service that is small."""

import json
import socket
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from spawn_hostagent import main
from spawn_hostagent.machines import MachineError
from spawn_schemas.hosts import RegisterHost, registration_text
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Isolation
from spawn_schemas.orders import Problem, RentalReport

from tests.hostagent.test_identity import HOST, verifies

TOKEN = "spwn_reg_4f2a9c"
RENTAL = RentalId("srv_abc")


class FakeMachines:
    """As far as the commands ask Docker anything."""

    def __init__(self, *rentals: str, tier: str = "runc", broken: bool = False) -> None:
        self.rentals = list(rentals)
        self.tier = tier
        self.broken = broken
        self.destroyed: list[str] = []

    async def isolation(self) -> Isolation:
        return msgspec.convert({"tier": self.tier, "disk_limit": "loop"}, Isolation)

    async def list_rentals(self) -> tuple[RentalReport, ...]:
        if self.broken:
            raise MachineError(Problem(code="docker_failed", message="Docker does not answer."))
        return tuple(
            RentalReport(rental_id=RentalId(name), generation=1, state="running", since=0)
            for name in self.rentals
        )

    async def destroy(self, rental_id: RentalId, generation: int) -> None:
        self.destroyed.append(rental_id)
        self.rentals.remove(rental_id)


class Desk(BaseHTTPRequestHandler):
    """The service's end of registration. The token is good once."""

    server: "DeskServer"

    def do_GET(self) -> None:
        self._answer(200, {"name": "spawn"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/hosts/register":
            self._answer(404, {"error": {"code": "not_found", "message": "There is nothing here."}})
            return
        wanted = msgspec.json.decode(body, type=RegisterHost)
        verifies(
            wanted.public_key, b64decode(wanted.proof), registration_text(wanted.token, wanted.public_key)
        )
        if wanted.token != TOKEN or self.server.keys - {wanted.public_key}:
            refusal = {"code": "forbidden", "message": "This registration token is not good: it was used."}
            self._answer(403, {"error": refusal})
            return
        self.server.keys.add(wanted.public_key)
        self.server.orders.append(wanted)
        if self.server.loses_answers:
            self.server.loses_answers -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        link = f"ws://127.0.0.1:{self.server.server_port}/v1/hosts/link"
        self._answer(201, {"host_id": HOST, "name": "attic", "link_url": link, "heartbeat_interval_s": 30})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *_: object) -> None:
        """Nothing on the tests' stderr."""


class DeskServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.keys: set[str] = set()
        self.orders: list[RegisterHost] = []
        self.loses_answers = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Owner:
    """Runs commands in this process, on a machine whose Docker is a fake."""

    def __init__(self, folder: Path, machines: FakeMachines, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = folder / "etc" / "agent.yaml"
        self.state = folder / "state"
        self.machines = machines
        self._capsys = capsys

    def says(self, *words: str, status: int = 0) -> str:
        """Run it; what it wrote to both, if it ended with this status."""
        self._capsys.readouterr()
        command, *rest = words
        ended = main.main([command, "--config", str(self.config), *rest])
        told = self._capsys.readouterr()
        assert ended == status, told.out + told.err
        assert "Traceback" not in told.err
        if status == 1 and told.err:
            assert len(told.err.strip().splitlines()) == 1, f"more than one line: {told.err}"
        return told.out + told.err

    def write_config(self, service: str = "https://api.example.org", **fields: Any) -> None:
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(yaml.safe_dump({"service": service, "state_dir": str(self.state), **fields}))


def setting_up(owner: Owner, desk: DeskServer, *more: str, token: str = TOKEN) -> list[str]:
    path = owner.config.parent.parent / "token"
    path.write_text(token + "\n")
    return [
        "setup",
        "--service",
        desk.address,
        "--token-file",
        str(path),
        "--state-dir",
        str(owner.state),
        "--despite-checks",
        "--yes",
        *more,
    ]
