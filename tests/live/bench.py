"""The project at hand: how its answers are asked for, waited for and compared.

Invariant: nothing here orders or destroys anything.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spawn_providers.base import Instance, InstanceStatus, Op, OpState, OpStatus, ProviderError
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Method
from spawn_providers.hetzner.errors import Denied
from spawn_providers.hetzner.provider import HetznerProvider
from spawn_schemas.ids import ServerId

from tests.live.notes import Notes

PATIENCE_S: Final = 900
"""The longest that any one thing may take at Hetzner."""


class Broken(Exception):
    """Hetzner did not finish something, or not in time: the life goes no further."""


@dataclass(kw_only=True)
class Bench:
    """The project, as our provider sees it and as it answers plain calls."""

    provider: HetznerProvider
    calls: Calls
    notes: Notes
    key: ServerId
    pause_s: float
    monotonic: Callable[[], float]
    """Hetzner's time, in seconds."""
    public_keys: tuple[str, str] = field(default_factory=lambda: (new_public_key(), new_public_key()))
    """What it lets log in: the first from an order on, the second after a rebuild."""

    @property
    def name(self) -> str:
        """What everything that this run names begins with."""
        return self.key.replace("_", "-")

    async def ask(self, path: str, **params: str | int) -> dict[str, Any]:
        return await self.calls.get(path, dict[str, Any], Priority.POLL, params)

    async def refusal(self, method: Method, path: str, body: Mapping[str, object] | None = None) -> str:
        """The code with which a call is refused, or `accepted`."""
        try:
            await self.calls.change(method, path, dict[str, Any], Priority.DESTROY, body)
        except Denied as refusal:
            return refusal.reason
        except ProviderError as error:
            return str(error)
        return "accepted"

    async def is_refused(self, code: str, method: Method, path: str, **body: object) -> None:
        found = await self.refusal(method, path, body or None)
        self.notes.check(f"{method} {shape(path)} {told(body)}is refused as {code}", found == code, found)

    async def done(self, what: str, op: Op) -> None:
        """Wait for an op to end well."""
        began = time.monotonic()
        while True:
            state: OpState = (await self.provider.poll([op.handle]))[0]
            if state.status is not OpStatus.RUNNING:
                break
            await self.wait(began, what)
        if state.status is OpStatus.ERROR:
            raise Broken(f"the {what} failed ({state.error_message})")
        print(f"              {what} took {time.monotonic() - began:.1f} s")

    async def reach(self, ref: str, *wanted: InstanceStatus) -> Instance:
        began = time.monotonic()
        while True:
            machine = await self.provider.get(ref)
            if machine is not None and machine.status in wanted:
                return machine
            await self.wait(began, f"server {ref} becoming {wanted[0].value}")

    async def unlocked(self, ref: str) -> None:
        """Wait until no action of the machine runs."""
        began = time.monotonic()
        while (await self.ask(f"/servers/{ref}/actions", status="running"))["actions"]:
            await self.wait(began, f"an action of server {ref}")

    async def wait(self, began: float, what: str) -> None:
        if time.monotonic() - began > PATIENCE_S:
            raise Broken(f"{what} was not done after {PATIENCE_S} s")
        await asyncio.sleep(self.pause_s)


def new_public_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def shape(path: str) -> str:
    return "/".join("{id}" if part.isdecimal() else part for part in path.split("/"))


def told(body: Mapping[str, object]) -> str:
    said = [f"{name}={body[name]}" for name in ("server_type", "location") if name in body]
    return f"({', '.join(said)}) " if said else ""
