"""A facilitator that we did not write: PyPI x402's own, served over HTTP by a process of its own.

python -m tests.interop.self_hosted PORT RPC_URL NETWORK      with the relayer's key in X402_TEST_KEY
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from tests.engines import ROOT
from tests.ports import free_port

START_TIMEOUT_S: Final = 30
KEY_VARIABLE: Final = "X402_TEST_KEY"


@dataclass
class SelfHosted:
    """The running process, or where it ran."""

    url: str
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self.process.kill()
        self.process.wait(timeout=10)


@contextmanager
def self_hosted(*, rpc_url: str, network: str, key: str, port: int | None = None) -> Iterator[SelfHosted]:
    """Run the facilitator for this network, its transactions sent and paid for by the account of `key`.

    Without a `port` it is a free one.
    """
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "tests.interop.self_hosted_app", str(port), rpc_url, network]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {KEY_VARIABLE: key}, stdout=subprocess.DEVNULL
    )
    running = SelfHosted(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_up(running)
        yield running
    finally:
        running.kill()


def _wait_until_up(running: SelfHosted) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=2) as http:
        while time.monotonic() < end and running.process.poll() is None:
            try:
                if http.get(f"{running.url}/supported").is_success:
                    return
            except httpx.TransportError:
                # Not listening yet; the loop is bounded by the timeout above.
                time.sleep(0.05)
    raise RuntimeError("PyPI x402's facilitator did not start")
