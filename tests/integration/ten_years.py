"""Ten years of a town: who rents, resizes, stops, pays in, dies and is repriced, and what each of it must have cost.

Invariant: what is expected comes from the moments at which things happened and from the price list, never from the
books; only the last second that was paid for is taken from them, and held against the money that was there.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import Final

from spawn_providers.catalog import Offer
from spawn_schemas.ids import Address, ServerId

from spawn.domain.servers import Command, Server, Status
from tests.integration.living import EUR_USDC, PLACE, Town
from tests.integration.rational_bills import DAY, Bill, Rate, next_month

HOUR: Final = 3_600
YEAR: Final = 365 * DAY
TYPES: Final = ("small", "medium", "large")


@dataclass
class Life:
    """One server: its two bills, and how it ended. `deposits_usdc` is all it ever had, None once it renewed."""

    id: ServerId
    since: int
    price: Bill
    cost: Bill
    deposits_usdc: int | None
    until: int | None = None
    gone_at: int | None = None


@dataclass
class Decade:
    """The driver of a town. `expected` are the finished lives, checked by the test."""

    town: Town
    wallets: list[Address]
    servers_max: int
    random: Random
    lives: dict[ServerId, Life] = field(default_factory=dict)

    def live(self, until: int, steps: int) -> None:
        """Let time pass up to `until` in so many steps, something happening at each."""
        span_s = until - self.town.now
        start = self.town.now
        moments = sorted(self.random.randrange(span_s) for _ in range(steps))
        for number, moment in enumerate(moments):
            self._pass_to(start + moment)
            if len(self.lives) < self.servers_max * min(1, (number + 1) / (0.8 * steps)):
                self._rent()
            self._act()
            self._bury()

    def _pass_to(self, at: int) -> None:
        """Now and then the burn job looks at each moment that is due, mostly some time afterwards, or not at all."""
        town = self.town
        if self.random.random() < 0.2:
            for _ in range(20):
                due_at = town.due_at()
                if due_at is None or not town.now <= due_at <= at:
                    break
                town.now = max(town.now, due_at)
                town.burn()
                self._bury()
        month = next_month(town.now)
        if month < at and self.random.random() < 0.3:
            town.now = month + self.random.choice((-1, 0, 1))
            town.burn()
        town.now = max(at, town.now)
        if self.random.random() < 0.7:
            town.burn()
            self._bury()

    def end(self) -> None:
        """Destroy what still lives."""
        for server in self.town.metered():
            assert self.town.destroy(server)
        self._bury()

    # --- acts ----------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        acts = {
            self._pay_in: 8,
            self._fund: 4,
            self._resize: 3,
            self._power: 2,
            self._renew: 3,
            self._reprice: 3,
            self._read: 2,
            self._destroy: 0.5,
            self._lose: 0.3,
        }
        (act,) = self.random.choices(list(acts), weights=list(acts.values()))
        act()

    def _one(self) -> Server | None:
        living = self.town.metered()
        return self.random.choice(living) if living else None

    def _pay_in(self) -> None:
        self.town.pay_in(self.random.choice(self.wallets), self.random.randrange(1, 250_000_000))

    def _rent(self) -> None:
        wallet, type = self.random.choice(self.wallets), self.random.choice(TYPES)
        deposit = round(400_000 * 2 ** self.random.uniform(0, 9))
        renews = self.random.random() < 0.7
        server_id = self.town.rent(wallet, type, deposit, auto_renew=renews)
        if server_id is None:
            self.town.pay_in(wallet, deposit)
            server_id = self.town.rent(wallet, type, deposit, auto_renew=renews)
        if server_id is None:
            return
        price, cost = _rates(self._offer(type), self.town.now)
        self.lives[server_id] = Life(
            server_id, self.town.now, Bill([price]), Bill([cost]), None if renews else deposit
        )
        if self.random.random() < 0.03:
            self._wait(self.random.randrange(HOUR))
            self.town.destroy(self.town.server(server_id))
            self._bury()

    def _fund(self) -> None:
        server, usdc = self._one(), self.random.randrange(1, 60_000_000)
        if server is not None and self.town.fund(server, usdc):
            life = self.lives[server.id]
            if life.deposits_usdc is not None:
                life.deposits_usdc += usdc

    def _renew(self) -> None:
        server = self._one()
        if server is not None and self.town.renew(server, auto_renew=not server.auto_renew):
            self.lives[server.id].deposits_usdc = None

    def _resize(self) -> None:
        server, type = self._one(), self.random.choice(TYPES)
        if server is None or not self.town.resize(server, type):
            return
        self._wait(self.random.randrange(300))
        self.town.obey(server.id)
        after = self.town.server(server.id)
        if after.type == type and after.charged_until is not None:
            assert after.exhausted_at is None
            life = self.lives[server.id]
            price, cost = _rates(self._offer(type), self.town.now)
            dearer = life.price.resize(price)
            life.cost.begin(replace(cost, own_month=dearer))
            life.deposits_usdc = None

    def _power(self) -> None:
        server = self._one()
        if server is None:
            return
        command = Command.STOP if server.status is Status.RUNNING else Command.START
        if self.town.power(server, command):
            self.town.obey(server.id)

    def _reprice(self) -> None:
        """A rise is announced a month ahead, a fall begins within the day; for all servers of a type."""
        type = self.random.choice(TYPES)
        for server in self.town.metered():
            life = self.lives[server.id]
            if server.type != type or server.reprice_at is not None:
                continue
            daily = self.random.randrange(server.daily_usdc // 2, 2 * server.daily_usdc)
            ahead = 30 * DAY if daily > server.daily_usdc else self.random.choice((0, 1, 6 * HOUR))
            at = self.town.now + ahead
            self.town.announce(server.id, at=at, daily_usdc=daily)
            # What is charged ahead of that already is: a clock never goes back in this town.
            life.price.owed(self.town.now)
            life.price.pending = Rate(at, daily, server.capped_s)

    def _read(self) -> None:
        wallet = self.random.choice(self.wallets)
        for _ in range(self.random.randrange(20)):
            self.town.read(wallet)

    def _destroy(self) -> None:
        server = self._one()
        if server is not None:
            self.town.destroy(server)

    def _lose(self) -> None:
        """Its machine is missed for five minutes, and then given up."""
        server = self._one()
        if server is None or server.exhausted_at is not None or server.reprice_at is not None:
            return
        since = self.town.now
        self._wait(300)
        self.town.burn()
        self._bury()
        before = self.town.server(server.id)
        if before.charged_until is None or before.exhausted_at is not None:
            return
        self.town.lose(server, since)
        self.lives[server.id].until = since

    def _wait(self, seconds: int) -> None:
        """Time passes in the middle of something; who has ended by now ended before it."""
        self._bury()
        self.town.now += seconds

    # --- ends ----------------------------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Note who has ended, and have the machines destroyed, some of them hours later."""
        for server_id in self.town.dying():
            life = self.lives[server_id]
            if life.until is None:
                server = self.town.server(server_id)
                life.until = self.town.now if server.exhausted_at is None else server.exhausted_at
            if self.random.random() < 0.8:
                self.town.obey(server_id)
                life.gone_at = self.town.now

    def bury_all(self) -> None:
        """The machines that are still there are destroyed."""
        for server_id in self.town.dying():
            self.town.now += self.random.randrange(5 * HOUR)
            self.town.obey(server_id)
            self.lives[server_id].gone_at = self.town.now

    def _offer(self, type: str) -> Offer:
        offer = self.town.shop.catalog.find(type, PLACE)
        assert offer is not None
        return offer


def _rates(offer: Offer, since: int) -> tuple[Rate, Rate]:
    """What the price list says, for the owner and for us: a month costs at most thirty days of it, or what it says."""
    wholesale = offer.wholesale
    assert offer.monthly_usdc is not None
    assert wholesale is not None
    assert wholesale.monthly_micro is not None
    euro = Fraction(EUR_USDC, 1_000_000)
    daily = ceil(wholesale.daily_micro * euro)
    monthly = ceil(wholesale.monthly_micro * euro)
    return (
        Rate(since, offer.daily_usdc, floor(Fraction(offer.monthly_usdc * DAY, offer.daily_usdc))),
        Rate(since, daily, floor(Fraction(monthly * DAY, daily))),
    )
