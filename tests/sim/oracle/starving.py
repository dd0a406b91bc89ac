"""An owner's own move ends none of its servers unwarned (DESIGN section 4; docs/adr/0021).

Invariant: where a wallet's money is put into a server, no other that lives from that wallet is left with less time than
the last warning gives, if it had more before. Only time and what comes in may end a server, and both are told of.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tests.sim.oracle.part import Changes, Part, Row, deeds_of
from tests.sim.oracle.rates import thresholds_s
from tests.sim.oracle.runways import Tab, ends, tab_of

if TYPE_CHECKING:
    from tests.sim.world import World

ROUNDING_S: Final = 2
SERVERS: Final = "SELECT * FROM server WHERE wallet = :wallet AND charged_until IS NOT NULL ORDER BY id"
ACCOUNTS: Final = """
SELECT id, balance, held FROM account WHERE id = :account
UNION ALL SELECT account.id, balance, held FROM account JOIN server ON account.id = 'srv:' || server.id
WHERE server.wallet = :wallet
"""


class Starving(Part):
    """Looks at each deposit as if it had not been made."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._last_s = thresholds_s(world.settings.warnings)[-1]
        self._holds: dict[str, None] = {}

    def committed(self, changes: Changes) -> None:
        moved = [one for one in self._deposits(changes) if one["debit"].startswith("wallet:")]
        if not moved:
            return
        deeds = deeds_of(changes)
        for deposit in moved:
            wallet = deposit["debit"].removeprefix("wallet:")
            # Of several in one commit nobody can say what the one found when it was made.
            if deeds.get(wallet, 0) == 1 and sum(one["debit"] == deposit["debit"] for one in moved) == 1:
                came_usdc = sum(
                    one["amount"] for one in changes.transfers if one["credit"] == deposit["debit"]
                )
                self._check(wallet, deposit, came_usdc, deposit["at"])

    def _deposits(self, changes: Changes) -> list[Row]:
        """What is put or set aside for a server: once, though it is set aside first and moved later."""
        found = [t for t in changes.transfers if t["code"] == "deposit" and t["id"] not in self._holds]
        for name, hold in changes.of("hold").items():
            if hold is not None and hold["code"] == "deposit" and name not in self._holds:
                self._holds[name] = None
                if hold["state"] == "pending":
                    found.append(hold)
        return found

    def _check(self, wallet: str, deposit: Row, came_usdc: int, now: int) -> None:
        """`came_usdc` came in with the same call: without the one there would not be the other."""
        accounts = {
            row["id"]: row for row in self.world.rows(ACCOUNTS, wallet=wallet, account=f"wallet:{wallet}")
        }
        tabs = [
            tab_of(row, accounts[f"srv:{row['id']}"]["balance"])
            for row in self.world.rows(SERVERS, wallet=wallet)
        ]
        mine = accounts[f"wallet:{wallet}"]
        available_usdc, amount = mine["balance"] - mine["held"], deposit["amount"]
        horizon = now + self._last_s
        after = ends(tabs, available_usdc, horizon)
        is_moved = "state" not in deposit
        undone = [
            _less(tab, amount) if is_moved and deposit["credit"] == f"srv:{tab.server_id}" else tab
            for tab in tabs
        ]
        before = ends(undone, max(0, available_usdc + amount - came_usdc), horizon)
        for server_id, end in after.items():
            if end + ROUNDING_S < min(before[server_id], horizon):
                self.world.violation(
                    "unwarned",
                    f"{deposit['id']} leaves {server_id} {end - now} s, and it had {before[server_id] - now} s or more",
                )


def _less(tab: Tab, amount_usdc: int) -> Tab:
    return replace(tab, reserve_usdc=tab.reserve_usdc - amount_usdc)


PARTS: Final = (Starving,)
