"""`/v1/balance`: what the wallet has, how it came to it, and paying in."""

from typing import Annotated

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter
from spawn_schemas import api

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services import balance

Limit = Annotated[int, QueryParameter(ge=1, le=100, description="Lines per page.")]
Cursor = Annotated[
    str | None,
    QueryParameter(
        description="`next_cursor` of the page before.", schema_extra={"pattern": r"^c[0-9]{1,18}$(?!\n)"}
    ),
]


@get("/v1/balance", **priced(charges.IDENTIFIED, "Show your balance"))
async def show_balance(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[api.BalanceView]:
    return await services.gate.run(arrival, balance.ShowBalance)


@get("/v1/balance/transactions", **priced(charges.IDENTIFIED, "List what moved your balance"))
async def list_transactions(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    cursor: Cursor = None,
    limit: Limit = 25,
) -> Response[api.TransactionList]:
    return await services.gate.run(arrival, lambda: balance.ListTransactions(cursor=cursor, limit=limit))


@post("/v1/balance/deposit", status_code=200, **priced(charges.DEPOSIT, "Pay into your balance", 422))
async def deposit(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    data: JSONBody[api.Deposit | None] = None,
) -> Response[api.Deposited]:
    return await services.gate.run(arrival, balance.TopUp, fund=None if data is None else data.amount)


HANDLERS = (show_balance, list_transactions, deposit)
