"""Machines tell of their own boot, as the program in their user data does; and tell it again, and wrongly.

Invariant: a machine knows nothing but what it was told: of a host key, and where to report.
"""

import json
import re
from typing import TYPE_CHECKING, Final

from tests.sim.client_types import Request
from tests.sim.moves import Kind

if TYPE_CHECKING:
    from tests.sim.world import World

_PATH: Final = re.compile(r"/v1/boots/[0-9a-f]{64}")
_REPORTS: Final[tuple[dict[str, object], ...]] = (
    {"ssh": True},
    {"cloud_init": "done", "log": "finished\n"},
    {"cloud_init": "done", "log": "finished\n"},
    {"cloud_init": "failed", "log": "\x1b[31mno such package\x00\n"},
    {},
)


def _report(world: "World") -> None:
    told = sorted(world.cloud.told)
    alive = [machine.ref for machine in world.cloud.existing() if machine.ref in world.cloud.told]
    if alive and world.random.random() < 0.8:
        told = alive
    if told:
        ref = world.random.choice(told)
        body = world.random.choice(_REPORTS)
        _ = world.spawn(_tell(world, ref, body), name=f"machine {ref} reports")


async def _tell(world: "World", ref: str, body: dict[str, object]) -> None:
    """Also of a machine that is gone, and what was told to one before its rebuild."""
    paths = _PATH.findall(world.random.choice(world.cloud.told[ref]))
    request = Request(
        method="POST", path=paths[0], body=json.dumps(body).encode(), address=f"198.18.7.{int(ref) % 200}"
    )
    answer = await world.http(request)
    world.count(f"machine: {answer.status}")
    # Somebody may flood from its address, and the database may be busy.
    if answer.status not in {429, 503} | ({400} if body == {} else {200, 404}):
        world.violation(
            "answers", f"machine {ref} told {body}, and was answered {answer.status}: {answer.body!r}"
        )


MOVES: Final = (Kind(name="machine.report", weight=4.0, play=_report),)
