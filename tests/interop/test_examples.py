"""The scripts that callers are told to copy do what they say, run as they are told to run them."""

import os
import subprocess
import sys
from typing import Final

import httpx

from tests.engines import ROOT
from tests.interop.service import RunningService
from tests.wallets import Wallet

SCRIPT: Final = str(ROOT / "examples" / "session.py")


def session(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`KEY=… python examples/session.py URL`."""
    command = [sys.executable, SCRIPT, *arguments]
    clean = {name: value for name, value in os.environ.items() if name != "KEY"}
    return subprocess.run(
        command, env=clean | environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_session_that_the_example_opens_reads_what_its_wallet_may(service: RunningService) -> None:
    key = bytes(Wallet.numbered(990).account.key).hex()
    opened = session(service.url, KEY=f"0x{key}")
    assert (opened.returncode, opened.stderr) == (0, "")
    bearer = {"Authorization": f"Bearer {opened.stdout.strip()}"}
    with httpx.Client(base_url=service.url, headers=bearer, trust_env=False) as http:
        assert http.get("/v1/balance").json()["available"] == "0.00"
        assert http.post("/v1/ssh-keys").status_code == 402


def test_the_example_says_what_it_needs(service: RunningService) -> None:
    assert "KEY=0xYOUR_PRIVATE_KEY" in session(service.url).stderr
    assert "KEY=0xYOUR_PRIVATE_KEY" in session(KEY="0x01").stderr
