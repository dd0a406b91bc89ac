"""What a caller can spend in one call: the balance burnt to now, plus its payment, less the fee."""

from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc, format_usdc

from spawn.services import standing
from spawn.services.billing import Billing


class Purse:
    """Looked into only by calls that need money beyond their fee. `payment_usdc` is None for a signed call."""

    def __init__(
        self, tx: Tx, wallet: Address, *, payment_usdc: Usdc | None, fee_usdc: Usdc, now: int
    ) -> None:
        self._tx = tx
        self._wallet = wallet
        self._payment_usdc = payment_usdc
        self._fee_usdc = fee_usdc
        self._now = now

    def require(self, amount: Usdc, *, next: str | None = None) -> None:
        """Raise `insufficient_deposit` unless this much is left when the fee is paid.

        `next` is what to do, where the call itself has another way. A signed caller who is short of the fee
        itself is asked to pay: `payment_required`.
        """
        # With the payment: what the wallet's servers owe by now is taken from that as well.
        paid = self._payment_usdc or Usdc(0)
        have = standing.of(self._tx, self._wallet, self._now, added=paid).available_usdc
        if self._payment_usdc is None:
            require_fee(have, self._fee_usdc)
        if have - self._fee_usdc < amount:
            raise insufficient_deposit(Usdc(amount + self._fee_usdc), have, next=next)

    def refuse_to_starve(
        self,
        billing: Billing,
        amount: Usdc,
        server_id: ServerId | None = None,
        daily_usdc: Usdc | None = None,
        *,
        renews: bool | None = None,
    ) -> None:
        """Raise `insufficient_deposit` where spending this much would end a server unwarned: see `standing`."""
        if self._payment_usdc is None:
            require_fee(standing.of(self._tx, self._wallet, self._now).available_usdc, self._fee_usdc)
        # The fee comes first, and then what the wallet's servers owe.
        paid = Usdc((self._payment_usdc or 0) - self._fee_usdc)
        has = standing.of(self._tx, self._wallet, self._now, added=paid)
        standing.refuse_to_starve(self._tx, has, billing, amount, server_id, daily_usdc, renews=renews)


def require_fee(available: Usdc, fee: Usdc) -> None:
    """Raise `payment_required` when the balance cannot pay for the call."""
    if available < fee:
        raise SpawnError(
            Code.PAYMENT_REQUIRED,
            f"This call costs {format_usdc(fee)} USDC and the balance has {format_usdc(available)} available.",
            next=None,
        )


def insufficient_deposit(need: Usdc, have: Usdc, *, next: str | None = None) -> SpawnError:
    """The balance is short; says by how much and how to mend it."""
    short = Usdc(max(0, need - have))
    return SpawnError(
        Code.INSUFFICIENT_DEPOSIT,
        f"This needs {format_usdc(need)} USDC and {format_usdc(have)} is available: "
        f"{format_usdc(short)} is missing.",
        details={"need": format_usdc(need), "have": format_usdc(have), "short": format_usdc(short)},
        next=next or "POST /v1/balance/deposit pays in what is missing.",
    )
