"""How few calls many servers cost in an hour, and that a destroy finds one left and a free way.

Here with some dozens of servers; `make bench-hetzner` is the same hour with 1,000.
"""

from pathlib import Path

from tests.integration.hetzner_hour import DESTROY_EVERY, HOUR_S, LEFT, LOOK_EVERY_S, RECONCILE_S, hour

SERVERS = 40


async def test_reads_cost_no_calls_and_a_destroy_never_waits(tmp_path: Path) -> None:
    counts = await hour(tmp_path, servers=SERVERS, acts=SERVERS)
    print(f"\n{counts}")
    assert counts.reads == SERVERS * HOUR_S // LOOK_EVERY_S
    assert counts.waits_s == [0] * (SERVERS // DESTROY_EVERY)
    # Somebody used up the project's calls half-way: what was left was ours to destroy and to create with.
    assert counts.fewest_left <= LEFT
    assert counts.refused == 0
    # Nobody's looking is among them: an action costs a few calls, an inventory a few pages.
    assert counts.upstream < 20 * SERVERS + 5 * HOUR_S // RECONCILE_S
