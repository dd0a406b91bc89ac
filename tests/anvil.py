"""A real chain for a test: anvil on loopback, with USDC's stand-in where stock clients look for it, and its faults.

Every test starts its own, in a fifth of a second. Calls are synchronous and take about a millisecond.
What is stood in for: Circle's FiatTokenV2_2 by `tests/contracts/src/Usdc.sol`. Multicall3 is the real one.

    python -m tests.anvil FOLDER      installs anvil and the contracts' code there, for `spawn dev --chain anvil`
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.money import Usdc

from spawn.devchain import ASSET, Programs, running
from spawn.evm.eip3009 import TRANSFER, address_topic, transfer_call
from spawn.evm.transactions import address_of, sign
from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment
from spawn.settings import DEVNET_NETWORK, MULTICALL3
from tests.engines import ENGINES, NodePackagesMissing, anvil_programs, build_anvil_programs

CHAIN_ID: Final = int(DEVNET_NETWORK.removeprefix("eip155:"))
TOKEN: Final = ASSET
MULTICALL: Final = Address(MULTICALL3.lower())
DEPLOYER_KEY: Final = f"0x{0xDE9107E5:064x}"
"""A stranger to spawn with ether to burn: deploys contracts and submits other people's authorizations."""
RELAYER_KEYS: Final = tuple(f"0x{0x3E1A7E50 + number:064x}" for number in range(4))
"""Keys for relayers, ten ether each at the start."""

_GAS: Final = 3_000_000
_TIP_WEI: Final = 10**9
_FEE_WEI: Final = 100 * 10**9
_BALANCES_SLOT: Final = 0
"""Where OpenZeppelin's ERC20 keeps balances: the first of its variables."""


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A Transfer event of the token."""

    transaction: str
    sender: Address
    recipient: Address
    amount: Usdc
    block_number: int


class Chain:
    """A running anvil, which mines each transaction at once by itself."""

    chain_id: Final = CHAIN_ID
    token: Final = TOKEN
    multicall: Final = MULTICALL
    deployer_key: Final = DEPLOYER_KEY
    relayer_keys: Final = RELAYER_KEYS

    def __init__(self, programs: Programs, folder: Path, *, at: int | None) -> None:
        self._programs = programs
        self._stands = at is not None
        self._options = ["--state", str(folder / "state.json")]
        self._options += [] if at is None else ["--timestamp", str(at)]
        self._process = ExitStack()
        self._port = 0  # a free one, and the same again after `stop`
        self.start()
        self.url: Final = self._anvil.url
        for key in (*RELAYER_KEYS, DEPLOYER_KEY):
            self._anvil.give_ether(address_of(key), 10)

    # The process.

    def start(self) -> None:
        """Start the node (again): its blocks are as they were, its mempool is empty."""
        process = running(self._programs, *self._options, port=self._port)
        self._anvil = self._process.enter_context(process)
        self._port = urlsplit(self._anvil.url).port or 0
        if self._stands:
            self.ask("anvil_setBlockTimestampInterval", 0)

    def stop(self) -> None:
        """End the node, keeping its blocks: connections are refused from here on."""
        self._process.close()

    def hang(self) -> None:
        """Let the node take connections and answer nothing, until `wake`."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        assert self._anvil.process_id is not None
        os.kill(self._anvil.process_id, what)

    def ask(self, method: str, *parameters: Any) -> Any:
        """Any JSON-RPC method of anvil. Raises DevChainUnavailable for an error."""
        return self._anvil.ask(method, *parameters)

    # Blocks and time.

    @property
    def head(self) -> int:
        return int(self.ask("eth_blockNumber"), 16)

    @property
    def now(self) -> int:
        """The newest block's time, in unix seconds."""
        return int(self.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.ask("evm_mine")

    def set_automine(self, on: bool) -> None:
        """Off: transactions wait until `mine`."""
        self.ask("evm_setAutomine", on)

    def set_time(self, at: int) -> None:
        """Mine a block of this time, which is later than the last; where the clock stands, it stands there now."""
        self.ask("evm_setNextBlockTimestamp", at)
        self.mine()

    def snapshot(self) -> str:
        return str(self.ask("evm_snapshot"))

    def revert(self, snapshot: str) -> None:
        """Go back to `snapshot`, which is used up."""
        assert self.ask("evm_revert", snapshot)

    def reorg(self, depth: int, *raw: bytes) -> None:
        """Replace the last `depth` blocks: their transactions are gone, as if never sent, except `raw` (signed
        transactions, these or others), which the last of the new blocks has.
        """
        self.ask("anvil_reorg", depth, [["0x" + transaction.hex(), depth - 1] for transaction in raw])

    def base_fee(self, wei: int) -> None:
        """The next block's base fee per gas."""
        self.ask("anvil_setNextBlockBaseFeePerGas", hex(wei))

    # Transactions.

    def pending(self) -> list[str]:
        """Hashes of what waits in the mempool, whether its turn has come or not."""
        pool = self.ask("txpool_content")
        return [
            str(transaction["hash"])
            for part in ("pending", "queued")
            for sender in pool[part].values()
            for transaction in sender.values()
        ]

    def drop_transaction(self, transaction: str) -> None:
        """Forget one that waits."""
        self.ask("anvil_dropTransaction", transaction)

    def drop_all(self) -> None:
        """Forget everything that waits."""
        self.ask("anvil_dropAllTransactions")

    def nonce(self, account: Address) -> int:
        return int(self.ask("eth_getTransactionCount", account, "latest"), 16)

    def send(self, to: Address, data: bytes, *, key: str = DEPLOYER_KEY) -> str:
        """Send a transaction from an account with ether; return its hash. Mined unless automine is off."""
        nonce = int(self.ask("eth_getTransactionCount", address_of(key), "pending"), 16)
        signed = sign(
            key,
            chain_id=CHAIN_ID,
            nonce=nonce,
            to=to,
            data=data,
            gas_limit=_GAS,
            max_fee_wei=_FEE_WEI,
            priority_fee_wei=_TIP_WEI,
        )
        self.ask("eth_sendRawTransaction", "0x" + signed.raw.hex())
        return signed.hash

    def send_as(self, sender: Address, to: Address, data: bytes) -> str:
        """Send a transaction in anybody's name, contracts' too."""
        self._anvil.give_ether(sender, 1)
        self.ask("anvil_impersonateAccount", sender)
        message = {"from": sender, "to": to, "data": "0x" + data.hex()}
        return str(self.ask("eth_sendTransaction", message))

    def succeeded(self, transaction: str) -> bool:
        """Whether a mined transaction did what it was for; mines once if it waits."""
        receipt = self.ask("eth_getTransactionReceipt", transaction)
        if receipt is None:
            self.mine()
            receipt = self.ask("eth_getTransactionReceipt", transaction)
        return bool(receipt["status"] == "0x1")

    # Money.

    def fund(self, account: Address, usdc: Usdc | int) -> None:
        """Add to an account's USDC at once, without a transaction or an event, whatever is being mined."""
        total = self.balance(account) + usdc
        slot = keccak256(address_topic(account) + _BALANCES_SLOT.to_bytes(32, "big"))
        self.ask("anvil_setStorageAt", TOKEN, "0x" + slot.hex(), f"0x{total:064x}")

    def balance(self, account: Address) -> Usdc:
        return self._anvil.balance_of(account)

    def ether_wei(self, account: Address) -> int:
        return int(self.ask("eth_getBalance", account, "latest"), 16)

    def set_ether_wei(self, account: Address, wei: int) -> None:
        self.ask("anvil_setBalance", account, hex(wei))

    def transfer(self, sender: Address, to: Address, usdc: Usdc | int) -> str:
        """An ordinary ERC-20 transfer, outside x402; return its hash."""
        return self.send_as(sender, TOKEN, _call("transfer(address,uint256)", to, usdc))

    def submit(self, payment: ExactPayment, *, key: str = DEPLOYER_KEY) -> str:
        """Bring somebody's authorization to the chain, as anybody may; return the hash."""
        return self.send(TOKEN, transfer_data(payment), key=key)

    def cancel(self, payer: LocalAccount, nonce: str) -> str:
        """Spend a nonce on nothing, as its payer may; return the hash."""
        domain = {"name": "USDC", "version": "2", "chainId": CHAIN_ID, "verifyingContract": TOKEN}
        types = {
            "CancelAuthorization": [
                {"name": "authorizer", "type": "address"},
                {"name": "nonce", "type": "bytes32"},
            ]
        }
        nonce_bytes = bytes.fromhex(nonce[2:])
        message = {"authorizer": payer.address, "nonce": nonce_bytes}
        signature = bytes(payer.sign_typed_data(domain, types, message).signature)
        by_bytes = "cancelAuthorization(address,bytes32,bytes)"
        return self.send(TOKEN, _call(by_bytes, payer.address, nonce_bytes, signature))

    def transfers(self, recipient: Address | None = None) -> list[Transfer]:
        """Every Transfer of the token, oldest first; with `recipient`, those to it."""
        topics = ["0x" + TRANSFER.hex(), None, recipient and "0x" + address_topic(recipient).hex()]
        question = {"address": TOKEN, "topics": topics, "fromBlock": "0x0", "toBlock": "latest"}
        return [
            Transfer(
                transaction=log["transactionHash"],
                sender=Address("0x" + log["topics"][1][26:]),
                recipient=Address("0x" + log["topics"][2][26:]),
                amount=Usdc(int(log["data"], 16)),
                block_number=int(log["blockNumber"], 16),
            )
            for log in self.ask("eth_getLogs", question)
        ]

    # Wallets with code.

    def deploy_wallet(self, owner: Address) -> Address:
        """An EIP-1271 wallet that its owner signs for."""
        return self._deploy("Wallet", owner)

    def set_owner(self, wallet: Address, owner: Address) -> None:
        """Take a wallet or a delegated account away from whoever signed for it."""
        assert self.succeeded(self.send_as(wallet, wallet, _call("setOwner(address)", owner)))

    def delegate(self, account: LocalAccount) -> Address:
        """Give an ordinary account code (EIP-7702); return the delegate. Its own key signs until `set_owner`."""
        delegate = self._deploy("Delegate")
        self._set_code(account, delegate)
        return delegate

    def undelegate(self, account: LocalAccount) -> None:
        """Make a delegated account an ordinary one again."""
        self._set_code(account, Address("0x" + "00" * 20))

    def _set_code(self, account: LocalAccount, delegate: Address) -> None:
        address = parse_address(account.address)
        authorization = account.sign_authorization(
            {
                "chainId": CHAIN_ID,
                "address": bytes.fromhex(delegate[2:]),
                "nonce": self.nonce(address),
            }
        )
        deployer = address_of(DEPLOYER_KEY)
        signed = Account.sign_transaction(
            {
                "type": 4,
                "chainId": CHAIN_ID,
                "nonce": self.nonce(deployer),
                "to": bytes.fromhex(deployer[2:]),
                "value": 0,
                "data": b"",
                "gas": _GAS,
                "maxFeePerGas": _FEE_WEI,
                "maxPriorityFeePerGas": _TIP_WEI,
                "accessList": [],
                "authorizationList": [authorization],
            },
            DEPLOYER_KEY,
        )
        raw = "0x" + bytes(signed.raw_transaction).hex()
        assert self.succeeded(self.ask("eth_sendRawTransaction", raw))

    def _deploy(self, name: str, *arguments: str) -> Address:
        data = self._programs.contracts[name] + encode(["address"] * len(arguments), arguments).hex()
        deployer = address_of(DEPLOYER_KEY)
        self.ask("anvil_impersonateAccount", deployer)
        transaction = self.ask("eth_sendTransaction", {"from": deployer, "data": data})
        assert self.succeeded(transaction)
        return parse_address(self.ask("eth_getTransactionReceipt", transaction)["contractAddress"])


@contextmanager
def anvil(*, at: int | None = None) -> Iterator[Chain]:
    """A new chain. With `at` (unix seconds) its clock stands there until `set_time`; without, it is the machine's.

    Skips the test, or fails it where anvil is demanded, when npm cannot provide it.
    """
    programs = anvil_programs()
    with tempfile.TemporaryDirectory(prefix="spawn-anvil-") as folder:
        chain = Chain(programs, Path(folder), at=at)
        try:
            yield chain
        finally:
            chain.stop()


def transfer_data(payment: ExactPayment) -> bytes:
    """The call of the token that settles this payment."""
    return transfer_call(
        payer=payment.payer,
        pay_to=payment.pay_to,
        value=payment.value,
        valid_after=payment.valid_after,
        valid_before=payment.valid_before,
        nonce=payment.nonce,
        signature=payment.signature,
    )


def _call(signature: str, *arguments: object) -> bytes:
    types = signature.partition("(")[2].removesuffix(")").split(",")
    return keccak256(signature.encode())[:4] + encode(types, arguments)


def install(folder: Path) -> None:
    """Put there what `spawn dev --chain anvil` needs; end the process where that cannot be."""
    if not ENGINES["anvil"]():
        sys.exit("anvil comes from npm: install Node and npm first.")
    try:
        programs = build_anvil_programs()
    except NodePackagesMissing as error:
        sys.exit(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    # Anew, for a program that runs cannot be written to.
    unfinished = folder / f".{programs.anvil.name}"
    shutil.copy2(programs.anvil, unfinished)
    unfinished.rename(folder / programs.anvil.name)
    (folder / "contracts.json").write_text(json.dumps(dict(programs.contracts)), encoding="utf-8")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
