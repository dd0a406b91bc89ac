"""Three replicas under load, of which one is killed and one paused every few seconds.

Invariant: one replica at least could answer at any time. Afterwards nothing is lost or doubled (`books`).
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from spawn_schemas.money import parse_usdc

from spawn.services.claims import CLAIM_S
from spawn.store.places import place_of
from tests.chaos.books import Books, come_to_rest, in_cloud, told
from tests.chaos.chains import open_chain
from tests.chaos.customers import Customer, balancing
from tests.chaos.fleet import Fleet, Replica, open_fleet
from tests.integration.receivers import receiving
from tests.wallets import Wallet

LEASE_S: Final = 6
CUSTOMERS: Final = 8
BREATH_S: Final = 2.0
"""Between two mishaps of a kind, at most."""
STOP_EVERY: Final = 3
"""So often a replica is not killed, but told to end: one that holds a lease, which is somebody else's at once then."""
AIMED: Final = 0.5
"""How often others that suffer hold one."""
LONG_EVERY: Final = 3
"""So often a pause is longer than a lease, and than what the server grants to an idle transaction."""
LONGEST_EVERY: Final = 8
"""So often it is longer than a claim on a call; in a short run, never."""
FUNDS: Final = "1000.00"
MISHAPS: Final = ("kills", "stops", "pauses")


class Mishaps:
    """Kills one replica after the other, and lets one after the other stand still: never two things to one of them."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self._suffering: list[Replica] = []

    async def happen(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill(until))
            group.create_task(self._pause(until))

    async def _kill(self, until: float) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            is_stop = count % STOP_EVERY == 0
            with self._victim(leads=is_stop) as replica:
                if is_stop:
                    await asyncio.to_thread(replica.stop)
                else:
                    replica.kill()
                self._fleet.start(replica)
                await asyncio.to_thread(self._fleet.await_up, replica)
            await asyncio.sleep(self._chance.uniform(0, BREATH_S))

    async def _pause(self, until: float) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            pause_s = self._chance.uniform(0.5, 2.5)
            if count % LONG_EVERY == 0:
                pause_s = LEASE_S + 2
            elif count % LONGEST_EVERY == 0:
                pause_s = CLAIM_S + 3
            with self._victim() as replica:
                replica.pause()
                try:
                    await asyncio.sleep(pause_s)
                finally:
                    replica.resume()
            await asyncio.sleep(self._chance.uniform(0, BREATH_S))

    @contextmanager
    def _victim(self, *, leads: bool = False) -> Iterator[Replica]:
        """One that is well. With `leads` it holds a lease, if such a one is well; without, it does so often."""
        well = [one for one in self._fleet.replicas if one not in self._suffering]
        leading = [one for one in self._fleet.holders() if one in well]
        leads = leads or self._chance.random() < AIMED
        replica = self._chance.choice(leading if leads and leading else well)
        self._suffering.append(replica)
        try:
            yield replica
        finally:
            self._suffering.remove(replica)


async def live(fleet: Fleet, *, seconds: float, seed: int) -> list[str]:
    """Let customers and mishaps have so many seconds, and see that all is right; answers what there is to tell."""
    # A sender that was killed is no fault of its receiver, which would tell of it at length.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    chance = random.Random(seed)
    until = time.monotonic() + seconds
    wallets = [Wallet.numbered(number) for number in range(1, CUSTOMERS + 1)]
    for wallet in wallets:
        await fleet.chain.fund(wallet.address, parse_usdc(FUNDS))
    async with receiving() as receiver, balancing(fleet.replicas, chance) as balancer:
        customers = [
            Customer(wallet, balancer, f"{receiver.url}/{wallet.address}", lambda: time.monotonic() >= until)
            for wallet in wallets
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(Mishaps(fleet, chance).happen(until))
            group.create_task(fleet.chain.storm(until, chance))
            for customer in customers:
                group.create_task(customer.live())
        rested = time.monotonic()
        await come_to_rest(fleet.settings, fleet.chain)
        rest_s = time.monotonic() - rested
    await asyncio.to_thread(fleet.stop)
    paid = await fleet.chain.paid()
    with place_of(fleet.settings.database_url).snapshot() as tx:
        books = Books(tx, balancer.calls, paid, await in_cloud(fleet.settings), receiver.accepted)
        books.check(await fleet.chain.balance())
        fleet.chain.check(fleet.settings, tx)
        (terms,) = books.rows("SELECT token FROM lease WHERE name = 'ticker'")
        of_chain = [*fleet.chain.told(tx)]
    mishaps = (f"{sum(getattr(one, what) for one in fleet.replicas)} {what}" for what in MISHAPS)
    return [
        f"seed {seed}: {', '.join(mishaps)}, {terms['token']} terms of the jobs",
        f"at rest {rest_s:.0f} s after the last call; errors in their logs: {_errors(fleet)}",
        *told(balancer.calls),
        f"{len(paid)} payments; {len(receiver.accepted)} messages, {books.repeated_messages()} of them once more",
        *of_chain,
    ]


def _errors(fleet: Fleet) -> dict[str, int]:
    """How many of them each module of the replicas has logged."""
    lines = fleet.log.read_text().splitlines()
    told = (line.partition(" ERROR ")[2] for line in lines)
    return dict(Counter(line.partition(":")[0] for line in told if line))


@contextmanager
def fleet_of_three(folder: Path, chain: str = "devnet") -> Iterator[Fleet]:
    """Three replicas in a hurry, on a chain of this name."""
    with (
        open_chain(chain, folder) as opened,
        open_fleet(
            folder,
            opened,
            lease_s=str(LEASE_S),
            tick_s="0.5",
            burn_every_s="1",
            reconcile_every_s="2",
            simulated_speed="100",
            first_answer_s="2",
            in_flight_wait_s="2",
            webhook_networks="127.0.0.0/8",
            rate_wallet_per_minute="0",
            rate_address_per_minute="0",
            database_connections="4",
            database_retries="0.01",
        ) as fleet,
    ):
        yield fleet
