"""Whose everything is, kept from the rows of each commit. Invariant: what was a wallet's once is never another's."""

from collections.abc import Callable
from typing import Final, NoReturn

from tests.sim.oracle.part import Changes, Row

NOBODY: Final = "nobody"
_WALLETS: Final = {
    "server": "wallet",
    "operation": "wallet",
    "ssh_key": "wallet",
    "webhook": "wallet",
    "reservation": "wallet",
    "arrival": "sender",
}
"""Tables of things, and the column that says whose."""


class Owners:
    """Whose is what, by its id; an event is called `evt_<seq>`, as on the wire."""

    def __init__(self, broken: Callable[[str], NoReturn]) -> None:
        self._broken = broken
        self._wallets: dict[str, str] = {}
        self._new: dict[str, None] = {}
        self.wallets: dict[str, None] = {}
        """Everybody who ever had something."""
        self.servers: dict[str, Row] = {}
        """As they are now."""
        self.arrivals: dict[str, Row] = {}

    def of(self, thing: str) -> str:
        """Its wallet; an empty text for what is nobody's."""
        return self._wallets.get(thing, "")

    def is_new(self, thing: str) -> bool:
        """Whether the last commit made it."""
        return thing in self._new

    def forget(self) -> None:
        """The books were taken back: what only they told is not known any more, though whose it was stays true."""
        self.servers.clear()
        self.arrivals.clear()

    def learn(self, changes: Changes) -> None:
        """What a commit says. A thing that changed hands is a violation."""
        self._new = {}
        for table, column in _WALLETS.items():
            for key, row in changes.of(table).items():
                if row is not None:
                    self._note(key, row[column])
        for row in changes.events:
            self._note(f"evt_{row['seq']}", row["wallet"])
        self.servers.update({key: row for key, row in changes.of("server").items() if row is not None})
        self.arrivals.update({key: row for key, row in changes.of("arrival").items() if row is not None})

    def _note(self, thing: str, wallet: str) -> None:
        known = self._wallets.get(thing)
        if known is None:
            self._wallets[thing] = wallet
            self._new[thing] = None
            self.wallets[wallet] = None
        elif known != wallet:
            self._broken(f"{thing} was {known}'s and is {wallet}'s")
