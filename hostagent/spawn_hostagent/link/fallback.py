"""The heartbeat of a host that cannot hold a socket: a signed call each minute, with commands in its answer.

Invariant: it says and hears what the link does, by the same duties, and only while the link is down.
"""

import logging
import secrets
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import msgspec
from spawn_schemas.hosts import HEARTBEAT_PATH, Beat
from spawn_schemas.orders import Ack, Command, Desired

from spawn_hostagent.clock import Clock, ServiceClock
from spawn_hostagent.link.duties import Duties
from spawn_hostagent.link.session import BareCommand, refused
from spawn_hostagent.link.signer import Signer

if TYPE_CHECKING:
    import httpx

EVERY_S: Final = 60.0
NEXT_MIN_S: Final = 5
NEXT_MAX_S: Final = 600
TIMEOUT_S: Final = 20.0
ACKS_MAX: Final = 200
WHOLE_EVERY: Final = 10
"""Every so many calls carry the inventory."""

_log: Final = logging.getLogger(__name__)


class _Answer(msgspec.Struct, frozen=True):
    """`BeatAnswered` with its commands undecoded: one that this version does not know must not hide the others."""

    commands: tuple[msgspec.Raw, ...]
    desired: tuple[Desired, ...]
    next_s: int


_answers: Final = msgspec.json.Decoder(_Answer)


class Fallback:
    """`down_since` is when the link was lost, by `Clock.elapsed_s`; None while it is up."""

    def __init__(
        self,
        signer: Signer,
        duties: Duties,
        *,
        clock: Clock,
        service_clock: ServiceClock,
        down_since: Callable[[], float | None],
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        self._signer = signer
        self._duties = duties
        self._clock = clock
        self._service_clock = service_clock
        self._down_since = down_since
        self._transport = transport
        self._count = 0
        self._refused: list[Ack] = []
        self.last_error: str | None = None

    async def run(self) -> None:
        """Call for as long as the link has been down for a minute."""
        wait_s = EVERY_S
        while True:
            await self._clock.sleep(wait_s)
            down_since = self._down_since()
            if down_since is None:
                wait_s = EVERY_S
                continue
            left_s = down_since + EVERY_S - self._clock.elapsed_s()
            # A session that opened and ended since is not a minute's silence yet.
            wait_s = left_s if left_s > 0 else await self.beat()

    async def beat(self) -> float:
        """One heartbeat; return the seconds until the next one."""
        import httpx  # noqa: PLC0415 - most hosts hold their socket, and never need it in memory

        pulse, picture = (
            await self._duties.pulse(),
            await self._duties.picture(whole=self._count % WHOLE_EVERY == 0),
        )
        results = self._duties.untold()[:ACKS_MAX]
        beat = Beat(
            status=pulse.status,
            metrics=pulse.metrics,
            rentals=picture.rentals,
            inventory=picture.inventory,
            acks=(*results, *self._refused, *self._duties.underway()[:ACKS_MAX]),
        )
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, transport=self._transport) as client:
                answer = await self._post(client, msgspec.json.encode(beat))
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._fail(f"{type(error).__name__}: {error}")
            return EVERY_S
        if answer is None:
            return EVERY_S
        self._count += 1
        self.last_error = None
        self._duties.told(tuple(ack.command_id for ack in results))
        self._refused = [ack for raw in answer.commands if (ack := self._obey(raw)) is not None]
        await self._duties.want(answer.desired)
        return max(NEXT_MIN_S, min(answer.next_s, NEXT_MAX_S))

    async def _post(self, client: "httpx.AsyncClient", body: bytes) -> _Answer | None:
        """The service's answer. A refused call is signed once more, by the service's own clock."""
        for is_last in (False, True):
            headers = self._signer.headers(
                "POST", HEARTBEAT_PATH, body, now_s=self._service_clock.now_s(), nonce=secrets.token_hex(16)
            )
            began = self._clock.elapsed_s()
            answer = await client.post(
                self._signer.service + HEARTBEAT_PATH,
                content=body,
                headers=headers | {"Content-Type": "application/json"},
            )
            self._hear(answer.headers.get("Date"), self._clock.elapsed_s() - began)
            if answer.status_code == 200:
                return _answers.decode(answer.content)
            if answer.status_code != 401 or is_last:
                self._fail(f"the service answered {answer.status_code} to {HEARTBEAT_PATH}")
                break
        return None

    def _obey(self, raw: msgspec.Raw) -> Ack | None:
        """Take a command; the answer to one that this version does not know."""
        try:
            self._duties.obey(msgspec.json.decode(raw, type=Command))
        except msgspec.DecodeError as error:
            _log.warning("The service sent a command that this version does not know: %s", error)
            return refused(msgspec.json.decode(raw, type=BareCommand), error)
        return None

    def _hear(self, date: str | None, round_trip_s: float) -> None:
        """HTTP tells the time in whole seconds (RFC 9110 section 6.6.1), and keeps back half of one on average."""
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return
        self._service_clock.hear(round(told.timestamp() * 1000) + 500, round_trip_s)

    def _fail(self, message: str) -> None:
        self.last_error = message
        _log.warning("The heartbeat over HTTP failed: %s.", message)
