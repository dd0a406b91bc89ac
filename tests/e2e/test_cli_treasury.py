"""`spawn treasury` as the operator meets it, beside the embedded chain."""

import asyncio
import json
from pathlib import Path

from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.clock import SystemClock
from spawn.rails import open_devnet
from spawn.settings import Settings
from tests import databases
from tests.e2e.test_cli import change, refused, spawn

INSERT_TOPUP = (
    "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) "
    "VALUES ('topup|x', 'ext:usdc', 'rev:opfee', 3000000, 'topup', 'x', 0)"
)
BYTES = {"sqlite": "x'00'", "postgresql": r"'\x00'"}[databases.engine()]
UNSETTLED = (
    "INSERT INTO settlement (id, payer, amount, payment, valid_before, state, created_at) "
    f"VALUES ('x402_1', '0x1', 1000, {BYTES}, 0, 'broadcast', 0)"
)


def give(folder: Path, amount: int) -> None:
    """Play money on the account that we are paid to."""

    async def mint() -> None:
        await chain.mint(settings.pay_to, Usdc(amount))

    settings = Settings(devnet_path=str(folder / "spawn-devnet.db"))
    chain = open_devnet(settings, SystemClock())
    try:
        asyncio.run(mint())
    finally:
        chain.close()


def test_the_chain_beside_the_books(tmp_path: Path) -> None:
    assert spawn(tmp_path, "migrate").returncode == 0
    give(tmp_path, 4_500_000)
    change(tmp_path, INSERT_TOPUP)
    change(tmp_path, UNSETTLED)
    done = spawn(tmp_path, "treasury")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "treasury  0x5Ba7Dd0000000000000000000000000000008402 on eip155:84532 (devnet)"
    )
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["on", "chain", "4.500000", "USDC"],
        ["in", "the", "books", "3.000000"],
        ["difference", "1.500000", "USDC", "not"],
    ]
    assert lines[4].strip() == "last compared by the service: never"
    assert lines[6].split()[:5] == ["settlement", "broadcast", "1", "0.001", "USDC,"]
    shown = json.loads(spawn(tmp_path, "treasury", "--json").stdout)
    assert (shown["chain"], shown["books"], shown["difference"], shown["short"]) == (
        "4.50",
        "3.00",
        "1.50",
        False,
    )
    assert (shown["gas"], shown["last"], shown["facilitators"]) == (None, None, [])
    assert [(line["what"], line["count"]) for line in shown["unfinished"]] == [("settlement broadcast", 1)]


def test_books_that_claim_more_than_there_is_are_broken(tmp_path: Path) -> None:
    assert spawn(tmp_path, "migrate").returncode == 0
    give(tmp_path, 2_000_000)
    change(tmp_path, INSERT_TOPUP)
    done = spawn(tmp_path, "treasury")
    assert done.returncode == 1
    assert ["difference", "-1.000000", "USDC", "BROKEN:"] in [
        line.split()[:4] for line in done.stdout.splitlines()
    ]
    assert (
        "broken: the books claim 3.00 USDC and the chain shows 2.00: 1.00 of it is not there" in done.stdout
    )
    as_json = spawn(tmp_path, "treasury", "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["short"]) == (1, True)


def test_looking_creates_nothing(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "treasury"), "spawn migrate")
    assert spawn(tmp_path, "migrate").returncode == 0
    refused(spawn(tmp_path, "treasury"), "no development chain", "spawn dev", "SPAWN_DEVNET_PATH")
    assert not (tmp_path / "spawn-devnet.db").exists()


def test_an_account_of_nobody_is_not_asked_about(tmp_path: Path) -> None:
    assert spawn(tmp_path, "migrate").returncode == 0
    ours = {"payments": "self", "rpc_url": "http://127.0.0.1:9", "relayer_key": "11" * 32}
    refused(spawn(tmp_path, "treasury", **ours), "SPAWN_X402_PAY_TO")
    ours["x402_pay_to"] = Address("0x" + "5a" * 20)
    for command in (("treasury",), ("ledger", "verify")):
        refused(spawn(tmp_path, *command, **ours), "the node does not answer", "SPAWN_RPC_URL")
