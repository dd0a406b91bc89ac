"""The servers of one run: ours and the peers, each a process of its own that starts when it is first asked for.

Invariant: every server that is measured runs on the one core; load, and the facilitator it may ask, on the other.
"""

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from spawn.settings import DEVNET_ASSET, DEVNET_NETWORK, DEVNET_PAY_TO
from tests.bench import tenants
from tests.bench.peer import PATH
from tests.bench.processes import Process, running
from tests.engines import install_node_packages
from tests.ports import free_port

NODE_PROJECT: Final = Path(__file__).parent / "node"
OURS: Final = {"ours": "instant", "devnet": "devnet", "delayed": "instant"}
"""Our services, and the chain that each asks; `delayed` has a slow disk."""
_PYTHON: Final = (sys.executable, "-m")


class Servers:
    """Processes by name: those of `OURS`, `<framework>-<checks>` of the peers, `trivial`, `facilitator`."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        *,
        core: int,
        load_core: int,
        delay: Mapping[str, str],
        profile: bool,
    ) -> None:
        """Everything ends with `stack`. `delay` is the environment in which a disk is slow."""
        self._stack = stack
        self._folder = folder
        self._core = core
        self._load_core = load_core
        self._delay = delay
        self._profile = profile
        self._started: dict[str, Process] = {}

    def get(self, name: str) -> Process:
        """The server of this name; raises RuntimeError with its log when it does not come up."""
        if name not in self._started:
            self._started[name] = self._start(name)
        return self._started[name]

    def started(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that run."""
        return [name for name in names if name in self._started]

    def folder(self, name: str) -> Path:
        """Where one of ours keeps its files."""
        return self._folder / name

    def _start(self, name: str) -> Process:
        if name in OURS:
            return self._start_ours(name)
        port = free_port()
        if name in {"trivial", "facilitator"}:
            core = self._core if name == "trivial" else self._load_core
            return self._run(name, (*_PYTHON, "tests.bench.facilitator", str(port)), port, core=core)
        return self._run(name, self._peer(name, port), port, environ={"NODE_ENV": "production"})

    def _start_ours(self, name: str) -> Process:
        port = free_port()
        folder = self.folder(name)
        folder.mkdir()
        environ = tenants.settings(folder, port)
        if OURS[name] == "devnet":
            tenants.mint(environ)
        profile = (str(folder),) if self._profile else ()
        command = (*_PYTHON, "tests.bench.ours", OURS[name], *profile)
        environ |= self._delay if name == "delayed" else {}
        server = self._run(name, command, port, environ=environ)
        tenants.move_in(server)
        return server

    def _peer(self, name: str, port: int) -> tuple[str, ...]:
        framework, _, checks = name.partition("-")
        url = self.get("facilitator").url if checks == "http" else ""
        body = str(self._body())
        if framework == "fastapi":
            return (*_PYTHON, "tests.bench.peer", checks, str(port), body, url)
        install_node_packages(NODE_PROJECT)
        options = {
            "framework": framework,
            "checks": checks,
            "port": port,
            "path": PATH,
            "network": DEVNET_NETWORK,
            "asset": DEVNET_ASSET,
            "payTo": DEVNET_PAY_TO,
            "body": body,
            "facilitator": url,
        }
        return ("node", str(NODE_PROJECT / "peer.mjs"), msgspec.json.encode(options).decode())

    def _body(self) -> Path:
        """What ours answers to the paid read: the peers answer the same."""
        path = self._folder / "body.json"
        if not path.exists():
            path.write_bytes(tenants.what_is_read(self.get("ours")))
        return path

    def _run(
        self,
        name: str,
        command: tuple[str, ...],
        port: int,
        *,
        core: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Process:
        return self._stack.enter_context(
            running(
                command,
                port,
                ready="/health",
                core=self._core if core is None else core,
                log=self._folder / f"{name}.log",
                environ=environ or {},
            )
        )
