"""A real chain on this machine for developers and tests: anvil, with a token that stands in for USDC.

The token is at the address that USDC has on Base Sepolia, and Multicall3 at its own, because stock clients pay only in
assets that they know; so it can never be mistaken for that network, anvil listens on loopback alone.
Invariant: what we start here, we end; nobody else's process is touched.
"""

import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import urlsplit

import httpx
import msgspec
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.money import Usdc

from spawn.evm.eip3009 import balance_of_call
from spawn.evm.transactions import address_of
from spawn.settings import DEVNET_ASSET, DEVNET_NETWORK, MULTICALL3, Settings

FOLDER: Final = Path(sys.prefix) / "anvil"
"""Where `make anvil` puts the program and the contracts."""
URL: Final = "http://127.0.0.1:8545"
STATE: Final = "spawn-anvil.json"
DATABASE_URL: Final = "sqlite:///spawn-anvil.db"
"""A database of its own: the books of `spawn dev` are about another chain."""
ASSET: Final = parse_address(DEVNET_ASSET)
MINTER: Final = Address("0x5ba7dd0000000000000000000000000000008545")
"""Who may mint the token. Nobody has its key; anvil lets us act as anybody."""
RELAYER_KEY: Final = f"0x{8402:064x}"
PAY_TO: Final = Address("0x5ba7dd0000000000000000000000000000008546")

_ETHER: Final = 10**18
_MINT: Final = bytes.fromhex("40c10f19")  # mint(address,uint256)
_START_S: Final = 10
_CALL_S: Final = 10


class DevChainUnavailable(Exception):
    """There is no such chain, or it cannot be started; the message says what to do."""


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """The anvil program, and the creation code (0x…) of each contract by name."""

    anvil: Path
    contracts: Mapping[str, str]


class Anvil:
    """A running anvil and its own methods (`anvil_*`, `evm_*`)."""

    def __init__(self, url: str, process_id: int | None = None) -> None:
        """`process_id`: of the anvil we started; None for one that somebody else did."""
        self.url = url
        self.process_id = process_id
        self._http = httpx.Client(base_url=url, timeout=_CALL_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, *parameters: Any) -> Any:
        """One JSON-RPC call. Raises DevChainUnavailable when there is no answer, or it is an error."""
        question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        try:
            answer = self._http.post("", json=question).json()
        except (httpx.HTTPError, ValueError) as error:
            raise DevChainUnavailable(
                f"no anvil answers at {self.url}: start `spawn dev --chain anvil` first."
            ) from error
        if "error" in answer:
            raise DevChainUnavailable(f"{self.url} answers {method} with {answer['error']['message']!r}.")
        return answer["result"]

    def require_ours(self) -> None:
        """Raise DevChainUnavailable for a node that is not anvil, or has not our token: only ours gives money away."""
        version = str(self.ask("web3_clientVersion"))
        if not version.startswith("anvil/") or self.ask("eth_getCode", ASSET, "latest") == "0x":
            raise DevChainUnavailable(
                f"{self.url} is {version} and not the chain of `spawn dev --chain anvil`, which alone gives money away."
            )

    def equip(self, contracts: Mapping[str, str]) -> None:
        """Put token and Multicall3 where clients look for them. What the chain had of them stays."""
        for name, address in (("Usdc", ASSET), ("Multicall3", MULTICALL3)):
            code = self.ask("eth_call", {"from": MINTER, "data": contracts[name]}, "latest")
            self.ask("anvil_setCode", address, code)
        self.ask("anvil_impersonateAccount", MINTER)
        self.give_ether(MINTER, 1_000)
        if int(self.ask("eth_blockNumber"), 16) == 0:
            # Before its first block the chain's time is 0 for calls, and no authorization would be valid yet.
            self.ask("evm_mine")

    def give_ether(self, account: Address, ether: int) -> None:
        """Bring an account up to this many ether; one that has more keeps it."""
        if int(self.ask("eth_getBalance", account, "latest"), 16) < ether * _ETHER:
            self.ask("anvil_setBalance", account, hex(ether * _ETHER))

    def mint(self, account: Address, amount: Usdc) -> Usdc:
        """Make money out of nothing, in a transaction that is mined at once; return the new balance."""
        data = _MINT + bytes(12) + bytes.fromhex(account[2:]) + amount.to_bytes(32, "big")
        self.ask("eth_sendTransaction", {"from": MINTER, "to": ASSET, "data": "0x" + data.hex()})
        self.ask("evm_mine")
        return self.balance_of(account)

    def balance_of(self, account: Address) -> Usdc:
        data = "0x" + balance_of_call(account).hex()
        return Usdc(int(self.ask("eth_call", {"to": ASSET, "data": data}, "latest"), 16))


def installed(folder: Path = FOLDER) -> Programs:
    """What `make anvil` installed. Raises DevChainUnavailable when it has not."""
    anvil = next(folder.glob("anvil*"), None)
    contracts = folder / "contracts.json"
    if anvil is None or not contracts.exists():
        raise DevChainUnavailable(
            f"anvil is not installed in {folder}: run `make anvil` in a checkout of spawn (it needs Node and npm)."
        )
    return Programs(anvil=anvil, contracts=msgspec.json.decode(contracts.read_bytes(), type=dict[str, str]))


@contextmanager
def running(programs: Programs, *options: str, port: int = 0) -> Iterator[Anvil]:
    """An anvil with token and Multicall3 on loopback, ended afterwards. `options` are anvil's own.

    Port 0 takes a free one. Raises DevChainUnavailable when it does not start.
    """
    chain_id = DEVNET_NETWORK.removeprefix("eip155:")
    command = [str(programs.anvil), "--host", "127.0.0.1", "--port", str(port), "--chain-id", chain_id]
    # A session of its own: Ctrl-C is for us, and what is under way must still settle.
    process = subprocess.Popen(  # noqa: S603 - our own program, and no shell
        [*command, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        anvil = Anvil(_listening(process), process.pid)
        try:
            anvil.equip(programs.contracts)
            yield anvil
        finally:
            anvil.close()
    finally:
        _end(process)


def settings_here(environ: Mapping[str, str]) -> dict[str, str]:
    """What a service needs to settle on this chain by itself; where there is a choice, `environ` may have made it."""
    chain = {
        "payments": "self",
        "x402_network": DEVNET_NETWORK,
        "x402_asset": DEVNET_ASSET,
        "x402_asset_name": "USDC",
        "x402_asset_version": "2",
        "relay_multicall": MULTICALL3,
    }
    ours = {
        "rpc_url": URL,
        "relayer_key": RELAYER_KEY,
        "x402_pay_to": PAY_TO,
        "database_url": DATABASE_URL,
    }
    return chain | {name: value for name, value in ours.items() if f"SPAWN_{name.upper()}" not in environ}


@contextmanager
def for_developers(settings: Settings, state: Path) -> Iterator[Anvil]:
    """The chain that `settings_here` names, kept in `state`: a block every two seconds, and one for any transaction.

    Relayers have ether. Raises DevChainUnavailable.
    """
    programs = installed()
    at = urlsplit(settings.rpc_url)
    port = at.port
    if at.hostname not in {"127.0.0.1", "localhost"} or port is None:
        raise DevChainUnavailable(f"anvil is started on this machine: SPAWN_RPC_URL should be like {URL}.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise DevChainUnavailable(
                f"port {port} is in use: end what listens there, or set SPAWN_RPC_URL to another port."
            )
    options = ("--block-time", "2", "--mixed-mining", "--state", str(state))
    with running(programs, *options, port=port) as anvil:
        for key in settings.relayer_keys:
            anvil.give_ether(address_of(key), 10)
        yield anvil


def _listening(process: subprocess.Popen[str]) -> str:
    """The address in anvil's greeting. Its output is read to the end, so that it never waits for a reader."""
    said: list[str] = []
    found: list[str] = []
    started = threading.Event()

    def read() -> None:
        with cast("IO[str]", process.stdout) as output:  # we asked for a pipe
            for line in output:
                if line.startswith("Listening on "):
                    found.append(line.removeprefix("Listening on ").strip())
                    break
                said.append(line)
            started.set()
            deque(output, maxlen=0)

    threading.Thread(target=read, name="anvil", daemon=True).start()
    if not started.wait(_START_S) or not found:
        raise DevChainUnavailable(f"anvil does not start: {''.join(said[-5:]).strip() or 'it says nothing'}")
    return f"http://{found[0]}"


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
