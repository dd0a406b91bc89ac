"""What keeps the books right: whose things they are, what they cost, and that nothing happens twice."""

from typing import Final

from tests.attacks.defence import Defence

OWNERSHIP: Final = "spawn/services/ownership.py"
GATE: Final = "spawn/api/gate.py"
CREATE_SERVER: Final = "spawn/services/create_server.py"
PAID_CALLS: Final = "spawn/services/paid_calls.py"
ACTING: Final = "spawn/services/acting.py"
RESERVATIONS: Final = "spawn/services/reservations.py"
ROWS: Final = "spawn/store/reservations.py"
PURSE: Final = "spawn/services/purse.py"

OF_BOOKS: Final = (
    Defence(
        name="what a barred wallet may do",
        file="spawn/services/acting.py",
        before="    if not may_act or (pays and barred is Barred.BLOCKED):",
        after="    if pays and barred is Barred.BLOCKED:",
        attacks=(
            "barred: suspended, an order",
            "barred: suspended, a key",
            "barred: blocked, a claim",
        ),
    ),
    Defence(
        name="that a blocked wallet pays nothing",
        file="spawn/services/acting.py",
        before="    if not may_act or (pays and barred is Barred.BLOCKED):",
        after="    if not may_act:",
        attacks=("barred: blocked, identifying itself by a payment",),
    ),
    Defence(
        name="whose server it is",
        file=OWNERSHIP,
        before="if server.wallet != wallet:",
        after="if not wallet:",
        attacks=(
            "ownership: DELETE server, signed",
            "ownership: DELETE server, paid",
            "ownership: POST /rebuild to image, signed",
            "header: the thief's payment beside the owner's signature",
            "host: GET /logs of another's server",
            "host: POST /exec of another's server",
            "host: GET /commands of another's server",
            "host: what another's command wrote",
        ),
    ),
    Defence(
        name="whose SSH key it is",
        file=OWNERSHIP,
        before="if key.wallet != wallet:",
        after="if not wallet:",
        attacks=(
            "ownership: DELETE the owner's SSH key",
            "ownership: the owner's SSH key on the thief's server",
        ),
    ),
    Defence(
        name="whose events they are",
        file="spawn/store/events.py",
        before="WHERE wallet = :wallet AND seq > :after",
        after="WHERE (wallet = :wallet OR 1 = 1) AND seq > :after",
        attacks=(
            "ownership: the owner's events from the first on",
            "ownership: the owner's events of what happened to the owner's server",
        ),
    ),
    Defence(
        name="fund is money from outside",
        file=GATE,
        before="if charge.kind is Kind.FUNDED and fund is not None:",
        after="if charge.kind is Kind.FREE:",
        attacks=("money: fund with a signature",),
    ),
    Defence(
        name="a deposit is money from outside",
        file=GATE,
        before="    if charge.kind is Kind.DEPOSIT:\n",
        after="    if charge.kind is Kind.FREE:\n",
        attacks=("money: a deposit with a signature",),
    ),
    Defence(
        name="the largest deposit",
        file=GATE,
        before="if price.fund_usdc > self._cap_usdc:",
        after="if price.fund_usdc < 0:",
        attacks=("money: a deposit over the cap",),
    ),
    Defence(
        name="the minimum charge",
        file="spawn/domain/charges.py",
        before="return max(Usdc(self.fee_usdc + self.fund_usdc), self.minimum_usdc)",
        after="return Usdc(self.fee_usdc + self.fund_usdc)",
        attacks=("money: the bare price where the minimum is more",),
    ),
    Defence(
        name="the minimum charge of a deposit",
        file="spawn/settings.py",
        before="return max(parse_usdc(self.deposit_minimum), self.minimum_charge_usdc)",
        after="return parse_usdc(self.deposit_minimum)",
        attacks=("money: a deposit below the minimum charge",),
    ),
    Defence(
        name="the cap of a day",
        file="spawn/services/balance.py",
        before="if paid + payment.amount > cap_usdc:",
        after="if payment.amount > cap_usdc:",
        attacks=("money: the cap in two deposits", "race: deposits that break the cap together"),
    ),
    Defence(
        name="a payment's answer is for who sent it",
        file=PAID_CALLS,
        before="if known.id == call.identity.nonce_key and known.seal != call.identity.seal:",
        after="if known.id == call.identity.nonce_key and known.seal == call.identity.nonce_key:",
        attacks=(
            "replay: other JSON around a spent authorization",
            "replay: the signature in capitals",
            "replay: a spent payment with a new payment-identifier",
            "version 1: spent as version 2, sent as version 1",
        ),
    ),
    Defence(
        name="one request for a nonce or a key",
        file=PAID_CALLS,
        before="if known.fingerprint != call.request.fingerprint():",
        after="if not known.fingerprint:",
        attacks=(
            "replay: a spent payment at GET /v1/ssh-keys",
            "replay: a signed nonce for another method",
            "key: for another body",
            "race: one payment at two routes",
            "chain: a lost payment used for another order",
        ),
    ),
    Defence(
        name="a key is its wallet's",
        file=ROWS,
        before="WHERE idempotency.wallet = :wallet AND idempotency.key = :key",
        after="WHERE CAST(:wallet AS TEXT) IS NOT NULL AND idempotency.key = :key",
        attacks=("key: of a stranger",),
    ),
    Defence(
        name="the transfer that used the nonce is this one",
        file="spawn/payments/devnet.py",
        before='if row["recipient"] == payment.pay_to and row["amount"] == payment.value:',
        after='if row["amount"] is not None:',
        attacks=("chain: a nonce spent for less",),
    ),
    Defence(
        name="what is bound to fail is not settled",
        file=PURSE,
        before="if have - self._fee_usdc < amount:",
        after="if have < 0:",
        attacks=("money: a payment for too little money", "money: a server without the money"),
    ),
    Defence(
        name="a nonce is taken, or somebody has it",
        file=RESERVATIONS,
        before="if not rows.insert_reservation(tx, reservation):",
        after="if rows.insert_reservation(tx, reservation) is None:",
        attacks=(
            "replay: a payment sent twice",
            "replay: a signed request sent twice",
            "race: copies of one payment",
            "race: one signed nonce at two routes",
        ),
    ),
    Defence(
        name="what a key stands for is settled",
        file=PAID_CALLS,
        before="fresh = identity.payment if identity.nonce_key == reservation.id else None",
        after="fresh = identity.payment",
        attacks=("chain: a fresh payment under the key of a lost one",),
    ),
    Defence(
        name="doomed calls are refused before they are settled",
        file=ACTING,
        before="        self._check(tx, call, reservation, use_case)\n        return Progress(reservation=reservation)",
        after="        return Progress(reservation=reservation)",
        attacks=(
            "money: a payment for a name that is taken",
            "money: a payment for too little money",
            "ownership: DELETE server, paid",
        ),
    ),
    Defence(
        name="whose arrival it is",
        file="spawn/store/arrivals.py",
        before="WHERE sender = :sender AND state = 'suspense' ORDER BY at, id",
        after="WHERE CAST(:sender AS TEXT) IS NOT NULL AND state = 'suspense' ORDER BY at, id",
        attacks=("suspense: a claim of another's", "suspense: a claim that is paid for"),
    ),
    Defence(
        name="one entry for an authorization",
        file="spawn/services/suspense.py",
        before="if key is None else funds.payment_id(key)",
        after='if key is None else transfer_id("suspense", key)',
        attacks=("suspense: a payment that its payer claimed first",),
    ),
    Defence(
        name="what waits is the call's payment",
        file="spawn/services/funds.py",
        before="        is_new = claim(tx, arrival, at)\n",
        after="        return False\n",
        attacks=("suspense: a payment that a stranger submitted and the watcher saw first",),
    ),
    Defence(
        name="what brings nothing is no arrival",
        file="spawn/payments/arrivals.py",
        before="    return amount > 0 and sender != pay_to",
        after="    return amount > 0",
        attacks=("suspense: a transfer of nothing, and one of ours to ourselves",),
    ),
    Defence(
        name="no balance goes below its fee",
        file=PURSE,
        before="    if available < fee:\n",
        after="    if fee < 0:\n",
        attacks=(
            "money: a call without the fee",
            "race: calls beyond the balance",
        ),
    ),
)
