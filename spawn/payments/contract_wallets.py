"""Payers with code: whether a contract stands by a payment that its own key, if it has one, did not sign.

The rules are the token's (`SignatureChecker` of USDC's FiatTokenV2_2): for an account without code its key decides,
as in `exact.require_signature`; any code, a delegation (EIP-7702) among it, is asked by EIP-1271, and nothing else
counts. A wallet that is not deployed yet (ERC-6492) cannot pay: the token knows nothing of that wrapper.
Invariant: a payment that `verify` lets through was approved on chain, asked as the token asks, at most `YES_S` ago;
and what strangers can make us ask the node is bounded, because forged payments end here.

A payment that the payer's own key signed does not come here. If code at the payer will not have that signature, the
simulation before the broadcast finds out; whoever holds the key owns the wallet either way.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.x402 import Reason

from spawn.evm.node import CallReverted, Node, NodeUnavailable
from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, digest, require_signature

YES_S: Final = 60
"""How long an approval counts, and that an account has code; the chain has the last word when it settles."""
NO_S: Final = 15
"""How long a refusal does: less, because deploying a wallet or adding a signer mends it."""
REMEMBERED_MAX: Final = 4096
"""Answers of each kind that are remembered at once: less than 2 MB."""
WAITING_MAX: Final = 64
"""Payments that wait for the node at once; one more is sent away to come again."""
SIGNATURE_MAX_BYTES: Final = 1024
"""A passkey's takes about 700 bytes, ten signers' 650; we pay the gas for every one of them."""

GAS_MAX: Final = 500_000
"""What a wallet may use up to say yes, which bounds its answer as well: checking a passkey in Solidity takes most."""

_MAGIC: Final = bytes.fromhex("1626ba7e")
"""The selector of `isValidSignature(bytes32,bytes)`, which is also what it returns for yes (EIP-1271)."""
_YES: Final = _MAGIC + bytes(28)
_UNDEPLOYED: Final = b"\x64\x92" * 16
"""How a signature for a wallet that is not deployed yet ends (ERC-6492)."""
_RETRY_AFTER_S: Final = 2

K = TypeVar("K", bound=Hashable)


class ContractWallets:
    """Asks the chain about payments that `exact.identify` refused with `NotByOwnKey`."""

    def __init__(self, node: Node, terms: Terms, now: Callable[[], int]) -> None:
        self._node = node
        self._terms = terms
        self._codes: _Recent[Address] = _Recent(now)
        self._verdicts: _Recent[bytes] = _Recent(now)
        self._waiting = 0

    async def verify(self, payment: ExactPayment) -> None:
        """Return if the token would take this signature from this payer. Everything but the signature is checked.

        Raises PaymentInvalid (`invalid_exact_evm_payload_signature`) where it would not, and
        SpawnError(`overloaded`), to be repeated with the same payment, where that cannot be found out now.
        """
        if self._waiting >= WAITING_MAX:
            raise _later("Too many payments by contract wallets are being checked.")
        self._waiting += 1
        try:
            await self._verify(payment)
        except NodeUnavailable as error:
            raise _later("The chain that knows whether this wallet signed cannot be asked now.") from error
        finally:
            self._waiting -= 1

    async def has_code(self, account: Address) -> bool:
        """Whether code decides for this account, as of `YES_S` or `NO_S` ago. Raises NodeUnavailable.

        Whoever puts several payments into one transaction asks this first: code can burn the gas of all of them.
        """
        return await self._codes.get(account, lambda: self._look_for_code(account))

    async def _verify(self, payment: ExactPayment) -> None:
        signature = bytes.fromhex(payment.signature[2:])
        is_wrapped = signature.endswith(_UNDEPLOYED)
        if not await self.has_code(payment.payer):
            if is_wrapped:
                raise _refused(
                    f"The wallet {payment.payer} is not deployed on {self._terms.network}, and only deployed wallets "
                    f"can pay (no ERC-6492). Deploy it, wait {NO_S} seconds, and pay again."
                )
            require_signature(payment, self._terms)
            return
        if len(signature) > SIGNATURE_MAX_BYTES:
            raise _refused(f"A signature of more than {SIGNATURE_MAX_BYTES} bytes costs too much to settle.")
        hashed = digest(payment, self._terms)
        if not await self._verdicts.get(
            keccak256(hashed + signature), lambda: self._approves(payment.payer, hashed, signature)
        ):
            hint = (
                "It is deployed: sign without the ERC-6492 wrapper." if is_wrapped else _domain(self._terms)
            )
            raise _refused(
                f"The contract at {payment.payer} does not approve the signature (EIP-1271). {hint}"
            )

    async def _look_for_code(self, account: Address) -> bool:
        return bool(await self._node.code(account))

    async def _approves(self, wallet: Address, hashed: bytes, signature: bytes) -> bool:
        """What the token would hear from the wallet, which may look at who asks."""
        try:
            answer = await self._node.call(
                wallet, is_valid_signature_call(hashed, signature), sender=self._terms.asset, gas=GAS_MAX
            )
        except CallReverted:
            return False
        return answer[:32] == _YES


class _Recent(Generic[K]):
    """Answers of a while ago, by what was asked; the one that was wanted longest ago is forgotten first."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._answers: OrderedDict[K, tuple[bool, int]] = OrderedDict()

    async def get(self, key: K, ask: Callable[[], Awaitable[bool]]) -> bool:
        """The answer that is remembered, or the one that `ask` gets; what it raises is not remembered."""
        answer, until = self._answers.get(key, (False, 0))
        if self._now() >= until:
            answer = await ask()
            self._answers[key] = answer, self._now() + (YES_S if answer else NO_S)
        self._answers.move_to_end(key)
        if len(self._answers) > REMEMBERED_MAX:
            self._answers.popitem(last=False)
        return answer


def is_valid_signature_call(hashed: bytes, signature: bytes) -> bytes:
    """`isValidSignature(bytes32,bytes)` of EIP-1271 as call data: the bytes are behind their place and length."""
    return b"".join(
        (
            _MAGIC,
            hashed,
            (64).to_bytes(32, "big"),
            len(signature).to_bytes(32, "big"),
            signature,
            bytes(-len(signature) % 32),
        )
    )


def _refused(message: str) -> PaymentInvalid:
    return PaymentInvalid(Reason.SIGNATURE, message)


def _domain(terms: Terms) -> str:
    return (
        f"Sign EIP-712 data with the domain name {terms.asset_name!r}, version {terms.asset_version!r}, "
        f"chain {terms.chain_id}."
    )


def _later(message: str) -> SpawnError:
    return SpawnError(
        Code.OVERLOADED,
        message,
        retry_after_s=_RETRY_AFTER_S,
        next="Nothing was charged: repeat the same request, with the same payment.",
    )
