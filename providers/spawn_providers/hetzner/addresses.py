"""The IP addresses of our machines die with them.

Invariant: an address that a machine of ours has is marked to be deleted with it, at the latest after the next
inventory; Hetzner marks those that it makes for a new machine, and this is for the day it does not.
"""

from spawn_providers.base import Refused, RefusedCode
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Params
from spawn_providers.hetzner.states import PAGE
from spawn_providers.hetzner.wire import IpPage, Nothing


class Addresses:
    """The project's primary IPs. Used on the event loop only."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._bound: set[int] = set()

    async def bind(self, servers: set[int]) -> None:
        """See to it for these machines, of which only new ones cost a look. Raises `ProviderError`."""
        if servers <= self._bound:
            self._bound = servers
            return
        page: int | None = 1
        while page is not None:
            params: Params = {"per_page": PAGE, "page": page}
            answer = await self._calls.get("/primary_ips", IpPage, Priority.RECONCILE, params)
            for ip in answer.primary_ips:
                if ip.assignee_id in servers and not ip.auto_delete:
                    await self._bind(ip.id)
            page = answer.meta.pagination.next_page
        self._bound = servers

    async def _bind(self, id_: int) -> None:
        try:
            await self._calls.change(
                "PUT", f"/primary_ips/{id_}", Nothing, Priority.RECONCILE, {"auto_delete": True}
            )
        except Refused as refusal:
            if refusal.code is not RefusedCode.NOT_FOUND:
                raise
