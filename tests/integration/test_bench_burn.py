"""`make bench-burn` still measures: the service settles all that is due under load, and its books are right."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.engines import ROOT

SIZES = (
    "--servers",
    "400",
    "--due",
    "100",
    "--sample",
    "20",
    "--ticks",
    "20",
    "--rate",
    "50",
    "--seconds",
    "1",
)


@pytest.mark.embedded
def test_a_small_burn_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.burn", *SIZES, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(output.read_bytes())
    assert [way["settled"] for way in result["ways"]][:2] == [100, 100]
    assert all(way["wall_s"] > 0 for way in result["ways"])
    assert result["meanwhile"]["answered"] > 0
    assert result["burn_s"] > 0
