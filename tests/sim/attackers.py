"""Who means harm: every attack of the simulation, as moves among all others.

Attackers see what is public or can leak (ids and addresses of others, what goes over the wire, what stands on the
chain), and have keys and money of their own. Invariant: they get nothing but their own, and the answers that say why.
"""

from typing import Final

from tests.sim import attacker_forgeries, attacker_noise, attacker_races, attacker_replays, attacker_thefts
from tests.sim.moves import Kind

MOVES: Final[tuple[Kind, ...]] = (
    *attacker_thefts.MOVES,
    *attacker_forgeries.MOVES,
    *attacker_replays.MOVES,
    *attacker_races.MOVES,
    *attacker_noise.MOVES,
)
