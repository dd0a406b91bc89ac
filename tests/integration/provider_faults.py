"""The faults of the simulated cloud, and what callers are told of each."""

from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import Fault, LostAnswer, LostRequest, Outage

from tests.harness import World
from tests.integration.server_steps import SMALL, accepted_at, burnt, micro, show
from tests.wallets import Wallet

READ = 1_000
REFUSALS = {
    RefusedCode.OUT_OF_CAPACITY: (503, "out_of_capacity"),
    RefusedCode.QUOTA: (503, "out_of_capacity"),
    RefusedCode.INVALID: (400, "invalid_request"),
    RefusedCode.CONFLICT: (409, "conflict"),
    RefusedCode.NOT_FOUND: (404, "not_found"),
}
PASSING: list[Fault] = [Outage(), LostRequest(), LostAnswer()]
"""Faults that the caller is never told of: the command is carried out all the same."""


def fault_name(fault: object) -> str:
    return type(fault).__name__


async def check_money(world: World, wallet: Wallet, server_id: str, available: int) -> None:
    """The wallet has this much, the reserve lacks the burn and nothing else, and nothing is held."""
    since = await accepted_at(world, server_id)
    shown = await show(world, wallet, server_id)
    assert micro(shown["deposit_remaining"]) == 5_000_000 - burnt(SMALL, world.clock.now_s() - since)
    assert await world.available(wallet.address) == available - READ
    assert await world.account(f"wallet:{wallet.address}") == available - READ
    await world.check_books()
