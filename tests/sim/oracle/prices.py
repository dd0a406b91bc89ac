"""What servers cost a day: the price of the order, until its owner was told of another one, in time.

Invariants: a server is rented and resized at the newest announced price, and has that price until an event announced
another to its owner: a rise 30 days ahead, a fall at once. Each living server of an offer is told of a change, once.
Followed from the events, in their order: no code of the service decides here what a price is.
"""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.bars import Bars
from tests.sim.oracle.fees import Fees, micro
from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

NOTICE_S: Final = 30 * 86_400
"""How long before a rise its owner is told (DESIGN section 9)."""
QUOTED_S: Final = 900
"""How long after a price has changed an order may still come through that was quoted the price before it: what a call
waits for its payment, its provider and a process that is stalled."""
CLOCK_S: Final = 86_400
"""How wrong the service's clock can be, and by how much its 30 days may be wrong, then."""

_EUROPE: Final = (
    ("small", 150_000, 3_290_000),
    ("medium", 220_000, 5_080_000),
    ("large", 400_000, 9_040_000),
    ("arm-small", 160_000, 3_490_000),
)
_UNITED_STATES: Final = (("small", 320_000, None), ("medium", 590_000, None), ("large", 1_080_000, None))
LISTED: Final[tuple[tuple[str, str, int, int | None], ...]] = tuple(
    (type_, location, daily, monthly)
    for locations, rows in ((("nbg1", "fsn1", "hel1"), _EUROPE), (("ash", "hil"), _UNITED_STATES))
    for location in locations
    for type_, daily, monthly in rows
)
"""Type, location, micro-USDC a day, and what a month costs us at most, in millionths of a euro (the specification)."""

Offer = tuple[str, str]


def listed_prices(*, eur_price: str, floor_percent: int) -> dict[Offer, int]:
    """What is asked a day where nothing was ever announced: the list, raised to the floor where it is below it."""
    return {
        (type_, location): max(daily, floor_of(monthly, eur_price=eur_price, floor_percent=floor_percent))
        for type_, location, daily, monthly in LISTED
    }


def floor_of(monthly: int | None, *, eur_price: str, floor_percent: int) -> int:
    """The least that a day is sold for: a share of its cost, a thirtieth of a month, in whole tenths of a cent."""
    if monthly is None:
        return 0
    cost = ceil(ceil(Fraction(monthly, 30)) * Fraction(eur_price))
    return ceil(Fraction(cost * floor_percent, 100_000)) * 1_000


def seconds(moment: str) -> int:
    """Unix seconds of a moment on the wire."""
    return int(datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A price that new orders paid from some moment on; `until_s` is when another took its place (true seconds)."""

    daily: int
    until_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Coming:
    """What was announced to an owner, and when (the service's clock, and the true one)."""

    daily: int
    at: int
    told_true_s: int


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A living server, as it must be by what its owner was told."""

    offer: Offer
    daily: int
    coming: Coming | None = None
    charged_by: int | None = None
    """The last second that may be charged at this price, where another is coming and the meter runs."""


@dataclass(kw_only=True)
class _Telling:
    """A change of an offer's price, and whom it was told to."""

    offer: Offer
    daily: int
    told: dict[str, None] = field(default_factory=dict)
    is_over: bool = False


class Prices(Part):
    """Every server's price, and every offer's."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._listed = listed_prices(
            eur_price=world.settings.eur_price, floor_percent=world.settings.price_floor_percent
        )
        self._asked: dict[Offer, list[Asked]] = {}
        self._tellings: dict[str, _Telling] = {}
        self._servers: dict[str, Priced] = {}
        self._resizes: dict[str, tuple[str, int]] = {}
        """What the resize that was ordered last makes of a server: its type and price."""
        self.restored()

    # --- offers -----------------------------------------------------------------------------------------------

    def current(self, offer: Offer) -> int:
        """What a new order pays now."""
        return self._asked[offer][-1].daily

    def _is_asked(self, offer: Offer, daily: int) -> bool:
        """Whether an order that comes through now may cost so much."""
        since = self.world.true_s() - QUOTED_S
        return any(
            one.daily == daily and (one.until_s is None or one.until_s >= since)
            for one in self._asked.get(offer, ())
        )

    def _ask(self, offer: Offer, daily: int) -> None:
        past = self._asked[offer]
        past[-1] = replace(past[-1], until_s=self.world.true_s())
        past.append(Asked(daily=daily))

    def _changed(self, changes: Changes) -> None:
        found = [row for row in changes.of("price_change").values() if row is not None]
        for row in sorted(found, key=lambda row: row["announced_at"]):
            offer = (row["type"], row["location"])
            if row["id"] not in self._tellings:
                if offer not in self._asked:
                    self.world.violation("books", f"{row['id']} prices what is not for sale: {offer}")
                self._tellings[row["id"]] = _Telling(offer=offer, daily=row["daily_usdc"])
                self._ask(offer, row["daily_usdc"])

    # --- after each commit ------------------------------------------------------------------------------------

    def committed(self, changes: Changes) -> None:
        self._changed(changes)
        self._resized(changes)
        self._read_events(changes)
        for server, row in changes.of("server").items():
            self._compare(server, row)
        for change, row in changes.of("price_change").items():
            if row is not None:
                self._check_told(self._tellings[change], row, changes)

    def _resized(self, changes: Changes) -> None:
        for row in changes.of("operation").values():
            if row is None or row["command"] != "resize_server" or row["status"] != "running":
                continue
            wanted = json.loads(row["plan"])["resized"]
            what = (wanted["type"], wanted["pin"]["daily_usdc"])
            known = self._servers.get(row["server_id"])
            if known is None or self._resizes.get(row["server_id"]) == what:
                continue
            offer = (what[0], known.offer[1])
            if not self._is_asked(offer, what[1]):
                self._wrong(
                    row["server_id"], f"is resized at {what[1]} a day, {offer} costs {self.current(offer)}"
                )
            self._resizes[row["server_id"]] = what

    def _read_events(self, changes: Changes) -> None:
        for event in changes.events:
            server = self._servers.get(event["resource"])
            if server is None:
                continue
            if event["type"] == "price.announced":
                self._servers[event["resource"]] = self._announced(server, event)
            elif event["type"] == "price.changed":
                self._servers[event["resource"]] = self._in_force(server, event)
            elif event["type"] == "server.resized":
                type_, daily = self._resizes[event["resource"]]
                self._servers[event["resource"]] = Priced(offer=(type_, server.offer[1]), daily=daily)

    def _announced(self, server: Priced, event: Row) -> Priced:
        name, data = event["resource"], json.loads(event["data"])
        now, at, daily = event["at"], seconds(data["effective_at"]), micro(data["new_daily_burn"])
        if micro(data["daily_burn"]) != server.daily:
            self._wrong(name, f"costs {server.daily} a day, and its owner is told of {data['daily_burn']}")
        if daily > server.daily and at < now + NOTICE_S:
            self._wrong(name, f"is to cost more from {at} on, and its owner is told at {now}")
        self._tell(name, server.offer, daily)
        if daily == server.daily:
            return replace(server, coming=None, charged_by=None)
        told = Coming(daily=daily, at=at, told_true_s=self.world.true_s())
        return replace(server, coming=told, charged_by=None)

    def _tell(self, server: str, offer: Offer, daily: int) -> None:
        for telling in self._tellings.values():
            if (
                telling.offer == offer
                and telling.daily == daily
                and server not in telling.told
                and not telling.is_over
            ):
                telling.told[server] = None
                return
        self.world.violation(
            "books", f"the owner of {server} is told twice, or of no change, that it will cost {daily}"
        )

    def _in_force(self, server: Priced, event: Row) -> Priced:
        name, data, coming = event["resource"], json.loads(event["data"]), server.coming
        daily, at = micro(data["new_daily_burn"]), seconds(data["effective_at"])
        if coming is None or (coming.daily, coming.at) != (daily, at):
            self._wrong(name, f"costs {daily} a day from {at} on, and its owner was told {coming}")
        if daily > server.daily and self.world.true_s() < coming.told_true_s + NOTICE_S - CLOCK_S:
            self._wrong(
                name, f"costs more {self.world.true_s() - coming.told_true_s} s after its owner was told"
            )
        return replace(server, daily=daily, coming=None, charged_by=None)

    def _compare(self, name: str, row: Row | None) -> None:
        if row is None or row["ended_at"] is not None:
            self._servers.pop(name, None)
            self._resizes.pop(name, None)
            return
        known = self._servers.get(name)
        if known is None:
            known = self._as_it_is(row)
            if not self._is_asked(known.offer, known.daily):
                self._wrong(
                    name, f"is sold for {known.daily} a day, {known.offer} costs {self.current(known.offer)}"
                )
            self._servers[name] = known
        if row["status"] == "destroying":
            return
        self._check_row(name, known, row)

    def _check_row(self, name: str, known: Priced, row: Row) -> None:
        coming = None if known.coming is None else (known.coming.at, known.coming.daily)
        found = None if row["reprice_at"] is None else (row["reprice_at"], row["reprice_usdc"])
        if ((row["type"], row["location"]), row["daily_usdc"]) != (known.offer, known.daily):
            self._wrong(
                name, f"is a {row['type']} for {row['daily_usdc']} a day, and its owner was told {known}"
            )
        if coming != found:
            self._wrong(name, f"is to change its price as {found}, and its owner was told {coming}")
        charged = row["charged_until"]
        if known.coming is None or charged is None:
            return
        if known.charged_by is None:
            # The meter may be ahead of a fall that is told at once: the clock was set back, or nobody had ordered yet.
            self._servers[name] = replace(known, charged_by=max(known.coming.at, charged))
        elif charged > known.charged_by:
            self._wrong(name, f"is charged up to {charged} at a price that ended at {known.charged_by}")

    # --- who was told -----------------------------------------------------------------------------------------

    def _check_told(self, telling: _Telling, row: Row, changes: Changes) -> None:
        if telling.is_over or row["told_to"] is not None:
            return
        telling.is_over = True
        newest = next(one for one in reversed(self._tellings.values()) if one.offer == telling.offer)
        if newest is not telling:
            return  # withdrawn before everybody had heard of it
        touched = changes.of("server")
        for name, server in self._servers.items():
            if server.offer != telling.offer or self._pays(server, telling.daily):
                continue
            now = touched.get(name) or self._row(name)
            waits_for_money = now["exhausted_at"] is not None and now["reprice_at"] is not None
            if now["status"] != "destroying" and not waits_for_money and name not in touched:
                self._wrong(
                    name, f"costs {server.daily} a day; {row['id']} makes it {telling.daily}, and nobody told"
                )

    def _pays(self, server: Priced, daily: int) -> bool:
        return server.daily == daily if server.coming is None else server.coming.daily == daily

    def _row(self, name: str) -> Row:
        (row,) = self.world.rows("SELECT * FROM server WHERE id = :id", id=name)
        return row

    # --- answers, rest, restores ------------------------------------------------------------------------------

    def answered(self, request: Request, answer: Answer) -> None:
        if request.path != "/v1/catalog" or answer.status != 200:
            return
        for offer in answer.json()["offers"]:
            sold, daily = (offer["type"], offer["location"]), micro(offer["daily_burn"])
            if not self._is_asked(sold, daily):
                self.world.violation(
                    "books", f"the catalog asks {daily} for {sold}, which costs {self.current(sold)}"
                )

    def unsettled(self) -> list[str]:
        return [
            f"{change} is not told to all"
            for change, telling in self._tellings.items()
            if not telling.is_over
        ] + [f"{row['id']} waits for its price since {row['reprice_at']}" for row in self._overdue()]

    def _overdue(self) -> list[dict[str, Any]]:
        return self.world.rows(
            "SELECT id, reprice_at FROM server WHERE ended_at IS NULL AND status <> 'destroying' "
            "AND charged_until IS NOT NULL AND exhausted_at IS NULL AND reprice_at <= :now ORDER BY id",
            now=self.world.clock.now_s() - CLOCK_S,
        )

    def at_rest(self) -> None:
        for row in self.world.rows("SELECT * FROM server WHERE ended_at IS NULL ORDER BY id"):
            if row["id"] not in self._servers:
                self._wrong(row["id"], "is in no commit that anybody saw")
            self._compare(row["id"], row)

    def restored(self) -> None:
        """What the lost rows announced is not announced any more; servers are what the rows say they are."""
        self._asked = {offer: [Asked(daily=daily)] for offer, daily in self._listed.items()}
        self._tellings, self._servers, self._resizes = {}, {}, {}
        for row in self.world.rows("SELECT * FROM price_change ORDER BY announced_at"):
            offer = (row["type"], row["location"])
            self._tellings[row["id"]] = _Telling(
                offer=offer, daily=row["daily_usdc"], is_over=row["told_to"] is None
            )
            self._ask(offer, row["daily_usdc"])
        for row in self.world.rows("SELECT * FROM server WHERE ended_at IS NULL"):
            self._servers[row["id"]] = self._as_it_is(row)
        for row in self.world.rows(
            "SELECT * FROM operation WHERE command = 'resize_server' AND status = 'running'"
        ):
            wanted = json.loads(row["plan"])["resized"]
            self._resizes[row["server_id"]] = (wanted["type"], wanted["pin"]["daily_usdc"])

    def _as_it_is(self, row: Row) -> Priced:
        priced = Priced(offer=(row["type"], row["location"]), daily=row["daily_usdc"])
        if row["reprice_at"] is None:
            return priced
        # When its owner heard is not in the rows: no sooner than it could have been for a rise.
        told = Coming(
            daily=row["reprice_usdc"], at=row["reprice_at"], told_true_s=row["reprice_at"] - NOTICE_S
        )
        return replace(priced, coming=told)

    def _wrong(self, server: str, text: str) -> NoReturn:
        self.world.violation("books", f"{server} {text}")


PARTS: Final = (Prices, Fees, Bars)
"""What the operator's orders come to, for the kernel."""
