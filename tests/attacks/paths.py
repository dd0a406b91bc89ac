"""Paths spelled otherwise, and methods that are not offered: a thing has one path, and its guard stands there."""

from tests.attacks.kit import NOT_OFFERED, NOTHING_THERE, Theme, served
from tests.attacks.scene import Scene, Wire

path = Theme("path")

BYPASSES = (
    "#318, #967, #3044, #3502, GHSA-3j63-5h8p-gf7c: a guard that matched other paths than the router did"
)

for target in (
    "/v1/servers/",
    "/v1/servers//",
    "//v1/servers",
    "/v1//servers",
    "///v1/servers",
    "/v1/servers%2F",
    "/v1%2Fservers",
    "%2Fv1/servers",
    "/v1%2fservers",
    "/v1/%73ervers",
    "/%76%31/servers",
    "/v1/servers%20",
    "/v1/servers%09",
    "/v1/servers%00",
    "/v1/servers%0d%0aX-Evil:%201",
    "/v1/servers%3Flimit=1",
    "/v1/servers%23",
    "/v1/servers#",
    "/v1/servers;a=1",
    "/v1/servers;",
    "/v1;a=1/servers",
    "/v1/./servers",
    "/./v1/servers",
    "/v1/../v1/servers",
    "/v1/catalog/../servers",
    "/v1/catalog%2F..%2Fservers",
    "/v1/%2e%2e/v1/servers",
    "/v1/servers/..;/servers",
    "/V1/servers",
    "/v1/Servers",
    "/V1/SERVERS",
    "/v1/servers.json",
    "/v1/servers\\",
    "/v1\\servers",
    "/v1/serve%C5%BFs",
    "/v1/servers%EF%BC%8F",
    "/v1/servers%c0%af",
    "/v1/servers%u002f",
    "/v1/servers%25%32%66",
    "/v1/servers%",
    "/v1/servers%zz",
    "http://other.example/v1/servers",
    "http://spawn.test/v1/servers",
    "other.example:443",
    "*",
):

    @path(target, BYPASSES, NOTHING_THERE)
    async def _(scene: Scene, target: str = target) -> list[Wire]:
        return [
            scene.ask("GET", target),
            scene.ask("POST", target, {"name": "web"}),
            scene.sign(scene.owner, "GET", target),
            scene.paid(await scene.payload(scene.thief, "GET", "/v1/servers"), "GET", target),
        ]


@path(
    "%-escapes, where an answer is at hand", "#3044: what is remembered has one path as well", NOTHING_THERE
)
async def _(scene: Scene) -> list[Wire]:
    asked = [("GET", "/v1/servers"), ("GET", "/v1/ssh-keys"), ("POST", "/v1/sessions")]
    for method, target in asked:
        await scene.send(scene.ask(method, target))
    return [scene.ask(method, target.replace("s", "%73")) for method, target in asked]


for method, template in (
    ("GET", "/v1/servers/{}/"),
    ("GET", "/v1/servers//{}"),
    ("DELETE", "/v1/servers%2F{}"),
    ("DELETE", "/v1//servers/{}"),
    ("DELETE", "/v1/servers/{}%00"),
    ("DELETE", "/v1/servers/{}%20"),
    ("GET", "/v1/servers/x/../{}"),
    ("GET", "/v1/servers/%2e%2e/servers/{}"),
    ("POST", "/v1/servers/{}%2Fstop"),
    ("POST", "/v1/servers/{}//stop"),
    ("POST", "/v1/servers/{}/stop/"),
    ("POST", "/v1/servers/{}/STOP"),
    ("POST", "/v1/servers/{}/stop;now"),
    ("POST", "/v1/servers/{}/%73top"),
    ("POST", "/v1/servers/{}/stop/now"),
):

    @path(
        f"{method} {template.format('<server>')}",
        f"{BYPASSES}; here by the owner, who could, spelled right",
        NOTHING_THERE,
    )
    async def _(scene: Scene, method: str = method, template: str = template) -> list[Wire]:
        target = template.format(scene.server)
        return [scene.ask(method, target), scene.sign(scene.owner, method, target)]


for method in ("PUT", "HEAD", "TRACE", "CONNECT", "get", "Delete", "PROPFIND", "GET ", "PRI"):

    @path(f"method {method}", "a method is bytes, and each route names its own", NOT_OFFERED)
    async def _(scene: Scene, method: str = method) -> list[Wire]:
        target = f"/v1/servers/{scene.server}"
        return [scene.ask(method, target), scene.sign(scene.owner, method, target)]


@path("the catalog, as it is", "what is free needs no proof, and no guard costs it", served())
async def _(scene: Scene) -> Wire:
    return scene.ask("GET", "/v1/catalog")
