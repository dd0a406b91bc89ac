"""The link to the service: one outbound WebSocket, dialled again for as long as the daemon runs.

Invariant: one session at a time, and a frame of another session, or one that was seen before, is dropped. Losing the
link loses nothing: whatever mattered in it is in the journal, here or with the service.
"""

import asyncio
import logging
import random
from typing import Final

import msgspec
from spawn_schemas.link import CLOSE_REFUSED, CLOSE_SUPERSEDED, CLOSE_UPGRADE
from spawn_schemas.orders import Ack
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from spawn_hostagent.clock import Clock, ServiceClock
from spawn_hostagent.link.dialling import backoff_s, control_url, dial
from spawn_hostagent.link.duties import Duties
from spawn_hostagent.link.session import LinkBroken, Session
from spawn_hostagent.link.signer import Signer

STABLE_S: Final = 30.0
"""A session that lasted so long was a good one: the next failure is the first again."""

_log: Final = logging.getLogger(__name__)

_FINAL: Final = {
    CLOSE_REFUSED: (
        "The service does not accept this host: it is unknown there, its key is another, or it was revoked. Ask the "
        "service's operator, or run `spawn-host setup --force` with a new token."
    ),
    CLOSE_SUPERSEDED: (
        "Another agent with this host's identity is running and connected. Stop one of the two; a copied state folder "
        "needs `spawn-host setup --force` on one of the machines."
    ),
    CLOSE_UPGRADE: "The service speaks a newer version of the link. Upgrade spawn-host.",
}


class LinkRefused(Exception):
    """Dialling again does not help; the message says what does."""


class LinkState(msgspec.Struct, kw_only=True):
    """How the link is, for `status`. `since_s` is unix seconds of this machine's clock, when it last changed."""

    connected: bool = False
    since_s: int
    last_error: str | None = None


class BackendClient:
    """Keeps a session open. `say` what came of commands; `sync` where what is here has changed."""

    def __init__(
        self,
        signer: Signer,
        duties: Duties,
        *,
        clock: Clock,
        service_clock: ServiceClock,
        dice: random.Random,
        agent_version: str,
    ) -> None:
        self._signer = signer
        self._duties = duties
        self._clock = clock
        self._service_clock = service_clock
        self._dice = dice
        self._agent_version = agent_version
        self._session: Session | None = None
        self.state = LinkState(since_s=clock.now_ms() // 1000)
        self.down_since_s: float | None = clock.elapsed_s()
        """Of `Clock.elapsed_s`; None while a session is open."""

    async def run(self) -> None:
        """Dial, and dial again. Raises LinkRefused, and BadAddress."""
        url = control_url(self._signer.link_url)
        failures = 0
        while True:
            began = self._clock.elapsed_s()
            error = await self._attempt(url)
            was_good = self._clock.elapsed_s() - began >= STABLE_S
            failures = 0 if was_good else failures + 1
            wait_s = backoff_s(failures, self._dice)
            self.state.last_error = error
            # A night without a network is one line for whoever reads the log, and not a thousand.
            level = logging.WARNING if failures <= 1 else logging.INFO
            _log.log(level, "The link is down: %s. Dialling again in %.1f s.", error, wait_s)
            await self._clock.sleep(wait_s)

    def say(self, ack: Ack) -> None:
        """Tell the service soon. Without a session only results matter, and the journal has those."""
        if self._session is not None:
            self._session.say(ack)

    def sync(self) -> None:
        """Tell the service soon what is here."""
        if self._session is not None:
            self._session.sync()

    async def _attempt(self, url: str) -> str:
        """One session; return why it ended. Raises LinkRefused."""
        code, why = await self._try(url, has_switched=False)
        # A rotation that a crash cut short: the service may know the other key.
        if code == CLOSE_REFUSED and self._signer.switch():
            code, why = await self._try(url, has_switched=True)
        if code in _FINAL:
            self.state.last_error = _FINAL[code]
            raise LinkRefused(_FINAL[code])
        return why

    async def _try(self, url: str, *, has_switched: bool) -> tuple[int | None, str]:
        """One session; return the service's close code, if it gave one, and why it ended in words."""
        try:
            await self._hold(url, has_switched=has_switched)
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None, f"the service closed it ({error})"
        except (asyncio.TimeoutError, LinkBroken, WebSocketException, OSError) as error:
            return None, str(error) or type(error).__name__
        return None, "the service ended the session"

    async def _hold(self, url: str, *, has_switched: bool) -> None:
        async with dial(url) as socket:
            session = self._open(socket)
            welcome = await session.log_in()
            if has_switched:
                self._signer.finish_rotation(self._signer.public_key)
            self._set_up(session)
            _log.info("The link is up: session %d.", welcome.session_epoch)
            try:
                await session.run(welcome)
            finally:
                self._set_down()

    def _open(self, socket: ClientConnection) -> Session:
        return Session(
            socket,
            self._signer,
            self._duties,
            clock=self._clock,
            service_clock=self._service_clock,
            agent_version=self._agent_version,
        )

    def _set_up(self, session: Session) -> None:
        self._session = session
        self.down_since_s = None
        self.state.connected, self.state.since_s = True, self._clock.now_ms() // 1000
        self.state.last_error = None

    def _set_down(self) -> None:
        self._session = None
        self.down_since_s = self._clock.elapsed_s()
        self.state.connected, self.state.since_s = False, self._clock.now_ms() // 1000
