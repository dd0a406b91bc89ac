"""The floor of a heartbeat: a bare `websockets` server that reads a small JSON object and sends one back.

Run as `python -m tests.bench.hosts_floor PORT`. It is set up as our listener is (no compression, no pings, uvloop), and
knows nobody, counts nothing and writes nothing down.
"""

import sys

import msgspec
import uvloop
from spawn_schemas import link
from websockets.asyncio.server import ServerConnection, serve


async def _echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(msgspec.json.encode(msgspec.json.decode(message)), text=True)


async def main(port: int) -> None:
    """Serve until told to stop."""
    async with serve(
        _echo,
        "127.0.0.1",
        port,
        compression=None,
        ping_interval=None,
        max_size=link.FRAME_BYTES_MAX,
        max_queue=4,
        write_limit=64 * 1024,
        server_header=None,
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
