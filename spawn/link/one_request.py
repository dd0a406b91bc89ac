"""HTTP by host name: a connection serves one request, whatever the two at its ends would like.

A proxy in front keeps connections for whoever comes next, for another tenant's name too. A container that kept one open
would be handed a stranger's request. Invariant: the request asks its server to close, and the answer tells the proxy
that the connection ends with it, unless both made it another protocol's by an upgrade.
"""

import re
from typing import Final

from spawn.link.streams import NoStream, Sink

HEAD_MAX: Final = 64 * 1024
"""Bytes of an answer's head, interim ones included."""
_CONNECTION: Final = re.compile(rb"\r\n(?:connection|keep-alive|proxy-connection):[^\r\n]*", re.IGNORECASE)
_UPGRADE: Final = re.compile(rb"\r\nconnection:[^\r\n]*upgrade", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\r\n]*)?\r\n")
_SWITCHED: Final = 101
_FINAL: Final = 200


def is_upgrade(head: bytes) -> bool:
    """Whether a request wants another protocol on its connection."""
    return _UPGRADE.search(head) is not None


def lone(head: bytes) -> bytes:
    """The head of a request after which its connection ends, unless it becomes another protocol's."""
    return head if is_upgrade(head) else _closing(head)


def _closing(head: bytes) -> bytes:
    return _CONNECTION.sub(b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


class OneAnswer:
    """Passes one answer on, with the word that nothing follows it. Raises NoStream for what is no answer."""

    def __init__(self, sink: Sink, *, upgrade: bool) -> None:
        self._sink = sink
        self._upgrade = upgrade
        self._head = b""
        self._is_past_head = False

    def write(self, data: bytes) -> None:
        """What comes before the end of the answer's head is kept until that."""
        if self._is_past_head:
            self._sink.write(data)
            return
        self._head += data
        while not self._is_past_head and b"\r\n\r\n" in self._head:
            head, _, self._head = self._head.partition(b"\r\n\r\n")
            self._pass_on(head + b"\r\n\r\n")
        if self._is_past_head:
            rest, self._head = self._head, b""
            self._sink.write(rest)
        elif len(self._head) > HEAD_MAX:
            raise NoStream("its server's answer has no end of a head")

    def _pass_on(self, head: bytes) -> None:
        bare = head.replace(b"\r\n", b"")
        if b"\n" in bare or b"\r" in bare:
            # A proxy that takes it for the end of a line would read an answer of its own in it (RFC 9112 section 2.2).
            raise NoStream("its server's answer has a line end that is none")
        found = _STATUS.match(head)
        status = 0 if found is None else int(found[1])
        if status == 0 or (status == _SWITCHED and not self._upgrade):
            raise NoStream("its server did not answer in HTTP")
        self._is_past_head = status >= _FINAL or status == _SWITCHED
        self._sink.write(_closing(head) if status >= _FINAL else head)

    async def drain(self) -> None:
        """As the sink does."""
        await self._sink.drain()

    def can_write_eof(self) -> bool:
        """As the sink can."""
        return self._sink.can_write_eof()

    def write_eof(self) -> None:
        """The server has said all that it had to."""
        if not self._is_past_head:
            raise NoStream("its server closed without an answer")
        self._sink.write_eof()
