"""What an answer says of its caller's money is what the books come to at that second, burn included.

Invariant: `Spawn-Balance`, and each amount that an answer calls available, reserved or balance, follows from the rows
as they were while the answer was made. Where one commit did two things to a wallet, nobody outside knows what was true
between them, and nothing is said.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.part import Changes, Part, Row, deeds_of
from tests.sim.oracle.runways import Tab, ends, tab_of

if TYPE_CHECKING:
    from tests.sim.world import World

_ANSWERING_MS: Final = 250
"""The longest that an answer is on its way once its amounts are read."""
_REPEATING_MS: Final = 30_000
"""The same where the last transaction rests among others, collides, and is repeated."""
_SHOWING: Final = ("/v1/balance", "/v1/balance/deposit", "/v1/suspense/claim")
"""Whose answers have the whole balance in their body."""

ACCOUNTS: Final = "SELECT * FROM account WHERE id LIKE 'wallet:%' OR id LIKE 'srv:%'"
SERVERS: Final = "SELECT * FROM server"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A wallet's money by its rows. `since_ms` is when (true time) it came to be; `is_vague`: see the module."""

    since_ms: int
    tabs: tuple[Tab, ...]
    available_usdc: int
    held_usdc: int
    waiting_usdc: int
    """Reserves of servers that have not been accepted yet: nothing burns them."""
    is_vague: bool

    def shown(self, now: int) -> tuple[int, int]:
        """What is available and what is reserved at this second."""
        available_usdc, reserved_usdc = self.available_usdc, self.held_usdc + self.waiting_usdc
        found = ends(self.tabs, self.available_usdc, now)
        for tab in self.tabs:
            end = found[tab.server_id]
            reserved_usdc += tab.reserve_usdc - min(tab.reserve_usdc, tab.burnt_usdc(end))
            if tab.renews:
                available_usdc -= tab.lacks_usdc(end)
        return available_usdc, reserved_usdc


_NOTHING_YET: Final = Standing(
    since_ms=0, tabs=(), available_usdc=0, held_usdc=0, waiting_usdc=0, is_vague=False
)
"""Before the first commit that names a wallet; who asked before it may be answered after it."""


class Balances(Part):
    """The standings of each wallet that an answer which is now on its way may have seen."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._answering_ms = _REPEATING_MS if world.books.has_replicas else _ANSWERING_MS
        self._clear()

    def _clear(self) -> None:
        self._accounts: dict[str, Row] = {}
        self._metered: dict[str, dict[str, Row]] = {}
        self._waiting: dict[str, dict[str, None]] = {}
        self._owners: dict[str, str] = {}
        self._standings: dict[str, list[Standing]] = {}
        self._clocks: list[tuple[int, int]] = [(0, self.world.clock.wrong_by_s)]

    def restored(self) -> None:
        self._clear()
        self._accounts = {row["id"]: row for row in self.world.rows(ACCOUNTS)}
        for row in self.world.rows(SERVERS):
            self._note(row)

    def stepped(self) -> None:
        """Note how wrong the clock has been, and since when (true milliseconds)."""
        if self._clocks[-1][1] != self.world.clock.wrong_by_s:
            self._clocks = [self._clocks[-1], (self.world.true_ms(), self.world.clock.wrong_by_s)]

    def committed(self, changes: Changes) -> None:
        """Add to each wallet that the commit touched how it stands now."""
        touched: dict[str, None] = {}
        for row in changes.of("server").values():
            if row is not None:
                self._note(row)
                touched[row["wallet"]] = None
        for name, row in changes.of("account").items():
            if row is not None:
                self._accounts[name] = row
                touched[name[7:] if name.startswith("wallet:") else self._owners[name[4:]]] = None
        if not touched:
            return
        deeds = deeds_of(changes)
        for wallet in touched:
            self._keep(wallet, is_vague=deeds.get(wallet, 0) > 1)

    def _note(self, row: Row) -> None:
        self._owners[row["id"]] = row["wallet"]
        metered = self._metered.setdefault(row["wallet"], {})
        waiting = self._waiting.setdefault(row["wallet"], {})
        metered.pop(row["id"], None)
        waiting.pop(row["id"], None)
        if row["charged_until"] is not None:
            metered[row["id"]] = row
        elif row["ended_at"] is None:
            waiting[row["id"]] = None

    def _keep(self, wallet: str, *, is_vague: bool) -> None:
        known = self._standings.setdefault(wallet, [_NOTHING_YET])
        known.append(self._standing(wallet, is_vague=is_vague))
        before_ms = self.world.true_ms() - self._answering_ms
        while len(known) > 1 and known[1].since_ms < before_ms:
            known.pop(0)

    def _standing(self, wallet: str, *, is_vague: bool) -> Standing:
        account = self._accounts.get(f"wallet:{wallet}", {"balance": 0, "held": 0})
        available_usdc = account["balance"] - account["held"]
        tabs = []
        for name, row in self._metered.get(wallet, {}).items():
            # What is owed for traffic is paid before anything else, by whatever there comes to be.
            reserve_usdc, debt_usdc = self._accounts[f"srv:{name}"]["balance"], row["traffic_owed_usdc"]
            tabs.append(tab_of(row, max(0, reserve_usdc - debt_usdc)))
            if row["auto_renew"]:
                available_usdc -= min(available_usdc, max(0, debt_usdc - reserve_usdc))
        return Standing(
            since_ms=self.world.true_ms(),
            tabs=tuple(tabs),
            available_usdc=available_usdc,
            held_usdc=account["held"],
            waiting_usdc=sum(
                self._accounts[name]["balance"]
                for name in (f"srv:{server_id}" for server_id in self._waiting.get(wallet, ()))
                if name in self._accounts
            ),
            is_vague=is_vague,
        )

    # --- what is said ---------------------------------------------------------------------------------------------

    def answered(self, request: Request, answer: Answer) -> None:
        found = self.world.town.calls.whose(request)
        if found is None or "spawn-balance" not in answer.headers or self.has_thawed():
            return
        wallet = found[1].wallet
        said = {"available": answer.headers["spawn-balance"]}
        if request.path in _SHOWING and "idempotent-replayed" not in answer.headers:
            self._check(wallet, request, answer.json())
        self._check(wallet, request, said)

    def _check(self, wallet: str, request: Request, said: dict[str, Any]) -> None:
        """One of the standings that may have been seen, at one of the seconds at which it may have been."""
        before_ms = self.world.true_ms() - self._answering_ms
        standings = self._standings.get(wallet) or [self._standing(wallet, is_vague=False)]
        recent = [one for one, later in pairwise(standings) if later.since_ms >= before_ms]
        options: dict[tuple[int, int], None] = {}
        for standing in (standings[-1], *reversed(recent)):
            if standing.is_vague and standing.since_ms >= before_ms:
                return
            for now in self._seconds(before_ms):
                options[standing.shown(now)] = None
                if _fits(said, *standing.shown(now)):
                    return
        self._wrong(f"{request.method} {request.path} tells {wallet} {said}, and it has {list(options)}")

    def _seconds(self, since_ms: int) -> list[int]:
        """What the service may have taken for the time since then."""
        true_s, before_s = self.world.true_s(), since_ms // 1000
        wrongs = {wrong_by_s: None for at_ms, wrong_by_s in self._clocks if at_ms >= since_ms}
        wrongs[self.world.clock.wrong_by_s] = None
        if self._clocks[-1][0] >= since_ms:
            wrongs[self._clocks[0][1]] = None
        return [second + wrong_by_s for wrong_by_s in wrongs for second in range(before_s, true_s + 1)]

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("books", text)


def _fits(said: dict[str, Any], available_usdc: int, reserved_usdc: int) -> bool:
    expected = {
        "available": available_usdc,
        "reserved": reserved_usdc,
        "balance": available_usdc + reserved_usdc,
    }
    return all(_micro(said[name]) == amount for name, amount in expected.items() if name in said)


def _micro(text: str) -> int:
    whole, _, decimals = text.partition(".")
    return int(whole) * 1_000_000 + int(decimals.ljust(6, "0"))


PARTS: Final = (Balances,)
