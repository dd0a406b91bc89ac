"""A machine is lent, rented by a stock client, reached over SSH through the relay, and given back: with real parts."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lending import REFUSED, Lent, give_back, lending, link_cut, still_runs, tenant
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside
from tests.interop.machines import login_key


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as running:
        yield running


@pytest.fixture
def lent(docker: Engine, tmp_path: Path) -> Iterator[Lent]:
    with inside(docker.network), lending(docker, tmp_path) as made:
        yield made


async def test_a_lent_machine_is_rented_used_and_given_back(lent: Lent, tmp_path: Path) -> None:
    async with tenant(lent) as renter:
        server = await renter.rent()
        assert server["status"] == "running", lent.agent.said()
        assert renter.ssh(server, "hostname; id -u").splitlines() == ["box", "0"]
        (tmp_path / "other").mkdir()
        assert lent.ssh(server, login_key(tmp_path / "other"), "true").returncode == REFUSED
        logs = lent.run_agent("logs", server["id"])
        assert logs.returncode == 0, logs.stderr
        assert "Server listening on" in logs.stdout
        one = "/v1/servers/{server_id}"
        wrote = await renter.shopper.buy("GET", f"{one}/logs", query="?lines=50", server_id=server["id"])
        assert "Server listening on" in wrote["logs"]["text"]
        argv = ["sh", "-c", "hostname; echo oops >&2; exit 3"]
        ran = (await renter.shopper.buy("POST", f"{one}/exec", {"argv": argv}, server_id=server["id"]))["ran"]
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (3, "box\n", "oops\n"), ran
        renter.ssh(server, "echo kept > /root/kept")
        await renter.shopper.buy("POST", "/v1/servers/{server_id}/poweroff", server_id=server["id"])
        assert lent.ssh(server, renter.key, "true").returncode == REFUSED
        await renter.shopper.buy("POST", "/v1/servers/{server_id}/start", server_id=server["id"])
        assert renter.ssh(server, "cat /root/kept") == "kept\n"
        await give_back(renter, server)


async def test_a_rental_outlives_whatever_happens_around_it(lent: Lent) -> None:
    """Agent, engine and service are killed in turn, and the link is cut: the tenant's processes run on."""
    async with tenant(lent) as renter:
        server = await renter.rent()
        renter.ssh(server, "nohup sleep 3600 >/dev/null 2>&1 & echo $! > /root/pid")

        lent.agent.end(signal.SIGKILL)
        lent.agent.start()
        still_runs(renter, server)

        lent.engine.kill()
        lent.engine.start()
        lent.agent.wait(lambda: bool(lent.status()["rentals"]))
        still_runs(renter, server)

        links = lent.links()
        lent.service.end(signal.SIGKILL)
        lent.service.start()
        lent.agent.wait(lambda: lent.links() > links)
        still_runs(renter, server)

        lent.agent.wait(lent.is_connected)
        with link_cut(lent):
            lent.agent.wait(lambda: not lent.status()["connected"])
        lent.agent.wait(lambda: lent.links() > links + 1)
        still_runs(renter, server)
        await give_back(renter, server)
