"""`spawn treasury`: what we hold on chain beside what the books say, and what is on its way."""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from spawn_schemas.money import USDC, Usdc, format_usdc

from spawn.cli_common import open_chain, process_settings
from spawn.clock import SystemClock
from spawn.settings import Settings
from spawn.store.migrate import require_current
from spawn.store.places import place_of

if TYPE_CHECKING:
    from spawn.payments.standings import Standing
    from spawn.services.treasury import GasMoney, Treasury

GWEI: Final = 10**9
ETHER: Final = 10**18


@click.command("treasury")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def treasury_command(*, as_json: bool) -> None:
    """Show what we hold on chain beside the books, the relayers' gas, and what is unfinished.

    Exit 1 if the books claim more than the chain shows. Only reads, so it may run beside the service.
    """
    settings = process_settings()
    require_current(settings.database_url)
    shown = asyncio.run(_look(settings))
    click.echo(json.dumps(_as_json(shown, settings), indent=2) if as_json else _as_text(shown, settings))
    if shown.compared.is_short:
        from spawn.services.treasury import shortage

        if not as_json:
            click.secho(f"broken: {shortage(shown.compared)}", fg="red" if sys.stdout.isatty() else None)
        sys.exit(1)


async def _look(settings: Settings) -> "Treasury":
    from spawn.evm.transactions import address_of
    from spawn.services import treasury

    db = await place_of(settings.database_url).open_reader()
    try:
        async with open_chain(settings) as (holdings, node):
            gas = None
            if node is not None and settings.payments == "self":
                relayers = tuple(map(address_of, settings.relayer_keys))
                gas = await treasury.gas_money(node, relayers, cap_wei=settings.relay_fee_cap_wei)
            return await treasury.look(db, holdings, settings.pay_to, SystemClock().now_s(), gas=gas)
    finally:
        await db.close()


# --- for people -----------------------------------------------------------------------------------------------


def _as_text(shown: "Treasury", settings: Settings) -> str:
    compared = shown.compared
    lines = [
        f"treasury  {settings.x402_pay_to} on {settings.x402_network} ({settings.payments}), {_moment(compared.at)}",
        f"  on chain     {_usdc(compared.chain_usdc)} USDC",
        f"  in the books {_usdc(compared.books_usdc)} USDC   {format_usdc(shown.suspense_usdc)} of it in suspense",
        f"  difference   {_usdc(compared.difference_usdc)} USDC   {_meaning(shown)}",
        f"  last compared by the service: {_last(shown)}",
    ]
    if shown.gas is not None:
        lines += _gas_lines(shown.gas)
    lines.append("unfinished" if shown.unfinished else "unfinished  nothing")
    lines += [
        f"  {line.what:<22}{line.count:>6}   {format_usdc(line.amount_usdc)} USDC, the oldest for {line.oldest_s} s"
        for line in shown.unfinished
    ]
    if settings.payments == "facilitator":
        lines.append("facilitators, since the service started")
        lines += [
            f"  {one.name}: {one.settled} settled, {one.disagreed} disagreed with us, {one.unproven} not shown by the "
            f"chain, {one.failed} calls failed{_state(one, compared.at)}"
            for one in shown.facilitators
        ] or ["  none has been asked yet"]
    return "\n".join(lines)


def _gas_lines(gas: "GasMoney") -> list[str]:
    return [
        f"relayers  gas costs {_gwei(gas.price_wei)} gwei now; we pay at most {_gwei(gas.cap_wei)}",
        *(
            f"  {one.address} {one.balance_wei / ETHER:>14.6f} ETH   {one.payments_now:,} payments now, "
            f"{one.payments_at_cap:,} at the most{'' if one.payments_at_cap else '   SEND IT ETHER'}"
            for one in gas.relayers
        ),
    ]


def _meaning(shown: "Treasury") -> str:
    if shown.compared.is_short:
        return "BROKEN: the books claim more than there is"
    if shown.compared.difference_usdc == 0:
        return "they agree"
    return "not read yet, or there before the first run"


def _last(shown: "Treasury") -> str:
    if shown.last is None:
        return "never"
    when = _moment(shown.last.at)
    if shown.last.is_short:
        return f"ALARM at {when}: short by {format_usdc(Usdc(-shown.last.difference_usdc))} USDC"
    return f"right at {when}, {format_usdc(shown.last.difference_usdc)} beyond the books"


def _state(one: "Standing", now: int) -> str:
    if one.unsupported:
        return "; does not settle our token"
    return "; set aside for now" if one.open_until > now else ""


def _usdc(amount: Usdc) -> str:
    """With all six decimals, so that one stands below the other."""
    whole, fraction = divmod(abs(amount), USDC)
    sign = "-" if amount < 0 else ""
    return f"{f'{sign}{whole:,}':>12}.{fraction:06d}"


def _gwei(wei: int) -> str:
    return f"{wei / GWEI:.6f}".rstrip("0").rstrip(".")


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- for programs ---------------------------------------------------------------------------------------------


def _as_json(shown: "Treasury", settings: Settings) -> dict[str, Any]:
    compared, last, gas = shown.compared, shown.last, shown.gas
    return {
        "at": compared.at,
        "network": settings.x402_network,
        "payments": settings.payments,
        "pay_to": settings.pay_to,
        "chain": format_usdc(compared.chain_usdc),
        "books": format_usdc(compared.books_usdc),
        "suspense": format_usdc(shown.suspense_usdc),
        "difference": format_usdc(compared.difference_usdc),
        "short": compared.is_short,
        "last": None
        if last is None
        else {"at": last.at, "difference": format_usdc(last.difference_usdc), "short": last.is_short},
        "gas": None
        if gas is None
        else {
            "price_wei": gas.price_wei,
            "cap_wei": gas.cap_wei,
            "relayers": [
                {
                    "address": one.address,
                    "balance_wei": one.balance_wei,
                    "payments_now": one.payments_now,
                    "payments_at_cap": one.payments_at_cap,
                }
                for one in gas.relayers
            ],
        },
        "unfinished": [
            {
                "what": line.what,
                "count": line.count,
                "amount": format_usdc(line.amount_usdc),
                "oldest_s": line.oldest_s,
            }
            for line in shown.unfinished
        ],
        "facilitators": [
            {
                "name": one.name,
                "set_aside_until": one.open_until,
                "unsupported": one.unsupported,
                "settled": one.settled,
                "refused": one.refused,
                "disagreed": one.disagreed,
                "unproven": one.unproven,
                "failed": one.failed,
            }
            for one in shown.facilitators
        ],
    }
