"""Lent machines keep the promises of `spawn_providers.base`, on a real database, with a host that obeys by reports."""

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import msgspec
import pytest
from spawn_ledger.tx import Tx
from spawn_providers.community.provider import CommunityProvider
from spawn_providers.conformance import ProviderConformance
from spawn_schemas import orders
from spawn_schemas.ids import Address, HostId, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.community import InnerPort, Relay, Size
from spawn.domain.hosts import Host, HostState
from spawn.domain.rentals import CommandState
from spawn.services import host_reports
from spawn.services.rentals import Goods, Rentals
from spawn.store import hosts, rentals
from spawn.store.database import Database
from spawn.store.secrets import Vault
from tests import databases
from tests.harness import SeededEntropy, VirtualClock
from tests.integration.scripted_host import INVENTORY

GOODS = Goods(
    host="attic",
    images={name: f"registry.test/{name}@sha256:" + "ab" * 32 for name in ("debian-12", "ubuntu-24.04")},
    size=Size(cores=1, memory_gb=1, disk_gb=10),
    ports=(InnerPort(22, "tcp"), InnerPort(8888, "http")),
    relay=Relay(host="relay.test", ports=range(20_000, 20_100), http_host="apps.test", http_port=443),
    daily_usdc=None,
    share_percent=60,
)
HOST_ID = HostId("host_attic")


class CommunitySubject:
    """A host that carries out what it is told within each stretch of time that passes."""

    def __init__(self, db: Database) -> None:
        self.clock = VirtualClock()
        self._db = db
        self._numbers = count(1)
        self._entropy = SeededEntropy("community")
        self._vault = Vault(bytes(32), self._entropy)
        self.provider = self._open()

    def new_key(self) -> ServerId:
        return ServerId(f"srv_conformance{next(self._numbers)}")

    async def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)
        await self._db.write(self._obey)

    async def reopen(self) -> CommunityProvider:
        return self._open()

    def _open(self) -> CommunityProvider:
        return CommunityProvider(Rentals(self._db, self._vault, self.clock, self._entropy, GOODS))

    def _obey(self, tx: Tx) -> None:
        now = self.clock.now_s()
        for command in host_reports.to_send(tx, self._vault, HOST_ID, now, again_before=now + 1):
            ack = orders.Ack(command_id=command.command_id, state="succeeded")
            host_reports.acknowledged(tx, self._vault, HOST_ID, ack, now)

    async def add_host(self) -> None:
        host = Host(
            id=HOST_ID,
            name="attic",
            wallet=Address("0x" + "0d" * 20),
            daily_usdc=Usdc(1_200_000),
            public_key="A" * 43 + "=",
            state=HostState.ONLINE,
            last_seen=self.clock.now_s(),
            inventory=msgspec.json.encode(INVENTORY).decode(),
            created_at=self.clock.now_s(),
        )
        await self._db.write(lambda tx: hosts.insert(tx, host))


@pytest.fixture
async def subject(tmp_path: Path) -> AsyncIterator[CommunitySubject]:
    url = databases.database_url(tmp_path)
    databases.make(url)
    db = await databases.open_database(url)
    made = CommunitySubject(db)
    await made.add_host()
    yield made
    await db.close()


class TestCommunity(ProviderConformance):
    """The suite finds its fixture in this module."""


async def test_the_order_of_a_machine_carries_its_host_key_and_is_sealed(subject: CommunitySubject) -> None:
    key = subject.new_key()
    vault = subject._vault
    await subject._db.write(lambda tx: vault.put(tx, key, "host_key", "the private half", 1))
    catalog = await subject.provider.catalog()
    from spawn_providers.conformance_steps import spec_for  # noqa: PLC0415 - beside its only use

    op = await subject.provider.create(key, spec_for("lent", "attic", catalog.images[0].name))
    found = await subject._db.read(rentals.SELECT_COMMAND, {"id": op.handle})
    assert rentals.command_from(found[0]).body is None
    (sent,) = await subject._db.write(
        lambda tx: host_reports.to_send(tx, vault, HOST_ID, subject.clock.now_s(), again_before=0)
    )
    assert isinstance(sent.order, orders.StartInstance)
    assert sent.order.host_key == "the private half"


async def test_an_order_that_expired_before_it_was_sent_has_failed(subject: CommunitySubject) -> None:
    catalog = await subject.provider.catalog()
    from spawn_providers.conformance_steps import spec_for  # noqa: PLC0415 - beside its only use

    op = await subject.provider.create(subject.new_key(), spec_for("lent", "attic", catalog.images[0].name))
    await subject.pass_time(10_000)
    [state] = await subject.provider.poll([op.handle])
    assert (state.status.value, state.error_message) == (
        "error",
        "Its host was not there before the order expired",
    )
    found = await subject._db.read(rentals.SELECT_COMMAND, {"id": op.handle})
    assert rentals.command_from(found[0]).state is CommandState.FAILED
