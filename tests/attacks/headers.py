"""Headers doubled, joined, empty, huge, or meant for somebody else: whoever reads the first and whoever reads the last
must come to one answer."""

from tests.attacks.kit import BAD_PAYMENT, BAD_REQUEST, NOT_OFFERED, NOT_YOURS, Theme, refused, served, unpaid
from tests.attacks.scene import BUY, LIST, Scene, Wire

header = Theme("header")

TOO_LARGE = refused(413, "request_too_large")


@header("two payments", "RFC 9110 section 5.3: joined, they are no base64", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    first, second = await scene.pay(scene.thief, *LIST), await scene.pay(scene.thief, *LIST)
    return first.plus(*second.headers)


@header("one payment in two lines", "as above: twice the same is not once", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *LIST)
    return wire.plus(*wire.headers)


@header("an empty payment before a good one", "as above", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *LIST)
    return Wire(method="GET", target=LIST[1], headers=(("PAYMENT-SIGNATURE", ""), *wire.headers))


@header("a payment in pieces", "a header is not continued in the next line", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *LIST)
    whole = wire.value("PAYMENT-SIGNATURE")
    pieces = tuple(("PAYMENT-SIGNATURE", piece) for piece in (whole[:400], whole[400:]))
    return Wire(method="GET", target=LIST[1], headers=pieces)


@header("a broken payment beside a good signature", "who means to pay is not charged elsewhere", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, *LIST, None, ("PAYMENT-SIGNATURE", "e30"))


@header(
    "the thief's payment beside the owner's signature",
    "who pays is who calls: a captured signature adds no rights to it",
    NOT_YOURS,
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    captured = scene.sign(scene.owner, "DELETE", target)
    return (await scene.pay(scene.thief, "DELETE", target)).plus(*captured.headers)


@header(
    "a payment beside a signature, both good",
    "one call is paid once",
    served(),
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *LIST)
    return wire.plus(*scene.sign(scene.thief, *LIST).headers)


for name in ("signature", "signature-input"):

    @header(
        f"two lines of {name}",
        "joined as a dictionary, a key is there twice",
        refused(401, "invalid_signature", "malformed"),
    )
    async def _(scene: Scene, name: str = name) -> Wire:
        wire = scene.sign(scene.owner, *LIST)
        return wire.plus((name, wire.value(name)))


@header(
    "two digests",
    "joined as a dictionary, a key is there twice",
    refused(401, "invalid_signature", "malformed"),
)
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "POST", "/v1/servers", BUY)
    return wire.plus(("content-digest", wire.value("content-digest")))


@header("two hosts", "RFC 9112 section 3.2: who names two names none", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    both = (("Host", "spawn.test"), ("Host", "other.example"))
    return [
        scene.sign(scene.owner, *LIST, None, *both),
        (await scene.pay(scene.owner, *LIST)).plus(*both),
        scene.ask("GET", "/v1/catalog", None, *both[::-1]),
    ]


@header("two hosts, on a call that proves nothing", "as above, where an answer is at hand", BAD_REQUEST)
async def _(scene: Scene) -> Wire:
    await scene.send(scene.ask(*LIST))
    return scene.ask(*LIST, None, ("Host", "spawn.test"), ("Host", "other.example"))


@header("a hundred and one lines, on a call that proves nothing", "as above", TOO_LARGE)
async def _(scene: Scene) -> Wire:
    await scene.send(scene.ask(*LIST))
    return scene.ask(*LIST, None, *[("Accept", "*/*")] * 101)


@header("a hundred and one lines", "bounded in number", TOO_LARGE)
async def _(scene: Scene) -> list[Wire]:
    many = tuple((f"X-Filler-{n}", "x") for n in range(101))
    return [(await scene.pay(scene.thief, *LIST)).plus(*many), scene.sign(scene.owner, *LIST, None, *many)]


@header("64 KiB in one line", "bounded in bytes", TOO_LARGE)
async def _(scene: Scene) -> list[Wire]:
    huge = ("X-Filler", "x" * 65_536)
    return [(await scene.pay(scene.thief, *LIST)).plus(huge), scene.sign(scene.owner, *LIST, None, huge)]


@header("a payment of 9 KiB", "a payment has 8 KiB at most: no decoder sees more", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    return scene.paid("A" * 9_216, *LIST)


@header(
    "a Signature-Input of 5 KiB",
    "bounded before any expression runs over it",
    refused(401, "invalid_signature", "malformed"),
)
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, *LIST)
    return wire.edited("signature-input", lambda value: value + ";x" * 2_500)


@header(
    "a Signature-Input that makes expressions slow",
    "possessive quantifiers: no backtracking",
    refused(401, "invalid_signature", "malformed"),
)
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, *LIST)
    return wire.edited("signature-input", lambda value: value + ', a="' + '\\"' * 1_900)


for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):

    @header(f"{name}: DELETE on a POST", "the method is that of the request line", NOT_OFFERED)
    async def _(scene: Scene, name: str = name) -> list[Wire]:
        target = f"/v1/servers/{scene.server}"
        return [
            scene.ask("POST", target, None, (name, "DELETE")),
            scene.sign(scene.owner, "POST", target, None, (name, "DELETE")),
        ]


for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Uri"):

    @header(f"{name} beside another path", "the path is that of the request line", unpaid())
    async def _(scene: Scene, name: str = name) -> Wire:
        return scene.ask(*LIST, None, (name, "/v1/catalog"))

    @header(
        f"{name} beside the path of the owner's server",
        "as above, where the free path is not priced",
        served(),
    )
    async def _(scene: Scene, name: str = name) -> Wire:
        return scene.ask("GET", "/v1/catalog", None, (name, f"/v1/servers/{scene.server}"))


for name, value in (
    ("If-None-Match", "*"),
    ("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
    ("Range", "bytes=0-0"),
    ("Expect", "100-continue"),
    ("Accept", "text/html"),
    ("Accept-Encoding", "gzip;q=0, identity;q=0"),
    ("X-PAYMENT-RESPONSE", "e30="),
    ("PAYMENT-RESPONSE", "eyJzdWNjZXNzIjp0cnVlfQ=="),
    ("Upgrade", "websocket"),
    ("Idempotent-Replayed", "true"),
    ("Spawn-Fee", "0.00"),
):

    @header(f"{name}: {value} on an unpaid call", "only a proof turns a 402 into an answer", unpaid())
    async def _(scene: Scene, name: str = name, value: str = value) -> Wire:
        return scene.ask(*LIST, None, (name, value))


for name, value in (
    ("with a line end", "a\r\nX-Evil: 1"),
    ("of 65 characters", "x" * 65),
    ("with a tag", "<script>"),
    ("outside ASCII", "\xe9"),
):

    @header(
        f"X-Request-Id {name}",
        "it is answered and logged: 1 to 64 letters, digits, dashes, or one of ours",
        unpaid(),
    )
    async def _(scene: Scene, value: str = value) -> Wire:
        return scene.ask(*LIST, None, ("X-Request-Id", value))
