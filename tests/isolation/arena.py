"""Where attacks are fought: one engine, one tenant under the whole profile, and tenants whose profile lacks a line.

Invariant: a tenant without a line differs from the other in that line alone. Tenants are kept between attacks.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from docker.types import DeviceRequest
from spawn_hostagent.config import Config, Images
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.preflight.versions import RUNC_FIX
from spawn_hostagent.walls.admission import Lent
from spawn_hostagent.walls.firewall import RULES
from spawn_hostagent.walls.isolation import LINES, Line, Wanted
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Isolation
from spawn_schemas.orders import StartInstance

from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import (
    CARRIER,
    GATEWAY,
    HOST,
    INTERNET,
    METADATA,
    NEIGHBOUR,
    RESERVED,
    RESOLVER,
    inside,
)
from tests.isolation.attacks import DISK_MIB, HOST_SERVICE, MEMORY_MIB, SECRET

T = TypeVar("T")

CARDS: Final = ("GPU-00000000-0000-0000-0000-000000000001", "GPU-00000000-0000-0000-0000-000000000002")
RULE_NAMES: Final = frozenset(rule.name for rule in RULES)
FOR_EVER: Final = 2**31
PATIENCE_S: Final = 60


def _opposites(made: Engine, without: frozenset[str]) -> dict[str, dict[str, Any]]:
    """What stands in a line's place where leaving it out is not enough, because Docker's own default is as strict."""
    return {
        "seccomp": {"security_opt": ["seccomp=unconfined"]},
        # What `privileged` is made of: all of it cannot be had where the machine itself lacks a capability.
        "unprivileged": {
            "cap_add": ["SYS_ADMIN", "SYS_PTRACE", "SYS_RAWIO", "NET_ADMIN", "SYSLOG", "MKNOD"],
            "device_cgroup_rules": ["a *:* rwm"],
            "security_opt": ["seccomp=unconfined"],
        },
        "namespaces": {"ipc_mode": "host", "pid_mode": "host", "cgroupns": "host"},
        "network": {"network_mode": "host"},
        "own bridge": {"network_mode": "bridge"},
        "volume": {
            "binds": {made.socket.removeprefix("unix://"): {"bind": "/host/docker.sock", "mode": "rw"}}
        },
        # Docker refuses to publish ports of a container that is in the host's network.
        "ports": {} if "network" in without else {"port_bindings": {22: ("0.0.0.0", 40022)}},  # noqa: S104 - its point
        "restart": {"restart_policy": {"Name": "always"}},
        "gpus": {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]},
    }


def mended(command: list[str]) -> tuple[int, str] | None:
    """Programs of a machine whose distribution mended its runc: what is under attack here is the profile."""
    return (0, f"- Resolves {RUNC_FIX}") if command[0] == "rpm" else None


def _instead(settings: dict[str, Any], _: Wanted) -> dict[str, Any]:
    return settings


async def ignore(percent: int, what: str) -> None:
    """Takes the progress that nobody looks at."""


class Arena:
    def __init__(self, made: Engine, state: Path) -> None:
        self.engine, self._state = made, state
        self.runner = asyncio.Runner()
        self.lent = Lent(cpus=64, memory_mib=65536, disk_mib=65536, gpus=CARDS, rentals=64)
        self.managers: dict[frozenset[str], DockerManager] = {}
        self._tenants: dict[frozenset[str], RentalId] = {}
        self.isolation: Isolation | None = None
        self.resolvers = (RESOLVER,)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the lent machine, as the agent runs there."""
        with inside(self.engine.network):
            return self.runner.run(work)

    def config(self, **more: Any) -> Config:
        return Config(
            service="https://spawn.example",
            state_dir=str(self._state),
            docker_socket=self.engine.socket,
            tenant_dns=self.resolvers,
            images=Images(allow=(f"127.0.0.1:{self.engine.registry.port}/spawn",)),
            **more,
        )

    def order(self, rental_id: str = "srv_attacker", **changes: Any) -> StartInstance:
        usual = StartInstance(
            rental_id=RentalId(rental_id),
            generation=1,
            image=self.engine.base,
            hostname="tenant",
            cpus=0.25,
            memory_mib=MEMORY_MIB,
            disk_mib=DISK_MIB,
            lease_expires_at=FOR_EVER,
            ports=(22,),
            command=("sleep", "3600"),
        )
        return msgspec.structs.replace(usual, **changes)

    def manager(self, without: frozenset[str] = frozenset()) -> DockerManager:
        """One whose tenants lack these lines."""
        if without not in self.managers:
            opposites = _opposites(self.engine, without)
            taken = {"network" if name == "own bridge" else name: name for name in without}
            lines = tuple(
                Line(line.name, "taken away", partial(_instead, opposites.get(taken[line.name], {})))
                if line.name in taken
                else line
                for line in LINES
            )
            made = DockerManager(self.config(), self.lent, lines=lines, run=mended)
            # What is under attack is the profile, not what the canaries say of it.
            made._isolation = self.isolation
            self.managers[without] = made
        return self.managers[without]

    def tenant(self, without: frozenset[str] = frozenset()) -> RentalId:
        """A running tenant whose profile lacks these lines."""
        if without not in self._tenants:
            name = RentalId(f"srv_tenant{len(self._tenants)}")
            self.run(self.manager(without).start(self.order(name), ignore))
            self._tenants[without] = name
        return self._tenants[without]

    def attack(self, script: str, without: frozenset[str] = frozenset()) -> bool:
        """Whether it succeeds there."""
        rental = self.tenant(without - RULE_NAMES)
        manager = self.manager(without - RULE_NAMES)
        # Whoever was killed by what it did is fought again.
        self.run(manager.resume(rental, 1, FOR_EVER))
        with self.walls(without & RULE_NAMES):
            result = self.run(manager.exec(rental, 1, ("sh", "-c", script), PATIENCE_S))
        return "BROKEN" in result.stdout

    @contextmanager
    def walls(self, without: frozenset[str]) -> Iterator[None]:
        """The firewall, but for these rules, as long as this lasts."""
        if not without:
            yield
            return
        weaker = DockerManager(
            self.config(), self.lent, rules=tuple(rule for rule in RULES if rule.name not in without)
        )
        self._put_up(weaker)
        try:
            yield
        finally:
            self._put_up(self.manager())
            weaker.close()

    def _put_up(self, manager: DockerManager) -> None:
        self.run(manager._engine.call_slow(manager._put_up_walls))

    def close(self) -> None:
        for manager in self.managers.values():
            manager.close()
        self.runner.close()


def _stand_up(made: Engine) -> None:
    world = made.world
    world.listen(world.host, "0.0.0.0", HOST_SERVICE)  # noqa: S104 - in a network of the test's own
    world.listen(world.host, HOST, HOST_SERVICE, udp=True)
    for address, port in (
        (GATEWAY, 80),
        (NEIGHBOUR, 445),
        (NEIGHBOUR, 443),
        (RESOLVER, 22),
        (METADATA, 80),
        (METADATA, 443),
        (CARRIER, 80),
        (RESERVED, 80),
        (INTERNET, 443),
        (INTERNET, 25),
        (INTERNET, 465),
        (INTERNET, 587),
    ):
        world.listen(world.outside, address, port)
    world.listen(world.outside, NEIGHBOUR, 5353, udp=True)
    world.listen(world.outside, RESOLVER, 53, udp=True)


@contextmanager
def lent(made: Engine) -> Iterator[Arena]:
    """Managers that lend this engine out, once they know what it can do."""
    opened = Arena(made, made.folder / "state")
    try:
        opened.isolation = opened.run(opened.manager().isolation())
        yield opened
    finally:
        opened.close()


@contextmanager
def arena() -> Iterator[Arena]:
    """With everything standing that must not be reached."""
    secret = Path("/dev/shm") / SECRET  # noqa: S108 - what a tenant must not see
    with ExitStack() as stack:
        made = stack.enter_context(engine())
        _stand_up(made)
        secret.touch()
        stack.callback(secret.unlink, missing_ok=True)
        yield stack.enter_context(lent(made))
