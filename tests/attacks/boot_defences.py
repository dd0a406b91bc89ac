"""What keeps everybody but a machine from telling of it, and that machine from telling twice."""

from typing import Final

from tests.attacks.defence import Defence

BOOTS: Final = "spawn/services/boots.py"
READINESS: Final = "spawn/domain/readiness.py"
WIRE: Final = "schemas/spawn_schemas/boots.py"

OF_BOOTS: Final = (
    Defence(
        name="free writes count against their address",
        file="spawn/api/front.py",
        before='(route is None or method != "GET")',
        after="route is None",
        attacks=("boot: guesses without end",),
    ),
    Defence(
        name="an end is told once",
        file=READINESS,
        before="    if was.cloud_init is None:",
        after="    if True:",
        attacks=("boot: another end after the first",),
    ),
    Defence(
        name="nobody reports for a server that goes",
        file=BOOTS,
        before="server is None or server.status in FINAL | {Status.DESTROYING}",
        after="server is None",
        attacks=("boot: a report for a server that goes",),
    ),
    Defence(
        name="a rebuild ends the token before it",
        file="spawn/services/outcomes.py",
        before="                    boots.began_rebuild(tx, operation)",
        after="                    pass",
        attacks=("boot: a report of the system before a rebuild",),
    ),
    Defence(
        name="a log has a length",
        file=WIRE,
        before="msgspec.Meta(max_length=16384, ",
        after="msgspec.Meta(",
        attacks=("boot: a log of 120 KiB", "boot: reports that are none"),
    ),
)
