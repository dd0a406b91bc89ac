"""`python -m tests.chaos --seconds 120`: how a fleet fares whose replicas die and stand still."""

import argparse
import asyncio
import os
import random
import tempfile
from pathlib import Path

from tests import databases
from tests.chaos.run import fleet_of_three, live
from tests.engines import postgres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--chain", choices=("devnet", "anvil"), default="devnet")
    wanted = parser.parse_args()
    with postgres() as server, tempfile.TemporaryDirectory(prefix="spawn-chaos-") as folder:
        os.environ[databases.SERVER_VARIABLE] = server.url("{database}")
        databases.make_template()
        print(f"seed {wanted.seed}", flush=True)
        with fleet_of_three(Path(folder), wanted.chain) as fleet:
            print("\n".join(asyncio.run(live(fleet, seconds=wanted.seconds, seed=wanted.seed))))


if __name__ == "__main__":
    main()
