"""The named peer of our relay: asyncssh's remote port forwarding, its server where our service is, its client a host.

Run as `python -m tests.bench.hosts_forward relay FOLDER PORT`, and as `… host FOLDER PORT PUBLIC:TARGET …`. The relay
has uvloop, as our service does, and the host asyncio's own loop, as the agent does. Everything else is its default:
other than ours on loopback, which leaves TLS to a proxy, it encrypts.
"""

import asyncio
import sys
from pathlib import Path

import asyncssh
import uvloop


class _Relay(asyncssh.SSHServer):
    """Lets the one key in, and forwards what it asks for."""

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


def make_keys(folder: Path) -> None:
    folder.mkdir()
    for name in ("relay", "host"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        key.write_public_key(folder / f"{name}.pub")


async def relay(folder: Path, port: int) -> None:
    server = await asyncssh.create_server(
        _Relay,
        "127.0.0.1",
        port,
        server_host_keys=[folder / "relay"],
        authorized_client_keys=str(folder / "host.pub"),
    )
    await server.wait_closed()


async def host(folder: Path, port: int, forwards: list[str]) -> None:
    key = (folder / "relay.pub").read_text(encoding="ascii")
    known = asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {key}")
    connection = await asyncssh.connect(
        "127.0.0.1", port, known_hosts=known, client_keys=[folder / "host"], username="host"
    )
    async with connection:
        for forward in forwards:
            public, target = map(int, forward.split(":"))
            await connection.forward_remote_port("127.0.0.1", public, "127.0.0.1", target)
        await connection.wait_closed()


if __name__ == "__main__":
    what, keys, at, *rest = sys.argv[1:]
    if what == "relay":
        uvloop.run(relay(Path(keys), int(at)))
    else:
        asyncio.run(host(Path(keys), int(at), rest))
