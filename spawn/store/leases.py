"""The `lease` table: which process may do what only one may do at a time.

Invariant: a name's token grows with each holder and is never used again, so that it tells a holder from every earlier
one, itself included. A lease changes hands by compare-and-set of what the taker saw.
"""

from typing import Final

import msgspec
from spawn_ledger.tx import Row, Tx

SELECT_LEASE: Final = "SELECT holder, token, until FROM lease WHERE name = :name"
INSERT_LEASE: Final = """
INSERT INTO lease (name, holder, token, until) VALUES (:name, :holder, 1, :until) ON CONFLICT (name) DO NOTHING
RETURNING token
"""
TAKE_LEASE: Final = """
UPDATE lease SET holder = :holder, token = token + 1, until = :until
WHERE name = :name AND token = :seen_token AND until = :seen_until RETURNING token
"""
# That it was renewed must be seen whatever the holder's clock says meanwhile.
RENEW_LEASE: Final = """
UPDATE lease SET until = CASE WHEN until < :until THEN :until ELSE until + 1 END
WHERE name = :name AND holder = :holder AND token = :token
"""
SELECT_HELD: Final = """
SELECT token FROM lease WHERE name = :name AND holder = :holder AND token = :token
"""
RELEASE_LEASE: Final = """
UPDATE lease SET holder = '' WHERE name = :name AND holder = :holder AND token = :token
"""
RELEASE_LEASES: Final = "UPDATE lease SET holder = '' WHERE holder <> ''"
"""For the only process there is: what others held, they left behind."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as another process sees it. `until` is when it ends by its holder's clock, and moves at each renewal."""

    holder: str
    token: int
    until: int

    @property
    def is_free(self) -> bool:
        return self.holder == ""


class LeaseLost(BaseException):
    """The lease is another's by now, and what was about to be written under it is not written.

    No `Exception`, as a cancellation is none: whoever goes on after one thing that failed must not go on after this.
    """


def lease_from(row: Row) -> Lease:
    """Read one row of SELECT_LEASE."""
    return Lease(holder=row["holder"], token=row["token"], until=row["until"])


def take(tx: Tx, name: str, holder: str, *, seen: Lease | None, until: int) -> int | None:
    """Become the holder of what looked like `seen` (None: of what was never held); the token, None if it moved."""
    if seen is None:
        row = tx.one(INSERT_LEASE, {"name": name, "holder": holder, "until": until})
    else:
        row = tx.one(
            TAKE_LEASE,
            {
                "name": name,
                "holder": holder,
                "until": until,
                "seen_token": seen.token,
                "seen_until": seen.until,
            },
        )
    return None if row is None else row["token"]


def renew(tx: Tx, name: str, holder: str, token: int, *, until: int) -> bool:
    """Show that the holder lives; False when the lease is not its own any more."""
    return tx.execute(RENEW_LEASE, {"name": name, "holder": holder, "token": token, "until": until}) == 1


def require_held(tx: Tx, name: str, holder: str, token: int) -> None:
    """Raise LeaseLost unless the lease is still held under this token."""
    if tx.one(SELECT_HELD, {"name": name, "holder": holder, "token": token}) is None:
        raise LeaseLost(f"another process holds {name!r} by now")


def release(tx: Tx, name: str, holder: str, token: int) -> None:
    """Let the next one have it at once. The row stays: its token must go on growing."""
    tx.execute(RELEASE_LEASE, {"name": name, "holder": holder, "token": token})
