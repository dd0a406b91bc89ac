"""How a host logs in on a fresh socket, and what its frames do.

Invariant: the epoch that a login gets is compared and set in the books, so that of two sessions of one host the newer
wins in whichever process they are.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec
from spawn_schemas import link
from spawn_schemas.ids import HostId

from spawn.domain.hosts import Host, HostState, suspect_after_s
from spawn.link.hub import Hub
from spawn.link.session import BadFrame, Session, Socket, decoded
from spawn.services import host_reports
from spawn.services.hosts import verifies
from spawn.store import hosts

log = logging.getLogger(__name__)

LOGIN_S: Final = 10.0
_NONCE_BYTES: Final = 32
_TRIES: Final = 5
_NOBODY: Final = HostId("")
_USUAL: Final = {"ws": 80, "wss": 443}


class Refused(Exception):
    """This socket is not let in: `code` is what it is closed with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def authorities(link_url: str) -> tuple[str, ...]:
    """How a host may write the address that it dialled: the port that a scheme has anyway may be left out."""
    url = urlsplit(link_url)
    host, port = (url.hostname or "").lower(), url.port
    host = f"[{host}]" if ":" in host else host
    usual = _USUAL[url.scheme]
    if port in {None, usual}:
        return host, f"{host}:{usual}"
    return (f"{host}:{port}",)


async def log_in(hub: Hub, socket: Socket, link_url: str) -> Session:
    """Let a host in, or raise Refused, TimeoutError or BadFrame."""
    nonce = hub.entropy.bytes(_NONCE_BYTES).hex()
    waiting = Session(socket, _NOBODY, 0, hub.clock.now_ms)
    challenge = link.Challenge(host_id=_NOBODY, session_epoch=0, seq=0, ts=hub.clock.now_ms(), nonce=nonce)
    await socket.send(msgspec.json.encode(challenge), text=True)
    async with asyncio.timeout(LOGIN_S):
        frame = decoded(await socket.recv())
    if not isinstance(frame, link.Hello):
        raise BadFrame("the first frame of a host is its hello")
    if frame.v != link.VERSION:
        raise Refused(link.CLOSE_UPGRADE, f"this service speaks version {link.VERSION} of the link")
    host = await _proven(hub, frame, nonce, link_url)
    epoch = await _new_epoch(hub, host)
    session = Session(socket, host.id, epoch, hub.clock.now_ms)
    session.heard_at = waiting.heard_at
    return session


async def _proven(hub: Hub, hello: link.Hello, nonce: str, link_url: str) -> Host:
    found = await hub.db.read(hosts.SELECT_HOST, {"id": hello.host_id.replace("\0", "")})
    host = hosts.host_from(found[0]) if found else None
    known = host is not None and host.public_key is not None and host.state is not HostState.REVOKED
    texts = (
        link.login_text(host_id=hello.host_id, nonce=nonce, authority=name) for name in authorities(link_url)
    )
    if (
        host is None
        or not known
        or not any(verifies(host.public_key or "", hello.signature, t) for t in texts)
    ):
        raise Refused(link.CLOSE_REFUSED, "this host is unknown or revoked, or its signature is false")
    return host


async def _new_epoch(hub: Hub, host: Host) -> int:
    seen = host.epoch
    for _ in range(_TRIES):
        epoch = await hub.db.write(lambda tx, s=seen: hosts.raise_epoch(tx, host.id, s))  # type: ignore[misc]  # bound
        if epoch is not None:
            return int(epoch)
        found = await hub.db.read(hosts.SELECT_HOST, {"id": host.id})
        again = hosts.host_from(found[0])
        if again.state is HostState.REVOKED:
            raise Refused(link.CLOSE_REFUSED, "this host was revoked")
        seen = again.epoch
    raise Refused(link.CLOSE_SUPERSEDED, "other sessions of this host keep logging in")


DialFailed = Callable[[link.DialFailed, HostId], None]


async def attend(hub: Hub, session: Session, socket: Socket, dial_failed: DialFailed) -> None:
    """Welcome the host, and do what its frames say until the socket closes. Raises BadFrame, and what that raises."""
    hub.opened(session)
    generation = await _welcomed(hub, session)
    await session.send(
        link.Welcome,
        heartbeat_interval_s=session.beat_s,
        silence_s=suspect_after_s(session.beat_s),
        desired_generation=generation,
    )
    await hub.send_commands(session, again_before=hub.clock.now_s() + 1)
    while True:
        frame = session.read(await socket.recv())
        if frame is not None:
            await _obey(hub, session, frame, dial_failed)


async def _welcomed(hub: Hub, session: Session) -> int:
    found = await hub.db.read(hosts.SELECT_HOST, {"id": session.host_id})
    await hub.flush_one(session)
    return int(found[0]["desired_generation"])


async def _obey(hub: Hub, session: Session, frame: link.ToService, dial_failed: DialFailed) -> None:
    match frame:
        case link.Heartbeat():
            session.agent_status = frame.status
            session.metrics = msgspec.json.encode(frame.metrics).decode()
            session.beat_s = hub.beat_s(rented=frame.rentals > 0)
            await session.send(link.HeartbeatAck, heartbeat_interval_s=session.beat_s)
        case link.AckFrame(ack=ack):
            now = hub.clock.now_s()
            news = await hub.db.write(
                lambda tx: host_reports.acknowledged(tx, hub.vault, session.host_id, ack, now)
            )
            if news:
                hub.on_change()
                hub.on_ack(ack.command_id)
        case link.StateSync():
            await hub.synced(session, frame)
        case link.DialFailed():
            dial_failed(frame, session.host_id)
        case link.Hello():
            raise BadFrame("a host says hello once")
