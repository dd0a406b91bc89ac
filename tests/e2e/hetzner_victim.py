"""A victim whose machines are at the emulated Hetzner, which outlives it in the test's own process.

Invariant: whoever lives here finds the emulator by a file in its folder, and measures time by its own clock only.
"""

import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec.structs import replace as changed
from spawn_providers.hetzner.provider import HetznerProvider

from spawn.parts import Parts, open_parts
from spawn.settings import Settings
from tests.e2e.crashing import Points, crashing
from tests.e2e.victim import Order, nursery, settings_of
from tests.emulators.hetzner.app import TOKEN
from tests.harness import VirtualClock

ENDPOINT: Final = "endpoint"
"""The file in a victim's folder that says where the emulator is."""
FIRST_ANSWER_S: Final = 0.2
"""Real seconds: an answer that was lost is looked for only when time has passed, and time stands still in a call."""


async def hetzner_parts(order: Order, clock: VirtualClock, points: Points) -> tuple[Settings, Parts]:
    folder = Path(order.folder)
    settings = changed(settings_of(folder, order.url), first_answer_s=FIRST_ANSWER_S)
    parts = await open_parts(settings, clock=clock)
    hetzner = HetznerProvider(
        TOKEN,
        endpoint=(folder / ENDPOINT).read_text(),
        now_s=clock.now_s,
        monotonic=clock.elapsed_s,
    )
    parts.opened.push_async_callback(hetzner.aclose)
    return settings, crashing(replace(parts, providers={hetzner.name: hetzner}), points)


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])), hetzner_parts)
