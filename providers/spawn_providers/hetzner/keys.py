"""SSH keys at Hetzner: one for each fingerprint, whoever brought it, for as long as a machine refers to it.

Invariant: a key carries no wallet. The references to it are labels of the servers that use it, so that they are there
and gone with the servers, whatever dies when. Only keys with our label are deleted: when an inventory shows no
reference, and one at least an hour later still does not, since a machine that is being ordered has none yet.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

from spawn_providers.base import OutcomeUnknown, Refused, RefusedCode, Unavailable
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Params
from spawn_providers.hetzner.names import KEY_LABEL, fingerprint_of, key_name
from spawn_providers.hetzner.states import PAGE
from spawn_providers.hetzner.wire import KeyPage, Nothing, OneKey, SshKey

log = logging.getLogger(__name__)

UNUSED_S: Final = 3_600


class Keys:
    """The project's SSH keys. Used on the event loop only."""

    def __init__(self, calls: Calls, *, now: Callable[[], float]) -> None:
        self._calls = calls
        self._now = now
        self._ids: dict[str, int] = {}
        self._unused_since: dict[int, float] = {}

    async def ids_of(self, public_keys: Iterable[str], *, remembered: bool = True) -> list[int]:
        """The numbers of these keys, made where they are not there yet. Raises `ProviderError`."""
        ids = []
        for text in public_keys:
            fingerprint = fingerprint_of(text)
            if not remembered or fingerprint not in self._ids:
                self._ids[fingerprint] = await self._ensure(fingerprint, text)
            ids.append(self._ids[fingerprint])
        return list(dict.fromkeys(ids))

    async def tidy(self, used: set[str]) -> None:
        """Delete keys of ours that no server refers to; `used` are names, as an inventory of all servers shows them."""
        found: list[SshKey] = []
        page: int | None = 1
        while page is not None:
            params: Params = {"label_selector": KEY_LABEL, "per_page": PAGE, "page": page}
            answer = await self._calls.get("/ssh_keys", KeyPage, Priority.RECONCILE, params)
            found += answer.ssh_keys
            page = answer.meta.pagination.next_page
        unused = {key.id: key for key in found if key.name not in used}
        now = self._now()
        self._unused_since = {id_: self._unused_since.get(id_, now) for id_ in unused}
        for id_, since in self._unused_since.items():
            if now - since >= UNUSED_S:
                await self._delete(unused[id_])

    async def _ensure(self, fingerprint: str, text: str) -> int:
        """Find it or make it; whoever was faster made the same one."""
        found = await self._find(fingerprint)
        if found is not None:
            return found
        body = {
            "name": key_name(fingerprint),
            "public_key": " ".join(text.split()[:2]),
            "labels": {KEY_LABEL: "managed"},
        }
        try:
            made = await self._calls.change("POST", "/ssh_keys", OneKey, Priority.CREATE, body)
        except Refused as refusal:
            if refusal.code is not RefusedCode.CONFLICT:
                raise
        except OutcomeUnknown:
            log.info("the answer to making an SSH key was lost; looking for it")
        else:
            return made.ssh_key.id
        found = await self._find(fingerprint)
        if found is None:
            raise Unavailable("Hetzner does not show the SSH key yet that it was given.", retry_after_s=1)
        return found

    async def _find(self, fingerprint: str) -> int | None:
        page = await self._calls.get("/ssh_keys", KeyPage, Priority.CREATE, {"fingerprint": fingerprint})
        return page.ssh_keys[0].id if page.ssh_keys else None

    async def _delete(self, key: SshKey) -> None:
        self._ids = {fingerprint: id_ for fingerprint, id_ in self._ids.items() if id_ != key.id}
        try:
            await self._calls.change("DELETE", f"/ssh_keys/{key.id}", Nothing, Priority.RECONCILE)
        except Refused as refusal:
            if refusal.code is not RefusedCode.NOT_FOUND:
                raise
