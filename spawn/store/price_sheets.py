"""The `price_sheet` table: what the provider's lists were last made into, one row for the provider that is used."""

from typing import Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.money import Usdc

from spawn.domain.price_sheets import Sheet

SELECT_SHEET: Final = "SELECT * FROM price_sheet WHERE provider = :provider"
SAVE_SHEET: Final = """
INSERT INTO price_sheet (provider, sheet, eur_usdc, eur_at, read_at)
VALUES (:provider, :sheet, :eur_usdc, :eur_at, :read_at)
ON CONFLICT (provider) DO UPDATE SET sheet = excluded.sheet, eur_usdc = excluded.eur_usdc, eur_at = excluded.eur_at,
  read_at = excluded.read_at, failing_since = NULL, error = NULL
"""
FORGET_OTHERS: Final = "DELETE FROM price_sheet WHERE provider <> :provider"
SET_FAILING: Final = """
UPDATE price_sheet SET failing_since = COALESCE(failing_since, :now), error = :error WHERE provider = :provider
"""

_sheets: Final[msgspec.json.Decoder[Sheet]] = msgspec.json.Decoder(Sheet)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The sheet, and the euro's price in it. `eur_at` is the day of that, None where it is a setting."""

    sheet: Sheet
    eur_usdc: Usdc
    eur_at: int | None
    read_at: int


def kept_from(row: Row) -> Kept:
    """Read one row of `SELECT * FROM price_sheet`."""
    return Kept(
        sheet=_sheets.decode(row["sheet"]),
        eur_usdc=Usdc(row["eur_usdc"]),
        eur_at=row["eur_at"],
        read_at=row["read_at"],
    )


def find(tx: Tx, provider: str) -> Kept | None:
    row = tx.one(SELECT_SHEET, {"provider": provider})
    return None if row is None else kept_from(row)


def save(tx: Tx, provider: str, kept: Kept) -> None:
    """Keep it, and that it could be read; another provider's, which is not used any more, is forgotten."""
    tx.execute(FORGET_OTHERS, {"provider": provider})
    params = {
        "provider": provider,
        "sheet": msgspec.json.encode(kept.sheet).decode(),
        "eur_usdc": kept.eur_usdc,
        "eur_at": kept.eur_at,
        "read_at": kept.read_at,
    }
    tx.execute(SAVE_SHEET, params)


def set_failing(tx: Tx, provider: str, error: str, now: int) -> None:
    """Note since when it cannot be read again; without a sheet there is nothing that could be old."""
    tx.execute(SET_FAILING, {"provider": provider, "error": error, "now": now})
