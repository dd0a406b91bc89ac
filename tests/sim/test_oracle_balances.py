"""What the oracle of balances expects an answer to say of money that a debt will take."""

from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from tests.sim.client_types import Answer, Request
from tests.sim.made_up_books import OWN, RESERVE, SERVER, T0, WALLET, Stub, Wrong, metered
from tests.sim.oracle.balances import Balances
from tests.sim.oracle.part import Changes
from tests.sim.wallets import Kind, Proof
from tests.sim.world import World

PAID_IN: Final = 5_000


class Town(Stub):
    """A wallet with one server, which owes something for its traffic, and 5,000 micro-USDC that were just paid in."""

    process = twin = None

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.wrong_by_s = 0
        proof = Proof(kind=Kind.SIGNED, wallet=WALLET, headers={}, name="sig_1", valid_until=T0)
        self.calls = SimpleNamespace(whose=lambda _: (None, proof))
        self.oracle = Balances(cast("World", self))
        rows = {
            "server": {SERVER: metered(T0, **fields)},
            "account": {
                OWN: {"id": OWN, "balance": PAID_IN, "held": 0},
                RESERVE: {"id": RESERVE, "balance": 0, "held": 0},
            },
        }
        self.oracle.committed(Changes(rows=cast("dict[str, dict[Any, Any]]", rows)))

    @property
    def town(self) -> "Town":
        return self

    def true_s(self) -> int:
        return self.now

    def true_ms(self) -> int:
        return self.now * 1000

    def hear(self, balance: str) -> None:
        request = Request(method="GET", path="/v1/ssh-keys")
        self.oracle.answered(request, Answer(200, {"spawn-balance": balance}, b"{}"))


@pytest.mark.parametrize(
    ("owed", "renews", "left"),
    [(0, 1, "0.005"), (1_000, 1, "0.004"), (7_148_871, 1, "0.00"), (7_148_871, 0, "0.005")],
    ids=["no debt", "a small one", "a large one", "not the wallet's to pay"],
)
def test_what_is_owed_for_traffic_is_not_available(owed: int, renews: int, left: str) -> None:
    """docs/sim-findings.md, 27."""
    town = Town(traffic_owed_usdc=owed, auto_renew=renews)
    town.hear(left)
    with pytest.raises(Wrong, match="and it has"):
        town.hear("0.001")


def test_who_asks_before_the_first_payment_is_in_the_books_may_have_nothing() -> None:
    """docs/sim-findings.md, 30."""
    town = Town(traffic_owed_usdc=0, auto_renew=0)
    town.hear("0.00")
    town.hear("0.005")
    town.now += 3_600
    with pytest.raises(Wrong, match="and it has"):
        town.hear("0.00")
