"""A Docker engine of the tests' own, on a lent machine of their own: `engine()` starts it, with our base image to pull.

Invariant: it shares no network, data or socket with any other engine of this machine, and is gone afterwards.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import docker
from spawn_hostagent.docker.engine import take_away
from spawn_hostagent.preflight.versions import RUNC_FIX

from images.build import HERE, BuildError, Layout, build
from tests.engines import ROOT, missing, require
from tests.hostagent.namespaces import World, inside, world
from tests.hostagent.registry import Registry, serving

IMAGES: Final = ROOT / ".docker-images"
START_S: Final = 180
STUB_HOOK: Final = """#!/bin/sh
# Stands in for NVIDIA's hook, which Docker looks for in PATH: writes down what the container was given.
state=$(cat)
bundle=$(printf '%s' "$state" | sed -n 's/.*"bundle":"\\([^"]*\\)".*/\\1/p')
cat "$bundle/config.json" >> "{asked}"
printf '\\n' >> "{asked}"
"""

RUNTIMES: Final = {
    "stub-gvisor": """#!/bin/sh
# Stands in for a runtime whose kernel writes a log of its own: runc, and the first line of gVisor's.
case " $* " in *" create "*) echo "<6>[    0.000000] Starting gVisor..." ;; esac
exec runc "$@"
""",
    "stub-loose": """#!/bin/sh
# A runtime that leaves Docker's filter of system calls out.
case " $* " in
*" create "*) python3 - "$@" <<'END' ;;
import json, pathlib, sys
bundle = pathlib.Path(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
config = json.loads(bundle.read_text())
config["linux"].pop("seccomp", None)
bundle.write_text(json.dumps(config))
END
esac
exec runc "$@"
""",
}
"""Other runtimes that Docker knows here, by name."""
MENDED: Final = f"""#!/bin/sh
# Stands in for the packages of a distribution that mended its runc: the engine's own may be older than the floor.
echo "- Resolves {RUNC_FIX}"
"""


def base_image() -> tuple[Layout, str]:
    """Our base image, built from Debian packages once, and its digest. Skips or fails like `require`."""
    require("docker")
    sources = [HERE / "build.py", *sorted((HERE / "base").iterdir())]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = IMAGES / version
    IMAGES.mkdir(exist_ok=True)
    with (IMAGES / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = IMAGES / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                build("base", unfinished)
            except BuildError as error:
                missing("docker", str(error))
            unfinished.rename(folder)
    index = json.loads((folder / "index.json").read_text())
    return Layout(folder), index["manifests"][0]["digest"]


class Engine:
    """One dockerd. `socket` is its address; `world` its networks; `registry` serves `layout`, `base` is our image."""

    def __init__(
        self,
        folder: Path,
        around: World,
        registry: Registry,
        base: str,
        *,
        with_gpus: bool,
        live_restore: bool = True,
    ) -> None:
        self.folder, self.world, self.registry = folder, around, registry
        self.layout = registry.layout
        self.base_digest = base
        self.base = registry.reference(base)
        self.socket = f"unix://{folder}/docker.sock"
        self.programs = folder / "programs"
        self.gpu_requests = folder / "gpu-requests"
        self._with_gpus, self._live_restore = with_gpus, live_restore
        self._daemon: subprocess.Popen[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def network(self) -> str:
        """The network that the engine, and so the agent, is in."""
        return self.world.host

    def start(self) -> None:
        self.programs.mkdir(exist_ok=True)
        if self._with_gpus:
            hook = self.programs / "nvidia-container-runtime-hook"
            hook.write_text(STUB_HOOK.format(asked=self.gpu_requests))
            hook.chmod(0o755)
        for name, script in {**RUNTIMES, "rpm": MENDED}.items():
            (self.programs / name).write_text(script)
            (self.programs / name).chmod(0o755)
        command = [
            *("nsenter", f"--net=/var/run/netns/{self.network}", f"--mount={self._mounts()}"),
            *("dockerd", f"--live-restore={str(self._live_restore).lower()}", "--log-level=warn"),
            f"--data-root={self.folder}/data",
            *(f"--exec-root={self.folder}/exec", f"--host={self.socket}", f"--pidfile={self.folder}/pid"),
            *(f"--add-runtime={name}={self.programs / name}" for name in RUNTIMES),
        ]
        environment = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                missing("docker", f"dockerd did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)

    def _mounts(self) -> Path:
        """Where dockerd mounts: seen by nobody else, and the same when it is started again, as on a real machine."""
        if self._holder is None:
            # `setpriv` ends it with this process, and what it holds goes with it.
            self._holder = subprocess.Popen(
                [
                    "unshare",
                    "-m",
                    "--propagation",
                    "slave",
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "sleep",
                    "infinity",
                ]
            )
            deadline = time.monotonic() + START_S
            while Path(f"/proc/{self._holder.pid}/comm").read_text().strip() != "sleep":
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return Path(f"/proc/{self._holder.pid}/ns/mnt")

    def _answers(self) -> bool:
        # Where nobody listens, the SDK would leave its socket to the garbage collector, which warns.
        with socket.socket(socket.AF_UNIX) as knock:
            if knock.connect_ex(self.socket.removeprefix("unix://")) != 0:
                return False
        try:
            self.client().close()
        except docker.errors.DockerException:
            return False  # it listens before it is ready
        return True

    def client(self) -> docker.APIClient:
        """A client of this engine; whoever takes it closes it. Raises DockerException where the engine is away."""
        client = docker.APIClient(base_url=self.socket, version="auto", timeout=120)
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
        return client

    def kill(self) -> None:
        """End dockerd at once, and by that its containerd, not the containers; `start` again finds them."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(60)
        self._daemon = None
        self._bury()

    def stop(self) -> None:
        """End dockerd as `systemctl stop docker` does: it stops containers itself, unless it has live-restore."""
        assert self._daemon is not None
        self._daemon.terminate()
        self._daemon.wait(60)
        self._daemon = None
        self._bury()

    def _bury(self) -> None:
        # Its containerd dies with it. Where nobody buries the dead, their pid files would make dockerd wait for them.
        deadline = time.monotonic() + START_S
        while self._containerd() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for stale in (self._containerd_file, self.folder / "pid"):
            stale.unlink(missing_ok=True)

    @property
    def _containerd_file(self) -> Path:
        return self.folder / "exec" / "containerd" / "containerd.pid"

    def _containerd(self) -> int | None:
        """The process id of the engine's containerd, if it lives."""
        try:
            pid = int(self._containerd_file.read_text())
            name, state = Path(f"/proc/{pid}/stat").read_text().split()[1:3]
        except FileNotFoundError:
            return None
        return pid if name == "(containerd)" and state != "Z" else None

    def wipe(self) -> None:
        """Remove every container, network and volume; images stay."""
        client = self.client()
        try:
            with ThreadPoolExecutor(4) as pool:
                for ended in [
                    pool.submit(take_away, client, container["Id"])
                    for container in client.containers(all=True)
                ]:
                    ended.result()
            for network in client.networks():
                if network["Name"].startswith("spawn-"):
                    client.remove_network(network["Id"])
            for volume in client.volumes()["Volumes"] or ():
                # An engine that was restarted under a running container may count one mount too many.
                with contextlib.suppress(docker.errors.APIError):
                    client.remove_volume(volume["Name"], force=True)
                # Wherever the agent under test keeps its disks, what they are attached to is this machine's.
                if device := (volume.get("Options") or {}).get("device"):
                    _let_go(Path(device).resolve())
        finally:
            client.close()

    def forget_base(self) -> None:
        """Whoever runs our image next has to pull it."""
        client = self.client()
        try:
            with contextlib.suppress(docker.errors.ImageNotFound):
                client.remove_image(self.base, force=True)
        finally:
            client.close()

    def close(self) -> None:
        try:
            if self._daemon is not None and self._daemon.poll() is None:
                self.wipe()
        finally:
            if self._daemon is not None:
                self.kill()
            if self._holder is not None:
                self._holder.kill()
                self._holder.wait(60)

    def image(self, settings: dict[str, Any] | None = None, *, extra: dict[str, bytes] | None = None) -> str:
        """The reference of our base image with other settings, or more files: what a tenant may have pushed."""
        config_digest = json.loads(self.layout.blob(self.base_digest).read_text())
        config = json.loads(self.layout.blob(config_digest["config"]["digest"]).read_text())
        layers = [(config_digest["layers"][0]["digest"], config["rootfs"]["diff_ids"][0])]
        if extra:
            layers.append(self._layer(extra))
        digest = self.layout.add_image({**config["config"], **(settings or {})}, layers, name="variant")
        return self.registry.reference(digest)

    def _layer(self, files: dict[str, bytes]) -> tuple[str, str]:
        path = self.folder / "layer.tar"
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        return self.layout.add_layer(path)


def _release_loops(folder: Path) -> None:
    """Let go of the loop devices whose files are in this folder; their mounts ended with dockerd."""
    listed = subprocess.run(
        ["losetup", "--json", "--list"], capture_output=True, text=True, check=True, timeout=30
    )
    for device in json.loads(listed.stdout or '{"loopdevices": []}')["loopdevices"]:
        if device["back-file"].startswith(str(folder)):
            _let_go(Path(device["name"]))


def _let_go(device: Path) -> None:
    if device.is_block_device():
        subprocess.run(["losetup", "--detach", str(device)], check=False, capture_output=True, timeout=30)


@contextmanager
def engine(*, with_gpus: bool = True, live_restore: bool = True) -> Iterator[Engine]:
    """A running engine, whose networks and files are its own. Skips or fails like `require`."""
    layout, base = base_image()
    with ExitStack() as stack:
        # Not pytest's folder: a socket's path may have about 100 bytes.
        folder = Path(tempfile.mkdtemp(prefix="spawn-dk-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_release_loops, folder)
        own = Layout(folder / "layout")
        for blob in layout.blob("").iterdir():
            os.link(blob, own.blob(blob.name)) if blob.stat().st_dev == folder.stat().st_dev else shutil.copy(
                blob, own.blob(blob.name)
            )
        around = stack.enter_context(world())
        registry = stack.enter_context(serving(own, around.host))
        made = Engine(folder, around, registry, base, with_gpus=with_gpus, live_restore=live_restore)
        stack.callback(made.close)
        made.start()
        yield made


@contextmanager
def inside_of(made: Engine) -> Iterator[None]:
    """Run on the lent machine: this thread's sockets, and the threads and programs it starts, are in its network."""
    with inside(made.network):
        yield
