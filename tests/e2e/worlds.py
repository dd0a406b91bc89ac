"""The worlds in which the crash tests begin, made once through the service itself and then copied.

Invariant: a prepared world is at rest, its process ended in good order, and nothing in it depends on chance but ids.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from signing import SignedRequestAuth

from spawn.payments.devnet import DevChain
from spawn.rails import x402_terms
from spawn.settings import Settings
from tests import databases
from tests.e2e.facts import MINTED, Facts, is_busy, look
from tests.e2e.lives import House, Nursery, open_house
from tests.e2e.scenarios import RENT
from tests.e2e.victim import settings_of
from tests.harness import CHAIN_ID, START_S
from tests.wallets import Wallet

POLL_S: Final = 2
POLLS_MAX: Final = 60 if databases.ALONE else 200
IDLE_S: Final = 60
"""As often as the rarest job that matters here runs: enough to meet a death that is planned for idle times."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A prepared world: its files, and what was true when they were laid to rest."""

    folder: Path
    before: Facts


def payer() -> Wallet:
    """The one customer of every world."""
    return Wallet.numbered(1)


def sign_payment(house: House, method: str, path: str, body: object, *, nonce: int) -> str:
    """Meet the 402 and sign it: the value of PAYMENT-SIGNATURE."""
    challenge = house.request(method, path, json=body)
    assert challenge.status_code == 402, challenge.text
    return payer().payment(challenge.headers["PAYMENT-REQUIRED"], now=house.now_s, nonce=nonce)


def settle_down(house: House) -> None:
    """Let time pass until no operation is under way."""
    for _ in range(POLLS_MAX):
        if not is_busy(house.folder):
            return
        house.pass_time(POLL_S)
    raise AssertionError("an operation never ended")


def meet_deaths(house: House) -> None:
    """Let time pass until every planned death has come, and then until no operation is under way."""
    for _ in range(POLLS_MAX):
        if not house.doomed:
            settle_down(house)
            return
        house.pass_time(POLL_S if is_busy(house.folder) else IDLE_S)
    raise AssertionError("a planned death never came")


def _become_newcomer(house: House) -> None:
    """Money on the chain, and nothing with us."""


def _become_customer(house: House) -> None:
    """A balance of 20.00."""
    path, body = "/v1/balance/deposit", {"amount": "20.00"}
    payment = sign_payment(house, "POST", path, body, nonce=1)
    _ok(house.request("POST", path, json=body, headers={"PAYMENT-SIGNATURE": payment}))


def _become_tenant(house: House) -> None:
    """A customer whose server runs."""
    _become_customer(house)
    auth = SignedRequestAuth(payer().account, CHAIN_ID, clock=lambda: house.now_s)
    _ok(house.request("POST", "/v1/servers", json=RENT, auth=auth))
    settle_down(house)


def _ok(answer: Any) -> None:
    assert answer.is_success, answer.text


_PREPARATIONS: Final[dict[str, Callable[[House], None]]] = {
    "newcomer": _become_newcomer,
    "customer": _become_customer,
    "tenant": _become_tenant,
}


def prepare_worlds(nursery: Nursery, folder: Path) -> dict[str, Base]:
    """Every world by its name, each in a folder of its own."""
    return {name: _prepare(nursery, folder / name, become) for name, become in _PREPARATIONS.items()}


def _prepare(nursery: Nursery, folder: Path, become: Callable[[House], None]) -> Base:
    folder.mkdir()
    settings = settings_of(folder, nursery.url)
    databases.make(settings.database_url)
    mint(settings)
    with open_house(nursery, folder, START_S) as house:
        become(house)
        house.stop()
        return Base(folder=folder, before=look(folder, payer().address, house.now_s))


def mint(settings: Settings) -> None:
    """The customer's money, on a new chain."""
    asyncio.run(_mint(DevChain(Path(settings.devnet_path), x402_terms(settings), now=lambda: START_S)))


async def _mint(chain: DevChain) -> None:
    try:
        await chain.mint(payer().address, MINTED)
    finally:
        chain.close()
