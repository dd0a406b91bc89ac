"""Random lives on the real service: whatever owners, clocks and a job that sleeps do, nobody's server dies unwarned.

Every life is one wallet with a few servers, lived through the use cases; what is asserted is read off the events.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final

import pytest
from spawn_ledger.verify import verify
from spawn_providers.catalog import TB
from spawn_schemas.ids import Address, ServerId

from spawn.domain.servers import Reason, Server
from spawn.domain.warnings import Policy
from tests.harness import START_S
from tests.integration.living import Told, Town

pytestmark = pytest.mark.embedded

HOUR, DAY = 3_600, 86_400
LAST_S: Final = 6 * HOUR
TICK_S: Final = 10
LIVES: Final = int(os.environ.get("SPAWN_TEST_LIVES", "300"))
"""The goal counts ten thousand."""
TYPES: Final = ("small", "medium", "large")


class Life:
    """One wallet, poor enough that its servers end soon, and the moments at which the burn job looked at it."""

    def __init__(self, town: Town, wallet: Address, random: Random) -> None:
        self.town = town
        self.wallet = wallet
        self.random = random
        self.looks: list[int] = []
        self.sent: dict[ServerId, int] = {}
        self.back_s = 0
        """By how much the clock was set back in all."""

    def live(self) -> None:
        self.town.pay_in(self.wallet, self.random.randrange(600_000, 4_000_000))
        for _ in range(self.random.randint(1, 4)):
            self._rent()
        for _ in range(self.random.randint(8, 40)):
            self._pass()
            self._act()
        for _ in range(4_000):
            due_at = self.town.due_at()
            if due_at is None:
                break
            self._tick_at(max(due_at, self.town.now + TICK_S))
        assert self.town.metered() == [], "everybody runs out of money in the end"
        self._bury()

    def _bury(self) -> None:
        for server_id in self.town.dying():
            self.town.obey(server_id)

    def _rent(self) -> None:
        self.town.rent(
            self.wallet,
            self.random.choice(TYPES),
            self.random.randrange(400_000, 1_500_000),
            auto_renew=self.random.random() < 0.7,
        )

    def _pass(self) -> None:
        """Up to two days go by: the burn job ticks whenever somebody is due, or sleeps; the clock may be set back."""
        end = self.town.now + round(2 ** self.random.uniform(0, 17.4))
        if self.random.random() < 0.8:
            for _ in range(60):
                due_at = self.town.due_at()
                if due_at is None or due_at > end:
                    break
                self._tick_at(max(due_at, self.town.now + TICK_S))
        self.town.now = max(end, self.town.now)
        if self.random.random() < 0.05:
            step_s = self.random.choice((1, 30, 3_000))
            self.town.now -= step_s
            self.back_s += step_s
            self._tick_at(self.town.now)

    def _tick_at(self, at: int) -> None:
        self.town.now = at
        self.looks.append(at)
        self.town.burn()

    def _act(self) -> None:
        acts: list[Callable[[Server], object]] = [
            lambda server: self.town.pay_in(self.wallet, self.random.randrange(1, 700_000)),
            lambda server: self.town.fund(server, self.random.randrange(1, 300_000)),
            lambda server: self.town.renew(server, auto_renew=self.random.random() < 0.5),
            self._resize,
            lambda server: [self.town.read(self.wallet) for _ in range(self.random.randrange(60))],
            lambda server: [self.town.read(self.wallet) for _ in range(self.random.randrange(60))],
            lambda server: self.random.random() < 0.3 and self.town.destroy(server),
            self._send,
            self._send,
            lambda server: self._rent(),
            lambda server: self._bury(),
        ]
        living = self.town.metered()
        if living:
            self.random.choice(acts)(self.random.choice(living))

    def _send(self, server: Server) -> None:
        """Much of what is included in a month, or some of what is not, up to 0.60 USDC worth of it."""
        sent = self.sent.get(server.id, 0) + self.random.choice((20 * TB, self.random.randrange(TB // 2)))
        self.sent[server.id] = sent
        self.town.sends(server, sent)

    def _resize(self, server: Server) -> None:
        if self.town.resize(server, self.random.choice(TYPES)):
            self._pass()
            self.town.obey(server.id)


def latest(events: list[Told], *types: str) -> int | None:
    return max((event.at for event in events if event.type in types), default=None)


def check(life: Life, server: Server, events: list[Told]) -> str | None:
    """What a server's owner heard, against how it ended; answers the reason why it did."""
    causes = Counter(event.cause for event in events if event.cause is not None)
    assert all(count == 1 for count in causes.values())
    low = [event for event in events if event.type == "deposit.low"]
    told = Counter((event.cause or "").split("|")[2] for event in low)
    assert all(count <= len(life.town.policy.thresholds_s) for count in told.values())
    if server.reason is not Reason.DEPOSIT_EXHAUSTED:
        return None
    assert server.exhausted_at is not None
    (ended_at,) = (event.at for event in events if event.type == "server.destroying")
    tightest = max(event.at for event in low if (event.cause or "").endswith(f"|{LAST_S}"))
    assert ended_at - tightest >= LAST_S, "it died unwarned"
    assert ended_at > server.exhausted_at + life.town.policy.grace_s, "it died before its money and its grace"
    exhausted = latest(events, "deposit.exhausted")
    restored = latest(events, "deposit.restored")
    assert exhausted is not None
    assert restored is None or restored <= exhausted <= ended_at
    # It lives on until somebody has looked, has warned, and the owner has had the time of the warning; where money came
    # that was too little, it may be a call of its owner's that comes first after it has ended again.
    seen_at = next((at for at in life.looks if at > server.exhausted_at), ended_at)
    latest_end = max(seen_at, server.exhausted_at + 1 + life.town.policy.grace_s, seen_at + LAST_S)
    looked_at = next((at for at in life.looks if at >= latest_end), ended_at)
    assert ended_at <= looked_at + life.back_s, "it lived on for nothing"
    return server.id


@pytest.mark.parametrize("grace_s", [0, 2 * HOUR, DAY])
def test_no_server_dies_unwarned(tmp_path: Path, grace_s: int) -> None:
    with closing(Town(tmp_path / "spawn.db", Policy(grace_s=grace_s), START_S)) as town:
        live_all(town, grace_s)


def live_all(town: Town, grace_s: int) -> None:
    """A third of the lives, each held against what its owner heard."""
    ended, alive, epochs = 0, 0, 0
    for number in range(LIVES // 3):
        life = Life(town, Address("0x" + f"{number:040x}"), Random(f"{grace_s}/{number}"))
        seen = len(town.told())
        life.live()
        by_server: dict[str, list[Told]] = {}
        for event in town.told()[seen:]:
            by_server.setdefault(event.resource, []).append(event)
        for row in town.tx.all("SELECT id FROM server WHERE wallet = :wallet", {"wallet": life.wallet}):
            server_id = ServerId(row["id"])
            try:
                died = check(life, town.server(server_id), by_server[server_id])
            except BaseException as error:
                error.add_note(f"grace {grace_s}, life {number}, server {server_id}")
                raise
            ended += died is not None
            alive += died is None
            epochs = max(epochs, town.server(server_id).epoch)
        assert all(event.at >= START_S for events in by_server.values() for event in events)
    assert ended > LIVES // 3
    assert alive > LIVES // 20
    paid = town.tx.one("SELECT COUNT(*) AS n FROM transfer WHERE credit = 'rev:traffic'")
    lost = town.tx.one("SELECT COUNT(*) AS n FROM transfer WHERE debit = 'exp:overrun' AND code = 'traffic'")
    assert paid is not None
    assert lost is not None
    assert paid["n"] > LIVES // 3
    assert lost["n"] > LIVES // 20
    assert epochs > 1, "money came in and warnings began anew"
    assert verify(town.tx, chain_balance_usdc=None) == []
