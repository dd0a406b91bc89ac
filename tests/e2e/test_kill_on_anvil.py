"""kill -9 of a service whose relayer runs by itself, at the points of a deposit that settles on a real chain."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests import databases
from tests.anvil import Chain
from tests.e2e.anvil_books import check_at_rest, receipt_of
from tests.e2e.anvil_crashing import anvil_settings, prepare_victim
from tests.e2e.anvil_weather import new_chain
from tests.e2e.lives import House, Nursery, open_house, open_nursery
from tests.e2e.scenarios import LEAST_WAIT_S
from tests.harness import START_S
from tests.wallets import Wallet

POINTS_MAX: Final = 400
STEP: Final = 2 if databases.ALONE else 1
"""Every other point will do where a write passes two of them."""
ATTEMPTS_MAX: Final = 20
LATER_S: Final = 30
PATH: Final = "/v1/balance/deposit"
BODY: Final[dict[str, Any]] = {"amount": "5.00"}


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with new_chain() as chain:
        yield chain


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with open_nursery("tests.e2e.anvil_crashing") as nursery:
        yield nursery


@contextlib.contextmanager
def house_on(chain: Chain, nursery: Nursery, folder: Path, *deaths: int) -> Iterator[House]:
    """A process of its own, which serves HTTP and whose relayer runs by itself."""
    mark = chain.snapshot()
    prepare_victim(folder, chain)
    try:
        with open_house(nursery, folder, START_S, deaths) as house:
            yield house
    finally:
        chain.drop_all()
        chain.revert(mark)


def test_a_process_that_is_killed_is_followed_by_one_that_goes_on(
    chain: Chain, nursery: Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wallet = Wallet.numbered(1)

    def run(point: int) -> tuple[list[str], bool]:
        """Who died there, and whether that was before its client was answered."""
        with house_on(chain, nursery, tmp_path / str(point), point) as house:
            challenge = house.request("POST", PATH, json=BODY)
            header = wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=house.now_s, nonce=point)
            house.arm()
            answer = _insist(house, header)
            in_call = bool(house.killed)
            house.pass_time(LATER_S)
            moved = receipt_of(answer)["transaction"]
            check_at_rest(anvil_settings(house.folder, chain), chain, moved=[moved])
            return house.killed, in_call

    killed: list[str] = []
    for point in range(1, POINTS_MAX, STEP):
        died, in_call = run(point)
        killed += died
        # On a server a relayer that has nothing to do looks for work, and passes points for ever.
        if not died or not (in_call or databases.ALONE):
            break
    assert {"write of Lane._dispatch", "node.send"} <= {one.split(" ", 1)[1] for one in killed}
    with capsys.disabled():
        print(f"\n  {len(killed)} killed", end=" ")


def _insist(house: House, header: str) -> httpx.Response:
    """Repeat the call until it has been answered for good."""
    headers = {"PAYMENT-SIGNATURE": header}
    for _ in range(ATTEMPTS_MAX):
        answer = house.outlive(lambda: house.request("POST", PATH, json=BODY, headers=headers))
        if answer.status_code != 503:
            assert answer.is_success, answer.text
            return answer
        house.pass_time(max(LEAST_WAIT_S, int(answer.headers["Retry-After"])))
    raise AssertionError("no final answer")
