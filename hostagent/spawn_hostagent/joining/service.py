"""The host's plain calls to the service: registration, another key, and what its clock shows.

Invariant: a call is signed for one method, path and body, at one moment, with a nonce of its own. A clock that is off
costs one more try, not the call: the service's `Date` says by how much.
"""

import os
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeVar

import httpx
import msgspec
from spawn_schemas.hosts import (
    CLOCK_SKEW_S,
    KEY_PATH,
    REGISTER_PATH,
    ChangeKey,
    HostRegistered,
    KeyChanged,
    RegisterHost,
)

from spawn_hostagent.failures import Failure

TIMEOUT_S: Final = 20.0
ANSWER_BYTES_MAX: Final = 1024 * 1024
NOT_PROVEN: Final = (401, 403)
"""How the service says that it does not believe a signature."""
CONFLICT: Final = 409
"""How it may say that the key is the host's already, which it would not tell anybody else."""

Answer = TypeVar("Answer")


class Signer(Protocol):
    """Whoever proves calls: `spawn_hostagent.joining.identity.Identity`."""

    @property
    def service(self) -> str: ...

    def headers(self, method: str, path: str, body: bytes, *, now_s: int, nonce: str) -> dict[str, str]:
        """What proves a call."""
        ...


class Rotating(Signer, Protocol):
    """Whoever changes keys."""

    @property
    def pending(self) -> str | None: ...

    def begin_rotation(self) -> ChangeKey:
        """Step one: the new key is kept."""
        ...

    def finish_rotation(self, accepted: str) -> None:
        """Step two: the service has it."""
        ...

    def switch(self) -> bool:
        """Sign with the other key."""
        ...


class Unreachable(Failure):
    """The service did not answer; whether it heard is not known."""


class Refused(Failure):
    """The service said no; `status` and `code` are for programs."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Service:
    """One service, by its address. `client` makes HTTP clients; `now` is this machine's clock in unix seconds."""

    def __init__(
        self,
        address: str,
        *,
        client: Callable[[], httpx.AsyncClient] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._address = address
        self._client = client or _new_client
        self._now = now
        self.offset_s = 0.0
        """How far the service's clock is ahead of this one, as its last answer said; to a second."""

    async def register(self, body: RegisterHost) -> HostRegistered:
        """Swap the token for a host's id. Raises Failure."""
        answer = await self._send("POST", REGISTER_PATH, msgspec.json.encode(body), {})
        return _decoded(_accepted(answer, "register this machine"), HostRegistered)

    async def change_key(self, signer: Signer, change: ChangeKey) -> KeyChanged:
        """Ask for another key, proven by the old one. Raises Failure."""
        answer = await self.signed(signer, "POST", KEY_PATH, msgspec.json.encode(change))
        return _decoded(_accepted(answer, "change the key of this host"), KeyChanged)

    async def clock_offset(self) -> float:
        """Seconds that the service's clock is ahead of this one's. Raises Failure."""
        await self._send("GET", "/", b"", {})
        return self.offset_s

    async def signed(self, signer: Signer, method: str, path: str, body: bytes) -> httpx.Response:
        """A call that is proven; once more by the service's clock where ours was too far off. Raises Unreachable."""
        for last in (False, True):
            offset = self.offset_s
            now_s = int(self._now() + offset)
            headers = signer.headers(method, path, body, now_s=now_s, nonce=os.urandom(16).hex())
            answer = await self._send(method, path, body, headers)
            if last or answer.status_code not in NOT_PROVEN or abs(self.offset_s - offset) < CLOCK_SKEW_S / 2:
                return answer
        raise AssertionError("the second try returns")

    async def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        content = {"Content-Type": "application/json"} if body else {}
        try:
            async with self._client() as client:
                answer = await client.request(
                    method, self._address + path, content=body, headers={**content, **headers}
                )
        except httpx.HTTPError as error:
            raise Unreachable(
                f"{self._address} does not answer ({_reason(error)}): check the address and this machine's network, "
                "then try again."
            ) from error
        self._learn_offset(answer)
        return answer

    def _learn_offset(self, answer: httpx.Response) -> None:
        try:
            self.offset_s = parsedate_to_datetime(answer.headers["Date"]).timestamp() - self._now()
        except (KeyError, ValueError):  # a service without a clock teaches nothing
            return


async def rotate(identity: Rotating, service: Service | None = None) -> None:
    """Have the service accept a new key, or find out which of two it knows after a rotation that broke off.

    Raises Failure; the identity then has both keys still, and this may be called again.
    """
    service = service or Service(identity.service)
    resumed = identity.pending is not None
    change = identity.begin_rotation()
    try:
        await service.change_key(identity, change)
    except Refused as error:
        if not (resumed and error.status in NOT_PROVEN and await _knows_pending(identity, service, change)):
            raise
    identity.finish_rotation(change.public_key)


async def _knows_pending(identity: Rotating, service: Service, change: ChangeKey) -> bool:
    """Whether the service had taken the new key when the rotation broke off: it then believes its signature."""
    if not identity.switch():
        return False
    believed = False
    try:
        answer = await service.signed(identity, "POST", KEY_PATH, msgspec.json.encode(change))
        believed = answer.is_success or answer.status_code == CONFLICT
    finally:
        if not believed:
            identity.switch()
    return believed


def _new_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)


def _accepted(answer: httpx.Response, what: str) -> bytes:
    """The body of a success. Raises Refused with the service's own words."""
    if answer.is_success:
        return answer.content[:ANSWER_BYTES_MAX]
    code, message = _told(answer)
    raise Refused(f"the service refuses to {what}: {message}", answer.status_code, code)


def _told(answer: httpx.Response) -> tuple[str, str]:
    """Code and sentence of the service's envelope, or what can be said without one."""
    try:
        error: dict[str, Any] = answer.json()["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "unknown", f"HTTP {answer.status_code} without a reason. Is {answer.url.host} a spawn service?"


def _decoded(body: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Failure(
            f"the service answered what this version does not understand ({error}): upgrade spawn-host."
        ) from error


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
