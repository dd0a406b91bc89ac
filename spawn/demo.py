"""`spawn demo`: a service of its own, an agent with a stock x402 client, and a check of the books afterwards.

The agent is a script of its own that knows nothing of our code (`examples/agent.py`): what it can do, anybody can.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import httpx

START_TIMEOUT_S = 30
AGENT_TIMEOUT_S = 180
HOURS_MAX = 120
"""More than the deposit of the story lasts."""
HOUR_TAKES_S = 0.5


class DemoFailed(Exception):
    """The demo could not be run to its end; the message says why."""


def run(environ: Mapping[str, str], *, keep: bool, fast_forward: bool = False) -> None:
    """Tell the story: an agent's whole journey, or with `fast_forward` that of a deposit. Raises DemoFailed."""
    folder = Path(tempfile.mkdtemp(prefix="spawn-demo-"))
    environ = _settings(environ, folder)
    click.echo(f"# A service with play money and simulated servers, on {environ['SPAWN_LISTEN']}")
    log = (folder / "service.log").open("w")
    service = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "spawn", "dev", *(["--fast-forward"] if fast_forward else [])],
        env=environ,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://{environ['SPAWN_LISTEN']}"
        _wait_until_up(url, service, folder)
        if fast_forward:
            with _time_passing(service):
                _step([sys.executable, str(_script("deposit.py")), url], environ, folder)
        else:
            _step([sys.executable, str(_script("agent.py")), url], environ, folder)
        click.echo("\n# Do the books agree with the chain and with every server's meter?")
        _step([sys.executable, "-m", "spawn", "ledger", "verify"], environ, folder)
    finally:
        service.terminate()
        service.wait(timeout=15)
        log.close()
        if keep:
            click.echo(f"\nkept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _settings(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """A clean set of settings: nothing of the caller's own SPAWN_* reaches the demo."""
    clean = {name: value for name, value in environ.items() if not name.startswith("SPAWN_")}
    return clean | {
        "PYTHONUNBUFFERED": "1",
        "SPAWN_LISTEN": f"127.0.0.1:{_free_port()}",
        "SPAWN_DATABASE_URL": f"sqlite:///{folder / 'spawn.db'}",
        "SPAWN_DEVNET_PATH": str(folder / "devnet.db"),
        "SPAWN_SIMULATED_PATH": str(folder / "cloud.db"),
        "SPAWN_SIMULATED_SPEED": "40",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(url: str, service: "subprocess.Popen[bytes]", folder: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if service.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            # Not listening yet; the loop is bounded by the timeout above.
            time.sleep(0.1)
    raise DemoFailed(f"the service did not start:\n{(folder / 'service.log').read_text()}")


@contextmanager
def _time_passing(service: "subprocess.Popen[bytes]") -> Iterator[None]:
    """An hour in the service's books every half second or so."""
    enough = threading.Event()

    def pass_time() -> None:
        for _ in range(HOURS_MAX):
            if enough.wait(HOUR_TAKES_S) or service.stdin is None or service.poll() is not None:
                return
            service.stdin.write(b"1h\n")
            service.stdin.flush()

    passing = threading.Thread(target=pass_time, daemon=True)
    passing.start()
    try:
        yield
    finally:
        enough.set()
        passing.join()


def _script(name: str) -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "_examples", here.parent / "examples"):
        script = folder / name
        if script.exists():
            return script
    raise DemoFailed(f"examples/{name} is missing from this installation")


def _step(command: list[str], environ: dict[str, str], folder: Path) -> None:
    try:
        done = subprocess.run(command, env=environ, cwd=folder, check=False, timeout=AGENT_TIMEOUT_S)  # noqa: S603 - our own commands
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"{Path(command[1]).name} took longer than {AGENT_TIMEOUT_S} s") from error
    if done.returncode != 0:
        tail = "\n".join((folder / "service.log").read_text().splitlines()[-20:])
        raise DemoFailed(f"{' '.join(command[1:3])} ended with {done.returncode}. The service said:\n{tail}")
