"""A trial of this host's isolation beside whatever runs here: for commands, when no daemon is there to be asked.

Invariant: it has names of its own for everything that it makes, the table of nftables too, and takes it away again: the
walls around tenants stay as they are.
"""

from typing import Final

from docker import APIClient
from spawn_schemas.inventory import Isolation

from spawn_hostagent.config import Config
from spawn_hostagent.docker.engine import Engine
from spawn_hostagent.preflight.programs import Run, run_program
from spawn_hostagent.walls.canary import Canary
from spawn_hostagent.walls.disks import Disks
from spawn_hostagent.walls.firewall import PUBLIC_RESOLVERS, RULES, Firewall, Rule
from spawn_hostagent.walls.isolation import LINES, Line

NAME: Final = "spawn-check"
TABLE: Final = "spawn_check"
BRIDGE: Final = "spc-canary"
PATTERN: Final = "spc-*"


async def measured(
    config: Config,
    *,
    has_cards: bool,
    run: Run = run_program,
    lines: tuple[Line, ...] = LINES,
    rules: tuple[Rule, ...] = RULES,
) -> Isolation:
    """What the canaries find now. Raises MachineError where Docker does not answer."""
    # Nobody asks for names in there: which resolvers are open does not matter.
    firewall = Firewall(lambda: PUBLIC_RESOLVERS, None, rules, table=TABLE, pattern=PATTERN)
    disks = Disks(config.state / "canary", config.docker_socket)

    def work(client: APIClient) -> Isolation:
        canary = Canary(
            client,
            lambda: firewall.keep(dict),
            disks,
            config.runtime,
            run,
            has_cards=has_cards,
            lines=lines,
            name=NAME,
            bridge=BRIDGE,
        )
        try:
            return canary.measure()
        finally:
            firewall.leave()

    engine = Engine(config.docker_socket)
    try:
        return await engine.call_slow(work)
    finally:
        engine.close()
