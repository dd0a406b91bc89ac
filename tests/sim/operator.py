"""The operator: orders, looks, journals, copies, and once in a while the loss of the disk.

Invariant: whatever the operator does leaves every promise standing.
"""

from typing import TYPE_CHECKING, Final

from tests.sim import operator_books, operator_looks, operator_orders, operator_restore
from tests.sim.moves import Kind

if TYPE_CHECKING:
    from tests.sim.world import World


def _look(world: "World") -> None:
    _ = world.spawn(world.random.choice(operator_looks.LOOKS)(world), name="look")


MOVES: Final = (
    Kind(name="operator.credit", weight=0.8, play=operator_orders.credit),
    Kind(name="operator.bad_credit", weight=0.3, play=operator_orders.bad_credit),
    Kind(name="operator.bar", weight=0.7, play=operator_orders.bar),
    Kind(name="operator.lift", weight=0.4, play=operator_orders.lift),
    Kind(name="operator.announce", weight=1.2, play=operator_orders.announce),
    Kind(name="operator.withdraw", weight=0.4, play=operator_orders.withdraw),
    Kind(name="operator.refresh", weight=0.2, play=operator_orders.refresh),
    Kind(name="operator.look", weight=1.2, play=_look),
    Kind(name="operator.export", weight=0.3, play=operator_books.export_journal),
    Kind(name="operator.backup", weight=0.3, play=operator_books.back_up_now),
    Kind(name="operator.damage", weight=0.2, play=operator_books.damage),
    Kind(name="operator.restore", weight=0.3, play=operator_restore.lose_the_disk),
)
"""What the operator does, and how often."""
