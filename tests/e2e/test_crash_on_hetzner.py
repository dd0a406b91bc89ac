"""kill -9 at every write and every call of a create, a resize, a rebuild and a delete at Hetzner, whose answer is lost.

The points are counted in a life without a death; then each is died at by a real process, while the first call that
changes something at Hetzner takes effect and is never answered. The emulator outlives all of it. Afterwards there is
one machine for one server, or none for none, and every micro-dollar is where it should be. Who has no SSH key is told
the root password that the machine has, and the machine was told the host key that the API shows. In one create the
answer that tells of its password is lost too; in another the machine breaks half-way for want of room, is cleared away,
and is ordered in the next place, with a key and user data, and that answer is lost.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from spawn_ledger.accrual import DAY
from spawn_schemas.money import Usdc

from spawn.domain.operations import OperationStatus
from spawn.domain.servers import Command, Status
from tests import databases
from tests.e2e.facts import Facts, look
from tests.e2e.hetzner_victim import ENDPOINT
from tests.e2e.lives import House, Nursery, open_house, open_nursery
from tests.e2e.scenarios import RENT, Client, Scenario
from tests.e2e.victim import settings_of
from tests.e2e.worlds import IDLE_S, POLL_S, mint, payer, sign_payment
from tests.emulators.hetzner.app import Emulator
from tests.emulators.hetzner.faults import ActionFails, Fault, LostAnswer
from tests.emulators.hetzner.serving import serving
from tests.harness import START_S

pytestmark = pytest.mark.embedded

SPEED: Final = 6
"""As fast as the simulated cloud of the other crash tests: a machine boots in a few polls."""
POLLS_MAX: Final = 200
CREATE_FEE, RESIZE_FEE, REBUILD_FEE, DELETE_FEE = Usdc(10_000), Usdc(10_000), Usdc(5_000), Usdc(5_000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call from the balance, and the change at Hetzner that goes wrong: `faults` are what its calls meet, in order.

    `also` is another whose first answer is lost. The change is made once, or as often as `times` says. It is died at
    each point, or where there are very many at `every` so many.
    """

    scenario: Scenario
    lost: str
    is_tenant: bool = True
    has_key: bool = False
    faults: tuple[Fault, ...] = (LostAnswer(),)
    also: str | None = None
    times: int = 1
    every: int = 1


def case(
    name: str, lost: str, method: str, path: str, fee: Usdc, done: Callable[[Facts], bool], **how: Any
) -> Case:
    scenario = Scenario(
        name=name,
        world="",
        method=method,
        path=f"/v1/servers{path}",
        fee=fee,
        key=f"{name}-1",
        done=done,
        truth=lambda _: None,
        body=how.pop("body", None),
    )
    return Case(scenario=scenario, lost=lost, is_tenant=path != "", **how)


RESET: Final = "POST /servers/{id}/actions/reset_password"
SCRIPT: Final = "#!/bin/sh\necho hello\n"
KEY: Final = {
    "name": "laptop",
    "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB",
}
CASES: Final = (
    case(
        "create",
        "POST /servers",
        "POST",
        "",
        CREATE_FEE,
        lambda facts: bool(facts.live),
        body=RENT,
        also=RESET,
    ),
    case(
        "resize",
        "POST /servers/{id}/actions/change_type",
        "POST",
        "/{server}/resize",
        RESIZE_FEE,
        lambda facts: facts.servers[0].type == "medium",
        body={"type": "medium"},
    ),
    case(
        "rebuild",
        "POST /servers/{id}/actions/rebuild",
        "POST",
        "/{server}/rebuild",
        REBUILD_FEE,
        lambda facts: facts.servers[0].image == "debian-12",
        body={"image": "debian-12"},
        also=RESET,
    ),
    case(
        "delete",
        "DELETE /servers/{id}",
        "DELETE",
        "/{server}",
        DELETE_FEE,
        lambda facts: facts.servers[0].status is Status.DESTROYED,
    ),
    case(
        "create elsewhere",
        "POST /servers",
        "POST",
        "",
        CREATE_FEE,
        lambda facts: facts.live[0].location == "ash",
        body=RENT | {"deposit": "1.00", "user_data": SCRIPT, "fallback": [{"location": "ash"}]},
        has_key=True,
        faults=(ActionFails(code="resource_unavailable"), LostAnswer()),
        times=2,
        every=2,
    ),
)


@dataclass
class Trial:
    """One call in a world of its own, with the emulator at its other end."""

    case: Case
    house: House
    emulator: Emulator
    before: Facts
    client: Client

    def look(self) -> Facts:
        return look(self.house.folder, payer().address, self.house.now_s)

    def settle(self) -> None:
        """Let time pass until nothing is under way and every planned death has come."""
        for _ in range(POLLS_MAX):
            busy = any(o.status is OperationStatus.RUNNING for o in self.look().operations)
            if not busy and not self.house.doomed:
                return
            self.house.pass_time(POLL_S if busy else IDLE_S)
        under_way = [o for o in self.look().operations if o.status is OperationStatus.RUNNING]
        raise AssertionError(f"an operation never ended, or a planned death never came: {under_way}")

    def reconcile(self) -> None:
        """Two inventories, and the grace between them."""
        for _ in range(7):
            self.house.pass_time(IDLE_S)

    def check(self) -> None:
        after = self.look()
        assert self.case.scenario.done(after)
        self._check_machines(after)
        assert after.violations == []
        assert after.held_usdc == 0
        fees = after.fees_usdc - self.before.fees_usdc
        assert fees == self.case.scenario.fee
        burnt = _burnt(after, self.before)
        assert self.client.balance() == after.paid_usdc - after.fees_usdc - burnt
        kept = after.paid_usdc - after.fees_usdc - after.burn_usdc
        assert after.available_usdc + after.reserves_usdc == kept

    def check_access(self, answer: httpx.Response) -> None:
        """Its owner can log in and knows whom he meets: the password is told in the answer, or kept until he asks."""
        machines = list(self.emulator.world.servers.values())
        for machine in machines:
            shown = self.client.server(machine.labels["spawn-id"])
            [planted] = shown["ssh_host_keys"]
            told = message_from_string(machine.user_data)
            configs = [c for c in map(_config, told.walk()) if "ssh_keys" in c]
            assert [_public_of(c["ssh_keys"]["ed25519_private"]) for c in configs] == [planted]
            assert (SCRIPT in machine.user_data) is self.case.has_key
            keys = [self.emulator.world.ssh_keys[id_].public_key for id_ in machine.ssh_keys]
            assert keys == ([KEY["public_key"]] if self.case.has_key else [])
            password = answer.json().get("root_password") or shown["root_password"]
            if self.case.has_key:
                assert password is None
            elif self.case.scenario.name != "resize":
                assert password == machine.root_password is not None

    def _check_machines(self, after: Facts) -> None:
        """One machine for a server that lives, and no address without a machine."""
        with self.emulator.lock:
            there = list(self.emulator.world.servers.values())
            addresses = len(self.emulator.world.primary_ips)
        assert len(after.servers) == 1
        assert [(m.labels["spawn-id"], str(m.id)) for m in there] == [
            (s.id, s.provider_ref) for s in after.live
        ]
        assert addresses == 2 * len(there)
        done = len([e for e in self.emulator.calls(self.case.lost) if e.fault or (e.status or 500) < 300])
        if self.case.lost == "POST /servers":
            # Who orders again finds the name taken, which is no second machine.
            done = len(there) + len(self.emulator.world.gone)
        assert done == self.case.times, "it was done too often"
        for server, machine in zip(after.live, there, strict=True):
            assert machine.image is not None
            found = (machine.status, machine.server_type.name, machine.image.name)
            assert found == (server.status.value, server.provider_type, server.image)
        assert {o.status for o in after.operations} == {OperationStatus.SUCCESS}


def _burnt(after: Facts, before: Facts) -> int:
    """What the server has cost: exact by the second, at two prices if it was resized, and an hour at least."""
    (server,) = after.servers
    created = next(o for o in after.operations if o.command is Command.CREATE)
    ended = next((o.created_at for o in after.operations if o.command is Command.DESTROY), None)
    assert created.accepted_at is not None
    until = after.now_s if ended is None else ended
    turn = until if after.resized_at is None else after.resized_at
    first = before.servers[0].daily_usdc if before.servers else server.daily_usdc
    owed = first * (turn - created.accepted_at) + server.daily_usdc * (until - turn)
    return max(owed // DAY, 0 if ended is None else -(-first // 24))


@contextmanager
def trial(nursery: Nursery, folder: Path, case: Case, *deaths: int) -> Iterator[Trial]:
    """The call, ready to be made, in a new world; its answer from Hetzner will be lost."""
    folder.mkdir()
    houses: list[House] = []

    def now_ms() -> int:
        passed_s = houses[0].now_s - START_S if houses else 0
        return (START_S + SPEED * passed_s) * 1_000

    emulator = Emulator(now_ms)
    settings = settings_of(folder, nursery.url)
    databases.make(settings.database_url)
    mint(settings)
    try:
        with serving(emulator) as endpoint:
            (folder / ENDPOINT).write_text(endpoint)
            with open_house(nursery, folder, START_S, deaths) as house:
                houses.append(house)
                yield _ready(case, house, emulator)
    finally:
        shutil.rmtree(folder)


def _ready(case: Case, house: House, emulator: Emulator) -> Trial:
    path, body = "/v1/balance/deposit", {"amount": "20.00"}
    payment = sign_payment(house, "POST", path, body, nonce=1)
    paid = house.request("POST", path, json=body, headers={"PAYMENT-SIGNATURE": payment})
    assert paid.is_success, paid.text
    before = look(house.folder, payer().address, house.now_s)
    if case.is_tenant:
        rented = Client(payer(), CASES[0].scenario, house, "/v1/servers", None).send()
        assert rented.status_code == 201, rented.text
        while any(o.status is OperationStatus.RUNNING for o in before.operations) or not before.servers:
            house.pass_time(POLL_S)
            before = look(house.folder, payer().address, house.now_s)
    path = case.scenario.path.format(server=before.servers[0].id if before.servers else "")
    scenario = case.scenario
    if case.has_key:
        register = replace(scenario, path="/v1/ssh-keys", body=KEY, key="key-1")
        known = Client(payer(), register, house, register.path, None).send()
        assert known.status_code == 201, known.text
        scenario = replace(
            scenario, body={**(scenario.body or {}), "ssh_keys": [known.json()["ssh_key"]["id"]]}
        )
        before = look(house.folder, payer().address, house.now_s)
    emulator.faults.plan(case.lost, *case.faults)
    if case.also is not None:
        emulator.faults.plan(case.also, LostAnswer())
    house.arm()
    return Trial(case, house, emulator, before, Client(payer(), scenario, house, path, None))


def _config(part: Message) -> dict[str, Any]:
    """A part of user data that is a cloud-config of ours."""
    payload = part.get_payload(decode=True)
    head, _, body = (payload if isinstance(payload, bytes) else b"").partition(b"\n")
    return json.loads(body) if head == b"#cloud-config" else {}


def _public_of(private: str) -> str:
    key = load_ssh_private_key(private.encode(), None)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture(scope="module")
def victims() -> Iterator[Nursery]:
    with open_nursery("tests.e2e.hetzner_victim") as nursery:
        yield nursery


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.scenario.name)
def test_a_call_whose_answer_is_lost_is_done_once_whenever_the_service_dies(
    victims: Nursery, tmp_path: Path, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    with trial(victims, tmp_path / "0", case) as whole:
        answer = whole.client.insist()
        assert answer.is_success, answer.text
        whole.settle()
        points = whole.house.passed()
        whole.check()
        whole.check_access(answer)
    killed: list[str] = []
    for point in range(1, len(points) + 1, case.every):
        with trial(victims, tmp_path / str(point), case, point) as one:
            answer = one.client.insist()
            assert answer.is_success, answer.text
            one.settle()
            one.reconcile()
            one.check()
            one.check_access(answer)
            killed += one.house.killed
    assert len(killed) == len(range(0, len(points), case.every))
    assert any("write" in name for name in killed)
    with capsys.disabled():
        print(f"\n  {case.scenario.name} at Hetzner: {len(killed)} killed", end=" ")
