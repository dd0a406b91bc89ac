"""Nothing paid is lost, and nothing is credited that was not paid: the books beside the chain itself.

Invariant: behind each entry of USDC in the books stands one transfer to us that is final, of its amount and its sender;
and once everything is at rest every such transfer stands behind exactly one.
"""

import json
from base64 import b64decode
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tests.sim.client_types import Answer, Request
from tests.sim.facilitators import Signed, signed_payment
from tests.sim.oracle.part import Changes, Part, Row

_EXT: Final = "ext:usdc"
_SUSPENSE: Final = "suspense"
_WALLET: Final = "wallet:"
_PAID_STATES: Final = frozenset({"settled", "acted", "done"})
LATEST_S: Final = 3_600
"""How long after its `validBefore` a payment's outcome may still be open in calm: the chain's depth and our jobs."""

SELECT_MONEY: Final = """
SELECT * FROM transfer WHERE debit IN ('ext:usdc', 'suspense') OR credit IN ('ext:usdc', 'suspense', 'ext:gas')
ORDER BY seq
"""
SELECT_UNSETTLED: Final = "SELECT id, valid_before FROM reservation WHERE state = 'reserved' ORDER BY id"
SELECT_OPEN_SETTLEMENTS: Final = (
    "SELECT id, state FROM settlement WHERE state IN ('reserved', 'signed', 'broadcast') ORDER BY id"
)
SELECT_OPEN_RELAYS: Final = (
    "SELECT relayer, nonce, state FROM relay WHERE state IN ('signed', 'broadcast') ORDER BY relayer, nonce"
)
SELECT_ARRIVALS: Final = "SELECT * FROM arrival ORDER BY id"
SELECT_RELAYS: Final = (
    "SELECT hash, relayer, nonce, state, gas_wei FROM relay ORDER BY relayer, nonce, attempt"
)
SELECT_SETTLEMENTS: Final = "SELECT * FROM settlement ORDER BY id"
SELECT_COMPARED: Final = "SELECT cursor FROM watch WHERE name = 'treasury'"
_signed: Final = msgspec.json.Decoder(Signed)


class Payments(Part):
    """Promise 1, from the chain's side."""

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self._booked: dict[int, str] = {}
        """By the number of what moved: where its money went first, `wallet` or `suspense`, and then `claimed`."""
        self._is_restored = False

    # --- while it lives -------------------------------------------------------------------------------------------

    def committed(self, changes: Changes) -> None:
        """What came into the books has come to us on the chain."""
        self._enter(changes.transfers)
        for row in changes.of("reservation").values():
            if row is not None and row["rail"] == "x402" and row["state"] in _PAID_STATES:
                self._require_paid(row)

    def answered(self, request: Request, answer: Answer) -> None:
        """Whoever stands by sees the payment."""
        for name in ("PAYMENT-SIGNATURE", "X-PAYMENT"):
            header = request.headers.get(name)
            if header is not None:
                self._show(header)

    def restored(self) -> None:
        """The books forgot what they had entered; the chain did not."""
        self._is_restored = True
        self._booked.clear()
        self._enter(self.world.rows(SELECT_MONEY))

    def _show(self, header: str) -> None:
        try:
            payload = json.loads(b64decode(header))["payload"]
            payment = signed_payment(_signed.decode(json.dumps(payload)))
        except (ValueError, TypeError, KeyError, msgspec.MsgspecError):
            return  # Nonsense, by an attacker: nobody could bring it anywhere.
        if payment.pay_to == self.world.chain.terms.pay_to:
            self.world.chain.saw(payment)

    def _enter(self, transfers: Iterable[Row]) -> None:
        for row in transfers:
            if row["debit"] == _EXT:
                self._came_in(row)
            elif row["debit"] == _SUSPENSE:
                self._was_claimed(row)
            elif _EXT in row["credit"] or row["credit"] == _SUSPENSE:
                self.world.violation("books", f"no money leaves for {row['credit']}: {row}")

    def _came_in(self, row: Row) -> None:
        """An entry from outside: a payment's, or that of what came unasked."""
        self.world.chain.look()
        moves = self.world.chain.by_transaction.get(row["reference"], [])
        fitting = [moved for moved in moves if moved.amount == row["amount"]]
        match row["code"], row["credit"]:
            case "topup", credit:
                fitting = [moved for moved in fitting if credit == _WALLET + moved.payer]
                where = "wallet"
            case "suspense", "suspense":
                where = "suspense"
            case _:
                self.world.violation("books", f"nobody knows this way into the books: {row}")
        if not fitting:
            shown = moves or "nothing that is final"
            self.world.violation("paid", f"credited without having come: {row}; the chain shows {shown}")
        free = [moved for moved in fitting if moved.number not in self._booked]
        if not free:
            self.world.violation("paid", f"credited a second time: {row}, of {fitting}")
        self._booked[free[0].number] = where

    def _was_claimed(self, row: Row) -> None:
        """From suspense it goes to who sent it, once."""
        moves = self.world.chain.by_transaction.get(row["reference"], [])
        waiting = [
            moved
            for moved in moves
            if self._booked.get(moved.number) == "suspense"
            and (moved.amount, _WALLET + moved.payer) == (row["amount"], row["credit"])
        ]
        if not waiting:
            self.world.violation("paid", f"taken from suspense by whom it does not belong to: {row}")
        self._booked[waiting[0].number] = "claimed"

    def _require_paid(self, row: Row) -> None:
        """A call that was let through with a payment has its money on the chain, for good."""
        moves = self.world.chain.by_transaction.get(row["settlement"], [])
        if not any((moved.payer, moved.amount) == (row["wallet"], row["amount"]) for moved in moves):
            self.world.violation(
                "paid", f"{row['id']} of {row['wallet']} is {row['state']} and was never paid"
            )

    # --- in calm --------------------------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """What is not decided yet, on the chain or in the books."""
        chain = self.world.chain
        chain.relax()
        chain.look()
        found = [f"payment {row['id']} is not decided" for row in self.world.rows(SELECT_UNSETTLED)]
        found += [
            f"settlement {row['id']} {row['state']}" for row in self.world.rows(SELECT_OPEN_SETTLEMENTS)
        ]
        found += [f"relay {row['nonce']} {row['state']}" for row in self.world.rows(SELECT_OPEN_RELAYS)]
        found += [f"{moved} is in no books" for moved in chain.moved if moved.number not in self._booked]
        if not chain.is_still:
            found.append("the chain still moves")
        return found

    def at_rest(self) -> None:
        """The books have what the chain has, to the micro-dollar."""
        self._compare()
        self._check_suspense()
        self._check_settlements()
        self._check_relayers()
        self._check_treasury()

    def _compare(self) -> None:
        chain = self.world.chain
        lost = [moved for moved in chain.moved if moved.number not in self._booked]
        if lost:
            self.world.violation("paid", f"paid and in no books: {lost[:3]}")
        held = sum(_signed_amount(row, _EXT) for row in self.world.rows(SELECT_MONEY))
        shown = chain.balance_usdc(chain.terms.pay_to)
        if not held == chain.final_usdc == shown:
            self.world.violation("paid", f"books {held}, final {chain.final_usdc}, chain {shown}")

    def _check_suspense(self) -> None:
        """What waits is there for who sent it."""
        chain = self.world.chain
        waiting = sorted(
            (moved.transaction, moved.payer, moved.amount)
            for moved in chain.moved
            if self._booked[moved.number] == "suspense"
        )
        rows = sorted(
            (row["transaction_hash"], row["sender"], row["amount"])
            for row in self.world.rows(SELECT_ARRIVALS)
            if row["state"] == "suspense"
        )
        if rows != waiting:
            self.world.violation("paid", f"in suspense are {rows}, and the chain has {waiting}")

    def _check_settlements(self) -> None:
        """A confirmed settlement is one that the chain shows."""
        moved = {(one.payer, one.amount, one.transaction) for one in self.world.chain.moved}
        for row in self.world.rows(SELECT_SETTLEMENTS):
            name = (row["payer"], row["amount"], row["transaction_hash"])
            if row["state"] == "confirmed" and name not in moved:
                self.world.violation("paid", f"settlement {row['id']} is confirmed, and nothing moved: {row}")

    def _check_relayers(self) -> None:
        """Every nonce of ours is spent, by one transaction at most, and what it burnt is in the books."""
        chain = self.world.chain
        if chain.node is None or not chain.relayers:
            return
        nonces: dict[str, dict[int, list[Row]]] = {account: {} for account in chain.relayers}
        burnt: dict[str, int] = {}
        for row in self.world.rows(SELECT_RELAYS):
            nonces[row["relayer"]].setdefault(row["nonce"], []).append(row)
            receipt = chain.node.receipt_of(row["hash"])
            if receipt is not None:
                burnt[row["hash"]] = receipt.fee_wei
        for account, known in nonces.items():
            used = chain.node.used(account)
            if known and (max(known) >= used or (not self._is_restored and self._gap(account, known))):
                self.world.violation("paid", f"{account} used {used} nonces, and we know {sorted(known)}")
        self._check_gas(nonces, burnt)

    def _gap(self, account: str, known: dict[int, list[Row]]) -> bool:
        """Whether a nonce is missing that nobody who shares the key has used."""
        missing = max(known) + 1 - len(known)
        return missing > self.world.chain.foreign_nonces.get(account, 0)

    def _check_gas(self, nonces: dict[str, dict[int, list[Row]]], burnt: dict[str, int]) -> None:
        for known in nonces.values():
            for nonce, rows in known.items():
                confirmed = [row["hash"] for row in rows if row["state"] == "confirmed"]
                mined = [row["hash"] for row in rows if row["hash"] in burnt]
                if confirmed != mined:
                    self.world.violation("paid", f"nonce {nonce}: mined {mined}, recorded {confirmed}")
        price = _micro(self.world.settings.eth_price)
        wanted = {hash_: -(-wei * price // 10**18) for hash_, wei in burnt.items()}
        booked = {
            row["reference"]: row["amount"]
            for row in self.world.rows(SELECT_MONEY)
            if row["credit"] == "ext:gas"
        }
        if booked != {hash_: amount for hash_, amount in wanted.items() if amount > 0}:
            self.world.violation("books", f"gas burnt {wanted}, booked {booked}")

    def _check_treasury(self) -> None:
        """No comparison ever came out short, since nothing ever was missing."""
        for row in self.world.rows(SELECT_COMPARED):
            compared = json.loads(row["cursor"])
            if compared["chain_usdc"] < compared["books_usdc"]:
                self.world.violation("paid", f"the treasury cries out: {compared}")


def _signed_amount(row: Row, account: str) -> int:
    """What the row adds to an account that grows by debits."""
    amount: int = row["amount"]
    if row["debit"] == account:
        return amount
    return -amount if row["credit"] == account else 0


def _micro(usdc: str) -> int:
    whole, _, part = usdc.partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0"))


PARTS: Final = (Payments,)
