"""`Provider` over machines that their owners lend, one named host at present.

Invariant: nothing is kept here. Whatever was ordered is in the world behind `HostLink`, and an order is refused by what
is said here to be possible before that world hears of it.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from spawn_schemas.ids import ServerId

from spawn_providers.base import (
    Capabilities,
    Change,
    Instance,
    Op,
    OpState,
    Refused,
    RefusedCode,
    Spec,
    Verb,
)
from spawn_providers.catalog import Catalog, Offer
from spawn_providers.community.link import HostLink

VERBS: Final = frozenset({Verb.START, Verb.SHUTDOWN, Verb.POWEROFF, Verb.REBOOT})


class CommunityProvider:
    """See `spawn_providers.base` for what each call promises. `ref` is our own key: a host gives no other name."""

    name: str = "community"
    capabilities: Capabilities = Capabilities(
        verbs=VERBS, ipv6_only=False, user_data_bytes=0, root_password=False, host_key=True
    )

    def __init__(self, link: HostLink) -> None:
        self._link = link

    async def catalog(self) -> Catalog:
        return await self._link.catalog()

    async def create(self, key: ServerId, spec: Spec) -> Op:
        if spec.ipv6_only:
            raise Refused(
                RefusedCode.INVALID, "A lent machine is reached through the relay, not by IPv6 alone."
            )
        if spec.user_data is not None:
            raise Refused(RefusedCode.INVALID, "A container on a lent machine takes no user_data.")
        offer = _offered(await self._link.catalog(), spec)
        return Op(handle=await self._link.place(key, spec, offer), ref=key)

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        return await self._link.find(key)

    async def get(self, ref: str) -> Instance | None:
        return await self._link.find(ServerId(ref))

    async def list_owned(self) -> AsyncIterator[Instance]:
        for instance in await self._link.living():
            yield instance

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        if verb not in VERBS:
            raise Refused(RefusedCode.INVALID, f"A container on a lent machine cannot {verb.value}.")
        return Op(handle=await self._link.order(ServerId(ref), verb), ref=ref)

    async def delete(self, ref: str) -> Op:
        return Op(
            handle=await self._link.destroy(ServerId(ref)),
            ref=ref,
            last_seen=await self._link.find(ServerId(ref)),
        )

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        return await self._link.outcomes(handles) if handles else []


def _offered(catalog: Catalog, spec: Spec) -> Offer:
    wanted = (spec.provider_type, spec.location)
    offer = next((o for o in catalog.offers if (o.provider_type, o.location) == wanted), None)
    if offer is None:
        raise Refused(RefusedCode.INVALID, f"{spec.provider_type} is not sold in {spec.location}.")
    if spec.image not in {image.name for image in catalog.images}:
        raise Refused(RefusedCode.INVALID, f"There is no image {spec.image}.")
    return offer
