"""The books that the burn is measured on: many servers, made by SQL alone, of which some come due in the same second.

Ids are random and servers of a wallet lie together, as in a service that has lived; every reserve lasts for weeks.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from spawn_ledger.accounts import EXT_USDC

from spawn.store.migrate import migrate
from spawn.store.sqlite import connect_writer

PER_WALLET: Final = 5
_UNSETTLED_S: Final = 20 * 3_600
_LATER_S: Final = 23 * 3_600

_SERVERS: Final = """
INSERT INTO server (
  id, wallet, name, type, image, location, network, ssh_keys, provider, provider_type, provider_ref, architecture,
  cores, memory_gb, disk_gb, status, ipv4, auto_renew, created_at, daily_usdc, remainder, charged_until, charged_usdc,
  minimum_usdc, due_at, month_s, metered_from, cost_daily_usdc, cost_until, epoch
)
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :servers)
SELECT 'srv_' || lower(hex(randomblob(13))), printf('0x%040x', 1000000 + n / :per_wallet), 'server-' || n, 'small',
  'ubuntu-24.04', 'nbg1', 'dual', '[]', 'simulated', 'cx23', 'bench-' || n, 'x86', 2, 4, 40, 'running',
  '192.0.2.' || (n % 250), 1, :since, 150000, n % 86400, :since, 0, 6250,
  CASE WHEN n % :every = 0 THEN :due_at ELSE :later + n % 3600 END, 0, :since, 120000, :since, 1
FROM number
"""
_FUNDING: Final = (
    # In the order in which they were rented, as they would have come about, and not in that of their ids.
    "INSERT INTO account (id, balance, held) SELECT 'srv:' || id, 5000000, 0 FROM server NOT INDEXED",
    "INSERT INTO account (id, balance, held) SELECT DISTINCT 'wallet:' || wallet, 2000000, 0 FROM server",
    "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) "
    "SELECT 'topup|' || id, :usdc, id, balance, 'topup', id, :since FROM account WHERE balance > 0",
)


def fill(path: Path, *, servers: int, due: int, due_at: int) -> None:
    """Make the database: `due` of the servers come due at `due_at`, the others hours later."""
    migrate(f"sqlite:///{path}")
    since = due_at - _UNSETTLED_S
    values = {
        "servers": servers,
        "per_wallet": PER_WALLET,
        "every": servers // due,
        "since": since,
        "due_at": due_at,
        "later": since + _LATER_S,
        "usdc": EXT_USDC,
    }
    with closing(connect_writer(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        for sql in (_SERVERS, *_FUNDING):
            connection.execute(sql, values)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def move_due(path: Path, *, to: int) -> None:
    """Let the due servers come due at another moment, still ahead; they are charged from where they were."""
    with closing(connect_writer(path)) as connection:
        connection.execute("UPDATE server SET due_at = ? WHERE due_at <= ?", (to, to))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def count_due(path: Path, now: int) -> int:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        count: int
        (count,) = connection.execute("SELECT COUNT(*) FROM server WHERE due_at <= ?", (now,)).fetchone()
        return count
