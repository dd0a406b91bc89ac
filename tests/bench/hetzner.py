"""`python -m tests.bench.hetzner`: an hour of 1,000 servers and 1,000 wallets that look, and the calls it costs us.

It takes minutes and ends with exit 1 if the hour took more calls than a project has, or if a destroy had to wait.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from spawn_providers.hetzner.budget import LIMIT

from tests.integration.hetzner_hour import hour


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hetzner", description=__doc__)
    parser.add_argument("--servers", type=int, default=1_000)
    parser.add_argument(
        "--acts", type=int, default=240, help="owners who reboot, rebuild or replace their server"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="spawn-hour-") as folder:
        counts = asyncio.run(hour(Path(folder), servers=options.servers, acts=options.acts))
    print(counts)
    if counts.upstream >= LIMIT or any(counts.waits_s):
        sys.exit("too many calls, or a destroy that waited")


if __name__ == "__main__":
    main(sys.argv[1:])
