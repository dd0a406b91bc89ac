"""Books to test money with: the migrated database, two wallets with a server each, and a few movements."""

import importlib.util
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from spawn_ledger.accounts import (
    EXT_USDC,
    REV_COMPUTE,
    REV_OPFEE,
    AccountId,
    server_account,
    wallet_account,
)
from spawn_ledger.transfers import Code, Hold, Transfer, TransferId, transfer_id
from spawn_ledger.tx import Params, Row, Tx
from spawn_ledger.wallets import (
    NEWEST,
    STATEMENT,
    StatementLine,
    statement_from,
    statement_params,
)
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.store.database import NO_PARAMS
from spawn.store.postgres_session import Connection, PostgresTx, no_fate
from spawn.store.sqlite_writer import SqliteTx
from tests import databases

NOW = 1_800_000_000
ALICE, BOB = Address("0x" + "a1" * 20), Address("0x" + "b0" * 20)
WALLET, OTHER_WALLET = wallet_account(ALICE), wallet_account(BOB)
SERVER, OTHER_SERVER = ServerId("srv_1"), ServerId("srv_2")
RESERVE, OTHER_RESERVE = server_account(SERVER), server_account(OTHER_SERVER)
OPERATION, OTHER_OPERATION = "act_1", "act_2"


class Books:
    """The smallest `Tx`: one connection with its transaction open, on either engine."""

    def __init__(self, connection: sqlite3.Connection | Connection) -> None:
        self.connection = connection
        self._tx: Tx = (
            SqliteTx(connection)
            if isinstance(connection, sqlite3.Connection)
            else PostgresTx(connection, no_fate)
        )

    def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
        return self._tx.execute(sql, params)

    def one(self, sql: str, params: Params = NO_PARAMS, /) -> Row | None:
        return self._tx.one(sql, params)

    def all(self, sql: str, params: Params = NO_PARAMS, /) -> list[Row]:
        return self._tx.all(sql, params)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The bare values of a query's rows."""
        return [tuple(dict(cast("Any", row)).values()) for row in self.all(sql)]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What is written inside is not kept, and a statement that fails inside breaks nothing outside."""
        self.connection.execute("SAVEPOINT undone")
        try:
            yield
        finally:
            self.connection.execute("ROLLBACK TO undone")

    def accept_anything(self) -> None:
        """The database checks no value from here on: for corruptions that only `verify` is to find."""
        if isinstance(self.connection, sqlite3.Connection):
            self.connection.execute("PRAGMA ignore_check_constraints = ON")
            return
        for row in self.all(_SELECT_CHECKS):
            self.execute(row["drop_check"])

    def close(self) -> None:
        self.connection.close()


_SELECT_CHECKS: Final = """
SELECT format('ALTER TABLE %I DROP CONSTRAINT %I', c.relname, k.conname) AS drop_check
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE k.contype = 'c'
"""


@cache
def migrated() -> bytes:
    """An empty database after every migration, as the bytes of its file."""
    versions = Path(__file__).resolve().parents[2] / "migrations" / "versions"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            for script in sorted(versions.glob("*.py")):
                spec = importlib.util.spec_from_file_location(script.stem, script)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                module.upgrade()
        engine.dispose()
        return path.read_bytes()


def open_books(path: Path) -> Books:
    """A fresh copy of the migrated database, with two wallets' servers in it and a transaction open.

    Nothing is ever committed, so that on a server one database is fresh each time for all books of a file's name.
    """
    tx = Books(_begun_file(path) if databases.engine() == "sqlite" else _begun(path.name))
    add_server(tx, SERVER, ALICE, OPERATION)
    add_server(tx, OTHER_SERVER, BOB, OTHER_OPERATION)
    return tx


def _begun_file(path: Path) -> sqlite3.Connection:
    path.write_bytes(migrated())
    connection = sqlite3.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    for pragma in ("foreign_keys", "recursive_triggers"):
        connection.execute(f"PRAGMA {pragma} = ON")
    connection.execute("BEGIN IMMEDIATE")
    return connection


def _begun(name: str) -> Connection:
    url = databases.database_url(Path(f"books-of-{os.getpid()}"), name)
    databases.make(url)
    connection = databases.connection(url)
    connection.execute("BEGIN")
    return connection


def insert(tx: Books, table: str, **values: object) -> None:
    tx.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})",
        values,
    )


def add_server(tx: Books, server_id: ServerId, wallet: Address, operation_id: str) -> None:
    """A metered server with one running operation."""
    insert(
        tx,
        "server",
        id=server_id,
        wallet=wallet,
        name=f"name-{server_id}",
        type="small",
        image="debian-12",
        location="nbg1",
        network="dual",
        ssh_keys="[]",
        provider="simulated",
        provider_type="cx23",
        architecture="x86",
        cores=2,
        memory_gb=4,
        disk_gb=40,
        status="running",
        auto_renew=1,
        created_at=NOW,
        daily_usdc=150_000,
        remainder=0,
        charged_until=NOW,
        charged_usdc=0,
        minimum_usdc=6_250,
        due_at=NOW + 86_400,
    )
    insert(
        tx,
        "operation",
        id=operation_id,
        server_id=server_id,
        wallet=wallet,
        command="create",
        status="running",
        plan="[]",
        step=0,
        phase="queued",
        answered=0,
        attempts=0,
        next_at=NOW,
        deadline_at=NOW + 600,
        claim_until=0,
        created_at=NOW,
    )


def topup(amount: int, id: str = "topup|1", wallet: AccountId = WALLET) -> Transfer:
    return Transfer(
        id=TransferId(id),
        debit=EXT_USDC,
        credit=wallet,
        amount=Usdc(amount),
        code=Code.TOPUP,
        reference="res_1",
        at=NOW,
    )


def fee(amount: int, id: str = "fee|1") -> Transfer:
    return Transfer(
        id=TransferId(id),
        debit=WALLET,
        credit=REV_OPFEE,
        amount=Usdc(amount),
        code=Code.FEE,
        reference="res_1",
        at=NOW,
    )


def deposit_hold(amount: int, id: str = "deposit|1") -> Hold:
    return Hold(
        id=TransferId(id),
        debit=WALLET,
        credit=RESERVE,
        amount=Usdc(amount),
        code=Code.DEPOSIT,
        reference=OPERATION,
        at=NOW,
    )


def burn(amount: int, code: Code = Code.BURN) -> Transfer:
    """For the last minute from the reserve, or for the least that a server costs."""
    stretch = (NOW - 60, NOW, "reserve") if code is Code.BURN else ()
    return Transfer(
        id=transfer_id(code.value, SERVER, *stretch),
        debit=RESERVE,
        credit=REV_COMPUTE,
        amount=Usdc(amount),
        code=code,
        reference=SERVER,
        at=NOW,
    )


# A server that has ended holds nothing (`verify` proves it), so that only the living are looked up.
WALLET_TOTALS: Final = """
SELECT
    COALESCE((SELECT balance - held FROM account WHERE id = :account), 0) AS available,
    COALESCE((SELECT held FROM account WHERE id = :account), 0) + COALESCE((
        SELECT CAST(SUM(reserve.balance) AS BIGINT)
        FROM server JOIN account AS reserve ON reserve.id = 'srv:' || server.id
        WHERE server.wallet = :wallet AND server.ended_at IS NULL
    ), 0) AS reserved
"""


class WalletTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What can be spent, and what is set aside for servers or by holds; as last recorded."""

    available: Usdc
    reserved: Usdc

    @property
    def total(self) -> Usdc:
        return Usdc(self.available + self.reserved)


def totals(tx: Books, wallet: Address) -> WalletTotals:
    (row,) = tx.all(WALLET_TOTALS, {"wallet": wallet, "account": wallet_account(wallet)})
    return WalletTotals(available=Usdc(row["available"]), reserved=Usdc(row["reserved"]))


def statement(tx: Books, wallet: Address, *, before: int = NEWEST, limit: int = 50) -> list[StatementLine]:
    return statement_from(tx.all(STATEMENT, statement_params(wallet, before=before, limit=limit)))
