"""A real machine: Debian from its packages, with cloud-init, started by qemu in software, on loopback only.

Invariant: a machine starts from the image as it was built, and keeps nothing. It reaches one port of this machine, as
`GATEWAY`, and nothing else.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.engines import ROOT, missing, require
from tests.ports import free_port

GATEWAY: Final = "10.0.2.100"
"""The address at which a machine finds the port that it may reach, as 80."""
IMAGES: Final = ROOT / ".boot-images"
PACKAGES: Final = (
    "cloud-init",
    "dbus",
    "ifupdown",
    "iproute2",
    "isc-dhcp-client",
    "linux-image-cloud-amd64",
    "openssh-server",
    "python3",
    "systemd-sysv",
    "udev",
)
MODULES: Final = "/usr/lib/python3/dist-packages"
BUILD: Final = (
    *("mmdebstrap", "--variant=minbase", "--format=ext2", f"--include={','.join(PACKAGES)}"),
    *("--customize-hook=sync-out /boot .", f"--customize-hook=sync-out {MODULES} modules"),
    *("bookworm", "root.ext2"),
)
BOOT_TIMEOUT_S: Final = 420
# As clouds have it, where root logs in; and the image is as large as its disk.
VENDOR_DATA: Final = (
    "#cloud-config\n" + '{"disable_root": false, "locale": "C.UTF-8", "resize_rootfs": false}\n'
)


@dataclass(frozen=True)
class Image:
    """What a machine is started from. `modules` has the Python packages in it, cloud-init among them."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.ext2"

    @property
    def modules(self) -> Path:
        return self.folder / "modules"

    def boot_file(self, name: str) -> Path:
        return next(self.folder.glob(f"{name}-*"))


def image() -> Image:
    """Built once, in about a minute, and kept. Skips or fails like `require`."""
    require("qemu")
    version = hashlib.sha256(repr(BUILD).encode()).hexdigest()[:16]
    folder = IMAGES / version
    IMAGES.mkdir(exist_ok=True)
    with (IMAGES / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = IMAGES / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / "modules").mkdir(parents=True)
            built = subprocess.run(
                BUILD, cwd=unfinished, capture_output=True, text=True, timeout=900, check=False
            )
            if built.returncode != 0:
                missing("qemu", f"mmdebstrap could not build an image:\n{built.stderr[-3000:]}")
            unfinished.rename(folder)
    return Image(folder)


@dataclass
class Reports:
    """Whom machines report to: what they posted, in order. It answers `status`."""

    status: int = 204
    got: list[tuple[str, Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, path: str, body: bytes) -> int:
        with self.changed:
            if self.status < 300:
                self.got.append((path, msgspec.json.decode(body)))
            self.changed.notify_all()
            return self.status

    def wait(self, until: Callable[[], bool]) -> None:
        """Until this is so, which is asked at each report, be it refused."""
        with self.changed:
            assert self.changed.wait_for(until, BOOT_TIMEOUT_S), f"all that came is {self.got}"

    @property
    def facts(self) -> dict[str, Any]:
        """What was reported; the same thing only once."""
        facts: dict[str, Any] = {}
        for _, fact in self.got:
            assert not facts.keys() & fact.keys(), self.got
            facts |= fact
        return facts


@contextmanager
def listening(reports: Reports) -> Iterator[int]:
    """The port at which these reports are taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(reports.take(self.path, body))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Machine:
    """A machine that is starting. `key` is the private key of whom it lets in."""

    folder: Path
    ssh_port: int
    key: Path

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    def ssh(self, known_hosts: str, address: str, command: str) -> subprocess.CompletedProcess[str]:
        """Log in as root, trusting nothing but this text, and run a command. It is known by this address."""
        known = self.folder / "known_hosts"
        known.write_text(known_hosts + "\n")
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "60",
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": address,
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return subprocess.run(
            [
                "ssh",
                "-F",
                "none",
                "-i",
                self.key,
                "-p",
                str(self.ssh_port),
                *settings,
                "root@127.0.0.1",
                command,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def login_key(folder: Path) -> Path:
    """A fresh pair of which the machine gets the public half."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "login"], check=True, timeout=30
    )
    return folder / "login"


@contextmanager
def started(folder: Path, user_data: str, key: Path, *, port: int) -> Iterator[Machine]:
    """A machine that is told `user_data`, as a cloud would, and may reach `port` of this one."""
    built = image()
    seed = folder / "seed"
    seed.mkdir()
    public = key.with_suffix(".pub").read_text()
    (seed / "user-data").write_text(user_data)
    (seed / "vendor-data").write_text(VENDOR_DATA)
    (seed / "meta-data").write_text(f"instance-id: i-1\nlocal-hostname: box\npublic-keys:\n- {public}")
    (folder / "console").touch()
    ssh_port = free_port()
    relay = f"{sys.executable} {ROOT / 'tests' / 'interop' / 'guest_relay.py'} {port}"
    network = f"hostfwd=tcp:127.0.0.1:{ssh_port}-:22,guestfwd=tcp:{GATEWAY}:80-cmd:{relay}"
    arguments = {
        "accel": "tcg,thread=multi",
        "cpu": "max",
        "smp": "2",
        "m": "768",
        "display": "none",
        "serial": f"file:{folder / 'console'}",
        "kernel": str(built.boot_file("vmlinuz")),
        "initrd": str(built.boot_file("initrd.img")),
        "append": "root=/dev/vda rootfstype=ext4 rw console=ttyS0",
        "drive": f"file={built.root},format=raw,if=none,id=root,snapshot=on",
        "blockdev": f"driver=vvfat,node-name=seed,dir={seed},label=cidata,read-only=on",
        "netdev": f"user,id=net,ipv6=off,restrict=on,{network}",
    }
    devices = (
        "virtio-blk-pci,drive=root",
        "virtio-blk-pci,drive=seed",
        "virtio-rng-pci",
        "virtio-net-pci,netdev=net",
    )
    command = ["qemu-system-x86_64", "-nodefaults"]
    command += [word for name, value in arguments.items() for word in (f"-{name}", value)]
    command += [word for device in devices for word in ("-device", device)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder) as process:
        try:
            yield Machine(folder, ssh_port, key)
        finally:
            process.kill()
