"""The host agent's own daemon for the benchmark, on containers that are entries of a table.

Run as `python -m tests.bench.hosts_agent FOLDER LINK_URL SERVICE_URL SSH_PORT BULK_PORT`. Link, journal and tunnel are
what a host runs; the ports of every rental lead to these two of loopback instead of to a container's.
"""

import asyncio
import sys
import time
from pathlib import Path

from spawn_hostagent import daemon
from spawn_hostagent.config import Config
from spawn_schemas.ids import RentalId

from tests.bench.hosts_stage import ATTIC, BULK_PORT, host_id, key_of
from tests.hostagent.fake_host import FakeHardware, FakeSigner
from tests.hostagent.fake_machines import FakeMachines


class _Lent(FakeMachines):
    """Every rental listens on the same ports of this machine."""

    def __init__(self, targets: dict[int, int]) -> None:
        super().__init__(lambda: int(time.time()))
        self._targets = targets

    async def address_of(self, rental_id: RentalId, port: int) -> tuple[str, int]:
        if port in self._targets:
            self.listeners[rental_id, port] = ("127.0.0.1", self._targets[port])
        return await super().address_of(rental_id, port)


async def main(folder: Path, link_url: str, service: str, targets: dict[int, int]) -> int:
    """Be the daemon until told to stop."""
    signer = FakeSigner(link_url, host_id(ATTIC))
    signer.key = key_of(ATTIC)
    config = Config(service=service, state_dir=str(folder))
    return await daemon.run(config, signer, _Lent(targets), FakeHardware())


if __name__ == "__main__":
    _, state, to_link, to_service, ssh, bulk = sys.argv
    sys.exit(asyncio.run(main(Path(state), to_link, to_service, {22: int(ssh), BULK_PORT: int(bulk)})))
