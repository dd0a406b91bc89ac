"""What passes through the service and must not stay: in no row but its sealed one, and erased when it was used.

Invariant: passwords, user data, host keys, signing secrets and tokens lie nowhere in the books in clear; a payment's
signature only until the payment is decided.
"""

import re
from typing import Final

from tests.sim.oracle.part import Changes, Part, Row

PLANTED: Final = "#cloud-config"
"""With this all user data in the simulation begins: nobody but the cloud ever sees it in clear."""
_SECRET: Final = re.compile(
    rf'{PLANTED}|PRIVATE KEY|whsec_[A-Za-z0-9+/]{{16}}|spawn_session_[A-Za-z0-9_-]{{16}}|"root_password":"'
)
_UNDECIDED: Final = "reserved"
_LOOKED_AT: Final = ("server", "operation", "reservation", "delivery", "webhook")


class Sealing(Part):
    """Looks at what each commit wrote, and in the end at every row there is."""

    def committed(self, changes: Changes) -> None:
        for table in _LOOKED_AT:
            for key, row in changes.of(table).items():
                if row is not None:
                    self._look(table, key, row)
        for row in changes.events:
            self._look("event", row["seq"], row)
        for (owner, kind), row in changes.of("secret").items():
            if row is not None and _SECRET.search(bytes(row["ciphertext"]).decode("latin-1")):
                self.world.violation("foreign", f"the {kind} of {owner} is sealed in clear")

    def at_rest(self) -> None:
        for table in self.world.books.tables():
            for number, row in enumerate(self.world.rows(f'SELECT * FROM "{table}"')):
                self._look(table, number, row)

    def _look(self, table: str, key: object, row: Row) -> None:
        for column, value in row.items():
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if isinstance(text, str) and _SECRET.search(text):
                self.world.violation(
                    "foreign", f"{column} of {table} {key} holds a secret in clear: {text[:500]}"
                )
        if table == "reservation" and row["payment"] is not None and row["state"] != _UNDECIDED:
            self.world.violation("foreign", f"the payment of {key} is kept, though it is {row['state']}")
