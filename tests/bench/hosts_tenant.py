"""What listens inside of a rental: Debian's own sshd, and a port that pours zeros at whoever connects.

Run as `python -m tests.bench.hosts_tenant PORT` it pours, through plain sockets and a thread each, so that the source
has no event loop whose fairness would be measured.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.hosts_stage import started
from tests.ports import free_port

_PIECE: Final = bytes(256 * 1024)
_CONFIG: Final = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
PrintMotd no
"""


class NoSshd(Exception):
    """OpenSSH is not here; the message says what to install."""


class Sshd:
    """An sshd and the one key that it lets in."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def public_key(self) -> str:
        return (self.folder / "client_key.pub").read_text(encoding="ascii").strip()

    def command(self, port: int, *remote: str) -> list[str]:
        """The stock client, through any port that leads here; it checks the host's key."""
        options = {
            "IdentityFile": self.folder / "client_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "HostKeyAlias": "tenant",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        named = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *named, "-p", str(port), f"{getpass.getuser()}@127.0.0.1", *remote]


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Run one on loopback. Raises NoSshd."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        raise NoSshd("OpenSSH is not installed; on Debian: apt-get install openssh-server openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder.mkdir()
    for name in ("host_key", "client_key"):
        command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name))
        subprocess.run(command, check=True, timeout=30)
    host_key = (folder / "host_key.pub").read_text(encoding="ascii")
    (folder / "known_hosts").write_text(f"tenant {host_key}", encoding="ascii")
    port = free_port()
    (folder / "config").write_text(_CONFIG.format(port=port, folder=folder), encoding="ascii")
    listening = started((program, "-D", "-e", "-f", str(folder / "config")), port, log=folder / "sshd.log")
    with listening:
        yield Sshd(folder, port)


@contextmanager
def pouring(log: Path) -> Iterator[int]:
    """A port that pours."""
    port = free_port()
    with started((sys.executable, "-m", __name__, str(port)), port, log=log):
        yield port


def _pour(connection: socket.socket) -> None:
    # Whoever is poured at ends it.
    with connection, contextlib.suppress(OSError):
        while True:
            connection.sendall(_PIECE)


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_pour, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
