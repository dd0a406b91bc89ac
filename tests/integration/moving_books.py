"""Books of any length, made within seconds: what a database holds after years, without living through them.

Invariant: they are as right as those that the service keeps; `spawn_ledger.verify` finds nothing.
"""

import contextlib
from pathlib import Path
from typing import Final

from spawn.store.sqlite import connect_writer

FEE: Final = 1_000
# Pairs of movements: a wallet pays in, and pays a fee. Hashes would be as long, and scattered as ids are.
_FILL: Final = """
INSERT INTO transfer (id, debit, credit, amount, code, reference, at)
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :transfers),
named (n, wallet, payment) AS (
    SELECT n, printf('wallet:0x%040x', (n / 2) % :wallets + 4096), printf('0x%064x', (n / 2 + 1) * 2654435761)
    FROM number
)
SELECT CASE n % 2 WHEN 0 THEN 'topup|' ELSE 'opfee|' END || payment,
    CASE n % 2 WHEN 0 THEN 'ext:usdc' ELSE wallet END, CASE n % 2 WHEN 0 THEN wallet ELSE 'rev:opfee' END,
    :fee * (2 - n % 2), CASE n % 2 WHEN 0 THEN 'topup' ELSE 'opfee' END, payment, 1700000000 + n / 100
FROM named ORDER BY n
"""
_SUM_UP: Final = """
INSERT INTO account (id, balance, held)
SELECT wallet, SUM(amount), 0 FROM (
    SELECT credit AS wallet, amount FROM transfer WHERE seq > :before AND code = 'topup'
    UNION ALL SELECT debit, -amount FROM transfer WHERE seq > :before AND code = 'opfee'
) GROUP BY wallet
"""


def fill(path: Path, transfers: int, *, wallets: int = 1_000) -> None:
    """Add this many transfers, of wallets that nobody has. Once for each database."""
    with contextlib.closing(connect_writer(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        (before,) = connection.execute("SELECT COALESCE(MAX(seq), 0) FROM transfer").fetchone()
        connection.execute(_FILL, {"transfers": transfers, "wallets": wallets, "fee": FEE})
        connection.execute(_SUM_UP, {"before": before})
        connection.execute("COMMIT")
