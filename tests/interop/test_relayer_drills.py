"""What `docs/drills.md` tells an operator, gone through on a real chain: the lines of the log, the command, the end.

A line is compared with the document, addresses and hashes aside, so that neither changes without the other.
"""

import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import pytest
from spawn_schemas.x402 import Reason

from spawn.evm.transactions import address_of
from tests.anvil import RELAYER_KEYS, Chain, anvil
from tests.e2e.anvil_books import ETHER, check_at_rest, check_books
from tests.e2e.anvil_crashing import EVERY, PAY_TO, TURN_S, Call, Trial, Weather
from tests.e2e.test_cli import spawn
from tests.engines import ROOT
from tests.harness import START_S, VirtualClock
from tests.wallets import Wallet

KEY: Final = RELAYER_KEYS[0]
RELAYER: Final = address_of(KEY)
GWEI: Final = 10**9
TURNS_MAX: Final = 40
RETRY_TURNS: Final = 4
"""More than five seconds: what a node refused is sent again after that."""
DEPOSIT: Final = Call(method="POST", path="/v1/balance/deposit", body={"amount": "5.00"})


class Held(Weather):
    """A block every two seconds unless `is_still`, which costs `base_fee_wei` per gas if that is set.

    No call waits for its settlement, so that the test sees what a client does when one takes long.
    """

    settings = MappingProxyType({"settle_wait_s": 0.0})

    def __init__(self) -> None:
        self.is_still = False
        self.base_fee_wei: int | None = None

    def turn(self, chain: Chain, now: int) -> None:
        if self.is_still:
            return
        if self.base_fee_wei is not None:
            chain.base_fee(self.base_fee_wei)
        super().turn(chain, now)


class Drill:
    """A service that settles by itself, its operator, and one customer."""

    def __init__(self, trial: Trial, weather: Held, caplog: pytest.LogCaptureFixture) -> None:
        self.trial = trial
        self.weather = weather
        self.chain = trial.chain
        self._caplog = caplog
        self._told = 0

    async def paid(self, wallet: int = 1, **changes: Any) -> Call:
        """A deposit with a payment for it; `changes` are to its authorization."""
        (challenge,) = await self.trial.ask(DEPOSIT)
        header = challenge.headers["PAYMENT-REQUIRED"]
        payer = Wallet.numbered(wallet)
        return replace(DEPOSIT, payment=payer.payment(header, now=self.trial.clock.now_s(), **changes))

    async def ask(self, call: Call) -> httpx.Response:
        (answer,) = await self.trial.ask(call)
        return answer

    async def pends(self, call: Call) -> None:
        """The call is told to come again, with the same payment."""
        answer = await self.ask(call)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "settlement_pending"
        assert answer.headers["Retry-After"] == "5"

    async def held(self) -> Call:
        """A call whose transaction waits for a block, of which there are none for now."""
        self.chain.set_automine(False)
        self.weather.is_still = True
        call = await self.paid()
        await self.pends(call)
        await self.turns(1)
        assert len(self.chain.pending()) == 1
        return call

    async def succeeds(self, call: Call) -> None:
        """The same header, until there is an answer."""
        for _ in range(TURNS_MAX):
            answer = await self.ask(call)
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                return
            await self.turns(1)
        raise AssertionError("no answer")

    async def turns(self, count: int, seconds: int = TURN_S) -> None:
        for _ in range(count):
            await self.trial.turn(seconds)

    def heard(self) -> list[str]:
        """What the relayer has told since this was last asked, each line as the document has it."""
        lines = [
            f"{record.levelname} {record.name}: {_generic(record.getMessage())}"
            for record in self._caplog.records
            if record.name.startswith("spawn.services.relayer")
        ]
        new, self._told = lines[self._told :], len(lines)
        return [_documented(line) for line in new]

    def treasury(self) -> str:
        """What the operator's command prints; exit 0."""
        done = self._command()
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    def treasury_fails(self) -> str:
        done = self._command()
        assert (done.returncode, done.stdout) == (1, "")
        return _documented(_generic(done.stderr.strip()))

    def _command(self) -> Any:
        settings = self.trial.settings
        return spawn(
            self.trial.folder,
            "treasury",
            payments="self",
            rpc_url=self.chain.url,
            x402_pay_to=PAY_TO,
            relayer_key=settings.relayer_key,
        )

    def check(self, count: int) -> None:
        """So many payments reached us, each is credited, and no nonce is missing."""
        moved = [one.transaction for one in self.chain.transfers(PAY_TO)]
        assert len(moved) == count
        check_at_rest(self.trial.settings, self.chain, moved=moved)


def _generic(text: str) -> str:
    """Without what is different each time."""
    text = re.sub(r"0x[0-9a-f]{8,}", "0x…", text, flags=re.IGNORECASE)
    return re.sub(r"(the node does not answer) eth_\w+: \w+ \(.*\)", r"\1 eth_…: …", text)


def _documented(line: str) -> str:
    assert line in (ROOT / "docs" / "drills.md").read_text(encoding="utf-8"), line
    return line


@pytest.fixture
def chain() -> Iterator[Chain]:
    with anvil(at=START_S) as chain:
        chain.mine(5)
        for number in (1, 2, 3):
            chain.fund(Wallet.numbered(number).address, 100_000_000)
        yield chain


@asynccontextmanager
async def drill_on(chain: Chain, folder: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Drill]:
    caplog.set_level(logging.INFO)
    weather = Held()
    trial = Trial(chain, weather, folder, VirtualClock(START_S), (), EVERY)
    await trial.start()
    try:
        yield Drill(trial, weather, caplog)
    finally:
        await trial.close()


async def test_out_of_gas_money(chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain.set_ether_wei(RELAYER, 0)
    async with drill_on(chain, tmp_path, caplog) as drill:
        first, second = await drill.paid(1), await drill.paid(2)
        await drill.pends(first)
        await drill.turns(RETRY_TURNS)
        await drill.pends(second)
        await drill.turns(RETRY_TURNS)
        await drill.pends(first)
        (line,) = drill.heard()
        assert line.startswith("ERROR ")
        assert "send ether to it" in line
        shown = drill.treasury()
        assert "SEND IT ETHER" in shown
        assert re.search(r"settlement signed +1 +5.00 USDC", shown)
        assert re.search(r"settlement reserved +1 +5.00 USDC", shown)
        assert chain.transfers(PAY_TO) == []

        chain.set_ether_wei(RELAYER, 10 * ETHER)
        await drill.turns(RETRY_TURNS)
        await drill.succeeds(first)
        await drill.succeeds(second)
        (line,) = drill.heard()
        assert "gas money is over" in line
        assert "SEND IT ETHER" not in drill.treasury()
        await drill.turns(2)
        drill.check(2)


async def test_gas_that_became_dearer_is_paid_by_a_second_version(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with drill_on(chain, tmp_path, caplog) as drill:
        call = await drill.held()
        (cheap,) = chain.pending()
        drill.weather.is_still = False
        drill.weather.base_fee_wei = 4 * GWEI
        await drill.turns(3)
        assert chain.transfers(PAY_TO) == []  # too cheap for these blocks
        await drill.succeeds(call)
        assert drill.heard() == []  # nothing that anybody has to know
        (moved,) = chain.transfers(PAY_TO)
        assert moved.transaction != cheap
        drill.check(1)


async def test_gas_above_the_cap_is_waited_out(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with drill_on(chain, tmp_path, caplog) as drill:
        drill.weather.base_fee_wei = 6 * GWEI
        await drill.turns(1)
        call = await drill.paid()
        await drill.pends(call)
        await drill.turns(20)
        await drill.pends(call)
        (line,) = drill.heard()
        assert "SPAWN_RELAY_FEE_CAP_GWEI" in line
        drill.weather.base_fee_wei = GWEI
        await drill.turns(1)
        await drill.succeeds(call)
        (line,) = drill.heard()
        assert line.endswith("the trouble with fees is over")
        drill.check(1)


async def test_somebody_else_uses_the_key(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its nonce is gone, and our transaction with it: the payment goes again, at the next one."""
    async with drill_on(chain, tmp_path, caplog) as drill:
        call = await drill.held()
        chain.drop_all()
        chain.send(PAY_TO, b"", key=KEY)
        drill.weather.is_still = False
        await drill.turns(1)
        assert chain.nonce(RELAYER) == 1
        await drill.succeeds(call)
        moved = [one.transaction for one in chain.transfers(PAY_TO)]
        assert len(moved) == 1
        assert chain.nonce(RELAYER) == 2
        check_books(drill.trial.settings, chain, moved=moved)


async def test_a_nonce_that_the_chain_has_lost_is_filled_with_what_it_had(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reorganisation deeper than we confirm: what we called final is brought to the chain again."""
    async with drill_on(chain, tmp_path, caplog) as drill:
        await drill.succeeds(await drill.paid(1))
        depth = chain.head - chain.transfers(PAY_TO)[0].block_number + 1
        chain.reorg(depth)
        assert chain.nonce(RELAYER) == 0
        call = await drill.paid(2)
        await drill.pends(call)
        await drill.succeeds(call)
        (line,) = drill.heard()
        assert line.startswith("WARNING ")
        assert "nonces from 0 on were missing" in line
        moved = [one.transaction for one in chain.transfers(PAY_TO)]
        assert len(moved) == chain.nonce(RELAYER) == 2
        check_books(drill.trial.settings, chain, moved=moved)


async def test_the_node_is_down_for_an_hour(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with drill_on(chain, tmp_path, caplog) as drill:
        sent = await drill.held()  # the node has it, and forgets it
        chain.stop()
        now = drill.trial.clock.now_s()
        short = await drill.paid(2)
        long = await drill.paid(3, validBefore=str(now + 3600))
        for call in (short, long):
            await drill.pends(call)
        for _ in range(11):
            await drill.turns(1, seconds=310)
            for call in (sent, short, long):
                await drill.pends(
                    call
                )  # expired by our clock, and yet not refused: nobody knows what the chain has
        (line,) = drill.heard()
        assert line.startswith("ERROR ")
        assert "SPAWN_RPC_URL" in drill.treasury_fails()

        chain.start()
        drill.weather.is_still = False
        chain.set_time(drill.trial.clock.now_s())
        await drill.turns(10)
        await drill.succeeds(long)
        for call in (sent, short):
            answer = await drill.ask(call)
            assert answer.status_code == 402, answer.text
            assert answer.json()["error"]["details"]["reason"] == Reason.VALID_BEFORE.value
        assert [line for line in drill.heard() if "node is over" in line]
        await drill.turns(20)
        drill.check(1)
