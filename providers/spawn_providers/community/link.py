"""What the community provider needs of whoever talks to lent machines.

Invariant: what a call of `HostLink` answered is durable, and whatever it was asked to do is done even if the process
that asked ends: its world is a database, not a connection.
"""

from collections.abc import Sequence
from typing import Protocol

from spawn_schemas.ids import ServerId

from spawn_providers.base import Instance, OpState, Spec, Verb
from spawn_providers.catalog import Catalog, Offer


class HostLink(Protocol):
    """Each call raises `Refused` or `Unavailable` as `spawn_providers.base` says; none has an unknown outcome."""

    async def catalog(self) -> Catalog:
        """What the named host is sold as."""
        ...

    async def place(self, key: ServerId, spec: Spec, offer: Offer) -> str:
        """Have a container started for `key`, once; answers the handle of that."""
        ...

    async def find(self, key: ServerId) -> Instance | None:
        """What was made for `key`, as its host last reported it; None when it is gone or never was."""
        ...

    async def living(self) -> list[Instance]:
        """All that is not gone."""
        ...

    async def order(self, key: ServerId, verb: Verb) -> str:
        """Have it started, stopped or restarted; answers the handle. `conflict` while another order runs on it."""
        ...

    async def destroy(self, key: ServerId) -> str:
        """Have it removed; answers the handle. What is gone is a success."""
        ...

    async def outcomes(self, handles: Sequence[str]) -> list[OpState]:
        """How far these have come, in the order asked."""
        ...
