"""What a machine tells is told its owner once, and what was planted goes with the server (docs/trust.md).

Invariants: a server's host key never changes while it lives; what a boot has told never changes before the next one
begins; `server.ready` is told in the commit that records how cloud-init ended, and in no other; nothing sealed, and no
token, outlives its server.
"""

import json
from typing import TYPE_CHECKING, Final, NoReturn

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

BOOTS: Final = "SELECT * FROM boot"
LEFT: Final = """
SELECT 'boot' AS kind FROM boot WHERE server_id = :server
UNION ALL SELECT kind FROM secret WHERE owner = :server
"""


class Boots(Part):
    """Follows each boot from its order to its end."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._rows: dict[str, Row] = {}

    def restored(self) -> None:
        self._rows = {row["server_id"]: row for row in self.world.rows(BOOTS)}

    def committed(self, changes: Changes) -> None:
        told: dict[str, list[Row]] = {}
        for event in changes.events:
            if event["type"] == "server.ready":
                told.setdefault(event["resource"], []).append(json.loads(event["data"]))
        for server, row in changes.of("boot").items():
            self._changed(server, self._rows.pop(server, None), row, told.pop(server, []))
            if row is not None:
                self._rows[server] = row
        if told:
            self._broken(f"{sorted(told)} are told to be ready, and nothing was reported")
        for server, row in changes.of("server").items():
            if row is not None and row["ended_at"] is not None:
                left = [one["kind"] for one in self.world.rows(LEFT, server=server)]
                if left:
                    self._broken(f"{server} has ended, and {left} are left of it")

    def _changed(self, server: str, before: Row | None, row: Row | None, told: list[Row]) -> None:
        if row is None or before is None:
            # Born, or gone, in a commit that may hold a report as well.
            if len(told) > 1:
                self._broken(f"{server} is told to be ready {len(told)} times at once")
            return
        if row["host_key"] != before["host_key"]:
            self._broken(f"the host key of {server} was {before['host_key']}, and is {row['host_key']}")
        if row["token_hash"] != before["token_hash"]:
            if before["next_hash"] != row["token_hash"] and row["since"] == before["since"]:
                self._broken(f"{server} reports under another token, and no rebuild began")
            return
        for name in ("ssh_at", "cloud_init", "log", "reported_at"):
            if before[name] not in {None, row[name]} and before["cloud_init"] == row["cloud_init"]:
                self._broken(f"{name} of {server} was {before[name]!r}, and is {row[name]!r}")
        ended = [row["cloud_init"]] if before["cloud_init"] is None and row["cloud_init"] is not None else []
        if before["cloud_init"] not in {None, row["cloud_init"]}:
            self._broken(f"{server} told {before['cloud_init']}, and then {row['cloud_init']}")
        if [data["cloud_init"] for data in told] != ended:
            self._broken(f"{server} has ended its boot {ended}, and told are {told}")

    def _broken(self, text: str) -> NoReturn:
        self.world.violation("unwarned", text)


PARTS: Final = (Boots,)
