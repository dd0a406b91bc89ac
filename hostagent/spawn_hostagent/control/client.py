"""How a command of `spawn-host` reaches the daemon of this machine: a socket in its state directory.

Invariant: whoever may open the socket may order the daemon; it is the owner's alone (mode 0600 in a 0700 directory).
One line of JSON each way.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from spawn_schemas.inventory import Gpu, Metrics
from spawn_schemas.orders import RentalReport

from spawn_hostagent.docker.prepulls import Prepulled
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import reason

SOCKET_NAME: Final = "control.sock"
STATUS_NAME: Final = "status.json"
PID_NAME: Final = "spawn-host.pid"
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 30.0
STALE_S: Final = 60.0
"""The daemon writes its status every few seconds; one that is older was left by a daemon that is gone or stuck."""


class NotRunning(Failure):
    """No daemon listens."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon wrote last. `since` is unix seconds of the connection's, or of its loss."""

    pid: int
    connected: bool
    since: int | None = None
    tier: str = "none"
    draining: bool = False
    rentals: tuple[RentalReport, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    metrics: Metrics = Metrics()
    prepulls: tuple[Prepulled, ...] = ()
    last_error: str | None = None


def ask(state_dir: Path, request: dict[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The daemon's answer. Raises NotRunning, and Failure with the daemon's own words where it refuses."""
    path = state_dir / SOCKET_NAME
    if not hasattr(socket, "AF_UNIX"):
        raise Failure("this system has no Unix sockets: order the host from the service's side instead.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout_s)
        try:
            line.connect(str(path))
            line.sendall(json.dumps(request).encode() + b"\n")
            text = _line(line)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"no spawn-host runs with the state directory {state_dir}: start it with `spawn-host start`, or name "
                "its configuration with --config."
            ) from error
        except PermissionError as error:
            raise Failure(
                f"{path} may not be opened by this user: run this as root (sudo) or as its owner."
            ) from error
        except (TimeoutError, socket.timeout) as error:  # noqa: UP041 - two classes before Python 3.10's end
            raise Failure(
                f"spawn-host did not answer within {timeout_s:g} s: see what its log says."
            ) from error
        except OSError as error:
            raise Failure(f"spawn-host cannot be asked at {path}: {reason(error)}.") from error
    return _read(text)


def _line(line: socket.socket) -> bytes:
    found = bytearray()
    while not found.endswith(b"\n") and len(found) < ANSWER_BYTES_MAX:
        part = line.recv(65536)
        if not part:
            break
        found += part
    return bytes(found)


def _read(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Failure("spawn-host broke off its answer: see what its log says, and try again.")
    if not answer.get("ok"):
        raise Failure(
            str(answer.get("message") or "spawn-host refused without a reason: see what its log says.")
        )
    return answer


def read_status(state_dir: Path, now: float) -> tuple[Status, float]:
    """What the daemon wrote last, and its age in seconds. Raises NotRunning where it wrote nothing, and Failure."""
    path = state_dir / STATUS_NAME
    try:
        text = path.read_bytes()
        age_s = max(0.0, now - path.stat().st_mtime)
    except FileNotFoundError as error:
        raise NotRunning(
            f"spawn-host has not run with the state directory {state_dir}: `spawn-host start`."
        ) from error
    except OSError as error:
        raise Failure(
            f"{path} cannot be read: {reason(error)}. Run this as root (sudo) or as its owner."
        ) from error
    try:
        return msgspec.json.decode(text, type=Status), age_s
    except msgspec.DecodeError as error:
        raise Failure(
            f"{path} is not a status ({error}): is the daemon of another version? Restart it."
        ) from error


def find_daemon(state_dir: Path) -> psutil.Process | None:
    """The daemon's process, by its pid file; None where it does not run. Raises Failure.

    A pid is used again after a restart of the machine: a process that began after the file was written, or that is no
    spawn-host, is somebody else's.
    """
    path = state_dir / PID_NAME
    try:
        text, written = path.read_text(encoding="utf-8").strip(), path.stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failure(
            f"{path} cannot be read: {reason(error)}. Run this as root (sudo) or as its owner."
        ) from error
    if not text.isdecimal():
        raise Failure(f"{path} does not hold a process number: remove it if no spawn-host runs.")
    try:
        process = psutil.Process(int(text))
        began, words = process.create_time(), process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    except psutil.AccessDenied as error:
        raise Failure(
            f"process {text} belongs to another user: run this as root (sudo) or as its owner."
        ) from error
    if began > written + 1 or not _is_ours(words):
        return None
    return process if process.pid != os.getpid() else None


def _is_ours(words: list[str]) -> bool:
    """By the program or the module that runs, among the first words: `python -m spawn_hostagent`, `spawn-host`."""
    return any("spawn-host" in Path(word).name or "spawn_hostagent" in word for word in words[:8])
