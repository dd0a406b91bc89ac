"""The emulated Hetzner Cloud and its stock client in one test's hands: a real socket, and time that the test moves.

What the client gives is `Any`: by its types everything that it returns may be None.
"""

import base64
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from hcloud import Client
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType

from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.serving import serving
from tests.harness import VirtualClock

LABELS: Final = {"wallet": "0x" + "ab" * 20, "managed-by": "spawn"}


def public_key(number: int = 1) -> str:
    name = b"ssh-ed25519"
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", 32) + bytes([number]) * 32
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} somebody@somewhere"


class Scene:
    def __init__(self, endpoint: str, emulator: Emulator, clock: VirtualClock) -> None:
        self.endpoint = endpoint
        self.emulator = emulator
        self.world = emulator.world
        self.clock = clock
        self.client: Any = self.new_client(TOKEN)

    def new_client(self, token: str, *, timeout_s: float = 5) -> Any:
        """A stock client that retries as it does, but without sleeping."""
        client = Client(token, api_endpoint=self.endpoint, timeout=timeout_s, poll_interval=0)
        client._client._retry_interval_func = lambda retries: 0
        return client

    def order(self, name: str = "web", **changes: Any) -> Any:
        """One small server, unless something of it is changed."""
        wanted: dict[str, Any] = {
            "name": name,
            "server_type": ServerType(name="cx23"),
            "image": Image(name="ubuntu-24.04"),
            "location": Location(name="nbg1"),
            "labels": LABELS,
        }
        return self.client.servers.create(**(wanted | changes))

    def running(self, name: str = "web", **changes: Any) -> Any:
        """A server that has booted."""
        server = self.order(name, **changes).server
        self.clock.advance(60)
        server.reload()
        assert server.status == server.STATUS_RUNNING
        return server

    def stopped(self, name: str = "web", **changes: Any) -> Any:
        server = self.running(name, **changes)
        self.finish(server.power_off())
        server.reload()
        assert server.status == server.STATUS_OFF
        return server

    def finish(self, action: Any) -> Any:
        """Let so much time pass that every action has ended."""
        self.clock.advance(60)
        action.reload()
        assert action.status != action.STATUS_RUNNING
        return action

    def names(self, **filters: Any) -> list[str]:
        return [str(server.name) for server in self.client.servers.get_all(**filters)]


@contextmanager
def open_scene(*, seed: int = 1, statuses: dict[str, int] | None = None) -> Iterator[Scene]:
    clock = VirtualClock()
    emulator = Emulator(clock.now_ms, seed=seed, statuses=statuses)
    with serving(emulator) as endpoint:
        yield Scene(endpoint, emulator, clock)
