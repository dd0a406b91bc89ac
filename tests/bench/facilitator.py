"""A facilitator over loopback HTTP that says yes at once, so that what is measured is the middleware that asks it.

Run as `python -m tests.bench.facilitator PORT`. It also is the trivial server by which the load generator's own limit
is measured: anything but a facilitator's paths gets a small fixed answer.
"""

import asyncio
import re
import sys
from typing import Final, cast

import msgspec
import uvloop

from spawn.settings import DEVNET_NETWORK

_PAYER: Final = "0x" + "22" * 20
_ANSWERS: Final = {
    b"/supported": {
        "kinds": [{"x402Version": 2, "scheme": "exact", "network": DEVNET_NETWORK}],
        "extensions": [],
        "signers": {},
    },
    b"/verify": {"isValid": True, "payer": _PAYER},
    b"/settle": {
        "success": True,
        "transaction": "0x" + "33" * 32,
        "network": DEVNET_NETWORK,
        "payer": _PAYER,
    },
}
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


def _answer(content: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


_PREPARED: Final = {path: _answer(msgspec.json.encode(content)) for path, content in _ANSWERS.items()}
_OTHER: Final = _answer(b"x" * 313)


class _Connection(asyncio.Protocol):
    """Answers one whole request after another."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (mark := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, mark)
            end = mark + 4 + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            path = self._received[: self._received.index(b" HTTP/")].partition(b" ")[2]
            self._received = self._received[end:]
            self._transport.write(_PREPARED.get(path, _OTHER))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
