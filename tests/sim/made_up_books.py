"""Made-up books: the commits of one server's life, right in all that they say, for a test to make wrong.

Its server costs a micro-USDC a second, and its provider asks for half of that.
"""

import json
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from spawn.settings import Settings
from tests.sim.disk import dicts
from tests.sim.oracle.bills import Bills
from tests.sim.oracle.books import Books
from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.oracle.rates import DAY
from tests.sim.oracle.runways import Runways

if TYPE_CHECKING:
    from tests.sim.world import World

T0: Final = int(datetime(2026, 3, 10, tzinfo=UTC).timestamp())
WALLET: Final = "0x" + "ab" * 20
OWN: Final = f"wallet:{WALLET}"
SERVER: Final = "srv_a"
RESERVE: Final = f"srv:{SERVER}"
DEPOSIT: Final = 1_000_000
CALL: Final = f"{T0 * 1000:011x}01234567sig_1"


class Wrong(Exception):
    """What the oracle says."""


@dataclass
class Stub:
    """As much of a world as the oracle of money looks at. A micro-USDC a second is what its server costs."""

    now: int = T0
    calm: bool = False
    settings: Settings = field(default_factory=Settings)
    connection: sqlite3.Connection | None = None
    has_replicas: bool = False

    @property
    def books(self) -> "Stub":
        return self

    @property
    def clock(self) -> "Stub":
        return self

    def now_s(self) -> int:
        return self.now

    def violation(self, promise: str, text: str) -> NoReturn:
        raise Wrong(text)

    def rows(self, sql: str, **params: Any) -> list[Row]:
        assert self.connection is not None
        return dicts(self.connection.execute(sql, params))

    def parts(self) -> list[Part]:
        return [part(cast("World", self)) for part in (Books, Bills, Runways)]


@dataclass
class Life:
    """The commits of one server's life, from the first payment to the last cent, right in all that they say."""

    commits: dict[str, tuple[int, Changes]] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    held: int = 0
    seq: int = 0

    def book(self, name: str, at: int, transfers: list[Row] | None = None, **tables: dict[Any, Row]) -> None:
        changes = Changes(transfers=transfers or [], rows={name: {**rows} for name, rows in tables.items()})
        for transfer in changes.transfers:
            self.seq += 1
            transfer["seq"] = self.seq
            for side, sign in (("debit", -1), ("credit", 1)):
                account = transfer[side]
                self.balances[account] = self.balances.get(account, 0) + sign * transfer["amount"]
        changes.rows["account"] = {
            account: {"id": account, "balance": balance, "held": self.held if account == OWN else 0}
            for account, balance in self.balances.items()
            if account.startswith(("wallet:", "srv:"))
        }
        self.commits[name] = (at, changes)

    def play(self, until: str | None = None) -> list[Part]:
        """Show it to the oracle, up to this commit at most."""
        stub = Stub()
        parts = stub.parts()
        for name, (at, changes) in self.commits.items():
            stub.now = at
            for part in parts:
                part.stepped()
                part.committed(changes)
            if name == until:
                break
        return parts


def moved(name: str, debit: str, credit: str, amount: int, code: str, reference: str, at: int) -> Row:
    return {
        "seq": 0,
        "id": name,
        "debit": debit,
        "credit": credit,
        "amount": amount,
        "code": code,
        "reference": reference,
        "at": at,
    }


def server_row(**fields: Any) -> Row:
    return {
        "id": SERVER,
        "wallet": WALLET,
        "status": "running",
        "reason": None,
        "auto_renew": 0,
        "created_at": T0,
        "ended_at": None,
        "missing_since": None,
        "daily_usdc": DAY,
        "remainder": 0,
        "charged_until": None,
        "charged_usdc": 0,
        "minimum_usdc": 0,
        "due_at": None,
        "capped_s": 31 * DAY,
        "month_s": 0,
        "metered_from": None,
        "priced_at": T0,
        "reprice_at": None,
        "reprice_usdc": None,
        "cost_daily_usdc": DAY // 2,
        "cost_capped_s": 31 * DAY,
        "cost_step_s": 3_600,
        "cost_until": None,
        "cost_usdc": 0,
        "epoch": 1,
        "warned_s": None,
        "last_warned_at": None,
        "exhausted_at": None,
        "owed": None,
    } | fields


def burnt(since: int, until: int, payer: str = RESERVE) -> list[Row]:
    """Two legs of a stretch at a micro-USDC a second, and half of that for us."""
    leg = "reserve" if payer == RESERVE else "wallet"
    span = until - since
    return [
        moved(f"burn|{SERVER}|{since}|{until}|{leg}", payer, "rev:compute", span, "burn", SERVER, until),
        moved(
            f"cost|{SERVER}|{since}|{until}",
            "cost:provider",
            "owed:provider",
            span // 2,
            "cost",
            SERVER,
            until,
        ),
    ]


def metered(until: int, **fields: Any) -> Row:
    spent = until - T0
    return server_row(
        **{
            "metered_from": T0,
            "charged_until": until,
            "cost_until": until,
            "charged_usdc": spent,
            "cost_usdc": spent // 2,
            "minimum_usdc": 3_600,
            "due_at": until + 3_600,
            "warned_s": 6 * 3_600,
            "month_s": until - int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()),
        }
        | fields
    )


def ordered(status: str, **fields: Any) -> dict[Any, Row]:
    return {
        "act_1": {
            "id": "act_1",
            "server_id": SERVER,
            "command": "create_server",
            "status": status,
            "plan": json.dumps({"resized": None}),
            "error_code": None,
        }
        | fields
    }


def held(state: str) -> dict[Any, Row]:
    fee = moved("fee|act_1", OWN, "rev:opfee", 10_000, "fee", "act_1", T0)
    deposit = moved("deposit|act_1", OWN, RESERVE, DEPOSIT, "deposit", "act_1", T0)
    return {hold["id"]: {**hold, "state": state} for hold in (fee, deposit)}


CALLED: Final[dict[Any, Row]] = {
    "sig_1": {
        "id": "sig_1",
        "wallet": WALLET,
        "created_ms": T0 * 1000,
        "fingerprint": "0123456789",
        "fee": 10_000,
        "operation_id": "act_1",
        "state": "acted",
        "answer": None,
    }
}


def a_life() -> Life:
    """From the first payment to the last cent."""
    life = Life()
    life.book("paid", T0, [moved("topup|n", "ext:usdc", OWN, 5_000_000, "topup", "0x1", T0)])
    life.held = 10_000 + DEPOSIT
    life.book(
        "ordered",
        T0,
        server={SERVER: server_row()},
        hold=held("pending"),
        operation=ordered("running", attempts=0, step=0, phase="queued"),
        reservation=CALLED,
    )
    life.held = 0
    posted = held("posted")
    transfers = [{key: value for key, value in hold.items() if key != "state"} for hold in posted.values()]
    life.book("accepted", T0, transfers, hold=posted, server={SERVER: metered(T0, due_at=T0)})
    life.book("done", T0 + 10, operation=ordered("success"))
    life.book("burnt", T0 + 1_000, burnt(T0, T0 + 1_000), server={SERVER: metered(T0 + 1_000)})
    end = T0 + 2_000
    refund = DEPOSIT - 3_600
    transfers = [
        *burnt(T0 + 1_000, end),
        moved(f"minimum|{SERVER}", RESERVE, "rev:compute", 1_600, "minimum", SERVER, end),
        moved(f"refund|{SERVER}", RESERVE, OWN, refund, "deposit_refund", SERVER, end),
    ]
    row = metered(end, charged_until=None, due_at=None, charged_usdc=3_600, status="destroying")
    life.book("ended", end, transfers, server={SERVER: row | {"reason": "requested"}})
    life.commits["ended"][1].events.append(
        {"seq": 1, "wallet": WALLET, "type": "server.destroying", "resource": SERVER, "at": end, "data": "{}"}
    )
    overrun = moved(f"overrun|{SERVER}", "exp:overrun", "owed:provider", 800, "overrun", SERVER, T0 + 2_100)
    gone = row | {"cost_until": None, "cost_usdc": 1_800, "ended_at": T0 + 2_100, "reason": "requested"}
    life.book("gone", T0 + 2_100, [overrun], server={SERVER: gone | {"status": "destroyed"}})
    return life
