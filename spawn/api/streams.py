"""Events as they happen: server-sent events (WHATWG HTML, section 9.2) over a connection that stays open.

Invariant: a stream holds one page of events at a time and waits for its reader before it reads the next; it ends with
its reader, its session, its time or the service, whichever is first, and its place is free from then on.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address

from spawn.api.errors import refusal
from spawn.api.replies import Receive, Reply, Scope, Send
from spawn.domain.events import Page, Query, cursor
from spawn.services.calls import Acted, Context, Read
from spawn.services.event_watch import Watch
from spawn.services.feed import look, view
from spawn.settings import Settings
from spawn.store.database import Database, StoreError

CONTENT_TYPE: Final = "text/event-stream"
LONGEST_S: Final = 900
"""How long a stream lasts: as long as a session. Its reader comes back by itself."""
HEARTBEAT_S: Final = 15.0
"""How long a stream is silent at most: proxies cut what they take for dead, so the section above recommends this."""
RETRY_S: Final = 3
"""How long a reader waits before it comes back."""
_PAGE: Final = 50

_HEADERS: Final = [
    (b"content-type", CONTENT_TYPE.encode()),
    # A proxy that collects an answer before it passes it on would keep what happens to itself (nginx reads this).
    (b"x-accel-buffering", b"no"),
]
_encoder: Final = msgspec.json.Encoder()


class Streams:
    """The open streams, of each wallet and in all. For one event loop."""

    def __init__(
        self,
        db: Database,
        watch: Watch,
        *,
        most: int,
        most_per_wallet: int,
        longest_s: float = LONGEST_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.db = db
        self.watch = watch
        self.longest_s = longest_s
        self.heartbeat_s = heartbeat_s
        self._most = most
        self._most_per_wallet = most_per_wallet
        self._open: Counter[Address] = Counter()

    @classmethod
    def of(cls, settings: Settings, db: Database) -> Self:
        """As many streams as the settings allow."""
        return cls(db, Watch(db), most=settings.streams_max, most_per_wallet=settings.streams_per_wallet_max)

    @property
    def open(self) -> int:
        return self._open.total()

    def require_room(self, wallet: Address) -> None:
        """Raise `rate_limited` where the wallet has as many streams as it may, `overloaded` where all have."""
        if self._open[wallet] >= self._most_per_wallet:
            raise SpawnError(
                Code.RATE_LIMITED,
                f"This wallet follows its events {self._most_per_wallet} times already.",
                retry_after_s=RETRY_S,
                next="Close one of those streams, or ask without `Accept: text/event-stream`.",
            )
        if self.open >= self._most:
            raise SpawnError(
                Code.OVERLOADED,
                "No more streams can be opened now.",
                retry_after_s=RETRY_S,
                next="Ask without `Accept: text/event-stream`, and with `wait` to hear of an event as it happens.",
            )

    @contextmanager
    def place(self, wallet: Address) -> Iterator[None]:
        """Take one of the places, for as long as the context lasts. Raises as `require_room`."""
        self.require_room(wallet)
        self._open[wallet] += 1
        try:
            yield
        finally:
            self._open[wallet] -= 1
            if not self._open[wallet]:
                del self._open[wallet]


class OpenStream(Read):
    """What a stream is to the gate: a free read, refused before anything is taken where there is no room for it."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def wait(self, db: Database, wallet: Address, now: int) -> None:
        """Waits for nothing. Raises as `Streams.require_room`."""
        self._streams.require_room(wallet)

    def act(self, tx: Tx, context: Context) -> Acted:
        return Acted(answer=b"{}")


def asks_for_stream(accept: str) -> bool:
    """Whether a caller with this `Accept` wants events as they happen."""
    return any(part.partition(";")[0].strip().lower() == CONTENT_TYPE for part in accept.split(","))


def refuse_repetition(reply: Reply) -> None:
    """Raise `conflict` where the call was made before: its answer is stored, and a stream is not."""
    if any(name == b"idempotent-replayed" for name, _ in reply.raw_headers):
        raise SpawnError(
            Code.CONFLICT,
            "This proof has opened a stream already.",
            next="Prove anew for each stream, or once for many with a session: POST /v1/sessions.",
        )


class StreamReply(Reply):
    """An answer that goes on. `opened` is what the gate answered: its headers are this one's too.

    `lasts_s` is how long the caller's proof allows it to.
    """

    is_whole = False

    def __init__(
        self,
        streams: Streams,
        wallet: Address,
        asked: Query,
        opened: Reply,
        *,
        request_id: str,
        lasts_s: float,
    ) -> None:
        kept = [header for header in opened.raw_headers if header[0] != b"content-type"]
        super().__init__(200, b"", [*_HEADERS, *kept])
        self._streams = streams
        self._wallet = wallet
        self._asked = replace(asked, limit=_PAGE)
        self._request_id = request_id
        self._lasts_s = min(lasts_s, streams.longest_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._streams.place(self._wallet):
                await self._run(receive, send)
        except SpawnError as full:
            reply = refusal(self._request_id, full)
            reply.raw_headers.extend(h for h in self.raw_headers if h[0].startswith(b"access-control-"))
            await reply(scope, receive, send)

    async def _run(self, receive: Receive, send: Send) -> None:
        left = asyncio.create_task(_leaving(receive))
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self.raw_headers})
            await _say(send, b"retry: %d\n\n" % (RETRY_S * 1000))
            await self._follow(left, send)
        finally:
            left.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, left: "asyncio.Task[None]", send: Send) -> None:
        """Say what happens until the reader has left or the time is over."""
        streams, now_s = self._streams, asyncio.get_running_loop().time
        end = now_s() + self._lasts_s
        silent_until = now_s() + streams.heartbeat_s
        while now_s() < end and not left.done() and not streams.watch.is_stopped:
            told = streams.watch.told
            try:
                page = await look(streams.db, self._wallet, self._asked)
            except StoreError:
                return  # the service ends, and its reader comes back to the next
            if page.events or page.gap:
                await _say(send, _told(page))
                silent_until = now_s() + streams.heartbeat_s
            elif now_s() >= silent_until:
                await _say(send, b": nothing new\nid: %b\n\n" % cursor(page.after).encode())
                silent_until = now_s() + streams.heartbeat_s
            self._asked = replace(self._asked, after=page.after)
            if not page.has_more:
                await self._pause(left, page, told, min(end, silent_until) - now_s())

    async def _pause(self, left: "asyncio.Task[None]", seen: Page, told: int, timeout_s: float) -> None:
        """Wait for news, or for the reader to leave."""
        news = asyncio.create_task(
            self._streams.watch.changed(self._wallet, seen, told=told, timeout_s=timeout_s)
        )
        try:
            await asyncio.wait((news, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()


def _told(page: Page) -> bytes:
    """A page as messages. `gap` has no id, so that a reader who comes back does not begin there."""
    gap = b"event: gap\ndata: {}\n\n" if page.gap else b""
    return gap + b"".join(
        b"id: %b\nevent: %b\ndata: %b\n\n"
        % (cursor(event.seq).encode(), event.type.encode(), _encoder.encode(view(event)))
        for event in page.events
    )


async def _say(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def _leaving(receive: Receive) -> None:
    """Returns once the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
