"""What keeps requests out that are malformed, ambiguous, too large or too many."""

from typing import Final

from tests.attacks.defence import Defence

ARRIVALS: Final = "spawn/api/arrivals.py"
FRONT: Final = "spawn/api/front.py"
STENCILS: Final = "spawn/api/stencils.py"
GATE: Final = "spawn/api/gate.py"
API: Final = "schemas/spawn_schemas/api.py"
CONNECTIONS: Final = "spawn/connections.py"
PAID_CALLS: Final = "spawn/services/paid_calls.py"

OF_REQUESTS: Final = (
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
        before="exact_body = strict(arrival.body, type(body))",
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
        name="a hundred header lines",
        file=ARRIVALS,
        before="len(raw) > _HEADERS_MAX or ",
        after="",
        attacks=("header: a hundred and one lines",),
    ),
    Defence(
        name="64 KiB of headers",
        file=ARRIVALS,
        before="or sum([len(name) + len(value) for name, value in raw]) > _HEADER_BYTES_MAX",
        after="",
        attacks=("header: 64 KiB in one line",),
    ),
    Defence(
        name="a key is printable",
        file=ARRIVALS,
        before=" or not text.isprintable()",
        after="",
        attacks=("key: with a line end",),
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
        file=FRONT,
        before='given.isascii() and given.replace("-", "").isalnum()',
        after="True",
        attacks=("header: X-Request-Id with a line end", "header: X-Request-Id with a tag"),
    ),
    Defence(
        name="no cache keeps what was paid for",
        file=GATE,
        before='(b"cache-control", b"no-store, private")',
        after='(b"cache-control", b"private")',
        attacks=("money: an identifying payment",),
    ),
    Defence(
        name="one public key, on one line",
        file="spawn/domain/ssh_keys.py",
        before='if "\\n" in line or "\\r" in line:',
        after='line = line.partition("\\n")[0]\n    if not line:',
        attacks=("body: a second key in a line end, to register",),
    ),
    Defence(
        name="two hosts are none",
        file=ARRIVALS,
        before='{"host": "Host", ',
        after="{",
        attacks=(
            "header: two hosts",
            "wire: a second host beside a good signature",
        ),
    ),
    Defence(
        name="two keys are none",
        file=ARRIVALS,
        before=', "idempotency-key": "Idempotency-Key"}',
        after="}",
        attacks=(
            "key: in two lines",
            "sign-in: with two keys",
        ),
    ),
    Defence(
        name="an answer at hand has one path",
        file=FRONT,
        before='self._stencils.find(method, scope["raw_path"])',
        after="self._stencils.find(method, path.encode())",
        attacks=("path: %-escapes, where an answer is at hand",),
    ),
    Defence(
        name="an answer at hand is for one host",
        file=STENCILS,
        before="names.count(_ONCE) < 2 and ",
        after="",
        attacks=("header: two hosts, on a call that proves nothing",),
    ),
    Defence(
        name="an answer at hand is for few headers",
        file=STENCILS,
        before="len(names) <= _LINES_MAX and ",
        after="",
        attacks=("header: a hundred and one lines, on a call that proves nothing",),
    ),
    Defence(
        name="an answer at hand is for who sends nothing",
        file=STENCILS,
        before=" and _SAY_NOTHING.issuperset(names)",
        after="",
        attacks=("header: two payments", "header: one payment in two lines"),
    ),
    Defence(
        name="calls that prove nothing are counted",
        file=FRONT,
        before="self._limits.take_address(arrival.address)",
        after="pass",
        attacks=(
            "limit: an address that asks and asks",
            "limit: X-Forwarded-For names another each time",
            "limit: broken proofs without end",
        ),
    ),
    Defence(
        name="paths that are not there are counted",
        file=FRONT,
        before="self._limits.take_address(address)",
        after="pass",
        attacks=("limit: paths that are not there without end",),
    ),
    Defence(
        name="an IPv6 customer is one caller",
        file="spawn/api/limits.py",
        before="inet_pton(AF_INET6, address)[:_SITE_BYTES]",
        after="inet_pton(AF_INET6, address)",
        attacks=("limit: one IPv6 customer with many addresses",),
    ),
    Defence(
        name="forwarded addresses are read from the right",
        file="spawn/api/addresses.py",
        before='for entry in reversed(lines.rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]):',
        after='for entry in lines.rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]:',
        attacks=(
            "limit: X-Forwarded-For behind a trusted proxy, forged on the left",
            "limit: X-Forwarded-For in two lines behind a trusted proxy",
        ),
    ),
    Defence(
        name="wallets take turns",
        file=PAID_CALLS,
        before="self._turns.take_wallet(call.identity.wallet)",
        after="pass",
        attacks=(
            "limit: a wallet that asks and asks",
            "limit: a wallet that pays and pays",
            "limit: a wallet from many addresses",
        ),
    ),
    Defence(
        name="an upgrade has no body",
        file=CONNECTIONS,
        before="            raise _upgrade_with_body()",
        after="            pass",
        attacks=(
            "wire: an upgrade with a length, and a request behind",
            "wire: an upgrade with chunks, and a request behind",
        ),
    ),
    Defence(
        name="no headers after the body",
        file=CONNECTIONS,
        before="        self.headers = _NO_MORE\n",
        after="",
        attacks=("wire: a payment behind the body",),
    ),
    Defence(
        name="the length of a target",
        file=CONNECTIONS,
        before="if len(self.url) > TARGET_MAX_BYTES:",
        after="if not self.url:",
        attacks=("wire: a target of 8 KiB",),
    ),
    Defence(
        name="the size of a head",
        file=CONNECTIONS,
        before="if _size(self.headers) > self._bounds.head_max_bytes:",
        after="if not self._bounds.head_max_bytes:",
        attacks=("wire: a line of 32 KiB beside a good signature",),
    ),
)
