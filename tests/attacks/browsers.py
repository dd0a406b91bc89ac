"""What a page in somebody's browser, or a cache on the way, could do."""

from tests.attacks.kit import Answer, Theme, served, unpaid
from tests.attacks.scene import LIST, Scene, Wire

browser = Theme("browser")


for origin in ("https://other.example", "null", "http://spawn.test", "https://other.example\r\nX-Evil: 1"):

    @browser(
        f"a page of {origin!r} calls", "a call proves itself: an origin gives and takes nothing", unpaid()
    )
    async def _(scene: Scene, origin: str = origin) -> Wire:
        return scene.ask(*LIST, None, ("Origin", origin))


for method, answer in (
    ("DELETE", served(204)),
    ("PATCH", served(204)),
    ("PUT", Answer(400)),
    ("TRACE", Answer(400)),
):

    @browser(
        f"a page asks whether it may {method}", "no credentials are allowed, and no handler runs", answer
    )
    async def _(scene: Scene, method: str = method) -> Wire:
        return scene.ask(
            "OPTIONS",
            f"/v1/servers/{scene.server}",
            None,
            ("Origin", "https://other.example"),
            ("Access-Control-Request-Method", method),
            ("Access-Control-Request-Headers", "payment-signature, cookie"),
        )
