"""What keeps attacks out, as data: where each defence stands, how it is taken out, and what gets in without it.

`before` occurs once in its file, so that the table cannot rot; `after` is the least change that removes the defence
and leaves every honest call as it was.
"""

from typing import Final

import msgspec


class Defence(msgspec.Struct, frozen=True, kw_only=True):
    """`attacks` are names of the table, each of which must fail the suite when `before` is replaced by `after`."""

    name: str
    file: str
    before: str
    after: str
    attacks: tuple[str, ...]


CURVE: Final = "spawn/payments/curve.py"
HEADER: Final = "spawn/payments/header.py"
EXACT: Final = "spawn/payments/exact.py"
SIGNED: Final = "spawn/payments/signed.py"
ARRIVALS: Final = "spawn/api/arrivals.py"
GATE: Final = "spawn/api/gate.py"
CREATE_SERVER: Final = "spawn/services/create_server.py"
OWNERSHIP: Final = "spawn/services/ownership.py"
API: Final = "schemas/spawn_schemas/api.py"

DEFENCES: Final = (
    Defence(
        name="only the lower half of s",
        file=CURVE,
        before="if s == _ZERO or s > _HALF_N:",
        after="if s == _ZERO:",
        attacks=(
            "payment: high s",
            "signature: signature with high s",
            "replay: the other signature of the same key",
        ),
    ),
    Defence(
        name="v is 27 or 28",
        file=CURVE,
        before='{27: b"\\x00", 28: b"\\x01"}',
        after='{0: b"\\x00", 1: b"\\x01", 27: b"\\x00", 28: b"\\x01"}',
        attacks=("payment: v counted from 0", "signature: signature with v from 0"),
    ),
    Defence(
        name="base64 in one spelling",
        file=HEADER,
        before="if b2a_base64(raw, newline=False) != text:",
        after="if not raw:",
        attacks=("payment: junk inside", "payment: space inside", "payment: unused bits set"),
    ),
    Defence(
        name="a payment header has 8 KiB",
        file=HEADER,
        before="if len(header) > MAX_HEADER_BYTES:",
        after="if not header:",
        attacks=("payment: longer than 8 KiB",),
    ),
    Defence(
        name="our version of the protocol",
        file=EXACT,
        before="if payload.x402_version != X402_VERSION:",
        after="if payload.x402_version < 1:",
        attacks=("payment: version 1", "payment: version 3"),
    ),
    Defence(
        name="our scheme",
        file=EXACT,
        before="if accepted.scheme != SCHEME_EXACT:",
        after="if not accepted.scheme:",
        attacks=("payment: scheme upto", "payment: scheme in capitals"),
    ),
    Defence(
        name="our network",
        file=EXACT,
        before="if accepted.network != terms.network:",
        after="if not accepted.network:",
        attacks=("payment: another chain", "payment: network by its old name"),
    ),
    Defence(
        name="our token",
        file=EXACT,
        before="if accepted.asset.lower() != terms.asset:",
        after="if not accepted.asset:",
        attacks=("payment: another token",),
    ),
    Defence(
        name="money for us",
        file=EXACT,
        before="if payment.pay_to != terms.pay_to:",
        after="if not payment.pay_to:",
        attacks=("payment: another payee signed", "payment: to twice in the JSON"),
    ),
    Defence(
        name="nobody pays himself",
        file=EXACT,
        before="if payment.payer == payment.pay_to:",
        after="if not payment.payer:",
        attacks=("payment: payee pays itself", "payment: of the payee to itself"),
    ),
    Defence(
        name="the payer signed",
        file=EXACT,
        before="if signer != payment.payer:",
        after="if not signer:",
        attacks=(
            "payment: signed by a stranger",
            "payment: signed for another chain",
            "payment: value changed",
            "payment: for a wallet that signed nothing",
            "key: known, with a forged payment of its owner",
        ),
    ),
    Defence(
        name="exactly the price",
        file=EXACT,
        before="if payment.value != amount_usdc:",
        after="if payment.value < 0:",
        attacks=(
            "payment: one unit too little",
            "payment: one unit too much",
            "payment: a smaller amount echoed and signed",
            "money: a price paid for a cheaper route",
            "body: fund twice, the small one paid",
        ),
    ),
    Defence(
        name="validAfter is past",
        file=EXACT,
        before="if payment.valid_after >= now:",
        after="if payment.valid_after < 0:",
        attacks=("payment: validAfter is now", "payment: not yet valid"),
    ),
    Defence(
        name="time to settle",
        file=EXACT,
        before="if payment.valid_before < now + margin_s:",
        after="if payment.valid_before < 0:",
        attacks=("payment: five seconds are left", "payment: expired", "payment: held back until it expired"),
    ),
    Defence(
        name="nonces are remembered as long as they are valid",
        file=EXACT,
        before="if payment.valid_before > now + MAX_LIFE_S:",
        after="if payment.valid_before < 0:",
        attacks=("payment: an hour and a second are left",),
    ),
    Defence(
        name="a nonce in one spelling",
        file=EXACT,
        before="nonce=authorization.nonce.lower(),",
        after="nonce=authorization.nonce,",
        attacks=("replay: the nonce in capitals",),
    ),
    Defence(
        name="what a signature must cover",
        file=SIGNED,
        before="    if missing:\n",
        after="    if not needed:\n",
        attacks=(
            "signature: @method not covered",
            "signature: GET turned into DELETE, without @method",
            "signature: a query where none was signed",
            "signature: content-digest not covered",
        ),
    ),
    Defence(
        name="the digest of the body",
        file=SIGNED,
        before='if _members(headers, "content-digest").get("sha-256") != f":{digest}:":',
        after='if not _members(headers, "content-digest") or not digest:',
        attacks=("signature: another body", "signature: body swapped for another good one"),
    ),
    Defence(
        name="a signature lives a minute",
        file=SIGNED,
        before="if not 0 < expires - created <= MAX_LIFE_S:",
        after="if not 0 < expires - created:",
        attacks=("signature: lives 61 seconds",),
    ),
    Defence(
        name="a signature ends",
        file=SIGNED,
        before="if expires < now:",
        after="if expires < 0:",
        attacks=("signature: expired a second ago",),
    ),
    Defence(
        name="a signature is not of tomorrow",
        file=SIGNED,
        before="if created > now + CLOCK_SKEW_S:",
        after="if created < 0:",
        attacks=("signature: created 6 seconds ahead",),
    ),
    Defence(
        name="the key signed",
        file=SIGNED,
        before="if signer != signed.wallet:",
        after="if not signer:",
        attacks=(
            "signature: keyid of somebody else",
            "signature: of the owner's address by the thief's key",
            "signature: server swapped in the path",
            "signature: for another host, alone",
            "key: known, with a forged signature of its owner",
        ),
    ),
    Defence(
        name="no algorithm of the caller's choice",
        file=SIGNED,
        before='if "alg" in parameters:',
        after='if "alg" in components:',
        attacks=("signature: algorithm named",),
    ),
    Defence(
        name="our host, not the caller's",
        file=SIGNED,
        before='"@authority": authority,',
        after='"@authority": headers.get("host", authority),',
        attacks=("signature: for another host, and Host says so",),
    ),
    Defence(
        name="labels tie input and signature",
        file=SIGNED,
        before="if match is None or match[1] in members or len(members) == MAX_MEMBERS:",
        after="if match is None:",
        attacks=("header: two lines of signature", "header: two digests", "signature: four labels"),
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
        name="no fields beyond those of an order",
        file=API,
        before="class CreateServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):",
        after="class CreateServer(msgspec.Struct, frozen=True, kw_only=True):",
        attacks=("body: an unknown field, for an order", "body: the owner named, for an order"),
    ),
    Defence(
        name="types are exact",
        file=GATE,
        before="exact_body = _strict(arrival.body, type(body))",
        after="exact_body = body",
        attacks=("body: text for true, for an order", "body: 1 for true, for an order"),
    ),
    Defence(
        name="a name is one line",
        file=API,
        before='([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$(?!\\n)"',
        after='([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"',
        attacks=("body: a line end in a name, for an order",),
    ),
    Defence(
        name="no escapes in paths",
        file=ARRIVALS,
        before='b"%" in path or ',
        after="",
        attacks=(
            "path: /v1/%73ervers",
            "path: DELETE /v1/servers/<server>%00",
            "path: POST /v1/servers/<server>/%73top",
        ),
    ),
    Defence(
        name="no doubled slashes in paths",
        file=ARRIVALS,
        before='b"//" in path or ',
        after="",
        attacks=("path: //v1/servers", "path: /v1//servers", "path: DELETE /v1//servers/<server>"),
    ),
    Defence(
        name="no slash at the end of a path",
        file=ARRIVALS,
        before='(path.endswith(b"/") and path != b"/")',
        after="False",
        attacks=("path: /v1/servers/", "path: POST /v1/servers/<server>/stop/"),
    ),
    Defence(
        name="a hundred header lines",
        file=ARRIVALS,
        before="len(raw) > _HEADERS_MAX or ",
        after="",
        attacks=("header: a hundred and one lines",),
    ),
    Defence(
        name="64 KiB of headers",
        file=ARRIVALS,
        before="or size > _HEADER_BYTES_MAX",
        after="",
        attacks=("header: 64 KiB in one line",),
    ),
    Defence(
        name="a key is printable",
        file=ARRIVALS,
        before=" or not text.isprintable()",
        after="",
        attacks=("key: with a line end", "key: with a zero byte"),
    ),
    Defence(
        name="the size of a body",
        file=ARRIVALS,
        before="if len(body) > limit:",
        after="if len(body) < 0:",
        attacks=("body: of 129 KiB where none belongs",),
    ),
    Defence(
        name="request ids that are fit for a log",
        file="spawn/api/front.py",
        before='given.isascii() and given.replace("-", "").isalnum()',
        after="True",
        attacks=("header: X-Request-Id with a line end", "header: X-Request-Id with a tag"),
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
        name="no cache keeps what was paid for",
        file=GATE,
        before='(b"cache-control", b"no-store, private")',
        after='(b"cache-control", b"private")',
        attacks=("money: an identifying payment",),
    ),
    Defence(
        name="the cap of a day",
        file="spawn/services/balance.py",
        before="if paid + payment.amount > cap_usdc:",
        after="if payment.amount > cap_usdc:",
        attacks=("money: the cap in two deposits", "race: deposits that break the cap together"),
    ),
    Defence(
        name="one request for a nonce or a key",
        file="spawn/services/paid_calls.py",
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
        file="spawn/store/reservations.py",
        before="WHERE idempotency.wallet = :wallet AND idempotency.key = :key",
        after="WHERE :wallet IS NOT NULL AND idempotency.key = :key",
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
        file="spawn/services/purse.py",
        before="if have - self._fee_usdc < amount:",
        after="if have < 0:",
        attacks=("money: a payment for too little money", "money: a server without the money"),
    ),
    Defence(
        name="a server's first day is paid",
        file=CREATE_SERVER,
        before="if deposit < self._offer.daily_usdc:",
        after="if deposit < 0:",
        attacks=("money: a server for less than a day",),
    ),
    Defence(
        name="one public key, on one line",
        file="spawn/domain/ssh_keys.py",
        before='if "\\n" in line or "\\r" in line:',
        after='line = line.partition("\\n")[0]\n    if not line:',
        attacks=("body: a second key in a line end, to register",),
    ),
)
