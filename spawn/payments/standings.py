"""How the facilitators of others fare, as an operator is told.

Invariant: only counts and names are in it, nothing that a facilitator said.
"""

import msgspec


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one facilitator has fared since the start of this process, for operators. Each is asked anew after a restart.

    `open_until`: set aside until then, in unix seconds; 0 is not at all. `settled`: settlements that it reported and
    the chain shows. `refused`: payments it refused for what only the chain knows (no funds). `disagreed`: payments it
    refused and we had verified, each an incident. `unproven`: settlements that it reported and the chain did not show
    while we waited. `failed`: calls without a usable answer. `unsupported`: it does not settle our token's chain.
    """

    name: str
    open_until: int
    unsupported: bool
    settled: int
    refused: int
    disagreed: int
    unproven: int
    failed: int
