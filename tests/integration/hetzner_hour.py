"""A simulated hour of many servers at the emulated Hetzner: their owners look and act, jobs tick, calls are counted.

`make bench-hetzner` runs it with 1,000. Invariant: time passes only second by second, so that whatever the
service would do in an hour it does; who waits, waits in those seconds, and not in ours.
"""

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spawn.payments.sessions import SESSION_S
from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.emulators.hetzner.app import Emulator
from tests.harness import ORDER, VirtualClock, World, open_world
from tests.wallets import Wallet

HOUR_S: Final = 3_600
LOOK_EVERY_S: Final = 60
"""How often an owner asks how its server is."""
RECONCILE_S: Final = 600
DESTROY_EVERY: Final = 10
"""One in so many who act destroys its server and rents another; the others reboot or rebuild theirs."""
DRAINED_AT_S: Final = 1_800
LEFT: Final = 60
"""Calls that are left when somebody else has used up the project's: fewer than are kept from polls."""
_SETTING_UP_S: Final = 4
"""Seconds between two rentals before the hour begins: each costs a call or three."""


@dataclass
class Owner:
    """A wallet, the server that it has now, and the session that it looks at it by, open up to a second."""

    wallet: Wallet
    server: str
    session: str = ""
    until: int = 0


@dataclass
class Counts:
    """What an hour came to. `waits_s` has, for each destroy, the seconds until Hetzner had accepted it."""

    servers: int
    reads: int = 0
    acted: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    fewest_left: int = 0
    waits_s: list[int] = field(default_factory=list)

    @property
    def upstream(self) -> int:
        return self.calls.total()

    def __str__(self) -> str:
        lines = [
            f"servers and wallets            {self.servers:>8,}",
            f"reads by agents                {self.reads:>8,}",
            f"calls of ours to Hetzner       {self.upstream:>8,}   (refused: {self.refused})",
            *(f"  {operation:<40}{count:>6,}" for operation, count in self.calls.most_common()),
            f"fewest calls left              {self.fewest_left:>8,}",
            *(f"owners' {verb:<22} {count:>8,}" for verb, count in sorted(self.acted.items())),
            f"a destroy waited               {max(self.waits_s):>8,} s at most, {len(self.waits_s)} of them",
        ]
        return "\n".join(lines)


async def hour(folder: Path, *, servers: int, acts: int) -> Counts:
    """Rent as many servers, one for each wallet, and let an hour pass in which so many of their owners act.

    Raises AssertionError where a call of an owner fails.
    """
    clock = VirtualClock()
    async with (
        emulated(clock=clock) as hetzner,
        open_world(
            folder,
            clock=clock,
            around=lambda _: hetzner.provider,
            first_answer_s=5.0,
            reconcile_every_s=RECONCILE_S,
        ) as world,
    ):
        owners = [await _settled(world) for _ in range(servers)]
        # What renting them used up has come again.
        clock.advance(HOUR_S)
        return await _Hour(world, hetzner, owners, acts).lived()


async def _settled(world: World) -> Owner:
    wallet = await world.customer("2.00")
    answer = await world.sign(wallet, "POST", "/v1/servers", ORDER | {"deposit": "0.30"})
    assert answer.status_code == 201, answer.text
    for _ in range(_SETTING_UP_S):
        world.clock.advance(1)
        await world.tick("operations")
    return Owner(wallet=wallet, server=answer.json()["server"]["id"])


class _Hour:
    def __init__(self, world: World, hetzner: HetznerSubject, owners: list[Owner], acts: int) -> None:
        self._world = world
        self._emulator: Emulator = hetzner.emulator
        self._owners = owners
        self._acts = {act * HOUR_S // acts: (act, owners[act * len(owners) // acts]) for act in range(acts)}
        self._counts = Counts(servers=len(owners))
        self._next_at = dict.fromkeys(world.service.jobs, 0)
        self._destroyed: list[str] = []
        self._names = itertools.count()

    async def lived(self) -> Counts:
        before = len(self._emulator.log)
        counts = self._counts
        counts.fewest_left = self._emulator.bucket.remaining
        for second in range(HOUR_S):
            if second == DRAINED_AT_S:
                self._emulator.bucket.drain(left=LEFT)
            await self._pass_second(second)
            counts.fewest_left = min(counts.fewest_left, self._emulator.bucket.remaining)
        log = list(self._emulator.log)[before:]
        counts.calls = Counter(entry.operation for entry in log)
        counts.refused = sum(entry.status == 429 for entry in log)
        counts.waits_s = [await self._waited_s(server) for server in self._destroyed]
        await self._world.check_books()
        return counts

    async def _pass_second(self, second: int) -> None:
        """Everybody whose turn it is looks or acts at once, while the jobs tick."""
        looking = self._owners[second % LOOK_EVERY_S :: LOOK_EVERY_S]
        acting = [self._acts[second]] if second in self._acts else []
        await asyncio.gather(
            self._tick(),
            *(self._look(owner) for owner in looking),
            *(self._act(number, owner) for number, owner in acting),
        )

    async def _tick(self) -> None:
        """Each job as often as in life, the first time at once."""
        self._world.clock.advance(1)
        now = self._world.clock.now_s()
        for name, next_at in self._next_at.items():
            if now >= next_at:
                self._next_at[name] = now + max(1, int(self._world.service.jobs[name].every_s))
                await self._world.tick(name)

    async def _look(self, owner: Owner) -> None:
        now = self._world.clock.now_s()
        if now >= owner.until:
            opened = await self._world.sign(owner.wallet, "POST", "/v1/sessions")
            assert opened.status_code == 201, opened.text
            owner.session, owner.until = opened.json()["session"]["token"], now + SESSION_S - LOOK_EVERY_S
        bearer = {"Authorization": f"Bearer {owner.session}"}
        shown = await self._world.http.get(f"/v1/servers/{owner.server}", headers=bearer)
        assert shown.status_code == 200, shown.text
        self._counts.reads += 1

    async def _act(self, number: int, owner: Owner) -> None:
        path = f"/v1/servers/{owner.server}"
        if number % DESTROY_EVERY == 0:
            await self._do("destroy", owner.wallet, "DELETE", path)
            self._destroyed.append(owner.server)
            owner.server = await self._again(owner.wallet)
        elif number % 2 == 0:
            await self._do("rebuild", owner.wallet, "POST", f"{path}/rebuild", {"image": "debian-12"})
        else:
            await self._do("reboot", owner.wallet, "POST", f"{path}/reboot")

    async def _again(self, wallet: Wallet) -> str:
        body: dict[str, Any] = ORDER | {"deposit": "0.30", "name": f"again-{next(self._names)}"}
        answer = await self._do("create", wallet, "POST", "/v1/servers", body)
        server: str = answer["server"]["id"]
        return server

    async def _do(self, verb: str, wallet: Wallet, method: str, path: str, body: object = None) -> Any:
        answer = await self._world.sign(wallet, method, path, body)
        assert answer.status_code in {200, 201, 202}, answer.text
        self._counts.acted[verb] += 1
        return answer.json()

    async def _waited_s(self, server: str) -> int:
        """The seconds from the owner's order to Hetzner's promise."""
        (row,) = await self._world.rows(
            "SELECT created_at, accepted_at FROM operation WHERE server_id = :id AND command = 'destroy_server'",
            id=server,
        )
        assert row["accepted_at"] is not None, f"the destruction of {server} was never accepted"
        waited_s: int = row["accepted_at"] - row["created_at"]
        return waited_s
