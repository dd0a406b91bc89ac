"""Requests that two readers on the way would cut, or address, differently; sent as bytes to the server itself.

What is dressed up here is a good request that would be served and charged as it is, or hides one: whatever is read
that should not be read shows in the books.
"""

from collections.abc import Callable

from tests.attacks.kit import BAD_REQUEST, NOTHING_THERE, Answer, Theme, refused, served, unpaid
from tests.attacks.scene import LIST, Bytes, Scene, Wire, written
from tests.integration.paid_calls import PUBLIC_KEY

wire = Theme("wire")

TOO_LARGE = refused(413, "request_too_large")
ONE_READ = {"thief": -1_000, "fees": 1_000, "calls": 1}

Dressing = Callable[[bytes], bytes]


def good_post(scene: Scene) -> Wire:
    """A signed call of the thief's that changes something."""
    key = {"name": "mine", "public_key": PUBLIC_KEY.replace("fICEi", "fICEm")}
    return scene.sign(scene.thief, "POST", "/v1/ssh-keys", key)


def good_read(scene: Scene) -> bytes:
    """A signed call of the thief's that costs something."""
    return written(scene.sign(scene.thief, *LIST))


def post(*lines: bytes, body: bytes) -> bytes:
    """An unpaid POST that is framed by these lines."""
    head = (b"POST /v1/ssh-keys HTTP/1.1", b"host: spawn.test", *lines)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# --- one request that hides another ---------------------------------------------------------------------------

CHUNKED = b"transfer-encoding: chunked"
SMUGGLING: tuple[tuple[str, Dressing], ...] = (
    ("length before chunks", lambda hidden: post(b"content-length: 5", CHUNKED, body=b"0\r\n\r\n" + hidden)),
    ("chunks before length", lambda hidden: post(CHUNKED, b"content-length: 5", body=b"0\r\n\r\n" + hidden)),
    (
        "a length over the chunks and what follows",
        lambda hidden: post(b"content-length: %d" % (5 + len(hidden)), CHUNKED, body=b"0\r\n\r\n" + hidden),
    ),
    (
        "two lengths, the short one first",
        lambda hidden: post(b"content-length: 0", b"content-length: %d" % len(hidden), body=hidden),
    ),
    (
        "two lengths, the short one last",
        lambda hidden: post(b"content-length: %d" % len(hidden), b"content-length: 0", body=hidden),
    ),
    ("lengths in one line", lambda hidden: post(b"content-length: 0, %d" % len(hidden), body=hidden)),
    ("a space before the colon", lambda hidden: post(b"transfer-encoding : chunked", body=hidden)),
    ("a tab in the coding", lambda hidden: post(b"transfer-encoding: chunked\x0b", body=b"0\r\n\r\n" + hidden)),
    ("a coding of one's own", lambda hidden: post(b"transfer-encoding: xchunked", body=hidden)),
    (
        "a second coding",
        lambda hidden: post(CHUNKED, b"transfer-encoding: identity", body=b"0\r\n\r\n" + hidden),
    ),
    ("a folded coding", lambda hidden: post(b"transfer-encoding:\r\n chunked", body=b"0\r\n\r\n" + hidden)),
    (
        "a line end of LF in a chunk extension",
        lambda hidden: post(CHUNKED, body=b"0;\n\r\n%b\r\n" % hidden),
    ),
    ("a chunk longer than it says", lambda hidden: post(CHUNKED, body=b"1\r\n" + hidden)),
    ("an upgrade with a length", lambda hidden: post(
        b"connection: upgrade", b"upgrade: h2c", b"content-length: %d" % len(hidden), body=hidden
    )),
    ("an upgrade with chunks", lambda hidden: post(
        b"connection: upgrade", b"upgrade: h2c", CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    )),
    ("a line that is none", lambda hidden: b"GET /v1/servers HTTP/1.1\r\nnothing\r\n\r\n" + hidden),
    ("a head that ends in LF", lambda hidden: b"GET /v1/servers HTTP/1.1\nhost: spawn.test\n\n" + hidden),
)  # fmt: skip

for name, dressed in SMUGGLING:

    @wire(
        f"{name}, and a request behind",
        "RFC 9112 section 6.3, CWE-444: refused, and read no further",
        BAD_REQUEST,
    )
    async def _(scene: Scene, dressed: Dressing = dressed) -> Bytes:
        return Bytes((dressed(good_read(scene)),))


@wire("a request in the body of an unpaid one", "a body is a body, read or not", unpaid())
async def _(scene: Scene) -> Bytes:
    hidden = good_read(scene)
    framed = b"content-length: %d" % len(hidden)
    return Bytes((written(scene.ask("GET", "/v1/servers"), framed) + hidden,))


@wire(
    "a request in a body that is too large",
    "refused before it is whole; the rest of it is thrown away, and never read as a request",
    {TOO_LARGE: 1, served(): 1},
)
async def _(scene: Scene) -> Bytes:
    hidden = good_read(scene)
    huge = b" " * 131_073
    framed = post(b"content-length: %d" % (len(huge) + len(hidden)), body=huge)
    return Bytes((framed, hidden, written(scene.ask("GET", "/v1/catalog"))))


@wire(
    "a request behind an upgrade",
    "what follows may be in another protocol: nobody reads it as ours",
    unpaid(),
)
async def _(scene: Scene) -> Bytes:
    asked = written(scene.ask(*LIST), b"connection: upgrade", b"upgrade: h2c")
    return Bytes((asked + good_read(scene), good_read(scene)))


@wire("a request behind one of HTTP/0.9", "it has no head, so its connection ends with it", unpaid())
async def _(scene: Scene) -> Bytes:
    return Bytes((b"GET /v1/servers\r\n\r\n" + good_read(scene), good_read(scene)))


@wire("a request behind the last", "who says close has said the last word", unpaid())
async def _(scene: Scene) -> Bytes:
    return Bytes((written(scene.ask(*LIST)) + good_read(scene), good_read(scene)))


@wire(
    "a body longer than it says",
    "what is over is read as the next request, which it is not",
    {refused(401, "invalid_signature", "digest"): 1, BAD_REQUEST: 1},
)
async def _(scene: Scene) -> Bytes:
    lines = written(good_post(scene)).replace(b"connection: close\r\n", b"")
    length = next(line for line in lines.split(b"\r\n") if line.startswith(b"content-length"))
    return Bytes((lines.replace(length, b"content-length: 9"),))


@wire(
    "a good request behind an unpaid one",
    "a connection proves nothing: each request is asked for itself, and one refusal is nobody else's",
    {unpaid(): 1, served(): 1},
    effect=ONE_READ,
)
async def _(scene: Scene) -> Bytes:
    return Bytes((b"GET /v1/servers HTTP/1.1\r\nhost: spawn.test\r\n\r\n" + good_read(scene),))


@wire(
    "an unpaid request behind a good one",
    "as above: a proof is good for the request it is in, and answers come in turn",
    {served(): 1, unpaid(): 1},
    effect=ONE_READ,
)
async def _(scene: Scene) -> Bytes:
    good = good_read(scene).replace(b"connection: close\r\n", b"")
    return Bytes((good + written(scene.ask(*LIST)),))


# --- a request line or a head that readers take differently -----------------------------------------------------

TARGETS = (
    "v1/servers",
    "",
    "/v1/servers /v1/catalog",
    "/v1/\tservers",
    "/v1/ser\rvers",
    "/v1/ser\0vers",
    "/v1/servers\x7f",
    "/v1/servers\xa0",
    "\\v1\\servers",
    "?limit=1",
    "#/v1/servers",
    "http:/v1/servers",
    "http:///v1/servers",
    "http://spawn.test",
    "http://spawn.test:99999/v1/servers",
    "://spawn.test/v1/servers",
)

for target in TARGETS:

    @wire(f"target {target!r}", "RFC 9112 section 3.2: a target has one of four forms", BAD_REQUEST)
    async def _(scene: Scene, target: str = target) -> Bytes:
        signed = scene.sign(scene.thief, *LIST)
        return Bytes((written(Wire(method="GET", target=target, headers=signed.headers)),))


for target in (
    "http://spawn.test//v1/servers",
    "http://spawn.test/v1%2fservers",
    "http://spawn.test/v1/servers/",
    "http://other.example/http://spawn.test/v1/servers",
):

    @wire(
        f"target {target!r}",
        "RFC 9112 section 3.2.2: understood, with the one path that a thing has",
        NOTHING_THERE,
    )
    async def _(scene: Scene, target: str = target) -> Bytes:
        signed = scene.sign(scene.thief, *LIST)
        return Bytes((written(Wire(method="GET", target=target, headers=signed.headers)),))


for target in (
    "http://other.example/v1/servers",
    "https://owner@other.example:1/v1/servers",
    " /v1/servers",
    "/v1/servers#top",
):

    @wire(f"target {target!r}, unpaid", "who it names is not who is paid: the offer names us", unpaid())
    async def _(scene: Scene, target: str = target) -> Bytes:
        return Bytes((written(scene.ask("GET", target)),))


@wire(
    "a signature for another host, which the target names",
    "@authority is compared with SPAWN_PUBLIC_URL, whatever a target says",
    refused(401, "invalid_signature", "signature"),
)
async def _(scene: Scene) -> Bytes:
    signed = scene.sign(scene.owner, *LIST, authority="other.example")
    target = "http://other.example/v1/servers"
    return Bytes((written(Wire(method="GET", target=target, headers=signed.headers)),))


@wire(
    "a good request with a target of the absolute form",
    "RFC 9112 section 3.2.2: a server must accept it",
    served(),
    effect=ONE_READ,
)
async def _(scene: Scene) -> Bytes:
    signed = scene.sign(scene.thief, *LIST)
    return Bytes(
        (written(Wire(method="GET", target="http://spawn.test/v1/servers", headers=signed.headers)),)
    )


LINES: tuple[tuple[str, tuple[bytes, ...], Answer], ...] = (
    ("a second host", (b"host: other.example",), BAD_REQUEST),
    ("a folded line", (b"x-note: a\r\n b",), BAD_REQUEST),
    ("a zero byte in a value", (b"x-note: a\0b",), BAD_REQUEST),
    ("a bare CR in a value", (b"x-note: a\rx-evil: 1",), BAD_REQUEST),
    ("a bare LF in a value", (b"x-note: a\nx-evil: 1",), BAD_REQUEST),
    ("a zero byte in a name", (b"x-no\0te: a",), BAD_REQUEST),
    ("a space in a name", (b"x note: a",), BAD_REQUEST),
    ("a name outside ASCII", (b"x-n\xf6te: a",), BAD_REQUEST),
    ("no name", (b": a",), BAD_REQUEST),
    ("a line of 32 KiB", (b"x-note: " + b"a" * 32_768,), TOO_LARGE),
    ("a thousand lines", (b"x-note: a",) * 1_000, TOO_LARGE),
    ("a hundred lines more", (b"x-note: a",) * 100, TOO_LARGE),
)

for name, lines, answer in LINES:

    @wire(
        f"{name} beside a good signature",
        "RFC 9112 sections 2.2 and 5: a head has one reading, and a size",
        answer,
    )
    async def _(scene: Scene, lines: tuple[bytes, ...] = lines) -> Bytes:
        return Bytes((written(scene.sign(scene.thief, *LIST), *lines),))


@wire("a target of 8 KiB", "bounded: a target is in every log", TOO_LARGE)
async def _(scene: Scene) -> Bytes:
    return Bytes((written(scene.sign(scene.thief, "GET", "/v1/servers?" + "a" * 8_192)),))


@wire("a head that does not end", "bounded before it is whole", TOO_LARGE)
async def _(scene: Scene) -> Bytes:
    return Bytes((b"GET /v1/servers HTTP/1.1\r\n", *[b"x-note: %b\r\n" % (b"a" * 4_000)] * 10))


@wire("a folded payment", "a value has one line", BAD_REQUEST)
async def _(scene: Scene) -> Bytes:
    paid = await scene.pay(scene.thief, *LIST)
    value = paid.value("PAYMENT-SIGNATURE").encode()
    return Bytes((written(paid).replace(value, value[:400] + b"\r\n " + value[400:]),))


@wire("a payment under a name with an underscore", "CVE-2015-0219: a name is its bytes", unpaid())
async def _(scene: Scene) -> Bytes:
    paid = await scene.pay(scene.thief, *LIST)
    return Bytes((written(paid).replace(b"payment-signature", b"payment_signature"),))


for name, trailer in (
    ("a payment", None),
    ("a length", b"content-length: 0"),
    ("a host", b"host: other.example"),
):

    @wire(f"{name} behind the body", "RFC 9110 section 6.5.1: what comes too late is no header", BAD_REQUEST)
    async def _(scene: Scene, trailer: bytes | None = trailer) -> Bytes:
        body = good_post(scene).body
        paid = await scene.pay(scene.thief, "POST", "/v1/ssh-keys", body)
        late = trailer or b"payment-signature: " + paid.value("PAYMENT-SIGNATURE").encode()
        chunks = b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, late)
        return Bytes((post(CHUNKED, b"connection: close", body=chunks),))
