"""Each attack of the table fails under the whole profile, and succeeds where its lines are missing."""

import pytest
from spawn_hostagent.walls.firewall import RULES, connections_each
from spawn_hostagent.walls.isolation import LINES
from spawn_schemas.ids import RentalId

from tests.hostagent.namespaces import INTERNET
from tests.isolation.arena import PATIENCE_S, Arena, ignore
from tests.isolation.attacks import ATTACKS, FLOOD, FLOODS, Attack, connect

each = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))


@each
def test_is_stopped(ground: Arena, attack: Attack) -> None:
    assert not ground.attack(attack.script)


@each
def test_succeeds_without_its_line(ground: Arena, attack: Attack) -> None:
    assert ground.attack(attack.script, frozenset(attack.without))


def test_a_flood_of_connections_leaves_the_rest_to_others(ground: Arena) -> None:
    """The kernel remembers each for half a minute, so that this is fought by tenants of its own."""
    most = connections_each(ground.lent.rentals)
    for name, without in (("srv_flooder", set()), ("srv_drowner", {"connections"})):
        ground.run(ground.manager().start(ground.order(name), ignore))
        with ground.walls(frozenset(without)):
            result = ground.run(ground.manager().exec(RentalId(name), 1, ("sh", "-c", FLOOD), PATIENCE_S))
        answered = int(result.stdout)
        assert (answered == FLOODS) if without else (most // 2 < answered <= most), result
        ground.run(ground.manager().destroy(RentalId(name), 1))
    assert ground.attack(connect("anything.example", 443)), "a neighbour goes on"


def test_a_tenant_reaches_the_internet_by_name(ground: Arena) -> None:
    assert ground.attack(connect("anything.example", 443))
    assert f"{INTERNET}:443" in ground.engine.world.met


def test_every_name_in_the_table_is_a_line_or_a_rule() -> None:
    known = {line.name for line in LINES} | {rule.name for rule in RULES}
    assert {name for attack in ATTACKS for name in attack.without} <= known
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 30
