"""Whether the walls hold: a connection tried from a container's network to this machine.

Invariant: what is tried is tried from inside the container's network, as a tenant would, and needs no program there.
"""

import ctypes
import os
import socket
import threading
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
PATIENCE_S: Final = 1.0


def is_open(pid: int, address: str) -> bool:
    """Whether the container of this process reaches a service of this machine at that address of the machine's own.

    Blocks for up to `PATIENCE_S`. Raises OSError where the agent cannot enter the container's network.
    """
    with socket.create_server((address, 0)) as service:
        tried = _Try(Path(f"/proc/{pid}/ns/net"), (address, service.getsockname()[1]))
        # A thread of its own: the network that it enters is left only by its end.
        thread = threading.Thread(target=tried.run, name="wall-canary")
        thread.start()
        thread.join()
    if tried.failed is not None:
        raise tried.failed
    return tried.reached


class _Try:
    def __init__(self, network: Path, target: tuple[str, int]) -> None:
        self._network, self._target = network, target
        self.reached = False
        self.failed: OSError | None = None

    def run(self) -> None:
        try:
            with self._network.open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        except OSError as error:
            self.failed = error
            return
        with socket.socket() as caller:
            caller.settimeout(PATIENCE_S)
            self.reached = caller.connect_ex(self._target) == 0
