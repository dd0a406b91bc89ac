"""`make bench` still measures: its parts work, its requests are accepted, its result is whole. No figure is judged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.engines import ROOT, require


def _bench(folder: Path, *names: str) -> dict[str, Any]:
    """Run a small benchmark of the subjects that begin with `names`; return what it wrote."""
    output = folder / "result.json"
    sizes = ("--rounds", "1", "--requests", "50", "--warmup", "10", "--transfers", "320")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *sizes, "--output", str(output), "--only", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = msgspec.json.decode(output.read_bytes())
    for line in result["http"]:
        assert line["median"]["per_s"] > 0
        assert line["median"]["cpu_us"] > 0
    return result


def test_every_paid_read_of_ours_is_accepted_and_booked(tmp_path: Path) -> None:
    result = _bench(tmp_path, "ours", "ledger")
    ours = {"ours-signed", "ours-x402", "ours-v1", "ours-devnet", "ours-unpaid"}
    assert {line["subject"] for line in result["http"]} == ours
    assert set(result["ratios"]) == ours - {"ours-x402", "ours-unpaid"}
    assert "event loop" in result["threads_us"]["ours-x402"]
    assert len(result["ledger"]["ledger"]) == 3


def test_the_peers_accept_our_payments(tmp_path: Path) -> None:
    require("node")
    result = _bench(
        tmp_path, "fastapi-process", "fastapi-http", "express-process", "hono-http", "hono-unpaid"
    )
    assert len(result["http"]) == 5
