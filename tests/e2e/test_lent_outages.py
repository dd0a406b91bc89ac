"""The link of a lent machine is cut for seconds, minutes and longer than its lease; its service dies in mid-command."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from spawn_hostagent.docker.rentals import LABEL
from spawn_ledger.accounts import wallet_account
from spawn_schemas.ids import ServerId

from spawn.domain.servers import Server
from spawn.store import rentals, servers
from tests.e2e.lending import Lent, Tenant, give_back, lending, link_cut, still_runs, tenant
from tests.e2e.lending_bent import Bent
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside
from tests.interop.service import Mark

HOUR: Final = 3600
DAY: Final = 86_400
LEASE_S: Final = 40
OFFLINE_S: Final = 14
"""A cut of this length is one of minutes, with the patience of a service in life."""
START_S: Final = 8


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine(with_gpus=False) as running:
        yield running


@contextmanager
def lent_here(
    docker: Engine, folder: Path, *, agent: Bent | None = None, service: Bent | None = None
) -> Iterator[Lent]:
    with inside(docker.network), lending(docker, folder, agent=agent, service=service) as made:
        yield made


class Box:
    """A server, as Docker, the books and nobody else know it. `began_s` is from when Docker's events count."""

    def __init__(self, lent: Lent, server_id: str) -> None:
        self.lent, self.id = lent, ServerId(server_id)
        self.began_s = int(time.time()) - 60

    def happened(self, *what: str) -> list[int]:
        """How often Docker did each of these with a container of this server."""
        client = self.lent.engine.client()
        try:
            events = client.events(
                since=self.began_s,
                until=int(time.time()) + 1,
                decode=True,
                filters={"type": "container", "label": f"{LABEL}={self.id}"},
            )
            found = [event["Action"] for event in events]
        finally:
            client.close()
        return [found.count(one) for one in what]

    def state(self) -> str | None:
        """As Docker has it; None where there is no such container."""
        client = self.lent.engine.client()
        try:
            found = client.containers(all=True, filters={"label": f"{LABEL}={self.id}"})
        finally:
            client.close()
        return found[0]["State"] if found else None

    def row(self) -> Server:
        with self.lent.books.books() as tx:
            return servers.get_server(tx, self.id)

    def lease_until(self) -> int:
        with self.lent.books.books() as tx:
            rental = rentals.find(tx, self.id)
        assert rental is not None
        return rental.lease_until

    def orders_sent(self, kind: str) -> int:
        """How many orders of this kind were put on the wire, and have not ended."""
        with self.lent.books.books() as tx:
            found = tx.all(SELECT_SENT, {"id": self.id, "kind": kind})
        return len(found)

    def wait(self, is_so: Callable[[], bool]) -> None:
        self.lent.agent.wait(is_so)


SELECT_SENT: Final = """
SELECT id FROM command WHERE rental_id = :id AND kind = :kind AND sent_at IS NOT NULL AND finished_at IS NULL
"""
SELECT_OUTAGES: Final = "SELECT began_at, ended_at FROM host_outage ORDER BY began_at"
SELECT_BALANCE: Final = """
SELECT COALESCE(SUM(CASE WHEN credit = :account THEN amount ELSE -amount END), 0) AS n
FROM transfer WHERE credit = :account OR debit = :account
"""
SELECT_NEWEST: Final = "SELECT id FROM server ORDER BY created_at DESC, id DESC LIMIT 1"


async def check_money(renter: Tenant, *server_ids: str) -> None:
    """What the tenant ever paid on the chain is in fees, in what these servers burnt, and in the wallet; no more."""
    lent, wallet = renter.lent, renter.shopper._wallet
    moved = await lent.books.moved(wallet.address, Mark(chain=0, ledger=0))
    with lent.books.books() as tx:
        row = tx.one(SELECT_BALANCE, {"account": wallet_account(wallet.address)})
    assert row is not None
    burnt = sum(map(lent.burnt_usdc, server_ids))
    assert sum(transfer.amount for transfer in moved.on_chain) == moved.fee_usdc + burnt + row["n"]
    assert await lent.books.violations() == []


def charged(seconds: int, daily_usdc: int) -> int:
    """What so many seconds cost, whatever stretches they came in."""
    return daily_usdc * seconds // DAY


# --- the link is cut ----------------------------------------------------------------------------------------------


async def test_a_link_cut_for_seconds_for_minutes_and_past_the_lease(docker: Engine, tmp_path: Path) -> None:
    bent = Bent(lease_s=LEASE_S, offline_s=OFFLINE_S, beat_s=1)
    with lent_here(docker, tmp_path, agent=Bent(redial_s=2), service=bent) as lent:
        async with tenant(lent) as renter:
            server = await renter.rent()
            box = Box(lent, server["id"])
            renter.ssh(server, "nohup sleep 3600 >/dev/null 2>&1 & echo $! > /root/pid")
            cut_for_seconds(box)
            still_runs(renter, server)
            assert await renter.shopper._service.violations() == []

            began = box.row().metered_from
            assert began is not None
            paid_s = cut_for_minutes(box) - began
            still_runs(renter, server)

            began = box.row().metered_from
            assert began is not None
            paid_s += cut_past_the_lease(box) - began
            assert renter.ssh(server, "cat /root/pid").strip().isdigit(), "its disk is as it was"

            row = box.row()
            assert row.metered_from is not None
            assert row.charged_until is not None
            paid_s += row.charged_until - row.metered_from
            assert row.charged_usdc == charged(paid_s, row.daily_usdc)
            assert box.happened("create", "start", "die", "destroy") == [1, 2, 1, 0]
            await give_back(renter, server)
            await check_money(renter, server["id"])


def cut_for_seconds(box: Box) -> None:
    """Both ends notice, and nothing comes of it."""
    lent, links = box.lent, box.lent.links()
    with link_cut(lent):
        box.wait(lambda: "The link is down" in lent.agent.log.read_text())
    box.wait(lambda: lent.links() > links)
    assert outages(lent) == []
    assert (box.row().status, box.state()) == ("running", "running")
    assert box.happened("start", "die") == [1, 0]


def cut_for_minutes(box: Box) -> int:
    """Longer than the service's patience, shorter than the lease: it runs on and is free. Until when it was paid."""
    lent, links = box.lent, box.lent.links()
    with link_cut(lent):
        cut_at = int(time.time())
        box.wait(lambda: box.row().status == "unknown")
        assert (box.state(), box.row().charged_until) == ("running", None)
        assert time.time() < box.lease_until(), "this machine is too slow for this lease"
    ((silent_since, _),) = outages(lent)
    assert silent_since <= cut_at + 1
    box.wait(lambda: lent.links() > links and box.row().status == "running")
    ((_, heard_again),) = outages(lent)
    assert heard_again is not None
    assert box.happened("start", "die") == [1, 0]
    return silent_since


def cut_past_the_lease(box: Box) -> int:
    """It is stopped at the lease's end and not before, by its agent alone, and is resumed with the link."""
    lent, links = box.lent, box.lent.links()
    with link_cut(lent):
        box.wait(lambda: box.row().status == "unknown")
        lease_until = box.lease_until()
        box.wait(lambda: box.state() == "exited")
        assert time.time() >= lease_until
        box.wait(lambda: [report["ended_by"] for report in lent.status()["rentals"]] == ["lease"])
        assert box.row().charged_until is None
    (_, (silent_since, _)) = outages(lent)
    box.wait(lambda: lent.links() > links and box.state() == "running" and box.row().status == "running")
    return silent_since


def outages(lent: Lent) -> list[tuple[int, int | None]]:
    with lent.books.books() as tx:
        return [(row["began_at"], row["ended_at"]) for row in tx.all(SELECT_OUTAGES, {})]


# --- the service dies ---------------------------------------------------------------------------------------------


async def test_a_service_that_dies_between_an_order_and_its_result(docker: Engine, tmp_path: Path) -> None:
    with lent_here(docker, tmp_path, agent=Bent(redial_s=2), service=Bent(start_s=START_S)) as lent:
        async with tenant(lent) as renter:
            wish = await renter.wish()
            lost = await expired(renter, wish)
            assert lent.burnt_usdc(lost) == lent.owed_usdc() == 0
            await check_money(renter, lost)

            server_id = await begun_without_it(renter, wish)
            server, box = await renter.look(server_id), Box(lent, server_id)
            renter.ssh(server, "echo kept > /root/kept")
            path = f"/v1/servers/{server_id}"
            await interrupted(renter, "POST", f"{path}/poweroff", "stop_instance")
            assert (box.state(), (await renter.look(server_id))["status"]) == ("exited", "off")
            await interrupted(renter, "POST", f"{path}/start", "resume_instance")
            assert renter.ssh(server, "cat /root/kept") == "kept\n"
            await interrupted(renter, "DELETE", path, "destroy_instance")
            assert box.happened("create", "start", "die", "destroy") == [1, 2, 2, 1]
            await check_money(renter, lost, server_id)


async def begun_without_it(renter: Tenant, wish: object) -> str:
    """A server whose service dies while its host fetches the image, and comes back when the container runs; its id."""
    lent, registry = renter.lent, renter.lent.engine.registry
    lent.engine.forget_base()
    registry.held.clear()
    try:
        asked = len(registry.asked)
        box, body = await ordered(renter, "POST", "/v1/servers", "start_instance", wish)
        box.wait(lambda: any("/blobs/" in path for path in registry.asked[asked:]))
        lent.service.end(signal.SIGKILL)
    finally:
        registry.held.set()
    box.wait(lambda: box.state() == "running")
    lent.service.start()
    await renter.shopper._follow(body)
    return box.id


async def interrupted(renter: Tenant, method: str, path: str, kind: str) -> None:
    """Buy this of a host that stands still; the service dies when the order is on the wire, whoever read it."""
    lent = renter.lent
    lent.agent.tell(signal.SIGSTOP)
    _, body = await ordered(renter, method, path, kind)
    lent.service.end(signal.SIGKILL)
    lent.agent.tell(signal.SIGCONT)
    lent.service.start()
    await renter.shopper._follow(body)


async def ordered(renter: Tenant, method: str, path: str, kind: str, wish: object = None) -> tuple[Box, Any]:
    """Buy this; returned when its order is on the wire."""
    reply = await renter.shopper._client.call(method, path, wish)
    assert reply.status in {200, 201, 202}, reply.body
    with renter.lent.books.books() as tx:
        row = tx.one(SELECT_NEWEST, {})
    assert row is not None
    box = Box(renter.lent, row["id"])
    box.wait(lambda: box.orders_sent(kind) == 1)
    return box, reply.body


async def expired(renter: Tenant, wish: object) -> str:
    """An order that nobody lives to carry out in time: its server fails, nothing ran, and all of it is given back."""
    lent = renter.lent
    lent.agent.tell(signal.SIGSTOP)
    box, body = await ordered(renter, "POST", "/v1/servers", "start_instance", wish)
    by = int(time.time()) + START_S
    lent.service.end(signal.SIGKILL)
    lent.agent.end(signal.SIGKILL)
    lent.service.start()
    box.wait(lambda: time.time() > by)
    lent.agent.start()
    shown = await renter.shopper._http.get(f"/v1/actions/{body['action']['id']}", params={"wait": 30})
    assert shown.json()["action"]["status"] == "error", shown.text
    box.wait(lambda: box.row().ended_at is not None)
    assert box.row().status == "failed"
    assert box.happened("create") == [0]
    return box.id


# --- the clock is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [HOUR, -HOUR])
async def test_a_machine_whose_clock_is_wrong_is_lent_as_any_other(
    docker: Engine, tmp_path: Path, skew_s: int
) -> None:
    """It registers, runs tenants, starts anew without a link, and proves its calls over HTTP while there is none."""
    agent, service = Bent(skew_s=skew_s, fallback_s=1, redial_s=2), Bent(beat_s=1)
    with lent_here(docker, tmp_path, agent=agent, service=service) as lent:
        async with tenant(lent) as renter:
            server = await renter.rent()
            box = Box(lent, server["id"])
            renter.ssh(server, "echo kept > /root/kept")
            with link_cut(lent, http_works=True):
                lent.agent.end(signal.SIGKILL)
                lent.agent.begin()
                one = "/v1/servers/{server_id}"
                await renter.shopper.buy("POST", f"{one}/poweroff", server_id=server["id"])
                assert box.state() == "exited"
                await renter.shopper.buy("POST", f"{one}/start", server_id=server["id"])
                assert not lent.is_connected()
            lent.agent.wait(lent.is_connected)
            assert renter.ssh(server, "cat /root/kept") == "kept\n"
            assert box.happened("create", "start", "die") == [1, 2, 1]
            assert "answered 401" not in lent.agent.log.read_text()
            await give_back(renter, server)
            await check_money(renter, server["id"])
